"""Runs become designs: repeats, what is missing, what cannot be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dxc.analysis.designs import (
    comparable_by,
    default_objectives,
    designs_of,
    parse_objectives,
    require_comparable,
)
from dxc.errors import AnalysisError
from dxc.metrics import METRICS, UNDECLARED

RUNS = pd.DataFrame(
    {
        "run_id": ["r1", "r2", "r3", "r4"],
        "name": ["wide", "wide", "narrow", "broken"],
        "accuracy": [0.90, 0.94, 0.80, 0.99],
        "accuracy_std": [0.01, 0.02, 0.03, 0.04],
        "latency_ms": [5.0, 5.0, 2.0, np.nan],
        "flops": [1.0, 1.0, 2.0, 3.0],
        "hardware": ["cpu", "cpu", "cpu", "pi"],
        "dxc.data": ["d", "d", "d", "d"],
        "dxc.design": ["A", "A", "B", "C"],
        "dxc.trial": ["t1", "t2", "t3", "t4"],
        "data": "7ch",
        "model._target_": "dxc.models.resnet.ResNet",
        "model.width": ["64", "64", "32", "32"],
        "model.pool": ["max", "max", "none", "none"],
        "model.pool_kernel": ["3", "3", "2", "2"],
        "data.cache_dir": ["/a", "/b", "/c", "/d"],
    }
)


def test_repeats_are_one_row() -> None:
    objectives = parse_objectives(["accuracy", "latency_ms"], RUNS)
    found = designs_of(RUNS, objectives)
    wide, narrow = (row for _, row in found.frame.iterrows())
    assert (wide["n"], wide["runs"], wide["trial"]) == (2, ["r1", "r2"], "t2")
    assert wide["accuracy"] == pytest.approx(0.92)
    assert wide["spread.accuracy"] == pytest.approx(np.sqrt(0.0008))  # over the repeats
    assert narrow["spread.accuracy"] == 0.03  # over its folds
    assert np.isnan(narrow["spread.latency_ms"])
    # a pool's kernel means nothing without a pool; what all share, and paths, are no knobs
    assert found.knobs == ["model.width", "model.pool", "model.pool_kernel"]
    assert wide["model.pool_kernel"] == 3 and np.isnan(narrow["model.pool_kernel"])
    assert found.aside.to_dict("records") == [{"run_id": "r4", "name": "broken", "reason": "no latency_ms"}]


def test_objectives_with_a_direction() -> None:
    found = parse_objectives(["accuracy", "flops:min"], RUNS)
    assert [each.maximise for each in found.values()] == [True, False]
    assert found["accuracy"].unit == "fraction" and found["flops"].unit == ""
    assert parse_objectives(["accuracy:min"], RUNS)["accuracy"].maximise is False


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["energy"], r"no run logged energy; runs that logged one: accuracy \(4\), .*latency_ms \(3\)"),
        (["flops"], "the direction of flops is not known; write flops:min or flops:max"),
        (["accuracy:up"], "accuracy:up must end in :min or :max"),
        (["hardware"], "no run logged hardware"),
        ([], "objectives is empty"),
    ],
)
def test_objectives_that_cannot_be(names: list[str], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        parse_objectives(names, RUNS)


def test_the_default_objectives_are_those_of_the_study() -> None:
    assert default_objectives(RUNS) == ["accuracy", "latency_ms", "onnx_mb"]  # no run says
    detectors = RUNS.assign(score="average_precision")
    assert default_objectives(detectors) == ["average_precision", "latency_ms", "onnx_mb"]
    assert (
        default_objectives(RUNS.assign(score=["\x1b[2J", None, "fold1/val_accuracy", "x"]))[0] == "accuracy"
    )
    both = RUNS.assign(score=["average_precision", "average_precision", "accuracy", None])
    with pytest.raises(AnalysisError) as caught:
        default_objectives(both)
    assert "different scores: average_precision (2 runs), accuracy (1 run)" in str(caught.value)
    assert "\"where=score == 'average_precision'\"" in str(caught.value)


def test_the_default_objectives_are_known_of_quantised_runs_too() -> None:
    """Predictors describe kernels in float32; a latency that was measured on all of them stands in."""
    runs = RUNS.assign(**{"compress.quantise": "none", "latency_ms": 1.0, "measured_latency_ms": 2.0})
    assert default_objectives(runs) == ["accuracy", "latency_ms", "onnx_mb"]
    runs.loc[0, ["compress.quantise", "latency_ms"]] = ["static", float("nan")]
    assert default_objectives(runs) == ["accuracy", "measured_latency_ms", "onnx_mb"]
    runs.loc[1, "measured_latency_ms"] = float("nan")
    assert default_objectives(runs) == ["accuracy", "onnx_mb"]


def test_pruned_beside_unpruned_is_a_knob() -> None:
    """Runs that compress nothing have no parameters of it; further keys of the only pruned kind say nothing."""
    fraction = {"compress.fraction": [None, "0.5", "0.5", None], "compress.align": [None, "8", "8", None]}
    found = designs_of(RUNS.assign(**fraction), parse_objectives(["accuracy"], RUNS))
    assert "compress.fraction" in found.knobs and "compress.align" not in found.knobs


def test_knobs_of_compression() -> None:
    """0 and none are values of designs that are not compressed; the knobs of what is not done are missing."""
    runs = RUNS.assign(
        **{
            "compress.fraction": ["0", "0.5", "0.5", "0"],
            "compress.finetune_epochs": ["5", "0", "3", "3"],
            "compress.finetune_lr": ["0.1", "None", "None", "None"],
            "compress.quantise": ["none", "none", "static", "dynamic"],
            "compress.calibration_images": ["10", "20", "30", "40"],
            "dxc.design": ["a", "b", "c", "d"],
        }
    )
    found = designs_of(runs, parse_objectives(["accuracy"], runs))
    columns = found.frame[[each for each in found.knobs if each.startswith("compress.")]]
    expected = {
        "compress.fraction": [0, 0.5, 0.5, 0],
        "compress.finetune_epochs": [None, 0, 3, None],
        "compress.quantise": ["none", "none", "static", "dynamic"],
    }
    shown = columns.astype(object).where(columns.notna(), None).to_dict("list")
    assert shown == expected


def test_runs_of_other_hardware_are_not_mixed() -> None:
    """What dxc does not know may depend on the hardware; an accuracy does not."""
    objectives = parse_objectives(["flops:min"], RUNS)
    with pytest.raises(AnalysisError) as caught:
        require_comparable(RUNS, objectives, [])
    assert "hardware (hardware): 'cpu' (3 runs), 'pi' (1 run)" in str(caught.value)
    assert "\"where=hardware == 'cpu'\", or ask for the mixture: mix=[hardware]" in str(caught.value)
    require_comparable(RUNS, objectives, ["hardware"])
    require_comparable(RUNS[RUNS["hardware"] == "cpu"], objectives, [])
    require_comparable(RUNS, parse_objectives(["accuracy"], RUNS), [])


CHIPS = {"dxc.data", "data.split"}
PREDICTORS = {"dxc.predictors", "dxc.packages"}
MACHINE = {"dxc.measured_on", "hardware.affinity"}
METER = MACHINE | {"dxc.energy_meter"}
MAP = {"dxc.mapped", "dxc.map_mode", "dxc.map_fold", "dxc.map_roads"}
COMPARABLE_BY = {
    "accuracy": CHIPS,
    "accuracy_std": CHIPS,
    "accuracy_drop": CHIPS,
    "average_precision": CHIPS,
    "f1": CHIPS,
    "auroc": CHIPS,
    "box_ap50": CHIPS,
    "box_ap": CHIPS,
    "mean_iou": CHIPS,
    "recall_at_precision": CHIPS | {"task.min_precision"},
    "calibration_error": CHIPS,
    "map_recall": MAP,
    "map_recall_at_false_alarms": MAP | {"alarms_per_km2"},
    "map_precision": MAP,
    "map_average_precision": MAP,
    "false_alarms_per_km2": MAP,
    "false_alarms_per_road_km": MAP,
    "flow_passes": MAP,
    "ponded_km2": MAP,
    "cells_changed": MAP,
    "seconds_per_km2": MACHINE | MAP,
    "latency_ms": PREDICTORS,
    "latency_std_ms": PREDICTORS,
    "uncovered_macs_share": PREDICTORS,
    "measured_latency_ms": MACHINE,
    "measured_latency_p95_ms": MACHINE,
    "efficiency_ms": MACHINE | {"hardware.batches"},
    "optimum_batch": MACHINE | {"hardware.batches"},
    "sequential_latency_ms": {"dxc.scheduled_on"},
    "scheduled_latency_ms": {"dxc.scheduled_on"},
    "peak_memory_mb": MACHINE,
    "device_accuracy": CHIPS | MACHINE,
    "energy_mj": METER,
    "net_energy_mj": METER,
    "max_power_w": METER,
    "fom": CHIPS | METER,
    "onnx_mb": set(),
    "params": set(),
    "macs": set(),
    "fold_score": CHIPS,
    "fit_seconds": {"device", "dxc.engine", "dxc.data"},
    "images_per_second": {"device", "dxc.engine"},
    **{
        name: {"dxc.measured_on", "batch", "size"}
        for name in (
            "speedup", "scaling_efficiency", "added_speedup", "communication_share", "loader_share", "roofline_share",
            "seconds_to_accuracy", "accuracy_speedup", "device_hours", "price", "price_per_point",
        )
    },
}  # fmt: skip


FACTS = UNDECLARED | {fact: words for each in METRICS.values() for fact, words in each.comparable_by.items()}


@pytest.mark.parametrize("metric", METRICS)
def test_what_each_metric_is_compared_by(metric: str) -> None:
    """One fact that differs, each in turn: it is refused where the metric depends on it, and nowhere else."""
    facts = COMPARABLE_BY[metric]
    assert facts == METRICS[metric].comparable_by.keys()
    alike = RUNS[:2].assign(**{metric: [8.0, 40.0]}, **dict.fromkeys(FACTS, "same"))
    objectives = parse_objectives([metric], alike)
    require_comparable(alike, objectives, [])
    assert list(designs_of(alike, objectives).frame[metric]) == [24.0]  # repeats of one design
    for fact in FACTS:
        differing = alike.assign(**{fact: ["one", "other"]})
        if fact not in facts:
            require_comparable(differing, objectives, [])
            continue
        with pytest.raises(AnalysisError, match=rf"{fact} \(.*\): 'one' \(1 run\), 'other' \(1 run\)"):
            require_comparable(differing, objectives, [])
        require_comparable(differing, objectives, [fact])
        found = designs_of(differing, objectives).frame  # mixed, and no mean of two that are not one thing
        assert list(found[metric]) == [8.0, 40.0] and list(found["n"]) == [1, 1]


def test_one_predictors_latency_is_compared_by_what_the_mean_is() -> None:
    runs = RUNS.assign(**{"latency_ms/pi4": 1.0})
    assert set(comparable_by(parse_objectives(["latency_ms/pi4", "latency_ms"], runs))) == PREDICTORS


def test_a_missing_fact_splits_no_repeats() -> None:
    runs = RUNS[:2].assign(**{"dxc.predictors": pd.Categorical([None, None]), "dxc.packages": [np.nan] * 2})
    assert list(designs_of(runs, parse_objectives(["latency_ms"], runs)).frame["n"]) == [2]


def test_hardware_is_a_knob() -> None:
    """Designs that differ in their device say in what; addresses and limits are none of their knobs."""
    runs = RUNS.assign(
        **{
            "hardware.name": ["cpu", "cpu", "cpu", "pi"],
            "hardware.threads": ["1", "1", "4", "4"],
            "hardware.predictors": ["['a']", "['a']", "['b']", "['b']"],
            "hardware.host": [None, None, "pi@10.0.0.7", None],
            "hardware.python": ["p", "p", "q", "q"],
            "hardware.limits.latency_ms": ["1", "1", "2", "2"],
        }
    )
    found = designs_of(runs, parse_objectives(["accuracy"], runs))
    hardware = [knob for knob in found.knobs if knob.startswith("hardware")]
    assert hardware == ["hardware", "hardware.threads", "hardware.predictors"]


def test_runs_without_the_tag_are_not_mixed_in() -> None:
    objectives = parse_objectives(["flops:min"], RUNS)
    some = RUNS.assign(hardware=pd.Categorical(["cpu", "cpu", "cpu", None]))
    with pytest.raises(AnalysisError) as caught:
        require_comparable(some, objectives, [])
    assert "hardware (hardware): 'cpu' (3 runs), none (1 run)" in str(caught.value)
    assert "\"where=hardware == 'cpu'\", or ask for the mixture: mix=[hardware]" in str(caught.value)
    most = RUNS.assign(hardware=["cpu", None, np.nan, None])
    with pytest.raises(
        AnalysisError, match=r"none \(3 runs\), 'cpu' \(1 run\)\nAsk for the mixture: mix=.hard"
    ):
        require_comparable(most, objectives, [])
    require_comparable(RUNS.assign(hardware=None), objectives, [])
    # one that was not measured has no machine, and is set aside
    measured = RUNS[:2].assign(measured_latency_ms=[1.0, np.nan], **{"dxc.measured_on": ["pi", None]})
    require_comparable(measured, parse_objectives(["measured_latency_ms"], measured), [])


def test_what_is_not_finite_is_set_aside() -> None:
    """MLflow stores infinity as the largest float."""
    runs = RUNS.assign(
        latency_ms=[-np.inf, 5.0, 1.7976931348623157e308, np.nan], accuracy=[0.9, 0.9, np.inf, np.inf]
    )
    found = designs_of(runs, parse_objectives(["accuracy", "latency_ms"], runs))
    assert list(found.frame["run_id"]) == ["r2"]
    assert list(found.aside["reason"]) == [
        "not finite: latency_ms", "not finite: accuracy, latency_ms", "no latency_ms; not finite: accuracy"
    ]  # fmt: skip


def test_no_trial_is_no_text() -> None:
    runs = RUNS.assign(**{"dxc.trial": pd.Categorical(["t1", None, None, "t4"])})
    assert list(designs_of(runs, parse_objectives(["accuracy"], runs)).frame["trial"]) == ["", "", "t4"]


def test_the_spread_of_a_predicted_latency_is_over_its_predictors() -> None:
    runs = RUNS.assign(latency_std_ms=[1.0, 3.0, 0.5, np.nan])
    found = designs_of(runs, parse_objectives(["latency_ms"], runs))
    assert list(found.frame["spread.latency_ms"]) == [2.0, 0.5]
