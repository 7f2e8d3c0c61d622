"""Boxes and chips of any size, from XML and GeoTIFF files on disk into batches."""

from __future__ import annotations

import os
import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from dxc.data import cache as cache_module
from dxc.data.bands import stack_channels
from dxc.data.cache import ANY_SIZE, ChipCache, Recipe, open_cache
from dxc.data.datamodule import ChipDataModule, FolderSource
from dxc.errors import BadChipsError, DataError
from tests.conftest import ChipMaker, write_tif

CHANNELS = ("dem", "nir")
SIZES = ((20, 20), (16, 40), (40, 16))  # two rectangles with as many pixels, told apart


def _xml(path: Path, *boxes: tuple[float, float, float, float], size: tuple[int, int] = (20, 20)) -> Path:
    """An annotation as annotation programs write it: VOC coordinates count from 1 and include both ends."""
    objects = "".join(
        f"<object><name>culvert</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for a, b, c, d in boxes
    )
    width, height = size
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height><depth>4</depth></size>{objects}"
        "</annotation>"
    )
    return path


def _chip(root: Path, klass: str, name: str, height: int = 20, width: int = 20) -> Path:
    """Write two files of random pixels. Returns the path of their annotation."""
    rng = np.random.default_rng(height * width)
    write_tif(
        root / "NE/NEDEM" / klass / f"{name}.tif", rng.normal(300, 1, (1, height, width)).astype("float32")
    )
    photo = root / "NE/NEAer" / klass / f"{name}.tif"
    write_tif(photo, rng.integers(1, 200, (4, height, width), dtype="uint8"))
    return photo.with_suffix(".xml")


def _open(root: Path, *, size: int | str = 20, boxes: bool = True, **options: object) -> ChipCache:
    options = {"cache_dir": root.parent / "cache", "progress": False} | options
    return open_cache(root, Recipe(CHANNELS, size=size, boxes=boxes), **options)


def _datamodule(root: Path, **options: object) -> ChipDataModule:
    options = {"batch_size": 3, "size": ANY_SIZE, "boxes": True} | options
    datamodule = ChipDataModule(
        FolderSource(str(root)),
        channels=list(CHANNELS),
        folds=3,
        cache_dir=str(root.parent / "cache"),
        progress=False,
        **options,
    )
    datamodule.prepare_data()
    datamodule.select(datamodule.folds[0], seed=7)
    return datamodule


def test_pixel_boxes_become_relative_ones(tmp_path: Path) -> None:
    root = tmp_path / "chips"
    _xml(_chip(root, "T", "one", height=40), (3, 5, 8, 24), size=(20, 40))
    _xml(_chip(root, "T", "two", height=40), (1, 1, 20, 40), (11, 31, 12.5, 32), size=(20, 40))
    cache = _open(root, size=ANY_SIZE)
    # columns 2..8 of 20, rows 4..24 of 40
    np.testing.assert_allclose(cache.boxes([0]), [[[0.25, 0.35, 0.3, 0.5]]], rtol=1e-6)
    # the whole image; columns 10..12.5, rows 30..32
    whole, small = [0.5, 0.5, 1, 1], [0.5625, 0.775, 0.125, 0.05]
    np.testing.assert_allclose(cache.boxes([1]), [[whole, small]], rtol=1e-6)
    assert cache.boxes([1]).dtype == np.float32


