"""Fronts, ranks and hypervolumes of points."""

from __future__ import annotations

import numpy as np
import pytest

from dxc.pareto import (
    dominators,
    hypervolume,
    knee_distances,
    non_dominated,
    non_dominated_by_known,
    normalised_losses,
    ranks,
    reference_point,
)


def _brute(points: np.ndarray) -> np.ndarray:
    """Which rows no other dominates, all objectives minimised, by definition."""
    return np.array([not any((q <= p).all() and (q < p).any() for q in points) for p in points])


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_fronts_by_brute_force(objectives: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 6, size=(60, objectives)).astype(float)  # many ties
    maximise = [bool(each) for each in rng.integers(0, 2, objectives)]
    losses = points * np.where(maximise, -1, 1)
    front = non_dominated(points, maximise=maximise)
    assert (front == _brute(losses)).all()

    rank = ranks(points, maximise=maximise)
    left, number = np.arange(len(points)), 1
    while len(left):
        own = _brute(losses[left])
        assert (rank[left[own]] == number).all()
        left, number = left[~own], number + 1

    by = dominators(points, maximise=maximise)
    assert ((by == -1) == front).all()
    for n in np.flatnonzero(~front):
        assert front[by[n]] and (losses[by[n]] <= losses[n]).all() and (losses[by[n]] < losses[n]).any()


@pytest.mark.parametrize("seed", range(10))
def test_properties_of_a_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, maximise = rng.random((80, 3)), [True, False, False]
    front = non_dominated(points, maximise=maximise)
    reference = [-0.1, 1.1, 1.1]
    volume = hypervolume(points, reference=reference, maximise=maximise)
    assert volume == pytest.approx(hypervolume(points[front], reference=reference, maximise=maximise))
    # a dominated point changes nothing
    worse = points[np.flatnonzero(front)[0]] + [-0.01, 0.01, 0.0]
    assert list(non_dominated(np.vstack([points, worse]), maximise=maximise)) == [*front, False]
    # nor does scaling or shifting an objective, or another order
    assert (non_dominated(points * [2.5, 1e-3, 40] + [3, 0, -7], maximise=maximise) == front).all()
    order = rng.permutation(80)
    assert (non_dominated(points[order], maximise=maximise) == front[order]).all()
    # a copy of a member ties with it: both stay
    twins = np.vstack([points, points[np.flatnonzero(front)[0]]])
    assert list(non_dominated(twins, maximise=maximise)) == [*front, True]


@pytest.mark.parametrize("seed", range(5))
def test_fronts_of_incomplete_rows_by_brute_force(seed: int) -> None:
    """A row is dominated by one that has all of its objectives, is as good in these, and better in one."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 6, size=(60, 3)).astype(float)
    points[rng.random(points.shape) < 0.2] = np.nan
    points[0] = np.nan
    there = ~np.isnan(points)
    expected = [
        own.any()
        and not any(
            has[own].all() and (other[own] >= row[own]).all() and (other[own] > row[own]).any()
            for other, has in zip(points, there, strict=True)
        )
        for row, own in zip(points, there, strict=True)
    ]
    assert non_dominated_by_known(points, maximise=[True] * 3).tolist() == expected
    assert 0 < sum(expected) < 60
    whole = np.nan_to_num(points, nan=3.0)
    np.testing.assert_array_equal(
        non_dominated_by_known(whole, maximise=[True] * 3), non_dominated(whole, maximise=[True] * 3)
    )
    assert non_dominated_by_known(np.zeros((0, 3)), maximise=[True] * 3).tolist() == []


def test_the_nearest_dominator_by_hand() -> None:
    """Both ends dominate (1, 1); what it loses to them differs: 1 to (0, 1), 1 to (1, 0), 0.7 to (0.7, 0.6)."""
    values = [[0, 1], [0.7, 0.6], [1, 1], [1, 0]]
    assert dominators(values, maximise=[False, False]).tolist() == [-1, -1, 1, -1]
    # as near to both: the first one
    assert dominators([[0, 1], [1, 1], [1, 0]], maximise=[False, False]).tolist() == [-1, 0, -1]


def test_a_reference_lies_a_tenth_of_the_range_beyond_the_worst() -> None:
    values = [[0.9, 10], [0.8, 2], [0.5, 0]]
    assert reference_point(values, maximise=[True, False]) == pytest.approx([0.46, 11])
    # 1 stands for the range where all are equal
    assert reference_point([[0.9, 10], [0.9, 10]], maximise=[True, False]) == pytest.approx([0.8, 10.1])


def test_hypervolume_by_hand() -> None:
    """Two boxes of 1 x 2 and 3 x 1 over the reference, 1 x 1 in common."""
    assert hypervolume([[1, 2], [3, 1]], reference=[0, 0], maximise=[True, True]) == pytest.approx(4)
    assert hypervolume([[1, -2], [3, -1], [9, 1]], reference=[0, 0], maximise=[True, False]) == pytest.approx(
        4
    )


def test_losses_and_knee_by_hand() -> None:
    values, maximise = [[0.9, 10], [0.8, 2], [0.5, 0]], [True, False]
    assert normalised_losses(values, maximise=maximise) == pytest.approx(
        np.array([[0, 1], [0.25, 0.2], [1, 0]])
    )
    # distance of (0.25, 0.2) to the line through (0, 1) and (1, 0)
    assert knee_distances(values, maximise=maximise) == pytest.approx([0, 0.55 / np.sqrt(2), 0])
    assert (normalised_losses([[1, 2], [1, 3]], maximise=maximise)[:, 0] == 0).all()


def test_no_rows_and_no_order() -> None:
    for function in (non_dominated, ranks, dominators):
        assert len(function(np.empty((0, 2)), maximise=[True, False])) == 0
        with pytest.raises(ValueError, match="NaN"):
            function([[np.nan, 1.0]], maximise=[True, False])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_has_no_place(value: float) -> None:
    """moocore would end the process."""
    for function in (non_dominated, ranks, dominators, normalised_losses, knee_distances):
        with pytest.raises(ValueError, match="NaN or infinite"):
            function([[value, 1.0], [0.5, 2.0]], maximise=[True, False])
    with pytest.raises(ValueError, match="NaN or infinite"):
        hypervolume([[1.0, 2.0]], reference=[value, 0.0], maximise=[True, True])


@pytest.mark.parametrize("size", [0.92, -0.92, 1.0, 3e-7, 123456.7, 7e11])
def test_values_that_differ_by_rounding_tie(size: float) -> None:
    values = [[np.nextafter(size, np.inf), 1.0], [size, 1.0], [np.nextafter(size, -np.inf), 1.0]]
    assert non_dominated(values, maximise=[True, False]).all()
    assert (ranks(values, maximise=[True, False]) == 1).all()
    assert (dominators(values, maximise=[True, False]) == -1).all()
    assert (non_dominated([[size], [size + abs(size) * 1e-9]], maximise=[True]) == [False, True]).all()


def test_values_tie_that_agree_in_12_digits() -> None:
    """The 13th digit is rounded away, the 12th is not."""
    values = [[0.1234567890121], [0.1234567890124], [0.123456789013]]
    assert non_dominated(values, maximise=[False]).tolist() == [True, True, False]


def test_sizes_at_the_ends_of_the_floats() -> None:
    values = [[1.7e308, 0.0], [1e300, 5e-324], [2.0**53, -1e-300], [123456789012, -1.7e308]]
    with np.errstate(all="raise", under="ignore"):
        assert (ranks(values, maximise=[True, True]) == [1, 1, 2, 3]).all()
