"""NNI's tuners as plain objects: they propose points and are told what came of them.

An NNI experiment (its manager process, its web portal) is not started. Axes are NNI choices of positions, so that a
value may be anything that stands on a command line.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dxc.search.space import Point, Space

MIN_POPULATION, MAX_POPULATION = 8, 32  # the second is NNI's own


class Proposal(NamedTuple):
    """number: what the tuner calls it; a result is told under it."""

    number: int
    point: Point


class NniTuner:
    """One of NNI's tuners over a space: random | grid | tpe | evolution.

    The same seed and the same results give the same proposals: asking again and telling what is known already brings a
    tuner back to where it was. trials: how many are meant to be asked for; parallel: at most so many are untold.
    """

    def __init__(
        self, name: str, space: Space, *, seed: int, trials: int, parallel: int, maximise: bool
    ) -> None:
        self._space = space
        self._sign = 1.0 if maximise else -1.0
        self._worst: float | None = None
        self._numbers = 0
        self._random = random.Random(seed).getstate()  # NNI's evolution draws from the global generator
        self._finite = {
            str(number): {"_type": "choice", "_value": list(range(len(axis.values)))}
            for number, axis in enumerate(space.axes)
        }
        self._untold = 0
        self._room = math.inf
        population = min(MAX_POPULATION, max(MIN_POPULATION, trials // 4, 2 * parallel))
        with self._own_random():
            self._tuner = _make(name, seed, population)
            self._tuner.update_search_space(self._finite)
            if name in ("random", "tpe"):
                self._tuner.dedup = _Repeats()
            if name == "evolution":
                self._room = population - 1
                _seed_evolution(self._tuner, seed)

    @property
    def full(self) -> bool:
        """Whether results must be reported before the next proposal: evolution has a population of limited size."""
        return self._untold >= self._room

    def ask(self) -> Proposal | None:
        """The next proposal, which may repeat an earlier one; None when the tuner has no more (grid)."""
        import nni

        self._numbers += 1
        try:
            with self._own_random():
                parameters = self._tuner.generate_parameters(self._numbers)
        except nni.NoMoreTrialError:
            return None
        self._untold += 1
        return Proposal(self._numbers, tuple(parameters[str(n)] for n in range(len(self._space.axes))))

    def tell(self, proposal: Proposal, value: float | None) -> None:
        """The objective's value of a proposal; None (failed, infeasible, not a number) is as bad as the worst."""
        oriented = self._orient(value)
        self._untold -= 1
        with self._own_random():
            self._tuner.receive_trial_result(proposal.number, self._parameters(proposal.point), oriented)

    def learn(self, point: Point, value: float) -> None:
        """A result that this tuner did not ask for; those that cannot use one ignore it."""
        self._tuner.import_data([{"parameter": self._parameters(point), "value": self._orient(value)}])

    def _orient(self, value: float | None) -> float:
        """NNI maximises."""
        if value is None or not np.isfinite(value):
            return self._worst if self._worst is not None else (0.0 if self._sign > 0 else -1e9)
        oriented = self._sign * value
        self._worst = oriented if self._worst is None else min(self._worst, oriented)
        return oriented

    def _parameters(self, point: Point) -> dict[str, int]:
        return {str(number): position for number, position in enumerate(point)}

    @contextlib.contextmanager
    def _own_random(self) -> Iterator[None]:
        """The global generator in this tuner's state; training seeds it between two proposals."""
        outside = random.getstate()
        random.setstate(self._random)
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(outside)


class _Repeats:
    """In place of NNI's deduplication, which answers a repeated proposal with the next point in grid order: TPE would
    search the first corner of the space as soon as it has found something. A search answers repeats itself."""

    def __call__(self, parameters: Any) -> Any:
        return parameters

    def add_history(self, parameters: Any) -> None:
        pass


def _make(name: str, seed: int, population: int) -> Any:
    from nni.algorithms.hpo.evolution_tuner import EvolutionTuner
    from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
    from nni.algorithms.hpo.random_tuner import RandomTuner
    from nni.algorithms.hpo.tpe_tuner import TpeTuner

    logging.getLogger("nni").setLevel(logging.ERROR)  # "Using random seed 0", "num_running_trials"

    if name == "random":
        return RandomTuner(seed=seed)
    if name == "grid":
        return GridSearchTuner()
    if name == "tpe":
        return TpeTuner(optimize_mode="maximize", seed=seed)
    return EvolutionTuner(optimize_mode="maximize", population_size=population)


def _seed_evolution(tuner: Any, seed: int) -> None:
    """NNI 3.0 gives EvolutionTuner no seed: draw its first population again from a seeded generator."""
    tuner.random_state = np.random.RandomState(seed)
    tuner.population = []
    for _ in range(tuner.population_size):
        tuner._random_generate_individual()
