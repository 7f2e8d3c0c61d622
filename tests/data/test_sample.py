"""Chips to look at: which are chosen, and that they are what a network is fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dxc.data.cache import Recipe, open_cache
from dxc.data.sample import sample_of_cache, sample_of_folder, spread_over
from tests.conftest import ChipMaker

CHANNELS = ("dem", "red", "green", "blue", "nir", "ndwi", "ndvi")


def test_spread_over_reaches_both_classes_and_all_regions() -> None:
    labels = [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10  # two regions
    assert spread_over(labels, 8) == [12, 17, 32, 37, 2, 7, 22, 27]
    assert spread_over([0, 0, 0, 1], 4) == [3, 0, 1, 2]  # negatives fill up
    assert spread_over([1, 1, 1, 0], 4) == [0, 1, 2, 3]
    assert spread_over([1, 0], 12) == [0, 1]
    assert spread_over([], 12) == []


def test_sample_of_a_folder(make_chips: ChipMaker) -> None:
    """Chips as a network sees them, of one region, with their boxes; one that cannot be read is left out."""
    root = make_chips(regions=("IL", "NE"), per_class=5, boxes=True)
    sample = sample_of_folder(root, Recipe(CHANNELS, size=20, boxes=True), 4, region="NE")
    assert sample.names == ("NE_T_001", "NE_T_003", "NE_F_001", "NE_F_003")
    assert (sample.labels, set(sample.regions), sample.of) == ((1, 1, 0, 0), {"NE"}, 10)
    image = sample.images[0]
    assert image.shape == (7, 20, 20) and image.min(axis=(1, 2))[:5].tolist() == [0] * 5
    assert image[1, 6:13, 6:13].min() == 1  # the bright square of a crossing in red
    np.testing.assert_allclose(sample.boxes[0], [[9.5 / 20, 9.5 / 20, 7 / 20, 7 / 20]])
    assert sample.boxes[2].shape == (0, 4)
    (root / "NE" / "NEDEM" / "T" / "NE_T_001.tif").write_bytes(b"")
    sample = sample_of_folder(root, Recipe(("red",), size="any"), 4, region="NE")
    assert sample.names == ("NE_T_003", "NE_F_001", "NE_F_003")


def test_sample_of_a_cache_is_that_of_its_folder(make_chips: ChipMaker, tmp_path: Path) -> None:
    root, recipe = make_chips(size=[(20, 30), (40, 16)], boxes=True), Recipe(CHANNELS, size="any", boxes=True)
    cache = open_cache(root, recipe, cache_dir=tmp_path / "cache", progress=False)
    one, other = sample_of_cache(cache, CHANNELS, 6), sample_of_folder(root, recipe, 6)
    assert (one.names, one.labels, one.regions, one.of) == (other.names, other.labels, other.regions, 10)
    for ours, theirs in zip((*one.images, *one.boxes[:3]), (*other.images, *other.boxes[:3]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert np.isnan(one.boxes[3]).all()  # a chip without a crossing
