"""Removes whole channels of convolutions, those with the smallest weights.

channel_fraction_pruning() sets them to zero: the network keeps its shape, and one sees what it loses. remove_channel()
takes out what is zero: the network computes the same, with fewer parameters and less work.

    >>> from dxc.models.mobilenet import MobileNetV1
    >>> masked = channel_fraction_pruning(MobileNetV1(3, 10), 0.5)
    >>> smaller = remove_channel(masked)
    >>> masked.fc.in_features, smaller.fc.in_features
    (1024, 512)

Some channels can go only together: those that a residual addition joins, and a depthwise convolution's with its
input's. Torch-Pruning (Fang et al. 2023, doi 10.1109/CVPR52729.2023.01544) finds such groups in a trace of the network.
Which channels go is decided here: Torch-Pruning's own importance also counts the weights that read a channel.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from dxc.errors import CompressionError, ConfigError, first_line, is_number, require_whole
from dxc.text import counted

IMAGE_SIZE = 64
"""Edge in pixels of the image that a network is traced with."""
MAX_RELATIVE_ERROR = 1e-4
"""Largest difference that removing channels may make, relative to the largest value of an output."""
LEAST_SCALE = 0.01
"""Least value that it is relative to."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def channel_fraction_pruning(
    model: nn.Module,
    fraction: float,
    *,
    align: int = 1,
    image_size: int = IMAGE_SIZE,
    of: nn.Module | None = None,
) -> nn.Module:
    """A copy of a network in which a fraction of the output channels of each convolution is zero.

    Those are the channels whose weights have the smallest L1 norm. Channels that can go only together are judged by the
    sum of the norms of all convolutions that make them. A depthwise convolution follows its input. Weight and bias of
    the batch norms that follow are zeroed too, because a batch norm would turn a zero into a constant. Channels of the
    image and outputs of the network stay.

    Args:
        model: the network; it is not changed.
        fraction: 0 <= fraction < 1. Of n channels, n - round(fraction * n) remain.
        align: the remaining channels are rounded up to a multiple of this, but to no more than there were. Multiples of
            8 or 16 run faster on most processors.
        image_size: edge in pixels of an image that the network takes.
        of: the network before any pruning, whose channels the fraction is of, where this one is pruned in steps; None:
            the fraction is of the channels that there are.

    Raises:
        ConfigError: an argument cannot work.
        CompressionError: a layer would be left without channels, or the groups of channels cannot be found.
    """
    check_fraction("fraction", fraction)
    require_whole("align", align, at_least=1)
    masked = _copied(model)
    groups = _groups(_graph(masked, image_size), masked)
    whole = masked if of is None else of
    at_first = {name: layer.out_channels for name, layer in whole.named_modules() if _is_plain(layer)}
    left = {group.name: channels_left(at_first[group.name], fraction, align) for group in groups}
    if emptied := [
        f"{group.name} ({counted(at_first[group.name], 'channel')})"
        for group in groups
        if left[group.name] == 0
    ]:
        raise CompressionError(
            f"fraction={fraction:g} leaves no channel of {', '.join(emptied)}; take a smaller fraction or a wider "
            "network"
        )
    with torch.no_grad():
        for group in groups:
            going = max(0, group.channels - left[group.name])
            group.clear(group.norms().argsort(stable=True)[:going])
    return _as_before(masked, model)


def remove_channel(model: nn.Module, *, image_size: int = IMAGE_SIZE) -> nn.Module:
    """A copy of a network without the channels that are zero. It gives the same answers.

    Batch norms lose the same channels; what they learnt about the others is kept.

    Args:
        model: the network, from channel_fraction_pruning(); it is not changed.
        image_size: edge in pixels of an image that the network takes.

    Raises:
        CompressionError: a layer has no other channels, the groups of channels cannot be found, or the answers differ.
    """
    smaller = _copied(model)
    graph = _graph(smaller, image_size)
    for group in _groups(graph, smaller):
        zero = group.zero()
        if zero.all():
            raise CompressionError(f"every channel of {group.name} is zero: nothing would be left of it")
        if zero.any():
            with _explained(model):
                graph.get_pruning_group(
                    group.convolution, tp.prune_conv_out_channels, zero.nonzero().flatten().tolist()
                ).prune()
    _check_same(model, smaller, image_size)
    return _as_before(smaller, model)


def pruned(
    model: nn.Module,
    fraction: float,
    *,
    align: int = 1,
    image_size: int = IMAGE_SIZE,
    of: nn.Module | None = None,
) -> nn.Module:
    """A smaller copy of a network: channel_fraction_pruning(), then remove_channel(), which say what is raised."""
    masked = channel_fraction_pruning(model, fraction, align=align, image_size=image_size, of=of)
    return remove_channel(masked, image_size=image_size)


