"""Configurations: resolvers, safe instantiation, and the identity of what they describe.

Free of torch and mlflow, so that `--help` and the identity of a point cost nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dxc.errors import ConfigError, DxcError
from dxc.models import canonical_knobs, model_name

PROJECT_ROOT = Path(__file__).resolve().parent.parent

ALLOWED_TARGETS = ("dxc.", "torch.", "pytorch_lightning.", "torchmetrics.")
"""Packages whose classes a configuration may name in _target_."""

IDENTITY_GROUPS = (
    "model",
    "task",
    "data",
    "source",
    "hardware",
    "optimizer",
    "scheduler",
    "trainer",
    "score",
    "seed",
)
NOT_IDENTITY = {
    # where files lie, how they are read and what is shown: nothing a result depends on
    "data": {"cache_dir", "num_workers", "progress"},
    "source": {"cache_dir", "root", "jobs", "on_bad_chip", "progress"},
    "trainer": {"progress"},
}

DEFAULTS = (("data", "boxes", False), ("source", "boxes", False), ("source", "size_m", 100))
"""Keys that came later, (group, key, value): at the value that was meant before there were any, identities stay."""
TYPICAL_SIZE = 100  # pixels; what networks are costed for where chips may have any size


def image_size(size: int | str) -> int:
    """Edge in pixels of the image that costs are for, from data.size: TYPICAL_SIZE where chips may have any size."""
    return TYPICAL_SIZE if isinstance(size, str) else size


OmegaConf.register_new_resolver("dxc.root", lambda: str(PROJECT_ROOT), replace=True)
OmegaConf.register_new_resolver("dxc.count", len, replace=True)
OmegaConf.register_new_resolver("dxc.image_size", image_size, replace=True)
OmegaConf.register_new_resolver(
    "dxc.jitter_m", lambda boxes, size_m: 0.35 * size_m if boxes else 5.0, replace=True
)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with every interpolation filled in.

    Raises ConfigError for a mandatory value that was not given or an interpolation that leads nowhere.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        examples = " ".join(f"{key}=..." for key in missing)
        raise ConfigError(f"no value for {', '.join(missing)}; give it on the command line: {examples}")
    try:
        container = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {error}") from error
    return container  # type: ignore[return-value]  # a DictConfig makes a dict


def build(section: dict[str, Any], **arguments: Any) -> Any:
    """Instantiate a section that names its class in _target_; all instantiation in dxc goes through here.

    Raises ConfigError for a target outside ALLOWED_TARGETS, one that is no class, or arguments it refuses:
    a configuration may come from anywhere, and a _target_ is a name of code to run.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_class, instantiate

    for target in _targets(section):
        if not isinstance(target, str) or not target.startswith(ALLOWED_TARGETS):
            raise ConfigError(
                f"_target_: {target} is not allowed; it must begin with {', '.join(ALLOWED_TARGETS)}"
            )
        try:
            get_class(target)  # a class, not a function such as torch.hub.load
        except Exception as error:
            raise ConfigError(f"_target_: {target} is no class that can be loaded: {error}") from error
    try:
        return instantiate(section, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, DxcError):
            raise cause from None
        # what constructors raise for arguments they refuse; the second is Lightning's
        if isinstance(cause, TypeError | ValueError) or type(cause).__name__ == "MisconfigurationException":
            raise ConfigError(f"{section['_target_']} refuses its arguments: {cause}") from error
        raise


def _targets(node: Any) -> list[Any]:
    """Every _target_ in a nested configuration."""
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in _targets(value)]
    if isinstance(node, list | tuple):
        return [target for item in node for target in _targets(item)]
    return []


