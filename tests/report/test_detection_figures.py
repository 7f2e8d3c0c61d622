"""Figures of detection and of efficiency: what is drawn, against values worked out by hand, and that it can be read."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import binary_recall_at_fixed_precision

from dxc.evaluation.match import Sample, iou, kind, match
from dxc.report.detections import (
    PREDICTED,
    SAMPLES,
    SCORED,
    TRUE,
    choose_samples,
    picture,
    precision_recall,
    samples,
    watershed,
)
from dxc.report.efficiency import SERIES, efficiency
from dxc.report.figures import BLUE, STYLE, VERMILLION, save

pytestmark = pytest.mark.filterwarnings("error")

CHANNELS = ("dem", "red", "green", "blue", "nir")


def curve(ms: list[float], *, first: int = 1, invalid: int | None = None) -> pd.DataFrame:
    """Batches first, 2 x first, ...; the quartiles lie 10 % below and 20 % above."""
    batch = [first * 2**k for k in range(len(ms))]
    quartiles = {"q25_ms": np.array(ms) * 0.9, "q75_ms": np.array(ms) * 1.2}
    return pd.DataFrame(
        {"batch": batch, "ms_per_image": ms, **quartiles, "valid": [b != invalid for b in batch]}
    )


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def rectangles(axes: Any, colour: str) -> list[Any]:
    return [patch for patch in axes.patches if to_hex(patch.get_edgecolor()) == colour.lower()]


def corners(patch: Rectangle) -> tuple[float, ...]:
    """Left, top, right and bottom in pixels."""
    x, y = patch.get_xy()
    return x, y, x + patch.get_width(), y + patch.get_height()


# ---------------------------------------------------------------- efficiency


def test_efficiency_marks_the_optimum() -> None:
    figure: Any = efficiency({"SPP-Net": curve([4.0, 3.0, 2.0, 2.5])}, title="a machine, 1 thread")
    (axes,) = figure.axes
    line = axes.containers[0][0]
    assert line.get_xydata().tolist() == [[1, 4], [2, 3], [4, 2], [8, 2.5]]
    assert to_hex(line.get_color()) == BLUE.lower()
    (bars,) = axes.containers[0][2]
    assert bars.get_segments()[2][:, 1] == pytest.approx([1.8, 2.4])
    ring = next(line for line in axes.lines if line.get_label().startswith("optimum"))
    assert ring.get_xydata().tolist() == [[4, 2]]
    assert ring.get_markeredgecolor() == VERMILLION
    assert legend(figure) == ["SPP-Net", "optimum: batch 4, 2 ms an image"]
    assert figure.legends[0].get_title().get_text() == "a machine, 1 thread"
    assert axes.get_xscale() == "log"
    assert axes.xaxis.get_transform().base == 2
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    assert axes.get_xlabel() == "batch size (images)"
    assert axes.get_ylabel() == "measured latency / batch (ms an image)\n← lower is better"
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 4.8  # all of the largest bar


def test_invalid_measurements_are_hollow_and_no_optimum() -> None:
    figure: Any = efficiency({"a": curve([4.0, 1.0, 3.0], invalid=2)})
    (axes,) = figure.axes
    assert axes.containers[0][0].get_xydata().tolist() == [[1, 4], [4, 3]]
    hollow = next(line for line in axes.lines if line.get_label().startswith("invalid"))
    assert (hollow.get_xydata().tolist(), hollow.get_markerfacecolor()) == ([[2, 1]], "white")
    assert legend(figure) == ["a", "optimum: batch 4, 3 ms an image", "invalid: its runs spread too far"]


def test_one_measurement_has_no_optimum() -> None:
    figure: Any = efficiency({"a": curve([4.0])})
    assert legend(figure) == ["a"]
    none_valid: Any = efficiency({"a": curve([4.0], invalid=1)})
    assert legend(none_valid) == ["a", "invalid: its runs spread too far"]


def test_several_networks_each_have_their_optimum() -> None:
    """Of equal values the smaller batch is the optimum, as in dxc.hardware.measure.batches."""
    figure: Any = efficiency({"original": curve([4.0, 3.0, 2.0]), "#1": curve([3.0, 1.0, 1.0], first=2)})
    (axes,) = figure.axes
    ring = next(line for line in axes.lines if line.get_label() == "optimum")
    assert ring.get_xydata().tolist() == [[4, 2], [4, 1]]
    assert legend(figure) == ["original, best at 4", "#1, best at 4", "optimum"]
    drawn = [container[0] for container in axes.containers]
    assert len({line.get_color() for line in drawn}) == len({line.get_marker() for line in drawn}) == 2
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4", "8"]


def test_a_wide_curve_is_logarithmic_and_unknown_quartiles_draw_no_bar() -> None:
    table = curve([40.0, 10.0, 1.0])
    table[["q25_ms", "q75_ms"]] = np.nan
    figure: Any = efficiency({"a": table})
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    (bars,) = axes.containers[0][2]
    assert [np.ptp(segment[:, 1]) for segment in bars.get_segments()] == [0, 0, 0]


@pytest.mark.parametrize("count", [0, len(SERIES) + 1])
def test_curves_that_cannot_be_told_apart(count: int) -> None:
    with pytest.raises(ValueError, match="curves"):
        efficiency({str(k): curve([1.0]) for k in range(count)})


# ---------------------------------------------------------------- overlaps


def test_overlap_by_hand() -> None:
    """Half of a box's width beside itself: 1 / 3; a quarter of its area inside it: 1 / 4."""
    box = [0.5, 0.5, 0.2, 0.2]
    others = [box, [0.6, 0.5, 0.2, 0.2], [0.55, 0.55, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0, 0]]
    np.testing.assert_allclose(iou([box], others), [[1, 1 / 3, 1 / 4, 0, 0]], atol=1e-12)
    assert iou([[np.nan] * 4], [box]).shape == (0, 1)
    assert iou([[0.5, 0.5, 0, 0]], [[0.5, 0.5, 0, 0]]).tolist() == [[0]]


