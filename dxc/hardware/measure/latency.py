"""Measures latency and memory of an exported file in a fresh process, here or on a device over SSH."""

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

import dxc
from dxc.deploy.device import DROPPED, SSH_OPTIONS, check_host, unreachable
from dxc.errors import ConfigError, HardwareError, require_one_of, require_whole
from dxc.files import write_atomically
from dxc.hardware.measure.reference import reference
from dxc.hardware.measure.worker import Refused
from dxc.hardware.onnx_file import data_files
from dxc.processes import ending_with_parent

WORKER = Path(__file__).with_name("worker.py")
TORCH_WORKER = "dxc.hardware.measure.torch_worker"
MARK = "dxc-worker:"

MAX_SPREAD = 0.10
"""Largest spread of a valid measurement. Predictions are judged at 10 %, and the median has to be as good."""

COOL_DOWN_SECONDS = 2.0
TIMEOUT_SECONDS = 300
GRACE_SECONDS = 30
"""The worker ends itself at TIMEOUT_SECONDS. If that fails, dxc stops waiting for it after this further time."""

Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Runs the worker once: request -> answer."""


@dataclass(frozen=True)
class StopRule:
    """When a measurement ends: at max_runs, or once max_seconds are over and min_runs are done.

    The warm-up before it does not count. It takes at least warmup_runs and warmup_seconds, but at most max_seconds.
    Together they take 2 to 3 s for a network of 5 ms, and about 10 s for one of 500 ms.
    """

    warmup_runs: int = 5
    warmup_seconds: float = 0.3
    min_runs: int = 15
    max_runs: int = 1000
    max_seconds: float = 1.5


@dataclass(frozen=True)
class Measurement:
    """Latency of one execution of a batch, and memory of the process that ran it.

    Attributes:
        raw_ms: every timed run in order.
        spread: see spread_of.
        peak_memory_mb: peak resident memory in 1e6 bytes, less baseline_memory_mb, that of the process before it had a
            session. Of torch on a GPU: the most device memory that it allocated, and the baseline is 0.
        environment: device, provider, threads, cores in use (affinity), versions, date, load average before it began,
            where memory was read (memory_from), and the median and spread of every attempt (attempts). Of torch also:
            runtime, execution (CUDA graph | eager, with eager_because where it could not be captured), arithmetic
            (float32 | TF32) and largest_error against ONNX Runtime on the CPU, relative to the largest output.
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
        """Metrics of dxc.metrics. An invalid record has no latency, but it has memory, which noise does not affect. A
        batch of several images (fixed in the file) has neither, because both are defined for one image."""
        if self.batch != 1:
            return {}
        memory = {"peak_memory_mb": self.peak_memory_mb}
        if not self.valid:
            return memory
        return {"measured_latency_ms": self.median_ms, "measured_latency_p95_ms": self.p95_ms, **memory}

    def save(self, path: Path) -> None:
        """Write everything, with the raw values, as JSON. The file appears when it is complete."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")


def spread_of(raw_ms: Sequence[float]) -> float:
    """Spread of a record as a fraction of its median: the larger of two measures.

    One is the interquartile range, which shows noise, or two alternating speeds. The other is the largest difference
    between the medians of the first, second and last third, which shows a machine that gets slower or faster. Up to a
    quarter of slow runs changes neither measure, nor the median. They show in the 95th percentile.
    """
    raw = np.asarray(raw_ms, dtype=float)
    thirds = [np.median(part) for part in np.array_split(raw, 3) if len(part)]
    q25, median, q75 = np.percentile(raw, [25, 50, 75])
    return float(max(q75 - q25, max(thirds) - min(thirds)) / median)


def measure(
    onnx: Path,
    *,
    runtime: str = "onnxruntime",
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
    """Time one file with random input. Only its execution is inside the clock; see worker.py and torch_worker.py.

    On a processor that is session.run of ONNX Runtime, or one call of torch. On a GPU inputs and outputs stay on the
    device with either runtime, and the time is that between two CUDA events. torch replays a CUDA graph of the file;
    where an operator cannot be captured it runs operator by operator, and environment says why (eager_because).

    A record that spreads further than `max_spread` is taken again after a pause, up to `attempts` times. If none is
    good, the one with the least spread is returned with valid=False. Records are never averaged: on a machine that is
    busy half of the time, the mean is a value that never occurs.

    Args:
        onnx: the file.
        runtime: onnxruntime or torch, which measures on this machine only.
        provider: cpu or cuda.
        threads: number of CPU threads for one operator.
        batch: images in one execution.
        affinity: cores to run on; None: any.
        host: user@address of a device with python3, numpy and onnxruntime, which ssh reaches with a key. The file, its
            files with weights and the worker are copied into a temporary folder there. None: this machine.
        python: interpreter on this machine; None: this one.
        stop: when the measurement ends.
        max_spread: largest spread of a valid record, a fraction of its median.
        attempts: greatest number of records.
        ssh_options: further options of ssh.
        remote_python: interpreter on the device.

    Raises:
        HardwareError: the measurement is not possible; the message says what to do.
        ConfigError: an argument cannot work.
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
    require_one_of("hardware.runtime", runtime, ("onnxruntime", "torch"))
    if runtime == "torch" and host is not None:
        raise ConfigError("hardware.runtime=torch measures on this machine only, and not on hardware.host")
    where = _here(python or sys.executable, runtime)
    if host is not None:
        where = _there([*beside, onnx], host, ["ssh", *SSH_OPTIONS, *ssh_options], remote_python)
    tried: list[tuple[float, dict[str, Any]]] = []
    with contextlib.ExitStack() as stack:
        ask = stack.enter_context(where)
        if runtime == "torch":
            try:
                request |= {"cuda_graph": True, **stack.enter_context(reference(onnx, batch, threads))}
            except Refused as refused:
                raise _refusal({"error": refused.kind, "message": str(refused)}, onnx, host) from refused
        for attempt in range(attempts):
            if attempt:
                time.sleep(COOL_DOWN_SECONDS)
            answer = ask(request)
            if answer.get("error") == "capture":  # in a fresh process, because a failed capture may spoil one
                because = answer["message"]
                answer = ask({**request, "cuda_graph": False})
                answer.get("environment", {})["eager_because"] = because
            if "error" in answer:
                raise _refusal(answer, onnx, host)
            tried.append((spread_of(answer["raw_ms"]), answer))
            if tried[-1][0] <= max_spread:
                break
    spread, best = min(tried, key=lambda each: each[0])
    attempted = [{"median_ms": float(np.median(a["raw_ms"])), "spread": s} for s, a in tried]
    return record(best, spread, max_spread, batch, attempted)


