"""Windows -> one point a crossing, across tiles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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
    such a cluster. Each point takes all windows within apart_m with it. It lies at their weighted mean within spread_m,
    and has the greatest probability among those.

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
    from scipy.spatial import cKDTree

    floor = least if weakest is None else min(least, weakest)
    if not (p >= floor).any():
        return Merged(np.zeros(0), np.zeros(0), np.zeros(0, np.float32))
    order = np.lexsort((x, y))  # so that sums round alike, whatever tiles the windows came from
    x, y, p = x[order], y[order], p[order]
    xy = np.column_stack([x, y])
    tree = cKDTree(xy)
    near = tree.query_ball_point(xy, spread_m)
    score = np.array([p[each].sum() for each in near])
    free = np.ones(len(p), bool)
    found: list[tuple[float, float, float]] = []
    for i in np.lexsort((x, -y, -score, p < least)):
        if not free[i] or p[i] < floor:
            continue
        members = np.array([j for j in near[i] if free[j]])
        centre = np.average(xy[members], axis=0, weights=p[members])
        found.append((*centre, float(p[members].max())))
        free[tree.query_ball_point(xy[i], apart_m)] = False
        free[tree.query_ball_point(centre, apart_m)] = False
    points = np.array(found)
    points = points[np.argsort(-points[:, 2], kind="stable")]
    return Merged(points[:, 0], points[:, 1], points[:, 2].astype(np.float32))
