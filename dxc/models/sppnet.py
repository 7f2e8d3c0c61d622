"""The SPP-Net space: image (B, C, H, W) of any size -> is there a crossing, and where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dxc.errors import ConfigError, require_whole
from dxc.models.registry import MIN_SIZE

CHANNELS = (64, 128, 256)
LOWER_LEVELS = (2, 1)
LEVELS = range(1, 6)


class Detection(NamedTuple):
    """What a detector answers for a batch of images.

    Attributes:
        presence: (B,) logit that the image holds a crossing.
        box: (B, 4) centre x, centre y, width and height, each 0 to 1 of the image's width or height; x to the right,
            y down.
    """

    presence: Tensor
    box: Tensor


class SpatialPyramid(nn.Module):
    """Spatial pyramid pooling: features (B, C, H, W) of any size -> (B, C x (sum of level^2)).

    He et al. 2015, doi 10.1109/TPAMI.2015.2389824. A level l divides the features into l x l bins and keeps the
    maximum of each. The bins are those of torch's adaptive pooling: along an axis of n, bin i begins at floor(i n / l)
    and ends before ceil((i + 1) n / l). So neighbours overlap where l does not divide n.

    Adaptive pooling is no ONNX operator. An exported file computes the bins with operators that every runtime has. The
    bins are those of one fixed size or, with `any_size`, those of each image.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.any_size = False
        """Whether an exported file takes any size. dxc.deploy.export.export_any_size sets it while it writes a file."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._pool(x, level).flatten(1) for level in self.levels], dim=1)

    def channel_of_features(self, channels: int) -> list[int]:
        """For each output feature, the input channel that it is a maximum of. dxc.compress.prune reads it."""
        return [channel for level in self.levels for channel in range(channels) for _ in range(level**2)]

    def _pool(self, x: Tensor, level: int) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return F.adaptive_max_pool2d(x, level)
        return pool_any_size(x, level) if self.any_size else pool_fixed_size(x, level)


def pool_fixed_size(x: Tensor, level: int) -> Tensor:
    """F.adaptive_max_pool2d(x, level) built from Gather and max pooling, which nn-Meter knows. A trace fixes the size.

    One MaxPool suffices where the bins lie evenly, as they do where `level` divides the size. Elsewhere bins differ in
    length by one at most. Then each bin is the union of two windows as long as the shortest bin, one at its beginning
    and one at its end. All windows are pooled, these are gathered, and then they are pooled in pairs.

    Args:
        x: features (B, C, H, W).
        level: bins along each axis.

    Returns:
        (B, C, level, level).
    """
    rows, columns = windows(int(x.shape[2]), level), windows(int(x.shape[3]), level)
    x = F.max_pool2d(x, (rows.length, columns.length), (rows.stride, columns.stride))
    if rows.pairs:
        x = x.index_select(2, torch.tensor(rows.pairs, device=x.device))
    if columns.pairs:
        x = x.index_select(3, torch.tensor(columns.pairs, device=x.device))
    if rows.pairs or columns.pairs:
        x = F.max_pool2d(x, (2 if rows.pairs else 1, 2 if columns.pairs else 1))
    return x


class Windows(NamedTuple):
    """Windows along one axis. pairs: the two windows of bin 0, of bin 1, ...; empty where each window is a bin."""

    length: int
    stride: int
    pairs: list[int]


def windows(size: int, level: int) -> Windows:
    """The windows that make up the `level` bins of adaptive pooling along an axis of `size`; see pool_fixed_size.

    Args:
        size: of the axis, in pixels of the features.
        level: number of bins.
    """
    bins = [(i * size // level, -(-(i + 1) * size // level)) for i in range(level)]
    lengths = {end - begin for begin, end in bins}
    strides = {after[0] - before[0] for before, after in pairwise(bins)} or {size}  # any, for a single bin
    if len(lengths) == len(strides) == 1 and min(strides) > 0:
        return Windows(lengths.pop(), strides.pop(), [])
    shortest = min(lengths)
    return Windows(shortest, 1, [window for begin, end in bins for window in (begin, end - shortest)])


def pool_any_size(x: Tensor, level: int) -> Tensor:
    """F.adaptive_max_pool2d(x, level) built from Gather, ReduceMax and arithmetic on the size. A trace keeps them.

    Args:
        x: features (B, C, H, W).
        level: bins along each axis.

    Returns:
        (B, C, level, level).
    """
    if level == 1:
        return x.amax((2, 3), keepdim=True)
    x = x[:, :, _positions(x.shape[2], level, x.device)].amax(3)
    return x[:, :, :, _positions(x.shape[3], level, x.device)].amax(4)


def _positions(size: int | Tensor, level: int, device: torch.device) -> Tensor:
    """The positions in each bin, (level, longest possible bin). A shorter bin repeats its last position.

    Args:
        size: of one axis. In a trace it is a tensor, because a trace takes integers for constants.
        level: bins along the axis.
        device: of the result.
    """
    size = torch.as_tensor(size, device=device)
    bins = torch.arange(level, device=device)
    begin = torch.div(bins * size, level, rounding_mode="trunc")
    last = torch.div((bins + 1) * size - 1, level, rounding_mode="trunc")
    longest = torch.div(size, level, rounding_mode="trunc") + 2
    steps = torch.arange(longest, device=device)  # type: ignore[call-overload]  # it takes a tensor of one number
    return torch.minimum(begin[:, None] + steps, last[:, None])


class SppNet(nn.Module):
    """SPP-Net with a variable first kernel, pyramid and linear layers (space of doi 10.1145/3624062.3624260).

    C64,kernel - P2 - C128,3 - P2 - C256,3 - P2 - SPP level,2,1 - F features [- F features2] - two linear heads.
    C is a convolution with 'same' padding and bias, P a max pool of 2, F a linear layer. ReLU follows C and F; there is
    no batch norm. Images may have any size of 16 x 16 pixels or more; height and width may differ. The published
    original has kernel 3, level 4 and features 1024.

    Args:
        in_channels: number of channels of the image.
        kernel: of the first convolution in pixels, odd.
        level: of the first level of the pyramid, 1 to 5.
        features: size of the first linear layer.
        features2: size of the second linear layer; 'none' leaves it out.

    Raises:
        ConfigError: a knob cannot work.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        kernel: int = 3,
        level: int = 4,
        features: int = 1024,
        features2: int | str = "none",
    ) -> None:
        super().__init__()
        _check_knobs(in_channels, kernel, level, features, features2)
        first, second, third = CHANNELS
        self.convolutions = nn.Sequential(
            *_convolution(in_channels, first, kernel),
            *_convolution(first, second, 3),
            *_convolution(second, third, 3),
        )
        self.pyramid = SpatialPyramid((level, *LOWER_LEVELS))
        sizes = [
            third * sum(each**2 for each in self.pyramid.levels),
            features,
            *([features2] if isinstance(features2, int) else []),
        ]
        self.linear = nn.Sequential(
            *(
                layer
                for before, after in pairwise(sizes)
                for layer in (nn.Linear(before, after), nn.ReLU(inplace=True))
            )
        )
        self.presence = nn.Linear(sizes[-1], 1)
        self.box = nn.Linear(sizes[-1], 4)
        self._initialise()

    def forward(self, x: Tensor) -> Detection:
        if not torch.jit.is_tracing():  # where sizes are tensors
            self.check_input_size(*x.shape[2:])
        x = self.linear(self.pyramid(self.convolutions(x)))
        return Detection(presence=self.presence(x).squeeze(1), box=self.box(x).sigmoid())

    def check_input_size(self, height: int, width: int | None = None) -> None:
        """Raise ConfigError where images are too small for the pyramid.

        Args:
            height: of the images in pixels.
            width: of the images in pixels; None: square images.
        """
        width = height if width is None else width
        if min(height, width) < MIN_SIZE:
            raise ConfigError(
                f"images of {height} x {width} pixels (height x width) are too small for sppnet: three pools halve "
                f"them before the pyramid, so it needs {MIN_SIZE} x {MIN_SIZE} or more; take larger chips (data.size)"
            )

    def _initialise(self) -> None:
        # He et al. 2015, doi 10.1109/ICCV.2015.123: variance kept through ReLU layers, forward pass. Heads begin
        # small (Girshick 2015, doi 10.1109/ICCV.2015.169): undecided, with a box in the middle.
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        for head in (self.presence, self.box):
            nn.init.normal_(head.weight, std=0.01)


def _convolution(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    """(B, in_channels, H, W) -> (B, out_channels, H // 2, W // 2)."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]


def _check_knobs(in_channels: int, kernel: int, level: int, features: int, features2: int | str) -> None:
    require_whole("model.in_channels", in_channels, at_least=1)
    require_whole("model.kernel", kernel, at_least=1)
    if kernel % 2 == 0:
        raise ConfigError(
            f"model.kernel must be odd, not {kernel}: padding on both sides keeps the size of the image"
        )
    require_whole("model.level", level, at_least=LEVELS.start)
    if level not in LEVELS:
        raise ConfigError(f"model.level must be {LEVELS.start} to {LEVELS.stop - 1}, not {level}")
    require_whole("model.features", features, at_least=1)
    if features2 != "none":
        require_whole("model.features2 (if not none)", features2, at_least=1)
