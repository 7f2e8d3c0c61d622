"""Kernels of an exported file: they are nn-Meter's own, and none is lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from nn_meter.ir_converter import model_file_to_graph
from nn_meter.kernel_detector import KernelDetector
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dxc.deploy.export import count_macs, export_onnx
from dxc.errors import HardwareError
from dxc.hardware.calibrate.calibrate import FUSION_RULES
from dxc.hardware.predict.kernels import check_rules, detect, predictor_names, read_graph
from dxc.models.resnet import ResNet
from tests.hardware.networks import exported_resnet, one_operator

# The pairs that TFLite fuses on a Cortex-A76, of nn-Meter's rule tests that matter here.
TFLITE = {
    f"BF_{pair}": {"obey": True} for pair in ("conv_relu", "add_relu", "conv_bn", "bn_relu", "dwconv_relu")
}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "fusion_rules.json"
    path.write_text(json.dumps(TFLITE))
    return path


@pytest.mark.parametrize("pool", ["none", "max"])
@pytest.mark.parametrize("fusion", [TFLITE, FUSION_RULES], ids=["tflite", "onnxruntime"])
def test_kernels_are_those_that_nn_meter_finds(pool: str, fusion: dict, tmp_path: Path) -> None:
    """The kernels are those of nn-Meter's own path from a file, with a fixed batch (it reads an open one as 0)."""
    path = exported_resnet(tmp_path / "model.onnx", pool=pool)
    rules = tmp_path / "fusion_rules.json"
    rules.write_text(json.dumps(fusion))
    found = detect(read_graph(path), rules)

    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed = tmp_path / "fixed.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), fixed)
    theirs = KernelDetector(str(rules))
    theirs.load_graph(model_file_to_graph(str(fixed), "onnx"))
    assert [kernel.op for kernel in found] == [kernel["op"] for kernel in theirs.get_kernels()]


@pytest.mark.parametrize("pool", ["none", "max"])
def test_the_published_resnet_has_its_published_kernels(pool: str, tmp_path: Path, rules: Path) -> None:
    """11 conv, 9 conv-relu, 8 add-relu, a global pool and a linear layer, and the max pool where there is one."""
    kernels = detect(read_graph(exported_resnet(tmp_path / "m.onnx", width=32, pool=pool)), rules)
    expected = {"conv": 11, "conv-relu": 9, "add-relu": 8, "gap": 1, "fc": 1}
    assert Counter(kernel.op for kernel in kernels) == expected | ({"maxpool": 1} if pool == "max" else {})


def test_features_and_macs_by_hand(tmp_path: Path, rules: Path) -> None:
    path = exported_resnet(
        tmp_path / "m.onnx", in_channels=7, size=100, width=32, kernel=3, stride=2, padding=1
    )
    kernels = detect(read_graph(path), rules)
    stem, fc = kernels[0], kernels[-1]
    params = 32 * (3 * 3 * 7 + 1)
    # height = width, channels in and out, kernel, stride, MFLOPs / 2 (2 x 50 x 50 x params), parameters in millions
    assert stem.features == pytest.approx((100, 7, 32, 3, 2, 2 * 50 * 50 * params / 2e6, params / 1e6))
    assert stem.macs == 50 * 50 * 32 * 7 * 9
    assert fc.features == pytest.approx((256, 2, 513 * 2 / 2e6, 513 * 2 / 1e6))
    assert fc.macs == 512
    model = ResNet(7, 2, kernel=3, stride=2, padding=1, width=32)
    assert sum(kernel.macs for kernel in kernels) == count_macs(model, in_channels=7, size=100)


def test_an_untrained_export_with_identities_is_read(tmp_path: Path, rules: Path) -> None:
    """Equal biases become Identity nodes, on which nn-Meter's detector crashes."""
    untrained = exported_resnet(tmp_path / "u.onnx", trained=False)
    assert any(node.op_type == "Identity" for node in onnx.load(untrained).graph.node)
    trained = exported_resnet(tmp_path / "t.onnx")
    ours, theirs = (detect(read_graph(path), rules) for path in (untrained, trained))
    assert [(k.op, k.features, k.macs) for k in ours] == [(k.op, k.features, k.macs) for k in theirs]


