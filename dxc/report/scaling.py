"""The report of scale.py: a table, a figure of speed-up, a page. It takes frames and plain values."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from markupsafe import Markup

from dxc.files import write_atomically
from dxc.metrics import label_of, metric_of
from dxc.report import figures, tables
from dxc.report.templates import picture, style, template
from dxc.report.terminal import new_console, print_frame, print_text
from dxc.text import for_figure, for_html

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEM, PAGE = "scaling", "index.html"
METRICS = (
    "images_per_second", "speedup", "scaling_efficiency", "added_speedup", "accuracy", "seconds_to_accuracy",
    "accuracy_speedup", "communication_share", "loader_share", "roofline_share", "device_hours", "price",
    "price_per_point",
)  # fmt: skip
"""Columns that are shown where at least one run has a value."""
DETAILS = (
    "accuracy_speedup", "loader_share", "roofline_share", "device_hours", "price", "price_per_point",
)  # fmt: skip


class Curve(Protocol):
    """A series of the figure: (devices, speed-up) measured and by Amdahl's law, and with bounds by the model."""

    @property
    def scaling(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def measured(self) -> Sequence[tuple[int, float]]: ...
    @property
    def amdahl(self) -> Sequence[tuple[float, float]]: ...
    @property
    def predicted(self) -> Sequence[tuple[int, float, float, float]]: ...


class Scaled(Protocol):
    """What print_scaling shows; see dxc.scaling.study.Scaled."""

    frame: pd.DataFrame
    published: pd.DataFrame
    lines: list[tuple[str, str]]
    folder: Path


def scaling_in_text(frame: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table as text: what each row is (measured, predicted, published ...), how it was run, and its figures.

    Args:
        frame: a row a configuration: state, scaling, nodes, devices (of all nodes), device_batch, and metrics.
        published: a row a published figure: machine, gpus, images_per_second, speedup, scaling_efficiency.
    """
    import pandas as pd

    shown = [name for name in METRICS if name in frame and frame[name].notna().any()]
    columns: dict[str, list[str]] = {
        "devices": [f"{n}" for n in frame["devices"]],
        "what": list(frame["state"]),
    }
    if (frame["nodes"] > 1).any():
        columns["nodes"] = [f"{n}" for n in frame["nodes"]]
    columns["scaling"] = list(frame["scaling"])
    columns["batch a device"] = [f"{n}" for n in frame["device_batch"]]
    for name in shown:
        columns[_heading(name)] = [_number(name, value) for value in frame[name]]
    if "speedup_low" in frame:
        place = _heading("speedup")
        for row, (low, high) in enumerate(zip(frame["speedup_low"], frame["speedup_high"], strict=True)):
            if low == low:
                columns[place][row] += f" ({low:.2f} to {high:.2f})"
    if "bound_by" in frame:
        columns["bound by"] = ["-" if value != value else str(value) for value in frame["bound_by"]]
    table = pd.DataFrame(columns)
    if published is None or published.empty:
        return table
    more = {
        "devices": [f"{n}" for n in published["gpus"]],
        "what": [f"published: {name}" for name in published["machine"]],
        **{
            _heading(name): [_number(name, value) for value in published[name].astype(float)]
            for name in ("images_per_second", "speedup", "scaling_efficiency")
        },
    }
    added = pd.DataFrame(more).reindex(columns=table.columns, fill_value="-")
    return pd.concat([table, added], ignore_index=True)


def _number(name: str, value: float) -> str:
    """As in other tables, but a speed from 100 on in full: the published ones are many times those of a processor."""
    if name == "images_per_second" and value >= 100:
        return f"{value:,.0f}"
    return tables.number(name, value)


def _heading(name: str) -> str:
    if name == "images_per_second":
        return "images/s"
    return label_of(name, metric_of(name)).replace(" (fraction)", "")


def speedup_figure(curves: Sequence[Curve], title: str = "") -> Figure:
    """Speed-up against devices: measured, ideal, Amdahl's law fitted, and the model with its bounds.

    Args:
        curves: a panel each.
        title: what was measured, and where.
    """
    import matplotlib
    from matplotlib.figure import Figure

    wide = figures.ONE_COLUMN_IN if len(curves) == 1 else figures.TWO_COLUMNS_IN
    down = math.ceil(len(curves) / 2)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(wide, 0.6 + 2.9 * down), layout="constrained")
        panels = figure.subplots(down, min(2, len(curves)), squeeze=False).flat
        for axes, curve in zip(panels, curves, strict=False):
            _panel(axes, curve)
        for axes in list(panels)[len(curves) :]:
            axes.set_axis_off()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=7)
        figures.note_below(figure, title, wide)
    return figure


def _panel(axes: Axes, curve: Curve) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    most = max([n for n, *_ in curve.predicted] + [n for n, _ in curve.measured])
    ticks = sorted({2**k for k in range(math.ceil(math.log2(most)) + 1)} | {n for n, _ in curve.measured})
    axes.plot(ticks, ticks, color="black", linestyle=":", linewidth=0.8, label="ideal")
    if curve.amdahl:
        axes.plot(
            *zip(*curve.amdahl, strict=True), color=figures.GREY, linestyle="--", label="Amdahl's law, fitted"
        )
    if curve.predicted:
        totals, speedups, low, high = zip(*curve.predicted, strict=True)
        axes.fill_between(totals, low, high, color=figures.BLUE, alpha=0.15, linewidth=0)
        axes.plot(totals, speedups, color=figures.BLUE, label="predicted by the model, 90 %")
    axes.plot(
        *zip(*curve.measured, strict=True),
        color=figures.VERMILLION, marker="o", markersize=5, linestyle="none", label="measured", zorder=4,
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: figures.tick_number(value)))
        axis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks)
    axes.set_xlabel("devices")
    axes.set_ylabel("speed-up")
    axes.set_title(for_figure(f"{curve.scaling} scaling, batch {curve.batch}"), fontsize=8)


def write_scaling(
    frame: pd.DataFrame,
    published: pd.DataFrame,
    curves: Sequence[Curve],
    lines: Sequence[tuple[str, str]],
    folder: Path,
    title: str,
) -> list[Path]:
    """Write scaling.md, .tex, .csv (every figure in full), .png, .svg and index.html.

    Args:
        frame: see scaling_in_text.
        published: see scaling_in_text.
        curves: see speedup_figure.
        lines: the answer: labels and texts.
        folder: where to; made if needed.
        title: of the page.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = scaling_in_text(frame, published)
    notes = {label: text for label, text in lines if label}
    note = " ".join(text + "." for label, text in notes.items() if label in ("machine", "method"))
    paths = tables.write(table, folder, STEM, note=note)
    whole = folder / f"{STEM}.csv"
    write_atomically(whole, tables.comma_separated(frame))
    drawn = [curve for curve in curves if len(curve.measured) + len(curve.predicted) > 1]
    sections = []
    if drawn:
        paths += figures.save(speedup_figure(drawn, notes.get("machine", "")), folder, STEM)
        image = picture((folder / f"{STEM}.png").read_bytes(), "Speed-up against devices")
        sections.append(("Speed-up", image))
    sections.append(("Runs", Markup(f'<div class="scroll">{tables.html(table, note)}</div>')))
    if not published.empty:
        sources = "".join(f"<p>{for_html(each)}</p>" for each in sorted(set(published["source"])))
        sections.append(("Sources of published figures", Markup(sources)))
    page = template("answer.html.j2").render(title=title, style=style(), lines=lines, sections=sections)
    write_atomically(folder / PAGE, page)
    return [*paths, folder / PAGE]


def print_scaling(scaled: Scaled) -> None:
    """Print the table and the answer, and where the report lies."""
    console = new_console()
    table = scaling_in_text(scaled.frame, scaled.published)
    details = {_heading(name) for name in DETAILS}
    words = ("what", "scaling", "bound by")
    print_frame(console, table, title="What more devices buy", words=words, details=details)
    for label, text in scaled.lines:
        print_text(console, f"{label}: {text}" if label else f"  {text}")
    if scaled.folder.is_dir():
        print_text(console, f"report: {os.path.relpath(scaled.folder / PAGE)}")
