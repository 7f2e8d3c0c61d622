"""The tuner object alone, as NNI's dispatcher calls it: NNI's portal listens on all interfaces and cannot be bound to
127.0.0.1, so that no test starts an experiment."""

from __future__ import annotations

import doctest
from typing import Any

import nni
import numpy as np
import pytest
from nni.tuner import Tuner

import dxc.search.nni_tuner
from dxc.errors import SearchError
from dxc.search.nni_tuner import ParetoTuner

SPACE = {
    "kernel": {"_type": "choice", "_value": [3, 5, 7]},
    "pool": {"_type": "choice", "_value": ["none", "max"]},
    "depth": {"_type": "randint", "_value": [1, 4]},
    "width": {"_type": "quniform", "_value": [8, 24, 8]},
}  # 54 candidates


def costs_of(knobs: dict[str, Any]) -> dict[str, float]:
    return {"latency_ms": knobs["kernel"] * knobs["depth"], "price": knobs["width"]}


def _accuracy(knobs: dict[str, Any]) -> float:
    return 0.6 + 0.02 * knobs["kernel"] + 0.03 * knobs["depth"] + 0.002 * knobs["width"]


def _tuner(**changes: Any) -> ParetoTuner:
    tuner = ParetoTuner(**{"costs": costs_of, **changes})
    tuner.update_search_space(SPACE)
    return tuner


def test_an_experiment_of_every_candidate() -> None:
    """As NNI runs it: four at once, one fails, until the space is done; each is proposed once."""
    small = {
        "kernel": SPACE["kernel"],
        "depth": SPACE["depth"],
        "width": {"_type": "choice", "_value": [8, 16]},
    }
    tuner = ParetoTuner(costs_of)
    assert isinstance(tuner, Tuner)
    tuner.update_search_space(small)
    running = dict(enumerate(tuner.generate_multiple_parameters(list(range(4)))))
    proposed = list(running.values())
    for number in range(4, 100):
        ended, knobs = next(iter(running.items()))
        del running[ended]
        if ended == 2:
            tuner.trial_end(ended, success=False)
        else:
            tuner.receive_trial_result(ended, knobs, {"default": _accuracy(knobs), "loss": 0.3})
            tuner.trial_end(ended, success=True)
        for more in tuner.generate_multiple_parameters([number]):
            running[number] = more
            proposed.append(more)
        if not running:
            break
    assert len(proposed) == 18 == len({str(sorted(knobs.items())) for knobs in proposed})
    assert {knobs["kernel"] for knobs in proposed} == {3, 5, 7}
    with pytest.raises(nni.NoMoreTrialError):
        tuner.generate_parameters(100)


def test_more_at_once_than_the_first_candidates() -> None:
    assert len(_tuner().generate_multiple_parameters(list(range(12)))) == 12


def test_results_that_are_imported_count() -> None:
    """The tuner that was told and the one that imports the same choose the same next; numbers and dictionaries."""
    told, imported = _tuner(), _tuner()
    rows = []
    for number in range(8):
        knobs = told.generate_parameters(number)
        told.receive_trial_result(number, knobs, _accuracy(knobs))
        rows.append({"parameter": knobs, "value": {"default": _accuracy(knobs)}})
    imported.import_data([*rows, {"parameter": {"kernel": 99}, "value": 1.0}])
    assert told.generate_parameters(8) == imported.generate_parameters(8)


def test_costs_as_function_name_and_table() -> None:
    """The same candidates, the same costs, the same first choices; a table may leave candidates out."""
    tuner = _tuner()
    table = [
        {"parameters": knobs, "costs": costs_of(knobs)}
        for knobs in tuner._candidates.values()
        if knobs["kernel"] != 7
    ]
    assert tuner.generate_parameters(0) == _tuner(costs=f"{__name__}:costs_of").generate_parameters(0)
    of_table = _tuner(costs=table)
    assert len(of_table._candidates) == 36
    assert {of_table.generate_parameters(n)["kernel"] for n in range(10)} <= {3, 5}


def test_a_measured_cost_replaces_the_expected_one() -> None:
    tuner = _tuner()
    knobs = tuner.generate_parameters(0)
    tuner.receive_trial_result(0, knobs, {"default": 0.8, "latency_ms": 123.0, "price": float("nan")})
    search = tuner._front_search()
    row = list(tuner._candidates.values()).index(knobs)
    np.testing.assert_array_equal(search._losses[row], [123.0, knobs["width"]])


def test_directions_and_scale() -> None:
    """A loss of noise 3 is accuracy of noise 0.03, a hundredth with the sign turned; a cost to be maximised too."""
    tuner = _tuner(optimize_mode="minimize", noise=3.0, maximise=["price"])
    knobs = tuner.generate_parameters(0)
    tuner.receive_trial_result(0, knobs, 50.0)
    assert next(iter(tuner._results.values())) == pytest.approx([-0.5])
    assert (tuner._front_search()._losses[:, 1] < 0).all()


def test_a_result_that_is_no_number_failed() -> None:
    tuner = _tuner()
    for number, value in enumerate([float("nan"), "good", {"loss": 0.1}, True]):
        tuner.receive_trial_result(number, tuner.generate_parameters(number), value)
    assert len(tuner._failed) == 4 and not tuner._results


def test_a_large_space_is_sampled() -> None:
    large = {f"k{n}": {"_type": "randint", "_value": [0, 50]} for n in range(6)}
    tuner = ParetoTuner(max_candidates=200)
    tuner.update_search_space(large)
    assert len(tuner._candidates) == 200
    assert {len({knobs[key] for knobs in tuner._candidates.values()}) > 40 for key in large} == {True}


@pytest.mark.parametrize(
    ("arguments", "space", "says"),
    [
        ({}, {"lr": {"_type": "loguniform", "_value": [1e-4, 1e-1]}}, "lr is of type loguniform.*choice"),
        ({"costs": "no_such_module:f"}, SPACE, "module:function"),
        ({"costs": []}, SPACE, "no candidate of the search space"),
        ({"costs": [{"latency_ms": 3}]}, SPACE, "no table"),
        ({"costs": lambda knobs: {"ms": float("nan")}}, SPACE, "finite number for each of ms"),
        ({"maximise": ["fps"]}, SPACE, "maximise names fps"),
        ({"optimize_mode": "max"}, SPACE, "choose maximize or minimize"),
        ({"noise": 0.0}, SPACE, "must be above 0"),
    ],
)
def test_what_a_user_can_get_wrong(arguments: dict[str, Any], space: dict[str, Any], says: str) -> None:
    with pytest.raises(SearchError, match=says):
        ParetoTuner(**arguments).update_search_space(space)


def test_the_example_runs() -> None:
    assert doctest.testmod(dxc.search.nni_tuner) == doctest.TestResults(failed=0, attempted=4)
