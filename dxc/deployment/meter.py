"""The one place where a meter is opened and judged. Without one, energy is missing, and the record says why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

NO_METER = "no meter (energy=none)"


@dataclass(frozen=True)
class Window:
    """A time in which the device did one thing. Times are time.monotonic() of this machine, in seconds.

    Attributes:
        kind: idle, or load: a network was run.
        begin_s: when its beginning was heard of.
        end_s: when its end was heard of.
        images: that were inferred.
        inference_seconds: of the window that were spent inside session.run, by the device's clock.
    """

    kind: Literal["idle", "load"]
    begin_s: float
    end_s: float
    images: int = 0
    inference_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What a meter's samples give.

    Attributes:
        metrics: of dxc.metrics; none of an invalid figure.
        content: for the record: samples, figures, and the reason where there are none.
        reason: why there is no energy; '' where there is.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class Meter(Protocol):
    """A power meter that is listened to."""

    name: str

    def verdict(self, windows: Sequence[Window], *, latency_ms: float, throttled: bool) -> Verdict:
        """Judge what was sampled in the windows of one network.

        Args:
            windows: of the network, all of them over.
            latency_ms: mean over its runs.
            throttled: whether the device slowed down.
        """


@contextlib.contextmanager
def opened(settings: Mapping[str, Any] | None, host: str | None) -> Iterator[Meter | None]:
    """The meter that the section `energy` describes; None where there is none.

    Args:
        settings: the section.
        host: the device; None for this machine.
    """
    yield None


def merit(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metric fom: accuracy in % / (latency in ms x energy in mJ), where a device gave all three in one run.

    Args:
        metrics: of that run.
    """
    needed = ("device_accuracy", "measured_latency_ms", "energy_mj")
    if not all(name in metrics for name in needed):
        return {}
    accuracy, latency_ms, energy_mj = (metrics[name] for name in needed)
    return {"fom": 100 * accuracy / (latency_ms * energy_mj)}


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
