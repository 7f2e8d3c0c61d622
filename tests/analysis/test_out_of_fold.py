"""Outcomes without predictions, and a cache that cannot be written."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dxc.analysis import out_of_fold
from dxc.analysis.out_of_fold import outcomes_of
from dxc.evaluation.bootstrap import Outcomes

IDS = ["1" * 32, "2" * 32, "3" * 32]
RUNS = pd.DataFrame(
    {
        "run_id": IDS,
        "artifact_uri": "",
        "dxc.data": ["a", "a", "b"],
        "data.split": "kfold",
        "val_accuracy.fold1": [0.8, 0.9, 0.7],
        "val_accuracy.fold2": [0.9, 0.9, 0.8],
    }
)
DESIGNS = pd.DataFrame({"runs": [[run_id] for run_id in IDS]})


@pytest.fixture(autouse=True)
def _no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_fold, "Reader", lambda uri, artifacts: None)


def test_folds_know_their_chips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(out_of_fold, "_fetch", lambda reader, run: None)
    found, notes = outcomes_of(DESIGNS, RUNS, "", cache_dir=tmp_path)
    first, second, other = (repeats[0] for repeats in found)
    assert first.folds_only and first.chips == second.chips != other.chips
    assert "3 of 3 runs have no predictions.parquet" in notes[0]


def test_a_cache_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = Outcomes(np.array([True, False]), np.array([0, 1]), "chips")
    monkeypatch.setattr(out_of_fold, "_fetch", lambda reader, run: outcomes)
    (tmp_path / "outcomes").write_text("a file in the folder's place")
    with caplog.at_level(logging.WARNING):
        found, notes = outcomes_of(DESIGNS, RUNS, "", cache_dir=tmp_path)
    assert [len(repeats) for repeats in found] == [1, 1, 1] and not notes
    assert [record.message.count("cannot be written") for record in caplog.records] == [1]


def test_three_hundred_folds_are_as_many_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As many as where every region, or every chip, is a fold of its own."""
    fold = np.arange(600) // 2
    right = np.arange(600) % 3 > 0
    probability, label = np.linspace(0, 1, 600, dtype=np.float32), np.arange(600) % 7 == 0
    outcomes = Outcomes(right, fold, "chips", probability, label)
    monkeypatch.setattr(out_of_fold, "_fetch", lambda reader, run: outcomes)
    fresh, _ = outcomes_of(DESIGNS, RUNS, "", cache_dir=tmp_path)
    monkeypatch.setattr(
        out_of_fold, "_fetch", lambda reader, run: None
    )  # from here on there is the cache alone
    kept, _ = outcomes_of(DESIGNS, RUNS, "", cache_dir=tmp_path)
    for (known,), (again,) in zip(fresh, kept, strict=True):
        np.testing.assert_array_equal(again.fold, fold)
        np.testing.assert_array_equal(again.right, right)
        np.testing.assert_array_equal(again.probability, probability)
        np.testing.assert_array_equal(again.label, label)
        assert len(np.unique(again.fold)) == 300 and again.accuracy == known.accuracy
