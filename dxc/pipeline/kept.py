"""Results of stages that are kept on disk: cache_dir/stages/ID holds what the stage of this identity found.

A folder was used when its files last changed or mark_used was called. Several processes and machines may share it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

STAGES = "stages"
LOCK = ".lock"


def kept_folder(cache_dir: Path | str, identity: str) -> Path:
    """Where results of a stage are kept; the folder need not be there."""
    return Path(cache_dir) / STAGES / identity


def mark_used(folder: Path) -> None:
    """Count a folder as used now."""
    with contextlib.suppress(OSError):  # it is not there, or another user's
        os.utime(folder)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder of results. Other runs that need the same ones wait, and find them when the block has ended.

    Where the folder cannot be locked, the work is done all the same: at worst twice.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK)
            try:
                held.enter_context(lock.acquire(timeout=0))
            except Timeout:
                log.info("another run makes the same networks; this one waits for them (%s)", folder)
                held.enter_context(lock.acquire())
            mark_used(folder)
        except OSError as error:
            log.debug("%s cannot be locked: %s", folder, error)
        yield


def remove_least_used(cache_dir: Path | str, kept_gb: float | None) -> None:
    """Remove the least recently used results until the others fit into `kept_gb`, and say so.

    Args:
        cache_dir: holds the folder stages.
        kept_gb: limit in 1e9 bytes; None: no limit.
    """
    root = Path(cache_dir) / STAGES
    if kept_gb is None or not root.is_dir():
        return
    found: list[tuple[float, int, Path]] = []
    for folder in root.iterdir():
        if folder.name.startswith("."):  # left by a removal that was killed
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):  # removed by another process just now
            found.append((folder.stat().st_mtime, _bytes_in(folder), folder))
    total = sum(size for _, size, _ in found)
    removed = freed = 0
    for _, size, folder in sorted(found):
        if total - freed <= kept_gb * 1e9:
            break
        gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            folder.rename(gone)  # nobody finds half a folder
            shutil.rmtree(gone, ignore_errors=True)
            removed, freed = removed + 1, freed + size
    if removed:
        log.info(
            "kept_gb=%g: trained folds of %d %s (%.3g GB) were removed from %s, the least recently used",
            kept_gb, removed, "design" if removed == 1 else "designs", freed / 1e9, root,
        )  # fmt: skip


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
