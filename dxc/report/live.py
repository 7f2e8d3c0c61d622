"""The live view of a search on a terminal. It is drawn below the last line, and gone when it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from dxc.report.front_plot import FrontPlot, as_lines
from dxc.text import for_rich

if TYPE_CHECKING:
    from collections.abc import Iterable

PER_SECOND = 1.0  # drawings
WIDEST, PLOT_ROWS = 100, 9
AROUND_PLOT = 12  # lines of the terminal that are left to other text
LISTED = 6  # trials at work


@dataclass(frozen=True)
class View:
    """What is shown. best, standing: a line each, '' where there is nothing to say; training: a line a trial."""

    plot: FrontPlot | None
    best: str
    training: Sequence[str]
    standing: str


def can_draw(console: Console) -> bool:
    """Whether the output is a terminal on which lines can be drawn again: no file, no pipe, and not TERM=dumb.

    FORCE_COLOR makes rich take a pipe for a terminal; colours do no harm there, a line that is drawn again does.
    """
    try:
        return console.is_interactive and os.isatty(console.file.fileno())
    except (OSError, ValueError):  # no file of the operating system
        return False


@contextlib.contextmanager
def live(console: Console, view: Callable[[], View]) -> Iterator[None]:
    """Draw what `view` returns until the block ends, in whatever way.

    The cursor stays visible, so that a process that is killed leaves the terminal as it was.
    """
    drawn = Live(
        _Drawn(view), console=console, refresh_per_second=PER_SECOND, transient=True, vertical_overflow="crop"
    )
    try:
        drawn.start()
        console.show_cursor(True)  # rich hides it
        drawn.refresh()
        yield
    finally:
        drawn.stop()


class _Drawn:
    """Rich renders it anew at every refresh."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(_lines(self._view(), options.max_width, options.size.height, plain=options.ascii_only))
        yield Group(*lines)


def _lines(view: View, width: int, height: int, *, plain: bool) -> Iterable[Text]:
    """The view in lines (the last may be wrapped) that fit the terminal: a narrow or low one gets no plot."""
    rows = min(PLOT_ROWS, height - AROUND_PLOT)
    if view.plot is not None and width >= 50 and rows >= 4:
        yield Text()
        for line in as_lines(view.plot, width=min(width, WIDEST), height=rows, plain=plain):
            yield _line(line)
    if view.best:
        yield _line(view.best, bold=True)
    listed = max(1, min(LISTED, height - 6))
    for line in view.training[:listed]:
        yield _line(line)
    if (more := len(view.training) - listed) > 0:
        yield _line(f"... and {more} more")
    yield _line(view.standing, cut=False)  # it ends with the time that is left


def _line(text: str, *, bold: bool = False, cut: bool = True) -> Text:
    """One line, cut at the right edge, or wrapped there. It is set here: a line that is printed above the view would
    pass its own setting on."""
    line: Any = for_rich(text, style="bold" if bold else "")
    line.no_wrap, line.overflow = cut, "ellipsis" if cut else "fold"
    return line
