"""The least time that a network could take on a device, from its measured peaks (Williams et al. 2009, doi
10.1145/1498765.1498785)."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

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


def training_step_s(network: nn.Module, images: Tensor, peaks: Peaks, precision: str) -> float:
    """The least time of one training step in seconds, layer by layer.

    Each convolution and linear layer has three passes: forward, gradient of its input, gradient of its weights. Each
    takes the larger of its arithmetic and of its traffic (input, output and weights once). All else is taken to be
    free. The first layer needs no gradient of its input.

    Args:
        network: any of convolutions and linear layers. It may lie on the device `meta`: only shapes count.
        images: a batch (B, C, H, W) on the same device.
        peaks: of the device that trains, in this precision.
        precision: a key of dxc.hardware.schedule.program.PRECISIONS; says how many bytes a number has.
    """
    seconds: list[float] = []

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        macs = output.numel() * weight[0].numel()
        moved = PRECISIONS[precision].itemsize * (inputs[0].numel() + output.numel() + weight.numel())
        seconds.append((3 if seconds else 2) * peaks.least_ms(macs, moved) / 1000)

    hooks = [
        each.register_forward_hook(add)
        for each in network.modules()
        if isinstance(each, nn.Conv2d | nn.Linear)
    ]
    trains = network.training
    try:
        with torch.no_grad():
            network.eval()(images)  # batch normalisation keeps what it has counted
    finally:
        network.train(trains)
        for hook in hooks:
            hook.remove()
    return sum(seconds)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    return median([elapsed_ms(run, 3, device) for _ in range(8)][3:]) / 1000
