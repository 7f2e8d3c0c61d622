"""Figures of a detector's predictions for a paper: sample images, precision against recall, a whole watershed.

Images are (C, H, W) arrays with named channels. Boxes are (n, 4): centre x, centre y, width, height, relative to the
image (0..1, y down); rows of NaN, as batches are padded with, are no boxes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dxc.evaluation.average_precision import precision_recall_curve
from dxc.evaluation.match import KINDS, MIN_IOU, Floats, Sample, are_known, iou, kind, known_boxes, match
from dxc.metrics import title_of
from dxc.report.figures import BLUE, GREY, ONE_COLUMN_IN, STYLE, TWO_COLUMNS_IN, VERMILLION, note_below
from dxc.text import for_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's light blue and yellow stand out on fields and soil; in grey, dashes tell them apart
TRUE, PREDICTED = "#56B4E9", "#F0E442"
DASHES = (0, (2.2, 1.2))  # in line widths: short ones, for boxes of a few points

COLUMNS = 4
SAMPLES = 24  # six rows: a page
SCORED = 40  # boxes of a watershed that get their score printed


def choose_samples(
    probability: ArrayLike,
    label: ArrayLike,
    count: int = 12,
    *,
    overlap: ArrayLike | None = None,
    threshold: float = 0.5,
) -> list[int]:
    """Indices of `count` images to show, in groups.

    As many each are hits (the most certain), boxes in the wrong place (the most certain), missed crossings (the least
    certain) and false alarms (the most certain). Where a group has too few, the others fill up, and at last the
    negatives closest to an alarm. The choice is deterministic.

    Args:
        probability: (n,) of a crossing.
        label: (n,) 1 = crossing, 0 = none.
        count: number of images.
        overlap: (n,) IoU of the predicted box with the true one it overlaps most. None: no place is wrong.
        threshold: an image of at least this probability is predicted to hold a crossing.

    """
    p, positive = np.asarray(probability, dtype=float), np.asarray(label) == 1
    placed = np.ones(len(p), dtype=bool) if overlap is None else np.asarray(overlap, dtype=float) >= MIN_IOU
    alarm = p > threshold
    rising = np.argsort(p, kind="stable")
    falling = np.argsort(-p, kind="stable")
    groups = [
        falling[(alarm & positive & placed)[falling]],
        falling[(alarm & positive & ~placed)[falling]],
        rising[(~alarm & positive)[rising]],
        falling[(alarm & ~positive)[falling]],
        falling[(~alarm & ~positive)[falling]],
    ]
    last = len(groups) - 1
    taken = [0] * len(groups)
    while sum(taken) < min(count, len(p)):
        others_left = any(n < len(group) for n, group in zip(taken[:last], groups, strict=False))
        for place in range(last) if others_left else [last]:
            taken[place] += sum(taken) < count and taken[place] < len(groups[place])
    return [int(i) for group, n in zip(groups, taken, strict=True) for i in group[:n]]


def samples(
    chips: Sequence[Sample], channels: Sequence[str], *, threshold: float = 0.5, note: str = ""
) -> Figure:
    """A grid of images with true and predicted boxes, and for each its kind(), probability and best IoU.

    Images may have any size. The first SAMPLES are drawn, in the given order. A predicted box is dotted where the
    probability lies below `threshold`, because it would not be reported. The note stands below. Raises ValueError for
    no image.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not chips:
        raise ValueError("no image to draw")
    shown = chips[:SAMPLES]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    width = max(ONE_COLUMN_IN, TWO_COLUMNS_IN * columns / COLUMNS)
    cell = width / columns - 0.06
    tallest = [
        max(chip.image.shape[1] / max(chip.image.shape[2], chip.image.shape[1] / 1.5) for chip in row)
        for row in (shown[start : start + columns] for start in range(0, len(shown), columns))
    ]
    named = any(chip.name for chip in shown)
    height = sum(cell * share + (0.34 if named else 0.2) for share in tallest) + 0.3
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr, call-arg]
        panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": tallest})
        for axes in panels.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, chip in zip(panels.flat, shown, strict=False):
            _sample(axes, chip, channels, threshold)
        kinds = {each for chip in shown for each in kind(chip, threshold).split(" + ")}
        reported = [chip.probability > threshold for chip in shown]
        handles = [_handle(TRUE, "-", "true box")] if kinds & {"TP", "FN"} else []
        if any(reported):
            handles.append(_handle(PREDICTED, DASHES, "predicted box"))
        if not all(reported):
            handles.append(_handle(PREDICTED, ":", f"not reported, p < {threshold:g}"))
        meaning = "; ".join(f"{short}: {long}" for short, long in KINDS.items() if short in kinds)
        if len(shown) < len(chips):
            meaning += f". The first {len(shown)} of {len(chips)} images"
        meaning = textwrap.fill(meaning, int(14 * width))
        figure.legend(handles=handles, loc="outside upper left", ncols=3, title=meaning, alignment="left")
        note_below(figure, note, width)
    return figure


