"""Evaluates a map of crossings against true ones: one-to-one matching, recall and precision, false alarms, intervals.

A map is judged otherwise than chips. One prediction finds one crossing, however many lie close to it, and what counts
is the number of false alarms on a square kilometre and on a kilometre of road.

Coordinates are metres in one projected CRS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxc.errors import AnalysisError
from dxc.metrics import MAP_FIGURES

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.floating[Any]]

DISTANCES_M = (5.0, 10.0, 15.0, 25.0)
WITHIN_M = 15.0
"""Distance that map_recall, map_precision and false alarms are counted at, where nothing else is asked for."""
THRESHOLDS = 200  # most points of a precision-recall curve
BLOCKS_FOR_INTERVAL = 5  # with fewer blocks, a bootstrap says nothing
LEVEL = 0.95


# ------------------------------------------------------------------------------------------- matching


def match_points(truth: ArrayLike, predicted: ArrayLike, *, within_m: float) -> NDArray[np.int_]:
    """For each predicted point the index of the true point that it matches, (m,); -1 for a false alarm.

    As many points as possible are matched one to one; of all such matchings, the one with the least sum of distances is
    taken (Kuhn 1955, doi 10.1002/nav.3800020109). Each cluster of points is solved apart, so large maps are fast.

    Args:
        truth: (n, 2), m.
        predicted: (m, 2), m.
        within_m: greatest distance of a match.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse.csgraph import connected_components

    pairs = _pairs(truth, predicted, within_m)
    found = np.full(pairs.shape[1], -1)
    if not pairs.nnz:
        return found
    _, cluster = connected_components(_bipartite(pairs), directed=False)
    edges = pairs.tocoo()
    order = np.argsort(cluster[edges.row], kind="stable")
    rows, columns, away = edges.row[order], edges.col[order], edges.data[order]
    starts = np.flatnonzero(np.append(True, np.diff(cluster[rows]) != 0))
    for start, end in zip(starts, np.append(starts[1:], len(rows)), strict=True):
        ours, i = np.unique(rows[start:end], return_inverse=True)
        theirs, j = np.unique(columns[start:end], return_inverse=True)
        # a pair too far apart costs more than all matches of the cluster together
        never = (within_m + 1) * (min(len(ours), len(theirs)) + 1)
        cost = np.full((len(ours), len(theirs)), never, dtype=float)
        cost[i, j] = away[start:end]
        for a, b in zip(*linear_sum_assignment(cost), strict=True):
            if cost[a, b] < never:
                found[theirs[b]] = ours[a]
    return found


def _pairs(truth: ArrayLike, predicted: ArrayLike, within_m: float) -> Any:
    """Distances of all pairs within a distance: sparse, (n, m). A distance of 0 is stored as a tiny one."""
    from scipy.sparse import csr_array
    from scipy.spatial import KDTree

    ours, theirs = (np.asarray(each, float).reshape(-1, 2) for each in (truth, predicted))
    if not (len(ours) and len(theirs)):
        return csr_array((len(ours), len(theirs)))
    near = KDTree(ours).query_ball_point(theirs, within_m)
    columns = np.repeat(np.arange(len(theirs)), [len(each) for each in near])
    rows = np.concatenate([np.asarray(each, int) for each in near])
    away = np.maximum(np.hypot(*(ours[rows] - theirs[columns]).T), 1e-9)
    return csr_array((away, (rows, columns)), shape=(len(ours), len(theirs)))


def _bipartite(pairs: Any) -> Any:
    from scipy.sparse import block_array

    return block_array([[None, pairs], [pairs.T, None]], format="csr")


