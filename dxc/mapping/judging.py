"""Mapped points against true ones: one to one, within a distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WITHIN_M = 15.0


class Judged(NamedTuple):
    """How many points are right.

    Attributes:
        found: number of true crossings that have a point of their own within WITHIN_M.
        points: number of mapped points.
        crossings: number of true crossings.
        km2: mapped ground.
    """

    found: int
    points: int
    crossings: int
    km2: float

    @property
    def recall(self) -> float:
        return self.found / self.crossings if self.crossings else float("nan")

    @property
    def precision(self) -> float:
        return self.found / self.points if self.points else float("nan")

    @property
    def false_alarms_per_km2(self) -> float:
        return (self.points - self.found) / self.km2 if self.km2 else float("nan")

    def metrics(self) -> dict[str, float]:
        """By the names of dxc.metrics."""
        return {
            "map_recall": self.recall,
            "map_precision": self.precision,
            "false_alarms_per_km2": self.false_alarms_per_km2,
        }

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.found} of {self.crossings} crossings found within {WITHIN_M:g} m (recall {self.recall:.2f}), "
            f"precision {self.precision:.2f}, {self.false_alarms_per_km2:.1f} false alarms a km2"
        )


def judge(points: np.ndarray, truth: np.ndarray, *, km2: float, within_m: float = WITHIN_M) -> Judged:
    """Match points to true crossings so that as many as possible have a partner, and partners lie close.

    Args:
        points: mapped, (n, 2), metres.
        truth: (m, 2), metres.
        km2: mapped ground.
        within_m: farthest match.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if not len(points) or not len(truth):
        return Judged(0, len(points), len(truth), km2)
    distance = cdist(truth, points)
    far = 1e3 * max(1.0, within_m)
    rows, columns = linear_sum_assignment(np.where(distance <= within_m, distance, far))
    return Judged(int((distance[rows, columns] <= within_m).sum()), len(points), len(truth), km2)
