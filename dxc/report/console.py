"""Prints results as tables in the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dxc.masking import masked
from dxc.metrics import METRICS, STATED, Metric, metric_of, title_of
from dxc.text import for_rich
from dxc.tracking.view import view_address

if TYPE_CHECKING:
    import pandas as pd

    from dxc.pipeline.result import Result


def new_table(title: str = "") -> Table:
    """An empty table in the common style."""
    heading = for_rich(title, style="table.title") if title else None
    return Table(title=heading, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def print_line(console: Console, text: str) -> None:
    """Print one or several lines as they are: not cut, coloured or read as markup."""
    for line in text.split("\n"):
        console.print(for_rich(line), soft_wrap=True)


def print_result(result: Result) -> None:
    """Print the metrics with unit and meaning, the folds, and where to look next."""
    table = new_table(result.name)
    for heading, justify in (
        ("metric", "left"),
        ("value", "right"),
        ("unit", "left"),
        ("origin", "left"),
        ("what it is", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, declared in METRICS.items():
        if name in result.metrics:
            value = format(result.metrics[name], declared.format)
            table.add_row(name, value, declared.unit, declared.origin, declared.meaning)
        parts = [metric for metric in result.metrics if metric.startswith(f"{name}/")]
        for metric in parts if len(parts) > 1 else ():  # one is the mean itself
            value = format(result.metrics[metric], declared.format)
            table.add_row(
                for_rich(f"  {metric.removeprefix(name)}"), value, declared.unit, declared.origin, ""
            )
    console = Console()
    console.print(table)
    folds = ", ".join(f"{name} {score:.4f}" for name, score in result.fold_scores.items())
    heading = f"{title_of(result.score)} by fold:"
    for line in (
        f"{heading:<17} {folds}",
        f"trained on:       {result.source}",
        *([f"predicted for:    {result.predicted_for}"] if result.predicted_for else []),
        *([f"measured on:      {result.measured_on}"] if result.measured_on else []),
        *(f"note:             {note}" for note in result.notes),
        *([f"left out: {result.excluded} files, listed in excluded_chips.csv"] if result.excluded else []),
        f"network:          {os.path.relpath(result.onnx)}",
        f"tracked:          run {result.run_id} of study '{result.study}' in {masked(result.tracking_uri)}",
        f"compare runs:     {where_to_compare(result.tracking_uri, result.experiment_id)}",
    ):
        print_line(console, line)


def where_to_compare(uri: str, experiment_id: str) -> str:
    """The address of a study's designs in MLflow's UI, and how to start that where no server runs.

    Args:
        uri: address of the store.
        experiment_id: the experiment of the study.
    """
    address = view_address(uri, experiment_id)
    return address if uri.startswith("http") else f"{address} (after make ui)"


def print_whole(console: Console, table: Table) -> None:
    """Print a table without cutting it: a narrow terminal wraps its lines."""
    # a terminal without escape sequences (TERM=dumb) is 80 wide to rich, unless it is told the height too
    wide = Console(width=1000, height=console.height).measure(table).maximum
    Console(width=max(console.width, wide), height=console.height).print(table)


def origin_lines(
    objectives: Mapping[str, Metric],
    named: Mapping[str, Mapping[str, int]],
    *,
    listed: int = 6,
    width: int = 300,
) -> list[str]:
    """One line per origin: 'trained:   accuracy on 1,200 synthetic chips (seed 0)', 'predicted: latency_ms for NAME'.

    Several names are listed with their numbers of runs.

    Args:
        objectives: the metrics that are shown.
        named: see dxc.metrics.named_origins. Names come from a store: long ones are cut.
        listed: at most so many names of an origin are listed.
        width: of a name, in characters.
    """
    lines = []
    for origin, counts in named.items():
        metrics = [name for name, each in objectives.items() if each.origin == origin]
        what = "chips" if origin == "trained" else "a machine"
        names = []
        for name, runs in list(counts.items())[:listed]:
            said = name if len(name) <= width else f"{name[: width - 1]}…"
            said = said or f"{what} that no tag names"
            names.append(said if len(counts) == 1 else f"{said} ({runs} run{'s' * (runs != 1)})")
        if len(counts) > listed:
            names.append(f"{len(counts) - listed} others")
        word = "for" if origin == "predicted" else "on"
        lines.append(f"{origin + ':':<10} {', '.join(metrics)} {word} {' | '.join(names)}")
    return lines


def print_package(folder: Path) -> None:
    """Print what a calibrated package describes, its held-out errors, what it is good enough for, and how to use it."""
    from dxc.hardware.calibrate.calibrate import verdict

    about = json.loads((folder / "package.json").read_text())
    table = new_table(f"{folder.name}: errors on networks and kernels held out of the fit")
    table.add_column("what")
    for heading in ("n", "within 5 %", "within 10 %", "mean error"):
        table.add_column(heading, justify="right")
    for title, errors in about["held_out"].items():
        for name, error in errors.items():
            table.add_row(
                for_rich("all networks" if title == "all" else f"{title.rstrip('s')} {name}"),
                str(error["n"]),
                *(f"{error[key]:.1%}" for key in ("within_5_percent", "within_10_percent", "mape")),
            )
    console = Console()
    console.print(table)
    for line in (
        f"describes: {about['device']}; {about['runtime']} {about['runtime_version']}, {about['threads']} thread(s)",
        f"made from: {about['networks']} networks in {about['minutes_measuring']} min, fitted in "
        f"{about['minutes_fitting']} min ({about['networks_too_noisy']} were too noisy to use)",
        f"verdict:   {verdict(about)}",
        f"package:   {os.path.relpath(folder)}",
        f"use it:    python train.py hardware.predictors=[{folder.name}]",
    ):
        print_line(console, line)


def print_comparison(table: pd.DataFrame, notes: Sequence[str]) -> None:
    """Predicted against measured, a row a file (dxc.hardware.costs.compare)."""
    headings = _comparison_headings(list(table))
    shown = new_table()
    shown.add_column("file")
    columns = [name for name in headings if name in table]
    for name in columns:
        shown.add_column(for_rich(headings[name]), justify="left" if name == "measured" else "right")
    for row in table.to_dict("records"):
        values = [
            "-" if row[name] != row[name] else _compared(name, row[name])  # NaN is missing
            for name in columns
        ]
        shown.add_row(for_rich(row["file"]), *map(for_rich, values))
    console = Console()
    print_whole(console, shown)
    for note in notes:
        print_line(console, f"note: {note}")


def _comparison_headings(columns: Sequence[str]) -> dict[str, str]:
    """Column -> heading, in order: what is predicted, what is measured, what is counted."""
    headings: dict[str, str] = {}
    for origin in (*STATED, "counted"):
        for name, metric in METRICS.items():
            if metric.origin != origin or not metric.short:
                continue
            headings[name] = metric.short
            parts = [column for column in columns if column.startswith(f"{name}/")]
            for part in parts if len(parts) > 1 else ():  # one is the mean itself
                headings[part] = f"{metric.short}, {part.removeprefix(f'{name}/')}"
            if name == "measured_latency_ms":
                headings |= {"error": "error", "measured": "measurement"}
    return headings


def _compared(name: str, value: Any) -> str:
    if name == "error":
        return f"{value:+.1%}"
    return value if name == "measured" else metric_of(name).brief(value)
