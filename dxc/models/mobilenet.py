"""MobileNet-v1: image (B, C, H, W) -> class scores (B, num_classes)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dxc.errors import ConfigError, is_number, require_whole

STEM = 32
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *([(512, 1)] * 5),
    (1024, 2),
    (1024, 1),
)
"""Channels and stride of each depthwise separable block (Howard et al. 2017, arXiv 1704.04861, table 1). The table
prints stride 2 for the last block too, and 7 x 7 as the size before and after it: with stride 1 the sizes agree."""


class MobileNetV1(nn.Module):
    """MobileNet-v1 (Howard et al. 2017, arXiv 1704.04861) with its width multiplier.

    A 3x3 convolution, 13 depthwise separable blocks, a global mean and one linear layer; batch norm and ReLU after each
    convolution.

    Args:
        in_channels: number of channels of the image.
        num_classes: number of scores in the output.
        width: multiplies the channels of every layer; published: 0.25, 0.5, 0.75, 1.
        stride: of the first convolution; published: 2. 1 suits small images.

    Raises:
        ConfigError: a knob cannot work.
    """

    def __init__(
        self, in_channels: int, num_classes: int = 2, *, width: float = 1.0, stride: int = 2
    ) -> None:
        super().__init__()
        for name, value in {"in_channels": in_channels, "num_classes": num_classes, "stride": stride}.items():
            require_whole(f"model.{name}", value, at_least=1)
        if not is_number(width) or not width >= 1 / STEM:
            raise ConfigError(
                f"model.width multiplies the channels: it must be a number of at least 1/{STEM}, not {width!r}"
            )
        channels = int(STEM * width)
        layers = _convolution(in_channels, channels, 3, stride)
        for published, block_stride in BLOCKS:
            wide = int(published * width)
            layers += _convolution(channels, channels, 3, block_stride, groups=channels)
            layers += _convolution(channels, wide, 1, 1)
            channels = wide
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))

    def check_input_size(self, size: int) -> None:
        """Accept any size: every convolution is padded."""

    def _initialise(self) -> None:
        # He et al. 2015, doi 10.1109/ICCV.2015.123: variance kept through ReLU layers. Forward pass: torch counts the
        # fan-out of a depthwise convolution as if every channel fed every other.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1
) -> list[nn.Module]:
    """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)); an odd kernel."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
