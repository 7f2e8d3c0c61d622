"""The table of compressed designs: fraction x epochs x quantisation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dxc.analysis.compression import compressed, shown
from dxc.config.names import describe
from dxc.report.compression import compression_figure, compression_in_text, write_compression

METRICS = ["accuracy", "accuracy_drop", "onnx_mb", "measured_latency_ms"]


def _run(
    fraction: float, epochs: int, kind: str, accuracy: float, mb: float, *, seed: int = 0, width: int = 4
) -> dict:
    compress = {"fraction": fraction, "align": 1, "steps": 1, "finetune_epochs": epochs, "quantise": kind}
    model = {"_target_": "dxc.models.resnet.ResNet", "width": width}
    name = describe({"model": model, "data": {"channels": [1] * 5, "batch_size": 8}, "compress": compress})
    design = f"{fraction}{kind}{width}" + (f"e{epochs}" if fraction else "")
    return {
        "run_id": f"{design}s{seed}", "name": name, "dxc.design": design, "accuracy": accuracy, "accuracy_std": 0.01,
        "accuracy_drop": 0.02 if kind != "none" else None, "onnx_mb": mb, "measured_latency_ms": mb / 10,
        **{f"compress.{key}": str(value) for key, value in compress.items()},
    }  # fmt: skip


def test_rows_by_hand() -> None:
    runs = pd.DataFrame(
        [
            _run(0.5, 3, "static", 0.70, 1.0),
            _run(0.5, 3, "none", 0.80, 4.0),
            _run(0.5, 3, "none", 0.84, 4.0, seed=1),
            _run(0.5, 0, "none", 0.30, 4.0),
            _run(0, 5, "none", 0.90, 8.0),
        ]
    )
    frame = compressed(runs, METRICS)
    assert list(frame["network"].unique()) == ["resnet w4, 5ch b8"]
    assert list(frame["fraction"]) == [0, 0.5, 0.5, 0.5]
    assert list(frame["quantise"]) == ["none", "none", "none", "static"]
    assert list(frame["finetune_epochs"].fillna(-1)) == [-1, 0, 3, 3]
    assert list(frame["n"]) == [1, 1, 2, 1]
    assert list(frame["accuracy"]) == pytest.approx([0.90, 0.30, 0.82, 0.70])
    assert list(frame["spread.accuracy"]) == pytest.approx([0.01, 0.01, 0.0282843, 0.01], abs=1e-6)
    shown = compression_in_text(frame, METRICS)
    assert list(shown.columns) == [
        "pruned", "epochs", "numbers", "accuracy (fraction)", "loss by quantising (fraction)", "ONNX file (MB)",
        "measured latency (ms)", "runs",
    ]  # fmt: skip
    assert list(shown.iloc[0]) == ["0%", "-", "float32", "0.9000 ± 0.0100", "-", "8.00", "0.8", "1"]
    assert list(shown.iloc[3])[:5] == ["50%", "3", "static int8", "0.7000 ± 0.0100", "0.0200"]


def test_runs_that_say_nothing_of_compression() -> None:
    runs = pd.DataFrame([_run(0, 5, "none", 0.9, 8.0), _run(0, 5, "none", 0.8, 9.0, width=8)])
    runs = runs.drop(columns=[name for name in runs if name.startswith("compress.")])
    frame = compressed(runs, METRICS)
    assert list(frame["fraction"]) == [0, 0] and list(frame["quantise"]) == ["none", "none"]
    assert list(compression_in_text(frame, METRICS)["network"]) == ["resnet w4, 5ch b8", "resnet w8, 5ch b8"]


def test_energies_that_do_not_count_are_said() -> None:
    runs = pd.DataFrame([_run(0, 5, "none", 0.9, 8.0), _run(0.5, 3, "none", 0.8, 4.0)])
    assert "energy_mj" not in shown(runs)
    runs["dxc.energy"] = ["invalid: windows of 6 s", "not metered"]
    metrics = shown(runs)
    assert metrics == ["accuracy", "onnx_mb", "measured_latency_ms", "energy_mj"]
    text = compression_in_text(compressed(runs, metrics), metrics)
    assert list(text.iloc[:, -1]) == ["invalid", "-"]


def test_params_that_some_runs_lack() -> None:
    """As runs are read from a store: each says only what means something in it, and params are categorical."""
    runs = pd.DataFrame(
        [_run(0, 5, "none", 0.9, 8.0), _run(0.5, 3, "none", 0.8, 4.0), _run(0.5, 3, "static", 0.7, 1.0)]
    )
    runs.loc[runs["compress.quantise"] == "none", "compress.quantise"] = None
    runs.loc[runs["compress.fraction"] == "0", ["compress.fraction", "compress.finetune_epochs"]] = None
    params = [name for name in runs if name.startswith("compress.")]
    runs[params] = runs[params].astype("category")
    frame = compressed(runs, METRICS)
    assert list(frame["network"]) == ["resnet w4, 5ch b8"] * 3
    assert list(frame["fraction"]) == [0, 0.5, 0.5] and list(frame["quantise"]) == ["none", "none", "static"]


def test_files_and_figures(tmp_path: Path) -> None:
    runs = pd.DataFrame(
        [
            _run(fraction, epochs, kind, 0.9 - fraction / 2 + epochs / 100, 8 - 8 * fraction)
            for fraction in (0.25, 0.5)
            for epochs in (0, 3)
            for kind in ("none", "static")
        ]
    )
    frame = compressed(runs, METRICS)
    (axes,) = compression_figure(frame, "onnx_mb").axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_label() for line in lines] == ["float32", "static int8"]
    for line in lines:  # fine-tuned longest, pruned least first
        assert list(line.get_xdata()) == [6.0, 4.0]
        assert list(line.get_ydata()) == pytest.approx([0.805, 0.68])
    write_compression(frame, METRICS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compression.csv", "compression.md", "compression.tex", "compression_measured_latency_ms.png",
        "compression_measured_latency_ms.svg", "compression_onnx_mb.png", "compression_onnx_mb.svg",
    ]  # fmt: skip
    assert len((tmp_path / "compression.md").read_text().splitlines()) == 2 + 8
