"""The command that trains a tracked configuration again."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.identity import canonical, trial_hash
from dxc.config.names import flatten
from dxc.config.overrides import quoted_value, store_override
from dxc.errors import AnalysisError, ConfigError, first_line
from dxc.hardware.predict.packages import PUBLISHED, SHIPPED
from dxc.untrusted import load_yaml

CONF = PROJECT_ROOT / "conf"
GROUPS = ("source", "data", "model", "task", "optimizer", "scheduler", "compress", "hardware", "trainer")
NEEDED = ("source.root",)  # no part of the identity, and nothing runs without
FOLLOWING = ("model.in_channels", "model.num_classes")  # from channels and classes of the data
KEY = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
COMMIT = "use the commit in the run's tag mlflow.source.git.commit"


def command(config: Mapping[str, Any], *, trial: str | None = None, store: str | None = None) -> str:
    """`python train.py ...` for a resolved configuration (config.yaml of a run), as short as it gets.

    The run that it makes has the same figures and lies in the same study: the predictors stand in it, and where a
    package of the user's own lies. Interpolations are not resolved, neither here nor by the command: ${...} is a text.

    Args:
        config: the resolved configuration.
        trial: its dxc.trial.
        store: address of the MLflow store that the new run belongs in; None for the default one. An address with a
            login is left out, because the command would show it.

    Raises:
        AnalysisError: the present conf/ cannot describe that configuration.

    """
    try:
        overrides = _overrides(config)
        found = trial_hash(_composed(*overrides))
    except (
        ConfigError,
        HydraException,
        OmegaConfBaseException,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:  # a knob that was removed, a section without content, something that is no configuration
        raise AnalysisError(
            f"today's conf/ cannot describe this configuration: {first_line(error, named=True)}; {COMMIT}"
        ) from error
    overrides += [] if store is None else store_override(store)
    text = shlex.join(["python", "train.py", *overrides])
    if trial is not None and found != trial:
        raise AnalysisError(
            f"this command would train {found}, not {trial}: the configuration files have changed since; {COMMIT}\n"
            f"{text}"
        )
    return text


def command_of(path: Path, trial: str | None, store: str | None = None) -> str:
    """command() for a file config.yaml. It also raises AnalysisError where the file holds no configuration."""
    try:
        config = load_yaml(path)
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict) or not {"model", "data"} <= config.keys():
        raise AnalysisError(f"{path.name} is not a configuration: it has no sections model: and data:")
    return command({str(key): value for key, value in config.items()}, trial=trial, store=store)


def _overrides(config: Mapping[str, Any]) -> list[str]:
    chosen: list[str] = []
    for group in GROUPS:
        default = _differences(config, chosen, group)
        if not default:
            continue  # each option would be composed only to lose
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        differing = {}
        for option in options:
            with contextlib.suppress(
                ConfigError
            ):  # an option that goes with others only, such as those of scale.py
                differing[option] = _differences(config, [*chosen, f"{group}={option}"], group)
        best = min(differing, key=lambda option: len(differing[option]))
        if len(differing[best]) < len(default):
            chosen.append(f"{group}={best}")
    keys = _differences(config, chosen, *GROUPS, "score", "seed") | _places(config, chosen)
    for key, value in keys.items():
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a key of a configuration")
        if not _is_printable(value):
            raise ValueError(f"{key} has characters that cannot be shown: {value!r}")
    return chosen + [f"{key}={quoted_value(value)}" for key, value in keys.items()]


def _differences(config: Mapping[str, Any], overrides: Sequence[str], *sections: str) -> dict[str, Any]:
    """Keys of some sections whose value is not what these overrides give, with the wanted value."""
    given = flatten(_composed(*overrides))
    kept = canonical(dict(config))
    differing = {}
    for key, value in flatten(dict(config)).items():
        section, _, rest = key.partition(".")
        if section not in sections or (key in given and given[key] == value):
            continue
        whole = kept.get(section)  # without what no result depends on, and knobs that mean nothing here
        if key in NEEDED or not isinstance(whole, dict) or rest in flatten(whole):
            differing[key] = value
    return {key: value for key, value in differing.items() if key not in FOLLOWING}


def _places(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Where the run is recorded, and the folder of its predictors: no part of the identity, but what they name is.

    The folder is left out where all predictors come with dxc or are published: they are found without it.
    """
    hardware, given = config.get("hardware") or {}, _composed(*overrides)
    places = {}
    own = set(map(str, hardware.get("predictors") or ())) - {
        *PUBLISHED,
        *(each.name for each in SHIPPED.iterdir()),
    }
    folder = hardware.get("packages_dir")
    if own and folder and folder != given["hardware"]["packages_dir"]:
        places["hardware.packages_dir"] = folder
    if config.get("base") is not None:
        places["base"] = config["base"]
    if (study := config.get("study")) is not None and study != given["study"]:
        places["study"] = study
    return places


@functools.cache
def _composed(*overrides: str) -> dict[str, Any]:
    # values that are mandatory and not part of the identity may be anything here
    known = {each.split("=")[0] for each in overrides}
    filled = [*overrides]
    if "source=chips" in overrides and "source.root" not in known:
        filled.append("source.root=.")
    running = GlobalHydra.instance().hydra  # analyze.py's own
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolved(compose("train", overrides=filled))
    finally:
        GlobalHydra.instance().hydra = running


def _is_printable(value: Any) -> bool:
    """Whether all texts in a value can be shown and pasted; control characters would reach the terminal."""
    if isinstance(value, list | tuple):
        return all(map(_is_printable, value))
    return not isinstance(value, str) or all(
        character.isprintable() or character == "\t" for character in value
    )
