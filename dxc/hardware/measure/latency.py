"""Measured latency and memory of an exported file: each time in a fresh process, here or on a device over SSH."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dxc.errors import ConfigError, HardwareError, require_whole
from dxc.files import write_atomically
from dxc.hardware.onnx_file import data_files
from dxc.processes import ending_with_parent

WORKER = Path(__file__).with_name("worker.py")
MARK = "dxc-worker:"

MAX_SPREAD = 0.10
"""A median whose runs spread further is not good to the 10 % that predictions are judged by."""

COOL_DOWN_SECONDS = 2.0
TIMEOUT_SECONDS = 300
GRACE_SECONDS = 30
"""The worker ends itself at TIMEOUT_SECONDS; where even that does not work, so much later it is left alone."""

Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Runs the worker once: its request in, its answer out."""


@dataclass(frozen=True)
class StopRule:
    """When a measurement ends: at max_runs, or once max_seconds are over and min_runs are done.

    Before it come at least warmup_runs and warmup_seconds that do not count, but no more than max_seconds of them.
    Together 2 to 3 s for a network of 5 ms, and about 10 s for one of 500 ms.
    """

    warmup_runs: int = 5
    warmup_seconds: float = 0.3
    min_runs: int = 15
    max_runs: int = 1000
    max_seconds: float = 1.5


@dataclass(frozen=True)
class Measurement:
    """Latency of one execution of a batch, and memory of the process that ran it.

    raw_ms: every timed run in order. spread: see spread_of. peak_memory_mb: 1e6 bytes of resident memory above the
    process before it had a session (baseline_memory_mb). environment: device, provider, threads, cores in use
    (affinity), versions, date, load average before it began, where memory was read (memory_from), and the median
    and spread of every attempt (attempts).
    """

    raw_ms: tuple[float, ...]
    median_ms: float
    p95_ms: float
    spread: float
    valid: bool
    reason: str
    peak_memory_mb: float
    baseline_memory_mb: float
    batch: int
    environment: dict[str, Any]

    def metrics(self) -> dict[str, float]:
        """Metrics of dxc.metrics. An invalid record has no latency; memory does not suffer from noise. A batch
        of several images (a file that is fixed to it) has neither: both are of one image."""
        if self.batch != 1:
            return {}
        memory = {"peak_memory_mb": self.peak_memory_mb}
        if not self.valid:
            return memory
        return {"measured_latency_ms": self.median_ms, "measured_latency_p95_ms": self.p95_ms, **memory}

    def save(self, path: Path) -> None:
        """Everything, raw values included, as JSON; the file appears when it is complete."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")


def spread_of(raw_ms: Sequence[float]) -> float:
    """How far a record's median can be trusted: the larger of two shares of it.

    The interquartile range (noise, or two speeds that take turns), and the largest difference between the
    medians of its first, second and last third (a machine that gets slower or faster meanwhile). Single slow
    runs, up to a quarter of all, move neither; nor do they move the median. They are in the 95th percentile.
    """
    raw = np.asarray(raw_ms, dtype=float)
    thirds = [np.median(part) for part in np.array_split(raw, 3) if len(part)]
    q25, median, q75 = np.percentile(raw, [25, 50, 75])
    return float(max(q75 - q25, max(thirds) - min(thirds)) / median)


def measure(
    onnx: Path,
    *,
    provider: str = "cpu",
    threads: int = 1,
    batch: int = 1,
    affinity: Sequence[int] | None = None,
    host: str | None = None,
    python: str | None = None,
    stop: StopRule | None = None,
    max_spread: float = MAX_SPREAD,
    attempts: int = 3,
    ssh_options: Sequence[str] = (),
    remote_python: str = "python3",
) -> Measurement:
    """Time ONNX Runtime on one file with random input, only session.run inside the clock; see worker.py.

    A record that spreads further than `max_spread` is taken again after a pause, up to `attempts` times; none
    being good, the one with the least spread is returned with valid=False. Records are never averaged: a
    machine that is busy half of the time would give a number that it shows at no time.

    host: user@address of a device with python3, numpy and onnxruntime, reached by ssh with a key; the file, those with
    weights beside it, and the worker are copied into a temporary folder there. python: the interpreter here, if not
    this one; remote_python is the one there. Raises HardwareError where it cannot be done and ConfigError for an
    argument that cannot work, both saying what to do.
    """
    require_whole("hardware.threads", threads, at_least=1)
    require_whole("batch", batch, at_least=1)
    cores = _cores(affinity)
    beside = data_files(onnx)
    request = {
        "model": str(onnx),
        "provider": provider,
        "threads": threads,
        "batch": batch,
        "affinity": cores,
        "timeout_seconds": TIMEOUT_SECONDS,
        **asdict(stop or StopRule()),
    }
    where = _here(python or sys.executable)
    if host is not None:
        where = _there([*beside, onnx], host, ["ssh", *SSH_OPTIONS, *ssh_options], remote_python)
    tried: list[tuple[float, dict[str, Any]]] = []
    with where as ask:
        for attempt in range(attempts):
            if attempt:
                time.sleep(COOL_DOWN_SECONDS)
            answer = ask(request)
            if "error" in answer:
                raise _refusal(answer, onnx, host)
            tried.append((spread_of(answer["raw_ms"]), answer))
            if tried[-1][0] <= max_spread:
                break
    spread, best = min(tried, key=lambda each: each[0])
    attempted = [{"median_ms": float(np.median(a["raw_ms"])), "spread": s} for s, a in tried]
    return record(best, spread, max_spread, batch, attempted)


def _cores(affinity: Sequence[int] | None) -> list[int] | None:
    if affinity is None:
        return None
    if isinstance(affinity, str) or not isinstance(affinity, Sequence):
        raise ConfigError(f"hardware.affinity must be a list of cores such as [0,1], not {affinity!r}")
    for core in affinity:
        require_whole("hardware.affinity: a core", core, at_least=0)
    return list(affinity) or None


def record(
    answer: dict[str, Any], spread: float, max_spread: float, batch: int, attempts: list[dict[str, float]]
) -> Measurement:
    """A worker's answer as a Measurement, judged by its spread."""
    valid = spread <= max_spread
    return Measurement(
        raw_ms=tuple(answer["raw_ms"]),
        median_ms=float(np.median(answer["raw_ms"])),
        p95_ms=float(np.percentile(answer["raw_ms"], 95)),
        spread=spread,
        valid=valid,
        reason=""
        if valid
        else f"its runs spread by {spread:.0%} of their median, {max_spread:.0%} are allowed "
        f"({len(attempts)} attempts); is the machine busy?",
        peak_memory_mb=answer["peak_memory_mb"],
        baseline_memory_mb=answer["baseline_memory_mb"],
        batch=batch,
        environment={**answer["environment"], "attempts": attempts},
    )


