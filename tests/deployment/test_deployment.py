"""Designs of a study on a device: what their runs then say, what is not measured again, and what is refused."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from dxc.analysis.analyze import selected
from dxc.analysis.analyze import tracked_runs as read
from dxc.analysis.compression import compression_table
from dxc.analysis.on_device import deployment_table
from dxc.deploy.device import Device
from dxc.deployment.deployment import Deployment, Proof, _chosen, _refused, require_all
from dxc.deployment.meter import Verdict, Windows
from dxc.deployment.opset import needed_runtime
from dxc.deployment.record import DeviceRecord
from dxc.deployment.settings import Deploy
from dxc.errors import AnalysisError, ConfigError, HardwareError, TrackingError
from dxc.hardware.measure.energy.protocol import Window
from dxc.report.deployment import print_deployment
from dxc.synthetic.images import SyntheticImages
from dxc.tracking.reader import Reader
from dxc.tracking.store import Store
from tests.deployment.studies import (
    KINDS,
    artifacts_of,
    composed,
    deployed,
    questions,
    steady_latencies,
    tracked_runs,
)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    steady_latencies(monkeypatch)


@pytest.mark.long
def test_a_study_is_proved_on_this_machine(
    proved: tuple[Path, Deployment], capsys: pytest.CaptureFixture[str]
) -> None:
    study, result = proved
    assert [each.state for each in result.proofs] == ["measured"] * 3
    require_all(result)
    images = SyntheticImages(
        images=240, seed=0, classes=tuple("0123456789"), cache_dir=str(study / "cache")
    ).read()
    pixels, labels = images.pixels[images.held_out], images.labels[images.held_out]
    assert result.images == [f"synthetic images: {len(labels)} images that are set aside for tests"]
    mean, std = (
        np.array(each, np.float32).reshape(1, 3, 1, 1) for each in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    )
    fed = (pixels.astype(np.float32) - mean) / std
    for kind, tracked in tracked_runs(study).items():
        artifacts = artifacts_of(tracked)
        session = onnxruntime.InferenceSession(
            str(artifacts / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        expected = np.concatenate([session.run(None, {"image": fed[i : i + 1]})[0] for i in range(len(fed))])
        metrics, tags = tracked.data.metrics, tracked.data.tags
        assert metrics["device_accuracy"] == (expected.argmax(1) == labels).mean()
        assert 0 < metrics["measured_latency_ms"] <= metrics["measured_latency_p95_ms"]
        assert 0 < metrics["peak_memory_mb"] < 300
        assert "energy_mj" not in metrics
        assert tags["dxc.measured_on"] == result.device
        assert f"; onnxruntime {onnxruntime.__version__}, cpu, 1 thread" in result.device
        assert tags["dxc.emulated"] == "false" and tags["dxc.measurement"] == "valid"
        (home,) = (artifacts / "deployed").iterdir()
        np.testing.assert_array_equal(np.load(home / "scores.npy"), expected), kind
        times = np.load(home / "times_ms.npy")
        assert len(times) == 3 * len(labels)
        assert metrics["measured_latency_ms"] == pytest.approx(np.median(times))
        record = json.loads((home / "record.json").read_text())
        assert record["verdicts"] == {"latency": "valid", "energy": "not metered"}
        assert record["record"]["correct"] <= len(labels) and tags["dxc.energy"] == "not metered"
    # no figure is made up for want of a meter
    asked = questions(study, "table=deployment")
    table, _ = deployment_table(asked)
    assert len(table.frame) == 3 and table.frame[
        ["energy_mj", "net_energy_mj", "max_power_w", "fom"]
    ].isna().all(None)
    assert "because nothing was metered" in table.lines[0]
    compression, _ = compression_table(asked)
    assert "device_accuracy" in compression.metrics and "energy_mj" not in compression.metrics
    assert not [line for line in compression.lines if "energy" in line]
    print_deployment(result)
    shown = capsys.readouterr().out
    assert "note: no energy: no meter (energy=none)" in shown and "metered by" not in shown
    with (study / "reports" / "small" / "deployed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [each.run_id for each in result.proofs]
    assert float(rows[0]["device_accuracy"]) == result.proofs[0].metrics["device_accuracy"]
    # the test set once, each network once
    sizes = [p.stat().st_size for p in (study / "mlartifacts").rglob("model.onnx")] or [
        p.stat().st_size for p in (study / "mlruns").rglob("model.onnx")
    ]
    assert result.sent_bytes <= sum(sizes) + pixels.nbytes + 8 * len(labels) + 300


@pytest.mark.long
@pytest.mark.usefixtures("steady")
def test_what_was_measured_is_not_measured_again(
    proved: tuple[Path, Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, first = proved
    keys: list[str] = []
    measure = Device.run

    def counted(self: Device, request: dict[str, Any], on_event: Any) -> dict[str, Any]:
        keys.append(request["key"])
        return measure(self, request, on_event)

    monkeypatch.setattr(Device, "run", counted)
    runs = tracked_runs(study)
    ids = [runs[kind].info.run_id for kind in KINDS]
    one = ("study=null", f"runs=[{ids[0]}]")
    key = runs["dynamic"].data.tags["dxc.deployed"]
    # killed before it was tracked: the record in cache_dir serves
    Store(f"sqlite:///{study}/mlflow.db", "small", patience_s=0).tag(ids[1], {"dxc.deployed": ""})
    kept = deployed(study)
    assert [each.state for each in kept.proofs] == ["kept"] * 3 and not keys
    assert [each.metrics for each in kept.proofs] == [each.metrics for each in first.proofs]
    assert tracked_runs(study)["dynamic"].data.tags["dxc.deployed"] == key

    deployed(study, *one, "again=true")
    assert keys == [runs["none"].data.tags["dxc.deployed"]]
    deployed(study, *one, "repeats=4")  # another protocol
    assert len(keys) == len(set(keys)) == 2

    # another number of threads is another measurement, with a record of its own
    parallel = deployed(study, *one, "hardware.threads=2")
    assert len(keys) == len(set(keys)) == 3 and parallel.proofs[0].state == "measured"
    assert parallel.device == first.device.replace("1 thread", "2 threads") != first.device
    tracked = tracked_runs(study)["none"]
    assert tracked.data.tags["dxc.measured_on"] == parallel.device
    assert tracked.data.metrics["measured_latency_ms"] == parallel.proofs[0].metrics["measured_latency_ms"]
    (one_thread, two_threads) = sorted(
        (json.loads(path.read_text()) for path in artifacts_of(tracked).glob("deployed/*/record.json")),
        key=lambda each: int(each["record"]["environment"]["threads"]),
    )
    assert one_thread["device"] == first.device and two_threads["device"] == parallel.device
    back = deployed(study, *one, "repeats=4")  # what was measured with one thread is still there
    assert len(keys) == 3 and back.proofs[0].state == "kept"
    assert tracked_runs(study)["none"].data.tags["dxc.measured_on"] == first.device
    assert back.proofs[0].metrics == one_thread["metrics"] != two_threads["metrics"]


@pytest.mark.long
@pytest.mark.usefixtures("steady")
def test_values_of_two_devices_never_mix(proved: tuple[Path, Deployment]) -> None:
    """A run holds the values of one device. What another gave goes, and an analysis of both refuses."""
    study, first = proved
    ids = {kind: each.info.run_id for kind, each in tracked_runs(study).items()}
    uri = f"sqlite:///{study}/mlflow.db"
    elsewhere = {"measured_latency_ms": 9.0, "efficiency_ms": 8.0, "optimum_batch": 4.0}
    Store(uri, "small", patience_s=0).log_measured(
        ids["none"],
        elsewhere,
        {"dxc.measured_on": "another board; onnxruntime 1.17.0, cpu, 4 threads", "dxc.deployed": "f" * 12},
        gone=[],
    )
    here = deployed(study, "study=null", f"runs=[{ids['none']},{ids['static']}]")
    metrics = tracked_runs(study)["none"].data.metrics
    assert math.isnan(metrics["efficiency_ms"]) and math.isnan(metrics["optimum_batch"])
    assert metrics["measured_latency_ms"] == here.proofs[0].metrics["measured_latency_ms"]
    assert here.device == first.device

    emulated = deployed(study, "study=null", f"runs=[{ids['static']}]", "hardware.emulated=true")
    assert emulated.device == f"emulated, {here.device}" and emulated.proofs[0].state == "measured"
    assert tracked_runs(study)["static"].data.tags["dxc.emulated"] == "true"

    def designs(where: str | None) -> pd.DataFrame:
        found, _, _, _ = read(questions(study))  # the cache of runs has seen that finished ones changed
        return selected(found, where, ["device_accuracy", "measured_latency_ms"], [])[0].frame

    with pytest.raises(AnalysisError, match="the machine they were measured on"):
        designs(None)
    found = designs("dxc.emulated == 'false'").set_index("run_id")["device_accuracy"]
    expected = {each.run_id: each.metrics["device_accuracy"] for each in first.proofs}
    del expected[ids["static"]]
    assert dict(found) == expected


def test_one_bad_network_does_not_stop_the_others(study: Path) -> None:
    runs = tracked_runs(study)
    artifacts = artifacts_of(runs["dynamic"])
    (artifacts / "model.onnx").write_bytes(b"no network")
    ids = [runs[kind].info.run_id for kind in ("dynamic", "static")]
    result = deployed(study, "study=null", f"runs=[{','.join(ids)}]")
    failed, sound = result.proofs
    assert failed.state == "failed" and failed.metrics == {}
    assert sound.state == "measured"
    assert "device_accuracy" not in tracked_runs(study)["dynamic"].data.metrics
    with pytest.raises(HardwareError, match="1 of 2 networks could not be proved"):
        require_all(result)


def test_a_runtime_that_is_too_old_is_told_which_it_needs(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Device.probe

    def old(self: Device) -> dict[str, Any]:
        found = probe(self)
        return {**found, "environment": {**found["environment"], "runtime_version": "1.9.0"}}

    monkeypatch.setattr(Device, "probe", old)
    result = deployed(study)
    assert [each.state for each in result.proofs] == ["failed"] * 3
    assert "has onnxruntime 1.9.0, and this network needs 1.12 or newer" in result.proofs[0].notes[0]


def test_the_runtime_that_a_file_needs() -> None:
    from onnx import ModelProto, helper

    def model(opset: int, ir_version: int) -> ModelProto:
        made = ModelProto(ir_version=ir_version)
        made.opset_import.append(helper.make_opsetid("", opset))
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return made

    assert needed_runtime(model(17, 8)) == (1, 12)
    assert needed_runtime(model(13, 7)) == (1, 10)
    assert needed_runtime(model(17, 10)) == (1, 18)  # the format is newer than the operators
    assert needed_runtime(model(21, 8)) == (1, 18)
    assert needed_runtime(model(99, 8)) == max(needed_runtime(model(23, 8)), (1, 23))


def test_other_images_than_those_of_the_run_are_refused(study: Path) -> None:
    run_id = tracked_runs(study)["none"].info.run_id
    Store(f"sqlite:///{study}/mlflow.db", "small", patience_s=0).tag(run_id, {"dxc.data": "0" * 16})
    result = deployed(study, "study=null", f"runs=[{run_id}]")
    (failed,) = result.failed
    assert "was trained on other images than synthetic images" in failed.notes[0]
    assert "images=random still gives latency, memory and energy" in failed.notes[0]


def test_a_path_that_comes_from_a_store_is_not_followed(study: Path) -> None:
    run_id = tracked_runs(study)["none"].info.run_id
    config = artifacts_of(tracked_runs(study)["none"]) / "config.yaml"
    config.write_text(config.read_text().replace("source:\n", "source:\n  root: /etc\n"))
    result = deployed(study, "study=null", f"runs=[{run_id}]")
    assert "source.root='/etc' as its configuration says" in result.proofs[0].notes[0]
    assert "name it, source.root=PATH" in result.proofs[0].notes[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["study=null"], "name what is deployed"),
        (["runs=[" + "0" * 32 + "]"], "name what is deployed"),
        (["study=null", "runs=[abc]"], "must be ids of runs"),
        (["hardware=pi"], "pi is another machine: name it, hardware.host=user@address"),
        (["hardware.host='-oProxyCommand=x'"], "must read user@address"),
        (["repeats=2"], "at least 3"),
        (["hardware.runtime=torch"], "deploy with hardware.runtime=onnxruntime"),
        (["+agian=true"], "has no agian; it has again, "),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, overrides: Sequence[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Deploy.of(composed("deploy", tmp_path, "study=small", *overrides))


def test_a_run_that_is_not_there(study: Path) -> None:
    with pytest.raises(TrackingError, match="0{32}"):
        deployed(study, "study=null", "runs=[" + "0" * 32 + "]")
    with pytest.raises(TrackingError, match="no study 'smal'"):
        deployed(study, "study=smal")


def _record(**changes: Any) -> dict[str, Any]:
    repeat = {
        "images": 10, "passes": 1, "seconds": 1.0, "inference_seconds": 0.9, "correct": 5, "median_ms": 1.0,
        "same_answers": True,
    }  # fmt: skip
    return {
        "key": "0123456789ab", "attempt": "", "images": 10, "correct": 5, "not_finite": 0, "repeats": [repeat] * 3,
        "outputs": {"scores": [10, 2]}, "baseline_memory_bytes": 1, "peak_memory_bytes": 2, "memory_from": "VmHWM",
        "images_in_memory": True, "idle_seconds": 0, "before": {}, "after": {}, "date": "today",
        "environment": {"device": "a", "runtime": "b", "runtime_version": "1", "provider": "cpu", "threads": 1},
        "files": {"times.bin": {"bytes": 120, "sha256": "0" * 64}}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"correct": 11},
        {"correct": "many"},
        {"correct": float("nan")},
        {"peak_memory_bytes": -1},
        {"key": "../../../etc"},
        {"files": {"times.bin": {"bytes": 4, "sha256": "0" * 64}}},
        {
            "files": {
                "times.bin": {"bytes": 120, "sha256": "0" * 64},
                "../x": {"bytes": 1, "sha256": "0" * 64},
            }
        },
        {"outputs": {"../x": [10, 2]}},
        {"repeats": []},
    ],
)
def test_a_record_of_a_device_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(HardwareError, match=r"board: its result cannot be used"):
        DeviceRecord.of(_record(**changes), "board")


def test_the_latency_of_a_record() -> None:
    """Of 30 times; those of a device that throttled, or whose third ran at another speed, do not count."""
    calm = np.array([1.0] * 29 + [3.0])
    metrics, why = DeviceRecord.of(_record(), "board").latency(calm)
    assert metrics == {"measured_latency_ms": 1.0, "measured_latency_p95_ms": 1.0} and not why
    slower = np.array([1.0] * 20 + [1.2] * 10)
    assert DeviceRecord.of(_record(), "board").latency(slower)[0] == {}
    hot = DeviceRecord.of(_record(after={"throttled": "0x50005"}), "board")
    assert hot.throttled and "0x50005" in hot.latency(calm)[1]
    assert not DeviceRecord.of(_record(after={"throttled": "0x0"}), "board").throttled


def test_windows_are_stamped_as_their_events_arrive() -> None:
    windows = Windows()
    for at_s, event in enumerate(
        [
            {"event": "begin", "kind": "idle"},
            {"event": "end", "kind": "idle", "images": 0, "inference_seconds": 0.0},
            {"event": "begin", "kind": "load", "repeat": 1},
            {"event": "progress"},
            {"event": "end", "kind": "load", "images": 20, "inference_seconds": 1.5},
        ]
    ):
        windows(event, 10.0 + at_s)
    assert windows.found == [Window("idle", 10.0, 11.0, 0, 0.0), Window("load", 12.0, 14.0, 20, 1.5)]
    assert windows.whole
    windows({"event": "begin", "kind": "load", "replayed": True}, 20.0)
    assert not windows.whole


class FakeMeter:
    """A meter that knows what an image takes, and keeps what it is asked."""

    def __init__(self, name: str = "fake", energy_mj: float = 4.0) -> None:
        self.name, self.energy_mj = name, energy_mj
        self.asked: list[tuple[Sequence[Window], float, bool]] = []

    def verdict(self, windows: Sequence[Window], *, latency_ms: float, throttled: bool) -> Verdict:
        self.asked.append((windows, latency_ms, throttled))
        return Verdict({"energy_mj": self.energy_mj, "max_power_w": 5.0}, {"samples": [[0.0, 5.0]]}, "")


@pytest.mark.long
@pytest.mark.usefixtures("steady")
def test_a_meter_is_given_the_windows_of_each_network(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meters: list[FakeMeter | None] = [meter := FakeMeter()]

    @contextlib.contextmanager
    def opened(settings: object, host: str | None) -> Iterator[FakeMeter | None]:
        yield meters[0]

    monkeypatch.setattr("dxc.deployment.deployment.opened", opened)
    run_id = tracked_runs(study)["none"].info.run_id
    begin_s = time.monotonic()
    asked = ("study=null", f"runs=[{run_id}]", "seconds=0.1", "idle_seconds=0.15")
    result = deployed(study, *asked)
    ((windows, latency_ms, throttled),) = meter.asked
    assert [each.kind for each in windows] == ["idle", "load", "load", "load", "idle"]
    for before, after in itertools.pairwise(windows):
        assert begin_s < before.begin_s < before.end_s <= after.begin_s < after.end_s < time.monotonic()
    for each in windows:
        length = each.end_s - each.begin_s
        if each.kind == "idle":
            assert length >= 0.1 and each.images == 0
        else:
            assert length >= 0.05 and each.images % 40 == 0 and each.inference_seconds > 0
    loads = [each for each in windows if each.kind == "load"]
    images, inside = (sum(getattr(each, name) for each in loads) for name in ("images", "inference_seconds"))
    assert latency_ms == pytest.approx(1000 * inside / images, rel=1e-4) and not throttled
    tracked = tracked_runs(study)["none"]
    metrics = tracked.data.metrics
    assert metrics["energy_mj"] == 4.0
    expected = 100 * metrics["device_accuracy"] / (metrics["measured_latency_ms"] * 4.0)
    assert metrics["fom"] == result.proofs[0].metrics["fom"]
    assert metrics["fom"] == pytest.approx(expected)
    assert tracked.data.tags["dxc.energy_meter"] == "fake"
    (proved,) = (artifacts_of(tracked) / "deployed").iterdir()
    assert json.loads((proved / "energy.json").read_text())["content"]["samples"] == [[0.0, 5.0]]
    print_deployment(result)
    shown = capsys.readouterr().out
    assert "metered by: fake" in shown and "simulated" not in shown and "emulated" not in shown

    # another meter is another measurement, and so is none: nothing of the first stays
    meters[0] = FakeMeter("simulated SmartPower 2", 8.0)
    other = deployed(study, *asked)
    assert other.proofs[0].state == "measured"
    tracked = tracked_runs(study)["none"]
    assert (tracked.data.metrics["energy_mj"], tracked.data.tags["dxc.energy_meter"]) == (
        8.0,
        "simulated SmartPower 2",
    )
    print_deployment(other)
    shown = capsys.readouterr().out
    assert "metered by: simulated SmartPower 2" in shown
    assert "simulated: energy and power are of a simulated meter" in shown
    meters[0] = None
    assert deployed(study, *asked).proofs[0].state == "measured"
    tracked = tracked_runs(study)["none"]
    assert all(math.isnan(tracked.data.metrics[name]) for name in ("energy_mj", "max_power_w", "fom"))
    assert (tracked.data.tags["dxc.energy_meter"], tracked.data.tags["dxc.energy"]) == ("", "not metered")


def test_what_is_printed_of_invalid_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named as such, with the reason; an emulated device says that it is none."""
    verdicts = {"dxc.measurement": "valid", "dxc.energy": "invalid: the repeats differ by 9.0% of their mean"}
    metrics = {"device_accuracy": 0.75, "measured_latency_ms": 2.0}
    proofs = [
        Proof("a" * 32, "bad", 0.5, metrics, "measured", _refused(verdicts), verdicts),
        Proof("b" * 32, "broken", None, {}, "failed", ["it is no network"]),
    ]
    result = Deployment(
        title="small", device="emulated, Pi; onnxruntime 1.31.1, cpu, 1 thread", emulated=True, meter="SmartPower 2",
        proofs=proofs, images=[], notes=[], sent_bytes=0, folder=tmp_path,
    )  # fmt: skip
    print_deployment(result)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (row,) = [line for line in lines if line.startswith("bad ")]
    assert row == "bad 0.5000 0.7500 2 invalid invalid invalid invalid measured"  # energy, net, power, merit
    assert "emulated: Pi is no real device, and its times say nothing of one" in lines
    assert "note: bad: energy is invalid: the repeats differ by 9.0% of their mean" in lines
    (advice,) = [line for line in lines if line.startswith("note: bad: for a valid energy: ")]
    assert "stop what else runs on the device" in advice and "again=true" in advice
    with (tmp_path / "deployed.csv").open() as file:
        (bad, _) = csv.DictReader(file)
    assert (bad["energy_mj"], bad["meter"]) == ("", "SmartPower 2")


