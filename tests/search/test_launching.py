"""What a launcher's processes meet: other processes on the same GPUs, a queue, the end of a job's time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
import torch

from dxc.config import resolved, trial_hash
from dxc.errors import Stopped
from dxc.search import launching, trial
from tests.search.searches import composed


@pytest.mark.parametrize(
    ("gpus", "device", "override", "expected"),
    [
        (2, 3, "trainer.accelerator=auto", [1]),
        (1, 3, "trainer.accelerator=gpu", [0]),  # a cluster's job sees its own only
        (2, None, "trainer.accelerator=gpu", 1),
        (2, 3, "trainer.devices=2", 2),
        (2, 3, "trainer.accelerator=cpu", 1),
        (0, 3, "trainer.accelerator=auto", 1),
    ],
)
def test_a_trials_gpu(
    gpus: int, device: int | None, override: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    cfg = composed(["model.kernel=3", "hardware=a100", override])
    asked = trial_hash(resolved(cfg))
    trial._on_device(cfg, device)
    assert cfg.trainer.devices == expected
    assert trial_hash(resolved(cfg)) == asked


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
    launching._watch_queue.__wrapped__()
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
    launching._leave_own_job()
    assert [name for name in os.environ if name.startswith("SLURM_")] == ["SLURM_CONF"]