# What a user's shell says of threads and logging is meant for training: the request decides here.
DROPPED = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ORT_")


@contextlib.contextmanager
def _here(python: str) -> Iterator[Ask]:
    """The worker on this machine, each time a fresh process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED)}
    environment["PYTHONSAFEPATH"] = "1"  # files beside the worker are not modules of its own

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        try:
            done = subprocess.run(
                ending_with_parent([python, str(WORKER)]),
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=TIMEOUT_SECONDS + GRACE_SECONDS,
                env=environment,
            )
        except OSError as error:
            raise HardwareError(f"{python} cannot be started: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise _too_long(request["model"]) from error
        return _answer(done, f"measuring {request['model']}")

    yield ask


def _answer(done: subprocess.CompletedProcess[bytes], doing: str) -> dict[str, Any]:
    """What the worker answered; HardwareError where it ended without an answer."""
    for line in reversed(done.stdout.decode(errors="replace").splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    # Negative for a child of ours, 128 and more as a shell on a device reports it.
    killed_by = -done.returncode if done.returncode < 0 else done.returncode - 128
    if killed_by == signal.SIGALRM:
        raise _too_long(doing)
    why = ""
    if killed_by == signal.SIGKILL:
        why = " (killed; out of memory? A smaller batch or network needs less)"
    raise HardwareError(f"{doing}: the process ended with status {done.returncode}{why}: {_said(done, 3)}")


def _said(done: subprocess.CompletedProcess[bytes], lines: int) -> str:
    """The end of what a command wrote to stderr."""
    return " / ".join(done.stderr.decode(errors="replace").strip().splitlines()[-lines:]) or "no message"


def _too_long(doing: str) -> HardwareError:
    return HardwareError(
        f"{doing}: no answer within {TIMEOUT_SECONDS} s, given up; is the machine busy, or the network too large?"
    )


def _refusal(answer: dict[str, str], onnx: Path, host: str | None) -> HardwareError | ConfigError:
    """The worker's refusal with what to do about it."""
    where = f"on {host}" if host else "here"
    install = f"{where}: python3 -m pip install"
    # Debian and Raspberry Pi OS keep pip out of their own Python (PEP 668).
    managed = " (--break-system-packages, if pip calls it externally managed)" if host else ""
    advice = {
        "affinity": "hardware.affinity names cores of the machine, such as [0,1]",
        "import": f"install it {install} numpy onnxruntime{managed}",
        "torch": f"a GPU is timed with torch's events; install it {install} torch",
        "provider": f"a GPU needs its build {install} onnxruntime-gpu (in place of onnxruntime)",
        "cuda": "does nvidia-smi show the GPU, and do torch and onnxruntime-gpu fit its CUDA and cuDNN?",
        "model": "is it a whole ONNX file, with operators that this ONNX Runtime knows?",
        "batch": "export with an open batch, or measure images of that batch only",
        "size": "export with a fixed image size; only the batch may be left open",
        "type": "export the network in float32",
        "run": "a smaller batch needs less memory; or do sizes inside the file fit one batch only?",
    }[answer["error"]]
    kind = ConfigError if answer["error"] == "affinity" else HardwareError
    return kind(f"{onnx} cannot be measured {where}: {answer['message']}; {advice}")


