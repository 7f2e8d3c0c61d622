"""Published images as batches: folds, constants, and augmentation that touches training alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dxc.data.augment import CropFlip, FlipRotate
from dxc.data.datamodule import ChipDataModule, FolderSource
from dxc.data.published import PublishedDataModule
from dxc.errors import ConfigError, DataError
from dxc.synthetic.images import SHAPES, SyntheticImages

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SyntheticImages:
    return SyntheticImages(240, cache_dir=str(tmp_path_factory.mktemp("cache")))


def _module(source: Any, **options: Any) -> PublishedDataModule:
    known = {
        "channels": ["red", "green", "blue"],
        "classes": SHAPES,
        "mean": MEAN,
        "std": STD,
        "batch_size": 50,
    }
    return PublishedDataModule(source, dataset="cifar10", **{**known, **options})


def test_folds(source: SyntheticImages) -> None:
    """given: all images, the test images validate. The others divide the training images, class by class."""
    module = _module(source)
    module.prepare_data()
    images = source.read()
    (fold,) = module.folds
    assert (
        fold.name == "given"
        and fold.train.tolist() == list(range(200))
        and fold.val.tolist() == list(range(200, 240))
    )
    assert np.array_equal(images.held_out, np.arange(240) >= 200)

    module = _module(source, split="kfold", folds=4)
    module.prepare_data()
    assert [fold.name for fold in module.folds] == ["fold1", "fold2", "fold3", "fold4"]
    assert sorted(np.concatenate([fold.val for fold in module.folds])) == list(range(200))
    for fold in module.folds:
        assert np.bincount(images.labels[fold.val]).tolist() == [5] * 10
        assert not set(fold.train) & set(fold.val) and len(fold.train) == 150
    module = _module(source, split="holdout")
    module.prepare_data()
    assert [len(each) for each in module.folds[0][1:]] == [160, 40]

    with pytest.raises(ConfigError, match="data.split=region: these images have no regions"):
        _module(source, split="region").prepare_data()
    with pytest.raises(DataError, match="class disc has 20 images, data.split=kfold needs at least 21"):
        _module(source, split="kfold", folds=21).prepare_data()


def test_batches_are_normalised_by_the_constants(source: SyntheticImages) -> None:
    module = _module(source)
    module.prepare_data()
    module.select(module.folds[0], seed=0)
    batch = next(iter(module.val_dataloader()))
    pixels = source.read().pixels[200:240].astype(np.float64)
    expected = (pixels - np.reshape(MEAN, (1, 3, 1, 1))) / np.reshape(STD, (1, 3, 1, 1))
    np.testing.assert_allclose(batch["image"], expected, atol=1e-5)
    assert batch["image"].dtype == torch.float32 and batch["index"].tolist() == list(range(200, 240))
    assert module.fed == {
        "channels": ("red", "green", "blue"),
        "normalise": "fixed",
        "mean": MEAN,
        "std": STD,
    }
    raw = _module(source, normalise="none")
    raw.prepare_data()
    raw.select(raw.folds[0], seed=0)
    np.testing.assert_array_equal(next(iter(raw.val_dataloader()))["image"], pixels.astype(np.float32))


def test_crop_and_flip_by_hand() -> None:
    augment = CropFlip(pad=2)
    images = torch.rand(64, 3, 8, 6)
    drawn = augment.draw(64, torch.Generator().manual_seed(0))
    changed = augment.apply(images, drawn)
    assert changed.is_contiguous()  # channels_last would crash torch 2.13 in narrow ResNets
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for number in range(64):
        down, right = int(drawn.down[number]), int(drawn.right[number])
        cut = padded[number, :, down : down + 8, right : right + 6]
        assert torch.equal(changed[number], cut.flip(2) if drawn.flip[number] else cut)
    assert {*drawn.down.tolist()} == {*drawn.right.tolist()} == {0, 1, 2, 3, 4}  # all shifts come
    assert 20 < int(drawn.flip.sum()) < 44


def test_flips_and_turns_by_hand() -> None:
    """The eight are those of numpy, and a draw of many holds each of them about as often."""
    augment = FlipRotate()
    image = torch.arange(12.0).reshape(1, 2, 2, 3)[:, :, :, :2].contiguous()
    ways = {
        tuple(
            augment.apply(image, tuple(torch.tensor([bool(way & bit)]) for bit in (1, 2, 4)))
            .flatten()
            .tolist()
        )
        for way in range(8)
    }
    plain = image[0].numpy()
    expected = {
        tuple(np.rot90(each, turns, axes=(1, 2)).flatten().tolist())
        for each in (plain, plain[:, :, ::-1])
        for turns in range(4)
    }
    assert len(expected) == 8 and ways == expected
    drawn = augment.draw(4000, torch.Generator().manual_seed(0))
    ways_drawn = sum(2**place * each.long() for place, each in enumerate(drawn))
    assert torch.bincount(ways_drawn, minlength=8).min() > 400
    oblong = torch.arange(6.0).reshape(1, 1, 2, 3)
    turned = augment.apply(oblong, tuple(torch.tensor([True]) for _ in range(3)))
    assert turned.tolist() == [[[[5, 4, 3], [2, 1, 0]]]]


def test_only_training_is_augmented_and_the_seed_decides(source: SyntheticImages) -> None:
    module = _module(source, augment="crop_flip")
    module.prepare_data()

    def batches(seed: int, *, training: bool) -> list[torch.Tensor]:
        module.trainer = SimpleNamespace(training=training)  # type: ignore[assignment]
        module.select(module.folds[0], seed=seed)
        loader = module.train_dataloader() if training else module.val_dataloader()
        return [module.on_after_batch_transfer(batch, 0)["image"] for batch in loader]

    first, again, other = batches(1, training=True), batches(1, training=True), batches(2, training=True)
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])
    plain = _module(source)
    plain.prepare_data()
    plain.select(plain.folds[0], seed=1)
    assert not torch.equal(next(iter(plain.train_dataloader()))["image"], first[0])
    assert all(
        torch.equal(mine, theirs["image"])
        for mine, theirs in zip(batches(1, training=False), plain.val_dataloader(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"std": [1, 0, 1]},
            r"data\.std must have a number above 0 for each of red, green, blue, not \[1, 0, 1\]",
        ),
        ({"mean": [1, 2]}, r"data\.mean must have a number for each"),
        ({"mean": [1, 2, float("nan")]}, r"data\.mean must have a number for each"),
        ({"normalise": "per_chip"}, "data.normalise=per_chip is unknown; choose one of fixed, none"),
        ({"augment": "mixup"}, "data.augment=mixup is unknown; choose one of none, crop_flip"),
        ({"augment": "crop_flip", "pad": -1}, "data.pad must be a whole number of at least 0"),
        ({"boxes": True}, "the images of data=cifar10 have no boxes"),
        ({"batch_size": 0}, "data.batch_size"),
    ],
)
def test_values_that_cannot_work(options: dict, says: str, source: SyntheticImages) -> None:
    with pytest.raises(ConfigError, match=says):
        _module(source, **options)


def test_images_of_another_kind(source: SyntheticImages) -> None:
    for options in ({"size": 64}, {"channels": ["red"], "mean": [1], "std": [1]}):
        with pytest.raises(DataError, match="have 32 x 32 pixels and the channels red, green, blue"):
            _module(source, **options).prepare_data()
    with pytest.raises(
        ConfigError, match="are chips, and data=cifar10 is made of whole images; use source=cifar10"
    ):
        _module(FolderSource("chips"))
    with pytest.raises(ConfigError, match="synthetic images are whole images, .* use data=cifar10"):
        ChipDataModule(source, channels=["dem"])  # type: ignore[arg-type]


def test_a_sample_shows_each_class(source: SyntheticImages) -> None:
    sample = _module(source).sample(12)
    assert sorted(set(sample.labels)) == list(range(10)) and len(sample.labels) == 12
    assert sample.unit == "image" and sample.classes == SHAPES and sample.of == 240


def test_synthetic_images_are_the_same_everywhere(tmp_path: Path) -> None:
    first = SyntheticImages(120, 5, cache_dir=str(tmp_path / "a")).read()
    again = SyntheticImages(120, 5, cache_dir=str(tmp_path / "b")).read()
    other = SyntheticImages(120, 6, cache_dir=str(tmp_path / "a")).read()
    assert first.data_hash == again.data_hash != other.data_hash
    assert np.bincount(first.labels[first.held_out]).tolist() == [2] * 10
    assert np.bincount(first.labels[~first.held_out]).tolist() == [10] * 10
    assert 60 < first.pixels.mean() < 150  # neither dark nor washed out
    with pytest.raises(ConfigError, match="source.images=100: needs a multiple of 60"):
        SyntheticImages(100)
