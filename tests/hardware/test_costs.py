"""All costs of one file: a missing one is absent with its reason, and none stops a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper

from dxc.config.compose import PROJECT_ROOT
from dxc.config.hardware import Hardware
from dxc.errors import ConfigError
from dxc.hardware import costs
from dxc.hardware.costs import compare, cost
from dxc.hardware.measure import latency as measure
from dxc.hardware.measure.latency import Measurement
from dxc.hardware.profiling import torch_profile
from dxc.hardware.profiling.tables import COLUMNS, Profile
from dxc.hardware.spec import device_name
from dxc.metrics import metric_of
from tests.hardware.networks import exported_resnet, one_operator


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short attempt, however busy the machine is."""
    monkeypatch.setattr(measure, "COOL_DOWN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(measure, "StopRule", lambda: measure_rule)
    monkeypatch.setattr(
        measure.measure, "__kwdefaults__", {**measure.measure.__kwdefaults__, "max_spread": 10.0}
    )


measure_rule = measure.StopRule(warmup_runs=1, warmup_seconds=0.0, min_runs=3, max_runs=5, max_seconds=5.0)


def hardware(tmp_path: Path, **facts: Any) -> Hardware:
    given = {"name": "cpu", "predictors": ["ort_cpu_xeon"], "packages_dir": str(tmp_path / "packages")}
    return Hardware(**{**given, "packages_url": "http://127.0.0.1:9", **facts})


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return exported_resnet(tmp_path / "model.onnx")


def test_everything_of_one_file(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "costs"
    found = cost(network, hardware(tmp_path, batches=(1, 2), limits={"onnx_mb": 100}), out)
    expected = {"latency_ms", "latency_ms/ort_cpu_xeon", "uncovered_macs_share", "measured_latency_ms"}
    expected |= {"measured_latency_p95_ms", "peak_memory_mb", "efficiency_ms", "optimum_batch"}
    expected |= {"efficiency_ms/batch1", "efficiency_ms/batch2"}
    if any("is invalid" in note for note in found.notes):  # a busy machine: said, and left out
        assert set(found.metrics) < expected
        pytest.skip("the machine is too busy to measure on")
    assert set(found.metrics) == expected
    assert found.metrics["uncovered_macs_share"] == 0.0
    for name in found.metrics:
        metric_of(name)  # each is declared
    assert found.tags["dxc.measured_on"].startswith(device_name())
    assert found.tags["dxc.profile"] == "torch"
    assert found.tags["dxc.predictors"] == "ort_cpu_xeon"
    assert found.tags["dxc.within_limits"] == "true"
    per_image = {batch: value for name, value, batch in found.curves if name == "measured/ms_per_image"}
    whole = {batch: value for name, value, batch in found.curves if name == "measured/batch_ms"}
    assert per_image == {1: whole[1], 2: whole[2] / 2}
    raw = json.loads((out / "measured_batch1.json").read_text())
    assert raw["median_ms"] == found.metrics["measured_latency_ms"]
    kernels = pd.read_parquet(out / "kernels.parquet")
    assert kernels["ms"].sum() == pytest.approx(found.metrics["latency_ms"])
    assert (out / "profile" / "profile.parquet").exists()
    about = "ort_cpu_xeon (onnxruntime 1.31.1, 1 thread, Intel(R) Xeon(R) Processor, 4 cores)"
    assert found.tags["dxc.predicted_for"] == about
    advice = "ort_cpu_xeon describes another machine than this one: python calibrate.py name=my_cpu"
    elsewhere = device_name() != "Intel(R) Xeon(R) Processor, 4 cores"
    assert any(note.startswith(advice) for note in found.notes) == elsewhere


def test_offline_without_packages_there_is_one_message(network: Path, tmp_path: Path) -> None:
    from dxc.hardware.predict.packages import PUBLISHED

    found = cost(
        network, hardware(tmp_path, predictors=PUBLISHED, measure=False), tmp_path / "c", profile="none"
    )
    lines = [note for note in found.notes if note.startswith("not predicted by")]
    assert len(lines) == 1
    assert all(name in lines[0] for name in PUBLISHED)
    assert "http://127.0.0.1:9" in lines[0]
    assert "packages" in lines[0]
    assert found.metrics == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"name": "a100", "provider": "cuda"},
            "not measured: there is no CUDA device here for hardware=a100",
        ),
        ({"name": "pi", "remote": True}, "not measured: pi is another machine; hardware.host="),
        ({"measure": False}, "not measured: hardware.measure=false"),
    ],
)
def test_hardware_that_is_not_here_is_predicted(
    facts: dict, said: str, network: Path, tmp_path: Path
) -> None:
    found = cost(network, hardware(tmp_path, **facts), tmp_path / "c", profile="none")
    assert any(note.startswith(said) for note in found.notes)
    assert found.metrics["latency_ms"] > 0
    assert not any(name.startswith(("measured", "peak")) for name in found.metrics)


