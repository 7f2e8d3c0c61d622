"""The torch runner of ONNX files against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dxc.deploy.export import export_any_size, export_onnx
from dxc.errors import HardwareError
from dxc.hardware.calibrate.networks import draw, families, onnx_model
from dxc.hardware.graph import OPERATORS, OnnxModule
from dxc.hardware.profiling.torch_profile import profile_network
from dxc.models.sppnet import SppNet
from tests.hardware.networks import exported_resnet, one_operator


def both(path: Path, *shape: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs (dxc's output, ONNX Runtime's output) for each output of a file."""
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        answer = OnnxModule(path).eval()(torch.from_numpy(image))
    ours = answer if isinstance(answer, tuple) else (answer,)
    return [(a.numpy(), b) for a, b in zip(ours, session.run(None, {"image": image}), strict=True)]


@pytest.mark.parametrize("pool", ["none", "max"])
def test_exported_resnets(pool: str, tmp_path: Path) -> None:
    ((ours, theirs),) = both(exported_resnet(tmp_path / "m.onnx", pool=pool), 3, 5, 32, 32)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", families())
def test_calibration_networks(family: str, tmp_path: Path) -> None:
    model = onnx_model(draw(family, np.random.default_rng(3)))
    onnx.save(model, tmp_path / "m.onnx")
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    for ours, theirs in both(tmp_path / "m.onnx", *dims):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", [4, 5])
def test_exported_sppnets(level: int, tmp_path: Path) -> None:
    """Both outputs of both files: that of one size, and that for any size."""
    torch.manual_seed(0)
    model = SppNet(3, level=level, features=16)
    fixed = export_onnx(model, tmp_path / "fixed.onnx", in_channels=3, size=(37, 53), check=False).path
    dynamic = export_any_size(model, tmp_path / "any.onnx", in_channels=3).path
    for path, shape in ((fixed, (2, 3, 37, 53)), (dynamic, (2, 3, 37, 53)), (dynamic, (1, 3, 100, 16))):
        outputs = both(path, *shape)
        assert [ours.shape for ours, _ in outputs] == [shape[:1], (shape[0], 4)]
        for ours, theirs in outputs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    profiled = profile_network(fixed, tmp_path / "profile", batches=[1, 2], budget_seconds=60)
    assert profiled.batches == (1, 2)
    assert (profiled.table.query("name == 'pooling'")["ms"] > 0).all()


def chain(path: Path, nodes: list, constants: dict[str, np.ndarray]) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4, 9, 9])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [image], [scores], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


