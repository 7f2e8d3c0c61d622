"""Answers of two classes and of more, in arrays and in tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dxc.evaluation.answers import (
    is_right,
    predicted_label,
    probabilities_of,
    probability_columns,
    probability_of_truth,
)
from dxc.evaluation.bootstrap import Outcomes
from dxc.evaluation.few_chips import notes_on_few_chips

THREE = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])


def test_two_classes_and_three() -> None:
    assert predicted_label([0.5, 0.51]).tolist() == [0, 1]
    assert is_right([0.5, 0.5, 0.51, 0.49], [0, 1, 1, 1]).tolist() == [True, False, True, False]
    np.testing.assert_allclose(probability_of_truth([0.2, 0.2], [0, 1]), [0.8, 0.2])
    assert predicted_label(THREE).tolist() == [1, 0, 2]
    assert is_right(THREE, [1, 1, 2]).tolist() == [True, False, True]
    assert probability_of_truth(THREE, [1, 1, 0]).tolist() == [0.5, 0.3, 0.1]


def _table() -> pd.DataFrame:
    columns = probability_columns(["a", "b", "c"])
    about = {"region": "test", "name": ["0", "1", "2"], "label": [1, 1, 2], "fold": "given"}
    return pd.DataFrame({**about, **dict(zip(columns, THREE.T, strict=True))})


def test_tables() -> None:
    assert probabilities_of(_table()).tolist() == THREE.tolist()
    assert probabilities_of(pd.DataFrame({"probability": [0.1]})).tolist() == [0.1]
    with pytest.raises(KeyError):
        probabilities_of(pd.DataFrame({"label": [0]}))
    outcomes = Outcomes.of_predictions(_table())
    assert outcomes.right.tolist() == [True, False, True] and outcomes.accuracy == pytest.approx(2 / 3)


def test_notes_name_classes() -> None:
    wide, small = notes_on_few_chips(_table(), [0, 1, 2], classes=["a", "b", "c"], unit="image")
    assert wide.startswith("3 images: accuracy 0.67 means anything from")
    assert small == "small fold: given validates 0 images of a and 2 of b; its accuracy says little"
