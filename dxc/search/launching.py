"""Runs trials with Hydra's launchers: many at once, and some of them may die."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.object_type import ObjectType
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from dxc.data.cache import usable_cores
from dxc.errors import DxcError
from dxc.processes import end_with_parent
from dxc.search.study import LauncherError, Runner

log = logging.getLogger(__name__)

WATCH_EVERY_S = 0.5
GRACE_S = 5.0
FORGOTTEN = "FORGOTTEN"  # Slurm forgets a job some minutes after its end
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"}
ENDED |= {"OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT", FORGOTTEN}
"""Of squeue's states those that nothing follows; a job may also be configuring, suspended, held, completing ..."""
SLURM_PARALLEL = 8  # a tuner that learns needs results between its proposals; search.parallel=N for more


def runner_for(config: DictConfig, context: HydraContext, launcher: Launcher) -> Runner:
    """Make the Runner of a search from what Hydra gives a sweeper."""
    loader = context.config_loader

    def compose(overrides: Sequence[str]) -> DictConfig:
        cfg = loader.load_sweep_config(config, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def is_group(key: str) -> bool:
        return bool(loader.get_group_options(key.split("@")[0], ObjectType.CONFIG))

    jobs = 0

    def launch(overrides: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        nonlocal jobs
        first, jobs = jobs, jobs + len(overrides)
        batch = [list(each) for each in overrides]
        if isinstance(
            launcher, BasicLauncher
        ):  # in this process: signals must find the main thread in the trial
            _raise_failures(launcher.launch(batch, initial_job_idx=first))
        else:
            _end_with_search(launcher)
            _launch_watched(launcher, batch, first, watch)

    runner = Runner(compose, is_group, launch, _parallel(config), Path(config.hydra.sweep.dir))
    # Slurm knows which jobs have ended; one that it has put back into its queue goes on later
    return replace(runner, dead_after_s=math.inf, one_machine=False) if _is_submitit(launcher) else runner


def _launch_watched(
    launcher: Launcher, batch: Sequence[Sequence[str]], first: int, watch: Callable[[], bool]
) -> None:
    """Launch in threads, so that trials are reported as they end and Ctrl-C works at once.

    Where `watch` says that nothing is left, a launcher that still waits is abandoned.
    """
    is_submitit = _is_submitit(launcher)
    if is_submitit:
        leave_own_job()
        watch_queue()
    # submitit gives up a whole batch when the first of its jobs has ended without a result: a batch for each trial
    batches = [[each] for each in batch] if is_submitit else [batch]
    returns: list[JobReturn] = []
    errors: list[BaseException] = []

    def run(part: Sequence[Sequence[str]], number: int) -> None:
        try:
            returns.extend(launcher.launch(part, initial_job_idx=number))
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(part, first + number), name="launcher", daemon=True)
        for number, part in enumerate(batches)
    ]
    for thread in threads:
        thread.start()
    try:
        while _alive(threads, WATCH_EVERY_S):
            if watch() and _alive(threads, GRACE_S):
                return
    except BaseException:
        _kill_workers()
        raise
    _raise_failures(returns)
    if errors:
        raise LauncherError(f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]


def _is_submitit(launcher: Launcher) -> bool:
    return type(launcher).__module__.startswith("hydra_plugins.hydra_submitit_launcher")


def _alive(threads: Sequence[threading.Thread], seconds: float) -> bool:
    """Whether one of the threads is still running after so long."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return any(thread.is_alive() for thread in threads)


def leave_own_job() -> None:
    """A search may be a job of Slurm itself: srun would take what it was given for what its trials asked."""
    if "SLURM_JOB_ID" in os.environ:
        for name in [key for key in os.environ if key.startswith("SLURM_") and key != "SLURM_CONF"]:
            del os.environ[name]


@functools.cache
def watch_queue() -> None:
    """Make submitit ask squeue for the state of its jobs instead of sacct.

    On a cluster without accounting sacct has no answer, and submitit would wait for ever for a job that was killed or
    cancelled.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class QueueWatcher(SlurmInfoWatcher):
        def __init__(self) -> None:
            super().__init__(delay_s=60)
            self._lock = threading.Lock()

        def update(self) -> None:
            with self._lock:  # a job that was submitted after squeue's answer is not missing from it
                super().update()

        def _make_command(self) -> list[str] | None:
            self._asked = self._registered - self._finished
            command = ["squeue", "--me", "--states=all", "--noheader", "--format=%i|%T"]
            return command if self._asked else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            states = dict(line.strip().partition("|")[::2] for line in text.splitlines())
            return {job: {"JobID": job, "State": states.get(job, FORGOTTEN)} for job in self._asked}

        def is_done(self, job_id: str, mode: str = "standard") -> bool:
            return self.get_state(job_id, mode=mode) in ENDED

    SlurmJob.watcher = QueueWatcher()


def _raise_failures(returns: Sequence[JobReturn]) -> None:
    """Trials do not raise for what is wrong with them: an exception is the search's to hear, DxcErrors first."""
    failed = [each._return_value for each in returns if each.status == JobStatus.FAILED]
    for error in sorted(failed, key=lambda error: not isinstance(error, DxcError)):
        raise error


def _kill_workers() -> None:
    """joblib's workers outlive an interrupted search otherwise; jobs of a cluster go on and record what they find."""
    if "joblib" in sys.modules:
        from joblib.externals.loky import get_reusable_executor

        # reuse: joblib's own, whatever it was made with; another would be made once the workers of that one had ended
        get_reusable_executor(reuse=True).shutdown(wait=False, kill_workers=True)


def _end_with_search(launcher: Launcher) -> None:
    """joblib's workers end when the search is killed; jobs of a cluster go on and record what they find."""
    if type(launcher).__module__.startswith("hydra_plugins.hydra_joblib_launcher"):
        options: Any = launcher
        options.joblib |= {"initializer": end_with_parent, "initargs": (os.getpid(),)}  # of joblib.Parallel


def _parallel(config: DictConfig) -> int:
    """The number of trials that the chosen launcher runs at once."""
    launcher = config.hydra.launcher
    if "n_jobs" in launcher:  # joblib
        n_jobs = launcher.n_jobs
        return n_jobs if n_jobs > 0 else max(1, usable_cores() + 1 + n_jobs)
    if "array_parallelism" in launcher:  # submitit
        return min(int(launcher.array_parallelism), SLURM_PARALLEL)
    return 1