def test_each_true_box_is_found_once() -> None:
    """The surer of two takes the box; the other one takes what is left of it, or is a false alarm."""
    true = [[0.3, 0.3, 0.2, 0.2], [0.42, 0.3, 0.2, 0.2]]
    same = [0.3, 0.3, 0.2, 0.2]
    assert match(true, [same, same], [0.6, 0.9]).tolist() == [-1, 0]
    assert match(true, [same, same], [0.6, 0.9], min_iou=0.2).tolist() == [1, 0]
    assert match(true, [[0.3, 0.4, 0.2, 0.2]], [1.0]).tolist() == [-1]  # IoU 1/3
    assert match(np.zeros((0, 4)), [same], [1.0]).tolist() == [-1]
    assert match(true, np.zeros((0, 4)), []).tolist() == []


# ---------------------------------------------------------------- what an image looks like


def test_colours_are_the_bands_by_name() -> None:
    image = np.zeros((4, 10, 10), dtype=np.float32)
    image[0, 0], image[1, 1], image[2, 2], image[3, 3] = 1, 1, 1, 1
    drawn = picture(image, ["blue", "nir", "red", "green"])
    assert drawn.shape == (10, 10, 3)
    assert [drawn[row, 0].tolist() for row in range(4)] == [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_colours_keep_their_balance_and_outliers_do_not_darken() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(50, 100, (3, 50, 50))
    image[2] /= 2
    image[:, 0, 0] = 1e6
    drawn = picture(image, ["red", "green", "blue"])
    assert (drawn.min(), drawn.max()) == (0, 1)
    assert drawn[..., 0].mean() > drawn[..., 2].mean() + 0.3


def test_relief_is_lit_from_the_north_west() -> None:
    """A ridge from south-west to north-east: the flank to the north-west is bright, the other one dark."""
    y, x = np.mgrid[:40, :40]
    dem = -np.abs(x + y - 40.0)
    shade = picture(dem[None], ["dem"])
    assert shade.shape == (40, 40)
    assert shade[10, 10] == pytest.approx(1.0, abs=1e-6)  # 45 degrees steep, towards the sun
    assert shade[30, 30] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(picture(1000 * dem[None], ["dem"]), shade)  # the unit does not matter


@pytest.mark.parametrize("channels", [("dem",), ("nir",), ("red", "green", "blue")])
def test_a_constant_image_is_grey(channels: tuple[str, ...]) -> None:
    assert (picture(np.full((len(channels), 20, 20), 7.0), channels) == 0.5).all()


def test_without_colours_and_elevation_the_first_band_is_grey() -> None:
    image = np.stack([np.tile(np.linspace(0, 1, 20), (20, 1)), np.zeros((20, 20))])
    drawn = picture(image, ["ndwi", "nir"])
    assert (drawn[0, 0], drawn[0, -1]) == (0, 1)


# ---------------------------------------------------------------- samples


def chip(probability: float, positive: bool, *, size: tuple[int, int] = (40, 40), name: str = "") -> Sample:
    """Height and width `size`; true box in the middle, the predicted one half of its width to the right."""
    rng = np.random.default_rng(int(probability * 1000))
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [np.nan] * 4][: 2 if positive else 0]).reshape(-1, 4)
    return Sample(rng.random((5, *size)), boxes, np.array([0.6, 0.5, 0.2, 0.4]), probability, name)


