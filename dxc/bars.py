"""How far a long step is: a bar on a terminal, a line now and then where the output goes to a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

from dxc.text import duration, for_terminal, plural

T = TypeVar("T")
EVERY_S = 3.0  # between two lines
SHARE = 0.05  # of the time passed, where that is more: long steps fill no log


class Steps:
    """Counts the steps of a piece of work on stderr; a context.

    Args:
        total: number of steps, so far as it is known.
        doing: what is done, such as 'costs of networks'.
        unit: of one step, such as 'network'.
        shown: False prints nothing.
        done: steps that were done before.
        why: stands behind the total where it is estimated, such as 'that fit in 11 minutes'.
        quick: it usually takes less than EVERY_S; a pipe hears of it only where it takes longer.
    """

    def __init__(
        self,
        total: int,
        doing: str,
        unit: str,
        *,
        shown: bool = True,
        done: int = 0,
        why: str = "",
        quick: bool = False,
    ) -> None:
        self.total, self.done = total, done
        self._doing, self._why = doing, f" {why}" if why else ""
        self._from = done
        self._started = self._said = time.monotonic()
        terminal = sys.stderr.isatty()
        self._lines = shown and not terminal
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            desc=doing + self._why,
            unit=unit,
            disable=not (shown and terminal),
            leave=False,
        )
        if self._lines and not quick:
            self._print(f"{doing}: {'at most ' if why else ''}{total} {plural(total, unit)}")

    def update(self, now: str = "", *, steps: int = 1, total: int | None = None) -> None:
        """Count steps that are done. now: what came of the last; total: as it is known by now."""
        self.done += steps
        self.total = self.total if total is None else max(total, self.done)
        self._bar.total = self.total
        if now:
            self._bar.set_postfix_str(for_terminal(now), refresh=False)
        self._bar.update(steps)
        passed = time.monotonic() - self._started
        if self._lines and time.monotonic() - self._said >= max(EVERY_S, SHARE * passed):
            left = passed / (self.done - self._from) * (self.total - self.done)
            of = f"{self.done} of {'about ' if self._why else ''}{self.total}{self._why}"
            tail = f", about {duration(left)} left" if self.done < self.total else ""
            self._print(f"{self._doing}: {of}{tail}{f' ({now})' if now else ''}")

    def say(self, now: str) -> None:
        """What is being done now."""
        self._bar.set_postfix_str(for_terminal(now))
        if self._lines:
            self._print(f"{self._doing}: {self.done + 1} of {self.total}, {now}")

    def _print(self, line: str) -> None:
        self._said = time.monotonic()
        print(for_terminal(line), file=sys.stderr, flush=True)

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def each(
    items: Sequence[T], doing: str, unit: str, *, shown: bool = True, quick: bool = False
) -> Iterator[T]:
    """The items, one a step; see Steps."""
    with Steps(len(items), doing, unit, shown=shown, quick=quick) as bar:
        for item in items:
            yield item
            bar.update()