def test_a_device_that_does_not_answer_stops_nothing(network: Path, tmp_path: Path) -> None:
    facts = {"name": "pi", "remote": True, "host": "nobody@127.0.0.1"}
    found = cost(network, hardware(tmp_path, **facts), tmp_path / "c", profile="none")
    assert any(note.startswith("not measured: ") and "127.0.0.1" in note for note in found.notes)
    assert found.metrics["latency_ms"] > 0


def test_a_fault_in_one_part_leaves_the_others(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a library broke")

    monkeypatch.setattr(costs, "predict_all", broken)
    found = cost(network, hardware(tmp_path), tmp_path / "c", profile="none")
    assert "measured_latency_ms" in found.metrics
    assert any("not predicted: RuntimeError: a library broke" in note for note in found.notes)
    assert "a library broke" in (tmp_path / "c" / "predicted_error.txt").read_text()


def test_a_network_that_is_over_a_limit_is_said(network: Path, tmp_path: Path) -> None:
    limits = {"onnx_mb": 0.01, "latency_ms": 1e6}
    found = cost(network, hardware(tmp_path, limits=limits, measure=False), tmp_path / "c", profile="none")
    assert found.tags["dxc.within_limits"] == "false"
    assert any("is over the limit of 0.01 (hardware.limits.onnx_mb)" in note for note in found.notes)
    assert not any("hardware.limits.latency_ms" in note for note in found.notes)


def test_every_limit_is_checked_or_said_not_to_be(network: Path, tmp_path: Path) -> None:
    """Limits also apply to costs that are counted elsewhere. A limit on an unknown cost is reported as not checked."""
    limits = {"macs": 1000, "params": 50, "measured_latency_ms": 30}
    mine = hardware(tmp_path, limits=limits, measure=False)
    found = cost(network, mine, tmp_path / "c", known={"macs": 1001, "params": 50}, profile="none")
    assert found.tags["dxc.within_limits"] == "false"
    said = [note for note in found.notes if "hardware.limits" in note]
    assert said == [
        "macs 1001 is over the limit of 1000 (hardware.limits.macs)",
        "hardware.limits.measured_latency_ms=30 was not checked: measured_latency_ms is not known of this network",
    ]
    found = cost(network, mine, tmp_path / "c", known={"macs": 1000, "params": 50}, profile="none")
    assert found.tags["dxc.within_limits"] == "unknown"


def test_predicted_beside_measured(network: Path, tmp_path: Path) -> None:
    free = one_operator(tmp_path / "free.onnx", "Relu", shape=["n", 3, "height", 8])
    table, notes, *_ = compare([network, free, tmp_path / "missing.onnx"], hardware(tmp_path))
    row = table.iloc[0]
    assert row["error"] == pytest.approx(row["latency_ms"] / row["measured_latency_ms"] - 1)
    assert row["measured"] == "valid"
    assert table["latency_ms"].isna().tolist() == [False, True, True]
    assert any(
        "free.onnx: no MACs, not predicted: the size of input 'image' is not fixed" in note for note in notes
    )
    assert any("missing.onnx" in note for note in notes)
    about = "ort_cpu_xeon (onnxruntime 1.31.1, 1 thread, Intel(R) Xeon(R) Processor, 4 cores)"
    assert f"predicted for {about}" in notes
    assert any(note.startswith(f"measured on {device_name()}; onnxruntime ") for note in notes)


def test_each_part_of_each_file_stands_alone(network: Path, tmp_path: Path) -> None:
    """A part that fails (reading, predicting or measuring) gives its reason and does not affect the others."""
    (tmp_path / "empty.onnx").touch()
    quantised = one_operator(tmp_path / "quantised.onnx", "Relu", shape=["n", 3, 8, 8])
    model = onnx.load(quantised)
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    model.graph.initializer.append(scale)
    model.graph.node[0].input[0] = "real"
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "scale"], ["real"]),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, quantised)
    words = one_operator(tmp_path / "words.onnx", "Abs", shape=["n", 3])
    model = onnx.load(words)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, words)
    later = one_operator(tmp_path / "later.onnx", "Relu", shape=["n", 3, 8, 8])
    model = onnx.load(later)
    model.ir_version = 99
    onnx.save(model, later)
    files = [tmp_path / "empty.onnx", tmp_path, quantised, words, later, network]
    table, notes, *_ = compare(files, hardware(tmp_path))
    rows = {Path(row["file"]).name: row for row in table.to_dict("records")}
    said = "\n".join(notes)

    def has(file: str) -> set[str]:
        return {
            key
            for key in ("onnx_mb", "macs", "latency_ms", "measured_latency_ms")
            if rows[file].get(key) == rows[file][key]
        }

    whole = {"onnx_mb", "macs", "latency_ms", "measured_latency_ms"}
    assert [has(path.name) for path in files] == [
        set(), set(), whole - {"latency_ms"}, {"onnx_mb", "macs"}, {"onnx_mb", "macs"}, whole
    ]  # fmt: skip
    assert "empty.onnx cannot be read as an ONNX file: it is empty" in said
    assert f"{tmp_path}: no such file" in notes
    assert f"{quantised.name}: ort_cpu_xeon has no predictor for 1 int8-relu" in said.lower()
    assert "words.onnx cannot be measured here: input 'image' is a tensor(int64), not float32" in said
    assert "later.onnx cannot be measured here" in said
    assert rows["quantised.onnx"]["macs"] == 0
    assert rows["words.onnx"]["measured"] == "not measured"


