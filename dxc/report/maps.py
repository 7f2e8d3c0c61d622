"""Figures of a map of crossings: where it is right and wrong, precision against recall, and what probabilities mean.

They take arrays and frames only: of `dxc.evaluation.crossings` (MapScore.points, MapScore.curve) and
`dxc.evaluation.calibration` (reliability).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dxc.metrics import title_of
from dxc.report.figures import (
    BLUE,
    GREY,
    ONE_COLUMN_IN,
    SERIES,
    STYLE,
    TWO_COLUMNS_IN,
    VERMILLION,
    note_below,
    tick_number,
)
from dxc.text import counted, for_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]
Extent = tuple[float, float, float, float]

KINDS = {"hit": (BLUE, "o"), "missed": (VERMILLION, "v"), "false alarm": ("#E69F00", "X")}
"""Colour and marker of each kind of point; in grey, markers tell them apart."""
NAMES = {"hit": "found", "missed": "missed", "false alarm": "false alarm"}
TALLEST_IN = 9.0  # of a figure on a page


def relief(elevation: Floats, cell_m: float) -> Floats:
    """A hillshade, lit from the north-west: 0..1, NaN where the elevation is.

    Args:
        elevation: (h, w), m.
        cell_m: edge of a cell, m.
    """
    from matplotlib.colors import LightSource

    known = np.isfinite(elevation)
    if not known.any():
        return np.full(elevation.shape, np.nan)
    filled = np.where(known, elevation, np.nanmedian(elevation))
    # farmland is flat: without exaggeration embankments do not show
    shade = LightSource(azdeg=315, altdeg=45).hillshade(filled, vert_exag=4, dx=cell_m, dy=cell_m)
    return np.where(known, shade, np.nan)


def crossing_map(
    elevation: Floats,
    extent: Extent,
    points: pd.DataFrame,
    *,
    roads: Sequence[Floats] = (),
    lines: Sequence[Floats] = (),
    title: str = "",
    note: str = "",
) -> Figure:
    """Hits, misses and false alarms over a hillshade.

    Args:
        elevation: (h, w) an overview of the DEM, m; NaN where there is no data.
        extent: its left, right, bottom and top edge, m.
        points: columns x and y (m) and kind (hit, missed, false alarm); or without kind, then they are predictions that
            nothing was compared with.
        roads: (n, 2) lines, m.
        lines: (n, 2) breach lines, m.
        title: over the figure.
        note: small print below it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    left, right, bottom, top = extent
    width = TWO_COLUMNS_IN
    height = min(TALLEST_IN, width * (top - bottom) / (right - left))
    width = max(ONE_COLUMN_IN, height * (right - left) / (top - bottom))
    kinds = points.get("kind")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height + 0.5), layout="constrained")
        axes = figure.add_subplot()
        shade = relief(np.asarray(elevation, float), (right - left) / max(1, elevation.shape[1]))
        axes.imshow(shade, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear", alpha=0.75)
        for number, road in enumerate(roads):
            label = "road" if not number else None
            axes.plot(*np.asarray(road).T[:2], color="#444444", linewidth=0.6, zorder=2, label=label)
        for number, line in enumerate(lines):
            label = f"breach line: {len(lines)}" if not number else None
            axes.plot(*np.asarray(line).T[:2], color="#56B4E9", linewidth=1.6, zorder=3, label=label)
        if kinds is None:
            _points(axes, points, f"predicted: {len(points)}", BLUE, "o")
        else:
            for kind, (colour, marker) in KINDS.items():
                chosen = points[kinds == kind]
                if len(chosen):
                    _points(axes, chosen, f"{NAMES[kind]}: {len(chosen)}", colour, marker)
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set_visible(False)
        _scale_bar(axes, extent)
        handles, labels = axes.get_legend_handles_labels()
        if handles or title:
            shown = for_figure(title) if title else None
            figure.legend(handles, labels, loc="outside upper left", ncols=5, title=shown, alignment="left")
        note_below(figure, note, width)
    return figure


def _points(axes: Axes, points: pd.DataFrame, label: str, colour: str, marker: str) -> None:
    axes.plot(
        points["x"], points["y"], linestyle="none", marker=marker, markersize=6, markerfacecolor=colour,
        markeredgecolor="white", markeredgewidth=0.6, zorder=4, label=label,
    )  # fmt: skip


def _scale_bar(axes: Axes, extent: Extent) -> None:
    """A bar of 1, 2 or 5 x 10^n metres, about a fifth of the width."""
    left, right, bottom, top = extent
    about = (right - left) / 5
    size = 10.0 ** np.floor(np.log10(about))
    length = max(step * size for step in (1, 2, 5) if step * size <= about)
    x, y = left + 0.03 * (right - left), bottom + 0.03 * (top - bottom)
    axes.plot([x, x + length], [y, y], color="black", linewidth=2.5, solid_capstyle="butt", zorder=5)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(
        x, y + 0.012 * (top - bottom), text, fontsize=7, zorder=5, va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
    )  # fmt: skip


def map_precision_recall(
    curves: Mapping[str, pd.DataFrame],
    *,
    threshold: float | None = None,
    truth: int | None = None,
    note: str = "",
) -> Figure:
    """Precision against recall of maps over all thresholds. A curve ends where all points of the map are taken.

    Args:
        curves: of MapScore, by what the map was made with; as many as there are colours.
        threshold: of the maps; the nearest point of each curve at or above it gets a ring.
        truth: number of true crossings.
        note: small print below the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN_IN, ONE_COLUMN_IN), layout="constrained")
        axes = figure.add_subplot()
        for (name, curve), (colour, _) in zip(curves.items(), SERIES, strict=False):
            if curve.empty:
                axes.plot([], [], color=colour, label=f"{for_figure(name)}: no point")
                continue
            recall, precision = curve["recall"].to_numpy(), curve["precision"].to_numpy()
            area = float((np.diff(recall, prepend=0.0) * precision).sum())
            # from recall 0 on, as the area counts it: one point alone makes a line too
            steps = [0, *recall], [precision[0], *precision]
            axes.plot(*steps, color=colour, clip_on=False, label=f"{for_figure(name)}, area {area:.3f}")
            least = np.inf if threshold is None else threshold
            taken = np.flatnonzero(curve["threshold"].to_numpy() >= least)
            if len(taken):
                at = taken[-1]
                axes.plot(
                    recall[at], precision[at], linestyle="none", marker="o", markersize=7, markerfacecolor="none",
                    markeredgecolor=VERMILLION, clip_on=False, zorder=3,
                    label=f"p ≥ {threshold:g}: recall {recall[at]:.2f}, precision {precision[at]:.2f}",
                )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal", ylabel=title_of("map_precision"))
        crossings = "" if truth is None else f" ({counted(truth, 'true crossing')})"
        axes.set_xlabel(f"{title_of('map_recall')}{crossings}")
        axes.grid(color="#e5e5e5", linewidth=0.5)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", fontsize=7)
        note_below(figure, note, ONE_COLUMN_IN)
    return figure


def reliability_diagram(curves: Mapping[str, pd.DataFrame], *, note: str = "") -> Figure:
    """What share of predictions are crossings, against what the probability says, with 95 % intervals and counts.

    Args:
        curves: of reliability(), by name, such as "as trained" and "calibrated"; as many as there are colours.
        note: small print below the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN_IN, 1.35 * ONE_COLUMN_IN), layout="constrained")
        axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=0.8, label="as stated")
        for number, ((name, curve), (colour, marker)) in enumerate(zip(curves.items(), SERIES, strict=False)):
            counts, share = curve["count"].to_numpy(float), curve["share"].to_numpy(float)
            apart = np.abs(curve["probability"].to_numpy(float) - share)
            error = f", error {(apart * counts).sum() / counts.sum():.3f}" if counts.sum() else ""
            reach = np.array([share - curve["share_low"], curve["share_high"] - share], float).clip(0)
            axes.errorbar(
                curve["probability"], share, yerr=reach, color=colour, marker=marker, markersize=4, capsize=2,
                elinewidth=0.7, clip_on=False, label=f"{for_figure(name)}{error}",
            )  # fmt: skip
            wide = (curve["high"] - curve["low"]) / len(curves)
            below.bar(curve["low"] + number * wide, counts, width=wide, align="edge", color=colour, alpha=0.8)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that are crossings")
        axes.grid(color="#e5e5e5", linewidth=0.5)
        axes.set_axisbelow(True)
        below.set(xlabel="probability", ylabel="predictions")
        if any(len(curve) for curve in curves.values()):
            below.set_yscale("log")
            below.set_ylim(bottom=0.8)
            below.yaxis.set_major_formatter(lambda value, _: tick_number(value))
        figure.legend(loc="outside upper left", fontsize=7)
        note_below(figure, note, ONE_COLUMN_IN)
    return figure
