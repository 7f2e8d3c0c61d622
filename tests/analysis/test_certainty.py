"""Bootstrap against the binomial formula, McNemar against the binomial by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dxc.analysis.certainty import Outcomes, accuracy_draws, compare, probability_non_dominated
from dxc.errors import AnalysisError


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


def test_mcnemar_by_hand() -> None:
    """8 chips only the first has right, 2 only the second: twice the probability of 8 or more heads in 10."""
    first = np.array([True] * 50 + [True] * 8 + [False] * 2 + [False] * 20)
    second = np.array([True] * 50 + [False] * 8 + [True] * 2 + [False] * 20)
    found = compare(_outcomes(first), _outcomes(second), draws=2000, seed=0)
    assert (found.only_first, found.only_second) == (8, 2)
    assert found.p_value == pytest.approx(2 * (45 + 10 + 1) / 1024)
    assert found.difference == pytest.approx(6 / 80)
    assert found.low < found.difference < found.high
    same = compare(_outcomes(first), _outcomes(first), draws=100, seed=0)
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_other_chips_cannot_be_compared() -> None:
    with pytest.raises(AnalysisError, match="not judged by the same chips"):
        compare(_outcomes(np.ones(8, dtype=bool)), Outcomes.of_folds([0.9] * 8), draws=10, seed=0)


def test_folds_of_other_chips_are_not_paired() -> None:
    first, second = (Outcomes.of_folds([0.8, 0.9, 1.0], data) for data in "ab")
    assert first.folds_only and not _outcomes(np.ones(8, dtype=bool)).folds_only
    with pytest.raises(AnalysisError, match="not judged by the same chips"):
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
