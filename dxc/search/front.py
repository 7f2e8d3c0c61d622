"""search.tuner=pareto: train only what can still change the front.

Costs are known of every candidate before training; accuracy is not. A Gaussian process over knobs and costs predicts
accuracy with its uncertainty from what was trained so far, in full or in part. The next candidate is the one whose
expected hypervolume improvement (Emmerich et al. 2006, doi 10.1109/TEVC.2005.859463) per epoch still to be trained is
largest. Costs are known, so that the expectation is a sum of closed forms. The candidate climbs one rung (fewer folds
and epochs first), is judged again, and reaches the full protocol only if it stays the best choice on every rung.

A cost that a candidate does not have (predicted latency, if it is quantised) speaks neither for nor against it: it is
weighed in the objectives that it has, against all that have these too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dxc.metrics import directions
from dxc.pareto import MARGIN, non_dominated
from dxc.search.states import Rung
from dxc.search.surrogate import GaussianProcess

Floats = NDArray[np.float64]
Seen = Mapping[str, Mapping[Rung, Sequence[float]]]
"""{candidate: {rung: accuracy of each of its folds}}"""
Trainings = Sequence[tuple[str, int | None]]
"""What is trained for one network, one after the other: its name, which other candidates may share, and the epochs of a
fold; None: those of the rung."""

FIRST = 5  # candidates on the first rung before the surrogate is asked
FEW = 8  # members of a front, and candidates, that are looked at before the rest
CELLS = 100_000  # candidates times boxes at once: what the processor keeps near
PRIOR_FOLDS = 4  # weight of the prior beside what was seen of a rung's noise
PRIOR_PAIRS = 2  # weight of the prior beside what was seen of a fold's effect
PRIOR_FOLD_STD = 0.03  # accuracy of one fold about the mean of its design


@dataclass(frozen=True)
class Candidates:
    """What can be trained, and what is known of it before.

    Args:
        names: (n,) trials.
        knobs: (n, k) numbers the surrogate learns from.
        costs: (n, m) of the objectives in cost_names; NaN where a candidate does not have one; m may be 0.
        cost_names: (m,)
        maximise: (m,) costs that are better where they are larger; without it, what dxc.metrics says of cost_names.
        groups: (k,) the knob each column of knobs belongs to (knob_groups); without it, each column is a knob.
        trainings: (n,) of each; without it, each candidate is trained alone, for the epochs of its rung.
    """

    names: Sequence[str]
    knobs: Floats
    costs: Floats
    cost_names: Sequence[str]
    groups: Sequence[int] | None = None
    maximise: Sequence[bool] | None = None
    trainings: Sequence[Trainings] | None = None


class Account:
    """Epochs x folds that a search trains. What several candidates share (the base of pruned networks) counts once."""

    def __init__(self) -> None:
        self._folds: dict[tuple[str, int], int] = {}
        """How many are trained of each (training, epochs of its rung)."""

    def cost(self, trainings: Trainings, rungs: Iterable[Rung]) -> int:
        """What it costs to climb some rungs, beside what was added."""
        return self._climb(trainings, rungs)[0]

    def add(self, trainings: Trainings, rungs: Iterable[Rung]) -> int:
        """Take note that these rungs are climbed; returns what that costs."""
        cost, climbed = self._climb(trainings, rungs)
        self._folds |= climbed
        return cost

    def _climb(self, trainings: Trainings, rungs: Iterable[Rung]) -> tuple[int, dict[tuple[str, int], int]]:
        cost = 0
        climbed: dict[tuple[str, int], int] = {}
        for rung in rungs:
            for name, epochs in trainings:
                key = name, rung.epochs
                before = climbed.get(key, self._folds.get(key, 0))  # folds are kept from rung to rung
                if rung.folds > before:
                    cost += (rung.folds - before) * (rung.epochs if epochs is None else epochs)
                    climbed[key] = rung.folds
        return cost, climbed


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
        self._features, self._groups = _features(candidates)
        maximise = candidates.maximise
        if maximise is None:
            maximise = directions(candidates.cost_names)
        self._losses = candidates.costs * np.where(maximise, -1.0, 1.0)
        self._trainings = candidates.trainings or [alone(name) for name in candidates.names]

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
        account = self._account(seen)
        to_full = self._to_full(account, level)
        chosen: list[tuple[str, Rung]] = []

        def choose(n: int) -> None:
            nonlocal epochs_left, to_full
            chosen.append((self._candidates.names[n], self._ladder[level[n] + 1]))
            open_[n] = False
            epochs_left -= account.add(self._trainings[n], self._ladder[level[n] + 1 :])
            to_full = self._to_full(account, level)

        for n in self._first(level, open_, len(busy)):
            if len(chosen) == count:
                return chosen
            if open_[n] and to_full[n] <= epochs_left:
                choose(n)
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
                gain = self._expected_improvement(front, allowed, mean, std, np.maximum(to_full[allowed], 1))
                if gain.max() <= 0:
                    gain = mean[allowed] + 2 * std[allowed]
                n = int(allowed[np.argmax(gain)])
            choose(n)
            front = np.vstack([front, [-mean[n], *self._losses[n]]])
        return chosen

    def _account(self, seen: Seen) -> Account:
        """What was trained for all that was seen."""
        account = Account()
        for name, rungs in seen.items():
            if name in self._position:
                account.add(self._trainings[self._position[name]], [r for r in self._ladder if r in rungs])
        return account

    def _to_full(self, account: Account, level: NDArray[Any]) -> NDArray[np.int64]:
        """Epochs x folds that the remaining rungs cost each candidate, (n,)."""
        costs = [
            account.cost(own, self._ladder[reached + 1 :])
            for own, reached in zip(self._trainings, level, strict=True)
        ]
        return np.array(costs, dtype=np.int64)

    def _first(self, level: NDArray[Any], open_: NDArray[np.bool_], busy: int) -> list[int]:
        """The first candidates: one at random out of each of FIRST classes of cost, cheap to dear;
        of any, where nothing is known of costs."""
        missing = FIRST - busy - int((level >= 0).sum())
        if missing <= 0:
            return []
        rng = np.random.default_rng(self._seed)
        order = np.arange(len(level))
        if self._losses.shape[1]:
            order = np.argsort(self._losses[:, 0], kind="stable")
        picked = [int(rng.choice(part)) for part in np.array_split(order, min(FIRST, len(order)))]
        return [n for n in picked if level[n] < 0 and open_[n]][:missing]

    def _surrogate(self, seen: Seen, level: NDArray[Any]) -> tuple[Floats, Floats]:
        """Mean and standard deviation of every candidate's accuracy under the full protocol."""
        rows, values, noise = [], [], []
        seen = self._without_folds(seen)
        offsets, variances = self._rungs(seen)
        for name in sorted(seen, key=lambda name: self._position.get(name, -1)):
            n = self._position.get(name, -1)
            if n < 0 or level[n] < 0:
                continue
            rung = self._ladder[level[n]]
            rows.append(n)
            values.append(float(np.mean(seen[name][rung])) + offsets[rung])
            noise.append(variances[rung])
        model = GaussianProcess(self._features[rows], self._groups, np.array(values), np.array(noise))
        return model.predict(self._features)

    def _without_folds(self, seen: Seen) -> Seen:
        """Accuracies less the effect of their fold: some folds are easier for every candidate, and a candidate that
        was seen on those alone is no better for it.

        An effect is the fold's mean difference to the mean of its candidate, over candidates on the last rung and
        PRIOR_PAIRS imagined ones without any difference.
        """
        last = self._ladder[-1]
        complete = np.array([r[last] for r in seen.values() if last in r and len(r[last]) == last.folds])
        if not len(complete):
            return seen
        differences = complete - complete.mean(axis=1, keepdims=True)
        effect = differences.sum(axis=0) / (len(complete) + PRIOR_PAIRS)
        return {
            name: {
                rung: list(np.asarray(v) - effect[: len(v)]) if len(v) <= last.folds else v
                for rung, v in rungs.items()
            }
            for name, rungs in seen.items()
        }

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

    def _expected_improvement(
        self, front: Floats, which: NDArray[Any], mean: Floats, std: Floats, epochs: NDArray[Any]
    ) -> Floats:
        """Expected hypervolume improvement an epoch of the candidates `which` over `front` (losses, accuracy first);
        0 of those that cannot be the largest.

        The reference point is dxc.pareto's, with the range that accuracy may still have. Candidates with other costs
        than the rest improve on a front of their own objectives: shares of the volume up to the reference compare them.
        """
        there = ~np.isnan(self._losses)
        gains = np.zeros(len(which))
        kinds = np.unique(there[which], axis=0)
        for own in kinds:
            here = np.flatnonzero((there[which] == own).all(axis=1))
            columns = np.array([True, *own])
            known = front[~np.isnan(front[:, columns]).any(axis=1)][:, columns]
            gains[here], volume = self._improvement_in(own, known, which[here], mean, std, epochs[here])
            if len(kinds) > 1:
                gains[here] /= volume
        return gains

    def _improvement_in(
        self,
        own: NDArray[np.bool_],
        front: Floats,
        which: NDArray[Any],
        mean: Floats,
        std: Floats,
        epochs: NDArray[Any],
    ) -> tuple[Floats, float]:
        """_expected_improvement of candidates that have the same costs `own`, (m,), and the volume that the objectives
        span up to the reference."""
        losses = self._losses[:, own]
        lowest = min(-front[:, 0].max() if len(front) else 1.0, float((mean - 2 * std).min()))
        highest = max(-front[:, 0].min() if len(front) else 0.0, float(mean.max()))
        worst = np.nanmax(losses, axis=0, initial=-math.inf)
        ranges = worst - np.nanmin(losses, axis=0, initial=math.inf)
        margins = MARGIN * np.where(ranges > 0, ranges, np.maximum(np.abs(worst), 1.0))
        reference = np.array([-lowest + MARGIN * (highest - lowest), *(worst + margins)])
        if len(front):
            front = front[non_dominated(front, maximise=[False] * front.shape[1])]
        volume = (highest - lowest) * (1 + MARGIN) * float(np.prod(ranges + margins))
        return _largest(front, -mean[which], std[which], losses[which], reference, epochs), volume


