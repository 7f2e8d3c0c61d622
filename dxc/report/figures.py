"""The front of tracked designs as figures for a paper: trade-offs, one radar a design, main effects of the knobs.

All take `designs`, a data frame with one row per design: `name`, `front` and `unstable` (bool), one column per
objective, `spread.<objective>` (one standard deviation, NaN where unknown), and one column per knob. There is at least
one design.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxc.errors import is_number
from dxc.evaluation.additive import adjusted_means, told_apart
from dxc.files import write_atomically
from dxc.metrics import Metric, label_of, title_of
from dxc.text import for_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes
    from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart by colour-blind readers; in grey, markers tell them apart
VERMILLION, BLUE, GREY = "#D55E00", "#0072B2", "#999999"

SERIES = (  # colour and marker of lines beside each other; no yellow, too light on white, nor the mark's vermillion
    (BLUE, "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#56B4E9", "D"), ("#000000", "X"),
)  # fmt: skip
OPERATORS = ("conv", "matmul", "pooling", "other")

ONE_COLUMN_IN, TWO_COLUMNS_IN = 3.5, 7.2  # inches; text is set in points of the printed page
LOG_FROM = 30  # an objective that spans more than this factor gets a logarithmic axis
RADARS = 12
LEVELS = 8  # values of a knob that fit under one panel
MISSING = "–"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1,
    "svg.hashsalt": "dxc",  # the same ids in every file
    "text.parse_math": False,  # a dollar sign in a name begins no formula
}


def short_names(knobs: Sequence[str]) -> dict[str, str]:
    """Short names of knobs: the last part ('kernel' for 'model.kernel'), or the whole key where two knobs end alike."""
    ends = [knob.rsplit(".", 1)[-1] for knob in knobs]
    return {knob: end if ends.count(end) == 1 else knob for knob, end in zip(knobs, ends, strict=True)}


def is_log(values: ArrayLike) -> bool:
    """Whether an objective's values are positive and span more than a factor LOG_FROM; NaN do not count."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return bool(len(known) and known.min() > 0 and known.max() > LOG_FROM * known.min())


def levels(column: pd.Series) -> tuple[NDArray[np.int_], list[str]]:
    """Codes (one per row) and labels of a knob's distinct values: numbers, then text, then missing values."""
    import pandas as pd

    values = [MISSING if pd.isna(value) else value for value in column]
    order = sorted(
        set(values),
        key=lambda value: (value == MISSING, str(value)) if isinstance(value, str) else (False, "", value),
    )
    place = {value: code for code, value in enumerate(order)}
    labels = [f"{value:g}" if isinstance(value, float) else str(value) for value in order]
    return np.array([place[value] for value in values], dtype=int), labels


def short_number(value: float) -> str:
    """Three significant digits: '0.930', '16', '95.8M'; '–' for NaN."""
    if not math.isfinite(value):
        return MISSING
    size, suffix = abs(value), ""
    for least, factor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            value, suffix = value / factor, letter
            break
    whole = abs(value) >= 100 or float(value).is_integer()
    return (f"{value:.0f}" if whole else f"{value:#.3g}") + suffix


def tick_number(value: float) -> str:
    """For ticks of a logarithmic axis: '0.1', '300', '30k'."""
    return short_number(value) if value >= 1e4 else f"{value:g}"


def pairs(designs: pd.DataFrame, objectives: Mapping[str, Metric], *, note: str = "") -> Figure:
    """Every two objectives against each other: m (m - 1) / 2 panels, the front over all designs."""
    import matplotlib
    from matplotlib.figure import Figure

    first, *others = objectives
    if not others:
        raise ValueError("a trade-off needs two objectives or more")
    order = [*others, first]
    side = len(others)
    width = {1: ONE_COLUMN_IN, 2: 5.0}.get(side, TWO_COLUMNS_IN)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.85 * width), layout="constrained")
        grid = figure.add_gridspec(side, side)
        for i, y in enumerate(order[1:]):
            for j, x in enumerate(order[: i + 1]):
                axes = figure.add_subplot(grid[i, j])
                if side == 1:
                    _steps(axes, designs[designs["front"].to_numpy(dtype=bool)], x, y, objectives[x].maximise)
                _points(axes, designs, x, y)
                _scale(axes, "x", designs, x, objectives[x])
                _scale(axes, "y", designs, y, objectives[y])
                axes.tick_params(labelleft=j == 0, labelbottom=y == first)
                if j == 0:
                    axes.set_ylabel(_with_direction(y, objectives[y], 22))
                if y == first:
                    axes.set_xlabel(_with_direction(x, objectives[x], 22))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if side == 1:
            figure.legend(handles, labels, loc="outside upper left", ncols=2)
        else:  # in the empty corner
            figure.legend(handles, labels, loc="upper right")
        note_below(figure, note, width)
    return figure


