"""Choices among five designs that can be made by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from dxc.analysis.choice import choose
from dxc.errors import AnalysisError
from dxc.pareto import OBJECTIVES

NAMES = {name: OBJECTIVES[name] for name in ("accuracy", "latency_ms")}
# c is the knee: normalised losses (0, 1), (0.5, 0.6), (0.1, 0.25), (1, 0); e is dominated by c
DESIGNS = pd.DataFrame(
    {"accuracy": [0.95, 0.90, 0.94, 0.85, 0.93], "latency_ms": [20.0, 13.2, 8.25, 4.5, 9.0]},
    index=[10, 11, 12, 13, 14],
)


@pytest.mark.parametrize(
    ("options", "design", "runner_up"),
    [
        ({"by": "knee"}, 12, 10),
        ({"by": "accuracy"}, 10, 12),
        ({"by": "latency_ms"}, 13, 12),
        ({"by": "accuracy", "where": "latency_ms < 15"}, 12, 13),
        ({"by": "latency_ms", "where": "accuracy > 0.9"}, 12, 10),
        ({"by": "weights", "weights": {"accuracy": 9, "latency_ms": 1}}, 10, 12),  # 0.1 against 0.115
        ({"by": "weights", "weights": {"accuracy": 1, "latency_ms": 1}}, 12, 10),
        ({"by": "accuracy", "where": "latency_ms == 9"}, 14, None),  # dominated by what is ruled out
    ],
)
def test_choices(options: dict, design: int, runner_up: int | None) -> None:
    choice = choose(DESIGNS, NAMES, **options)
    assert (choice.design, choice.runner_up) == (design, runner_up)


def test_equals_are_told_apart_by_the_knee() -> None:
    twins = pd.DataFrame(
        {"accuracy": [0.9, 0.9, 0.8], "latency_ms": [5.0, 5.0, 4.0], "onnx_mb": [3.0, 2.0, 2.5]}
    )
    names = NAMES | {"onnx_mb": OBJECTIVES["onnx_mb"]}
    assert choose(twins, names, by="accuracy").design == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "knee", "where": "accuracy > 0.99"}, "no design meets choose.where: accuracy > 0.99"),
        (
            {"by": "cheapest"},
            "choose.by=cheapest is unknown; choose one of knee, weights, accuracy, latency_ms",
        ),
        ({"by": "weights"}, "choose.by=weights needs them: 'choose.weights={accuracy:1,latency_ms:1}'"),
        ({"by": "weights", "weights": {"onnx_mb": 1}}, "onnx_mb is none of the objectives"),
        ({"by": "weights", "weights": {"accuracy": -1}}, "must be 0 or more"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises(AnalysisError) as caught:
        choose(DESIGNS, NAMES, **options)
    assert message in str(caught.value)