def test_choice_of_samples_by_hand() -> None:
    p = [0.9, 0.8, 0.95, 0.4, 0.1, 0.7, 0.6, 0.2, 0.3]
    label = [1, 1, 1, 1, 1, 0, 0, 0, 0]
    # hits 2 0 1, missed 4 3, false alarms 5 6, rejected 8 7
    assert choose_samples(p, label, 3) == [2, 4, 5]
    assert choose_samples(p, label, 6) == [2, 0, 4, 3, 5, 6]
    assert choose_samples(p, label, 7) == [2, 0, 1, 4, 3, 5, 6]
    assert choose_samples(p, label, 8) == [2, 0, 1, 4, 3, 5, 6, 8]
    assert choose_samples(p, label, 100) == [2, 0, 1, 4, 3, 5, 6, 8, 7]
    assert choose_samples(p, label, 1) == [2]
    assert choose_samples(p, label, 2) == [2, 4]
    assert choose_samples(p, np.zeros(9), 3, threshold=0.92) == [2, 0, 1]
    assert choose_samples([], [], 3) == []
    assert choose_samples([0.5, 0.5, 0.5], [1, 1, 1], 2) == [0, 1]  # ties stay in order
    overlap = [0.5, 0.2, 0.9, 0.9, 0.0, np.nan, np.nan, np.nan, np.nan]  # 1 is in the wrong place
    assert choose_samples(p, label, 4, overlap=overlap) == [2, 1, 4, 5]


@pytest.mark.parametrize(
    ("boxes", "box", "probability", "expected"),
    [
        ([[0.5, 0.5, 0.2, 0.4]], [0.5, 0.5, 0.2, 0.4], 0.9, "TP"),
        ([[0.5, 0.5, 0.2, 0.4]], [0.5, 0.5, 0.2, 0.21], 0.9, "TP"),  # IoU 0.525
        ([[0.5, 0.5, 0.2, 0.4]], [0.5, 0.5, 0.2, 0.19], 0.9, "FP + FN"),
        ([[0.2, 0.2, 0.1, 0.1]], [0.8, 0.8, 0.1, 0.1], 0.9, "FP + FN"),
        ([[0.5, 0.5, 0.2, 0.4]], [0.5, 0.5, 0.2, 0.4], 0.4, "FN"),
        ([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]], [0.5, 0.5, 0.2, 0.4], 0.9, "TP + FN"),
        ([], [0.5, 0.5, 0.2, 0.4], 0.9, "FP"),
        ([[np.nan] * 4], [0.5, 0.5, 0.2, 0.4], 0.4, "TN"),
    ],
)
def test_a_box_in_the_wrong_place_is_no_hit(
    boxes: list[list[float]], box: list[float], probability: float, expected: str
) -> None:
    """By the rule of box_ap50: IoU of at least 0.5."""
    sample = Sample(np.zeros((1, 20, 20)), np.array(boxes).reshape(-1, 4), np.array(box), probability)
    assert kind(sample) == expected


