"""Figures of a map: what is drawn, against values by hand, and that it can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dxc.evaluation.calibration import reliability
from dxc.report.figures import save
from dxc.report.maps import crossing_map, map_precision_recall, reliability_diagram, relief
from tests.report.test_figures import _assert_readable

pytestmark = pytest.mark.filterwarnings("error")

EXTENT = (5000.0, 6000.0, 2000.0, 2500.0)  # 1000 m by 500 m
GROUND = np.random.default_rng(0).normal(100, 1, (50, 100))
POINTS = pd.DataFrame(
    {
        "x": [5100, 5900, 5500, 5300],
        "y": [2100, 2400, 2250, 2200],
        "kind": ["hit", "missed", "false alarm", "hit"],
    }
)
CURVE = pd.DataFrame({"threshold": [0.9, 0.6, 0.3], "recall": [0.5, 0.5, 0.75], "precision": [1.0, 0.5, 0.6]})


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_points_lie_where_they_are(tmp_path: Path) -> None:
    line = np.array([(5100, 2090), (5100, 2110)])
    figure = crossing_map(
        GROUND, EXTENT, POINTS, roads=[np.array([(5000, 2100), (6000, 2100)])], lines=[line, line + 300],
        title="NE_$1$", note="A note. " * 40,
    )  # fmt: skip
    (axes,) = figure.axes
    assert _legend(figure) == ["road", "breach line: 2", "found: 2", "missed: 1", "false alarm: 1"]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["found: 2"] == [[5100, 2100], [5300, 2200]] and drawn["missed: 1"] == [[5900, 2400]]
    assert drawn["breach line: 2"] == line.tolist()
    (image,) = axes.findobj(AxesImage)
    assert tuple(image.get_extent()) == EXTENT and axes.get_xlim() == EXTENT[:2]
    assert [text.get_text() for text in axes.texts] == ["200 m"]  # a fifth of 1000 m
    _assert_readable(figure)
    assert save(figure, tmp_path, "map", kinds=("png",))[0].stat().st_size > 10_000


def test_predictions_that_nothing_was_compared_with() -> None:
    assert _legend(crossing_map(GROUND, EXTENT, POINTS[["x", "y"]])) == ["predicted: 4"]
    empty = crossing_map(GROUND, EXTENT, POINTS[:0])
    assert not empty.legends


def test_relief_is_lit_from_the_north_west_and_has_holes_where_the_ground_has() -> None:
    rows, columns = np.indices((20, 20))
    to_the_light, from_the_light = relief(0.2 * (columns + rows), 1.0), relief(-0.2 * (columns + rows), 1.0)
    assert to_the_light.shape == (20, 20)
    both = relief(np.where(columns < 10, columns, 20 - columns) * 0.5, 1.0)
    assert both[10, 4] > both[10, 15]  # the western slope faces the light
    assert np.isfinite(from_the_light).all()
    hole = np.where((rows == 3) & (columns == 4), np.nan, GROUND[:20, :20])
    assert np.argwhere(np.isnan(relief(hole, 1.0))).tolist() == [[3, 4]]
    assert np.isnan(relief(np.full((4, 4), np.nan), 1.0)).all()


def test_precision_against_recall() -> None:
    figure = map_precision_recall(
        {"chips": CURVE, "dense": CURVE[:0]}, threshold=0.5, truth=4, note="Some words. " * 20
    )
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[0, 1], [0.5, 1], [0.5, 0.5], [0.75, 0.6]]
    assert axes.lines[1].get_xydata().tolist() == [[0.5, 0.5]]  # the lowest threshold of 0.5 or more
    assert _legend(figure) == ["chips, area 0.650", "p ≥ 0.5: recall 0.50, precision 0.50", "dense: no point"]
    assert axes.get_xlabel() == "map recall (4 true crossings)" and axes.get_ylabel() == "map precision"
    _assert_readable(figure)


def test_reliability() -> None:
    p, label = [0.05, 0.15, 0.15, 0.95, 1.0], [0, 0, 1, 1, 1]
    figure = reliability_diagram({"as trained": reliability(p, label), "none": reliability([], [])})
    axes, below = figure.axes
    assert _legend(figure) == ["as stated", "as trained, error 0.160", "none"]
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[0.05, 0], [0.15, 0.5], [0.975, 1]])
    assert [bar.get_height() for bar in below.patches] == [1, 2, 2]
    _assert_readable(figure)
    assert not any("mathdefault" in text.get_text() for text in below.get_yticklabels())
