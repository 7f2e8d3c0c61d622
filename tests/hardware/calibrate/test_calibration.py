"""Calibration: kernels add up to their network, interrupted calibrations resume, and packages describe themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.ensemble import GradientBoostingRegressor

from dxc.config.compose import PROJECT_ROOT
from dxc.config.hardware import Hardware
from dxc.deploy.export import count_macs, export_onnx
from dxc.errors import ConfigError, HardwareError
from dxc.hardware.calibrate import calibrate
from dxc.hardware.calibrate.calibrate import (
    FUSION_RULES,
    Record,
    Reference,
    at_usual_speed,
    errors,
    expected_networks,
    measure_kernels,
    node_overhead_ms,
    rows_of,
    share_out,
    verdict,
)
from dxc.hardware.calibrate.networks import QUANTISED, RANDOM_KERNELS, draw, families, module, onnx_model
from dxc.hardware.predict.kernels import Kernel, detect, graph_of
from dxc.hardware.predict.packages import SHIPPED, load_package
from dxc.hardware.predict.predict import describe_coverage, predict
from dxc.hardware.spec import device_name
from dxc.models.mobilenet import MobileNetV1
from dxc.models.resnet import ResNet
from dxc.models.sppnet import LEVELS, SppNet
from tests.hardware.measure.test_latency import HOST, Server
from tests.hardware.measure.test_latency import sshd as sshd

RESNET = {
    "family": "resnet", "in_channels": 5, "size": 32, "kernel": 3, "stride": 2, "padding": 1, "pool": "max",
    "pool_kernel": 3, "pool_stride": 2, "width": 16, "blocks": [2, 2, 2, 2],
}  # fmt: skip


SPPNET = {
    "family": "sppnet", "in_channels": 5, "size": 100, "kernel": 3, "level": 5, "features": 128, "features2": "none",
}  # fmt: skip


def kernels_of(model: onnx.ModelProto, tmp_path: Path) -> list[Kernel]:
    rules = tmp_path / "fusion_rules.json"
    rules.write_text(json.dumps(FUSION_RULES))
    return detect(graph_of(model, "network"), rules)


@pytest.mark.long
@pytest.mark.parametrize("family", families())
def test_calibration_networks_run(family: str) -> None:
    for seed in range(4):
        spec = draw(family, np.random.default_rng(seed))
        assert spec == json.loads(json.dumps(spec))  # it is recorded as JSON
        assert spec == draw(family, np.random.default_rng(seed))
        model = onnx_model(spec)
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        shape = session.get_inputs()[0].shape
        assert shape[0] == 1
        answers = session.run(None, {"image": np.ones(shape, np.float32)})
        assert all(np.isfinite(each).all() for each in answers)


def test_the_same_spec_is_the_same_network() -> None:
    """Drawing the weights does not change torch's random state."""
    before = torch.get_rng_state()
    module(RESNET)
    assert torch.equal(torch.get_rng_state(), before)
    assert onnx_model(RESNET) == onnx_model(RESNET)


@pytest.mark.parametrize("family", ["resnet", "sppnet", "mobilenet"])
def test_a_calibration_network_has_the_kernels_of_the_exported_one(family: str, tmp_path: Path) -> None:
    """It has the kernels of a trained network, in which biases and statistics all differ."""
    spec = draw(family, np.random.default_rng(2))
    knobs = {key: spec[key] for key in spec if key not in ("family", "size")}
    model = {"resnet": ResNet, "sppnet": SppNet, "mobilenet": MobileNetV1}[family](**knobs)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    channels, size = spec["in_channels"], spec["size"]
    export_onnx(model, tmp_path / "m.onnx", in_channels=channels, size=size, check=False)
    real = kernels_of(onnx.load(tmp_path / "m.onnx"), tmp_path)
    drawn = kernels_of(onnx_model(spec), tmp_path)
    assert [(k.op, k.features, k.macs) for k in drawn] == [(k.op, k.features, k.macs) for k in real]
    assert sum(kernel.macs for kernel in drawn) == count_macs(model, in_channels=channels, size=size)