def _largest(
    front: Floats, mean: Floats, std: Floats, costs: Floats, reference: Floats, epochs: NDArray[Any]
) -> Floats:
    """expected_improvement / epochs, (n,), exact of every candidate that may have the largest, 0 of the others.

    Over a few members of the front a candidate improves by as much or more than over all of them. That bound takes a
    fraction of the time, and it excludes most candidates.
    """
    import moocore

    def gain(boxes: Sequence[Box], which: NDArray[Any]) -> Floats:
        return _improvement(boxes, mean[which], std[which], costs[which]) / epochs[which]

    every, boxes = np.arange(len(mean)), _boxes_below(front, reference)
    if len(front) <= FEW or len(every) <= FEW:
        return gain(boxes, every)
    alone = moocore.hv_contributions(front, ref=reference)
    few = front[np.argsort(-alone, kind="stable")[:FEW]]
    bound = gain(_boxes_below(few, reference), every) * (1 + 1e-9)  # rounding
    found = np.zeros(len(every))
    first = np.argsort(-bound, kind="stable")[:FEW]
    found[first] = gain(boxes, first)
    rest = np.setdiff1d(np.flatnonzero(bound >= found.max()), first)
    found[rest] = gain(boxes, rest)
    return found


def expected_improvement(
    front: Floats, mean: Floats, std: Floats, costs: Floats, reference: Floats
) -> Floats:
    """Expected growth of the hypervolume if one candidate is added to the front, exactly.

    Only a candidate's first loss is uncertain. Its costs are known, and so is where in the space of costs it counts. At
    costs c it improves on the best loss t that the front has for c or less, by E max(0, t - X) in the mean. That is
    constant between two costs of the front, so that the integral over c is a sum over boxes. The boxes are the same for
    all candidates.

    Args:
        front: (f, 1 + m) losses, the uncertain one first; f and m may be 0.
        mean: (n,) expected loss of each candidate.
        std: (n,) its standard deviation, normally distributed.
        costs: (n, m) known losses.
        reference: (1 + m,) losses from which nothing counts.

    Returns:
        (n,) expected improvements.
    """
    return _improvement(_boxes_below(front, reference), mean, std, costs)


