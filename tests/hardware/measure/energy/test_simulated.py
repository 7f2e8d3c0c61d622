"""The simulated meter: its power follows the events of a device, it says what is true, and that it is none."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dxc.errors import ConfigError
from dxc.hardware.measure.energy.simulated import SimulatedMeter, Truth
from dxc.hardware.measure.energy.smartpower2 import SmartPower2


def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def _write(events: Path, *contents: object, mode: str = "a") -> None:
    with events.open(mode) as file:
        file.writelines(json.dumps(each) + "\n" for each in contents)


def test_power_follows_the_events(tmp_path: Path) -> None:
    """2 W, and 4.5 W in a window of load. What an earlier run left open does not count, nor does half a line."""
    events, truths = tmp_path / "events.jsonl", []
    _write(events, {"event": "begin", "kind": "load", "repeat": 1})
    with (
        SimulatedMeter(events, noise_w=0, period_s=0.1, told=truths.append) as meter,
        SmartPower2("127.0.0.1", meter.port) as source,
    ):
        assert source.name == "simulated SmartPower 2"

        def last() -> float:
            return source.samples()[-1].watt

        assert {each.watt for each in source.samples()} == {2.0}
        _write(events, {"event": "begin", "kind": "idle"}, {"event": "end", "kind": "idle", "images": 0})
        _write(events, "no event", {"event": "progress"})
        begun = time.monotonic()
        with events.open("a") as file:
            file.write('{"event": "begin", "ki')
            file.flush()
            time.sleep(0.1)
            file.write('nd": "load"}\n')
        _until(lambda: last() == 4.5)
        time.sleep(0.3)
        _write(events, {"event": "end", "kind": "load", "images": 30})
        took = time.monotonic() - begun
        _until(lambda: last() == 2.0)
        # a run that was killed leaves its window open; the next one begins its file anew
        _write(events, {"event": "begin", "kind": "load"})
        _until(lambda: last() == 4.5)
        _write(events, {"event": "images", "count": 3}, mode="w")
        _until(lambda: last() == 2.0)
    idle, load = truths
    assert (idle.kind, idle.images, load.kind, load.images) == ("idle", 0, "load", 30)
    assert 0.3 < load.seconds < took + 0.1
    assert load.joule == pytest.approx(4.5 * load.seconds)
    assert {round(each.watt, 3) for each in source.samples()} - {2.0, 4.5} != set()  # means over an edge


def test_a_truth_in_words() -> None:
    assert str(Truth("load", 31.0, 139.5, 1000)) == (
        "true energy, load: 31.00 s, 139.500 J, 139.500 mJ an image"
    )
    assert str(Truth("idle", 30.0, 60.0, 0)) == "true energy, idle: 30.00 s, 60.000 J"


def test_values_that_cannot_be(tmp_path: Path) -> None:
    for values in ({"load_w": 26.0}, {"idle_w": float("nan")}, {"noise_w": -1.0}, {"port": 70000}):
        with pytest.raises(ConfigError, match="from 0 to"):
            SimulatedMeter(tmp_path / "events.jsonl", **values)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="cannot be used: Address already in use"),
    ):
        SimulatedMeter(tmp_path / "events.jsonl", port=taken.getsockname()[1])