def test_a_fault_of_a_library_costs_one_part_of_one_file(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a library broke")

    monkeypatch.setattr(costs, "predict_all", broken)
    table, notes, *_ = compare([network], hardware(tmp_path))
    assert f"{network}: not predicted: RuntimeError: a library broke (a fault of dxc or a library)" in notes
    assert table["macs"][0] > 0
    assert table["measured"][0] == "valid"


def test_a_file_of_a_fixed_batch_is_measured_at_it_and_says_so(tmp_path: Path) -> None:
    """MACs, prediction and measured latency are those of one image. The time of the batch is in a note."""
    eight = one_operator(
        tmp_path / "b8.onnx", "Conv", shape=[8, 3, 32, 32], weights={"w": [8, 3, 3, 3]}, kernel_shape=[3, 3]
    )
    table, notes, *_ = compare([eight], hardware(tmp_path))
    assert table["macs"][0] == 30 * 30 * 8 * 27
    assert table["measured"][0] == "at batch 8"
    assert "measured_latency_ms" not in table
    (line,) = [note for note in notes if "fixed at 8" in note]
    batch_ms, image_ms = map(float, re.findall(r"([\d.]+) ms", line))
    assert batch_ms / 8 == pytest.approx(image_ms, abs=0.006)
    assert "measured at 8" in line

    out = tmp_path / "costs"
    found = cost(eight, hardware(tmp_path, batches=(1, 2, 4)), out, profile="torch")
    assert json.loads((out / "measured_batch8.json").read_text())["batch"] == 8
    assert not any(name.startswith(("measured", "efficiency", "peak")) for name in found.metrics)
    assert any(note.startswith("its batch is fixed at 8") for note in found.notes)
    assert {batch for _, _, batch in found.curves} == {8}  # profiled so too


def test_limits_count_the_weights_beside_the_file(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "m.onnx", "MatMul", shape=["n", 500], weights={"w": [500, 1000]})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    facts = {"limits": {"onnx_mb": 1.9}, "measure": False, "predictors": []}
    found = cost(path, hardware(tmp_path, **facts), tmp_path / "c", profile="none")
    assert path.stat().st_size < 1000
    assert any(note.startswith("onnx_mb 2 is over the limit of 1.9") for note in found.notes)
    (tmp_path / "m.data").unlink()
    found = cost(path, hardware(tmp_path, **facts), tmp_path / "d", profile="none")
    assert any(note.startswith("not sized: ") and "there is no such file" in note for note in found.notes)


@pytest.mark.long
def test_the_comparison_as_a_command(network: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dxc.hardware", str(network), "hardware.measure=false"]
    done = subprocess.run(
        [*command, "--csv", str(tmp_path / "t.csv")],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "predicted" in done.stdout and "(ms)" in done.stdout  # the heading may break
    assert pd.read_csv(tmp_path / "t.csv")["latency_ms"][0] > 0
    wrong = subprocess.run(
        [*command[:-1], "hardware.colour=red"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 2
    assert wrong.stderr.strip().startswith("error: hardware.colour=red: Could not override")
    assert "Traceback" not in wrong.stderr
    unknown = subprocess.run(
        [*command[:-1], "hardware.predictors=[nobody]"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "there is no package 'nobody'" in unknown.stdout
    none = subprocess.run(
        [*command[:-2], "hardware=a5500"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120
    )
    assert none.returncode == 2
    assert none.stderr.strip().endswith("error: name at least one exported file: model.onnx")


def timed(batch: int, median_ms: float, *, valid: bool = True, **environment: Any) -> Measurement:
    """A measurement without timing."""
    reason = "" if valid else "its runs spread"
    facts = {"device": "NVIDIA Fake", "runtime": "torch", "provider": "cuda", "torch": "2.11.0", "threads": 1}
    facts |= {"execution": "CUDA graph", "arithmetic": "TF32", **environment}
    return Measurement((median_ms,), median_ms, median_ms, 0.0, valid, reason, 5.0, 0.0, batch, facts)


def test_batch_sizes_and_profile_of_files(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 image in 4 ms, 2 in 6 ms, 4 in 8 ms of which the measurement is invalid: 3 ms an image at batch 2 is least."""
    times = {1: 4.0, 2: 6.0, 4: 8.0}
    monkeypatch.setattr(costs, "measure_on", lambda _, __, n: timed(n, times[n], valid=n < 4))
    rows = [("torch", 2, "operators", "conv", 6.0, 0.75), ("torch", 2, "latency", "batch", 8.0, float("nan"))]
    asked: list[Any] = []

    def profile_network(onnx: Path, out: Path, **options: Any) -> Profile:
        asked.append(options)
        return Profile("torch", "a note", (2,), pd.DataFrame(rows, columns=COLUMNS), ())

    monkeypatch.setattr(torch_profile, "profile_network", profile_network)
    mine = hardware(tmp_path, batches=[1, 2, 4], predictors=[])
    found = compare([network], mine, progress=False)
    assert found.batches.drop(columns="file").to_dict("list") == {
        "batch": [1, 2, 4],
        "batch_ms": [4.0, 6.0, pytest.approx(float("nan"), nan_ok=True)],
        "ms_per_image": [4.0, 3.0, pytest.approx(float("nan"), nan_ok=True)],
        "measured": ["valid", "valid", "invalid"],
        "optimum": [False, True, False],
    }
    assert found.table.loc[0, ["measured_latency_ms", "efficiency_ms", "optimum_batch"]].tolist() == [4, 3, 2]
    assert found.profile.to_dict("records") == [
        {"file": str(network), "source": "torch", "batch": 2, "ms": 8.0, "ms_per_image": 4.0, "conv": 0.75}
    ]
    assert asked == [
        {"mode": "auto", "accelerator": "cpu", "threads": 1, "batches": [1, 2, 4], "budget_seconds": 30.0}
    ]
    assert {f"{network}: a note", "measured on NVIDIA Fake; torch 2.11.0, cuda, CUDA graph, TF32"} < set(
        found.notes
    )
    said = "its runs spread; it does not count for optimum_batch"
    invalid = [note for note in found.notes if "invalid" in note]
    assert invalid == [f"{network}: measured latency at batch 4 is invalid: {said}"]

    asked.clear()
    one = compare([network], hardware(tmp_path, predictors=[]), progress=False)
    assert one.batches.empty and one.profile.empty and asked == []
    here = hardware(tmp_path, predictors=[], measure=False, provider="cuda", batches=[1, 2])
    assert compare([network], here, progress=False).profile.empty  # there is no device to profile
    compare([network], here, profile="torch", progress=False)
    assert asked == [
        {"mode": "torch", "accelerator": "gpu", "threads": 1, "batches": [1, 2], "budget_seconds": None}
    ]


def test_where_no_measurement_is_valid_it_is_said(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The column stays, with what is missing, and a note."""
    monkeypatch.setattr(costs, "measure_on", lambda _, __, n: timed(n, 4.0, valid=False))
    table, notes, *_ = compare([network, network], hardware(tmp_path, predictors=[]), progress=False)
    assert table["measured_latency_ms"].isna().all()
    assert table["measured"].tolist() == ["invalid", "invalid"]
    assert "no measured latency: no measurement of one image is valid" in notes
    left_out = hardware(tmp_path, predictors=[], measure=False)
    assert "measured_latency_ms" not in compare([network], left_out, progress=False).table


def test_what_could_not_be_captured_is_said(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = timed(1, 4.0, execution="eager", eager_because="RuntimeError: a copy")
    monkeypatch.setattr(costs, "measure_on", lambda *_: record)
    note = (
        "measured operator by operator, because it cannot be captured as a CUDA graph: RuntimeError: a copy"
    )
    assert f"{network}: {note}" in compare([network], hardware(tmp_path, predictors=[]), progress=False).notes
    found = cost(network, hardware(tmp_path, predictors=[]), tmp_path / "c", profile="none")
    assert note in found.notes
    assert found.tags["dxc.measured_on"] == "NVIDIA Fake; torch 2.11.0, cuda, eager, TF32"


@pytest.mark.gpu
def test_the_command_on_a_gpu(network: Path, tmp_path: Path) -> None:
    """Latency at batch 1 to 64, the optimum, and the published shares beside ours, by one command."""
    command = [
        sys.executable,
        "-m",
        "dxc.hardware",
        str(network),
        "hardware=a5500",
        "--csv",
        tmp_path / "t.csv",
    ]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    batches = pd.read_csv(tmp_path / "t_batches.csv")
    assert batches["batch"].tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert batches["optimum"].sum() == 1
    profile = pd.read_csv(tmp_path / "t_profile.csv")
    assert profile["batch"].tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert (profile["conv"] > 0).all() and (profile["memory_ms"] > 0).all()
    assert profile.filter(regex="^api/").sum(axis=1).round(6).eq(1).all()
    assert torch.cuda.get_device_name() in done.stdout
    assert "published: original SPP-Net" in done.stdout


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"colour": "red"}, "hardware has no colour"),
        ({"threads": 0}, "hardware.threads must be a whole number"),
        ({"runtime": "tflite"}, "hardware.runtime must be auto, onnxruntime or torch"),
        ({"provider": "tpu"}, "hardware.provider must be cpu or cuda"),
        ({"batches": [2]}, "hardware.batches must be a list that begins with 1"),
        ({"batches": [1, 0]}, r"hardware.batches\[1\] must be a whole number"),
        ({"predictors": "cpu"}, "hardware.predictors must be a list of names"),
        ({"limits": {"accuracy": 1}}, "hardware.limits.accuracy: no such cost"),
        (
            {"limits": {"accuracy_std": 1}},
            "hardware.limits.accuracy_std: no such cost; latency_ms, .*, macs have",
        ),
        ({"limits": {"onnx_mb": "much"}}, "hardware.limits.onnx_mb must be a number over 0"),
    ],
)
def test_facts_that_cannot_be(facts: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Hardware.of({"name": "mine", **facts})
