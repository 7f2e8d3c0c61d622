"""Text from elsewhere, for one output format each.

Names of studies, runs, tags, files, regions, packages and devices come from a store, a disk or a device, and may hold
anything: escape sequences of a terminal, markup, formulas. Whatever writes a format passes such text through that
format's function here, and a reader sees what the text is made of: ESC is shown as \\x1b in all of them.
"""

from __future__ import annotations

import html
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

NUMBER = re.compile(r"[-+]?(\d[\d,]*)?\.?\d+(e[-+]?\d+)?( ± [\d.,e+-]+)?( ?%)?|-", re.IGNORECASE)
"""A cell that is a value, with its spread if it has one, or that is missing: no formula, whatever it begins with."""
FORMULA = tuple("=+-@＝＋－＠")
"""What makes a spreadsheet take a cell for a formula; also in full width, which some of them treat alike."""

MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$@]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=//)", re.IGNORECASE)
"""What begins an element of GitHub's Markdown or ends a table's cell; '_' within a word does not, as in latency_ms."""

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$",
    "[": "{[}", "*": "{*}",  # after a row's \\ they would be its arguments
}  # fmt: skip


def visible(text: object) -> str:
    """One line in which every character shows. Control and format characters (ESC, line ends, C1, bidi overrides),
    line separators, lone surrogates and what Unicode does not define are written as repr() writes them: \\x1b.

    >>> visible("a\\nb")
    'a\\\\nb'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else repr(char)[1:-1]
        for char in text
    )


def for_terminal(text: object, *, lines: bool = False) -> str:
    """Text that does nothing to a terminal but fill one line. lines: a message of several lines keeps its line ends."""
    if not lines:
        return visible(text)
    return "\n".join(visible(line.expandtabs(4)) for line in str(text).split("\n"))


def for_rich(text: object, *, style: str = "") -> Text:
    """For tables of rich: no markup ([bold], [/x]) and no emoji code (:name:) is read in it."""
    from rich.text import Text

    return Text(for_terminal(text), style=style)


def for_csv(cell: object) -> str:
    """A cell that no spreadsheet takes for a formula: text that looks like one begins with an apostrophe."""
    text = visible(cell)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def for_markdown(text: object) -> str:
    """Text of a paragraph or a table's cell in GitHub's Markdown: no HTML, link, emphasis, code or end of the cell."""
    return MARKDOWN.sub(lambda found: f"\\{found.group()}", visible(text))


def for_latex(text: object) -> str:
    """Text of LaTeX outside of mathematics, ± included; it may begin a row of a table."""
    return "".join(LATEX.get(char, char) for char in visible(text))


def for_html(text: object) -> str:
    """Text of an element or of a quoted attribute."""
    return html.escape(visible(text))


def for_plotly(text: object) -> str:
    """Text of a label or a hover box of plotly, which reads tags of HTML in it."""
    return html.escape(visible(text), quote=False)


def for_script(data: Mapping[str, Any]) -> str:
    """Data as JSON in a script element, which no text in it ends. Raises ValueError for NaN and infinity."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def for_figure(text: object) -> str:
    """Text of a figure of matplotlib, whose style (dxc.report.figures.STYLE) reads no formula between dollar signs.

    matplotlib leaves labels that begin with '_' out of legends: a space goes before it.
    """
    shown = visible(text)
    return f" {shown}" if shown.startswith("_") else shown


def plural(count: float, noun: str) -> str:
    """The noun as it stands after a number.

    >>> plural(1, "design"), plural(2, "design"), plural(3, "set of channels"), plural(0, "study")
    ('design', 'designs', 'sets of channels', 'studies')
    """
    if count == 1:
        return noun
    first, *rest = noun.split(" of ")
    ending = f"{first[:-1]}ies" if re.search("[^aeiou]y$", first) else f"{first}s"
    return " of ".join([ending, *rest])


def counted(count: int, noun: str) -> str:
    """'1 design', '1,200 designs'."""
    return f"{count:,} {plural(count, noun)}"


def each_once(names: Iterable[str]) -> str:
    """'eager', or 'eager and graph' where they differ: in the order of the alphabet."""
    return " and ".join(sorted(set(names)))


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


class LogFormatter(logging.Formatter):
    """For log lines that reach a terminal or a log file; conf/ names it for Hydra's handlers."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record), lines=True)
