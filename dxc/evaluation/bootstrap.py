"""Uncertainty of accuracies and average precisions: bootstrap over the validation chips of a design, or over its
folds, and paired comparisons.

Designs that were evaluated on the same chips in the same folds are drawn together. A draw that favours one of them
favours the others too, so the difference between two is more certain than each accuracy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
    """What one run answered to its chips: which it classified correctly, and how it ranked them.

    Without predictions only the accuracy of each fold is known. Then `right` holds the accuracies, `fold` the positions
    of the folds, and `chips` begins with FOLDS.

    Attributes:
        right: (chips,) bool, out of fold.
        fold: (chips,) position of each chip's fold.
        chips: hash of the chips and of their folds.
        probability: (chips,) of a crossing, out of fold; empty where it is not known, and with more than two classes.
        label: (chips,) bool, whether there is a crossing; empty likewise.
    """

    right: NDArray[np.bool_] | Floats
    fold: NDArray[np.int64]
    chips: str
    probability: NDArray[np.floating] = field(default_factory=lambda: np.empty(0))
    label: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))

    @classmethod
    def of_predictions(cls, predictions: pd.DataFrame) -> Outcomes:
        """Make outcomes from one row a chip: columns region, name, label, fold, and those of probability_columns."""
        ordered = predictions.sort_values(["region", "name", "fold"], kind="stable")
        _, fold = np.unique(ordered["fold"].to_numpy(dtype=str), return_inverse=True)
        names = ordered["region"].astype(str) + "/" + ordered["name"].astype(str)
        content = "\n".join([*names, *map(str, fold)])
        digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
        probability, label = probabilities_of(ordered), ordered["label"].to_numpy()
        outcomes = cls(is_right(probability, label), fold.astype(np.int64), digest)
        if probability.ndim == 1:  # average precision is that of one class, which there is with two
            return replace(outcomes, probability=probability, label=label == 1)
        return outcomes

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

    def of_runs(runs: Sequence[Outcomes], rng: np.random.Generator) -> Floats:
        weights = _weights(runs[0], draws, rng)
        parts = [runs[start : start + AT_ONCE] for start in range(0, len(runs), AT_ONCE)]
        return np.concatenate([np.array([r.right for r in part], dtype=float) @ weights for part in parts])

    return _draws(designs, of_runs, draws=draws, seed=seed)


def average_precision_draws(designs: Sequence[Sequence[Outcomes]], *, draws: int, seed: int) -> Floats:
    """Bootstrap draws of the average precision of the pooled predictions, (designs, draws), as accuracy_draws does.

    It is scikit-learn's, not interpolated. A design with a repeat of which no probability is known is NaN, and so is a
    draw without a crossing.

    Args:
        designs: the outcomes of each design's repeats.
        draws: number of draws.
        seed: seed of the draws.
    """

    def of_runs(runs: Sequence[Outcomes], rng: np.random.Generator) -> Floats:
        counts = _counts(runs[0].fold, draws, rng)
        return np.array([_average_precision(run.probability, run.label, counts) for run in runs])

    known = [repeats if all(len(each.label) for each in repeats) else [] for repeats in designs]
    return _draws(known, of_runs, draws=draws, seed=seed)


def _average_precision(
    probability: NDArray[np.floating], label: NDArray[np.bool_], counts: NDArray[np.float32]
) -> Floats:
    """The average precision of chips (n,) that are each counted so often, (n, draws)."""
    order = np.argsort(-probability, kind="stable")
    ordered = probability[order]
    ends = np.flatnonzero(
        np.append(ordered[1:] != ordered[:-1], True)
    )  # chips of equal probability rank as one
    called = counts[order]
    found = np.where(label[order, None], called, np.float32(0))
    np.cumsum(called, axis=0, out=called)  # whole numbers: exact up to 2^24
    np.cumsum(found, axis=0, out=found)
    called, found = called[ends], found[ends]
    new = np.diff(found, axis=0, prepend=np.float32(0))
    np.maximum(called, 1, out=called)  # none is called, and none found
    with np.errstate(invalid="ignore"):
        return np.einsum("ij,ij->j", new, found / called, dtype=float) / found[-1]


def _draws(
    designs: Sequence[Sequence[Outcomes]],
    of_runs: Callable[[Sequence[Outcomes], np.random.Generator], Floats],
    *,
    draws: int,
    seed: int,
) -> Floats:
    """Draws of a score, (designs, draws).

    Args:
        designs: the outcomes of each design's repeats.
        of_runs: draws of the score of runs with the same chips, (runs, draws).
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
        drawn |= zip(members, of_runs([designs[n][m] for n, m in members], rng), strict=True)

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
    _, place, sizes = np.unique(outcomes.fold, return_inverse=True, return_counts=True)
    return _counts(outcomes.fold, draws, rng) / (sizes[place] * len(sizes))[:, None]


def _counts(fold: NDArray[np.int64], draws: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """How often each chip is drawn, (chips, draws): with replacement within its fold."""
    counts = np.empty((len(fold), draws), dtype=np.float32)
    for each in np.unique(fold):
        of_fold = np.flatnonzero(fold == each)
        counts[of_fold] = rng.multinomial(len(of_fold), np.full(len(of_fold), 1 / len(of_fold)), size=draws).T
    return counts


def probability_non_dominated(
    values: Floats, drawn: Floats, *, column: int, maximise: Sequence[bool]
) -> Floats:
    """For each row (n, objectives), the share of draws in which no other row dominates it.

    Args:
        values: (n, objectives).
        drawn: (n, draws) of a score; each draw replaces values[:, column]. A row without draws keeps its value and
            gets NaN.
        column: the column of the score.
        maximise: for each objective, whether more is better.

    """
    known = ~np.isnan(drawn).any(axis=1)
    current = np.array(values, dtype=float)
    count = np.zeros(len(current))
    for draw in drawn.T:
        current[known, column] = draw[known]
        count += non_dominated(current, maximise=maximise)
    return np.where(known, count / drawn.shape[1], np.nan)


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