@pytest.mark.long
@pytest.mark.usefixtures("steady")
def test_without_labels_there_is_no_accuracy(proved: tuple[Path, Deployment]) -> None:
    """Random images give latency and memory; an accuracy that an earlier deployment gave does not stay beside them."""
    study, first = proved
    run_id = tracked_runs(study)["none"].info.run_id
    one = ("study=null", f"runs=[{run_id}]")
    assert "device_accuracy" in tracked_runs(study)["none"].data.metrics
    result = deployed(study, *one, "images=random")
    (proof,) = result.proofs
    assert proof.state == "measured" and {"measured_latency_ms", "peak_memory_mb"} <= proof.metrics.keys()
    assert "device_accuracy" not in proof.metrics
    assert "no accuracy: random images have no labels (images=test gives it)" in proof.notes
    assert result.images == ["100 random images without labels"]
    assert math.isnan(tracked_runs(study)["none"].data.metrics["device_accuracy"])
    table, _ = deployment_table(questions(study, "table=deployment"))
    accuracies = table.frame.set_index("run_id")["device_accuracy"]
    assert len(accuracies) == 3 and math.isnan(accuracies[run_id])
    # what the test set gave is another measurement, which is still there
    expected = {each.run_id: each.metrics["device_accuracy"] for each in first.proofs}
    assert deployed(study, *one).proofs[0].metrics["device_accuracy"] == expected[run_id]


