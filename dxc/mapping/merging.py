"""Windows -> one point a crossing, across tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.spatial import KDTree

MOST_SHIFTS = 10  # of the mean; two or three are usual


class Merged(NamedTuple):
    """One point a crossing, likeliest first: x, y in metres, and its probability p, each (n,)."""

    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    @property
    def xy(self) -> np.ndarray:
        """Places (n, 2)."""
        return np.column_stack([self.x, self.y])


def merge(
    x: np.ndarray,
    y: np.ndarray,
    p: np.ndarray,
    *,
    apart_m: float,
    spread_m: float,
    least: float,
    weakest: float | None = None,
) -> Merged:
    """Non-maximum suppression in metres.

    A crossing is seen by all windows whose centre lies within the jitter of the training chips, each with a probability
    near 1. So a window is ranked by the sum of probabilities within spread_m of it, which is greatest in the middle of
    such a cluster. Each point takes all windows within apart_m with it. It lies at the weighted mean of those
    within spread_m of it (mean shift), and has the greatest probability among them.

    Args:
        x: of windows, metres, (n,).
        y: likewise.
        p: probabilities, (n,).
        apart_m: no two points lie closer.
        spread_m: how far from a crossing windows see it.
        least: least probability of a point.
        weakest: probability from which there are more points, for an evaluation at other thresholds. They are where
            the points of `least` leave room, and change none of these. None: no more points.
    """
    from scipy.spatial import KDTree

    floor = least if weakest is None else min(least, weakest)
    if not (p >= floor).any():
        return Merged(np.zeros(0), np.zeros(0), np.zeros(0, np.float32))
    order = np.lexsort((-p, x, y))  # so that sums round alike, whatever tiles the windows came from
    x, y, p = x[order], y[order], p[order]
    first = np.append(True, (np.diff(x) != 0) | (np.diff(y) != 0))  # two tiles may have looked at a window
    x, y, p = x[first], y[first], p[first]
    xy = np.column_stack([x, y])
    tree = KDTree(xy)
    near = tree.query_ball_point(xy, spread_m)
    score = np.array([p[each].sum() for each in near])
    free = np.ones(len(p), bool)
    found: list[tuple[float, float, float]] = []
    for i in np.lexsort((x, -y, -score, p < least)):
        if not free[i] or p[i] < floor:
            continue
        centre, members = _settled(xy, p, tree, near[i], free, spread_m)
        found.append((*centre, float(p[members].max())))
        free[tree.query_ball_point(xy[i], apart_m)] = False
        free[tree.query_ball_point(centre, apart_m)] = False
    points = np.array(found)
    points = points[np.argsort(-points[:, 2], kind="stable")]
    return Merged(points[:, 0], points[:, 1], points[:, 2].astype(np.float32))


def _settled(
    xy: np.ndarray, p: np.ndarray, tree: KDTree, near: list[int], free: np.ndarray, spread_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """The place (2,) that is the weighted mean of the free windows around itself, and these.

    Args:
        xy: of all windows (n, 2).
        p: their probabilities (n,).
        tree: of xy.
        near: windows around the place to begin at.
        free: windows that belong to no point, bool (n,).
        spread_m: how far around a place windows count.
    """
    members: list[int] = []
    for _ in range(MOST_SHIFTS):
        around = sorted(j for j in near if free[j])
        if around == members or not around:
            break
        members = around
        centre = np.average(xy[members], axis=0, weights=p[members])
        near = tree.query_ball_point(centre, spread_m)
    return centre, np.array(members)