def test_rows_beyond_an_images_count_are_nan(tmp_path: Path) -> None:
    root = tmp_path / "chips"
    _chip(root, "F", "a")
    _xml(_chip(root, "T", "b"), (1, 1, 10, 20), (1, 1, 20, 10), (11, 11, 20, 20))
    _xml(_chip(root, "T", "c"), (11, 1, 20, 20))
    _xml(_chip(root, "T", "d"))
    cache = _open(root)
    boxes = cache.boxes([3, 2, 0, 1, 2])
    assert boxes.shape == (5, 3, 4)
    assert (~np.isnan(boxes)).all(axis=2).sum(axis=1).tolist() == [0, 1, 0, 3, 1]
    np.testing.assert_allclose(boxes[3], [[0.25, 0.5, 0.5, 1], [0.5, 0.25, 1, 0.5], [0.75, 0.75, 0.5, 0.5]])
    np.testing.assert_allclose(boxes[[1, 4], 0], [[0.75, 0.5, 0.5, 1]] * 2)
    nothing = cache.boxes([0, 3])  # negatives alone keep the shape that a loss can work on
    assert nothing.shape == (2, 1, 4)
    assert np.isnan(nothing).all()


def test_labels_are_what_the_boxes_say(tmp_path: Path) -> None:
    root = tmp_path / "chips"
    _chip(root, "F", "bare")
    _xml(_chip(root, "F", "empty"))
    _xml(_chip(root, "T", "none"))
    _xml(_chip(root, "T", "some"), (2, 2, 5, 5))
    assert _open(root).labels.tolist() == [0, 0, 0, 1]
    assert _open(root, boxes=False).labels.tolist() == [0, 0, 1, 1]


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "chips"
    _xml(_chip(root, "T", "good"), (2, 2, 5, 5))
    _chip(root, "T", "missing")
    _chip(root, "T", "malformed").write_text("<annotation><object>")
    _xml(_chip(root, "T", "inverted"), (5, 2, 2, 5))
    _xml(_chip(root, "T", "resized"), (2, 2, 5, 5), size=(30, 20))
    _xml(_chip(root, "F", "denied"), (2, 2, 5, 5))
    with pytest.raises(BadChipsError) as caught:
        _open(root)
    reasons = {chip.path.name: chip.reason for chip in caught.value.bad}
    assert reasons.pop("missing.tif") == "crossing without boxes: missing.xml is missing beside it"
    assert "not well-formed XML" in reasons.pop("malformed.xml")
    assert "inverted box" in reasons.pop("inverted.xml")
    assert "30 x 20 pixels" in reasons.pop("resized.xml")
    assert reasons.pop("denied.xml") == "has a box, but its chip is in class F (no crossing)"
    assert not reasons
    cache = _open(root, on_bad_chip="skip")
    assert cache.names == ("good",)
    assert len(cache.excluded) == 5


def test_clipped_boxes_are_used_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "chips"
    path = _xml(_chip(root, "T", "edge"), (2, 2, 5, 5), (11, 11, 30, 20))
    _xml(_chip(root, "T", "inside"), (2, 2, 5, 5))
    for cache in (_open(root), _open(root)):  # built, then read
        assert not cache.excluded
        np.testing.assert_allclose(cache.boxes([0])[0, 1], [0.75, 0.75, 0.5, 0.5])
        ((where, text),) = cache.notes
        assert where == path
        assert "object 2: clipped" in text
        assert "xmax=30" in text


def test_annotations_belong_to_the_identity(tmp_path: Path) -> None:
    root = tmp_path / "chips"
    path = _xml(_chip(root, "T", "a"), (2, 2, 5, 5))
    bare = _chip(root, "F", "b")
    caches = [_open(root)]
    without = _open(root, boxes=False)
    before = path.stat()
    _xml(path, (2, 2, 6, 6))  # as many bytes
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # and the same time stamp
    assert path.stat().st_size == before.st_size
    caches.append(_open(root))
    np.testing.assert_allclose(caches[1].boxes([0])[0, 0, 2:], [0.25, 0.25])
    _xml(bare)  # says that there is nothing: the same labels and boxes from other files
    caches.append(_open(root))
    assert len({cache.folder for cache in caches}) == len({cache.data_hash for cache in caches}) == 3
    again = _open(root, boxes=False)
    assert (again.folder, again.data_hash) == (without.folder, without.data_hash)
    assert without.data_hash not in {cache.data_hash for cache in caches}


