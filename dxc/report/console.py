"""One result as a table in the terminal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dxc.pareto import OBJECTIVES

if TYPE_CHECKING:
    from dxc.experiment import Result

FORMATS = {"params": "{:,.0f}", "macs": "{:,.0f}", "fit_seconds": "{:.0f}", "images_per_second": "{:.0f}"}


def print_result(result: Result) -> None:
    """Metrics with unit and meaning, the folds, and where to look next."""
    table = Table(title=result.name, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading, justify in (
        ("metric", "left"),
        ("value", "right"),
        ("unit", "left"),
        ("what it is", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, declared in OBJECTIVES.items():
        if name in result.metrics:
            value = FORMATS.get(name, "{:.4f}").format(result.metrics[name])
            table.add_row(name, value, declared.unit, declared.meaning)
    console = Console()
    console.print(table)
    folds = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in result.fold_accuracies.items())
    for line in (
        f"accuracy by fold: {folds}",
        *([f"left out: {result.excluded} files, listed in excluded_chips.csv"] if result.excluded else []),
        f"network:          {os.path.relpath(result.onnx)}",
        f"tracked:          run {result.run_id} of study '{result.study}' in {result.tracking_uri}",
        "compare runs:     make ui",
    ):
        console.print(line, soft_wrap=True, highlight=False)
