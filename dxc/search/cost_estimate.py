"""Costs of the networks of a space, estimated from those of a few of them.

The logarithm of a cost is nearly a sum over the knobs: a Gaussian process (Rasmussen and Williams 2006, chapter 2) with
a linear kernel, and a squared exponential one for how knobs act together, learns it from some twenty networks. How far
an estimate may be off comes from leaving each of those out in turn (same book, equation 5.12).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST = 1e-12  # what a cost of 0 is taken for


def levels(rows: Sequence[Mapping[str, Any]]) -> Floats:
    """Networks {knob: value} as an array (n, k) of zeros and ones, a column for each value of each knob."""
    keys = sorted({key for row in rows for key in row})
    texts = [[str(row.get(key)) for key in keys] for row in rows]
    columns = [
        [float(text[place] == value) for text in texts]
        for place in range(len(keys))
        for value in sorted({text[place] for text in texts})
    ]
    return np.array(columns).T.reshape(len(rows), -1)


def spread_out(features: Floats, count: int, chosen: Sequence[int] = ()) -> list[int]:
    """`count` places of rows that differ in as many knobs as possible, each from all before; `chosen` come first."""
    places = list(chosen) or [0]
    nearest = np.full(len(features), np.inf)
    total = np.zeros(len(features))

    def taken(place: int) -> None:
        apart = np.abs(features - features[place]).sum(axis=1)
        np.minimum(nearest, apart, out=nearest)
        total[:] += apart

    for place in places:
        taken(place)
    while len(places) < min(count, len(features)):
        free = np.flatnonzero(nearest > 0)
        if not len(free):
            break
        best = free[np.lexsort((-total[free], -nearest[free]))[0]]
        places.append(int(best))
        taken(int(best))
    return places


def interpolate(features: Floats, places: Sequence[int], values: Sequence[float]) -> tuple[Floats, Floats]:
    """Estimates of a cost for all rows from its values at some.

    Args:
        features: (n, k), see levels.
        places: (m,) rows whose cost is known.
        values: (m,) their cost, 0 or more.

    Returns:
        (n,) the cost, as known at `places`; (m,) the relative error of each known one as estimated from the others.
    """
    from scipy.linalg import cho_solve
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

    known = np.maximum(np.asarray(values, dtype=float), LEAST)
    if np.ptp(known) == 0:
        return np.full(len(features), values[0], dtype=float), np.zeros(len(known))
    centred = features - features.mean(axis=0)
    kernel = (
        ConstantKernel(1.0, (1e-3, 1e3)) * DotProduct(1.0, "fixed")
        + ConstantKernel(0.1, (1e-5, 10.0)) * RBF(2.0, (0.3, 30.0))
        + WhiteKernel(1e-4, (1e-9, 1e-2))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hyperparameter at its bound is an answer
        process = GaussianProcessRegressor(kernel, normalize_y=True).fit(centred[list(places)], np.log(known))
        estimates = np.exp(process.predict(centred))
    inverse = cho_solve((process.L_, True), np.eye(len(known)))
    left_out = process.alpha_ / np.diag(inverse) * np.log(known).std()
    estimates[list(places)] = values
    return estimates, np.abs(np.exp(-left_out) - 1)
