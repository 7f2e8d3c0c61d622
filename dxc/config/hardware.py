"""The section `hardware` of a configuration: a device, as conf/hardware/NAME.yaml describes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from dxc.config.checked import (
    Flag,
    Limit,
    Names,
    Natural,
    Part,
    Positive,
    Precision,
    Text,
    checked,
    cost_among,
)
from dxc.metrics import limitable


def _batches(batches: Any) -> Any:
    if not isinstance(batches, list | tuple) or not batches or batches[0] != 1:
        raise ValueError(f" must be a list that begins with 1, not {batches!r}")
    return batches


def _ascending(batches: list[int]) -> list[int]:
    if batches != sorted(set(batches)):
        raise ValueError(f" must ascend, not {batches}")
    return batches


HOST = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*)|[0-9A-Fa-f:]*:[0-9A-Fa-f:]*(?:%[A-Za-z0-9._-]+)?)"
)


def is_host(text: object) -> bool:
    """Whether a text can name a device to ssh: user@address, an address, or an alias of the user's."""
    return isinstance(text, str) and len(text) <= 255 and HOST.fullmatch(text) is not None


def _host_of_runtime(host: str | None, info: ValidationInfo) -> str | None:
    if host is not None and not is_host(host):
        raise ValueError(f" must read user@address, such as pi@raspberrypi.local, not {host!r}")
    if host is not None and info.data.get("runtime") == "torch":
        raise ValueError(
            ": hardware.runtime=torch measures on this machine only; a host needs hardware.runtime=onnxruntime"
        )
    return host


class Hardware(Part):
    """The device that trains a network and the device that it is meant for."""

    name: Text
    accelerator: Text = "cpu"
    """For the trainer, as precision is."""
    precision: Precision = "32-true"
    runtime: Literal["auto", "onnxruntime", "torch"] = "onnxruntime"
    """Runs the exported file. torch: with torch's operators, on a GPU as one CUDA graph; on this machine only. auto:
    onnxruntime where it has the provider or there is a host, else torch."""
    provider: Literal["cpu", "cuda"] = "cpu"
    """What the runtime computes on."""
    threads: Positive = 1
    affinity: list[Natural] | None = None
    """Cores to use."""
    batches: Annotated[list[Positive], BeforeValidator(_batches), AfterValidator(_ascending)] = Field(
        default=[1]
    )
    """Batch sizes to measure, ascending from 1. More than one give efficiency_ms."""
    schedule: Flag = False
    """Whether schedules of concurrent operators are measured, at `batches`, on a GPU of this machine."""
    host: Annotated[Text | None, AfterValidator(_host_of_runtime)] = None
    """The device over SSH (user@name). Without a host, a `remote` device is only predicted."""
    python: Text = "python3"
    """Interpreter with onnxruntime on the host."""
    remote: Flag = False
    emulated: Flag = False
    """Whether the device is emulated, such as by QEMU. Its times are then never compared with those of a real one."""
    measure: Flag = True
    """False predicts only."""
    predictors: Names = Field(default=[])
    """Names of nn-Meter packages, looked up in packages_dir, among those of dxc, and at packages_url."""
    packages_dir: Text = "packages"
    packages_url: Text = ""
    limits: dict[Annotated[str, cost_among(limitable)], Limit] = Field(default={})
    """Largest value by metric; see Metric.may_be_limited."""

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Hardware:
        """Check the section of a resolved configuration. Raises ConfigError for a key or value that cannot work."""
        return checked(cls, section, "hardware")
