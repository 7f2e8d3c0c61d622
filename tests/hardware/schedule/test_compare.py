"""Schedules compared like for like, their table, and what is said of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dxc.analysis.designs import parse_objectives
from dxc.config.compose import PROJECT_ROOT
from dxc.config.hardware import Hardware
from dxc.errors import ConfigError, HardwareError
from dxc.hardware import costs
from dxc.hardware.costs import cost
from dxc.hardware.network import read_network
from dxc.hardware.schedule import compare, compiled, execution
from dxc.hardware.schedule import cost as schedule_cost
from dxc.hardware.schedule.compare import COLUMNS, Comparison, compare_schedules, plan_in_words
from dxc.hardware.schedule.compiled import compiled_times
from dxc.metrics import METRICS
from dxc.report.schedules import print_schedules
from tests.hardware.networks import one_operator
from tests.hardware.schedule.simulated_gpu import LAUNCH_MS, simulated

NAMES = ["eager", "sequential", "greedy", "ios"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, programs_for_a_gpu: None) -> Iterator[None]:
    """Its times do not vary: a few runs suffice."""
    for module in (execution, schedule_cost):
        for name in ("RUNS", "ROUNDS", "WARM_UP"):
            monkeypatch.setattr(module, name, 1)
    with simulated(monkeypatch):
        yield


def test_an_inception_block_gains_and_a_chain_does_not(networks: Path, gpu: None, tmp_path: Path) -> None:
    found = compare_schedules(networks / "inception.onnx", [2, 1], out=tmp_path / "t.parquet")
    table = found.table()
    assert list(zip(table["batch"], table["schedule"], strict=True)) == [
        (batch, name) for batch in (1, 2) for name in NAMES
    ]
    # 9 convolutions with ReLU, a pool, a concatenation; the longest chain has 3 of the former and the last
    assert table["batch_ms"].tolist() == [20 * LAUNCH_MS, 20, 7, 7] * 2
    assert table["ms_per_image"].tolist() == [20 * LAUNCH_MS, 20, 7, 7, 10 * LAUNCH_MS, 10, 3.5, 3.5]
    gains = [1 / LAUNCH_MS, 1, 20 / 7, 20 / 7]
    assert table["gain"].tolist() == pytest.approx(gains * 2)
    assert table["stages_ms"].tolist()[1:4] == [20, 7, 7]
    assert table["stages"].tolist()[1:4] == [11, 4, 4]
    assert table["groups"].tolist()[1:4] == [1, 4, 4]
    assert (table["error"] < 1e-6).all()
    assert found.findings() == [
        "scheduling gains over the sequential graph of the same batch: 2.86 times at batch 1, 2.86 times at batch 2"
    ]
    assert found.metrics() == {"sequential_latency_ms": 20, "scheduled_latency_ms": 7}
    assert set(found.metrics()) <= set(METRICS)
    assert ("schedule/ios/gain", pytest.approx(20 / 7), 2) in found.curves()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    assert found.conditions.startswith("a simulated GPU; torch ") and found.conditions.endswith(", fp32")

    chain = compare_schedules(networks / "resnet.onnx", [1])
    assert chain.table()["gain"].tolist()[1:] == pytest.approx([1, 45 / 41, 45 / 41], rel=0.05)


def test_the_share_of_the_roofline(networks: Path, gpu: None) -> None:
    """The peaks are 1e12 operations and 1e12 bytes a second."""
    path = networks / "sppnet4.onnx"
    table = compare_schedules(path, [1, 4]).table().set_index(["batch", "schedule"])
    macs = read_network(path).macs
    assert macs is not None
    assert table.loc[(4, "ios"), "roofline_ms"] == pytest.approx(1000 * 2 * 4 * macs / 1e12)
    row = table.loc[(1, "greedy")]
    assert row["roofline_share"] == pytest.approx(row["roofline_ms"] / row["batch_ms"])
    assert row["roofline_ms"] == pytest.approx(1000 * 2 * macs / 1e12)


@pytest.mark.long
def test_it_says_where_nothing_is_gained(networks: Path) -> None:
    found = compare_schedules(networks / "resnet.onnx", [1, 2], device="cpu")
    assert found.metrics().keys() == {"sequential_latency_ms", "scheduled_latency_ms"}
    assert "a processor has no streams" in found.notes[0]
    found.rows = [each | {"gain": 1.015, "spread": 0.001} for each in found.rows]
    assert found.findings() == ["scheduling gains nothing at batch 1, 2"]
    for row in found.rows:
        row["gain"], row["spread"] = (1.3, 0.01) if row["batch"] == 2 else (1.3, 0.4)
    assert found.findings() == [
        "scheduling gains over the sequential graph of the same batch: 1.30 times at batch 2",
        "scheduling gains nothing at batch 1",
    ]


def test_an_execution_that_computes_something_else_is_not_measured(
    networks: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = execution.execution

    def wrong_if_side_by_side(program: Any, schedule: Any, streams: Any) -> Any:
        one = made(program, schedule, streams)
        if max(map(len, schedule)) > 1:
            one._outputs = tuple(each.clone() for each in one._outputs)
        return one

    monkeypatch.setattr(execution, "execution", wrong_if_side_by_side)
    found = compare_schedules(networks / "inception.onnx", [1])
    table = found.table().set_index("schedule")
    assert table["batch_ms"].isna().to_dict() == {
        "eager": False, "sequential": False, "greedy": True, "ios": True
    }  # fmt: skip
    assert "batch 1: ios is not measured, because its outputs differ" in found.notes[1]
    assert found.metrics() == {"sequential_latency_ms": 20} and found.findings() == []


def test_a_batch_for_which_there_is_no_memory_or_time(
    networks: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, of_a_batch = networks / "inception.onnx", compare._compare_batch

    def small_batches(*given: Any) -> list[dict[str, Any]]:
        if given[1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")
        return of_a_batch(*given)

    monkeypatch.setattr(compare, "_compare_batch", small_batches)
    found = compare_schedules(path, [1, 2, 4, 8], out=tmp_path / "t.csv")
    assert found.notes == ["batch 4, 8 left out: CUDA out of memory. Tried"]
    assert set(pd.read_csv(tmp_path / "t.csv")["batch"]) == {1, 2}
    found = compare_schedules(path, [1, 2], seconds=1e-6)
    assert found.notes == ["batch 2 left out: 0 s are allowed"]
    with pytest.raises(HardwareError, match="schedules cannot be measured: CUDA out of memory"):
        compare_schedules(path, [4])


def test_a_fixed_batch_and_unknown_macs(gpu: None, tmp_path: Path) -> None:
    fixed = one_operator(
        tmp_path / "b4.onnx", "Conv", shape=[4, 3, 8, 8], weights={"w": [4, 3, 3, 3]}, kernel_shape=[3, 3]
    )
    found = compare_schedules(fixed, [1, 2])
    assert set(found.table()["batch"]) == {4} and found.metrics() == {}
    assert found.notes == ["its batch is fixed at 4, so it is measured at 4"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_there_has_to_be_a_gpu(networks: Path) -> None:
    with pytest.raises(HardwareError, match="there is no CUDA device here"):
        compare_schedules(networks / "resnet.onnx")


def test_no_function_takes_times_of_two_batches(networks: Path, gpu: None) -> None:
    """A table in which all batches differ: every gain is against its own."""
    table = compare_schedules(networks / "inception.onnx", [1, 2, 3]).table()
    for _, rows in table.groupby("batch"):
        base = rows.set_index("schedule").loc["sequential", "batch_ms"]
        assert rows["gain"].tolist() == pytest.approx((base / rows["batch_ms"]).tolist())
    assert list(table) == list(COLUMNS)


def test_plans_in_words() -> None:
    assert plan_in_words((((0,),), ((1, 2), (3,)), ((4,),))) == "0; 1 2 | 3; 4"


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_torch_compile_in_a_process_of_its_own(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend that compiles nothing; one mode, since a process takes seconds."""
    monkeypatch.setattr(compiled, "MODES", {"compiled_graph": "max-autotune"})
    found = compiled_times(
        networks / "sppnet5.onnx", [1, 2], precision="fp32", device="cpu", seconds=120, backend="eager"
    )
    assert found.notes == [] and found.ms.keys() == {1, 2}
    assert all(len(each["compiled_graph"]) == 7 for each in found.ms.values())
    assert found.errors == {1: {"compiled_graph": 0}, 2: {"compiled_graph": 0}}


