"""A few chips to look at, spread over all that there are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dxc.data.cache import Recipe, read_some
from dxc.data.images import Images
from dxc.data.layout import CLASS_NAMES, scan
from dxc.errors import BadChip, BadChipsError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChipSample:
    """Some chips as a network sees them, crossings first. They may be of several sizes."""

    channels: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    """float32 (C, H, W) each."""
    labels: tuple[int, ...]
    """1 = crossing, 0 = none."""
    regions: tuple[str, ...]
    names: tuple[str, ...]
    boxes: tuple[np.ndarray, ...]
    """(M, 4) each: cx, cy, w, h relative to the image; no row, and rows of NaN, are no boxes."""
    of: int
    """How many chips there are, of which these are some."""
    classes: tuple[str, ...] = CLASS_NAMES
    """Names by label."""
    unit: str = "chip"
    """What one of them is called."""


def sample_of_cache(cache: Images, channels: Sequence[str], count: int) -> ChipSample:
    """Images of a cache, exactly as a network is fed.

    Args:
        cache: of the images.
        channels: their names, as in the recipe of the cache.
        count: how many chips at most; see spread_over.
    """
    chosen = spread_over(cache.labels, count)
    return ChipSample(
        channels=tuple(channels),
        images=tuple(cache.images([index])[0] for index in chosen),
        labels=tuple(int(cache.labels[index]) for index in chosen),
        regions=tuple(cache.regions[index] for index in chosen),
        names=tuple(cache.names[index] for index in chosen),
        boxes=tuple(cache.boxes([index])[0] if cache.has_boxes else np.empty((0, 4)) for index in chosen),
        of=len(cache),
        classes=cache.classes,
        unit=cache.unit,
    )


def sample_of_folder(
    root: Path | str, recipe: Recipe, count: int, *, region: str | None = None
) -> ChipSample:
    """Chips of a folder, of which only these are read. Those that cannot be used are left out, and said in the log.

    Args:
        root: folder that holds the regions.
        recipe: how a chip becomes an array.
        count: how many chips at most; see spread_over.
        region: only chips of this region; None: of all.

    Raises:
        DataError: there is no chip, or the folder cannot be read.
        BadChipsError: none of the chosen chips can be used.
    """
    manifest = scan(root, boxes=recipe.boxes)
    chips = [chip for chip in manifest.chips if region in (None, chip.region)]
    if not chips and manifest.bad:
        raise BadChipsError(manifest.bad, root=manifest.root)
    if not chips:
        raise DataError(f"no chip of region {region} under {root}")
    chosen = [chips[index] for index in spread_over([chip.label for chip in chips], count)]
    found = list(zip(chosen, read_some(chosen, recipe), strict=True))
    bad = [read for _, read in found if isinstance(read, BadChip)]
    good = [(chip, *read) for chip, read in found if not isinstance(read, BadChip)]
    if not good:
        raise BadChipsError(bad, root=manifest.root)
    for each in bad:
        log.warning("%s is left out: %s", each.path, each.reason)
    return ChipSample(
        channels=recipe.channels,
        images=tuple(image for _, image, _ in good),
        labels=tuple(int(len(boxes) > 0) if recipe.boxes else chip.label for chip, _, boxes in good),
        regions=tuple(chip.region for chip, _, _ in good),
        names=tuple(chip.name for chip, _, _ in good),
        boxes=tuple(boxes for _, _, boxes in good),
        of=len(chips),
    )


def spread_over(labels: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """Indices of at most `count` chips, evenly spaced in each class, as many of each. Label 0 comes last.

    Args:
        labels: (n,) of chips 1 = crossing, 0 = none. In (region, name) order, even spaces reach every large region.
        count: how many chips. Where a class has too few, the others fill up.
    """
    labels = np.asarray(labels, dtype=int)
    members = [np.flatnonzero(labels == each) for each in (*range(1, labels.max(initial=1) + 1), 0)]
    wanted = _shares(list(map(len, members)), count)
    return [index for each, share in zip(members, wanted, strict=True) for index in _evenly(each, share)]


def _shares(held: Sequence[int], count: int) -> list[int]:
    """How many to take of each class: as evenly as they allow, and the first classes take what is over."""
    wanted = [0] * len(held)
    while (left := count - sum(wanted)) > 0 and (open_ := [i for i, n in enumerate(held) if wanted[i] < n]):
        for place, i in enumerate(open_):
            share = left // len(open_) + (place < left % len(open_))
            wanted[i] += min(held[i] - wanted[i], share)
    return wanted


def _evenly(members: np.ndarray, count: int) -> list[int]:
    """So many of the members, each from the middle of its share."""
    return members[((np.arange(count) + 0.5) * len(members) / max(1, count)).astype(int)].tolist()
