"""Pareto fronts: pure functions on arrays whose columns are objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

DIGITS = 12  # values that differ only beyond these are equal
MARGIN = 0.1  # of the range, from the worst value to a reference point


def non_dominated(values: ArrayLike, *, maximise: Sequence[bool]) -> NDArray[np.bool_]:
    """The rows (n, objectives) that no other row dominates. Rows that are equal in all objectives are all kept.

    A row dominates another if it is at least as good in every objective and better in one. O(n log n) for two and
    three objectives (Kung et al. 1975, doi 10.1145/321906.321910; moocore). Raises ValueError for NaN and infinity: a
    missing value has no place in an order.

    >>> accuracy_and_ms = [(0.95, 8.0), (0.90, 4.0), (0.90, 9.0)]
    >>> non_dominated(accuracy_and_ms, maximise=[True, False]).tolist()
    [True, True, False]
    """
    import moocore

    points = _checked(values, maximise)
    if not len(points):
        return np.zeros(0, dtype=bool)
    return moocore.is_nondominated(points, maximise=list(maximise), keep_weakly=True)


def non_dominated_by_known(values: ArrayLike, *, maximise: Sequence[bool]) -> NDArray[np.bool_]:
    """The rows (n, objectives) that no other row dominates, where NaN stands for an objective that a row does not have.

    A row is compared in its own objectives, with the rows that have all of these. So a row is not dominated by one of
    which less is known, and what is not known of a row speaks neither for nor against it. Rows without any objective
    are not kept.

    >>> accuracy_and_ms = [(0.95, 8.0), (0.90, 4.0), (0.96, float("nan")), (0.94, float("nan"))]
    >>> non_dominated_by_known(accuracy_and_ms, maximise=[True, False]).tolist()
    [True, True, True, False]
    """
    points = np.array(values, dtype=float).reshape(-1, len(maximise))
    there = ~np.isnan(points)
    kept = np.zeros(len(points), dtype=bool)
    for own in np.unique(there[there.any(axis=1)], axis=0):
        among = np.flatnonzero(there[:, own].all(axis=1))
        best = non_dominated(points[among][:, own], maximise=np.array(maximise)[own].tolist())
        kept[among] |= best & (there[among] == own).all(axis=1)
    return kept


def ranks(values: ArrayLike, *, maximise: Sequence[bool]) -> NDArray[np.int64]:
    """For each row (n, objectives) the number of its front: 1 for rows that no other dominates, 2 for those that only
    rows of rank 1 dominate, and so on (Deb et al. 2002, doi 10.1109/4235.996017; moocore). Rows that tie in everything
    share a rank. O(n^2 log n) for three objectives. Raises ValueError for NaN and infinity."""
    import moocore

    points = _checked(values, maximise)
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    # moocore 0.3.2 does not heed `maximise` of a single objective
    losses = points * np.where(list(maximise), -1.0, 1.0)
    return moocore.pareto_rank(losses).astype(np.int64) + 1


def dominators(values: ArrayLike, *, maximise: Sequence[bool]) -> NDArray[np.int64]:
    """For each row (n, objectives) the position of a non-dominated row that dominates it, -1 where none does.

    If several rows dominate it, the nearest one is taken: the one with the least sum of normalised differences.
    O(n x front). Raises ValueError for NaN and infinity.
    """
    points = _checked(values, maximise)
    found = np.full(len(points), -1, dtype=np.int64)
    if not len(points):
        return found
    losses = normalised_losses(points, maximise=maximise)
    front = non_dominated(points, maximise=maximise)
    nearest = np.full(len(points), np.inf)
    for n in np.flatnonzero(front):
        worse = (losses >= losses[n]).all(axis=1) & ~front
        distance = losses[worse].sum(axis=1) - losses[n].sum()
        places = np.flatnonzero(worse)
        closer = distance < nearest[places]
        nearest[places[closer]], found[places[closer]] = distance[closer], n
    return found


def normalised_losses(values: ArrayLike, *, maximise: Sequence[bool]) -> NDArray[np.float64]:
    """Scale each objective of the rows (n, objectives) to 0 (best) .. 1 (worst). It is 0 where all rows are equal."""
    points = _checked(values, maximise) * np.where(list(maximise), -1.0, 1.0)
    if not len(points):
        return points
    best, span = points.min(axis=0), np.ptp(points, axis=0)
    return (points - best) / np.where(span > 0, span, 1.0)


def knee_distances(values: ArrayLike, *, maximise: Sequence[bool]) -> NDArray[np.float64]:
    """Distance of each row in front of the plane through the extremes of the normalised front. The knee has the
    greatest.

    The plane is where the normalised losses add up to 1 (Das 1999, doi 10.1007/s001580050111; for two
    objectives, the line between the two ends). Negative beyond the plane.
    """
    losses = normalised_losses(values, maximise=maximise)
    return (1.0 - losses.sum(axis=1)) / np.sqrt(losses.shape[1])


def reference_point(values: ArrayLike, *, maximise: Sequence[bool]) -> NDArray[np.float64]:
    """The reference point for the hypervolume of rows (n, objectives); there must be at least one row.

    It lies beyond the worst values by MARGIN of the range, or by MARGIN where all rows are equal. At the worst values
    themselves the ends of a front would add nothing (Ishibuchi et al.
    2018, doi 10.1162/evco_a_00226)."""
    points = _checked(values, maximise)
    worst = np.where(maximise, points.min(axis=0), points.max(axis=0))
    span = np.ptp(points, axis=0)
    return worst + MARGIN * np.where(maximise, -1.0, 1.0) * np.where(span > 0, span, 1.0)


def hypervolume(values: ArrayLike, *, reference: ArrayLike, maximise: Sequence[bool]) -> float:
    """Volume between the rows (n, objectives) and a reference point that is worse in every objective.

    Zitzler and Thiele 1998, doi 10.1007/BFb0056872; the unit is the product of the objectives' units. Rows that are
    not better than the reference in every objective add nothing. Raises ValueError for NaN and infinity.
    """
    import moocore

    points = _checked(values, maximise)
    bound = _checked(reference, maximise)[0]
    if not len(points):
        return 0.0
    return float(moocore.hypervolume(points, ref=bound, maximise=list(maximise)))


def _checked(values: ArrayLike, maximise: Sequence[bool]) -> NDArray[np.float64]:
    """A copy as (n, objectives), rounded to DIGITS significant digits, so that rounding errors of a mean do not count.

    Raises ValueError for values that are not finite, because moocore crashes on them."""
    points = np.array(values, dtype=float).reshape(-1, len(maximise))
    if not np.isfinite(points).all():
        raise ValueError("an objective is NaN or infinite: set rows with such values aside first")
    size = np.abs(points)
    # beyond these sizes the scale would overflow or not be exact: such values stay as they are
    usual = (size > 1e-9) & (size < 10.0**DIGITS)
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(size, where=usual, out=np.zeros_like(size))))
    return np.where(usual, np.round(np.where(usual, points, 0.0) * scale) / scale, points)