@contextlib.contextmanager
def on_device(
    files: Sequence[Path], host: str, *, remote_python: str, ssh_options: Sequence[str] = ()
) -> Iterator[Ask]:
    """The worker on a device over SSH, with some files beside each other. All are removed at the end.

    Args:
        files: all in one folder. The request is about the last one.
        host: user@address of the device.
        remote_python: interpreter on the device.
        ssh_options: further options of ssh.

    Raises:
        HardwareError: the device cannot be reached; and from the function, the worker refuses the request.
    """
    with _there(files, host, ["ssh", *SSH_OPTIONS, *ssh_options], remote_python) as ask:

        def asked(request: dict[str, Any]) -> dict[str, Any]:
            answer = ask(request)
            if "error" in answer:
                raise _refusal(answer, files[-1], host)
            return answer

        yield asked


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
    """Make a Measurement from a worker's answer.

    Args:
        answer: of the worker.
        spread: of its runs, a fraction of the median.
        max_spread: largest spread of a valid measurement.
        batch: images in one execution.
        attempts: median and spread of every attempt.
    """
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


@contextlib.contextmanager
def _here(python: str, runtime: str) -> Iterator[Ask]:
    """The worker of a runtime on this machine, each time a fresh process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED)}
    environment["PYTHONSAFEPATH"] = "1"  # the worker does not import the files beside it
    command = [python, str(WORKER)]
    if runtime == "torch":  # imports this copy of dxc, installed or not
        command = [python, "-m", TORCH_WORKER]
        paths = [str(Path(dxc.__file__).parents[1]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        try:
            done = subprocess.run(
                ending_with_parent(command),
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
    """The answer of the worker. Raises HardwareError if it ended without one."""
    for line in reversed(done.stdout.decode(errors="replace").splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    # Negative for a child process, 128 and more in the report of a device's shell.
    killed_by = -done.returncode if done.returncode < 0 else done.returncode - 128
    if killed_by == signal.SIGALRM:
        raise _too_long(doing)
    why = ""
    if killed_by == signal.SIGKILL:
        why = " (killed; out of memory? A smaller batch or network needs less)"
    raise HardwareError(f"{doing}: the process ended with status {done.returncode}{why}: {_said(done, 3)}")


def _said(done: subprocess.CompletedProcess[bytes], lines: int) -> str:
    """The last lines that a command wrote to stderr."""
    return " / ".join(done.stderr.decode(errors="replace").strip().splitlines()[-lines:]) or "no message"


def _too_long(doing: str) -> HardwareError:
    return HardwareError(
        f"{doing}: no answer within {TIMEOUT_SECONDS} s; is the machine busy, or the network too large?"
    )


def _refusal(answer: dict[str, str], onnx: Path, host: str | None) -> HardwareError | ConfigError:
    """The error for a refusal of the worker; it says what to do."""
    where = f"on {host}" if host else "here"
    install = f"{where}: python3 -m pip install"
    # Debian and Raspberry Pi OS keep pip out of their own Python (PEP 668).
    managed = " (--break-system-packages, if pip calls it externally managed)" if host else ""
    advice = {
        "affinity": "hardware.affinity names cores of the machine, such as [0,1]",
        "import": f"install it {install} numpy onnxruntime{managed}",
        "torch": f"a GPU is timed with torch's events; install it {install} torch",
        "provider": f"a GPU needs its build {install} onnxruntime-gpu (in place of onnxruntime)"
        + ("" if host else ", or torch measures: hardware.runtime=torch"),
        "cuda": "does nvidia-smi show the GPU, and do torch and onnxruntime-gpu fit its CUDA and cuDNN?",
        "model": "is it a whole ONNX file, with operators that this ONNX Runtime knows?",
        "batch": "export with an open batch, or measure images of that batch only",
        "size": "export with a fixed image size; only the batch may be left open",
        "type": "export the network in float32",
        "operators": "ONNX Runtime has more operators",
        "outputs": "hardware.runtime=onnxruntime measures it without torch",
        "run": "a smaller batch needs less memory; or do sizes inside the file fit only one batch?",
    }[answer["error"]]
    kind = ConfigError if answer["error"] == "affinity" else HardwareError
    return kind(f"{onnx} cannot be measured {where}: {answer['message']}; {advice}")


@contextlib.contextmanager
def _there(files: Sequence[Path], host: str, ssh: list[str], remote_python: str) -> Iterator[Ask]:
    """Copy the worker and the files into a temporary folder of the device, and remove it at the end.

    Args:
        files: files with weights, which lie below the folder of the .onnx, and the .onnx as the last one.
        host: user@address of the device.
        ssh: the command up to the host.
        remote_python: interpreter on the device.
    """
    onnx = files[-1]
    check_host(host)
    made = _remote(ssh, host, "mktemp -d")
    said = made.stdout.decode(errors="replace").strip()
    folder = said.rpartition("\n")[2].strip()  # after a greeting of the device's shell
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
        # in a folder of their own, because a file with weights could be named like the worker
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
    """Run a command in the device's shell. Raises HardwareError if ssh itself fails.

    Args:
        ssh: the command up to the host.
        host: user@address of the device.
        command: for its shell.
        content: for the command's stdin.
    """
    # "&& true" keeps the shell. Without it the shell would become the command, whose kill looks like a failure of ssh
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
    if done.returncode != 255:  # 255 is a failure of ssh itself
        return done
    raise unreachable(host, _said(done, 2))
