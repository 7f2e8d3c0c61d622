"""search.tuner=pareto: what it chooses, and the numbers behind it."""

from __future__ import annotations

import numpy as np
import pytest

from dxc.pareto import hypervolume, non_dominated
from dxc.search import Rung
from dxc.search.front import Candidates, FrontSearch, epochs_of, knob_numbers

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


def test_expected_improvement_against_chance() -> None:
    """Quadrature against 20,000 draws of the accuracy, hypervolumes by dxc.pareto."""
    candidates, truth = _candidates()
    search = FrontSearch(candidates, LADDER, seed=0)
    rng = np.random.default_rng(1)
    mean, std = truth + 0.01, np.full(len(truth), 0.03)
    front = np.column_stack([-truth[:6], candidates.costs[:6]])
    which = np.array([10, 20, 30])
    gains = search._expected_improvement(front, which, mean, std)
    lowest, highest = min(truth[:6].min(), (mean - 2 * std).min()), max(truth[:6].max(), mean.max())
    costs = candidates.costs
    reference = [-lowest + 0.1 * (highest - lowest), *(costs.max(axis=0) + 0.1 * np.ptp(costs, axis=0))]
    minimise = [False] * 3
    before = hypervolume(front, reference=reference, maximise=minimise)
    for gain, n in zip(gains, which, strict=True):
        draws = rng.normal(mean[n], std[n], 20_000)
        grown = [
            hypervolume(np.vstack([front, [-a, *costs[n]]]), reference=reference, maximise=minimise) - before
            for a in draws[:4000]
        ]
        assert gain == pytest.approx(np.mean(grown), rel=0.08, abs=2e-3)
    assert gains.max() > 0


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


def test_knobs_as_numbers() -> None:
    rows = [{"width": 8, "pool": "max", "pool_kernel": 2}, {"width": 16, "pool": "none"}]
    # pool max, pool none, pool_kernel 2, pool_kernel None, width
    np.testing.assert_array_equal(knob_numbers(rows), [[1, 0, 1, 0, 8], [0, 1, 0, 1, 16]])


def test_the_front_of_a_search_keeps_ties() -> None:
    values = [[0.9, 1.0], [0.9, 1.0], [0.8, 2.0], [0.95, 3.0]]
    assert non_dominated(values, maximise=[True, False]).tolist() == [True, True, False, True]
