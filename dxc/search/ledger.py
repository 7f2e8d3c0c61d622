"""State of a study: a parent run in MLflow with one child run per trial, and locks in multirun/STUDY.

The operating system releases a lock when its process ends for any reason. So a trial with the state `running` whose
lock nobody holds is dead. Searches of one study must share the folder multirun/STUDY (in a cluster's home directory);
the store may be anywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dxc.errors import SearchError
from dxc.metrics import ORIGIN_TAGS
from dxc.search.states import FAILED, FINISHED, INFEASIBLE, PLANNED, RUNNING, STOPPED, Rung
from dxc.tracking.patience import StoredRun
from dxc.tracking.record import Record
from dxc.tracking.store import Store
from dxc.untrusted import load_json

log = logging.getLogger(__name__)

ARTIFACTS = "artifacts"  # in a trial's directory until they are uploaded

SEARCHES = "searches"  # one file for each search of the study, locked while it lives

OVER = (FINISHED, FAILED, INFEASIBLE)
"""Final states. tuner=pareto may train a stopped trial further."""
STATUS = {
    PLANNED: "SCHEDULED",
    RUNNING: "RUNNING",
    FINISHED: "FINISHED",
    FAILED: "FAILED",
    INFEASIBLE: "FINISHED",
    STOPPED: "FINISHED",
}
"""MLflow's status by state. MLflow shows FAILED and KILLED in red, and what a search decides is no accident. The tag
dxc.state tells finished trials from those that were stopped or not begun."""


@dataclass
class Entry:
    """One trial of the study. overrides: its axes, as on a command line. rungs: scores of each fold by rung."""

    trial: str
    run_id: str
    state: str
    overrides: list[str]
    number: int
    owner: str = ""
    attempts: int = 0
    reason: str = ""
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """The tags of dxc.metrics.ORIGIN_TAGS that the trial's run has."""
    rungs: dict[Rung, list[float]] = field(default_factory=dict)


