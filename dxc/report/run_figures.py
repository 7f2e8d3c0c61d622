"""Figures of one run. One that cannot be drawn costs a line among the run's notes, and no run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.config.plan import Plan
from dxc.evaluation.answers import (
    PROBABILITY,
    is_right,
    predicted_label,
    probabilities_of,
    probability_of_truth,
)

if TYPE_CHECKING:
    import pandas as pd

    from dxc.data.images import Images
    from dxc.hardware.costs import Costs

log = logging.getLogger(__name__)

CHIPS_SHOWN = 12
"""Chips on a sheet."""


def draw_run(
    plan: Plan, noun: str, cache: Images, predictions: pd.DataFrame, out: Path, *, chips: bool = True
) -> list[str]:
    """Draw what a run was trained on and what it answered: chips, confusion_matrix, precision_recall, most_wrong, and
    of a detector samples.

    Args:
        plan: what was trained.
        noun: what the chips are; see Source.noun.
        cache: the chips.
        predictions: out-of-fold predictions as in dxc.pipeline.result.Result; their index numbers chips of the cache.
        out: the folder for the files.
        chips: whether to draw the sheet of chips; a study has one for all its trials.

    Returns:
        Notes on figures that could not be drawn.
    """
    caption = f"{plan.name}. {judged_on(predictions, noun)}."
    drawers: dict[str, Callable[[], object]] = {
        "confusion_matrix": lambda: _draw_confusion(cache, predictions, caption, out),
        "most_wrong": lambda: _draw_most_wrong(plan, noun, cache, predictions, caption, out),
    }
    if chips:
        drawers = {"chips": lambda: draw_chips(plan, noun, cache, out), **drawers}
    if PROBABILITY in predictions:  # of one class, which there is with two
        drawers["precision_recall"] = lambda: _draw_precision_recall(plan, predictions, caption, out)
    if cache.has_boxes:
        drawers["samples"] = lambda: _draw_samples(plan, cache, predictions, caption, out)
    return [note for name, draw in drawers.items() for note in drawn_or_noted(name, draw)]


def drawn_or_noted(name: str, draw: Callable[[], object]) -> list[str]:
    """Draw a figure; a line that says why where it cannot be drawn, whatever was raised.

    Args:
        name: of the figure.
        draw: draws and writes it.
    """
    try:
        draw()
    except Exception as error:  # of a picture that is missing, nothing else depends
        log.debug("the figure %s was not drawn", name, exc_info=True)
        return [f"figure {name} was not drawn: {type(error).__name__}: {error}"]
    return []


def judged_on(predictions: pd.DataFrame, noun: str) -> str:
    """For captions: '400 synthetic chips, each judged by a network that was not trained on it (fold1, fold2)'.

    Args:
        predictions: out-of-fold predictions with a column fold.
        noun: what the chips are; see Source.noun.
    """
    names = sorted(set(predictions["fold"]), key=lambda name: (len(name), name))  # fold10 after fold9
    folds = ", ".join(names) if len(names) <= 5 else f"{len(names)} folds, {names[0]} to {names[-1]}"
    return f"{len(predictions):,} {noun}, each judged by a network that was not trained on it ({folds})"


def draw_chips(plan: Plan, noun: str, cache: Images, out: Path, *, stem: str = "chips") -> None:
    """Draw a sheet of a few chips.

    Args:
        plan: what is trained on them.
        noun: what the chips are; see Source.noun.
        cache: the chips.
        out: the folder for the file.
        stem: name of the file without its ending.
    """
    from dxc.data.sample import sample_of_cache
    from dxc.report.chip_sheet import draw_chip_sheet

    sample = sample_of_cache(cache, plan.data.channels, CHIPS_SHOWN)
    draw_chip_sheet(sample, out, stem=stem, source=noun)


def _draw_confusion(cache: Images, predictions: pd.DataFrame, caption: str, out: Path) -> None:
    from dxc.report.confusion import confusion_matrix
    from dxc.report.figures import save

    figure = confusion_matrix(
        probabilities_of(predictions),
        predictions["label"],
        classes=cache.classes,
        unit=cache.unit,
        note=caption,
    )
    save(figure, out, "confusion_matrix", kinds=("png",))


def _draw_precision_recall(plan: Plan, predictions: pd.DataFrame, caption: str, out: Path) -> None:
    from dxc.report.detections import precision_recall
    from dxc.report.figures import save

    if not predictions["label"].any():
        return  # there is no recall without a crossing
    precision = plan.task.argument("min_precision")
    least = {} if precision is None else {"min_precision": precision}
    save(
        precision_recall(predictions["probability"], predictions["label"], note=caption, **least),
        out,
        "precision_recall",
    )


def _draw_most_wrong(
    plan: Plan, noun: str, cache: Images, predictions: pd.DataFrame, caption: str, out: Path
) -> None:
    """Draw the chips whose true class got the least probability."""
    from dxc.evaluation.average_precision import BOX
    from dxc.report.chip_sheet import Row, chip_sheet, most_wrong, save_sheet

    rows = []
    probability, label = probabilities_of(predictions), predictions["label"].to_numpy()
    right, answers = is_right(probability, label), predicted_label(probability)
    shown = probability if probability.ndim == 1 else probability_of_truth(probability, label)
    two = probability.ndim == 1
    for place in most_wrong(probability, label, CHIPS_SHOWN):
        each = predictions.iloc[place]
        index = [predictions.index[place]]
        wrongly = ("missed" if each["label"] else "false alarm") if two else cache.classes[answers[place]]
        answer = "right" if right[place] else wrongly if two else f"says {wrongly}"
        lines = [
            cache.classes[each["label"]],
            answer,
            f"p {shown[place]:.3f}",
            str(each["fold"]) if each["fold"] == each["region"] else f"{each['fold']}, {each['region']}",
            str(each["name"]),
        ]
        boxes = {"boxes": cache.boxes(index)[0]} if cache.has_boxes else {}
        if BOX[0] in predictions:
            boxes["predicted"] = each[list(BOX)].to_numpy(dtype=float)
        rows.append(Row(cache.images(index)[0], lines, **boxes))
    wrong = int((~right).sum())
    rule = "a crossing is predicted where p > 0.5" if two else "the likeliest class is predicted"
    title = f"The {len(rows)} most wrong of {len(right):,} {noun}: {wrong:,} are wrong ({rule})"
    note = f"{caption} p: probability of {'a crossing' if two else 'the true class'}."
    save_sheet(chip_sheet(rows, plan.data.channels, title=title, note=note), out, "most_wrong")


def _draw_samples(plan: Plan, cache: Images, predictions: pd.DataFrame, caption: str, out: Path) -> None:
    """Draw a detector's hits, misses and false alarms with true and predicted boxes."""
    import numpy as np
    import torch

    from dxc.evaluation.average_precision import BOX
    from dxc.evaluation.boxes import best_iou
    from dxc.evaluation.match import Sample
    from dxc.report.detections import choose_samples, samples
    from dxc.report.figures import save

    probability, label = (predictions[name].to_numpy() for name in ("probability", "label"))
    claimed = torch.tensor(predictions[list(BOX)].to_numpy(dtype=float))
    overlap = best_iou(claimed, torch.tensor(cache.boxes(predictions.index.to_numpy()), dtype=claimed.dtype))
    shown = []
    for place in choose_samples(probability, label, overlap=overlap.numpy()):
        row, index = predictions.iloc[place], np.array([predictions.index[place]])
        box = row[list(BOX)].to_numpy(dtype=float)
        shown.append(
            Sample(cache.images(index)[0], cache.boxes(index)[0], box, row["probability"], row["name"])
        )
    save(samples(shown, plan.data.channels, note=caption), out, "samples")


def draw_efficiency(plan: Plan, costs: Costs, out: Path) -> list[str]:
    """Plot measured time per image against batch size, where it was measured; returns notes like draw_run."""
    from dxc.report.efficiency import efficiency
    from dxc.report.figures import save

    if costs.efficiency is None:
        return []
    table = {plan.name: costs.efficiency.table()}
    return drawn_or_noted(
        "efficiency", lambda: save(efficiency(table, title=costs.tags["dxc.measured_on"]), out, "efficiency")
    )
