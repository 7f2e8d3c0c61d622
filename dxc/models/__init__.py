"""nn.Modules and nothing else. This file is free of torch: identities are computed without loading it."""

from __future__ import annotations

from typing import Any

STAGES = 4
DEFAULT_OUTPUTS = ("scores",)  # of a network that does not name its own


def canonical_knobs(model: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration with the knobs removed that mean nothing in it, and one spelling for the rest.

    Two configurations that describe the same network come out equal: without a pool the pool's knobs go (the
    published space of 288 points has 180 networks), so does a second linear layer that is not there, and
    blocks=2 is [2, 2, 2, 2].
    """
    knobs = dict(model)
    if knobs.get("pool") == "none":
        knobs.pop("pool_kernel", None)
        knobs.pop("pool_stride", None)
    if knobs.get("features2") == "none":
        knobs.pop("features2")
    if isinstance(knobs.get("blocks"), int):
        knobs["blocks"] = [knobs["blocks"]] * STAGES
    return knobs


def model_name(model: dict[str, Any]) -> str:
    """Name of a configured network: 'resnet18' for the ResNet with two basic blocks a stage, 'sppnet'."""
    name = model["_target_"].rsplit(".", 1)[-1].lower()
    blocks = canonical_knobs(model).get("blocks")
    return f"{name}{2 * sum(blocks) + 2}" if blocks else name  # two convolutions a block, stem and classifier


def takes_any_size(model: dict[str, Any]) -> bool:
    """Whether a configured network takes images of any size, and its exported file can too."""
    return model_name(model) == "sppnet"
