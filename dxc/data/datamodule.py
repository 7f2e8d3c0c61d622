"""Images behind Lightning's interface: one datamodule, one fold at a time.

Batches are dicts whose keys carry the convention:
    image  float32 (B, C, H, W)
    label  int64   (B,)   of chips 1 = crossing, 0 = none
    index  int64   (B,)   number of the image; of chips in (region, name) order
    boxes  float32 (B, M, 4)   with boxes=True: (cx, cy, w, h) relative to the image; rows beyond its own boxes are NaN
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from dxc.data.augment import OF_CHIPS, Augmentation, augmentation
from dxc.data.bands import LOCAL_MEAN_SIGMA, fixed_constants
from dxc.data.cache import ANY_SIZE, ChipCache, Recipe, open_cache
from dxc.data.folds import Fold, make_folds
from dxc.data.images import Images
from dxc.data.layout import CLASS_NAMES, scan
from dxc.data.sample import ChipSample, sample_of_folder
from dxc.data.source import ChipSource, Source
from dxc.errors import ConfigError, DataError, is_number, require_whole
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.record import Record

log = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


class FolderSource(ChipSource):
    """Chips in an existing folder (source=chips)."""

    def __init__(
        self,
        root: str,
        *,
        on_bad_chip: str = "raise",
        photo_bands: Sequence[str] = PHOTO_BANDS,
        check_georeference: bool = True,
    ) -> None:
        self.root = Path(root)
        self.on_bad_chip = on_bad_chip
        self.photo_bands = photo_bands
        self.check_georeference = check_georeference

    @property
    def noun(self) -> str:
        """'chips of FOLDER', with the last part of its path."""
        return f"chips of {self.root.resolve().name or self.root}"

    @property
    def title(self) -> str:
        """The same: how many there are is known once they are read."""
        return self.noun

    def check(self) -> None:
        """Raise DataError unless the folder is there and holds chips."""
        scan(self.root)

    def prepare(self) -> Path:
        """The folder itself. Whether its chips can be used is checked on reading."""
        return self.root

    def jitter(self) -> float | None:
        """The least of the regions, where prepare.py cut all of them."""
        records = [Record.read(region) for region in sorted(self.root.iterdir()) if region.is_dir()]
        given: list[Any] = [None if record is None else record.settings.get("jitter_m") for record in records]
        known = [float(each) for each in given if is_number(each) and each >= 0]
        return min(known) if known and len(known) == len(given) else None


class ChipDataset(Dataset):
    """Images by number. A whole batch is read with one look-up."""

    def __init__(self, cache: Images, indices: np.ndarray) -> None:
        self.cache = cache
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int | list[int]) -> Batch:
        """One image; a batch where the sampler gives a list of positions (SameSizeBatches)."""
        if isinstance(position, list):
            return self.__getitems__(position)
        return {key: value[0] for key, value in self.__getitems__([position]).items()}

    def __getitems__(self, positions: list[int]) -> Batch:
        indices = self.indices[positions]
        batch = {
            "image": torch.from_numpy(self.cache.images(indices)),
            "label": torch.from_numpy(self.cache.labels[indices]),
            "index": torch.from_numpy(indices),
        }
        if self.cache.has_boxes:
            batch["boxes"] = torch.from_numpy(self.cache.boxes(indices))
        return batch


class _Numbers(Dataset):
    """Numbers of images without the images."""

    def __init__(self, indices: np.ndarray) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, positions: list[int]) -> np.ndarray:
        return self.indices[positions]


class SameSizeBatches(DistributedSampler):
    """Batches of positions in a list of chips. The chips of a batch have one size, and each chip comes once an epoch.

    With `shuffle`, batches are composed anew and come in another order every epoch; seed and epoch determine both.
    Without it, sizes come in ascending order, and the chips of a size in the order of the list. The last batch of a
    size may be smaller.

    With several devices, each size is dealt out evenly. Where its chips do not divide, some of them are repeated. So
    all devices have equally many chips, and chips of the same size at every step. Lightning does not replace a
    DistributedSampler. Its own would deal out whole batches, and devices could have different numbers of chips.

    Args:
        sizes: (n, 2) height and width of each chip in pixels.
        batch_size: chips per batch.
        shuffle: whether to shuffle.
        seed: of the shuffle.
        devices: number of devices.
        device: number of this device, from 0.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        devices: int = 1,
        device: int = 0,
    ) -> None:
        super().__init__(sizes, num_replicas=devices, rank=device, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        _, group, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
        self._groups = np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1])

    def __len__(self) -> int:
        shares = (-(-len(group) // self.num_replicas) for group in self._groups)
        return sum(-(-share // self.batch_size) for share in shares)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1  # for the next pass, if no trainer calls set_epoch
        batches = []
        for group in self._groups:
            order = rng.permutation(group) if self.shuffle else group
            even = -(-len(order) // self.num_replicas) * self.num_replicas
            share = np.resize(order, even)[self.rank :: self.num_replicas].tolist()
            batches += [
                share[start : start + self.batch_size] for start in range(0, len(share), self.batch_size)
            ]
        if self.shuffle:
            batches = [batches[number] for number in rng.permutation(len(batches))]
        return iter(batches)


class ImageDataModule(pl.LightningDataModule):
    """Images of a source -> batches of the selected fold. A subclass says what kind of images; see read().

    Whoever trains on images uses this interface, whatever they are:
        prepare_data()         reads them; then `cache` and `folds` are there
        planned_folds()        how large the folds will be, before anything is read, where that is known
        cache                  the images (dxc.data.images.Images)
        folds                  which of them train, and which validate
        select(fold, seed=)    before the loaders
        augment                what changes training images; None: nothing does
        fed                    how an exported file says that it is fed: arguments of dxc.deploy.metadata.Metadata
        sample(count)          a few to look at, before anything is prepared

    Args:
        source: where the images come from.
        channels: names of the channels, in order.
        batch_size: images per batch.
        num_workers: processes that load batches.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(
        self, source: Source, *, channels: Sequence[str], batch_size: int, num_workers: int = 0
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            require_whole(f"data.{name}", value, at_least=least)
        if isinstance(channels, str):
            raise ConfigError(f"data.channels must be a list: data.channels=[{channels}]")
        self.source = source
        self.channels = tuple(channels)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache: Images | None = None
        self.folds: list[Fold] = []
        self.augment: Augmentation | None = None
        self._drawing = torch.Generator()
        self._fold: Fold | None = None
        self._seed = 0

    def read(self) -> tuple[Images, list[Fold]]:
        """Make or fetch the images if needed and read them. Called once."""
        raise NotImplementedError

    @property
    def fed(self) -> dict[str, Any]:
        """How the images are prepared: arguments of dxc.deploy.metadata.Metadata."""
        raise NotImplementedError

    def sample(self, count: int) -> ChipSample:
        """At most `count` images, as a network is fed, spread over the classes."""
        raise NotImplementedError

    def planned_folds(self) -> list[Fold] | None:
        """Folds as large as those of prepare_data, without making or reading an image; None where the source does not
        know its images before."""
        return None

    def prepare_data(self) -> None:
        """Make and read the images (once; a second call does nothing)."""
        if self.cache is None:
            self.cache, self.folds = self.read()

    def setup(self, stage: str | None = None) -> None:
        """Open what rank 0 prepared. Lightning calls it in every process of a run on several devices."""
        self.prepare_data()

    def select(self, fold: Fold, *, seed: int) -> None:
        """Use this fold from now on. `seed` determines the order of its images and their augmentation."""
        self._fold, self._seed = fold, seed
        self._drawing.manual_seed(seed)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lightning calls it with every batch, on its device."""
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            drawn = self.augment.draw(len(batch["label"]), self._drawing)
            batch["image"] = self.augment.apply(batch["image"], drawn)
        return batch

    def train_dataloader(self) -> DataLoader:
        return self._loader(self._selected().train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._selected().val, shuffle=False)

    def order(self, fold: Fold, *, seed: int) -> DataLoader:
        """The batches of train_dataloader() after select(fold, seed=seed), in the same order, as the numbers of their
        images alone: int64 arrays (B,). It is for images of one size."""
        return DataLoader(
            _Numbers(fold.train),
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=_as_is,
        )

    def _selected(self) -> Fold:
        if self._fold is None:
            raise RuntimeError("select(fold, seed=...) comes before the loaders")
        return self._fold

    def _batching(self, cache: Images, indices: np.ndarray, *, shuffle: bool) -> dict[str, Any]:
        """The arguments of DataLoader that say which images come together."""
        return {"batch_size": self.batch_size, "shuffle": shuffle}

    def _loader(self, indices: np.ndarray, *, shuffle: bool) -> DataLoader:
        if self.cache is None:
            raise RuntimeError("prepare_data() comes before the loaders")
        return DataLoader(
            ChipDataset(self.cache, indices),
            **self._batching(self.cache, indices, shuffle=shuffle),
            generator=torch.Generator().manual_seed(self._seed),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_as_is,  # __getitems__ returns whole batches
        )


class ChipDataModule(ImageDataModule):
    """Chips of a source -> batches of the selected fold. `conf/data/*.yaml` is its argument list.

    Args:
        source: where the chips come from.
        channels: names of the channels, in order (dxc.data.bands).
        classes: names by label, CLASS_NAMES; None: the same.
        batch_size: chips per batch.
        normalise: per_chip, per_column, fixed or none.
        repair: of the 0/0 pixels of indices, mean or reference.
        split: kfold, holdout or region.
        folds: number of folds for kfold.
        fold_seed: of the split.
        size: height and width of every chip in pixels. "any": each chip has its own size, at least
            dxc.models.registry.MIN_SIZE, and the chips of a batch have one size.
        boxes: whether batches have the boxes of the crossings, read from the Pascal VOC files beside the photos.
        augment: of training batches, none or flip_rotate; see dxc.data.augment.
        num_workers: processes that load batches.
        cache_dir: folder of the caches.
        progress: whether to show progress bars.

    Raises:
        ConfigError: a value cannot work.
        DataError: the chips cannot be used.
    """

    def __init__(
        self,
        source: ChipSource,
        *,
        channels: Sequence[str],
        classes: Sequence[str] | None = None,
        batch_size: int = 16,
        normalise: str = "per_chip",
        repair: str = "mean",
        split: str = "kfold",
        folds: int = 5,
        fold_seed: int = 42,
        size: int | str = 100,
        boxes: bool = False,
        augment: str = "none",
        num_workers: int = 0,
        cache_dir: str = "cache",
        progress: bool = True,
    ) -> None:
        if not hasattr(source, "photo_bands"):
            raise ConfigError(
                f"source: {source.noun} are whole images, and this data= is made of chips; use data=cifar10, or "
                "source=chips or source=synthetic"
            )
        if classes is not None and tuple(classes) != CLASS_NAMES:
            raise ConfigError(f"data.classes: chips have the classes {', '.join(CLASS_NAMES)}; leave it out")
        super().__init__(source, channels=channels, batch_size=batch_size, num_workers=num_workers)
        self.augment = augmentation(augment, among=OF_CHIPS)
        if self.augment is not None and boxes:
            raise ConfigError(
                f"data.augment={augment} would turn the images of a detector and leave their boxes: data.augment=none"
            )
        self.source: ChipSource = source
        self._on_bad_chip = source.on_bad_chip
        self.recipe = Recipe(
            channels=tuple(channels),
            normalise=normalise,
            repair=repair,
            size=size,
            photo_bands=tuple(source.photo_bands),
            check_georeference=source.check_georeference,
            boxes=boxes,
        )
        self.cache_dir = cache_dir
        self.progress = progress
        self._make_folds = partial(make_folds, split=split, folds=folds, seed=fold_seed)

    def read(self) -> tuple[ChipCache, list[Fold]]:
        """Make the chips if needed and read them; what was read before is in the cache."""
        cache = open_cache(
            self.source.prepare(),
            self.recipe,
            cache_dir=self.cache_dir,
            on_bad_chip=self._on_bad_chip,
            progress=self.progress,
        )
        if self.recipe.normalise == "fixed" and cache.photo_bands and cache.photo_type is None:
            raise DataError(
                f"data.normalise=fixed: some photos of the {self.source.noun} are uint8 and others uint16, which have "
                "no range in common. Convert them to one type, or give data.normalise=per_chip."
            )
        folds = self._make_folds(cache.labels, cache.regions, groups=cache.groups)
        _say_overlaps(cache)
        return cache, folds

    def planned_folds(self) -> list[Fold] | None:
        """As the source plans its chips."""
        planned = self.source.planned()
        return None if planned is None else self._make_folds(*planned)

    @property
    def fed(self) -> dict[str, Any]:
        """As the recipe says."""
        recipe = self.recipe
        fed: dict[str, Any] = {
            "channels": recipe.channels,
            "normalise": recipe.normalise,
            "repair": recipe.repair,
        }
        if recipe.normalise == "fixed":
            self.prepare_data()  # the constants depend on the type of the photos
            fed |= fixed_constants(recipe.channels, self.cache.photo_type)  # type: ignore[union-attr]  # it is read
            if "dem" in recipe.channels:
                fed["local_mean_sigma"] = LOCAL_MEAN_SIGMA
        return {**fed, "jitter_m": self.source.jitter()}

    def sample(self, count: int) -> ChipSample:
        """Chips of the source, of which only these are read; see sample_of_folder."""
        return sample_of_folder(self.source.prepare(), self.recipe, count)

    def _batching(self, cache: Images, indices: np.ndarray, *, shuffle: bool) -> dict[str, Any]:
        if self.recipe.size != ANY_SIZE:
            return super()._batching(cache, indices, shuffle=shuffle)
        batches = SameSizeBatches(
            cache.sizes[indices],
            self.batch_size,
            shuffle=shuffle,
            seed=self._seed,
            devices=self.trainer.world_size if self.trainer else 1,
            device=self.trainer.global_rank if self.trainer else 0,
        )
        return {"batch_size": None, "sampler": batches}


def _say_overlaps(cache: ChipCache) -> None:
    """Log how many chips stay together in a split, and for how many their overlaps are not known."""
    counts = np.bincount(cache.groups)
    if together := int(counts[counts > 1].sum()):
        log.info(
            "%d of %d chips overlap another on the ground: they form %d groups of up to %d chips that stay in one fold",
            together, len(cache), int((counts > 1).sum()), int(counts.max()),
        )  # fmt: skip
    if cache.unplaced:
        log.warning(
            "%d of %d chips do not say where they lie (no CRS or no georeference). Their overlaps are not known, so "
            "near copies may be on both sides of a split",
            cache.unplaced, len(cache),
        )  # fmt: skip


def _as_is(batch: Any) -> Batch:
    return batch
