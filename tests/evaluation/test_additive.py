"""Main effects by an additive model, against values worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dxc.evaluation.additive import adjusted_means, told_apart


def test_a_balanced_set_has_the_plain_means() -> None:
    """Two levels of one factor and three of another, each pair twice."""
    pairs = np.array([*itertools.product([0, 1], [0, 1, 2])] * 2)
    factors = [pairs[:, 0], pairs[:, 1]]
    y = np.random.default_rng(0).normal(size=len(pairs))
    one, other = adjusted_means(y, factors)
    assert one is not None and other is not None
    assert one.means == pytest.approx([y[factors[0] == level].mean() for level in (0, 1)])
    assert other.means == pytest.approx([y[factors[1] == level].mean() for level in (0, 1, 2)])
    # the residual of the additive model has 12 - 4 degrees of freedom; a mean of 6 has a sixth of its variance
    fitted = one.means[factors[0]] + other.means[factors[1]] - y.mean()
    variance = ((y - fitted) ** 2).sum() / 8
    assert one.errors == pytest.approx([np.sqrt(variance / 6)] * 2)
    assert other.errors == pytest.approx([np.sqrt(variance / 4)] * 3)


def test_an_effect_of_another_factor_is_not_taken_for_its_own() -> None:
    """Wide designs mostly have a pool. The width adds 1 and the pool nothing; plain means say that the pool adds."""
    width = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    pool = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    found = adjusted_means(width + 5.0, [width, pool])
    assert found[0] is not None and found[1] is not None
    assert np.diff(found[0].means) == pytest.approx(1)
    assert np.diff(found[1].means) == pytest.approx(0, abs=1e-9)
    plain = [(width + 5.0)[pool == level].mean() for level in (0, 1)]
    assert plain[1] - plain[0] == pytest.approx(0.6)


def test_factors_that_change_together_are_not_told_apart() -> None:
    width = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    depth = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    assert told_apart([width, width.copy(), depth]) == [False, False, True]
    found = adjusted_means(np.arange(8.0), [width, width.copy(), depth])
    assert found[:2] == [None, None] and found[2] is not None
    assert np.diff(found[2].means) == pytest.approx(1)


def test_few_rows_tell_nothing() -> None:
    """Four designs and three knobs leave no error to judge an effect by."""
    rows = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    assert told_apart(list(rows.T)) == [False] * 3
    assert adjusted_means(np.arange(4.0), list(rows.T)) == [None] * 3
    assert told_apart(list(np.vstack([rows, rows]).T)) == [True] * 3
    assert told_apart([]) == [] and told_apart([np.array([], int)]) == [False]


def test_a_factor_that_means_nothing_in_some_rows() -> None:
    """The size of a pool that is not there (-1): the effect of the pool and that of its size are two."""
    pool = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1])
    size = np.array([-1, -1, -1, 0, 0, 0, 1, 1, 1])
    y = np.array([1.0, 1, 1, 4, 4, 4, 6, 6, 6])
    of_pool, of_size = adjusted_means(y, [pool, size])
    assert of_pool is not None and of_size is not None
    assert of_pool.means == pytest.approx([1, 5]) and of_size.means == pytest.approx([4, 6])


def test_missing_values_are_left_out() -> None:
    codes = np.array([0, 0, 0, 1, 1, 1])
    (found,) = adjusted_means([1, 1, np.nan, 3, 3, 3], [codes])
    assert found is not None and found.means == pytest.approx([1, 3])
    assert adjusted_means([1.0, 1, 1, 1, np.nan, np.nan], [codes[[0, 0, 0, 0, 3, 3]]]) == [
        None
    ]  # a level has none
    assert adjusted_means([np.nan] * 6, [codes]) == [None]
