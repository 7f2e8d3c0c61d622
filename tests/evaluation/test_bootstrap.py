"""Bootstrap against the binomial formula, McNemar against the binomial by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from dxc.errors import AnalysisError
from dxc.evaluation.bootstrap import (
    Outcomes,
    _counts,
    accuracy_draws,
    average_precision_draws,
    compare,
    probability_non_dominated,
)


def _outcomes(right: np.ndarray, folds: int = 4) -> Outcomes:
    return Outcomes(right, np.arange(len(right)) % folds, "the same chips")


def test_predictions_become_outcomes() -> None:
    frame = pd.DataFrame(
        {
            "region": ["NE", "NE", "CA", "CA"],
            "name": ["b", "a", "a", "b"],
            "label": [1, 0, 1, 0],
            "fold": ["fold2", "fold1", "fold1", "fold2"],
            "probability": [0.9, 0.2, 0.4, 0.3],
        }
    )
    outcomes = Outcomes.of_predictions(frame)
    assert list(outcomes.right) == [False, True, True, True]  # CA a, CA b, NE a, NE b
    assert list(outcomes.fold) == [0, 1, 0, 1]
    assert outcomes.accuracy == pytest.approx((0.5 + 1.0) / 2)
    assert Outcomes.of_predictions(frame.iloc[::-1]).chips == outcomes.chips


def _predictions(**columns: list) -> pd.DataFrame:
    same = {"region": "NE", "name": list("abcd"), "label": [0, 1, 0, 1], "fold": "fold1", "probability": 0.5}
    return pd.DataFrame(same | columns)


def test_a_probability_of_one_half_is_no_crossing() -> None:
    assert list(Outcomes.of_predictions(_predictions()).right) == [True, False, True, False]
    sure = Outcomes.of_predictions(_predictions(probability=[0.0, 1.0, 0.51, 0.49]))
    assert list(sure.right) == [True, True, False, False]


def test_which_chips_they_are_is_told_apart() -> None:
    """Other names, other regions and other folds are other chips; what was answered does not matter."""
    chips = Outcomes.of_predictions(_predictions()).chips
    assert Outcomes.of_predictions(_predictions(probability=[0.1, 0.2, 0.3, 0.4])).chips == chips
    assert Outcomes.of_predictions(_predictions(fold="fold2")).chips == chips  # a fold's name is only a name
    for other in ({"name": list("abce")}, {"region": "CA"}, {"fold": ["f1", "f1", "f2", "f2"]}):
        assert Outcomes.of_predictions(_predictions(**other)).chips != chips
    halves = [_predictions(fold=each) for each in (["f1", "f1", "f2", "f2"], ["f1", "f2", "f2", "f1"])]
    assert Outcomes.of_predictions(halves[0]).chips != Outcomes.of_predictions(halves[1]).chips


def test_each_fold_counts_alike() -> None:
    """6 right in one fold and 2 wrong in another: the mean over folds is one half, not 6 of 8, and in every draw."""
    outcomes = Outcomes(np.array([True] * 6 + [False] * 2), np.array([0] * 6 + [1] * 2), "chips")
    assert outcomes.accuracy == 0.5
    (draws,) = accuracy_draws([[outcomes]], draws=100, seed=0)
    assert (draws == 0.5).all()


def test_chips_are_drawn_within_their_fold() -> None:
    """Half of a fold of 100 is right, the other fold of 300 all: only the first is unsure, and it counts half."""
    right = np.array([True, False] * 50 + [True] * 300)
    outcomes = Outcomes(right, np.array([0] * 100 + [1] * 300), "chips")
    assert outcomes.accuracy == 0.75
    (draws,) = accuracy_draws([[outcomes]], draws=4000, seed=0)
    assert draws.mean() == pytest.approx(0.75, abs=0.002)
    assert draws.std() == pytest.approx(0.5 * np.sqrt(0.25 / 100), rel=0.05)
    assert len(np.unique(draws)) <= 101 and draws.min() >= 0.5


def test_another_seed_is_another_draw() -> None:
    outcomes = [[_outcomes(np.random.default_rng(0).random(200) < 0.8)]]
    first, again, other = (accuracy_draws(outcomes, draws=50, seed=seed) for seed in (3, 3, 4))
    assert first.shape == (1, 50) and (first == again).all() and (first != other).any()


def test_spread_of_draws_is_the_binomial_one() -> None:
    right = np.random.default_rng(0).random(800) < 0.9
    (draws,) = accuracy_draws([[_outcomes(right)]], draws=4000, seed=0)
    share = right.mean()
    assert draws.mean() == pytest.approx(share, abs=0.001)
    assert draws.std() == pytest.approx(np.sqrt(share * (1 - share) / 800), rel=0.05)


def test_the_same_chips_are_drawn_for_all() -> None:
    right = np.random.default_rng(0).random(200) < 0.8
    first, second = accuracy_draws([[_outcomes(right)], [_outcomes(right)]], draws=50, seed=0)
    assert (first == second).all()
    again, _ = accuracy_draws([[_outcomes(right)], [_outcomes(right)]], draws=50, seed=0)
    assert (first == again).all()


def test_without_predictions_folds_are_drawn() -> None:
    (draws,) = accuracy_draws([[Outcomes.of_folds([0.8, 0.9, 1.0])]], draws=4000, seed=0)
    assert draws.std() == pytest.approx(np.sqrt(((0.1) ** 2 * 2 / 3) / 3), rel=0.05)
    assert np.isnan(accuracy_draws([[]], draws=3, seed=0)).all()


def test_repeats_are_drawn_too() -> None:
    """Two repeats without any noise of their own, 0 and 1: their mean is 0, 0.5 or 1 in 1/4, 1/2, 1/4 of the draws."""
    repeats = [_outcomes(np.zeros(40, dtype=bool)), _outcomes(np.ones(40, dtype=bool))]
    (draws,) = accuracy_draws([repeats], draws=4000, seed=0)
    values, counts = np.unique(draws.round(6), return_counts=True)
    assert list(values) == [0.0, 0.5, 1.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_probability_of_the_front() -> None:
    """Equal costs: only the more accurate of two is on the front, each in the share of draws in which it is."""
    accuracy = np.array([[0.9, 0.8, 0.9, 0.9], [0.8, 0.9, 0.8, 0.9], [np.nan] * 4])
    values = np.array([[0.9, 5.0], [0.8, 5.0], [0.1, 9.0]])
    found = probability_non_dominated(values, accuracy, column=0, maximise=[True, False])
    assert found[:2] == pytest.approx([0.75, 0.5])  # the tie keeps both
    assert np.isnan(found[2])


def test_the_front_moves_in_its_own_column() -> None:
    """The drawn accuracy replaces its own column only; a design without draws keeps its value, and takes part."""
    values = np.array([[5.0, 0.9], [5.0, 0.8], [4.0, 0.85]])
    accuracy = np.array([[0.9, 0.7, 0.9, 0.9], [0.8, 0.8, 0.95, 0.8], [np.nan] * 4])
    found = probability_non_dominated(values, accuracy, column=1, maximise=[False, True])
    # the third dominates whatever is not above its 0.85
    assert found[:2] == pytest.approx([0.5, 0.25]) and np.isnan(found[2])
    assert (values == [[5.0, 0.9], [5.0, 0.8], [4.0, 0.85]]).all()


def test_mcnemar_by_hand() -> None:
    """8 chips only the first has right, 2 only the second: twice the probability of 8 or more heads in 10."""
    first = np.array([True] * 50 + [True] * 8 + [False] * 2 + [False] * 20)
    second = np.array([True] * 50 + [False] * 8 + [True] * 2 + [False] * 20)
    found = compare(_outcomes(first), _outcomes(second), draws=2000, seed=0)
    assert (found.only_first, found.only_second) == (8, 2)
    assert found.p_value == pytest.approx(2 * (45 + 10 + 1) / 1024)
    assert found.difference == pytest.approx(6 / 80)
    assert found.low < found.difference < found.high
    # of 80 chips: the 2.5 % and 97.5 % quantiles
    assert found.high - found.low == pytest.approx(0.15, abs=1e-9)
    deviation = np.sqrt((10 / 80 - (6 / 80) ** 2) / 80)  # of the mean of 8 ones, 2 minus ones and zeros
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    turned = compare(_outcomes(second), _outcomes(first), draws=2000, seed=0)
    assert (turned.only_first, turned.only_second) == (2, 8)
    assert (turned.difference, turned.p_value) == (-found.difference, found.p_value)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    same = compare(_outcomes(first), _outcomes(first), draws=100, seed=0)
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_other_chips_cannot_be_compared() -> None:
    with pytest.raises(AnalysisError, match="not evaluated on the same chips"):
        compare(_outcomes(np.ones(8, dtype=bool)), _outcomes(np.ones(9, dtype=bool)), draws=10, seed=0)
    with pytest.raises(AnalysisError, match="not evaluated on the same chips"):
        compare(_outcomes(np.ones(8, dtype=bool)), Outcomes.of_folds([0.9] * 8), draws=10, seed=0)


def test_folds_of_other_chips_are_not_paired() -> None:
    first, second = (Outcomes.of_folds([0.8, 0.9, 1.0], data) for data in "ab")
    assert first.folds_only and not _outcomes(np.ones(8, dtype=bool)).folds_only
    with pytest.raises(AnalysisError, match="not evaluated on the same chips"):
        compare(first, second, draws=10, seed=0)
    a, b, again = accuracy_draws([[first], [second], [first]], draws=50, seed=0)
    assert (a == again).all() and (a != b).any()
    better = Outcomes.of_folds([0.9, 1.0, 1.0], "a")
    found = compare(first, better, draws=200, seed=0)
    assert found.difference == pytest.approx(-0.2 / 3) and np.isnan(found.p_value)


def test_equal_runs_tie_in_every_draw() -> None:
    """Runs that are right alike tie exactly, whichever product of matrices they are in."""
    rng = np.random.default_rng(0)
    right = rng.random(999) < 0.9
    size = 2100  # of more than one product of matrices
    draws = accuracy_draws([[_outcomes(right, folds=7)]] * size, draws=20, seed=0)
    assert (draws == draws[0]).all() and (draws == draws.round(9)).all()


def test_average_precision_of_each_draw_is_scikit_learns() -> None:
    """With the counts of a draw as weights; probabilities tie, and two runs share the draws."""
    rng = np.random.default_rng(1)
    fold, label = np.arange(60) % 3, rng.random(60) < 0.4
    right = np.ones(60, dtype=bool)
    probabilities = [(label * 0.3 + rng.random(60) * 0.7).round(1), rng.random(60)]
    runs = [Outcomes(right, fold, "chips", each, label) for each in probabilities]
    found = average_precision_draws([[run] for run in runs], draws=40, seed=5)
    counts = _counts(fold, 40, np.random.default_rng(5))
    assert (counts.reshape(20, 3, 40).sum(axis=0) == 20).all()  # within its fold
    for values, probability in zip(found, probabilities, strict=True):
        expected = [average_precision_score(label, probability, sample_weight=draw) for draw in counts.T]
        np.testing.assert_allclose(values, expected, atol=1e-6)
    assert (found[0] > found[1]).mean() > 0.5 and found.std(axis=1).min() > 0.01


def test_average_precision_needs_probabilities() -> None:
    known = Outcomes(
        np.array([True, False]), np.array([0, 0]), "chips", np.array([0.9, 0.8]), np.array([True, True])
    )
    folds = Outcomes.of_folds([0.9, 0.8])
    found = average_precision_draws([[known], [folds], [known, folds], []], draws=10, seed=0)
    assert (found[0] == 1).all() and np.isnan(found[1:]).all()


def test_more_than_two_classes_have_accuracies_and_no_average_precision() -> None:
    predictions = pd.DataFrame(
        {
            "region": "train",
            "name": ["a", "b", "c", "d"],
            "fold": "fold1",
            "label": [0, 1, 2, 2],
            "probability.cat": [0.6, 0.5, 0.1, 0.2],
            "probability.dog": [0.3, 0.2, 0.1, 0.2],
            "probability.frog": [0.1, 0.3, 0.8, 0.6],
        }
    )
    outcomes = Outcomes.of_predictions(predictions)
    assert outcomes.right.tolist() == [True, False, True, True]
    assert np.isnan(average_precision_draws([[outcomes]], draws=5, seed=0)).all()
