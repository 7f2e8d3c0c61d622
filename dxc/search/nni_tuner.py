"""search.tuner=pareto as an NNI tuner, for anyone's NNI experiment.

In an experiment of NNI's own (it reads class_args as JSON, so a function goes by its name):

    config.search_space = {
        "kernel": {"_type": "choice", "_value": [3, 5, 7]},
        "width": {"_type": "quniform", "_value": [8, 64, 8]},
    }
    config.tuner = CustomAlgorithmConfig(
        class_name="dxc.search.nni_tuner.ParetoTuner",
        class_args={"costs": "my_package.my_costs:of"},
    )

As an object:

    >>> tuner = ParetoTuner(costs=lambda knobs: {"latency_ms": knobs["kernel"] ** 2 * knobs["width"] / 100})
    >>> tuner.update_search_space({
    ...     "kernel": {"_type": "choice", "_value": [3, 5, 7]},
    ...     "width": {"_type": "quniform", "_value": [8, 24, 8]},
    ... })
    >>> for number in range(6):
    ...     knobs = tuner.generate_parameters(number)
    ...     tuner.receive_trial_result(number, knobs, 0.8 + 0.01 * knobs["kernel"] + 0.001 * knobs["width"])
    >>> sorted(tuner.generate_parameters(6))
    ['kernel', 'width']

A trial reports accuracy (nni.report_final_result(0.93)), or a dictionary of it and of costs that it measured
({"default": 0.93, "latency_ms": 4.1}): a measured cost replaces the one that was expected.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nni
import numpy as np
from nni.tuner import Tuner

from dxc.errors import SearchError, is_number
from dxc.search.front import PRIOR_FOLD_STD, Candidates, FrontSearch, knob_groups, knob_numbers
from dxc.search.states import Rung

Knobs = dict[str, Any]
CostFunction = Callable[[Knobs], Mapping[str, float]]
Costs = CostFunction | Sequence[Mapping[str, Any]] | str | None

TRAINING = Rung(folds=1, epochs=1)  # NNI knows whole trainings only
MAX_CANDIDATES = 10_000

log = logging.getLogger(__name__)


class ParetoTuner(Tuner):
    """Proposes the trial whose expected improvement of the front of accuracy and costs is largest.

    Args:
        costs: what each candidate costs, known before it is trained. A function from a candidate's parameters to
            {cost: value}; its name as 'module:function'; or a table, a row a candidate:
            [{"parameters": {...}, "costs": {"latency_ms": 4.1}}]. Candidates that the table has not are not proposed.
            None: accuracy alone.
        maximise: names of costs that are better where they are larger.
        optimize_mode: 'maximize' where a trial reports accuracy, 'minimize' where it reports a loss.
        noise: standard deviation of the result when the same candidate is trained again. A guess does: it is corrected
            by what is seen.
        seed: of the first candidates.
        max_candidates: of a larger space, so many are drawn at random.
    """

    def __init__(
        self,
        costs: Costs = None,
        *,
        maximise: Sequence[str] = (),
        optimize_mode: str = "maximize",
        noise: float = PRIOR_FOLD_STD,
        seed: int = 0,
        max_candidates: int = MAX_CANDIDATES,
    ) -> None:
        if optimize_mode not in ("maximize", "minimize"):
            raise SearchError(f"optimize_mode={optimize_mode} is unknown; choose maximize or minimize")
        if not noise > 0:
            raise SearchError(f"noise={noise} must be above 0: the spread of a result in repeated trainings")
        self._cost_of = _cost_function(costs)
        self._maximise = set(maximise)
        self._scale = (1.0 if optimize_mode == "maximize" else -1.0) * PRIOR_FOLD_STD / noise
        self._seed = seed
        self._max_candidates = max_candidates
        self._random = random.Random(seed)
        self._candidates: dict[str, Knobs] = {}
        self._known: dict[str, dict[str, float]] = {}
        self._cost_names: list[str] = []
        self._search: FrontSearch | None = None
        self._busy: dict[int, str] = {}
        self._failed: set[str] = set()
        self._results: dict[str, list[float]] = {}

    def update_search_space(self, search_space: Mapping[str, Mapping[str, Any]]) -> None:
        """Take a space of NNI's types choice, randint and quniform; results that lie in it are kept."""
        self._candidates, self._known = {}, {}
        for knobs in _candidates(search_space, self._max_candidates, self._seed):
            costs = self._cost_of(knobs)
            if costs is not None:
                self._candidates[_name(knobs)] = knobs
                self._known[_name(knobs)] = dict(costs)
        if not self._candidates:
            raise SearchError(
                "the table of costs has no candidate of the search space: compare their parameters"
            )
        self._cost_names = sorted(next(iter(self._known.values())))
        for name, costs in self._known.items():
            if sorted(costs) != self._cost_names or not all(
                is_number(value) and math.isfinite(value) for value in costs.values()
            ):
                raise SearchError(
                    f"costs of {name} are {costs}: every candidate needs a finite number for each of "
                    f"{', '.join(self._cost_names) or 'no cost'}"
                )
        if unknown := self._maximise - set(self._cost_names):
            raise SearchError(f"maximise names {', '.join(sorted(unknown))}, which costs do not give")
        self._search = None

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Knobs:
        """The next candidate. Raises nni.NoMoreTrialError when all of them were tried."""
        if not self._candidates:
            raise SearchError(
                "generate_parameters before update_search_space: the tuner has no candidates yet"
            )
        busy = list(self._busy.values())
        seen = {name: {TRAINING: [float(np.mean(values))]} for name, values in self._results.items()}
        chosen = self._front_search().next(
            seen, busy=busy, without=sorted(self._failed), count=1, epochs_left=len(self._candidates) + 1
        )
        if chosen:
            name = chosen[0][0]
        else:  # nothing is left, or more trials run at once than the first candidates, and none has ended
            left = sorted(self._candidates.keys() - self._results.keys() - self._failed - set(busy))
            if not left:
                raise nni.NoMoreTrialError("every candidate was tried")
            name = self._random.choice(left)
        self._busy[parameter_id] = name
        return dict(self._candidates[name])

    def receive_trial_result(self, parameter_id: int, parameters: Knobs, value: Any, **kwargs: Any) -> None:
        """Take a trial's final result: a number, or {"default": number} with costs that it measured."""
        self._busy.pop(parameter_id, None)
        self._learn(parameters, value)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """A trial that failed without a result is not proposed again."""
        name = self._busy.pop(parameter_id, None)
        if name is not None:
            self._failed.add(name)

    def import_data(self, data: Any) -> None:
        """Results of an earlier experiment: [{"parameter": {...}, "value": ...}], as NNI exports them."""
        for row in json.loads(data) if isinstance(data, str) else data:
            trial = json.loads(row) if isinstance(row, str) else row
            self._learn(trial["parameter"], trial["value"])

    def _learn(self, parameters: Knobs, value: Any) -> None:
        name = _name(parameters)
        if name not in self._candidates:
            log.warning("ignored the result of %s: it is not in the search space", name)
            return
        reported = value if isinstance(value, Mapping) else {"default": value}
        result: Any = reported.get("default")
        if not is_number(result) or not math.isfinite(result):
            log.warning("%s failed: its result is %r, no finite number", name, result)
            self._failed.add(name)
            return
        self._failed.discard(name)
        self._results.setdefault(name, []).append(self._scale * result)
        measured = {
            cost: float(reported[cost])
            for cost in self._cost_names
            if is_number(reported.get(cost)) and math.isfinite(reported[cost])
        }
        if measured:
            self._known[name] |= measured
            self._search = None

    def _front_search(self) -> FrontSearch:
        if self._search is None:
            rows = list(self._candidates.values())
            costs = [[self._known[name][cost] for cost in self._cost_names] for name in self._candidates]
            candidates = Candidates(
                list(self._candidates),
                knob_numbers(rows),
                np.array(costs, dtype=float).reshape(len(rows), -1),
                self._cost_names,
                groups=knob_groups(rows),
                maximise=[cost in self._maximise for cost in self._cost_names],
            )
            self._search = FrontSearch(candidates, [TRAINING], seed=self._seed)
        return self._search


