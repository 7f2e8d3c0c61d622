"""Lines and tables that fit the width they are printed in.

A terminal has its own width, which the variable COLUMNS overrides. A pipe or a file has no width: a table takes up to
PIPE_COLUMNS there, and a text stays on one line, so that a search for its words finds it.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from dxc.text import for_rich, for_terminal

if TYPE_CHECKING:
    import pandas as pd

PIPE_COLUMNS = 120
LEAST = 20  # a column of words becomes no narrower than this before other columns move to a second table
LONGEST_WORD = (
    72  # a longer word of a cell is broken: beside the number of its row it leaves 80 columns whole
)
GAP = 2  # between two columns
UNBROKEN = ("folder", "network", "package", "compare", "report", "reproduce", "next")
"""Labels of lines with a command or a path, which is copied whole."""
UNKNOWN = "not known:"
"""A line of UNBROKEN that begins so says why there is nothing to copy."""
LABEL = re.compile(r"(?P<label>[a-zA-Z][\w -]{0,30}): +")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: broken into lines between its words.
        cells: one a row.
        words: whether the cells are text, which may be broken into lines, and not numbers.
        detail: whether it goes to a table below, with all other details, where not every column has room.
    """

    heading: str
    cells: Sequence[object]
    words: bool = False
    detail: bool = False

    def shown(self) -> list[str]:
        return [for_terminal(cell) for cell in self.cells]

    def widest(self) -> int:
        """Characters that no cell exceeds, and no word of the heading."""
        return max(map(cell_len, [*self.shown(), *for_terminal(self.heading).split(" ")]))

    def least(self) -> int:
        """Characters below which the column becomes hard to read."""
        if not self.words:
            return self.widest()
        words = [word for text in (self.heading, *self.cells) for word in for_terminal(text).split(" ")]
        return min(self.widest(), max(LEAST, min(LONGEST_WORD, max(map(cell_len, words)))))


def new_console() -> Console:
    """The standard output, as wide as the terminal, COLUMNS or PIPE_COLUMNS says."""
    columns = os.environ.get("COLUMNS", "")
    console = Console()
    # a terminal without escape sequences (TERM=dumb) is 80 wide to rich, unless it is told the height too
    if columns.isdigit():
        return Console(width=int(columns), height=console.height)
    return console if console.is_terminal else Console(width=PIPE_COLUMNS, height=console.height)


def _has_width(console: Console) -> bool:
    return console.is_terminal or os.environ.get("COLUMNS", "").isdigit()


def print_line(console: Console, text: str) -> None:
    """Print one or several lines as they are: not cut, coloured or read as markup. For commands and paths."""
    for line in text.split("\n"):
        console.print(for_rich(line), soft_wrap=True)


def print_text(console: Console, text: str, *, indent: int | None = None) -> None:
    """Print lines for people, broken between words where there is a width. A longer word stays whole.

    A line may begin with a label, such as 'note:   '. What follows after a break is indented to the text behind it, and
    what follows a label of UNBROKEN stays as it is, unless it says UNKNOWN.

    Args:
        console: where to.
        text: one or several lines.
        indent: spaces after a break, instead.
    """
    label = ""
    for line in text.split("\n"):
        if found := LABEL.match(line):
            label = found["label"]
        copied = label in UNBROKEN and not line[found.end() if found else 0 :].startswith(UNKNOWN)
        if not _has_width(console) or copied:
            print_line(console, line)
            continue
        start = len(found.group()) if found else len(line) - len(line.lstrip())
        start = indent if indent is not None else start if start <= console.width / 2 else 2
        parts = textwrap.wrap(
            for_terminal(line),
            console.width,
            subsequent_indent=" " * start,
            break_long_words=False,
            break_on_hyphens=False,
        )
        print_line(console, "\n".join(parts))


def print_table(console: Console, columns: Sequence[Column], *, title: str = "") -> None:
    """Print a table that is no wider than the console, and a blank line.

    Headings are broken between words first, then columns of words. Columns for which there is still no room follow in
    a table below, details first, and a number joins its rows to those above.

    Args:
        console: where to.
        columns: the first one says what a row is.
        title: a line above.
    """
    if title:
        print_text(console, title)
    for block in blocks(columns, console.width):
        table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        for column, width in zip(block, widths(block, console.width), strict=True):
            table.add_column(
                for_rich(column.heading),
                justify="left" if column.words else "right",
                vertical="top",
                width=width,
                overflow="fold",
            )
        for row in zip(*(column.shown() for column in block), strict=True):
            table.add_row(*map(for_rich, row))
        needed = Console(width=1000, height=console.height).measure(table).maximum
        Console(width=max(console.width, needed), height=console.height, file=console.file).print(table, "")


def print_frame(
    console: Console,
    frame: pd.DataFrame,
    *,
    title: str = "",
    words: Collection[str] = (),
    details: Collection[str] = (),
) -> None:
    """Print a table of text; see print_table.

    Args:
        console: where to.
        frame: its columns and cells, as text. The first column says what a row is.
        title: a line above.
        words: columns of words.
        details: columns that go below first where there is no room.
    """
    columns = [
        Column(name, list(frame[name]), words=name in words, detail=name in details) for name in frame.columns
    ]
    print_table(console, columns, title=title)


def blocks(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns of each table: all in one, or as many as fit and the others below."""
    if _total([column.least() for column in columns]) <= width:
        return [list(columns)]
    key = Column("#", [row + 1 for row in range(len(columns[0].cells))])
    found: list[list[Column]] = []
    for group in ([each for each in columns if not each.detail], [each for each in columns if each.detail]):
        if group:
            found.append([key])
        for column in group:
            if len(found[-1]) > 1 and _total([each.least() for each in [*found[-1], column]]) > width:
                found.append([key])
            found[-1].append(column)
    return found if len(found) > 1 else [list(columns)]


def widths(columns: Sequence[Column], width: int) -> list[int]:
    """Characters of each column: what its longest cell takes, and less for columns of words where that is too much.

    Room that is left goes to the headings, until each is on one line.
    """
    found, least = ([getattr(column, size)() for column in columns] for size in ("widest", "least"))
    while _total(found) > width:
        place = max(range(len(found)), key=lambda each: found[each] * (found[each] > least[each]))
        if found[place] <= least[place]:
            break  # one column alone is wider: the terminal breaks its lines
        found[place] -= 1
    for lines in (2, 1):
        for place, column in enumerate(columns):
            heading, needed = for_terminal(column.heading), found[place]
            while len(textwrap.wrap(heading, needed)) > lines:
                needed += 1
            if _total(found) + needed - found[place] <= width:
                found[place] = needed
    return found


def _total(found: Sequence[int]) -> int:
    """Characters of a row: the columns, and what is between them."""
    return sum(found) + GAP * (len(found) - 1)
