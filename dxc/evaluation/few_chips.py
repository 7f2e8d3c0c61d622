"""Says where an accuracy comes from too few chips, or from folds too uneven, to mean anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxc.text import counted

if TYPE_CHECKING:
    import pandas as pd

FEW_OF_A_CLASS = 10
"""A fold that validates fewer chips of a class says little: one chip more or less moves its accuracy by several %."""
WIDE = 0.2
"""An interval of the accuracy from there on is said: designs of a search differ by less."""
LOPSIDED = 0.75
"""Share of a fold's chips that are of one class, from which on its accuracy mostly says how often that class comes."""
MORE_THAN_OVERALL = 0.1
"""A fold is lopsided only where that share exceeds the same class's share of all chips by so much."""
NAMED = 3  # folds that a note names


def is_right(probability: ArrayLike, label: ArrayLike) -> NDArray[np.bool_]:
    """Which predictions (n,) are right: a crossing is predicted above a probability of 0.5, as accuracy and F1 count.

    Args:
        probability: (n,) of a crossing.
        label: (n,) 1 = crossing, 0 = none.
    """
    return (np.asarray(probability) > 0.5) == (np.asarray(label) == 1)


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


def notes_on_few_chips(predictions: pd.DataFrame, groups: ArrayLike) -> list[str]:
    """Lines that say what the accuracy of a run can mean; none where it rests on enough chips.

    Args:
        predictions: out-of-fold predictions, one row a validated chip: label (0 | 1), fold, probability.
        groups: numbers (n,) in the order of the rows, equal for chips that show the same ground.
    """
    if predictions.empty:
        return []
    folds = predictions["fold"].to_numpy()
    positive = predictions["label"].to_numpy() == 1
    counts = {
        fold: (int((~positive)[folds == fold].sum()), int(positive[folds == fold].sum()))
        for fold in dict.fromkeys(folds)
    }
    total, right = len(predictions), int(is_right(predictions["probability"], predictions["label"]).sum())
    low, high = wilson_interval(right, total)
    overall = np.array([(~positive).mean(), positive.mean()])
    lopsided = {fold: both for fold, both in counts.items() if _is_lopsided(both, overall)}
    few = {
        fold: both
        for fold, both in counts.items()
        if min(both) < FEW_OF_A_CLASS and fold not in lopsided  # a fold is said once
    }

    notes = []
    if high - low > WIDE:
        notes.append(
            f"{counted(total, 'chip')}: accuracy {right / total:.2f} means anything from {low:.2f} to {high:.2f} (95 % "
            "interval, Wilson). Add chips before designs are compared"
        )
    if few:
        alone = len(counts) == 1
        says = (
            "its accuracy says"
            if alone
            else "an accuracy of so few and the spread over folds (accuracy_std) say"
        )
        notes.append(f"small {'fold' if alone else 'folds'}: {_listed(few)}; {says} little")
    if lopsided:
        fold, both = max(lopsided.items(), key=lambda item: max(item[1]) / sum(item[1]))
        answer = "no crossing" if both[0] > both[1] else "crossing"
        notes.append(
            f"uneven {'fold' if len(lopsided) == 1 else 'folds'}: {_listed(lopsided)}. A network that always says "
            f"'{answer}' has an accuracy of {max(both) / sum(both):.2f} in {fold}"
        )
    sizes = np.unique(np.asarray(groups), return_counts=True)[1]
    shared = sizes[sizes > 1]
    if notes and len(shared):
        notes.append(
            f"{shared.sum()} of {total} chips overlap another on the ground, in {len(shared)} "
            f"{'group' if len(shared) == 1 else 'groups'} that no split divides: they count as fewer chips, and "
            "accuracies are less certain than their number says. Cut fewer chips of the same ground, or add chips "
            "elsewhere"
        )
    return notes


def _is_lopsided(counts: tuple[int, int], overall: np.ndarray) -> bool:
    if sum(counts) < 2 * FEW_OF_A_CLASS:
        return False  # it is small before it is uneven
    shares = np.array(counts) / sum(counts)
    larger = int(shares.argmax())
    return bool(shares[larger] >= LOPSIDED and shares[larger] > overall[larger] + MORE_THAN_OVERALL)


def _listed(counts: dict[str, tuple[int, int]]) -> str:
    """'fold1 validates 3 chips with a crossing and 20 without; fold2 ...'"""
    said = [
        f"{fold} validates {counted(with_one, 'chip')} with a crossing and {without} without"
        for fold, (without, with_one) in list(counts.items())[:NAMED]
    ]
    further = len(counts) - NAMED
    return "; ".join(said) + (f"; and {further} more" if further > 0 else "")
