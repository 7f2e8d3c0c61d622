"""Which images a network is judged by on its device, and in what form they travel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from dxc.config.plan import Plan
from dxc.deploy.metadata import Metadata
from dxc.deployment.images import ProofImages, _smallest, proof_images, random_images
from dxc.errors import DataError, ExportError
from tests.conftest import ChipMaker
from tests.deployment.studies import composed

CHANNELS = ("dem", "red", "green", "blue", "nir")


def test_chips_of_the_fold_that_was_not_trained_on(make_chips: ChipMaker, tmp_path: Path) -> None:
    root = make_chips(per_class=6)
    config = composed(
        "train", tmp_path, "source=chips", f"source.root={root}", "data=5ch", "data.size=20", "data.folds=2"
    )
    plan = Plan.of(config)
    module = plan.data.build(source=plan.source.build())
    module.prepare_data()
    fold, cache = module.folds[1], module.cache

    def found(
        root: str | None = str(root), data_hash: str = cache.data_hash, channels: tuple[str, ...] = CHANNELS
    ) -> ProofImages:
        return proof_images(
            config, run_id="0" * 32, fold=fold.name, data_hash=data_hash, metadata=Metadata(channels=channels),
            cache_dir=str(tmp_path / "cache"), root=root, progress=False,
        )  # fmt: skip

    proof = found()
    images, labels = (np.load(io.BytesIO(each.content)) for each in (proof.images, proof.labels))
    np.testing.assert_array_equal(images, cache.images(fold.val))
    np.testing.assert_array_equal(labels, cache.labels[fold.val])
    assert proof.prepared and proof.count == 6
    assert proof.described == "chips of chips: 6 chips that validate fold2"

    with pytest.raises(DataError, match=r"source\.root='.*' as its configuration says"):
        found(root=None)
    with pytest.raises(DataError, match="was trained on other images"):
        found(data_hash="0" * 16)
    with pytest.raises(ExportError, match="its network takes dem, red, and its images have dem, red, green"):
        found(channels=("dem", "red"))


def test_numbers_travel_in_16_bits_where_nothing_is_lost() -> None:
    exact = np.array([0.0, 0.5, -2048.0, 0.25], np.float32)
    assert _smallest(exact).dtype == np.float16
    for value in (0.1, 1e6):
        assert _smallest(np.array([0.5, value], np.float32)).dtype == np.float32


def test_random_images_are_of_the_size_of_the_network() -> None:
    """They are the same each time, so that they travel once, and few where a network takes large ones."""
    small, large = (
        random_images(Metadata(channels=CHANNELS, size=(size, size)), run_id="0" * 32) for size in (20, 900)
    )
    images = np.load(io.BytesIO(small.images.content))
    assert images.shape == (100, 5, 20, 20) and images.dtype == np.float16 and abs(images.mean()) < 0.01
    assert small.labels is None and small.prepared
    again = random_images(Metadata(channels=CHANNELS, size=(20, 20)), run_id="1" * 32)
    assert again.images.sha256 == small.images.sha256
    assert large.count == 1 and len(large.images.content) < 9_000_000
    with pytest.raises(ExportError, match="takes images of any size, so images=random has none"):
        random_images(Metadata(channels=CHANNELS), run_id="0" * 32)
