"""Sheets of chips: each with its label, what is known of it, a shaded relief, the photo, and every channel."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dxc.evaluation.answers import probability_of_truth
from dxc.evaluation.match import Floats, known_boxes
from dxc.report.detections import DASHES, PREDICTED, TRUE, picture
from dxc.report.figures import STYLE, TWO_COLUMNS_IN, VERMILLION, save, short_number
from dxc.text import for_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dxc.data.sample import ChipSample

DPI = 140  # 1008 pixels in width
MOST_PIXELS = 128  # of a chip's longer edge on a sheet: larger ones are thinned out
TEXT_IN = 1.25  # width of a row's text
HEADER_IN, LINE_IN = 0.3, 0.125  # heights of the headings and of a line of text
TALLEST_IN = 0.9  # edge of a tile
TWO_ABREAST = 4  # tiles a chip, up to which two chips share a line
GAP = 3  # pixels between tiles
MOST_LETTERS = 18  # of a line of a row's text
NO_BOX = np.empty((0, 4))


class Row(NamedTuple):
    """One chip of a sheet."""

    image: Floats
    """(C, H, W)."""
    lines: Sequence[str]
    """What is written beside it, at most five lines."""
    boxes: Floats = NO_BOX
    """True boxes (n, 4): cx, cy, w, h relative to the image; rows of NaN are no boxes."""
    predicted: Floats = NO_BOX
    """Predicted boxes, likewise."""


def draw_chip_sheet(chips: ChipSample, folder: Path, *, stem: str = "chips", source: str = "") -> Path:
    """Write a sheet of chips with their labels and boxes as FOLDER/STEM.jpg; returns its path.

    Args:
        chips: what is drawn, all of it.
        folder: is made if it does not exist.
        stem: name of the file without its ending.
        source: what the chips are, for the title: 'synthetic chips'; '' for 'chips'.

    Raises:
        ValueError: no chip.
        OSError: the file cannot be written.
    """
    rows = [
        Row(image, [chips.classes[label], region, name], boxes)
        for image, label, region, name, boxes in zip(
            chips.images, chips.labels, chips.regions, chips.names, chips.boxes, strict=True
        )
    ]
    count = f"all {chips.of}" if len(rows) == chips.of else f"{len(rows)} of {chips.of:,}"
    title = f"{count} {source or f'{chips.unit}s'}, as the network sees them"
    figure = chip_sheet(rows, chips.channels, title=title)
    return save_sheet(figure, folder, stem)


def save_sheet(figure: Figure, folder: Path, stem: str) -> Path:
    """Write FOLDER/STEM.jpg, whole or not at all, and empty the figure; returns its path. Raises OSError."""
    return save(figure, folder, stem, kinds=("jpg",), dpi=DPI)[0]


def chip_sheet(rows: Sequence[Row], channels: Sequence[str], *, title: str, note: str = "") -> Figure:
    """A line a chip: its text, a relief and the photo where its channels have them, and every channel in grey.

    The greys of a channel run from its least to its greatest value on the sheet, which stand under its name: they show
    what a network is fed. Relief and photo are stretched chip by chip, to be recognised. A pixel that is no number is
    vermillion. All chips are drawn in the same size.

    Args:
        rows: the chips.
        channels: names of the channels of all images.
        title: above the sheet.
        note: below it.

    Raises:
        ValueError: no chip.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("no chip to draw")
    composites = _composites(channels)
    ranges = _ranges([row.image for row in rows])
    headings = [(name, "stretched") for name in composites]
    headings += [
        (name, f"{_short(low)} to {_short(high)}") for name, (low, high) in zip(channels, ranges, strict=True)
    ]
    abreast = 2 if len(headings) <= TWO_ABREAST and len(rows) > 1 else 1
    tile = min(TALLEST_IN, (TWO_COLUMNS_IN / abreast - TEXT_IN) / len(headings))
    lines = math.ceil(len(rows) / abreast)
    row_height = max(tile, LINE_IN * (max(len(row.lines) for row in rows) + 0.5))
    titles = textwrap.wrap(for_figure(title), 100)
    notes = textwrap.wrap(for_figure(note), 120)
    boxed = _boxes_of(rows)
    top = 0.16 * len(titles) + (0.2 if boxed else 0) + 0.06
    height = top + HEADER_IN + lines * row_height + 0.13 * len(notes) + 0.12
    edge = min(MOST_PIXELS, max(max(row.image.shape[1:]) for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMNS_IN, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(
            xlim=(0, TWO_COLUMNS_IN), ylim=(height, 0), autoscale_on=False
        )  # inches, from the upper left corner
        axes.set_axis_off()
        axes.text(0.06, 0.06, "\n".join(titles), va="top", fontsize=8)
        if boxed:
            figure.legend(
                handles=boxed, loc="upper left", bbox_to_anchor=(0.0, 1 - (0.14 * len(titles) + 0.02) / height),
                ncols=len(boxed), fontsize=7,
            )  # fmt: skip
        for block in range(abreast):
            part = rows[block * lines : (block + 1) * lines]
            left = block * TWO_COLUMNS_IN / abreast + TEXT_IN
            for number, texts in enumerate(headings):
                middle = left + (number + 0.5) * tile
                for text, rise in zip(texts, (0.15, 0.04), strict=True):
                    axes.text(middle, top + HEADER_IN - rise, text, ha="center", fontsize=6.2)
            for number, row in enumerate(part):
                y = top + HEADER_IN + number * row_height
                first, *others = map(_fit_line, row.lines)
                x = left - TEXT_IN + 0.06
                axes.text(x, y + LINE_IN, first, fontsize=6.5, weight="bold")
                axes.text(x, y + 1.3 * LINE_IN, "\n".join(others), fontsize=6.5, va="top", linespacing=1.25)
                strip = _strip(row.image, channels, ranges, composites, edge)
                axes.imshow(strip, extent=(left, left + len(headings) * tile, y + tile, y), aspect="auto")
                for place in range(max(1, len(composites))):
                    _draw_boxes(axes, row, left + place * tile, y, tile, edge)
        axes.text(0.06, height - 0.06, "\n".join(notes), va="bottom", fontsize=6.5)
    return figure


def most_wrong(probability: Floats, label: Floats, count: int) -> list[int]:
    """Indices of the `count` chips whose true class got the least probability, the least first.

    Args:
        probability: (n,) of a crossing, or (n, classes).
        label: (n,) of chips 1 = crossing, 0 = none.
        count: how many at most.
    """
    return np.argsort(probability_of_truth(probability, label), kind="stable")[:count].tolist()


def _composites(channels: Sequence[str]) -> dict[str, list[str]]:
    """Pictures that can be made of the channels: heading -> the channels it is made of."""
    made_of = {"relief": ["dem"], "photo": ["red", "green", "blue"]}
    return {name: parts for name, parts in made_of.items() if set(parts) <= set(channels)}


def _ranges(images: Sequence[Floats]) -> list[tuple[float, float]]:
    """Least and greatest value of each channel over all images; pixels that are no numbers do not count."""
    flat = [image.reshape(len(image), -1) for image in images]
    finite = [np.where(np.isfinite(image), image, np.nan) for image in flat]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel without any number
        low = np.nanmin([np.nanmin(image, axis=1) for image in finite], axis=0)
        high = np.nanmax([np.nanmax(image, axis=1) for image in finite], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _strip(
    image: Floats,
    channels: Sequence[str],
    ranges: Sequence[tuple[float, float]],
    composites: dict[str, list[str]],
    edge: int,
) -> np.ndarray:
    """The tiles of a chip beside each other on white, as colours uint8 (H, W, 3)."""
    from matplotlib.colors import to_rgb

    place = {name: number for number, name in enumerate(channels)}
    pictures = [picture(image[[place[name] for name in parts]], parts) for parts in composites.values()]
    for band, (low, high) in zip(image, ranges, strict=True):
        pictures.append((band - low) / (high - low) if high > low else np.where(np.isfinite(band), 0.5, band))
    rows, columns = _scaled(image.shape[1:], edge)
    cell = edge + GAP
    strip = np.full((cell, len(pictures) * cell, 3), 255, dtype=np.uint8)
    for number, each in enumerate(pictures):
        small = each[rows][:, columns]
        colours = small if small.ndim == 3 else small[..., None]
        colours = np.where(np.isfinite(colours), np.clip(colours, 0, 1), to_rgb(VERMILLION))
        strip[: len(rows), number * cell : number * cell + len(columns)] = np.round(255 * colours)
    return strip


def _scaled(shape: Sequence[int], edge: int) -> list[Any]:
    """For height and width, the pixels to show so that the longer one has `edge` of them."""
    return [(np.arange(n := max(1, round(edge * each / max(shape)))) * each // n) for each in shape]


def _draw_boxes(axes: Axes, row: Row, left: float, top: float, tile: float, edge: int) -> None:
    """The boxes of a chip on one of its tiles, whose upper left corner and edge are in inches."""
    from matplotlib.patches import Rectangle

    pixels = [len(each) for each in _scaled(row.image.shape[1:], edge)]
    height, width = (tile * each / (edge + GAP) for each in pixels)
    for boxes, colour, dashes in ((row.boxes, TRUE, "-"), (row.predicted, PREDICTED, DASHES)):
        for x, y, w, h in known_boxes(boxes) * [width, height, width, height]:
            corner = left + x - w / 2, top + y - h / 2
            box = Rectangle(corner, w, h, fill=False, edgecolor=colour, linewidth=0.9, linestyle=dashes)
            box.set_path_effects(_halo())
            axes.add_patch(box)


def _fit_line(text: str) -> str:
    """A line cut in its middle where it is too long: names of chips differ at their ends."""
    text = for_figure(text)
    return (
        text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS // 2 - 1]}…{text[-MOST_LETTERS // 2 :]}"
    )


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else short_number(value)


def _halo() -> Any:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=1.5, foreground="black")]


def _boxes_of(rows: Sequence[Row]) -> list[Any]:
    """Handles of the legend: of true and of predicted boxes, where there are any."""
    from matplotlib.lines import Line2D

    kinds: Any = ((TRUE, "-", "true box", "boxes"), (PREDICTED, DASHES, "predicted box", "predicted"))
    return [
        Line2D([], [], color=colour, linestyle=dashes, label=label, path_effects=_halo())
        for colour, dashes, label, name in kinds
        if any(len(known_boxes(getattr(row, name))) for row in rows)
    ]
