"""A table of (time, watt) that any meter wrote, whose clock is brought to this machine's.

The load itself is the mark: idle, load and idle again. The table is moved in time, and its clock made faster or slower
by up to 1 in 1,000, until its power tells best between the windows of load and those of idleness.
"""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dxc.errors import HardwareError, is_number
from dxc.hardware.measure.energy.protocol import EDGE_SECONDS, Sample, Window
from dxc.hardware.measure.energy.sources import Source
from dxc.text import visible

Array = NDArray[np.float64]

MAX_BYTES = 500_000_000  # an hour at 1,000 samples a second has 80 MB
EPOCH_SECONDS = 1e9
"""A time after this is of a wall clock (2001 and later), one before it since the begin of the record."""
RATES = 1 + np.linspace(-1e-3, 1e-3, 9)
MIN_CORRELATION = 0.7
"""Of power with load, at the best place. A table of another time has about 0."""


class Aligned(NamedTuple):
    """Where a table lies on this machine's clock: at time x its samples are at rate * x + offset_s."""

    offset_s: float
    rate: float
    correlation: float


class MeterFile(Source):
    """A CSV file in which another program writes what a meter says.

    Args:
        file: with a line of names. It is read when windows are over, so it may grow meanwhile.
        time: name of the column of time: seconds since any begin, seconds since 1970, or ISO 8601.
        watt: name of the column of power in W.
        search_s: how far the meter's clock may be off, in seconds. Where its times have a begin of their own, the last
            sample is taken to be of now.
        wait_s: how long to wait for the file to reach the end of the windows.
    """

    name = "CSV"

    def __init__(
        self,
        file: str,
        time: str = "time",
        watt: str = "watt",
        search_s: float = 60.0,
        wait_s: float = 10.0,
    ) -> None:
        for key, value in (("search_s", search_s), ("wait_s", wait_s)):
            if not is_number(value) or not 0 <= value < math.inf:
                raise ValueError(f"energy.{key} must be a number of at least 0, not {value!r}")
        self.file, self.time, self.watt = Path(file), time, watt
        self.search_s, self.wait_s = float(search_s), float(wait_s)
        self._wall_s = 0.0
        self._windows: list[Window] = []

    def __enter__(self) -> Self:
        self._wall_s = time.time() - time.monotonic()
        self._windows = []
        if not self.file.parent.is_dir():
            raise HardwareError(f"energy.file={self.file}: there is no folder {self.file.parent}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._windows = []

    def samples(self) -> list[Sample]:
        """The file's samples, placed by its own times only."""
        return [Sample(*each) for each in zip(*self._read(), strict=True)]

    def during(self, windows: Sequence[Window]) -> list[Sample]:
        # all windows so far: those of one network look like those of the next
        self._windows += [each for each in windows if each not in self._windows]
        begin, end = min(each.begin_s for each in windows), max(each.end_s for each in windows)
        patience = time.monotonic() + self.wait_s
        while True:
            times, watts = self._read()
            found = align(times, watts, self._windows, self.search_s, name=str(self.file))
            placed = times * found.rate + found.offset_s
            if placed[-1] >= end - EDGE_SECONDS or time.monotonic() > patience:
                break
            time.sleep(0.5)
        near = (placed >= begin - 5) & (placed <= end + 5)
        return [Sample(float(at), float(watt)) for at, watt in zip(placed[near], watts[near], strict=True)]

    def _read(self) -> tuple[Array, Array]:
        """Times, as this machine's monotonic clock would have them if the meter's clock were right, and watts."""
        try:
            size = self.file.stat().st_size
            if size > MAX_BYTES:
                raise HardwareError(
                    f"energy.file={self.file} has {size / 1e6:.0f} MB; at most 500 MB are read"
                )
            with self.file.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                times, watts = self._columns(csv.reader(file))
        except OSError as error:
            raise HardwareError(f"energy.file={self.file} cannot be read: {error.strerror}") from error
        except csv.Error as error:
            raise HardwareError(f"energy.file={self.file} is not a CSV file: {error}") from error
        if len(times) < 2:
            raise HardwareError(f"energy.file={self.file} has no two rows with a time and a power")
        if times[0] >= EPOCH_SECONDS:
            return times - self._wall_s, watts
        return times - times[-1] + time.monotonic(), watts

    def _columns(self, rows: Iterator[list[str]]) -> tuple[Array, Array]:
        names = [each.strip() for each in next(rows, [])]
        for key, name in (("time", self.time), ("watt", self.watt)):
            if name not in names:
                shown = visible(", ".join(names)[:200]) or "none"
                raise HardwareError(
                    f"energy.file={self.file} has no column {name}; it has: {shown}. Name it with energy.{key}=NAME"
                )
        at, power = names.index(self.time), names.index(self.watt)
        found: list[tuple[float, float]] = []
        bad = ""
        for number, row in enumerate(rows, start=2):
            try:
                pair = _seconds(row[at]), float(row[power])
            except (ValueError, IndexError):  # the last line may be half written; others are lost samples
                bad = bad or f"line {number}: {visible(','.join(row)[:60])}"
                continue
            if all(map(math.isfinite, pair)):
                found.append(pair)
        if bad and not found:
            raise HardwareError(f"energy.file={self.file}: no row holds a time and a number of watts; {bad}")
        table = np.array(found, dtype=float).reshape(-1, 2)
        times, places = np.unique(table[:, 0], return_index=True)
        return times, table[places, 1]


def _seconds(text: str) -> float:
    """A time in seconds; of ISO 8601 since 1970, in this machine's zone where it names none."""
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()).timestamp()


