"""Forests as arrays: unsound ones and damaged files are refused."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

from dxc.errors import HardwareError
from dxc.hardware.predict import forest as module
from dxc.hardware.predict.forest import Forest

# x[0] <= 2 ? 3 : 5
TREE = {
    "feature": np.array([0, -2, -2]),
    "threshold": np.array([2.0, -2, -2]),
    "left": np.array([1, -1, -1]),
    "right": np.array([2, -1, -1]),
    "value": np.array([0.0, 3, 5]),
}


def _joined(*trees: dict[str, Any]) -> Forest:
    return Forest.joined(list(trees), base=0.0, weight=1.0, n_features=1)


def _with(key: str, *numbers: int) -> dict[str, Any]:
    return TREE | {key: np.array(numbers)}


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (_with("left", 4, -1, -1), "left"),  # a node of the next tree, once joined
        (_with("right", 3, -1, -1), "right"),  # the next tree's root
        (_with("right", -1, -1, -1), "right"),
        (_with("left", 2**32 + 1, -1, -1), "left"),  # 1, as int32
        (_with("feature", 2**32, -2, -2), "feature"),  # 0, as int32
        (_with("feature", 1, -2, -2), "feature"),
        ({key: array[:0] for key, array in TREE.items()}, "without nodes"),
    ],
)
def test_a_tree_that_is_not_sound_by_itself_is_refused(first: dict[str, Any], said: str) -> None:
    assert _joined(TREE, TREE).predict([[2.0], [2.1]]).tolist() == [6.0, 10.0]
    with pytest.raises(ValueError, match=said):
        _joined(first, TREE)


def test_the_sum_over_trees_by_hand() -> None:
    """base + weight x (leaf + leaf). A feature is rounded to float32, and goes left where it equals the threshold."""
    other = TREE | {"threshold": np.array([0.1, -2, -2]), "value": np.array([0.0, 10, 20])}
    forest = Forest.joined([TREE, other], base=1.0, weight=0.5, n_features=2)
    # 2 <= 2 and 2 > 0.1; 0.1 as float32 is more than 0.1; 0 is left of both; 3 is right of both; column 1 is not asked
    rows = [[2.0, 9.0], [0.1, 9.0], [0.0, 9.0], [3.0, 9.0]]
    assert forest.predict(rows).tolist() == [
        1 + (3 + 20) / 2,
        1 + (3 + 20) / 2,
        1 + (3 + 10) / 2,
        1 + (5 + 20) / 2,
    ]
    assert forest.roots.tolist() == [0, 3]
    assert forest.left.tolist() == [1, -1, -1, 4, -1, -1]
    assert forest.threshold.tolist() == [2, 0, 0, 0.1, 0, 0]  # none at a leaf


def test_forests_and_boosting_predict_as_scikit_learn_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((60, 3))
    target = 5 + features @ [1.0, 2, 3]
    for model in (
        RandomForestRegressor(7, random_state=0),
        GradientBoostingRegressor(n_estimators=9, random_state=0),
    ):
        model.fit(features, target)
        Forest.from_sklearn(model).save(tmp_path / "f.npz")
        rows = rng.random((20, 3)).astype(np.float32)
        np.testing.assert_allclose(Forest.load(tmp_path / "f.npz").predict(rows), model.predict(rows))


def test_no_trees_and_wrong_features_are_bugs_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no trees"):
        _joined()
    for wrong in ([[1.0, 2.0]], [1.0], [[]]):
        with pytest.raises(ValueError, match="features must be"):
            _joined(TREE).predict(wrong)
    assert _joined(TREE).predict(np.empty((0, 1))).shape == (0,)


def _rewritten(path: Path, **other: Any) -> None:
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files} | other
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"left": None}, "left"),
        ({"left": np.array([0, -1, -1], np.int32)}, "outside of its tree"),  # a loop
        ({"right": np.array([3, -1, -1], np.int32)}, "outside of its tree"),
        ({"right": np.array([0, -1, -1], np.int32)}, "outside of its tree"),
        ({"feature": np.array([1, -1, -1], np.int32)}, "a feature that does not exist"),  # of one: 0
        ({"feature": np.array([-3, -1, -1], np.int32)}, "a feature that does not exist"),
        ({"n_features": np.int64(0)}, "features"),
        ({"n_features": np.int64(10_001)}, "10001 features"),
        ({"roots": np.array([3], np.int32)}, "a root lies outside"),
        ({"roots": np.array([-1], np.int32)}, "a root lies outside"),
        ({"roots": np.array([], np.int32)}, "do not fit together"),
        ({"base": np.float64(np.nan)}, "not finite"),
        ({"weight": np.float64(np.inf)}, "not finite"),
        ({"threshold": np.array([np.nan, 0, 0])}, "not finite"),
        ({"value": np.array([0, np.inf, 5])}, "not finite"),
        ({"value": np.zeros(2)}, "do not fit together"),
        ({"value": np.zeros((3, 1))}, "other shapes"),
        ({"left": np.array([1, -1, -1], np.int64)}, "other types"),
        ({"value": np.array([None] * 3, dtype=object)}, "pickle"),
        ({"n_features": np.int64(2**40)}, "features"),
    ],
)
def test_damaged_files_are_named(other: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "fc.npz"
    _joined(TREE).save(path)
    assert Forest.load(path).predict([[2.0]]).tolist() == [3.0]
    _rewritten(path, **other)
    with pytest.raises(HardwareError, match=said) as caught:
        Forest.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fc.npz"
    _joined(TREE).save(path)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    monkeypatch.setattr(module, "MAX_BYTES", unpacked)
    Forest.load(path)
    monkeypatch.setattr(module, "MAX_BYTES", unpacked - 1)
    with pytest.raises(HardwareError, match="unpacks to over"):
        Forest.load(path)


def test_twenty_kernels_through_320_trees_take_milliseconds() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((400, 7))
    forest = Forest.from_sklearn(RandomForestRegressor(320, random_state=0).fit(features, features[:, 0]))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        forest.predict(features[:20])
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02
