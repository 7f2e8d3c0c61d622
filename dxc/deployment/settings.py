"""What deploy.py is asked: the keys of conf/deploy.yaml, which explains each, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from dxc.analysis.questions import Address, Listed, Store
from dxc.config.checked import Amount, Flag, Part, Positive, Text, checked
from dxc.config.hardware import Hardware
from dxc.errors import ConfigError
from dxc.untrusted import is_run_id


def _run_ids(value: Any) -> list[str]:
    ids = [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)] if value else []
    if wrong := [each for each in ids if not is_run_id(each)]:
        raise ValueError(
            f" must be ids of runs, 32 hexadecimal digits as MLflow's page shows them, not {wrong[0]!r:.60}"
        )
    return list(dict.fromkeys(ids))


class Root(Part):
    """Where a user's own images lie."""

    root: Text | None


class Deploy(Part):
    """Which networks are proved on which device."""

    study: Listed
    runs: Annotated[list[str], BeforeValidator(_run_ids)]
    """Ids of runs, in the place of a study."""
    designs: Literal["front", "all"]
    where: Text | None
    objectives: Annotated[
        list[str] | None, BeforeValidator(lambda value: value if value is None else list(value))
    ]
    mix: Listed
    hardware: Hardware
    energy: dict[str, Any] | None = None
    """The meter; None: there is none."""
    images: Literal["test", "random"]
    """random: without labels, for latency, memory and energy alone."""
    again: Flag
    repeats: Annotated[int, Positive]
    seconds: Amount | None
    """Least length of each repeat; None: METERED_SECONDS with a meter, PLAIN_SECONDS without."""
    idle_seconds: Amount
    """With a meter, before and after the repeats."""
    source: Root
    folder: Text | None
    """On the device."""
    out: Text
    refresh: Flag
    progress: Flag
    cache_dir: Address
    tracking: Store

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Deploy:
        """From a resolved configuration. Raises ConfigError for keys and values that cannot work."""
        return checked(cls, config)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if bool(self.study) == bool(self.runs):
            raise ConfigError("name what is deployed: study=NAME for its front, or runs=[ID,ID]")
        if self.hardware.runtime == "torch":
            raise ConfigError(
                "hardware.runtime=torch measures in training only; deploy with hardware.runtime=onnxruntime"
            )
        if self.hardware.remote and not self.hardware.host:
            raise ConfigError(
                f"hardware={self.hardware.name} is another machine: name it, hardware.host=user@address"
            )
        if self.repeats < 3:
            raise ConfigError(f"repeats must be at least 3, not {self.repeats}: fewer show no spread")
        return self
