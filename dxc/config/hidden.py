"""Keeps secrets of a command line or a configuration file out of the files that Hydra writes.

Hydra copies its configuration and overrides to .hydra/ and multirun.yaml, and launchers pickle them. So a secret is
moved into an environment variable, which child processes and cluster jobs inherit. An interpolation of that variable
takes its place.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from dxc.errors import ConfigError
from dxc.masking import masked


def hide_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with their secrets moved into environment variables.

    tracking.uri=postgresql://u:p@h/runs becomes tracking.uri=${oc.env:DXC_TRACKING_URI}.
    Raises ConfigError where such an argument has several values (a sweep), because a command has one store.
    """
    return [_hidden(each) for each in arguments]


def hide_command_line() -> None:
    """Apply hide_arguments to this process. Ends it with a message where that is not possible."""
    try:
        sys.argv[1:] = hide_arguments(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")


def _hidden(argument: str) -> str:
    key, equals, text = argument.partition("=")
    if not equals or masked(text) == text:
        return argument
    value: Any = text
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:  # an @ or ? that Hydra wants quoted: it is meant as it stands
        pass
    else:
        if override.is_sweep_override():
            raise ConfigError(f"{key} holds a secret and has several values: give it one value")
        value = override.value()
    return f"{key}={_hide(key.lstrip('+'), str(value))}"


def _hide(key: str, value: str) -> str:
    """Move a value into the environment; returns the interpolation that reads it there."""
    name = "DXC_" + re.sub(r"\W", "_", key).upper()
    os.environ[name] = value
    return f"${{oc.env:{name}}}"


class KeepSecrets(Callback):
    """A Hydra callback. It hides secrets of configuration files before Hydra writes anything."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._hide_all(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        changed = self._hide_all(config)
        own: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
        with read_write(config), open_dict(config):
            # jobs compose the files again, with these
            config.hydra.overrides.hydra = own + [f"{key}={value}" for key, value in changed.items()]

    @staticmethod
    def _hide_all(config: DictConfig) -> dict[str, str]:
        plain: Any = OmegaConf.to_container(config, resolve=False)
        found = _texts({key: value for key, value in plain.items() if key != "hydra"})
        changed = {key: _hide(key, value) for key, value in found if masked(value) != value}
        with read_write(config), open_dict(config):
            for key, value in changed.items():
                OmegaConf.update(config, key, value)
        return changed


def _texts(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in nested mappings."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