def test_torch_compile_that_fails_or_takes_too_long(networks: Path) -> None:
    found = compiled_times(networks / "resnet.onnx", [1, 8], precision="fp32", device="cpu", seconds=0.2)
    assert found.notes == [
        "torch.compile (max-autotune-no-cudagraphs) is missing at batch 1, 8: it took over 0 s",
        "torch.compile (max-autotune) is missing at batch 1, 8: it took over 0 s",
    ]
    line = json.dumps({"batch": 1, "ms": [1.0], "error": 0.0})
    program = f"print('noise'); print('{line}'); raise ValueError('no compiler')"
    lines, reason = compiled._run([sys.executable, "-c", program], seconds=60)
    assert (lines, reason) == ([json.loads(line)], "ValueError: no compiler")


def test_rows_of_torch_compile_stand_by_their_batch(
    networks: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ms = {
        1: {"compiled": np.full(7, 4.0), "compiled_graph": np.full(7, 2.0)},
        2: {"compiled": np.full(7, 5.0)},
    }
    errors = {1: {"compiled": 1e-6, "compiled_graph": math.nan}, 2: {"compiled": 1e-6}}
    monkeypatch.setattr(
        compiled, "compiled_times", lambda *_, **__: compiled.CompiledTimes(ms, errors, ["one is missing"])
    )
    found = compare_schedules(networks / "inception.onnx", [1, 2], compile_batches=[1, 2, 64])
    table = found.table()
    assert list(table["schedule"]) == [*NAMES, "compiled", "compiled_graph", *NAMES, "compiled"]
    assert list(table["batch"]) == [1] * 6 + [2] * 5
    assert table["gain"].tolist()[4] == 20 / 4 and math.isnan(table["batch_ms"][5])
    assert table["gain"].tolist()[10] == 20 / 5
    assert found.notes == [
        "one is missing",
        "batch 1: compiled_graph is not measured, because its outputs differ by nan",
    ]


# --- the command, and a run ------------------------------------------------------------------------------------------


def test_the_table_fits_80_columns(
    networks: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = compare_schedules(networks / "inception.onnx", [1, 64])
    print_schedules("inception.onnx", found.conditions, found.table(), found.findings(), ["long " * 40])
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    assert [line.split()[:8] for line in printed if " ios " in line] == [
        ["1", "ios", "7.0000", "7.0000", "2.86", "4", "4", "7.0000"],
        ["64", "ios", "7.0000", "0.1094", "2.86", "4", "4", "7.0000"],
    ]
    assert len([line for line in printed if line.startswith("found: scheduling gains over")]) == 1


@pytest.mark.long
def test_the_command(networks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dxc.hardware.schedule", str(networks / "resnet.onnx")]
    done = subprocess.run(
        [*command, "--device", "cpu", "--batches", "1", "--out", str(tmp_path / "tables")],
        cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resnet.onnx: schedules, measured on" in done.stdout and "greedy" in done.stdout
    assert len(pd.read_parquet(tmp_path / "tables" / "resnet_fp32.parquet")) == 4
    wrong = subprocess.run(
        [*command, "--batches", "0"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 2 and wrong.stderr.strip().startswith("error: --batches and --compile take")


def described(tmp_path: Path, **facts: Any) -> Hardware:
    section = {"name": "mine", "packages_dir": str(tmp_path), "schedule": True, **facts}
    return Hardware.of(section)


def test_a_run_is_scheduled_where_it_is_asked_for(
    networks: Path, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_measure", lambda *_: None)
    mine = described(tmp_path, batches=[1, 2])
    found = cost(networks / "inception.onnx", mine, tmp_path / "c", profile="none")
    assert found.metrics == {"sequential_latency_ms": 20, "scheduled_latency_ms": 7}
    assert found.tags["dxc.scheduled_on"].startswith("a simulated GPU; torch ")
    assert found.tags["dxc.measured_on"] == found.tags["dxc.scheduled_on"]
    assert ("schedule/ios/gain", 20 / 7, 2) in found.curves
    assert any(note.startswith("scheduling gains over") for note in found.notes)
    assert len(pd.read_parquet(tmp_path / "c" / "schedules.parquet")) == 8
    off = cost(
        networks / "inception.onnx", described(tmp_path, schedule=False), tmp_path / "d", profile="none"
    )
    assert off.metrics == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"measure": False}, "hardware.measure=false"),
        ({"provider": "cuda"}, "there is no CUDA device here for hardware=mine"),
        ({}, "schedules run on the streams of a GPU, and there is no CUDA device here"),
        ({"host": "a@b"}, "schedules are measured on this machine only, and hardware.host names another one"),
    ],
)
def test_a_run_says_why_it_is_not_scheduled(
    facts: dict, said: str, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_measure", lambda *_: None)
    found = cost(networks / "resnet.onnx", described(tmp_path, **facts), tmp_path / "c", profile="none")
    assert f"not scheduled: {said}" in found.notes


def test_configurations_say_whether_to_schedule() -> None:
    from omegaconf import OmegaConf

    asked = {
        path.stem: OmegaConf.load(path)["schedule"]
        for path in (PROJECT_ROOT / "conf" / "hardware").glob("*.yaml")
    }
    assert asked == {"a100": False, "a5500": True, "cpu": False, "pi": False}
    with pytest.raises(ConfigError, match="hardware.schedule must be"):
        Hardware.of({"name": "mine", "schedule": "greedy"})


def test_they_can_be_objectives() -> None:
    """Greatest efficiency subject to AP > A: the least scheduled latency among the designs that are good enough."""
    runs = pd.DataFrame(
        {
            "run_id": ["a", "b"],
            "average_precision": [0.95, 0.97],
            "sequential_latency_ms": [0.5, 0.6],
            "scheduled_latency_ms": [0.3, 0.4],
        }
    )
    found = parse_objectives(["average_precision", "scheduled_latency_ms", "sequential_latency_ms"], runs)
    assert [each.maximise for each in found.values()] == [True, False, False]
    assert all("dxc.scheduled_on" in METRICS[name].comparable_by for name in list(found)[1:])


@pytest.mark.gpu
def test_schedules_on_a_gpu(networks: Path, tmp_path: Path) -> None:
    found = compare_schedules(networks / "inception.onnx", [1, 4], out=tmp_path / "t.parquet")
    table = found.table()
    assert list(table["schedule"]) == NAMES * 2 and (table["batch_ms"] > 0).all()
    by_name = table[table["batch"] == 1].set_index("schedule")
    assert by_name.loc["sequential", "batch_ms"] < by_name.loc["eager", "batch_ms"]  # without launches
    assert by_name.loc["ios", "stages_ms"] <= by_name.loc["sequential", "stages_ms"] * 1.001
    assert 0.3 < by_name.loc["sequential", "stages_ms"] / by_name.loc["sequential", "batch_ms"] < 3
    assert 0 < by_name.loc["ios", "roofline_share"] < 1.5
    assert not [note for note in found.notes if "not measured" in note or "left out" in note]


@pytest.mark.gpu
@pytest.mark.slow
def test_torch_compile_on_a_gpu(networks: Path) -> None:
    found = compiled_times(networks / "inception.onnx", [1], precision="fp32", device="cuda", seconds=300)
    assert found.notes == [], json.dumps(found.notes)
    assert found.ms[1].keys() == {"compiled", "compiled_graph"}


def test_an_empty_comparison_has_a_table() -> None:
    empty = Comparison("a GPU", "a GPU; torch")
    assert list(empty.table()) == list(COLUMNS) and empty.metrics() == {} and empty.findings() == []
