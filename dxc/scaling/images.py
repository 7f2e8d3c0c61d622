"""What scale.py trains on: images made on the device, a folder of images in class folders, or chips.

Shards are in dxc.scaling.shards, and dxc.scaling.sources chooses among all of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from dxc.config.build import build
from dxc.config.checked import Natural, Part, Positive, Text, checked
from dxc.errors import ConfigError, DataError
from dxc.files import write_atomically
from dxc.text import counted
from dxc.untrusted import load_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
HELD_OUT = 10
"""Every tenth image of a class validates, where a folder has no `train` and `val`."""
NAMED = 20  # bad files in one message
LISTING_BYTES = 10**9  # a list of the 1.3 million files of ImageNet has 50 MB
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, as published with torchvision's weights."""
SIGNAL = 0.5
"""Of made images: standard deviation of what a class has in common; that of the noise is 1."""

Share = Literal["train", "val"]
OnBadFile = Literal["raise", "skip"]
LeftOut = tuple[str, str]
"""A shard and the key of an image that could not be read; an empty key: the shard, from some place on."""


class Images(Protocol):
    """Batches of one rank."""

    waits: bool
    """Whether a loader prepares the batches, so that a step may wait for one."""
    left_out: AbstractSet[LeftOut]
    """What could not be read until now, once each, however often it was met."""

    def train(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (images (B, C, H, W), labels (B,)) on the device. All ranks together see each image once an epoch."""

    def validation(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the images that were held out; the last batch may be smaller."""


@dataclass(frozen=True)
class Rank:
    """Which share of the images one process has."""

    number: int
    total: int
    device: torch.device
    seed: int
    channels_last: bool = False

    def to_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        form = torch.channels_last if self.channels_last else torch.contiguous_format
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=form)
        return images, labels.to(self.device, non_blocking=True)


class MadeSource(Part):
    """The section source=device_images."""

    kind: Literal["device_images"]
    classes: Positive
    seed: Natural


def found_made(source: Mapping[str, Any], channels: int, size: int) -> dict[str, Any]:
    """Describe images that are made on the device; see dxc.scaling.sources.described.

    Args:
        source: the section `source`.
        channels: that the network would get.
        size: edge in pixels.

    Raises:
        ConfigError: a value cannot work.
    """
    asked = checked(MadeSource, source, "source")
    about = {"classes": asked.classes, "channels": channels, "size": size}
    return {"kind": "made", **about, "seed": asked.seed, "images": 0, "digest": f"made-{asked.seed}"}


