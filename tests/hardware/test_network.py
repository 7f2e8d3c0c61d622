"""ONNX files from elsewhere: costs are counted correctly or missing with the reason, and no other file is read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import nn

from dxc.deploy.export import count_macs, export_onnx
from dxc.errors import DxcError, HardwareError
from dxc.hardware.network import MACS, WITHOUT_MACS, network_of, read_network
from dxc.hardware.onnx_file import MAX_BYTES, data_files, fixed_batch, load_onnx, onnx_mb
from dxc.hardware.predict.kernels import graph_of_network, read_graph
from dxc.hardware.predict.packages import SHIPPED, Package, load_package
from dxc.hardware.predict.predict import Prediction, describe_coverage, latency_metrics, predict

Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def shipped() -> Package:
    return load_package(SHIPPED / "ort_cpu_xeon")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[Any],
    weights: Weights | None = None,
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    out: str = "z",
    **more: Any,
) -> onnx.ModelProto:
    """A model from input `x` of this shape to `z`. The file does not give the shape of `z`."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), *inputs],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in domains)]
    return helper.make_model(graph, opset_imports=opsets, **{"ir_version": 8, **more})


def conv(given: str, weight: str, out: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [given, weight], [out], **{"pads": [1] * 4, **attributes})


def classifier(batch: int = 1, *, reshape: bool = False) -> onnx.ModelProto:
    """Convolution of 3 to 8 channels at 32 x 32 and a linear layer of 500: 4,317,184 MACs an image, 16.4 MB."""
    weights = {"w": normal(8, 3, 3, 3), "m": normal(8192, 500), "b": normal(500)}
    flat = helper.make_node("Flatten", ["q"], ["f"])
    if reshape:
        weights["s"] = np.array([batch, -1])
        flat = helper.make_node("Reshape", ["q", "s"], ["f"])
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Relu", ["a"], ["q"]),
        flat,
        helper.make_node("Gemm", ["f", "m", "b"], ["g"]),
        helper.make_node("Relu", ["g"], ["z"]),
    ]
    return model_of(nodes, [batch, 3, 32, 32], weights)


CLASSIFIER_MACS = 32 * 32 * 8 * 27 + 8192 * 500


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def kinds(path: Path, package: Package) -> list[str]:
    return [each.kernel.op for each in predict(path, package).kernels]


def test_weights_that_nodes_make_are_weights(tmp_path: Path, shipped: Package) -> None:
    """ConstantOfShape makes weights and statistics, and a weight is transposed. None of it counts."""
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.01])
    weights: Weights = {"c": np.array([8]), "t": normal(3, 3, 8, 8)}
    nodes = []
    for number, (given, channels) in enumerate((("x", 3), ("z0", 8))):
        weights[f"s{number}"] = np.array([8, channels, 3, 3])
        made = [("w", f"s{number}"), *((name, "c") for name in "abmv")]
        nodes += [
            helper.make_node("ConstantOfShape", [shape], [f"{name}{number}"], value=value)
            for name, shape in made
        ]
        statistics = [f"{name}{number}" for name in "abmv"]
        nodes += [
            conv(given, f"w{number}", f"y{number}"),
            helper.make_node("BatchNormalization", [f"y{number}", *statistics], [f"n{number}"]),
            helper.make_node("Relu", [f"n{number}"], [f"z{number}"]),
        ]
    nodes += [
        helper.make_node("Transpose", ["t"], ["tt"], perm=[3, 2, 0, 1]),
        conv("z1", "tt", "z"),
    ]
    path = tmp_path / "made.onnx"
    onnx.save(model_of(nodes, [1, 3, 32, 32], weights), path)
    assert read_network(path).macs == 32 * 32 * 8 * 9 * (3 + 8 + 8)
    assert kinds(path, shipped) == ["conv", "bn", "relu", "conv", "bn", "relu", "conv"]


def constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value), name))


