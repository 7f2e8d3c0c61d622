"""A model of the step time, fitted to measured runs: compute, bandwidth, latency. And Amdahl's law.

    step(N, b) = beside x (fixed + image x b + exposed x all-reduce(N)) + wait x b
    all-reduce(N) = 2 (N - 1) / N x bytes / bandwidth + 2 (N - 1) x latency

N devices with b images each. The second line is the ring all-reduce (Patarasuk and Yuan 2009, doi
10.1016/j.jpdc.2008.09.002): each device sends and receives its share of the gradients 2 (N - 1) times. Bandwidth and
latency come from bare all-reduces. `exposed` is how much of an all-reduce a step feels: below 1 where computation hides
it, over 1 where it takes the processor's time from computation. fixed and image come from steps without all-reduce.
`beside` is what a step of the timed part takes relative to a step that was measured alone, in the largest run: images
are made in it, and others may use the machine. So the model passes through that run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxc.scaling.results import Outcome, Scaling, by_series, gains

DRAWS = 200
LEVEL = 0.9
"""Share of the draws that an interval holds."""
STOPS_BELOW = 0.5
"""Efficiency at which another device is not worth half of the first one."""
MOST_DEVICES = 4096


@dataclass(frozen=True)
class StepModel:
    """The fitted parameters. Seconds, bytes, images.

    Attributes:
        fixed_s: computation of a step that does not depend on the batch.
        image_s: computation of an image.
        wait_s: wait for an image of the loader.
        byte_s: 1 / bandwidth.
        latency_s: of one message.
        exposed, beside: see the head of this module.
        gradient_bytes: what is reduced in a step.
    """

    fixed_s: float
    image_s: float
    wait_s: float
    byte_s: float
    latency_s: float
    exposed: float
    gradient_bytes: int
    beside: float = 1.0

    @property
    def bandwidth(self) -> float:
        """Bytes per second; infinite where no time for bytes was found."""
        return 1 / self.byte_s if self.byte_s > 0 else math.inf

    def reduce_s(self, total: int, size: float | None = None) -> float:
        """A bare all-reduce of so many bytes (None: the gradients) over all devices."""
        volume, messages = ring(total)
        return (
            volume * (self.gradient_bytes if size is None else size) * self.byte_s + messages * self.latency_s
        )

    def step_s(self, total: int, device_batch: float) -> float:
        """A step on so many devices with so many images each."""
        compute = self.fixed_s + self.image_s * device_batch
        return self.beside * (compute + self.exposed * self.reduce_s(total)) + self.wait_s * device_batch

    def images_per_second(self, total: int, device_batch: float) -> float:
        """Of all devices."""
        return total * device_batch / self.step_s(total, device_batch)


def ring(total: int) -> tuple[float, float]:
    """What a ring all-reduce sends: its volume relative to the data, and its messages one after the other."""
    return 2 * (total - 1) / total, 2 * (total - 1)


@dataclass(frozen=True)
class Prediction:
    """Predicted figures of a run, with the bounds of LEVEL of the draws."""

    scaling: Scaling
    total: int
    device_batch: float
    images_per_second: float
    speedup: float
    low: float
    """Of the speed-up."""
    high: float

    @property
    def efficiency(self) -> float:
        return self.speedup / self.total


@dataclass(frozen=True)
class Fit:
    """A model, and models of the same runs whose times were drawn within their errors.

    Attributes:
        model: of the times as they were measured.
        draws: of drawn times.
        largest: number of devices of the largest run in it. Beyond it a prediction is an extrapolation.
        one_device: measured images/s by series: those of its smallest run / devices of that run.
    """

    model: StepModel
    draws: tuple[StepModel, ...]
    largest: int
    one_device: Mapping[tuple[Scaling, int], float]

    def predict(self, total: int, scaling: Scaling, batch: int) -> Prediction:
        """What so many devices would give.

        Args:
            total: number of devices.
            scaling: weak or strong.
            batch: of a device (weak) or of all (strong). Of a series that was not measured, the speed-up is relative to
                what the model says of one device.
        """
        share = batch if scaling == "weak" else batch / total
        speedups = [self._speedup(each, total, scaling, batch) for each in self.draws]
        low, high = np.quantile(speedups, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Prediction(
            scaling=scaling,
            total=total,
            device_batch=share,
            images_per_second=self.model.images_per_second(total, share),
            speedup=self._speedup(self.model, total, scaling, batch),
            low=float(low),
            high=float(high),
        )

    def stops_at(self, scaling: Scaling, batch: int) -> int | None:
        """The first power of two of devices with an efficiency below STOPS_BELOW; None where there is none up to
        MOST_DEVICES. A strong series ends where a device has less than one image."""
        total = 2
        while total <= (MOST_DEVICES if scaling == "weak" else min(MOST_DEVICES, batch)):
            if self._speedup(self.model, total, scaling, batch) / total < STOPS_BELOW:
                return total
            total *= 2
        return None

    def _speedup(self, model: StepModel, total: int, scaling: Scaling, batch: int) -> float:
        share = batch if scaling == "weak" else batch / total
        alone = self.one_device.get((scaling, batch)) or model.images_per_second(1, batch)
        return model.images_per_second(total, share) / alone


def fit(runs: Sequence[Outcome], *, seed: int = 0) -> Fit | None:
    """Fit the model to runs of one network.

    Args:
        runs: on one node each, or on several each: the links between nodes are others than those within.
        seed: of the draws.

    Returns None where no run had more than one device and measured its communication: nothing is known of it then.
    """
    known = [each for each in runs if each.compute_s > 0]
    if not any(each.total > 1 and each.reduced for each in known):
        return None
    rng = np.random.default_rng(seed)
    uncertain = _with_trend(known)
    draws = tuple(_fit([_drawn(each, rng) for each in uncertain]) for _ in range(DRAWS))
    one_device = {
        series: rows[0].outcome.images_per_second / rows[0].outcome.total
        for series, rows in by_series(gains(runs)).items()
    }
    return Fit(_fit(known), draws, max(each.total for each in known), one_device)


def _with_trend(runs: Sequence[Outcome]) -> list[Outcome]:
    """Computation that changed with the number of devices may go on to change: half of the last change is added to the
    error of the largest run of each batch."""
    adjusted = list(runs)
    for batch in {each.device_batch for each in runs}:
        ordered = sorted((each for each in runs if each.device_batch == batch), key=lambda each: each.total)
        if len(ordered) > 1:
            last, before = ordered[-1], ordered[-2]
            error = np.hypot(np.nan_to_num(last.compute_error_s), abs(last.compute_s - before.compute_s) / 2)
            adjusted[adjusted.index(last)] = replace(last, compute_error_s=float(error))
    return adjusted


def _drawn(run: Outcome, rng: np.random.Generator) -> Outcome:
    """The same run, with times that differ within their standard errors."""

    def around(value: float, error: float) -> float:
        return max(value / 10, value + float(rng.normal()) * (error if error > 0 else 0.0))

    return replace(
        run,
        synced_s=around(run.synced_s, run.synced_error_s),
        compute_s=around(run.compute_s, run.compute_error_s),
        reduced=[(size, around(seconds, error), error) for size, seconds, error in run.reduced],
    )


def _fit(runs: Sequence[Outcome]) -> StepModel:
    parallel = [each for each in runs if each.total > 1 and each.reduced]
    rows, times = [], []
    for each in parallel:
        volume, messages = ring(each.total)
        for size, seconds, _ in each.reduced:
            rows.append((volume * size, messages))
            times.append(seconds)
    byte_s, latency_s = _relative_least_squares(rows, times)
    fixed_s, image_s = _compute(runs)
    largest = max(runs, key=lambda each: each.total)
    model = StepModel(
        fixed_s,
        image_s,
        wait_s=largest.loader_s / largest.device_batch,
        byte_s=byte_s,
        latency_s=latency_s,
        exposed=1.0,
        gradient_bytes=parallel[-1].gradient_bytes,
    )
    bare = np.array([model.reduce_s(each.total, each.gradient_bytes) for each in parallel])
    felt = np.array([each.communication_s for each in parallel])
    exposed = float(bare @ felt / (bare @ bare)) if bare.any() else 0.0
    model = replace(model, exposed=exposed)
    alone = replace(model, wait_s=0.0).step_s(largest.total, largest.device_batch)
    return replace(model, beside=(largest.step_s - largest.loader_s) / alone)


def _compute(runs: Sequence[Outcome]) -> tuple[float, float]:
    """Fixed time of a step, and time of an image.

    One batch cannot tell the two apart: all is the images' then, and the model holds for that batch. Of that batch the
    largest run counts: there the machine was loaded as it is with more devices.
    """
    batches = {each.device_batch for each in runs}
    if len(batches) == 1:
        largest = max(runs, key=lambda each: each.total)
        return 0.0, largest.compute_s / largest.device_batch
    rows = [(1.0, float(each.device_batch)) for each in runs]
    fixed_s, image_s = _relative_least_squares(rows, [each.compute_s for each in runs])
    return fixed_s, image_s


def _relative_least_squares(rows: ArrayLike, times: ArrayLike) -> NDArray[np.float64]:
    """Coefficients of at least 0 that bring the relative errors of these times to their least."""
    from scipy.optimize import nnls

    matrix, seconds = np.asarray(rows, dtype=float), np.asarray(times, dtype=float)
    weighted = matrix / seconds[:, None]
    scale = np.linalg.norm(weighted, axis=0)  # bytes are many and messages few
    scale[scale == 0] = 1.0
    found, _ = nnls(weighted / scale, np.ones(len(seconds)))
    return found / scale


@dataclass(frozen=True)
class Amdahl:
    """Amdahl's law (1967, doi 10.1145/1465482.1465560): speed-up = 1 / (serial + (1 - serial) / N).

    Attributes:
        serial: share of the work that more devices do not speed up.
        error: its standard error; NaN from a single run with several devices.
    """

    serial: float
    error: float

    def speedup(self, total: float) -> float:
        return 1 / (self.serial + (1 - self.serial) / total)


def amdahl(totals: Sequence[int], speedups: Sequence[float]) -> Amdahl | None:
    """Fit the serial share to measured speed-ups; None where no run had more than one device.

    1 / speed-up - 1 / N = serial x (1 - 1 / N): a line through the origin.
    """
    points = [(1 - 1 / n, 1 / s - 1 / n) for n, s in zip(totals, speedups, strict=True) if n > 1]
    if not points:
        return None
    x, y = np.array(points).T
    serial = float(x @ y / (x @ x))
    left = y - serial * x
    error = math.sqrt(left @ left / (len(x) - 1) / (x @ x)) if len(x) > 1 else math.nan
    return Amdahl(min(1.0, max(0.0, serial)), error)