# --------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Blocks:
    """Parts of the mapped area that are drawn as a whole for intervals: subwatersheds, or squares.

    Neighbouring crossings are alike: the same road, the same photo. Intervals that took each for itself would be too
    narrow.

    Attributes:
        km2: (blocks,) mapped area of each.
        road_km: (blocks,) length of road in each; None where no roads are known.
        truth: (n,) block of each true point, -1 outside of the mapped area.
        predicted: (m,) the same of each predicted point.
    """

    km2: Floats
    truth: NDArray[np.int_]
    predicted: NDArray[np.int_]
    road_km: Floats | None = None

    @classmethod
    def of_polygons(
        cls,
        polygons: Sequence[Any],
        truth: ArrayLike,
        predicted: ArrayLike,
        *,
        area: Any,
        roads: Sequence[Any] | None = None,
    ) -> Blocks:
        """Blocks of subwatersheds.

        Args:
            polygons: of shapely; they do not overlap. What they leave out of the mapped area is one block more.
            truth: (n, 2) true points, m.
            predicted: (m, 2) predicted points, m.
            area: the mapped area, a polygon of shapely.
            roads: lines of shapely; None where no roads are known.
        """
        import shapely

        parts = shapely.intersection(np.asarray(polygons, object), area)
        rest = shapely.difference(area, shapely.union_all(parts)) if len(parts) else area
        parts = np.append(parts, rest)
        parts = parts[shapely.area(parts) > 0]
        tree = shapely.STRtree(parts)

        def block_of(xy: ArrayLike) -> NDArray[np.int_]:
            points = shapely.points(np.asarray(xy, float).reshape(-1, 2))
            found = np.full(len(points), -1)
            which, block = tree.query(points, "intersects")
            found[which[::-1]] = block[::-1]  # on a border the first counts
            return found

        lengths = None
        if roads is not None:
            lengths = np.zeros(len(parts))
            lines = np.asarray(roads, object)
            for line in lines:
                for block in np.sort(tree.query(line, "intersects")):
                    lengths[block] += shapely.intersection(line, parts[block]).length / 1e3
                    line = shapely.difference(line, parts[block])  # a road on a border counts once
        return cls(shapely.area(parts) / 1e6, block_of(truth), block_of(predicted), lengths)

    @classmethod
    def of_grid(
        cls,
        edge_m: float,
        truth: ArrayLike,
        predicted: ArrayLike,
        *,
        area: Any,
        roads: Sequence[Any] | None = None,
    ) -> Blocks:
        """Blocks of squares, where no subwatersheds are known.

        Args:
            edge_m: edge of a square.
            truth: (n, 2) true points, m.
            predicted: (m, 2) predicted points, m.
            area: the mapped area, a polygon of shapely.
            roads: lines of shapely; None where no roads are known.
        """
        import shapely

        left, bottom, right, top = shapely.bounds(area)
        x, y = np.meshgrid(np.arange(left, right, edge_m), np.arange(bottom, top, edge_m))
        squares = shapely.box(x.ravel(), y.ravel(), x.ravel() + edge_m, y.ravel() + edge_m)
        squares = squares[shapely.intersects(squares, area)]
        return cls.of_polygons(squares, truth, predicted, area=area, roads=roads)


