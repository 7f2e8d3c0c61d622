"""What analyze.py is asked: the keys of conf/analysis/analyze.yaml, which explains each, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from dxc.analysis.network_file import check_export
from dxc.config.checked import Flag, Natural, Part, Positive, Text, checked, must_be
from dxc.config.hardware import Hardware
from dxc.errors import AnalysisError, is_number


def listed(value: Any) -> list[str]:
    """A value or a list of values as a list of distinct texts: study=first means study=[first], and 2026 may be a
    name."""
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return list(dict.fromkeys(map(str, several)))


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_weights(weights: Any) -> bool:
    return weights is None or (isinstance(weights, Mapping) and all(map(is_number, weights.values())))


FrontProfiler = Literal["none", "torch", "nsight"]
Listed = Annotated[list[str], BeforeValidator(listed)]
Address = Annotated[str, must_be(_is_address, "a text")]


class Choose(Part):
    """Which design of the front to deploy."""

    where: Text | None
    by: Text
    weights: Annotated[
        dict[str, int | float] | None,
        must_be(_are_weights, "numbers by objective, {accuracy:2,onnx_mb:1}"),
    ]
    export: Text | None


class Bootstrap(Part):
    """Draws of the chips behind the accuracies."""

    draws: Positive
    seed: Natural
    unstable_below: Annotated[
        int | float, must_be(lambda value: is_number(value) and 0 <= value <= 1, "a share from 0 to 1")
    ]


class Store(Part):
    """Where runs are tracked."""

    uri: Address
    artifacts: Listed


class Questions(Part):
    """What is asked of which runs, and where the answer goes."""

    source: Literal["mlflow", "published"]
    study: Listed
    where: Text | None
    objectives: Annotated[
        list[str] | None, BeforeValidator(lambda value: None if value is None else listed(value))
    ]
    mix: Listed
    baseline: Listed
    choose: Choose
    table: Literal["compression", "deployment", "map"] | None
    """Another table instead of the front."""
    compare: Text | None
    bootstrap: Bootstrap
    profile: FrontProfiler
    hardware: Hardware
    """This machine, on which networks are profiled. It comes from the command, never from a run."""
    tag: Flag
    log: Flag
    refresh: Flag
    out: Text
    cache_dir: Address
    tracking: Store

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Questions:
        """From a resolved configuration.

        Raises:
            ConfigError: a key or value that cannot work.
            AnalysisError: questions that cannot be asked together.
        """
        hardware = config.get("hardware")
        if isinstance(hardware, Mapping):
            config = {**config, "hardware": {"name": "this machine", **hardware}}
        return checked(cls, config)

    @property
    def published(self) -> bool:
        """Whether a published table is analysed instead of tracked runs."""
        return self.source == "published"

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_export(self.choose.export)
        if self.published and self.choose.export:
            raise AnalysisError("choose.export needs a tracked run: no file of a published network is known")
        if self.published and self.compare:
            raise AnalysisError("compare needs predictions or folds, and the published table has neither")
        if self.published and self.table:
            raise AnalysisError(f"table={self.table} is of tracked runs; leave out source=published")
        if self.published and len(self.study) > 1:
            raise AnalysisError("source=published analyses one study at a time")
        return self