# Never asks for a password: a run must not wait for one. A lost connection ends within a minute.
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")


@contextlib.contextmanager
def _there(files: Sequence[Path], host: str, ssh: list[str], remote_python: str) -> Iterator[Ask]:
    """The worker and the files in a temporary folder of the device, which is removed again.

    files: those with weights, in the folder of the .onnx or below it, and the .onnx at the end.
    """
    onnx = files[-1]
    if not isinstance(host, str) or not host or host.startswith("-") or any(c.isspace() for c in host):
        raise ConfigError(f"hardware.host must read user@address, not {host!r}")
    made = _remote(ssh, host, "mktemp -d")
    said = made.stdout.decode(errors="replace").strip()
    folder = said.rpartition("\n")[2].strip()  # below what the device's shell may greet with
    if made.returncode or not folder.startswith("/"):
        raise HardwareError(
            f"hardware.host={host} has no temporary folder: {_said(made, 2)}; is its disk full or read-only?"
        )
    place = shlex.quote(folder)

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        sent = json.dumps({**request, "model": f"{folder}/network/{onnx.name}"}).encode()
        done = _remote(ssh, host, f"{shlex.quote(remote_python)} {place}/worker.py", sent)
        if done.returncode == 127:
            raise HardwareError(
                f"hardware.host={host} has no {remote_python}: install Python 3.9 or newer there"
            )
        return _answer(done, f"hardware.host={host}: measuring {onnx} there")

    try:
        # in a folder of their own: what an .onnx calls its weights must not take the worker's place
        copies = [(file, f"network/{file.relative_to(onnx.parent)}") for file in files]
        for file, name in [(WORKER, "worker.py"), *copies]:
            to = shlex.quote(f"{folder}/{name}")
            content = file.read_bytes()
            copied = _remote(ssh, host, f'mkdir -p "$(dirname {to})" && cat > {to}', content)
            if copied.returncode:
                raise HardwareError(
                    f"hardware.host={host}: {file} ({len(content) / 1e6:.0f} MB) cannot be copied there: "
                    f"{_said(copied, 2)}; is there space in {folder}?"
                )
        yield ask
    finally:
        with contextlib.suppress(HardwareError):  # the first error is the one to show
            _remote(ssh, host, f"rm -rf {place}")


def _remote(
    ssh: list[str], host: str, command: str, content: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """A command of the device's shell, with `content` on its stdin; HardwareError where ssh itself fails."""
    # "&& true" keeps the shell: a command it became itself would, when killed, look like a failure of ssh
    command = f"{command} && true"
    try:
        done = subprocess.run(
            ending_with_parent([*ssh, "--", host, command]),
            input=content,
            capture_output=True,
            timeout=TIMEOUT_SECONDS + GRACE_SECONDS,
        )
    except FileNotFoundError as error:
        raise HardwareError(
            "hardware.host needs the program ssh on this machine: install an SSH client"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise _too_long(f"hardware.host={host}") from error
    if done.returncode != 255:  # ssh's own failures
        return done
    said = _said(done, 2)
    if "Permission denied" in said:
        advice = f"It takes keys only: ssh-copy-id {host}"
    elif "verification failed" in said:
        advice = f"Connect once by hand and compare its key: ssh {host}"
    else:
        advice = f"Is it on, is the address right, and does `ssh {host} true` work?"
    raise HardwareError(f"hardware.host={host} cannot be reached by ssh: {said}. {advice}")
