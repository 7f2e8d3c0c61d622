"""Axes in Hydra's sweep syntax -> points, and the identity of a point.

A point is a tuple of positions, one per axis: (0, 2) is the first value of the first axis and the third of the
second. Two points that describe the same trial (a pool's knobs without a pool) have the same hash.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from dxc.config.compose import image_size, resolved
from dxc.config.identity import design_hash, trial_hash
from dxc.config.names import flatten
from dxc.config.plan import Plan
from dxc.errors import ConfigError

Point = tuple[int, ...]
Compose = Callable[[Sequence[str]], DictConfig]
"""Overrides -> a composed configuration (without the section hydra)."""

# keys, and with a dot at the end whole sections
NO_AXES = {
    "model": "every network has a space of its own: one search a model",
    "study": "a study is one search",
    "experiment": "a protocol is one search",
    "hardware": "costs and limits are one device's: one search a device",
    "hardware.": "costs and limits are one device's: one search a device",
    "space": "one space a search",
    "search.": "it steers the search itself",
    "tracking.": "one store a search",
    "cache_dir": "it changes nothing in a result",
    "again": "it changes nothing in a result",
    "kept_gb": "it changes nothing in a result",
    "profile": "it changes nothing in a result",
    "progress": "it changes nothing in a result",
}


SHAPING_KEYS = ("fraction", "align", "quantise")
"""Keys of a section compress that change what a network costs, not only how well it is trained."""


@dataclass(frozen=True)
class Axis:
    """One knob and its values, as they stand on a command line; a key that is added begins with +."""

    key: str
    values: tuple[str, ...]

    @property
    def path(self) -> str:
        """The key in the configuration."""
        return self.key.lstrip("+")

    def override(self, position: int) -> str:
        return f"{self.key}={self.values[position]}"


@dataclass(frozen=True)
class Space:
    """A search space. axes: the knobs that are searched. fixed: the other overrides of the command line."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]

    @property
    def size(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator[Point]:
        return itertools.product(*(range(len(axis.values)) for axis in self.axes))

    def overrides(self, point: Point) -> list[str]:
        return [axis.override(position) for axis, position in zip(self.axes, point, strict=True)]

    def point_of(self, overrides: Sequence[str]) -> Point | None:
        """The point that these overrides describe; None where it is not in this space."""
        given = dict(each.partition("=")[::2] for each in overrides)
        if set(given) != {axis.key for axis in self.axes}:
            return None
        try:
            return tuple(axis.values.index(given[axis.key]) for axis in self.axes)
        except ValueError:
            return None


def parse_space(params: Mapping[str, Any] | None, arguments: Sequence[str]) -> Space:
    """The space of a model (conf/space) as the command line changes it.

    Args:
        params: {key: values in Hydra's sweep syntax}.
        arguments: overrides. One with several values is an axis; one with a single value pins its axis.

    Raises:
        ConfigError: an override that cannot be searched.

    """
    own = _parse([f"{key}={_text(value)}" for key, value in (params or {}).items()], "conf/space")
    given = _parse(arguments, "the command line")
    seen: dict[str, Override] = {}
    for override in given:
        before = seen.setdefault(override.key_or_group, override)
        if before is not override and before.is_sweep_override() != override.is_sweep_override():
            raise ConfigError(
                f"{override.key_or_group} is pinned and swept at once ({before.input_line} and "
                f"{override.input_line}); give one of the two"
            )
    swept = {o.key_or_group: o for o in own if o.is_sweep_override()}
    fixed = {o.key_or_group: o.input_line for o in own if not o.is_sweep_override()}
    for override in given:
        swept.pop(override.key_or_group, None)
        fixed.pop(override.key_or_group, None)
        if override.is_sweep_override():
            swept[override.key_or_group] = override
    # pins in the order they were given: the last of two wins, as everywhere in Hydra
    pinned = [o.input_line or "" for o in given if not o.is_sweep_override()]
    axes = tuple(Axis(_adding(each) + each.key_or_group, _values(each)) for each in swept.values())
    if not axes:
        raise ConfigError(
            "nothing is left to search: every axis is pinned. Leave one open, give one values "
            "(model.width=32,48), or train the one configuration: python train.py"
        )
    return Space(axes, (*(line or "" for line in fixed.values()), *pinned))


def _adding(override: Override) -> str:
    return "++" if override.is_force_add() else "+" if override.is_add() else ""


def _parse(lines: Sequence[str], where: str) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(lines))
    except HydraException as error:
        raise ConfigError(f"{where}: {error}") from error