def _steps(axes: Axes, front: pd.DataFrame, x: str, y: str, more: bool) -> None:
    """Draw the border of the dominated region. more: whether more of x is better."""
    front = front.sort_values([x, y])
    axes.step(front[x], front[y], where="pre" if more else "post", color=VERMILLION, linewidth=0.8)


def _points(axes: Axes, designs: pd.DataFrame, x: str, y: str) -> None:
    """Draw all designs in grey and the members of the front over them."""
    front, unstable = designs["front"].to_numpy(dtype=bool), designs["unstable"].to_numpy(dtype=bool)
    axes.plot(
        designs[x],
        designs[y],
        linestyle="none",
        marker="o",
        markersize=2.5 if len(designs) <= 1000 else 1.5,
        markeredgewidth=0,
        color=GREY,
        alpha=0.7,
        clip_on=False,  # a mark on the end of an axis, such as an accuracy of 1, is drawn whole
        label=f"designs ({len(designs)})",
        rasterized=len(designs) > 1000,  # thousands of dots make an SVG slow to open
    )
    for which, face, label in (
        (front & ~unstable, VERMILLION, "front"),
        (front & unstable, "white", "front, unstable"),
    ):
        members = designs[which]
        if len(members):
            drawn = axes.errorbar(
                members[x],
                members[y],
                xerr=_bars(members, x),
                yerr=_bars(members, y),
                linestyle="none",
                marker="D",
                markersize=4.5,
                markerfacecolor=face,
                markeredgecolor=VERMILLION if face == "white" else "black",
                markeredgewidth=0.9 if face == "white" else 0.4,
                ecolor=VERMILLION,
                elinewidth=0.7,
                label=f"{label} ({len(members)})",
                zorder=3,
            )
            drawn[0].set_clip_on(False)  # the bars are cut where the axis ends


def _bars(designs: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Lengths of error bars. Unknown ones are 0, which draws no bar."""
    return np.nan_to_num(designs[f"spread.{name}"].to_numpy(dtype=float))


def _with_direction(name: str, objective: Metric, width: int) -> str:
    """Label of an axis, wrapped. The arrow points along the axis: an upright label is read upwards."""
    hint = "higher is better →" if objective.maximise else "← lower is better"
    return f"{_fit(label_of(name, objective), width, 3)}\n{hint}"


def _scale(axes: Axes, which: Literal["x", "y"], designs: pd.DataFrame, name: str, objective: Metric) -> None:
    """Limits over all designs and the front's error bars (the same in every panel), and ticks in plain numbers.

    No axis shows what cannot be, such as an accuracy above 1.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    values = designs[name].to_numpy(dtype=float)
    front = designs[designs["front"].to_numpy(dtype=bool)]
    bars = _bars(front, name)
    ends = np.concatenate([values, front[name] - bars, front[name] + bars])
    ends = ends[np.isfinite(ends)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    if is_log(values):
        # a bar that reaches zero has no end on this axis: it is cut where the axis ends
        low, high = ends[ends >= np.nanmin(values) / 2].min(), ends.max()
        margin = (high / low) ** 0.05
        limits = low / margin, high * margin
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 3) if high < 300 * low else (1,), numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_number(value)))
        axis.set_minor_formatter(NullFormatter())
    else:
        low, high = (ends.min(), ends.max()) if len(ends) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        limits = tuple(np.clip((low - margin, high + margin), *objective.bounds))
        axis.set_major_locator(_few_ticks())
        if high >= 1e4:
            axis.set_major_formatter(EngFormatter(sep=""))
    axes.set(**{f"{which}lim": limits})


