"""Shards of webdataset: tar files of this machine, in which KEY.jpg and KEY.cls are an image and its class.

The library `webdataset` puts the members of a key together and shuffles. It never sees an address: it would run the
command of `pipe:`. dxc opens the files, and only files. Of the members, images and .cls are read; all else is passed
over, pickles included.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from braceexpand import braceexpand
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys

from dxc.config.checked import Natural, Part, Positive, Text, checked
from dxc.errors import ConfigError, DataError
from dxc.scaling.images import (
    ENDINGS,
    HELD_OUT,
    NAMED,
    LeftOut,
    OnBadFile,
    Rank,
    Share,
    from_loader,
    keep_listing,
    load_listing,
    prepared,
    refuse_or_warn,
    require_rgb,
)
from dxc.text import counted

log = logging.getLogger(__name__)

PARTS: tuple[Share, ...] = ("train", "val")
CLASS = "cls"
SUFFIXES = tuple(ending.removeprefix(".") for ending in ENDINGS)
MOST_SHARDS = 100_000
PATTERN = re.compile(r"[^{}]*(?:\{[^{}]*\}[^{}]*)*")
"""A path with braces, none in another."""
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")
"""First and last number. It is looked at before braceexpand, which makes a list of all between."""
BLOCK = 512
"""Bytes of a block of a tar archive. It ends with two blocks of zeros, which a file that was cut off lacks."""
MAGIC, MAGIC_AT = b"ustar", 257
CHUNK = 2**20
META = re.compile(r"__[^/]*__($|/)")
"""What webdataset takes for members about the shard."""
CLASS_DIGITS = 9


class ShardSource(Part):
    """The section source=webdataset."""

    kind: Literal["webdataset"]
    shards: Text
    val_shards: Text | None
    classes: Positive
    workers: Natural
    on_bad_file: OnBadFile
    shuffled: Natural


def found_shards(source: Mapping[str, Any], channels: int, size: int, folder: Path) -> dict[str, Any]:
    """Look at shards; see dxc.scaling.sources.described. Of each shard its end and its first image are looked at.

    Args:
        source: the section `source`.
        channels: that the network would get.
        size: edge in pixels of the images of a batch.
        folder: where the list of the shards is kept.

    Raises:
        ConfigError: a value cannot work.
        DataError: shards cannot be used.
    """
    asked = checked(ShardSource, source, "source")
    require_rgb(asked.kind, channels)
    if asked.classes < 2:
        raise ConfigError("source.classes must be at least 2, to tell classes apart")
    listed = local_files(asked.shards, "source.shards")
    if asked.val_shards is not None:
        files = {"train": listed, "val": local_files(asked.val_shards, "source.val_shards")}
        if both := set(files["train"]) & set(files["val"]):
            raise ConfigError(
                f"{min(both)} is in source.shards and in source.val_shards; a shard does one of the two"
            )
    elif len(listed) < 2:
        raise ConfigError(
            "source.shards is one shard, of which none can be held out; name others in source.val_shards"
        )
    else:
        held = set(listed[1::HELD_OUT])
        files = {part: [path for path in listed if (path in held) == (part == "val")] for part in PARTS}
    bad = {
        path: fault
        for paths in files.values()
        for path in paths
        if (fault := _fault(path, asked.classes, asked.on_bad_file == "skip"))
    }
    refuse_or_warn(bad, asked.on_bad_file, "shard")
    kept = {part: [path for path in paths if path not in bad] for part, paths in files.items()}
    for part, paths in kept.items():
        if not paths:
            raise DataError(f"no shard is left to {'train' if part == 'train' else 'validate'}")
    digest = hashlib.blake2b(digest_size=8)
    for part, paths in kept.items():
        for path in paths:  # to read all of them would take too long
            about = path.stat()
            digest.update(
                b"%s %s\0 %d %d\n" % (part.encode(), os.fsencode(path), about.st_size, about.st_mtime_ns)
            )
    listing = json.dumps({part: [str(path) for path in paths] for part, paths in kept.items()})
    log.info("%s to train, %d to validate", counted(len(kept["train"]), "shard"), len(kept["val"]))
    return {
        "kind": "shards",
        "classes": asked.classes,
        "channels": channels,
        "size": size,
        "images": 0,
        "workers": asked.workers,
        "on_bad_file": asked.on_bad_file,
        "shuffled": asked.shuffled,
        "shards": len(kept["train"]),
        "digest": digest.hexdigest(),
        "listing": keep_listing(folder / f"shards-{digest.hexdigest()}.json", listing),
    }


def local_files(pattern: str, key: str) -> list[Path]:
    """train-{000..146}.tar -> the files.

    Args:
        pattern: a path; braces as in bash name several.
        key: of the configuration, for messages.

    Raises:
        ConfigError: an address, or braces that do not close.
        DataError: files that are not there.
    """
    if not PATTERN.fullmatch(pattern):
        raise ConfigError(
            f"{key}={pattern}: a brace is not closed, or within another; several shards are DIR/{{000..146}}.tar"
        )
    ranges = [abs(int(last) - int(first)) for first, last in RANGE.findall(pattern)]
    names = (
        list(islice(braceexpand(pattern), MOST_SHARDS + 1)) if max(ranges, default=0) < MOST_SHARDS else []
    )
    if not 0 < len(names) <= MOST_SHARDS:
        raise ConfigError(f"{key}={pattern} names more than {MOST_SHARDS:,} shards")
    if addresses := [name for name in names if ":" in name]:
        raise ConfigError(
            f"{key}: {addresses[0]} is taken for an address, and shards are files of this machine. Fetch them first; "
            "a file must not have ':' in its path"
        )
    paths = [Path(name).resolve() for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"{key}: {len(missing)} of {counted(len(paths), 'file')} are not there: {missing[0]} is the first"
        )
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{key} names a file twice: {Counter(paths).most_common(1)[0][0]}")
    return paths


def _fault(path: Path, classes: int, skip: bool) -> str:
    """Why a shard cannot be used; '' where its end is there and an image with its class begins it.

    skip: bad images are left out, so that any good one will do.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(BLOCK)
            file.seek(max(0, size - 2 * BLOCK))
            end = file.read()
        if head[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
            return (
                "it is no tar archive, or a compressed one, which is not read: images are compressed already"
            )
        if size % BLOCK or end.strip(b"\0"):
            return "it is cut off: the end of the archive is missing; copy it again"
        fault = ""
        for sample in _samples(path):
            try:
                _decoded(sample, classes, 8, None)
                return ""
            except DataError as error:
                fault = str(error).removeprefix(f"{path}: ")
                if not skip:
                    return fault
        return fault or f"it holds no images{_dotted(path)}"
    except (OSError, tarfile.TarError, DataError) as error:
        return str(error).removeprefix(f"{path}: ")


def _dotted(path: Path) -> str:
    """What is wrong with the names of a shard without images, if there are images with a dot in their names."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            suffix = name.partition(".")[2]
            if member.isreg() and "." in suffix and name.lower().endswith(ENDINGS):
                stem, _, ending = name.rpartition(".")
                return (
                    f" that can be read: {name} has the suffix {suffix}, because webdataset takes everything after the "
                    f"first dot for it; rename it to {stem.replace('.', '_')}.{ending}, and its class likewise"
                )
    return ""


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    """What a shard holds by key, still encoded. Raises DataError where it cannot be read to its end."""
    try:
        yield from group_by_keys(_members(path))
    except Exception as error:  # tarfile's, the library's and the system's
        system = error.strerror if isinstance(error, OSError) else None
        reason = system or str(error.args[0] if error.args else error)
        raise DataError(f"{path}: it cannot be read to its end: {reason}") from error


def _members(path: Path) -> Iterator[dict[str, Any]]:
    """The images and classes of a shard, as webdataset's tar_file_iterator gives them.

    That one does not tell where it ended: tarfile takes a head that is damaged for the end of the archive. Raises
    tarfile.TarError where more follows, or less than the block of zeros that ends an archive.
    """
    with path.open("rb") as file:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined] # it would keep all heads
                if member.isreg() and _is_read(member.name):
                    content = archive.extractfile(member)
                    assert content is not None  # of a regular file
                    yield {"fname": member.name, "data": content.read(), "__url__": str(path)}
            end = archive.offset
        file.seek(end)
        if not (rest := file.read(CHUNK)):
            raise tarfile.ReadError("the end of the archive is missing")
        while rest:
            if rest.strip(b"\0"):
                raise tarfile.ReadError(
                    f"it is damaged after {end} bytes, where the head of a file should be"
                )
            rest = file.read(CHUNK)


def _is_read(name: str) -> bool:
    """Whether a member of this name is an image or a class."""
    suffix = name.rpartition("/")[2].partition(".")[2].lower()
    if META.match(name):
        return False
    return suffix == CLASS or suffix in SUFFIXES


def _decoded(
    sample: Mapping[str, Any], classes: int, size: int, rng: np.random.Generator | None
) -> tuple[Tensor, int]:
    """Image (3, size, size) and class. Raises DataError that names the image where it cannot be used."""
    name = f"{sample['__url__']}: {sample['__key__']}"
    image = next((suffix for suffix in SUFFIXES if suffix in sample), None)
    if image is None:
        raise DataError(f"{name} has no image ({', '.join(SUFFIXES)})")
    if CLASS not in sample:
        raise DataError(f"{name} has no .{CLASS}")
    text = sample[CLASS].strip()
    if not text.isdigit() or len(text) > CLASS_DIGITS or int(text) >= classes:
        raise DataError(
            f"{name}.{CLASS} holds {text[:20]!r}, which is no class from 0 to {classes - 1}; source.classes= says how "
            "many there are"
        )
    try:
        return prepared(io.BytesIO(sample[image]), size, rng), int(text)
    except Exception as error:  # Pillow raises what its decoders do
        reason = "it is no image" if "cannot identify image file" in str(error) else str(error)
        raise DataError(f"{name}.{image} cannot be decoded: {reason}") from None


class ShardImages:
    """Images of shards, read one after the other by loader processes.

    Training: all loader processes of all ranks share the shards of an epoch: each reads its own, in an order that is
    drawn, and draws each image from `shuffled` of them. With shards of unequal length some ranks begin the next epoch
    before others.

    Validation: each process reads all shards and decodes every n-th image of them, n being the number of processes.
    So all ranks have as much to do, however few shards there are, and none waits for another until it times out.
    """

    waits = True

    def __init__(self, about: Mapping[str, Any], rank: Rank) -> None:
        self._about, self._rank = about, rank
        self._listing = load_listing(about["listing"])
        self.left_out: set[LeftOut] = set()

    def train(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches("train", device_batch)

    def validation(self, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches("val", device_batch)

    def _batches(self, part: Share, device_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rank, workers = self._rank, self._about["workers"]
        if part == "train":  # a process without a shard would have nothing to do
            workers = min(workers, self._about["shards"] // rank.total)
        loader: DataLoader[Any] = DataLoader(
            _Batches(self._about, part, self._listing[part], device_batch, rank, self.left_out),
            batch_size=None,
            num_workers=workers,
            pin_memory=rank.device.type == "cuda",
        )
        for images, labels, left_out in from_loader(loader):
            self.left_out |= left_out
            if len(labels):
                yield rank.to_device(images, labels)


class _Batches(IterableDataset[tuple[Tensor, Tensor, set[LeftOut]]]):
    """Batches of one loader process: images, classes, and what was left out since the last one for the first time.

    known: what was left out before, of which no message is needed any more.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        part: Share,
        shards: Sequence[str],
        device_batch: int,
        rank: Rank,
        known: AbstractSet[LeftOut],
    ) -> None:
        self._about, self._train, self._batch, self._rank = about, part == "train", device_batch, rank
        self._shards = [Path(path) for path in shards]
        self._known = set(known)
        self._left_out: set[LeftOut] = set()
        self._used = 0
        """How many images were decoded until now."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, set[LeftOut]]]:
        images: list[Tensor] = []
        labels: list[int] = []
        for sample, rng in self._drawn():
            try:
                image, label = _decoded(sample, self._about["classes"], self._about["size"], rng)
            except DataError as error:
                self._leave_out((sample["__url__"], sample["__key__"]), error)
                continue
            self._used += 1
            images.append(image)
            labels.append(label)
            if len(labels) == self._batch:
                yield torch.stack(images), torch.tensor(labels), self._left_out
                images, labels, self._left_out = [], [], set()
        if labels or self._left_out:
            size = self._about["size"]
            yield (
                torch.stack(images) if images else torch.empty(0, 3, size, size),
                torch.tensor(labels),
                self._left_out,
            )

    def _leave_out(self, what: LeftOut, error: DataError) -> None:
        """Go on without an image or the rest of a shard, or raise the error where that was not asked for."""
        if self._about["on_bad_file"] == "raise":
            raise error
        if what not in self._known:
            log.warning("left out: %s", error)
            self._known.add(what)
            self._left_out.add(what)

    def _read(self, shards: Sequence[Path]) -> Iterator[dict[str, Any]]:
        """The samples of shards, one after the other."""
        for path in shards:
            try:
                yield from _samples(path)
            except DataError as error:
                self._leave_out((str(path), ""), error)

    def _drawn(self) -> Iterator[tuple[dict[str, Any], np.random.Generator | None]]:
        """Samples of this process, for validation once, for training for ever; with what draws their crops."""
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        slot, slots = self._rank.number * count + number, self._rank.total * count
        if not self._train:
            yield from ((sample, None) for sample in islice(self._read(self._shards), slot, None, slots))
            return
        epoch = 0
        useless: set[Path] = set()
        while True:
            seed = self._rank.seed
            order = np.random.default_rng([seed, epoch]).permutation(len(self._shards))
            own = [self._shards[index] for index in order[slot::slots]]
            rng = np.random.default_rng([seed, epoch, slot])
            samples = self._read(own)
            if self._about["shuffled"]:
                samples = shuffle(self._about["shuffled"], rng=random.Random(f"{seed} {epoch} {slot}"))(
                    samples
                )
            used = self._used
            for sample in samples:
                yield sample, rng
            if self._used == used:  # the next epoch may draw a shard that has images
                useless.update(own)
                if self._about["on_bad_file"] == "raise" or len(useless) == len(self._shards):
                    names = ", ".join(str(path) for path in own[:NAMED]) or "no shard"
                    raise DataError(f"{names}: there are no images that can be used")
            epoch += 1