INT = np.int64
CASES: dict[str, tuple[list, dict[str, np.ndarray]]] = {
    "uneven pads": (
        [
            helper.make_node(
                "MaxPool", ["image"], ["scores"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 2, 1]
            )
        ],
        {},
    ),
    "wide pads": (
        [
            helper.make_node(
                "MaxPool", ["image"], ["scores"], kernel_shape=[2, 2], strides=[1, 1], pads=[1, 1, 1, 1]
            )
        ],
        {},
    ),
    "ceil": (
        [
            helper.make_node(
                "MaxPool", ["image"], ["scores"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
            )
        ],
        {},
    ),
    "average with padding": (
        [helper.make_node("AveragePool", ["image"], ["scores"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
    ),
    "grouped convolution": (
        [
            helper.make_node(
                "Conv",
                ["image", "w", "b"],
                ["scores"],
                kernel_shape=[3, 3],
                group=2,
                dilations=[2, 2],
                pads=[2, 1, 2, 1],
            )
        ],
        {"w": np.random.default_rng(1).normal(size=(6, 2, 3, 3)).astype("f"), "b": np.arange(6, dtype="f")},
    ),
    "norm, activations": (
        [
            helper.make_node("BatchNormalization", ["image", "s", "b", "m", "v"], ["a"]),
            helper.make_node("HardSigmoid", ["a"], ["c"]),
            helper.make_node("HardSwish", ["a"], ["d"]),
            helper.make_node("Mul", ["c", "d"], ["e"]),
            helper.make_node("LeakyRelu", ["a"], ["f"]),
            helper.make_node("Sub", ["e", "f"], ["g"]),
            helper.make_node("Sigmoid", ["g"], ["h"]),
            helper.make_node("Clip", ["h", "low", "high"], ["i"]),
            helper.make_node("Div", ["i", "two"], ["j"]),
            helper.make_node("Add", ["j", "a"], ["k"]),
            helper.make_node("Relu", ["k"], ["scores"]),
        ],
        {
            **{name: np.random.default_rng(2).random(4).astype("f") for name in ("s", "b", "m", "v")},
            "low": np.array(0.1, "f"),
            "high": np.array(0.9, "f"),
            "two": np.array(2, "f"),
        },
    ),
    "shapes": (
        [
            helper.make_node("Pad", ["image", "pads"], ["a"]),
            helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
            helper.make_node("Slice", ["b", "starts", "ends", "axes", "steps"], ["c"]),
            helper.make_node("Split", ["c", "sizes"], ["d", "e"], axis=1),
            helper.make_node("Concat", ["e", "d"], ["f"], axis=1),
            helper.make_node("Shape", ["f"], ["g"]),
            helper.make_node("Gather", ["g", "zero"], ["h"], axis=0),
            helper.make_node("Unsqueeze", ["h", "zeros"], ["i"]),
            helper.make_node("Concat", ["i", "rest"], ["j"], axis=0),
            helper.make_node("Reshape", ["f", "j"], ["k"]),
            helper.make_node("Identity", ["k"], ["l"]),
            helper.make_node("MatMul", ["l", "w"], ["m"]),
            helper.make_node("Squeeze", ["m", "last"], ["n"]),
            helper.make_node("Softmax", ["n"], ["scores"]),
        ],
        {
            "pads": np.array([0, 0, 1, 2, 0, 0, 3, 0], INT),
            "starts": np.array([1, -9], INT),
            "ends": np.array([9, 2**60], INT),
            "axes": np.array([1, 2], INT),
            "steps": np.array([2, 1], INT),
            "sizes": np.array([1, 3], INT),
            "zero": np.array(0, INT),
            "zeros": np.array([0], INT),
            "rest": np.array([4, 36], INT),
            "w": np.random.default_rng(3).normal(size=(36, 1)).astype("f"),
            "last": np.array([2], INT),
        },
    ),
    "constants, parts, backwards": (
        [
            helper.make_node("Constant", [], ["half"], value_float=0.5),
            helper.make_node("Constant", [], ["axis"], value_ints=[3]),
            helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([-1, 0], INT))),
            helper.make_node("Mul", ["image", "half"], ["a"]),
            helper.make_node("Split", ["a"], ["b", "c"], axis=1),  # halves, without sizes
            helper.make_node("Sub", ["b", "c"], ["d"]),
            helper.make_node("Slice", ["d", "from", "to", "axis", "step"], ["e"]),
            helper.make_node("Gather", ["e", "last"], ["scores"], axis=-3),
        ],
        {"from": np.array([-1], INT), "to": np.array([-(2**62)], INT), "step": np.array([-2], INT)},
    ),
    "sizes": (  # rows 0, 1, 2, ... of (4 + 9) // 2 - 1, at most row 3; and -9 // 2 is -4 in ONNX
        [
            helper.make_node("Shape", ["image"], ["a"]),
            helper.make_node("Gather", ["a", "two"], ["b"], axis=0),
            helper.make_node("Gather", ["a", "one"], ["c"], axis=0),
            helper.make_node("Add", ["b", "c"], ["d"]),
            helper.make_node("Div", ["d", "two"], ["e"]),
            helper.make_node("Sub", ["e", "one"], ["f"]),
            helper.make_node("Range", ["zero", "f", "one"], ["g"]),
            helper.make_node("Min", ["g", "three"], ["h"]),
            helper.make_node("Gather", ["image", "h"], ["i"], axis=2),
            helper.make_node("Mul", ["b", "minus"], ["j"]),
            helper.make_node("Div", ["j", "two"], ["k"]),
            helper.make_node("Cast", ["k"], ["l"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["i", "l"], ["scores"]),
        ],
        {
            "zero": np.array(0, INT),
            "one": np.array(1, INT),
            "two": np.array(2, INT),
            "three": np.array(3, INT),
            "minus": np.array(-1, INT),
        },
    ),
    "reductions": (
        [
            helper.make_node("GlobalMaxPool", ["image"], ["a"]),
            helper.make_node("GlobalAveragePool", ["image"], ["b"]),
            helper.make_node("ReduceMax", ["image"], ["c"], axes=[2, 3]),
            helper.make_node("ReduceMean", ["image"], ["d"], axes=[2, 3], keepdims=1),
            helper.make_node("Concat", ["a", "b", "c", "d"], ["e"], axis=1),
            helper.make_node("Flatten", ["e"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b2"], ["scores"], alpha=0.5, beta=2.0),
        ],
        {
            "w": np.random.default_rng(4).normal(size=(16, 3)).astype("f"),
            "b2": np.array([1, 2, 3], "f"),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operators(case: str, tmp_path: Path) -> None:
    nodes, constants = CASES[case]
    ((ours, theirs),) = both(chain(tmp_path / "m.onnx", nodes, constants), 2, 4, 9, 9)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_operator_is_tested() -> None:
    used = {node.op_type for nodes, _ in CASES.values() for node in nodes}
    assert used >= {"Constant"}
    assert set(OPERATORS) - used <= {"Conv", "Gemm", "Relu", "Add", "MaxPool"}


def test_weights_move_and_settings_stay(tmp_path: Path) -> None:
    """Numbers that operators read are not on the device. They would be copied back in every run."""
    nodes, constants = CASES["shapes"]
    module = OnnxModule(chain(tmp_path / "m.onnx", nodes, constants)).to("meta")
    assert [tuple(buffer.shape) for buffer in module.buffers()] == [(36, 1)]
    assert {tensor.device.type for tensor in module._settings.values()} == {"cpu"}
    image = torch.zeros(2, 4, 9, 9, device="meta")
    assert module(image).device.type == "meta"
    nodes, constants = CASES["sizes"]  # computed beside the images, not among them
    assert OnnxModule(chain(tmp_path / "s.onnx", nodes, constants)).to("meta")(image).device.type == "meta"
    nodes, constants = CASES["norm, activations"]
    assert OnnxModule(chain(tmp_path / "n.onnx", nodes, constants)).to("meta")(image).shape == image.shape


def test_missing_operators_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "m.onnx", "Erf", shape=[1, 3, 4, 4])
    with pytest.raises(HardwareError, match=r"m.onnx cannot be run with torch: no Erf in"):
        OnnxModule(path)
    path.write_text("no network")
    with pytest.raises(HardwareError, match="m.onnx cannot be read"):
        OnnxModule(path)