def _few_ticks() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=[1, 2, 5, 10])


def _fit(text: str, width: int, lines: int) -> str:
    """Wrap a text to at most `lines` lines of `width` characters, cut with an ellipsis."""
    return "\n".join(textwrap.wrap(for_figure(text), width, max_lines=lines, placeholder=" …"))


def note_below(figure: Figure, text: str, width: float) -> None:
    """Write small print under a figure.

    Args:
        figure: laid out by matplotlib (layout="constrained").
        text: of any length; '' for none.
        width: of the figure in inches.
    """
    if text:
        wrapped = textwrap.fill(for_figure(text), int(17 * width))
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=6.5)


def radar(
    designs: pd.DataFrame, objectives: Mapping[str, Metric], knobs: Sequence[str], *, note: str = ""
) -> Figure:
    """A small polar plot for each member of the front, at most RADARS, ordered by the first objective.

    The axes are the objectives (outward is better), then the numeric knobs (outward is more). Each is scaled to the
    range of all designs. A column with one value is drawn half way, a missing value at the centre. The values of a
    member are printed at the ends of its axes. The values of centre and rim are printed under the plots, with the note.

    """
    import matplotlib
    from matplotlib.figure import Figure
    from pandas.api.types import is_numeric_dtype

    spokes = [*objectives, *(knob for knob in knobs if is_numeric_dtype(designs[knob]))]
    titles = {name: title_of(name) for name in objectives} | short_names(knobs)
    scaled = _scaled(designs[spokes], objectives)
    first, best = next(iter(objectives.items()))
    front = designs.reset_index(drop=True)[designs["front"].to_numpy(dtype=bool)]
    front = front.sort_values(first, ascending=not best.maximise, kind="stable")
    shown = front.head(RADARS)
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    # sizes in inches: constrained layout leaves polar plots too small for their labels
    cell = max(ONE_COLUMN_IN, 2.4 * columns) / columns
    width = cell * columns
    ends = [f"{titles[name]} {_ends(designs[name], objectives.get(name))}" for name in spokes]
    caption = _caption(ends, int(17 * width), dashed=bool(shown["unstable"].any()))
    caption += textwrap.wrap(for_figure(note), int(17 * width))
    top, bottom = 0.3, 0.12 * len(caption) + 0.1
    height = top + bottom + 2.2 * rows
    count = f"{len(shown)} of the front's {len(front)}" if len(front) > RADARS else f"{len(front)}"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.text(
            0.5,
            1 - 0.1 / height,
            for_figure(f"Front members, best {titles[first]} first: {count}"),
            ha="center",
            va="top",
        )
        for place, (row, member) in enumerate(shown.iterrows()):
            down, right = divmod(place, columns)
            middle, base = cell * (right + 0.5), height - top - 2.2 * (down + 1) + 0.4
            place_in = ((middle - 0.55) / width, base / height, 1.1 / width, 1.1 / height)
            axes = cast("PolarAxes", figure.add_axes(place_in, projection="polar"))
            labels = [f"{_fit(titles[name], 12, 3)}\n{short_number(member[name])}" for name in spokes]
            _spokes(axes, labels, len(objectives))
            _polygon(axes, scaled[row], hollow=bool(member["unstable"]))
            figure.text(
                middle / width,
                (base + 1.45) / height,
                _fit(str(member["name"]), int(16 * cell), 2),
                ha="center",
                va="bottom",
                fontsize=7.5,
            )
        figure.text(0.1 / width, 0.06 / height, "\n".join(caption), va="bottom", fontsize=6.5)
    return figure


def _caption(ends: Sequence[str], width: int, *, dashed: bool) -> list[str]:
    """Lines of so many characters, broken between axes and not within one."""
    whole = ", ".join(for_figure(end).replace(" ", "\N{NO-BREAK SPACE}") for end in ends)
    unstable = "Dashed: unstable members of the front. " if dashed else ""
    return textwrap.wrap(
        f"Black: objectives, outward is better. Blue: knobs. {unstable}Centre → rim: {whole}.", width
    )


