"""The table of metrics: each is declared once, and all that shows, limits or compares it reads its row."""

from __future__ import annotations

import pytest

from dxc.metrics import METRICS, metric_of


def test_directions() -> None:
    up = {name for name, declared in METRICS.items() if declared.maximise}
    of_boxes = {"box_ap50", "box_ap", "mean_iou"}
    assert up == of_boxes | {
        "accuracy", "average_precision", "f1", "auroc", "recall_at_precision", "images_per_second",
        "fold_score",
    }  # fmt: skip


def test_units_in_names() -> None:
    for name, declared in METRICS.items():
        assert declared.unit in ("fraction", "count", "ms", "s", "1/s", "1e6 bytes")
        assert isinstance(declared.maximise, bool)
        if name.endswith("_ms"):
            assert declared.unit == "ms"
        if name.endswith("_mb"):
            assert declared.unit == "1e6 bytes"


def test_one_predictor_belongs_to_the_latency() -> None:
    assert metric_of("latency_ms/cortexA76cpu_tflite21") is METRICS["latency_ms"]
    with pytest.raises(KeyError):
        metric_of("acuracy")
