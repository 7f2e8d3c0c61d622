"""Searches with axes of compression: what trials share is done once, and costs are known before training."""

from __future__ import annotations

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
from tests.search.searches import Searching, composed, replaced

FIXED = [
    "model.stride=2",
    "model.width=8",
    "model.pool=none",
    "model.pool_kernel=3",
    "compress.finetune_epochs=1",
]
AXES = ["compress.fraction=0,0.5", "compress.quantise=none,static"]


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
