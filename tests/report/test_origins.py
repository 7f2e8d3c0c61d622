"""Headings say what is predicted and what is measured, and a line says of which machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from dxc.analysis.analyze import machines_of
from dxc.hardware.costs import predicted_for
from dxc.metrics import METRICS, Metric, label_of, metric_of, title_of
from dxc.report.figures import main_effects, pairs, radar
from dxc.report.findings import answer, machines_in_words
from tests.analysis.test_few_runs import _analyze, _store
from tests.report.test_figures import _assert_readable

Designs = tuple[pd.DataFrame, dict[str, Metric], list[str]]
BOTH = {name: METRICS[name] for name in ("accuracy", "latency_ms", "measured_latency_ms", "peak_memory_mb")}


def test_every_metric_says_where_it_comes_from() -> None:
    assert {each.origin for each in METRICS.values()} == {
        "predicted", "measured", "counted", "trained", "mapped",
    }  # fmt: skip
    predicted = {name for name, each in METRICS.items() if each.origin == "predicted"}
    assert predicted == {"latency_ms", "latency_std_ms"}
    measured = {name for name, each in METRICS.items() if each.origin == "measured"}
    assert measured == {
        "measured_latency_ms", "measured_latency_p95_ms", "efficiency_ms", "optimum_batch", "peak_memory_mb",
        "sequential_latency_ms", "scheduled_latency_ms", "device_accuracy", "energy_mj", "net_energy_mj",
        "max_power_w", "fom", "seconds_per_km2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("latency_ms", "predicted latency (ms)"),
        ("latency_ms/pi4", "predicted latency pi4 (ms)"),
        ("measured_latency_ms", "measured latency (ms)"),
        ("measured_latency_p95_ms", "measured latency, 95 % (ms)"),
        ("efficiency_ms", "measured latency / batch (ms)"),
        ("scheduled_latency_ms", "measured latency, scheduled (ms)"),
        ("peak_memory_mb", "measured peak memory (MB)"),
        ("onnx_mb", "ONNX file (MB)"),
        ("accuracy", "accuracy (fraction)"),
        ("fit_seconds", "training time (s)"),
        ("map_recall/5m", "map recall 5m (fraction)"),
        ("false_alarms_per_km2", "false alarms (1/km2)"),
        ("seconds_per_km2", "measured mapping time (s/km2)"),
    ],
)
def test_headings(name: str, label: str) -> None:
    assert label_of(name, metric_of(name)) == label


def test_no_two_metrics_share_a_title() -> None:
    assert len({title_of(name) for name in METRICS}) == len(METRICS)


def test_what_predictors_describe() -> None:
    mine = {"runtime": "onnxruntime", "runtime_version": "1.2", "threads": 2, "device": "Pi 5"}
    assert predicted_for({"cortexA76cpu_tflite21": {}}) == "cortexA76cpu_tflite21"
    assert predicted_for({"a": {}, "mine": mine}) == "a; mine (onnxruntime 1.2, 2 threads, Pi 5)"
    assert predicted_for({"mine": {**mine, "threads": 1}}) == "mine (onnxruntime 1.2, 1 thread, Pi 5)"


def test_machines_are_counted_over_runs() -> None:
    runs = pd.DataFrame(
        {"run_id": list("abcd"), "dxc.predicted_for": ["x", "y", "y", None], "dxc.measured_on": ["pi"] * 4},
        dtype="category",
    )
    assert machines_of(runs, BOTH) == {"predicted": {"y": 2, "x": 1, "": 1}, "measured": {"pi": 4}}
    accuracy = {"accuracy": METRICS["accuracy"]}
    assert machines_of(runs, accuracy) == {}
    chips = runs.assign(**{"dxc.source": ["8 synthetic chips (seed 0)", None, None, "chips of NE"]})
    assert machines_of(chips, accuracy) == {
        "trained": {"": 2, "8 synthetic chips (seed 0)": 1, "chips of NE": 1}
    }
    assert machines_of(chips, {"latency_ms": METRICS["latency_ms"]}) == {"predicted": {"y": 2, "x": 1, "": 1}}
    bare = runs[["run_id"]]
    assert machines_of(bare, {"latency_ms": METRICS["latency_ms"]}) == {"predicted": {"": 4}}


def test_where_runs_differ_each_machine_is_named(store_file: Path) -> None:
    """Of a store: two runs for one device, one for another, in the answer and under the tables."""
    from mlflow import MlflowClient

    uri = _store(store_file, [0.7, 0.8, 0.9])
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("few").experiment_id])
    for run, machine in zip(runs, ["x", "x", "y"], strict=True):
        client.set_tag(run.info.run_id, "dxc.predicted_for", machine)
        client.set_tag(run.info.run_id, "dxc.source", "8 synthetic chips (seed 0)")
    analysis, folder = _analyze(uri)
    line = "predicted: latency for x (2 runs) | y (1 run)"
    assert line in (folder / "answer.txt").read_text().splitlines()
    chips = "trained:   accuracy on 8 synthetic chips (seed 0)"
    assert chips in (folder / "answer.txt").read_text().splitlines()
    note = f"trained: accuracy on 8 synthetic chips (seed 0). {line}"
    assert (folder / "front.md").read_text().endswith(f"\n\n{note}\n".replace("|", "\\|"))
    assert (folder / "front.tex").read_text().startswith(f"% {note}\n")
    assert "on 8 synthetic chips (seed 0). predicted: latency for x" in (folder / "index.html").read_text()
    assert (folder / "front.csv").read_text().count(
        "predicted"
    ) == 1  # the heading: a table of values stays one
    many = replace(analysis, machines={"trained": {f"chips of {name}": 1 for name in "abcdefgh"}})
    (said,) = machines_in_words(many)
    assert said.startswith("trained:   accuracy on chips of a (1 run) | ") and said.endswith(" | 2 others")
    several = replace(analysis, objectives=BOTH, machines={"predicted": {"": 3}, "measured": {"pi": 3}})
    assert machines_in_words(several) == [
        "predicted: latency for a machine that no tag names",
        "measured:  latency, peak memory on pi",
    ]
    assert answer(several)[1:3] == machines_in_words(several)


@pytest.mark.long
def test_figures_carry_the_line(by_chance: Callable[..., Designs]) -> None:
    designs, known, knobs = by_chance(40)
    note = (
        "predicted: latency_ms for one machine with a long name; and for another with a longer name, as it is"
    )
    for figure in (
        pairs(designs, known, note=note),
        main_effects(designs, known, knobs, note=note),
        radar(designs, known, knobs, note=note),
    ):
        said = [text.get_text() for text in figure.texts]
        if figure._supxlabel is not None:
            said.append(figure._supxlabel.get_text())
        assert note in " ".join(" ".join(said).split())
        _assert_readable(figure)
    assert pairs(designs, known)._supxlabel is None


def test_the_published_table_is_predicted() -> None:
    from dxc.analysis.published import published_study

    study = published_study("resnet18")
    assert study.baseline is not None
    for runs in (study.runs, study.baseline):
        (machine,) = runs["dxc.predicted_for"].unique()
        assert machine.split("; ") == [
            "cortexA76cpu_tflite21", "adreno640gpu_tflite21", "adreno630gpu_tflite21", "myriadvpu_openvino2019r2"
        ]  # fmt: skip
