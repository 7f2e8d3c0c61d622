"""The objective table holds every metric of the contract, with its direction."""

from __future__ import annotations

import pytest

from dxc.pareto import OBJECTIVES, objective


def test_directions() -> None:
    up = {name for name, declared in OBJECTIVES.items() if declared.maximise}
    assert up == {"accuracy", "average_precision", "f1", "auroc", "images_per_second"}


def test_units_in_names() -> None:
    for name, declared in OBJECTIVES.items():
        if name.endswith("_ms"):
            assert declared.unit == "ms"
        if name.endswith("_mb"):
            assert declared.unit == "1e6 bytes"


def test_one_predictor_belongs_to_the_latency() -> None:
    assert objective("latency_ms/cortexA76cpu_tflite21") is OBJECTIVES["latency_ms"]
    with pytest.raises(KeyError):
        objective("acuracy")
