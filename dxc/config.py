"""Configurations: resolvers, safe instantiation, and the identity of what they describe.

Free of torch and mlflow, so that `--help` and the identity of a point cost nothing.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dxc.errors import ConfigError
from dxc.models import canonical_knobs, model_name

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Kind(NamedTuple):
    """What one kind of section may build. base: the class it must be of, as module.Class. packages: where that class,
    and every module that is imported to find it, must lie: modules, or packages with all below them. classes: the only
    ones of other packages. partial: its _partial_ must be true, what is missing comes from the task. nested: keys that
    hold a list of sections, each with its kind."""

    base: str
    packages: tuple[str, ...]
    classes: tuple[str, ...] = ()
    partial: bool = False
    nested: Mapping[str, str] = {}


KINDS: Mapping[str, Kind] = {
    "model": Kind("torch.nn.Module", ("dxc.models",)),
    "task": Kind("dxc.tasks.task.Task", ("dxc.tasks",)),
    "source": Kind("dxc.data.source.Source", ("dxc.data",)),
    "data": Kind("dxc.data.datamodule.ChipDataModule", ("dxc.data",)),
    "optimizer": Kind("torch.optim.Optimizer", ("torch.optim",), partial=True),
    "scheduler": Kind("torch.optim.lr_scheduler.LRScheduler", ("torch.optim",), partial=True),
    "trainer": Kind("dxc.tasks.trainer.FoldTrainer", ("dxc.tasks",), nested={"callbacks": "callback"}),
    "callback": Kind(
        "pytorch_lightning.Callback",
        ("dxc.tasks",),
        # Lightning's that write no file
        tuple(
            f"pytorch_lightning.callbacks.{name}"
            for name in (
                "EarlyStopping",
                "GradientAccumulationScheduler",
                "StochasticWeightAveraging",
                "Timer",
            )
        ),
    ),
}
"""What a configuration may name in _target_, section by section. It is a list in the code because a configuration may
come from anywhere, and a _target_ is a name of code to run: a package of your own is added here."""

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
    "hardware": {
        # the trainer's own keys, which follow from these, are identity
        "accelerator",
        "precision",
        # how the device is reached. Which machine it was in the end is in the tag dxc.measured_on
        "host",
        "python",
        "remote",
        # whether it is measured, not what comes out
        "measure",
        # where packages of predictors lie. Their names are identity; what was found there is in the tag dxc.packages
        "packages_dir",
        "packages_url",
        # a judgement of the result
        "limits",
    },
}
"""Keys that no number of a run depends on. All others of IDENTITY_GROUPS tell two designs apart."""

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


def build(section: Mapping[str, Any] | None, kind: str, **arguments: Any) -> Any:
    """Make what a section names in _target_, with its other keys as arguments; all instantiation in dxc goes through
    here.

    Args:
        section: of a resolved configuration, plain containers.
        kind: what it is for, a key of KINDS.
        arguments: go before the section's own of the same name.

    Returns:
        The object; of a kind that is partial (optimizer, scheduler) a function that makes it from what is missing.

    Raises ConfigError for a class that such a section may not build, and for arguments that the class refuses. Names
    are checked in the whole section before anything is imported, and classes before anything is made.
    """
    _check_names(section, kind, kind)
    assert section is not None  # _check_names lets nothing but a mapping through
    made = _prepared(section, kind)
    for key in KINDS[kind].nested:
        made.keywords[key] = [_called(each) for each in made.keywords[key]]
    made.keywords.update(arguments)
    return made if KINDS[kind].partial else _called(made)


def _check_names(section: Any, kind: str, place: str) -> None:
    """Raise ConfigError for a section that names what its kind may not build. Imports nothing."""
    allowed = KINDS[kind]
    target = section.get("_target_") if isinstance(section, Mapping) else None
    if target is None:
        raise ConfigError(f"{place}: a section with _target_ is expected here, not {_shown(section)}")
    if not isinstance(target, str) or not (
        target in allowed.classes or _within(target.rpartition(".")[0], allowed.packages)
    ):
        choice = " or ".join([f"a class of {', '.join(allowed.packages)}", *allowed.classes])
        raise ConfigError(f"{place}._target_: {_shown(target)} is not allowed; it must be {choice}")
    if allowed.partial and section.get("_partial_") is not True:
        raise ConfigError(f"{place}._partial_ must be true: the task adds what is missing")
    for key, value in section.items():
        if key == "_target_" or (key == "_partial_" and allowed.partial):
            continue
        if not isinstance(key, str) or key.startswith("_"):
            raise ConfigError(f"{place}.{_shown(key)} is not allowed: arguments are given by their names")
        if key not in allowed.nested:
            _check_plain(value, f"{place}.{key}")
            continue
        if not isinstance(value, list | tuple | None):
            raise ConfigError(f"{place}.{key} must be a list of sections with _target_, not {_shown(value)}")
        for number, each in enumerate(value or ()):
            _check_names(each, allowed.nested[key], f"{place}.{key}[{number}]")


def _check_plain(value: Any, place: str) -> None:
    """Raise ConfigError where an argument that is no section holds one."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise ConfigError(f"{place}._target_: {_shown(value['_target_'])} is not allowed in this place")
        for key, each in value.items():
            _check_plain(each, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            _check_plain(each, f"{place}[{number}]")


def _shown(value: Any) -> str:
    """A value in a message: a stranger's text may be long, or hold what a terminal obeys."""
    return value if isinstance(value, str) and value.isprintable() and len(value) < 200 else f"{value!r:.200}"


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _prepared(section: Mapping[str, Any], kind: str) -> partial[Any]:
    """The class of a section whose names were checked, with its arguments; of nested sections too."""
    options = {key: copy.deepcopy(value) for key, value in section.items() if not key.startswith("_")}
    for key, inner in KINDS[kind].nested.items():
        options[key] = [_prepared(each, inner) for each in section.get(key) or ()]
    return partial(_class_of(section["_target_"], kind), **options)


def _class_of(target: str, kind: str) -> type:
    """The class that an allowed name means. Raises ConfigError for what is no class of this kind."""
    allowed = KINDS[kind]
    try:
        found = _attribute(target)
    except Exception as error:  # whatever a module raises that cannot be imported
        raise ConfigError(f"_target_: {target} is no class that can be loaded: {error}") from error
    # by the class itself, not by the name: a module holds names of what it imports too
    if not inspect.isclass(found) or _attribute(allowed.base) not in inspect.getmro(found):
        raise ConfigError(f"_target_: {target} is no {allowed.base}, which {kind} must be")
    if target not in allowed.classes and not _within(found.__module__, allowed.packages):
        raise ConfigError(
            f"_target_: {target} is {found.__module__}.{found.__qualname__}, which is not allowed; it must be a "
            f"class of {', '.join(allowed.packages)}"
        )
    return found


def _attribute(name: str) -> Any:
    """What a module holds under a name; no attribute of an attribute."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _called(made: partial[Any]) -> Any:
    """The object. Raises ConfigError where its class refuses the arguments."""
    try:
        return made()
    except Exception as error:
        # what constructors raise for arguments they refuse; the last is Lightning's
        if isinstance(error, TypeError | ValueError) or type(error).__name__ == "MisconfigurationException":
            name = f"{made.func.__module__}.{made.func.__qualname__}"
            raise ConfigError(f"{name} refuses its arguments: {error}") from error
        raise


def is_identity(key: str) -> bool:
    """Whether a number of a run can depend on a flat key, such as hardware.threads."""
    group, *rest = key.split(".")
    return group in IDENTITY_GROUPS and not (rest and rest[0] in NOT_IDENTITY.get(group, ()))


def canonical(cfg: dict[str, Any]) -> dict[str, Any]:
    """What a resolved configuration describes: two that would give the same result come out equal.

    Keys that no result depends on are removed, so are knobs without a meaning (pool knobs without a pool, folds without
    k-fold), and a number has one spelling (8 and 8.0).
    """
    kept = {
        group: (
            {key: value for key, value in cfg[group].items() if is_identity(f"{group}.{key}")}
            if isinstance(cfg[group], dict)
            else cfg[group]
        )
        for group in IDENTITY_GROUPS
        if group in cfg
    }
    if "model" in kept:
        kept["model"] = canonical_knobs(kept["model"])
    if isinstance(predictors := kept.get("hardware", {}).get("predictors"), list):
        kept["hardware"]["predictors"] = sorted(map(str, predictors))  # their mean knows no order
    if isinstance(devices := kept.get("trainer", {}).get("devices"), list):
        kept["trainer"]["devices"] = len(devices)  # how many of them, not which
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