CONSTANTS = {
    "clip": (
        [constant("lo", np.float32(0)), constant("hi", np.float32(6))],
        helper.make_node("Clip", ["y", "lo", "hi"], ["z"]),
        ["conv-relu"],
    ),
    "slice": (
        [constant("s", [0]), helper.make_node("Constant", [], ["e"], value_ints=[4]), constant("a", [1])],
        helper.make_node("Slice", ["y", "s", "e", "a"], ["z"]),
        ["conv", "split"],
    ),
    "batchnorm": (
        [constant(name, np.ones(8, np.float32)) for name in "abcd"],
        helper.make_node("BatchNormalization", ["y", *"abcd"], ["z"]),
        ["conv", "bn"],
    ),
    "resize": (
        [constant("r", np.zeros(0, np.float32)), constant("k", np.array([1, 1, 2, 2], np.float32))],
        helper.make_node("Resize", ["y", "r", "k"], ["z"], mode="nearest"),
        ["conv", "Resize"],
    ),
    "one number": (
        [helper.make_node("Constant", [], ["two"], value_float=2.0)],
        helper.make_node("Mul", ["y", "two"], ["z"]),
        ["conv", "mul"],
    ),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constant_nodes_are_weights(case: str, tmp_path: Path, shipped: Package) -> None:
    made, last, expected = CONSTANTS[case]
    path = tmp_path / "m.onnx"
    onnx.save(model_of([conv("x", "w", "y"), *made, last], [1, 4, 32, 32], {"w": normal(8, 4, 3, 3)}), path)
    assert read_network(path).macs == 32 * 32 * 8 * 4 * 9
    assert kinds(path, shipped) == expected


class Bottleneck(nn.Module):
    """He et al. 2016, doi 10.1109/CVPR.2016.90, table 1; the stride is on the 3 x 3, as in torchvision."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()

        def layer(a: int, b: int, kernel: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(b))

        self.path = nn.Sequential(
            layer(given, width, 1),
            nn.ReLU(),
            layer(width, width, 3, stride),
            nn.ReLU(),
            layer(width, 4 * width, 1),
        )
        self.shortcut = (
            layer(given, 4 * width, 1, stride) if stride > 1 or given != 4 * width else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.path(x) + self.shortcut(x))


def resnet50(width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    given = width
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            layers.append(Bottleneck(given, width << stage, 2 if stage and not block else 1))
            given = 4 * (width << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 1000))


def with_constant_nodes(path: Path) -> Path:
    """All weights and statistics as Constant nodes, as some exporters write them."""
    model = onnx.load(path)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer
    ]
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


@pytest.mark.long
def test_a_resnet_50_with_constant_nodes(tmp_path: Path, shipped: Package) -> None:
    """The published network at 224 x 224 pixels. torch's own count agrees."""
    model = resnet50()
    export_onnx(model, tmp_path / "m.onnx", in_channels=3, size=224, check=False)
    path = with_constant_nodes(tmp_path / "m.onnx")
    network = read_network(path)
    assert network.macs == 4_089_184_256
    assert network.macs == count_macs(model, in_channels=3, size=224)
    prediction = predict(graph_of_network(network), shipped)
    assert sum(each.kernel.macs or 0 for each in prediction.kernels) == 4_089_184_256
    assert prediction.uncovered_macs_share == 0.0


def test_what_onnx_runtime_has_optimised_is_counted_and_predicted_as_the_network(
    tmp_path: Path, shipped: Package
) -> None:
    onnx.save(classifier(), tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    assert {"FusedConv", "FusedGemm"} & set(ops(tmp_path / "optimised.onnx"))
    plain, optimised = (predict(tmp_path / f"{name}.onnx", shipped) for name in ("net", "optimised"))
    assert read_network(tmp_path / "optimised.onnx").macs == CLASSIFIER_MACS == 4_317_184
    assert optimised.latency_ms == pytest.approx(plain.latency_ms)
    assert plain.latency_ms == pytest.approx(1.05, abs=0.02)


def test_fused_operators_by_hand(shipped: Package) -> None:
    """FusedConv with an addition and a leaky ReLU; FusedMatMul of a transposed one."""
    fused = helper.make_node(
        "FusedConv", ["x", "w", "b", "x"], ["c"], "f", domain="com.microsoft", pads=[1] * 4,
        activation="LeakyRelu", activation_params=[0.1],
    )  # fmt: skip
    product = helper.make_node("FusedMatMul", ["c", "m"], ["z"], "p", domain="com.microsoft", transB=1)
    weights = {"w": normal(4, 4, 3, 3), "b": normal(4), "m": normal(5, 8)}
    model = model_of([fused, product], ["n", 4, 8, 8], weights, domains=["com.microsoft"])
    network = network_of(model, "m")
    assert [node.op_type for node in network.model.graph.node] == ["Conv", "Add", "LeakyRelu", "FusedMatMul"]
    assert list(network.node_macs.values()) == [8 * 8 * 4 * 36, 0, 0, 4 * 8 * 5 * 8]
    assert network.shapes["z"] == [1, 4, 8, 5]
    transposed = helper.make_node("FusedMatMul", ["x", "m"], ["z"], "p", domain="com.microsoft", transA=1)
    given = network_of(
        model_of([transposed], [1, 2, 6, 3], {"m": normal(6, 7)}, domains=["com.microsoft"]), "m"
    )
    assert (given.shapes["z"], given.macs) == ([1, 2, 3, 7], 2 * 3 * 7 * 6)


def test_operators_of_one_machine_are_named_not_guessed(tmp_path: Path) -> None:
    """onnx cannot infer the shapes of ONNX Runtime's own blocked layout."""
    blocked = helper.make_node("ReorderInput", ["x"], ["b"], "blocks", domain="com.microsoft.nchwc")
    nodes = [blocked, conv("b", "w", "z", name="second")]
    path = tmp_path / "m.onnx"
    onnx.save(model_of(nodes, [1, 3, 8, 8], {"w": normal(8, 3, 3, 3)}, domains=["com.microsoft.nchwc"]), path)
    with pytest.raises(HardwareError, match=r"no shape can be inferred for ReorderInput \(blocks\)\. Export"):
        read_network(path)
    with pytest.raises(HardwareError, match=r"ReorderInput \(blocks\)"):
        read_graph(path)


def test_transposed_convolutions_are_counted(tmp_path: Path, shipped: Package) -> None:
    nodes = [
        conv("x", "w", "a", strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ConvTranspose", ["b", "u"], ["z"], pads=[1] * 4, strides=[2, 2]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(model_of(nodes, [1, 4, 64, 64], {"w": normal(64, 4, 3, 3), "u": normal(64, 64, 4, 4)}), path)
    assert read_network(path).macs == 32 * 32 * 64 * 36 + 64 * 64 * 16 * 32 * 32 == 69_468_160
    prediction = predict(path, shipped)
    assert prediction.uncovered_macs_share == pytest.approx(67_108_864 / 69_468_160)
    assert "1 ConvTranspose (96.60% of the MACs)" in str(describe_coverage(prediction))


def node(op: str, inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), ["z"], **attributes)


HAND: dict[str, tuple[list[onnx.NodeProto], list[Any], Weights, int]] = {
    "depthwise": ([node("Conv", "x w", group=4)], [1, 4, 6, 6], {"w": normal(4, 1, 3, 3)}, 4 * 4 * 4 * 9),
    "1-d": ([node("Conv", "x w")], [1, 4, 10], {"w": normal(6, 4, 3)}, 8 * 6 * 12),
    "transposed in groups": (
        [node("ConvTranspose", "x w", group=2)], [1, 4, 5, 5], {"w": normal(4, 3, 2, 2)}, 4 * 25 * 3 * 4
    ),
    "gemm transA": ([node("Gemm", "x w", transA=1)], [1, 4], {"w": normal(1, 3)}, 12),
    "gemm transB": ([node("Gemm", "x w", transB=1)], ["n", 4], {"w": normal(3, 4)}, 12),
    "matmul": ([node("MatMul", "x w")], ["n", 7, 4], {"w": normal(4, 3)}, 7 * 4 * 3),
    "matmul of a vector": ([node("MatMul", "x w")], ["n", 7, 4], {"w": normal(4)}, 7 * 4),
    "einsum": ([node("Einsum", "x w", equation="b i j, k j -> b i k")], ["n", 7, 4], {"w": normal(3, 4)}, 84),
    "sum by einsum": ([node("Einsum", "x", equation="bij->b")], ["n", 7, 4], {}, 0),
    "lstm": (
        [
            helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["steps", "w", "r"], ["", "z"], hidden_size=5),
        ],
        ["n", 9, 3], {"w": normal(1, 20, 3), "r": normal(1, 20, 5)}, 9 * 20 * (3 + 5),
    ),
    "reshape": (
        [helper.make_node("Reshape", ["x", "s"], ["r"]), node("MatMul", "r w")],
        ["n", 3, 4, 4], {"s": np.array([1, 48]), "w": normal(48, 5)}, 240,
    ),
    "a relu": ([node("Relu", "x")], [1, 4, 6, 6], {}, 0),
    "work on weights only": (
        [helper.make_node("MatMul", ["w", "w"], ["ww"]), node("MatMul", "x ww")], [1, 3], {"w": normal(3, 3)}, 9
    ),
    "whole numbers": (
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "o"]),
            helper.make_node("ConvInteger", ["q", "w", "o"], ["c"]),
            node("Cast", "c", to=1),
        ],
        [1, 4, 6, 6], {"w": np.ones((2, 4, 3, 3), np.uint8)}, 4 * 4 * 2 * 36,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HAND)
