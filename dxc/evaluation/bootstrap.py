"""Uncertainty of accuracies: bootstrap over the validation chips of a design, or over its folds, and paired
comparisons.

Designs that were evaluated on the same chips in the same folds are drawn together. A draw that favours one of them
favours the others too, so the difference between two is more certain than each accuracy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dxc.errors import AnalysisError
from dxc.evaluation.answers import is_right, probabilities_of
from dxc.pareto import non_dominated

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

FOLDS = "folds:"
"""Prefix of Outcomes.chips where only the accuracies of the folds are known."""
DECIMALS = (
    9  # of a drawn accuracy: equal accuracies tie, whatever the order of summation; one chip changes far more
)
AT_ONCE = 1024  # runs in one product of matrices


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Which chips one run classified correctly.

    Without predictions only the accuracy of each fold is known. Then `right` holds the accuracies, `fold` the positions
    of the folds, and `chips` begins with FOLDS.

    Attributes:
        right: (chips,) bool, out of fold.
        fold: (chips,) position of each chip's fold.
        chips: hash of the chips and of their folds.
    """

    right: NDArray[np.bool_] | Floats
    fold: NDArray[np.int64]
    chips: str

    @classmethod
    def of_predictions(cls, predictions: pd.DataFrame) -> Outcomes:
        """Make outcomes from one row a chip: columns region, name, label, fold, and those of probability_columns."""
        ordered = predictions.sort_values(["region", "name", "fold"], kind="stable")
        _, fold = np.unique(ordered["fold"].to_numpy(dtype=str), return_inverse=True)
        names = ordered["region"].astype(str) + "/" + ordered["name"].astype(str)
        content = "\n".join([*names, *map(str, fold)])
        right = is_right(probabilities_of(ordered), ordered["label"].to_numpy())
        return cls(right, fold.astype(np.int64), hashlib.blake2b(content.encode(), digest_size=8).hexdigest())

    @classmethod
    def of_folds(cls, accuracies: Sequence[float], judged_by: str = "") -> Outcomes:
        """Make outcomes from the accuracy of each fold, where predictions are missing.

        Args:
            accuracies: of the folds, fractions.
            judged_by: equal for runs with the same chips in the same folds.
        """
        return cls(np.array(accuracies, dtype=float), np.arange(len(accuracies)), f"{FOLDS}{judged_by}")

    @property
    def folds_only(self) -> bool:
        return self.chips.startswith(FOLDS)

    @property
    def accuracy(self) -> float:
        """Mean over folds of the share of correct chips."""
        return float(np.mean([self.right[self.fold == each].mean() for each in np.unique(self.fold)]))


def accuracy_draws(designs: Sequence[Sequence[Outcomes]], *, draws: int, seed: int) -> Floats:
    """Bootstrap draws of accuracies, (designs, draws). Efron and Tibshirani 1993, doi 10.1201/9780429246593.

    Chips are drawn with replacement within their fold. All runs with the same chips share the draw. Without
    predictions, folds are drawn. Repeats of a design are drawn too. A design without outcomes is NaN.

    Args:
        designs: the outcomes of each design's repeats.
        draws: number of draws.
        seed: seed of the draws.

    """
    rng = np.random.default_rng(seed)
    shared: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for n, repeats in enumerate(designs):
        for m, each in enumerate(repeats):
            shared.setdefault((each.chips, len(each.right)), []).append((n, m))
    drawn: dict[tuple[int, int], Floats] = {}
    for members in shared.values():
        first = designs[members[0][0]][members[0][1]]
        weights = _weights(first, draws, rng)
        for start in range(0, len(members), AT_ONCE):
            some = members[start : start + AT_ONCE]
            right = np.array([designs[n][m].right for n, m in some], dtype=float)
            drawn |= zip(some, right @ weights, strict=True)

    result = np.full((len(designs), draws), np.nan)
    for n, repeats in enumerate(designs):
        if repeats:
            own = np.array([drawn[n, m] for m in range(len(repeats))])
            share = rng.multinomial(len(repeats), np.full(len(repeats), 1 / len(repeats)), size=draws).T
            result[n] = (own * share).sum(axis=0) / len(repeats)
    return result.round(DECIMALS)


def _weights(outcomes: Outcomes, draws: int, rng: np.random.Generator) -> Floats:
    """Weight of each chip in each draw, (chips, draws). The weights of a fold add up to 1 / number of folds."""
    size = len(outcomes.right)
    if outcomes.folds_only:  # folds themselves are drawn
        return rng.multinomial(size, np.full(size, 1 / size), size=draws).T / size
    weights = np.empty((size, draws))
    folds = np.unique(outcomes.fold)
    for each in folds:
        of_fold = np.flatnonzero(outcomes.fold == each)
        counts = rng.multinomial(len(of_fold), np.full(len(of_fold), 1 / len(of_fold)), size=draws).T
        weights[of_fold] = counts / (len(of_fold) * len(folds))
    return weights


def probability_non_dominated(
    values: Floats, accuracy: Floats, *, column: int, maximise: Sequence[bool]
) -> Floats:
    """For each row (n, objectives), the share of draws in which no other row dominates it.

    Args:
        values: (n, objectives).
        accuracy: (n, draws); each draw replaces values[:, column]. A row without draws keeps its value and gets NaN.
        column: the column of the accuracy.
        maximise: for each objective, whether more is better.

    """
    known = ~np.isnan(accuracy).any(axis=1)
    current = np.array(values, dtype=float)
    count = np.zeros(len(current))
    for draw in accuracy.T:
        current[known, column] = draw[known]
        count += non_dominated(current, maximise=maximise)
    return np.where(known, count / accuracy.shape[1], np.nan)


class Comparison(NamedTuple):
    """Comparison of two designs on the same chips.

    Attributes:
        difference: accuracy of the first less that of the second; `low` and `high` are its 95 % bootstrap interval.
        only_first: number of chips that only the first classified correctly.
        only_second: number of chips that only the second classified correctly.
        p_value: of McNemar's exact test (Edwards 1948, doi 10.1007/BF02289261), whose null hypothesis is that both
            err equally often. NaN without predictions.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float


def compare(first: Outcomes, second: Outcomes, *, draws: int, seed: int) -> Comparison:
    """Compare two designs.

    Args:
        first: outcomes of one design.
        second: outcomes of the other.
        draws: number of bootstrap draws.
        seed: of the draws.

    Raises:
        AnalysisError: the designs were not evaluated on the same chips in the same folds.
    """
    if first.chips != second.chips or len(first.right) != len(second.right):
        raise AnalysisError(
            "the two designs were not evaluated on the same chips in the same folds: compare runs of one dxc.data "
            "with the same data.split, data.folds and data.fold_seed"
        )
    a, b = accuracy_draws([[first], [second]], draws=draws, seed=seed)
    low, high = np.quantile(a - b, [0.025, 0.975])
    difference = first.accuracy - second.accuracy
    if first.folds_only:
        return Comparison(difference, float(low), float(high), 0, 0, float("nan"))
    from scipy.stats import binomtest

    only_first = int((first.right.astype(bool) & ~second.right.astype(bool)).sum())
    only_second = int((second.right.astype(bool) & ~first.right.astype(bool)).sum())
    both = only_first + only_second
    p_value = float(binomtest(only_first, both).pvalue) if both else 1.0
    return Comparison(difference, float(low), float(high), only_first, only_second, p_value)
