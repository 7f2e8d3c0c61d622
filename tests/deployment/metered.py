"""A study under a simulated meter whose true power is known: how it is deployed, and what its tables have to say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from dxc.analysis.compression import compression_table
from dxc.analysis.on_device import deployment_table
from dxc.deployment.deployment import Deployment
from dxc.hardware.measure.energy import protocol
from dxc.hardware.measure.energy.metering import Metering
from dxc.hardware.measure.energy.simulated import SimulatedMeter
from dxc.report.power import power
from tests.deployment.studies import KINDS, artifacts_of, deployed, questions, tracked_runs

IDLE_W, LOAD_W = 2.0, 4.5
METER = "simulated SmartPower 2"
SECONDS = 4
"""Of a window. An edge takes 1 s on each side, and ten samples a second leave 20."""
LATE_S = 0.04
"""By so much the events of a window may come late, to the meter or to this machine, which no error bar can know."""
FIGURES = ("device_accuracy", "measured_latency_ms", "max_power_w", "energy_mj", "fom")


def meter(events: Path) -> SimulatedMeter:
    """A meter of ten samples a second, to be used in `with`.

    Args:
        events: the device's file.
    """
    return SimulatedMeter(events, IDLE_W, LOAD_W, period_s=0.1)


def allow_short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of SECONDS count, and latencies and repeats may spread: other work runs on this machine too."""
    lenient = dataclasses.replace(
        protocol.Rules(),
        min_seconds=SECONDS - 0.5,
        max_repeat_spread=math.inf,
        min_inference=0.5,
        min_samples=0.5,
    )
    monkeypatch.setattr(protocol, "Rules", lambda: lenient)
    monkeypatch.setattr("dxc.deployment.record.MAX_SPREAD", math.inf)


def deployed_with(serving: SimulatedMeter, study: Path, *overrides: str) -> Deployment:
    """Deploy the whole study with the meter."""
    return deployed(
        study, f"seconds={SECONDS}", f"idle_seconds={SECONDS}", "energy=smartpower2", "energy.address=127.0.0.1",
        f"energy.port={serving.port}", *overrides,
    )  # fmt: skip


def _true_mj(record: dict[str, Any]) -> tuple[float, float, float]:
    """Gross and net energy of an image by the device's own clock, where its power is known, and half of the 95 %
    interval of the gross one that its repeats give: on a busy machine they take different times."""
    image_ms = np.array([1000 * each["seconds"] / each["images"] for each in record["repeats"]])
    count, mean_ms = len(image_ms), float(image_ms.mean())
    spread = float(t.ppf(0.975, count - 1) * image_ms.std(ddof=1) / math.sqrt(count))
    return LOAD_W * mean_ms, (LOAD_W - IDLE_W) * mean_ms, LOAD_W * spread


def check_energy(study: Path) -> None:
    """Each network's energy holds the true one within its error bar, and all of it says that the meter is simulated."""
    for kind, tracked in tracked_runs(study).items():
        metrics, tags = tracked.data.metrics, tracked.data.tags
        assert (tags["dxc.energy_meter"], tags["dxc.energy"]) == (METER, "valid"), kind
        (proved,) = (artifacts_of(tracked) / "deployed").iterdir()
        metering = Metering.load(proved / "energy.json")
        energy, record = metering.energy, json.loads((proved / "record.json").read_text())["record"]
        assert (metering.meter, energy.valid, energy.reason) == (METER, True, "")
        assert metrics["energy_mj"] == energy.energy_mj and metrics["net_energy_mj"] == energy.net_energy_mj
        gross, net, spread = _true_mj(record)
        late = LATE_S / SECONDS * gross
        assert abs(energy.energy_mj - gross) <= energy.energy_error_mj + late, kind
        assert abs(energy.net_energy_mj - net) <= energy.net_energy_error_mj + late, kind
        # and the bar says something
        assert energy.energy_error_mj < 1.1 * spread + 0.2 * gross, kind
        assert metrics["max_power_w"] == pytest.approx(LOAD_W, abs=0.15)
        expected = 100 * metrics["device_accuracy"] / (metrics["measured_latency_ms"] * metrics["energy_mj"])
        assert metrics["fom"] == pytest.approx(expected)
        assert METER in power(metering).axes[0].get_title(loc="left")


def check_tables(study: Path, device: str) -> None:
    """The brief's tables 1 and 2 (one for each kind of numbers) and 3 have all figures, and say what these are of.

    Args:
        study: deployed with the meter.
        device: begins the name of the device.
    """
    tracked = tracked_runs(study)
    table, folder = deployment_table(questions(study, "table=deployment"))
    assert sorted(table.frame["run_id"]) == sorted(each.info.run_id for each in tracked.values())
    assert set(table.frame["meter"]) == {METER}
    assert all(each.startswith(device) for each in table.frame["device"])
    assert list(table.frame["fom"]) == sorted(table.frame["fom"], reverse=True)
    assert table.frame[["energy_mj", "net_energy_mj", "max_power_w", "peak_memory_mb"]].notna().all(None)
    assert not [line for line in table.lines if "missing" in line or "invalid" in line]
    assert [line.partition(":")[0] for line in table.lines] == ["fom", "latency", "energy"]
    shown = (folder / "deployment.md").read_text()
    assert METER in shown and device in shown
    compression, folder = compression_table(questions(study, "table=compression"))
    by_kind = compression.frame.set_index("quantise")
    for kind in KINDS:
        for name in FIGURES:
            assert by_kind.loc[kind, name] == tracked[kind].data.metrics[name]
    (measured,) = [line for line in compression.lines if line.startswith("measured:")]
    assert device in measured and measured.endswith(f"; energy of {METER}")
    shown = (folder / "compression.md").read_text()
    assert METER in shown and device in shown
