"""Exported files as operators that can be scheduled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dxc.errors import ConfigError, HardwareError
from dxc.hardware.schedule.program import exact_numbers, load_program
from tests.hardware.networks import one_operator

NAMES = ("inception", "resnet", "sppnet4", "sppnet5")


def names(path: Path) -> list[str]:
    return [each.name for each in load_program(path).operators]


def test_operators_and_what_they_need(networks: Path) -> None:
    program = load_program(networks / "sppnet5.onnx")
    assert [each.name for each in program.operators] == [
        *["Conv+Relu", "MaxPool"] * 3,
        "MaxPool+Gather+Gather", "MaxPool+Flatten", "MaxPool+Flatten", "MaxPool+Flatten", "Concat",
        "Gemm+Relu", "Gemm+Squeeze", "Gemm+Sigmoid",
    ]  # fmt: skip
    needs = [[j for j in range(14) if bits >> j & 1] for bits in program.dag.before]
    assert needs == [
        [], [0], [1], [2], [3], [4], [5], [6], [5], [5], [7, 8, 9], [10], [11], [11]
    ]  # fmt: skip
    assert program.dag.blocks()[-3:] == [range(6, 11), range(11, 12), range(12, 14)]
    inception = load_program(networks / "inception.onnx")
    assert len(inception.operators) == 11 and inception.dag.blocks() == [range(0, 11)]


@pytest.mark.parametrize("name", NAMES)
def test_they_compute_what_onnxruntime_does(name: str, networks: Path) -> None:
    program = load_program(networks / f"{name}.onnx", batch=3)
    session = onnxruntime.InferenceSession(str(networks / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    image = program.fresh_image(7)
    assert image.shape == program.image.shape and not torch.equal(image, program.image)
    expected = session.run(None, {"image": image.numpy()})
    for ours, theirs in zip(program.run_in_order(image), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4)


def test_half_precision_is_computed_in_it(networks: Path) -> None:
    exact = load_program(networks / "sppnet4.onnx")
    half = load_program(networks / "sppnet4.onnx", precision="bf16")
    assert {each.dtype for each in half.run_in_order(half.image)} == {torch.bfloat16}
    for ours, theirs in zip(half.run_in_order(half.image), exact.run_in_order(exact.image), strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)


def test_what_does_not_depend_on_the_image_is_computed_once(tmp_path: Path) -> None:
    """Sizes are folded, dead nodes dropped; positions of a Gather are a constant beside the image."""
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "zeros"], ["one"]),
        helper.make_node("Concat", ["one", "rest"], ["wanted"], axis=0),
        helper.make_node("Relu", ["image"], ["a"]),
        helper.make_node("Reshape", ["a", "wanted"], ["b"]),
        helper.make_node("Gather", ["b", "places"], ["scores"], axis=1),
        helper.make_node("Sigmoid", ["image"], ["dead"]),
    ]
    constants = {
        "zero": np.array(0), "zeros": np.array([0]), "rest": np.array([-1]), "places": np.array([3, 1, -1])
    }  # fmt: skip
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 4, 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [image], [scores], stored)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    program = load_program(path, batch=2)
    assert [each.name for each in program.operators] == ["Relu+Reshape+Gather"]
    assert set(program.constants) == {"wanted", "places on the device"}
    (answer,) = program.run_in_order(program.image)
    torch.testing.assert_close(answer, program.image.reshape(2, -1)[:, [3, 1, -1]])


def test_an_activation_with_another_reader_stands_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["image"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 4, 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [scores])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "m.onnx",
    )
    assert names(tmp_path / "m.onnx") == ["Sigmoid", "Relu", "Add"]


def test_stages_that_do_the_same_are_told(networks: Path) -> None:
    program = load_program(networks / "resnet.onnx")
    of = program.does
    assert of(((1,),)) == of(((4,),))  # convolutions of the first stage: other weights, same work
    assert of(((1,),)) != of(((0,),))
    assert of(((1, 2),)) == of(((4, 5),)) and of(((1,), (2,))) != of(((1, 2),))
    assert of(((7,), (8,))) == of(((8,), (7,)))
    bigger = load_program(networks / "resnet.onnx", batch=2)
    assert of(((1,),)) != bigger.does(((1,),))


def test_bytes_that_have_to_be_moved(tmp_path: Path) -> None:
    path = one_operator(
        tmp_path / "m.onnx", "Conv", shape=["n", 3, 8, 8], weights={"w": [4, 3, 3, 3]}, kernel_shape=[3, 3]
    )
    image, weights, output = 2 * 3 * 64, 4 * 27, 2 * 4 * 36
    assert load_program(path, batch=2).bytes_once == 4 * (image + weights + output)
    assert load_program(path, batch=2, precision="fp16").bytes_once == 2 * (image + weights + output)


def test_files_that_cannot_be_scheduled(networks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision=int8 is unknown; choose one of fp32, bf16, fp16"):
        load_program(networks / "resnet.onnx", precision="int8")
    free = one_operator(tmp_path / "m.onnx", "Relu", shape=["n", 3, "height", 8])
    with pytest.raises(HardwareError, match="the size of input 'image' is not fixed"):
        load_program(free)
    wrong = one_operator(tmp_path / "m.onnx", "MatMul", shape=["n", 5], weights={"w": [4, 2]})
    with pytest.raises(
        HardwareError, match=r"m.onnx cannot be run with torch at batch 1 in fp32: RuntimeError"
    ):
        load_program(wrong)


def test_numbers_are_exact_only_inside() -> None:
    from torch.backends import cuda, cudnn

    before = cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    with exact_numbers("fp32"):
        assert (cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (False, False, True)
    assert (cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == before
