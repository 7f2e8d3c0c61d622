"""The Gaussian process of search.tuner=pareto, against scikit-learn and against differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from dxc.search.surrogate import JITTER, GaussianProcess, Hyperparameters, prior

GROUPS = [0, 0, 1, 2]


def _observed(n: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, len(GROUPS)))
    values = 0.8 + 0.05 * np.sin(features[:, 2]) + 0.02 * features[:, 0] + 0.005 * rng.normal(size=n)
    return features, values, np.linspace(1e-5, 1e-3, n)


def test_it_predicts_as_scikit_learn_does() -> None:
    """At fixed hyperparameters: lengths 0.7 (of two columns), 2 and 5, signal 1.5, noise 0.5 of what was given."""
    features, values, variances = _observed()
    h = Hyperparameters(np.array([0.7, 2.0, 5.0]), 1.5, 0.5)
    ours = GaussianProcess(features, GROUPS, values, variances, hyperparameters=h)
    scale = values.std()
    theirs = GaussianProcessRegressor(
        ConstantKernel(1.5) * Matern([0.7, 0.7, 2.0, 5.0], nu=2.5),
        alpha=0.5 * variances / scale**2 + JITTER,
        optimizer=None,
    ).fit(features, (values - values.mean()) / scale)
    points = np.random.default_rng(1).normal(size=(30, len(GROUPS)))
    mean, std = ours.predict(points)
    expected_mean, expected_std = theirs.predict(points, return_std=True)
    np.testing.assert_allclose(mean, expected_mean * scale + values.mean(), atol=1e-6)
    np.testing.assert_allclose(std, expected_std * scale, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_against_differences(seed: int) -> None:
    process = GaussianProcess(*_observed()[:1], GROUPS, *_observed()[1:], hyperparameters=prior(3))
    at = prior(3).log() + np.random.default_rng(seed).normal(scale=0.5, size=5)
    _, gradient = process.loss(at)
    differences = approx_fprime(at, lambda x: process.loss(x)[0], 1e-6)
    np.testing.assert_allclose(gradient, differences, rtol=1e-4, atol=1e-4)


def test_the_prior_weighs_as_much_as_its_spread_says() -> None:
    """Away from the medians by 2 in one logarithm, of which the standard deviation is 1: the likelihood less 2."""
    features, values, variances = _observed()
    process = GaussianProcess(
        features * 0.0, [0, 0, 1, 2], values, variances, hyperparameters=prior(3)
    )  # equal features: no length matters to the likelihood
    at = prior(3).log()
    moved = at + np.array([2.0, 0, 0, 0, 0])
    assert process.loss(moved)[0] - process.loss(at)[0] == pytest.approx(2.0)
    np.testing.assert_allclose(np.exp(at), [np.sqrt(3)] * 3 + [1.0, 1.0])


def test_it_finds_which_knob_matters_and_how_noisy_trainings_are() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 2))
    values = 0.1 * np.sin(2 * features[:, 0]) + 0.02 * rng.normal(size=80)
    found = GaussianProcess(features, [0, 1], values, np.full(80, 0.01**2)).hyperparameters
    assert found.lengths[0] < 2.0 < found.lengths[1]
    assert 0.015 < 0.01 * np.sqrt(found.noise) < 0.025  # 0.02 against the 0.01 that was given


def test_nothing_to_learn_from() -> None:
    """No features, equal values, one observation: finite numbers, the mean that was seen."""
    for features, groups, values in (
        (np.zeros((3, 0)), [], np.array([0.7, 0.8, 0.9])),
        (np.arange(3.0)[:, None], [0], np.full(3, 0.8)),
        (np.zeros((1, 1)), [0], np.array([0.8])),
    ):
        process = GaussianProcess(features, groups, values, np.full(len(values), 1e-4))
        mean, std = process.predict(features)
        np.testing.assert_allclose(mean, 0.8, atol=1e-6)
        assert np.isfinite(std).all() and (std > 0).all()