class Ledger:
    """The trials of one study, read from the store once and kept up to date. has_chips: whether the study's run says
    what its trials are trained on (record_chips).

    Use it as a context manager: it says to other searches of the study that this one is alive.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.parent = ""
        self.has_chips = False
        self.search_id = uuid.uuid4().hex[:12]
        (folder / SEARCHES).mkdir(parents=True, exist_ok=True)
        self._study_lock = FileLock(folder / ".lock")
        self._alive_lock = FileLock(folder / SEARCHES / self.search_id)
        self._others: frozenset[str] = frozenset()
        self._alive: frozenset[str] = frozenset()

    def __enter__(self) -> Ledger:
        with self.lock():  # or a search that clears away the dead ones could take this one for dead
            self._alive_lock.acquire()
        return self

    def __exit__(self, *raised: object) -> None:
        self._alive_lock.release()  # its file stays: others see that somebody was here

    def lock(self) -> FileLock:
        """A lock. While it is held, no other search of this study plans a trial."""
        return self._study_lock

    def open(self, fixed: Mapping[str, Any], *, force: bool) -> None:
        """Find or make the study's parent run, compare its fixed configuration, and read its trials.

        Raises SearchError with the differences where the study was begun with another configuration.
        """
        fixed = {key: str(value) for key, value in fixed.items()}
        with self.lock():
            parents = self.store.runs(dxc__kind="study")
            if parents:
                self.parent = parents[0].run_id
                self.has_chips = "dxc.source" in parents[0].tags
                self._compare(self._fixed(parents[0]), fixed, force=force)
            else:
                tags = {"dxc.kind": "study", "dxc.study": self.store.study, "dxc.fixed": json.dumps(fixed)}
                self.parent = self.store.create(self.store.study, tags, params=fixed)
            self.store.status(self.parent, "RUNNING")
            for path in (self.folder / SEARCHES).iterdir():
                if path.name != self.search_id and not _held(path):
                    path.unlink(missing_ok=True)
            self._others = self._other_searches()
            self.refresh()

    def _fixed(self, parent: StoredRun) -> dict[str, str]:
        try:
            before = load_json(parent.tags["dxc.fixed"])
            if not isinstance(before, dict):
                raise ValueError("it is no object")
        except (KeyError, ValueError) as error:
            raise SearchError(
                f"study '{self.store.study}': the tag dxc.fixed of its run {parent.run_id} is damaged: {error}\n"
                "Choose another name: study=NEW"
            ) from error
        return {str(key): str(value) for key, value in before.items()}

    def _compare(self, before: Mapping[str, str], now: Mapping[str, str], *, force: bool) -> None:
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if not differing:
            return
        lines = "\n".join(
            f"  {key}: {before.get(key, 'not there')} -> {now.get(key, 'not there')}" for key in differing
        )
        if not force:
            raise SearchError(
                f"study '{self.store.study}' was begun with another configuration:\n{lines}\n"
                "Choose another name (study=NEW), or go on with the new one all the same (search.force=true)"
            )
        log.warning("study '%s' goes on with another configuration:\n%s", self.store.study, lines)
        self.store.tag(self.parent, {"dxc.fixed": json.dumps(now)})

    def record_chips(self, chips: Sequence[tuple[str, str, Mapping[str, Any]]], figures: Path) -> None:
        """Record what the trials are trained on in the study's run.

        Args:
            chips: (title, hash, section source) of each set of chips.
            figures: a folder of files for the run.
        """
        for title, digest, source in chips:
            self.store.log_dataset(self.parent, title, digest, source)
        self.store.log_files(self.parent, figures)
        titles = dict.fromkeys(title for title, *_ in chips)
        self.store.tag(self.parent, {"dxc.source": " | ".join(titles)})  # the last: all of it is there
        self.has_chips = True

    def close(self, status: str) -> None:
        self.store.status(self.parent, status)

    def refresh_if_shared(self) -> None:
        """Read the store again where another search of this study works or has worked beside this one."""
        others = self._other_searches()
        alive = frozenset(other for other in others if _held(self.folder / SEARCHES / other))
        # one that was alive at the last look may have planned a trial and ended since
        if alive or self._alive or others != self._others:
            self.refresh()
        self._others, self._alive = others, alive

    def _other_searches(self) -> frozenset[str]:
        return frozenset(path.name for path in (self.folder / SEARCHES).iterdir()) - {self.search_id}

    def refresh(self) -> None:
        """Read every trial from the store, and upload what was kept on disk while it was away."""
        for run in self.store.runs(dxc__kind="trial", mlflow__parentRunId=self.parent):
            try:
                entry = _entry(run)
            except (KeyError, ValueError, TypeError) as error:  # not written by a search, or changed since
                log.warning(
                    "run %s is set aside, it is not a trial: %s %s", run.run_id, type(error).__name__, error
                )
                continue
            held = self.entries.get(entry.trial)
            if held is None or held.run_id == entry.run_id or held.state == PLANNED:
                self.entries[entry.trial] = entry
        for entry in self.entries.values():
            record = Record.read(self.folder / entry.trial)
            if record and not record.content.get("uploaded"):
                self.collect(entry)

    def plan(self, trial: str, *, name: str, overrides: Sequence[str], tags: Mapping[str, str]) -> Entry:
        """Add a trial that this search plans."""
        entry = Entry(trial, "", PLANNED, list(overrides), len(self.entries), owner=self.search_id)
        entry.run_id = self._create(entry, name, tags, None)
        self.store.status(entry.run_id, STATUS[PLANNED])
        self.entries[trial] = entry
        return entry

    def infeasible(
        self,
        trial: str,
        *,
        name: str,
        overrides: Sequence[str],
        tags: Mapping[str, str],
        parameters: Mapping[str, Any],
        reason: str,
        known: Mapping[str, float],
    ) -> Entry:
        """A trial that is not trained, with the reason and what it would cost."""
        entry = Entry(
            trial, "", INFEASIBLE, list(overrides), len(self.entries), reason=reason, metrics=dict(known)
        )
        entry.run_id = self._create(entry, name, tags, parameters)
        self.store.log(entry.run_id, known)
        self.store.status(entry.run_id, STATUS[INFEASIBLE])
        self.entries[trial] = entry
        return entry

    def _create(
        self, entry: Entry, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any] | None
    ) -> str:
        own = {
            "dxc.kind": "trial",
            "dxc.study": self.store.study,
            "dxc.trial": entry.trial,
            "dxc.state": entry.state,
            "dxc.point": json.dumps(entry.overrides),
            "dxc.number": str(entry.number),
            "dxc.search": entry.owner,
            "dxc.reason": entry.reason,
        }
        return self.store.create(name, {**tags, **own}, params=parameters, parent=self.parent)

    def take_over(self, entry: Entry) -> None:
        """Take over a trial whose search has ended."""
        entry.owner = self.search_id
        entry.state = PLANNED
        self.store.tag(entry.run_id, {"dxc.search": self.search_id, "dxc.state": PLANNED})

    def collect(self, entry: Entry) -> bool:
        """Take over what the trial's process left on disk; upload it if it has not. False where it left nothing."""
        record = Record.read(self.folder / entry.trial)
        if record is None or record.content.get("run_id") != entry.run_id:
            return False
        content = record.content
        entry.attempts = content.get("attempts", 0)
        if content.get("state") not in (*OVER, STOPPED):
            entry.state = content.get("state", entry.state)  # a trial that had failed or stopped runs again
            return False
        if not content.get("uploaded"):
            # a process that is still there uploads it itself: two at once would lose files to each other
            with contextlib.suppress(Timeout), FileLock(self.folder / entry.trial / ".lock", timeout=1):
                record = Record.read(self.folder / entry.trial) or record
                if not record.content.get("uploaded"):
                    upload(self.store, record)
            if not record.content.get("uploaded"):
                return False
            content = record.content
        entry.state = content["state"]
        entry.reason = content.get("reason", "")
        entry.seconds = content.get("seconds", 0.0)
        entry.metrics = dict(content["metrics"])
        entry.origins = _origins(content["tags"])
        entry.rungs = rungs_from(content["tags"].get("dxc.rungs", "[]"))
        return True

    def lacked_memory(self, entry: Entry) -> bool:
        """Whether the trial's process gave up because its share of a GPU's memory was too small."""
        record = Record.read(self.folder / entry.trial)
        return (
            record is not None
            and record.content.get("run_id") == entry.run_id
            and record.content.get("lacked_memory") is True
        )

    def fail(self, entry: Entry, reason: str) -> None:
        """Record that a trial's process ended without a result."""
        entry.state, entry.reason = FAILED, reason
        self.store.tag(entry.run_id, {"dxc.state": FAILED, "dxc.reason": reason})
        self.store.status(entry.run_id, STATUS[FAILED])

    def count_attempt(self, entry: Entry, attempts: int) -> None:
        """Record that a trial's process died while this search was alive."""
        entry.attempts = attempts
        self.store.tag(entry.run_id, {"dxc.attempts": str(attempts)})

    def elsewhere(self, entry: Entry) -> bool:
        """Whether another process works on the trial, or another search that is alive has planned it."""
        if entry.state in (*OVER, STOPPED):
            return False
        if _held(self.folder / entry.trial / ".lock"):
            return True
        return entry.owner not in ("", self.search_id) and _held(self.folder / SEARCHES / entry.owner)

    def wait_for(self, entry: Entry, *, every_s: float = 1.0) -> None:
        """Wait until another process has finished a trial, or has ended."""
        while self.elsewhere(entry):
            time.sleep(every_s)
            self.entries[entry.trial] = entry = _entry(self.store.get(entry.run_id))
        self.collect(entry)


