"""Batches: right chips, right labels, reproducible order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dxc.data.datamodule import ChipDataModule, FolderSource
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


def test_bad_batch_size(make_chips: ChipMaker) -> None:
    with pytest.raises(ConfigError, match="data.batch_size"):
        ChipDataModule(FolderSource("x"), channels=["dem"], batch_size=0)
