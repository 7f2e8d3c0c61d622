"""One network for two devices, trained and predicted twice: two designs, whose figures are never averaged."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.analysis.analyze import Analysis, analyze
from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.identity import trial_hash
from dxc.config.plan import Plan
from dxc.errors import AnalysisError
from dxc.hardware.predict.forest import Forest
from dxc.hardware.predict.packages import SHIPPED
from dxc.pipeline.run import run
from tests.conftest import ChipMaker

CONF = PROJECT_ROOT / "conf"
SMALL = ["data.size=20", "data.batch_size=8", "data.split=holdout", "trainer.max_epochs=1", "model.width=4"]


def _package(folder: Path, times: float) -> None:
    """The predictors that come with dxc, of a device that takes so many times as long."""
    shutil.copytree(SHIPPED / "ort_cpu_xeon", folder)
    for path in folder.glob("*.npz"):
        forest = Forest.load(path)
        dataclasses.replace(forest, base=forest.base + math.log(times)).save(path)  # of log(ms) per work
    about = json.loads((folder / "package.json").read_text())
    about["node_overhead_ms"] *= times
    (folder / "package.json").write_text(json.dumps(about))


def _train(root: Path, folder: Path, *overrides: str) -> str:
    """Train as train.py does; the run's id."""
    places = [
        "source=chips", f"source.root={root}", f"cache_dir={folder}/cache", "study=two",
        f"tracking.uri=sqlite:///{folder}/mlflow.db", f"hardware.packages_dir={folder}/packages",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*places, *SMALL, "progress=false", "profile=none", *overrides])
    return run(Plan.of(cfg), folder / "out" / "-".join(overrides).replace("/", "_")).run_id


def _analyze(folder: Path, *overrides: str) -> Analysis:
    places = [
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"cache_dir={folder}/cache",
        f"out={folder}/reports",
    ]
    with initialize_config_dir(str(CONF / "analysis"), version_base="1.3"):
        requested = ["study=two", "log=false", "bootstrap.draws=10", *overrides]
        return analyze(Questions.of(resolved(compose("analyze", overrides=[*places, *requested]))))[0]


@pytest.mark.long
@pytest.mark.usefixtures("store_file")
def test_two_devices_are_two_designs(make_chips: ChipMaker, tmp_path: Path) -> None:
    _package(tmp_path / "packages" / "fast", 1)
    _package(tmp_path / "packages" / "slow", 5)
    root = make_chips(per_class=6)
    ids = [
        _train(root, tmp_path, "hardware=pi", f"hardware.predictors=[{name}]") for name in ("fast", "slow")
    ]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    fast, slow = (client.get_run(run_id).data for run_id in ids)
    assert slow.metrics["latency_ms"] == pytest.approx(5 * fast.metrics["latency_ms"])
    for tag in ("dxc.trial", "dxc.design", "dxc.predictors", "dxc.packages"):
        assert fast.tags[tag] != slow.tags[tag]

    # what does not depend on the device is compared, and nothing is averaged
    analysis = _analyze(tmp_path, "objectives=[accuracy,onnx_mb]", "choose.by=accuracy")
    assert sorted(analysis.designs["trial"]) == sorted([fast.tags["dxc.trial"], slow.tags["dxc.trial"]])
    assert list(analysis.designs["n"]) == [1, 1]
    assert analysis.knobs == ["hardware.predictors"]

    with pytest.raises(AnalysisError, match=r"dxc.predictors .*: 'fast' \(1 run\), 'slow' \(1 run\)"):
        _analyze(tmp_path)
    mixed = _analyze(tmp_path, "mix=[dxc.predictors,dxc.packages]", "choose.by=latency_ms")
    assert list(mixed.designs["n"]) == [1, 1]
    latencies = {"fast": fast.metrics["latency_ms"], "slow": slow.metrics["latency_ms"]}
    assert sorted(mixed.designs["latency_ms"]) == pytest.approx(sorted(latencies.values()))

    # the printed command is of the same device, also where this machine has no GPU for accelerator=auto, and what it
    # trains has the same figures in the same study
    for data, printed in zip((fast, slow), mixed.commands, strict=True):
        _, script, *overrides = shlex.split(printed)
        assert script == "train.py" and f"hardware.predictors=[{data.tags['dxc.predictors']}]" in overrides
        unseen = [f"cache_dir={tmp_path}/other_cache", "progress=false", "profile=none"]  # change no figure
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=[*overrides, *unseen])
        assert trial_hash(resolved(cfg)) == data.tags["dxc.trial"]
        result = run(Plan.of(cfg), tmp_path / "out" / "again" / data.tags["dxc.predictors"])
        again = client.get_run(result.run_id)
        assert result.study == "two" and again.data.tags["dxc.packages"] == data.tags["dxc.packages"]
        for name in ("accuracy", "latency_ms", "onnx_mb", "params", "macs"):
            assert again.data.metrics[name] == pytest.approx(data.metrics[name]), name


@pytest.mark.long
@pytest.mark.usefixtures("store_file")
def test_a_package_that_was_calibrated_anew_is_another(make_chips: ChipMaker, tmp_path: Path) -> None:
    """The configuration is the same, so is the design; its latencies are of two devices all the same."""
    package = tmp_path / "packages" / "mine"
    root = make_chips(per_class=6)
    for times in (1, 5):
        shutil.rmtree(package, ignore_errors=True)
        _package(package, times)
        _train(root, tmp_path, "hardware.predictors=[mine]", "hardware.measure=false")
    assert list(_analyze(tmp_path, "objectives=[accuracy,onnx_mb]").designs["n"]) == [2]
    with pytest.raises(AnalysisError, match=r"dxc.packages \(what was in the predictors' packages\)"):
        _analyze(tmp_path)
    designs = _analyze(tmp_path, "mix=[dxc.packages]").designs
    assert list(designs["n"]) == [1, 1]
    assert designs["latency_ms"].max() == pytest.approx(5 * designs["latency_ms"].min())