def test_samples_show_true_and_predicted_boxes() -> None:
    chips = [chip(0.98, True), chip(0.25, True), chip(0.75, False), chip(0.125, False)]
    figure: Any = samples(chips, CHANNELS)
    axes = figure.axes
    titles = ["FP + FN, p 0.98, IoU 0.33", "FN, p 0.25, IoU 0.33", "FP, p 0.75", "TN, p 0.12"]
    assert [each.get_title() for each in axes] == titles
    # 0.4 to 0.6 across and 0.3 to 0.7 down of 40 pixels; rows of NaN are not drawn
    assert [len(rectangles(each, TRUE)) for each in axes] == [1, 1, 0, 0]
    assert corners(rectangles(axes[0], TRUE)[0]) == pytest.approx((16, 12, 24, 28))
    assert corners(rectangles(axes[0], PREDICTED)[0]) == pytest.approx((20, 12, 28, 28))
    assert rectangles(axes[0], TRUE)[0].get_linestyle() in ("-", "solid")
    reported, dotted = (rectangles(each, PREDICTED)[0] for each in axes[:2])
    assert reported.get_linestyle() != "-"
    assert dotted.get_linestyle() in (":", "dotted")
    np.testing.assert_array_equal(axes[0].images[0].get_array(), picture(chips[0].image, CHANNELS))
    assert legend(figure) == ["true box", "predicted box", "not reported, p < 0.5"]
    meaning = "FN: crossing missed; FP: false alarm, or box in the wrong place; TN: rightly rejected"
    assert " ".join(figure.legends[0].get_title().get_text().split()) == meaning


def test_the_threshold_decides_what_is_reported() -> None:
    figure: Any = samples([chip(0.6, True)], CHANNELS, threshold=0.7)
    assert figure.axes[0].get_title() == "FN, p 0.60, IoU 0.33"
    assert legend(figure) == ["true box", "not reported, p < 0.7"]


def test_samples_of_different_sizes_and_long_lists() -> None:
    chips = [
        chip(0.9, True, size=size, name=f"NE_{k}") for k, size in enumerate([(40, 40), (80, 30), (20, 90)])
    ]
    figure: Any = samples(chips, CHANNELS)
    for axes, each in zip(figure.axes, chips, strict=True):
        lines, pixels = each.image.shape[1:]
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, pixels), (lines, 0))
        assert axes.get_aspect() == 1
        assert axes.get_xlabel() == each.name
    assert corners(rectangles(figure.axes[1], TRUE)[0]) == pytest.approx((12, 24, 18, 56))
    many: Any = samples([chip(0.9, True)] * (SAMPLES + 6), CHANNELS)
    assert len(many.axes) == SAMPLES
    assert f"The first {SAMPLES} of {SAMPLES + 6} images" in " ".join(
        many.legends[0].get_title().get_text().split()
    )
    with pytest.raises(ValueError, match="no image"):
        samples([], CHANNELS)


# ---------------------------------------------------------------- precision and recall

P = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
LABEL = np.array([1, 1, 0, 1, 0, 0])


