"""MobileNet-v1: the published network, its width multiplier, and knobs that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dxc.deploy.export import count_macs, count_params, export_onnx
from dxc.errors import ConfigError
from dxc.models.mobilenet import BLOCKS, MobileNetV1


def test_the_published_network() -> None:
    """Howard et al. 2017, tables 6 and 7: 4.2 million parameters and 569 million multiply-adds at 224 pixels."""
    model = MobileNetV1(3, 1000)
    assert count_params(model) == 4_231_976
    assert count_macs(model, in_channels=3, size=224) == 568_740_352


def test_ten_classes() -> None:
    assert count_params(MobileNetV1(3, 10)) == 3_217_226


@pytest.mark.parametrize(("width", "millions"), [(0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_published_widths(width: float, millions: float) -> None:
    """Table 6."""
    assert count_params(MobileNetV1(3, 1000, width=width)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("channels", "width", "classes"), [(5, 1.0, 2), (7, 0.25, 10)])
def test_parameters_by_hand(channels: int, width: float, classes: int) -> None:
    wide = int(32 * width)
    expected = channels * 9 * wide + 2 * wide
    for published, _ in BLOCKS:
        out = int(published * width)
        expected += 9 * wide + 2 * wide + wide * out + 2 * out
        wide = out
    assert count_params(MobileNetV1(channels, classes, width=width)) == expected + (wide + 1) * classes


@pytest.mark.parametrize(("stride", "left"), [(2, 2), (1, 4)])
def test_sizes(stride: int, left: int) -> None:
    model = MobileNetV1(4, 10, width=0.25, stride=stride).eval()
    with torch.inference_mode():
        assert model.features(torch.rand(2, 4, 50, 50)).shape == (2, 256, left, left)
        assert model(torch.rand(2, 4, 50, 37)).shape == (2, 10)


def test_variance_is_kept_through_its_layers() -> None:
    """With batch statistics, as in training, no score vanishes or explodes."""
    torch.manual_seed(0)
    scores = MobileNetV1(3, 50, width=0.5).train()(torch.rand(16, 3, 64, 64))
    assert 0.05 < scores.std().item() < 5


def test_it_exports(tmp_path: Path) -> None:
    exported = export_onnx(MobileNetV1(5, 2, width=0.25), tmp_path / "m.onnx", in_channels=5, size=64)
    assert exported.max_relative_error < 1e-4


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"width": 0.03}, "model.width multiplies the channels.*at least 1/32"),
        ({"width": True}, "model.width"),
        ({"width": float("nan")}, "model.width"),
        ({"stride": 0}, "model.stride must be a whole number of at least 1"),
        ({"num_classes": 0}, "model.num_classes"),
    ],
)
def test_knobs_that_cannot_work(knobs: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MobileNetV1(3, **knobs)
