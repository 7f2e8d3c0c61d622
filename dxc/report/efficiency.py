"""Inference efficiency against batch size, as a figure for a paper."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.hardware.measure.batches import optimum
from dxc.report.figures import (
    ONE_COLUMN_IN,
    SERIES,
    STYLE,
    VERMILLION,
    is_log,
    short_number,
    tick_number,
)
from dxc.text import for_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def efficiency(curves: Mapping[str, pd.DataFrame], *, title: str = "") -> Figure:
    """Plot measured time per image against batch size, and mark the optimum batch size.

    Invalid rows are drawn as hollow marks beside the line and cannot be the optimum. One valid row alone is no optimum.

    Args:
        curves: name -> Efficiency.table() of dxc.hardware.measure.batches: one row per batch size with batch,
            ms_per_image, q25_ms and q75_ms (drawn as a bar; NaN draws none) and valid.
        title: what was measured and where.

    Raises:
        ValueError: no curve, or more than SERIES has colours for.

    """
    import matplotlib
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

    if not 1 <= len(curves) <= len(SERIES):
        raise ValueError(f"{len(curves)} curves: 1 to {len(SERIES)} can be told apart")
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        for (name, table), (colour, marker) in zip(curves.items(), SERIES, strict=False):
            best = _optimum(table)
            name = for_figure(name)
            label = name if best is None or len(curves) == 1 else f"{name}, best at {best['batch']:.0f}"
            _curve(axes, table.sort_values("batch"), color=colour, marker=marker, label=label)
        optima = [best for table in curves.values() if (best := _optimum(table)) is not None]
        named = [f": batch {o['batch']:.0f}, {short_number(o['ms_per_image'])} ms an image" for o in optima]
        if optima:
            axes.plot(
                [best["batch"] for best in optima],
                [best["ms_per_image"] for best in optima],
                linestyle="none",
                marker="o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=VERMILLION,
                label=f"optimum{named[0] if len(curves) == 1 else ''}",
                zorder=4,
            )
        invalid = [table[~table["valid"].to_numpy(dtype=bool)] for table in curves.values()]
        if any(map(len, invalid)):
            axes.plot(
                [batch for rows in invalid for batch in rows["batch"]],
                [ms for rows in invalid for ms in rows["ms_per_image"]],
                linestyle="none",
                marker="o",
                markersize=4,
                markerfacecolor="white",
                markeredgecolor="black",
                label="invalid: its runs spread too far",
            )
        _scale(axes, curves)
        points, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(points)), key=lambda i: not isinstance(points[i], ErrorbarContainer))
        columns = 2 if len(curves) > 1 and max(map(len, labels)) <= 30 else 1
        wrapped, heading = [textwrap.fill(labels[i], 55) for i in order], textwrap.fill(for_figure(title), 60)
        figure.legend(
            [points[i] for i in order],
            wrapped,
            loc="outside upper left",
            ncols=columns,
            fontsize=7,
            title=heading or None,
            title_fontsize=7,
            alignment="left",
        )
        lines = math.ceil(len("\n".join(wrapped).split("\n")) / columns) + len(heading.split("\n"))
        figure.set_size_inches(ONE_COLUMN_IN, 2.4 + 0.15 * lines)
    return figure


def _optimum(table: pd.DataFrame) -> dict[str, Any] | None:
    """The valid row of the optimum batch size; None where there is none."""
    valid = table[table["valid"].to_numpy(dtype=bool)].set_index("batch", drop=False)
    batch = optimum(valid["ms_per_image"].to_dict())
    return None if batch is None else valid.loc[batch].to_dict()


def _curve(axes: Axes, table: pd.DataFrame, **style: Any) -> None:
    """Draw the valid rows as a line, with bars from quartile to quartile."""
    table = table[table["valid"].to_numpy(dtype=bool)]
    median = table["ms_per_image"].to_numpy(dtype=float)
    low, high = (table[name].to_numpy(dtype=float) for name in ("q25_ms", "q75_ms"))
    bars = np.nan_to_num([median - low, high - median])  # a length of 0 draws none
    axes.errorbar(table["batch"], median, yerr=bars, markersize=4, elinewidth=0.7, capsize=2, **style)


def _scale(axes: Axes, curves: Mapping[str, pd.DataFrame]) -> None:
    """Put ticks at the batch sizes. Time starts at 0, so that a flat curve looks flat, unless the values span too
    much."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    columns = ("ms_per_image", "q25_ms", "q75_ms")
    ms = np.concatenate([table[name].to_numpy(dtype=float) for table in curves.values() for name in columns])
    batches = sorted({int(batch) for table in curves.values() for batch in table["batch"]})
    axes.set_xscale("log", base=2)
    axes.set_xlim(batches[0] / 2**0.5, batches[-1] * 2**0.5)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    if is_log(ms):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(np.nanmin(ms) / 1.6, np.nanmax(ms) * 1.6)
    else:
        axes.set_ylim(0, 1.15 * np.nanmax(ms))
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("batch size (images)")
    axes.set_ylabel("measured latency / batch (ms an image)\n← lower is better")
