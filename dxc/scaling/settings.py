"""What scale.py is asked: the keys of conf/scale.yaml, which explains each, checked; and the grid that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dxc.config.checked import (
    Amount,
    Flag,
    FolderName,
    Limit,
    LimitOrNull,
    Names,
    Natural,
    Part,
    Positive,
    Text,
    checked,
)
from dxc.config.plan import Model, Optimizer
from dxc.errors import ConfigError, is_whole
from dxc.scaling.results import Scaling

SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
LOOKS = 20
"""Validations within `minutes`, where there is a target."""


def _several(value: Any) -> list[Any]:
    """1,2,4 | [1, 2, 4] | 4 -> a list. Texts of digits become numbers."""
    if isinstance(value, str):
        value = [each.strip() for each in value.strip("[]").split(",")]
    several = list(value) if isinstance(value, list | tuple) else [value]
    return [int(each) if isinstance(each, str) and each.isdigit() else each for each in several]


def _counts(value: Any) -> Any:
    if value is None:
        return None
    counts = _several(value)
    if not counts or not all(is_whole(each, 1) for each in counts) or len(set(counts)) != len(counts):
        raise ValueError(f" must be different whole numbers of at least 1, such as 1,2,4, not {value!r}")
    return sorted(counts)


def _scalings(value: Any) -> Any:
    kinds = _several(value)
    if not kinds or any(kind not in ("weak", "strong") for kind in kinds) or len(set(kinds)) != len(kinds):
        raise ValueError(f" must be weak, strong or weak,strong, not {value!r}")
    return kinds


def _target(value: Any) -> Any:
    """accuracy=0.75 -> 0.75."""
    if value is None:
        return None
    name, _, text = str(value).partition("=")
    try:
        target = float(text)
    except ValueError:
        target = -1.0
    if name.strip() != "accuracy" or not 0 < target < 1:
        raise ValueError(
            f" must be accuracy=SHARE with a share over 0 and under 1, such as accuracy=0.75, not {value!r}"
        )
    return target


Counts = Annotated[list[int], BeforeValidator(_counts)]
CountsOrNull = Annotated[list[int] | None, BeforeValidator(_counts)]


class Tracking(Part):
    """Where runs are recorded."""

    uri: Text
    artifacts: Names
    log: Flag


class Settings(Part):
    """A grid of runs, and how each proceeds."""

    source: dict[str, Any]
    data: dict[str, Any]
    task: dict[str, Any]
    score: Text
    model: Model
    optimizer: Optimizer
    study: FolderName
    devices: CountsOrNull
    nodes: Counts
    scaling: Annotated[list[Scaling], BeforeValidator(_scalings)]
    batch: CountsOrNull
    minutes: LimitOrNull
    until: Annotated[float | None, BeforeValidator(_target)]
    seed: Natural
    accelerator: Literal["auto", "cpu", "cuda"]
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None
    threads: Positive
    oversubscribe: Flag
    channels_last: Flag
    warmup_steps: Positive | None
    validation_images: Natural | None
    measured_seconds: Amount
    timeout_seconds: Limit
    simulated_step_ms: Amount
    lr_batch: Positive
    lr_steps: Natural
    price_per_gpu_hour: LimitOrNull
    published: Flag
    boxes: Flag
    again: Flag
    dry_run: Flag
    out: Text
    cache_dir: Text
    progress: Flag
    tracking: Tracking
    launcher: dict[str, Any] = Field(default={}, exclude=True)
    """hydra.launcher. Of Hydra's launchers, Slurm's says how to reach several nodes; the others are not used."""

    @classmethod
    def of(cls, config: Mapping[str, Any], launcher: Any = None) -> Settings:
        """From a resolved configuration.

        Args:
            config: in plain containers.
            launcher: hydra.launcher.

        Raises:
            ConfigError: a key or value that cannot work.
        """
        if "launcher" in config:
            raise ConfigError("the configuration has no launcher; choose hydra/launcher=submitit_slurm")
        return checked(cls, {**config, "launcher": dict(launcher or {})})

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.model.entry.task != "classification":
            raise ConfigError(
                f"scale.py trains networks that tell classes apart, and {self.model.name} is none; choose "
                "model=resnet50, resnet18, mobilenet_v1 or resnet8"
            )
        if self.on_slurm and self.devices is None:
            raise ConfigError("devices= is needed on Slurm: this machine cannot tell what its nodes have")
        if self.on_slurm and self.accelerator == "auto":
            raise ConfigError(
                "accelerator=cuda or accelerator=cpu is needed on Slurm: this machine cannot tell"
            )
        return self

    @property
    def on_slurm(self) -> bool:
        return self.launcher.get("_target_") == SUBMITIT

    def grid(self, devices: list[int], batches: list[int]) -> list[Point]:
        """All configurations: by kind of scaling, then batch, then number of devices.

        Raises:
            ConfigError: a batch of strong scaling that does not divide.
        """
        points, undivided = [], []
        for scaling in self.scaling:
            for batch in batches:
                found = {Point(scaling, n, d, batch) for n in self.nodes for d in devices}
                points += sorted(found, key=lambda each: (each.total, each.nodes))
        for point in points:
            if point.scaling == "strong" and point.batch % point.total:
                undivided.append(f"batch={point.batch} by {point.total} devices")
        if undivided:
            raise ConfigError(
                f"scaling=strong divides the batch among all devices, and it cannot divide {', '.join(undivided)}; "
                "choose a batch that is a multiple of each number of devices"
            )
        return points


@dataclass(frozen=True)
class Point:
    """One configuration of the grid. batch: of each device (weak) or of all (strong)."""

    scaling: Scaling
    nodes: int
    devices: int
    batch: int

    @property
    def total(self) -> int:
        return self.nodes * self.devices

    @property
    def device_batch(self) -> int:
        return self.batch if self.scaling == "weak" else self.batch // self.total

    @property
    def total_batch(self) -> int:
        return self.total * self.device_batch

    @property
    def name(self) -> str:
        """'2 nodes x 8 devices, weak, batch 64'."""
        nodes = f"{self.nodes} nodes x " if self.nodes > 1 else ""
        return f"{nodes}{self.devices} device{'s' * (self.devices > 1)}, {self.scaling}, batch {self.batch}"
