"""Which chips each run classified correctly, and how it ranked them, from its out-of-fold predictions in MLflow.

They are cached locally.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.bars import each
from dxc.evaluation.bootstrap import Outcomes
from dxc.files import write_atomically
from dxc.masking import masked
from dxc.metrics import is_fold_accuracy
from dxc.tracking.places import OutsideError
from dxc.tracking.reader import Reader
from dxc.untrusted import below

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"
JUDGED_BY = ("dxc.data", "data.split", "data.folds", "data.fold_seed", "source.check_georeference")
"""Runs that are equal in these were evaluated on the same chips in the same folds."""


def outcomes_of(
    designs: pd.DataFrame, runs: pd.DataFrame, uri: str, *, cache_dir: Path, artifacts: Sequence[str] = ()
) -> tuple[list[list[Outcomes]], list[str]]:
    """Read the outcomes of each design's repeats.

    Where a run has no predictions, the accuracies of its folds (metrics val_accuracy.foldN) are used. Runs without
    either are left out.

    Returns:
        The outcomes by design, and notes.
    """
    by_id: Mapping[str, Mapping[str, Any]] = {str(row["run_id"]): row for row in runs.to_dict("records")}
    folds = sorted(filter(is_fold_accuracy, runs))
    reader: Reader | None = None
    writable = True
    without: list[str] = []
    outside: list[str] = []
    # of this store: another may hold other runs under the same ids
    cached = cache_dir / "outcomes" / hashlib.blake2b(masked(uri).encode(), digest_size=8).hexdigest()
    found: list[list[Outcomes]] = []
    for members in each(list(designs["runs"]), "reading predictions", "design", quick=True):
        repeats = []
        for run_id in members:
            path = below(cached, run_id).with_suffix(".npz")
            outcomes = _load(path)
            if outcomes is None:
                reader = reader or Reader(uri, artifacts=artifacts)
                try:
                    outcomes = _fetch(reader, by_id[run_id])
                except OutsideError as error:
                    outside.append(str(error))
                if outcomes is not None:
                    writable = writable and _save(path, outcomes)
                else:
                    without.append(run_id)
                    outcomes = _of_folds([by_id[run_id][name] for name in folds], by_id[run_id])
            if outcomes is not None:
                repeats.append(outcomes)
        found.append(repeats)
    notes = []
    if without:
        notes.append(
            f"{len(without)} of {sum(map(len, designs['runs']))} runs have no {PREDICTIONS} (deleted?): how sure their "
            f"accuracy is comes from their folds alone: {', '.join(without[:3])}{', ...' if len(without) > 3 else ''}"
        )
    if outside:
        notes.append(
            f"{outside[0]}{f'; so are those of {len(outside) - 1} more runs' if outside[1:] else ''}"
        )
    return found, notes


def _fetch(reader: Reader, run: Mapping[str, Any]) -> Outcomes | None:
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        path = reader.artifact(str(run["run_id"]), PREDICTIONS, Path(folder), under=run["artifact_uri"])
        if path is None:
            return None
        try:
            outcomes = Outcomes.of_predictions(pd.read_parquet(path))
            if not len(outcomes.right):
                raise ValueError("it has no rows")
            return outcomes
        except Exception as error:  # a file of another kind under this name
            log.warning("run %s: %s cannot be read: %s", run["run_id"], PREDICTIONS, error)
            return None


def _of_folds(accuracies: Sequence[float], run: Mapping[str, Any]) -> Outcomes | None:
    known = [value for value in accuracies if value == value]
    judged_by = " ".join(f"{key}={run.get(key)}" for key in JUDGED_BY)
    return Outcomes.of_folds(known, judged_by) if len(known) > 1 else None


def _load(path: Path) -> Outcomes | None:
    try:
        with np.load(path) as content:  # allow_pickle is off
            right = np.unpackbits(content["right"], count=int(content["count"])).astype(bool)
            label = np.unpackbits(content["label"], count=len(content["probability"])).astype(bool)
            fold, chips = content["fold"].astype(np.int64), str(content["chips"])
            return Outcomes(right, fold, chips, content["probability"], label)
    except (OSError, ValueError, KeyError):
        return None


def _save(path: Path, outcomes: Outcomes) -> bool:
    """Write the cache. Returns False, after a warning, where that fails: the cache only saves time."""
    content = io.BytesIO()
    np.savez_compressed(
        content,
        right=np.packbits(outcomes.right.astype(bool)),
        count=len(outcomes.right),
        fold=outcomes.fold.astype(np.uint32),  # fewer bits would make fold 256 fold 0
        chips=outcomes.chips,
        probability=outcomes.probability,
        label=np.packbits(outcomes.label),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path, content.getvalue(), sync=False
        )  # there may be thousands; a damaged one is read again
    except OSError as error:
        log.warning(
            "cache_dir: predictions are read again next time, %s cannot be written: %s", path.parent, error
        )
        return False
    return True
