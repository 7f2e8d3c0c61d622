"""The section `search` of conf/search.yaml, which explains each key, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dxc.config.checked import (
    Amount,
    Flag,
    Natural,
    Part,
    Positive,
    Text,
    checked,
    cost_among,
    must_be,
    one_of,
)
from dxc.errors import ConfigError, is_number, is_whole
from dxc.metrics import METRICS, known_costs, limitable
from dxc.search.states import Rung

DEFAULT_TRIALS = 20


def _objectives(names: Any) -> Any:
    if not isinstance(names, list) or not names:
        raise ValueError(f" must be a list of metrics, not {names!r}")
    return names


def _limits(limits: Any) -> Any:
    """Those that are set: null is no limit."""
    if not isinstance(limits, Mapping):
        raise ValueError(f" must name costs: search.limits.onnx_mb=12, not {limits!r}")
    return {name: limit for name, limit in limits.items() if limit is not None}


def _rungs(rungs: Any) -> Any:
    def is_rung(rung: Any) -> bool:
        return (
            isinstance(rung, list)
            and len(rung) == 2
            and isinstance(rung[0], int)
            and rung[0] >= 1
            and isinstance(rung[1], int | float)
            and 0 < rung[1] <= 1
        )

    if not isinstance(rungs, list) or not all(map(is_rung, rungs)):
        raise ValueError(
            f" must be a list of [folds, share of the epochs], such as [[1, 0.4], [1, 1.0]], not {rungs!r}"
        )
    return rungs


def _are_numbers_of_gpus(gpus: Any) -> bool:
    return (
        isinstance(gpus, list)
        and len(gpus) > 0
        and all(is_whole(gpu, 0) for gpu in gpus)
        and len(set(gpus)) == len(gpus)
    )


LimitOrNull = Annotated[
    int | float, must_be(lambda value: is_number(value) and value > 0, "a number over 0, or null")
]
Metric = Annotated[str, one_of(lambda: METRICS)]


class Settings(Part):
    """How a search proceeds."""

    tuner: Literal["pareto", "random", "grid", "tpe", "evolution"]
    max_trials: Positive | None
    seed: Natural
    objective: Metric
    objectives: Annotated[list[Metric], BeforeValidator(_objectives)]
    limits: Annotated[dict[Annotated[str, cost_among(known_costs)], LimitOrNull], BeforeValidator(_limits)]
    rungs: Annotated[Sequence[Any], BeforeValidator(_rungs)]
    """[folds, share of the epochs] each."""
    early_stop: Literal["none", "median"]
    retries: Natural
    max_failures: Natural
    parallel: Positive | None
    gpus: Annotated[
        list[int] | None,
        must_be(
            lambda gpus: gpus is None or _are_numbers_of_gpus(gpus),
            "a list of different numbers of GPUs, from 0, such as [0,1], or null",
        ),
    ]
    """Of this machine, for trials that train on one GPU; None: all of them."""
    store_patience_s: Amount
    reports: Text | None
    """Folder of the page of progress, REPORTS/STUDY/index.html; None: there is no page."""
    force: Flag
    dry_run: Flag
    score: Text = Field(exclude=True)
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
        if "score" in section:
            raise ConfigError("search has no score; it is a key of its own: score=accuracy")
        values = {key: value for key, value in section.items() if key != "job"}
        inherited = {name: limit for name, limit in (device_limits or {}).items() if name in known_costs()}
        if isinstance(values.get("limits"), Mapping):
            values["limits"] = {**inherited, **values["limits"]}
        return checked(cls, {**values, "score": score}, "search")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.tuner != "pareto":
            return self
        if self.early_stop != "none":
            raise ValueError(".early_stop belongs to NNI's tuners; tuner=pareto stops by search.rungs")
        uncertain = [name for name in self.objectives if name not in limitable()]
        if uncertain != [self.score] or len(self.objectives) < 2:
            raise ValueError(
                f".tuner=pareto weighs {self.score} against costs known before training: search.objectives "
                f"must hold {self.score} and at least one of {', '.join(known_costs())}, not "
                f"{', '.join(self.objectives)}"
            )
        return self

    def ladder(self, folds: int, epochs: int) -> list[Rung]:
        """The rungs that tuner=pareto climbs; the last is the full protocol of so many folds and epochs."""
        if self.tuner != "pareto":
            return [Rung(folds, epochs)]
        rungs = [Rung(min(n, folds), max(1, math.ceil(share * epochs))) for n, share in self.rungs]
        return list(dict.fromkeys([*rungs, Rung(folds, epochs)]))
