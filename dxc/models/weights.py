"""Weights of a trained network from a file (base=FILE): a state_dict, or the initializers of an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dxc.errors import ConfigError

KEYS = ("state_dict", "model_state_dict", "weights", "model")
"""Keys under which checkpoints hold a state_dict."""
PREFIXES = ("module.", "model.")
"""What wrappers put before the names of a network's tensors."""
LISTED = 8  # tensors that a message names


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a file. Every tensor must be there, with its shape.

    A file is data: a checkpoint is read with weights_only, and no path in an ONNX file is followed.

    Args:
        model: the network; it is changed.
        path: a checkpoint of torch, or an .onnx.

    Raises:
        ConfigError: the file cannot be read, or holds another network. The message lists the difference.
    """
    found = _of_onnx(path) if path.suffix == ".onnx" else _of_checkpoint(path)
    wanted = model.state_dict()
    found = _without_prefix(found, wanted)
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
        folded = (
            ". Exported files have no batch norms any more, because they are merged into the convolutions: take the "
            "checkpoint of the fold instead (checkpoints/*.pt among the artifacts of its run)"
            if path.suffix == ".onnx" and all(name not in found for name in wanted if "running_mean" in name)
            else ""
        )
        raise ConfigError(
            f"base={path} holds the weights of another network than {type(model).__name__} with these knobs "
            f"({told}){folded}"
        )
    model.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})


def _of_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"base={path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises errors of many classes for a file that is none
        reason = (str(error).splitlines() or [type(error).__name__])[0]
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


def _of_onnx(path: Path) -> dict[str, Tensor]:
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(path, load_external_data=False).graph
        if any(each.external_data for each in graph.initializer):
            raise ValueError("its weights are in another file")
        return {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    except OSError as error:
        raise ConfigError(f"base={path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's and numpy's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"base={path} cannot be read as an ONNX file: {reason:.200}") from error


def _without_prefix(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without what a wrapper put before all names, where that makes them known."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found) and not any(name in wanted for name in found):
            return _without_prefix({name.removeprefix(prefix): each for name, each in found.items()}, wanted)
    return dict(found)


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{name:.60}" for name in names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
