"""Main effects of factors, by an additive model fitted with least squares.

The designs of a search are no factorial experiment: the wide networks may be those with a pool. A mean over the designs
with one value of a knob then holds the effects of other knobs too. The model

    y = mean + sum over factors of effect[factor, level] + error

tells them apart where the designs allow it, and says how certain each mean is (Montgomery, Design and Analysis of
Experiments, chapters 5 and 10). On a balanced set its means are the plain ones.

A factor is an int array (n,): the code of each row's level, 0, 1, ...; -1 where the factor means nothing (the size of a
pool that is not there). Such rows say nothing about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_FREEDOM = 3
"""Rows beyond the parameters of the model. With fewer, the standard errors are as uncertain as the effects."""

Codes = NDArray[np.int_]
Floats = NDArray[np.float64]


class Effects(NamedTuple):
    """The mean (levels,) at each level of a factor, the others held equal, and its standard error (levels,)."""

    means: Floats
    errors: Floats


def told_apart(factors: Sequence[Codes]) -> list[bool]:
    """For each factor, whether these rows tell its effect from those of the others.

    All are False where there are fewer than LEAST_FREEDOM rows beyond the parameters.
    """
    if not factors or not len(factors[0]):
        return [False] * len(factors)
    rows, parts = _design_matrix(factors)
    project, freedom = _projection(rows)
    return [
        freedom >= LEAST_FREEDOM
        and part.stop > part.start
        and _is_estimable(_contrasts(rows, part, each), project)
        for part, each in zip(parts, factors, strict=True)
    ]


def adjusted_means(values: ArrayLike, factors: Sequence[Codes]) -> list[Effects | None]:
    """The mean of the values at each level of each factor, the other factors held equal.

    Args:
        values: (n,), in any unit; NaN is left out.
        factors: see the head of this module.

    Returns:
        One Effects per factor; None where told_apart() is False for the rows with a value.
    """
    y = np.asarray(values, dtype=float)
    known = np.isfinite(y)
    levels = [each.max(initial=-1) + 1 for each in factors]
    factors = [each[known] for each in factors]
    if not any(apart := told_apart(factors)):
        return [None] * len(factors)
    rows, parts = _design_matrix(factors)
    inverse = np.linalg.pinv(rows)
    coefficients = inverse @ y[known]
    _, freedom = _projection(rows)
    variance = float(((y[known] - rows @ coefficients) ** 2).sum()) / freedom
    found: list[Effects | None] = []
    for part, each, told, count in zip(parts, factors, apart, levels, strict=True):
        if not told or len(np.unique(each[each >= 0])) < count:
            found.append(None)
            continue
        contrasts = _contrasts(rows, part, each)
        errors = np.sqrt(variance * ((contrasts @ inverse) ** 2).sum(axis=1))
        found.append(Effects(contrasts @ coefficients, errors))
    return found


def _design_matrix(factors: Sequence[Codes]) -> tuple[Floats, list[slice]]:
    """Rows of the model: 1, then the coded levels of each factor; and the columns of each factor."""
    columns = [np.ones((len(factors[0]), 1))]
    parts, start = [], 1
    for each in factors:
        coded = _coded(each)[each]
        coded[each < 0] = 0
        columns.append(coded)
        parts.append(slice(start, start + coded.shape[1]))
        start += coded.shape[1]
    return np.hstack(columns), parts


def _coded(codes: Codes) -> Floats:
    """Sum-to-zero coding: (levels, levels - 1); (1, 0) without a level."""
    count = max(int(codes.max(initial=-1)) + 1, 1)
    return np.vstack([np.eye(count - 1), -np.ones((1, count - 1))])


def _contrasts(rows: Floats, part: slice, codes: Codes) -> Floats:
    """(levels, columns): for each level, the mean row of the rows that have this factor, with that level in it."""
    levels = _coded(codes)
    mean = rows[codes >= 0].mean(axis=0)
    contrasts = np.tile(mean, (len(levels), 1))
    contrasts[:, part] = levels
    return contrasts


def _projection(rows: Floats) -> tuple[Floats, int]:
    """The projection onto the row space, and how many rows there are beyond its dimension."""
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > sizes[0] * max(rows.shape) * np.finfo(float).eps).sum())
    return directions[:rank].T @ directions[:rank], len(rows) - rank


def _is_estimable(contrasts: Floats, projection: Floats) -> bool:
    """Whether all rows lie in the row space: other combinations of coefficients are not determined."""
    return bool(np.abs(contrasts @ projection - contrasts).max() < 1e-8)
