"""What classifiers answered: probabilities of two classes or of more, in arrays and in tables of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY = "probability"
"""Column of predictions of two classes: probability of label 1, of chips of a crossing. With more classes there is a
column PROBABILITY.NAME for each."""


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns with probabilities, in the order of the labels.

    >>> probability_columns(["no crossing", "crossing"]), probability_columns(["cat", "dog", "frog"])
    (['probability'], ['probability.cat', 'probability.dog', 'probability.frog'])
    """
    return [PROBABILITY] if len(classes) == 2 else [f"{PROBABILITY}.{name}" for name in classes]


def probabilities_of(predictions: pd.DataFrame) -> NDArray[np.floating]:
    """The probabilities in a table of predictions: (n,) of label 1 with two classes, else (n, classes).

    Args:
        predictions: with the columns of probability_columns. Raises KeyError without one.
    """
    if PROBABILITY in predictions:
        return predictions[PROBABILITY].to_numpy()
    columns = [name for name in map(str, predictions) if name.startswith(f"{PROBABILITY}.")]
    if not columns:
        raise KeyError(PROBABILITY)
    return predictions[columns].to_numpy()


def predicted_label(probability: ArrayLike) -> NDArray[np.int64]:
    """The label (n,) that is predicted: 1 above a probability of 0.5, as accuracy and F1 count; of more
    classes the likeliest.

    Args:
        probability: (n,) of label 1, or (n, classes).
    """
    probability = np.asarray(probability)
    found = probability.argmax(axis=1) if probability.ndim == 2 else probability > 0.5
    return found.astype(np.int64)


def is_right(probability: ArrayLike, label: ArrayLike) -> NDArray[np.bool_]:
    """Which predictions (n,) are right.

    Args:
        probability: as in predicted_label.
        label: (n,) 0, 1, ...; of chips 1 = crossing, 0 = none.
    """
    return predicted_label(probability) == np.asarray(label)


def probability_of_truth(probability: ArrayLike, label: ArrayLike) -> NDArray[np.floating]:
    """The probability (n,) that each true label was given.

    Args:
        probability: as in predicted_label.
        label: (n,) 0, 1, ...
    """
    probability, label = np.asarray(probability), np.asarray(label)
    if probability.ndim == 2:
        return probability[np.arange(len(label)), label]
    return 1 - np.abs(label - probability)
