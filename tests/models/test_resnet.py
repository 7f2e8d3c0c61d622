"""The ResNet space against published counts and hand computations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dxc.deploy.export import count_macs, count_params, export_onnx
from dxc.errors import ConfigError
from dxc.models.registry import canonical_knobs, model_name
from dxc.models.resnet import BasicBlock, BottleneckResNet, ResNet, TinyResNet

CONVENTIONAL = {"kernel": 7, "stride": 2, "padding": 3, "pool": "max", "width": 64}


def test_conventional_resnet18_has_the_published_number_of_parameters() -> None:
    assert count_params(ResNet(5, **CONVENTIONAL)) == 11_183_810
    assert count_params(ResNet(7, **CONVENTIONAL)) == 11_183_810 + 2 * 64 * 7 * 7  # two more input channels


def test_conventional_resnet18_has_torchvisions_keys() -> None:
    keys = set(ResNet(5, **CONVENTIONAL).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.1.bn2.bias"} <= keys
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias", "fc.weight"} <= keys
    assert len(keys) == 122  # as torchvision's resnet18 has
    assert not any(key.startswith("layer1.0.downsample") for key in keys)


def test_structure_follows_the_paper() -> None:
    model = ResNet(5, **CONVENTIONAL)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 1 + 4 * 4 + 3
    assert all(conv.bias is None for conv in convs)
    shortcuts = [conv for conv in convs if conv.kernel_size == (1, 1)]
    assert [conv.stride for conv in shortcuts] == [(2, 2)] * 3


@pytest.mark.parametrize(
    ("knobs", "sizes"),
    [
        ({"kernel": 3, "stride": 2, "padding": 1}, (50, 50, 25, 13, 7)),
        ({"kernel": 7, "stride": 2, "padding": 3, "pool": "max"}, (50, 25, 13, 7, 4)),
        ({"kernel": 5, "stride": 1, "padding": 3, "pool": "max", "pool_kernel": 2}, (102, 52, 26, 13, 7)),
    ],
)
def test_resolutions_by_hand(knobs: dict, sizes: tuple[int, ...]) -> None:
    model, seen = ResNet(5, width=8, **knobs), []
    stem, *stages = model.conv1, model.layer1, model.layer2, model.layer3, model.layer4
    for module in (stem, *stages):
        module.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
    assert model(torch.rand(2, 5, 100, 100)).shape == (2, 2)
    assert tuple(seen) == sizes


def test_convolutions_begin_with_the_variance_of_their_outputs() -> None:
    """He et al. 2015, equation 14: a standard deviation of sqrt(2 / (k^2 Cout)). 7 to 64 channels tell it from Cin."""
    torch.manual_seed(0)
    model = ResNet(7, **CONVENTIONAL)
    for conv, kernel, channels in ((model.conv1, 7, 64), (model.layer2[0].conv1, 3, 128)):
        assert conv.weight.detach().std().item() == pytest.approx(
            (2 / (kernel**2 * channels)) ** 0.5, rel=0.02
        )
        assert conv.weight.detach().mean().item() == pytest.approx(0, abs=1e-3)


def test_depth_and_width() -> None:
    model = ResNet(3, width=8, blocks=[1, 2, 3, 1])
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [1, 2, 3, 1]
    assert model.fc.in_features == 64
    same = ResNet(3, width=8, blocks=2).state_dict().keys()
    assert same == ResNet(3, width=8, blocks=[2, 2, 2, 2]).state_dict().keys()


def test_knobs_that_are_not_given() -> None:
    model = ResNet(5, pool="max")
    conv, pool = model.conv1, model.maxpool
    assert (tuple(conv.weight.shape), conv.stride, conv.padding) == ((32, 5, 3, 3), (2, 2), (1, 1))
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [2] * 4
    assert model.fc.out_features == 2
    assert isinstance(ResNet(5).maxpool, nn.Identity)


def test_a_shortcut_fits_where_only_the_channels_change() -> None:
    assert BasicBlock(4, 8, 1)(torch.rand(2, 4, 5, 5)).shape == (2, 8, 5, 5)
    assert BasicBlock(8, 8, 2)(torch.rand(2, 8, 5, 5)).shape == (2, 8, 3, 3)


def test_a_block_adds_its_input() -> None:
    block = ResNet(3, width=8).layer1[0].eval()
    for bn in (block.bn1, block.bn2):
        nn.init.zeros_(bn.weight)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x), x.relu())


def test_macs_by_hand() -> None:
    """Each layer of the smallest network counted by hand as k^2 Cin Cout H W, and added up."""
    model = ResNet(2, kernel=3, stride=1, padding=1, width=1, blocks=1)
    stem = 9 * 2 * 1 * 8 * 8
    stages = 2 * 9 * 1 * 1 * 64  # stage 1 at 8 x 8
    for width, area in ((2, 16), (4, 4), (8, 1)):
        stages += (9 * (width // 2) * width + 9 * width * width + (width // 2) * width) * area
    assert count_macs(model, in_channels=2, size=8) == stem + stages + 8 * 2


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"kernel": 0}, "model.kernel must be a whole number of at least 1, not 0"),
        ({"kernel": 3.5}, "model.kernel"),
        ({"width": "wide"}, "model.width"),
        ({"stride": True}, "model.stride"),
        ({"padding": -1}, "model.padding must be a whole number of at least 0"),
        ({"pool": "avg"}, "model.pool must be none or max, not 'avg'"),
        ({"pool": "max", "pool_kernel": 1}, "model.pool_kernel must be at least 2"),
        ({"blocks": [2, 2]}, "model.blocks must be one number or 4"),
        ({"blocks": [2, 2, 0, 2]}, r"model.blocks\[2\]"),
    ],
)
def test_knobs_that_cannot_be(knobs: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ResNet(5, **knobs)


def test_kernel_larger_than_the_padded_chip() -> None:
    ResNet(5, kernel=102, padding=1).check_input_size(100)
    with pytest.raises(ConfigError, match=r"larger than the padded chip: 100 \+ 2 x padding 1 = 102 pixels"):
        ResNet(5, kernel=103, padding=1).check_input_size(100)
    with pytest.raises(ConfigError, match=r"model.pool_kernel=9 is larger"):
        ResNet(5, kernel=3, stride=2, pool="max", pool_kernel=9).check_input_size(12)
    # (12 + 2 - 3) // 2 + 1 = 6 pixels and 1 of padding on both sides: 8 fits exactly
    fits = ResNet(5, kernel=3, stride=2, pool="max", pool_kernel=8)
    fits.check_input_size(12)
    assert fits(torch.rand(2, 5, 12, 12)).shape == (2, 2)
    ResNet(5, kernel=3, stride=2, pool="none", pool_kernel=9).check_input_size(12)


def test_published_space_has_180_networks() -> None:
    points = [
        {
            "kernel": k,
            "stride": s,
            "padding": p,
            "pool": pool,
            "pool_kernel": pk,
            "pool_stride": ps,
            "width": w,
        }
        for k in (3, 5)
        for s in (1, 2)
        for p in (1, 2, 3)
        for pool in ("max", "none")
        for pk in (2, 3)
        for ps in (1, 2)
        for w in (32, 48, 64)
    ]
    target = {"_target_": "dxc.models.resnet.ResNet"}
    assert len(points) == 288
    assert len({str(sorted(canonical_knobs(target | point).items())) for point in points}) == 180


def test_names() -> None:
    target = {"_target_": "dxc.models.resnet.ResNet"}
    assert model_name(target | {"blocks": 2}) == "resnet18"
    assert model_name(target | {"blocks": [3, 4, 6, 3]}) == "resnet34"


def test_the_conventional_resnet50() -> None:
    """torchvision's count and keys; 4.09 billion multiply-adds at 224 pixels."""
    model = BottleneckResNet(3, 1000)
    assert count_params(model) == 25_557_032
    assert count_macs(model, in_channels=3, size=224) == 4_089_184_256
    keys = {"layer1.0.downsample.1.running_mean", "layer4.2.conv3.weight", "layer3.5.bn2.bias", "fc.bias"}
    assert keys <= model.state_dict().keys()
    assert model.layer2[0].conv2.stride == (2, 2) and model.layer2[0].conv1.stride == (1, 1)


def test_resnet8_of_mlperf_tiny() -> None:
    """Keras counts the 480 running means and variances too: 78,666 (arXiv 2106.07597); 12.5 million multiply-adds."""
    model = TinyResNet(3, 10)
    running = sum(each.numel() for name, each in model.named_buffers() if "running" in name)
    assert (count_params(model), running) == (78_186, 480)
    assert count_macs(model, in_channels=3, size=32) == 12_501_632
    with torch.inference_mode():
        assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ConfigError, match="model.width must be a whole number of at least 1, not 0"):
        TinyResNet(3, 10, width=0)


@pytest.mark.parametrize("network", [TinyResNet, BottleneckResNet])
def test_new_resnets_export(network: type, tmp_path: Path) -> None:
    model = network(3, 10, width=8)
    exported = export_onnx(model, tmp_path / "m.onnx", in_channels=3, size=32)
    assert exported.max_relative_error < 1e-4