def test_macs_by_hand(case: str) -> None:
    nodes, shape, weights, macs = HAND[case]
    assert network_of(model_of(nodes, shape, weights), case).macs == macs


def test_attention_by_hand() -> None:
    """2 heads of 8, 5 queries and 7 keys: 2 x 5 x 7 x 8 for the scores and as much for the values."""
    rest = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 7, 8]) for name in "kv"]
    graph = {"shape": [1, 2, 5, 8], "opset": 23, "inputs": rest}
    assert network_of(model_of([node("Attention", "x k v")], **graph), "a").macs == 2 * 2 * 5 * 7 * 8
    cached = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 7, 8]) for name in "kvpq"]
    attention = helper.make_node("Attention", ["x", "k", "v", "", "p", "q"], ["z"])
    later = network_of(model_of([attention], [1, 2, 5, 8], opset=23, inputs=cached), "a")
    assert later.macs is None


def test_operators_that_nobody_knows_are_said_not_taken_for_free(tmp_path: Path, shipped: Package) -> None:
    """The MACs and the uncovered share are then missing, not 0. The rest is still predicted."""
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Mystery", ["b"], ["z"], "riddle", domain="nobody"),
    ]
    model = model_of(nodes, [1, 4, 32, 32], {"w": normal(8, 4, 3, 3)}, domains=["nobody"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 8, 32, 32]))
    onnx.save(model, tmp_path / "m.onnx")
    network = read_network(tmp_path / "m.onnx")
    assert (network.macs, network.uncounted) == (None, "1 Mystery")
    prediction = predict(tmp_path / "m.onnx", shipped)
    assert [each.kernel.op for each in prediction.kernels] == ["conv-relu", "Mystery"]
    assert prediction.uncovered_macs_share is None
    assert "1 Mystery (an unknown share of the MACs)" in str(describe_coverage(prediction))
    metrics = latency_metrics([prediction])
    assert metrics["latency_ms"] > 0
    assert "uncovered_macs_share" not in metrics
    assert prediction.table()["macs"].isna().tolist() == [False, True]


