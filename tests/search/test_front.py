"""search.tuner=pareto: what it chooses, and the numbers behind it."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from dxc.pareto import hypervolume, non_dominated
from dxc.search.front import (
    Account,
    Candidates,
    FrontSearch,
    _largest,
    epochs_of,
    expected_improvement,
    knob_groups,
    knob_numbers,
)
from dxc.search.states import Rung

LADDER = [Rung(1, 2), Rung(1, 5), Rung(5, 5)]


def _candidates(n: int = 40, seed: int = 0) -> tuple[Candidates, np.ndarray]:
    """n candidates with two costs, and their true accuracies: better where they cost more, with exceptions."""
    rng = np.random.default_rng(seed)
    knobs = rng.integers(0, 3, (n, 3)).astype(float)
    costs = np.column_stack(
        [1 + knobs[:, 0] + 0.3 * knobs[:, 1] + 0.01 * rng.random(n), 10 + 20 * knobs[:, 1]]
    )
    truth = 0.7 + 0.05 * knobs[:, 0] + 0.03 * knobs[:, 1] + 0.04 * knobs[:, 2] + 0.005 * rng.normal(size=n)
    return Candidates([f"t{k}" for k in range(n)], knobs, costs, ["latency_ms", "onnx_mb"]), truth


def test_epochs_of_a_rung() -> None:
    """[1, 2], [1, 5], [5, 5]: two epochs; five, because two are not five begun; four folds of five more."""
    assert [epochs_of(LADDER, rung) for rung in range(3)] == [2, 5, 20]
    assert [epochs_of([Rung(2, 5), Rung(5, 5)], rung) for rung in range(2)] == [10, 15]
    assert epochs_of([Rung(5, 5)], 0) == 25
    # folds of the full length are kept, the most of them: 1, 3 - 1 and 5 - 3 folds of five epochs
    assert [epochs_of([Rung(1, 5), Rung(3, 5), Rung(5, 5)], rung) for rung in range(3)] == [5, 10, 10]


def test_what_is_shared_is_counted_once() -> None:
    """A base of 5 epochs, two networks that are pruned from it and fine-tuned for 3, and a quantised copy of one."""
    base, half, quarter = ("base", None), ("half", 3), ("quarter", 3)
    account = Account()
    assert account.cost([base, half], LADDER) == 1 * 2 + 1 * 5 + 4 * 5 + (1 + 1 + 4) * 3
    assert account.add([base], LADDER[:1]) == 2
    assert account.add([base, half], LADDER[:2]) == 5 + (1 + 1) * 3  # two epochs of the base are there
    assert account.cost([base, half], LADDER) == 4 * (5 + 3)
    assert account.add([base, half], LADDER) == 4 * (5 + 3)
    assert account.cost([base, half], LADDER) == account.cost([base], LADDER) == 0
    assert account.cost([base, quarter], LADDER) == (1 + 1 + 4) * 3


def test_a_network_whose_base_is_trained_is_chosen_first() -> None:
    """Of two candidates that promise the same, the one that costs fewer epochs; and a budget for one only is enough."""
    names = ["base", "pruned", "other", "alone"]
    candidates = Candidates(
        names,
        np.array([[0.0], [1.0], [2.0], [1.0]]),
        np.array([[4.0], [2.0], [8.0], [2.0]]),
        ["onnx_mb"],
        trainings=[[("b", None)], [("b", None), ("p", 2)], [("o", None)], [("a", None), ("q", 2)]],
    )
    ladder = [Rung(2, 5)]
    seen = {"base": {ladder[0]: [0.9, 0.9]}, "other": {ladder[0]: [0.91, 0.91]}}
    search = FrontSearch(candidates, ladder, seed=0)
    search._first = lambda *_: []  # type: ignore[method-assign]
    assert search.next(seen, count=1, epochs_left=100) == [("pruned", ladder[0])]
    assert search.next(seen, count=2, epochs_left=4) == [("pruned", ladder[0])]
    assert search.next(seen, count=2, epochs_left=3) == []


def test_a_cost_that_is_missing_speaks_neither_for_nor_against() -> None:
    """Half of the candidates have no latency: both halves are chosen from, and each improves on a front of its own
    objectives."""
    candidates, truth = _candidates()
    costs = candidates.costs.copy()
    costs[1::2, 0] = np.nan
    search = FrontSearch(replace(candidates, costs=costs), LADDER, seed=0)
    assert np.isfinite(search._features).all()
    full = np.arange(6)
    front = np.column_stack([-truth[full], costs[full]])
    mean, std = truth + 0.01, np.full(len(truth), 0.03)
    which = np.arange(10, 40)
    gains = search._expected_improvement(front, which, mean, std, np.ones(len(which)))
    assert (gains >= 0).all() and gains[::2].max() > 0 and gains[1::2].max() > 0

    # those without a latency: as if the others had none either, and latency were no objective
    blind = FrontSearch(
        replace(candidates, costs=candidates.costs[:, 1:], cost_names=["onnx_mb"]), LADDER, seed=0
    )
    lone = which[which % 2 == 1]
    alone = blind._expected_improvement(front[:, [0, 2]], lone, mean, std, np.ones(len(lone)))
    np.testing.assert_allclose(gains[1::2] / gains[1::2].max(), alone / alone.max(), atol=1e-12)
    # those with one are compared with others that have one
    seeing = FrontSearch(candidates, LADDER, seed=0)
    known = which[which % 2 == 0]
    whole = seeing._expected_improvement(front[::2], known, mean, std, np.ones(len(known)))
    assert np.argmax(gains[::2]) == np.argmax(whole)

    seen = {name: {LADDER[-1]: [truth[n]] * 5} for n, name in enumerate(candidates.names[:8])}
    chosen = search.next(seen, count=10, epochs_left=10_000)
    assert {int(name[1:]) % 2 for name, _ in chosen} == {0, 1}


def test_expected_improvement_against_chance() -> None:
    """Against 4,000 draws of the accuracy, hypervolumes by dxc.pareto."""
    candidates, truth = _candidates()
    search = FrontSearch(candidates, LADDER, seed=0)
    rng = np.random.default_rng(1)
    mean, std = truth + 0.01, np.full(len(truth), 0.03)
    front = np.column_stack([-truth[:6], candidates.costs[:6]])
    which = np.array([10, 20, 30])
    gains = search._expected_improvement(front, which, mean, std, np.ones(3))
    lowest, highest = min(truth[:6].min(), (mean - 2 * std).min()), max(truth[:6].max(), mean.max())
    costs = candidates.costs
    reference = [-lowest + 0.1 * (highest - lowest), *(costs.max(axis=0) + 0.1 * np.ptp(costs, axis=0))]
    minimise = [False] * 3
    before = hypervolume(front, reference=reference, maximise=minimise)
    for gain, n in zip(gains, which, strict=True):
        draws = rng.normal(mean[n], std[n], 4000)
        grown = [
            hypervolume(np.vstack([front, [-a, *costs[n]]]), reference=reference, maximise=minimise) - before
            for a in draws
        ]
        assert gain == pytest.approx(np.mean(grown), rel=0.08, abs=2e-3)
    assert gains.max() > 0


def test_expected_improvement_by_hand() -> None:
    """A staircase of 200 steps: at each cost, accuracy beyond the best so far counts, and costs below the front's too.

    E max(0, X - t) of a normal X is s phi(z) + (m - t) Phi(z) with z = (m - t) / s.
    """
    steps = 200
    costs, accuracies = np.linspace(1.0, 3.0, steps), np.linspace(0.5, 0.9, steps)
    candidates = Candidates(
        [f"t{k}" for k in range(steps + 1)],
        np.arange(steps + 1.0)[:, None],
        np.append(costs, 0.8)[:, None],
        ["latency_ms"],
    )
    mean, std = np.append(accuracies, 0.7), np.full(steps + 1, 0.05)
    front = np.column_stack([-accuracies, costs])
    (gain,) = FrontSearch(candidates, LADDER, seed=0)._expected_improvement(
        front, np.array([steps]), mean, std, np.ones(1)
    )
    # accuracy may range from 0.5 - 2 x 0.05 to 0.9, costs from 0.8 to 3: the reference is 0.35, 3.22
    edges = np.array([0.8, *costs, 3.22])
    beaten = np.array([0.35, *accuracies])
    z = (0.7 - beaten) / 0.05
    expected = (0.05 * norm.pdf(z) + (0.7 - beaten) * norm.cdf(z)) @ np.diff(edges)
    assert gain == pytest.approx(expected, rel=1e-9)


def _beyond(mean: float, best: float) -> float:
    """E max(0, best - X) of a loss X, normal with standard deviation 0.1, as it stands in textbooks."""
    z = (best - mean) / 0.1
    return (best - mean) * norm.cdf(z) + 0.1 * norm.pdf(z)


def test_expected_improvement_with_no_cost_and_no_front() -> None:
    """Accuracy alone: what is expected beyond the best, and beyond the reference where there is no best."""
    mean, std, costs = np.array([-0.8]), np.array([0.1]), np.zeros((1, 0))
    for front, best in ((np.array([[-0.7], [-0.85]]), -0.85), (np.zeros((0, 1)), -0.5)):
        (gain,) = expected_improvement(front, mean, std, costs, np.array([-0.5]))
        assert gain == pytest.approx(_beyond(-0.8, best))


def test_expected_improvement_with_one_cost() -> None:
    """A front of losses -0.6 and -0.9 at costs 2 and 5, reference -0.5 and 6; candidates at 1, 3 and 7.

    At 1: 2 - 1 wide the reference is to be beaten, 5 - 2 wide -0.6, 6 - 5 wide -0.9. At 7 nothing counts.
    """
    front = np.array([[-0.6, 2.0], [-0.9, 5.0]])
    mean, std, costs = np.full(3, -0.8), np.full(3, 0.1), np.array([[1.0], [3.0], [7.0]])
    gains = expected_improvement(front, mean, std, costs, np.array([-0.5, 6.0]))
    low, middle, high = (_beyond(-0.8, best) for best in (-0.5, -0.6, -0.9))
    np.testing.assert_allclose(gains, [low + 3 * middle + high, 2 * middle + high, 0.0])


def test_expected_improvement_with_two_costs() -> None:
    """A front of losses -0.6 and -0.9 at costs (1, 3) and (2, 2), reference -0.5, 4 and 4; a candidate at (0, 1).

    Of its 4 x 3 costs, the first member reaches 3 x 1 and the second 2 x 2, both of them 2 x 1.
    """
    front = np.array([[-0.6, 1.0, 3.0], [-0.9, 2.0, 2.0]])
    (gain,) = expected_improvement(
        front, np.array([-0.8]), np.array([0.1]), np.array([[0.0, 1.0]]), np.array([-0.5, 4.0, 4.0])
    )
    free, first, second = (_beyond(-0.8, best) for best in (-0.5, -0.6, -0.9))
    assert gain == pytest.approx((12 - 5) * free + 1 * first + 4 * second)


def test_expected_improvement_of_a_certain_candidate_is_its_hypervolume() -> None:
    """Without uncertainty, with three costs: the growth that dxc.pareto gives."""
    rng = np.random.default_rng(0)
    front, one = rng.random((12, 4)), 0.3 * rng.random((1, 4))
    reference, minimise = np.ones(4), [False] * 4
    (gain,) = expected_improvement(front, one[:, 0], np.zeros(1), one[:, 1:], reference)
    before = hypervolume(front, reference=reference, maximise=minimise)
    after = hypervolume(np.vstack([front, one]), reference=reference, maximise=minimise)
    assert gain == pytest.approx(after - before, rel=1e-6)


def _by_grid(front: np.ndarray, one: np.ndarray, std: float, reference: np.ndarray) -> float:
    """Expected improvement of one candidate, every cell between two costs of the front looked at on its own."""
    edges = [
        np.unique([low, *(c for c in front[:, k] if low < c < end), end])
        for k, (low, end) in enumerate(zip(one[1:], reference[1:], strict=True), start=1)
    ]
    total = 0.0
    for cell in product(*(range(len(each) - 1) for each in edges)):
        low = np.array([each[n] for n, each in zip(cell, edges, strict=True)])
        volume = np.prod([each[n + 1] - each[n] for n, each in zip(cell, edges, strict=True)])
        best = min([reference[0], *front[(front[:, 1:] <= low).all(axis=1), 0]])
        z = (best - one[0]) / std
        total += volume * ((best - one[0]) * norm.cdf(z) + std * norm.pdf(z))
    return total


@pytest.mark.parametrize("costs", [1, 2, 3])
@pytest.mark.parametrize("values", [1000, 4])  # of a cost: none shared, and many
def test_expected_improvement_against_every_cell(costs: int, values: int) -> None:
    """A front with dominated members, equal ones, and some beyond the reference."""
    rng = np.random.default_rng(costs + values)
    front, few = rng.random((10, 1 + costs)), rng.random((6, 1 + costs))
    front[:, 1:] = np.ceil(values * front[:, 1:]) / values
    few[:, 1:] = np.ceil(values * few[:, 1:]) / values
    front = np.vstack([front, front[:2]])
    reference, std = np.full(1 + costs, 0.95), np.full(len(few), 0.2)
    gains = expected_improvement(front, few[:, 0], std, few[:, 1:], reference)
    expected = [
        _by_grid(front, one, 0.2, reference) if (one[1:] < reference[1:]).all() else 0.0 for one in few
    ]
    np.testing.assert_allclose(gains, expected, rtol=1e-9, atol=1e-15)
    assert sum(gains > 0) >= 2


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_the_largest_improvement_is_exact_and_the_others_are_not_larger(
    costs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate that all exact values name. Two members of the front give a bound so loose that the largest bound
    is often not the largest improvement."""
    monkeypatch.setattr("dxc.search.front.FEW", 2)
    rng = np.random.default_rng(costs)
    excluded = 0
    for _ in range(20):
        front, few = rng.random((30, 1 + costs)), rng.random((60, 1 + costs))
        front[:, 0] += costs - front[:, 1:].sum(axis=1)
        few[:, 0] += costs - few[:, 1:].sum(axis=1)
        front = front[non_dominated(front, maximise=[False] * (1 + costs))]
        few[7] = few[3]  # two that are alike: the first one is named
        std, epochs = rng.uniform(0.01, 0.1, 60), rng.choice([2, 5, 20], 60)
        reference = np.array([1.0 + costs, *[1.1] * costs])
        exact = expected_improvement(front, few[:, 0], std, few[:, 1:], reference) / epochs
        found = _largest(front, few[:, 0], std, few[:, 1:], reference, epochs)
        assert np.argmax(found) == np.argmax(exact)
        assert found.max() == pytest.approx(exact.max(), rel=1e-12)
        assert (found <= exact * (1 + 1e-9)).all()
        excluded += int((found < exact).sum())
        alone = [
            expected_improvement(front, few[[n], 0], std[[n]], few[[n], 1:], reference)[0] for n in range(2)
        ]
        np.testing.assert_allclose(alone, exact[:2] * epochs[:2])  # a candidate knows nothing of the others
    assert excluded > 100