def align(
    times: Array, watts: Array, windows: Sequence[Window], search_s: float, *, name: str = "the record"
) -> Aligned:
    """Find where a record lies in time; see the head of this file.

    Args:
        times: of the samples (n,), ascending, s.
        watts: of the samples (n,).
        windows: of this machine, idle and load, on the clock to which the record is brought.
        search_s: greatest distance of the two clocks.
        name: of the record, for errors.

    Raises:
        HardwareError: the record does not show the load.
    """
    if not {"idle", "load"} <= {each.kind for each in windows}:
        raise HardwareError(f"{name}: its clock cannot be found without a time of load and an idle one")
    middle = (min(each.begin_s for each in windows) + max(each.end_s for each in windows)) / 2
    steps = np.arange(-search_s, search_s + 0.25, 0.25)
    coarse, _ = _best(times, watts, windows, middle, itertools.product([1.0], steps))
    nearby = [(rate, coarse[1] + step) for rate in RATES for step in np.arange(-1.5, 1.55, 0.05)]
    (rate, shift), correlation = _best(times, watts, windows, middle, nearby)
    if correlation < MIN_CORRELATION:
        raise HardwareError(
            f"{name} does not show when the device worked: its power and the load have a correlation of "
            f"{correlation:.2f}, {MIN_CORRELATION} is the least. Does the meter supply this device, was it recording "
            f"all the time, and is its clock off by less than energy.search_s={search_s:g} s?"
        )
    return Aligned(middle * (1 - rate) + shift, rate, correlation)


def _best(
    times: Array, watts: Array, windows: Sequence[Window], middle: float, tried: Iterable[tuple[float, float]]
) -> tuple[tuple[float, float], float]:
    """Of pairs (rate, shift) the one at which power correlates best with load, and that correlation.

    Of pairs that do equally well, because no sample lies between them, it is the mean.
    """
    ordered = sorted(windows, key=lambda each: each.begin_s)
    edges = np.array([at for each in ordered for at in (each.begin_s, each.end_s)])
    kinds = np.array([each.kind == "load" for each in ordered])
    length = float(sum(each.seconds for each in ordered))
    period = float(np.median(np.diff(times)))
    pairs = list(tried)
    scores = np.full(len(pairs), -1.0)
    for number, (rate, shift) in enumerate(pairs):
        placed = (times - middle) * rate + middle + shift
        window, inside = np.divmod(np.searchsorted(edges, placed), 2)
        used = inside == 1
        if used.sum() < 0.8 * length / period:  # the record would not cover the windows
            continue
        load, power = kinds[window[used]].astype(float), watts[used]
        if load.std() > 0 and power.std() > 0:
            scores[number] = np.corrcoef(load, power)[0, 1]
    top = scores.max()
    equal = np.array([pair for pair, score in zip(pairs, scores, strict=True) if score >= top - 1e-9])
    rate, shift = equal.mean(axis=0)
    return (float(rate), float(shift)), float(top)
