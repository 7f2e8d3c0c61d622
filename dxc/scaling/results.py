"""Measured runs -> speed-up, efficiency, device-hours, price. Pure: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

Scaling = Literal["weak", "strong"]
MISSING = math.nan


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run gave. Times are in seconds; what was not measured is NaN.

    Attributes:
        scaling: weak: the batch of a device stays the same. strong: that of all devices together does.
        devices: on each node.
        device_batch: images of one device in a step.
        images_per_second: of all devices, in the timed part.
        wall_seconds: the timed part, on rank 0.
        step_s: a step of the timed part, the wait for images included.
        synced_s: a step with all-reduce of the gradients, measured alone. synced_error_s: its standard error.
        compute_s: the same step without it. compute_error_s: its standard error.
        loader_s: of a step of the timed part, the wait for images.
        least_step_s: the time below which no step can be, by the peaks of the device (roofline).
        gradient_bytes: what is reduced in a step.
        reduced: (bytes, seconds, standard error) of bare all-reduces.
        accuracy: of validation images after the timed part.
        seconds_to_accuracy: training time until the target; NaN where there is none, or it was not reached.
        simulated: whether a pause stands in for computation.
    """

    scaling: Scaling
    nodes: int
    devices: int
    device_batch: int
    images_per_second: float
    wall_seconds: float
    step_s: float
    synced_s: float = MISSING
    synced_error_s: float = MISSING
    compute_s: float = MISSING
    compute_error_s: float = MISSING
    loader_s: float = 0.0
    least_step_s: float = MISSING
    gradient_bytes: int = 0
    reduced: Sequence[tuple[int, float, float]] = ()
    accuracy: float = MISSING
    seconds_to_accuracy: float = MISSING
    simulated: bool = False

    @property
    def total(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices

    @property
    def total_batch(self) -> int:
        """Images of all devices in a step."""
        return self.total * self.device_batch

    @property
    def batch(self) -> int:
        """What stays the same within a series: the batch of a device (weak) or of all (strong)."""
        return self.device_batch if self.scaling == "weak" else self.total_batch

    @property
    def communication_s(self) -> float:
        """What the all-reduce adds to a step: the part that computation does not hide, waits for slower ranks included.
        0 on one device."""
        return 0.0 if self.total == 1 else max(0.0, self.synced_s - self.compute_s)

    @property
    def communication_share(self) -> float:
        """Of a step without the wait for images."""
        return 0.0 if self.total == 1 else self.communication_s / self.synced_s

    @property
    def loader_share(self) -> float:
        """Of a step."""
        return self.loader_s / self.step_s

    @property
    def roofline_share(self) -> float:
        """Of the speed that the peaks of the devices allow; NaN where they are not known."""
        return self.least_step_s / self.step_s

    @property
    def bound_by(self) -> str:
        """What takes the largest part of a step: compute, network or loader."""
        network = 0.0 if math.isnan(self.communication_share) else self.communication_share
        network *= 1 - self.loader_share
        shares = {
            "compute": 1 - self.loader_share - network,
            "network": network,
            "loader": self.loader_share,
        }
        return max(shares, key=lambda name: shares[name])

    @property
    def device_hours(self) -> float:
        """Devices x hours of the timed part."""
        return self.total * self.wall_seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One row: a run beside the smallest one of its series.

    Attributes:
        speedup: images/s relative to one device. Where the smallest run had N devices, they count as N.
        efficiency: speed-up / devices.
        added_speedup: speed-up that each device more gave since the run before; NaN for the smallest.
        accuracy_speedup: how much sooner the target accuracy came, in the same sense.
        price: device-hours x price of one; NaN without one.
        price_per_point: price / accuracy in percentage points.
    """

    outcome: Outcome = field(repr=False)
    speedup: float
    efficiency: float
    added_speedup: float
    accuracy_speedup: float
    price: float
    price_per_point: float


def gains(outcomes: Iterable[Outcome], price_per_device_hour: float | None = None) -> list[Gain]:
    """Compare runs with the smallest run of their series, which has the same scaling and batch.

    Returns them by series and number of devices; runs with as many devices on fewer nodes come first.
    """
    ordered = sorted(outcomes, key=lambda each: (*_series(each), each.total, each.nodes))
    rows: list[Gain] = []
    for _, group in groupby(ordered, key=_series):
        first, before = None, None
        for each in group:
            first = first or each
            speedup = first.total * each.images_per_second / first.images_per_second
            added = MISSING
            if before is not None and each.total > before.outcome.total:
                added = (speedup - before.speedup) / (each.total - before.outcome.total)
            price = each.device_hours * (MISSING if price_per_device_hour is None else price_per_device_hour)
            rows.append(
                Gain(
                    outcome=each,
                    speedup=speedup,
                    efficiency=speedup / each.total,
                    added_speedup=added,
                    accuracy_speedup=first.total * first.seconds_to_accuracy / each.seconds_to_accuracy,
                    price=price,
                    price_per_point=price / (100 * each.accuracy) if each.accuracy > 0 else MISSING,
                )
            )
            if before is None or each.total > before.outcome.total:
                before = rows[-1]
    return rows


def by_series(rows: Iterable[Gain]) -> Mapping[tuple[Scaling, int], list[Gain]]:
    """Rows by (scaling, batch)."""
    found: dict[tuple[Scaling, int], list[Gain]] = {}
    for row in rows:
        found.setdefault(_series(row.outcome), []).append(row)
    return found


def _series(outcome: Outcome) -> tuple[Scaling, int]:
    return outcome.scaling, outcome.batch
