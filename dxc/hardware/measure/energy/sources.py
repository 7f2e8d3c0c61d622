"""Sources of power samples: what every meter has in common, and how a configuration names one.

conf/energy/NAME.yaml is the argument list of one class of this package: SmartPower2, Rapl, Nvml, Hwmon or MeterFile.
A new meter is a class with the interface of Source (or the method _listen() of Listening) and its file.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from dxc.config.build import build
from dxc.errors import ConfigError, HardwareError, is_number
from dxc.hardware.measure.energy.protocol import Sample, Window
from dxc.text import visible

log = logging.getLogger(__name__)

CLOSING_SECONDS = 5.0


class Source(ABC):
    """A meter, open within `with`.

    Attributes:
        name: of the meter, for records and tables.
        of_this_machine: True where it can meter only the machine that dxc runs on.
    """

    name: str = ""
    of_this_machine: bool = False

    @abstractmethod
    def __enter__(self) -> Self:
        """Begin. Raises HardwareError unless the meter gives sound samples."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and let others have the meter."""

    @abstractmethod
    def samples(self) -> list[Sample]:
        """All samples since it was opened, in the order of time, on time.monotonic() of this machine."""

    def during(self, windows: Sequence[Window]) -> list[Sample]:
        """The samples that belong to these windows, and some before and after them.

        Args:
            windows: of one network, all of them over.

        Raises:
            HardwareError: the meter's clock cannot be brought to this machine's.
        """
        begin, end = min(each.begin_s for each in windows), max(each.end_s for each in windows)
        return [each for each in self.samples() if begin - 5 <= each.time_s <= end + 5]


class Listening(Source):
    """A meter that a thread listens to.

    A subclass has _listen(), which calls _take() for each sample until `self._closed` is set, and may say in
    `self._trouble` what keeps it from doing so.
    """

    patience_s: float = 5.0
    """How long the first sample may take."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._closed = threading.Event()
        self._first = threading.Event()
        self._trouble: str = ""
        self._crash: BaseException | None = None
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _listen(self) -> None:
        """Take samples until self._closed is set, in a thread. Raises HardwareError for what waiting cannot mend."""

    @abstractmethod
    def _advice(self) -> str:
        """What to check where no sample came."""

    def _take(self, sample: Sample) -> None:
        self._samples.append(sample)
        self._first.set()

    def _work(self) -> None:
        try:
            self._listen()
        except BaseException as error:
            self._crash = error
            if self._samples:  # the samples end here, and the verdict on what follows will name the gap
                log.warning("%s stopped: %s", self.name, visible(error))
            self._first.set()  # nobody waits for what cannot come

    def __enter__(self) -> Self:
        self._closed.clear()
        self._first.clear()
        self._samples, self._trouble, self._crash = [], "", None
        self._thread = threading.Thread(target=self._work, name=f"meter {self.name}", daemon=True)
        self._thread.start()
        came = self._first.wait(self.patience_s)
        if self._samples:
            return self
        crash = self._crash
        self.__exit__(None, None, None)
        if crash is not None:
            raise crash
        trouble = self._trouble or "it says nothing"
        waited = "" if came else f" in {self.patience_s:g} s"
        raise HardwareError(f"{self.name} gave no sample{waited}: {trouble}. {self._advice()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(CLOSING_SECONDS)
            self._thread = None

    def samples(self) -> list[Sample]:
        return list(self._samples)


class Polled(Listening):
    """A meter that is read at a fixed rate.

    Args:
        rate_hz: readings a second.
    """

    def __init__(self, rate_hz: float) -> None:
        super().__init__()
        if not is_number(rate_hz) or not 1 <= rate_hz <= 1000:
            raise ValueError(f"rate_hz must be a number from 1 to 1000, not {rate_hz!r}")
        self.rate_hz = float(rate_hz)

    def _begin(self) -> None:
        """Before the first reading."""

    @abstractmethod
    def _read(self) -> float | None:
        """Power now, or since the last reading, in W; None where there is none yet."""

    def _listen(self) -> None:
        self._begin()
        due = time.monotonic()
        while not self._closed.wait(max(0.0, due - time.monotonic())):
            watt = self._read()
            if watt is not None:
                self._take(Sample(time.monotonic(), watt))
            due = max(due + 1 / self.rate_hz, time.monotonic())  # what was missed is not made up for


def opened(section: Mapping[str, Any] | None, *, host: str | None = None) -> Source | None:
    """The meter of a section `energy`, to be used in `with`; None for energy=none.

    Args:
        section: of a resolved configuration: _target_ and the arguments of its class.
        host: the device that is to be metered; None for this machine.

    Raises:
        ConfigError: a value that cannot work, or a meter that cannot reach that device.
    """
    if not section:
        return None
    source: Source = build(section, "energy")
    if host is not None and source.of_this_machine:
        raise ConfigError(
            f"energy: {source.name} meters the machine that it runs on, not hardware.host={host}. For another device "
            "use a meter in its supply: energy=smartpower2, energy=hwmon or energy=csv"
        )
    return source