class MadeImages:
    """Images made on the device: noise, and a pattern of 8 x 8 fields that the images of a class share.

    No loader and no disk take part, so that the machine alone is measured. They can be learned, so that accuracies of
    runs with and without a fault differ; what a network learns of them says nothing about other images.
    """

    waits = False
    left_out: AbstractSet[LeftOut] = frozenset()

    def __init__(self, about: Mapping[str, Any], rank: Rank) -> None:
        import torch

        self._about, self._rank = about, rank
        same = torch.Generator().manual_seed(about["seed"])
        fields = torch.randn(about["classes"], about["channels"], 8, 8, generator=same)
        self._fields = (SIGNAL * fields).to(rank.device)

    def train(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = self._generator(1 + self._rank.number)
        while True:
            yield self._batch(device_batch, generator)

    def validation(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = self._generator(-1 - self._rank.number)
        for start in range(0, share := self._about["validation_images"] // self._rank.total, device_batch):
            yield self._batch(min(device_batch, share - start), generator)

    def _generator(self, number: int) -> torch.Generator:
        import torch

        return torch.Generator(self._rank.device).manual_seed(1_000_003 * self._rank.seed + number % 2**31)

    def _batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        import torch
        from torch.nn.functional import interpolate

        device, size = self._rank.device, self._about["size"]
        labels = torch.randint(self._about["classes"], (count,), device=device, generator=generator)
        images = torch.randn(count, self._about["channels"], size, size, device=device, generator=generator)
        images += interpolate(self._fields[labels], size=(size, size), mode="nearest")
        return self._rank.to_device(images, labels)


def require_rgb(source: str, channels: int) -> None:
    """Raise ConfigError where a network would not get red, green and blue, which a source of photos has."""
    if channels != 3:
        raise ConfigError(f"source={source} has 3 channels, red, green and blue, and not {channels}")


class FolderSource(Part):
    """The section source=imagefolder."""

    kind: Literal["imagefolder"]
    root: Text
    classes: Positive = 2
    workers: Natural
    on_bad_file: OnBadFile
    checked_files: Positive


def found_folder(source: Mapping[str, Any], channels: int, size: int, folder: Path) -> dict[str, Any]:
    """Look at a folder of images; see dxc.scaling.sources.described.

    Args:
        source: the section `source`.
        channels: that the network would get.
        size: edge in pixels of the images of a batch.
        folder: where the list of its files is kept.

    Raises:
        ConfigError: a value cannot work.
        DataError: the images cannot be used.
    """
    asked = checked(FolderSource, source, "source")
    root = Path(asked.root)
    require_rgb(asked.kind, channels)
    if not root.is_dir():
        raise DataError(
            f"source.root={root} is no folder; it holds one folder for each class, or train/ and val/"
        )
    parts = {part: root / part for part in ("train", "val") if (root / part).is_dir()}
    split = len(parts) == 2
    base = parts["train"] if split else root
    classes = sorted(each.name for each in base.iterdir() if each.is_dir() and not each.name.startswith("."))
    if len(classes) < 2:
        found = f"one class, {classes[0]}" if classes else "no folders"
        raise DataError(
            f"source.root={base} holds {found}; to tell classes apart it takes a folder for each of two"
        )
    files = (
        {part: _listed(folder, classes) for part, folder in parts.items()}
        if split
        else _held_out(base, classes)
    )
    for part, listed in files.items():
        if empty := [
            name for number, name in enumerate(classes) if not any(label == number for _, label in listed)
        ]:
            raise DataError(
                f"{root}: no images to {part} in {', '.join(empty[:NAMED])}; {', '.join(ENDINGS)} are read"
            )
    bad = _bad_headers([path for listed in files.values() for path, _ in listed], asked.checked_files)
    refuse_or_warn(bad, asked.on_bad_file, "file")
    kept = {part: [each for each in listed if each[0] not in bad] for part, listed in files.items()}
    names = {part: [(str(path.relative_to(root)), label) for path, label in kept[part]] for part in kept}
    listing = json.dumps(names)
    digest = hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()
    log.info("%d images of %d classes train, %d validate", len(kept["train"]), len(classes), len(kept["val"]))
    return {
        "kind": "folder",
        "root": str(root.resolve()),
        "classes": len(classes),
        "channels": 3,
        "size": size,
        "images": len(kept["train"]),
        "workers": asked.workers,
        "digest": digest,
        "listing": keep_listing(folder / f"files-{digest}.json", listing),
    }


def refuse_or_warn(bad: Mapping[Path, str], on_bad_file: OnBadFile, noun: str) -> None:
    """Raise DataError with a list of the files that are bad, or warn that they are left out; nothing where none are.

    Args:
        bad: file -> what is wrong with it.
        on_bad_file: of the configuration.
        noun: what a file is called.
    """
    if not bad:
        return
    if on_bad_file == "skip":
        first, fault = next(iter(bad.items()))
        log.warning("%s left out, the first is %s: %s", counted(len(bad), f"bad {noun}"), first, fault)
        return
    lines = "\n".join(f"  {path}: {fault}" for path, fault in list(bad.items())[:NAMED])
    more = f"\n  and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    raise DataError(
        f"{counted(len(bad), noun)} cannot be used:\n{lines}{more}\n"
        "Mend or remove them, or go on without them: source.on_bad_file=skip"
    )


def keep_listing(path: Path, listing: str) -> str:
    """Write a list of files, as JSON, beside the requests: it may be longer than those can be. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, listing)
    return str(path.resolve())


def load_listing(path: str) -> Any:
    """What keep_listing wrote."""
    return load_json(Path(path), limit=LISTING_BYTES)


def _listed(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in ENDINGS
    ]


def _held_out(folder: Path, classes: Sequence[str]) -> dict[str, list[tuple[Path, int]]]:
    """Every HELD_OUT-th image of each class validates; of a small class one does."""
    files: dict[str, list[tuple[Path, int]]] = {"train": [], "val": []}
    for label, name in enumerate(classes):
        for number, (path, _) in enumerate(_listed(folder, [name])):
            files["val" if number % HELD_OUT == 1 else "train"].append((path, label))
    return files


def _bad_headers(paths: Sequence[Path], most: int) -> dict[Path, str]:
    """Files whose head is no image's, and why. Of very many files a spread of them is opened; one that turns out bad
    in training is named then."""
    from PIL import Image

    bad = {}
    for path in paths[:: -(-len(paths) // most)]:
        try:
            with Image.open(path) as image:
                image.verify()
        except Exception as error:  # Pillow raises what its decoders do
            bad[path] = f"{type(error).__name__}: {error}".replace(str(path), path.name)
    return bad


class FolderImages:
    """Images of class folders, decoded, cropped and resized by loader processes.

    Training: a random crop of 8 to 100 % of the area, flipped or not. Validation: the centre. Both as torchvision's
    reference does it, with Pillow.
    """

    waits = True
    left_out: AbstractSet[LeftOut] = frozenset()

    def __init__(self, about: Mapping[str, Any], rank: Rank) -> None:
        self._about, self._rank = about, rank
        self._listing = load_listing(about["listing"])

    def train(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches("train", device_batch)

    def validation(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches("val", device_batch)

    def _batches(self, part: Share, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        from torch.utils.data import DataLoader

        rank, files = self._rank, self._listing[part]
        loader: DataLoader[Any] = DataLoader(
            _Files(Path(self._about["root"]), files, self._about["size"], part == "train"),  # type: ignore[arg-type]
            batch_sampler=_Shares(len(files), device_batch, rank, endless=part == "train"),
            num_workers=self._about["workers"],
            pin_memory=rank.device.type == "cuda",
        )
        for images, labels in from_loader(loader):
            yield rank.to_device(images, labels)


def from_loader(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a DataLoader. What is wrong with a file is raised as it was said: torch would put a traceback of
    the loader process before it."""
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).rpartition(f"{DataError.__module__}.DataError: ")[2].strip()) from None


