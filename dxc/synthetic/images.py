"""Drawn images of ten classes, in the binary format of CIFAR-10: a stand-in that needs no network.

Each image shows one shape or texture in a random place, size and pair of colours, on a shaded background with noise.
Colour and place say nothing of the class. Networks learn it, but not at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dxc.data.cifar10 import (
    CLASSES,
    EDGE,
    FILES,
    TEST_FILE,
    TRAIN_FILES,
    check_classes,
    read_batches,
    write_batch,
)
from dxc.data.images import LabelledImages
from dxc.data.source import ImageSource
from dxc.errors import ConfigError, require_whole
from dxc.files import sync_everything, whole_folder

GENERATOR_VERSION = 1  # part of the folder's name: increase it when a pixel changes
SHAPES = (
    "disc", "ring", "square", "triangle", "cross", "two discs", "rows", "columns", "checks", "half disc",
)  # fmt: skip
"""What is drawn for each label. Mirroring left to right makes none of another."""
TEST_SHARE = 6  # one image of so many is a test image, as in CIFAR-10
NOISE = 16.0  # standard deviation in digital numbers
LEAST_CONTRAST = 40.0  # of shape and background, in digital numbers
AT_ONCE = 2_000

Floats = NDArray[np.float32]


class SyntheticImages(ImageSource):
    """Drawn images (source=synthetic_images), made once and kept.

    Args:
        images: number of images, a multiple of 60. A sixth are test images; all classes have equally many of both.
        seed: another seed gives other images.
        classes: names of the classes by label; see SHAPES.
        cache_dir: holds images-HASH/; HASH covers everything that the images depend on.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(
        self, images: int = 6000, seed: int = 0, *, classes: Sequence[str] = SHAPES, cache_dir: str = "cache"
    ) -> None:
        require_whole("source.images", images, at_least=1)
        if images % (TEST_SHARE * CLASSES):
            raise ConfigError(
                f"source.images={images}: needs a multiple of {TEST_SHARE * CLASSES}, for {CLASSES} classes and a "
                "sixth to test"
            )
        require_whole("source.seed", seed, at_least=0)
        check_classes(classes)
        self.images, self.seed, self.classes = images, seed, tuple(classes)
        self.cache_dir = Path(cache_dir)

    @property
    def noun(self) -> str:
        return "synthetic images"

    @property
    def title(self) -> str:
        """'6,000 synthetic images (seed 0)'."""
        return f"{self.images:,} {self.noun} (seed {self.seed})"

    def check(self) -> None:
        """Do nothing: the images are made when they are prepared."""

    @property
    def folder(self) -> Path:
        """cache_dir/images-HASH."""
        what = json.dumps([GENERATOR_VERSION, SHAPES, self.images, self.seed])
        return self.cache_dir / f"images-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    def prepare(self) -> Path:
        """Draw the images if needed. Returns the folder of the six files, which appears when all of them are there."""
        if self.folder.is_dir():
            return self.folder
        from filelock import FileLock

        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if not self.folder.is_dir():
                with whole_folder(self.folder, locked=True) as draft:
                    self._draw(draft)
                    sync_everything()
        return self.folder

    def read(self) -> LabelledImages:
        """All images."""
        return read_batches(self.prepare(), self.classes)

    def _draw(self, folder: Path) -> None:
        test = self.images // TEST_SHARE
        for number, name in enumerate(FILES):
            rng = np.random.default_rng([self.seed, number])
            whole = test if name == TEST_FILE else self.images - test
            share = whole // CLASSES  # of each class; files of training images need not be equal
            of_file = np.repeat(np.arange(CLASSES), share)
            if name in TRAIN_FILES:
                of_file = of_file[number :: len(TRAIN_FILES)]
            labels = rng.permutation(of_file)
            write_batch(folder / name, draw(labels, rng), labels)


def draw(labels: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw images: uint8 (n, 3, 32, 32).

    Args:
        labels: (n,) places in SHAPES.
        rng: of all that is random.
    """
    parts = [_draw(labels[start : start + AT_ONCE], rng) for start in range(0, len(labels), AT_ONCE)]
    return np.concatenate(parts) if parts else np.empty((0, 3, EDGE, EDGE), np.uint8)


def _draw(labels: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.uint8]:
    n = len(labels)
    covered = _covered(labels, rng)[:, None]
    front, back = _colours(n, rng)
    axis = np.linspace(-1, 1, EDGE, dtype=np.float32)
    slopes = rng.uniform(-20, 20, (n, 2, 1, 1, 1)).astype(np.float32)
    shade = slopes[:, 0] * axis[:, None] + slopes[:, 1] * axis
    images = back + covered * (front - back) + shade
    images += NOISE * rng.standard_normal(images.shape, dtype=np.float32)
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def _colours(n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Colours of shape and background, (n, 3, 1, 1) each. The shape is lighter in each band."""
    back = rng.uniform(20, 110, (n, 3))
    front = back + rng.uniform(LEAST_CONTRAST, 130, (n, 3))
    return tuple(each.astype(np.float32)[:, :, None, None] for each in (front, back))  # type: ignore[return-value]


def _covered(labels: NDArray[np.integer], rng: np.random.Generator) -> Floats:
    """Which pixels the shape covers, (n, 32, 32) of 0 and 1."""
    n = len(labels)
    size = rng.uniform(8, 13, (n, 1, 1)).astype(np.float32)  # half the edge, in pixels
    centre = rng.uniform(12, 20, (2, n, 1, 1)).astype(np.float32)
    turn = rng.uniform(-0.15, 0.15, (n, 1, 1)).astype(np.float32)  # radians
    rows, columns = np.mgrid[:EDGE, :EDGE].astype(np.float32)
    down, right = rows - centre[0], columns - centre[1]
    y = (np.cos(turn) * down - np.sin(turn) * right) / size
    x = (np.sin(turn) * down + np.cos(turn) * right) / size
    r2 = x * x + y * y
    inside = np.maximum(abs(x), abs(y)) < 1
    waves = 2 * np.pi / 5  # five pixels a stripe and its gap, whatever the size
    rippled, striped = np.sin(waves * y * size) > 0, np.sin(waves * x * size) > 0
    drawn = (
        r2 < 1,
        (r2 < 1) & (r2 > 0.36),
        np.maximum(abs(x), abs(y)) < 0.85,
        (y < 0.8) & (y > 2 * abs(x) - 1),
        inside & (np.minimum(abs(x), abs(y)) < 0.3),
        np.minimum((x - 0.6) ** 2, (x + 0.6) ** 2) + y * y < 0.23,
        inside & rippled,
        inside & striped,
        inside & (rippled ^ striped),
        (r2 < 1) & (y < 0.15),
    )
    return np.choose(labels[:, None, None], np.stack(drawn)).astype(np.float32)