def test_a_proposal_among_thousands_is_quick() -> None:
    """6,466 candidates, three costs, 100 trainings: 0.1 s of the processor on one core; ten times that is a fault."""
    rng = np.random.default_rng(0)
    knobs = rng.integers(0, 5, (6466, 6)).astype(float)
    costs = np.exp(knobs[:, :3] / 5 + 0.3 * rng.random((6466, 3)))
    truth = 0.7 + 0.02 * knobs.sum(axis=1) / 6 + 0.01 * rng.random(6466)
    names = [str(n) for n in range(6466)]
    search = FrontSearch(
        Candidates(names, knobs, costs, ["latency_ms", "onnx_mb", "macs"]), [Rung(1, 1)], seed=0
    )
    drawn = [*np.argsort(-truth)[:3], *rng.choice(6466, 97, replace=False)]
    seen = {str(n): {Rung(1, 1): [truth[n]]} for n in drawn}
    started = time.process_time()
    assert len(search.next(seen, count=1, epochs_left=1000)) == 1
    assert time.process_time() - started < 1.0


def _trained(*others: tuple[float, float]) -> tuple[Candidates, dict[str, dict[Rung, list[float]]]]:
    """Ten that were trained in full, 0.03 better a knob and a ms; then candidates of other knobs and costs."""
    knobs = np.array([*np.arange(10.0), *(knob for knob, _ in others)])[:, None]
    costs = np.array([*np.arange(2.0, 12.0), *(cost for _, cost in others)])[:, None]
    names = [f"t{k}" for k in range(10)] + [f"other{k}" for k in range(len(others))]
    folds = (-0.01, 0, 0.01, 0, 0)
    seen = {f"t{k}": {LADDER[-1]: [0.6 + 0.03 * k + each for each in folds]} for k in range(10)}
    return Candidates(names, knobs, costs, ["latency_ms"]), seen


