"""Checks the keys of conf/search.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dxc.errors import ConfigError, is_number, require_one_of, require_whole
from dxc.metrics import METRICS, known_costs, limitable
from dxc.search.states import Rung

TUNERS = ("pareto", "random", "grid", "tpe", "evolution")
EARLY_STOPS = ("none", "median")
DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class Settings:
    """The checked section `search` of conf/search.yaml, which explains each key."""

    tuner: str
    max_trials: int | None
    seed: int
    objective: str
    objectives: Sequence[str]
    limits: Mapping[str, float]
    rungs: Sequence[tuple[int, float]]
    early_stop: str
    retries: int
    max_failures: int
    parallel: int | None
    store_patience_s: float
    force: bool
    dry_run: bool
    score: str
    """The metric that scores a fold: the key `score` of the configuration. It is not known before training."""

    @classmethod
    def of(
        cls, section: Mapping[str, Any], score: str, device_limits: Mapping[str, float] | None = None
    ) -> Settings:
        """From a resolved configuration.

        Args:
            section: the section `search`.
            score: the key `score`.
            device_limits: hardware.limits. They hold for costs known before training that search.limits does not name.

        Raises:
            ConfigError: for a key or value that cannot work.
        """
        known = {each.name for each in fields(cls)} - {"score"}
        section = {key: value for key, value in section.items() if key != "job"}
        if unknown := sorted(set(section) - known):
            raise ConfigError(f"search has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        require_one_of("search.tuner", section["tuner"], TUNERS)
        require_one_of("search.early_stop", section["early_stop"], EARLY_STOPS)
        if section["tuner"] == "pareto" and section["early_stop"] != "none":
            raise ConfigError("search.early_stop belongs to NNI's tuners; tuner=pareto stops by search.rungs")
        require_one_of("search.objective", section["objective"], METRICS)
        objectives = section["objectives"]
        if not isinstance(objectives, list) or not objectives:
            raise ConfigError(f"search.objectives must be a list of metrics, not {objectives!r}")
        for name in objectives:
            require_one_of("search.objectives", name, METRICS)
        if section["tuner"] == "pareto":
            uncertain = [name for name in objectives if name not in limitable()]
            if uncertain != [score] or len(objectives) < 2:
                raise ConfigError(
                    f"search.tuner=pareto weighs {score} against costs known before training: search.objectives "
                    f"must hold {score} and at least one of {', '.join(known_costs())}, not {', '.join(objectives)}"
                )
        for name, at_least in (("seed", 0), ("retries", 0), ("max_failures", 0)):
            require_whole(f"search.{name}", section[name], at_least=at_least)
        for name in ("max_trials", "parallel"):
            if section[name] is not None:
                require_whole(f"search.{name}", section[name], at_least=1)
        limits = _limits(section["limits"], device_limits or {})
        _check_rungs(section["rungs"])
        patience = section["store_patience_s"]
        if not is_number(patience) or not patience >= 0:
            raise ConfigError(f"search.store_patience_s must be seconds, 0 or more, not {patience!r}")
        for name in ("force", "dry_run"):
            if not isinstance(section[name], bool):
                raise ConfigError(f"search.{name} must be true or false, not {section[name]!r}")
        return cls(**{**section, "limits": limits}, score=score)

    def ladder(self, folds: int, epochs: int) -> list[Rung]:
        """The rungs that tuner=pareto climbs; the last is the full protocol of so many folds and epochs."""
        if self.tuner != "pareto":
            return [Rung(folds, epochs)]
        rungs = [Rung(min(n, folds), max(1, math.ceil(share * epochs))) for n, share in self.rungs]
        return list(dict.fromkeys([*rungs, Rung(folds, epochs)]))


def _limits(limits: Any, device_limits: Mapping[str, float]) -> dict[str, float]:
    """Those that are set: null is no limit, and a cost that is not named has the device's."""
    if not isinstance(limits, Mapping):
        raise ConfigError(f"search.limits must name costs: search.limits.onnx_mb=12, not {limits!r}")
    inherited = {name: limit for name, limit in device_limits.items() if name in known_costs()}
    limits = {name: limit for name, limit in {**inherited, **limits}.items() if limit is not None}
    for name, limit in limits.items():
        if name not in known_costs():
            raise ConfigError(f"search.limits.{name}: no such cost; {', '.join(known_costs())} have limits")
        if not is_number(limit) or not limit > 0:
            raise ConfigError(f"search.limits.{name} must be a number over 0, or null, not {limit!r}")
    return limits


def _check_rungs(rungs: Any) -> None:
    message = (
        "search.rungs must be a list of [folds, share of the epochs], such as [[1, 0.4], [1, 1.0]], not "
        f"{rungs!r}"
    )
    if not isinstance(rungs, list):
        raise ConfigError(message)
    for rung in rungs:
        if not isinstance(rung, list) or len(rung) != 2:
            raise ConfigError(message)
        folds, share = rung
        if (
            not isinstance(folds, int)
            or folds < 1
            or not isinstance(share, int | float)
            or not 0 < share <= 1
        ):
            raise ConfigError(message)
