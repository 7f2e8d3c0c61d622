"""Analyses with next to nothing to compare: one run, runs that are all equal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.analysis.analyze import Analysis, analyze
from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import AnalysisError, ConfigError, TrackingError
from dxc.report.findings import print_findings


def _store(store_file: Path, accuracies: list[float], *, study: str = "few", latency: bool = True) -> str:
    """A study with a finished run for each accuracy; all else is equal."""
    uri = f"sqlite:///{store_file}"
    client = MlflowClient(uri)
    experiment = client.create_experiment(study, artifact_location=(store_file.parent / "files").as_uri())
    for number, accuracy in enumerate(accuracies):
        tags = {
            "dxc.trial": f"{number:012x}",
            "dxc.design": f"{number:012x}",
            "dxc.kind": "trial",
            "dxc.state": "finished",
        }
        run = client.create_run(experiment, run_name=f"network {number}", tags=tags)
        for name, value in (("accuracy", accuracy), ("latency_ms", 5.0), ("onnx_mb", 11.2)):
            if name == "latency_ms" and not latency:
                continue
            client.log_metric(run.info.run_id, name, value)
        client.log_param(run.info.run_id, "model.width", 8 + number)
        client.set_terminated(run.info.run_id)
    return uri


def _analyze(store: str, *overrides: str) -> tuple[Analysis, Path]:
    folder = Path(store.removeprefix("sqlite:///")).parent
    common = [
        f"tracking.uri={store}",
        f"cache_dir={folder}/cache",
        f"out={folder}/reports",
        "log=false",
        "study=few",
    ]
    with initialize_config_dir(str(PROJECT_ROOT / "conf" / "analysis"), version_base="1.3"):
        return analyze(Questions.of(resolved(compose("analyze", overrides=[*common, *overrides]))))


@pytest.mark.long
def test_one_run(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    analysis, folder = _analyze(_store(store_file, [0.9]))
    assert list(analysis.front["name"]) == ["network 0"]
    assert "there is one design only, of 1 run: it is the front of 1" in analysis.notes
    # no folds, no predictions: how sure it is is not known, and not 0 or 1
    assert analysis.front["p_front"].isna().all() and not analysis.front["unstable"].any()
    assert (folder / "index.html").exists() and (folder / "pairs.png").exists()
    print_findings(analysis, folder)
    printed = capsys.readouterr().out
    assert (
        "network 0: the only one on the front" in printed
        and "runner-up:" not in printed
        and "1 design of few, 1 on the front" in printed
    )
    assert "not known: run" in printed  # it has no config.yaml to rebuild it from


def test_all_equal(store_file: Path) -> None:
    analysis, folder = _analyze(_store(store_file, [0.9, 0.9, 0.9]), "choose.by=accuracy")
    assert analysis.designs["front"].all() and set(analysis.designs["rank"]) == {1}
    assert any(
        "all 3 designs are equal in every objective: all 3 are the front" in note for note in analysis.notes
    )
    assert len(pd.read_csv(folder / "front.csv")) == 3 and len(pd.read_csv(folder / "dominated.csv")) == 0
    # a tenth of 1 beyond each value, where there is no range: 0.1 x 0.1 x 0.1
    assert analysis.hypervolume == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("bootstrap.draws=0", ConfigError, "bootstrap.draws must be a whole number of at least 1"),
        ("profile=perf", ConfigError, "profile must be none, torch or nsight, not 'perf'"),
        ("source=papers", ConfigError, "source must be mlflow or published, not 'papers'"),
        ("out=/dev/null", AnalysisError, "out=/dev/null: the report cannot be written"),
        ("tracking.uri=http://127.0.0.1:9", TrackingError, "Check the address and that its server runs"),
        ("baseline=none_such", TrackingError, "no study 'none_such'"),
    ],
)
def test_what_cannot_be_asked(
    store_file: Path, monkeypatch: pytest.MonkeyPatch, override: str, kind: type[Exception], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(kind, match=message):
        _analyze(_store(store_file, [0.9, 0.8]), override)


def test_the_next_one_where_the_front_is_one_design(store_file: Path) -> None:
    analysis, _ = _analyze(_store(store_file, [0.7, 0.9, 0.8]))
    assert list(analysis.front["name"]) == ["network 1"]
    assert analysis.designs.loc[analysis.choice.runner_up, "name"] == "network 2"


def test_a_study_whose_name_is_a_number(store_file: Path) -> None:
    analysis, folder = _analyze(_store(store_file, [0.9], study="2026"), "study=2026")
    assert analysis.title == "2026" and folder.name == "2026"


def test_a_choice_by_what_is_no_objective(store_file: Path) -> None:
    store = _store(store_file, [0.9, 0.8])
    analysis, _ = _analyze(store, "objectives=[accuracy]", "choose.where='onnx_mb < 12 and model.width == 9'")
    assert analysis.designs.loc[analysis.choice.design, "name"] == "network 1"


def test_a_prize_is_for_the_mean_of_repeats(store_file: Path) -> None:
    """Designs of two runs each: 2.0 and 4.0 mJ are more than 2.5 and 2.7 mJ; those of two meters are no mean."""
    store = _store(store_file, [0.9, 0.9, 0.8, 0.8])
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("few").experiment_id], order_by=["start_time"])
    of_run = {run.data.params["model.width"]: run.info.run_id for run in runs}
    for width, energy in (("8", 4.0), ("9", 2.0), ("10", 2.5), ("11", 2.7)):
        client.log_metric(of_run[width], "energy_mj", energy)
        client.set_tag(of_run[width], "dxc.design", "a" * 12 if width in ("8", "9") else "b" * 12)
        client.set_tag(of_run[width], "dxc.data", "d" * 12)
        client.set_tag(of_run[width], "dxc.energy_meter", "SmartPower 2")
    chosen = ["objectives=[accuracy,onnx_mb]", "choose.by=energy", "refresh=true"]
    analysis, folder = _analyze(store, *chosen)
    assert list(analysis.designs["n"]) == [2, 2]
    assert analysis.designs.loc[analysis.choice.design, "accuracy"] == 0.8
    assert "the smallest measured energy" in (folder / "answer.txt").read_text()
    client.set_tag(of_run["8"], "dxc.energy_meter", "RAPL")
    with pytest.raises(
        AnalysisError, match=r"dxc.energy_meter \(the meter of energy\): 'SmartPower 2' \(3 runs\)"
    ):
        _analyze(store, *chosen)


def test_a_baseline_without_an_objective(store_file: Path) -> None:
    store = _store(store_file, [0.9, 0.8])
    _store(store_file, [0.7], study="base", latency=False)
    analysis, _ = _analyze(store, "baseline=base")
    assert analysis.baseline is not None and analysis.baseline.frame.empty
    assert "baseline: 1 of 1 runs lack an objective" in analysis.notes
    MlflowClient(store).create_experiment("nothing")
    with pytest.raises(AnalysisError, match="baseline: study nothing has no finished run"):
        _analyze(store, "baseline=nothing")


def test_designs_of_one_name_carry_their_trial(store_file: Path) -> None:
    store = _store(store_file, [0.9, 0.8])
    client = MlflowClient(store)
    for run in client.search_runs([client.get_experiment_by_name("few").experiment_id]):
        client.update_run(run.info.run_id, name="twin")
    analysis, _ = _analyze(store, "refresh=true")
    assert sorted(analysis.designs["name"]) == ["twin [000000000000]", "twin [000000000001]"]
    assert list(analysis.designs.loc[~analysis.designs["front"], "dominated_by"]) == ["twin [000000000000]"]


def test_a_store_that_takes_no_files(store_file: Path) -> None:
    """The findings are printed all the same, and no run is left running."""
    store = f"sqlite:///{store_file}"
    client = MlflowClient(store)
    experiment = client.create_experiment("few", artifact_location="file:///proc/none")
    run = client.create_run(experiment, run_name="only", tags={"dxc.trial": "a" * 12, "dxc.design": "b" * 12})
    for name in ("accuracy", "latency_ms", "onnx_mb"):
        client.log_metric(run.info.run_id, name, 0.5)
    client.set_terminated(run.info.run_id)
    analysis, folder = _analyze(store, "log=true")
    assert any(note.startswith("not kept in MLflow: ") for note in analysis.notes)
    assert (folder / "front.csv").exists()
    assert {each.info.status for each in client.search_runs([experiment])} == {"FINISHED", "FAILED"}
