"""Weights of a trained network from a file (base=FILE): a state_dict, or the initializers of an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dxc.errors import ConfigError, first_line

if TYPE_CHECKING:
    import onnx

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
IMAGE_SIZE = 100
"""Edge in pixels of the image that tells in which order layers compute."""
KEYS = ("state_dict", "model_state_dict", "weights", "model")
"""Keys under which checkpoints hold a state_dict."""
PREFIXES = ("module.", "model.")
"""What wrappers put before the names of a network's tensors."""
LISTED = 8  # tensors that a message names


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a file. Every tensor must be there, with its shape.

    A file is data: a checkpoint is read with weights_only, and no path in an ONNX file is followed.

    In an exported file the batch norms of a network are merged into its convolutions. It gives the same answers then,
    with batch norms that change nothing. To train on, a checkpoint is better: it knows the scales that the batch norms
    had learnt.

    Args:
        model: the network; it is changed.
        path: a checkpoint of torch, or an .onnx.

    Raises:
        ConfigError: the file cannot be read, or holds another network. The message lists the difference.
    """
    wanted = model.state_dict()
    if path.suffix == ".onnx":
        graph = _graph_of(path)
        found = _without_prefix(_initializers(graph), wanted)
        if any(isinstance(layer, BATCH_NORMS) for layer in model.modules()) and not _has_batch_norms(graph):
            found = _unmerged(model, graph, path)
    else:
        found = _without_prefix(_of_checkpoint(path), wanted)
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # no result depends on them
    missing = [name for name in wanted if name not in found and name not in counters]
    unknown = [name for name in found if name not in wanted]
    unlike = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if missing or unknown or unlike:
        parts = (("missing", missing), ("unknown", unknown), ("of another shape", unlike))
        told = "; ".join(f"{what}: {_listed(names)}" for what, names in parts if names)
        raise _another(model, path, told)
    model.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})


def _of_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"base={path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises errors of many classes for a file that is none
        reason = first_line(error)
        raise ConfigError(
            f"base={path} is no checkpoint that can be read without running code of it: {reason:.200}. Save the "
            "weights alone: torch.save(model.state_dict(), FILE)"
        ) from error
    for key in KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(name, str) and isinstance(each, Tensor) for name, each in content.items())
    ):
        raise ConfigError(
            f"base={path} is no state_dict: it must hold tensors by name, as "
            "torch.save(model.state_dict(), FILE) writes"
        )
    return dict(content)


def _another(model: nn.Module, path: Path, told: str) -> ConfigError:
    return ConfigError(
        f"base={path} holds the weights of another network than {type(model).__name__} with these knobs ({told})"
    )


def _graph_of(path: Path) -> onnx.GraphProto:
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
        if any(each.external_data for each in graph.initializer):
            raise ValueError("its weights are in another file")
        _initializers(graph)
    except OSError as error:
        raise ConfigError(f"base={path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's and numpy's
        reason = first_line(error)
        raise ConfigError(f"base={path} cannot be read as an ONNX file: {reason:.200}") from error
    if any("Quantize" in node.op_type or "Integer" in node.op_type for node in graph.node):
        raise ConfigError(
            f"base={path} computes in 8 bits: take the file in float32, or the checkpoint, that it was made of"
        )
    return graph


def _initializers(graph: onnx.GraphProto) -> dict[str, Tensor]:
    from onnx import numpy_helper

    return {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}


def _has_batch_norms(graph: onnx.GraphProto) -> bool:
    return any(node.op_type == "BatchNormalization" for node in graph.node)


def _unmerged(model: nn.Module, graph: onnx.GraphProto, path: Path) -> dict[str, Tensor]:
    """A state_dict from a file whose batch norms are merged into its convolutions.

    Layers and operators are matched in the order in which they compute, because merged weights have names of their own.
    A batch norm that follows a convolution gets mean 0, variance 1 - eps, weight 1, and the convolution's bias.

    Args:
        model: the network that the weights are for.
        graph: without batch norms.
        path: of the file.

    Raises:
        ConfigError: the file holds another network.
    """
    layers, norm_after = _in_order(model)
    operators = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    if len(operators) != len(layers):
        told = f"{len(operators)} convolutions and linear layers instead of {len(layers)}"
        raise _another(model, path, told)
    # the exporter shares equal tensors
    shared = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    tensors = _initializers(graph)
    state = model.state_dict()
    names = {layer: name for name, layer in model.named_modules()}
    for layer, node in zip(layers, operators, strict=True):
        weight, bias, *_ = [*(tensors.get(shared.get(name, name)) for name in node.input[1:]), None, None]
        if bias is None:
            bias = torch.zeros(layer.weight.shape[0])
        if weight is not None and node.op_type == "Gemm" and not _is_transposed(node):
            weight = weight.T
        if weight is None or weight.shape != layer.weight.shape or bias.shape != layer.weight.shape[:1]:
            shape = None if weight is None else tuple(weight.shape)
            told = f"of another shape: {names[layer]}.weight {shape} instead of {tuple(layer.weight.shape)}"
            raise _another(model, path, told)
        state[f"{names[layer]}.weight"] = weight
        if (norm := norm_after.pop(layer, None)) is not None:
            own = names[norm]
            state[f"{own}.running_mean"] = torch.zeros_like(bias)
            state[f"{own}.running_var"] = torch.full_like(bias, 1 - norm.eps)
            state[f"{own}.weight"] = torch.ones_like(bias)
            state[f"{own}.bias"], bias = bias, torch.zeros_like(bias)
        if layer.bias is not None:
            state[f"{names[layer]}.bias"] = bias
    return state


def _is_transposed(node: onnx.NodeProto) -> bool:
    """Whether the weight of a Gemm is (outputs, inputs), as torch's."""
    return any(each.name == "transB" and each.i == 1 for each in node.attribute)


def _in_order(model: nn.Module) -> tuple[list[Any], dict[nn.Module, Any]]:
    """Convolutions and linear layers in the order in which they compute, and the batch norm that follows each."""
    layers: list[Any] = []
    norm_after: dict[nn.Module, Any] = {}
    made_by: dict[int, tuple[nn.Module, Tensor]] = {}  # with the tensor, so that no other one takes its id

    def seen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layers.append(layer)
            made_by[id(output)] = layer, output
        elif id(inputs[0]) in made_by:
            norm_after[made_by[id(inputs[0])][0]] = layer

    kinds = (nn.Conv2d, nn.Linear, *BATCH_NORMS)
    hooks = [layer.register_forward_hook(seen) for layer in model.modules() if isinstance(layer, kinds)]
    was_training = model.training
    channels = next(layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, channels, IMAGE_SIZE, IMAGE_SIZE))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return layers, norm_after


def _without_prefix(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without what a wrapper put before all names, where that makes them known."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found) and not any(name in wanted for name in found):
            return _without_prefix({name.removeprefix(prefix): each for name, each in found.items()}, wanted)
    return dict(found)


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{name:.60}" for name in names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
