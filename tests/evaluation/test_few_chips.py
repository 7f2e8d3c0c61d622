"""What an accuracy of few chips can mean, against values worked out elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dxc.evaluation.answers import is_right
from dxc.evaluation.few_chips import notes_on_few_chips, wilson_interval


def predicted(folds: dict[str, tuple[int, int]], right: float = 0.5) -> pd.DataFrame:
    """Folds of (chips without, chips with a crossing), of which the first share is predicted rightly."""
    rows = [
        (fold, label, float(label) if number < round(right * count) else 1.0 - label)
        for fold, counts in folds.items()
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    return pd.DataFrame(rows, columns=["fold", "label", "probability"])


def notes(predictions: pd.DataFrame, groups: list[int] | None = None) -> list[str]:
    return notes_on_few_chips(predictions, groups or list(range(len(predictions))))


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    [
        (5, 10, (0.2366, 0.7634)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (1, 1, (0.2065, 1.0)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<857, method 3
    ],
)
def test_interval(right: int, count: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(right, count) == pytest.approx(interval, abs=5e-5)


def test_half_is_no_crossing() -> None:
    """As accuracy and F1 count it: the first of two equal scores wins."""
    assert is_right([0.5, 0.5, 0.51, 0.49], [0, 1, 1, 1]).tolist() == [True, False, True, False]


def test_ten_chips() -> None:
    interval, folds = notes(predicted({f"fold{n}": (1, 1) for n in range(1, 6)}, right=1))
    assert interval.startswith(
        "10 chips: accuracy 1.00 means anything from 0.72 to 1.00 (95 % interval, Wilson)."
    )
    assert folds.startswith("small folds: fold1 validates 1 chip with a crossing and 1 without; fold2")
    assert "; and 2 more; an accuracy of so few and the spread over folds (accuracy_std) say little" in folds


def test_enough_chips_need_no_words() -> None:
    assert notes(predicted({f"fold{n}": (40, 40) for n in range(5)}, right=0.8)) == []
    overlapping = np.arange(400) // 2
    assert notes(predicted({f"fold{n}": (40, 40) for n in range(5)}), overlapping.tolist()) == []
    assert notes(predicted({})) == []


def test_a_nearly_empty_fold_among_full_ones() -> None:
    """The interval over all is narrow, so that only the fold is said."""
    (line,) = notes(predicted({"NE": (200, 200), "ND": (12, 4)}, right=0.9))
    assert line.startswith("small folds: ND validates 4 chips with a crossing and 12 without; an accuracy")


def test_a_holdout_of_few() -> None:
    interval, fold = notes(predicted({"holdout": (2, 2)}))
    assert interval.startswith("4 chips: accuracy 0.50 means anything from 0.15 to 0.85")
    assert (
        fold
        == "small fold: holdout validates 2 chips with a crossing and 2 without; its accuracy says little"
    )


def test_overlapping_negatives_in_one_fold() -> None:
    """75 % of the chips without a crossing overlap in one piece, and validate in one fold."""
    frame = predicted({"fold1": (150, 40), "fold2": (25, 40), "fold3": (25, 40)}, right=0.8)
    groups = [0] * 150 + list(range(1, 171))
    uneven, overlaps = notes(frame, groups)
    assert uneven == (
        "uneven fold: fold1 validates 40 chips with a crossing and 150 without. A network that always says "
        "'no crossing' has an accuracy of 0.79 in fold1"
    )
    assert overlaps.startswith(
        "150 of 320 chips overlap another on the ground, in 1 group that no split divides"
    )


def test_a_fold_is_as_uneven_as_all_chips_are() -> None:
    """Nine of ten chips are without a crossing everywhere: the split has no part in that, but accuracy says less."""
    assert notes(predicted({"fold1": (180, 20), "fold2": (180, 20)}, right=0.9)) == [
        "360 of 400 chips are of the class 'no crossing': a network that always says 'no crossing' has an accuracy of "
        "0.90. Compare designs by f1 or average_precision too"
    ]
    assert notes(predicted({"fold1": (66, 34), "fold2": (66, 34)}, right=0.9)) == []
    assert len(notes(predicted({"fold1": (67, 33), "fold2": (67, 33)}, right=0.9))) == 1
