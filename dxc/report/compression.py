"""The table and figures of compressed designs. They take the frame of dxc.analysis.compression.CompressionTable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.metrics import label_of, metric_of
from dxc.report import figures, tables
from dxc.report.terminal import new_console, print_frame, print_text
from dxc.text import counted, for_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STEM = "compression"
TITLES = {"none": "float32", "dynamic": "dynamic uint8", "static": "static int8"}
AGAINST = ("measured_latency_ms", "latency_ms", "onnx_mb")
"""What accuracy is drawn against, where runs have it."""


def compression_in_text(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The table as text: how each design is compressed, and its metrics.

    Args:
        frame: see the head of this module.
        metrics: the columns that are shown.
    """
    import pandas as pd

    columns: dict[str, list[str]] = {}
    if len(set(frame["network"])) > 1:
        columns["network"] = list(frame["network"])
    columns["pruned"] = [f"{100 * fraction:g}%" for fraction in frame["fraction"]]
    if (frame["align"] > 1).any():
        columns["aligned to"] = [f"{align:.0f}" for align in frame["align"]]
    if (frame["steps"] > 1).any():
        columns["steps"] = [f"{steps:.0f}" for steps in frame["steps"]]
    columns["epochs"] = ["-" if epochs != epochs else f"{epochs:.0f}" for epochs in frame["finetune_epochs"]]
    columns["numbers"] = [TITLES.get(kind, kind) for kind in frame["quantise"]]
    for name in metrics:
        spreads = frame["spread.accuracy"] if name == "accuracy" else [float("nan")] * len(frame)
        columns[label_of(name, metric_of(name))] = tables.measured(name, frame, spreads)
    if (frame["n"] > 1).any():
        columns["runs"] = [str(n) for n in frame["n"]]
    return pd.DataFrame(columns)


def compression_figure(frame: pd.DataFrame, against: str) -> Figure:
    """Accuracy against a cost, a line for each kind of quantisation, from the design that is pruned least on.

    Of designs that are pruned alike, the one that was fine-tuned longest is on the line; the others are points.

    Args:
        frame: see the head of this module, with accuracy.
        against: a column with a cost.
    """
    import matplotlib
    from matplotlib.figure import Figure

    metric = metric_of(against)
    known = frame[frame[against].notna() & frame["accuracy"].notna()]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(figures.ONE_COLUMN_IN, 0.85 * figures.ONE_COLUMN_IN), layout="constrained")
        axes = figure.add_subplot()
        lines = known.groupby(["network", "quantise"], sort=False)
        several = len(set(known["network"])) > 1
        for number, ((network, kind), rows) in enumerate(lines):
            colour, marker = figures.SERIES[number % len(figures.SERIES)]
            title = TITLES.get(str(kind), str(kind))
            best = rows.sort_values("finetune_epochs", na_position="first").groupby("fraction").tail(1)
            best = best.sort_values("fraction")
            axes.plot(
                best[against], best["accuracy"], color=colour, marker=marker, markersize=4,
                label=for_figure(f"{network}, {title}" if several else title),
            )  # fmt: skip
            rest = rows.drop(best.index)
            axes.plot(
                rest[against],
                rest["accuracy"],
                color=colour,
                marker=marker,
                markersize=3,
                alpha=0.5,
                linestyle="",
            )
        if figures.is_log(known[against]):
            axes.set_xscale("log")
        axes.set_xlabel(label_of(against, metric))
        axes.set_ylabel(label_of("accuracy", metric_of("accuracy")))
        axes.legend()
    return figure


def write_compression(frame: pd.DataFrame, metrics: Sequence[str], folder: Path, *, note: str = "") -> None:
    """Write compression.md, .tex and .csv, and a figure for each cost (PNG, SVG); the previous ones are removed.

    Args:
        frame: see the head of this module.
        metrics: the columns that are shown.
        folder: is made if it does not exist.
        note: below the table: what the figures are of.

    Raises:
        OSError: a file cannot be written.
    """
    for stem in (STEM, *(f"{STEM}_{name}" for name in AGAINST)):
        for old in folder.glob(f"{stem}.*"):
            old.unlink()
    tables.write(compression_in_text(frame, metrics), folder, STEM, note=note)
    for name in AGAINST:
        if name in metrics and "accuracy" in metrics and frame[name].notna().any():
            figures.save(compression_figure(frame, name), folder, f"{STEM}_{name}")


def print_compression(
    frame: pd.DataFrame, metrics: Sequence[str], folder: Path, *, title: str, lines: Sequence[str]
) -> None:
    """Print the table, some lines, and where the files are.

    Args:
        frame: see the head of this module.
        metrics: the columns that are shown.
        folder: of the files.
        title: the studies.
        lines: further ones.
    """
    console = new_console()
    print_text(console, f"{counted(len(frame), 'design')} of {title}")
    content = compression_in_text(frame, metrics)
    words = ("network", "numbers")
    print_frame(console, content, title="compressed designs", words=words)
    for line in lines:
        print_text(console, line)
    print_text(console, f"report:    {os.path.relpath(folder)}")
