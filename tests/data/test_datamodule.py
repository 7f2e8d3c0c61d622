"""Batches: right chips, right labels, reproducible order."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from dxc.data.datamodule import ChipDataModule, ChipDataset, FolderSource, SameSizeBatches
from dxc.data.folds import make_folds
from dxc.errors import ConfigError
from tests.conftest import ChipMaker


def _datamodule(make_chips: ChipMaker, **options: object) -> ChipDataModule:
    root = make_chips()
    datamodule = ChipDataModule(
        FolderSource(str(root)),
        channels=["dem", "nir"],
        batch_size=3,
        size=20,
        cache_dir=str(root.parent / "cache"),
        progress=False,
        **options,
    )
    datamodule.prepare_data()
    return datamodule


def _order(datamodule: ChipDataModule, seed: int) -> list[int]:
    datamodule.select(datamodule.folds[0], seed=seed)
    return torch.cat([batch["index"] for batch in datamodule.train_dataloader()]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_chips_they_name(make_chips: ChipMaker, workers: int) -> None:
    datamodule = _datamodule(make_chips, num_workers=workers)
    datamodule.select(datamodule.folds[1], seed=0)
    seen = []
    for batch in datamodule.train_dataloader():
        assert batch["image"].dtype == torch.float32
        assert batch["image"].shape[1:] == (2, 20, 20)
        index = batch["index"].numpy()
        np.testing.assert_array_equal(batch["image"].numpy(), datamodule.cache.images(index))
        np.testing.assert_array_equal(batch["label"].numpy(), datamodule.cache.labels[index])
        seen += index.tolist()
    assert sorted(seen) == datamodule.folds[1].train.tolist()
    val = torch.cat([batch["index"] for batch in datamodule.val_dataloader()])
    assert val.tolist() == datamodule.folds[1].val.tolist()


def test_shuffling_follows_the_seed(make_chips: ChipMaker) -> None:
    datamodule = _datamodule(make_chips)
    assert _order(datamodule, 7) == _order(datamodule, 7)
    assert _order(datamodule, 7) != _order(datamodule, 8)
    assert _order(datamodule, 7) != sorted(_order(datamodule, 7))


SIZES = np.array([[20, 20], [16, 40], [40, 16], [20, 20], [16, 40], [20, 20], [20, 20]])


def test_sizes_in_turn_where_nothing_is_shuffled() -> None:
    batches = SameSizeBatches(SIZES, 3, shuffle=False)
    assert list(batches) == list(batches) == [[1, 4], [0, 3, 5], [6], [2]]
    assert len(batches) == 4


def test_same_size_batches_follow_seed_and_epoch() -> None:
    sizes = np.repeat([[20, 20], [16, 40], [40, 16]], [40, 33, 7], axis=0)

    def epochs(seed: int) -> list[list[list[int]]]:
        batches = SameSizeBatches(sizes, 8, shuffle=True, seed=seed)
        return [list(batches) for _ in range(3)]

    for epoch in epochs(1):
        assert sorted(chain(*epoch)) == list(range(80))
        assert all(len(np.unique(sizes[batch], axis=0)) == 1 for batch in epoch)
        assert sorted(map(len, epoch)) == [1, 7, *[8] * 9]
        assert len(epoch) == len(SameSizeBatches(sizes, 8, shuffle=True)) == 11
    assert epochs(1) == epochs(1)
    flat = [tuple(chain(*epoch)) for epoch in epochs(1) + epochs(2)]
    assert len(set(flat)) == 6
    first, second = epochs(1)[:2]
    assert [len(batch) for batch in first] != [len(batch) for batch in second]  # between sizes too
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}  # and within
    resumed = SameSizeBatches(sizes, 8, shuffle=True, seed=1)
    resumed.set_epoch(2)  # what a trainer does
    assert list(resumed) == epochs(1)[2]


@pytest.mark.parametrize("shuffle", [False, True])
def test_devices_share_sizes_evenly(shuffle: bool) -> None:
    shares = [
        SameSizeBatches(SIZES, 2, shuffle=shuffle, seed=3, devices=3, device=device) for device in range(3)
    ]
    steps = list(zip(*shares, strict=True))  # as many batches on each
    assert len(steps) == len(shares[0]) == 3
    for step in steps:
        assert (
            len({len(batch) for batch in step}) == 1
        )  # as many chips, so that their outputs can be gathered
        assert len(np.unique(SIZES[np.concatenate(step)], axis=0)) == 1  # of one size
    assert {position for step in steps for batch in step for position in batch} == set(range(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be a whole number of at least 1"),
        ({"num_workers": -1}, "data.num_workers must be a whole number of at least 0"),
        ({"channels": "dem"}, r"data.channels must be a list: data.channels=\[dem\]"),
        ({"augment": "crop_flip"}, "data.augment.*flip_rotate"),
        ({"augment": "flip_rotate", "boxes": True}, "images of a detector.*data.augment=none"),
    ],
)
def test_values_that_cannot_work(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChipDataModule(FolderSource("x"), **{"channels": ["dem"], **options})


def test_one_chip_and_whole_batches(make_chips: ChipMaker) -> None:
    datamodule = _datamodule(make_chips)
    data = ChipDataset(datamodule.cache, np.array([7, 3, 5]))
    assert len(data) == 3
    one, several = data[1], data[[2, 0]]
    assert (int(one["index"]), several["index"].tolist()) == (3, [5, 7])
    np.testing.assert_array_equal(one["image"].numpy(), datamodule.cache.images(np.array([3]))[0])
    assert set(one) == {"image", "label", "index"}


def test_the_order_of_calls(make_chips: ChipMaker) -> None:
    unread = ChipDataModule(FolderSource("x"), channels=["dem"])
    with pytest.raises(RuntimeError, match="select"):
        unread.train_dataloader()
    datamodule = _datamodule(make_chips)
    unread.select(datamodule.folds[0], seed=0)
    with pytest.raises(RuntimeError, match="prepare_data"):
        unread.val_dataloader()
    before = datamodule.cache
    datamodule.setup()  # finds what is there
    assert datamodule.cache is before


def test_what_is_not_given(make_chips: ChipMaker) -> None:
    """The defaults are those of conf/data: five stratified folds with seed 42, batches of 16 chips of 100 pixels."""
    given = ChipDataModule(FolderSource("x"), channels=["dem"])
    assert (given.batch_size, given.num_workers, given.progress) == (16, 0, True)
    recipe = given.recipe
    assert (recipe.normalise, recipe.repair, recipe.size, recipe.boxes) == ("per_chip", "mean", 100, False)
    assert (recipe.photo_bands, recipe.check_georeference) == (("red", "green", "blue", "nir"), True)
    assert (given.source.on_bad_chip, given.source.prepare()) == ("raise", Path("x"))
    datamodule = _datamodule(make_chips)
    expected = make_folds(datamodule.cache.labels, datamodule.cache.regions, split="kfold", folds=5, seed=42)
    assert len(datamodule.folds) == 5
    for fold, other in zip(datamodule.folds, expected, strict=True):
        assert fold.val.tolist() == other.val.tolist()
