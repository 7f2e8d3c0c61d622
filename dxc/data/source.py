"""The interfaces of sources of images. Free of torch, so that the processes that make chips start quickly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dxc.data.images import LabelledImages


class Source(Protocol):
    """A source of images. conf/source/*.yaml name its subclasses; a section `source` can build only these."""

    @property
    def noun(self) -> str:
        """What the images are, without their number: 'synthetic chips', 'chips of FOLDER', 'images of CIFAR-10'."""

    @property
    def title(self) -> str:
        """What the images are, for people: '1,200 synthetic chips (seed 0)', 'chips of FOLDER'."""

    def check(self) -> None:
        """Look whether there are images, without reading one. Raises DataError where there are none."""

    def prepare(self) -> Path:
        """Make or fetch the files if needed. Returns the folder or the file that holds them."""


class ChipSource(Source, Protocol):
    """A source of chips: `prepare` returns the folder that holds the regions. It goes with data=7ch and the like."""

    on_bad_chip: str
    photo_bands: Sequence[str]
    check_georeference: bool

    def planned(self) -> tuple[Sequence[int], Sequence[str]] | None:
        """Label and region of each chip, in (region, name) order, where they are known before there are chips."""
        return None

    def jitter(self) -> float | None:
        """Largest distance in metres of a crossing from the centre of its chip, on either axis; None: not known."""
        return None


class ImageSource(Source, Protocol):
    """A source of labelled images of one size, which fit into memory. It goes with data=cifar10."""

    def read(self) -> LabelledImages:
        """Prepare and read all images. Raises DataError where they cannot be used."""