def test_a_shape_that_the_file_says_is_not_believed_where_the_batch_is_open() -> None:
    """Shapes in the file may be those of another batch. So the shape of an unknown operator stays unknown."""
    nodes = [helper.make_node("Mystery", ["x"], ["z"], "riddle", domain="nobody")]
    model = model_of(nodes, ["n", 4, 8, 8], domains=["nobody"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 8]))
    with pytest.raises(HardwareError, match=r"Mystery \(riddle\)"):
        graph_of_network(network_of(model, "m"))


def branch(out: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), out, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)]
    )


def test_what_is_inside_a_branch_is_counted_only_where_it_is_nothing() -> None:
    def chosen(op: str, *more: str) -> onnx.ModelProto:
        then = branch("t", helper.make_node(op, ["x", *more], ["t"]))
        other = branch("o", helper.make_node("Relu", ["x"], ["o"]))
        pick = helper.make_node("If", ["yes"], ["z"], "pick", then_branch=then, else_branch=other)
        return model_of([pick], [1, 4, 8, 8], {"yes": np.array(True), "w": normal(8, 8)})

    assert network_of(chosen("Neg"), "m").macs == 0
    network = network_of(chosen("MatMul", "w"), "m")
    assert (network.macs, network.uncounted) == (None, "1 If")