def channels_left(channels: int, fraction: float, align: int = 1) -> int:
    """How many channels of a convolution remain.

    >>> channels_left(64, 0.9), channels_left(64, 0.9, align=8), channels_left(4, 0.5, align=8)
    (6, 8, 4)
    """
    left = channels - round(fraction * channels)
    return min(-(-left // align) * align, channels)


def check_fraction(name: str, fraction: object) -> None:
    """Raise ConfigError unless a fraction lies in [0, 1).

    Args:
        name: of the key or argument.
        fraction: its value.
    """
    if not is_number(fraction) or not 0 <= fraction < 1:  # type: ignore[operator]
        raise ConfigError(
            f"{name} is the share of channels that go: it must be at least 0 and less than 1, not {fraction!r}"
        )


def shaped_like(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network of the same kind with the shapes of a pruned one, and with its weights.

    So a pruned network is read from a state_dict alone.

    Args:
        model: the network before pruning; it is changed.
        weights: state_dict of the pruned one.

    Raises:
        CompressionError: the weights are those of another network.
    """
    try:
        for name, layer in model.named_modules():
            shape: tuple[int, ...] = getattr(weights.get(f"{name}.weight"), "shape", ())
            if isinstance(layer, nn.Conv2d) and len(shape) == 4:
                depthwise = layer.groups > 1
                layer.out_channels = shape[0]
                layer.in_channels, layer.groups = (shape[0], shape[0]) if depthwise else (shape[1], 1)
            elif isinstance(layer, nn.Linear) and len(shape) == 2:
                layer.out_features, layer.in_features = shape
            elif isinstance(layer, BATCH_NORMS) and len(shape) == 1:
                layer.num_features = shape[0]
            else:
                continue
            for key in layer.state_dict():
                own = getattr(layer, key)
                new = own.new_empty(weights[f"{name}.{key}"].shape)
                setattr(layer, key, nn.Parameter(new) if isinstance(own, nn.Parameter) else new)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CompressionError(
            f"these are not the weights of a pruned {type(model).__name__}: {reason}"
        ) from error
    return model


@dataclass(frozen=True)
class _Part:
    """The output channels of one layer that belong to a group: channels[i] of the group is own[i] of the layer."""

    layer: Any
    channels: Tensor
    own: Tensor

    @property
    def makes_channels(self) -> bool:
        """Whether the layer makes each of its channels of all those before, as a plain convolution does."""
        return _is_plain(self.layer)

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias, those that there are."""
        return [each for each in (self.layer.weight, self.layer.bias) if each is not None]


@dataclass(frozen=True)
class _Group:
    """Channels that can go only one by one, each from all the layers of the group."""

    name: str
    convolution: nn.Conv2d
    """One that makes them, and its name."""
    parts: Sequence[_Part]

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.convolution.out_channels

    def norms(self) -> Tensor:
        """L1 norm of the weights that make each channel, (channels,)."""
        total = torch.zeros(self.channels, dtype=torch.float64)
        for part in self.parts:
            if part.makes_channels:
                norms = part.layer.weight.detach().double().abs().flatten(1).sum(1).cpu()
                total.index_add_(0, part.channels, norms[part.own])
        return total

    def clear(self, channels: Tensor) -> None:
        """Zero these channels in all layers."""
        for part in self.parts:
            own = part.own[torch.isin(part.channels, channels)]
            for parameter in part.parameters:
                parameter[own] = 0

    def zero(self) -> Tensor:
        """Whether each channel is zero in all layers, bool (channels,)."""
        zero = torch.ones(self.channels, dtype=torch.bool)
        for part in self.parts:
            for parameter in part.parameters:
                used = parameter.detach().flatten(1).any(1) if parameter.ndim > 1 else parameter.detach() != 0
                zero[part.channels[used.cpu()[part.own]]] = False
        return zero


class _FeaturePruner(tp.BasePruningFunc):
    """Tells Torch-Pruning which features a layer without weights makes of each channel, where the layer says so.

    Such a layer has a method channel_of_features(channels): the channel that each of its features comes from.
    Torch-Pruning guesses that all features of a channel lie side by side.
    """

    TARGET_MODULES = nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.channels: dict[nn.Module, int] = {}

    def count(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Before a layer's forward: learn how many channels it has."""
        self.channels[layer] = inputs[0].shape[1]

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        """The layer has no weights: it has fewer channels from now on."""
        self.channels[layer] -= len(idxs)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        return self.channels[layer]

    get_in_channels = get_out_channels

    def connect(self, graph: tp.DependencyGraph) -> None:
        """Tell a graph how features and channels of its layers belong together."""
        for layer in self.channels:
            node = graph.module2node[layer]
            for reader in node.outputs:
                for dependency in node.dependencies:
                    if dependency.target is reader:
                        dependency.index_mapping[0] = partial(self._features, layer)
                for dependency in reader.dependencies:
                    if dependency.target is node:
                        dependency.index_mapping[0] = partial(self._channels, layer)

    # Torch-Pruning's indices are pairs: (idx, the position in a layer; root_idx, the channel that it belongs to)

    def _features(self, layer: Any, channels: Sequence[Any]) -> list[Any]:
        """The features of some channels."""
        features: dict[int, list[int]] = {}
        for feature, channel in enumerate(layer.channel_of_features(self.channels[layer])):
            features.setdefault(channel, []).append(feature)
        return [each._replace(idx=feature) for each in channels for feature in features[each.idx]]

    def _channels(self, layer: Any, features: Sequence[Any]) -> list[Any]:
        """The channels of some features, each once."""
        channel_of = layer.channel_of_features(self.channels[layer])
        return list(dict.fromkeys(each._replace(idx=channel_of[each.idx]) for each in features))


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == 1


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels


def _graph(model: nn.Module, image_size: int) -> tp.DependencyGraph:
    """Trace a network. Through the graph its layers can be changed."""
    if others := [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.conv._ConvNd) and not (_is_plain(layer) or _is_depthwise(layer))
    ]:
        raise CompressionError(
            f"{type(model).__name__} cannot be pruned: {', '.join(others)}: only 2D convolutions without groups and "
            "depthwise ones can"
        )
    pruner = _FeaturePruner()
    with_features = [layer for layer in model.modules() if hasattr(layer, "channel_of_features")]
    hooks = [layer.register_forward_pre_hook(pruner.count) for layer in with_features]
    try:
        with _explained(model), torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(
                model,
                _images(model, 1, image_size),
                customized_pruners={type(layer): pruner for layer in with_features},
                verbose=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    pruner.connect(graph)
    return graph


def _groups(graph: tp.DependencyGraph, model: nn.Module) -> list[_Group]:
    """The groups of all plain convolutions. Left out are those with an output of the network, whose size stays."""
    groups = []
    seen: set[nn.Module] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or not _is_plain(layer) or layer in seen:
            continue
        with _explained(model):
            found = graph.get_pruning_group(
                layer, tp.prune_conv_out_channels, list(range(layer.out_channels))
            ).items
        parts = [
            _Part(each.dep.target.module, torch.tensor(each.root_idxs), torch.tensor(each.idxs))
            for each in found
            if isinstance(each.dep.target.module, (nn.Conv2d, *BATCH_NORMS))
            and graph.is_out_channel_pruning_fn(each.dep.handler)
        ]
        seen |= {part.layer for part in parts}
        if not any(each.dep.target.type == tp.ops.OPTYPE.OUTPUT for each in found):
            groups.append(_Group(name, layer, parts))
    return groups


def _copied(model: nn.Module) -> nn.Module:
    """A copy that can be traced: in eval mode, with gradients for all weights."""
    return copy.deepcopy(model).eval().requires_grad_(True)


def _as_before(changed: nn.Module, model: nn.Module) -> nn.Module:
    """The changed copy of a network, in the network's mode and with its frozen weights frozen."""
    for (_, new), (_, old) in zip(changed.named_parameters(), model.named_parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return changed.train(model.training)


def _images(model: nn.Module, count: int, size: int) -> Tensor:
    """Random images that a network takes, (count, channels, size, size); always the same."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        raise CompressionError(f"{type(model).__name__} has no 2D convolutions: there is nothing to prune")
    images = torch.rand(count, first.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    return images.to(first.weight)


def _check_same(model: nn.Module, smaller: nn.Module, image_size: int) -> None:
    """Raise CompressionError unless two networks give the same answers."""
    images = _images(model, 2, image_size)
    was_training = model.training
    try:
        with torch.inference_mode(), _explained(model):
            answers = [each.eval()(images) for each in (model, smaller)]
    finally:
        model.train(was_training)
    before, after = [each if isinstance(each, tuple) else (each,) for each in answers]
    for old, new in zip(before, after, strict=True):
        error = ((old - new).abs().max() / old.abs().max().clamp(min=LEAST_SCALE)).item()
        if not error <= MAX_RELATIVE_ERROR:
            raise CompressionError(
                f"{type(model).__name__} gives other answers without the channels that are zero (relative error "
                f"{error:.1e}): its groups of channels cannot be traced"
            )


@contextlib.contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    """What Torch-Pruning or the network raises becomes a CompressionError."""
    try:
        yield
    except CompressionError:
        raise
    except Exception as error:  # both may raise anything
        reason = first_line(error)
        raise CompressionError(
            f"{type(model).__name__} cannot be pruned: its groups of channels cannot be traced: {reason}"
        ) from error
