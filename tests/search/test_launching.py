"""What a launcher's processes meet: other processes on the same GPUs, a queue, the end of a job's time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from dxc.data.cache import usable_cores
from dxc.errors import ConfigError, Stopped
from dxc.search import launching, trial
from dxc.search.ledger import rungs_to
from dxc.search.states import FAILED, FINISHED, PLANNED, RUNNING, STOPPED, Rung
from dxc.tracking.record import Record


@pytest.mark.parametrize(
    ("launcher", "parallel"),
    [
        ({"n_jobs": 3}, 3),
        ({"n_jobs": -1}, usable_cores()),  # joblib: all
        ({"n_jobs": -2}, max(1, usable_cores() - 1)),  # all but one
        ({"n_jobs": -99}, 1),
        ({"array_parallelism": 3}, 3),
        ({"array_parallelism": 256}, 8),
        ({}, 1),
    ],
)
def test_how_many_trials_a_launcher_runs_at_once(launcher: dict[str, int], parallel: int) -> None:
    assert launching._parallel(OmegaConf.create({"hydra": {"launcher": launcher}})) == parallel


def _returned(status: JobStatus, value: object) -> JobReturn:
    return JobReturn(status=status, _return_value=value)


def test_a_users_mistake_is_heard_before_a_bug() -> None:
    fine = _returned(JobStatus.COMPLETED, "finished")
    launching._raise_failures([fine, fine])
    bug, mistake = (_returned(JobStatus.FAILED, each) for each in (ValueError("bug"), ConfigError("mistake")))
    with pytest.raises(ConfigError, match="mistake"):
        launching._raise_failures([fine, bug, mistake])
    with pytest.raises(ValueError, match="bug"):
        launching._raise_failures([fine, bug])


class _Slow(Launcher):
    """Takes its seconds for a batch, or raises what it holds."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.batches: list[tuple[int, list]] = []

    def setup(self, **_: object) -> None:  # type: ignore[override]
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.batches.append((initial_job_idx, [list(each) for each in job_overrides]))
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return [_returned(JobStatus.COMPLETED, "finished") for _ in job_overrides]


def test_a_batch_is_watched_until_it_ends_or_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "WATCH_EVERY_S", 0.01)
    monkeypatch.setattr(launching, "GRACE_S", 0.05)
    seen: list[bool] = []
    slow = _Slow(0.2)
    launching._launch_watched(slow, [["a=1"], ["a=2"]], 4, lambda: bool(seen.append(True)))
    assert slow.batches == [(4, [["a=1"], ["a=2"]])]
    assert len(seen) > 1
    begun = time.monotonic()
    launching._launch_watched(_Slow(20.0), [["a=1"]], 0, lambda: True)  # is left behind
    assert time.monotonic() - begun < 10
    with pytest.raises(launching.LauncherError, match="OSError: no such partition"):
        launching._launch_watched(_Slow(error=OSError("no such partition")), [["a=1"]], 0, lambda: False)


PART, WHOLE = {"folds": 1, "epochs": 2}, {"folds": None, "epochs": None}


@pytest.mark.parametrize(
    ("content", "job", "done"),
    [
        ({}, {**WHOLE, "attempt": 1}, False),
        ({"state": RUNNING}, {**WHOLE, "attempt": 1}, False),
        ({"state": FINISHED}, {**WHOLE, "attempt": 1}, True),
        ({"state": FINISHED}, {**PART, "attempt": 1}, True),
        ({"state": FAILED, "attempts": 2}, {**WHOLE, "attempt": 2}, True),
        ({"state": FAILED, "attempts": 2}, {**WHOLE, "attempt": 3}, False),  # once more
        ({"state": STOPPED}, {**WHOLE, "attempt": 1}, False),  # a part is not the whole
        ({"state": STOPPED, "early": True}, {**WHOLE, "attempt": 1}, True),
        ({"state": STOPPED}, {**PART, "attempt": 1}, True),
        ({"state": STOPPED}, {"folds": 1, "epochs": 5, "attempt": 1}, False),
        ({"state": PLANNED}, {**PART, "attempt": 1}, False),
    ],
)
def test_what_another_process_has_done_already(content: dict, job: dict, done: bool, tmp_path: Path) -> None:
    """It trained one fold of two epochs."""
    tags = {"dxc.rungs": rungs_to({Rung(1, 2): [0.7]})}
    assert trial._done(Record(tmp_path, run_id="r", tags=tags, **content), job) is done


def test_an_error_in_one_line() -> None:
    assert trial._reason(ValueError("\nit is wrong\nsee below")) == "ValueError: it is wrong"
    assert trial._reason(ValueError()) == "ValueError"


@pytest.fixture
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.usefixtures("_signals")
def test_the_end_of_a_jobs_time_is_no_failure() -> None:
    def tell(*_: object) -> None:
        raise RuntimeError("timed-out too many times")

    signal.signal(signal.SIGUSR2, tell)
    with pytest.raises(Stopped), trial._time_limit_stops():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR2) is tell


@pytest.mark.parametrize(
    ("listed", "over"),
    [
        ("7|PENDING", False),
        ("7|CONFIGURING", False),  # its node is being started
        ("7|SUSPENDED", False),
        ("7|REQUEUE_HOLD", False),
        ("7|NODE_FAIL", True),
        ("7|PREEMPTED", True),
        ("70|RUNNING", True),  # no word of it any more
    ],
)
def test_when_a_job_is_over(listed: str, over: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.slurm.slurm import SlurmJob

    monkeypatch.setattr(SlurmJob, "watcher", None)
    launching.watch_queue.__wrapped__()
    SlurmJob.watcher.register_job("7")
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: f"{listed}\n".encode())
    assert SlurmJob.watcher.is_done("7") is over


def test_a_search_that_is_a_job_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("SLURM_JOB_ID", "1"),
        ("SLURM_MEM_PER_CPU", "500"),
        ("SLURM_CONF", "/etc/slurm.conf"),
    ):
        monkeypatch.setenv(name, value)
    launching.leave_own_job()
    assert [name for name in os.environ if name.startswith("SLURM_")] == ["SLURM_CONF"]
