"""Pictures of a run: sheets of chips and the confusion matrix, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from dxc.data.sample import ChipSample
from dxc.report.chip_sheet import GAP, Row, chip_sheet, draw_chip_sheet, most_wrong
from dxc.report.confusion import confusion_matrix
from dxc.report.detections import PREDICTED, TRUE
from dxc.report.figures import STYLE, VERMILLION
from dxc.report.run_figures import drawn_or_noted

pytestmark = pytest.mark.filterwarnings("error")

CHANNELS = ("dem", "red", "green", "blue", "nir", "ndwi", "ndvi")


def chip(channels: int = 7, height: int = 40, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, height, width), dtype=np.float32)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_most_wrong_first() -> None:
    probability, label = np.array([0.1, 0.9, 0.6, 0.2, 0.9]), np.array([0, 0, 0, 1, 1])
    assert most_wrong(probability, label, 3) == [1, 3, 2]


# ---------------------------------------------------------------- sheets


def test_sheet_shows_what_the_network_sees() -> None:
    """Greys run over the values of the whole sheet, and a pixel that is no number is vermillion."""
    low, high = np.zeros((2, 8, 8), np.float32), np.full((2, 8, 8), 4, np.float32)
    low[1, 0, 0] = np.nan
    high[1] = 1
    figure: Any = chip_sheet(
        [Row(low, ["crossing", "a"]), Row(high, ["no crossing", "b"])], ("nir", "ndvi"), title="2 of 9 chips"
    )
    assert texts(figure) == [
        "2 of 9 chips", "nir", "0 to 4", "ndvi", "0 to 1", "crossing", "a",
        "nir", "0 to 4", "ndvi", "0 to 1", "no crossing", "b",
    ]  # fmt: skip
    dark, bright = (image.get_array() for image in figure.axes[0].images)
    assert dark.shape == (8 + GAP, 2 * (8 + GAP), 3)
    assert (dark[:8, :8] == 0).all() and (bright[:8, :8] == 255).all() and (dark[8:] == 255).all()
    assert dark[0, 8 + GAP].tolist() == [round(255 * part) for part in to_rgb(VERMILLION)]
    assert not figure.legends


def test_sheet_draws_boxes_on_relief_and_photo() -> None:
    box = np.array([[0.5, 0.25, 0.2, 0.5], [np.nan] * 4])
    row = Row(chip(height=20, width=40), ["crossing"], box, np.array([0.5, 0.5, 1.0, 1.0]))
    figure: Any = chip_sheet([row], CHANNELS, title="one")
    (image,) = figure.axes[0].images
    left, right, _, top = image.get_extent()
    inch = (right - left) / (9 * (40 + GAP))  # of a pixel; there are two pictures and seven channels
    by_colour = {
        colour: [p for p in figure.axes[0].patches if to_hex(p.get_edgecolor()) == colour.lower()]
        for colour in (TRUE, PREDICTED)
    }
    assert [len(each) for each in by_colour.values()] == [2, 2]
    for number, patch in enumerate(by_colour[TRUE]):
        x = left + (number * (40 + GAP) + 16) * inch
        assert (*patch.get_xy(), patch.get_width(), patch.get_height()) == pytest.approx(
            (x, top, 8 * inch, 10 * inch)
        )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true box", "predicted box"]


LONG = "NE_WFBB_a_chip_with_a_long_$name$_00001"
SHEETS: dict[str, tuple[list[Row], tuple[str, ...]]] = {
    "seven channels": ([Row(chip(seed=n), ["no crossing", LONG, LONG, LONG]) for n in range(12)], CHANNELS),
    "large values": ([Row(chip() * -12345.6, ["crossing"])], CHANNELS),
    "many sizes": (
        [Row(chip(3, 16 + 90 * n, 300), ["no crossing", LONG]) for n in range(5)],
        ("red", "green", "blue"),
    ),
    "elevation alone": ([Row(chip(1), ["crossing", LONG, LONG, LONG])] * 3, ("dem",)),
    "one chip": ([Row(chip(1), ["crossing"])], ("ndvi",)),
    "nothing known": ([Row(np.full((1, 20, 20), np.nan), ["crossing"])], ("nir",)),
}


@pytest.mark.parametrize("case", SHEETS)
def test_sheet_can_be_read(case: str) -> None:
    """Texts lie on the sheet, beside each other and beside the chips."""
    rows, channels = SHEETS[case]
    boxed = [row._replace(boxes=np.array([[0.5, 0.5, 0.2, 0.2]])) for row in rows]
    figure: Any = chip_sheet(boxed, channels, title=f"{LONG} " * 5, note=f"{LONG} " * 9)
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        boxes = [(t.get_text(), t.get_window_extent()) for t in axes.texts if t.get_text()]
        boxes += [(t.get_text(), t.get_window_extent()) for t in figure.legends[0].get_texts()]
        boxes += [(f"chip {n}", image.get_window_extent()) for n, image in enumerate(axes.images)]
        for number, (text, extent) in enumerate(boxes):
            assert figure.bbox.padded(1).contains(*extent.min), text
            assert figure.bbox.padded(1).contains(*extent.max), text
            for other, beside in boxes[number + 1 :]:
                over = extent.intersection(extent, beside)
                assert over is None or min(over.width, over.height) < 1, (text, other)


def test_sheet_as_a_file(tmp_path: Path) -> None:
    sample = ChipSample(
        channels=("dem",), images=(chip(1, 100, 100),) * 2, labels=(1, 0), regions=("NE", "NE"), names=("a", "b"),
        boxes=(np.empty((0, 4)),) * 2, of=400,
    )  # fmt: skip
    path = draw_chip_sheet(sample, tmp_path / "made", source="synthetic chips")
    assert path == tmp_path / "made" / "chips.jpg"
    once = path.read_bytes()
    with Image.open(path) as image:
        assert image.width == 1008
    assert draw_chip_sheet(sample, tmp_path / "made", source="synthetic chips").read_bytes() == once
    with pytest.raises(ValueError, match="no chip"):
        chip_sheet([], ("dem",), title="")


# ---------------------------------------------------------------- confusion matrix


def test_confusion_matrix_by_hand() -> None:
    probability, label = [0.9, 0.5, 0.6, 0.1, 0.2, 0.3], [1, 1, 0, 0, 0, 0]
    figure: Any = confusion_matrix(probability, label, note="six chips")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["3\n75.0%", "1\n25.0%", "1\n50.0%", "1\n50.0%"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["no crossing", "crossing"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["no\ncrossing\n(4)", "crossing\n(2)"]
    # Wilson's interval of 4 in 6, by statsmodels' proportion_confint(4, 6, method="wilson")
    assert axes.get_title() == "accuracy 0.667, 95 % interval 0.300 to 0.903"
    assert figure.get_supxlabel() == "six chips"


def test_confusion_matrix_of_three_classes() -> None:
    """Rows are true classes; cells without an image are left empty."""
    probability = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7], [0.2, 0.1, 0.7]])
    figure: Any = confusion_matrix(
        probability, [0, 0, 2, 1], classes=["cat", "half disc", "dog"], unit="image"
    )
    (axes,) = figure.axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}  # (predicted, true)
    assert cells == {(0, 0): "1\n50.0%", (1, 0): "1\n50.0%", (2, 1): "1\n100.0%", (2, 2): "1\n100.0%"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat\n(2)", "half\ndisc\n(1)", "dog\n(1)"]
    assert axes.get_ylabel() == "true (images)" and axes.get_title().startswith("accuracy 0.500")


def test_most_wrong_of_three_classes() -> None:
    probability = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7]])
    assert most_wrong(probability, np.array([0, 2, 1]), 2) == [1, 2]


def test_confusion_matrix_of_one_class() -> None:
    figure: Any = confusion_matrix([0.1, 0.2], [0, 0])
    assert [text.get_text() for text in figure.axes[0].texts] == ["2\n100.0%", "0\n0.0%", "0\n–", "0\n–"]
    with pytest.raises(ValueError, match="no prediction"):
        confusion_matrix([], [])


def test_a_picture_that_fails_is_a_note() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    assert drawn_or_noted("chips", lambda: 1) == []
    assert drawn_or_noted("chips", fail) == [
        "figure chips was not drawn: OSError: [Errno 28] No space left on device"
    ]
