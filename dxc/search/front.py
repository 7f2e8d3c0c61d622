"""search.tuner=pareto: train only what can still change the front.

Costs are known of every candidate before training; accuracy is not. A Gaussian process over knobs and costs predicts
accuracy with its uncertainty from what was trained so far, in full or in part. The next candidate is the one whose
expected hypervolume improvement (Emmerich et al. 2006, doi 10.1109/TEVC.2005.859463) per epoch still to be trained is
largest. It climbs one rung (fewer folds and epochs first), is judged again, and reaches the full protocol only if it
stays the best choice on every rung.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dxc.metrics import directions
from dxc.pareto import MARGIN, non_dominated
from dxc.search.states import Rung

Floats = NDArray[np.float64]
Seen = Mapping[str, Mapping[Rung, Sequence[float]]]
"""{candidate: {rung: accuracy of each of its folds}}"""

FIRST = 10  # candidates on the first rung before the surrogate is asked
PRIOR_FOLDS = 4  # weight of the prior beside what was seen of a rung's noise
PRIOR_FOLD_STD = 0.03  # accuracy of one fold about the mean of its design
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(7)  # quadrature over a normal distribution
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Candidates:
    """names: (n,) trials. knobs: (n, k) numbers the surrogate learns from. costs: (n, m) of the objectives in
    cost_names, known of all of them."""

    names: Sequence[str]
    knobs: Floats
    costs: Floats
    cost_names: Sequence[str]


class FrontSearch:
    """Chooses what to train next.

    ladder: rungs from the cheapest to the full protocol. Its only state is what it is shown: a search that was stopped
    goes on from its results.
    """

    def __init__(self, candidates: Candidates, ladder: Sequence[Rung], *, seed: int) -> None:
        self._candidates = candidates
        self._ladder = list(ladder)
        self._seed = seed
        self._position = {name: n for n, name in enumerate(candidates.names)}
        self._features = _standardise(np.column_stack([candidates.knobs, np.log(candidates.costs)]))
        worse = [not maximise for maximise in directions(candidates.cost_names)]
        self._losses = candidates.costs * np.where(worse, 1.0, -1.0)

    def next(
        self,
        seen: Seen,
        *,
        busy: Sequence[str] = (),
        without: Sequence[str] = (),
        count: int,
        epochs_left: int,
    ) -> list[tuple[str, Rung]]:
        """Up to `count` candidates with the rung each should climb; fewer where epochs_left (folds x epochs) do not
        suffice to bring more of them to the full protocol, none where nothing is left. busy: being trained already.
        without: not to be trained (they failed)."""
        level = np.full(len(self._candidates.names), -1)
        for name, rungs in seen.items():
            if name in self._position:
                level[self._position[name]] = max(
                    (self._ladder.index(r) for r in rungs if r in self._ladder), default=-1
                )
        open_ = level < len(self._ladder) - 1
        for name in (*busy, *without):
            if name in self._position:
                open_[self._position[name]] = False
        to_full = np.array([self._epochs_to_full(each) for each in level])
        chosen: list[tuple[str, Rung]] = []

        for n in self._first(level, open_, len(busy)):
            if len(chosen) == count:
                return chosen
            if open_[n] and to_full[n] <= epochs_left:
                chosen.append(self._step(n, level))
                open_[n] = False
                epochs_left -= to_full[n]
        if len(chosen) == count or not (level >= 0).any():
            return chosen

        mean, std = self._surrogate(seen, level)
        full = level == len(self._ladder) - 1
        front = np.column_stack([-mean[full], self._losses[full]])
        for name in busy:  # as if they had come out as expected
            if name in self._position:
                n = self._position[name]
                front = np.vstack([front, [-mean[n], *self._losses[n]]])
        while len(chosen) < count:
            # what is nearly trained may not rule out what can still be trained
            allowed = np.flatnonzero(open_ & (to_full <= epochs_left))
            if not len(allowed):
                break
            best = int(allowed[np.argmax(mean[allowed])])
            if mean[best] - std[best] > (-front[:, 0].min() if len(front) else 0.0):
                n = best  # clearly the most accurate: the end of the front, whose volume is small where it costs most
            else:
                gain = self._expected_improvement(front, allowed, mean, std) / to_full[allowed]
                if gain.max() <= 0:
                    gain = mean[allowed] + 2 * std[allowed]
                n = int(allowed[np.argmax(gain)])
            chosen.append(self._step(n, level))
            open_[n] = False
            epochs_left -= to_full[n]
            front = np.vstack([front, [-mean[n], *self._losses[n]]])
        return chosen

    def _step(self, n: int, level: NDArray[Any]) -> tuple[str, Rung]:
        return self._candidates.names[n], self._ladder[level[n] + 1]

    def _epochs_to_full(self, level: int) -> int:
        """Epochs that the remaining rungs cost a candidate; folds of the full length are kept from rung to rung."""
        return sum(epochs_of(self._ladder, rung) for rung in range(level + 1, len(self._ladder)))

    def _first(self, level: NDArray[Any], open_: NDArray[np.bool_], busy: int) -> list[int]:
        """The first candidates: one at random out of each of FIRST classes of cost, cheap to dear."""
        missing = FIRST - busy - int((level >= 0).sum())
        if missing <= 0:
            return []
        order = np.argsort(self._losses[:, 0], kind="stable")
        rng = np.random.default_rng(self._seed)
        picked = [int(rng.choice(part)) for part in np.array_split(order, min(FIRST, len(order)))]
        return [n for n in picked if level[n] < 0 and open_[n]][:missing]

    def _surrogate(self, seen: Seen, level: NDArray[Any]) -> tuple[Floats, Floats]:
        """Mean and standard deviation of every candidate's accuracy under the full protocol."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern

        rows, values, noise = [], [], []
        offsets, variances = self._rungs(seen)
        for name in sorted(seen, key=lambda name: self._position.get(name, -1)):
            n = self._position.get(name, -1)
            if n < 0 or level[n] < 0:
                continue
            rung = self._ladder[level[n]]
            rows.append(n)
            values.append(float(np.mean(seen[name][rung])) + offsets[rung])
            noise.append(variances[rung])
        y, x = np.array(values), self._features[rows]
        centre, scale = y.mean(), max(y.std(), 1e-3)
        kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern(
            np.full(x.shape[1], 2.0), length_scale_bounds=(0.3, 30.0), nu=2.5
        )
        model = GaussianProcessRegressor(kernel, alpha=np.array(noise) / scale**2, random_state=self._seed)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # a length scale at its bound: a knob that does nothing
            model.fit(x, (y - centre) / scale)
        mean, std = model.predict(self._features, return_std=True)
        return mean * scale + centre, std * scale

    def _rungs(self, seen: Seen) -> tuple[dict[Rung, float], dict[Rung, float]]:
        """For each rung, what to add to its accuracy to expect the full protocol's, and the variance about that.

        Both from candidates that were seen on the rung and on the last; a prior of no difference and PRIOR_FOLD_STD
        stands in for those that are not there yet.
        """
        last = self._ladder[-1]
        spread = [float(np.var(r[last], ddof=1)) for r in seen.values() if last in r and len(r[last]) > 1]
        fold_variance = (sum(spread) + PRIOR_FOLDS * PRIOR_FOLD_STD**2) / (len(spread) + PRIOR_FOLDS)
        offsets, variances = {last: 0.0}, {last: fold_variance / last.folds}
        for rung in self._ladder[:-1]:
            pairs = [np.mean(r[last]) - np.mean(r[rung]) for r in seen.values() if last in r and rung in r]
            offsets[rung] = float(np.sum(pairs) / (len(pairs) + 1))
            missing = last.epochs / rung.epochs  # fewer epochs say less
            prior = fold_variance * missing / rung.folds
            about = [(pair - offsets[rung]) ** 2 for pair in pairs]
            variances[rung] = float((sum(about) + PRIOR_FOLDS * prior) / (len(about) + PRIOR_FOLDS))
            variances[rung] += variances[last]
        return offsets, variances

    def _expected_improvement(self, front: Floats, which: NDArray[Any], mean: Floats, std: Floats) -> Floats:
        """Expected hypervolume improvement of the candidates `which` over `front` (losses, accuracy first).

        The reference point is dxc.pareto's, with the range that accuracy may still have.
        """
        from moocore import Hypervolume

        lowest = min(-front[:, 0].max() if len(front) else 1.0, float((mean - 2 * std).min()))
        highest = max(-front[:, 0].min() if len(front) else 0.0, float(mean.max()))
        worst, ranges = self._losses.max(axis=0), np.ptp(self._losses, axis=0)
        reference = np.array([-lowest + MARGIN * (highest - lowest), *(worst + MARGIN * ranges + 1e-12)])
        if len(front):
            front = front[non_dominated(front, maximise=[False] * front.shape[1])]
        volume = Hypervolume(ref=reference)
        before = volume(front) if len(front) else 0.0
        gains = np.zeros(len(which))
        for place, n in enumerate(which):
            for node, weight in zip(NODES, WEIGHTS, strict=True):
                row = np.array([-(mean[n] + node * std[n]), *self._losses[n]])
                if len(front) and (front <= row).all(axis=1).any():
                    continue  # dominated: adds nothing
                gains[place] += weight * (volume(np.vstack([front, row])) - before)
        return gains


def epochs_of(ladder: Sequence[Rung], rung: int) -> int:
    """Epochs that climbing to a rung costs: folds x epochs, less the full-length folds of the rungs below."""
    full = ladder[-1].epochs
    kept = max((each.folds for each in ladder[:rung] if each.epochs == full), default=0)
    wanted = ladder[rung]
    return wanted.epochs * (wanted.folds - (kept if wanted.epochs == full else 0))


def _standardise(features: Floats) -> Floats:
    """Columns of mean 0 and standard deviation 1; constant columns go."""
    spread = features.std(axis=0)
    return ((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0))[:, spread > 0]


def knob_numbers(rows: Sequence[Mapping[str, Any]]) -> Floats:
    """Knobs of n candidates {key: value} as an array (n, k): numbers as they are, anything else, and knobs that some
    candidates have not, as one column a value."""
    keys = sorted({key for row in rows for key in row})
    columns: list[list[float]] = []
    for key in keys:
        values = [row.get(key) for row in rows]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            columns.append([float(value) for value in values])  # type: ignore[arg-type]
            continue
        for level in sorted({str(value) for value in values}):
            columns.append([float(str(value) == level) for value in values])
    return np.array(columns, dtype=float).T.reshape(len(rows), -1)