def _scaled(values: pd.DataFrame, objectives: Mapping[str, Metric]) -> NDArray[np.float64]:
    """Columns from 0 to 1 over all rows, those of objectives to be minimised turned round; NaN is 0."""
    raw = values.to_numpy(dtype=float)
    low, high = (getattr(values, end)().to_numpy(dtype=float) for end in ("min", "max"))
    scaled = np.where(high > low, (raw - low) / np.where(high > low, high - low, 1), 0.5)
    turned = [name in objectives and not objectives[name].maximise for name in values]
    return np.where(np.isfinite(raw), np.where(turned, 1 - scaled, scaled), 0)


def _ends(column: pd.Series, objective: Metric | None) -> str:
    low, high = short_number(column.min()), short_number(column.max())
    if objective is None:
        return f"{low} → {high}"
    ends = f"{low} → {high}" if objective.maximise else f"{high} → {low}"
    return ends if objective.symbol in ("", "fraction") else f"{ends} {objective.symbol}"


def _angles(count: int) -> NDArray[np.float64]:
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


def _spokes(axes: PolarAxes, labels: Sequence[str], objectives: int) -> None:
    """Draw an empty radar with a label at the end of each axis. Labels of objectives are black."""
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5, 1], labels=[])
    axes.set_xticks(_angles(len(labels)), labels=[])
    axes.grid(color="#cccccc", linewidth=0.5)
    axes.spines["polar"].set_visible(False)
    for place, (angle, label) in enumerate(zip(_angles(len(labels)), labels, strict=True)):
        right, up = math.sin(angle), math.cos(angle)
        axes.text(
            angle,
            1.15,
            label,
            ha="left" if right > 0.1 else "right" if right < -0.1 else "center",
            va="bottom" if up > 0.8 else "top" if up < -0.8 else "center",
            fontsize=6,
            linespacing=0.95,
            color="black" if place < objectives else BLUE,
        )


def _polygon(axes: PolarAxes, values: NDArray[np.float64], *, hollow: bool) -> None:
    angles = _angles(len(values))
    style: dict[str, Any] = {"color": VERMILLION, "linewidth": 1.1, "linestyle": "--" if hollow else "-"}
    axes.plot([*angles, angles[0]], [*values, values[0]], marker="D", markersize=2.5, clip_on=False, **style)
    if not hollow:
        axes.fill(angles, values, color=VERMILLION, alpha=0.2, linewidth=0)


def knobs_told_apart(designs: pd.DataFrame, knobs: Sequence[str]) -> list[str]:
    """The knobs whose effects these designs tell from those of the others; see dxc.evaluation.additive."""
    apart = told_apart([_factor(designs[knob])[0] for knob in knobs])
    return [knob for knob, told in zip(knobs, apart, strict=True) if told]