# ------------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True)
class Interval:
    """A value and its bootstrap interval at LEVEL; low and high are NaN where there are too few blocks."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class AtDistance:
    """What a map is worth where a match may be so far apart."""

    within_m: float
    hits: int
    recall: Interval
    precision: Interval
    false_alarms_per_km2: Interval
    false_alarms_per_road_km: Interval | None

    def columns(self) -> dict[str, float]:
        """within_m, hits, and each of MAP_FIGURES with its _low and _high; NaN where a figure is not known."""
        found: dict[str, float] = {"within_m": self.within_m, "hits": self.hits}
        for name in MAP_FIGURES:
            interval: Interval = getattr(self, name) or Interval(float("nan"))
            found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return found


@dataclass(frozen=True)
class BlockCounts:
    """What lies in each block, (blocks,) each. Counts of several maps make one when they are joined.

    Attributes:
        km2: mapped area.
        truth: number of true points.
        found: of these, how many have a match.
        predicted: number of predicted points.
        right: of these, how many have a match.
        road_km: length of road; None where no roads are known.
    """

    km2: Floats
    truth: Floats
    found: Floats
    predicted: Floats
    right: Floats
    road_km: Floats | None = None

    @classmethod
    def joined(cls, several: Sequence[BlockCounts]) -> BlockCounts:
        """The blocks of several maps, as if they were of one. Roads count where all of the maps know them."""
        roads = [each.road_km for each in several if each.road_km is not None]
        return cls(
            km2=np.concatenate([each.km2 for each in several]),
            truth=np.concatenate([each.truth for each in several]),
            found=np.concatenate([each.found for each in several]),
            predicted=np.concatenate([each.predicted for each in several]),
            right=np.concatenate([each.right for each in several]),
            road_km=np.concatenate(roads) if len(roads) == len(several) else None,
        )

    def figures(self, within_m: float, *, draws: int = 2000, seed: int = 0) -> AtDistance:
        """Recall, precision and false alarms with their intervals.

        Künsch 1989, doi 10.1214/aos/1176347265: blocks are drawn, not points.

        Args:
            within_m: the distance of a match.
            draws: of the bootstrap.
            seed: of the draws.
        """
        return self._figures(within_m, _drawn(len(self.km2), draws, seed))

    def _figures(self, within_m: float, drawn: NDArray[np.int_] | None) -> AtDistance:
        def ratio(above: Floats, below: Floats) -> Interval:
            with np.errstate(divide="ignore", invalid="ignore"):
                value = float(above.sum() / below.sum()) if below.sum() else float("nan")
                if drawn is None:
                    return Interval(value)
                values = (drawn @ above) / (drawn @ below)
            values = values[np.isfinite(values)]
            if not len(values) or not np.isfinite(value):
                return Interval(value)
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            return Interval(value, float(low), float(high))

        alarms = self.predicted - self.right
        return AtDistance(
            within_m=within_m, hits=int(self.right.sum()), recall=ratio(self.found, self.truth),
            precision=ratio(self.right, self.predicted), false_alarms_per_km2=ratio(alarms, self.km2),
            false_alarms_per_road_km=None if self.road_km is None else ratio(alarms, self.road_km),
        )  # fmt: skip


@dataclass(frozen=True)
class MapScore:
    """The evaluation of one map.

    Attributes:
        threshold: probability from which a point counts as predicted.
        within_m: the distance of the main figures.
        at: the figures at each distance.
        truth: number of true points in the mapped area; `truth_outside` lie elsewhere and do not count.
        predicted: number of predicted points of at least the threshold in the mapped area.
        km2: mapped area.
        road_km: length of road in it; None where no roads are known.
        match: (m,) for each given predicted point the true point that it matches at `within_m`, else -1; also -1 below
            the threshold and outside of the area.
        counted: (m,) which given predicted points count.
        truth_inside: (n,) which given true points count.
        curve: columns threshold, recall, precision, false_alarms_per_km2 at `within_m`, the highest threshold first.
        average_precision: area under the curve, not interpolated.
        counts: what lies in each block, at `within_m`.
    """

    threshold: float
    within_m: float
    at: tuple[AtDistance, ...]
    truth: int
    truth_outside: int
    predicted: int
    km2: float
    road_km: float | None
    match: NDArray[np.int_]
    counted: NDArray[np.bool_]
    truth_inside: NDArray[np.bool_]
    curve: pd.DataFrame
    average_precision: float
    counts: BlockCounts

    @property
    def main(self) -> AtDistance:
        """The figures at `within_m`."""
        return next(each for each in self.at if each.within_m == self.within_m)

    def metrics(self) -> dict[str, float]:
        """Values for the table of metrics. What is not known is not there."""
        main = self.main
        values = {
            "map_recall": main.recall.value,
            "map_precision": main.precision.value,
            "map_average_precision": self.average_precision,
            "false_alarms_per_km2": main.false_alarms_per_km2.value,
        }
        if main.false_alarms_per_road_km is not None:
            values["false_alarms_per_road_km"] = main.false_alarms_per_road_km.value
        for each in self.at:
            if each.within_m != self.within_m:
                values[f"map_recall/{each.within_m:g}m"] = each.recall.value
                values[f"map_precision/{each.within_m:g}m"] = each.precision.value
        return {name: value for name, value in values.items() if np.isfinite(value)}

    def points(self, truth: ArrayLike, predicted: ArrayLike) -> pd.DataFrame:
        """The points as a map shows them: columns x, y and kind (hit, missed, false alarm).

        A hit stands where the crossing was predicted.

        Args:
            truth: (n, 2) as they were evaluated.
            predicted: (m, 2) as they were evaluated.
        """
        import pandas as pd

        ours, theirs = (np.asarray(each, float).reshape(-1, 2) for each in (truth, predicted))
        hit = self.match >= 0
        missed = self.truth_inside.copy()
        missed[self.match[hit]] = False
        kinds = {"hit": theirs[hit], "missed": ours[missed], "false alarm": theirs[self.counted & ~hit]}
        frames = [pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "kind": kind}) for kind, xy in kinds.items()]
        return pd.concat(frames, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """One row a distance; see AtDistance.columns."""
        import pandas as pd

        return pd.DataFrame([each.columns() for each in self.at])


def evaluate_map(
    truth: ArrayLike,
    predicted: ArrayLike,
    probability: ArrayLike,
    blocks: Blocks,
    *,
    threshold: float = 0.5,
    within_m: float = WITHIN_M,
    distances_m: Sequence[float] = DISTANCES_M,
    draws: int = 2000,
    seed: int = 0,
) -> MapScore:
    """Compare the points of a map with true crossings.

    Args:
        truth: (n, 2) true points, m.
        predicted: (m, 2) predicted points, m.
        probability: (m,) of the predicted points.
        blocks: of the same points. Points outside of the mapped area (-1) do not count.
        threshold: a point of at least this probability is predicted.
        within_m: the distance of the main figures.
        distances_m: distances at which figures are counted.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        AnalysisError: there is no true point in the mapped area, or points and blocks do not belong together.
    """
    ours, theirs = (np.asarray(each, float).reshape(-1, 2) for each in (truth, predicted))
    p = np.asarray(probability, float).reshape(-1)
    if not (len(ours) == len(blocks.truth) and len(theirs) == len(blocks.predicted) == len(p)):
        raise AnalysisError(
            f"{len(ours)} true and {len(theirs)} predicted points with {len(p)} probabilities do not belong to blocks "
            f"of {len(blocks.truth)} and {len(blocks.predicted)} points: make the blocks of the same points."
        )
    inside = blocks.truth >= 0
    if not inside.any():
        raise AnalysisError(
            f"none of the {len(ours)} true points lies in the mapped area ({blocks.km2.sum():.2f} km2): there is "
            "nothing to compare with. Check the CRS of truth=, or map where the points are."
        )
    counted = (blocks.predicted >= 0) & (p >= threshold)
    at, match, counts = [], np.full(len(theirs), -1), None
    drawn = _drawn(len(blocks.km2), draws, seed)
    for distance in sorted({*distances_m, within_m}):
        found = np.full(len(theirs), -1)
        here = match_points(ours[inside], theirs[counted], within_m=distance)
        found[counted] = np.where(here >= 0, np.flatnonzero(inside)[here], -1)
        here_counts = _counts(found, inside, counted, blocks)
        at.append(here_counts._figures(distance, drawn))
        if distance == within_m:
            match, counts = found, here_counts
    assert counts is not None  # within_m is one of the distances
    valid = blocks.predicted >= 0
    curve = _curve(ours[inside], theirs[valid], p[valid], within_m, float(blocks.km2.sum()))
    steps = np.diff(curve["recall"].to_numpy(), prepend=0.0)
    return MapScore(
        threshold=threshold, within_m=within_m, at=tuple(at), truth=int(inside.sum()),
        truth_outside=int((~inside).sum()), predicted=int(counted.sum()), km2=float(blocks.km2.sum()),
        road_km=None if blocks.road_km is None else float(blocks.road_km.sum()), match=match, counted=counted,
        truth_inside=inside, curve=curve, average_precision=float((steps * curve["precision"]).sum()),
        counts=counts,
    )  # fmt: skip


def _drawn(blocks: int, draws: int, seed: int) -> NDArray[np.int_] | None:
    """How often each block is drawn, (draws, blocks); None where there are too few."""
    if blocks < BLOCKS_FOR_INTERVAL:
        return None
    return np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=draws)


def _counts(
    found: NDArray[np.int_], inside: NDArray[np.bool_], counted: NDArray[np.bool_], blocks: Blocks
) -> BlockCounts:
    """What lies in each block at one distance."""
    hit = found >= 0
    size = len(blocks.km2)

    def per_block(which: NDArray[np.int_]) -> Floats:
        return np.bincount(which, minlength=size).astype(float)

    return BlockCounts(
        km2=np.asarray(blocks.km2, float),
        truth=per_block(blocks.truth[inside]),
        found=per_block(blocks.truth[found[hit]]),
        predicted=per_block(blocks.predicted[counted]),
        right=per_block(blocks.predicted[hit]),
        road_km=blocks.road_km,
    )


def _curve(
    truth: Floats, predicted: Floats, probability: Floats, within_m: float, km2: float
) -> pd.DataFrame:
    """Recall and precision from each threshold on. Only the number of matches is needed, which is quick to find."""
    import pandas as pd
    from scipy.sparse.csgraph import maximum_bipartite_matching

    pairs = _pairs(truth, predicted, within_m).tocsc()
    levels = np.unique(probability)[::-1]
    if len(levels) > THRESHOLDS:
        levels = np.unique(np.quantile(levels, np.linspace(0, 1, THRESHOLDS), method="nearest"))[::-1]
    rows: list[Mapping[str, float]] = []
    for level in levels:
        chosen = np.flatnonzero(probability >= level)
        hits = int((maximum_bipartite_matching(pairs[:, chosen].tocsr()) >= 0).sum())
        rows.append(
            {
                "threshold": float(level),
                "recall": hits / len(truth),
                "precision": hits / len(chosen),
                "false_alarms_per_km2": (len(chosen) - hits) / km2,
            }
        )
    return pd.DataFrame(rows, columns=["threshold", "recall", "precision", "false_alarms_per_km2"])


def pooled_curve(scores: Sequence[MapScore]) -> pd.DataFrame:
    """The curve of several maps as if they were one: at each threshold, their matches and false alarms are added.

    Args:
        scores: of maps of different ground, at the same distance of a match.

    Returns:
        Columns as of MapScore.curve, the highest threshold first.
    """
    import pandas as pd

    levels = np.unique(np.concatenate([score.curve["threshold"] for score in scores]))[::-1]
    hits, alarms = np.zeros(len(levels)), np.zeros(len(levels))
    for score in scores:
        # the row of the least threshold that is not lower; of none, nothing is predicted
        rows = np.searchsorted(-score.curve["threshold"].to_numpy(float), -levels, side="right")
        for total, name, unit in ((hits, "recall", score.truth), (alarms, "false_alarms_per_km2", score.km2)):
            total += np.append(0.0, score.curve[name].to_numpy(float) * unit)[rows]
    truth, km2 = sum(score.truth for score in scores), sum(score.km2 for score in scores)
    with np.errstate(invalid="ignore"):
        precision = hits / (hits + alarms)
    return pd.DataFrame(
        {
            "threshold": levels,
            "recall": hits / truth,
            "precision": precision,
            "false_alarms_per_km2": alarms / km2,
        }
    )


def recall_at_false_alarms(curve: pd.DataFrame, per_km2: float) -> tuple[float, float]:
    """The greatest recall with at most so many false alarms a km2, and its threshold.

    Designs are compared so: each at the threshold that gives the same false alarms.

    Args:
        curve: of MapScore.
        per_km2: false alarms a km2 that are allowed.

    Returns:
        Recall and threshold; 0 and infinity where every threshold gives more.
    """
    allowed = curve[curve["false_alarms_per_km2"] <= per_km2]
    if allowed.empty:
        return 0.0, float("inf")
    best = allowed.loc[allowed["recall"].idxmax()]
    return float(best["recall"]), float(best["threshold"])