def _sample(axes: Axes, chip: Sample, channels: Sequence[str], threshold: float) -> None:
    """One image of the grid."""
    _show(axes, chip.image, channels)
    size = chip.image.shape[2], chip.image.shape[1]
    _boxes(axes, chip.boxes, size, TRUE, "-")
    _boxes(axes, [chip.box], size, PREDICTED, DASHES if chip.probability > threshold else ":")
    overlap = iou(chip.boxes, [chip.box])
    best = f", IoU {overlap.max():.2f}" if overlap.size else ""
    axes.set_title(f"{kind(chip, threshold)}, p {chip.probability:.2f}{best}", fontsize=7.5, pad=2)
    name = for_figure(chip.name)
    axes.set_xlabel(name if len(name) <= 26 else f"{name[:25]}…", fontsize=6.5, labelpad=1)


def precision_recall(
    probability: ArrayLike, label: ArrayLike, *, min_precision: float = 0.9, note: str = ""
) -> Figure:
    """Precision against recall of (n,) probabilities and labels (0 | 1) over all thresholds, with average precision.

    AP = sum over thresholds of (R_n - R_n-1) P_n, not interpolated (scikit-learn's): the area under the steps drawn. A
    ring marks the greatest recall with a precision of at least `min_precision`, and its threshold. The dashed line is
    the precision of calling every image a crossing. Without a positive image there is no curve. The note stands below.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from sklearn.metrics import average_precision_score

    p, positive = np.asarray(probability, dtype=float), np.asarray(label) == 1
    share = float(positive.mean()) if len(p) else 0.0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN_IN, ONE_COLUMN_IN), layout="constrained")
        axes = figure.add_subplot()
        if positive.any():
            precision, recall, threshold = precision_recall_curve(p, positive)
            ap = average_precision_score(positive, p)
            axes.plot(
                [*recall, 0],  # the steps end at recall 0 and precision 1, a point that no threshold gives
                [*precision, 1],
                drawstyle="steps-post",
                color=BLUE,
                clip_on=False,
                label=f"{title_of('average_precision')} {ap:.3f}",
            )
            enough = np.flatnonzero(precision >= min_precision)
            if len(enough):
                best = enough[np.argmax(recall[enough])]
                axes.plot(
                    [recall[best]],
                    [precision[best]],
                    linestyle="none",
                    marker="o",
                    markersize=7,
                    markerfacecolor="none",
                    markeredgecolor=VERMILLION,
                    clip_on=False,
                    zorder=3,
                    label=f"recall {recall[best]:.3f} at precision ≥ {min_precision:g} (p ≥ {threshold[best]:.2f})",
                )
            else:
                axes.plot([], [], linestyle="none", label=f"precision {min_precision:g} is never reached")
            axes.axhline(
                share, color=GREY, linestyle="--", linewidth=0.8, label=f"all called crossings: {share:.2f}"
            )
        else:
            what = f"no crossing among {len(p):,} images:\nthere is no recall"
            axes.text(0.5, 0.5, what, ha="center", va="center")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        axes.set_xlabel(f"recall (crossings: {positive.sum():,})")
        axes.set_ylabel(f"precision (images: {len(p):,})")
        axes.grid(color="#e5e5e5", linewidth=0.5)
        axes.set_axisbelow(True)
        if positive.any():
            figure.legend(loc="outside upper left", fontsize=7)
        note_below(figure, note, ONE_COLUMN_IN)
    return figure


def watershed(
    image: Floats,
    channels: Sequence[str],
    boxes: ArrayLike,
    predicted: ArrayLike,
    scores: ArrayLike,
    *,
    metres_per_pixel: float = 1.0,
    min_iou: float = MIN_IOU,
    title: str = "",
) -> Figure:
    """A watershed (C, H, W) with its true boxes (n, 4), the predicted ones (m, 4) with scores (m,), and a scale bar.

    match() decides which boxes are found. Missed crossings and false alarms carry a marker. Scores are printed for up
    to SCORED boxes.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    true, claimed = known_boxes(boxes), known_boxes(predicted)
    score = np.asarray(scores, dtype=float)[are_known(predicted)]
    hit = match(true, claimed, score, min_iou=min_iou)
    missed = np.setdiff1d(np.arange(len(true)), hit)
    pixels, lines = image.shape[2], image.shape[1]
    width = TWO_COLUMNS_IN if max(pixels, lines) > 512 else ONE_COLUMN_IN
    height = min(1.3 * width, width * lines / pixels)
    width = max(ONE_COLUMN_IN, height * pixels / lines)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height + 0.5), layout="constrained")
        axes = figure.add_subplot()
        _show(axes, image, channels)
        _boxes(axes, true, (pixels, lines), TRUE, "-")
        _boxes(axes, claimed, (pixels, lines), PREDICTED, DASHES)
        handles: list[Any] = [
            _handle(TRUE, "-", f"true: {len(true)}, {len(true) - len(missed)} found"),
            _handle(PREDICTED, DASHES, f"predicted: {len(claimed)}"),
        ]
        for wrong, marker, what in (
            (true[missed], "v", "missed"),
            (claimed[hit < 0], "X", "false alarm"),
        ):
            if not len(wrong):
                continue
            style: dict[str, Any] = {
                "linestyle": "none",
                "marker": marker,
                "markersize": 6,
                "markerfacecolor": VERMILLION,
                "markeredgecolor": "white",
                "markeredgewidth": 0.6,
            }
            top = (wrong[:, 1] - wrong[:, 3] / 2) * lines - 0.012 * max(pixels, lines)
            axes.plot(wrong[:, 0] * pixels, top, zorder=4, **style)
            handles.append(Line2D([], [], label=f"{what}: {len(wrong)}", **style))
        if len(claimed) <= SCORED:
            for (x, y, w, h), value in zip(claimed, score, strict=True):
                _text(axes, (x + w / 2) * pixels, (y + h / 2) * lines, f"{value:.2f}", ha="left", va="top")
        _scale_bar(axes, pixels, lines, metres_per_pixel)
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=4 if width > 5 else 2,
            title=textwrap.fill(for_figure(title), int(14 * width)) or None,
            alignment="left",
        )
    return figure


