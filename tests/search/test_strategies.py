"""NNI's tuners as plain objects."""

from __future__ import annotations

import random

import pytest

from dxc.search.space import Axis, Space
from dxc.search.strategies import NniTuner, Proposal

SPACE = Space((Axis("a", ("1", "2", "3")), Axis("b", ("x", "y")), Axis("c", tuple("123456"))), ())


def _tuner(name: str, *, seed: int = 0, maximise: bool = True, parallel: int = 1) -> NniTuner:
    return NniTuner(name, SPACE, seed=seed, trials=30, parallel=parallel, maximise=maximise)


def _proposals(tuner: NniTuner, count: int) -> list[tuple[int, ...]]:
    points = []
    for _ in range(count):
        proposal = tuner.ask()
        assert proposal is not None
        points.append(proposal.point)
        tuner.tell(proposal, float(sum(proposal.point)))
    return points


@pytest.mark.parametrize("name", ["random", "tpe", "evolution", "grid"])
def test_a_seed_makes_a_search_repeatable(name: str) -> None:
    first = _proposals(_tuner(name), 25)
    random.seed(99)  # training seeds the global generator between two proposals
    assert _proposals(_tuner(name), 25) == first
    if name != "grid":
        assert _proposals(_tuner(name, seed=1), 25) != first


def test_training_between_proposals_changes_nothing() -> None:
    """NNI's evolution draws from the global generator, which training seeds."""
    quiet, disturbed = _tuner("evolution"), _tuner("evolution")
    for number in range(25):
        random.seed(number)
        state = random.getstate()
        proposal = disturbed.ask()
        assert proposal is not None and random.getstate() == state
        disturbed.tell(proposal, float(sum(proposal.point)))
        assert _proposals(quiet, 1) == [proposal.point]


def test_grid_asks_for_every_point_once() -> None:
    tuner = _tuner("grid")
    points = _proposals(tuner, SPACE.size)
    assert sorted(points) == sorted(SPACE.points())
    assert tuner.ask() is None


@pytest.mark.parametrize("name", ["tpe", "evolution"])
@pytest.mark.parametrize("maximise", [True, False])
def test_tuners_go_where_it_is_better(name: str, maximise: bool) -> None:
    """The mean of the last third of 60 proposals is better than random's by far, in the asked direction."""
    means = []
    for seed in range(5):
        space = Space(tuple(Axis(key, tuple("0123456789")) for key in "abc"), ())
        tuner = NniTuner(name, space, seed=seed, trials=60, parallel=1, maximise=maximise)
        points = _proposals(tuner, 60)
        means.append(sum(sum(point) for point in points[40:]) / 20)
    by_chance = 3 * 4.5
    mean = sum(means) / len(means)
    assert mean > by_chance + 3 if maximise else mean < by_chance - 3


def test_what_failed_is_as_bad_as_the_worst() -> None:
    told: list[float] = []
    tuner = _tuner("tpe")
    tuner._tuner.receive_trial_result = lambda number, parameters, value: told.append(value)
    for value in (None, 0.9, 0.7, float("nan"), None):
        tuner.tell(Proposal(1, (0, 0, 0)), value)
    assert told == [0.0, 0.9, 0.7, 0.7, 0.7]


def test_what_fails_first_is_worse_than_any_value_to_be_minimised() -> None:
    told: list[float] = []
    tuner = _tuner("tpe", maximise=False)
    tuner._tuner.receive_trial_result = lambda number, parameters, value: told.append(value)
    for value in (None, 3.0, 8.0, 5.0, None):
        tuner.tell(Proposal(1, (0, 0, 0)), value)
    assert told == [-1e9, -3.0, -8.0, -5.0, -8.0]


@pytest.mark.parametrize(
    ("trials", "parallel", "population"),
    [
        (60, 1, 15),
        (60, 3, 15),
        (8, 1, 8),
        (400, 1, 32),
        (8, 6, 12),
    ],  # a quarter of the trials, 8 to 32; 2 x parallel
)
def test_evolution_says_when_it_has_to_be_told_first(trials: int, parallel: int, population: int) -> None:
    """With one of its population left it must know how the others did."""
    tuner = NniTuner("evolution", SPACE, seed=0, trials=trials, parallel=parallel, maximise=True)
    pending = []
    while not tuner.full:
        proposal = tuner.ask()
        assert proposal is not None
        pending.append(proposal)
    assert len(pending) == population - 1
    tuner.tell(pending.pop(), 1.0)
    assert not tuner.full
    for proposal in pending:
        tuner.tell(proposal, 1.0)
    assert tuner.ask() is not None
