"""What map.py shows: lines and a table in the terminal, and the page of an evaluation. It takes frames and texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from markupsafe import Markup

from dxc.evaluation.crossings import WITHIN_M
from dxc.files import write_atomically
from dxc.metrics import MAP_FIGURES, label_of, metric_of
from dxc.report import figures, tables
from dxc.report.maps import Extent, Floats, crossing_map, map_precision_recall, reliability_diagram
from dxc.report.templates import picture, style, template
from dxc.report.terminal import new_console, print_frame, print_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PAGE = "index.html"
POOLED = "pooled"
"""In the place of a fold: the row of all folds of a design."""
MAPS = "maps_compared"
"""Stem of the files with the table of several maps."""
READING = (
    "One point finds one crossing: further points at the same crossing are false alarms.",
    "Crossings away from the given roads count as missed where only the roads were looked at.",
    "The figures hold for ground like this one. Synthetic watersheds are simpler than real ones: there, expect "
    "more false alarms and check a sample in the field or on photos.",
)


class Mapped(Protocol):
    """What print_map shows; see dxc.mapping.run.MapReport."""

    @property
    def evaluation(self) -> Path | None: ...
    def said(self) -> list[tuple[str, str]]: ...
    def answers(self) -> list[tuple[str, str]]: ...
    def table(self) -> pd.DataFrame | None: ...


class SeveralMapped(Protocol):
    """What print_maps shows; see dxc.mapping.several.Maps."""

    @property
    def files(self) -> Path | None: ...
    def said(self) -> list[tuple[str, str]]: ...
    def table(self) -> pd.DataFrame: ...


def score_in_text(table: pd.DataFrame) -> pd.DataFrame:
    """The figures of a map at each distance as text, with their intervals.

    Args:
        table: of dxc.evaluation.crossings.MapScore.table().
    """
    import pandas as pd

    columns = {
        "within (m)": [f"{each:g}" for each in table["within_m"]],
        "found": [f"{each:.0f}" for each in table["hits"]],
    }
    return pd.DataFrame(columns | _figures_in_text(table))


def _figures_in_text(table: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of MAP_FIGURES as text, with their intervals. A figure that no row has is left out."""
    columns = {}
    for name, metric in MAP_FIGURES.items():
        if table[name].notna().any():
            form = metric_of(metric).table_format
            ends = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            columns[_heading(metric)] = [
                f"{value:{form}}" + (f" ({low:{form}} to {high:{form}})" if low == low else "")
                if value == value
                else "-"
                for value, low, high in ends
            ]
    return columns


def _heading(metric: str) -> str:
    return label_of(metric, metric_of(metric)).replace(" (fraction)", "")


def maps_in_text(table: pd.DataFrame) -> pd.DataFrame:
    """Several maps, a row each, as text. Columns that say nothing are left out.

    Args:
        table: of dxc.mapping.several.Maps.table().
    """
    import pandas as pd

    columns: dict[str, list[str]] = {}
    if len(set(table["design"])) > 1 or not table["fold"].any():
        columns["design"] = list(table["design"])
    if table["fold"].any():
        columns["held out"] = list(table["fold"])
    for name, heading in (("truth", "true crossings"), ("points", "points"), ("hits", "found")):
        if table[name].notna().any():
            columns[heading] = [f"{each:.0f}" if each == each else "-" for each in table[name]]
    columns |= _figures_in_text(table)
    for name in ("map_recall_at_false_alarms", "seconds_per_km2"):
        if table[name].notna().any():
            columns[_heading(name)] = [tables.number(name, each) for each in table[name]]
    if table["km2"].notna().any():
        columns["area (km2)"] = [f"{each:.2f}" if each == each else "-" for each in table["km2"]]
    if table["error"].any():
        columns["map"] = [
            "made" if not error else "not made" if km2 != km2 else "made, not tracked"
            for error, km2 in zip(table["error"], table["km2"], strict=True)
        ]
    return pd.DataFrame(columns)


