"""The device that is here, and whether a device of a configuration can be measured. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from dxc.config.hardware import Hardware


def absent(hardware: Hardware) -> str:
    """The reason why a device cannot be measured from here; '' if it can."""
    if not hardware.measure:
        return "hardware.measure=false"
    if hardware.remote and not hardware.host:
        return (
            f"{hardware.name} is another machine; hardware.host=user@address measures there over SSH. "
            "Predictions need no device"
        )
    if hardware.provider == "cuda" and not hardware.host:
        import torch

        if not torch.cuda.is_available():
            return f"there is no CUDA device here for hardware={hardware.name}"
    return ""


def runtime_of(hardware: Hardware) -> tuple[str, str]:
    """The runtime that measures a device, onnxruntime or torch; and why, where `auto` had to take torch ('' else)."""
    if hardware.runtime != "auto":
        return hardware.runtime, ""
    if hardware.host or hardware.provider == "cpu":
        return "onnxruntime", ""
    try:
        import onnxruntime
    except ImportError:
        return "torch", "measured with torch: there is no onnxruntime here"
    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in providers:
        return "onnxruntime", ""
    return "torch", f"measured with torch: this onnxruntime has {', '.join(providers)}, but not CUDA"


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
