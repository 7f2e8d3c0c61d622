"""Files that are there whole or not at all, whatever ends the process that writes them, or the machine."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_NAME_BYTES = 255  # what file systems allow a name


def folder_name(title: str) -> str:
    """Name of the folder for the report on a title: one part of a path, which is not hidden.

    >>> folder_name("first+second"), folder_name("../a b")
    ('first+second', '__a_b')
    """
    return re.sub(r"[^\w.+-]|^\.+", "_", title)


def write_atomically(path: Path, content: bytes | str, *, sync: bool = True) -> None:
    """Write `content` (text as UTF-8) beside `path` and put it in its place. Raises OSError, and leaves no draft.

    Threads and processes may write one path at once: one of their files stays, whole.

    Args:
        sync: wait until file and name are on the disk, so that they outlive a power cut: about 1 ms on an SSD.
            False for one of many files whose writer calls sync_everything at the end.
    """
    draft = _draft(path)
    try:
        with draft.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
        if sync:
            sync_to_disk(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, locked: bool = False) -> Iterator[Path]:
    """Fill a folder that appears at `path` only when the block has ended. If the block raises, nothing appears.

    The block gets a draft beside `path`. It has to sync what it writes (sync_to_disk or sync_everything).

    Args:
        path: the folder, which does not exist yet; its parent does.
        locked: whether the caller holds a lock for `path`. Then earlier drafts belong to killed processes and are
            removed.

    Raises:
        OSError: the folder cannot be made or renamed.
    """
    if locked:
        for left in [each for each in path.parent.iterdir() if each.name.startswith(f".{path.name}.")]:
            shutil.rmtree(left, ignore_errors=True)
    draft = _draft(path)
    draft.mkdir()
    try:
        yield draft
        draft.rename(path)
        sync_to_disk(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Let a library write a file that appears at `path` only when the block has ended. If it raises, nothing appears.

    The block gets a name beside `path` with the same ending, because libraries choose a format by it. A file that is at
    `path` already is replaced.

    Args:
        path: the file; its folder exists.

    Raises:
        OSError: the file cannot be made or renamed.
    """
    draft = _draft(path, path.suffix)
    try:
        yield draft
        sync_to_disk(draft)
        draft.replace(path)
        sync_to_disk(path.parent)
    finally:
        for left in draft.parent.iterdir():
            if left.name.startswith(draft.name):  # with the journal of a database that broke off
                left.unlink(missing_ok=True)


def _draft(path: Path, ending: str = "") -> Path:
    """A hidden name beside `path` that no other call chooses, and that ends like this."""
    end = f".{secrets.token_hex(8)}{ending}"
    stem = os.fsencode(path.name)[: MAX_NAME_BYTES - len(end) - 1]
    return path.with_name(f".{stem.decode(errors='ignore')}{end}")


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # one may write into a folder that one cannot read; Windows opens none
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # some network file systems cannot sync folders
    finally:
        os.close(descriptor)


def sync_everything() -> None:
    """Wait until all that was written is on the disk; cheaper than file by file where there are thousands."""
    if hasattr(os, "sync"):
        os.sync()
