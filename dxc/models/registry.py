"""The registry of networks: one entry says all that others must know of a network.

A new network is a module in dxc/models, an entry in NETWORKS, an option in conf/model and its axes in conf/space.
This file is free of torch, so that identities and names are computed without loading it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dxc.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Knobs = dict[str, Any]
"""The arguments of a network's class, by name."""
T = TypeVar("T")

STAGES = 4
"""Stages of a ResNet."""
MIN_SIZE = 16
"""Least height and width in pixels of an image for a network of any size. Three poolings of SPP-Net leave 2 x 2
features of it, and its pyramid needs as many."""
DEFAULT_OUTPUTS = ("scores",)
"""Outputs of a network with one answer: class scores."""


@dataclass(frozen=True)
class Calibration:
    """How calibrate.py draws networks of one architecture.

    Attributes:
        draw: draws a random member: its knobs, and `size`, the edge of its image in pixels. Knobs must be independent
            of each other, because calibration also mixes those of two members.
        weight: how often it is drawn, relative to the weights of the others.
    """

    draw: Callable[[np.random.Generator], Knobs]
    weight: float


@dataclass(frozen=True)
class Network:
    """What others must know of a network.

    Attributes:
        target: its class as module.Class, which is the _target_ of a section `model`.
        task: the option of conf/task that trains it.
        space: the option of conf/space that is searched; None for a network that conf/ does not offer.
        outputs: names of its outputs, in the order in which it returns them.
        any_size: whether the network and its exported file can take images of any size.
        meaningful: knobs -> the knobs that have an effect, in one spelling. Knobs may be missing.
        name: canonical knobs -> the name of the architecture, such as 'resnet18'.
        short_knobs: canonical knobs -> the knobs in a few letters, such as 'k3 s2 p1 w32'.
        calibration: how calibrate.py draws it; None leaves it out.
    """

    target: str
    task: str
    space: str | None
    name: Callable[[Knobs], str]
    short_knobs: Callable[[Knobs], str]
    meaningful: Callable[[Knobs], Knobs] = dict
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    any_size: bool = False
    calibration: Calibration | None = None


def network(model: Mapping[str, Any]) -> Network:
    """The entry of a configured network.

    Args:
        model: a section `model`; its _target_ names the class.

    Raises ConfigError for a class without an entry.
    """
    target = model.get("_target_")
    if (found := _find(target)) is None:
        raise ConfigError(
            f"model._target_: {target} is not registered; known are "
            f"{', '.join(each.target for each in NETWORKS.values())}. Add an entry to dxc/models/registry.py"
        )
    return found


def canonical_knobs(model: Mapping[str, Any]) -> Knobs:
    """A section `model` without the knobs that have no effect, and with one spelling for the rest.

    Two sections that describe the same network come out equal. The pool knobs of a ResNet without a pool are removed
    (the published space of 288 points has 180 networks), and blocks=2 becomes [2, 2, 2, 2]. Runs of others may name a
    class without an entry; all its knobs are kept.
    """
    found = _find(model.get("_target_"))
    return dict(model) if found is None else found.meaningful(dict(model))


def model_name(model: Mapping[str, Any]) -> str:
    """Name of a configured network: 'resnet18' for the ResNet with two basic blocks a stage, 'sppnet'."""
    return network(model).name(canonical_knobs(model))


def short_label(model: Mapping[str, Any]) -> str:
    """A configured network in a few letters, for run names: 'resnet18 k3 s2 p1 w32', 'sppnet k3 l4 f1024'."""
    return f"{model_name(model)} {network(model).short_knobs(canonical_knobs(model))}".rstrip()


def output_names(module: object) -> tuple[str, ...]:
    """Names of a module's outputs.

    A registered network has those of its entry. Any other module has those in its attribute output_names, or
    DEFAULT_OUTPUTS.
    """
    found = _find(f"{type(module).__module__}.{type(module).__qualname__}")
    return found.outputs if found else tuple(getattr(module, "output_names", DEFAULT_OUTPUTS))


def _find(target: Any) -> Network | None:
    return next((each for each in NETWORKS.values() if each.target == target), None)


def _letters(knobs: Knobs, **letters: str) -> str:
    """kernel="k", width="w" -> 'k3 w32'. Missing knobs are left out."""
    return " ".join(f"{letter}{knobs[key]}" for key, letter in letters.items() if key in knobs)


def _pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _resnet_meaningful(knobs: Knobs) -> Knobs:
    if knobs.get("pool") == "none":
        knobs.pop("pool_kernel", None)
        knobs.pop("pool_stride", None)
    if isinstance(knobs.get("blocks"), int):
        knobs["blocks"] = [knobs["blocks"]] * STAGES
    return knobs


def _resnet_name(knobs: Knobs) -> str:
    # layers with weights: two convolutions a block, the stem and the classifier
    return f"resnet{2 * sum(knobs['blocks']) + 2}" if knobs.get("blocks") else "resnet"


def _bottleneck_name(knobs: Knobs) -> str:
    # three convolutions a bottleneck, the stem and the classifier
    return f"resnet{3 * sum(knobs['blocks']) + 2}" if knobs.get("blocks") else "resnet"


