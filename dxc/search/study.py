"""The loop of a search: propose, check against limits, launch, record; until the study has its number of trials.

Everything it needs of Hydra comes in through Runner, so that it runs without the plugin too.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.config.identity import UNRECORDED, canonical, params_and_tags
from dxc.config.names import describe, flatten
from dxc.config.plan import Plan
from dxc.errors import DxcError, SearchError, signals_raise
from dxc.metrics import directions, known_costs, metric_of, named_origins
from dxc.pareto import non_dominated_by_known
from dxc.pipeline.chain import FIGURES
from dxc.pipeline.kept import kept_folder
from dxc.pipeline.stages import FINETUNE, PRUNE, TRAIN, network_identities
from dxc.report.progress import Progress, Standing, Training
from dxc.report.progress_page import PAGE, Trained
from dxc.report.run_figures import draw_chips, drawn_or_noted
from dxc.search.costs import NetworkCosts
from dxc.search.front import (
    Account,
    Candidates,
    FrontSearch,
    Trainings,
    alone,
    knob_groups,
    knob_numbers,
)
from dxc.search.ledger import STATUS, Entry, Ledger
from dxc.search.settings import Settings
from dxc.search.slots import fewer, gpus_here
from dxc.search.space import Catalogue, Compose, Identity, Point, Space, parse_space
from dxc.search.space_summary import Chips, SpaceSummary, prepare_chips, trainings_of
from dxc.search.states import FAILED, FINISHED, INFEASIBLE, PLANNED, STOPPED, Rung
from dxc.search.strategies import NniTuner, Proposal
from dxc.tracking.store import Store

if TYPE_CHECKING:
    from dxc.data.datamodule import ImageDataModule

log = logging.getLogger(__name__)

REPEATS = 200  # proposals in a row that are known already, before one is drawn at random
UNCOMPRESSED = {
    "compress.fraction": 0,
    "compress.steps": 1,
    "compress.finetune_epochs": 0,
    "compress.quantise": "none",
}
NOT_PREDICTED = "predictors describe kernels in float32, and these networks are quantised"
DOING = {TRAIN: "training", PRUNE: "pruning", FINETUNE: "fine-tuning"}
MEDIAN_OF = 5  # trials that median stopping wants to have seen


class LauncherError(Exception):
    """A launcher, not a trial, failed: a worker died, a queue refused a job."""


@dataclass(frozen=True)
class Runner:
    """What a search needs of its surroundings.

    compose: overrides -> configuration. is_group: whether a key is a config group. launch: runs search.py's main
    with each list of overrides and returns when all have ended; what came of them is on disk. Where it can, it calls
    the function it is given now and then, and stops waiting when that is true; raises LauncherError, or what a trial
    raised. parallel: how many trials it runs at once. folder: multirun/STUDY. dead_after_s: for how long nobody may
    hold the lock of a trial that was begun; infinite where launch itself finds out which jobs are over. one_machine:
    whether trials run on this machine and share its GPUs, or each as a job of a cluster.
    """

    compose: Compose
    is_group: Callable[[str], bool]
    launch: Callable[[Sequence[Sequence[str]], Callable[[], bool]], None]
    parallel: int
    folder: Path
    dead_after_s: float = 10
    one_machine: bool = True


@dataclass(frozen=True)
class Job:
    """One trial to launch. rung: None is the full protocol. stop_below: see dxc.search.trial."""

    entry: Entry
    rung: Rung | None = None
    stop_below: Sequence[float] = ()


def search(params: Mapping[str, Any] | None, arguments: Sequence[str], runner: Runner) -> None:
    """Run, or go on with, the search that a space (conf/space) and the overrides of a command line describe.

    Raises DxcError for what a user can mend, before anything is trained where that is possible.
    """
    space = parse_space(params, arguments)
    catalogue = Catalogue(space, runner.compose, runner.is_group)
    base = catalogue.base
    plan = Plan.of(base)
    settings = Settings.of(base["search"], plan.score, plan.hardware.limits)
    gpus = gpus_here(plan, settings.gpus) if runner.one_machine else []
    parallel = settings.parallel or min(runner.parallel, len(gpus) or runner.parallel)
    page = None if settings.reports is None else Path(settings.reports) / plan.study / PAGE
    progress = Progress(plan.study, settings.objectives, settings.score, page)
    costs = NetworkCosts(plan.hardware, Path(plan.cache_dir))
    summary = SpaceSummary(space, catalogue, settings, costs)
    if settings.limits or settings.dry_run:  # a limit that nothing meets is said before chips are read
        progress.doing(f"looking at the costs of {len(summary.networks)} networks")
        summary.estimate_costs()
        summary.require_any_within_limits()
    if not settings.dry_run:
        summary.forget_estimates()
    chips = prepare_chips(catalogue, dry_run=settings.dry_run)
    machines = [f"latency is predicted for {costs.predicted_for}"] if costs.predicted_for else []
    unchecked = summary.unchecked_limits(plan.hardware)
    estimated = [line] if (line := summary.estimated()) else []
    notes = [*machines, *costs.notes, *unchecked, *estimated, *summary.unknown_objectives()]
    progress.begin(summary.counts(), settings, notes, chips=chips.titles)
    summary.require_feasible()
    progress.budget(
        summary.wanted(),
        settings.ladder(chips.folds, plan.trainer.max_epochs),
        finetuning=summary.most_finetuning,
    )
    if settings.dry_run:
        trials = summary.wanted()
        progress.dry_run(
            summary.table(),
            seconds=summary.estimate(chips) * trials / len(summary.feasible),
            trials=trials,
            parallel=parallel,
        )
        return

    store = Store(
        plan.tracking.uri,
        plan.study,
        patience_s=settings.store_patience_s,
        artifacts=plan.tracking.artifacts,
    )
    with Ledger(store, runner.folder) as ledger:
        ledger.open(_fixed(space, base, settings, chips), force=settings.force)
        if not ledger.has_chips:
            _record_chips(ledger, chips)
        study = Study(plan, summary, ledger, runner, chips, progress, parallel, gpus)
        status = "KILLED"
        try:
            with signals_raise():
                study.run()
            status = "FINISHED"
        finally:
            study.end(status)


def _record_chips(ledger: Ledger, chips: Chips) -> None:
    """Bring what the trials are trained on, and a sheet of it, to the run of the study. A store that refuses them costs
    a line, and no search."""
    named: dict[str, tuple[Plan, ImageDataModule]] = {}
    for plan, datamodule in chips.variants:
        stem = "chips" if len(chips.variants) == 1 else f"chips-{plan.data.name}"
        named[stem if stem not in named else f"{stem}-{len(named) + 1}"] = plan, datamodule
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / FIGURES
        sets: list[tuple[str, str, Mapping[str, Any]]] = []
        for stem, (plan, datamodule) in named.items():
            source, cache = datamodule.source, datamodule.cache
            assert cache is not None  # prepare_chips read it
            sets.append((source.title, cache.data_hash, plan.source.values()))
            draw = partial(draw_chips, plan, source.noun, cache, out, stem=stem)
            for note in drawn_or_noted(stem, draw):
                log.warning("%s", note)
        try:
            ledger.record_chips(sets, Path(folder))
        except DxcError as error:
            log.warning("the run of the study does not say what its chips are: %s", error)


def _fixed(space: Space, base: Mapping[str, Any], settings: Settings, chips: Chips) -> dict[str, Any]:
    """What must not change while a study goes on: everything but the axes' values and how it is run."""
    searched = {axis.path for axis in space.axes}
    groups = {key.split("@")[0] for key in searched if "." not in key}
    described = canonical(dict(base))
    if any(key.startswith("compress.") for key in searched):
        described["compress"] = base[
            "compress"
        ]  # the first point may compress nothing: other points use these keys
    fixed = {
        key: value
        for key, value in flatten(described).items()
        if key not in searched and key.split(".")[0] not in groups and key not in UNRECORDED
    }
    fixed |= {f"space {axis.path}": ",".join(axis.values) for axis in space.axes}
    fixed |= {f"search.{key}": getattr(settings, key) for key in ("tuner", "seed", "early_stop")}
    fixed |= {f"search.limits.{name}": limit for name, limit in settings.limits.items()}
    fixed["search.objectives"] = ",".join(settings.objectives)
    fixed["search.objective"] = settings.objective
    if settings.tuner == "pareto":
        fixed["search.rungs"] = settings.rungs
    fixed["chips"] = ",".join(chips.hashes)
    return fixed


