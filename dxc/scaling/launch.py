"""Starts the ranks of one run and waits for them: processes of this machine, or one job of Slurm."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dxc.config.checked import Flag, Natural, Part, Text, checked
from dxc.config.compose import PROJECT_ROOT
from dxc.errors import DxcError, ScalingError
from dxc.processes import ending_with_parent, kill_group
from dxc.scaling.worker import REQUEST, RESULT, Request, run_rank
from dxc.untrusted import load_json

WORKER = "dxc.scaling.worker"
EVERY_S = 0.1
ASK_EVERY_S = 2.0
NEVER = ("PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig", "BadConstraints", "ReqNodeNotAvail")
"""Reasons for which a job of Slurm waits in vain, where the cluster does not refuse it at once."""
GRACE_S = 3.0
"""After one rank has ended badly, the others have so long to say why they end too."""
START_S = 120.0
"""Beyond the time that a run is planned to take, for its start and the last step."""


class Absent(ScalingError):
    """This machine, or this cluster, does not have what a configuration needs."""


class _Report(Part):
    """error.RANK.json of a rank that failed."""

    rank: Natural
    host: Text
    message: Text
    clear: Flag
    """Whether dxc knows what is wrong."""
    follows: Flag
    """Whether the rank only lost its connection to others."""


Launch = Callable[[Path], None]
"""Runs the request in a folder to its result.json. Raises ScalingError; Absent where it cannot be run here."""


def launch_here(
    folder: Path, *, environment: Mapping[str, str] | None = None, prefixes: Sequence[Sequence[str]] = ()
) -> None:
    """Run all ranks as processes of this machine.

    Args:
        folder: with request.json.
        environment: more variables for all ranks.
        prefixes: for each rank the begin of its command line, such as `ip netns exec NAME`; none: no begin.

    Raises:
        ScalingError: a rank ended badly. The others are ended then; the message is that of the one that failed first.
    """
    request = checked(Request, load_json(folder / REQUEST))
    _forget(folder)
    with contextlib.ExitStack() as stack:
        processes, port = [], _free_port()
        for number in range(request.total):
            own = rank_environment(request, number, port=port)
            log = stack.enter_context((folder / f"rank{number}.log").open("wb"))
            command = ending_with_parent(
                [*(prefixes[number] if prefixes else ()), sys.executable, "-m", WORKER, str(folder)]
            )
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=PROJECT_ROOT,
                    env={**os.environ, **own, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # its loader processes are ended with it
                )
            )
        try:
            codes = _wait(processes, _longest_s(request))
        finally:
            _end(processes)
    if any(codes):
        raise ScalingError(_what_happened(folder, codes))


def rank_environment(
    request: Request, number: int, *, port: int, address: str = "127.0.0.1"
) -> dict[str, str]:
    """The variables of one rank on one machine; those of torchrun, and the number of threads."""
    variables = {
        "RANK": number,
        "WORLD_SIZE": request.total,
        "LOCAL_RANK": number % request.devices,
        "LOCAL_WORLD_SIZE": request.devices,
        "GROUP_RANK": number // request.devices,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": request.threads,
    }
    return {name: str(value) for name, value in variables.items()}


def by_hand(request: Request, folder: Path) -> str:
    """The command that runs a request on several nodes without Slurm; the same on each, NODE_0 is the first one's."""
    return (
        f"OMP_NUM_THREADS={request.threads} torchrun --nnodes={request.nodes} --nproc-per-node={request.devices} "
        f"--rdzv-backend=c10d --rdzv-endpoint=NODE_0:29500 -m {WORKER} {folder}"
    )


def launch_on_slurm(folder: Path, options: Mapping[str, Any]) -> None:
    """Run all ranks as one job of Slurm: one task a device.

    Args:
        folder: with request.json, which all nodes see.
        options: hydra.launcher of hydra/launcher=submitit_slurm.

    Raises:
        Absent: Slurm has no such nodes.
        ScalingError: a rank ended badly.
    """
    import submitit

    from dxc.search.launching import leave_own_job, watch_queue

    request = checked(Request, load_json(folder / REQUEST))
    _forget(folder)
    leave_own_job()
    watch_queue()
    executor = submitit.AutoExecutor(folder=folder / "slurm", cluster="slurm", slurm_max_num_timeout=0)
    own: dict[str, Any] = {"nodes": request.nodes, "tasks_per_node": request.devices}
    if request.accelerator == "cuda":
        own["gpus_per_node"] = request.devices
    cores = request.threads + request.about.get("workers", 0)
    executor.update_parameters(**{"cpus_per_task": cores, **_slurm_options(options), **own})
    try:
        job = executor.submit(slurm_task, str(folder))
    except submitit.core.utils.FailedJobError as error:
        raise Absent(f"Slurm does not take the job: {_last_line(str(error))}") from error
    try:
        while not job.done():
            if (reason := _reason(job.job_id)) in NEVER:
                raise Absent(f"Slurm does not take the job: {reason}")
            time.sleep(ASK_EVERY_S)
        if not (folder / RESULT).exists():
            with contextlib.suppress(Exception):  # the traceback of a task is in its report or its log
                job.results()
            raise ScalingError(_what_happened(folder, [], f"Slurm job {job.job_id} ended as {job.state}"))
    except BaseException:
        job.cancel(check=False)
        raise