def test_local_functions_are_counted_in_place() -> None:
    inside = [helper.make_node("Conv", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    function = helper.make_function("own", "Block", ["a", "b"], ["d"], inside, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Block", ["x", "w"], ["y"], domain="own"),
        helper.make_node("Block", ["y", "v"], ["z"], domain="own"),
    ]
    weights = {"w": normal(4, 3, 3, 3), "v": normal(2, 4, 3, 3)}
    model = model_of(nodes, [1, 3, 8, 8], weights, domains=["own"], functions=[function])
    assert network_of(model, "m").macs == 6 * 6 * 4 * 27 + 4 * 4 * 2 * 36


def test_sizes_that_are_computed_in_the_graph_are_followed() -> None:
    """As exporters write a view: Shape, Gather, a division that onnx's inference does not follow, Concat, Reshape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Div", ["c", "two"], ["h"]),
        helper.make_node("Concat", ["first", "h", "two", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["z"]),
    ]
    numbers = {"one": np.array([1]), "two": np.array([2]), "first": np.array([1]), "rest": np.array([-1])}
    model = model_of(nodes, ["n", 8, 4, 4], {**numbers, "w": normal(16, 5)})
    network = network_of(model, "m")
    assert network.shapes["r"] == [1, 4, 2, 16]
    assert network.macs == 4 * 2 * 16 * 5


def test_shapes_that_depend_on_values_are_an_error_with_the_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"], "where"),
        helper.make_node("Cast", ["n"], ["f"], "cast", to=1),
        helper.make_node("MatMul", ["w", "f"], ["z"], "product"),
    ]
    with pytest.raises(HardwareError, match=r"m: no shape can be inferred for NonZero \(where\)\. Export"):
        network_of(model_of(nodes, [1, 3, 4, 4], {"w": normal(2, 4)}), "m")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float.onnx, qop.onnx and qdq.onnx: three convolutions, an addition, global pooling and a linear layer."""
    folder = tmp_path_factory.mktemp("quantised")
    weights: Weights = {"m": normal(32, 10)}
    nodes, given = [], "x"
    for number, (a, b) in enumerate([(3, 16), (16, 32), (32, 32)]):
        weights |= {f"w{number}": normal(b, a, 3, 3) / 10, f"b{number}": normal(b)}
        nodes += [
            helper.make_node("Conv", [given, f"w{number}", f"b{number}"], [f"y{number}"], pads=[1] * 4),
            helper.make_node("Relu", [f"y{number}"], [f"z{number}"]),
        ]
        given = f"z{number}"
    nodes += [
        helper.make_node("Add", ["z1", "z2"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["gap"]),
        helper.make_node("Flatten", ["gap"], ["flat"]),
        helper.make_node("Gemm", ["flat", "m"], ["z"]),
    ]
    onnx.save(model_of(nodes, [1, 3, 64, 64], weights), folder / "float.onnx")

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter([{"x": np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)}] * 2)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.images, None)

    for name, form in (("qop", QuantFormat.QOperator), ("qdq", QuantFormat.QDQ)):
        quantize_static(folder / "float.onnx", folder / f"{name}.onnx", Images(), quant_format=form)
    return folder


@pytest.mark.parametrize("name", ["float", "qop", "qdq"])
def test_quantised_networks_have_the_macs_of_the_network(name: str, quantised: Path) -> None:
    assert (
        read_network(quantised / f"{name}.onnx").macs == 64 * 64 * 9 * (48 + 512 + 1024) + 320 == 58_392_896
    )


def test_quantised_networks_are_not_predicted_as_float32(quantised: Path, shipped: Package) -> None:
    assert "QLinearConv" in ops(quantised / "qop.onnx")
    with pytest.raises(
        HardwareError, match=r"does not compute in float32 \(.*QLinearConv.*it can be measured"
    ):
        read_graph(quantised / "qop.onnx")
    prediction = predict(quantised / "qdq.onnx", shipped)  # it has no predictors of such kernels
    assert {each.kernel.op for each in prediction.kernels} == {
        "int8-conv", "int8-conv-add", "int8-gap", "int8-fc",
    }  # fmt: skip
    assert latency_metrics([prediction]) == {"uncovered_macs_share": 1.0}


def test_an_operator_between_other_numbers_is_of_float32(quantised: Path) -> None:
    """One whose input is not rounded computes in float32, in a file in which others do not."""
    model = onnx.load(quantised / "qdq.onnx")
    last = model.graph.node[-1] if model.graph.node[-1].op_type == "Gemm" else None
    gemm = last or next(node for node in model.graph.node if node.op_type == "Gemm")
    rounded = {node.output[0]: node for node in model.graph.node}
    gemm.input[0] = rounded[rounded[gemm.input[0]].input[0]].input[0]  # before it was rounded and scaled
    graph = graph_of_network(network_of(model, "m"))
    called = {name.split(":")[1] for name in graph.ir if name not in graph.integer}
    assert "Gemm" in called and "Conv" not in called


def test_half_precision_is_not_predicted_as_float32() -> None:
    halves = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), conv("h", "w", "z")]
    network = network_of(model_of(halves, [1, 3, 8, 8], {"w": normal(4, 3, 3, 3).astype(np.float16)}), "m")
    assert network.macs == 64 * 4 * 27
    with pytest.raises(HardwareError, match=r"does not compute in float32 \(1 Conv of FLOAT16\)"):
        graph_of_network(network)


