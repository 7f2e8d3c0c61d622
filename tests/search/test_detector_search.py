"""A search of detectors, read back from MLflow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dxc.analysis.analyze import analyze
from dxc.analysis.designs import default_objectives
from dxc.analysis.questions import Questions
from dxc.analysis.runs import read_runs
from dxc.config.compose import resolved
from dxc.config.identity import trial_hash
from dxc.errors import ConfigError
from dxc.search.strategies import NniTuner, Proposal
from tests.conftest import ChipMaker
from tests.search.searches import CONF, Searching


@pytest.mark.slow
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

    # without a word, designs are ranked by what the search was for
    tracked = read_runs(searching.uri, ["first"], cache_dir=tmp_path / "cache").frame
    assert default_objectives(tracked)[0] == "average_precision"

    # the choice: the smallest that is good enough, and its command names the same trial
    least = sorted(each.metrics["average_precision"] for each in finished)[1]
    with initialize_config_dir(str(CONF / "analysis"), version_base="1.3"):
        overrides = [
            "study=first", f"tracking.uri={searching.uri}", f"cache_dir={tmp_path}/cache", f"out={tmp_path}/reports",
            "objectives=[average_precision,onnx_mb]", "choose.by=onnx_mb", "log=false",
            f"choose.where='average_precision >= {least}'",
        ]  # fmt: skip
        analysis, _ = analyze(Questions.of(resolved(compose("analyze", overrides=overrides))))
    enough = [each for each in finished if each.metrics["average_precision"] >= least]
    chosen = analysis.designs.loc[analysis.choice.design]
    assert chosen["onnx_mb"] == min(each.metrics["onnx_mb"] for each in enough)
    _, _, *command = shlex.split(analysis.commands[0])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert trial_hash(resolved(compose("train", overrides=command))) == chosen["trial"]


def test_the_objective_is_the_tasks(searching: Searching) -> None:
    with pytest.raises(ConfigError, match="search.objectives must hold accuracy"):
        searching("search.tuner=pareto", "search.objectives=[average_precision,onnx_mb]")


def test_a_tuner_is_told_one_estimate(
    searching: Searching, make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over folds of a trial that was stopped and of one that finished, now and from the store: the average
    precision of the pooled predictions, under which designs are compared, is another number."""
    told: list[float | None] = []
    tell = NniTuner.tell

    def heard(self: NniTuner, proposal: Proposal, value: float | None) -> None:
        told.append(value)
        tell(self, proposal, value)

    monkeypatch.setattr(NniTuner, "tell", heard)
    root = make_chips(per_class=10, size=40, boxes=True, root=tmp_path / "with_boxes")
    searching.space = OmegaConf.to_container(OmegaConf.load(CONF / "space" / "sppnet.yaml"))
    searching.common = [each for each in searching.common if not each.startswith("model.")]
    overrides = [
        "model=sppnet", "data=4ch", "data.size=40", f"source.root={root}", "model.kernel=1,3", "model.level=1",
        "model.features=8,16", "model.features2=none", "search.objectives=[average_precision,onnx_mb]",
    ]  # fmt: skip

    def stopping(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        for number, given in enumerate(jobs):
            *rest, job = given
            stop = number == 0 and not searching.launched
            searching.run([*rest, job.replace("stop_below:[]", "stop_below:[1.01]") if stop else job])

    stopped, finished = searching(*overrides, "search.max_trials=2", launch=stopping)
    assert [each.tags["dxc.state"] for each in (stopped, finished)] == ["stopped", "finished"]
    folds = [json.loads(each.tags["dxc.rungs"])[0]["accuracies"] for each in (stopped, finished)]
    assert [len(each) for each in folds] == [1, 2]
    expected = [folds[0][0], sum(folds[1]) / 2]
    assert list(dict.fromkeys(told)) == expected  # a tuner may propose again what it knows
    assert [each.metrics["fold_score"] for each in (stopped, finished)] == expected
    assert "average_precision" not in stopped.metrics
    assert finished.metrics["average_precision"] != pytest.approx(expected[1], abs=1e-3)
    told.clear()
    searching(
        *overrides, "model.kernel=1,3", "search.max_trials=3", "search.force=true", "model.features=8,16"
    )
    assert list(dict.fromkeys(told))[:2] == expected
