"""The table of maps of several designs. It takes the frame of dxc.analysis.mapped.mapped()."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.evaluation.crossings import WITHIN_M
from dxc.metrics import METRICS, label_of
from dxc.report import tables
from dxc.report.terminal import new_console, print_frame, print_text
from dxc.text import counted

if TYPE_CHECKING:
    import pandas as pd

STEM = "maps"
OWN = re.compile(rf"{STEM}_\d+\.(md|tex|csv)")
"""Names of the files that write_map_table() writes."""
WORDS = ("design", "calibrate", "every window", "refine", "machine")
"""Columns of words; the others are of numbers."""
WHERE_DIFFERENT = {
    "stride_m": "stride (m)",
    "threshold": "threshold",
    "merge_m": "merge (m)",
    "calibrate": "calibrate",
    "every_window": "every window",
    "refine": "refine",
}
"""Columns that are shown where maps differ in them, and their headings."""


def maps_in_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text: rank, design, figures on chips, cost, figures on the map. Columns that say nothing are left
    out; the settings of WHERE_DIFFERENT and the machine are columns where they differ.

    Args:
        frame: see the head of this module, or rows of it.
    """
    import pandas as pd

    columns: dict[str, list[str]] = {
        "rank": [str(each) for each in frame["rank"]],
        "design": list(frame["name"]),
    }
    for name in (column for column in frame if column in METRICS):
        if frame[name].notna().any():
            columns[label_of(name, METRICS[name])] = [tables.number(name, value) for value in frame[name]]
    for name, heading in WHERE_DIFFERENT.items():
        if len(set(map(str, frame[name]))) > 1:
            columns[heading] = [
                each if isinstance(each, str) else f"{each:g}" if each == each else "-"
                for each in frame[name]
            ]
    if len(set(frame["machine"])) > 1:
        columns["machine"] = list(frame["machine"])
    return pd.DataFrame(columns)


def _of(frame: pd.DataFrame) -> str:
    """What the maps of one ranking have in common."""
    first = frame.iloc[0]
    fold = f", by networks that did not see {first['fold']}" if first["fold"] else ""
    along = f" {first['roads']}" if first["roads"] else ""
    stride = f", a window every {first['stride_m']:g} m" if len(set(frame["stride_m"])) == 1 else ""
    return (
        f"{first['area']}, mode {first['mode']}{along}{stride}{fold}; fixed false alarms: "
        f"{first['alarms_per_km2']:g} a km2, matches within {WITHIN_M:g} m"
    )


def write_map_table(frame: pd.DataFrame, folder: Path) -> None:
    """Write maps_1.md, .tex and .csv, one for each ranking; the previous ones are removed.

    Args:
        frame: see the head of this module.
        folder: is made if it does not exist.

    Raises:
        OSError: a file cannot be written.
    """
    for old in folder.glob(f"{STEM}_*.*"):
        if OWN.fullmatch(old.name):  # the folder may hold maps, too
            old.unlink()
    for number, ranked in frame.groupby("ranking"):
        tables.write(maps_in_text(ranked), folder, f"{STEM}_{number}", note=_of(ranked))


def print_map_table(frame: pd.DataFrame, folder: Path, *, title: str, lines: Sequence[str]) -> None:
    """Print a table for each ranking, some lines, and where the files are.

    Args:
        frame: see the head of this module.
        folder: of the files.
        title: the studies.
        lines: further ones.
    """
    console = new_console()
    print_text(console, f"{counted(len(frame), 'map')} by designs of {title}")
    for _, ranked in frame.groupby("ranking"):
        print_frame(console, maps_in_text(ranked), title=_of(ranked), words=WORDS)
    for line in lines:
        print_text(console, line)
    print_text(console, f"report:    {os.path.relpath(folder)}")