def _name(knobs: Mapping[str, Any]) -> str:
    return json.dumps(knobs, sort_keys=True)


def _cost_function(costs: Costs) -> Callable[[Knobs], Mapping[str, float] | None]:
    """None for a candidate that a table has not."""
    if costs is None:
        return lambda knobs: {}
    if callable(costs):
        return costs
    if isinstance(costs, str):
        module, _, function = costs.partition(":")
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise SearchError(
                f"costs={costs} is no function ({error}): write module:function, and put the module where Python "
                "finds it (code_directory of the tuner's configuration)"
            ) from error
        return found
    try:
        table = {_name(row["parameters"]): dict(row["costs"]) for row in costs}
    except (TypeError, KeyError, ValueError) as error:
        raise SearchError(
            f'costs is no table of [{{"parameters": {{...}}, "costs": {{...}}}}]: {error!r}'
        ) from error
    return lambda knobs: table.get(_name(knobs))


def _candidates(space: Mapping[str, Mapping[str, Any]], limit: int, seed: int) -> list[Knobs]:
    """All points of a space, or `limit` different ones drawn at random."""
    axes = [_values(key, spec) for key, spec in space.items()]
    size = math.prod(len(values) for values in axes)
    if size <= limit:
        points = list(itertools.product(*axes))
    else:
        log.warning("the space has %d points: the tuner chooses among %d drawn at random", size, limit)
        numbers = random.Random(seed).sample(range(size), limit) if size < 2**63 else []
        numbers = numbers or sorted({random.Random(seed + n).randrange(size) for n in range(limit)})
        points = [_point(number, axes) for number in numbers]
    return [dict(zip(space, point, strict=True)) for point in points]


def _point(number: int, axes: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """The point that has this number in the order of itertools.product."""
    values = []
    for axis in reversed(axes):
        number, position = divmod(number, len(axis))
        values.append(axis[position])
    return tuple(reversed(values))


def _values(key: str, spec: Mapping[str, Any]) -> list[Any]:
    """The values of one of NNI's finite types."""
    kind, values = spec.get("_type"), spec.get("_value", [])
    if kind == "choice" and not any(isinstance(value, Mapping) for value in values):
        found = list(values)
    elif kind == "randint":
        found = list(range(*values))
    elif kind == "quniform":
        low, high, step = values
        # as NNI does: multiples of the step, clipped to the ends
        multiples = range(round(low / step), round(high / step) + 1)
        found = sorted({min(max(multiple * step, low), high) for multiple in multiples})
    else:
        raise SearchError(
            f"{key} is of type {kind}: ParetoTuner compares candidates that it can list. Write it as a choice (not a "
            "nested one), randint or quniform"
        )
    if not found:
        raise SearchError(f"{key} has no values")
    return found
