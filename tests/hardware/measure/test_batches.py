"""Latency per image by batch size: the optimum by hand, what is left out, and graphs that mix up their images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dxc.config.hardware import Hardware
from dxc.errors import ConfigError, HardwareError
from dxc.hardware import costs
from dxc.hardware.costs import cost
from dxc.hardware.measure import batches as efficiency
from dxc.hardware.measure.batches import EXECUTIONS, Efficiency, check_batch, measure_batches
from dxc.hardware.measure.latency import Measurement, record
from dxc.metrics import metric_of
from tests.hardware.networks import exported_resnet


def measurement(batch: int, median_ms: float, *, spread: float = 0.001) -> Measurement:
    """A measurement as dxc.hardware.measure.latency.record makes it, from runs of 0.9, 1 and 1.2 times the median."""
    answer = {
        "raw_ms": [0.9 * median_ms, median_ms, 1.2 * median_ms],
        "peak_memory_mb": 50.0,
        "baseline_memory_mb": 40.0,
        "environment": {},
    }
    return record(answer, spread, 0.1, batch, [])


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """There is no file. The fixture collects the batch sizes that would be checked."""
    requested: list[int] = []
    monkeypatch.setattr(efficiency, "check_batch", lambda onnx, images: requested.append(images))
    return requested


def by_median(medians: dict[int, float], **spreads: float) -> Callable[[int], Measurement]:
    return lambda batch: measurement(batch, medians[batch], spread=spreads.get(f"of{batch}", 0.001))


def test_latency_over_batch_by_hand(unchecked: list[int]) -> None:
    """4 / 1 = 4, 6 / 2 = 3 and 14 / 4 = 3.5 ms per image: a batch of 2 is best."""
    found = measure_batches(Path("x.onnx"), [1, 2, 4], by_median({1: 4, 2: 6, 4: 14}))
    assert found.metrics() == {
        "efficiency_ms": 3.0,
        "efficiency_ms/batch1": 4.0,
        "efficiency_ms/batch2": 3.0,
        "efficiency_ms/batch4": 3.5,
        "optimum_batch": 2.0,
    }
    assert (found.optimum_batch, found.notes) == (2, ())
    assert unchecked == [4]
    for name in found.metrics():
        assert not metric_of(name).maximise
    assert metric_of("efficiency_ms/batch4").unit == "ms"


def test_the_table_has_quartiles_of_an_image(unchecked: list[int]) -> None:
    """Runs take 0.9, 1 and 1.2 times 6 ms. Their quartiles are 0.95 and 1.1 times 6 ms."""
    found = measure_batches(Path("x.onnx"), [1, 2], by_median({1: 4, 2: 6}, of2=0.5))
    assert list(found.table()) == ["batch", "ms_per_image", "q25_ms", "q75_ms", "valid"]
    assert found.table().iloc[1].tolist() == pytest.approx([2, 3.0, 2.85, 3.3, False])


def test_of_equal_batches_the_smallest_is_best(unchecked: list[int]) -> None:
    found = measure_batches(
        Path("x.onnx"), [1, 2, 4, 8], by_median({1: 4, 2: 6, 4: 12, 8: 24}, of2=0.0, of4=0.0)
    )
    assert found.optimum_batch == 2
    assert found.notes == ("optimum_batch is 2; within the spread of the runs it ties with batch 4, 8",)


def test_a_difference_within_the_spread_is_said(unchecked: list[int]) -> None:
    """2.9 is 3.3 % below 3: more than 1 % for batch 2, less than the 4 % that batch 1 spreads by, or batch 4 itself."""
    medians = {1: 3.0, 2: 6.0, 4: 11.6}
    found = measure_batches(Path("x.onnx"), [1, 2, 4], by_median(medians, of1=0.04, of2=0.01, of4=0.01))
    assert found.optimum_batch == 4
    assert found.notes == ("optimum_batch is 4; within the spread of the runs it ties with batch 1",)
    found = measure_batches(Path("x.onnx"), [1, 2, 4], by_median(medians, of1=0.01, of2=0.01, of4=0.04))
    assert found.notes == ("optimum_batch is 4; within the spread of the runs it ties with batch 1, 2",)


def test_invalid_measurements_are_no_candidates(unchecked: list[int]) -> None:
    found = measure_batches(Path("x.onnx"), [1, 2, 4], by_median({1: 4, 2: 6, 4: 4}, of4=0.5))
    assert found.ms_per_image == {1: 4.0, 2: 3.0}
    assert found.optimum_batch == 2
    (note,) = found.notes
    assert note.startswith("measured latency at batch 4 is invalid: ")
    assert note.endswith("; it does not count for optimum_batch")
    assert [m.batch for m in found.measurements] == [1, 2, 4]


def test_one_valid_measurement_is_no_comparison(unchecked: list[int]) -> None:
    found = measure_batches(Path("x.onnx"), [1, 2], by_median({1: 4, 2: 6}, of1=0.5))
    assert (found.metrics(), found.optimum_batch) == ({}, None)
    assert found.notes[1] == "no efficiency_ms: fewer than two batch sizes have a valid measurement"


def test_one_batch_is_measured_as_ever(unchecked: list[int]) -> None:
    found = measure_batches(Path("x.onnx"), [1], by_median({1: 4}))
    assert (len(found.measurements), found.metrics(), found.notes, unchecked) == (1, {}, (), [])


def test_an_invalid_single_batch_is_said_once(unchecked: list[int]) -> None:
    (note,) = measure_batches(Path("x.onnx"), [1], by_median({1: 4}, of1=0.5)).notes
    assert note.startswith("measured latency at batch 1 is invalid: ")
    assert "optimum_batch" not in note


def test_batches_that_take_too_long_are_left_out(unchecked: list[int]) -> None:
    """A batch of 4 should take twice the 0.8 s of a batch of 2. 17 executions take 27 s, which is over 20 s."""
    requested: list[int] = []

    def measured(batch: int) -> Measurement:
        requested.append(batch)
        return measurement(batch, {1: 500.0, 2: 800.0}[batch])

    assert EXECUTIONS == 17
    found = measure_batches(Path("x.onnx"), [1, 2, 4, 8], measured, max_seconds=20)
    assert requested == [1, 2]
    said = "batch 4, 8 not measured: batch 4 would take about 27 s, and 20 s are allowed"
    assert found.notes == (said,)
    assert found.optimum_batch == 2
    alone = measure_batches(Path("x.onnx"), [1, 64], by_median({1: 500.0}), max_seconds=20)
    assert (len(alone.measurements), alone.metrics(), len(alone.notes)) == (1, {}, 1)


@pytest.mark.parametrize(
    ("first_ms", "options", "sizes"),
    [
        (800.0, {"max_seconds": 27.2}, [1, 2]),  # 17 x 0.8 s x 2: just what is allowed
        (800.0, {"max_seconds": 27.1}, [1]),
        (882.0, {}, [1, 2]),  # 29.99 of 30 s
        (883.0, {}, [1]),  # 30.02
    ],
)
def test_a_batch_may_take_what_is_allowed(
    first_ms: float, options: dict[str, float], sizes: list[int], unchecked: list[int]
) -> None:
    found = measure_batches(Path("x.onnx"), [1, 2], by_median({1: first_ms, 2: first_ms}), **options)
    assert [m.batch for m in found.measurements] == sizes
    assert unchecked == [2]  # no more images than the largest batch has


def test_a_batch_without_memory_leaves_the_smaller_ones(unchecked: list[int]) -> None:
    def measured(batch: int) -> Measurement:
        if batch == 4:
            raise HardwareError("killed; out of memory?")
        return measurement(batch, 3.0 * batch + 1)

    found = measure_batches(Path("x.onnx"), [1, 2, 4, 8], measured)
    assert set(found.ms_per_image) == {1, 2}
    assert found.notes == ("batch 4, 8 not measured: killed; out of memory?",)
    with pytest.raises(HardwareError, match="out of memory"):
        measure_batches(Path("x.onnx"), [4, 8], measured)


# ---------------------------------------------------------------- outputs for a batch


def graph(path: Path, nodes: list[Any], outputs: dict[str, list[Any]], **constants: np.ndarray) -> Path:
    """A file with input `image` (n, 3, 4, 4) of these nodes."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])
    made = helper.make_graph(
        [helper.make_node(op, inputs, [output], **options) for op, inputs, output, options in nodes],
        "batch",
        [image],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


FLAT = ("Reshape", ["image", "shape"], "scores", {})
MIXED = {
    "a sum over the batch": (
        [("ReduceMean", ["image"], "scores", {"axes": [0], "keepdims": 0})],
        {"scores": [3, 4, 4]},
        {},
        "output 'scores' of a batch of 4 has the shape (3, 4, 4), not (12, 4, 4)",
    ),
    "a mean over the batch, taken off": (
        [("ReduceMean", ["image"], "mean", {"axes": [0]}), ("Sub", ["image", "mean"], "scores", {})],
        {"scores": ["n", 3, 4, 4]},
        {},
        "has a relative error of",
    ),
    "a thousandth of the mean over the batch": (
        [
            ("ReduceMean", ["image"], "mean", {"axes": [0]}),
            ("Mul", ["mean", "share"], "little", {}),
            ("Sub", ["image", "little"], "scores", {}),
        ],
        {"scores": ["n", 3, 4, 4]},
        {"share": np.array(1e-3, dtype=np.float32)},
        "has a relative error of",
    ),
    "a maximum over the batch, taken off": (  # no value of the batch is above that of its image alone
        [("ReduceMax", ["image"], "most", {"axes": [0]}), ("Sub", ["image", "most"], "scores", {})],
        {"scores": ["n", 3, 4, 4]},
        {},
        "has a relative error of",
    ),
    "a batch of one in the graph": (
        [FLAT],
        {"scores": [1, None]},
        {"shape": np.array([1, -1])},
        "has the shape (1, 192), not (4, 48)",
    ),
    "a size of one batch in the graph": (
        [FLAT],
        {"scores": [None, None]},
        {"shape": np.array([1, 48])},
        "cannot compute a batch of 4",
    ),
    "the second output": (
        [
            ("Relu", ["image"], "presence", {}),
            ("ReduceMean", ["image"], "mean", {"axes": [0]}),
            ("Sub", ["image", "mean"], "box", {}),
        ],
        {"presence": ["n", 3, 4, 4], "box": ["n", 3, 4, 4]},
        {},
        "output 'box' of a batch of 4 has a relative error of",
    ),
    "what is not a number": (
        [("Sub", ["image", "nan"], "scores", {})],
        {"scores": ["n", 3, 4, 4]},
        {"nan": np.array(np.nan, dtype=np.float32)},
        "has a relative error of nan",
    ),
}


@pytest.mark.parametrize("case", MIXED)
def test_a_graph_that_mixes_up_its_images_is_refused(case: str, tmp_path: Path) -> None:
    nodes, outputs, constants, said = MIXED[case]
    file = graph(tmp_path / "mixed.onnx", nodes, outputs, **constants)
    with pytest.raises(HardwareError, match=re.escape(said)) as error:
        check_batch(file)
    assert "mixed.onnx" in str(error.value)
    assert "hardware.batches=[1]" in str(error.value)


def test_graphs_that_keep_images_apart_pass(tmp_path: Path) -> None:
    """These graphs pass. Rounding by 5e-5 of the largest value passes too, also where all values are negative."""
    nodes = [("Relu", ["image"], "presence", {}), ("Neg", ["image"], "box", {})]
    rounded = [
        ("ReduceMean", ["image"], "mean", {"axes": [0]}),
        ("Mul", ["mean", "share"], "little", {}),
        ("Neg", ["image"], "negative", {}),
        ("Sub", ["negative", "little"], "scores", {}),
    ]
    image = ["n", 3, 4, 4]
    for file in (
        exported_resnet(tmp_path / "resnet.onnx"),
        graph(tmp_path / "two.onnx", nodes, {"presence": image, "box": image}),
        graph(tmp_path / "flat.onnx", [FLAT], {"scores": [None, 48]}, shape=np.array([-1, 48])),
        graph(tmp_path / "rounded.onnx", rounded, {"scores": image}, share=np.array(5e-5, dtype=np.float32)),
    ):
        found = measure_batches(file, [1, 2, 8], by_median({1: 4.0, 2: 6.0, 8: 16.0}))
        assert found.ms_per_image == {1: 4.0, 2: 3.0, 8: 2.0}
        assert found.notes == ()


# ---------------------------------------------------------------- as part of the costs


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Costs without timing. A batch of n takes 10 + 2 n ms: 12, 7 or 4.5 ms per image. Returns the batches in order."""
    requested: list[int] = []

    def measure_on(onnx: Path, hardware: Hardware, batch: int) -> Measurement:
        requested.append(batch)
        return measurement(batch, 10.0 + 2 * batch)

    monkeypatch.setattr(costs, "measure_on", measure_on)
    return requested


def test_efficiency_among_the_costs(measured: list[int], tmp_path: Path) -> None:
    network = exported_resnet(tmp_path / "model.onnx")
    facts = Hardware(name="cpu", batches=(1, 2, 4), limits={"efficiency_ms": 4.0})
    found = cost(network, facts, tmp_path / "costs", profile="none")
    assert measured == [1, 2, 4]
    assert found.metrics["efficiency_ms"] == 4.5
    assert found.metrics["efficiency_ms/batch2"] == 7.0
    assert found.metrics["optimum_batch"] == 4.0
    assert found.metrics["measured_latency_ms"] == 12.0
    points = [point for point in found.curves if point[0] == "measured/ms_per_image"]
    assert points == [("measured/ms_per_image", *each) for each in ((12.0, 1), (7.0, 2), (4.5, 4))]
    assert isinstance(found.efficiency, Efficiency)
    assert found.efficiency.optimum_batch == 4
    assert "efficiency_ms 4.5 is over the limit of 4 (hardware.limits.efficiency_ms)" in found.notes
    for batch in measured:
        assert (tmp_path / "costs" / f"measured_batch{batch}.json").exists()


def test_one_batch_has_no_efficiency(measured: list[int], tmp_path: Path) -> None:
    network = exported_resnet(tmp_path / "model.onnx")
    found = cost(network, Hardware(name="cpu"), tmp_path / "costs", profile="none")
    assert set(found.metrics) == {"measured_latency_ms", "measured_latency_p95_ms", "peak_memory_mb"}
    assert found.efficiency is None


def test_a_mixed_up_graph_keeps_its_latency_at_batch_1(measured: list[int], tmp_path: Path) -> None:
    nodes, outputs, constants, _ = MIXED["a mean over the batch, taken off"]
    network = graph(tmp_path / "mixed.onnx", nodes, outputs, **constants)
    found = cost(network, Hardware(name="cpu", batches=(1, 2, 4)), tmp_path / "costs", profile="none")
    assert measured == [1]
    assert found.metrics["measured_latency_ms"] == 12.0
    assert not any(name.startswith(("efficiency", "optimum")) for name in found.metrics)
    (note,) = (note for note in found.notes if "mixes up its images" in note)
    assert note.startswith("only batch 1 is measured: ")


@pytest.mark.parametrize("batches", [[1, 4, 2], [1, 2, 2]])
def test_batches_ascend(batches: list[int]) -> None:
    with pytest.raises(ConfigError, match="hardware.batches must ascend"):
        Hardware.of({"name": "mine", "batches": batches})
