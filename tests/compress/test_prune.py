"""Pruning: which channels go, what is left, and that removing what is zero changes no answer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dxc.compress.prune import channel_fraction_pruning, channels_left, remove_channel, shaped_like
from dxc.deploy.export import count_params
from dxc.errors import CompressionError, ConfigError
from dxc.models.mobilenet import MobileNetV1
from dxc.models.resnet import ResNet
from dxc.models.sppnet import SppNet

FRACTIONS = (0.05, 0.25, 0.5, 0.75, 0.9)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v1": lambda: MobileNetV1(3, 10, width=0.5),
    "resnet18": lambda: ResNet(7, width=16, pool="max"),
    "resnet of single blocks": lambda: ResNet(4, width=16, blocks=1),
    "sppnet": lambda: SppNet(5, features=64),
    "sppnet of level 5": lambda: SppNet(3, level=5, kernel=5, features=32, features2=16),
}


def trained(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network in double precision, with weights and batch norms as different as after training."""
    torch.manual_seed(seed)
    model = make().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    return model


def answers(model: nn.Module, size: int = 100) -> list[Tensor]:
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    images = torch.rand(2, first.in_channels, size, size, generator=torch.Generator().manual_seed(1)).double()
    with torch.inference_mode():
        answer = model.eval()(images)
    return list(answer) if isinstance(answer, tuple) else [answer]