def test_an_identity_at_the_end_is_no_kernel(tmp_path: Path, rules: Path) -> None:
    """nn-Meter's detector crashes on it."""
    path = exported_resnet(tmp_path / "m.onnx")
    model = onnx.load(path)
    before = [(kernel.op, kernel.macs) for kernel in detect(read_graph(path), rules)]
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["scores"], name="end"))
    onnx.save(model, path)
    found = [(kernel.op, kernel.macs) for kernel in detect(read_graph(path), rules)]
    assert found == before


def network(path: Path, nodes: list[onnx.NodeProto], shape: list, **weights: np.ndarray) -> Path:
    """A network of these nodes from `image` to `scores`."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    arrays = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [image], [scores], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_chained_identities_lead_to_their_source(tmp_path: Path, rules: Path) -> None:
    """Two Identity nodes in a row: between weights, between nodes, and at the end."""
    weight = np.ones((4, 3, 3, 3), np.float32)
    chain = [("w", "w1"), ("w1", "w2"), ("c", "c1"), ("c1", "c2"), ("r", "r1"), ("r1", "scores")]
    passed = {out: helper.make_node("Identity", [given], [out]) for given, out in chain}
    conv = helper.make_node("Conv", ["image", "w2"], ["c"], kernel_shape=[3, 3])
    relu = helper.make_node("Relu", ["c2"], ["r"])
    nodes = [
        passed["w1"],
        passed["w2"],
        conv,
        passed["c1"],
        passed["c2"],
        relu,
        passed["r1"],
        passed["scores"],
    ]
    (kernel,) = detect(read_graph(network(tmp_path / "m.onnx", nodes, ["n", 3, 8, 8], w=weight)), rules)
    assert (kernel.op, kernel.macs) == ("conv-relu", 6 * 6 * 4 * 27)
    assert [name.split(":")[1] for name in kernel.nodes] == ["Conv", "Relu"]


def test_only_what_computes_a_shape_is_no_kernel(tmp_path: Path, rules: Path) -> None:
    """Shape and its vectors are removed. A table made from a vector and a product of vectors stay."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["v"], axes=[0, 2, 3], keepdims=0),  # 3 numbers
        helper.make_node("MatMul", ["v", "w"], ["u"], "product"),  # a vector, but with MACs
        helper.make_node(
            "Sqrt", ["u"], ["q"], "roots"
        ),  # no MACs: taken for one of those that compute shapes
        helper.make_node("Expand", ["q", "two"], ["e"], "table"),
        helper.make_node("Relu", ["e"], ["scores"]),
    ]
    weights = {"w": np.ones((3, 5), np.float32), "two": np.array([2, 5])}
    kernels = detect(read_graph(network(tmp_path / "m.onnx", nodes, ["n", 3, 4, 4], **weights)), rules)
    found = {name.split(":", 2)[1]: kernel for kernel in kernels for name in kernel.nodes}
    assert set(found) == {"MatMul", "Expand", "Relu"}
    assert found["MatMul"].macs == 15
    assert found["Expand"].features is None