def test_an_improvement_counts_for_each_epoch_that_it_still_costs() -> None:
    """Of two that are alike, the one that was begun: it costs two epochs less."""
    candidates, seen = _trained((0.0, 1.0), (0.0, 1.0))
    seen["other1"] = {LADDER[0]: [0.55]}
    search = FrontSearch(candidates, LADDER, seed=0)
    assert search.next(seen, count=1, epochs_left=100) == [("other1", LADDER[1])]


@pytest.mark.parametrize(("accuracy", "chosen"), [(0.88, "other0"), (0.86, "other1")])
def test_the_most_accurate_goes_first_where_it_is_so_for_sure(accuracy: float, chosen: str) -> None:
    """A dear one was seen on the first rung. With 0.88, 0.898 +- 0.016 are expected, above the 0.866 of the front; with
    0.86, 0.881 +- 0.017, not above it for sure. The cheap one improves more for its epochs both times."""
    candidates, seen = _trained((12.0, 14.0), (0.0, 1.0))
    seen["other0"] = {LADDER[0]: [accuracy]}
    search = FrontSearch(candidates, LADDER, seed=0)
    level = np.array([2] * 10 + [0, -1])
    mean, std = search._surrogate(seen, level)
    front = np.column_stack([-mean[:10], candidates.costs[:10]])
    dear, cheap = search._expected_improvement(front, np.array([10, 11]), mean, std, np.array([25, 27]))
    assert cheap > dear
    assert search.next(seen, count=1, epochs_left=100) == [(chosen, LADDER[1 if chosen == "other0" else 0])]


