"""What samples of a power meter say about the energy of one image, and whether it may be trusted.

    idle | load | load | load | idle      each a Window of a minute; `images` are inferred in each load
         ^ ^                              samples within EDGE_SECONDS of an edge do not count

Gross energy of an image is mean power of the inner samples x length of the window / images. At one sample a second
this is unbiased; the trapezoid over the edges of a window is not. Net energy is less what the device takes when idle.
The rules of validity follow those of MLPerf Power (doi 10.1109/HPCA61900.2025.00092) and add to them: see Rules.

All times are in seconds of one clock: time.monotonic() of the machine that listens to the meter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

EDGE_SECONDS = 1.0
"""Samples this near to an edge of a window do not count: a meter averages, and clocks differ by some of it."""
BLOCK_SECONDS = 5.0
"""Samples are averaged over this before their spread is taken: neighbours of a meter are not independent."""
COVERAGE = 0.95


class Sample(NamedTuple):
    """One reading of a meter."""

    time_s: float
    watt: float


@dataclass(frozen=True)
class Window:
    """A time in which the device did one thing.

    Attributes:
        kind: idle, or load: networks were run.
        begin_s: of the window.
        end_s: of the window.
        images: that were inferred.
        inference_seconds: of the window that were spent inside session.run.
    """

    kind: Literal["idle", "load"]
    begin_s: float
    end_s: float
    images: int = 0
    inference_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.begin_s


@dataclass(frozen=True)
class Rules:
    """What a valid figure needs.

    Attributes:
        min_seconds: length of each window.
        min_repeats: windows of load.
        max_period_s: between two samples, in the median.
        min_samples: share of the samples that a window should have at the meter's own rate.
        max_gap_s: between two samples, and between an edge and the sample next to it. Two seconds, and a quarter for
            the unsteady pace: a meter of one sample a second may drop one.
        max_idle_drift: of idle power, after against before.
        max_repeat_spread: greatest less least energy of an image among repeats, over their mean.
        min_inference: share of a load that is spent inside session.run. Gross energy / latency, a power, may exceed
            the greatest power that was seen by what this leaves, and no more.
    """

    min_seconds: float = 30.0
    min_repeats: int = 3
    max_period_s: float = 1.0
    min_samples: float = 0.9
    max_gap_s: float = 2.25
    max_idle_drift: float = 0.05
    max_repeat_spread: float = 0.05
    min_inference: float = 0.95


@dataclass(frozen=True)
class Energy:
    """What an image costs, with a verdict. Figures are None where there was nothing to compute them from.

    Attributes:
        valid: whether the figures may be used. Those that are not stay here for the record only: see metrics().
        reason: why not, each reason after a semicolon; '' if valid.
        energy_mj: gross energy of an image, mean over repeats.
        energy_error_mj: half of an interval that holds the true value in 95 % of the cases. It knows what can be seen
            in samples and repeats. It does not know an error of the meter's own scale.
        net_energy_mj: without what the device takes when idle.
        net_energy_error_mj: as energy_error_mj.
        max_power_w: the greatest sample under load.
        idle_before_w: mean power before the load.
        idle_after_w: mean power after it.
        repeats_mj: gross energy of an image in each load.
        counts: inner samples of each window, in the order of the windows.
    """

    valid: bool
    reason: str = ""
    energy_mj: float | None = None
    energy_error_mj: float | None = None
    net_energy_mj: float | None = None
    net_energy_error_mj: float | None = None
    max_power_w: float | None = None
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    repeats_mj: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Metrics of dxc.metrics. An invalid figure gives none: it can be in no mean and on no front."""
        if not self.valid:
            return {}
        names = ("energy_mj", "net_energy_mj", "max_power_w")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def record(self) -> dict[str, Any]:
        """Everything, in plain containers, for a file beside the run."""
        return asdict(self)


