"""Prints compared schedules of a network in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dxc.report.terminal import Column, new_console, print_table, print_text

if TYPE_CHECKING:
    import pandas as pd


def print_schedules(
    name: str, conditions: str, table: pd.DataFrame, findings: Sequence[str], notes: Sequence[str]
) -> None:
    """Print a table with a row for each batch and schedule, what was found, and what is missing.

    Args:
        name: of the network.
        conditions: device, software and precision.
        table: as dxc.hardware.schedule.compare.Comparison.table() gives it.
        findings: sentences on where scheduling gains.
        notes: what is missing, and why.
    """

    def shown(column: str, form: str) -> list[str]:
        return ["" if value != value else format(value, form) for value in table[column]]

    console = new_console()
    print_table(
        console,
        [
            Column("batch", shown("batch", "d")),
            Column("schedule", list(table["schedule"]), words=True),
            Column("ms a batch", shown("batch_ms", ".4f")),
            Column("ms an image", shown("ms_per_image", ".4f")),
            Column("gain", shown("gain", ".2f")),
            Column("stages", shown("stages", ".0f")),
            Column("most groups", shown("groups", ".0f")),
            Column("sum of stages (ms)", shown("stages_ms", ".4f")),
            Column("share of roofline", shown("roofline_share", ".1%")),
        ],
        title=f"{name}: schedules, measured on {conditions}",
    )
    print_text(console, "gain:  time of the sequential graph of the same batch / time")
    for line in findings:
        print_text(console, f"found: {line}")
    for line in notes:
        print_text(console, f"note:  {line}")