@pytest.mark.parametrize(
    ("level", "size", "gathered"),
    [
        (5, 100, [(10, 256, 2), (10, 256, 3)]),
        (4, 100, []),
        (3, 64, [(6, 256, 2), (6, 256, 3)]),
        (5, 64, [(7, 256, 2), (10, 256, 3)]),
        (5, 48, []),  # five windows of two
    ],
)
def test_bins_that_do_not_divide_the_features_are_gathered(
    level: int, size: int, gathered: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    """The bins of level 5 at 100 pixels are pooled, gathered along rows and columns, and pooled in pairs."""
    kernels = kernels_of(onnx_model({**SPPNET, "level": level, "size": size}), tmp_path)
    assert [kernel.features for kernel in kernels if kernel.op == "Gather"] == gathered


def test_networks_of_the_shipped_package_can_be_made_again() -> None:
    """The table of the shipped package has the knobs that are drawn today."""
    specs = [
        json.loads(text) for text in pd.read_parquet(SHIPPED / "ort_cpu_xeon" / "networks.parquet")["spec"]
    ]
    there = {spec["family"] for spec in specs}
    # networks that were added since it was measured: their kernels are those of the others
    assert families().keys() - there == {"bottleneck_resnet", "resnet8"}
    for family in there:
        own = [spec for spec in specs if spec["family"] == family]
        fresh = draw(family, np.random.default_rng(0))
        assert all(spec.keys() == fresh.keys() for spec in own)
        if family != RANDOM_KERNELS:
            onnx_model(own[0])


def test_calibration_draws_every_level_of_the_pyramid() -> None:
    drawn = [draw("sppnet", np.random.default_rng([0, number])) for number in range(60)]
    assert {spec["level"] for spec in drawn} == set(LEVELS)
    fifth = next(spec for spec in drawn if spec["level"] == 5 and spec["size"] == 100)
    record = measure_kernels(fifth, 1, Reference(1))
    # height = width, channels, axis; each of them has a time of its own to learn from
    assert [f for op, f, ms, _ in record.kernels if op == "Gather" and ms > 0] == [[10, 256, 2], [10, 256, 3]]
    assert [12, 256, 256, 3, 1] in [f for op, f, _, _ in record.kernels if op.startswith("maxpool")]
    rows = rows_of([record])
    assert [features for _, features, _ in rows["Gather"]] == [[10, 256, 2], [10, 256, 3]]


def test_the_shipped_package_says_that_it_leaves_the_fifth_level_out(tmp_path: Path) -> None:
    """The shipped package was measured before level 5 was drawn. A predictor for it needs a new calibration."""
    onnx.save(onnx_model(SPPNET), tmp_path / "m.onnx")
    prediction = predict(tmp_path / "m.onnx", load_package(SHIPPED / "ort_cpu_xeon"))
    assert describe_coverage(prediction) == (
        "ort_cpu_xeon has no predictor for 2 Gather, 1 Sigmoid (0.00% of the MACs): its latency leaves them out"
    )


@pytest.mark.long
def test_kernels_add_up_to_their_network() -> None:
    """In every family all time of ONNX Runtime belongs to a kernel, and the kernels add up to the plain time."""
    for family in families():
        record = measure_kernels(draw(family, np.random.default_rng(1)), 1, Reference(1))
        assert all(features is not None for _, features, _, _ in record.kernels)
        for overhead in (0.0, -0.001):
            assert sum(ms for _, _, ms in share_out(record, overhead)) == pytest.approx(record.ms)


@pytest.mark.long
@pytest.mark.parametrize("family", ["mobilenet", RANDOM_KERNELS])
def test_kernels_of_quantised_networks_add_up_too(family: str) -> None:
    """All of them compute with integers, and have predictors of their own."""
    spec = draw(family, np.random.default_rng(1))
    record = measure_kernels({**spec, QUANTISED: True}, 1, Reference(1))
    plain = [kernel.op for kernel in graph_kernels(spec)]
    assert len(record.kernels) == len(plain)
    assert all(op.startswith("int8-") and features is not None for op, features, _, _ in record.kernels)
    assert sum(ms for _, _, ms in share_out(record, 0.0)) == pytest.approx(record.ms)
    convolutions = {name for name in rows_of([record]) if "conv" in name}
    assert convolutions and convolutions <= {
        "int8-conv-bn-relu", "int8-dwconv-bn-relu", "int8-conv-bn-relu-add", "int8-dwconv-bn-relu-add",
    }  # fmt: skip


def graph_kernels(spec: dict) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        return kernels_of(onnx_model(spec), Path(folder))


def test_every_other_network_is_quantised() -> None:
    drawn = []
    records: list[Record] = []
    for spec in calibrate._specs(records, 12, 0, max_seconds=1e9, quantised=True):
        drawn.append(spec)
        if len(drawn) == 8:
            break
        records.append(Record(spec, 1.0, 0.0, 1.0, [], 0.1))
    assert [bool(spec.get(QUANTISED)) for spec in drawn] == [False, True] * 4


def test_layout_changes_belong_to_their_neighbours() -> None:
    """A maximum pool of 8 + 1 channels leaves the blocked layout and returns to it: two changes, two owners."""
    spec = {
        "family": RANDOM_KERNELS,
        "first": [3, 20, 28],
        "layers": [["maxpool", 8, 3, 1, True], ["conv", 32, 3, 1, True]],
    }
    model = onnx_model({**spec, "features": 4})
    nodes = [
        ("t1_nchwc", "Conv", 1.0),
        ("ReorderOutput", "ReorderOutput", 0.25),
        ("n2", "MaxPool", 2.0),
        ("ReorderInput_token_3", "ReorderInput", 0.5),
        ("t4_nchwc", "Conv", 4.0),
        ("t5_nchwc", "GlobalAveragePool", 0.125),
        ("fused n7", "FusedGemm", 8.0),
        ("n9", "Gemm", 16.0),
    ]
    kernels = calibrate._by_kernel(model, nodes)
    assert [(op, ms, count) for op, _, ms, count in kernels] == [
        ("conv-relu", 1.25, 2),
        ("maxpool", 2.0, 1),
        ("conv-relu", 4.5, 2),
        ("gap", 0.125, 1),
        ("fc-relu", 8.0, 1),
        ("fc", 16.0, 1),
    ]


def test_shares_by_hand() -> None:
    kernels = [("conv", [1.0], 3.0, 2), ("reshape", None, 1.0, 1), ("fc", [2.0], 1.0, 1)]
    record = Record({}, ms=10.0, spread=0.0, reference_ms=1.0, kernels=kernels, seconds=0.0)
    assert share_out(record, 0.0) == [("conv", [1.0], 6.0), ("fc", [2.0], 2.0)]
    # half a millisecond less a node: 2, 0.5 and 0.5 of 3
    assert share_out(record, -0.5) == [
        ("conv", [1.0], pytest.approx(20 / 3)),
        ("fc", [2.0], pytest.approx(5 / 3)),
    ]


def test_the_overhead_of_nodes_comes_from_small_networks() -> None:
    def record(ms: float) -> Record:
        return Record({}, ms, 0.0, 1.0, [("conv", [1.0], 0.3, 2), ("fc", [1.0], 0.1, 2)], 0.0)

    small = [record(0.4 - 0.008 + 0.004 * step) for step in range(5)]  # -2, -1, 0, 1, 2 microseconds a node
    assert node_overhead_ms([*small, record(100.0)]) == pytest.approx(0.0)
    assert node_overhead_ms(small[:1] * 5) == pytest.approx(-0.002)
    assert node_overhead_ms(small[:2]) == 0.0  # too few to tell


def test_times_are_taken_to_the_usual_speed() -> None:
    """The reference takes 2, 4 and 4 ms: in the first minute the machine was twice as fast as usual."""
    records = [
        Record({}, 10.0, 0.0, reference, [("conv", [1.0], 3.0, 2)], 0.0) for reference in (2.0, 4.0, 4.0)
    ]
    usual = at_usual_speed(records)
    assert [record.ms for record in usual] == [20.0, 10.0, 10.0]
    assert [record.kernels[0][2] for record in usual] == [6.0, 3.0, 3.0]


def test_errors_by_hand() -> None:
    found = errors(np.array([1.0, 1.04, 0.92, 1.5]), np.ones(4))
    assert found == {"n": 4, "within_5_percent": 0.5, "within_10_percent": 0.75, "mape": pytest.approx(0.155)}


@pytest.mark.parametrize(
    ("measured", "seconds", "expected"),
    [
        (0, 0.0, 700),
        (10, 12.0, 550),  # 1.2 s each, 11 minutes
        (10, 5.0, 700),  # never more than are asked for
        (3, 660.0, 20),  # never fewer than a fit needs
        (600, 661.0, 600),  # never fewer than there are
    ],
)
def test_how_many_networks_fit(measured: int, seconds: float, expected: int) -> None:
    assert expected_networks(measured, seconds, 700, 11.0) == expected


def _about(within: float, rank: float, *, noisy: int = 2, spread: float = 0.05) -> dict:
    check = {"n": 98, "within_5_percent": 0.5, "within_10_percent": within, "mape": 0.08}
    return {
        "held_out": {"all": {"networks": check}},
        "rank_correlation": rank,
        "networks": 98,
        "networks_too_noisy": noisy,
        "reference_spread": spread,
    }


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (_about(0.89, 0.998), "good enough to compare networks and to hold a limit on latency to 10 %"),
        (_about(0.89, 0.998, noisy=50), "good enough to compare networks"),  # it predicts well all the same
        (
            _about(0.6, 0.98),
            "good enough to rank networks in a search; leave a limit on latency a margin of 16%",
        ),
        (_about(0.6, 0.98, noisy=20), "the machine was busy"),
        (_about(0.6, 0.98, spread=0.3), "the machine was busy"),
        (_about(0.6, 0.8), "not good enough to rank networks"),
    ],
)
def test_a_calibration_ends_with_a_verdict(about: dict, said: str) -> None:
    text = verdict(about)
    assert text.startswith(said)
    assert "of 98 networks held out of the fit" in text and "rank correlation (Spearman) 0." in text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, short runs and few trees: the test is about the procedure, not the figures."""
    monkeypatch.setattr(calibrate, "SECONDS", 0.003)
    monkeypatch.setattr(calibrate, "REFERENCE_SECONDS", 0.003)
    monkeypatch.setattr(calibrate, "MIN_RUNS", 1)
    monkeypatch.setattr(calibrate, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(calibrate, "MAX_DISAGREEMENT", 100.0)
    monkeypatch.setattr(calibrate, "BOOSTING", {**calibrate.BOOSTING, "n_estimators": 5})

    def small(family: str, rng: np.random.Generator) -> dict:
        knobs = {"width": int(rng.choice([4, 8, 16])), "size": int(rng.integers(16, 40))}
        return {**RESNET, "blocks": [1, 1, 1, 1], **knobs}

    monkeypatch.setattr(calibrate, "draw", small)


def hardware(tmp_path: Path, **facts: object) -> Hardware:
    return Hardware(name="cpu", packages_dir=str(tmp_path), **facts)  # type: ignore[arg-type]


@pytest.mark.long
def test_an_interrupted_calibration_goes_on(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "FOLDS", 2)  # fewer networks are enough
    measured: list[dict] = []
    whole = measure_kernels

    def counted(spec: dict, threads: int, reference: Reference) -> Record:
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(spec)
        return whole(spec, threads, reference)

    monkeypatch.setattr(calibrate, "measure_kernels", counted)
    with pytest.raises(KeyboardInterrupt):
        calibrate.calibrate("mine", hardware(tmp_path), networks=9, progress=False)
    assert not (tmp_path / "mine").exists()
    lines = (tmp_path / ".mine.calibration" / "measured.jsonl").read_text().splitlines()
    assert len(lines) == 4
    with (tmp_path / ".mine.calibration" / "measured.jsonl").open("a") as file:
        file.write('{"spec": {"fam')  # a kill while writing

    with pytest.raises(HardwareError, match=r"(?s)other conditions.*threads: 1 then, 2 now"):
        calibrate.calibrate("mine", hardware(tmp_path, threads=2), networks=9, progress=False)

    monkeypatch.setattr(calibrate, "measure_kernels", whole)
    folder = calibrate.calibrate("mine", hardware(tmp_path), networks=9, progress=False)
    networks = pd.read_parquet(folder / "networks.parquet")
    assert len(networks) == 9
    assert [json.loads(spec) for spec in networks["spec"][:4]] == measured
    assert networks["reference_ms"][:4].tolist() == [json.loads(line)["reference_ms"] for line in lines]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    # the same networks are drawn without an interruption
    again = calibrate.calibrate("again", hardware(tmp_path), networks=9, progress=False)
    plain = 6  # of 9; the last third depends on what was measured
    assert (
        pd.read_parquet(again / "networks.parquet")["spec"][:plain].tolist()
        == networks["spec"][:plain].tolist()
    )

    with pytest.raises(HardwareError, match="exists; choose another name"):
        calibrate.calibrate("mine", hardware(tmp_path), networks=9, progress=False)
    calibrate.calibrate("mine", hardware(tmp_path), networks=9, overwrite=True, progress=False)


@pytest.mark.long
def test_a_package_says_what_it_describes_and_predicts(quick: None, tmp_path: Path) -> None:
    folder = calibrate.calibrate("mine", hardware(tmp_path), networks=24, progress=False)
    package = load_package(folder)
    about = package.about
    assert about["device"] == device_name()
    assert (about["runtime_version"], about["threads"]) == (onnxruntime.__version__, 1)
    assert about["held_out"]["networks"]["resnet"]["n"] == 24
    assert about["held_out"]["all"]["networks"]["n"] == 24
    assert -1 <= about["rank_correlation"] <= 1 and about["reference_spread"] >= 0
    assert 0 < about["held_out"]["kernels"]["conv-bn-relu"]["share_of_time"] <= 1

    onnx.save(onnx_model(RESNET), tmp_path / "net.onnx")
    prediction = predict(tmp_path / "net.onnx", package)
    # trees stored as arrays predict what the fitted ones do
    table = pd.read_parquet(folder / "kernels.parquet")
    convolutions = table[table["op"].str.contains("conv")]
    features = np.array(convolutions["features"].tolist())
    fitted = calibrate._fit("conv-bn-relu", features, convolutions["ms"].to_numpy())
    assert isinstance(fitted, GradientBoostingRegressor)
    rows = np.array([k.kernel.features for k in prediction.kernels if "conv" in k.kernel.op])
    expected = np.exp(fitted.predict(calibrate.derive("conv-bn-relu", rows))) * calibrate.work(
        "conv-bn-relu", rows
    )
    found = [k.ms for k in prediction.kernels if "conv" in k.kernel.op]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        ("../mine", {}, "names a folder"),
        ("cortexA76cpu_tflite21", {}, "is a published package"),
        ("mine", {"provider": "cuda"}, "a predictor is calibrated of a processor"),
        ("mine", {"remote": True}, "hardware.host=user@address, or go on the device itself"),
        ("mine", {"affinity": [4096]}, "hardware.affinity"),
    ],
)
def test_what_cannot_be_calibrated(name: str, facts: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=said):
        calibrate.calibrate(name, hardware(tmp_path, **facts), progress=False)
    with pytest.raises(ConfigError, match="networks must be a whole number"):
        calibrate.calibrate("mine", hardware(tmp_path), networks=3, progress=False)


@pytest.mark.slow
def test_a_device_is_calibrated_over_ssh(
    quick: None, sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server on 127.0.0.1: the package says what it is of, float32 and int8, and nothing stays there."""
    monkeypatch.setattr(calibrate, "FOLDS", 2)  # fewer networks are enough
    monkeypatch.setattr(calibrate, "MIN_ROWS", 4)
    (tmp_path / "there").mkdir()
    folder = calibrate.calibrate(
        "mine",
        hardware(tmp_path, host=HOST, remote=True, python=sys.executable, threads=1),
        networks=8, quantised=True, progress=False,
        ssh_options=["-o", f"SetEnv=TMPDIR={tmp_path}/there", *sshd.options],
    )  # fmt: skip
    package = load_package(folder)
    assert package.about["device"] == device_name()  # which it is
    assert package.about["runtime_version"] == onnxruntime.__version__
    assert {"conv-bn-relu", "int8-conv-bn-relu"} <= set(package.regressors)
    assert set(package.about["held_out"]["networks"]) == {"resnet", "resnet, int8"}
    onnx.save(onnx_model({**RESNET, QUANTISED: True}), tmp_path / "int8.onnx")
    prediction = predict(tmp_path / "int8.onnx", package)
    assert prediction.latency_ms > 0 and not prediction.uncovered_macs_share
    assert list((tmp_path / "there").iterdir()) == []


def test_a_device_that_is_not_there(quick: None, tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="hardware.host=nobody@127.0.0.1 cannot be reached by ssh"):
        calibrate.calibrate(
            "mine", hardware(tmp_path, host="nobody@127.0.0.1"), progress=False, ssh_options=["-p", "9"]
        )
    assert not (tmp_path / ".mine.calibration").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """calibrate.py itself is killed with SIGKILL and started again with the same command."""
    command = [
        sys.executable,
        "calibrate.py",
        "name=mine",
        "networks=30",
        f"hardware.packages_dir={tmp_path}",
    ]
    measured = tmp_path / ".mine.calibration" / "measured.jsonl"
    begun = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (measured.exists() and measured.read_text().count("\n") >= 5) and time.monotonic() < end:
        time.sleep(0.2)
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    first = [json.loads(line)["reference_ms"] for line in measured.read_text().splitlines()[:5]]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "networks measured before" in done.stdout
    assert "hardware.predictors=[mine]" in done.stdout
    networks = pd.read_parquet(tmp_path / "mine" / "networks.parquet")
    assert set(first) & set(networks["reference_ms"])
