"""Folds against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from dxc.data.folds import make_folds
from dxc.errors import ConfigError, DataError

LABELS = np.random.default_rng(0).integers(0, 2, 103)
REGIONS = np.array(["CA", "IL", "ND"])[np.random.default_rng(1).integers(0, 3, 103)]


def test_kfold_equals_the_published_split() -> None:
    folds = make_folds(LABELS, REGIONS)
    expected = list(StratifiedKFold(5, shuffle=True, random_state=42).split(np.zeros(103), LABELS))
    assert len(folds) == 5
    for ours, (train, val) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(ours.train, train)
        np.testing.assert_array_equal(ours.val, val)


def test_seed_changes_the_split() -> None:
    a, b = make_folds(LABELS, REGIONS, seed=42)[0], make_folds(LABELS, REGIONS, seed=43)[0]
    assert not np.array_equal(a.val, b.val)


def test_holdout_is_80_20_and_stratified() -> None:
    (fold,) = make_folds(LABELS, REGIONS, split="holdout")
    assert len(fold.val) == 21
    assert sorted([*fold.train, *fold.val]) == list(range(103))
    assert LABELS[fold.val].mean() == pytest.approx(LABELS.mean(), abs=0.03)


def test_region_leaves_one_region_out() -> None:
    folds = make_folds(LABELS, REGIONS, split="region")
    assert [fold.name for fold in folds] == ["CA", "IL", "ND"]
    for fold in folds:
        assert set(REGIONS[fold.val]) == {fold.name}
        assert fold.name not in set(REGIONS[fold.train])
        assert len(fold.train) + len(fold.val) == 103


@pytest.mark.parametrize(
    ("labels", "regions", "options", "error", "says"),
    [
        ([0] * 9 + [1] * 4, ["A"] * 13, {}, DataError, "class T has 4 chips.*at least 5.*lower data.folds"),
        ([0] * 9, ["A"] * 9, {}, DataError, "class T has 0 chips"),
        ([0] * 9 + [1] * 4, ["A"] * 13, {"split": "holdout"}, DataError, "class T has 4"),
        ([0, 1], ["A", "A"], {"split": "region"}, DataError, "at least two regions, there is only A"),
        ([0, 1], ["A", "B"], {"split": "region"}, DataError, "without region A"),
        ([0, 1], ["A", "B"], {"split": "kfolds"}, ConfigError, "unknown split 'kfolds'"),
        ([0, 1], ["A", "B"], {"folds": 1}, ConfigError, "at least 2, not 1"),
        ([0, 1], ["A", "B"], {"folds": 2.5}, ConfigError, "not 2.5"),
    ],
)
def test_splits_that_cannot_be(
    labels: list[int], regions: list[str], options: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make_folds(labels, regions, **options)