@pytest.mark.parametrize(("epochs_left", "chosen"), [(26, 0), (30, 1), (60, 2), (81, 3), (200, 3)])
def test_no_more_is_begun_than_can_be_finished(epochs_left: int, chosen: int) -> None:
    """A candidate costs 27 epochs, of the first ones as of those that the surrogate chooses."""
    candidates, truth = _candidates()
    seen = {f"t{k}": {LADDER[-1]: [truth[k]] * 5} for k in range(12)}
    for known in ({}, seen):
        search = FrontSearch(candidates, LADDER, seed=0)
        assert len(search.next(known, count=3, epochs_left=epochs_left)) == chosen
    assert len(FrontSearch(candidates, LADDER, seed=0).next({}, count=10, epochs_left=60)) == 2


def test_the_first_are_five_classes_of_cost_each_once() -> None:
    candidates, _ = _candidates()
    search = FrontSearch(candidates, LADDER, seed=0)
    first = search.next({}, count=99, epochs_left=10_000)
    assert {rung for _, rung in first} == {LADDER[0]}
    by_cost = np.argsort(candidates.costs[:, 0])
    place = {f"t{k}": place for place, k in enumerate(by_cost)}
    assert [place[name] // 8 for name, _ in first] == list(range(5))  # 40 candidates: eight a class
    for done, running in ((1, 0), (0, 2), (2, 2)):
        seen = {name: {LADDER[0]: [0.7, 0.7]} for name, _ in first[:done]}
        busy = [name for name, _ in first[done : done + running]]
        rest = search.next(seen, busy=busy, count=5 - done - running, epochs_left=10_000)
        assert rest == first[done + running :]


def test_a_unit_of_cost_changes_no_choice() -> None:
    """Nor does a power of it: the surrogate sees logarithms, of mean 0 and standard deviation 1."""
    candidates, _ = _candidates()
    squared = replace(candidates, costs=3.0 * candidates.costs**2)
    features = [FrontSearch(each, LADDER, seed=0)._features for each in (candidates, squared)]
    np.testing.assert_allclose(features[0], features[1], atol=1e-9)
    np.testing.assert_allclose(features[0].std(axis=0), 1.0)


def _run(epochs: int, *, seed: int = 0, count: int = 1, noise: float = 0.01) -> tuple[dict, int, list]:
    candidates, truth = _candidates()
    search = FrontSearch(candidates, LADDER, seed=seed)
    rng = np.random.default_rng(seed)
    seen: dict[str, dict[Rung, list[float]]] = {}
    spent, order = 0, []
    while chosen := search.next(seen, without=["t3"], count=count, epochs_left=epochs - spent):
        assert len(chosen) <= count
        for name, rung in chosen:
            spent += epochs_of(LADDER, LADDER.index(rung))
            order.append((name, rung))
            true = truth[int(name[1:])]
            seen.setdefault(name, {})[rung] = list(true + noise * rng.normal(size=rung.folds))
    return seen, spent, order


def test_the_budget_holds_and_everything_begun_is_worth_it() -> None:
    seen, spent, order = _run(400, count=3)
    assert spent <= 400
    assert "t3" not in seen  # it failed
    for name, rungs in seen.items():
        climbed = [rung for each, rung in order if each == name]
        assert climbed == LADDER[: len(climbed)] and set(climbed) == set(rungs)
    finished = sum(LADDER[-1] in rungs for rungs in seen.values())
    assert 5 <= finished <= 400 // 27
    assert len(seen) > finished  # some were looked at and left


def test_it_finds_most_of_the_front_for_a_third_of_the_epochs() -> None:
    """True hypervolume of what it trained, against a random choice of as many epochs, over ten seeds."""
    candidates, truth = _candidates()
    values = np.column_stack([truth, candidates.costs])
    maximise = [True, False, False]
    reference = [0.6, *(candidates.costs.max(axis=0) * 1.01)]
    everything = hypervolume(values, reference=reference, maximise=maximise)
    ours, chance = [], []
    for seed in range(10):
        seen, spent, _ = _run(333, seed=seed)
        trained = [int(name[1:]) for name, rungs in seen.items() if LADDER[-1] in rungs]
        ours.append(hypervolume(values[trained], reference=reference, maximise=maximise) / everything)
        drawn = np.random.default_rng(seed).choice(40, spent // 25, replace=False)
        chance.append(hypervolume(values[drawn], reference=reference, maximise=maximise) / everything)
    assert np.median(ours) > 0.97
    assert np.median(ours) > np.median(chance) + 0.03


def test_nothing_is_left() -> None:
    seen, _, _ = _run(100_000)
    assert all(LADDER[-1] in rungs for rungs in seen.values()) and len(seen) == 39


def test_it_goes_on_from_results_alone() -> None:
    """The choice depends on what was seen, not on how it came about."""
    candidates, _ = _candidates()
    seen, _, _ = _run(200)
    again = {name: seen[name] for name in reversed(list(seen))}
    choices = [
        FrontSearch(candidates, LADDER, seed=0).next(each, count=3, epochs_left=500) for each in (seen, again)
    ]
    assert choices[0] == choices[1] and len(choices[0]) == 3


def test_what_others_train_is_not_chosen() -> None:
    candidates, _ = _candidates()
    seen, _, _ = _run(200)
    search = FrontSearch(candidates, LADDER, seed=0)
    (best,) = search.next(seen, count=1, epochs_left=500)
    (second,) = search.next(seen, busy=[best[0]], count=1, epochs_left=500)
    assert second[0] != best[0]


def test_the_noise_of_a_rung_is_learned() -> None:
    """Rung 1 is 0.1 too low for everybody: its offset comes out, shrunk by one imagined pair without any."""
    candidates, _ = _candidates()
    search = FrontSearch(candidates, LADDER, seed=0)
    seen = {f"t{k}": {LADDER[1]: [0.6 + 0.01 * k], LADDER[2]: [0.7 + 0.01 * k] * 5} for k in range(4)}
    offsets, variances = search._rungs(seen)
    # four pairs 0.1 apart and an imagined one without a difference
    assert offsets == {LADDER[0]: 0.0, LADDER[1]: pytest.approx(0.08), LADDER[2]: 0.0}
    # folds that agree four times, beside four imagined ones that differ by 0.03: 0.00045 a fold, a fifth of it for five
    assert variances[LADDER[2]] == pytest.approx(0.00009)
    # four pairs 0.02 off the offset and four imagined ones of 0.00045: 0.000425, and what the last rung is unsure of
    assert variances[LADDER[1]] == pytest.approx(0.000515)
    # nobody was seen there: a fold's variance, 2.5 times as much after 2 of 5 epochs
    assert variances[LADDER[0]] == pytest.approx(0.001215)


def test_the_noise_of_a_rung_that_was_not_seen() -> None:
    """Folds of 0.7, 0.8, 0.9 vary by 0.01, beside four times 0.03 squared; fewer epochs and folds say less."""
    candidates, _ = _candidates()
    search = FrontSearch(candidates, LADDER, seed=0)
    _, variances = search._rungs({"t0": {LADDER[-1]: [0.7, 0.8, 0.9]}})
    assert variances[LADDER[-1]] == pytest.approx((0.01 + 4 * 0.0009) / 5 / 5)
    offsets, variances = search._rungs({})
    assert set(offsets.values()) == {0.0}
    assert variances[LADDER[0]] == pytest.approx(0.0009 * 5 / 2 + 0.0009 / 5)  # two epochs of five
    assert variances[LADDER[1]] == pytest.approx(0.0009 + 0.0009 / 5)
    _, variances = FrontSearch(candidates, [Rung(3, 2), Rung(5, 5)], seed=0)._rungs({})
    assert variances[Rung(3, 2)] == pytest.approx(0.0009 * 5 / 2 / 3 + 0.0009 / 5)  # three folds of them


def test_a_fold_that_is_easy_for_everybody_says_nothing() -> None:
    """Fold 1 is 0.1 easier. Two candidates and two imagined ones without a difference say half of its effect, 0.08 to
    the mean; the other four folds are 0.02 below it."""
    candidates, _ = _candidates()
    search = FrontSearch(candidates, LADDER, seed=0)
    seen = {f"t{k}": {LADDER[-1]: [0.8, 0.7, 0.7, 0.7, 0.7]} for k in range(2)} | {"t2": {LADDER[1]: [0.8]}}
    corrected = search._without_folds(seen)
    assert corrected["t0"][LADDER[-1]] == pytest.approx([0.76, 0.71, 0.71, 0.71, 0.71])
    assert corrected["t2"][LADDER[1]] == pytest.approx([0.76])
    assert search._without_folds({"t2": {LADDER[1]: [0.8]}}) == {"t2": {LADDER[1]: [0.8]}}


@pytest.mark.parametrize("costs", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 12])
def test_any_number_of_costs_and_candidates(costs: int, n: int) -> None:
    """One candidate; costs that all share, that are 0 and that are better where they are more; equal accuracies."""
    columns = np.column_stack([np.full(n, 5.0), np.arange(n) % 2, np.arange(1.0, n + 1)])[:, :costs]
    names = [f"t{k}" for k in range(n)]
    candidates = Candidates(
        names,
        np.arange(n)[:, None] % 3.0,
        columns,
        ["a", "b", "c"][:costs],
        maximise=[False, False, True][:costs],
    )
    search = FrontSearch(candidates, LADDER, seed=0)
    seen: dict[str, dict[Rung, list[float]]] = {}
    for _ in range(3 * n):
        ((name, rung),) = search.next(seen, count=1, epochs_left=10_000)
        seen.setdefault(name, {})[rung] = [0.8] * rung.folds
    assert search.next(seen, count=1, epochs_left=10_000) == []
    assert all(LADDER[-1] in rungs for rungs in seen.values()) and len(seen) == n


def test_knobs_as_numbers() -> None:
    rows = [{"width": 8, "pool": "max", "pool_kernel": 2}, {"width": 16, "pool": "none"}]
    # pool max, pool none, pool_kernel 2, pool_kernel None, width
    np.testing.assert_array_equal(knob_numbers(rows), [[1, 0, 1, 0, 8], [0, 1, 0, 1, 16]])
    assert knob_groups(rows) == [0, 0, 1, 1, 2]


def test_the_front_of_a_search_keeps_ties() -> None:
    values = [[0.9, 1.0], [0.9, 1.0], [0.8, 2.0], [0.95, 3.0]]
    assert non_dominated(values, maximise=[True, False]).tolist() == [True, True, False, True]
