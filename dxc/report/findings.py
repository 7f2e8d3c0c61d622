"""Prints an analysis in the terminal, and writes its tables, figures and page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.files import write_atomically
from dxc.metrics import title_of
from dxc.report import figures, tables
from dxc.report.console import origin_lines
from dxc.report.on_device import page_sections, write_deployment
from dxc.report.page import page
from dxc.report.power import power
from dxc.report.terminal import LABEL, Column, new_console, print_table, print_text
from dxc.text import counted, for_terminal
from dxc.tracking.view import UI

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from rich.console import Console

    from dxc.analysis.analyze import Analysis
    from dxc.analysis.designs import Designs
    from dxc.analysis.front_profile import FrontProfile


TABLES = ("ranges", "front", "dominated", "baseline", "front_profile", "set_aside")
FIGURES = ("pairs", "radar", "main_effects", "front_profile")
PAGE = "index.html"
HEADINGS = {"n": "runs", "p_front": "P(on the front)"}
"""Columns of Analysis.designs, as tables and page call them."""
WORDS = ("design", "trial", "on the front", "least", "most time in")
"""Columns of text; the others are numbers."""


def print_findings(analysis: Analysis, folder: Path) -> None:
    """Print the front, its certainty, the choice with its command, and where the files are."""
    console = new_console()
    first, *rest = answer(analysis)
    print_text(console, first)
    if analysis.whole:
        _print(console, whole_table(analysis), "published table", analysis.knobs)
    else:
        _print(console, front_table(analysis), "front", analysis.knobs)
    if analysis.baseline is not None:
        _print(console, baseline_table(analysis.baseline, analysis), "baseline", analysis.baseline.knobs)
    profile = analysis.front_profile
    if profile is not None and len(profile.summary):
        _print(console, front_profile_in_short(profile), f"front profile, on {profile.device}")
    print_text(console, "\n".join(rest))
    if analysis.view:
        served = not analysis.view.startswith(UI)
        print_text(console, f"compare:   {analysis.view}{'' if served else ' (make ui)'}")
    if not analysis.whole and analysis.designs.loc[~analysis.designs["front"], "trial"].any():
        print_text(
            console, "trials:    for compare=, those of the other designs are in dominated.csv of the report"
        )
    page_or_folder = folder / PAGE if (folder / PAGE).exists() else folder
    print_text(console, f"report:    {os.path.relpath(page_or_folder)}")


def answer(analysis: Analysis) -> list[str]:
    """The results in lines for a terminal: the front, notes, the comparison, the choice and the command that reproduces
    it."""
    front, designs, choice = analysis.front, analysis.designs, analysis.choice
    lines = [
        f"{counted(len(designs), 'design')} of {analysis.title}, {len(front)} on the front of "
        f"{', '.join(map(title_of, analysis.objectives))}; hypervolume {analysis.hypervolume:.4g} from "
        + ", ".join(f"{title_of(name)} {value:.4g}" for name, value in analysis.reference.items()),
        *machines_in_words(analysis),
        *(line for note in analysis.notes for line in _lines("note:      ", note)),
    ]
    if front["unstable"].any():
        names = "; ".join(front.loc[front["unstable"], "name"])
        lines.append(f"unstable:  on the front in few of the bootstrap draws: {names}")
    if len(designs) > 1 and analysis.knobs and not figures.knobs_told_apart(designs, analysis.knobs):
        lines.append(
            f"effects:   not drawn: {len(designs)} designs are too few, or too alike, to tell what each of "
            f"{', '.join(figures.short_names(analysis.knobs).values())} does"
        )
    if analysis.comparison is not None:
        lines.append(compared_in_words(analysis))
    lines.append(f"choice:    {designs.loc[choice.design, 'name']}: {choice.rule}")
    if designs.loc[choice.design, "unstable"]:
        lines.append(
            "           it is on the front in few of the bootstrap draws: "
            "use compare= to test it against the next one"
        )
    for label, text in (("network:   ", analysis.network.where), ("outputs:   ", analysis.network.outputs)):
        lines += _lines(label, text) if text else []
    lines += _lines("reproduce: ", analysis.commands[0]) if analysis.commands[0] else []
    if choice.runner_up is not None:
        lines.append(f"runner-up: {designs.loc[choice.runner_up, 'name']}")
        lines += _lines("reproduce: ", analysis.commands[1]) if analysis.commands[1] else []
    return [for_terminal(line) for line in lines]


def _lines(label: str, text: str) -> list[str]:
    """A label and a text of several lines. Further lines are indented, so that none looks like another label."""
    first, *rest = text.split("\n")
    return [f"{label}{first}", *(f"{' ' * len(label)}{line}" for line in rest)]


def _answer_first(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Labels and texts of an answer's lines for a page: the choice, how to have it, then how it was found."""
    choice = next(place for place, line in enumerate(lines) if line.startswith("choice: "))
    found = [
        (match["label"], line[match.end() :]) if (match := LABEL.match(line)) else ("", line.strip())
        for line in lines
    ]
    found[0] = ("front", lines[0])
    return found[choice:] + found[:choice]


