"""Inception blocks: networks with operators that can run side by side, to try schedules on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dxc.deploy.export import export_onnx

IN_CHANNELS = 1280
SIZE = 8


class InceptionBlock(nn.Module):
    """The last block of Inception V3 without its batch norms: features (B, 1280, 8, 8) -> (B, 2048, 8, 8).

    Szegedy et al. 2016, doi 10.1109/CVPR.2016.308, figure 7. Up to six convolutions can run side by side.

    Args:
        width: share of the channels, from 0 to 1.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()

        def channels(number: int) -> int:
            return max(1, round(number * width))

        self.in_channels = channels(IN_CHANNELS)
        self.single = _convolution(self.in_channels, channels(320), 1, 1)
        self.fork = _convolution(self.in_channels, channels(384), 1, 1)
        self.fork_wide = _convolution(channels(384), channels(384), 1, 3)
        self.fork_high = _convolution(channels(384), channels(384), 3, 1)
        self.deep = _convolution(self.in_channels, channels(448), 1, 1)
        self.deep_square = _convolution(channels(448), channels(384), 3, 3)
        self.deep_wide = _convolution(channels(384), channels(384), 1, 3)
        self.deep_high = _convolution(channels(384), channels(384), 3, 1)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.pooled = _convolution(self.in_channels, channels(192), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fork, deep = self.fork(x), self.deep_square(self.deep(x))
        branches = [
            self.single(x),
            self.fork_wide(fork),
            self.fork_high(fork),
            self.deep_wide(deep),
            self.deep_high(deep),
            self.pooled(self.pool(x)),
        ]
        return torch.cat(branches, dim=1)


def _convolution(in_channels: int, out_channels: int, height: int, width: int) -> nn.Sequential:
    """A convolution that keeps the size, and ReLU."""
    kernel, padding = (height, width), (height // 2, width // 2)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, padding=padding), nn.ReLU(inplace=True))


def export_inception(path: Path, *, width: float = 1.0, size: int = SIZE) -> Path:
    """Write an Inception block with random weights as an ONNX file.

    Args:
        path: of the file.
        width: share of the channels.
        size: height and width of the features.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = InceptionBlock(width)
    export_onnx(block, path, in_channels=block.in_channels, size=size)
    return path
