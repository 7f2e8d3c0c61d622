"""Builds objects from sections that name a class. Nothing else in dxc instantiates a class by name."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from dxc.errors import ConfigError


class Kind(NamedTuple):
    """What one kind of section may build.

    Attributes:
        base: the required base class, as module.Class.
        packages: modules, or packages with all their modules, that may be imported to find the class.
        classes: the only classes that may come from other packages.
        partial: whether the section needs _partial_: true, because the task supplies the missing arguments.
        nested: keys that hold a list of sections, each with its kind.
    """

    base: str
    packages: tuple[str, ...]
    classes: tuple[str, ...] = ()
    partial: bool = False
    nested: Mapping[str, str] = {}


KINDS: Mapping[str, Kind] = {
    "model": Kind("torch.nn.Module", ("dxc.models",)),
    "task": Kind("dxc.training.task.Task", ("dxc.training",)),
    "source": Kind("dxc.data.source.Source", ("dxc.data", "dxc.synthetic")),
    "data": Kind("dxc.data.datamodule.ImageDataModule", ("dxc.data",)),
    "optimizer": Kind("torch.optim.Optimizer", ("torch.optim",), partial=True),
    "scheduler": Kind("torch.optim.lr_scheduler.LRScheduler", ("torch.optim",), partial=True),
    "energy": Kind("dxc.hardware.measure.energy.sources.Source", ("dxc.hardware.measure.energy",)),
    "trainer": Kind("dxc.training.trainer.FoldTrainer", ("dxc.training",), nested={"callbacks": "callback"}),
    "callback": Kind(
        "pytorch_lightning.Callback",
        ("dxc.training",),
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


def build(section: Mapping[str, Any] | None, kind: str, **arguments: Any) -> Any:
    """Build the object of the class in _target_. The other keys of the section are its arguments.

    Args:
        section: a section of a resolved configuration, in plain containers.
        kind: a key of KINDS.
        arguments: more arguments. They take precedence over those of the section.

    Returns:
        The object. For a partial kind (optimizer, scheduler) a function that takes the missing arguments.

    Raises:
        ConfigError: a class that such a section may not build, or arguments that the class refuses.

    All names in the section are checked before anything is imported, and all classes before anything is built.
    """
    check_names(section, kind, kind)
    assert section is not None  # check_names lets nothing but a mapping through
    made = _prepared(section, kind)
    for key in KINDS[kind].nested:
        made.keywords[key] = [_called(each) for each in made.keywords[key]]
    made.keywords.update(arguments)
    return made if KINDS[kind].partial else _called(made)


def check_names(section: Any, kind: str, place: str) -> None:
    """Raise ConfigError for a name that this kind of section may not use. Imports nothing."""
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
            check_names(each, allowed.nested[key], f"{place}.{key}[{number}]")


def _check_plain(value: Any, place: str) -> None:
    """Raise ConfigError where a plain argument contains a section."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise ConfigError(f"{place}._target_: {_shown(value['_target_'])} is not allowed in this place")
        for key, each in value.items():
            _check_plain(each, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            _check_plain(each, f"{place}[{number}]")


def _shown(value: Any) -> str:
    """A value for a message: cut to a limit, with control characters shown."""
    return value if isinstance(value, str) and value.isprintable() and len(value) < 200 else f"{value!r:.200}"


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _prepared(section: Mapping[str, Any], kind: str) -> partial[Any]:
    """The class and the arguments of a checked section and its nested sections."""
    options = {key: copy.deepcopy(value) for key, value in section.items() if not key.startswith("_")}
    for key, inner in KINDS[kind].nested.items():
        options[key] = [_prepared(each, inner) for each in section.get(key) or ()]
    return partial(_class_of(section["_target_"], kind), **options)


def _class_of(target: str, kind: str) -> type:
    """Import the class of an allowed name. Raises ConfigError where it is not a class of this kind."""
    allowed = KINDS[kind]
    try:
        found = _attribute(target)
    except Exception as error:  # whatever a module raises that cannot be imported
        raise ConfigError(f"_target_: {target} is not a class that can be loaded: {error}") from error
    # by the class itself, not by the name: a module holds names of what it imports too
    if not inspect.isclass(found) or _attribute(allowed.base) not in inspect.getmro(found):
        raise ConfigError(f"_target_: {target} is not a {allowed.base}, which {kind} must be")
    if target not in allowed.classes and not _within(found.__module__, allowed.packages):
        raise ConfigError(
            f"_target_: {target} is {found.__module__}.{found.__qualname__}, which is not allowed; it must be a "
            f"class of {', '.join(allowed.packages)}"
        )
    return found


def _attribute(name: str) -> Any:
    """The attribute of a module; attributes of attributes are not followed."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _called(made: partial[Any]) -> Any:
    """Call the class. Raises ConfigError where it refuses the arguments."""
    try:
        return made()
    except Exception as error:
        # what constructors raise for arguments they refuse; the last is Lightning's
        if isinstance(error, TypeError | ValueError) or type(error).__name__ == "MisconfigurationException":
            name = f"{made.func.__module__}.{made.func.__qualname__}"
            raise ConfigError(f"{name} refuses its arguments: {error}") from error
        raise
