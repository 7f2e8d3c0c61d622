"""A search in the terminal: one line a trial, and a table of the front at the end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dxc.masking import masked
from dxc.pareto import objective
from dxc.report.console import FORMATS, print_whole
from dxc.tracking import view_address

if TYPE_CHECKING:
    from dxc.search import Rung, Settings
    from dxc.search.ledger import Entry
    from dxc.tracking import Store

SHORT = {
    "latency_ms": "{:.2f} ms",
    "onnx_mb": "{:.2f} MB",
    "macs": "{:,.0f} MACs",
    "params": "{:,.0f} parameters",
}

LISTED = 20  # infeasible trials in a dry run


class Progress:
    """Prints what a search does. Its clock starts with the first trial that is launched."""

    def __init__(self, study: str, objectives: Sequence[str], score: str) -> None:
        self._console = Console()
        self._study = study
        self._score, self._title = score, score.replace("_", " ")
        self._objectives = list(objectives)
        self._started: float | None = None
        self._done_before = 0.0
        self._width = 30

    def begin(self, summary: Mapping[str, int], settings: Settings, notes: Sequence[str]) -> None:
        infeasible = f", {summary['infeasible']} trials over a limit" if summary["infeasible"] else ""
        self._line(
            f"study '{self._study}': {summary['points']} points, {summary['trials']} distinct trials of "
            f"{summary['networks']} networks{infeasible}; tuner {settings.tuner}"
        )
        for note in notes:
            self._line(f"note: {note}")

    def resumed(self, trials: int, finished: int) -> None:
        self._line(f"going on: {trials} trials are there already, {finished} of them finished")

    @contextlib.contextmanager
    def running(self, trials: int, *, done: float) -> Iterator[None]:
        """While so many trials are trained; done: trials' worth of training before them."""
        if self._started is None:
            self._started, self._done_before = time.monotonic(), done
        if not self._console.is_terminal:
            yield
            return
        with self._console.status("training 1 trial" if trials == 1 else f"training {trials} trials"):
            yield

    def infeasible(self, name: str, reason: str) -> None:
        self._line(f"     -      {name:<{self._width}}  not trained: {reason}")

    def trial(
        self,
        name: str,
        entry: Entry,
        *,
        part: Rung | None,
        on_front: bool,
        done: float,
        total: int,
    ) -> None:
        """One line for one trial (or a part of one) that has ended."""
        self._width = max(self._width, len(name))
        if entry.state == "failed":
            text = f"FAILED: {entry.reason}"
        elif entry.state == "finished":
            text = "   ".join([self._score_of(entry), *self._costs(entry), "front" if on_front else "     "])
        else:
            text = self._partial(entry, part)
        self._line(
            f"{done:6.4g}/{total:<4} {name:<{self._width}}  {text}   {self._left(done, total)}".rstrip()
        )

    def _score_of(self, entry: Entry) -> str:
        if self._score not in entry.metrics:
            return ""
        spread = entry.metrics.get(f"{self._score}_std")
        return f"{self._title} {entry.metrics[self._score]:.4f}" + (
            f" ± {spread:.4f}" if spread is not None else ""
        )

    def _costs(self, entry: Entry) -> list[str]:
        return [
            text.format(entry.metrics[name])
            for name, text in SHORT.items()
            if name in entry.metrics and name in self._objectives
        ]

    def _partial(self, entry: Entry, part: Rung | None) -> str:
        if part is None or part not in entry.rungs:
            return entry.reason
        score = sum(entry.rungs[part]) / len(entry.rungs[part])
        return f"{self._title} {score:.4f} in part: {part.folds} fold(s), {part.epochs} epoch(s)"

    def _left(self, done: float, total: int) -> str:
        if self._started is None or done <= self._done_before or done >= total:
            return ""
        pace_s = (time.monotonic() - self._started) / (done - self._done_before)
        return f"{duration(pace_s * (total - done))} left"

    def dry_run(
        self,
        rows: Sequence[tuple[str, Mapping[str, float], str]],
        *,
        seconds: float,
        trials: int,
        parallel: int,
    ) -> None:
        """What the space costs from the least to the most, what is not trained and why, and how long it would take.

        rows: (description, known costs, why not) of every distinct trial. seconds: of training `trials` of them, one
        after the other.
        """
        names = [name for name in SHORT if any(name in known for _, known, _ in rows)]
        table = Table(title="known without training", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("metric", "least", "median", "most", "unit"):
            table.add_column(heading, justify="left" if heading in ("metric", "unit") else "right")
        for name in names:
            values = sorted(known[name] for _, known, _ in rows if name in known)
            cells = [
                FORMATS.get(name, "{:.2f}").format(v)
                for v in (values[0], values[len(values) // 2], values[-1])
            ]
            table.add_row(name, *cells, objective(name).unit)
        print_whole(self._console, table)
        refused = [(text, reason) for text, _, reason in rows if reason]
        for text, reason in refused[:LISTED]:
            self.infeasible(text, reason)
        if len(refused) > LISTED:
            self._line(f"     ... and {len(refused) - LISTED} more")
        at_once = f", {duration(seconds / parallel)} with {parallel} at once" if parallel > 1 else ""
        self._line(
            f"training {trials} trials: about {duration(seconds)} one after the other on this machine{at_once} "
            "(from a few timed steps)"
        )
        self._line("dry run: nothing was trained or recorded")

    def end(
        self,
        front: Sequence[tuple[str, Entry]],
        *,
        objectives: Sequence[str],
        counts: Mapping[str, int],
        store: Store,
        complete: bool,
        folder: Path,
    ) -> None:
        """The front as a table, where everything is, and, of a search that was stopped, how to go on."""
        if front:
            title = f"front of study '{self._study}': no other finished trial is as good in {', '.join(objectives)}"
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("trial")
            shown = [*objectives, *(["accuracy_std"] if "accuracy" in objectives else [])]
            for name in shown:
                table.add_column(f"{name}, {objective(name).unit}", justify="right")
            table.add_column("directory")
            for text, entry in front:
                cells = [
                    FORMATS.get(name, "{:.4f}").format(entry.metrics[name]) if name in entry.metrics else "-"
                    for name in shown
                ]
                table.add_row(text, *cells, entry.trial)
            print_whole(self._console, table)
        listing = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        self._line(f"trials:   {listing or 'none'} (directories in {os.path.relpath(folder)})")
        self._line(f"tracked:  study '{self._study}' in {masked(store.uri)}")
        if store.uri.startswith("http"):
            self._line(f"compare:  {view_address(store.uri, store.experiment_id)}")
        else:
            self._line("compare:  make ui")
        if not complete:
            self._line("stopped before its end: the same command goes on from here")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


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