def canonical(cfg: dict[str, Any]) -> dict[str, Any]:
    """What a resolved configuration describes: two that would give the same result come out equal.

    Keys that only say where files lie or what is shown are removed, so are knobs without a meaning
    (pool knobs without a pool, folds without k-fold), and a number has one spelling (8 and 8.0).
    """
    kept = {
        group: (
            {key: value for key, value in cfg[group].items() if key not in NOT_IDENTITY.get(group, ())}
            if isinstance(cfg[group], dict)
            else cfg[group]
        )
        for group in IDENTITY_GROUPS
        if group in cfg
    }
    if "model" in kept:
        kept["model"] = canonical_knobs(kept["model"])
    if "hardware" in kept:
        kept["hardware"] = kept["hardware"]["name"]  # its facts follow from its name
    if isinstance(devices := kept.get("trainer", {}).get("devices"), list):
        kept["trainer"]["devices"] = len(devices)  # how many of them, not which
    for group, key, default in DEFAULTS:
        if kept.get(group, {}).get(key) == default:
            kept[group].pop(key)
    if kept.get("task", {}).keys() <= {"_target_"} and kept.get("score") in (None, "accuracy"):
        kept.pop("task", None)
        kept.pop("score", None)
    if kept.get("scheduler") is None:
        kept.pop("scheduler", None)
    data = kept.get("data", {})
    if data.get("split") != "kfold":
        data.pop("folds", None)
    if data.get("split") == "region":
        data.pop("fold_seed", None)
    if not {"ndwi", "ndvi"} & set(data.get("channels", ())):
        data.pop("repair", None)
    return _one_spelling(kept)


def trial_hash(cfg: dict[str, Any]) -> str:
    """Identity of a trial: hash of the canonical configuration (tag dxc.trial)."""
    return _hash(canonical(cfg))


def design_hash(cfg: dict[str, Any]) -> str:
    """Identity of a design: the same without the seed, so that its repeats share it (tag dxc.design)."""
    return _hash({key: value for key, value in canonical(cfg).items() if key != "seed"})


def _hash(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()


def _one_spelling(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _one_spelling(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_one_spelling(item) for item in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def quote_texts(arguments: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Arguments of a command line with the values of some keys quoted for Hydra, which would read a condition such as
    `accuracy > 0.9` as its own grammar."""
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys and value not in ("", "null"):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            argument = f'{key}="{escaped}"'
        quoted.append(argument)
    return quoted


def flatten(cfg: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'model': {'kernel': 3}} -> {'model.kernel': 3}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def params_and_tags(cfg: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A resolved configuration, flat, as a run carries it: what was chosen, and in the second part the settings that
    are no part of the identity. The second may differ when a trial goes on, and MLflow never changes a param.

    Left out is what says where the run itself is recorded.
    """
    params: dict[str, Any] = {}
    tags: dict[str, Any] = {}
    for key, value in flatten(cfg).items():
        group, _, name = key.partition(".")
        if group in ("study", "tracking", "search"):
            continue
        chosen = group in IDENTITY_GROUPS and name not in NOT_IDENTITY.get(group, ())
        (params if chosen else tags)[key] = value
    return params, tags


def describe(cfg: dict[str, Any]) -> str:
    """A configuration in one line, for run names: 'resnet18 k3 s2 p1 w32, 7ch b16', 'sppnet k3 l4 f1024, 7ch b16'."""
    model = canonical_knobs(cfg["model"])
    short = {"kernel": "k", "stride": "s", "padding": "p", "width": "w", "level": "l"}
    knobs = [f"{letter}{model[key]}" for key, letter in short.items() if key in model]
    if "pool_kernel" in model:
        knobs.append(f"pool{model['pool_kernel']}/{model['pool_stride']}")
    if features := [str(model[key]) for key in ("features", "features2") if key in model]:
        knobs.append(f"f{'-'.join(features)}")
    return f"{model_name(model)} {' '.join(knobs)}, {data_name(cfg['data'])} b{cfg['data']['batch_size']}"


def data_name(data: dict[str, Any]) -> str:
    """Name of a channel set: '7ch' for seven channels."""
    return f"{len(data['channels'])}ch"