def test_precision_recall_by_hand() -> None:
    """Precision at recall 1/3, 2/3, 1: 1, 1, 3/4; AP = (1 + 1 + 3/4) / 3. Precision 0.7 holds up to recall 1."""
    figure: Any = precision_recall(P, LABEL, min_precision=0.7)
    (axes,) = figure.axes
    line, ring, chance = axes.lines
    points = {(round(r, 6), round(p, 6)) for r, p in line.get_xydata()}
    assert {(0.333333, 1), (0.666667, 1), (0.666667, 0.666667), (1, 0.75), (1, 0.5)} <= points
    assert line.get_drawstyle() == "steps-post"
    assert ring.get_xydata().tolist() == [[1, 0.75]]
    assert chance.get_ydata() == [0.5, 0.5]
    said = "recall 1.000 at precision ≥ 0.7 (p ≥ 0.60)"
    assert legend(figure) == ["average precision 0.917", said, "all called crossings: 0.50"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall (crossings: 3)", "precision (images: 6)")
    stricter: Any = precision_recall(P, LABEL)
    assert stricter.axes[0].lines[1].get_xydata()[0] == pytest.approx([2 / 3, 1])


def test_precision_recall_agrees_with_others() -> None:
    """The area under the steps drawn is scikit-learn's AP, and the ring is where torchmetrics puts it."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    p = np.round(np.clip(rng.normal(0.35 + 0.3 * label, 0.2), 0, 1), 2)  # with ties
    figure: Any = precision_recall(p, label, min_precision=0.8)
    line, ring = figure.axes[0].lines[:2]
    recall, precision = line.get_xydata().T
    area = -(np.diff(recall) * precision[:-1]).sum()
    assert area == pytest.approx(average_precision_score(label, p))
    best, threshold = binary_recall_at_fixed_precision(torch.tensor(p), torch.tensor(label), 0.8)
    assert ring.get_xydata()[0, 0] == pytest.approx(float(best))
    assert f"p ≥ {float(threshold):.2f}" in ring.get_label()


def test_precision_recall_at_its_ends() -> None:
    never: Any = precision_recall([0.9, 0.1], [0, 1])
    assert legend(never)[1] == "precision 0.9 is never reached"
    alone: Any = precision_recall([0.9], [1])
    assert legend(alone)[0] == "average precision 1.000"
    for p in ([0.3, 0.6], []):
        none: Any = precision_recall(p, np.zeros(len(p)))
        assert not none.axes[0].lines
        assert none.axes[0].texts[0].get_text() == f"no crossing among {len(p)} images:\nthere is no recall"
        assert not none.legends


# ---------------------------------------------------------------- a terrain


def terrain(lines: int = 120, pixels: int = 200) -> np.ndarray:
    return np.random.default_rng(0).random((5, lines, pixels))


SIZE = (0.1, 0.1)
CROSSINGS = np.array([[0.2, 0.3, *SIZE], [0.8, 0.5, *SIZE], [0.5, 0.9, *SIZE]])
CLAIMS = np.array([[0.2, 0.3, *SIZE], [np.nan] * 4, [0.5, 0.2, *SIZE], [0.81, 0.5, *SIZE]])


def test_a_watershed_with_what_was_found() -> None:
    """The first crossing is found, the second (IoU 9/11) too, the third missed; one claim is a false alarm."""
    scores = [0.9, 0.1, 0.6, 0.75]
    figure: Any = watershed(terrain(), CHANNELS, CROSSINGS, CLAIMS, scores, title="$held$ out")
    (axes,) = figure.axes
    assert len(rectangles(axes, TRUE)) == len(rectangles(axes, PREDICTED)) == 3
    assert corners(rectangles(axes, TRUE)[0]) == pytest.approx((30, 30, 50, 42))
    expected = ["true: 3, 2 found", "predicted: 3", "missed: 1", "false alarm: 1"]
    assert legend(figure) == expected
    assert figure.legends[0].get_title().get_text() == "$held$ out"
    missed, alarm = (line for line in axes.lines if line.get_linestyle() == "None")
    assert missed.get_xdata().tolist() == [100]
    assert alarm.get_xdata().tolist() == [100]
    assert missed.get_ydata()[0] == pytest.approx(108 - 6, abs=5)
    assert alarm.get_ydata()[0] == pytest.approx(24 - 6, abs=5)
    assert missed.get_marker() != alarm.get_marker()
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["0.90", "0.60", "0.75"]  # the row of NaN is no box, nor is its score one
    stricter: Any = watershed(terrain(), CHANNELS, CROSSINGS, CLAIMS, scores, min_iou=0.9)
    assert legend(stricter)[0] == "true: 3, 1 found"


@pytest.mark.parametrize(
    ("pixels", "metres_per_pixel", "metres", "said"),
    [(200, 1.0, 50, "50 m"), (1500, 1.0, 200, "200 m"), (2000, 5.0, 2000, "2 km"), (60, 0.6, 5, "5 m")],
)
def test_the_scale_bar(pixels: int, metres_per_pixel: float, metres: float, said: str) -> None:
    """The greatest of 1, 2, 5, 10, ... m that takes no more than a quarter of the width."""
    empty = np.zeros((0, 4))
    image = terrain(40, pixels)
    figure: Any = watershed(image, CHANNELS, empty, empty, [], metres_per_pixel=metres_per_pixel)
    (axes,) = figure.axes
    (bar,) = axes.lines
    assert np.ptp(bar.get_xdata()) * metres_per_pixel == pytest.approx(metres)
    assert [text.get_text() for text in axes.texts] == [said]
    assert legend(figure) == ["true: 0, 0 found", "predicted: 0"]


def test_many_boxes_have_no_scores() -> None:
    many = np.column_stack([np.random.default_rng(0).random((SCORED + 1, 2)), np.full((SCORED + 1, 2), 0.02)])
    figure: Any = watershed(terrain(), CHANNELS, many, many, np.full(SCORED + 1, 0.9))
    assert len(figure.axes[0].texts) == 1  # of the scale bar
    assert legend(figure) == [f"true: {SCORED + 1}, {SCORED + 1} found", f"predicted: {SCORED + 1}"]


# ---------------------------------------------------------------- all of them


CHIPS = [
    chip(0.98, True, name="NE_WFBB_a_chip_with_a_long_$name$_00001"),
    chip(0.25, True, name="NE_2", size=(90, 40)),
    *[chip(0.75, False, name="NE_3")] * 4,
]
LONG = "SPP-Net original of a name that is long, on a machine"
SCORES = [0.9, 0.1, 0.6, 0.75]
FIGURES: dict[str, Callable[[], Figure]] = {
    "one curve": lambda: efficiency(
        {LONG: curve([5, 4, 4.4, 3.9, 3.5, 3.4, 3.6], invalid=16)}, title=f"{LONG}, {LONG}"
    ),
    "curves": lambda: efficiency({f"${k}$ {LONG}": curve([5.0, k]) for k in range(1, 6)}),
    "wide curve": lambda: efficiency({"a": curve([0.512, 0.25, 0.12, 0.06, 0.03, 0.014, 0.016])}),
    "samples": lambda: samples(CHIPS, CHANNELS),
    "one sample": lambda: samples(CHIPS[:1], CHANNELS),
    "no names": lambda: samples([chip(0.9, False)] * 2, CHANNELS),
    "precision": lambda: precision_recall(P, LABEL),
    "no precision": lambda: precision_recall(P, 0 * LABEL),
    "terrain": lambda: watershed(terrain(), CHANNELS, CROSSINGS, CLAIMS, SCORES, title=LONG),
    "upright": lambda: watershed(terrain(900, 300), CHANNELS, CROSSINGS, CLAIMS, SCORES),
}


@pytest.mark.parametrize("case", FIGURES)
def test_texts_can_be_read(case: str) -> None:
    """No two texts overlap, none leaves the figure, none is below 6 points; images are not squeezed to nothing."""
    figure = FIGURES[case]()
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        texts = [*figure.texts]
        for each in figure.legends:
            texts += [*each.get_texts(), each.get_title()]
        for axes in figure.axes:
            texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
            if axes.axison:
                for axis in (axes.xaxis, axes.yaxis):
                    low, high = sorted(axis.get_view_interval())
                    texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()]
    for text, box in boxes:
        assert box.x0 > -1 and box.y0 > -1, text
        assert box.x1 < figure.bbox.width + 1 and box.y1 < figure.bbox.height + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or up < 1, f"{one!r} and {other!r} overlap by {across:.0f} x {up:.0f} px"
    assert min(float(text.get_fontsize()) for text in texts) >= 6
    for axes in figure.axes:
        if axes.axison and any(isinstance(each, AxesImage) for each in axes.images):
            assert min(axes.bbox.width, axes.bbox.height) > 0.7 * figure.dpi


@pytest.mark.parametrize("case", ["one curve", "samples", "precision", "terrain"])
def test_saved_as_png_and_svg(case: str, tmp_path: Path) -> None:
    for path in save(FIGURES[case](), tmp_path, "figure"):
        assert path.stat().st_size > 5000
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.svg"}


def test_importing_loads_no_heavy_library() -> None:
    heavy = {"matplotlib", "pandas", "torch", "sklearn"}
    code = f"import sys, dxc.report.detections, dxc.report.efficiency; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "set()"
