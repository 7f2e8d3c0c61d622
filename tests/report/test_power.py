"""Power over time: what is drawn, what is kept, and what a stranger's record may not do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dxc.hardware.measure.energy.metering import Metering
from dxc.hardware.measure.energy.protocol import Energy, Sample, Window, judge
from dxc.report.power import power


def _metering() -> Metering:
    """2 W idle, then 5 W in three loads."""
    kinds = ("idle", "load", "load", "load", "idle")
    windows = [
        Window(kind, 40.0 * place, 40.0 * place + 39, 100, 38.5) if kind == "load" else
        Window(kind, 40.0 * place, 40.0 * place + 39)
        for place, kind in enumerate(kinds)
    ]  # fmt: skip
    samples = [Sample(float(second), 5.0 if 40 <= second < 159 else 2.0) for second in range(200)]
    return Metering("SmartPower 2", samples, windows, judge(samples, windows, latency_ms=385.0))


def test_the_windows_are_marked() -> None:
    metering = _metering()
    assert metering.energy.valid, metering.energy.reason
    (axes,) = power(metering, title="a network").axes
    assert list(axes.lines[0].get_ydata()) == [each.watt for each in metering.samples]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]  # type: ignore[attr-defined]
    assert spans == [(40.0 * place, 40.0 * place + 39) for place in range(5)]
    means = [lines.get_segments()[0][0][1] for lines in axes.collections]  # type: ignore[attr-defined]
    assert means == pytest.approx([2, 5, 5, 5, 2])
    title = axes.get_title(loc="left")
    assert title.startswith(
        "a network, SmartPower 2\ngross 1950 ± 0 mJ, net 1170 ± 0 mJ an image; at most 5.00 W"
    )


def test_an_invalid_figure_says_so() -> None:
    metering = _metering()
    title = (
        power(replace(metering, energy=Energy(False, "the device throttled itself")))
        .axes[0]
        .get_title(loc="left")
    )
    assert "invalid: the device throttled itself" in title
    power(Metering("none", [], [], Energy(False, "the meter gave no sample")))


def test_it_is_kept_whole(tmp_path: Path) -> None:
    metering = _metering()
    metering.save(tmp_path / "energy.json")
    read = Metering.load(tmp_path / "energy.json")
    assert (read.meter, read.samples, read.windows) == (metering.meter, metering.samples, metering.windows)
    assert read.energy.metrics() == metering.energy.metrics()
    beside = {"reason": "", "content": metering.content()}
    (tmp_path / "energy.json").write_text(json.dumps(beside))
    assert Metering.load(tmp_path / "energy.json") == read


@pytest.mark.parametrize(
    "change",
    [
        {"samples": [[0, "5"]]},
        {"samples": [[0, float("nan")]]},
        {"samples": 3},
        {"windows": [{"kind": "load"}]},
        {"energy": []},
        {"energy": {"valid": True, "reason": "", "energy_mj": "__import__"}},
    ],
)
def test_a_record_that_is_none(tmp_path: Path, change: dict) -> None:
    _metering().save(tmp_path / "energy.json")
    content = json.loads((tmp_path / "energy.json").read_text())
    (tmp_path / "energy.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match="it is no record of a meter"):
        Metering.load(tmp_path / "energy.json")