def judge(
    samples: Sequence[Sample],
    windows: Sequence[Window],
    *,
    latency_ms: float | None,
    throttled: bool = False,
    rules: Rules | None = None,
) -> Energy:
    """Energy of an image from the samples of a meter, and whether it is valid.

    Args:
        samples: of the meter, in any order.
        windows: idle, load (three or more), idle, in the order of time.
        latency_ms: mean of session.run for an image, in the same windows; None if unknown.
        throttled: whether the device slowed itself down, for heat or low voltage.
        rules: what a valid figure needs; None for Rules().
    """
    rules = rules or Rules()
    times, watts = _sorted(samples)
    period_s = float(np.median(np.diff(times))) if len(times) > 1 else math.inf
    loads = [each for each in windows if each.kind == "load" and each.images > 0]
    before, after = _idles(windows, loads)
    inner = {id(each): watts[_within(times, each, EDGE_SECONDS)] for each in windows}
    counts = tuple(len(inner[id(each)]) for each in windows)

    faults = list(_faults_of_time(times, period_s, windows, loads, before, after, rules))
    if throttled:
        faults.append("the device throttled itself (heat, or too little voltage)")
    idle = [inner[id(each)] for each in (before, after) if each is not None]
    idle_w = [float(each.mean()) if len(each) else None for each in idle]
    before_w = idle_w[0] if before is not None else None
    after_w = idle_w[-1] if after is not None else None
    if before_w is not None and after_w is not None:
        drift = abs(after_w - before_w) / max((after_w + before_w) / 2, 1e-9)
        if drift > rules.max_idle_drift:
            faults.append(
                f"idle power drifted by {drift:.1%}, from {before_w:.3f} W to {after_w:.3f} W; the most is "
                f"{rules.max_idle_drift:.0%}"
            )
    seen = [inner[id(each)] for each in loads]
    if not loads or not all(map(len, seen)):
        return Energy(False, "; ".join(faults), idle_before_w=before_w, idle_after_w=after_w, counts=counts)

    seconds = np.array([each.seconds / each.images for each in loads])  # of the window, an image
    power = np.array([each.mean() for each in seen])
    repeats = power * seconds * 1000
    energy = float(repeats.mean())
    greatest = float(max(each.max() for each in seen))
    spread = float(np.ptp(repeats) / energy) if energy > 0 else math.inf
    if energy <= 0:
        faults.append("the meter shows no power under load: does it supply the device?")
    elif spread > rules.max_repeat_spread:
        faults.append(
            f"the repeats differ by {spread:.1%} of their mean; the most is {rules.max_repeat_spread:.0%}"
        )
    if latency_ms is not None and latency_ms > 0:
        implied = energy / latency_ms
        if implied > greatest / rules.min_inference:
            faults.append(
                f"energy over latency is {implied:.2f} W, and the greatest power {greatest:.2f} W: the energy covers "
                "more than inference"
            )
    error = _gross_error(seen, loads, seconds, repeats, period_s)
    net = net_error = None
    if before_w is not None and after_w is not None:
        image_s = float(seconds.mean()) * 1000  # mJ of an image for each watt of idle power
        net = energy - (before_w + after_w) / 2 * image_s
        idle_error = math.hypot(*(_error_of_mean(each, period_s) / 2 for each in idle))
        net_error = math.hypot(error, (idle_error + abs(after_w - before_w) / 2) * image_s)
    return Energy(
        valid=not faults,
        reason="; ".join(faults),
        energy_mj=energy,
        energy_error_mj=error,
        net_energy_mj=net,
        net_energy_error_mj=net_error,
        max_power_w=greatest,
        idle_before_w=before_w,
        idle_after_w=after_w,
        repeats_mj=tuple(float(each) for each in repeats),
        counts=counts,
    )


REMEDIES = (
    ("repeats under load", "repeat the load at least three times (repeats=3)"),
    ("no idle time", "leave the device alone before and after (idle_seconds=60)"),
    ("s long; at least", "use longer windows (seconds=60 idle_seconds=60)"),
    ("gave no sample", "see that the meter is on and connected until the end"),
    ("samples; at least", "give the meter a steady connection, and keep this machine quiet"),
    ("has no sample for", "give the meter a steady connection, and keep this machine quiet"),
    ("inside session.run", "stop what else runs on the device"),
    (
        "idle power drifted",
        "let the device come to a steady temperature first, and stop what else runs on it",
    ),
    ("repeats differ", "stop what else runs on the device, and use longer windows (seconds=120)"),
    ("throttled", "cool the device, or give it a stronger supply"),
    ("no power under load", "supply the device, and nothing else, through the meter"),
    ("energy over latency", "stop what else runs on the device"),
    ("connection was lost", "see that the device can be reached all the time"),
)
"""What a reason says, and what to do about it. Each fault that judge() finds is here."""


def advice(reasons: Iterable[str]) -> str:
    """What to do about invalid figures, in one sentence.

    Args:
        reasons: of each Energy, as it was recorded.
    """
    whole = "; ".join(reasons)
    remedies = list(dict.fromkeys(remedy for said, remedy in REMEDIES if said in whole)) or ["mend that"]
    return "; ".join([*remedies, "then repeat the command with again=true"])


