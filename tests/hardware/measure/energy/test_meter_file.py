"""Tables of other programs, with clocks that are off and that drift."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from dxc.errors import HardwareError
from dxc.hardware.measure.energy.meter_file import MeterFile, align
from dxc.hardware.measure.energy.metering import metered
from dxc.hardware.measure.energy.protocol import Window


def _windows(begin: float, network: int = 0) -> list[Window]:
    """Of one network, which takes longer than the last one."""
    kinds, found, at = ["idle", "load", "load", "load", "idle"], [], begin
    for kind in kinds:
        seconds = 40.0 + (5 * network if kind == "load" else 0)
        found.append(Window(kind, at, at + seconds, *((1000, 0.98 * seconds) if kind == "load" else ())))
        at += seconds + 1.5
    return found


def _record(
    windows: list[Window], rng: np.random.Generator, *, rate: float = 10, noise: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Times and watts, 2 W idle and 5 W under load, on this machine's clock."""
    times = np.arange(windows[0].begin_s - 20, windows[-1].end_s + 20, 1 / rate) + rng.uniform(0, 1 / rate)
    watts = np.full(len(times), 2.0)
    for each in windows:
        if each.kind == "load":
            watts[(times >= each.begin_s) & (times < each.end_s)] = 5.0
    return times, watts + rng.normal(0, noise, len(times))


@pytest.mark.parametrize("drift", [0, 2e-4, -8e-4])
@pytest.mark.parametrize("rate", [1, 10])
@pytest.mark.parametrize("off", [0.0, -37.3, 55.1])
def test_the_offset_is_found(drift: float, rate: float, off: float) -> None:
    """By the edges of three loads, to a part of a sample; so the energy is right."""
    rng = np.random.default_rng(int(abs(off)))
    windows = _windows(5000.0)
    times, watts = _record(windows, rng, rate=rate)
    middle = (windows[0].begin_s + windows[-1].end_s) / 2
    theirs = (times - middle) * (1 + drift) + middle + off
    found = align(theirs, watts, windows, 60)
    placed = theirs * found.rate + found.offset_s
    within = (times > windows[0].begin_s) & (times < windows[-1].end_s)
    assert abs(placed - times)[within].max() < (0.6 if rate == 1 else 0.15)
    assert found.correlation > 0.95


def _write(path: Path, times: np.ndarray, watts: np.ndarray, names: str = "time,watt") -> None:
    lines = [f"{at:.4f},{watt:.4f}" for at, watt in zip(times, watts, strict=True)]
    path.write_text("\n".join([names, *lines]) + "\n")


@pytest.mark.parametrize("clock", ["wall", "iso", "own"])
def test_energy_from_a_file(tmp_path: Path, clock: str) -> None:
    """Two networks, one after the other: each gets its own windows, though the file holds both."""
    path = tmp_path / "power.csv"
    first = _windows(time.monotonic() - 600)
    second = _windows(first[-1].end_s + 1, network=1)
    times, watts = _record([*first, *second], np.random.default_rng(1))
    wall = time.time() - time.monotonic()
    with MeterFile(str(path), search_s=60) as source:
        for windows in (first, second):
            until = times < windows[-1].end_s + 3
            # of a clock of its own the last sample is taken to be of now: the file was written meanwhile
            now = time.monotonic() - times[until][-1] if clock == "own" else 0
            shifted = [
                Window(each.kind, each.begin_s + now, each.end_s + now, each.images, each.inference_seconds)
                for each in windows
            ]
            begin = {"wall": wall + 20.5, "iso": wall - 12.25, "own": -times[0]}[clock]
            _write(path, times[until] + begin, watts[until])
            if clock == "iso":
                lines = path.read_text().splitlines()
                stamps = [
                    f"{datetime.fromtimestamp(float(line.split(',')[0]), UTC).isoformat()},{line.split(',')[1]}"
                    for line in lines[1:]
                ]
                path.write_text("\n".join([lines[0], *stamps, "2024-"]))
            if clock == "own":
                source._windows = []  # the test moved the windows
            both = metered(source, shifted, latency_ms=None)
            found, samples = both.energy, both.samples
            assert found.valid, found.reason
            assert abs(found.energy_mj - 5 * windows[1].seconds) < found.energy_error_mj + 0.2
            assert len(samples) == pytest.approx(10 * (windows[-1].end_s - windows[0].begin_s), rel=0.08)


def test_a_file_that_shows_no_load(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    windows = _windows(time.monotonic() - 300)
    times, watts = _record(windows, np.random.default_rng(1))
    _write(path, times, np.random.default_rng(2).normal(3, 0.1, len(times)))
    with MeterFile(str(path), wait_s=0) as source:
        both = metered(source, windows, latency_ms=None)
    found, samples = both.energy, both.samples
    assert not found.valid and "does not show when the device worked" in found.reason and not samples
    _write(path, times[:200], watts[:200])
    with MeterFile(str(path), wait_s=0) as source:
        assert "does not show" in metered(source, windows, latency_ms=None).energy.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("", "has no column time; it has: none"),
        ("t,P\n1,2\n", r"has no column time; it has: t, P. Name it with energy.time=NAME"),
        ("time,power\n1,2\n", "has no column watt; it has: time, power. Name it with energy.watt=NAME"),
        ("time,watt\nsoon,much\n", "no row holds a time and a number of watts; line 2: soon,much"),
        ("time,watt\n1,2\n", "has no two rows"),
        ("time,watt\n1,nan\n2,inf\n3,4\n", "has no two rows"),
        ("time,watt\n1,\x1b[2J\n", r"line 2: 1,\\x1b\[2J"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "power.csv"
    if content is not None:
        path.write_text(content)
    with MeterFile(str(path)) as source, pytest.raises(HardwareError, match=message):
        source.samples()


def test_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(HardwareError, match="there is no folder"),
        MeterFile(str(tmp_path / "missing" / "power.csv")),
    ):
        pass