class Study:
    """One search at work on a study."""

    def __init__(
        self,
        plan: Plan,
        summary: SpaceSummary,
        ledger: Ledger,
        runner: Runner,
        chips: Chips,
        progress: Progress,
        parallel: int,
        gpus: Sequence[int],
    ) -> None:
        self.hardware = plan.hardware
        self.summary = summary
        self.settings = summary.settings
        self.ledger = ledger
        self.runner = runner
        self.progress = progress
        self.chips = chips
        self.folds = chips.folds
        self.epochs = plan.trainer.max_epochs + summary.most_finetuning
        """Of a fold, at most: trained and fine-tuned."""
        self.ladder = self.settings.ladder(self.folds, plan.trainer.max_epochs)
        self.parallel = parallel
        self.at_once = min(parallel, runner.parallel)
        self.gpus = gpus
        self.total = summary.wanted()
        self._told: set[str] = set()
        self._names: dict[str, str] = {}
        self._trained_for: dict[str, Trainings] = {}
        self._failures_before = self._count(FAILED)
        self._reported: set[tuple[str, Rung | None, int]] = set()
        self._silent_since: dict[str, float] = {}
        self._launched = 0.0
        self._attempts: dict[str, int] = {}

    def run(self) -> None:
        """Until the study has its number of trials, or the space has no more."""
        if before := [e for e in self.ledger.entries.values() if e.state in (FINISHED, FAILED, STOPPED)]:
            self.progress.resumed(len(before), self._count(FINISHED))
        self.progress.finished(self._finished())
        if self.settings.tuner == "pareto":
            self._run_front()
        else:
            self._run_nni()

    def end(self, status: str) -> None:
        """Close the study's run and print what there is, also where the search was stopped."""
        try:
            if status == "FINISHED":
                self._close_planned()
            self.ledger.close(status)
        except DxcError as error:
            if status == "FINISHED":
                raise
            log.warning("%s", error)
        self.progress.finished(self._finished())
        self.progress.end(
            [(self._name(entry), entry) for entry in self._front().values()],
            objectives=self._objectives(),
            origins=self._origins(),
            counts={state: self._count(state) for state in (FINISHED, STOPPED, FAILED, INFEASIBLE, PLANNED)},
            store=self.ledger.store,
            complete=status == "FINISHED",
            folder=self.ledger.folder,
            standing=self._standing(),
        )

    # --- NNI's tuners ------------------------------------------------------------------------------------------

    def _run_nni(self) -> None:
        tuner = NniTuner(
            self.settings.tuner,
            self.summary.space,
            seed=self.settings.seed,
            trials=self.total,
            parallel=self.parallel,
            maximise=metric_of(self.settings.objective).maximise,
        )
        exhausted = False
        while True:
            if orphans := self._orphans():
                self._work([Job(entry) for entry in orphans])
            elif not exhausted and (left := self.total - self._trained()) > 0:
                with self.ledger.lock():
                    self.ledger.refresh_if_shared()
                    members, repeated, exhausted = self._draw(tuner, left)
                exhausted = exhausted or not members
                thresholds = self._medians()
                self._work([Job(entry, stop_below=thresholds) for _, entry in members])
                for proposal, entry in (*members, *repeated):
                    self._tell(tuner, proposal, self.ledger.entries[entry.trial])
            elif busy := [e for e in self.ledger.entries.values() if self.ledger.elsewhere(e)]:
                self.ledger.wait_for(busy[0])
            else:
                return

    def _draw(
        self, tuner: NniTuner, left: int
    ) -> tuple[list[tuple[Proposal, Entry]], list[tuple[Proposal, Entry]], bool]:
        """The next batch: proposals this process has not seen yet, with their entries; those that repeat one of the
        batch; and whether the tuner has no more. What is known is answered at once.

        Trials of an earlier sitting take their place in a batch again, so that the tuner sees the same order.
        """
        members: list[tuple[Proposal, Entry]] = []
        repeated: list[tuple[Proposal, Entry]] = []
        new = repeats = 0
        while len(members) < self.parallel and new < left and not (members and tuner.full):
            proposal = tuner.ask() if repeats < REPEATS else self._any_new()
            if proposal is None:
                return members, repeated, True
            identity = self.summary.catalogue.identity(proposal.point)
            entry = self.ledger.entries.get(identity.trial)
            if identity.trial in self._told and entry is not None:
                repeats += 1
                if any(entry is each for _, each in members):
                    repeated.append((proposal, entry))
                else:
                    self._tell(tuner, proposal, entry)
                continue
            self._told.add(identity.trial)
            if entry is None:
                entry = self._enter(identity, proposal.point)
                new += entry.state == PLANNED
            elif not self._is_own(entry):  # a tag of the store says otherwise, and would be launched
                entry.overrides = self.summary.space.overrides(proposal.point)
            repeats = 0
            if entry.state == INFEASIBLE:
                self._tell(tuner, proposal, entry)
            else:
                members.append((proposal, entry))
        return members, repeated, False

    def _any_new(self) -> Proposal | None:
        """A point at random that is not in the study yet: the tuner goes round in circles."""
        rest = [trial for trial in self.summary.feasible if trial not in self.ledger.entries]
        if not rest:
            return None
        trial = random.Random(self.settings.seed + len(self.ledger.entries)).choice(rest)
        return Proposal(0, self.summary.trials[trial])

    def _tell(self, tuner: NniTuner, proposal: Proposal, entry: Entry) -> None:
        value = self._value(entry)
        if proposal.number:
            tuner.tell(proposal, value)
        elif value is not None:
            tuner.learn(proposal.point, value)

    def _value(self, entry: Entry) -> float | None:
        """What the tuner is told of a trial. The score is the mean over folds whether or not all of them were trained:
        what the pooled predictions of a finished trial give under the same name is another estimate."""
        if self.settings.objective in (self.settings.score, "fold_score") and entry.state in (
            FINISHED,
            STOPPED,
        ):
            return statistics.mean(_longest(entry.rungs))
        return entry.metrics.get(self.settings.objective) if entry.state == FINISHED else None

    def _medians(self) -> list[float]:
        """For 1, 2, ... folds, the median score of the trials so far after as many; [] without early_stop."""
        if self.settings.early_stop != "median":
            return []
        thresholds = []
        for folds in range(1, self.folds):
            means = [
                statistics.mean(values[:folds])
                for entry in self.ledger.entries.values()
                if entry.state in (FINISHED, STOPPED) and len(values := _longest(entry.rungs)) >= folds
            ]
            if len(means) < MEDIAN_OF:
                break
            thresholds.append(statistics.median(means))
        return thresholds

    # --- tuner=pareto ------------------------------------------------------------------------------------------

    def _run_front(self) -> None:
        chooser = self._front_search()
        budget = self.total * self.folds * self.epochs
        while True:
            with self.ledger.lock():
                self.ledger.refresh_if_shared()
                busy = [e for e in self.ledger.entries.values() if self.ledger.elsewhere(e)]
                reserved = len(busy) * self.folds * self.epochs
                # where trials share what they train, their number is reached before the epochs are used up
                left = self.total - self._count(FINISHED) - self._count(FAILED) - len(busy)
                chosen = chooser.next(
                    {e.trial: e.rungs for e in self.ledger.entries.values() if e.rungs},
                    busy=[e.trial for e in busy],
                    without=[
                        e.trial for e in self.ledger.entries.values() if e.state in (FAILED, INFEASIBLE)
                    ],
                    count=max(0, min(self.parallel, left)),
                    epochs_left=budget - self._epochs() - reserved,
                )
                jobs = []
                for trial, rung in chosen:
                    point = self.summary.trials[trial]
                    entry = self.ledger.entries.get(trial) or self._enter(self.summary.identity(trial), point)
                    if not self._is_own(entry):  # a tag of the store says otherwise, and would be launched
                        entry.overrides = self.summary.space.overrides(point)
                    if entry.owner != self.ledger.search_id:
                        self.ledger.take_over(entry)
                    entry.attempts = 0  # of this rung
                    jobs.append(Job(entry, None if rung == self.ladder[-1] else rung))
            if not jobs and not busy:
                return
            self._work(jobs)
            if not jobs:
                self.ledger.wait_for(busy[0])

    def _front_search(self) -> FrontSearch:
        names = [name for name in self.settings.objectives if name != self.settings.score]
        identities = [self.summary.identity(trial) for trial in self.summary.feasible]
        known = [self.summary.known(identity) for identity in identities]
        if missing := [name for name in names if not any(name in costs for costs in known)]:
            raise SearchError(
                f"search.tuner=pareto weighs {', '.join(missing)}, which hardware={self.hardware.name} does not give: "
                f"{'; '.join(self.summary.costs.notes) or NOT_PREDICTED}. Leave it out "
                f"(search.objectives=[{self.settings.score},onnx_mb]) or choose another tuner"
            )
        flat = [flatten(canonical(identity.config)) for identity in identities]
        keys = {key for row in flat for key in row if len({str(other.get(key)) for other in flat}) > 1}
        rows = [{key: row[key] for key in keys & row.keys()} for row in flat]
        # a network that is not compressed is one of which nothing goes: the surrogate learns from it about the others
        whole = {key: value for key, value in UNCOMPRESSED.items() if key in keys}
        rows = [{**whole, **row} for row in rows]
        candidates = Candidates(
            self.summary.feasible,
            knob_numbers(rows),
            np.array([[costs.get(name, math.nan) for name in names] for costs in known]),
            names,
            knob_groups(rows),
            trainings=[trainings_of(identity.config) for identity in identities],
        )
        return FrontSearch(candidates, self.ladder, seed=self.settings.seed)

    def _epochs(self) -> int:
        """Epochs x folds trained in this study so far."""
        account, spent = Account(), 0
        for entry in self.ledger.entries.values():
            if climbed := [rung for rung in self.ladder if rung in entry.rungs]:
                spent += account.add(self._trainings(entry), climbed)
            spent += (self.folds * self.epochs) * (entry.state == FAILED)
        return spent

    # --- both --------------------------------------------------------------------------------------------------

    def _enter(self, identity: Identity, point: Point) -> Entry:
        """A new trial in the ledger: planned, or infeasible with the reason."""
        parameters, settings = params_and_tags(identity.config)
        heading: dict[str, Any] = {
            "name": describe(identity.config),
            "overrides": self.summary.space.overrides(point),
            "tags": {**settings, "dxc.design": identity.design},
        }
        if reason := self.summary.against(identity):
            known = {name: v for name, v in self.summary.known(identity).items() if name in known_costs()}
            entry = self.ledger.infeasible(
                identity.trial, **heading, parameters=parameters, reason=reason, known=known
            )
            self.progress.infeasible(heading["name"], reason)
            return entry
        return self.ledger.plan(identity.trial, **heading)

    def _orphans(self) -> list[Entry]:
        """Trials that were planned or begun by a search that is gone."""
        with self.ledger.lock():
            found = [
                entry
                for entry in self.ledger.entries.values()
                if entry.state not in (FINISHED, FAILED, INFEASIBLE, STOPPED)
                and self._is_own(entry)
                and not self.ledger.elsewhere(entry)
                and not self._ended(Job(entry))
            ]
            for entry in found:
                self.ledger.take_over(entry)
        return found

    def _work(self, jobs: Sequence[Job]) -> None:
        """Bring these trials to an end: launch those that nobody works on, wait for the others."""
        todo = [job for job in jobs if not self._over(job)]
        mine = [job for job in todo if not self.ledger.elsewhere(job.entry)]
        theirs = [job for job in todo if job not in mine]
        while mine:
            waiting = mine
            while waiting:  # a launch may lower self.parallel
                batch, waiting = waiting[: self.parallel], waiting[self.parallel :]
                self._launch(batch)
            again = [job for job in mine if self._again(job)]
            self._check_failures()
            mine = again
        for job in theirs:
            self.ledger.wait_for(job.entry)
            entry = self.ledger.entries[job.entry.trial]
            if not self._over(Job(entry, job.rung)):
                self.ledger.take_over(entry)
                self._work([Job(entry, job.rung, job.stop_below)])

    def _ended(self, job: Job) -> bool:
        """Whether a trial is over, by what its process left on disk; jobs of a search that is gone go on without it."""
        return self.ledger.collect(job.entry) and self._over(job)

    def _over(self, job: Job) -> bool:
        entry = job.entry
        if job.rung is not None and job.rung in entry.rungs:
            return True
        if entry.state == STOPPED:  # by median stopping; tuner=pareto may climb on
            return job.rung is None and self.settings.tuner != "pareto"
        return entry.state in (FINISHED, FAILED, INFEASIBLE)

    def _again(self, job: Job) -> bool:
        """Whether a launched trial has to be launched again."""
        entry = job.entry
        if self._over(job) and entry.state != FAILED:
            return False
        if entry.state == FAILED and entry.attempts <= self.settings.retries:
            log.info("%s: trying again after %s", entry.trial, entry.reason)
            return True
        return not self._over(job)

    def _launch(self, jobs: Sequence[Job]) -> None:
        overrides = [self._job_overrides(job, number) for number, job in enumerate(jobs)]
        self._attempts = {job.entry.trial: job.entry.attempts + 1 for job in jobs}
        failure: LauncherError | None = None
        self._launched = time.time()
        with self.progress.running([self._training(job) for job in jobs], self._standing):
            try:
                self.runner.launch(overrides, lambda: self._watch(jobs))
            except LauncherError as error:  # a worker that was killed; what the others did is on disk
                failure = error
            except Exception:
                self._collect_all(jobs)
                raise
        collected = self._collect_all(jobs)
        if failure is not None and not collected and not any(self._started(job) for job in jobs):
            raise SearchError(f"the launcher could not start trials: {failure}") from failure
        short = 0
        for job in jobs:
            entry = job.entry
            if entry.trial in collected:
                continue
            if self._started(job) and self.ledger.lacked_memory(entry):
                short += 1  # no fault of its own, and no attempt
                continue
            entry.attempts = self._attempts[entry.trial]
            self.ledger.count_attempt(entry, entry.attempts)
            if entry.attempts > self.settings.retries:
                self.ledger.fail(
                    entry,
                    "its process ended without a word (killed, out of memory or time?); see the trial's directory",
                )
                self._report(job)

        if short:
            self._run_fewer(short, len(jobs))

    def _run_fewer(self, short: int, of: int) -> None:
        """Leave each GPU to fewer trials, because its memory was too small for some; they are launched again."""
        self.at_once = self.parallel = fewer(self.gpus, self.at_once)
        log.warning(
            "%d of %d trials had too little GPU memory beside others. They are trained again, %d at once from now on "
            "(as with search.parallel=%d)",
            short,
            of,
            self.at_once,
            self.at_once,
        )

    def _collect_all(self, jobs: Sequence[Job]) -> set[str]:
        """Take over from disk what these trials found, and report it; returns those that are over, as asked."""
        over = set()
        for job in jobs:
            entry = job.entry
            ended = self._ended(job)
            if entry.state == FAILED and entry.attempts < self._attempts[entry.trial]:
                continue  # what it was launched again for
            if ended:
                over.add(entry.trial)
                if (entry.trial, job.rung, entry.attempts) not in self._reported:
                    self._reported.add((entry.trial, job.rung, entry.attempts))
                    self._report(job)
        return over

    def _watch(self, jobs: Sequence[Job]) -> bool:
        """Report what has ended; True when all of them have ended or died."""
        over = self._collect_all(jobs)
        now = time.monotonic()
        for job in jobs:
            trial = job.entry.trial
            if trial in over or not self._started(job) or self.ledger.elsewhere(job.entry):
                self._silent_since.pop(trial, None)
            else:
                self._silent_since.setdefault(trial, now)
        dead = {
            trial for trial, since in self._silent_since.items() if now - since > self.runner.dead_after_s
        }
        return all(job.entry.trial in over | dead for job in jobs)

    def _started(self, job: Job) -> bool:
        """Whether a process has begun with the trial since it was launched."""
        lock = self.ledger.folder / job.entry.trial / ".lock"
        return lock.exists() and lock.stat().st_mtime >= self._launched

    def _job_overrides(self, job: Job, number: int) -> list[str]:
        entry = job.entry
        fields = {
            "trial": f"'{entry.trial}'",  # quoted: a hash may read as a number
            "run_id": f"'{entry.run_id}'",
            "attempt": entry.attempts + 1,
            "folds": job.rung.folds if job.rung else "null",
            "epochs": job.rung.epochs if job.rung else "null",
            "number": number,
            "at_once": self.at_once if self.runner.one_machine else "null",
            "stop_below": "[" + ",".join(f"{value:.6f}" for value in job.stop_below) + "]",
        }
        listing = ",".join(f"{key}:{value}" for key, value in fields.items())
        return [*self.summary.space.fixed, *entry.overrides, f"search.job={{{listing}}}"]

    def _check_failures(self) -> None:
        failures = self._count(FAILED) - self._failures_before
        if failures > self.settings.max_failures:
            last = next(e for e in reversed(list(self.ledger.entries.values())) if e.state == FAILED)
            raise SearchError(
                f"{failures} trials failed (search.max_failures={self.settings.max_failures}), the last with: "
                f"{last.reason}\nIts traceback is in {self.ledger.folder / last.trial}; mend the cause and start again"
            )

    def _name(self, entry: Entry) -> str:
        """What a trial is called; one that is not in the space by what its tags say."""
        if entry.trial not in self._names:
            point = self.summary.space.point_of(entry.overrides)
            if point is None:
                return " ".join(entry.overrides)
            self._names[entry.trial] = describe(self.summary.catalogue.identity(point).config)
        return self._names[entry.trial]

    def _training(self, job: Job) -> Training:
        rung = job.rung or self.ladder[-1]
        plan = self.summary.catalogue.identity(self._point(job.entry)).plan
        identities = network_identities(plan, self.chips.hash_of(plan), epochs=rung.epochs)
        stages = [(DOING[name], kept_folder(plan.cache_dir, each)) for name, each in identities]
        return Training(job.entry.trial, plan.name, stages, rung.folds, part=job.rung is not None)

    def _report(self, job: Job) -> None:
        entry = job.entry
        front = self._front()
        if entry.state == FINISHED:
            self.progress.finished(self._finished(front))
        self.progress.trial(
            self._name(entry),
            entry,
            part=job.rung,
            on_front=entry.trial in front,
            standing=self._standing(),
        )

    def _done_share(self) -> float:
        """Trials' worth of training done so far."""
        if self.settings.tuner == "pareto":
            return self._epochs() / (self.folds * self.epochs)
        return sum(self._count(state) for state in (FINISHED, FAILED, STOPPED))

    def _standing(self) -> Standing:
        return Standing(
            finished=self._count(FINISHED),
            stopped=sum(
                entry.state == STOPPED and bool(entry.rungs) for entry in self.ledger.entries.values()
            ),
            failed=self._count(FAILED),
            done=self._done_share(),
            total=self.total,
            in_parts=self.settings.tuner == "pareto",
        )

    def _is_own(self, entry: Entry) -> bool:
        """Whether an entry's overrides are a point of the space, and its hash is that point's."""
        point = self.summary.space.point_of(entry.overrides)
        return point is not None and self.summary.catalogue.identity(point).trial == entry.trial

    def _trainings(self, entry: Entry) -> Trainings:
        """What is trained for an entry; one that is not in the space shares nothing."""
        if entry.trial not in self._trained_for:
            point = self.summary.space.point_of(entry.overrides)
            self._trained_for[entry.trial] = (
                alone(entry.trial)
                if point is None
                else trainings_of(self.summary.catalogue.identity(point).config)
            )
        return self._trained_for[entry.trial]

    def _point(self, entry: Entry) -> Point:
        point = self.summary.space.point_of(entry.overrides)
        if point is None:
            raise SearchError(f"trial {entry.trial} is not in the space: {entry.overrides}")
        return point

    def _trained(self) -> int:
        """Trials that count towards the total, those that others work on included."""
        return sum(
            entry.state in (FINISHED, FAILED, STOPPED)
            or (entry.state != INFEASIBLE and (self.ledger.elsewhere(entry) or self._ended(Job(entry))))
            for entry in self.ledger.entries.values()
        )

    def _count(self, state: str) -> int:
        return sum(entry.state == state for entry in self.ledger.entries.values())

    def _close_planned(self) -> None:
        """Trials that were planned once and are not worth training any more."""
        for entry in self._orphans() if self.settings.tuner == "pareto" else ():
            entry.state, entry.reason = STOPPED, "planned, and not chosen again"
            self.ledger.store.tag(entry.run_id, {"dxc.state": STOPPED, "dxc.reason": entry.reason})
            self.ledger.store.status(entry.run_id, STATUS[STOPPED])

    def _objectives(self) -> list[str]:
        """The objectives that finished trials have: some of them, where others have none (see unknown_objectives)."""
        finished = [e for e in self.ledger.entries.values() if e.state == FINISHED]
        return [name for name in self.settings.objectives if any(name in e.metrics for e in finished)]

    def _origins(self) -> dict[str, dict[str, int]]:
        """What the objectives of the finished trials are of; see dxc.metrics.named_origins."""
        finished = [e.origins for e in self.ledger.entries.values() if e.state == FINISHED]
        return named_origins(finished, {name: metric_of(name) for name in self._objectives()})

    def _front(self) -> dict[str, Entry]:
        """The finished trials that no other dominates in the objectives that it has, best first in the first one."""
        names = self._objectives()
        finished = [e for e in self.ledger.entries.values() if e.state == FINISHED]
        if not finished or not names:
            return {}
        values = [[entry.metrics.get(name, math.nan) for name in names] for entry in finished]
        keep = non_dominated_by_known(values, maximise=directions(names))
        front = [entry for entry, kept in zip(finished, keep, strict=True) if kept]
        sign = -1 if directions(names[:1])[0] else 1
        front.sort(key=lambda e: sign * e.metrics[names[0]] if names[0] in e.metrics else math.inf)
        return {entry.trial: entry for entry in front}

    def _finished(self, front: Mapping[str, Entry] | None = None) -> list[Trained]:
        """All finished trials. front: where it is known already."""
        front = self._front() if front is None else front
        return [
            Trained(entry.trial, self._name(entry), entry.metrics, entry.trial in front)
            for entry in self.ledger.entries.values()
            if entry.state == FINISHED
        ]


def _longest(rungs: Mapping[Rung, Sequence[float]]) -> Sequence[float]:
    return rungs[max(rungs, key=lambda r: (r.epochs, r.folds))] if rungs else [math.nan]
