"""SPP-Net against counts by hand, torch's adaptive pooling, and nn-Meter's kernels."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from dxc.config.compose import PROJECT_ROOT
from dxc.config.names import describe
from dxc.deploy.export import count_macs, count_params, export_onnx
from dxc.errors import ConfigError
from dxc.hardware.predict.kernels import detect, read_graph
from dxc.models.registry import canonical_knobs, model_name, output_names
from dxc.models.sppnet import Detection, SpatialPyramid, SppNet, pool_any_size, pool_fixed_size

LEVELS = (1, 2, 3, 4, 5)
PUBLISHED = {
    "sppnet_original": {"kernel": 3, "level": 4, "features": 1024},
    "sppnet_1": {"kernel": 5, "level": 4, "features": 1024},
    "sppnet_2": {"kernel": 3, "level": 5, "features": 4096},
    "sppnet_3": {"kernel": 3, "level": 5, "features": 2048},
}


def params_by_hand(channels: int, kernel: int, level: int, features: int, features2: int = 0) -> int:
    """Weights and biases, layer by layer."""
    convolutions = (kernel**2 * channels + 1) * 64 + (9 * 64 + 1) * 128 + (9 * 128 + 1) * 256
    linear = (256 * (level**2 + 4 + 1) + 1) * features
    last = features
    if features2:
        linear += (features + 1) * features2
        last = features2
    return convolutions + linear + (last + 1) * (1 + 4)


def counted(channels: int, **knobs: int) -> int:
    with torch.device("meta"):  # no memory
        return count_params(SppNet(channels, **knobs))


def test_parameters_by_hand() -> None:
    assert params_by_hand(3, 3, 4, 1024) == 1_792 + 73_856 + 295_168 + 5_506_048 + 1_025 + 4_100
    for channels in (3, 4, 5, 7):
        for knobs in (*PUBLISHED.values(), {"kernel": 9, "level": 1, "features": 128, "features2": 8192}):
            assert counted(channels, **knobs) == params_by_hand(channels, **knobs)


def test_the_table_in_the_docs() -> None:
    """The counts in the text are those of the networks, and the published one differs as described."""
    text = (PROJECT_ROOT / "docs/detection.md").read_text().split("## Export")[0]
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in text.splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].startswith("`sppnet_")
    }
    assert rows.keys() == PUBLISHED.keys()
    for name, knobs in PUBLISHED.items():
        numbers = [int(cell.replace(",", "")) for cell in rows[name][:5]]
        assert numbers == [*knobs.values(), params_by_hand(3, **knobs), params_by_hand(7, **knobs)]
    published = 1_792 + 73_856 + 295_168 + (21_760 + 1) * 1024 + 1025 * 2
    assert rows["sppnet_original"][5] == f"{published:,}"
    assert published - (21_760 - 5_376) * 1024 + 3 * 1025 == params_by_hand(3, 3, 4, 1024)
    for number in re.findall(r"\d+(?:,\d{3})+", text.split("**Why")[1].split("**What else")[0]):
        assert int(number.replace(",", "")) in {
            *(5_376, 21_760, 16_384, 1_024, 16_384 * 1024, 2_050, 3_075),
            *(published, params_by_hand(3, 3, 4, 1024)),
        }


def test_structure_is_the_published_one() -> None:
    model = SppNet(3, kernel=7, features=8, features2=4)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.stride, c.padding, c.bias is None) for c in convs] == [
        (64, (7, 7), (1, 1), (3, 3), False),
        (128, (3, 3), (1, 1), (1, 1), False),
        (256, (3, 3), (1, 1), (1, 1), False),
    ]
    assert model.pyramid.levels == (4, 2, 1)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(5376, 8), (8, 4), (4, 1), (4, 4)]
    kinds = Counter(type(m).__name__ for m in model.modules())
    assert (kinds["ReLU"], kinds["MaxPool2d"], kinds["SpatialPyramid"]) == (5, 3, 1)
    assert not any("Norm" in kind for kind in kinds)


@pytest.mark.parametrize("size", [(16, 16), (16, 200), (37, 53), (100, 100)])
def test_shapes(size: tuple[int, int]) -> None:
    model = SppNet(5, kernel=9, level=5, features=8).eval()
    with torch.inference_mode():
        found = model(torch.rand(3, 5, *size))
    assert isinstance(found, Detection)
    assert (found.presence.shape, found.box.shape) == ((3,), (3, 4))
    assert (found.box > 0).all() and (found.box < 1).all()
    assert output_names(model) == Detection._fields == ("presence", "box")


def test_macs_by_hand() -> None:
    """A convolution has k^2 Cin Cout H W. 37 x 53 pixels become 18 x 26, 9 x 13 and 4 x 6."""
    model = SppNet(4, kernel=5, level=3, features=8, features2=6)
    convolutions = 25 * 4 * 64 * 37 * 53 + 9 * 64 * 128 * 18 * 26 + 9 * 128 * 256 * 9 * 13
    linear = 256 * 14 * 8 + 8 * 6 + 6 * 5
    assert count_macs(model, in_channels=4, size=(37, 53)) == convolutions + linear
    square = 25 * 4 * 64 * 16 * 16 + 9 * 64 * 128 * 8 * 8 + 9 * 128 * 256 * 4 * 4
    assert count_macs(model, in_channels=4, size=16) == square + linear


def bins_by_hand(features: np.ndarray, level: int) -> np.ndarray:
    """Maxima of bins from floor(i n / l) to ceil((i + 1) n / l), one by one."""
    channels, height, width = features.shape
    out = np.empty((channels, level, level), features.dtype)
    for i in range(level):
        for j in range(level):
            rows = slice(math.floor(i * height / level), math.ceil((i + 1) * height / level))
            columns = slice(math.floor(j * width / level), math.ceil((j + 1) * width / level))
            out[:, i, j] = features[:, rows, columns].max(axis=(1, 2))
    return out


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 8), (12, 12), (12, 16), (25, 7)])
def test_the_pyramid_by_hand(size: tuple[int, int]) -> None:
    features = torch.randn(2, 3, *size)
    for level in LEVELS:
        pooled = SpatialPyramid((level, 2, 1))(features)
        for image, row in zip(features.numpy(), pooled.numpy(), strict=True):
            parts = [bins_by_hand(image, each).ravel() for each in (level, 2, 1)]
            np.testing.assert_array_equal(row, np.concatenate(parts))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pool", [pool_fixed_size, pool_any_size])
def test_what_is_exported_pools_as_torch_does(pool: Callable[..., torch.Tensor], level: int) -> None:
    """Values and gradients, for all heights and some widths."""
    for height in range(2, 33):
        x = torch.randn(2, 2, height, (7 * height) % 31 + 2, requires_grad=True)
        ours, torchs = pool(x, level), F.adaptive_max_pool2d(x, level)
        torch.testing.assert_close(ours, torchs, rtol=0, atol=0)
        weight = torch.rand(torchs.shape)
        gradients = [torch.autograd.grad((each * weight).sum(), x)[0] for each in (ours, torchs)]
        torch.testing.assert_close(*gradients)


def test_gradients_reach_all_parameters() -> None:
    torch.manual_seed(0)
    model = SppNet(3, features=16, features2=8)
    found = model(torch.rand(4, 3, 24, 32))
    (found.presence.sum() + found.box.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_initial_weights() -> None:
    """He et al.'s standard deviation, sqrt(2 / fan in); an undecided answer with a box in the middle."""
    torch.manual_seed(0)
    model = SppNet(7, kernel=9, features=512)
    for layer in (model.convolutions[0], model.convolutions[6], model.linear[0]):
        fan_in = math.prod(layer.weight.shape[1:])
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert not layer.bias.any()
    with torch.inference_mode():
        found = model(torch.rand(2, 7, 100, 100))
    assert found.presence.sigmoid().sub(0.5).abs().max() < 0.25
    assert found.box.sub(0.5).abs().max() < 0.25


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"kernel": 4}, "model.kernel must be odd, not 4"),
        ({"kernel": 0}, "model.kernel must be a whole number of at least 1, not 0"),
        ({"kernel": 3.0}, "model.kernel must be a whole number"),
        ({"level": 6}, "model.level must be 1 to 5, not 6"),
        ({"level": 0}, "model.level must be a whole number of at least 1, not 0"),
        ({"features": 0}, "model.features must be a whole number of at least 1, not 0"),
        ({"features": "wide"}, "model.features must be a whole number"),
        ({"features2": 0}, r"model.features2 \(if not none\) must be a whole number of at least 1, not 0"),
        ({"features2": None}, "model.features2"),
        ({"features2": True}, "model.features2"),
        ({"in_channels": 0}, "model.in_channels"),
    ],
)
def test_knobs_that_cannot_be(knobs: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SppNet(**{"in_channels": 3, **knobs})


def test_images_that_are_too_small() -> None:
    model = SppNet(3, features=8)
    model.check_input_size(16)
    model.check_input_size(16, 300)
    for size in ((15,), (15, 15), (16, 15), (15, 300)):
        with pytest.raises(ConfigError, match=r"15.* pixels .* too small for sppnet: .* 16 x 16 or more"):
            model.check_input_size(*size)
    with pytest.raises(ConfigError, match="images of 15 x 16 pixels"):
        model(torch.rand(1, 3, 15, 16))


def test_identity_and_names() -> None:
    target = {"_target_": "dxc.models.sppnet.SppNet", "in_channels": 7, **PUBLISHED["sppnet_original"]}
    assert model_name(target) == "sppnet"
    assert canonical_knobs(target | {"features2": "none"}) == target
    assert canonical_knobs(target | {"features2": 2048}) == target | {"features2": 2048}
    data = {"channels": list("abcdefg"), "batch_size": 16}
    for features2, said in (("none", "f1024"), (2048, "f1024-2048")):
        config = {"model": target | {"features2": features2}, "data": data}
        assert describe(config) == f"sppnet k3 l4 {said}, 7ch b16"


def test_the_option_file_is_the_original_network() -> None:
    option = OmegaConf.to_container(OmegaConf.load(PROJECT_ROOT / "conf/model/sppnet.yaml"), resolve=False)
    knobs = {name: value for name, value in option.items() if name not in ("defaults", "_target_")}
    arguments = inspect.signature(SppNet).parameters
    assert list(knobs) == list(arguments)
    assert all(knobs[name] == arguments[name].default for name in knobs if name != "in_channels")


@pytest.mark.parametrize(
    ("level", "pyramid"),
    [(4, {"maxpool": 6}), (5, {"maxpool": 7, "Gather": 2})],
)
def test_kernels_that_nn_meter_reads(level: int, pyramid: dict, tmp_path: Path) -> None:
    """The original: 3 conv-relu, 6 maxpool, concat, linear layers, relu. 12 x 12 features do not divide by 5."""
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"BF_conv_relu": {"obey": True}}))
    torch.manual_seed(0)
    model = SppNet(3, level=level, features=24)
    path = export_onnx(model, tmp_path / "m.onnx", in_channels=3, size=100).path
    kernels = detect(read_graph(path), rules)
    ours = {"conv-relu": 3, "reshape": 3, "concat": 1, "fc": 3, "relu": 1, "Sigmoid": 1}
    assert Counter(kernel.op for kernel in kernels) == ours | pyramid
    assert sum(kernel.macs for kernel in kernels) == count_macs(model, in_channels=3, size=100)
    pools = [kernel.features for kernel in kernels if kernel.op == "maxpool"]
    # height = width, channels in and out, kernel, stride
    assert pools[:3] == [(100, 64, 64, 2, 2), (50, 128, 128, 2, 2), (25, 256, 256, 2, 2)]
    first = {4: [(12, 256, 256, 3, 3)], 5: [(12, 256, 256, 3, 1), (10, 256, 256, 2, 2)]}[level]
    assert sorted(pools[3:]) == sorted([*first, (12, 256, 256, 6, 6), (12, 256, 256, 12, 12)])