def test_kernels_of_a_fixed_batch_are_those_of_one_image(tmp_path: Path, rules: Path) -> None:
    """This also holds where features begin with the first size: the ReLU has (1, 5), not (8, 5)."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["scores"]),
    ]
    weight = np.ones((48, 5), np.float32)
    paths = [network(tmp_path / f"{batch}.onnx", nodes, [batch, 3, 4, 4], w=weight) for batch in (1, 8)]
    one, eight = (detect(read_graph(path), rules) for path in paths)
    assert eight == one
    assert (one[-1].op, one[-1].features) == ("relu", (1, 5))
    assert sum(kernel.macs or 0 for kernel in eight) == 240


def test_gathering_from_images_has_features(tmp_path: Path, rules: Path) -> None:
    """Height, channels and axis. A Gather along another axis has no features."""
    nodes = [
        helper.make_node("Gather", ["image", "at"], ["a"], axis=2),
        helper.make_node("Gather", ["a", "at"], ["b"], axis=3),
        helper.make_node("Gather", ["b", "at"], ["scores"], axis=1),
    ]
    path = network(tmp_path / "m.onnx", nodes, ["n", 3, 8, 8], at=np.array([0, 1, 1, 2, 2]))
    kernels = detect(read_graph(path), rules)
    assert [kernel.features for kernel in kernels] == [(8, 3, 2), (5, 3, 3), None]


def test_a_second_slice_of_a_tensor_is_one_kernel_with_the_first(tmp_path: Path, rules: Path) -> None:
    numbers = {"zero": np.array([0]), "one": np.array([1]), "three": np.array([3]), "axis": np.array([1])}
    nodes = [
        helper.make_node("Slice", ["image", "zero", "one", "axis"], ["a"]),
        helper.make_node("Slice", ["image", "one", "three", "axis"], ["b"]),
        helper.make_node("Concat", ["b", "a"], ["c"], axis=1),
        helper.make_node("Relu", ["c"], ["scores"]),
    ]
    kernels = detect(read_graph(network(tmp_path / "m.onnx", nodes, ["n", 3, 4, 4], **numbers)), rules)
    assert sorted(kernel.op for kernel in kernels) == ["concat", "relu", "split"]


def test_a_lone_node_is_not_lost(tmp_path: Path, rules: Path) -> None:
    """nn-Meter's graph drops nodes without neighbours; here it is a kernel without features."""
    path = one_operator(
        tmp_path / "one.onnx", "Conv", shape=[1, 3, 8, 8], weights={"w": [4, 3, 3, 3]}, kernel_shape=[3, 3]
    )
    (kernel,) = detect(read_graph(path), rules)
    assert (kernel.op, kernel.features, kernel.macs) == ("Conv", None, 6 * 6 * 4 * 27)


def test_grouped_convolutions_have_no_features(tmp_path: Path, rules: Path) -> None:
    """nn-Meter takes grouped convolutions for dense ones, which cost many times more. It knows depthwise ones."""
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 2),
    )
    export_onnx(model, tmp_path / "m.onnx", in_channels=8, size=8)
    kernels = detect(read_graph(tmp_path / "m.onnx"), rules)
    by_op = {kernel.op: kernel for kernel in kernels}
    assert by_op["conv-relu"].features is None
    assert by_op["conv-relu"].macs == 6 * 6 * 8 * 2 * 9
    assert by_op["dwconv-relu"].features is not None


def test_operators_that_nn_meter_does_not_know_are_kernels_without_features(
    tmp_path: Path, rules: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 2), nn.Softmax(1))
    export_onnx(model, tmp_path / "m.onnx", in_channels=3, size=8)
    unknown = {
        kernel.op for kernel in detect(read_graph(tmp_path / "m.onnx"), rules) if kernel.features is None
    }
    assert {"Erf", "Softmax"} <= unknown


def test_an_input_without_size_is_refused(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "free.onnx", "Relu", shape=["batch", 3, "height", "width"])
    with pytest.raises(
        HardwareError, match=r"free.onnx: the size of input 'image' is not fixed \(height, width\)"
    ):
        read_graph(path)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("no network")
    with pytest.raises(HardwareError, match="text.onnx cannot be read"):
        read_graph(path)


def test_unknown_operators_without_shapes_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mystery", ["image"], ["x"], name="riddle", domain="nobody"),
        helper.make_node("Relu", ["x"], ["scores"], name="relu"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [scores])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(HardwareError, match=r"Mystery \(riddle\)"):
        read_graph(tmp_path / "m.onnx")


def test_predictor_names() -> None:
    assert predictor_names("conv-add-relu") == ("conv-add-relu", "conv-bn-relu")
    assert predictor_names("gap") == ("gap", "global-avgpool")
    assert predictor_names("add-relu") == ("add-relu", "addrelu")
    assert predictor_names("relu") == ("relu",)


@pytest.mark.parametrize("content", ["", "[]", '{"BF_conv_relu": true}', '{"BF_conv_relu": {}}'])
def test_files_that_hold_no_rules_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(HardwareError, match="r.json is not a file of fusion rules"):
        check_rules(tmp_path / "r.json")
    with pytest.raises(HardwareError, match="missing.json is not a file of fusion rules"):
        check_rules(tmp_path / "missing.json")
