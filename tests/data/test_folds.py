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
        ([0, 1], ["A", "A"], {"split": "region"}, DataError, "at least two regions; there is only A"),
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


def test_one_region_may_hold_half_of_the_chips() -> None:
    folds = make_folds([0, 1, 0, 1, 0], list("AABBC"), split="region")
    assert [fold.name for fold in folds] == ["A", "B", "C"]
    assert [fold.val.tolist() for fold in folds] == [[0, 1], [2, 3], [4]]
    assert [fold.train.tolist() for fold in folds] == [[2, 3, 4], [0, 1, 4], [0, 1, 2, 3]]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_holdout_has_a_fifth_of_each_class_in_order(grouped: bool) -> None:
    labels = np.array([0] * 80 + [1] * 20)
    groups = np.arange(100) // 2 if grouped else None
    (fold,) = make_folds(labels, ["A"] * 100, groups=groups, split="holdout")
    assert (len(fold.val), labels[fold.val].sum()) == (20, 4)
    assert (np.diff(fold.val) > 0).all() and (np.diff(fold.train) > 0).all()
    (other,) = make_folds(labels, ["A"] * 100, groups=groups, split="holdout", seed=43)
    assert other.val.tolist() != fold.val.tolist()
    (same,) = make_folds(labels, ["A"] * 100, groups=groups, split="holdout", seed=42, folds=7)
    assert same.val.tolist() == fold.val.tolist()


def test_as_many_chips_of_a_class_as_folds_are_enough() -> None:
    labels = [0] * 9 + [1] * 5
    folds = make_folds(labels, ["A"] * 14)
    assert [fold.name for fold in folds] == ["fold1", "fold2", "fold3", "fold4", "fold5"]
    assert all(np.asarray(labels)[fold.val].sum() == 1 for fold in folds)
    assert len(make_folds(labels, ["A"] * 14, split="holdout")) == 1
    assert [len(fold.val) for fold in make_folds([0, 1] * 2, ["A"] * 4, folds=2)] == [2, 2]
    with pytest.raises(
        DataError, match=r"class T has 5 chips, data.split=kfold needs at least 6; lower data.folds"
    ):
        make_folds(labels, ["A"] * 14, folds=6)
    with pytest.raises(
        DataError, match=r"class F has 4 chips, data.split=holdout needs at least 5; add chips$"
    ):
        make_folds([0] * 4 + [1] * 9, ["A"] * 13, split="holdout")


def test_regions_are_sorted_and_need_no_crossing_of_their_own() -> None:
    folds = make_folds([0, 1, 0, 1, 0, 0], ["b", "b", "a", "a", "c", "c"], split="region")
    assert [fold.name for fold in folds] == ["a", "b", "c"]
    with pytest.raises(DataError, match="at least two regions; there is only none"):
        make_folds([], [], split="region")
    with pytest.raises(ConfigError, match="data.fold_seed must be a whole number of at least 0, not -1"):
        make_folds([0, 1], ["A", "B"], split="region", seed=-1)
    assert make_folds([0, 1] * 5, ["A"] * 10, seed=0)[0].val.tolist()


@pytest.mark.parametrize("split", ["kfold", "holdout"])
def test_images_that_are_set_aside_stay_out(split: str) -> None:
    """They are every third image here. With split=given they validate."""
    labels, held_out = np.arange(120) % 4, np.arange(120) % 3 == 0
    names = ["part"] * 120
    folds = make_folds(labels, names, held_out=held_out, split=split, folds=4, classes=["a", "b", "c", "d"])
    assert len(folds) == (4 if split == "kfold" else 1)
    for fold in folds:
        assert sorted([*fold.train, *fold.val]) == np.flatnonzero(~held_out).tolist()
        assert set(np.bincount(labels[fold.val])) == ({5} if split == "kfold" else {4})
    (given,) = make_folds(labels, names, held_out=held_out, split="given")
    assert given.val.tolist() == np.flatnonzero(held_out).tolist()
    assert given.train.tolist() == np.flatnonzero(~held_out).tolist()
    with pytest.raises(ConfigError, match="data.split=given: these chips have no split of their own"):
        make_folds(labels, names, split="given")