def picture(image: Floats, channels: Sequence[str]) -> Floats:
    """Turn an image (C, H, W) into a picture with values 0..1: colours (H, W, 3), shaded relief or a grey band (H, W).

    It shows red, green and blue if the image has them, else the elevation (dem) lit from the north-west, else the first
    channel. Grey values and colours run from the 1st to the 99th percentile, of all three colours together.
    """
    place = {name: number for number, name in enumerate(channels)}
    if {"red", "green", "blue"} <= set(place):
        return _stretched(np.stack([image[place[name]] for name in ("red", "green", "blue")], axis=-1))
    if "dem" in place:
        return _relief(image[place["dem"]])
    return _stretched(image[0])


def _stretched(band: Floats) -> Floats:
    low, high = np.nanpercentile(band, [1, 99])
    if not high > low:
        return np.full(band.shape, 0.5)
    return np.nan_to_num(np.clip((band - low) / (high - low), 0, 1))


def _relief(dem: Floats) -> Floats:
    """Hillshade, sun at azimuth 315 and height 45 degrees (Horn 1981, doi 10.1109/PROC.1981.11918).

    The unit of a normalised elevation is not known: slopes are scaled so that steep ones (95 %) are 45 degrees.
    """
    down, right = np.gradient(np.asarray(dem, dtype=float))
    steep = float(np.nanpercentile(np.hypot(down, right), 95)) or float(np.nanmax(np.hypot(down, right)))
    if not steep > 0:
        return np.full(dem.shape, 0.5)
    down, right = down / steep, right / steep
    # the normal is (-right, -down, 1), the light comes from (-1, -1, sqrt 2) / 2
    lit = (right + down + math.sqrt(2)) / (2 * np.sqrt(1 + right**2 + down**2))
    return np.nan_to_num(np.clip(lit, 0, 1))


def _show(axes: Axes, image: Floats, channels: Sequence[str]) -> None:
    lines, pixels = image.shape[1:]
    axes.imshow(picture(image, channels), cmap="gray", vmin=0, vmax=1, extent=(0, pixels, lines, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, pixels), ylim=(lines, 0), anchor="N")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _halo(width: float) -> Any:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=width, foreground="black")]


def _boxes(axes: Axes, boxes: ArrayLike, size: tuple[int, int], colour: str, dashes: Any) -> None:
    from matplotlib.patches import Rectangle

    for x, y, w, h in known_boxes(boxes) * [*size, *size]:
        box = Rectangle(
            (x - w / 2, y - h / 2), w, h, fill=False, edgecolor=colour, linewidth=1.1, linestyle=dashes
        )
        box.set_path_effects(_halo(2.0))
        axes.add_patch(box)


def _handle(colour: str, dashes: Any, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=1.1, linestyle=dashes, label=label, path_effects=_halo(2.0))


def _text(axes: Axes, x: float, y: float, text: str, **where: Any) -> None:
    axes.text(x, y, text, color="white", fontsize=6, path_effects=_halo(1.5), clip_on=True, **where)


def _scale_bar(axes: Axes, pixels: int, lines: int, metres_per_pixel: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten metres, at most a quarter of the width, in the lower left corner."""
    most = pixels * metres_per_pixel / 4
    power = 10.0 ** math.floor(math.log10(most))
    metres = next(step * power for step in (5, 2, 1) if step * power <= most)
    x, y, length = 0.03 * pixels, lines - 0.03 * pixels, metres / metres_per_pixel
    axes.plot(
        [x, x + length], [y, y], color="white", linewidth=2, solid_capstyle="butt", path_effects=_halo(3.2)
    )
    label = f"{metres:g} m" if metres < 1000 else f"{metres / 1000:g} km"
    _text(axes, x + length / 2, y - 0.01 * pixels, label, ha="center", va="bottom")
