"""Prints the progress of a search: one line per trial, and a table of the front at the end."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.config.overrides import store_override
from dxc.masking import masked
from dxc.metrics import known_costs, label_of, metric_of, spread_of, title_of
from dxc.report.console import origin_lines, where_to_compare
from dxc.report.front_plot import FrontPlot, front_plot
from dxc.report.live import View, can_draw, live
from dxc.report.progress_page import COMPLETE, RUNNING, STOPPED, ProgressPage, Trained
from dxc.report.terminal import Column, new_console, print_table, print_text
from dxc.text import counted, duration
from dxc.training.epochs import read_epoch

if TYPE_CHECKING:
    from dxc.search.ledger import Entry
    from dxc.search.settings import Settings
    from dxc.search.states import Rung
    from dxc.tracking.store import Store

LISTED = 20  # infeasible trials in a dry run


@dataclass(frozen=True)
class Standing:
    """The progress of a study.

    Attributes:
        done: training so far, in full trials, out of `total`.
        in_parts: whether trials are trained in parts (tuner=pareto). `done` then counts the epochs of all of them.
    """

    finished: int
    stopped: int
    failed: int
    done: float
    total: int
    in_parts: bool

    def __str__(self) -> str:
        """ "3 trials trained, 2 in part; 4.3 of 20 trials' worth of epochs used" or "5 of 20 trials done, 1 failed"."""
        others = [(self.stopped, "in part" if self.in_parts else "stopped early"), (self.failed, "failed")]
        said = [f"{count} {what}" for count, what in others if count]
        of = f"of {counted(self.total, 'trial')}"
        if not self.in_parts:
            return ", ".join([f"{self.done:.0f} {of} done", *said])
        trained = ", ".join([f"{counted(self.finished, 'trial')} trained", *said])
        worth = "'s" if self.total == 1 else "'"
        return f"{trained}; {round(self.done, 1):g} {of}{worth} worth of epochs used"


@dataclass(frozen=True)
class Training:
    """A trial at work. stages: (what is done with its folds, where those are kept that this was done with), in their
    order; folds: how many it is to train; part: no more than these are trained now, and no network is exported."""

    trial: str
    name: str
    stages: Sequence[tuple[str, Path]]
    folds: int
    part: bool = False

    def at(self) -> str:
        """'training fold 2 of 5, epoch 3 of 10', 'fine-tuning fold 1 of 5'; what comes after the folds where all of
        them are there."""
        for doing, folder in self.stages:
            kept = len(list(folder.glob("[!.]*.pt")))
            if kept >= self.folds:
                continue
            epoch = read_epoch(folder)
            fold = f"{doing} fold {kept + 1} of {self.folds}"
            if epoch is not None and epoch.together > 1:
                fold = f"{doing} {epoch.together} of {self.folds} folds side by side"
            return fold + (f", epoch {epoch.number} of {epoch.of}" if epoch else "")
        return "recording the result" if self.part else "exporting and profiling"


class Progress:
    """Prints the progress of a search, and keeps a page of it. Its clock starts when the first trial is launched.

    Args:
        study: its name.
        objectives: of the front.
        score: the metric that is trained for.
        page: the HTML page; None: there is none.
    """

    def __init__(self, study: str, objectives: Sequence[str], score: str, page: Path | None = None) -> None:
        self._console = new_console()
        self._draws = can_draw(self._console)
        self._study = study
        self._score, self._title = score, title_of(score)
        self._objectives = list(objectives)
        self._started: float | None = None
        self._done_before = self._done = 0.0
        self._ends: float | None = None
        self._width = 30
        self._trained: Sequence[Trained] = ()
        self._at_work: list[Training] = []
        self._plot: FrontPlot | None = None
        self._page = None if page is None else ProgressPage(page, study, objectives, score)

    def begin(
        self,
        summary: Mapping[str, int],
        settings: Settings,
        notes: Sequence[str],
        *,
        chips: Sequence[str],
    ) -> None:
        """Print what is searched, and what the trials are trained on.

        Args:
            summary: counts of the space.
            settings: of the search.
            notes: what else is to be known.
            chips: sources of chips, for people.
        """
        infeasible = (
            f", {counted(summary['infeasible'], 'trial')} over a limit" if summary["infeasible"] else ""
        )
        self._line(
            f"study '{self._study}': {counted(summary['points'], 'point')}, "
            f"{counted(summary['trials'], 'distinct trial')} of {counted(summary['networks'], 'network')}"
            f"{infeasible}; tuner {settings.tuner}"
        )
        self._line(f"trained on {' | '.join(chips)}")
        for note in notes:
            self._line(f"note: {note}")
        if self._page is not None:
            self._page.notes = list(notes)

    def doing(self, text: str) -> None:
        """Print what is done now, where that takes more than a moment."""
        self._line(f"{text} ...")

    def budget(self, total: int, ladder: Sequence[Rung], *, finetuning: int = 0) -> None:
        """Print how much the study will train.

        Args:
            total: number of trials.
            ladder: see Settings.ladder.
            finetuning: most epochs of a fold that a network is fine-tuned for after it was pruned.
        """
        first, whole = ladder[0], ladder[-1]
        line = f"budget: {counted(total, 'trial')} of {_protocol(whole)} each"
        if finetuning:
            line += f" and up to {finetuning} of fine-tuning"
        if len(ladder) > 1:
            epochs = total * whole.folds * (whole.epochs + finetuning)
            line += (
                f", {counted(epochs, 'epoch')} in all; a trial is tried on "
                f"{_protocol(first)} first, and goes on while it may reach the front"
            )
        if finetuning:
            line += ". A network that several are pruned from is trained and counted once"
        self._line(line)

    def resumed(self, trials: int, finished: int) -> None:
        self._line(f"going on: {counted(trials, 'trial')} recorded before, {finished} finished")

    def finished(self, trials: Sequence[Trained]) -> None:
        """Take note of all the trials that have finished so far."""
        self._trained = trials
        self._plot = front_plot([trial.metrics for trial in trials], self._score, self._objectives)

    @contextlib.contextmanager
    def running(self, work: Sequence[Training], standing: Callable[[], Standing]) -> Iterator[None]:
        """A context in which these trials are trained. A terminal shows their progress below the last line."""
        if self._started is None:
            self._started, self._done_before = time.monotonic(), standing().done
            self._done = self._done_before
        self._at_work = list(work)
        self._write_page(standing())
        try:
            if not self._draws:
                yield
                return
            with live(self._console, lambda: self.view(standing())):
                yield
        finally:
            self._at_work = []

    def view(self, standing: Standing) -> View:
        """What a terminal shows while trials are trained."""
        return View(
            self._plot,
            self._best(),
            [f"{each.at()}: {each.name}" for each in self._at_work],
            "; ".join([str(standing), *self._left(standing)]),
        )

    def _best(self) -> str:
        """'best so far: accuracy 0.9300   5.20 ms predicted   1.20 MB   resnet18 k3 s2 p1 w32'."""
        known = [trial for trial in self._trained if self._score in trial.metrics]
        if not known:
            return ""
        metric = metric_of(self._score)
        best = max(known, key=lambda trial: trial.metrics[self._score] * (1 if metric.maximise else -1))
        value = f"{self._title} {best.metrics[self._score]:{metric.format}}"
        return f"best so far: {'   '.join([value, *self._costs(best.metrics), best.name])}"

    def _write_page(self, standing: Standing, state: str = RUNNING) -> None:
        """A search that trains nothing leaves what is there: analyze.py may have written it."""
        if self._page is not None and self._started is not None:
            progress = "; ".join([str(standing), *self._left(standing)])
            self._page.show(self._trained, self._plot, progress, [each.name for each in self._at_work], state)

    def infeasible(self, name: str, reason: str) -> None:
        self._line(f"{name:<{self._width}}  not trained: {reason}")

    def trial(
        self,
        name: str,
        entry: Entry,
        *,
        part: Rung | None,
        on_front: bool,
        standing: Standing,
    ) -> None:
        """Print a line for a trial, or a part of one, that has ended. A log also gets the progress of the study."""
        self._width = max(self._width, len(name))
        if entry.state == "failed":
            text = f"FAILED: {entry.reason}"
        elif entry.state == "finished":
            text = "   ".join(
                [self._score_of(entry), *self._costs(entry.metrics), *(["front"] if on_front else [])]
            )
        else:
            text = self._partial(entry, part)
        line = f"{name:<{self._width}}  {text}"
        if not self._draws:  # a terminal shows it below, and keeps it up to date
            line += f"   [{'; '.join([str(standing), *self._left(standing)])}]"
        print_text(self._console, line, indent=4)
        self._at_work = [each for each in self._at_work if each.trial != entry.trial]
        self._write_page(standing)

    def _score_of(self, entry: Entry) -> str:
        """The mean over folds, as of a trial that was trained in part: see fold_score in dxc.pareto."""
        if "fold_score" not in entry.metrics:
            return ""
        spread = entry.metrics.get(spread_of(self._score) or "")
        return f"{self._title} {entry.metrics['fold_score']:.4f}" + (
            f" ± {spread:.4f}" if spread is not None else ""
        )

    def _costs(self, metrics: Mapping[str, float]) -> list[str]:
        return [
            metric_of(name).said(metrics[name])
            for name in known_costs()
            if name in metrics and name in self._objectives
        ]

    def _partial(self, entry: Entry, part: Rung | None) -> str:
        if part is None or part not in entry.rungs:
            return entry.reason
        score = sum(entry.rungs[part]) / len(entry.rungs[part])
        return f"{self._title} {score:.4f} in part: {_protocol(part)}"

    def _left(self, standing: Standing) -> list[str]:
        """['about 12 min left'] by the pace so far; where nothing was done since the last answer, less by the time that
        has passed."""
        now = time.monotonic()
        if self._started is None or standing.done >= standing.total:
            return []
        if standing.done > self._done:
            self._done = standing.done
            pace_s = (now - self._started) / (standing.done - self._done_before)
            self._ends = now + pace_s * (standing.total - standing.done)
        if self._ends is None or self._ends <= now:  # longer than it should have: nothing is known
            return []
        return [f"about {duration(self._ends - now)} left"]

    def dry_run(
        self,
        rows: Sequence[tuple[str, Mapping[str, float], str]],
        *,
        seconds: float,
        trials: int,
        parallel: int,
    ) -> None:
        """Print the costs in the space in ascending order, what is not trained and why, and the expected time.

        Args:
            rows: (description, known costs, why not) of every distinct trial.
            seconds: time to train `trials` trials one after the other.
            trials: number of trials.
            parallel: trials at once.

        """
        names = [name for name in known_costs() if any(name in known for _, known, _ in rows)]
        known_of = {name: sorted(known[name] for _, known, _ in rows if name in known) for name in names}

        def at(share: float) -> list[str]:
            return [
                metric_of(name).brief(values[min(int(share * len(values)), len(values) - 1)])
                for name, values in known_of.items()
            ]

        columns = [
            Column("metric", [metric_of(name).title for name in names], words=True),
            *(Column(heading, at(share)) for heading, share in (("least", 0), ("median", 0.5), ("most", 1))),
            Column("unit", [metric_of(name).symbol for name in names], words=True),
            Column("origin", [metric_of(name).origin for name in names], words=True),
        ]
        print_table(self._console, columns, title="known without training")
        refused = [(text, reason) for text, _, reason in rows if reason]
        for text, reason in refused[:LISTED]:
            self.infeasible(text, reason)
        if len(refused) > LISTED:
            self._line(f"     ... and {len(refused) - LISTED} more")
        at_once = f", {duration(seconds / parallel)} with {parallel} at once" if parallel > 1 else ""
        self._line(
            f"training {counted(trials, 'trial')}: about {duration(seconds)} one after the other on this machine"
            f"{at_once} (from a few timed steps)"
        )
        self._line("dry run: nothing was trained or recorded")

    def end(
        self,
        front: Sequence[tuple[str, Entry]],
        *,
        objectives: Sequence[str],
        origins: Mapping[str, Mapping[str, int]],
        counts: Mapping[str, int],
        store: Store,
        complete: bool,
        folder: Path,
        standing: Standing,
    ) -> None:
        """Print the front, what its values are of, where the results are, and how to continue a stopped search.

        Args:
            front: (name, trial) of its members, best first.
            objectives: of the front.
            origins: see dxc.metrics.named_origins.
            counts: trials by state.
            store: where they are recorded.
            complete: whether the search came to its end.
            folder: of the trials' directories.
            standing: how far the search is.
        """
        self._write_page(standing, COMPLETE if complete else STOPPED)
        if front:
            titles = ", ".join(map(title_of, objectives))
            # a detector's score is that of the pooled predictions, and its tuner saw the mean of the folds
            beside = spread_of(self._score) or "fold_score"
            shown = [*objectives, *([beside] if self._score in objectives else [])]
            columns = [
                Column("trial", [text for text, _ in front], words=True),
                *(
                    Column(
                        label_of(name, metric_of(name)),
                        [
                            format(entry.metrics[name], metric_of(name).format)
                            if name in entry.metrics
                            else "-"
                            for _, entry in front
                        ],
                    )
                    for name in shown
                ),
                Column("directory", [entry.trial for _, entry in front], words=True, detail=True),
            ]
            title = f"front of study '{self._study}': no other finished trial is as good in {titles}"
            print_table(self._console, columns, title=title)
            for line in origin_lines({name: metric_of(name) for name in objectives}, origins):
                self._line(line)
        listing = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        self._line(f"trials:   {listing or 'none'} (directories in {os.path.relpath(folder)})")
        self._line(f"tracked:  study '{self._study}' in {masked(store.uri)}")
        self._line(f"compare:  {where_to_compare(store.uri, store.experiment_id)}")
        if self._page is not None and self._page.written:
            self._line(f"page:     {os.path.relpath(self._page.path)}")
        if complete and front:
            self._line(f"next:     {_analysis(self._study, store.uri)}")
        if not complete:
            self._line("stopped before its end: the same command goes on from here")

    def _line(self, text: str) -> None:
        print_text(self._console, text)


def _analysis(study: str, uri: str) -> str:
    """The command that analyses a study and copies the chosen network out of the store."""
    return shlex.join(
        ["python", "analyze.py", f"study={study}", "choose.export=best.onnx", *store_override(uri)]
    )


def _protocol(rung: Rung) -> str:
    """'5 folds x 10 epochs'."""
    return f"{counted(rung.folds, 'fold')} x {counted(rung.epochs, 'epoch')}"