def _improvement(boxes: Sequence[Box], mean: Floats, std: Floats, costs: Floats) -> Floats:
    """expected_improvement over the front that the boxes were cut by."""
    losses, which = np.unique([box.best for box in boxes], return_inverse=True)
    low = np.array([box.low for box in boxes]).reshape(len(boxes), -1)
    high = np.array([box.high for box in boxes]).reshape(len(boxes), -1)
    total = np.empty(len(mean))
    rows = max(1, CELLS // len(boxes))
    for start in range(0, len(mean), rows):
        part = slice(start, start + rows)
        volumes = np.ones((len(mean[part]), len(boxes)))
        for own, left, right in zip(costs[part].T, low.T, high.T, strict=True):
            volumes *= np.maximum(right - np.maximum(left, own[:, None]), 0.0)
        gains = _gain(losses, mean[part, None], np.maximum(std[part, None], 1e-9))
        total[part] = np.einsum("nb,nb->n", volumes, gains[:, which])
    return total


def _gain(best: Floats, mean: Floats, std: Floats) -> Floats:
    """E max(0, best - X) of normal X."""
    from scipy.special import ndtr

    z = (best - mean) / std
    return std * (z * ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))


class Box(NamedTuple):
    """Costs from low to high, (m,) each, among which the least loss that the front has for as much or less is best."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    best: float


def _boxes_below(front: Floats, reference: Floats) -> list[Box]:
    """_boxes of the members (f, 1 + m) that count."""
    front = front.reshape(-1, len(reference))
    counted = front[(front < reference).all(axis=1)]
    return _boxes([*map(tuple, counted.tolist())], tuple(reference.tolist()))


def _boxes(front: Sequence[tuple[float, ...]], reference: tuple[float, ...]) -> list[Box]:
    """The space of costs in boxes, disjoint, from minus infinity to the reference.

    The last cost cuts the space in slices: between two of them the members with that cost or less are the same, and
    the rest of the space is cut by those alone. A box that the next member leaves as it is goes on through its slice.

    Args:
        front: members, (1 + m,) losses below the reference each.
        reference: (1 + m,)
    """
    if len(reference) == 1:
        return [Box((), (), min([reference[0], *(loss for (loss,) in front)]))]
    if len(reference) == 2:
        return _intervals(front, *reference)
    *lower, end = reference
    begun = dict.fromkeys(_boxes([], tuple(lower)), -math.inf)
    done: list[Box] = []
    members: list[tuple[float, ...]] = []  # those with the last cost so far, without it
    for *rest, cost in sorted(front, key=lambda member: member[-1]):
        if any(_reaches(each, rest) for each in members):
            continue  # nothing changes from here on
        members = [*(each for each in members if not _reaches(rest, each)), tuple(rest)]
        now = _boxes(members, tuple(lower))
        done += [_stretched(box, begun[box], cost) for box in begun.keys() - now if begun[box] < cost]
        begun = {box: begun.get(box, cost) for box in now}
    return [*done, *(_stretched(box, start, end) for box, start in begun.items() if start < end)]


def _intervals(front: Sequence[tuple[float, ...]], best: float, end: float) -> list[Box]:
    """_boxes of one cost, which needs no cutting: the least loss falls from one cost to the next."""
    found, low = [], -math.inf
    for loss, cost in sorted(front, key=lambda member: member[-1]):
        if loss < best:
            if cost > low:
                found.append(Box((low,), (cost,), best))
            low, best = cost, loss
    return [*found, Box((low,), (end,), best)]


def _reaches(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is as low as the other, or lower, in everything."""
    return all(map(operator.le, one, other))


