"""The loop of a search, in this process, on real chips and a real store."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dxc.config.identity import UNRECORDED
from dxc.config.plan import Plan
from dxc.data.folds import Fold
from dxc.errors import ConfigError, SearchError, TrackingError
from dxc.metrics import METRICS
from dxc.search.ledger import Entry, Ledger, rungs_to
from dxc.search.states import Rung
from dxc.tracking.record import Record
from dxc.tracking.store import Store
from tests.search.searches import Searching, composed


@pytest.mark.long
@pytest.mark.usefixtures("with_figures")
def test_a_whole_grid(searching: Searching, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight points are five trials; each is trained once and is everything that a run of train.py is."""
    runs = searching("search.tuner=grid", "model.pool_kernel=2,3")
    assert len(runs) == 6 and len(set(searching.launched)) == len(searching.launched) == 6
    client = MlflowClient(searching.uri)
    (parent,) = Store(searching.uri, "first", patience_s=0).runs(dxc__kind="study")
    assert parent.status == "FINISHED"
    (dataset,) = client.get_run(parent.run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == (
        parent.tags["dxc.source"],
        runs[0].tags["dxc.data"],
    )
    assert parent.tags["dxc.source"] == runs[0].tags["dxc.source"] and parent.tags["dxc.source"]
    # one sheet of chips a study
    assert [each.path for each in client.list_artifacts(parent.run_id, "figures")] == ["figures/chips.jpg"]
    for run in runs:
        assert run.status == "FINISHED" and run.tags["dxc.state"] == "finished"
        assert run.tags["mlflow.parentRunId"] == parent.run_id
        assert {"accuracy", "onnx_mb", "macs", "fit_seconds", "val_accuracy.fold1"} <= set(run.metrics)
        assert {"dxc.design", "dxc.data", "device", "model", "data"} <= set(run.tags)
        names = {each.path for each in client.list_artifacts(run.run_id)}
        assert {"model.onnx", "config.yaml", "predictions.parquet"} <= names
        drawn = {each.path for each in client.list_artifacts(run.run_id, "figures")}
        assert "figures/most_wrong.jpg" in drawn and "figures/chips.jpg" not in drawn
        stored = client.get_run(run.run_id)
        assert stored.data.params["model.width"] == "4" and "search.tuner" not in stored.data.params
        assert (searching.folder / run.tags["dxc.trial"] / "record.json").exists()
        assert not (searching.folder / run.tags["dxc.trial"] / "folds").exists()
    shown = capsys.readouterr().out
    assert "8 points, 6 distinct trials of 6 networks" in shown
    assert shown.count("accuracy 0.") + shown.count("accuracy 1.") == 6
    assert "front of study 'first'" in shown and "6 finished" in shown


@pytest.mark.long
def test_what_was_trained_whole_carries_its_profile(searching: Searching) -> None:
    """As a run of train.py does; a part of a trial has none. Neither its own numbers nor those of later trials
    depend on it."""
    assert composed([]).profile == "auto"
    pareto = [*PARETO, "model.width=4,5,6", "search.max_trials=2"]
    client = MlflowClient(searching.uri)
    numbers = []
    for study, profile in (("first", "auto"), ("second", "none")):
        searching.folder = searching.folder.parent / study
        searching(*pareto, f"study={study}", f"profile={profile}", "again=true")
        runs = Store(searching.uri, study, patience_s=0).runs(dxc__kind="trial")
        assert {run.tags["dxc.state"] for run in runs} == {"finished", "stopped"}
        for run in runs:
            files = {each.path for each in client.list_artifacts(run.run_id, "costs/profile")}
            if run.tags["dxc.state"] == "finished" and profile == "auto":
                assert run.tags["dxc.profile"] == "torch"
                assert "costs/profile/profile.parquet" in files
                assert {f"costs/profile/{name}_batch1.json.gz" for name in ("torch", "onnxruntime")} <= files
            else:
                assert not files and run.tags.get("dxc.profile", "none") == "none"
        of_training = ("val_", "train_", "fold_score", "accuracy", "auroc")
        numbers.append(
            {
                (run.tags["dxc.trial"], name): value
                for run in runs
                for name, value in run.metrics.items()
                if name.startswith(of_training)
            }
        )
    assert numbers[0] == numbers[1] and len(numbers[0]) > 10


@pytest.mark.long
def test_the_same_trial_as_train(searching: Searching, tmp_path: Path) -> None:
    """A trial is what train.py makes of the same configuration: identity and numbers. It is measured too."""
    from dxc.pipeline.run import run

    trial = searching("search.max_trials=1", "hardware.measure=true")[0]
    assert {"measured_latency_ms", "peak_memory_mb"} <= set(trial.metrics)
    point = json.loads(trial.tags["dxc.point"])
    fixed = [each for each in searching.common if "," not in each or "[" in each]
    cfg = composed([*fixed, *point, "study=other", "again=true"])
    result = run(Plan.of(cfg), tmp_path / "out")
    assert result.metrics["accuracy"] == trial.metrics["accuracy"]
    other = MlflowClient(searching.uri).get_run(result.run_id)
    for tag in ("dxc.trial", "dxc.design", "dxc.base", "dxc.stages", "dxc.data"):
        assert other.data.tags[tag] == trial.tags[tag]
    assert result.metrics["fit_seconds"] != trial.metrics["fit_seconds"]  # trained anew


@pytest.mark.long
def test_train_takes_the_folds_of_a_trial(
    searching: Searching, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a trial takes those of train.py: one configuration on the same chips is trained once."""
    from dxc.pipeline.run import run

    first = searching("search.max_trials=1")[0]
    fixed = [each for each in searching.common if "," not in each or "[" in each]
    with caplog.at_level("INFO"):
        cfg = composed([*fixed, *json.loads(first.tags["dxc.point"]), "study=other"])
        result = run(Plan.of(cfg), tmp_path / "out")
    assert "2 of 2 folds are taken from the cache" in caplog.text
    for name in ("accuracy", "fit_seconds", "images_per_second"):
        assert result.metrics[name] == first.metrics[name]

    caplog.clear()
    searching.folder = tmp_path / "multirun" / "second"
    with caplog.at_level("INFO"):
        searching("search.max_trials=1", "study=second")
    (again,) = Store(searching.uri, "second", patience_s=0).runs(dxc__kind="trial")
    assert again.tags["dxc.trial"] == first.tags["dxc.trial"]
    assert again.metrics["fit_seconds"] == first.metrics["fit_seconds"]


@pytest.mark.slow
def test_a_search_that_trains_anew(searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    """With again=true a trial leaves out what was kept before it began, and keeps what it trains itself."""
    from dxc.training import crossval

    trained: list[tuple[str, int]] = []
    train_fold = crossval.train_fold

    def counted(plan: Plan, datamodule: object, fold: Fold, *rest: object) -> crossval.TrainedFold:
        trained.append((fold.name, plan.model.argument("width")))
        return train_fold(plan, datamodule, fold, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(crossval, "train_fold", counted)
    each_once = [(f"fold{fold}", width) for fold in (1, 2) for width in (4, 8)]
    searching(*PARETO)
    assert sorted(trained) == each_once
    searching.folder = searching.folder.parent / "second"
    searching(*PARETO, "study=second")
    assert sorted(trained) == each_once
    searching.folder = searching.folder.parent / "third"
    searching(*PARETO, "study=third", "again=true")  # a rung's fold is not trained again for the whole
    assert sorted(trained) == sorted(2 * each_once)


@pytest.mark.long
def test_going_on_to_the_same_total(searching: Searching) -> None:
    """Stopped after two trials, the same command trains the others and only those; then there is nothing to do."""

    class Enough(Exception):
        pass

    def two(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        if len(searching.launched) == 2:
            raise Enough
        searching.launch(jobs, watch)

    with pytest.raises(Enough):
        searching("search.max_trials=4", launch=two)
    assert sorted(searching.states().values()) == ["finished", "finished", "planned"]
    first = searching.launched[:2]
    assert len(searching("search.max_trials=4")) == 4
    assert set(searching.states().values()) == {"finished"}
    assert len(searching.launched) == 4 and searching.launched[:2] == first
    searching("search.max_trials=4")
    assert len(searching.launched) == 4
    searching("search.max_trials=5")  # more is asked for: more is trained
    assert len(searching.launched) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "tuner",
    ["evolution", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "tpe"))],
)
def test_a_stopped_search_proposes_what_an_unbroken_one_does(
    searching: Searching, tuner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tuner's state is rebuilt from results: the order of trials does not depend on where it was stopped."""
    import random

    import dxc.search.trial as trial

    def instant(cfg: object, record: Record, job: dict) -> dict:
        value = random.Random(job["trial"]).random()
        record.log({"accuracy": value, "onnx_mb": 1.0})
        record.tag({"dxc.rungs": rungs_to({Rung(2, 1): [value, value]})})
        return {"state": "finished", "reason": ""}

    monkeypatch.setattr(trial, "_compute", instant)
    common = [f"search.tuner={tuner}", "model.padding=1,2,3", "model.width=4,5,6", "model.pool_stride=1,2"]
    searching(*common, "search.max_trials=10")
    unbroken = searching.launched
    searching.launched = []
    searching.folder = searching.folder.parent / "second"
    for total in (4, 10):
        searching(*common, f"search.max_trials={total}", "study=second")
    assert searching.launched == unbroken


@pytest.mark.slow
def test_limits_before_training(searching: Searching, capsys: pytest.CaptureFixture[str]) -> None:
    """What is over a limit is recorded with the reason and its costs, told to the tuner, and never trained."""
    runs = searching("search.tuner=grid", "model.width=4,8", "search.limits.onnx_mb=0.3")
    kinds = {run.tags["dxc.state"] for run in runs}
    assert kinds == {"finished", "infeasible"}
    for run in runs:
        wide = "model.width=8" in json.loads(run.tags["dxc.point"])
        assert (run.tags["dxc.state"] == "infeasible") == wide
        if wide:
            assert re.fullmatch(
                r"onnx_mb 0\.712\d is over the limit of 0\.3 \(search\.limits\.onnx_mb\)",
                run.tags["dxc.reason"],
            )
            assert run.status == "FINISHED" and run.tags["dxc.trial"] not in searching.launched
            assert run.metrics["onnx_mb"] == pytest.approx(0.7128, abs=2e-4)
            assert "accuracy" not in run.metrics
    assert "not trained: onnx_mb 0.712" in capsys.readouterr().out


@pytest.mark.long
def test_limits_that_rule_out_nothing_are_said(
    searching: Searching, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the hardware count in a search; what is not known before training is said once, and tagged after."""
    runs = searching(
        "search.tuner=grid", "model.pool=none", "model.width=4,8",
        "+hardware.limits.params=100_000", "+hardware.limits.peak_memory_mb=500",
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert (
        "search.limits.latency_ms=150 is not checked: hardware=cpu does not give latency_ms before" in shown
    )
    assert (
        "hardware.limits.peak_memory_mb=500 rules out no trial: peak_memory_mb is not known before" in shown
    )
    by_width = {"model.width=8" in json.loads(run.tags["dxc.point"]): run for run in runs}
    assert by_width[True].tags["dxc.state"] == "infeasible"
    # stem 376, stages 2,368 + 8,352 + 33,088 + 131,712, classifier 130
    assert by_width[True].metrics["params"] == 176_026
    assert "params 1.76e+05 is over the limit of 100000" in by_width[True].tags["dxc.reason"]
    assert by_width[False].tags["dxc.state"] == "finished"
    assert by_width[False].tags["dxc.within_limits"] == "unknown"  # peak memory and latency


def test_an_empty_feasible_set(searching: Searching) -> None:
    with pytest.raises(SearchError) as raised:
        searching("model.width=8,4", "search.limits.onnx_mb=0.1", "search.limits.macs=1")
    message = str(raised.value)
    assert "search.limits.onnx_mb=0.1 rules out 12 of 12" in message
    assert "search.limits.macs=1 rules out 12 of 12" in message
    assert "The nearest is resnet18 k3 s2 p1 w4" in message
    assert searching.trials() == []


def test_a_failing_trial(searching: Searching, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that is not a number: tried again once, recorded as failed with its traceback; the others go on."""
    faulty = [
        "search.tuner=grid",
        "optimizer.lr=1e-3,1e30",
        "model.stride=2",
        "model.pool=none",
        "trainer.max_epochs=2",
    ]
    runs = searching(*faulty)
    by_state = {run.tags["dxc.state"] for run in runs}
    assert by_state == {"finished", "failed"}
    failed = [run for run in runs if run.tags["dxc.state"] == "failed"]
    assert len(failed) == 1 and all(run.status == "FAILED" for run in failed)
    for run in failed:
        assert searching.launched.count(run.tags["dxc.trial"]) == 2 and run.tags["dxc.attempts"] == "2"
        assert run.tags["dxc.reason"].startswith("TrainingError: the training loss is")
        trace = (searching.folder / run.tags["dxc.trial"] / "traceback.txt").read_text()
        assert "TrainingError: the training loss is" in trace
        stored = MlflowClient(searching.uri).download_artifacts(run.run_id, "traceback.txt")
        assert Path(stored).read_text() == trace
    assert "FAILED: TrainingError: the training loss is" in capsys.readouterr().out
    launched = len(searching.launched)
    searching(*faulty)
    assert len(searching.launched) == launched  # what failed twice is not tried again


def test_a_hopeless_search_stops(searching: Searching) -> None:
    with pytest.raises(SearchError, match="2 trials failed .search.max_failures=1., the last with: "):
        searching(
            "optimizer.lr=1e30,1e31", "search.retries=0", "search.max_failures=1", "search.max_trials=8"
        )
    assert len(searching.launched) == 2
    (parent,) = Store(searching.uri, "first", patience_s=0).runs(dxc__kind="study")
    assert parent.status == "KILLED"


@pytest.mark.long
def test_another_configuration_is_refused(searching: Searching) -> None:
    searching("search.max_trials=1")
    with pytest.raises(SearchError) as raised:
        searching("search.max_trials=2", "optimizer.lr=0.01", "model.width=4,8", "model.stride=2")
    message = str(raised.value)
    for line in (
        "optimizer.lr: 0.001 -> 0.01",
        "space model.width: not there -> 4,8",
        "space model.stride: 1,2 -> not there",
        "study=NEW",
        "search.force=true",
    ):
        assert line in message
    runs = searching("search.max_trials=2", "optimizer.lr=0.01", "search.force=true")
    assert len(runs) == 2
    searching("search.max_trials=2", "optimizer.lr=0.01")  # the new configuration is the study's now


def test_other_chips_are_refused(searching: Searching) -> None:
    import numpy as np
    import rasterio

    from tests.conftest import write_tif

    searching("search.max_trials=1")
    root = Path(next(each for each in searching.common if each.startswith("source.root=")).split("=", 1)[1])
    chip = next(root.rglob("*DEM/T/*.tif"))
    with rasterio.open(chip) as raster:
        place = raster.transform
    write_tif(chip, np.random.default_rng(7).normal(300, 1, (1, 20, 20)).astype("float32"), transform=place)
    with pytest.raises(SearchError, match="chips: [0-9a-f]{16} -> [0-9a-f]{16}"):
        searching("search.max_trials=2")


@pytest.mark.slow
def test_median_stopping(searching: Searching) -> None:
    """After five trials, the medians of the accuracies after each fold go with a trial, which stops below them."""
    limits: list[list[float]] = []

    def launch(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        for overrides in jobs:
            *rest, job = overrides
            given = re.search(r"stop_below:\[(.*)\]", job)
            assert given is not None
            limits.append([float(each) for each in given[1].split(",") if each])
            if len(limits) == 7:  # as if all before had been perfect
                job = job.replace(given[0], "stop_below:[1.01]")
            searching.run([*rest, job])

    runs = searching("search.early_stop=median", "model.padding=1,2", "search.max_trials=8", launch=launch)
    firsts = [json.loads(run.tags["dxc.rungs"])[0]["accuracies"][0] for run in runs]
    assert limits[:5] == [[]] * 5
    assert limits[5:] == [[pytest.approx(statistics.median(firsts[:n]), abs=1e-6)] for n in (5, 6, 7)]
    stopped = runs[6]
    assert stopped.metrics["fold_score"] == firsts[6]  # what the tuner is told
    assert stopped.tags["dxc.state"] == "stopped" and stopped.status == "FINISHED"
    assert json.loads(stopped.tags["dxc.rungs"])[0]["folds"] == 1 and "accuracy" not in stopped.metrics
    assert "after 1 fold(s) is below the median of the trials before, 1.0100" in stopped.tags["dxc.reason"]
    assert sum(run.tags["dxc.state"] == "finished" for run in runs) == 7
    searching("search.early_stop=median", "model.padding=1,2", "search.max_trials=8")
    assert len(limits) == 8 and not searching.launched[8:]


@pytest.mark.long
def test_the_front_search(searching: Searching) -> None:
    """Parts first; the epochs that were asked for are not exceeded; what is finished was trained in full, once."""
    overrides = [
        "search.tuner=pareto",
        "model.width=4,6,8",
        "model.padding=1,2",
        "trainer.max_epochs=2",
        "search.rungs=[[1,0.5],[1,1.0]]",
        "search.max_trials=6",
    ]
    runs = searching(*overrides)
    epochs = 0
    for run in runs:
        rungs = json.loads(run.tags.get("dxc.rungs", "[]"))
        climbed = [(each["folds"], each["epochs"]) for each in rungs]
        assert climbed == [(1, 1), (1, 2), (2, 2)][: len(climbed)]
        epochs += {0: 0, 1: 1, 2: 3, 3: 5}[len(climbed)]
        assert (run.tags["dxc.state"] == "finished") == (len(climbed) == 3)
        if len(climbed) == 3:
            assert rungs[2]["accuracies"][0] == rungs[1]["accuracies"][0]  # kept, not trained again
            assert run.metrics["accuracy"] == pytest.approx(sum(rungs[2]["accuracies"]) / 2)
    assert epochs <= 6 * 2 * 2
    assert any(run.tags["dxc.state"] == "finished" for run in runs)
    assert any(run.tags["dxc.state"] == "stopped" for run in runs)
    launched = len(searching.launched)
    searching(*overrides)
    assert len(searching.launched) == launched


# two networks, both trained in full in the end: one fold first, then the other
PARETO = [
    "search.tuner=pareto",
    "model.stride=2",
    "model.pool=none",
    "model.width=4,8",
    "search.rungs=[[1,1.0]]",
]


class _Enough(Exception):
    pass


def _stopped_in_part(searching: Searching, *overrides: str) -> str:
    """A study that was stopped once a trial had climbed its first rung; returns that trial."""

    def first(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        if searching.launched:
            raise _Enough
        searching.launch(jobs, watch)

    with pytest.raises(_Enough):
        searching(*overrides, launch=first)
    (trial,) = searching.launched
    assert searching.states()[trial] == "stopped"
    return trial


@pytest.mark.long
def test_going_on_with_other_settings(searching: Searching) -> None:
    """What is no part of the identity may differ when a trial goes on, which MLflow's params may not."""
    trial = _stopped_in_part(searching, *PARETO)
    cache = searching.tmp_path / "elsewhere"
    searching(*PARETO, "data.num_workers=1", f"data.cache_dir={cache}")
    (parent,) = Store(searching.uri, "first", patience_s=0).runs(dxc__kind="study")
    assert parent.status == "FINISHED"
    runs = {run.tags["dxc.trial"]: run for run in searching.trials()}
    assert (runs[trial].status, runs[trial].tags["dxc.state"]) == ("FINISHED", "finished")
    assert runs[trial].tags["data.num_workers"] == "1"
    assert len(runs) == 2 and {run.tags["dxc.state"] for run in runs.values()} == {"finished"}
    for run in runs.values():
        first, both = json.loads(run.tags["dxc.rungs"])
        assert [(each["folds"], each["epochs"]) for each in (first, both)] == [(1, 1), (2, 1)]
        assert both["accuracies"][0] == first["accuracies"][0]  # kept, not trained again
        assert run.metrics["accuracy"] == run.metrics["fold_score"] == sum(both["accuracies"]) / 2
    assert [searching.launched.count(each) for each in runs] == [2, 2]
    for run in runs.values():
        settings = {"data.num_workers", "source.root", "profile"}
        assert not settings & set(run.params) and settings <= set(run.tags)
        assert not UNRECORDED & {*run.params, *run.tags}
        assert not any(name.startswith(("tracking.", "search.")) for name in {*run.params, *run.tags})


def test_a_study_that_could_not_go_on_does(searching: Searching) -> None:
    """A trial whose run holds params that its record contradicts: everything was a param once, and devices still are.
    The same command uploads it and goes on."""
    trial = _stopped_in_part(searching, *PARETO)
    (run,) = [each for each in searching.trials() if each.tags["dxc.trial"] == trial]
    client = MlflowClient(searching.uri)
    client.log_param(run.run_id, "data.num_workers", "0")
    record = Record.read(searching.folder / trial)
    assert record is not None
    begun = {"data.num_workers": "1", "trainer.devices": "[1]"}
    record.write(params=record.content["params"] | begun, uploaded=False)
    searching(*PARETO)
    (run,) = [each for each in searching.trials() if each.tags["dxc.trial"] == trial]
    assert set(searching.states().values()) == {"finished"} and 0 <= run.metrics["accuracy"] <= 1
    assert (run.params["data.num_workers"], run.params["trainer.devices"]) == ("0", "1")
    assert searching.launched.count(trial) == 2


def test_another_gpu(store_file: Path, tmp_path: Path) -> None:
    """A trial that goes on elsewhere keeps the params that it was begun with, and says what is different."""
    store = Store(f"sqlite:///{store_file}", "first", patience_s=0)
    run_id = store.create("a trial", {})
    record = Record(tmp_path / "trial", name="a trial", params={"trainer.devices": "[0]", "seed": "0"})
    store.upload(run_id, record, files=tmp_path / "none", tags={})
    assert "dxc.went_on_with" not in store.get(run_id).tags
    for devices, expected in (("[1]", '{"trainer.devices": "[1]"}'), ("[0]", "{}")):
        record.write(params={"trainer.devices": devices, "seed": "0", "score": "accuracy"})
        for _ in range(2):
            store.upload(run_id, record, files=tmp_path / "none", tags={})
        run = store.get(run_id)
        assert run.params == {"trainer.devices": "[0]", "seed": "0", "score": "accuracy"}
        assert run.tags["dxc.went_on_with"] == expected


@pytest.mark.long
def test_dry_run(searching: Searching, capsys: pytest.CaptureFixture[str]) -> None:
    searching_runs = searching("search.dry_run=true", "model.width=4,8", "search.limits.onnx_mb=0.3")
    shown = capsys.readouterr().out
    assert "16 points, 12 distinct trials of 12 networks, 6 trials over a limit" in shown
    assert shown.count("not trained: onnx_mb") == 6
    assert "training 6 trials: about" in shown and "nothing was trained or recorded" in shown
    assert searching_runs == [] and searching.launched == []


def test_a_device_limits_what_the_search_does_not_name(
    searching: Searching, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cost that conf/search.yaml has no key for: its row is enough."""
    row = replace(METRICS["latency_ms"], title="energy", unit="mJ")
    monkeypatch.setitem(METRICS, "energy_mj", row)
    searching("search.dry_run=true", "+hardware.limits.energy_mj=5")
    shown = capsys.readouterr().out
    assert "search.limits.energy_mj=5 is not checked: hardware=cpu does not give energy_mj before" in shown


@pytest.mark.slow
def test_a_store_that_goes_away(searching: Searching) -> None:
    """The finished trial is kept on disk; the same command uploads it and goes on, without training it again."""
    database = searching.tmp_path / "mlflow.db"
    away = searching.tmp_path / "away.db"

    def launch(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        import dxc.search.trial as trial

        compute = trial._compute

        def leave(*arguments: object) -> dict:
            end = compute(*arguments)  # type: ignore[arg-type]
            database.rename(away)
            database.mkdir()  # nothing can be opened there
            return end

        with pytest.MonkeyPatch.context() as patch:
            if len(searching.launched) == 1:
                patch.setattr(trial, "_compute", leave)
            searching.launch(jobs, watch)

    with pytest.raises(TrackingError, match="cannot be used"):
        searching("search.max_trials=3", launch=launch)
    lost = searching.launched[1]
    record = Record.read(searching.folder / lost)
    assert record is not None and record.content["state"] == "finished" and not record.content["uploaded"]
    assert (searching.folder / lost / "artifacts" / "model.onnx").exists()
    database.rmdir()
    away.rename(database)
    runs = searching("search.max_trials=3")
    assert set(searching.states().values()) == {"finished"} and len(runs) == 3
    assert searching.launched.count(lost) == 1
    (run,) = [each for each in runs if each.tags["dxc.trial"] == lost]
    assert run.metrics["accuracy"] == record.content["metrics"]["accuracy"]
    assert "model.onnx" in {each.path for each in MlflowClient(searching.uri).list_artifacts(run.run_id)}


@pytest.mark.long
def test_two_searches_at_once(searching: Searching) -> None:
    """A second search begins while the first is about to train: together they reach the total, no trial twice."""
    second = Searching(searching.tmp_path / "chips", searching.tmp_path)

    class Waiting(Exception):
        pass

    def wait(self: Ledger, entry: Entry) -> None:
        assert entry.trial not in second.launched
        raise Waiting

    def launch(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        if not second.launched:
            # it draws the same three trials, trains the two that are free, and waits for the first's
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Waiting):
                patch.setattr(Ledger, "wait_for", wait)
                second("search.max_trials=3", parallel=3)
        searching.launch(jobs, watch)

    searching("search.max_trials=3", launch=launch)
    assert [run.tags["dxc.state"] for run in searching.trials()] == ["finished"] * 3
    assert len(searching.launched) == 1 and len(second.launched) == 2
    assert not set(searching.launched) & set(second.launched)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.tuner=anneal"], "search.tuner must be pareto, random, grid, tpe or evolution, not 'anneal'"),
        (["model.kernal=3,5"], "Could not override 'model.kernal'"),
        (["data=5ch,9ch"], "Could not find 'data/9ch'"),
        (["study=a/b"], "study=a/b names a folder"),
        (["search.objectives=[speed]"], "search.objectives[0]=speed is unknown; choose one of accuracy"),
        (["+search.limits.speed=3"], "search.limits.speed: no such cost"),
        (["search.limits.energy=3"], "Could not override 'search.limits.energy'"),
        (["search.limits.macs=0"], "search.limits.macs must be a number over 0, or null"),
        (["search.max_trials=0"], "search.max_trials must be a whole number of at least 1, not 0"),
        (["search.rungs=[[0,1]]"], "search.rungs must be a list of"),
        (["search.tuner=pareto", "search.objectives=[accuracy,f1]"], "must hold accuracy and at least one of"),
        (["search.tuner=pareto", "search.objectives=[accuracy,latency_ms]"], "weighs latency_ms, which hardware=cpu"),
        (["search.early_stop=average"], "search.early_stop must be none or median, not 'average'"),
        (["+search.speed=3"], "search has no speed"),
    ],
)  # fmt: skip
def test_bad_input(searching: Searching, overrides: list[str], message: str) -> None:
    with pytest.raises((ConfigError, SearchError)) as raised:
        searching(*overrides)
    assert message in str(raised.value)
    assert not searching.launched
