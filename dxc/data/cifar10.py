"""CIFAR-10: its binary files, and a source that fetches them or reads those that a user has.

Krizhevsky 2009, "Learning multiple layers of features from tiny images". The binary version is read, not the one for
Python: that one is a pickle, which is code. It has six files, data_batch_1.bin to data_batch_5.bin and test_batch.bin.
A record is one byte for the label and 1,024 bytes each for red, green and blue, row by row.
"""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from dxc.data.download import fetch
from dxc.data.images import LabelledImages
from dxc.data.source import ImageSource
from dxc.download import CHUNK_BYTES
from dxc.errors import ConfigError, DataError
from dxc.files import sync_to_disk, whole_folder

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
BYTES = 170_052_171
FOLDER = "cifar-10-batches-bin"
"""In the archive."""
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAIN_FILES, TEST_FILE)
RECORDS = 10_000
"""Images in each published file."""
CLASSES = 10
EDGE = 32
RECORD_BYTES = 1 + 3 * EDGE * EDGE


class Cifar10Source(ImageSource):
    """CIFAR-10 (source=cifar10): 50,000 images to train and 10,000 to test, 32 x 32 pixels, ten classes.

    Args:
        root: the archive, or a folder that holds the six files or cifar-10-batches-bin/; None: the archive is fetched
            from its official address into cache_dir, once.
        classes: names of the classes by label.
        cache_dir: holds cifar10/.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: there are not ten classes.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        classes: Sequence[str],
        cache_dir: str = "cache",
        progress: bool = True,
    ) -> None:
        check_classes(classes)
        self.root = None if root is None else Path(root)
        self.classes = tuple(classes)
        self.cache_dir = Path(cache_dir)
        self.progress = progress

    @property
    def noun(self) -> str:
        return "CIFAR-10 images"

    @property
    def title(self) -> str:
        """'60,000 CIFAR-10 images'."""
        return f"{len(FILES) * RECORDS:,} {self.noun}"

    def check(self) -> None:
        """Raise DataError where the user names something that is not there. Nothing is fetched."""
        if self.root is not None and not self.root.exists():
            raise DataError(
                f"source.root={self.root}: there is no such file or folder. Name the archive "
                f"{URL.rpartition('/')[2]} or the folder of its six files; without source.root it is fetched"
            )

    def prepare(self) -> Path:
        """The folder that holds the six files, or the archive that the user names."""
        self.check()
        if self.root is not None:
            return self.root / FOLDER if (self.root / FOLDER).is_dir() else self.root
        return self._fetched()

    def read(self) -> LabelledImages:
        """All images; see read_batches."""
        return read_batches(self.prepare(), self.classes, records=RECORDS)

    def _fetched(self) -> Path:
        """cache_dir/cifar10/cifar-10-batches-bin; fetched and unpacked if it is not there."""
        from filelock import FileLock

        home = self.cache_dir / "cifar10"
        folder = home / FOLDER
        if folder.is_dir():
            return folder
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            if folder.is_dir():
                return folder
            archive = fetch(
                URL, home / URL.rpartition("/")[2], sha256=SHA256, progress=self.progress, key="source.root"
            )
            with whole_folder(folder, locked=True) as draft:
                for name, content in _of_archive(archive).items():
                    (draft / name).write_bytes(content)
                    sync_to_disk(draft / name)
            archive.unlink()  # the files are all that is needed
        return folder


def check_classes(classes: Sequence[str]) -> None:
    """Raise ConfigError unless there are ten different names."""
    if isinstance(classes, str) or len(classes) != CLASSES or len(set(classes)) != CLASSES:
        raise ConfigError(f"source.classes must be {CLASSES} different names, not {classes!r:.200}")


def write_batch(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write images as a binary file of CIFAR-10.

    Args:
        path: of the file.
        pixels: uint8 (n, 3, 32, 32): red, green and blue.
        labels: (n,) 0 to 9.
    """
    flat = pixels.reshape(len(pixels), -1)
    path.write_bytes(np.hstack([labels.astype(np.uint8)[:, None], flat]).tobytes())


def read_batches(root: Path, classes: Sequence[str], *, records: int | None = None) -> LabelledImages:
    """Read the six files from a folder or from an archive.

    Args:
        root: the folder that holds them, or a .tar or .tar.gz.
        classes: names of the ten classes.
        records: how many images each file has to hold; None: any number.

    Raises:
        DataError: a file is missing, cut or damaged, or has a label that is none.
    """
    contents = _of_folder(root) if root.is_dir() else _of_archive(root)
    if missing := [name for name in FILES if name not in contents]:
        raise DataError(
            f"source.root: {root} is no complete CIFAR-10 of the binary version: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing (those for Python and Matlab are not read). Get "
            f"{URL.rpartition('/')[2]} again; without source.root it is fetched"
        )
    parts = [_records(root, name, contents[name], records) for name in FILES]
    counts = [len(each) for each in parts]
    return LabelledImages(
        pixels=np.concatenate([each[:, 1:] for each in parts]).reshape(-1, 3, EDGE, EDGE),
        labels=np.concatenate([each[:, 0] for each in parts]).astype(np.int64),
        classes=tuple(classes),
        held_out=np.repeat([name == TEST_FILE for name in FILES], counts),
        names=tuple(
            f"{name.removesuffix('.bin')}/{number}"
            for name, count in zip(FILES, counts, strict=True)
            for number in range(count)
        ),
    )


def _records(root: Path, name: str, content: bytes, records: int | None) -> np.ndarray:
    """The records of a file as uint8 (n, RECORD_BYTES). Raises DataError for one that is damaged."""
    wanted = len(content) - len(content) % RECORD_BYTES if records is None else records * RECORD_BYTES
    if len(content) != wanted or not content:
        raise DataError(
            f"source.root: {name} of {root} has {len(content):,} bytes instead of {wanted or RECORD_BYTES:,}: it is "
            "cut, or no binary file of CIFAR-10. Get it again; without source.root it is fetched"
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    if len(wrong := np.flatnonzero(table[:, 0] >= CLASSES)):
        raise DataError(
            f"source.root: {name} of {root} is damaged: image {wrong[0]} has the label {table[wrong[0], 0]}, and "
            f"labels are 0 to {CLASSES - 1} ({len(wrong):,} of {len(table):,} images have such a label). Get it again"
        )
    return table


def _of_folder(root: Path) -> dict[str, bytes]:
    try:
        return {name: (root / name).read_bytes() for name in FILES if (root / name).is_file()}
    except OSError as error:
        raise DataError(f"source.root: {error.filename} cannot be read: {error.strerror}") from error


def _of_archive(path: Path) -> dict[str, bytes]:
    """The six files in an archive, found by their names in it. Nothing else of it is unpacked, and no path obeyed."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in FILES and member.isfile() and name not in found:
                    stream: IO[bytes] | None = archive.extractfile(member)
                    assert stream is not None  # it is a file
                    # a member may claim any size: one byte more than published is enough to refuse it
                    found[name] = stream.read(RECORDS * RECORD_BYTES + 1)
            # to its end, where its checksum stands: a damaged byte would pass for a pixel
            while archive.fileobj is not None and archive.fileobj.read(CHUNK_BYTES):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            f"source.root: {path} is no whole archive ({error or type(error).__name__}): it is cut or damaged. Get "
            f"{URL.rpartition('/')[2]} again; without source.root it is fetched"
        ) from error
    return found
