"""A Gaussian process that predicts accuracy from knobs and costs, for few and noisy observations.

Matern 5/2 kernel with one length scale a group of features: the columns of a knob that is no number share theirs. All
hyperparameters, the noise among them, are the maximum of the posterior (Rasmussen and Williams 2006, chapter 5): with
ten observations the likelihood alone would take any length scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SQRT5 = math.sqrt(5.0)
JITTER = 1e-6  # of the observations' variance: keeps the Cholesky decomposition positive definite
MIN_STD = 1e-3  # accuracies that differ by less are taken as equal
MAX_STEPS = 30  # of the optimiser; the posterior is flat near its maximum
SPREAD_OF_LENGTHS, SPREAD_OF_SIGNAL, SPREAD_OF_NOISE = 1.0, 1.0, 0.5
"""Standard deviations of the normal priors on the logarithms of the hyperparameters."""


@dataclass(frozen=True)
class Hyperparameters:
    """lengths: (groups,) length scales. signal: variance of the function, in units of the observations' variance.
    noise: factor on the variances that the observations came with."""

    lengths: Floats
    signal: float
    noise: float

    def log(self) -> Floats:
        return np.log([*self.lengths, self.signal, self.noise])

    @classmethod
    def of_log(cls, values: Floats) -> Hyperparameters:
        lengths = np.exp(values[:-2])
        return cls(lengths, float(np.exp(values[-2])), float(np.exp(values[-1])))


def prior(groups: int) -> Hyperparameters:
    """Medians of the priors. Standardised features are sqrt(2 groups) apart on average, so that lengths of
    sqrt(groups) let two candidates know of each other, however many knobs there are."""
    return Hyperparameters(np.full(groups, math.sqrt(max(groups, 1))), 1.0, 1.0)


class GaussianProcess:
    """Observations and what they say of other points.

    Args:
        features: (n, k), standardised.
        groups: (k,) the number of the group of each feature, from 0.
        values: (n,) observations.
        variances: (n,) of each observation about the function, known up to a common factor.
        hyperparameters: taken as they are; without them, the most probable ones.
    """

    def __init__(
        self,
        features: Floats,
        groups: Sequence[int],
        values: Floats,
        variances: Floats,
        *,
        hyperparameters: Hyperparameters | None = None,
    ) -> None:
        self._features = features
        self._groups = np.asarray(groups, dtype=int)
        self._centre, self._scale = float(values.mean()), max(float(values.std()), MIN_STD)
        self._values = (values - self._centre) / self._scale
        self._variances = variances / self._scale**2
        count = int(self._groups.max()) + 1 if len(self._groups) else 0
        self._squares = [_squares(features[:, self._groups == group]) for group in range(count)]
        self.hyperparameters = hyperparameters or self._most_probable(prior(count))
        covariance, _ = self._covariance(self.hyperparameters)
        self._factor = np.linalg.cholesky(covariance)
        self._weights = _solve(self._factor, self._values)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the function, without noise, at (m, k) features: two arrays (m,)."""
        from scipy.linalg import solve_triangular

        h = self.hyperparameters
        own, other = features / h.lengths[self._groups], self._features / h.lengths[self._groups]
        squares = (own**2).sum(1)[:, None] + (other**2).sum(1) - 2 * own @ other.T
        kernel = h.signal * _matern(np.maximum(squares, 0.0))[0]
        known = solve_triangular(self._factor, kernel.T, lower=True, check_finite=False)
        variance = np.maximum(h.signal - (known**2).sum(axis=0), 1e-10)
        return kernel @ self._weights * self._scale + self._centre, np.sqrt(variance) * self._scale

    def loss(self, log_hyperparameters: Floats) -> tuple[float, Floats]:
        """Negative logarithm of the posterior, but for a constant, and its gradient, both by the logarithms of the
        hyperparameters (lengths, signal, noise)."""
        h = Hyperparameters.of_log(log_hyperparameters)
        covariance, slope = self._covariance(h)
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:  # a step too far: the optimiser turns back
            return math.inf, np.zeros_like(log_hyperparameters)
        weights = _solve(factor, self._values)
        inner = 0.5 * (np.outer(weights, weights) - _solve(factor, np.eye(len(factor))))
        noise = h.noise * self._variances
        diagonal = np.diag(inner)
        along = inner * slope
        lengths = [-2 * (along * each).sum() / h.lengths[g] ** 2 for g, each in enumerate(self._squares)]
        signal = (inner * covariance).sum() - diagonal @ (noise + JITTER)
        gradient = -np.array([*lengths, signal, diagonal @ noise])
        fit = 0.5 * self._values @ weights + np.log(np.diag(factor)).sum()

        spreads = np.array([*[SPREAD_OF_LENGTHS] * len(self._squares), SPREAD_OF_SIGNAL, SPREAD_OF_NOISE])
        away = (log_hyperparameters - prior(len(self._squares)).log()) / spreads
        return float(fit + 0.5 * away @ away), gradient + away / spreads

    def _most_probable(self, start: Hyperparameters) -> Hyperparameters:
        from scipy.optimize import minimize

        found = minimize(self.loss, start.log(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS})
        return Hyperparameters.of_log(found.x)

    def _covariance(self, h: Hyperparameters) -> tuple[Floats, Floats]:
        """Covariance of the observations, and the derivative of its kernel by the squared distance."""
        squares = np.zeros((len(self._values), len(self._values)))
        for length, each in zip(h.lengths, self._squares, strict=True):
            squares += each / length**2
        kernel, slope = _matern(squares)
        noise = h.noise * self._variances + JITTER
        return h.signal * kernel + np.diag(noise), h.signal * slope


def _matern(squares: Floats) -> tuple[Floats, Floats]:
    """Matern 5/2 correlation at squared distances, and its derivative by them."""
    distance = SQRT5 * np.sqrt(squares)
    fading = np.exp(-distance)
    return (1 + distance + 5 / 3 * squares) * fading, -5 / 6 * (1 + distance) * fading


def _squares(features: Floats) -> Floats:
    """Squared distances (n, n) of rows (n, k)."""
    return ((features[:, None] - features[None]) ** 2).sum(axis=-1)


def _solve(factor: Any, right: Any) -> Floats:
    from scipy.linalg import cho_solve

    return cho_solve((factor, True), right, check_finite=False)