def test_the_front_is_the_same_when_a_deployment_goes_on(study: Path) -> None:
    """Of score and size. What a device gave does not change it, so a deployment goes on with its other half."""
    uri = f"sqlite:///{study}/mlflow.db"
    runs = {each.info.run_id: each.data.metrics for each in tracked_runs(study).values()}

    def better(one: dict[str, float], other: dict[str, float]) -> bool:
        pairs = [(one["accuracy"], other["accuracy"]), (-one["onnx_mb"], -other["onnx_mb"])]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    front = {name for name, each in runs.items() if not any(better(other, each) for other in runs.values())}

    def chosen(*overrides: str) -> tuple[set[str], str, list[str]]:
        asked = Deploy.of(composed("deploy", study, "study=small", *overrides))
        found, title, notes = _chosen(asked, Reader(uri))
        return {each.run_id for each in found}, title, notes

    assert chosen() == (
        front,
        "small",
        [f"the front of small in accuracy, onnx_mb: {len(front)} of 3 designs"],
    )
    some = next(iter(front))
    Store(uri, "small", patience_s=0).log_measured(
        some, {"measured_latency_ms": 9.0}, {"dxc.measured_on": "a board"}, gone=[]
    )
    assert chosen("refresh=true")[0] == front
    assert chosen("designs=all")[0] == set(runs)
    assert chosen("designs=all", "where='onnx_mb < 0.5'")[0] == {
        n for n, each in runs.items() if each["onnx_mb"] < 0.5
    }
    with pytest.raises(AnalysisError, match="leaves no finished run"):
        chosen("designs=all", "where='onnx_mb < 0'")
