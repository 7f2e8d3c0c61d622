"""Switches of torch's arithmetic are set for a GPU and put back, whoever set them before and in which way."""

from __future__ import annotations

import subprocess
import sys

import torch

from dxc.hardware.torch_runtime import arithmetic

NEWER = """
import torch
from dxc.hardware.torch_runtime import arithmetic

matmul = torch.backends.cuda.matmul
for before in ("none", "ieee", "tf32"):
    matmul.fp32_precision = before
    with arithmetic("cuda"):
        assert matmul.fp32_precision == "tf32", before
    assert (matmul.fp32_precision == "tf32") == (before == "tf32"), before
"""


def test_arithmetic_is_put_back() -> None:
    for device, inside in (("cuda", ("high", True)), ("cpu", ("highest", False))):
        with arithmetic(device):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == inside
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == ("highest", False)


def test_arithmetic_beside_the_newer_switch() -> None:
    """In a process of its own, because torch keeps which of its switches was used."""
    done = subprocess.run([sys.executable, "-c", NEWER], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