def machines_in_words(analysis: Analysis) -> list[str]:
    """What the objectives are of: chips and machines; see dxc.report.console.origin_lines."""
    return origin_lines(analysis.objectives, analysis.machines)


def baseline_table(baseline: Designs, analysis: Analysis) -> pd.DataFrame:
    frame = baseline.frame.drop(columns="runs", errors="ignore").rename(columns=HEADINGS)
    return tables.listing(frame, analysis.objectives, baseline.knobs, more=[HEADINGS["n"]])


def front_table(analysis: Analysis) -> pd.DataFrame:
    front = analysis.front.assign(
        p_front=[
            "-" if p != p else f"{p:.2f}{', unstable' * bool(unstable)}"
            for p, unstable in zip(analysis.front["p_front"], analysis.front["unstable"], strict=True)
        ],
    )
    more = [*HEADINGS.values(), *(["trial"] if front["trial"].any() else [])]
    front = front.drop(columns="runs", errors="ignore").rename(columns=HEADINGS)
    return tables.listing(front, analysis.objectives, analysis.knobs, more=more)


def whole_table(analysis: Analysis) -> pd.DataFrame:
    """All designs, each with whether it is on the front, or a member of the front that dominates it."""
    members = analysis.designs["front"]
    front = analysis.designs["dominated_by"].str.split(":").str[0].radd("no: below ").mask(members, "yes")
    return tables.listing(
        analysis.designs.assign(**{"on the front": front}),
        analysis.objectives,
        analysis.knobs,
        more=["on the front"],
    )


def dominated_table(analysis: Analysis) -> pd.DataFrame:
    """Designs off the front, each with a member of the front that dominates it."""
    others = analysis.designs[~analysis.designs["front"]]
    others = others.rename(columns={"dominated_by": "dominated by"})
    more = ["rank", "dominated by", *(["trial"] if others["trial"].any() else [])]
    return tables.listing(others, analysis.objectives, [], more=more)


def front_profile_in_short(profile: FrontProfile) -> pd.DataFrame:
    """One row per network: its smallest batch, and the batch size with the least time per image."""
    import pandas as pd

    rows = []
    for name, part in profile.summary.groupby("name", sort=False):
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
    """Write tables (Markdown, LaTeX, CSV), figures (PNG, SVG) and index.html to a folder, and remove the previous ones.

    With one objective there is no trade-off to draw: there are tables only.
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
    sources = [text for text in analysis.notes if text.startswith("published: ")]
    note = ". ".join(" ".join(line.split()) for line in [*sources, *machines_in_words(analysis)])
    profile, where = analysis.front_profile, ""
    if profile is not None and len(profile.summary):
        where = f" on {profile.device}"
        contents["front_profile"] = tables.front_profile(profile.summary)
        figures.save(figures.front_profile(profile.summary), folder, "front_profile")
    if len(analysis.aside):
        contents["set_aside"] = analysis.aside
    for stem, table in contents.items():
        tables.write(
            table, folder, stem, note=note if stem in ("ranges", "front", "dominated", "baseline") else ""
        )
    for old in folder.glob("power.*"):
        old.unlink()
    if analysis.deployed is not None:
        write_deployment(analysis.deployed, folder)
    if analysis.power is not None:
        name = str(analysis.designs.loc[analysis.choice.design, "name"])
        figures.save(power(analysis.power, title=name), folder, "power")
    lines = answer(analysis)
    write_atomically(folder / "answer.txt", "\n".join(lines) + "\n")
    objectives, knobs = analysis.objectives, list(analysis.knobs)
    if len(objectives) > 1:
        figures.save(figures.pairs(analysis.designs, objectives, note=note), folder, "pairs")
        figures.save(figures.radar(analysis.designs, objectives, knobs, note=note), folder, "radar")
        sections = [
            (heading, tables.html(contents[stem], note if stem in ("ranges", "dominated") else ""))
            for stem, heading in (
                ("ranges", "Ranges"), ("dominated", "Dominated designs"), ("baseline", "Baseline"),
                ("front_profile", f"Profile of the front, one execution of each network{where}"),
                ("set_aside", "Set aside"),
            )
            if stem in contents and len(contents[stem])
        ]  # fmt: skip
        if analysis.deployed is not None:
            sections += page_sections(
                analysis.deployed, power(analysis.power) if analysis.power is not None else None
            )
        html = page(
            analysis.designs,
            objectives,
            knobs,
            title=f"Pareto front of {analysis.title}",
            answer=_answer_first(lines),
            sections=sections,
            note=note,
        )
        write_atomically(folder / PAGE, html)
    if knobs:
        effects = figures.main_effects(analysis.designs, objectives, knobs, note=note)
        if effects is not None:
            figures.save(effects, folder, "main_effects")
    return folder


def _print(console: Console, content: pd.DataFrame, title: str, knobs: Sequence[str] = ()) -> None:
    """Print a table of designs. Its knobs stand last and have their short names, as in figures."""
    names = figures.short_names(knobs)
    columns = [
        Column(
            names.get(name, name),
            list(content[name]),
            words=name in WORDS or name in names,
            detail=name in names,
        )
        for name in content
    ]
    print_table(console, columns, title=title)
