"""A device that networks are proved on: over SSH, or this machine. Files go there once, runs outlive the connection.

Everything there is done by one file, dxc/deploy/device_worker.py; see what it can do there. This machine is a device
too: then a shell is started here instead of ssh, and all else is the same.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from dxc.config.hardware import is_host
from dxc.deploy import device_worker
from dxc.errors import ConfigError, HardwareError, Stopped
from dxc.processes import ending_with_parent
from dxc.untrusted import load_json

log = logging.getLogger(__name__)

WORKER = Path(device_worker.__file__)
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")
"""ssh never asks for a password, because nobody answers. A lost connection ends within a minute."""
DROPPED = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ORT_")
"""Variables of a user's shell that set threads and logging for training. A measurement's request decides them."""
FOLDER = ".cache/dxc"
"""On the device, below the home of its user."""
GAIN = 0.9  # compressed files are sent if they are at most this share of the plain ones
TIMEOUT_SECONDS = 600.0  # of everything but runs
MAX_LINE_BYTES = 1_000_000
RECONNECT_SECONDS = 300.0
PAUSE_SECONDS = 3.0
SENDING_ATTEMPTS = 5


class UnreachableError(HardwareError):
    """The device cannot be reached. It may be again in a while."""


class RefusedError(HardwareError):
    """The device's worker refuses. `kind` is one of device_worker's."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Payload:
    """A file for the device.

    Attributes:
        content: of the file.
        label: what it is, for messages.
    """

    content: bytes
    label: str

    @cached_property
    def sha256(self) -> str:
        """Name of the object on the device."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def packed(self) -> tuple[bytes, bool]:
        """What is sent, and whether it is compressed."""
        small = zlib.compress(self.content, 6)
        return (small, True) if len(small) <= GAIN * len(self.content) else (self.content, False)


@dataclass
class Device:
    """A device. Its methods raise HardwareError where it cannot be used; the message says what to do.

    Attributes:
        host: user@address, reached by ssh with a key. None: this machine.
        folder: for dxc's files there; relative to the user's home (of this machine: to the current folder).
        python: interpreter there; None: this one, which is for this machine only.
        threads: CPU threads of the runtime.
        provider: cpu or cuda.
        affinity: cores to run on; None: any.
        ssh_options: further options of ssh.
        sent_bytes: what was sent so far, files only.
    """

    host: str | None = None
    folder: str = FOLDER
    python: str | None = None
    threads: int = 1
    provider: Literal["cpu", "cuda"] = "cpu"
    affinity: Sequence[int] | None = None
    ssh_options: Sequence[str] = ()
    sent_bytes: int = field(default=0, init=False)
    _installed: bool = field(default=False, init=False)

    @property
    def where(self) -> str:
        """'hardware.host=pi@raspberrypi', 'this machine'."""
        return f"hardware.host={self.host}" if self.host else "this machine"

    @property
    def settings(self) -> dict[str, Any]:
        """What determines how fast networks run, as the worker is told it."""
        affinity = None if self.affinity is None else list(self.affinity)
        return {"threads": self.threads, "provider": self.provider, "affinity": affinity}

    def probe(self) -> dict[str, Any]:
        """What the device is: environment, state, free_bytes, objects; see device_worker.probe."""
        return self._ask("probe", self.settings)[-1]

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the device's lock: one deployment at a time. Others are waited for, with a word.

        Args:
            say: is given the word.
        """
        self._install()
        who = f"{getpass.getuser()}@{socket.gethostname()} (process {os.getpid()}, since {time.strftime('%H:%M')})"
        call = self._start(self._command("hold", {"who": who[:200]}), stdin=subprocess.PIPE)
        try:
            for answer in self._answers(call):
                if "waiting_for" in answer:
                    say(f"{self.where} is in use by {_word(answer['waiting_for'])}; waiting for it")
                elif answer.get("held"):
                    break
            else:
                self._raise_failure(call, "its lock cannot be had")
            yield
        finally:
            assert call.process.stdin is not None  # a pipe was asked for
            with contextlib.suppress(OSError):
                call.process.stdin.close()
            call.end(patience_s=2)

    def put(self, payload: Payload, say: Callable[[str], None] = log.info) -> None:
        """Bring a file to the device, unless it is there. What was cut goes on where it ended.

        Args:
            payload: the file.
            say: is given a line where something is sent.
        """
        for attempt in range(SENDING_ATTEMPTS):
            there = self._patiently(lambda: self._ask("listing", {})[-1]["objects"])
            if payload.sha256 in there:
                return
            packed, compressed = payload.packed
            digest = hashlib.sha256(packed).hexdigest()
            request = {
                "sha256": payload.sha256,
                "bytes": len(payload.content),
                "payload": digest,
                "payload_bytes": len(packed),
                "compressed": compressed,
            }
            part = f"{payload.sha256}.{digest[:16]}.part"
            offset = int(there.get(part, 0))
            rest = f", the rest of {len(packed) / 1e6:.1f} MB" if offset else ""
            say(f"sending {payload.label}: {(len(packed) - offset) / 1e6:.1f} MB{rest}")
            try:
                answers = self._ask("receive", {**request, "offset": offset}, packed[offset:])
                if "received" in answers[-1]:
                    self.sent_bytes += len(packed) - offset
                    return
            except UnreachableError:
                if attempt + 1 == SENDING_ATTEMPTS:
                    raise
                say(f"the connection to {self.where} was lost; trying again")
            except RefusedError as refused:
                if refused.kind not in ("damaged", "offset") or attempt + 1 == SENDING_ATTEMPTS:
                    raise
        raise HardwareError(f"{self.where}: {payload.label} cannot be sent: it is cut each time")

    def run(
        self, request: dict[str, Any], on_event: Callable[[dict[str, Any], float], None]
    ) -> dict[str, Any]:
        """Run one network there, and return its record; see device_worker.run.

        Where the connection ends, the run goes on there. It is followed again as soon as the device can be reached. If
        it died with the device, it begins again.

        Args:
            request: of device_worker.run, without the settings of the device.
            on_event: is given every event, and the time.monotonic() at which it arrived. An event that was not heard
                when it happened has replayed=True.
        """
        self._install()
        command = self._command("run", {**request, **self.settings})
        lost_at: float | None = None
        while True:
            call = self._start(command, stdin=subprocess.DEVNULL)
            try:
                for event in self._answers(call):
                    lost_at = None
                    if event.get("event") == "finished":
                        return dict(event["record"])
                    on_event(event, time.monotonic())
                self._raise_failure(call, "the run ended without a result")
            except UnreachableError as error:
                now = time.monotonic()
                if lost_at is None:
                    lost_at = now
                    on_event({"event": "lost", "message": str(error)}, now)
                if now - lost_at > RECONNECT_SECONDS:
                    raise
                time.sleep(PAUSE_SECONDS)
            except (KeyboardInterrupt, Stopped):  # the user stops it: it must not heat the device for hours
                call.end()
                with contextlib.suppress(HardwareError):
                    self._ask("stop", {"key": request["key"], "attempt": request["attempt"]})
                raise
            finally:
                call.end()

    def fetch(self, key: str, name: str, about: dict[str, Any]) -> bytes:
        """The content of a file of a result.

        Args:
            key: of the result.
            name: of the file.
            about: its bytes and sha256, as the record has them.
        """

        def once() -> bytes:
            _, content, _ = self._done(self._command("show", {"key": key, "name": name}))
            if len(content) != about["bytes"] or hashlib.sha256(content).hexdigest() != about["sha256"]:
                raise UnreachableError(f"{self.where}: {name} of a result arrived damaged")
            return content

        return self._patiently(once)

    def drop(self, *, objects: Sequence[str] = (), results: Sequence[str] = ()) -> None:
        """Remove files and results there.

        Args:
            objects: names of files.
            results: keys of results.
        """
        self._ask("drop", {"objects": list(objects), "results": list(results)})

    # --- the connection

    @cached_property
    def _worker(self) -> str:
        digest = hashlib.sha256(WORKER.read_bytes()).hexdigest()
        return f"{self.folder}/worker-{digest[:12]}.py"

    def _install(self) -> None:
        """Copy the worker to the device."""
        if self._installed:
            return
        to = shlex.quote(self._worker)
        folder = shlex.quote(self.folder)
        status, _, said = self._done(
            f"mkdir -p {folder} && cat > {to}.$$ && mv {to}.$$ {to}", WORKER.read_bytes(), check=False
        )
        if status:
            raise HardwareError(
                f"{self.where}: no file can be written in {self.folder} there: {said}; is the disk full or read-only? "
                "folder=PATH names another place"
            )
        self._installed = True

    def _command(self, verb: str, request: dict[str, Any]) -> str:
        python = shlex.quote(self.python or (sys.executable if self.host is None else "python3"))
        # "&& true" keeps the shell: else it would become the command, whose kill looks like a failure of ssh
        return f"{python} {shlex.join([self._worker, verb, self.folder, json.dumps(request)])} && true"

    def _start(self, command: str, *, stdin: int) -> _Call:
        """Start a command in the device's shell."""
        whole = ["sh", "-c", command]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED)}
        if self.host is not None:
            whole = ["ssh", *SSH_OPTIONS, *self.ssh_options, "--", self.host, command]
            environment = dict(os.environ)
        try:
            whole = ending_with_parent(whole)
        except FileNotFoundError as error:
            raise HardwareError(
                "hardware.host needs the program ssh on this machine: install an SSH client"
            ) from error
        errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by _Call.end
        process = subprocess.Popen(whole, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, env=environment)
        return _Call(process, errors)

    def _done(self, command: str, content: bytes = b"", *, check: bool = True) -> tuple[int, bytes, str]:
        """Run a command to its end: status, stdout, last lines of stderr.

        Raises UnreachableError where ssh fails. With `check` it raises HardwareError where the command fails without an
        answer of the worker.
        """
        call = self._start(command, stdin=subprocess.PIPE)
        try:
            out, _ = call.process.communicate(content, timeout=TIMEOUT_SECONDS)
            status = call.process.returncode
            if self._failed(status) or (check and status and device_worker.MARK.encode() not in out):
                self._raise_failure(call, "a command failed")
            return status, out, call.said
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"{self.where}: no answer within {TIMEOUT_SECONDS:.0f} s") from error
        finally:
            call.end()

    def _ask(self, verb: str, request: dict[str, Any], content: bytes = b"") -> list[dict[str, Any]]:
        """The answers of the worker; the last one is no refusal."""
        self._install()
        _, out, said = self._done(self._command(verb, request), content)
        answers = [answer for line in out.splitlines() if (answer := _parsed(line)) is not None]
        if not answers:
            raise UnreachableError(f"{self.where}: the worker does not answer: {said}")
        if "error" in answers[-1]:
            raise self._refusal(answers[-1])
        return answers

    def _answers(self, call: _Call) -> Iterator[dict[str, Any]]:
        """Answers as they come. A refusal is raised."""
        assert call.process.stdout is not None  # a pipe was asked for
        while line := call.process.stdout.readline(MAX_LINE_BYTES):
            answer = _parsed(line)
            if answer is not None and "error" in answer:
                raise self._refusal(answer)
            if answer is not None:
                yield answer

    def _patiently(self, action: Callable[[], Any]) -> Any:
        """Repeat what fails because the device cannot be reached, some times."""
        for _ in range(SENDING_ATTEMPTS - 1):
            try:
                return action()
            except UnreachableError as error:
                if "ssh-copy-id" in str(error) or "compare its key" in str(error):
                    raise  # nothing that passes
                log.warning("%s; trying again", error)
                time.sleep(PAUSE_SECONDS)
        return action()

    def _failed(self, status: int) -> bool:
        return self.host is not None and (status == 255 or status < 0)  # of ssh itself, or somebody killed it

    def _raise_failure(self, call: _Call, doing: str) -> NoReturn:
        """Raise the error for a command that ended without an answer."""
        status, said = call.process.wait(), call.said
        if self.host is not None and self._failed(status):
            raise unreachable(self.host, said)
        if status == 127:
            raise HardwareError(
                f"{self.where} has no {self.python or 'python3'}: install Python 3.9 or newer there, or name it: "
                "hardware.python=PATH"
            )
        killed = {
            int(signal.SIGKILL): " (killed; out of memory?)",
            int(
                signal.SIGILL
            ): " (illegal instruction: this onnxruntime is for other processors; try another one)",
        }.get(-status if status < 0 else status - 128, "")
        raise HardwareError(f"{self.where}: {doing}; status {status}{killed}: {said}")

    def _refusal(self, answer: dict[str, Any]) -> RefusedError:
        """The error for a refusal of the worker; it says what to do."""
        there = "there" if self.host else "here"
        install = f"install it {there}: python3 -m pip install"
        # Debian and Raspberry Pi OS keep pip out of their own Python (PEP 668).
        managed = " (--break-system-packages, if pip calls it externally managed)" if self.host else ""
        kind = str(answer["error"])
        advice = {
            "python": "dxc needs Python 3.9 or newer there; hardware.python=PATH names another interpreter",
            "import": f"{install} numpy onnxruntime{managed}",
            "provider": f"a GPU needs its build; {install} onnxruntime-gpu (in place of onnxruntime)",
            "affinity": "hardware.affinity names cores of the device, such as [0,1]",
            "space": f"free some space in {self.folder} there, or name another place: folder=PATH",
            "disk": f"is {self.folder} there on a sound disk with free space?",
            "missing": "the same command sends it again",
            "model": "is it a whole ONNX file, with operators that the device's ONNX Runtime knows? A newer one may",
            "metadata": "export the network again with train.py",
            "size": "test images have to be as large as the network takes them",
            "run": "is there enough memory?",
            "memory": "stop other programs there",
        }.get(kind, "run the same command again")
        if kind == "import" and "(armv" in str(answer.get("message")):
            advice = "there is no onnxruntime for ARM of 32 bits: set the device up with a system of 64 bits (aarch64)"
        return RefusedError(kind, f"{self.where}: {_word(answer.get('message'))}; {advice}")


