"""benchmarks/compression.py: what it counts and predicts, and all of it in small."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "compression.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("compression_benchmark", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def run_of(start_s: int, seconds: float, fit_seconds: float, **stages: str) -> dict[str, Any]:
    start = datetime(2026, 1, 1) + timedelta(seconds=start_s)
    said = " ".join(f"{name}:{each}" for name, each in stages.items())
    end = start + timedelta(seconds=seconds)
    return {"start_time": start, "end_time": end, "fit_seconds": fit_seconds, "dxc.stages": said}


def test_what_a_sweep_saves_by_hand(script: ModuleType) -> None:
    """The network takes 100 s of training, fine-tuning 20 s; each run takes 5 s or 7 s beside it."""
    base = run_of(0, 105, 100, train="t", export="e", cost="c")
    float32 = run_of(200, 25, 120, train="t", prune="p", finetune="f", export="e1", cost="c1")
    static = run_of(300, 7, 120, train="t", prune="p", finetune="f", export="e1", quantise="q", cost="c2")
    not_tuned = run_of(400, 5, 100, train="t", prune="p", export="e3", cost="c3")
    found = script.predicted([not_tuned, static, base, float32])  # in any order
    assert found["designs"] == 3
    assert found["alone_s"] == (5 + 120) + (7 + 120) + (5 + 100)
    assert found["sweep_s"] == (5 + 7 + 5) + (100 + 20)
    assert found["times_less"] == pytest.approx(357 / 137)
    assert found["counted"] == {
        "sweep": {"train": 1, "prune": 1, "finetune": 1, "quantise": 1},
        "alone": {"train": 3, "prune": 3, "finetune": 2, "quantise": 1},
    }


def test_the_narrow_network_of_equal_size(script: ModuleType) -> None:
    from dxc.deploy.export import count_params
    from dxc.models.mobilenet import MobileNetV1

    whole = {k: count_params(MobileNetV1(3, 10, width=k / 1024, stride=1)) for k in (32, 127, 128, 129, 1024)}
    for k, own in whole.items():
        assert count_params(MobileNetV1(3, 10, width=script.narrow_width(own), stride=1)) == own, k
    assert script.narrow_width(whole[128] + 1) == 0.125
    assert script.narrow_width(1) == 1 / 32  # none is narrower
    assert script.params(1.0, 0.5) == count_params(MobileNetV1(3, 10, width=0.5, stride=1))  # whole halves


def test_bars_that_are_met_and_missed(script: ModuleType) -> None:
    def design(fraction: float, epochs: int, kind: str, accuracy: float, **more: float) -> dict[str, Any]:
        return {
            "fraction": fraction,
            "epochs": epochs,
            "quantise": kind,
            "accuracy": accuracy,
            "params": 50_000,
            **more,
        }

    found = {
        "grid": {
            "designs": [
                design(0, 0, "none", 0.769),
                design(0, 0, "static", 0.765, accuracy_drop=0.004),
                design(0.5, 0, "static", 0.2, accuracy_drop=0.1),  # not trained on: no bar
                design(0.5, 5, "none", 0.64),
                design(0.5, 5, "static", 0.633, accuracy_drop=0.007),
                design(0.9, 5, "none", 0.41),
            ]
        },
        "narrow": {
            "designs": [
                {"fraction": 0.5, "accuracy": 0.65, "params": 51_000},
                {"fraction": 0.9, "accuracy": 0.1, "params": 5_502},  # learnt nothing: no bar
            ]
        },
        "overhead": {"designs": 45, "kind": "predicted", "times_less": 5.5},
    }
    lines = script.bars(found)
    met = {line["name"]: (line["bar"], round(line["value"], 6), line["met"]) for line in lines}
    assert met["accuracy before pruning"] == (77, 76.9, False)
    assert met["float32, 50 % pruned, 5 epochs"] == (63.99, 64, True)
    assert met["static int8, greatest loss of 2 trained designs"] == (0.5, 0.7, False)
    assert met["front at the 92,899 parameters of the published 84 %"] == (75.64, 76.9, True)
    assert met["50 % pruned against a narrow network (51,000 parameters)"] == (65, 64, False)
    assert met["45 designs in one sweep against each alone (predicted)"] == (5, 5.5, True)
    assert not [name for name in met if "38,9" in name]  # no design of ours is so small
    assert sum("narrow" in name for name in met) == 1
    text = script.report({"images": "some images", "width": 0.25, "bars": lines})
    assert "| accuracy before pruning | 77.00 | 76.90 | % | missed |" in text and "some images" in text


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path: Path) -> None:
    def run(*further: str) -> tuple[dict[str, Any], str, str]:
        command = [sys.executable, str(SCRIPT), "--tiny", "--work", str(tmp_path / "work")]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "out"), *further],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        figures = json.loads((tmp_path / "out" / "compression.json").read_text())
        return figures, (tmp_path / "out" / "compression.md").read_text(), done.stdout

    figures, text, printed = run()
    assert figures["images"].startswith("drawn shapes") and figures["device"] in text and text in printed
    assert "edge_milestones: 9 of 9" in printed
    designs = {(d["fraction"], d["epochs"], d["quantise"]): d for d in figures["grid"]["designs"]}
    kinds = ("none", "dynamic", "static")
    assert [*designs] == [(f, e, kind) for f, e in ((0, 0), (0.5, 1), (0.5, 0)) for kind in kinds]
    assert designs[0, 0, "none"]["params"] == 215_642 and designs[0.5, 1, "none"]["params"] == 58_770
    for (fraction, epochs, kind), row in designs.items():
        if kind != "none":
            drop = designs[fraction, epochs, "none"]["accuracy"] - row["accuracy"]
            assert row["accuracy_drop"] == pytest.approx(drop)
            assert row["onnx_mb"] < designs[fraction, epochs, "none"]["onnx_mb"]
    (beside,) = figures["narrow"]["designs"]
    assert (beside["width"], beside["epochs"], beside["params"]) == (0.125, 2, 58_770)
    assert all(len(row["latencies_ms"]) == 1 and row["latency_ms"] > 0 for row in figures["stages"]["files"])
    saved = figures["overhead"]
    assert saved["kind"] == "measured" and saved["times_less"] > 0  # a busy machine decides
    assert saved["counted"] == {
        "sweep": {"train": 1, "prune": 1, "finetune": 1, "quantise": 4},
        "alone": {"train": 6, "prune": 6, "finetune": 3, "quantise": 4},
    }

    again, _, printed = run("--parts", "table", "grid")  # from the store: nothing is trained
    assert again["grid"] == figures["grid"] and " of 9: " not in printed