def test_weights_only_in_whole_numbers_are_float32(shipped: Package) -> None:
    """The weights are dequantised once, before the first image."""
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), conv("x", "w", "y"), node("Relu", "y")]
    weights = {"q": np.ones((8, 3, 3, 3), np.int8), "s": np.float32(0.1)}
    graph = graph_of_network(network_of(model_of(nodes, [1, 3, 8, 8], weights), "m"))
    assert [(each.kernel.op, each.kernel.macs) for each in predict(graph, shipped).kernels] == [
        ("conv-relu", 64 * 8 * 27)
    ]


def test_a_fixed_batch_is_counted_and_predicted_for_one_image(tmp_path: Path, shipped: Package) -> None:
    paths = [tmp_path / f"b{batch}.onnx" for batch in (1, 8)]
    for batch, path in zip((1, 8), paths, strict=True):
        onnx.save(classifier(batch, reshape=True), path)
    assert [read_network(path).macs for path in paths] == [CLASSIFIER_MACS] * 2
    assert [fixed_batch(load_onnx(path), "") for path in paths] == [1, 8]
    one, eight = (predict(path, shipped) for path in paths)
    assert [each.kernel for each in eight.kernels] == [each.kernel for each in one.kernels]
    assert eight.latency_ms == one.latency_ms


def test_products_of_several_rows_are_no_linear_layer(shipped: Package) -> None:
    """nn-Meter's features do not hold the number of rows: 7 rows would be predicted as one."""

    def product(shape: list[int]) -> Prediction:
        weights = {"w": normal(70, 3, 3, 3), "s": np.array(shape), "m": normal(shape[-1], 5)}
        nodes = [
            conv("x", "w", "y", pads=[0] * 4),
            helper.make_node("Reshape", ["y", "s"], ["r"]),
            node("MatMul", "r m"),
        ]
        return predict(graph_of_network(network_of(model_of(nodes, [1, 3, 3, 3], weights), "m")), shipped)

    one, seven = product([1, 70]), product([1, 7, 10])
    assert one.kernels[-1].predictor == "fc"
    assert (seven.kernels[-1].kernel.op, seven.kernels[-1].ms) == ("fc", None)


def test_convolutions_along_one_axis_are_kernels_of_their_own(shipped: Package) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=1), node("Relu", "y")]
    prediction = predict(
        graph_of_network(network_of(model_of(nodes, [1, 4, 10], {"w": normal(6, 4, 3)}), "m")), shipped
    )
    assert [(each.kernel.op, each.kernel.macs) for each in prediction.kernels] == [
        ("Conv1d", 8 * 6 * 12),
        ("relu", 0),
    ]
    assert not prediction.says_something
    assert latency_metrics([prediction]) == {"uncovered_macs_share": 1.0}


@pytest.mark.parametrize("version", [7, 22])
def test_old_and_new_operator_sets(version: int) -> None:
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
    ]
    weights = {"w": normal(8, 3, 3, 3), "m": normal(512, 5), "b": normal(5)}
    model = model_of([*nodes, node("Gemm", "f m b")], ["n", 3, 8, 8], weights, opset=version, ir_version=3)
    model.graph.input.extend(  # until ONNX 1.5
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in weights.items()
    )
    graph = graph_of_network(network_of(model, "m"))
    assert sum(macs or 0 for macs in graph.macs.values()) == 64 * 8 * 27 + 512 * 5


