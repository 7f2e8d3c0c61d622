"""Places of chips, and the boxes that a chip shows, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from dxc.geo import sites as module
from dxc.geo.sites import Area, CrossingBoxes

NAN = float("nan")
# the chip: x from 100 to 120, y from 180 to 200
CHIP = {"left": 100, "top": 200, "size": 20}


def _boxes(*rows: tuple[int, float, float, float, float]) -> CrossingBoxes:
    """Boxes from rows (id, x, y, metres east-west, metres north-south)."""
    ids, x, y, wide, high = zip(*rows, strict=True)
    return CrossingBoxes(np.array(ids), np.column_stack([x, y]), np.column_stack([wide, high]))


def test_boxes_in_a_chip_by_hand() -> None:
    boxes = _boxes(
        (1, 105.5, 195.5, 4, 6),
        (2, 119, 190, 10, 4),  # its crossing is in the chip: clipped
        (3, 122, 190, 8, 4),  # it is not, but 2 of 8 m are: a quarter
        (4, 122.1, 190, 8, 4),  # 1.9 of 8 m
        (5, 110, 190, NAN, 4),  # not known
        (6, 110, 181, 2, 8),
    )
    assert boxes.in_chip(**CHIP).tolist() == [
        [3.5, 1.5, 7.5, 7.5],
        [14, 8, 20, 12],
        [18, 8, 20, 12],
        [9, 15, 11, 20],
    ]


def test_crossings_of_unknown_size_in_a_chip() -> None:
    """The left and upper edges belong to a chip, the right and lower edges to its neighbours."""
    corners = [
        (1, 100, 200),
        (2, 120, 190),
        (3, 110, 180),
        (4, 119.9, 180.1),
        (5, 99.9, 190),
        (6, 110, 200.1),
    ]
    boxes = _boxes(*((*each, NAN, NAN) for each in corners), (7, 110, 190, 2, 2), (8, 110, 190, 2, NAN))
    assert boxes.unknown_in_chip(**CHIP).tolist() == [1, 4, 8]


def test_of_several_in_one_pixel_the_first_known_stays() -> None:
    """A pixel is from floor(x) and up to ceil(y)."""
    ids = np.arange(1, 8)
    xy = np.array(
        [[5.2, 7.5], [5.9, 7.1], [5.4, 7.9], [NAN, 1], [6.0, 7.5], [5.5, 7.0], [5.2, 9.5]], dtype=float
    )
    edges = np.array([[NAN, 2], [3, 2], [4, 2], [9, 9], [NAN, NAN], [6, 2], [7, 2]], dtype=float)
    kept = CrossingBoxes.of(ids, xy, edges)
    assert kept.ids.tolist() == [2, 5, 6, 7]
    assert kept.xy.tolist() == xy[[1, 4, 5, 6]].tolist()
    np.testing.assert_array_equal(kept.edges, edges[[1, 4, 5, 6]])


def test_outlines_on_the_ground() -> None:
    boxes = _boxes((1, 10, 20, 4, 6), (2, 30, 40, NAN, 6))
    assert [shapely.bounds(each).tolist() for each in boxes.tree.geometries] == [
        [8, 17, 12, 23],
        [30, 37, 30, 43],
    ]


def _area(width: int, height: int, *crossings: tuple[float, float], distance: float = 0.0) -> Area:
    """Chips of 20 pixels between (0, 0) and (width, height)."""
    return Area(
        "NE", 20, shapely.box(0, 0, width, height), shapely.STRtree(shapely.points(crossings or [(9e9, 9e9)])), distance
    )  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 failed draws are enough for at most 1681 places."""
    monkeypatch.setattr(module, "DRAWS_IN_VAIN", 10)


def test_corners_by_hand() -> None:
    """Pixel (10, 10) of a chip of 20 holds the point. It extends right from left + 10 and down from top - 10."""
    left, top = _area(100, 100).corner(np.array([50.0, 50.7, 50.0]), np.array([60.0, 60.0, 60.3]))
    assert (left.tolist(), top.tolist()) == ([40, 40, 40], [70, 70, 71])
    odd = replace(_area(100, 100), size=5)
    assert [each.tolist() for each in odd.corner(np.array([50.5]), np.array([60.5]))] == [[48], [63]]


def test_a_chip_lies_wholly_inside() -> None:
    area = _area(100, 60)
    left, top = np.array([0, 80, -1, 81, 0, 0, 40]), np.array([60, 20, 60, 20, 61, 19, 40])
    assert area.inside(left, top).tolist() == [True, True, False, False, False, False, True]


@pytest.mark.usefixtures("quick")
def test_every_place_is_drawn_once_and_then_it_ends() -> None:
    """A field of 22 m has 3 x 3 places for chips of 20 m."""
    seen: set[tuple[int, int]] = {(0, 20)}
    spots = list(_area(22, 22).negatives(np.random.default_rng(0), [], seen))
    assert {(spot.left, spot.top) for spot in spots} == {
        (left, top) for left in range(3) for top in (20, 21, 22)
    } - {(0, 20)}
    assert len(spots) == 8 and len(seen) == 9
    assert {(spot.label, spot.source, spot.point) for spot in spots} == {("F", "random", None)}
    assert list(_area(19, 22).negatives(np.random.default_rng(0), [], set())) == []


@pytest.mark.usefixtures("quick")
def test_places_keep_away_from_crossings_and_their_boxes() -> None:
    """The chip's centre is over 12 m from a crossing, and no part of the crossing's box of 30 x 2 m is in the chip."""
    area = _area(60, 60, (30, 30), distance=12.0)
    spots = list(area.negatives(np.random.default_rng(0), [], set()))
    free = {
        (left, top)
        for left in range(41)
        for top in range(20, 61)
        if (left + 10 - 30) ** 2 + (top - 10 - 30) ** 2 > 12**2
    }
    assert {(spot.left, spot.top) for spot in spots} == free
    boxed = replace(area, boxes=_boxes((1, 30, 30, 30, 2)))
    spots = list(boxed.negatives(np.random.default_rng(0), [], set()))
    # the box reaches from 15 to 45 and from 29 to 31; what touches it shows none of it, and is left out all the same
    assert {(spot.left, spot.top) for spot in spots} == {
        (left, top)
        for left, top in free
        if left + 20 < 15 or left > 45 or top < 29 or top - 20 > 31
    }  # fmt: skip


def test_each_file_of_lines_has_an_equal_part_and_each_metre_of_it_the_same() -> None:
    """One file has a line of 300 m, the other two of 10 and 30 m."""
    area = _area(400, 400)
    lines = [
        ("roads", np.array([shapely.LineString([(50, 50), (350, 50)])])),
        (
            "streams",
            np.array(
                [shapely.LineString([(50, 200), (60, 200)]), shapely.LineString([(50, 300), (50, 330)])]
            ),
        ),
    ]
    x, y, source = area._along(np.random.default_rng(0), lines)
    names = np.array(source)
    assert (names == "roads").mean() == pytest.approx(0.5, abs=0.04)
    assert (y[names == "roads"] == 50).all()
    assert np.histogram(x[names == "roads"], 3, (50, 350))[0] / (names == "roads").sum() == pytest.approx(
        [1 / 3] * 3, abs=0.05
    )
    assert (y[names == "streams"] >= 300).mean() == pytest.approx(0.75, abs=0.05)
    spot = next(area.negatives(np.random.default_rng(0), lines[:1], set()))
    assert spot.source == "roads" and spot.top == 60  # its centre is on the road
