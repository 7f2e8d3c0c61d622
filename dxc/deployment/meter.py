"""The one place where a meter is opened and judged. Without one, energy is missing, and the record says why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dxc.hardware.measure.energy import sources
from dxc.hardware.measure.energy.metering import metered
from dxc.hardware.measure.energy.protocol import Window
from dxc.metrics import INVALID, NOT_METERED, VALID, figure_of_merit

NO_METER = "no meter (energy=none)"


@dataclass(frozen=True)
class Verdict:
    """What a meter's samples give.

    Attributes:
        metrics: of dxc.metrics; none of an invalid figure.
        content: for the record, as dxc.hardware.measure.energy.metering writes it; {} where nothing was metered.
        reason: why there is no energy; '' where there is.
        metered: whether a meter was there at all.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    metered: bool = True

    @property
    def said(self) -> str:
        """As the tag ENERGY_VERDICT holds it."""
        if not self.metered:
            return NOT_METERED
        return f"{INVALID}{self.reason}" if self.reason else VALID


class Meter:
    """A power meter that is listened to.

    Args:
        source: of its samples, open.
    """

    def __init__(self, source: sources.Source) -> None:
        self._source = source

    @property
    def name(self) -> str:
        """Of the meter, with the word "simulated" where it is none."""
        return self._source.name

    def verdict(self, windows: Sequence[Window], *, latency_ms: float, throttled: bool) -> Verdict:
        """Judge what was sampled in the windows of one network.

        Args:
            windows: of the network, all of them over.
            latency_ms: mean over its runs: energy over time may not exceed the greatest power.
            throttled: whether the device slowed down.
        """
        found = metered(self._source, windows, latency_ms=latency_ms, throttled=throttled)
        return Verdict(found.energy.metrics(), found.content(), found.energy.reason)


@contextlib.contextmanager
def opened(section: Mapping[str, Any] | None, host: str | None) -> Iterator[Meter | None]:
    """The meter that the section `energy` describes; None where there is none.

    Args:
        section: of the configuration.
        host: the device; None for this machine.

    Raises:
        ConfigError: a value that cannot work, or a meter that cannot reach that device.
        HardwareError: the meter is silent, or speaks nonsense.
    """
    source = sources.opened(section, host=host)
    if source is None:
        yield None
        return
    with source:
        yield Meter(source)


def merit(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metric fom: accuracy in % / (latency in ms x energy in mJ), where a device gave all three in one run.

    Args:
        metrics: of that run.
    """
    accuracy, latency_ms, energy_mj = map(
        metrics.get, ("device_accuracy", "measured_latency_ms", "energy_mj")
    )
    if accuracy is None or not latency_ms or not energy_mj:
        return {}
    return {"fom": figure_of_merit(accuracy, latency_ms, energy_mj)}


class Windows:
    """Makes windows of the events of a run, as they arrive.

    Attributes:
        found: the windows so far.
        whole: False once an event was not heard when it happened: then the windows are not where they seem to be.
    """

    def __init__(self) -> None:
        self.found: list[Window] = []
        self.whole = True
        self._begun_s: float | None = None

    def __call__(self, event: Mapping[str, Any], at_s: float) -> None:
        """Take an event.

        Args:
            event: of dxc.deploy.device_worker.
            at_s: time.monotonic() at which it arrived.
        """
        kind = event.get("event")
        if event.get("replayed") or kind == "lost":
            self.whole = False
        if kind == "begin":
            self._begun_s = at_s
        elif kind == "end" and self._begun_s is not None:
            window = Window(
                "idle" if event.get("kind") == "idle" else "load",
                self._begun_s,
                at_s,
                int(event.get("images", 0)),
                float(event.get("inference_seconds", 0.0)),
            )
            self.found.append(window)
            self._begun_s = None