def _reason(job: str) -> str:
    """Why a job waits, as squeue says it; '' where it does not wait or squeue does not answer."""
    command = ["squeue", "--noheader", "--states=PENDING", "--format=%r", "--job", job]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=30)
            .stdout.strip()
            .partition(",")[0]
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def slurm_task(folder: str) -> None:
    """One task of a job: tells the rank from Slurm's variables and does its part."""
    import submitit

    where = submitit.helpers.TorchDistributedEnvironment().export(
        set_cuda_visible_devices=False, overwrite=True
    )
    os.environ["GROUP_RANK"] = str(where.rank // where.local_world_size)
    request = checked(Request, load_json(Path(folder) / REQUEST))
    os.environ["OMP_NUM_THREADS"] = str(request.threads)
    run_rank(Path(folder))


def _slurm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Hydra's names of the options -> those of submitit."""
    base = {"timeout_min", "cpus_per_task", "mem_gb", "name", "stderr_to_stdout"}
    given = {
        key: value
        for key, value in options.items()
        if value is not None
        and key
        not in ("_target_", "submitit_folder", "max_num_timeout", "nodes", "tasks_per_node", "gpus_per_node")
        and key != "array_parallelism"
    }
    return {key if key in base else f"slurm_{key}": value for key, value in given.items()}


def _forget(folder: Path) -> None:
    """What an earlier try of this run left."""
    for path in [folder / RESULT, *folder.glob("error.*.json")]:
        path.unlink(missing_ok=True)


def _longest_s(request: Request) -> float:
    """When a run is taken for hung: validation and the first step have no fixed time."""
    return 10 * (request.seconds + request.measured_s) + request.timeout_s + 5 * START_S


def _wait(processes: Sequence[subprocess.Popen[bytes]], longest_s: float) -> list[int | None]:
    """Until all have ended, or some time after one has ended badly. Exit codes; None of one that still runs."""
    began, deadline = time.monotonic(), None
    while True:
        codes = [each.poll() for each in processes]
        if None not in codes:
            return codes
        if deadline is None and any(codes):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return codes
        if time.monotonic() - began > longest_s:
            raise ScalingError(
                f"the run was ended: it hung for {longest_s:.0f} s; see rank0.log in its folder"
            )
        time.sleep(EVERY_S)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs, with the processes that it started."""
    for each in processes:
        if each.poll() is None:
            kill_group(each)
    for each in processes:
        each.wait()


def _what_happened(folder: Path, codes: Sequence[int | None], otherwise: str = "") -> str:
    """One message for ranks of which several may have failed: of the one that did not fail because of another."""
    reports = []
    for path in sorted(folder.glob("error.*.json")):
        with contextlib.suppress(DxcError, OSError, ValueError):
            reports.append(checked(_Report, load_json(path)))
    killed = [(number, code) for number, code in enumerate(codes) if code is not None and code < 0]
    where = f"its output is in {folder}"
    causes = [each for each in reports if not each.follows]
    if killed and not causes:
        number, code = killed[0]
        name = signal.Signals(-code).name
        memory = "; the system may have been out of memory" if -code == signal.SIGKILL else ""
        return f"rank {number} was ended by {name}{memory}; {where}"
    if first := (causes or reports)[:1]:
        return f"rank {first[0].rank} on {first[0].host}: {first[0].message}" + (
            "" if first[0].clear else f"; {where}"
        )
    failed = [number for number, code in enumerate(codes) if code]
    if failed:
        log = folder / f"rank{failed[0]}.log"
        last = _last_line(log.read_text(errors="replace")) if log.exists() else ""
        return f"rank {failed[0]} ended with status {codes[failed[0]]}: {last}; {where}"
    return f"{otherwise or 'the ranks ended without a result'}; {where}"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
