"""A simulated meter whose true power is known, to try deployments and their tables without a meter.

    python -m dxc.hardware.measure.energy.simulated --port 2323 --idle 2.0 --load 4.5 --events cache/device/events.jsonl
    python deploy.py study=small energy=smartpower2 energy.address=127.0.0.1 energy.port=2323

It speaks the protocol of the SmartPower 2 on 127.0.0.1. Its power follows the events that dxc.deploy.device_worker
writes on the device. It says in its first line that it is simulated, and dxc carries that word in the meter's name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from dxc.errors import ConfigError, exit_cleanly, is_number, is_whole, signals_raise

BOOT = b"SmartPower2 simulated\r\n"
VOLT = 5.0
MAX_WATT = 25.0
"""What the SmartPower 2 gives at 5 V."""
FOLLOW_SECONDS = 0.02


class Truth(NamedTuple):
    """What one window really took.

    Attributes:
        kind: idle or load.
        seconds: its length.
        joule: that were given in it.
        images: that were inferred.
    """

    kind: str
    seconds: float
    joule: float
    images: int

    def __str__(self) -> str:
        an_image = f", {1000 * self.joule / self.images:.3f} mJ an image" if self.images else ""
        return f"true energy, {self.kind}: {self.seconds:.2f} s, {self.joule:.3f} J{an_image}"


class _Load:
    """The power of a device, by its events.

    Args:
        events: the file that the worker writes.
        idle_w: power of the device in W when it is left alone.
        load_w: power of the device in W while a window of load is open.
    """

    def __init__(self, events: Path, idle_w: float, load_w: float) -> None:
        self._events, self._idle_w, self._load_w = events, idle_w, load_w
        self._at = self._size()  # what an earlier run left does not count
        self._watt = idle_w
        self._begun: tuple[str, float, float] | None = None
        self.now: tuple[float, float] = (time.monotonic(), 0.0)
        """Time, and the joules that were given until then."""

    def _size(self) -> int:
        try:
            return self._events.stat().st_size
        except OSError:
            return 0

    def follow(self) -> list[Truth]:
        """Go on to this moment. Returns the windows that ended since the last call."""
        before_s, joule = self.now
        now_s = time.monotonic()
        joule += self._watt * (now_s - before_s)
        self.now = (now_s, joule)
        if self._size() < self._at:  # a new run begins its file anew, whatever became of the last one
            self._at, self._watt, self._begun = 0, self._idle_w, None
        try:
            with self._events.open("rb") as file:
                file.seek(self._at)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:
            return []
        self._at += len(whole) + 1 if whole else 0
        ended = []
        for line in whole.splitlines():
            try:
                event = json.loads(line)
                kind, what = event.get("event"), str(event.get("kind"))
                images = int(event.get("images", 0))
            except (ValueError, TypeError, AttributeError):
                continue
            if kind == "begin":
                self._begun = (what, now_s, joule)
                self._watt = self._load_w if what == "load" else self._idle_w
            elif kind == "end" and self._begun is not None:
                what, begun_s, begun_joule = self._begun
                ended.append(Truth(what, now_s - begun_s, joule - begun_joule, images))
                self._begun, self._watt = None, self._idle_w
        return ended


class SimulatedMeter:
    """The meter, which serves within `with`.

    Args:
        events: events.jsonl in the device's folder.
        idle_w: true power of the device in W when it is left alone.
        load_w: true power in W while it runs networks.
        noise_w: standard deviation of a reading, in W. Its mean is 0.
        port: of TCP on 127.0.0.1; 0: any that is free.
        period_s: between two readings. Each is the mean power since the last one.
        seed: of the noise.
        told: takes what each window really took.

    Raises:
        ConfigError: a value that cannot be.
    """

    def __init__(
        self,
        events: str | Path,
        idle_w: float = 2.0,
        load_w: float = 4.5,
        noise_w: float = 0.02,
        port: int = 0,
        period_s: float = 1.0,
        seed: int = 0,
        told: Callable[[Truth], None] | None = None,
    ) -> None:
        for name, value in (("idle", idle_w), ("load", load_w), ("noise", noise_w)):
            if not is_number(value) or not 0 <= value <= MAX_WATT:
                raise ConfigError(f"{name} must be a power from 0 to {MAX_WATT:g} W, not {value!r}")
        if not is_whole(port, 0, 65535):
            raise ConfigError(f"port must be a whole number from 0 to 65535, not {port!r}")
        self._load = _Load(Path(events), idle_w, load_w)
        self._noise_w, self._period_s = noise_w, period_s
        self._random = random.Random(seed)
        self._told = told
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._follow, self._serve)]
        try:
            self._server = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"port={port} of 127.0.0.1 cannot be used: {error.strerror}") from error
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._threads:
            each.join(5)

    def _follow(self) -> None:
        while not self._closed.wait(FOLLOW_SECONDS):
            for each in self._load.follow():
                if self._told is not None:
                    self._told(each)

    def _serve(self) -> None:
        """One client at a time, as the real one does."""
        while not self._closed.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):  # the client has gone
                client.sendall(BOOT)
                last_s, last_joule = self._load.now
                while not self._closed.wait(self._period_s):
                    now_s, joule = self._load.now
                    if now_s > last_s:
                        watt = (joule - last_joule) / (now_s - last_s)
                        last_s, last_joule = now_s, joule
                        client.sendall(self._line(watt))

    def _line(self, watt: float) -> bytes:
        watt = max(0.0, watt + self._random.gauss(0, self._noise_w))
        return f"{VOLT:.3f},{watt / VOLT:.3f},{watt:.3f},0.000\r\n".encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C, and say what each window really took.

    Args:
        arguments: of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dxc.hardware.measure.energy.simulated",
        description="A simulated SmartPower 2 on 127.0.0.1, whose power follows a device's events.",
    )
    parser.add_argument(
        "--events", required=True, help="events.jsonl in the device's folder; of this machine cache/device/"
    )
    parser.add_argument("--port", type=int, default=2323)
    parser.add_argument("--idle", type=float, default=2.0, help="W when the device is left alone")
    parser.add_argument("--load", type=float, default=4.5, help="W while it runs networks")
    parser.add_argument("--noise", type=float, default=0.02, help="W, standard deviation of a reading")
    asked = parser.parse_args(arguments)
    with exit_cleanly(), signals_raise():
        meter = SimulatedMeter(
            asked.events,
            asked.idle,
            asked.load,
            asked.noise,
            asked.port,
            told=lambda each: print(each, flush=True),
        )
        with meter:
            print(
                f"simulated meter on 127.0.0.1:{meter.port}: {asked.idle:g} W idle, {asked.load:g} W under load, "
                f"as {asked.events} says; Ctrl-C ends it",
                flush=True,
            )
            signal.pause()


if __name__ == "__main__":
    main()