def write_maps(table: pd.DataFrame, folder: Path, *, alarms_per_km2: float) -> None:
    """Write the table of several maps: maps_compared.md, .tex and .csv.

    Args:
        table: of dxc.mapping.several.Maps.table().
        folder: where to.
        alarms_per_km2: false alarms at which recall is read.
    """
    judged = table["map_recall_at_false_alarms"].notna().any()
    note = f"fixed false alarms: {alarms_per_km2:g} a km2; matches within {WITHIN_M:g} m" if judged else ""
    tables.write(maps_in_text(table), folder, MAPS, note=note)


def print_maps(result: SeveralMapped) -> None:
    """Print several maps: a row each, and where they lie."""
    console = new_console()
    title = f"Maps, with matches within {WITHIN_M:g} m"
    print_frame(console, maps_in_text(result.table()), title=title, words=("design", "held out", "map"))
    for label, line in result.said():
        print_text(console, f"{label}: {line}")
    if result.files is not None:
        print_text(console, f"report: {os.path.relpath(result.files / MAPS)}.md, .tex and .csv")


def print_map(result: Mapped) -> None:
    """Print where the map lies, and what a comparison with true crossings gave."""
    console = new_console()
    scores = result.table()
    if scores is not None:
        title = "The map against true crossings, by the distance of a match"
        print_frame(console, score_in_text(scores), title=title)
    for label, text in [*result.said(), *result.answers()]:
        print_text(console, f"{label}: {text}")
    if result.evaluation is not None:
        print_text(console, f"report: {os.path.relpath(result.evaluation)}")


def write_evaluation(
    folder: Path,
    *,
    title: str,
    answers: Sequence[tuple[str, str]],
    said: Sequence[tuple[str, str]],
    table: pd.DataFrame,
    curve: pd.DataFrame,
    threshold: float,
    truth: int,
    reliability: pd.DataFrame,
    elevation: Floats,
    extent: Extent,
    places: pd.DataFrame,
    roads: Sequence[Floats] = (),
    lines: Sequence[Floats] = (),
) -> Path:
    """Write index.html, the tables, and the figures as PNG and SVG. Returns the path of the page.

    Args:
        folder: where to; made if needed.
        title: of the page.
        answers: labels and texts of the comparison.
        said: labels and texts of the map.
        table: of MapScore.table().
        curve: of MapScore.
        threshold: of the map's points.
        truth: number of true crossings.
        reliability: of the map's points, as of dxc.evaluation.calibration.reliability.
        elevation: (h, w) an overview of the elevation model, m; NaN where there is none.
        extent: its left, right, bottom and top edge, m.
        places: of MapScore.points().
        roads: (n, 2) lines, m.
        lines: (n, 2) breach lines, m.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = score_in_text(table)
    tables.write(text, folder, "scores")
    for name, frame in (("scores", table), ("curve", curve), ("points", places)):
        write_atomically(folder / f"{name}.csv", tables.comma_separated(frame))
    drawn = {
        "map": (
            "Hits, misses and false alarms",
            crossing_map(elevation, extent, places, roads=roads, lines=lines, title=title),
        ),
        "precision_recall": (
            "Precision against recall, over thresholds",
            map_precision_recall({"this map": curve}, threshold=threshold, truth=truth),
        ),
        "reliability": (
            "What the probabilities of points mean here",
            reliability_diagram({"points of this map": reliability}),
        ),
    }
    sections = [(heading, _image(figure, folder, stem, heading)) for stem, (heading, figure) in drawn.items()]
    by_distance = (
        "By the distance of a match",
        Markup(f'<div class="scroll">{tables.html(text)}</div>'),
    )
    about = Markup("").join(
        [
            Markup("<dl>"),
            *(Markup("<dt>{}</dt><dd>{}</dd>").format(label, each) for label, each in said),
            Markup("</dl>"),
        ]
    )
    reading = Markup("").join(Markup("<p>{}</p>").format(each) for each in READING)
    sections = [
        sections[0],
        by_distance,
        *sections[1:],
        ("How to read this", reading),
        ("The map", about),
    ]
    page = template("answer.html.j2").render(title=title, style=style(), lines=answers, sections=sections)
    write_atomically(folder / PAGE, page)
    return folder / PAGE


def _image(figure: Figure, folder: Path, stem: str, alternative: str) -> Markup:
    figures.save(figure, folder, stem)
    return picture((folder / f"{stem}.png").read_bytes(), alternative)