# ---- the file and those beside it


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """All weights, also the shape of a Reshape, are in weights/w.bin."""
    folder = tmp_path / "network"
    (folder / "weights").mkdir(parents=True)
    onnx.save(
        classifier(reshape=True),
        folder / "m.onnx",
        save_as_external_data=True,
        location="weights/w.bin",
        size_threshold=0,
    )
    return folder / "m.onnx"


def test_weights_beside_the_file_are_part_of_it(beside: Path) -> None:
    assert beside.stat().st_size < 2000
    assert onnx_mb(beside) == pytest.approx(16.39, abs=0.01)
    assert data_files(beside) == [beside.parent / "weights/w.bin"]
    assert onnx_mb(beside) == (beside.stat().st_size + data_files(beside)[0].stat().st_size) / 1e6
    assert read_network(beside).macs == CLASSIFIER_MACS
    whole = load_onnx(beside, weights=True)
    np.testing.assert_array_equal(numpy_helper.to_array(whole.graph.initializer[0]), normal(8, 3, 3, 3))
    assert not load_onnx(beside).graph.initializer[0].raw_data


def relocated(path: Path, location: str, **more: str) -> Path:
    """The file with its first weight somewhere else."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    entries = {entry.key: entry.value for entry in tensor.external_data} | {"location": location} | more
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret",
        "weights/../../secret",
        "C:\\secret",
        "..\\secret",
        "\\\\host\\share",
        "",
        "link",
    ],
)
def test_weights_elsewhere_are_refused(location: str, beside: Path) -> None:
    (beside.parent.parent / "secret").write_bytes(bytes(1000))
    (beside.parent / "link").symlink_to(beside.parent.parent / "secret")
    path = relocated(beside, location, offset="0", length="864")
    # the last one needs a size that lies there
    for read in (data_files, onnx_mb, lambda path: load_onnx(path, weights=True), read_network):
        with pytest.raises(HardwareError, match=r"only files in the folder of the .onnx are read"):
            read(path)


@pytest.mark.parametrize(
    ("location", "more", "said"),
    [
        ("gone.bin", {}, "there is no such file; copy both"),
        ("weights", {}, "there is no such file; copy both"),
        ("x" * 5000, {}, "there is no such file; copy both"),
        ("a\0b", {}, "there is no such file; copy both"),
        ("weights/w.bin", {"length": "99999999"}, "lacks some of its weights"),
        ("weights/w.bin", {"offset": "-5", "length": "1"}, "lacks some of its weights"),
        ("weights/w.bin", {"offset": "many"}, "lacks some of its weights"),
    ],
)
def test_weights_that_are_not_whole_are_said(location: str, more: dict, said: str, beside: Path) -> None:
    with pytest.raises(HardwareError, match=said):
        data_files(relocated(beside, location, **more))


def test_weights_of_constants_and_branches_are_found(tmp_path: Path) -> None:
    """Wherever a file holds a tensor, its values may lie in another file."""

    def outside(name: str) -> onnx.TensorProto:
        tensor = TensorProto(name=name, dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"{name}.bin")
        (tmp_path / f"{name}.bin").write_bytes(bytes(4))
        return tensor

    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=outside("constant"))],
        "g", [], [helper.make_tensor_value_info("o", 1, [1])], [outside("inner")],
    )  # fmt: skip
    pick = helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner)
    model = model_of([pick], [1, 4], {"yes": np.array(True)})
    model.graph.initializer.append(outside("outer"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert {file.name for file in data_files(tmp_path / "m.onnx")} == {
        "constant.bin",
        "inner.bin",
        "outer.bin",
    }


NO_FILES = {
    "empty": (b"", "m.onnx cannot be read as an ONNX file: it is empty"),
    "text": (b"no network at all", "m.onnx cannot be read as an ONNX file"),
    "nothing": (b"\x08\x08", "m.onnx cannot be read as an ONNX file: there is no network in it"),
    "torn": (classifier().SerializeToString()[:5000], "m.onnx cannot be read as an ONNX file"),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_onnx_file_is_said(case: str, tmp_path: Path) -> None:
    content, said = NO_FILES[case]
    (tmp_path / "m.onnx").write_bytes(content)
    for read in (read_network, read_graph, onnx_mb, load_onnx, data_files):
        with pytest.raises(HardwareError, match=said):
            read(tmp_path / "m.onnx")


def test_folders_and_files_that_are_too_large_are_no_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="no such file"):
        load_onnx(tmp_path)
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(HardwareError, match=r"it has 2.1 GB"):
        load_onnx(tmp_path / "m.onnx")


def test_inputs_that_are_no_images_are_said() -> None:
    sequence = model_of([node("Relu", "y")], [1, 3])
    sequence.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(HardwareError, match="m: input 'x' is not a tensor"):
        network_of(sequence, "m")
    nothing = model_of([helper.make_node("RandomNormal", [], ["z"], shape=[1, 3])], [1, 3])
    del nothing.graph.input[:]
    with pytest.raises(HardwareError, match="m has no input"):
        network_of(nothing, "m")
    second = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", "length"])
    with pytest.raises(HardwareError, match=r"the size of input 'mask' is not fixed \(length\)"):
        network_of(model_of([node("Relu", "x")], ["n", 3, 8, 8], inputs=[second]), "m")
    for shape in (["n"], [5], []):
        with pytest.raises(HardwareError, match=r"the size of input 'x' is not fixed \(no shape\)"):
            network_of(model_of([node("Relu", "x")], shape), "m")
    with pytest.raises(HardwareError, match=r"input 'x' is not fixed \(\?, w\)"):
        network_of(model_of([node("Relu", "x")], [1, 3, None, "w"]), "m")


def test_several_inputs_are_fed_at_one_batch() -> None:
    rest = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8]),
        helper.make_tensor_value_info("k", TensorProto.FLOAT, []),
    ]
    nodes = [
        helper.make_node("Add", ["x", "y"], ["a"]),
        helper.make_node("Mul", ["a", "k"], ["b"]),
        conv("b", "w", "z"),
    ]
    assert (
        network_of(model_of(nodes, ["n", 3, 8, 8], {"w": normal(4, 3, 3, 3)}, inputs=rest), "m").macs
        == 64 * 108
    )


def test_an_open_input_takes_the_batch_that_the_first_is_fixed_to() -> None:
    second = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8])
    nodes = [helper.make_node("Concat", ["x", "y"], ["c"], axis=1), conv("c", "w", "z")]
    network = network_of(model_of(nodes, [4, 3, 8, 8], {"w": normal(4, 6, 3, 3)}, inputs=[second]), "m")
    assert (network.batch, network.shapes["y"][0], network.macs) == (4, 4, 64 * 4 * 54)


def test_every_operator_is_of_one_kind() -> None:
    """Every operator is counted, or has no MACs, or is listed here as uncounted."""
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert not set(WITHOUT_MACS) & set(MACS)
    assert set(WITHOUT_MACS) <= standard
    said = standard - set(WITHOUT_MACS) - set(MACS)
    assert {"DFT", "STFT", "Scan", "Loop", "If"} <= said
    assert not said & {"Relu", "MaxPool", "Softmax", "Resize", "BatchNormalization", "Gather", "Add", "Mul"}


def test_damaged_files_give_errors_that_a_user_can_read(
    tmp_path: Path, quantised: Path, shipped: Package
) -> None:
    """Truncated and altered files, some of which are still networks, raise nothing but DxcError."""
    small = tmp_path / "small.onnx"
    nodes = [
        conv("x", "w", "a", name="stem"),
        helper.make_node("Relu", ["a"], ["r"]),
        node("GlobalAveragePool", "r"),
    ]
    onnx.save(model_of(nodes, [1, 3, 8, 8], {"w": normal(4, 3, 3, 3)}), small)
    dice, ended = random.Random(0), {"ok": 0, "said": 0}
    for source, times in ((small, 150), (quantised / "qdq.onnx", 25), (quantised / "qop.onnx", 25)):
        whole = source.read_bytes()
        for number in range(times):
            content = bytearray(whole)
            if number % 4 == 0:
                content = content[: dice.randrange(len(content))]
            for _ in range(dice.choice([1, 2, 5])):
                if content:
                    content[dice.randrange(len(content))] = dice.randrange(256)
            path = tmp_path / "damaged.onnx"
            path.write_bytes(content)
            try:
                onnx_mb(path)
                latency_metrics([predict(graph_of_network(read_network(path)), shipped)])
                ended["ok"] += 1
            except DxcError as error:
                ended["said"] += 1
                assert str(path) in str(error)
    assert min(ended.values()) > 10