@pytest.mark.parametrize(
    ("fraction", "params"),
    [(0.05, 2_894_870), (0.25, 1_816_043), (0.5, 818_251), (0.75, 212_907), (0.9, 37_875)],
)
def test_published_counts(fraction: float, params: int) -> None:
    """rishabhpar/deepcompression, for MobileNet-v1 of width 1 and ten classes. Batch norms are folded there: each
    leaves one parameter a channel. All five counts are one more than weights and biases give."""
    model = remove_channel(channel_fraction_pruning(MobileNetV1(3, 10), fraction))
    norms = sum(layer.num_features for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    assert count_params(model) - norms == params - 1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_equals_removed(name: str, fraction: float, seed: int) -> None:
    model = trained(NETWORKS[name], seed)
    masked = channel_fraction_pruning(model, fraction)
    smaller = remove_channel(masked)
    assert count_params(smaller) < count_params(model)
    for before, after in zip(answers(masked), answers(smaller), strict=True):
        assert (before - after).abs().max() <= 1e-6 * before.abs().max()


def test_the_lowest_norms_go_and_the_rest_stays_as_it_was() -> None:
    model = trained(NETWORKS["mobilenet_v1"], 0)
    smaller = remove_channel(channel_fraction_pruning(model, 0.25))
    norms = model.features[0].weight.abs().sum((1, 2, 3))
    stay = norms.argsort()[4:].sort().values  # a quarter of 16 goes
    assert torch.equal(smaller.features[0].weight, model.features[0].weight[stay])
    for name in ("weight", "bias", "running_mean", "running_var"):
        for norm in (1, 4):  # of the stem and of the depthwise convolution after it
            kept, was = getattr(smaller.features[norm], name), getattr(model.features[norm], name)
            assert torch.equal(kept, was[stay]), f"{name} of batch norm {norm}"
    depthwise = smaller.features[3]
    assert torch.equal(depthwise.weight, model.features[3].weight[stay]) and depthwise.groups == 12
    next_norms = model.features[6].weight.abs().sum((1, 2, 3))  # all inputs count, also those that go
    next_stay = next_norms.argsort()[8:].sort().values
    assert torch.equal(smaller.features[6].weight, model.features[6].weight[next_stay][:, stay])


def test_channels_that_an_addition_joins_are_judged_together() -> None:
    """The stem and both blocks of a ResNet's first stage add to the same channels: the sum of their norms counts."""
    model = trained(lambda: ResNet(3, width=8), 0)
    makers = [model.conv1, model.layer1[0].conv2, model.layer1[1].conv2]
    together = sum(conv.weight.abs().sum((1, 2, 3)) for conv in makers)
    going = set(together.argsort()[:4].tolist())
    masked = channel_fraction_pruning(model, 0.5)
    for conv in (masked.conv1, masked.layer1[0].conv2, masked.layer1[1].conv2):
        assert {n for n in range(8) if not conv.weight[n].any()} == going
    alone = model.layer1[0].conv1.weight.abs().sum((1, 2, 3)).argsort()[:4]
    assert {n for n in range(8) if not masked.layer1[0].conv1.weight[n].any()} == set(alone.tolist())


@pytest.mark.parametrize("align", [1, 4])
def test_in_steps_as_many_channels_go_as_at_once(align: int) -> None:
    whole = trained(lambda: ResNet(3, width=8), 0)
    model = whole
    for fraction in (0.3, 0.45, 0.6):
        masked = channel_fraction_pruning(model, fraction, align=align, of=whole)
        model = remove_channel(masked)
        at_once = remove_channel(channel_fraction_pruning(whole, fraction, align=align))
        assert [each.shape for each in model.parameters()] == [each.shape for each in at_once.parameters()]
    # what is gone does not come back
    assert len(channel_fraction_pruning(model, 0.3, of=whole).conv1.weight) == model.conv1.out_channels


def test_image_channels_and_outputs_stay() -> None:
    smaller = remove_channel(channel_fraction_pruning(trained(NETWORKS["sppnet"], 0), 0.9))
    assert (smaller.convolutions[0].in_channels, smaller.convolutions[0].out_channels) == (5, 6)
    assert (smaller.linear[0].in_features, smaller.linear[0].out_features) == (26 * 21, 64)
    assert smaller.presence.out_features == 1 and smaller.box.out_features == 4


@pytest.mark.parametrize(
    ("channels", "fraction", "align", "left"),
    [(64, 0.05, 1, 61), (64, 0.9, 1, 6), (64, 0.9, 8, 8), (100, 0.5, 8, 56), (4, 0.5, 8, 4), (32, 0, 8, 32)],
)
def test_how_many_stay(channels: int, fraction: float, align: int, left: int) -> None:
    assert channels_left(channels, fraction, align) == left


def test_aligned_channels() -> None:
    smaller = remove_channel(channel_fraction_pruning(MobileNetV1(3, 10), 0.05, align=8))
    widths = {
        layer.out_channels
        for layer in smaller.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1
    }
    assert widths == {32, 64, 128, 248, 488, 976}


def test_the_network_given_stays_as_it_is() -> None:
    model = trained(NETWORKS["resnet18"], 0).train()
    model.fc.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    smaller = remove_channel(channel_fraction_pruning(model, 0.5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and smaller.training
    frozen = [name for name, parameter in smaller.named_parameters() if not parameter.requires_grad]
    assert frozen == ["fc.weight", "fc.bias"]


def test_nothing_is_removed_where_nothing_is_zero() -> None:
    model = trained(NETWORKS["resnet18"], 0)
    assert remove_channel(model).state_dict().keys() == model.state_dict().keys()
    assert count_params(remove_channel(model)) == count_params(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_is_read_from_its_weights_alone(name: str) -> None:
    model = trained(NETWORKS[name], 0)
    smaller = remove_channel(channel_fraction_pruning(model, 0.5))
    again = shaped_like(NETWORKS[name]().double(), smaller.state_dict())
    assert all(torch.equal(*pair) for pair in zip(answers(smaller), answers(again), strict=True))
    assert str(again) == str(smaller)  # shapes that layers say of themselves, too


def test_weights_of_another_network() -> None:
    with pytest.raises(CompressionError, match="not the weights of a pruned ResNet"):
        shaped_like(ResNet(3, width=8), MobileNetV1(3, 10, width=0.25).state_dict())


@pytest.mark.parametrize("fraction", [1, 1.5, -0.1, float("nan"), "half", True, None])
def test_fractions_that_cannot_work(fraction: object) -> None:
    with pytest.raises(
        ConfigError, match="fraction is the share of channels that go.*at least 0 and less than 1"
    ):
        channel_fraction_pruning(ResNet(3, width=8), fraction)  # type: ignore[arg-type]


def test_layers_that_would_be_left_without_channels_are_named() -> None:
    model = MobileNetV1(3, 10, width=0.125)
    with pytest.raises(
        CompressionError, match=r"fraction=0.9 leaves no channel of features.0 \(4 channels\); take"
    ):
        channel_fraction_pruning(model, 0.9)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.mixed = nn.Conv2d(8, 8, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(self.first(x)).mean((2, 3))


class Untraceable(nn.Module):
    """Its channels change places, in a way that no trace shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).flip(1)).mean((2, 3))


def test_networks_that_cannot_be_traced() -> None:
    with pytest.raises(
        CompressionError, match="Grouped cannot be pruned: mixed: only 2D convolutions without groups"
    ):
        channel_fraction_pruning(Grouped(), 0.5)
    torch.manual_seed(0)
    with pytest.raises(CompressionError, match="Untraceable gives other answers .* cannot be traced"):
        remove_channel(channel_fraction_pruning(Untraceable(), 0.5))
    with pytest.raises(CompressionError, match="Linear has no 2D convolutions"):
        channel_fraction_pruning(nn.Linear(3, 2), 0.5)