def _resnet_short(knobs: Knobs) -> str:
    short = _letters(knobs, kernel="k", stride="s", padding="p", width="w")
    pool = f"pool{knobs['pool_kernel']}/{knobs['pool_stride']}" if "pool_kernel" in knobs else ""
    return f"{short} {pool}".strip()


def _draw_resnet(rng: np.random.Generator) -> Knobs:
    # Four of five lie in the published space (doi 10.1145/3624062.3624258, table 2), the others around it.
    published = rng.random() < 0.8
    pool = _pick(rng, ["none", "max"])
    return {
        "in_channels": _pick(rng, [5, 7] if published else [3, 4, 5, 7]),
        "size": 100 if published else _pick(rng, range(48, 129, 4)),
        "kernel": _pick(rng, [3, 5] if published else [3, 5, 7]),
        "stride": _pick(rng, [1, 2]),
        "padding": _pick(rng, [1, 2, 3]),
        "pool": pool,
        "pool_kernel": _pick(rng, [2, 3]),
        "pool_stride": _pick(rng, [1, 2]),
        "width": _pick(rng, [32, 48, 64] if published else range(16, 81, 8)),
        "blocks": [2, 2, 2, 2] if published else [_pick(rng, [1, 2, 3]) for _ in range(STAGES)],
    }


def _sppnet_meaningful(knobs: Knobs) -> Knobs:
    if knobs.get("features2") == "none":
        knobs.pop("features2")
    return knobs


def _sppnet_short(knobs: Knobs) -> str:
    features = "-".join(str(knobs[key]) for key in ("features", "features2") if key in knobs)
    return f"{_letters(knobs, kernel='k', level='l')} {features and f'f{features}'}".strip()


def _draw_sppnet(rng: np.random.Generator) -> Knobs:
    # doi 10.1145/3624062.3624260; 100 pixels leave 12 x 12 features: 1 to 4 bins divide them, 5 do not
    knobs = {
        "in_channels": _pick(rng, [3, 4, 5, 7]),
        "size": 100 if rng.random() < 0.7 else _pick(rng, [48, 64, 80, 96, 128]),
        "kernel": _pick(rng, [1, 3, 5, 7, 9]),
        "level": _pick(rng, [1, 2, 3, 4, 5]),
    }
    features = [_pick(rng, [128, 256, 512, 1024, 2048, 4096, 8192]) for _ in range(_pick(rng, [1, 2]))]
    return {**knobs, "features": features[0], "features2": features[1] if features[1:] else "none"}


def _draw_bottleneck(rng: np.random.Generator) -> Knobs:
    return {
        **_draw_resnet(rng),
        "width": _pick(rng, [16, 32, 64]),
        "blocks": [_pick(rng, [1, 2, 3]) for _ in range(STAGES)],
    }


def _draw_resnet8(rng: np.random.Generator) -> Knobs:
    return {
        "in_channels": _pick(rng, [3, 5, 7]),
        "size": _pick(rng, [32, 64, 100]),
        "width": _pick(rng, range(8, 65, 8)),
        "num_classes": _pick(rng, [2, 10]),
    }


def _draw_mobilenet(rng: np.random.Generator) -> Knobs:
    return {
        "in_channels": _pick(rng, [3, 5, 7]),
        "size": _pick(rng, [32, 64, 96, 100, 128]),
        "stride": _pick(rng, [1, 2]),
        "width": _pick(rng, [0.25, 0.5, 0.75, 1.0]),
        "num_classes": _pick(rng, [2, 10]),
    }


NETWORKS: dict[str, Network] = {
    "resnet": Network(
        target="dxc.models.resnet.ResNet",
        task="classification",
        space="resnet18",
        name=_resnet_name,
        short_knobs=_resnet_short,
        meaningful=_resnet_meaningful,
        calibration=Calibration(_draw_resnet, weight=7),
    ),
    "bottleneck_resnet": Network(
        target="dxc.models.resnet.BottleneckResNet",
        task="classification",
        space="resnet50",
        name=_bottleneck_name,
        short_knobs=_resnet_short,
        meaningful=_resnet_meaningful,
        calibration=Calibration(_draw_bottleneck, weight=1),
    ),
    "resnet8": Network(
        target="dxc.models.resnet.TinyResNet",
        task="classification",
        space="resnet8",
        name=lambda knobs: "resnet8",
        short_knobs=lambda knobs: _letters(knobs, width="w"),
        calibration=Calibration(_draw_resnet8, weight=1),
    ),
    "sppnet": Network(
        target="dxc.models.sppnet.SppNet",
        task="detection",
        space="sppnet",
        name=lambda knobs: "sppnet",
        short_knobs=_sppnet_short,
        meaningful=_sppnet_meaningful,
        outputs=("presence", "box"),
        any_size=True,
        calibration=Calibration(_draw_sppnet, weight=7),
    ),
    "mobilenet": Network(
        target="dxc.models.mobilenet.MobileNetV1",
        task="classification",
        space="mobilenet_v1",
        name=lambda knobs: "mobilenet_v1",
        short_knobs=lambda knobs: _letters(knobs, stride="s", width="w"),
        calibration=Calibration(_draw_mobilenet, weight=3),
    ),
}
"""By architecture; the name is also the family of calibration networks."""
