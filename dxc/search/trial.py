"""One trial, in a process that a launcher starts: what search.py's main does with a composed configuration.

The process holds the trial's lock. Results are written to multirun/STUDY/TRIAL/record.json first and uploaded last. So
an unavailable server, or a kill at any moment, loses no more than the fold in training.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig

from dxc.config.compose import resolved
from dxc.config.identity import trial_hash
from dxc.config.plan import Plan
from dxc.errors import Stopped, TrackingError, first_line
from dxc.masking import masked
from dxc.search.ledger import ARTIFACTS, host, rungs_from, rungs_to, upload
from dxc.search.slots import Slot, free_slot, gpus_here, lacked_memory
from dxc.search.states import FAILED, FINISHED, PLANNED, RUNNING, STOPPED, Rung
from dxc.tracking.patience import disk_full
from dxc.tracking.record import Record
from dxc.tracking.store import Store

log = logging.getLogger(__name__)


class StoppedEarlyError(Exception):
    """Raised by median stopping: the trial is worse than half of the previous ones."""


def run_trial(cfg: DictConfig, folder: Path) -> str:
    """Train what `cfg` describes and record it in `folder`; returns the trial's state.

    cfg.search.job: trial, run_id, attempt, folds and epochs (the rung to climb; null for the full protocol), number (of
    the trial among those that were launched with it), at_once (how many trials this machine runs at once; null where
    each has a machine of its own), stop_below (for each number of folds, the score under which it is not worth going
    on).
    A trial that fails is recorded and does not raise. Raises TrackingError where the store or the disk cannot be used:
    that is no fault of the trial's.
    """
    config = resolved(cfg)
    job = config["search"]["job"]
    if trial_hash(config) != job["trial"]:  # the search derived it without composing: both must agree
        raise RuntimeError(
            f"trial {job['trial']} was composed to {trial_hash(config)}: a bug in dxc.search.space"
        )
    try:
        with _time_limit_stops(), FileLock(folder / ".lock"):
            return _run_locked(config, folder)
    except OSError as error:
        raise disk_full(error) or error from None


@contextlib.contextmanager
def _time_limit_stops() -> Iterator[None]:
    """Treat a cluster job that nears its time limit as stopped: its trial has not failed.

    submitit hears of the limit by SIGUSR2. It has the job queued again, or raises what would look like an error here.
    """
    told = signal.getsignal(signal.SIGUSR2)
    if not callable(told) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        try:
            told(signum, frame)
        except Exception as error:
            raise Stopped(signum) from error

    signal.signal(signal.SIGUSR2, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, told)


def _run_locked(config: Mapping[str, Any], folder: Path) -> str:
    job = config["search"]["job"]
    record = Record.read(folder)
    if record is None or record.content.get("run_id") != job["run_id"]:
        record = Record(folder, run_id=job["run_id"], trial=job["trial"])
    store = Store(
        config["tracking"]["uri"],
        config["study"],
        patience_s=config["search"]["store_patience_s"],
        artifacts=config["tracking"]["artifacts"],
    )
    if not _done(record, job):
        _train(config, record, store, job)
    if not record.content.get("uploaded"):
        upload(store, record)
    return record.content["state"]


def _done(record: Record, job: Mapping[str, Any]) -> bool:
    """Whether another process has done this already (a job of a previous search that was still queued)."""
    state = record.content.get("state")
    if state == FINISHED or (state == FAILED and record.content["attempts"] >= job["attempt"]):
        return True
    if state == STOPPED and _rung(job) is None:
        return record.content.get("early", False)  # a part of the protocol is not the whole
    return state == STOPPED and _rung(job) in rungs_from(record.content["tags"]["dxc.rungs"])


def _rung(job: Mapping[str, Any]) -> Rung | None:
    return Rung(job["folds"], job["epochs"]) if job.get("folds") else None


@contextlib.contextmanager
def _slot(
    plan: Plan, chosen: Sequence[int] | None, job: Mapping[str, Any], study: Path
) -> Iterator[Slot | None]:
    """Where the trial trains; None: on no GPU in particular."""
    gpus = gpus_here(plan, chosen)
    if not gpus:
        yield None
    elif job["at_once"] is None:
        yield Slot(gpus[job["number"] % len(gpus)], neighbours=0)
    else:
        with free_slot(study, gpus, job["at_once"]) as slot:
            yield slot


def _train(config: Mapping[str, Any], record: Record, store: Store, job: Mapping[str, Any]) -> None:
    started = time.monotonic()
    before_s = record.content.get("seconds", 0.0)
    store.tag(job["run_id"], {"dxc.state": RUNNING, "dxc.host": host()})
    store.status(job["run_id"], "RUNNING")
    record.write(state=RUNNING, uploaded=True, begun=record.content.get("begun", 0) + 1, lacked_memory=False)
    if "first_begun" not in record.content:
        record.write(first_begun=time.time())
    (record.folder / "traceback.txt").unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:  # the slot is left once the error and what it holds are gone
        end = _end(config, record, store, job, stack)
    if end is not None:
        record.write(
            **end, attempts=job["attempt"], seconds=before_s + time.monotonic() - started, uploaded=False
        )


def _end(
    config: Mapping[str, Any],
    record: Record,
    store: Store,
    job: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> dict[str, Any] | None:
    """Train in a slot that `stack` holds. Returns how it ended; None where the slot has too little memory, and the
    trial is planned again."""
    slot: Slot | None = None
    try:
        plan = Plan.of(config)
        slot = stack.enter_context(_slot(plan, config["search"]["gpus"], job, record.folder.parent))
        return _compute(plan, record, job, None if slot is None else slot.gpu)
    except (Stopped, KeyboardInterrupt):
        with contextlib.suppress(TrackingError, OSError):
            store.tag(job["run_id"], {"dxc.state": PLANNED})
            record.write(state=PLANNED)
        raise
    except TrackingError:
        raise
    except Exception as error:
        if full := disk_full(error):
            raise full from error
        if slot is not None and slot.is_shared and lacked_memory(error):
            log.warning("its share of GPU %d's memory is too small: %s", slot.gpu, _reason(error))
            store.tag(job["run_id"], {"dxc.state": PLANNED})
            record.write(state=PLANNED, lacked_memory=True)
            return None
        log.error("the trial failed\n%s", masked(traceback.format_exc()))
        text = masked(traceback.format_exc())
        (record.folder / "traceback.txt").write_text(text)
        (record.folder / ARTIFACTS).mkdir(exist_ok=True)
        (record.folder / ARTIFACTS / "traceback.txt").write_text(text)
        return {"state": FAILED, "reason": _reason(error)}


def _compute(plan: Plan, record: Record, job: Mapping[str, Any], gpu: int | None) -> dict[str, Any]:
    """Train the rung, or the full protocol. Returns the state to write and, for a stopped trial, the reason."""
    from dxc.pipeline.run import run
    from dxc.pipeline.rung import train_part

    rungs = rungs_from(record.content["tags"].get("dxc.rungs", "[]"))
    rung = _rung(job)
    begun = record.content["first_begun"]
    if rung is not None:
        rungs[rung] = train_part(plan, record, folds=rung.folds, epochs=rung.epochs, begun=begun, gpu=gpu)
        record.tag({"dxc.rungs": rungs_to(rungs)})
        return {"state": STOPPED, "reason": f"trained in part: {rung.folds} fold(s), {rung.epochs} epoch(s)"}

    epochs = plan.trainer.max_epochs
    seen: list[float] = []

    def after_fold(scores: list[float]) -> None:
        seen[:] = scores
        limits = job.get("stop_below") or []
        if len(scores) <= len(limits) and sum(scores) / len(scores) < limits[len(scores) - 1]:
            raise StoppedEarlyError

    shutil.rmtree(record.folder / ARTIFACTS, ignore_errors=True)  # of an attempt that failed or was killed
    (record.folder / ARTIFACTS).mkdir(parents=True)
    try:
        result = run(
            plan, record.folder / ARTIFACTS, record=record, begun=begun, after_fold=after_fold, gpu=gpu
        )
    except StoppedEarlyError:
        rungs[Rung(len(seen), epochs)] = seen
        mean = sum(seen) / len(seen)
        record.log({"fold_score": mean})
        record.tag({"dxc.rungs": rungs_to(rungs)})
        return {
            "state": STOPPED,
            "early": True,
            "reason": f"{plan.score} {mean:.4f} after {len(seen)} fold(s) is below the median of "
            f"the trials before, {job['stop_below'][len(seen) - 1]:.4f}",
        }
    rungs[Rung(len(result.fold_scores), epochs)] = list(result.fold_scores.values())
    record.tag({"dxc.rungs": rungs_to(rungs), "dxc.notes": " | ".join(result.notes)})
    return {"state": FINISHED, "reason": ""}


def _reason(error: Exception) -> str:
    """The error in one line."""
    return masked(first_line(error, named=True))
