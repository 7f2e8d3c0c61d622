"""Published sets of labelled images behind Lightning's interface, such as CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from dxc.data.augment import augmentation
from dxc.data.datamodule import ImageDataModule
from dxc.data.folds import Fold, make_folds
from dxc.data.images import LabelledImages
from dxc.data.sample import ChipSample, sample_of_cache
from dxc.data.source import ImageSource
from dxc.errors import ConfigError, DataError, is_number, require_one_of, require_whole

NORMALISATIONS = ("fixed", "none")


class PublishedDataModule(ImageDataModule):
    """Images of a published set -> batches of the selected fold. `conf/data/cifar10.yaml` is its argument list.

    Training batches are augmented, validation batches never. What is drawn depends on the seed of the fold alone.

    Args:
        source: where the images come from.
        dataset: name of the set, for names of runs.
        channels: names of the channels, as the set has them.
        classes: names by label, as the source has them.
        batch_size: images per batch.
        normalise: fixed or none.
        mean: of each channel, for normalise=fixed: (x - mean) / std, with x from 0 to 255.
        std: of each channel.
        augment: of training batches, none, crop_flip or flip_rotate; see dxc.data.augment.
        pad: see dxc.data.augment.CropFlip.
        split: given, kfold or holdout; see make_folds.
        folds: number of folds for kfold.
        fold_seed: of the split.
        size: height and width of the images in pixels.
        num_workers: processes that load batches.

    Raises:
        ConfigError: a value cannot work.
        DataError: the images cannot be used.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        dataset: str,
        channels: Sequence[str],
        classes: Sequence[str],
        batch_size: int = 128,
        normalise: str = "fixed",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        augment: str = "none",
        pad: int = 4,
        split: str = "given",
        folds: int = 5,
        fold_seed: int = 42,
        size: int = 32,
        boxes: bool = False,
        num_workers: int = 0,
    ) -> None:
        if not hasattr(source, "read"):
            raise ConfigError(
                f"source: {source.noun} are chips, and data={dataset} is made of whole images; use source={dataset} or "
                "source=synthetic_images, or data=7ch and the like"
            )
        if boxes:
            raise ConfigError(f"data.boxes: the images of data={dataset} have no boxes; choose a classifier")
        super().__init__(source, channels=channels, batch_size=batch_size, num_workers=num_workers)
        require_one_of("data.normalise", normalise, NORMALISATIONS)
        if normalise == "fixed":
            _check_constants(self.channels, mean, std)
        require_whole("data.size", size, at_least=1)
        self.source: ImageSource = source
        self.classes = tuple(classes)
        self.normalise = normalise
        self.mean, self.std = (tuple(map(float, each)) for each in (mean, std))
        self.size = size
        self.augment = augmentation(augment, pad)
        self._make_folds = partial(make_folds, split=split, folds=folds, seed=fold_seed)

    def read(self) -> tuple[LabelledImages, list[Fold]]:
        """Make or fetch the images if needed and read them."""
        images = self.source.read()
        shape = (len(self.channels), self.size, self.size)
        if images.pixels.shape[1:] != shape or images.photo_bands != self.channels:
            raise DataError(
                f"data.size={self.size}, data.channels=[{','.join(self.channels)}]: {self.source.noun} have "
                f"{images.pixels.shape[2]} x {images.pixels.shape[3]} pixels and the channels "
                f"{', '.join(images.photo_bands)}"
            )
        folds = self._make_folds(
            images.labels, images.regions, held_out=images.held_out, classes=images.classes, unit=images.unit
        )
        return (images.rescaled(self.mean, self.std) if self.normalise == "fixed" else images), folds

    @property
    def fed(self) -> dict[str, Any]:
        """Normalisation with its constants."""
        constants = {"mean": self.mean, "std": self.std} if self.normalise == "fixed" else {}
        return {"channels": self.channels, "normalise": self.normalise, **constants}

    def sample(self, count: int) -> ChipSample:
        """Images of all that there are, which are read."""
        self.prepare_data()
        assert self.cache is not None  # it was just read
        return sample_of_cache(self.cache, self.channels, count)


def _check_constants(channels: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values, least in (("mean", mean, float("-inf")), ("std", std, 0.0)):
        sound = not isinstance(values, str) and len(values) == len(channels)
        if not sound or not all(is_number(each) and least < each < float("inf") for each in values):
            raise ConfigError(
                f"data.{name} must have a number{' above 0' if name == 'std' else ''} for each of "
                f"{', '.join(channels)}, not {values!r}"
            )