def upload(store: Store, record: Record) -> None:
    """Bring a trial's record and files to its run; then, and only then, it counts as over there."""
    content = record.content
    tags = {
        "dxc.state": content["state"],
        "dxc.reason": content.get("reason", "")[:5000],
        "dxc.seconds": f"{content.get('seconds', 0.0):.3f}",
        "dxc.attempts": str(content.get("attempts", 0)),
    }
    store.upload(content["run_id"], record, files=record.folder / ARTIFACTS, tags=tags)
    store.status(content["run_id"], STATUS[content["state"]])
    record.write(uploaded=True)
    shutil.rmtree(record.folder / ARTIFACTS, ignore_errors=True)  # MLflow has the files now


def _held(path: Path) -> bool:
    """Whether a live process holds a lock (filelock takes it by flock). Asking together does not look like holding."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _entry(run: StoredRun) -> Entry:
    """What the tags of a trial's run say. Raises KeyError, ValueError or TypeError where they are not a search's."""
    tags = run.tags
    if tags["dxc.state"] not in STATUS:
        raise ValueError(f"dxc.state is {tags['dxc.state']!r}")
    overrides = load_json(tags["dxc.point"])
    if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
        raise ValueError("dxc.point is no list of texts")
    return Entry(
        trial=tags["dxc.trial"],
        run_id=run.run_id,
        state=tags["dxc.state"],
        overrides=overrides,
        number=int(tags["dxc.number"]),
        owner=tags.get("dxc.search", ""),
        attempts=int(tags.get("dxc.attempts", 0)),
        reason=tags.get("dxc.reason", ""),
        seconds=float(tags.get("dxc.seconds", 0.0)),
        metrics=dict(run.metrics),
        origins=_origins(tags),
        rungs=rungs_from(tags.get("dxc.rungs", "[]")),
    )


def _origins(tags: Mapping[str, str]) -> dict[str, str]:
    return {tag: str(tags[tag]) for tag in ORIGIN_TAGS.values() if tag in tags}


def rungs_from(text: str) -> dict[Rung, list[float]]:
    """Raises KeyError, ValueError or TypeError for a text that rungs_to has not written."""
    return {
        Rung(int(each["folds"]), int(each["epochs"])): [float(value) for value in each["accuracies"]]
        for each in load_json(text)
    }


def rungs_to(rungs: Mapping[Rung, Sequence[float]]) -> str:
    return json.dumps(
        [{"folds": r.folds, "epochs": r.epochs, "accuracies": list(values)} for r, values in rungs.items()]
    )


def host() -> str:
    return f"{os.uname().nodename}:{os.getpid()}"
