"""Description of a device: conf/hardware/NAME.yaml. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dxc.errors import ConfigError, is_number, require_whole
from dxc.metrics import limitable


@dataclass(frozen=True)
class Hardware:
    """The device that trains a network and the device that it is meant for.

    Attributes:
        accelerator: for the trainer.
        precision: for the trainer.
        runtime: runs the exported file.
        provider: cpu | cuda, for the runtime.
        host: the device over SSH (user@name). Without a host, a `remote` device is only predicted.
        python: interpreter with onnxruntime on the host.
        batches: batch sizes to measure, ascending from 1. More than one give efficiency_ms.
        measure: False predicts only.
        predictors: names of nn-Meter packages, looked up in packages_dir, among those of dxc, and at packages_url.
        limits: largest value by metric; see Metric.may_be_limited.
    """

    name: str
    accelerator: str = "cpu"
    precision: str = "32-true"
    runtime: str = "onnxruntime"
    provider: str = "cpu"
    threads: int = 1
    affinity: Sequence[int] | None = None
    batches: Sequence[int] = (1,)
    host: str | None = None
    python: str = "python3"
    remote: bool = False
    measure: bool = True
    predictors: Sequence[str] = ()
    packages_dir: str = "packages"
    packages_url: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Hardware:
        """Check the section of a resolved configuration. Raises ConfigError for a key or value that cannot work."""
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(section) - known):
            raise ConfigError(f"hardware has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        hardware = cls(**section)
        require_whole("hardware.threads", hardware.threads, at_least=1)
        if hardware.runtime != "onnxruntime":
            raise ConfigError(f"hardware.runtime must be onnxruntime, not {hardware.runtime!r}")
        if hardware.provider not in ("cpu", "cuda"):
            raise ConfigError(f"hardware.provider must be cpu or cuda, not {hardware.provider!r}")
        if not isinstance(hardware.batches, Sequence) or not hardware.batches or hardware.batches[0] != 1:
            raise ConfigError(f"hardware.batches must be a list that begins with 1, not {hardware.batches!r}")
        for batch in hardware.batches:
            require_whole("hardware.batches", batch, at_least=1)
        if list(hardware.batches) != sorted(set(hardware.batches)):
            raise ConfigError(f"hardware.batches must ascend, not {list(hardware.batches)}")
        if isinstance(hardware.predictors, str) or not isinstance(hardware.predictors, Sequence):
            raise ConfigError(f"hardware.predictors must be a list of names, not {hardware.predictors!r}")
        for metric, limit in hardware.limits.items():
            if metric not in limitable():
                raise ConfigError(
                    f"hardware.limits.{metric}: no such cost; {', '.join(limitable())} have limits"
                )
            if not is_number(limit) or not limit > 0:
                raise ConfigError(f"hardware.limits.{metric} must be a number over 0, not {limit!r}")
        return hardware

    def absent(self) -> str:
        """The reason why this hardware cannot be measured from here; '' if it can."""
        if not self.measure:
            return "hardware.measure=false"
        if self.remote and not self.host:
            return (
                f"{self.name} is another machine; hardware.host=user@address measures there over SSH. "
                "Predictions need no device"
            )
        if self.provider == "cuda" and not self.host:
            import torch

            if not torch.cuda.is_available():
                return f"there is no CUDA device here for hardware={self.name}"
        return ""


def device_name(accelerator: str = "cpu") -> str:
    """Name of the device that a run computes on, as its maker gives it: 'NVIDIA A100-SXM4-40GB', 'AMD EPYC 7763, 4
    cores'."""
    if accelerator in ("auto", "gpu", "cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores"
