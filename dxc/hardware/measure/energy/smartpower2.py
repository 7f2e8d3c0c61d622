"""ODROID SmartPower 2: a supply that says over TCP or serial, once a second, what it gives.

A line is volt,ampere,watt,watthour with three decimals. Lines of its boot and of debugging come between. It serves one
client at a time. Its watt-hours count only while its own web page does, so dxc integrates the watts.
https://wiki.odroid.com/accessory/power_supply_battery/smartpower2
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dxc.errors import HardwareError, is_number, is_whole
from dxc.hardware.measure.energy.protocol import Sample
from dxc.hardware.measure.energy.sources import Listening
from dxc.text import visible

log = logging.getLogger(__name__)

LINE = re.compile(r"(\d{1,2}\.\d{1,4}),(-?\d{1,2}\.\d{1,4}),(-?\d{1,3}\.\d{1,4}),(\d+\.\d+)")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")
MAX_LINE = 400
SILENT_SECONDS = 3.0
"""After this the connection is taken to be lost. A sample comes every second."""
RECONNECT_SECONDS = 0.5
MAX_PATIENCE_SECONDS = 3600.0
PERIOD_SECONDS = 1.0
SIMULATED = "simulated"
"""A line with this word is of dxc.hardware.measure.energy.simulated. The name of the meter carries it from then on."""
MAX_VOLT, MAX_AMPERE = 20.0, 6.0
"""It gives 4 to 15 V, and at most 5 A."""


Receive = Callable[[], bytes | None]
"""The next bytes; None where there are none for half a second, and b"" at the end of the connection."""


class Reading(NamedTuple):
    """One line of the meter."""

    volt: float
    ampere: float
    watt: float
    watthour: float


def is_simulated(name: str) -> bool:
    """Whether the name of a meter is that of a simulated one."""
    return name.startswith(SIMULATED)


def reading(line: str) -> Reading | None:
    """The reading in one line; None for a line of another kind, and for one that contradicts itself: half a line that
    debugging has cut, for example."""
    found = LINE.fullmatch(line.strip())
    if not found:
        return None
    volt, ampere, watt, watthour = map(float, found.groups())
    # the meter rounds three means; where power changes within the second, their product differs a little
    agrees = abs(volt * ampere - watt) <= 0.05 + 0.1 * abs(watt)
    if not agrees or volt > MAX_VOLT or abs(ampere) > MAX_AMPERE:
        return None
    return Reading(volt, ampere, watt, watthour)


class SmartPower2(Listening):
    """The meter.

    Args:
        address: its name or IP address; as an access point of its own it is 192.168.4.1. None with `serial`.
        port: of TCP.
        serial: its serial line instead, such as /dev/ttyUSB0 (115200 baud, 8N1).
        patience_s: how long the first reading may take.
    """

    name = "SmartPower 2"

    def __init__(
        self,
        address: str | None = None,
        port: int = 23,
        serial: str | None = None,
        patience_s: float = 10.0,
    ) -> None:
        super().__init__()
        if (address is None) == (serial is None):
            raise ValueError(
                "the SmartPower 2 needs energy.address (over Wi-Fi, such as 192.168.4.1) or energy.serial (such as "
                "/dev/ttyUSB0), one of the two"
            )
        if address is not None and not (isinstance(address, str) and HOST.fullmatch(address)):
            raise ValueError(f"energy.address must be a name or an IP address, not {address!r}")
        if not is_whole(port, 1, 65535):
            raise ValueError(f"energy.port must be a whole number from 1 to 65535, not {port!r}")
        if serial is not None and not isinstance(serial, str):
            raise ValueError(f"energy.serial must be a path, not {serial!r}")
        if not is_number(patience_s) or not 0 < patience_s <= MAX_PATIENCE_SECONDS:
            raise ValueError(
                f"energy.patience_s must be a number above 0 and up to {MAX_PATIENCE_SECONDS:g}, not {patience_s!r}"
            )
        self.address, self.port, self.serial = address, port, serial
        self.patience_s = float(patience_s)
        self._refused_lines = 0
        self._readings = 0

    @property
    def _place(self) -> str:
        return self.serial or f"{self.address}:{self.port}"

    def _advice(self) -> str:
        if self.serial is not None:
            return (
                "Is it the meter's line (dmesg names it), at 115200 baud, and is no other program using it?"
            )
        return (
            "Is its output on, is this machine in its network (Wi-Fi SmartPower2_...), and is no other program "
            "connected? It serves one client at a time: close telnet and its app"
        )

    def _listen(self) -> None:
        connect = self._serial if self.serial is not None else self._tcp
        lost = False
        while not self._closed.is_set():
            try:
                with connect() as receive:
                    if lost:
                        log.warning("%s: connected again to %s", self.name, self._place)
                    self._receive(receive)
            except OSError as error:
                self._trouble = f"{self._place}: {error.strerror or error}"
            if not self._closed.is_set() and self._samples and not lost:
                log.warning("%s: lost %s (%s); connecting again", self.name, self._place, self._trouble)
            lost = bool(self._samples)
            self._closed.wait(RECONNECT_SECONDS)

    def _receive(self, receive: Receive) -> None:
        """Take readings until the connection ends, is silent for too long, or the meter is closed."""
        pending = ""
        heard = time.monotonic()
        while not self._closed.is_set():
            content = receive()
            now = time.monotonic()
            if content == b"":
                self._trouble = f"{self._place} closed the connection"
                return
            pending += (content or b"").decode("ascii", errors="replace")
            *lines, pending = re.split(r"\r\n|\n|\r", pending)
            pending = pending[-MAX_LINE:]
            if readings := self._readings_in(lines):
                # lines that were held up on the way come together: they are a second apart
                last = self._samples[-1].time_s if self._samples else -float("inf")
                for place, each in enumerate(readings):
                    at = now - PERIOD_SECONDS * (len(readings) - 1 - place)
                    if at > last:
                        self._take(Sample(at, each.watt))
                heard = now
            elif now - heard > SILENT_SECONDS:
                if self._samples or not self._refused_lines:
                    self._trouble = f"{self._place} is connected and silent"
                return

    def _readings_in(self, lines: list[str]) -> list[Reading]:
        found = []
        for line in lines:
            if (each := reading(line)) is not None:
                found.append(each)
            elif SIMULATED in line:  # only ever marks the meter: no line can make a simulated one real
                self.name = f"{SIMULATED} {type(self).name}"
            elif line.strip():
                self._refused_lines += 1
                if not self._samples:
                    self._trouble = (
                        f"{self._place} sent {self._refused_lines} lines, and none is volt,ampere,watt,watthour; the "
                        f"last is {visible(line.strip()[:60])!r}"
                    )
        return found

    @contextlib.contextmanager
    def _tcp(self) -> Iterator[Receive]:
        with socket.create_connection((self.address, self.port), timeout=SILENT_SECONDS) as connection:
            connection.settimeout(0.5)

            def receive() -> bytes | None:
                try:
                    return connection.recv(4096)
                except TimeoutError:
                    return None

            yield receive

    @contextlib.contextmanager
    def _serial(self) -> Iterator[Receive]:
        import select
        import termios
        import tty

        assert self.serial is not None
        line = os.open(self.serial, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            if not stat.S_ISCHR(os.fstat(line).st_mode):
                raise HardwareError(f"energy.serial={self.serial} is not a serial line")
            try:
                tty.setraw(line)  # 8N1
                settings = termios.tcgetattr(line)
                settings[4] = settings[5] = termios.B115200
                termios.tcsetattr(line, termios.TCSANOW, settings)
            except termios.error as error:
                raise HardwareError(f"energy.serial={self.serial} is not a serial line: {error}") from error

            def receive() -> bytes | None:
                if not select.select([line], [], [], 0.5)[0]:
                    return None
                return os.read(line, 4096)

            yield receive
        finally:
            os.close(line)
