"""Which epoch is being trained, in a small file beside the kept folds, so that other processes can show it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from dxc.files import write_atomically
from dxc.untrusted import load_json

FILE = "epoch.json"
MAX_BYTES = 1000


@dataclass(frozen=True)
class Epoch:
    """An epoch that has begun. number: from 1, of `of`; fold: the name of its fold."""

    fold: str
    number: int
    of: int


def write_epoch(folder: Path, epoch: Epoch) -> None:
    """Say which epoch has begun. Where it cannot be written the training goes on.

    Args:
        folder: where the folds of this training are kept.
        epoch: replaces the one before.
    """
    content = json.dumps({"fold": epoch.fold, "number": epoch.number, "of": epoch.of})
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, content, sync=False)  # nothing is lost with it


def read_epoch(folder: Path) -> Epoch | None:
    """The epoch that began last; None where none is known, or where its fold is kept already."""
    try:
        content = load_json(folder / FILE, limit=MAX_BYTES)
        fold, number, of = content["fold"], content["number"], content["of"]
        sound = "/" not in fold and isinstance(number, int) and isinstance(of, int) and 1 <= number <= of
        if not sound or (folder / f"{fold}.pt").exists():
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Epoch(fold, number, of)
