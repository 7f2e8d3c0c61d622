"""Predicted latency: sums by hand, spread over packages, and kernels that a package does not cover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from dxc.hardware.predict.features import TARGET, derive, to_ms, work
from dxc.hardware.predict.forest import Forest
from dxc.hardware.predict.kernels import Kernel, read_graph
from dxc.hardware.predict.packages import SHIPPED, Package, load_package
from dxc.hardware.predict.predict import (
    KernelLatency,
    Prediction,
    describe_coverage,
    latency_metrics,
    predict,
)
from tests.hardware.networks import exported_resnet, one_operator

RULES = {f"BF_{pair}": {"latency": {}, "obey": True} for pair in ("conv_relu", "add_relu")}


def constant(value: float, n_features: int) -> Forest:
    """A forest of one leaf."""
    leaf = {"feature": [-2], "threshold": [-2.0], "left": [-1], "right": [-1], "value": [value]}
    tree = {key: np.array(each) for key, each in leaf.items()}
    return Forest.joined([tree], base=0.0, weight=1.0, n_features=n_features)


def package(
    folder: Path, name: str, regressors: dict[str, Forest], about: dict[str, Any] | None = None
) -> Package:
    (folder / name).mkdir()
    for kernel, forest in regressors.items():
        forest.save(folder / name / f"{kernel}.npz")
    (folder / name / "fusion_rules.json").write_text(json.dumps(RULES))
    if about is not None:
        conditions = {"device": "x", "runtime": "onnxruntime", "runtime_version": "1", "threads": 1}
        (folder / name / "package.json").write_text(json.dumps({**conditions, **about}))
    return load_package(folder / name)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """20 convolutions, 8 add-relu, a global pool, a linear layer."""
    return exported_resnet(tmp_path / "model.onnx", width=8)


def test_latency_is_the_sum_over_kernels(network: Path, tmp_path: Path) -> None:
    full = {
        "conv-bn-relu": constant(2.0, 7),
        "addrelu": constant(0.5, 3),
        "global-avgpool": constant(0.25, 2),
    }
    prediction = predict(network, package(tmp_path, "full", full | {"fc": constant(0.125, 4)}))
    assert prediction.latency_ms == 20 * 2.0 + 8 * 0.5 + 0.25 + 0.125
    assert prediction.uncovered == ()
    assert describe_coverage(prediction) is None
    table = prediction.table()
    assert table["ms"].sum() == prediction.latency_ms
    assert len(table) == 30


def test_kernels_without_a_predictor_are_reported_not_counted(network: Path, tmp_path: Path) -> None:
    prediction = predict(network, package(tmp_path, "gpu", {"conv-bn-relu": constant(2.0, 7)}))
    assert prediction.latency_ms == 40.0
    assert sorted(kernel.op for kernel in prediction.uncovered) == ["add-relu"] * 8 + ["fc", "gap"]
    fc = 64 * 2
    total = sum(each.kernel.macs for each in prediction.kernels)
    assert prediction.uncovered_macs_share == fc / total
    assert prediction.table()["ms"].isna().sum() == 10
    line = describe_coverage(prediction)
    assert line is not None
    assert line.startswith("gpu has no predictor for 8 add-relu, 1 gap, 1 fc (")

    none = predict(network, package(tmp_path, "none", {"hswish": constant(1.0, 2)}))
    assert none.uncovered_macs_share == 1.0


def test_a_network_without_a_covered_kernel_has_no_latency(network: Path, tmp_path: Path) -> None:
    """Its latency is not 0 ms. A network without MACs is covered as a whole or not at all."""
    nothing = package(tmp_path, "nothing", {"hswish": constant(1.0, 2)})
    prediction = predict(network, nothing)
    assert (prediction.latency_ms, prediction.says_something) == (0.0, False)
    assert latency_metrics([prediction]) == {"uncovered_macs_share": 1.0}
    line = describe_coverage(prediction)
    assert line is not None
    assert line.endswith(" (100.00% of the MACs): it predicts no latency for this network")
    covers = package(tmp_path, "covers", {"conv-bn-relu": constant(2.0, 7)})
    metrics = latency_metrics([predict(network, covers), prediction])
    assert (metrics["latency_ms"], metrics["uncovered_macs_share"]) == (40.0, 1.0)
    assert "latency_std_ms" not in metrics
    assert "latency_ms/nothing" not in metrics

    relu = one_operator(tmp_path / "relu.onnx", "Relu", shape=["n", 3, 8, 8])  # no MACs
    alone = predict(relu, nothing)
    assert alone.uncovered_macs_share == 1.0
    assert latency_metrics([alone]) == {"uncovered_macs_share": 1.0}
    pools = small_pools(tmp_path / "pools.onnx")
    one = predict(pools, package(tmp_path, "one", {"maxpool": constant(0.5, 5), "relu": constant(0.25, 2)}))
    assert (one.latency_ms, one.uncovered_macs_share, one.says_something) == (0.75, 0.0, True)


def test_what_is_known_of_macs_by_hand() -> None:
    def of(*kernels: tuple[int | None, float | None]) -> Prediction:
        each = (KernelLatency(Kernel("k", None, macs, ("n",)), None, ms) for macs, ms in kernels)
        return Prediction("p", {}, tuple(each))

    assert of((30, 1.0), (10, None)).uncovered_macs_share == 0.25
    assert of((30, 1.0), (None, None)).uncovered_macs_share is None
    assert of((None, 1.0), (30, None)).uncovered_macs_share is None
    assert of((0, None)).uncovered_macs_share == 1.0
    assert of((0, 1.0)).uncovered_macs_share == 0.0
    assert of((30, None), (0, 1.0)).says_something is False  # an activation is no network
    assert of((30, None), (10, 1.0)).says_something is True
    assert of((0, 1.0)).says_something is True


def small_pools(path: Path) -> Path:
    """A pool and a ReLU: kernels without MACs."""
    nodes = [
        helper.make_node("MaxPool", ["image"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["p"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "pools", [image], [scores])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_two_packages_have_a_spread_and_the_greatest_share_counts(network: Path, tmp_path: Path) -> None:
    graph = read_graph(network)
    first = predict(graph, package(tmp_path, "a", {"conv-bn-relu": constant(1.0, 7), "fc": constant(0.0, 4)}))
    second = predict(graph, package(tmp_path, "b", {"conv-bn-relu": constant(3.0, 7)}))
    fc = 64 * 2
    share = fc / sum(each.kernel.macs or 0 for each in first.kernels)
    for pair in ((first, second), (second, first)):
        metrics = latency_metrics(pair)
        assert metrics["latency_ms"] == 40.0
        assert metrics["latency_std_ms"] == pytest.approx(800**0.5)  # of 20 and 60
        assert metrics["uncovered_macs_share"] == share > 0
    assert first.uncovered_macs_share == 0.0


def test_the_table_of_kernels(network: Path, tmp_path: Path) -> None:
    table = predict(network, package(tmp_path, "p", {"conv-bn-relu": constant(2.0, 7)})).table()
    assert set(table["package"]) == {"p"}
    stem, fc = table.iloc[0], table[table["op"] == "fc"].iloc[0]
    assert (stem["op"], stem["predictor"], stem["ms"]) == ("conv-relu", "conv-bn-relu", 2.0)
    assert stem["features"][:5] == [32, 5, 8, 3, 2]
    assert stem["macs"] == 16 * 16 * 8 * 45
    assert stem["nodes"].count(":") == 4  # two nodes, NUMBER:OPERATOR:NAME
    assert pd.isna(fc["predictor"])
    assert fc["macs"] == 128


def test_a_finer_predictor_goes_before_the_merged_one(network: Path, tmp_path: Path) -> None:
    two = {"conv-bn-relu": constant(2.0, 7), "conv-relu": constant(1.0, 7)}  # 11 conv, 9 conv-relu
    assert predict(network, package(tmp_path, "two", two)).latency_ms == 11 * 2.0 + 9 * 1.0


def test_mean_and_sample_deviation_over_packages(network: Path, tmp_path: Path) -> None:
    graph = read_graph(network)
    predictions = [
        predict(graph, package(tmp_path, name, {"conv-bn-relu": constant(value, 7)}))
        for name, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))
    ]
    metrics = latency_metrics(predictions)
    assert metrics["latency_ms/a"] == 20.0
    assert metrics["latency_ms"] == 60.0
    assert metrics["latency_std_ms"] == pytest.approx(np.std([20, 40, 120], ddof=1))
    assert "latency_std_ms" not in latency_metrics(predictions[:1])  # one has no spread
    assert latency_metrics([]) == {}


def test_calibrated_packages_predict_time_per_work(tmp_path: Path) -> None:
    """By hand: 50 x 50 x 32 x (32 x 9) multiply-accumulates at 2 ms per million."""
    features = np.array([[50.0, 32, 32, 3, 1, 23.12, 0.009248], [50, 32, 64, 1, 2, 1.32, 0.002112]])
    columns = derive("conv-bn-relu", features).shape[1]
    forest = {"conv-bn-relu": constant(np.log(2.0), columns)}
    calibrated = package(tmp_path, "mine", forest, {"target": TARGET})
    expected = [2.0 * 50 * 50 * 32 * 32 * 9 / 1e6, 2.0 * 25 * 25 * 32 * 64 / 1e6]
    np.testing.assert_allclose(to_ms(calibrated, "conv-bn-relu", features), expected)


@pytest.mark.parametrize(
    ("name", "row", "millions", "derived"),
    [
        # output, multiply-accumulates, weights, values in and out, intensity, rests of channels and output
        (
            "dwconv-bn-relu",
            [14, 24, 24, 3, 2, 0, 0],
            7 * 7 * 24 * 9 / 1e6,
            [7, 7 * 7 * 24 * 9, 24 * 9, 14 * 14 * 24, 7 * 7 * 24, 10584 / (4704 + 1176 + 216), 8, 8, 24, 1],
        ),
        ("maxpool", [13, 24, 24, 3, 2], 7 * 7 * 9 * 24 / 1e6 + 0.005, [7, 49 * 24, 49 * 9 * 24, 8]),
        ("fc", [256, 10, 0, 0], 0.00256 + 0.01, [2560]),
        ("concat", [8, 2, 16, 24, 0, 0], 1.0, [40, 64 * 40]),
        ("addrelu", [8, 16, 16], 1.0, [64 * 16]),
    ],
)
def test_derived_features_by_hand(name: str, row: list[float], millions: float, derived: list[float]) -> None:
    features = np.array([row], dtype=float)
    np.testing.assert_allclose(derive(name, features)[0, len(row) :], derived)
    np.testing.assert_allclose(work(name, features), millions)


def test_the_package_that_comes_with_dxc_is_whole(tmp_path: Path) -> None:
    """It covers every kernel of a ResNet, and a network of four times the arithmetic takes two to six times as long."""
    shipped = load_package(SHIPPED / "ort_cpu_xeon")
    assert shipped.about["threads"] == 1
    small, large = (
        predict(exported_resnet(tmp_path / f"{width}.onnx", width=width, size=100), shipped)
        for width in (32, 64)
    )
    assert small.uncovered == large.uncovered == ()
    assert 2 < large.latency_ms / small.latency_ms < 6
    assert small.latency_ms == pytest.approx(4.160131700819931, rel=1e-12)  # as it was when it was measured
    assert set(shipped.about["held_out"]["networks"]) == {
        "resnet", "sppnet", "mobilenet", "random_kernels",
    }  # fmt: skip