def _stretched(box: Box, low: float, high: float) -> Box:
    return Box((*box.low, low), (*box.high, high), box.best)


def epochs_of(ladder: Sequence[Rung], rung: int) -> int:
    """Epochs that climbing to a rung costs: folds x epochs, less the full-length folds of the rungs below."""
    full = ladder[-1].epochs
    kept = max((each.folds for each in ladder[:rung] if each.epochs == full), default=0)
    wanted = ladder[rung]
    return wanted.epochs * (wanted.folds - (kept if wanted.epochs == full else 0))


def _features(candidates: Candidates) -> tuple[Floats, list[int]]:
    """Knobs and logarithms of costs as columns of mean 0 and standard deviation 1, and the group of each column.
    Constant columns go, and costs that some do not have."""
    costs = candidates.costs[:, ~np.isnan(candidates.costs).any(axis=0)]
    logs = [np.log(column) if (column > 0).all() else column for column in costs.T]
    columns = np.column_stack([candidates.knobs, *logs])
    knobs = candidates.knobs.shape[1]
    groups = list(range(knobs)) if candidates.groups is None else list(candidates.groups)
    groups += [max(groups, default=-1) + 1 + n for n in range(costs.shape[1])]
    spread = columns.std(axis=0)
    kept = spread > 1e-12 * np.maximum(np.abs(columns).max(axis=0), 1e-300)  # equal but for rounding
    _, compact = np.unique(np.array(groups, dtype=int)[kept], return_inverse=True)
    return (columns[:, kept] - columns[:, kept].mean(axis=0)) / spread[kept], compact.tolist()


def alone(name: str) -> Trainings:
    """The trainings of a candidate that shares nothing and is not compressed."""
    return [(name, None)]


def knob_numbers(rows: Sequence[Mapping[str, Any]]) -> Floats:
    """Knobs of n candidates {key: value} as an array (n, k): numbers as they are, anything else, and knobs that some
    candidates have not, as one column a value."""
    columns = [column for _, column in _columns(rows)]
    return np.array(columns, dtype=float).T.reshape(len(rows), -1)


def knob_groups(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each column of knob_numbers(rows), the number of its knob."""
    return [knob for knob, _ in _columns(rows)]


def _columns(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[float]]]:
    """Number of the knob, and values of the candidates, of each column."""
    for knob, key in enumerate(sorted({key for row in rows for key in row})):
        values = [row.get(key) for row in rows]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            yield knob, [float(value) for value in values]  # type: ignore[arg-type]
            continue
        for level in sorted({str(value) for value in values}):
            yield knob, [float(str(value) == level) for value in values]