def main_effects(
    designs: pd.DataFrame, objectives: Mapping[str, Metric], knobs: Sequence[str], *, note: str = ""
) -> Figure | None:
    """Mean of each objective (rows) by value of each knob (columns), the other knobs held equal, ± standard error.

    The means are those of an additive model (dxc.evaluation.additive), because a plain mean would hold the effects of
    knobs that change together with this one. Knobs that the designs do not tell apart are left out and named in the
    small print. The number of designs is printed under each value. A knob with more than LEVELS values is shown in
    groups; designs in which it means nothing are left out. Lines join numbers, not words. Panels of a row share the
    vertical axis.

    Args:
        designs: see the head of this module.
        objectives: the objectives, one row each.
        knobs: the knobs, one column each.
        note: small print under the panels.

    Returns:
        None where no knob can be told from the others, as with few designs.

    Raises:
        ValueError: there is no knob.

    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if not knobs:
        raise ValueError("main effects need a knob")
    shown = knobs_told_apart(designs, knobs)
    if not shown:
        return None
    names = short_names(knobs)
    if len(shown) < len(knobs):
        mixed = ", ".join(names[knob] for knob in knobs if knob not in shown)
        note = f"Not shown, because they change together with other knobs: {mixed}. {note}".rstrip()
    factors = {knob: _factor(designs[knob]) for knob in knobs}
    width = max(ONE_COLUMN_IN, min(TWO_COLUMNS_IN, 0.9 + 0.9 * len(shown)), 0.9 + 0.7 * len(shown))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.9 + 1.45 * len(objectives)), layout="constrained")
        panels = figure.subplots(len(objectives), len(shown), sharex="col", sharey="row", squeeze=False)
        room = (width - 0.9) / len(shown) - 0.09  # inches under a panel
        for (name, objective), row in zip(objectives.items(), panels, strict=True):
            values = designs[name].to_numpy(dtype=float)
            row[0].set_ylabel(_with_direction(name, objective, 20))
            row[0].yaxis.set_major_locator(_few_ticks())
            if np.nanmax(values) >= 1e4:
                row[0].yaxis.set_major_formatter(EngFormatter(sep=""))
            effects = dict(
                zip(knobs, adjusted_means(values, [codes for codes, _ in factors.values()]), strict=True)
            )
            for knob, axes in zip(shown, row, strict=True):
                labels = factors[knob][1]
                if (effect := effects[knob]) is not None:
                    drawn = axes.errorbar(
                        range(len(labels)),
                        np.clip(effect.means, *objective.bounds),  # a sum of effects may lie beyond
                        yerr=effect.errors,
                        marker="o",
                        markersize=3.5,
                        capsize=2,
                        color=BLUE,
                        linestyle="-" if _is_numeric(designs[knob]) else "none",
                        linewidth=0.8,
                        elinewidth=0.8,
                    )
                    drawn[0].set_clip_on(False)
                axes.grid(axis="y", color="#e5e5e5", linewidth=0.5)
                axes.set_xlim(-0.5, len(labels) - 0.5)
            row[0].set_ylim(np.clip(row[0].get_ylim(), *objective.bounds))
        for knob, axes in zip(shown, panels[-1], strict=True):
            codes, labels = factors[knob]
            labels = [for_figure(label) for label in labels]
            counts = [f"({n})" for n in np.bincount(codes[codes >= 0], minlength=len(labels))]
            cut = [label if len(label) <= 18 else f"{label[:17]}…" for label in labels]
            # inches at 7 points: a digit takes 0.06, a bracket less
            widest = max(max(0.06 * len(a), 0.06 * len(b) - 0.05) for a, b in zip(cut, counts, strict=True))
            upright = len(cut) * (widest + 0.03) > room
            ticks = [f"{a}{' ' if upright else chr(10)}{b}" for a, b in zip(cut, counts, strict=True)]
            axes.set_xticks(
                range(len(labels)),
                ticks,
                rotation=90 if upright else 0,
                fontsize=7,
            )
            axes.set_xlabel(_fit(names[knob], 16, 3))
        figure.align_xlabels(panels[-1])
        title = "Mean ± standard error by value of a knob, the others held equal (number of designs)"
        figure.suptitle(_fit(title, int(14 * width), 3), fontsize=9)
        note_below(figure, note, width)
    return figure


def _is_numeric(column: pd.Series) -> bool:
    """Whether all values of a knob that are known are numbers, so that a line may join them."""
    return all(is_number(value) for value in column.dropna())


def _factor(column: pd.Series) -> tuple[NDArray[np.int_], list[str]]:
    """_grouped(), with the code -1 for designs in which the knob is missing: it means nothing there."""
    codes, labels = _grouped(column)
    if MISSING not in labels:
        return codes, labels
    place = labels.index(MISSING)
    codes = np.where(codes == place, -1, codes - (codes > place))
    return codes, [label for label in labels if label != MISSING]


def _grouped(column: pd.Series) -> tuple[NDArray[np.int_], list[str]]:
    """levels(), joined where there are more than LEVELS: numbers into four ranges, rare words into one group."""
    codes, labels = levels(column)
    if len(labels) <= LEVELS:
        return codes, labels
    numbers = np.unique([value for value in column if is_number(value) and value == value])
    rest = len(labels) - len(numbers)
    if rest == 0 or labels[len(numbers) :] == [MISSING]:
        parts = np.array_split(np.arange(len(numbers)), 4)
        group = np.repeat(np.arange(4 + rest), [*(len(part) for part in parts), *[1] * rest])
        ranges = [f"{_brief(numbers[part[0]])}–{_brief(numbers[part[-1]])}" for part in parts]
        return group[codes], [*ranges, *[MISSING] * rest]
    often = np.sort(np.argsort(-np.bincount(codes), kind="stable")[: LEVELS - 1])
    group = np.full(len(labels), LEVELS - 1)
    group[often] = np.arange(LEVELS - 1)
    return group[codes], [*(labels[code] for code in often), f"{len(labels) - LEVELS + 1} others"]


def _brief(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2g}"


def front_profile(summary: pd.DataFrame) -> Figure:
    """Profiled networks: time per image against batch size, and the shares of operator time at the smallest and largest
    batch.

    summary: one row per network and batch size, with name, batch, ms_per_image and the shares of OPERATORS (0 to 1), as
    dxc.analysis.front_profile makes it. Raises ValueError for no row.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if summary.empty:
        raise ValueError("there is no profile to draw")
    names = list(dict.fromkeys(summary["name"]))[:RADARS]
    ends = [
        (name, part.loc[part["batch"].isin({part["batch"].min(), part["batch"].max()})].sort_values("batch"))
        for name, part in ((name, summary[summary["name"] == name]) for name in names)
    ]
    bars = [
        (f"{_fit(name, 44, 1)}, batch {row.batch}", row) for name, part in ends for row in part.itertuples()
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMNS_IN, max(2.6, 0.6 + 0.2 * len(bars))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1))
        for number, name in enumerate(names):
            part = summary[summary["name"] == name].sort_values("batch")
            colour, marker = SERIES[number % len(SERIES)]
            left.plot(
                part["batch"],
                part["ms_per_image"],
                color=colour,
                marker=marker,
                markersize=4,
                label=_fit(name, 60, 1),
            )
        left.set(
            xscale="log",
            yscale="log",
            xlabel="batch (images)",
            ylabel="measured time an image (ms)\n← lower is better",
        )
        batches = sorted(summary["batch"].unique())
        left.set_xticks(batches, [str(batch) for batch in batches])
        left.xaxis.set_minor_locator(NullLocator())
        few = summary["ms_per_image"].max() < 30 * summary["ms_per_image"].min()
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_number(value)))
        left.yaxis.set_minor_formatter(NullFormatter())
        figure.legend(fontsize=6.5, loc="outside lower left", ncols=2)
        start = np.zeros(len(bars))
        for kind, (colour, _) in zip(OPERATORS, SERIES, strict=False):
            share = np.array([getattr(row, kind) for _, row in bars], dtype=float)
            right.barh(
                range(len(bars)), share, left=start, color=colour, height=0.7, label=kind, edgecolor="white"
            )
            start += share
        right.set(xlim=(0, 1), xlabel="share of operator time")
        right.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=6)
        right.invert_yaxis()
        right.legend(
            ncols=len(OPERATORS), loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=6.5, handlelength=1
        )
    return figure


def save(
    figure: Figure, folder: Path, stem: str, *, kinds: Sequence[str] = ("png", "svg"), dpi: int = 200
) -> list[Path]:
    """Write STEM.png and STEM.svg, each whole or not at all, and empty the figure; returns their paths.

    The same figure gives the same bytes.

    Args:
        figure: what is written.
        folder: is made if it does not exist.
        stem: name of the files without their endings.
        kinds: the formats, of png, svg and jpg: the last for photos, of which it makes small files.
        dpi: pixels an inch of PNG and JPEG.

    Raises:
        OSError: a file cannot be written.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{kind}" for kind in kinds]
    with matplotlib.rc_context(STYLE):
        for path in paths:
            kind = path.suffix[1:]
            drawn = io.BytesIO()
            options: dict[str, Any] = {}
            if kind == "svg":
                options = {"metadata": {"Date": None}}
            elif kind == "jpg":
                options = {"pil_kwargs": {"quality": 90, "subsampling": 0}}  # sharp text
            figure.savefig(drawn, format=kind, dpi=dpi, **options)
            write_atomically(path, drawn.getvalue())
            figure.set_layout_engine("none")  # the first file laid it out, which takes a third of the time
    figure.clear()
    return paths
