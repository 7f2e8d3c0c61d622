"""Quantised files: what they compute, what they hold, what they say of themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from dxc.compress.quantise import KINDS, calibration_chips, quantise
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import METADATA_BYTES, Metadata, read_metadata
from dxc.deploy.predictor import Predictor
from dxc.errors import CompressionError, ConfigError, HardwareError
from dxc.hardware.calibrate.calibrate import FUSION_RULES
from dxc.hardware.network import read_network
from dxc.hardware.onnx_file import onnx_mb
from dxc.hardware.predict.kernels import detect, read_graph
from dxc.models.mobilenet import MobileNetV1
from dxc.models.resnet import ResNet
from dxc.models.sppnet import SppNet

SIZE = 32
CHANNELS = ("dem", "red", "green")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v1": lambda: MobileNetV1(3, width=0.25),
    "resnet18": lambda: ResNet(3, width=8),
    "sppnet": lambda: SppNet(3, features=32),
}


def exported(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.2)  # equal biases would make Identity nodes
    path = folder / f"{name}.onnx"
    export_onnx(model, path, in_channels=3, size=SIZE, metadata=Metadata(channels=CHANNELS, trial="0" * 12))
    return path


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 3, SIZE, SIZE), dtype=np.float32)


def answers(path: Path, given: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": given})[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """{network: {float32, dynamic, static: file}}; static ones calibrated on 40 images."""
    folder = tmp_path_factory.mktemp("quantised")
    made = {name: {"float32": exported(name, folder)} for name in NETWORKS}
    for name, of in made.items():
        for kind in KINDS:
            target = folder / f"{name}_{kind}.onnx"
            of[kind] = quantise(of["float32"], target, kind, images(40)).path
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_answers_nearly_the_same(files: dict[str, dict[str, Path]], name: str, kind: str) -> None:
    """On images that it was not calibrated on. A wrong scale or zero point is off by far more."""
    given = images(30, seed=1)
    before, after = answers(files[name]["float32"], given), answers(files[name][kind], given)
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_8_bits(files: dict[str, dict[str, Path]], name: str) -> None:
    weights = sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(files[name]["float32"]).graph.initializer
        if len(tensor.dims) > 1
    )
    for kind, number in (("dynamic", onnx.TensorProto.UINT8), ("static", onnx.TensorProto.INT8)):
        graph = onnx.load(files[name][kind]).graph
        large = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
        assert {tensor.data_type for tensor in large} == {number}
        assert sum(int(np.prod(tensor.dims)) for tensor in large) == weights
        assert onnx_mb(files[name][kind]) < onnx_mb(files[name]["float32"])


def test_a_scale_for_each_output_channel(files: dict[str, dict[str, Path]]) -> None:
    graph = onnx.load(files["resnet18"]["static"]).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    convolutions = [node for node in weights if arrays[node.input[0]].ndim == 4]
    assert len(convolutions) == 20
    assert all(arrays[node.input[1]].shape == arrays[node.input[0]].shape[:1] for node in convolutions)


def test_activations_have_the_ranges_of_the_calibration_images(files: dict[str, dict[str, Path]]) -> None:
    """The image itself: 0 to 1 is divided into 255 steps."""
    graph = onnx.load(files["resnet18"]["static"]).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (first,) = [node for node in graph.node if "image" in node.input]
    assert first.op_type == "QuantizeLinear"
    assert arrays[first.input[1]] == pytest.approx(1 / 255, rel=1e-3)
    assert arrays[first.input[2]] == 0


def test_weights_leave_room_for_the_sum_of_two_products(tmp_path: Path) -> None:
    """x86 without VNNI adds two products of uint8 and int8 in 16 bits. What overflows there is cut off silently.

    All weights and activations are as large as they can be. The unoptimised file computes in float32, so it shows what
    the file means. On a processor with VNNI only the range of the weights tells.
    """
    convolution = nn.Conv2d(3, 8, 1, bias=False)
    nn.init.ones_(convolution.weight)
    source, target = tmp_path / "ones.onnx", tmp_path / "static.onnx"
    network = nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten())
    nn.init.ones_(network[2].weight)
    export_onnx(network, source, in_channels=3, size=4)
    given = np.ones((2, 3, 4, 4), np.float32)
    given[0, :, 0, 0] = 0  # a range of activations from 0 to 1
    quantise(source, target, "static", given)

    weights = [
        numpy_helper.to_array(each)
        for each in onnx.load(target).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    ]
    assert len(weights) == 2
    assert {int(np.abs(each.astype(int)).max()) for each in weights} <= {63, 64}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    meant = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    (expected,) = meant.run(None, {"image": given})
    np.testing.assert_allclose(answers(target, given), expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_allclose(answers(source, given), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_the_network(files: dict[str, dict[str, Path]], name: str, kind: str) -> None:
    macs = read_network(files[name][kind]).macs
    assert macs == read_network(files[name]["float32"]).macs and macs


def test_why_nothing_is_predicted_of_dynamic_ones(files: dict[str, dict[str, Path]]) -> None:
    with pytest.raises(
        HardwareError,
        match="does not compute in float32 .* predictors describe only kernels of float32 and of static int8",
    ):
        read_graph(files["resnet18"]["dynamic"])


def test_the_kernels_of_static_ones(files: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """Each convolution and linear layer is a kernel that computes with integers, with the features and MACs that it has
    in float32. Relu is gone: rounding to whole numbers from 0 on does it."""
    rules = tmp_path / "fusion_rules.json"
    rules.write_text(json.dumps(FUSION_RULES))
    for name in NETWORKS:
        before, after = (detect(read_graph(files[name][kind]), rules) for kind in ("float32", "static"))
        work = [[(each.features, each.macs) for each in kernels if each.macs] for kernels in (before, after)]
        assert work[0] == work[1] and work[0]
        assert not any(each.op.startswith("int8-") for each in before)
        assert all(each.op.startswith("int8-") and "relu" not in each.op for each in after)


@pytest.mark.parametrize(("kind", "count"), [("dynamic", None), ("static", 40)])
def test_what_the_file_says(files: dict[str, dict[str, Path]], kind: str, count: int | None) -> None:
    of = files["mobilenet_v1"]
    before, after = (read_metadata(onnx.load(of[each]), each) for each in ("float32", kind))
    assert (after.quantised, after.calibration_images) == (kind, count)
    assert before.quantised is None
    assert after.model_copy(update={"quantised": None, "calibration_images": None}) == before
    alone = onnx.ModelProto()
    alone.metadata_props.extend(onnx.load(of[kind]).metadata_props)
    assert alone.ByteSize() == METADATA_BYTES
    bands = dict(zip(CHANNELS, np.random.default_rng(0).integers(0, 200, (3, SIZE, SIZE)), strict=True))
    probabilities = [Predictor(of[each]).predict(bands).probabilities for each in ("float32", kind)]
    assert np.abs(probabilities[0] - probabilities[1]).max() < 0.05


def test_the_same_images_give_the_same_file(tmp_path: Path) -> None:
    source = exported("resnet18", tmp_path)
    first, second, other = (
        quantise(source, tmp_path / f"{number}.onnx", "static", each).path.read_bytes()
        for number, each in enumerate((images(8), images(8), images(8) / 2))
    )
    assert first == second != other
    assert Counter(path.suffix for path in tmp_path.iterdir()) == {".onnx": 4}  # no draft is left


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "static quantisation needs calibration images, some that the network was trained on"),
        (images(0), "static quantisation needs calibration images"),
        (images(2)[:, :2], r"takes images of \[3, 32, 32\], and the calibration images are of \[2, 32, 32\]"),
        (images(2)[..., :30], r"calibration images are of \[3, 32, 30\]"),
        (images(2) * np.float32("nan"), "NaN or infinite"),
    ],
)
def test_images_that_cannot_work(tmp_path: Path, given: NDArray[np.float32] | None, says: str) -> None:
    source = exported("resnet18", tmp_path)
    with pytest.raises(CompressionError, match=says):
        quantise(source, tmp_path / "q.onnx", "static", given)
    assert not (tmp_path / "q.onnx").exists()


def test_files_that_cannot_be_quantised(tmp_path: Path, files: dict[str, dict[str, Path]]) -> None:
    target = tmp_path / "q.onnx"
    with pytest.raises(CompressionError, match="there.onnx cannot be read: No such file"):
        quantise(tmp_path / "there.onnx", target, "dynamic")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(CompressionError, match="text.onnx cannot be read as an ONNX file"):
        quantise(tmp_path / "text.onnx", target, "dynamic")
    with pytest.raises(CompressionError, match="is quantised already"):
        quantise(files["resnet18"]["static"], target, "dynamic")
    with pytest.raises(ConfigError, match="quantise=int4 is unknown; choose one of dynamic, static"):
        quantise(files["resnet18"]["float32"], target, "int4")


def test_calibration_chips() -> None:
    train = np.arange(100, 200)
    drawn = calibration_chips(train, 10, seed=3)
    assert len(set(drawn)) == 10 and set(drawn) <= set(train) and list(drawn) == sorted(drawn)
    assert np.array_equal(drawn, calibration_chips(train[::-1], 10, seed=3))
    assert not np.array_equal(drawn, calibration_chips(train, 10, seed=4))
    assert np.array_equal(calibration_chips(train, 1000, seed=3), train)
