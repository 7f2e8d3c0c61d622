"""Weights from files: what fits is loaded, and the difference of what does not is listed. No file is obeyed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from dxc.compress.quantise import quantise
from dxc.deploy.export import export_onnx
from dxc.errors import ConfigError
from dxc.models.mobilenet import MobileNetV1
from dxc.models.resnet import BottleneckResNet, ResNet, TinyResNet
from dxc.models.weights import load_weights


def _filled(seed: int = 1) -> TinyResNet:
    torch.manual_seed(seed)
    network = TinyResNet(3, 10, width=4)
    for name, tensor in network.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("form", ["plain", "in a checkpoint", "wrapped", "wrapped twice", "without counters"])
def test_a_state_dict_is_loaded(form: str, tmp_path: Path) -> None:
    base, model = _filled(), TinyResNet(3, 10, width=4)
    weights = base.state_dict()
    content: dict = {
        "plain": weights,
        "in a checkpoint": {"epoch": 3, "state_dict": weights},
        "wrapped": {f"module.{name}": each for name, each in weights.items()},
        "wrapped twice": {"model": {f"module.model.{name}": each for name, each in weights.items()}},
        "without counters": {name: each for name, each in weights.items() if "tracked" not in name},
    }[form]
    torch.save(content, tmp_path / "base.pt")
    load_weights(model, tmp_path / "base.pt")
    image = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.eval()(image), base(image))


def test_initializers_are_loaded(tmp_path: Path) -> None:
    """Of a file whose batch norms are there, which are those of networks without any, and of other exporters."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        network[0].bias.uniform_()
    export_onnx(network, tmp_path / "base.onnx", in_channels=3, size=3)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    load_weights(other, tmp_path / "base.onnx")
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_another_network_is_told_apart(tmp_path: Path) -> None:
    torch.save(_filled().state_dict(), tmp_path / "base.pt")
    with pytest.raises(
        ConfigError, match=r"of another shape: conv1\.weight \(4, 3, 3, 3\) instead of \(8, 3, 3, 3\)"
    ):
        load_weights(TinyResNet(3, 10, width=8), tmp_path / "base.pt")
    with pytest.raises(
        ConfigError,
        match=r"fc\.weight \(10, 16\) instead of \(2, 16\), fc\.bias \(10,\) instead of \(2,\)\)$",
    ):
        load_weights(TinyResNet(3, 2, width=4), tmp_path / "base.pt")
    with pytest.raises(ConfigError, match=r"missing: features\.0\.weight, .* more; unknown: conv1\.weight"):
        load_weights(MobileNetV1(3, 10, width=0.25), tmp_path / "base.pt")


@pytest.mark.parametrize(
    "build",
    [
        partial(ResNet, 3, width=4),
        partial(BottleneckResNet, 3, width=4, blocks=1),
        partial(TinyResNet, 3, width=4),
        partial(MobileNetV1, 3, 10, width=0.25),
    ],
    ids=["resnet", "bottleneck", "tiny", "mobilenet"],
)
@pytest.mark.parametrize("equal_biases", [False, True])
def test_a_file_of_ours_gives_the_same_answers(
    build: Callable[[], nn.Module], equal_biases: bool, tmp_path: Path
) -> None:
    """Its batch norms are merged into the convolutions; tensors that are equal are there once."""
    torch.manual_seed(0)
    network = build()
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point() and not (equal_biases and "bias" in name):
            tensor.uniform_(0.5, 2)
    export_onnx(network, tmp_path / "base.onnx", in_channels=3, size=32)
    model = build().train()
    load_weights(model, tmp_path / "base.onnx")
    assert model.training
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        expected, found = network.eval()(images), model.eval()(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    norm = next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    assert not norm.running_mean.any() and (norm.weight == 1).all()
    assert torch.equal(norm.running_var, torch.full_like(norm.running_var, 1 - norm.eps))


def test_a_file_of_another_network_with_batch_norms(tmp_path: Path) -> None:
    path = tmp_path / "base.onnx"
    export_onnx(ResNet(3, width=4), path, in_channels=3, size=32)
    with pytest.raises(ConfigError, match="21 convolutions and linear layers instead of"):
        load_weights(ResNet(3, width=4, blocks=1), path)
    with pytest.raises(
        ConfigError, match=r"of another shape: conv1\.weight \(4, 3, 3, 3\) instead of \(8, 3, 3, 3\)"
    ):
        load_weights(ResNet(3, width=8), path)
    quantise(path, tmp_path / "small.onnx", "dynamic")
    with pytest.raises(ConfigError, match=r"small\.onnx computes in 8 bits: take the file in float32"):
        load_weights(ResNet(3, width=4), tmp_path / "small.onnx")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_files_that_are_none(tmp_path: Path) -> None:
    made = tmp_path / "made"
    files = {
        "evil.pt": pickle.dumps(_Evil(made)),
        "empty.pt": b"",
        "text.pt": b"weights\n",
        "text.onnx": b"no protobuf",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"base=.*{name} "):
            load_weights(_filled(), tmp_path / name)
    assert not made.exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="is no state_dict: it must hold tensors by name"):
        load_weights(_filled(), tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="base=.*absent.pt cannot be read: No such file"):
        load_weights(_filled(), tmp_path / "absent.pt")


def test_no_other_file_is_read(tmp_path: Path) -> None:
    export_onnx(ResNet(3, width=4), tmp_path / "base.onnx", in_channels=3, size=32)
    model = onnx.load(tmp_path / "base.onnx")
    onnx.save_model(
        model, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    with pytest.raises(
        ConfigError, match="split.onnx cannot be read as an ONNX file: its weights are in another"
    ):
        load_weights(ResNet(3, width=4), tmp_path / "split.onnx")
