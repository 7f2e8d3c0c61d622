"""What a model costs on a device."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def device_name(accelerator: str = "cpu") -> str:
    """What a run computes on, as its maker names it: 'NVIDIA A100-SXM4-40GB', 'AMD EPYC 7763, 4 cores'."""
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
