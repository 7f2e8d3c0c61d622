"""Says where an accuracy comes from too few chips, or from folds too uneven, to mean anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dxc.evaluation.answers import is_right, probabilities_of
from dxc.text import counted

if TYPE_CHECKING:
    import pandas as pd

FEW_OF_A_CLASS = 10
"""A fold that validates fewer chips of a class says little: one chip more or less moves its accuracy by several %."""
WIDE = 0.2
"""An interval of the accuracy from there on is said: designs of a search differ by less."""
LOPSIDED = 0.75
"""Share of a fold's chips that are of one class, from which on its accuracy mostly says how often that class comes."""
UNBALANCED = 2 / 3
"""Share of all chips that are of one class, from which on that is said: half of the chips is what is usual."""
MORE_THAN_OVERALL = 0.1
"""A fold is lopsided only where that share exceeds the same class's share of all chips by so much."""
NAMED = 3  # folds that a note names
CROSSING = ("no crossing", "crossing")
"""The classes of chips, by label."""


def wilson_interval(right: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share by Wilson (1927), doi 10.1080/01621459.1927.10502953; good for few chips and any share.

    Args:
        right: chips that were predicted rightly.
        count: chips that were predicted, at least 1.
        confidence: of the interval, between 0 and 1.
    """
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def notes_on_few_chips(
    predictions: pd.DataFrame,
    groups: ArrayLike,
    *,
    classes: Sequence[str] = CROSSING,
    unit: str = "chip",
) -> list[str]:
    """Lines that say what the accuracy of a run can mean; none where it rests on enough chips.

    Args:
        predictions: out-of-fold predictions, one row a validated chip: label, fold, and those of probability_columns.
        groups: numbers (n,) in the order of the rows, equal for chips that show the same ground.
        classes: names by label.
        unit: what an image is called: chip or image.
    """
    if predictions.empty:
        return []
    folds, labels = predictions["fold"].to_numpy(), predictions["label"].to_numpy()
    counts = {
        fold: tuple(np.bincount(labels[folds == fold], minlength=len(classes)).tolist())
        for fold in dict.fromkeys(folds)
    }
    total, right = len(predictions), int(is_right(probabilities_of(predictions), labels).sum())
    low, high = wilson_interval(right, total)
    overall = np.bincount(labels, minlength=len(classes)) / total
    lopsided = {fold: each for fold, each in counts.items() if _is_lopsided(each, overall)}
    few = {
        fold: each
        for fold, each in counts.items()
        if min(each) < FEW_OF_A_CLASS and fold not in lopsided  # a fold is said once
    }

    notes = []
    if high - low > WIDE:
        notes.append(
            f"{counted(total, unit)}: accuracy {right / total:.2f} means anything from {low:.2f} to {high:.2f} (95 % "
            f"interval, Wilson). Add {unit}s before designs are compared"
        )
    if few:
        alone = len(counts) == 1
        says = (
            "its accuracy says"
            if alone
            else "an accuracy of so few and the spread over folds (accuracy_std) say"
        )
        notes.append(f"small {'fold' if alone else 'folds'}: {_listed(few, classes, unit)}; {says} little")
    larger = int(overall.argmax())
    if len(classes) == 2 and overall[larger] >= UNBALANCED and not lopsided:
        notes.append(
            f"{round(overall[larger] * total)} of {total} {unit}s are of the class '{classes[larger]}': a network that "
            f"always says '{classes[larger]}' has an accuracy of {overall[larger]:.2f}. "
            "Compare designs by f1 or average_precision too"
        )
    if lopsided:
        fold, each = max(lopsided.items(), key=lambda item: max(item[1]) / sum(item[1]))
        notes.append(
            f"uneven {'fold' if len(lopsided) == 1 else 'folds'}: {_listed(lopsided, classes, unit)}. A network that "
            f"always says '{classes[int(np.argmax(each))]}' has an accuracy of {max(each) / sum(each):.2f} in {fold}"
        )
    sizes = np.unique(np.asarray(groups), return_counts=True)[1]
    shared = sizes[sizes > 1]
    if notes and len(shared):
        notes.append(
            f"{shared.sum()} of {total} {unit}s overlap another on the ground, in {len(shared)} "
            f"{'group' if len(shared) == 1 else 'groups'} that no split divides: they count as fewer chips, and "
            "accuracies are less certain than their number says. Cut fewer chips of the same ground, or add chips "
            "elsewhere"
        )
    return notes


def _is_lopsided(counts: Sequence[int], overall: np.ndarray) -> bool:
    if sum(counts) < 2 * FEW_OF_A_CLASS:
        return False  # it is small before it is uneven
    shares = np.array(counts) / sum(counts)
    larger = int(shares.argmax())
    return bool(shares[larger] >= LOPSIDED and shares[larger] > overall[larger] + MORE_THAN_OVERALL)


def _listed(counts: Mapping[str, Sequence[int]], classes: Sequence[str], unit: str) -> str:
    """'fold1 validates 3 chips with a crossing and 20 without; fold2 ...'"""
    said = [f"{fold} validates {_said(each, classes, unit)}" for fold, each in list(counts.items())[:NAMED]]
    further = len(counts) - NAMED
    return "; ".join(said) + (f"; and {further} more" if further > 0 else "")


def _said(counts: Sequence[int], classes: Sequence[str], unit: str) -> str:
    if tuple(classes) == CROSSING:
        without, with_one = counts
        return f"{counted(with_one, unit)} with a crossing and {without} without"
    least, most = int(np.argmin(counts)), int(np.argmax(counts))
    return f"{counted(counts[least], unit)} of {classes[least]} and {counts[most]} of {classes[most]}"
