"""A search of detectors, read back from MLflow."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dxc.analysis.analyze import analyze
from dxc.config import resolved, trial_hash
from dxc.errors import ConfigError
from tests.conftest import ChipMaker
from tests.search.searches import CONF, Searching


def test_four_trials(searching: Searching, make_chips: ChipMaker, tmp_path: Path) -> None:
    """tuner=pareto models average precision, and weighs it against the size of the file."""
    root = make_chips(per_class=10, size=40, boxes=True, root=tmp_path / "with_boxes")
    searching.space = OmegaConf.to_container(OmegaConf.load(CONF / "space" / "sppnet.yaml"))
    searching.common = [each for each in searching.common if not each.startswith("model.")]
    runs = searching(
        "model=sppnet", "data=4ch", "data.size=40", "data.split=holdout", f"source.root={root}",
        "model.kernel=1,3", "model.level=1,4", "model.features=8", "model.features2=none",
        "search.tuner=pareto", "search.objectives=[average_precision,onnx_mb]", "search.max_trials=4",
    )  # fmt: skip
    finished = [each for each in runs if each.tags["dxc.state"] == "finished"]
    assert len(finished) == 4
    for each in finished:
        assert 0 <= each.metrics["average_precision"] <= 1 and "box_ap50" in each.metrics
        (rung,) = json.loads(each.tags["dxc.rungs"])
        # one fold: its score is that of the pooled predictions
        assert rung["accuracies"] == [pytest.approx(each.metrics["average_precision"], abs=1e-6)]
    assert len({each.metrics["onnx_mb"] for each in finished}) == 4

    # the choice: the smallest that is good enough, and its command names the same trial
    least = sorted(each.metrics["average_precision"] for each in finished)[1]
    with initialize_config_dir(str(CONF / "analysis"), version_base="1.3"):
        overrides = [
            "study=first", f"tracking.uri={searching.uri}", f"cache_dir={tmp_path}/cache", f"out={tmp_path}/reports",
            "objectives=[average_precision,onnx_mb]", "choose.by=onnx_mb", "log=false",
            f"choose.where='average_precision >= {least}'",
        ]  # fmt: skip
        analysis, _ = analyze(resolved(compose("analyze", overrides=overrides)))
    enough = [each for each in finished if each.metrics["average_precision"] >= least]
    chosen = analysis.designs.loc[analysis.choice.design]
    assert chosen["onnx_mb"] == min(each.metrics["onnx_mb"] for each in enough)
    _, _, *command = shlex.split(analysis.commands[0])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert trial_hash(resolved(compose("train", overrides=command))) == chosen["trial"]


def test_the_objective_is_the_tasks(searching: Searching) -> None:
    with pytest.raises(ConfigError, match="search.objectives must hold accuracy"):
        searching("search.tuner=pareto", "search.objectives=[average_precision,onnx_mb]")
