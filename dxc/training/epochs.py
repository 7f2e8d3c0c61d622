"""Which epoch is being trained, in a small file beside the kept folds, so that other processes can show it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dxc.files import write_atomically
from dxc.untrusted import load_json

FILE = "epoch.json"
MAX_BYTES = 1000


@dataclass(frozen=True)
class Epoch:
    """An epoch that has begun. number: from 1, of `of`; fold: the name of its fold; together: folds that are trained at
    once."""

    fold: str
    number: int
    of: int
    together: int = 1


def write_epoch(folder: Path, epoch: Epoch) -> None:
    """Say which epoch has begun. Where it cannot be written the training goes on.

    Args:
        folder: where the folds of this training are kept.
        epoch: replaces the one before.
    """
    content = json.dumps(asdict(epoch))
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, content, sync=False)  # nothing is lost with it


def read_epoch(folder: Path) -> Epoch | None:
    """The epoch that began last; None where none is known, or where its fold is kept already."""
    try:
        content = load_json(folder / FILE, limit=MAX_BYTES)
        fold, number, of, together = (content[name] for name in ("fold", "number", "of", "together"))
        whole = all(isinstance(each, int) for each in (number, of, together))
        sound = "/" not in fold and whole and 1 <= number <= of and together >= 1
        if not sound or (folder / f"{fold}.pt").exists():
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Epoch(fold, number, of, together)
