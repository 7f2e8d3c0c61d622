"""A small study of three networks, and commands for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.plan import Plan
from dxc.deployment.deployment import Deployment, deploy
from dxc.deployment.settings import Deploy
from dxc.pipeline.run import run

CONF = str(PROJECT_ROOT / "conf")
KINDS = ("none", "dynamic", "static")


def composed(name: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """The resolved configuration of a command, with its store and its cache in a folder."""
    places = [f"tracking.uri=sqlite:///{folder}/mlflow.db", f"cache_dir={folder}/cache", "progress=false"]
    with initialize_config_dir(CONF, version_base="1.3"):
        return resolved(compose(name, overrides=[*places, *overrides]))


def train(folder: Path) -> None:
    """One small network, in float32 and in two ways in 8 bits."""
    for kind in KINDS:
        overrides = [
            "model=mobilenet_v1", "data=cifar10", "source=synthetic_images", "source.images=240", "model.width=0.25",
            "trainer.max_epochs=1", "hardware.predictors=[]", "hardware.measure=false", "profile=none", "study=small",
            "tracking.checkpoints=false", "compress.calibration_images=10", f"compress.quantise={kind}",
        ]  # fmt: skip
        run(Plan.of(composed("train", folder, *overrides)), folder / "out" / kind)


def deployed(folder: Path, *overrides: str) -> Deployment:
    """Deploy all of the study, each image once a repeat."""
    requested = ["study=small", "designs=all", "seconds=0", f"out={folder}/reports", *overrides]
    return deploy(Deploy.of(composed("deploy", folder, *requested)))


def questions(study: Path, *overrides: str) -> Questions:
    """What `analyze.py study=small OVERRIDES` is asked."""
    places = [f"tracking.uri=sqlite:///{study}/mlflow.db", f"cache_dir={study}/cache", f"out={study}/reports"]
    with initialize_config_dir(f"{CONF}/analysis", version_base="1.3"):
        requested = ["study=small", "log=false", "bootstrap.draws=10", *places, *overrides]
        return Questions.of(resolved(compose("analyze", overrides=requested)))


def steady_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies count, whatever else this machine does."""
    monkeypatch.setattr("dxc.deployment.record.MAX_SPREAD", math.inf)


def tracked_runs(folder: Path) -> dict[str, Any]:
    """The runs by how they are quantised."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    return {each.data.params.get("compress.quantise", "none"): each for each in found}


def artifacts_of(run: Any) -> Path:
    """The folder of a run's artifacts."""
    return Path(run.info.artifact_uri.removeprefix("file://"))