def check_host(host: str) -> None:
    """Raise ConfigError unless a text can be the name of a host for ssh: user@address, an address or an alias."""
    if not is_host(host):
        raise ConfigError(f"hardware.host must read user@address, not {host!r}")


def unreachable(host: str, said: str) -> UnreachableError:
    """The error for a failure of ssh itself.

    Args:
        host: user@address.
        said: what ssh said.
    """
    if "Permission denied" in said:
        advice = f"It takes keys only: ssh-copy-id {host}"
    elif "verification failed" in said:
        advice = f"Connect once by hand and compare its key: ssh {host}"
    else:
        advice = f"Is it on, is the address right, and does `ssh {host} true` work?"
    return UnreachableError(f"hardware.host={host} cannot be reached by ssh: {said}. {advice}")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """An answer of the worker; None for a line that is none."""
    mark = device_worker.MARK.encode()
    if not line.startswith(mark):
        return None
    try:
        answer = load_json(line[len(mark) :].decode(errors="replace"), limit=MAX_LINE_BYTES)
    except ValueError:
        return None  # a line that the end of a connection cut
    return answer if isinstance(answer, dict) else None


def _word(text: object) -> str:
    """A text of the device, for a message."""
    return str(text)[:500]


@dataclass
class _Call:
    """A command that runs in the device's shell, and the file that its stderr goes to."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    @property
    def said(self) -> str:
        """The last lines that it wrote to stderr."""
        if self.errors.closed:
            return "no message"
        self.errors.seek(0)
        lines = self.errors.read(MAX_LINE_BYTES).decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-2:]) or "no message"

    def end(self, *, patience_s: float = 0.0) -> None:
        """End it and wait for it. A run on the device is not ended by that.

        Args:
            patience_s: how long it may take to end by itself.
        """
        for action in (lambda: None, self.process.terminate, self.process.kill):
            action()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
                break
            patience_s = 5.0
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
