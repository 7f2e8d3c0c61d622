"""ResNets: image (B, C, H, W) -> class scores (B, num_classes)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dxc.errors import ConfigError, require_whole
from dxc.models.registry import STAGES

POOL_PADDING = 1  # fixed in the published space


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, doi 10.1109/CVPR.2016.90, figure 2).

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride). Where the shape changes, the shortcut
    is a 1x1 convolution (option B of the paper).
    """

    expansion = 1
    """Channels that it gives, relative to those of its convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut (He et al. 2016, doi 10.1109/CVPR.2016.90, figure 5).

    (B, in_channels, H, W) -> (B, 4 x channels, H / stride, W / stride). The 3x3 convolution has the stride, as
    in torchvision (the paper gives it to the first). Where the shape changes, the shortcut is a 1x1 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
            if stride != 1 or in_channels != wide
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNet(nn.Module):
    """ResNet with a variable stem, width and depth (space of doi 10.1145/3624062.3624258, table 2).

    With kernel 7, stride 2, padding 3, pool max 3/2, width 64 and blocks 2 it is the conventional ResNet-18, with
    torchvision's state_dict keys.

    Args:
        in_channels: number of channels of the image.
        num_classes: number of scores in the output.
        kernel: of the first convolution, in pixels.
        stride: of the first convolution.
        padding: of the first convolution, in pixels.
        pool: 'max' for a max pool (padding 1) after the first convolution, or 'none'.
        pool_kernel: of the pool, in pixels.
        pool_stride: of the pool.
        width: channels of stage 1. Each of stages 2 to 4 doubles the channels and halves the resolution.
        blocks: basic blocks a stage, one number or four.

    Raises:
        ConfigError: a knob cannot work.
    """

    block: type[BasicBlock] | type[Bottleneck] = BasicBlock

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 2,
        *,
        kernel: int = 3,
        stride: int = 2,
        padding: int = 1,
        pool: str = "none",
        pool_kernel: int = 3,
        pool_stride: int = 2,
        width: int = 32,
        blocks: int | Sequence[int] = 2,
    ) -> None:
        super().__init__()
        depths = [blocks] * STAGES if isinstance(blocks, int) else list(blocks)
        _check_knobs(
            at_least_one={
                "in_channels": in_channels,
                "num_classes": num_classes,
                "kernel": kernel,
                "stride": stride,
                "pool_kernel": pool_kernel,
                "pool_stride": pool_stride,
                "width": width,
                **{f"blocks[{stage}]": depth for stage, depth in enumerate(depths)},
            },
            padding=padding,
            pool=pool,
            depths=depths,
        )
        if pool == "max" and pool_kernel < 2 * POOL_PADDING:
            raise ConfigError(f"model.pool_kernel must be at least 2 (its padding is 1), not {pool_kernel}")

        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool_kernel = pool_kernel if pool == "max" else 0
        self.maxpool = (
            nn.MaxPool2d(pool_kernel, pool_stride, POOL_PADDING) if pool == "max" else nn.Identity()
        )
        widths = [width * 2**stage for stage in range(STAGES)]
        made, expansion = self.block, self.block.expansion
        self.layer1 = _stage(made, width, widths[0], depths[0], stride=1)
        self.layer2 = _stage(made, expansion * widths[0], widths[1], depths[1], stride=2)
        self.layer3 = _stage(made, expansion * widths[1], widths[2], depths[2], stride=2)
        self.layer4 = _stage(made, expansion * widths[2], widths[3], depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(expansion * widths[-1], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def check_input_size(self, size: int) -> None:
        """Raise ConfigError where chips of size x size pixels are too small for the stem."""
        conv = self.conv1
        (kernel, _), (stride, _), padding = conv.kernel_size, conv.stride, int(conv.padding[0])
        if kernel > size + 2 * padding:
            raise ConfigError(
                f"model.kernel={kernel} is larger than the padded chip: {size} + 2 x padding {padding} = "
                f"{size + 2 * padding} pixels; choose a smaller kernel or more padding"
            )
        after = (size + 2 * padding - kernel) // stride + 1
        if self.pool_kernel > after + 2 * POOL_PADDING:
            raise ConfigError(
                f"model.pool_kernel={self.pool_kernel} is larger than what the first convolution "
                f"leaves of the chip: {after} + 2 x padding {POOL_PADDING} pixels; choose a smaller one"
            )


class BottleneckResNet(ResNet):
    """The same with bottlenecks instead of basic blocks, and the conventional stem; its knobs are those of ResNet.

    With blocks 3, 4, 6, 3 it is the conventional ResNet-50, with torchvision's state_dict keys: 25,557,032 parameters
    with 1000 classes. A stage of width w gives 4 w channels.
    """

    block = Bottleneck

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 2,
        *,
        kernel: int = 7,
        stride: int = 2,
        padding: int = 3,
        pool: str = "max",
        pool_kernel: int = 3,
        pool_stride: int = 2,
        width: int = 64,
        blocks: int | Sequence[int] = (3, 4, 6, 3),
    ) -> None:
        super().__init__(
            in_channels, num_classes, kernel=kernel, stride=stride, padding=padding, pool=pool,
            pool_kernel=pool_kernel, pool_stride=pool_stride, width=width, blocks=blocks,
        )  # fmt: skip


class TinyBlock(nn.Module):
    """A basic block as MLPerf Tiny has it: convolutions with a bias, and no batch norm after the shortcut's.

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Conv2d(in_channels, out_channels, 1, stride)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class TinyResNet(nn.Module):
    """ResNet-8, the image classification network of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597).

    A 3x3 convolution and three basic blocks, of width, 2 and 4 x width channels, a global mean and one linear layer.
    With 3 channels, 10 classes and width 16, 78,186 parameters are trained. The published count is 78,666: Keras counts
    the 480 means and variances of the batch norms too. Where a stride of 2 meets an even size, Keras pads one side and
    this network both.

    Args:
        in_channels: number of channels of the image.
        num_classes: number of scores in the output.
        width: channels of the first block; published: 16.

    Raises:
        ConfigError: a knob cannot work.
    """

    def __init__(self, in_channels: int, num_classes: int = 10, *, width: int = 16) -> None:
        super().__init__()
        for name, value in {"in_channels": in_channels, "num_classes": num_classes, "width": width}.items():
            require_whole(f"model.{name}", value, at_least=1)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = TinyBlock(width, width, 1)
        self.layer2 = TinyBlock(width, 2 * width, 2)
        self.layer3 = TinyBlock(2 * width, 4 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def check_input_size(self, size: int) -> None:
        """Accept any size: every convolution is padded."""


def _initialise(network: nn.Module) -> None:
    # He et al. 2015, doi 10.1109/ICCV.2015.123: variance kept through ReLU layers, backward pass.
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, depth: int, *, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    wide = block.expansion * channels
    return nn.Sequential(first, *(block(wide, channels, 1) for _ in range(depth - 1)))


def _check_knobs(*, at_least_one: dict[str, int], padding: int, pool: str, depths: list[int]) -> None:
    for name, value in at_least_one.items():
        require_whole(f"model.{name}", value, at_least=1)
    require_whole("model.padding", padding, at_least=0)
    if pool not in ("none", "max"):
        raise ConfigError(f"model.pool must be none or max, not {pool!r}")
    if len(depths) != STAGES:
        raise ConfigError(f"model.blocks must be one number or {STAGES} of them, not {depths}")
