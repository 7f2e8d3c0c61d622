"""The least time that a network could take on a device, from its measured peaks (Williams et al. 2009, doi
10.1145/1498765.1498785)."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from dxc.hardware.schedule.execution import elapsed_ms
from dxc.hardware.schedule.program import PRECISIONS


class Peaks(NamedTuple):
    """Measured peaks of a device in one precision.

    Attributes:
        flops: floating-point operations a second of a large square matrix product.
        bandwidth: bytes a second, read and written, of a large copy.
    """

    flops: float
    bandwidth: float

    def least_ms(self, macs: float, moved: float) -> float:
        """The longer of the time to compute and the time to move.

        Values between operators count as if they never left the cache, and weights as if they were not in it. So a
        network whose weights stay in the cache can be a little faster.

        Args:
            macs: multiply-accumulates; two operations each.
            moved: bytes that have to be moved at least once.
        """
        return 1000 * max(2 * macs / self.flops, moved / self.bandwidth)


def measure_peaks(device: torch.device, precision: str) -> Peaks:
    """Measure a device with one large matrix product and one large copy.

    Args:
        device: which one.
        precision: a key of dxc.hardware.schedule.program.PRECISIONS.
    """
    on_gpu = device.type == "cuda"
    size, elements = (8192, 2**26) if on_gpu else (768, 2**24)
    a = torch.rand(size, size, device=device).to(PRECISIONS[precision])
    product = torch.empty_like(a)
    seconds = _seconds(lambda: torch.mm(a, a, out=product), device)
    source = torch.zeros(elements, device=device)
    target = torch.empty_like(source)
    copied = _seconds(lambda: target.copy_(source), device)
    return Peaks(2 * size**3 / seconds, 2 * elements * source.element_size() / copied)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    return median([elapsed_ms(run, 3, device) for _ in range(8)][3:]) / 1000