def test_no_annotation_anywhere(make_chips: ChipMaker) -> None:
    with pytest.raises(DataError, match=r"no boxes under .*T/NAME\.xml"):
        _open(make_chips())


def test_a_cache_without_boxes_has_none(make_chips: ChipMaker) -> None:
    cache = _open(make_chips(boxes=True), boxes=False)
    assert not cache.has_boxes
    with pytest.raises(ValueError, match="without boxes"):
        cache.boxes([0])


@pytest.mark.parametrize("parallel", [False, True])
def test_chips_of_many_sizes_keep_their_pixels(
    make_chips: ChipMaker, monkeypatch: pytest.MonkeyPatch, parallel: bool
) -> None:
    root = make_chips(per_class=7, size=SIZES, boxes=True)
    if parallel:
        monkeypatch.setattr(cache_module, "SERIAL_BELOW", 0)
        monkeypatch.setattr(cache_module, "CHUNK", 3)
    cache = _open(root, size=ANY_SIZE, workers=2)
    assert cache.sizes.tolist() == [list(SIZES[int(name[-3:]) % 3]) for name in cache.names]
    assert sorted(path.name for path in cache.folder.glob("*.npy")) == [
        "images-16x40.npy",
        "images-20x20.npy",
        "images-40x16.npy",
    ]
    for size in SIZES:
        members = np.flatnonzero((cache.sizes == size).all(axis=1))
        together = cache.images(members)
        assert together.shape == (len(members), 2, *size)
        for pixels, index in zip(together, members, strict=True):
            chip = f"{'FT'[cache.labels[index]]}/{cache.names[index]}.tif"
            with (
                rasterio.open(root / "NE/NEDEM" / chip) as dem,
                rasterio.open(root / "NE/NEAer" / chip) as photo,
            ):
                bands = {"nir": photo.read(4)}
                np.testing.assert_array_equal(pixels, stack_channels(dem.read(1), bands, CHANNELS))
    with pytest.raises(ValueError, match="need one size"):
        cache.images([0, 1])
    assert pickle.loads(pickle.dumps(cache)).images([4]).shape == (1, 2, 16, 40)
    assert "_images" not in cache.__getstate__()


def test_sizes_do_not_change_what_the_chips_are(make_chips: ChipMaker) -> None:
    root = make_chips(boxes=True)
    one, any_size = _open(root), _open(root, size=ANY_SIZE)
    assert one.data_hash == any_size.data_hash
    np.testing.assert_array_equal(one.images(range(10)), any_size.images(range(10)))
    np.testing.assert_array_equal(one.boxes(range(10)), any_size.boxes(range(10)))
    assert one.sizes.tolist() == any_size.sizes.tolist() == [[20, 20]] * 10


def test_chips_that_have_no_usable_size(tmp_path: Path) -> None:
    root = tmp_path / "chips"
    _xml(_chip(root, "T", "least", 16, 16), (2, 2, 5, 5), size=(16, 16))
    _chip(root, "F", "small", 16, 12)
    _chip(root, "F", "flat", 15, 40)
    _chip(root, "F", "uneven", 20, 20)
    write_tif(root / "NE/NEAer/F/uneven.tif", np.ones((4, 20, 24), np.uint8))
    _chip(root, "F", "broken")
    (root / "NE/NEDEM/F/broken.tif").write_text("not a raster")
    _chip(root, "F", "bands")
    write_tif(root / "NE/NEAer/F/bands.tif", np.ones((3, 20, 20), np.uint8))
    cache = _open(root, size=ANY_SIZE, on_bad_chip="skip")
    assert cache.names == ("least",)
    reasons = {chip.path.stem: chip.reason for chip in cache.excluded}
    assert reasons["small"].startswith("is 12 x 16 pixels, data.size=any needs 16 x 16 at least")
    assert reasons["flat"].startswith("is 40 x 15 pixels, data.size=any needs 16 x 16 at least")
    assert reasons["uneven"] == "is 24 x 20 pixels, its elevation chip 20 x 20"
    assert reasons["broken"].startswith("cannot be read as a GeoTIFF")
    assert reasons["bands"].startswith("has 3 band(s), expected 4")
    with pytest.raises(BadChipsError, match="5 bad chips"):
        _open(root, size=ANY_SIZE)


