"""A small search, then everything analyze.py answers about it, read back from MLflow."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.analysis.analyze import analyze
from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.identity import trial_hash
from dxc.errors import AnalysisError, ConfigError, TrackingError
from dxc.hardware.predict.packages import SHIPPED
from dxc.report.findings import print_findings
from tests.conftest import ChipMaker, Once, copy_study
from tests.search.searches import Searching

CONF = PROJECT_ROOT / "conf"


def _analyze(searching: Searching, *overrides: str):
    common = [
        f"tracking.uri={searching.uri}",
        f"cache_dir={searching.tmp_path}/cache",
        f"out={searching.tmp_path}/reports",
        "objectives=[accuracy,onnx_mb]",
        "bootstrap.draws=200",
    ]
    with initialize_config_dir(str(CONF / "analysis"), version_base="1.3"):
        config = resolved(compose("analyze", overrides=[*common, *overrides]))
    return analyze(Questions.of(config))


@pytest.fixture
def found(once: Once, make_chips: ChipMaker, _new_store: Path, tmp_path: Path) -> Searching:
    """Study `first` of two finished trials, in a copy."""

    def make(folder: Path) -> None:
        shutil.copy(_new_store, folder)
        searching = Searching(make_chips(per_class=8, root=folder / "chips"), folder)
        assert len(searching("search.max_trials=2", "model.width=4,6")) == 2

    folder = copy_study(once("two-trials", make), tmp_path)
    return Searching(folder / "chips", folder)


def _file(client: MlflowClient, run_id: str, name: str) -> Path:
    """Where the store keeps an artifact."""
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / name


@pytest.mark.slow
def test_what_a_search_found(searching: Searching) -> None:
    runs = searching("search.max_trials=4", "model.width=4,6")
    analysis, folder = _analyze(searching, "study=first", "tag=true", "choose.by=accuracy")
    designs = analysis.designs
    assert sorted(designs["trial"]) == sorted(run.tags["dxc.trial"] for run in runs)
    best = max(runs, key=lambda run: (run.metrics["accuracy"], -run.metrics["onnx_mb"]))
    chosen = designs.loc[analysis.choice.design]
    assert chosen["accuracy"] == pytest.approx(best.metrics["accuracy"])
    assert designs["p_front"].between(0, 1).all()

    # the printed command yields the same trial, in the same study and store
    _, script, *overrides = shlex.split(analysis.commands[0])
    assert script == "train.py" and "study=first" in overrides
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert trial_hash(resolved(compose("train", overrides=overrides))) == chosen["trial"]

    # tags, and the report beside the runs
    client = MlflowClient(searching.uri)
    for _, row in designs.iterrows():
        tags = client.get_run(row["run_id"]).data.tags
        assert tags["dxc.front"] == str(bool(row["front"])).lower() and tags["dxc.rank"] == str(row["rank"])
    experiment = client.get_experiment_by_name("first").experiment_id
    (report,) = client.search_runs([experiment], "tags.`dxc.kind` = 'analysis'")
    files = {file.path for file in client.list_artifacts(report.info.run_id)}
    assert {"index.html", "front.csv", "pairs.svg"} <= files
    # four designs do not tell the effects of their knobs apart
    assert not (folder / "main_effects.png").exists()
    assert "4 designs are too few, or too alike, to tell what each of" in (folder / "answer.txt").read_text()
    assert len(pd.read_csv(folder / "front.csv")) == designs["front"].sum()

    assert analysis.view.startswith("http://127.0.0.1:5000/#/experiments/")

    # the file of the choice: where it lies, what its outputs are, and a copy of it, which replaces nothing
    file = _file(client, chosen["run_id"], "model.onnx")
    assert analysis.network.where == str(file)
    assert analysis.network.outputs == (
        "scores (batch, classes): logits; softmax over the classes gives probabilities; classes: no crossing, crossing"
    )
    said = (folder / "answer.txt").read_text().splitlines()
    assert f"network:   {file}" in said and f"outputs:   {analysis.network.outputs}" in said
    copy = searching.tmp_path / "new" / "best.onnx"
    export = ["study=first", "log=false", "choose.by=accuracy", f"choose.export={copy}"]
    copied, _ = _analyze(searching, *export)
    assert copy.read_bytes() == file.read_bytes() and list(copy.parent.iterdir()) == [copy]
    assert copied.network.where == f"{copy} (a copy of {file})"
    with pytest.raises(
        ConfigError, match=r"best.onnx exists already and is not overwritten; remove it or name"
    ):
        _analyze(searching, *export)
    with pytest.raises(ConfigError, match=r"new is a folder; name a file in it: .*new/model.onnx"):
        _analyze(searching, *export[:-1], f"choose.export={copy.parent}")

    # a condition leaves runs out: they lose what was said of them
    one = designs["trial"].iloc[0]
    _analyze(searching, "study=first", "tag=true", "log=false", f"where=\"dxc.trial == '{one}'\"")
    marks = {run.tags["dxc.trial"]: run.tags["dxc.front"] for run in searching.trials()}
    assert marks.pop(one) == "true" and set(marks.values()) == {"left out"}

    # a file that is gone: said, and an error where it is asked for
    file.rename(file.with_suffix(".gone"))
    gone, _ = _analyze(searching, "study=first", "log=false", "choose.by=accuracy")
    assert gone.network.where == f"not known: run {chosen['run_id']} has no model.onnx any more"
    copy.unlink()
    with pytest.raises(AnalysisError, match=r"has no model.onnx any more; train it again:\npython train.py "):
        _analyze(searching, *export)
    assert not copy.exists()

    # the second time: the analysis itself is no design, and a lost artifact is said
    _file(client, best.run_id, "config.yaml").unlink()
    again, _ = _analyze(searching, "study=first", "choose.by=accuracy")
    assert len(again.designs) == 4
    if again.designs.loc[again.choice.design, "run_id"] == best.run_id:
        assert "has no config.yaml any more" in again.commands[0]


@pytest.mark.long
def test_lost_predictions_leave_the_folds(found: Searching) -> None:
    client = MlflowClient(found.uri)
    for run in found.trials():
        _file(client, run.run_id, "predictions.parquet").unlink()
    analysis, _ = _analyze(found, "study=first", "log=false")
    assert any("2 of 2 runs have no predictions.parquet" in note for note in analysis.notes)
    assert analysis.designs["p_front"].between(0, 1).all()


@pytest.mark.long
def test_the_front_profile(found: Searching) -> None:
    runs = found.trials()
    client = MlflowClient(found.uri)
    analysis, folder = _analyze(found, "study=first", "log=false", "profile=torch", "bootstrap.draws=10")
    profile = analysis.front_profile
    assert profile is not None and not profile.notes
    front = analysis.front
    assert set(profile.summary["trial"]) == set(front["trial"])
    assert list(profile.summary["batch"]) == [1, 2, 4, 8, 16, 32, 64] * len(front)
    assert set(profile.summary["source"]) == {"onnxruntime"}
    np.testing.assert_allclose(
        profile.summary["ms"] / profile.summary["batch"], profile.summary["ms_per_image"]
    )
    np.testing.assert_allclose(profile.summary[["conv", "matmul", "pooling", "other"]].sum(axis=1), 1)
    assert (profile.summary["conv"] > 0).all() and (profile.summary["peak_memory_mb"] > 0).all()
    table = pd.read_csv(folder / "front_profile.csv")
    assert len(table) == len(profile.summary) and table["peak memory at batch 1 (MB)"].notna().all()
    assert (folder / "front_profile.png").exists() and "Profile of the front" in (
        folder / "index.html"
    ).read_text()
    traces = {path: path.stat().st_mtime_ns for path in folder.glob("profiles/*/*.json.gz")}
    assert len(traces) == 14 * len(front)

    # the same files are not profiled twice; what was killed half way is
    victim = folder / "profiles" / front["trial"].iloc[0]
    (victim / "about.json").unlink()
    again, _ = _analyze(found, "study=first", "log=false", "profile=torch", "bootstrap.draws=10")
    assert again.front_profile is not None and len(again.front_profile.summary) == len(profile.summary)
    redone = {path.parent.name for path, time in traces.items() if path.stat().st_mtime_ns != time}
    assert redone == {victim.name}

    # a deleted file costs its own rows only, and no analysis
    lost = front["run_id"].iloc[0]
    _file(client, lost, "model.onnx").unlink()
    rest, _ = _analyze(found, "study=first", "log=false", "profile=torch", "bootstrap.draws=10")
    assert rest.front_profile is not None and f"run {lost} has no model.onnx any more" in " ".join(rest.notes)
    assert len(runs) == 2 and len(rest.front_profile.summary) == len(profile.summary) - 7


def test_one_objective_has_tables_and_no_page(found: Searching, capsys: pytest.CaptureFixture[str]) -> None:
    _analyze(found, "study=first", "log=false")
    analysis, folder = _analyze(found, "study=first", "log=false", "objectives=[onnx_mb]")
    assert list(analysis.front["onnx_mb"]) == [analysis.designs["onnx_mb"].min()]
    assert (folder / "front.csv").exists() and not (folder / "index.html").exists()
    print_findings(analysis, folder)
    assert capsys.readouterr().out.rstrip().endswith("reports/first")


@pytest.mark.slow
def test_a_baseline_of_other_predictors_is_not_mixed_silently(searching: Searching) -> None:
    packages = searching.tmp_path / "packages"
    shutil.copytree(SHIPPED / "ort_cpu_xeon", packages / "other")
    predicted = ["search.max_trials=1", f"hardware.packages_dir={packages}"]
    searching(*predicted, "hardware.predictors=[ort_cpu_xeon]")
    searching(*predicted, "study=second", "hardware=pi", "hardware.predictors=[other]")
    # an accuracy and a size are what they are on any hardware
    analysis, _ = _analyze(searching, "study=first", "baseline=second", "log=false")
    assert analysis.baseline is not None and len(analysis.baseline.frame) == 1
    latency = ["study=first", "baseline=second", "log=false", "objectives=[accuracy,latency_ms]"]
    with pytest.raises(AnalysisError, match=r"dxc.predictors.*'ort_cpu_xeon' \(1 run\), 'other' \(1 run\)"):
        _analyze(searching, *latency)
    mixed, _ = _analyze(searching, *latency, "mix=[dxc.predictors,dxc.packages]")
    assert mixed.baseline is not None and len(mixed.baseline.frame) == 1


@pytest.mark.long
def test_for_which_machine_a_search_predicts(
    searching: Searching, capsys: pytest.CaptureFixture[str]
) -> None:
    about = "ort_cpu_xeon (onnxruntime 1.31.1, 1 thread, Intel(R) Xeon(R) Processor, 4 cores)"
    (run,) = searching("search.max_trials=1", "hardware.predictors=[ort_cpu_xeon]")
    assert f"note: latency is predicted for {about}\n" in capsys.readouterr().out
    assert run.tags["dxc.predicted_for"] == about
    analysis, folder = _analyze(searching, "study=first", "log=false", "objectives=[accuracy,latency_ms]")
    assert analysis.machines == {"trained": {"chips of chips": 1}, "predicted": {about: 1}}
    line = f"predicted: latency for {about}"
    assert line in (folder / "answer.txt").read_text().splitlines()
    assert f"latency for {about}" in (folder / "index.html").read_text()
    print_findings(analysis, folder)
    printed = capsys.readouterr().out
    assert f"{line}\n" in printed and "predicted latency (ms)" in printed


def test_mistakes(searching: Searching) -> None:
    with pytest.raises(TrackingError, match="no study 'secnd'"):
        _analyze(searching, "study=secnd")
    MlflowClient(searching.uri).create_experiment("empty")
    with pytest.raises(AnalysisError, match="study empty has no finished run"):
        _analyze(searching, "study=empty")
    with pytest.raises(AnalysisError, match="name a study: study=empty; there are Default, empty"):
        _analyze(searching)