def _sorted(samples: Sequence[Sample]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times and watts of the finite samples, by time. Of two with one time the first counts."""
    table = np.array([(each.time_s, each.watt) for each in samples], dtype=float).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    times, places = np.unique(table[:, 0], return_index=True)
    return times, table[places, 1]


def _within(times: NDArray[np.float64], window: Window, edge_s: float) -> NDArray[np.bool_]:
    return np.asarray((times >= window.begin_s + edge_s) & (times <= window.end_s - edge_s))


def _idles(windows: Sequence[Window], loads: Sequence[Window]) -> tuple[Window | None, Window | None]:
    """The idle windows next to the loads, before and after."""
    if not loads:
        return None, None
    begin, end = min(each.begin_s for each in loads), max(each.end_s for each in loads)
    before = [each for each in windows if each.kind == "idle" and each.end_s <= begin]
    after = [each for each in windows if each.kind == "idle" and each.begin_s >= end]
    return (
        max(before, key=lambda each: each.end_s, default=None),
        min(after, key=lambda each: each.begin_s, default=None),
    )


def _faults_of_time(
    times: NDArray[np.float64],
    period_s: float,
    windows: Sequence[Window],
    loads: Sequence[Window],
    before: Window | None,
    after: Window | None,
    rules: Rules,
) -> Iterator[str]:
    """What is wrong with the windows and with when samples came."""
    if len(loads) < rules.min_repeats:
        yield f"{len(loads)} repeats under load; at least {rules.min_repeats} are needed"
    for window, when in ((before, "before"), (after, "after")):
        if window is None:
            yield f"no idle time {when} the load"
    if not len(times):
        yield "the meter gave no sample"
        return
    used = [each for each in (before, *loads, after) if each is not None]
    for window in used:
        name = f"{window.kind} {[each for each in windows if each.kind == window.kind].index(window) + 1}"
        if window.seconds < rules.min_seconds:
            yield f"{name} is {window.seconds:.1f} s long; at least {rules.min_seconds:g} s are needed"
        own = times[_within(times, window, EDGE_SECONDS)]
        expected = (window.seconds - 2 * EDGE_SECONDS) / min(period_s, rules.max_period_s)
        # the window may begin and end between two samples
        if len(own) < rules.min_samples * math.floor(expected):
            yield f"{name} has {len(own)} of about {expected:.0f} samples; at least {rules.min_samples:.0%} are needed"
        marks = [window.begin_s, *times[_within(times, window, 0)], window.end_s]
        gap = float(np.diff(marks).max())
        if gap > rules.max_gap_s:
            yield f"{name} has no sample for {gap:.1f} s; the longest gap may be {rules.max_gap_s:g} s"
        if window.kind == "load":
            share = window.inference_seconds / window.seconds
            if share < rules.min_inference:
                yield (
                    f"{name} was inside session.run for {share:.1%} of its time; at least "
                    f"{rules.min_inference:.0%} are needed"
                )


def _gross_error(
    seen: Sequence[NDArray[np.float64]],
    loads: Sequence[Window],
    seconds: NDArray[np.float64],
    repeats: NDArray[np.float64],
    period_s: float,
) -> float:
    """Half of the 95 % interval of gross energy an image, mJ.

    It is the greater of two: what the spread of samples says, and what that of repeats says. What the edges may hide
    comes on top: up to the first sample that counts, and from the last one on, power is taken to lie between the least
    and the greatest of the inner samples.

    Args:
        seen: inner samples of each load, W.
        loads: the windows.
        seconds: of each window for an image.
        repeats: energy of an image of each, mJ.
        period_s: of the meter.
    """
    from scipy.stats import t

    count = len(loads)
    of_samples = [
        _error_of_mean(watts, period_s) * each * 1000 for watts, each in zip(seen, seconds, strict=True)
    ]
    by_samples = math.hypot(*of_samples) / count
    by_repeats = 0.0
    if count > 1:
        by_repeats = float(t.ppf((1 + COVERAGE) / 2, count - 1) * repeats.std(ddof=1) / math.sqrt(count))
    hidden = [
        2 * (EDGE_SECONDS + period_s) / load.seconds * _reach(watts, period_s)
        for watts, load in zip(seen, loads, strict=True)
    ]
    by_edges = float(np.mean(np.array(hidden) * seconds)) * 1000
    return max(by_samples, by_repeats) + by_edges


def _reach(watts: NDArray[np.float64], period_s: float) -> float:
    """The greatest distance from the mean of what the meter shows in a second, W."""
    seconds = _means(watts, 1.0, period_s)
    return float(abs(seconds - watts.mean()).max())


def _means(watts: NDArray[np.float64], seconds: float, period_s: float) -> NDArray[np.float64]:
    """Means of blocks that are so long; the samples themselves where a block would hold one or none."""
    size = max(1, round(seconds / period_s)) if math.isfinite(period_s) else 1
    return np.array([each.mean() for each in np.array_split(watts, max(1, len(watts) // size))])


def _error_of_mean(watts: NDArray[np.float64], period_s: float) -> float:
    """Half of the 95 % interval of the mean of the samples of one window, W.

    From the successive differences of the means of blocks (von Neumann 1941, doi 10.1214/aoms/1177731677): a slow
    change of power, which a mean over the whole window has right, does not count as noise.
    """
    from scipy.stats import t

    means = _means(watts, BLOCK_SECONDS, period_s)
    if len(means) < 3:
        means = watts
    if (blocks := len(means)) < 2:
        return 0.0
    variance = float((np.diff(means) ** 2).sum()) / (2 * (blocks - 1))
    # a difference shares its ends with its neighbours: 2/3 of the degrees of freedom are left
    freedom = max(1.0, 2 * (blocks - 1) / 3)
    return float(t.ppf((1 + COVERAGE) / 2, freedom) * math.sqrt(variance / blocks))