def test_space_is_needed_for_all_sizes_together(
    make_chips: ChipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_chips(per_class=3, size=SIZES, boxes=True)
    needed = 2 * 2 * 4 * (20 * 20 + 16 * 40 + 40 * 16)  # two chips a size, two channels, four bytes
    usage = type("usage", (), {"free": needed - 1})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="no space left"):
        _open(root, size=ANY_SIZE)
    assert [p.name for p in (root.parent / "cache").iterdir() if p.suffix != ".lock"] == []
    usage.free = needed
    assert len(_open(root, size=ANY_SIZE)) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_one_size_with_boxes(make_chips: ChipMaker, workers: int) -> None:
    datamodule = _datamodule(make_chips(per_class=10, size=SIZES, boxes=True), num_workers=workers)
    cache, fold = datamodule.cache, datamodule.folds[0]
    for loader, members in (
        (datamodule.train_dataloader(), fold.train),
        (datamodule.val_dataloader(), fold.val),
    ):
        seen: list[int] = []
        for batch in loader:
            index = batch["index"].numpy()
            assert 1 <= len(index) <= 3
            assert batch["image"].shape[2:] == tuple(cache.sizes[index[0]])
            np.testing.assert_array_equal(batch["image"].numpy(), cache.images(index))
            np.testing.assert_array_equal(batch["boxes"].numpy(), cache.boxes(index))
            assert (batch["boxes"].dtype, batch["boxes"].shape[2]) == (torch.float32, 4)
            assert batch["label"].tolist() == (~batch["boxes"][..., 0].isnan()).any(1).long().tolist()
            assert batch["label"].dtype == batch["index"].dtype == torch.int64
            seen += index.tolist()
        assert sorted(seen) == members.tolist()
        if workers:
            break  # starting processes takes its time


def test_one_size_comes_with_boxes_too(make_chips: ChipMaker) -> None:
    root = make_chips(boxes=True)
    batches = list(_datamodule(root, size=20).train_dataloader())
    assert all(set(batch) == {"image", "label", "index", "boxes"} for batch in batches)
    plain = list(_datamodule(root, size=20, boxes=False).train_dataloader())
    assert all(set(batch) == {"image", "label", "index"} for batch in plain)
    assert [b["index"].tolist() for b in batches] == [b["index"].tolist() for b in plain]  # the same order


def test_a_trainer_gets_every_chip_once_an_epoch(make_chips: ChipMaker) -> None:
    import pytorch_lightning as pl

    class Watcher(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.epochs: list[list[list[int]]] = []
            self.validated: list[int] = []

        def on_train_epoch_start(self) -> None:
            self.epochs.append([])

        def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
            self.epochs[-1].append(batch["index"].tolist())
            return self.layer(batch["image"].mean((2, 3))).sum()

        def validation_step(self, batch: dict, batch_idx: int) -> None:
            self.validated += batch["index"].tolist()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    datamodule = _datamodule(make_chips(per_class=10, size=SIZES, boxes=True))
    expected = datamodule.train_dataloader()
    orders = [[batch["index"].tolist() for batch in expected] for _ in range(3)]
    watcher = Watcher()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(watcher, datamodule=datamodule)
    assert watcher.epochs == orders  # epoch by epoch, as without a trainer
    assert orders[0] != orders[1] != orders[2]
    assert all(sorted(chain(*epoch)) == datamodule.folds[0].train.tolist() for epoch in watcher.epochs)
    assert sorted(watcher.validated) == sorted(datamodule.folds[0].val.tolist() * 3)
