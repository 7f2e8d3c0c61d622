"""Random changes to training images that keep their class, made for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from dxc.errors import require_one_of, require_whole

if TYPE_CHECKING:
    from dxc.config.plan import Data

AUGMENTATIONS = ("none", "crop_flip", "flip_rotate")
OF_CHIPS = ("none", "flip_rotate")
"""Padding would put an edge into the elevations."""


class Augmentation(Protocol):
    """Changes the images of a training batch at random."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw for `count` images: tensors (count,) of the CPU, so that they are the same on every device."""
        ...

    def apply(self, images: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """Images (B, C, H, W) on any device, changed as drawn. Nothing waits for the device."""
        ...


class Drawn(NamedTuple):
    """What is done to each image of a batch: (B,) int64 shifts in pixels, 0 to 2 x pad, and (B,) bool flips."""

    down: Tensor
    right: Tensor
    flip: Tensor


class CropFlip:
    """Pads an image with zeros, cuts a part of its size out at random, and mirrors every second one left to right.

    He et al. 2016, doi 10.1109/CVPR.2016.90, section 4.2. Zero is the mean colour where images are normalised.

    Args:
        pad: pixels on each side; published: 4.

    Raises:
        ConfigError: pad is no whole number.
    """

    def __init__(self, pad: int = 4) -> None:
        require_whole("data.pad", pad, at_least=0)
        self.pad = pad

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw for `count` images. The numbers are drawn on the CPU: they are the same on every device."""
        shifts = torch.randint(2 * self.pad + 1, (2, count), generator=generator)
        return Drawn(shifts[0], shifts[1], torch.rand(count, generator=generator) < 0.5)

    def apply(self, images: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """Images (B, C, H, W) on any device, changed as drawn. Nothing waits for the device."""
        count, _, height, width = images.shape
        down, right, flip = (each.to(images.device, non_blocking=True) for each in drawn)
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
        rows = down[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(count, width)
        columns = right[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
        batch = torch.arange(count, device=images.device)[:, None, None]
        # Advanced indices on both sides of a slice put the slice last: (B, H, W, C). As a view that would be
        # channels_last, and convolutions follow it, also those that must not
        # (dxc.training.trainer.breaks_in_channels_last).
        return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class FlipRotate:
    """Turns an image by 0, 90, 180 or 270 degrees, and mirrors it or not: eight ways, all as likely.

    Ground that is seen from above has no top. Images that are not square are mirrored, and not turned by 90 degrees.
    """

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """(count,) bool each: mirrored left to right, mirrored top to bottom, and rows and columns exchanged."""
        mirrored = torch.randint(2, (3, count), generator=generator) == 1
        return tuple(mirrored)

    def apply(self, images: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """Images (B, C, H, W) on any device, changed as drawn. Nothing waits for the device."""
        left_right, top_bottom, exchanged = (
            each.to(images.device, non_blocking=True)[:, None, None, None] for each in drawn
        )
        images = torch.where(left_right, images.flip(3), images)
        images = torch.where(top_bottom, images.flip(2), images)
        if images.shape[2] == images.shape[3]:
            images = torch.where(exchanged, images.transpose(2, 3), images)
        return images.contiguous()


def augmentation(name: str, pad: int = 0, among: Sequence[str] = AUGMENTATIONS) -> Augmentation | None:
    """The augmentation of this name; None for none.

    Args:
        name: none, crop_flip or flip_rotate.
        pad: see CropFlip.
        among: the names that may be asked for.

    Raises:
        ConfigError: there is none of this name, or pad cannot work.
    """
    require_one_of("data.augment", name, among)
    if name == "flip_rotate":
        return FlipRotate()
    return CropFlip(pad) if name == "crop_flip" else None


def planned_augmentation(data: Data) -> Augmentation | None:
    """The augmentation of a section `data`; None where its images stay as they are."""
    name, pad = data.argument("augment"), data.argument("pad")
    return None if name is None else augmentation(name, 0 if pad is None else pad)
