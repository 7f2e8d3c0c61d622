"""What a network is trained on, as all rooms see it: numbered images with labels. NumPy only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

from dxc.data.bands import scale_fixed
from dxc.errors import BadChip

Array = np.ndarray


class Images(Protocol):
    """Images that are ready to be read, numbered from 0. ChipCache and LabelledImages are the two kinds of them."""

    @property
    def unit(self) -> str:
        """What one of them is called: 'chip' or 'image'."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""

    @property
    def labels(self) -> Array:
        """int64 (n,)."""

    @property
    def sizes(self) -> Array:
        """int64 (n, 2): height and width in pixels."""

    @property
    def regions(self) -> Sequence[str]:
        """Where each image belongs: a region on the ground, or a part of a published set (train, test)."""

    @property
    def names(self) -> Sequence[str]:
        """Of each image; unique within its region."""

    @property
    def groups(self) -> Array:
        """int64 (n,): images with the same number show the same thing, and no split divides them."""

    @property
    def excluded(self) -> Sequence[BadChip]:
        """Files that could not be used."""

    @property
    def notes(self) -> Sequence[Any]:
        """Remarks on usable files; each has a path and a text."""

    @property
    def data_hash(self) -> str:
        """Identity of the images by their content, 16 hexadecimal digits."""

    @property
    def photo_bands(self) -> tuple[str, ...]:
        """Bands of the photos, in the order of the files."""

    @property
    def pixel_m(self) -> float | None:
        """Edge of a pixel on the ground in metres; None where it is not known."""

    @property
    def has_boxes(self) -> bool:
        """Whether `boxes` can be asked."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int] | Array) -> Array:
        """Images of one size as a network is fed: float32 (len(indices), C, H, W)."""

    def boxes(self, indices: Sequence[int] | Array) -> Array:
        """Boxes of images, float32 (len(indices), M, 4); see ChipCache.boxes."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size in memory, as bytes; they become numbers batch by batch.

    Attributes:
        pixels: uint8 (n, C, H, W).
        labels: int64 (n,).
        classes: names by label.
        held_out: bool (n,): the images that the publisher set aside for tests.
        names: of the images, unique.
        photo_bands: names of the C channels.
        mean: of each channel, subtracted from its values (0 to 255); None: nothing is rescaled.
        std: of each channel, which they are then divided by.
    """

    pixels: Array
    labels: Array
    classes: tuple[str, ...]
    held_out: Array
    names: tuple[str, ...]
    photo_bands: tuple[str, ...] = ("red", "green", "blue")
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    unit: ClassVar[str] = "image"
    excluded: ClassVar[tuple[BadChip, ...]] = ()
    notes: ClassVar[tuple[Any, ...]] = ()
    pixel_m: ClassVar[None] = None
    has_boxes: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.labels)

    def rescaled(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> LabelledImages:
        """The same images, fed with other constants; see mean and std."""
        fed: dict[str, Any] = {"mean": mean and tuple(mean), "std": std and tuple(std)}
        return replace(self, **fed)

    @cached_property
    def sizes(self) -> Array:
        return np.full((len(self), 2), self.pixels.shape[2:], np.int64)

    @cached_property
    def regions(self) -> tuple[str, ...]:
        return tuple("test" if held_out else "train" for held_out in self.held_out.tolist())

    @cached_property
    def groups(self) -> Array:
        return np.arange(len(self))  # nothing is known of copies

    @cached_property
    def data_hash(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        shape = f"{self.pixels.shape} {self.classes}"
        for part in (shape.encode(), self.pixels, self.labels, self.held_out):
            digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def images(self, indices: Sequence[int] | Array) -> Array:
        """As a network is fed: float32 (len(indices), C, H, W)."""
        chosen = self.pixels[np.asarray(indices)]
        if self.mean is None or self.std is None:
            return chosen.astype(np.float32)
        return scale_fixed(chosen, self.mean, self.std)

    def boxes(self, indices: Sequence[int] | Array) -> Array:
        """Raise ValueError: there are none."""
        raise ValueError("these images have no boxes")
