"""Searches with axes of compression: what trials share is done once, and costs are known before training."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.hardware import Hardware
from dxc.errors import SearchError
from dxc.hardware.predict.packages import SHIPPED, load_package
from dxc.search.costs import NetworkCosts, _cost
from dxc.search.space import network_hash
from dxc.tracking.patience import StoredRun
from tests.search.searches import Searching, composed, replaced

FIXED = [
    "model.stride=2",
    "model.width=8",
    "model.pool=none",
    "model.pool_kernel=3",
    "compress.finetune_epochs=1",
]
AXES = ["compress.fraction=0,0.5", "compress.quantise=none,static"]


@pytest.mark.long
def test_trials_share_what_they_have_in_common(searching: Searching) -> None:
    runs = searching(*FIXED, *AXES, "search.tuner=grid")
    assert [run.tags["dxc.state"] for run in runs] == ["finished"] * 4
    with pytest.raises(SearchError, match="compress.finetune_epochs"):  # of half of the points
        searching(*FIXED[:-1], "compress.finetune_epochs=2", *AXES, "search.tuner=grid")
    # a setting without effect is no param
    trials = {
        (run.params.get("compress.fraction", "0"), run.params.get("compress.quantise", "none")): run
        for run in runs
    }
    assert sorted(trials) == [("0", "none"), ("0", "static"), ("0.5", "none"), ("0.5", "static")]
    kept = [path for path in (searching.tmp_path / "cache/stages").iterdir() if list(path.glob("*.pt"))]
    assert len(kept) == 5  # trained, pruned, fine-tuned, and two quantised

    # what is known of a network before it is trained is what comes out
    common = replaced(searching.common, FIXED)
    for (fraction, kind), run in trials.items():
        config = resolved(composed([*common, f"compress.fraction={fraction}", f"compress.quantise={kind}"]))
        costs = NetworkCosts(Hardware.of(config["hardware"]), searching.tmp_path / "other")
        known = costs.of(network_hash(config), config)
        assert (known["params"], known["macs"]) == (run.metrics["params"], run.metrics["macs"])
        assert known["onnx_mb"] == pytest.approx(run.metrics["onnx_mb"], rel=0.01)


def test_a_static_network_is_predicted_before_it_is_trained(tmp_path: Path) -> None:
    """By a package that was calibrated with quantised networks; others say that they cover nothing of it."""
    shipped = load_package(SHIPPED / "ort_cpu_xeon")
    names = ("conv-bn-relu", "dwconv-bn-relu", "global-avgpool", "fc")
    quantised = {f"int8-{name}": shipped.regressors[name] for name in names}
    both = replace(shipped, regressors={**shipped.regressors, **quantised})
    overrides = ["model=mobilenet_v1", "data=cifar10", "model.width=0.25", f"cache_dir={tmp_path}"]
    costs = {}
    for kind in ("none", "static", "dynamic"):
        with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
            config = resolved(compose("train", overrides=[*overrides, f"compress.quantise={kind}"]))
        costs[kind] = [_cost(config, [package]) for package in (shipped, both)]
    assert costs["static"][1]["latency_ms"] == pytest.approx(costs["none"][1]["latency_ms"])
    assert costs["static"][0]["uncovered_macs_share"] == 1 and "latency_ms" not in costs["static"][0]
    assert not {"latency_ms", "uncovered_macs_share"} & costs["dynamic"][1].keys()
    assert costs["static"][1]["onnx_mb"] < costs["none"][1]["onnx_mb"]


@pytest.mark.slow
def test_the_tuner_of_fronts_looks_at_compressed_networks(searching: Searching) -> None:
    """Its first look at a design is at the pruned network, fine-tuned, and not at the base."""
    runs = searching(
        *FIXED,
        "compress.fraction=0,0.5,0.75",
        "search.tuner=pareto",
        "search.max_trials=3",
        "search.rungs=[[1,1.0]]",
    )
    finished = [run for run in runs if run.tags["dxc.state"] == "finished"]
    assert len(finished) == 3
    assert len({run.metrics["params"] for run in finished}) == 3
    assert len({run.tags["dxc.base"] for run in finished}) == 1


@pytest.mark.slow
def test_the_tuner_of_fronts_takes_networks_without_a_predicted_latency(
    searching: Searching, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantised networks have none. That is said once; they are on the front of what they have, and the others are
    compared with each other in latency too."""
    runs = searching(
        *FIXED, *AXES, "search.tuner=pareto", "search.max_trials=4", "search.rungs=[[1,1.0]]",
        "hardware.predictors=[ort_cpu_xeon]", "search.objectives=[accuracy,latency_ms,onnx_mb]",
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert (
        said.count("2 of 4 networks have no latency_ms: predictors describe kernels in float32, and these")
        == 1
    )
    assert "and up to 1 of fine-tuning, 16 epochs in all" in said  # 4 trials x 2 folds x (1 + 1)
    finished = [run for run in runs if run.tags["dxc.state"] == "finished"]
    assert len(finished) == 4  # what they share is trained once, so that the budget is enough
    assert sum("latency_ms" in run.metrics for run in finished) == 2
    front = said[said.index("front of study") :]
    smallest = min(finished, key=lambda run: run.metrics["onnx_mb"])
    assert "latency_ms" not in smallest.metrics and "static" in front
    fastest = min(
        (run for run in finished if "latency_ms" in run.metrics), key=lambda r: r.metrics["latency_ms"]
    )
    assert f"{fastest.metrics['latency_ms']:.4f}" in front


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_with_what_was_kept(searching: Searching, tmp_path: Path) -> None:
    """kill -9 while a base is trained, while a pruned network is fine-tuned, and while one is quantised: the piece that
    was cut off is done again, nothing else, and the designs are those of a search that nobody killed."""
    overrides = [*FIXED, *AXES, "search.tuner=grid"]
    log = tmp_path / "log"
    root = tmp_path / "chips"
    for kill_at, ends in ((2, -signal.SIGKILL), (7, -signal.SIGKILL), (3, -signal.SIGKILL), (0, 0)):
        line = [sys.executable, "-m", "tests.search.killing", log, str(kill_at), root, tmp_path, *overrides]
        done = subprocess.run(line, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == ends, done.stdout + done.stderr
    killed = searching.trials()

    counts = Counter(log.read_text().splitlines())
    pieces = {f"{work} fold{fold}" for work in ("trained", "pruned", "finetuned") for fold in (1, 2)}
    assert {name: counts[f"ended {name}"] for name in pieces} == dict.fromkeys(pieces, 1)
    # of the base, and of the pruned network
    assert [counts[f"ended quantised fold{fold}"] for fold in (1, 2)] == [2, 2]
    again = {name: counts[f"begun {name}"] - counts[f"ended {name}"] for name in {*pieces, "quantised fold2"}}
    assert {name for name, count in again.items() if count} == {
        "trained fold2",
        "finetuned fold2",
        "quantised fold2",
    }
    assert counts.total() == 2 * 10 + 3

    other = Searching(root, tmp_path / "other")
    (tmp_path / "other").mkdir()
    assert _figures(killed) == _figures(other(*overrides))


def _figures(runs: list[StoredRun]) -> dict[str, tuple[object, ...]]:
    """What each trial is and found: state, chain, knobs, and all figures that do not depend on the clock."""
    clocks = ("seconds", "images_per_second")
    return {
        run.tags["dxc.trial"]: (
            run.tags["dxc.state"],
            run.tags["dxc.stages"],
            run.params,
            {name: value for name, value in run.metrics.items() if not name.endswith(clocks)},
        )
        for run in runs
    }
