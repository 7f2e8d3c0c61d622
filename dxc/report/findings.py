"""An analysis in the terminal, and as files: tables, figures, one page."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dxc.files import write_atomically
from dxc.report import figures, tables
from dxc.report.console import print_whole
from dxc.report.page import page
from dxc.tracking import UI

if TYPE_CHECKING:
    import pandas as pd

    from dxc.analysis.analyze import Analysis
    from dxc.analysis.designs import Designs
    from dxc.analysis.inside import Inside


TABLES = ("ranges", "front", "dominated", "baseline", "inside", "set_aside")
FIGURES = ("pairs", "radar", "main_effects", "inside")
PAGE = "index.html"


def print_findings(analysis: Analysis, folder: Path) -> None:
    """The front, how sure it is, the choice and its command, and where the files are."""
    console = Console()

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    first, *rest = answer(analysis)
    line(first)
    _print(console, front_table(analysis), "front")
    if analysis.baseline is not None:
        _print(console, baseline_table(analysis.baseline, analysis), "baseline")
    if analysis.inside is not None and len(analysis.inside.summary):
        _print(console, inside_in_short(analysis.inside), f"inside, on {analysis.inside.device}")
    for text in rest:
        line(text)
    if analysis.view:
        served = not analysis.view.startswith(UI)
        line(f"compare:   {analysis.view}{'' if served else ' (make ui)'}")
    page_or_folder = folder / PAGE if (folder / PAGE).exists() else folder
    line(f"report:    {os.path.relpath(page_or_folder)}")


def answer(analysis: Analysis) -> list[str]:
    """What was found, in lines: the front, what to know about it, the comparison, the choice and how to rebuild it."""
    front, designs, choice = analysis.front, analysis.designs, analysis.choice
    lines = [
        f"{len(designs)} designs of {analysis.title}, {len(front)} on the front of "
        f"{', '.join(analysis.objectives)}; hypervolume {analysis.hypervolume:.4g} from "
        + ", ".join(f"{name} {value:.4g}" for name, value in analysis.reference.items()),
        *(f"note:      {note}" for note in analysis.notes),
    ]
    if front["lucky"].any():
        lines.append(
            f"by luck?   on the front in few of the draws (p_front): {'; '.join(front.loc[front['lucky'], 'name'])}"
        )
    if analysis.comparison is not None:
        lines.append(compared_in_words(analysis))
    lines.append(f"choice:    {designs.loc[choice.design, 'name']}: {choice.rule}")
    if designs.loc[choice.design, "lucky"]:
        lines.append("           it is on the front in few of the draws: compare= it with the next one")
    lines += [f"  rebuild: {analysis.commands[0]}"] if analysis.commands[0] else []
    if choice.runner_up is not None:
        lines.append(f"next:      {designs.loc[choice.runner_up, 'name']}")
        lines += [f"  rebuild: {analysis.commands[1]}"] if analysis.commands[1] else []
    return lines


def baseline_table(baseline: Designs, analysis: Analysis) -> pd.DataFrame:
    return tables.listing(baseline.frame, analysis.objectives, baseline.knobs, more=["n"])


def front_table(analysis: Analysis) -> pd.DataFrame:
    front = analysis.front.assign(
        p_front=[
            "-" if p != p else f"{p:.2f}{', by luck?' * bool(lucky)}"
            for p, lucky in zip(analysis.front["p_front"], analysis.front["lucky"], strict=True)
        ],
    )
    more = [name for name in ("n", "p_front", "trial") if name != "trial" or front["trial"].any()]
    return tables.listing(front, analysis.objectives, analysis.knobs, more=more)


def dominated_table(analysis: Analysis) -> pd.DataFrame:
    """Designs off the front, each with a member of the front that dominates it."""
    others = analysis.designs[~analysis.designs["front"]]
    return tables.listing(others, analysis.objectives, [], more=["rank", "dominated_by"])


def inside_in_short(inside: Inside) -> pd.DataFrame:
    """A row a network: its smallest batch, and the batch at which an image takes least."""
    import pandas as pd

    rows = []
    for name, part in inside.summary.groupby("name", sort=False):
        first, best = part.loc[part["batch"].idxmin()], part.loc[part["ms_per_image"].idxmin()]
        largest = max(figures.OPERATORS, key=lambda kind: first[kind])
        rows.append(
            {
                "design": str(name),
                f"ms an image, batch {first['batch']}": tables.number("", first["ms_per_image"]),
                "least": f"{tables.number('', best['ms_per_image'])}, batch {best['batch']}",
                "peak MB": tables.number("", first["peak_memory_mb"]),
                "most time in": f"{largest}, {100 * first[largest]:.0f} %",
            }
        )
    return pd.DataFrame(rows)


def compared_in_words(analysis: Analysis) -> str:
    if analysis.comparison is None:
        return ""
    first, second, found = analysis.comparison
    test = (
        f"; McNemar p = {found.p_value:.3g} ({found.only_first} chips only the first has right, "
        f"{found.only_second} only the second)"
        if found.p_value == found.p_value
        else ""
    )
    return (
        f"compared:  {first} less {second}: accuracy {found.difference:+.4f}, 95 % between {found.low:+.4f} and "
        f"{found.high:+.4f}{test}"
    )


def write_report(analysis: Analysis, folder: Path) -> Path:
    """Tables (Markdown, LaTeX, CSV), figures (PNG, SVG) and index.html into a folder; those that were there go.

    The front of one objective is no trade-off: it has tables only.
    """
    for stem in (*TABLES, *FIGURES, "answer", PAGE.split(".")[0]):
        for old in folder.glob(f"{stem}.*"):
            old.unlink()
    contents = {
        "ranges": tables.ranges(analysis.designs, analysis.objectives),
        "front": front_table(analysis),
        "dominated": dominated_table(analysis),
    }
    if analysis.baseline is not None:
        contents["baseline"] = baseline_table(analysis.baseline, analysis)
    inside, where = analysis.inside, ""
    if inside is not None and len(inside.summary):
        where = f" on {inside.device}"
        contents["inside"] = tables.inside(inside.summary)
        figures.save(figures.inside(inside.summary), folder, "inside")
    if len(analysis.aside):
        contents["set_aside"] = analysis.aside
    for stem, table in contents.items():
        tables.write(table, folder, stem)
    lines = answer(analysis)
    write_atomically(folder / "answer.txt", "\n".join(lines) + "\n")
    objectives, knobs = analysis.objectives, list(analysis.knobs)
    if len(objectives) > 1:
        figures.save(figures.pairs(analysis.designs, objectives), folder, "pairs")
        figures.save(figures.radar(analysis.designs, objectives, knobs), folder, "radar")
        sections = [("Answer", f"<pre style='white-space: pre-wrap'>{escape(chr(10).join(lines))}</pre>")] + [
            (heading, contents[stem].to_html(index=False, border=0))
            for stem, heading in (
                ("ranges", "Ranges"), ("dominated", "Dominated designs"), ("baseline", "Baseline"),
                ("inside", f"Inside the front, one profiled execution each{where}"),
                ("set_aside", "Set aside"),
            )
            if stem in contents and len(contents[stem])
        ]  # fmt: skip
        html = page(
            analysis.designs, objectives, knobs, title=f"Pareto front of {analysis.title}", sections=sections
        )
        write_atomically(folder / PAGE, html)
    if knobs:
        figures.save(figures.main_effects(analysis.designs, objectives, knobs), folder, "main_effects")
    return folder


def _print(console: Console, content: pd.DataFrame, title: str) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in content:
        table.add_column(str(name), justify="left" if name in ("design", "trial") else "right")
    for row in content.itertuples(index=False):
        table.add_row(*map(str, row))
    print_whole(console, table)