class _Files:
    """A map-style dataset: (path, number of a draw) -> image and label."""

    def __init__(self, root: Path, files: Sequence[tuple[str, int]], size: int, train: bool) -> None:
        self._root, self._files, self._size, self._train = root, files, size, train

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        import numpy as np

        number, draw = key
        name, label = self._files[number]
        path = self._root / name
        rng = np.random.default_rng([draw, number]) if self._train else None
        try:
            return prepared(path, self._size, rng), label
        except Exception as error:  # Pillow raises what its decoders do
            raise DataError(f"{path} cannot be read: {error}; mend or remove it") from None


def prepared(file: Path | IO[bytes], size: int, rng: np.random.Generator | None) -> Tensor:
    """Decode an image, crop and resize it. Raises what Pillow's decoders do.

    Args:
        file: the encoded image.
        size: edge in pixels of what is returned.
        rng: for training: draws a random crop, flipped or not. None: the centre.

    Returns:
        (3, size, size) float32, normalised by MEAN and STD.
    """
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=_box(image.size, rng))
    pixels = np.asarray(image, dtype=np.float32) / 255
    if rng is not None and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    normal = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))


def _box(size: tuple[int, int], rng: np.random.Generator | None) -> tuple[float, float, float, float]:
    """The part of an image that is taken: the centre square, or a random part of 8 to 100 % of its area."""
    width, height = size
    if rng is None:
        edge = 0.875 * min(size)
        return (width - edge) / 2, (height - edge) / 2, (width + edge) / 2, (height + edge) / 2
    area, ratio = width * height * rng.uniform(0.08, 1), float(rng.uniform(3 / 4, 4 / 3))
    w, h = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, left + w, top + h


class _Shares:
    """Batches of (number of the image, number of the draw) of one rank.

    The order of an epoch is the same on all ranks, and each takes every total-th image of it. Training goes on for
    ever; validation ends.
    """

    def __init__(self, count: int, device_batch: int, rank: Rank, *, endless: bool) -> None:
        self._count, self._batch, self._rank, self._endless = count, device_batch, rank, endless

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        import numpy as np

        rank = self._rank
        if not self._endless:
            numbers = range(rank.number, self._count, rank.total)
            for start in range(0, len(numbers), self._batch):
                yield [(number, 0) for number in numbers[start : start + self._batch]]
            return
        waiting: list[tuple[int, int]] = []
        epoch = 0
        while True:
            order = np.random.default_rng([rank.seed, epoch]).permutation(self._count)
            waiting += [(int(number), epoch) for number in order[rank.number :: rank.total]]
            while len(waiting) >= self._batch:
                yield waiting[: self._batch]
                waiting = waiting[self._batch :]
            epoch += 1


def found_chips(source: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Images of the project's own data modules; what they cache is made here, by one process.

    Args:
        source: the section `source`.
        data: the section `data`.

    Raises:
        ConfigError: data.size is no number.
    """
    module = _module(source, data)
    module.prepare_data()
    cache, fold = module.cache, module.folds[0]
    if cache is None or not isinstance(data["size"], int):
        raise ConfigError("data.size must be a number of pixels: the images of a batch have one size")
    split = hashlib.blake2b(cache.data_hash.encode() + fold.train.tobytes(), digest_size=8)
    return {
        "kind": "chips",
        "source": dict(source),
        "data": dict(data),
        "classes": len(cache.classes),
        "channels": len(data["channels"]),
        "size": data["size"],
        "images": len(fold.train),
        "digest": split.hexdigest(),
    }


def _module(source: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    return build(data, "data", source=build(source, "source"))


class ChipImages:
    """Chips, or images of a published set, from the cache; the first fold's held-out images validate."""

    waits = True
    left_out: AbstractSet[LeftOut] = frozenset()

    def __init__(self, about: Mapping[str, Any], rank: Rank) -> None:
        self._about, self._rank = about, rank
        self._module = _module(about["source"], about["data"])
        self._module.prepare_data()

    def train(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(self._module.folds[0].train, device_batch, endless=True)

    def validation(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(self._module.folds[0].val, device_batch, endless=False)

    def _batches(
        self, indices: np.ndarray, device_batch: int, *, endless: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        cache = self._module.cache
        for numbers in _Shares(len(indices), device_batch, self._rank, endless=endless):
            chosen = indices[[number for number, _ in numbers]]
            images = torch.from_numpy(cache.images(chosen))
            images, labels = self._rank.to_device(images, torch.from_numpy(cache.labels[chosen]))
            yield images.float(), labels.long()