def _text(value: Any) -> str:
    """A value of a space file in override syntax; YAML reads `3,5` as text and `3` as a number."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value)


def _values(override: Override) -> tuple[str, ...]:
    key = override.key_or_group
    if reason := NO_AXES.get(key.split("@")[0]) or NO_AXES.get(f"{key.split('.')[0]}."):
        raise ConfigError(f"{override.input_line}: {key} is not an axis of a search: {reason}")
    if override.is_delete() or not (override.is_choice_sweep() or override.is_range_sweep()):
        raise ConfigError(
            f"{override.input_line}: axes have values that can be counted: {key}=3,5 or {key}=range(1,4) or "
            f"{key}=choice(3,5)"
        )
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if len(values) < 2:
        raise ConfigError(f"{override.input_line}: an axis needs at least two different values")
    return values


@dataclass(frozen=True)
class Identity:
    """The identity of a point.

    Attributes:
        trial: the tag dxc.trial.
        design: the tag dxc.design.
        network: hash of what the costs depend on.
        config: the whole configuration.
    """

    trial: str
    design: str
    network: str
    config: dict[str, Any]

    @property
    def plan(self) -> Plan:
        """Raises ConfigError for values that cannot work."""
        return Plan.of(self.config)


class Catalogue:
    """Identities of the points of a space, without composing each of them.

    Config groups (data=5ch,7ch) are composed once a combination; the values of the other axes are then put in
    place, after it was checked that nothing else in the configuration follows from them.
    """

    def __init__(self, space: Space, compose: Compose, groups: Callable[[str], bool]) -> None:
        self.space = space
        self._compose = compose
        self._is_group = [groups(axis.path) for axis in space.axes]
        self._composed: dict[Point, tuple[DictConfig, dict[str, Any], bool]] = {}
        self._identities: dict[Point, Identity] = {}

    @cached_property
    def base(self) -> dict[str, Any]:
        """The configuration of the first point."""
        return self.identity((0,) * len(self.space.axes)).config

    def identity(self, point: Point) -> Identity:
        """The identity of a point. Raises ConfigError for a key that the configuration does not have."""
        if point not in self._identities:
            config = self._config(point)
            self._identities[point] = Identity(
                trial_hash(config), design_hash(config), network_hash(config), config
            )
        return self._identities[point]

    def distinct(self) -> dict[str, Point]:
        """The first point of each distinct trial, in the order of the points."""
        first: dict[str, Point] = {}
        for point in self.space.points():
            first.setdefault(self.identity(point).trial, point)
        return first

    def _config(self, point: Point) -> dict[str, Any]:
        groups = tuple(
            position if group else -1 for position, group in zip(point, self._is_group, strict=True)
        )
        if groups not in self._composed:
            self._composed[groups] = self._compose_groups(groups)
        cfg, config, independent = self._composed[groups]
        if not independent:
            return resolved(self._with_values(cfg, point))
        config = copy.copy(config)
        copied = set()
        for axis, position, group in zip(self.space.axes, point, self._is_group, strict=True):
            if group:
                continue
            node = config
            *parents, last = axis.path.split(".")
            for depth, key in enumerate(parents):
                if (path := tuple(parents[: depth + 1])) not in copied:  # what is not changed is shared
                    node[key] = copy.copy(node[key])
                    copied.add(path)
                node = node[key]
            node[last] = _value(axis, position)
        return config

    def _compose_groups(self, groups: Point) -> tuple[DictConfig, dict[str, Any], bool]:
        """The composed configuration of a combination of groups, resolved, and whether every other axis
        changes its own key only."""
        chosen = [
            axis.override(position)
            for axis, position in zip(self.space.axes, groups, strict=True)
            if position >= 0
        ]
        others = [
            (number, axis)
            for number, (axis, group) in enumerate(zip(self.space.axes, self._is_group, strict=True))
            if not group
        ]
        try:
            cfg = self._compose([*self.space.fixed, *chosen, *(axis.override(0) for _, axis in others)])
        except HydraException as error:
            raise ConfigError(f"{str(error).strip()}\nThe axes are {self._describe_axes()}") from error
        start = tuple(max(0, position) for position in groups)
        config = resolved(cfg)
        flat = flatten(config)
        independent = all(axis.path in flat for _, axis in others)
        for number, axis in others:
            for position in range(1, len(axis.values)):
                moved = list(start)
                moved[number] = position
                other = flatten(resolved(self._with_values(cfg, tuple(moved))))
                changed = {key for key in flat.keys() | other.keys() if flat.get(key) != other.get(key)}
                independent &= changed <= {axis.path}
        return cfg, config, independent

    def _with_values(self, cfg: DictConfig, point: Point) -> DictConfig:
        cfg = copy.deepcopy(cfg)
        for axis, position, group in zip(self.space.axes, point, self._is_group, strict=True):
            if not group:
                OmegaConf.update(cfg, axis.path, _value(axis, position), merge=False, force_add=True)
        return cfg

    def _describe_axes(self) -> str:
        return ", ".join(axis.key for axis in self.space.axes)


@cache
def _value(axis: Axis, position: int) -> Any:
    """An axis' value as Hydra reads it: 3 is a number, [2,2] a list, none a text. Nobody may change it: it is
    kept, because the parser takes a millisecond and every point of the space asks."""
    (override,) = OverridesParser.create().parse_overrides([axis.override(position)])
    return override.value()


def shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of compression that changes what the network costs."""
    return {key: value for key, value in (config.get("compress") or {}).items() if key in SHAPING_KEYS}


def network_hash(config: dict[str, Any]) -> str:
    """Hash of what the costs of a network depend on: the model, how it is compressed, and the size of its input."""
    return trial_hash(
        {
            "model": config["model"],
            "compress": shaping(config),
            "data": {"size": image_size(config["data"]["size"])},
        }
    )
