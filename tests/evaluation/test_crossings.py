"""Evaluation of a map, against figures by hand and a brute force search of all matchings."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import shapely
from sklearn.metrics import average_precision_score

from dxc.errors import AnalysisError
from dxc.evaluation.crossings import (
    Blocks,
    evaluate_map,
    match_points,
    pooled_curve,
    recall_at_false_alarms,
)

AREA = shapely.box(0, 0, 2000, 1000)  # 2 km2
ROADS = [shapely.LineString([(-500, 500), (1500, 500)]), shapely.LineString([(100, 0), (100, 1000)])]
TRUTH = np.array([(100, 100), (500, 500), (1500, 500), (1900, 900), (5000, 5000)])
PREDICTED = np.array([(104, 100), (100, 103), (512, 500), (1500, 520), (700, 700), (1900, 900), (9000, 0)])
PROBABILITY = np.array([0.9, 0.95, 0.8, 0.7, 0.6, 0.3, 0.99])


def _blocks(truth: np.ndarray = TRUTH, predicted: np.ndarray = PREDICTED, edge_m: float = 500) -> Blocks:
    return Blocks.of_grid(edge_m, truth, predicted, area=AREA, roads=ROADS)


def test_one_crossing_is_found_by_one_point() -> None:
    """The nearest prediction may be needed elsewhere: 0 takes the farther 1, so that both find a crossing."""
    assert list(match_points([(0, 0), (10, 0)], [(1, 0), (-9, 0)], within_m=10)) == [1, 0]
    assert list(match_points([(0, 0)], [(1, 0), (0.5, 0), (0, 0)], within_m=10)) == [-1, -1, 0]
    assert list(match_points([(0, 0)], [(10, 0), (0, 10.01)], within_m=10)) == [0, -1]
    assert list(match_points(np.empty((0, 2)), [(10, 0)], within_m=10)) == [-1]
    assert list(match_points([(0, 0)], np.empty((0, 2)), within_m=10)) == []


def test_the_matching_is_the_largest_and_of_these_the_shortest() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        truth, predicted = rng.uniform(0, 30, (4, 2)), rng.uniform(0, 30, (5, 2))
        away = np.hypot(*(truth[:, None] - predicted[None]).transpose(2, 0, 1))
        best = (0, 0.0)
        for chosen in itertools.permutations(range(5), 4):
            pairs = [(i, j) for i, j in enumerate(chosen) if away[i, j] <= 10]
            best = min(best, (-len(pairs), sum(away[i, j] for i, j in pairs)))
        found = match_points(truth, predicted, within_m=10)
        hit = found >= 0
        assert (-hit.sum(), away[found[hit], np.flatnonzero(hit)].sum()) == pytest.approx(best)


def test_figures_by_hand() -> None:
    score = evaluate_map(TRUTH, PREDICTED, PROBABILITY, _blocks(), threshold=0.5)
    assert (score.truth, score.truth_outside, score.predicted, score.km2) == (4, 1, 5, pytest.approx(2.0))
    assert score.road_km == pytest.approx(2.5)  # 1.5 km of the first road lie in the area
    # at 15 m: (100, 103) is nearer to (100, 100) than (104, 100), a false alarm; (512, 500) finds (500, 500);
    # (1500, 520) is 20 m away; (1900, 900) is below the threshold; (9000, 0) lies elsewhere
    assert list(score.match) == [-1, 0, 1, -1, -1, -1, -1]
    main = score.main
    assert (main.hits, main.recall.value, main.precision.value) == (2, 0.5, 0.4)
    assert main.false_alarms_per_km2.value == pytest.approx(1.5)
    assert main.false_alarms_per_road_km is not None
    assert main.false_alarms_per_road_km.value == pytest.approx(3 / 2.5)
    assert [(each.within_m, each.hits) for each in score.at] == [(5, 1), (10, 1), (15, 2), (25, 3)]
    assert score.metrics() == pytest.approx(
        {
            "map_recall": 0.5, "map_precision": 0.4, "map_average_precision": score.average_precision,
            "false_alarms_per_km2": 1.5, "false_alarms_per_road_km": 1.2, "map_recall/5m": 0.25,
            "map_precision/5m": 0.2, "map_recall/10m": 0.25, "map_precision/10m": 0.2, "map_recall/25m": 0.75,
            "map_precision/25m": 0.6,
        }
    )  # fmt: skip


def test_the_curve_counts_from_each_threshold_on() -> None:
    score = evaluate_map(TRUTH, PREDICTED, PROBABILITY, _blocks())
    curve = score.curve
    assert list(curve["threshold"]) == [0.95, 0.9, 0.8, 0.7, 0.6, 0.3]  # 0.99 lies outside of the area
    assert list(curve["recall"]) == [0.25, 0.25, 0.5, 0.5, 0.5, 0.75]
    np.testing.assert_allclose(curve["precision"], [1, 1 / 2, 2 / 3, 2 / 4, 2 / 5, 3 / 6])
    np.testing.assert_allclose(curve["false_alarms_per_km2"], [0, 0.5, 0.5, 1, 1.5, 1.5])
    # each step of recall at its precision
    assert score.average_precision == pytest.approx(0.25 * 1 + 0.25 * 2 / 3 + 0.25 * 3 / 6)
    assert recall_at_false_alarms(curve, 0.5) == (0.5, 0.8)
    assert recall_at_false_alarms(curve, 0.4) == (0.25, 0.95)
    assert recall_at_false_alarms(curve[1:], 0.1) == (0.0, float("inf"))


def test_a_pooled_curve_adds_what_maps_have_at_each_threshold() -> None:
    first = evaluate_map(TRUTH, PREDICTED, PROBABILITY, _blocks())  # 4 crossings in 2 km2
    truth, predicted = np.array([(100, 100), (500, 500)]), np.array([(100, 100), (900, 900), (500, 505)])
    second = evaluate_map(
        truth, predicted, [0.92, 0.8, 0.2], _blocks(truth, predicted)
    )  # 2 crossings in 2 km2
    pooled = pooled_curve([first, second])
    assert list(pooled["threshold"]) == [0.95, 0.92, 0.9, 0.8, 0.7, 0.6, 0.3, 0.2]
    np.testing.assert_allclose(pooled["recall"] * 6, [1, 2, 2, 3, 3, 3, 4, 5])
    np.testing.assert_allclose(pooled["false_alarms_per_km2"] * 4, [0, 0, 1, 2, 3, 4, 4, 4])
    np.testing.assert_allclose(pooled["precision"], [1, 1, 2 / 3, 3 / 5, 3 / 6, 3 / 7, 4 / 8, 5 / 9])
    assert recall_at_false_alarms(pooled, 0.5) == (0.5, 0.8)
    pd.testing.assert_frame_equal(pooled_curve([first]), first.curve)


def test_average_precision_is_scikit_learns_where_no_two_points_meet() -> None:
    rng = np.random.default_rng(0)
    truth = np.column_stack([np.arange(60) * 30.0 + 10, np.full(60, 500.0)])
    far = np.column_stack([np.arange(60) * 30.0 + 10, np.full(60, 100.0)])
    p = rng.uniform(size=120)
    predicted = np.concatenate([truth, far])
    score = evaluate_map(truth, predicted, p, _blocks(truth, predicted))
    assert score.average_precision == pytest.approx(average_precision_score([1] * 60 + [0] * 60, p))


def test_blocks_share_out_points_area_and_roads() -> None:
    halves = [shapely.box(0, 0, 1000, 1000), shapely.box(1000, 0, 1500, 3000)]
    blocks = Blocks.of_polygons(halves, TRUTH, PREDICTED, area=AREA, roads=ROADS)
    np.testing.assert_allclose(blocks.km2, [1, 0.5, 0.5])  # the rest of the area is a block too
    assert blocks.road_km is not None
    np.testing.assert_allclose(blocks.road_km, [2.0, 0.5, 0.0])
    assert list(blocks.truth) == [0, 0, 1, 2, -1] and list(blocks.predicted) == [0, 0, 0, 1, 0, 2, -1]
    grid = _blocks()
    np.testing.assert_allclose(grid.km2, np.full(8, 0.25))
    assert grid.road_km is not None and grid.road_km.sum() == pytest.approx(2.5)


@pytest.mark.long
def test_intervals_cover_as_often_as_they_say() -> None:
    """Crossings of a block are found or missed together: drawn one by one, intervals would be far too narrow."""
    truth = np.array(
        [(x * 100 + 10 + 20 * k, y * 100 + 50.0) for x in range(20) for y in range(10) for k in range(3)]
    )
    covered = []
    for seed in range(60):
        seen = np.repeat(np.random.default_rng(seed).random(200) < 0.7, 3)
        predicted = truth[seen]
        blocks = Blocks.of_grid(100, truth, predicted, area=AREA)
        score = evaluate_map(truth, predicted, np.ones(len(predicted)), blocks, distances_m=(), draws=300)
        recall = score.main.recall
        covered.append(recall.low <= 0.7 <= recall.high)
        assert recall.high - recall.low == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 200), rel=0.3)
    assert np.mean(covered) >= 0.85


def test_too_few_blocks_give_no_interval() -> None:
    score = evaluate_map(TRUTH, PREDICTED, PROBABILITY, _blocks(edge_m=1000))
    assert np.isnan([score.main.recall.low, score.main.recall.high]).all()
    assert evaluate_map(TRUTH, PREDICTED, PROBABILITY, _blocks()).main.recall.low < 0.5


def test_points_and_table_for_pictures() -> None:
    score = evaluate_map(TRUTH, PREDICTED, PROBABILITY, _blocks())
    points = score.points(TRUTH, PREDICTED)
    assert points.groupby("kind").size().to_dict() == {"false alarm": 3, "hit": 2, "missed": 2}
    missed = points[points["kind"] == "missed"]
    assert missed[["x", "y"]].to_numpy().tolist() == [[1500, 500], [1900, 900]]
    table = score.table()
    assert list(table["within_m"]) == [5, 10, 15, 25] and list(table["recall"]) == [0.25, 0.25, 0.5, 0.75]
    assert (table["recall_low"] <= table["recall"]).all()


def test_a_map_without_points_finds_nothing() -> None:
    nothing = np.empty((0, 2))
    score = evaluate_map(TRUTH, nothing, np.empty(0), _blocks(predicted=nothing))
    assert (score.main.recall.value, score.predicted, score.average_precision) == (0.0, 0, 0.0)
    assert np.isnan(score.main.precision.value)
    assert score.metrics()["map_recall"] == 0 and "map_precision" not in score.metrics()


def test_truth_elsewhere_is_named() -> None:
    far = TRUTH + 10_000
    with pytest.raises(
        AnalysisError, match=r"none of the 5 true points lies in the mapped area \(2.00 km2\)"
    ):
        evaluate_map(far, PREDICTED, PROBABILITY, _blocks(truth=far))
    with pytest.raises(AnalysisError, match="do not belong to blocks of 5 and 7 points"):
        evaluate_map(TRUTH, PREDICTED[:3], PROBABILITY[:3], _blocks())
