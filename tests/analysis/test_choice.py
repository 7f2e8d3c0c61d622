"""Choices among five designs that can be made by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from dxc.analysis.choice import choose
from dxc.errors import AnalysisError
from dxc.metrics import METRICS

NAMES = {name: METRICS[name] for name in ("accuracy", "latency_ms")}
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
        (
            {"by": "latency_ms", "where": "latency_ms in [8.25, 9]"},
            12,
            14,
        ),  # two, and one dominates the other
        ({"by": "accuracy", "where": "accuracy < 0.945 and latency_ms >= 8.25"}, 12, 14),
        ({"by": "weights", "weights": {"accuracy": 1, "latency_ms": 0}}, 10, 12),
        ({"by": "weights", "weights": {"latency_ms": 3}}, 13, 12),  # one that is not named weighs nothing
        ({"by": "weights", "weights": {"accuracy": 2, "latency_ms": 1}}, 12, 10),  # 0.15 against 0.33
        ({"by": "latency_ms", "where": "latency_ms > 8.25 and accuracy != 0.93"}, 11, 10),
    ],
)
def test_choices(options: dict, design: int, runner_up: int | None) -> None:
    choice = choose(DESIGNS, NAMES, **options)
    assert (choice.design, choice.runner_up) == (design, runner_up)


DEPLOYED = pd.DataFrame(
    {
        "accuracy": [0.95, 0.9, 0.80, 0.74, 0.99],
        "latency_ms": [1.0, 2.0, 3.0, 4.0, 5.0],
        "device_accuracy": [0.94, 0.69, 0.79, 0.75, None],
        "measured_latency_ms": [80.0, 5.0, 20.0, 20.0, 1.0],
        "energy_mj": [350.0, 30.0, 80.0, 75.0, None],  # the last one is invalid: it was not logged
        "fom": [94 / 28000, 69 / 150, 79 / 1600, 75 / 1500, None],
    }
)


@pytest.mark.parametrize(
    ("options", "design", "runner_up", "rule"),
    [
        ({"by": "fom"}, 1, 3, "the largest measured figure of merit"),
        (
            {"by": "fom", "where": "device_accuracy >= 0.70"}, 3, 2,
            "the largest measured figure of merit where device_accuracy >= 0.70",
        ),
        (
            {"by": "latency", "where": "device_accuracy >= 0.70"}, 2, 3,  # equal: the more accurate one
            "the smallest measured latency where device_accuracy >= 0.70",
        ),
        (
            {"by": "energy", "where": "device_accuracy >= 0.70"}, 3, 2,
            "the smallest measured energy where device_accuracy >= 0.70",
        ),
        ({"by": "latency"}, 4, 1, "the smallest measured latency"),
        ({"by": "energy", "where": "device_accuracy > 0.9"}, 0, None, "the smallest measured energy where device_acc"),
    ],
)  # fmt: skip
def test_prizes(options: dict, design: int, runner_up: int | None, rule: str) -> None:
    """They are given among all designs, though the first dominates all but the last in these objectives."""
    choice = choose(DEPLOYED, NAMES, **options)
    assert (choice.design, choice.runner_up) == (design, runner_up)
    assert choice.rule.startswith(rule)


def test_prizes_without_figures() -> None:
    assert choose(DESIGNS, NAMES, by="latency").rule == "the smallest predicted latency"
    with pytest.raises(AnalysisError, match="choose.by=fom: no design has fom; deploy them with a meter"):
        choose(DESIGNS, NAMES, by="fom")
    with pytest.raises(
        AnalysisError, match="choose.by=energy: no design that meets accuracy > 0.98 has energy_mj"
    ):
        choose(DEPLOYED, NAMES, by="energy", where="accuracy > 0.98")


def test_equals_are_told_apart_by_the_knee() -> None:
    """Losses (0, 1, 0), (0, 0.975, 1) and (1, 0, 0.5): of the two most accurate, the first is nearer to the knee."""
    twins = pd.DataFrame({"accuracy": [0.9, 0.9, 0.8], "latency_ms": [5, 4.9, 1], "onnx_mb": [2, 3, 2.5]})
    names = NAMES | {"onnx_mb": METRICS["onnx_mb"]}
    choice = choose(twins, names, by="accuracy")
    assert (choice.design, choice.runner_up) == (0, 1)
    choice = choose(twins.iloc[::-1], names, by="accuracy")  # whichever comes first
    assert (choice.design, choice.runner_up) == (0, 1)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"by": "knee"}, "the knee of the front"),
        ({"by": "accuracy"}, "the largest accuracy"),
        (
            {"by": "latency_ms", "where": "accuracy > 0.9"},
            "the smallest predicted latency where accuracy > 0.9",
        ),
        (
            {"by": "weights", "weights": {"accuracy": 1}},
            "the weighted sum of normalised objectives",
        ),
    ],
)
def test_rules_in_words(options: dict, rule: str) -> None:
    assert choose(DESIGNS, NAMES, **options).rule == rule


def test_the_next_one_obeys_the_rule_too() -> None:
    """The front is one design: the next is chosen by the same weights among the others that meet the condition."""
    designs = pd.DataFrame({"accuracy": [0.99, 0.95, 0.9, 0.97], "latency_ms": [1.0, 9.0, 2.0, 8.0]})
    fast, sharp = ({"accuracy": 1, "latency_ms": 9}, {"accuracy": 9, "latency_ms": 1})
    assert choose(designs, NAMES, by="weights", weights=fast)[:2] == (0, 2)
    assert choose(designs, NAMES, by="weights", weights=sharp)[:2] == (0, 3)
    assert choose(designs, NAMES, by="accuracy", where="latency_ms != 8.0")[:2] == (0, 1)


def test_the_best_there_is_is_said() -> None:
    with pytest.raises(AnalysisError) as caught:
        choose(DESIGNS, NAMES, by="knee", where="accuracy > 0.99")
    assert str(caught.value).endswith("The best there is, each by itself: accuracy 0.95, latency_ms 4.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "knee", "where": "accuracy > 0.99"}, "no design meets choose.where: accuracy > 0.99"),
        (
            {"by": "cheapest"},
            "choose.by=cheapest is unknown; choose one of knee, weights, accuracy, latency_ms, fom, latency, energy",
        ),
        ({"by": "weights"}, "choose.by=weights needs them: 'choose.weights={accuracy:1,latency_ms:1}'"),
        ({"by": "weights", "weights": {"onnx_mb": 1}}, "onnx_mb is none of the objectives"),
        ({"by": "weights", "weights": {"accuracy": -1}}, "must be 0 or more"),
        ({"by": "weights", "weights": {"accuracy": 2, "latency_ms": -1}}, "must be 0 or more"),
        ({"by": "weights", "weights": {"accuracy": 0, "latency_ms": 0}}, "and one of them more"),
        ({"by": "weights", "weights": {}}, "choose.by=weights needs them"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises(AnalysisError) as caught:
        choose(DESIGNS, NAMES, **options)
    assert message in str(caught.value)


def test_a_front_of_two_has_no_knee() -> None:
    """The distances of (0, 1, 1) and (1, 0, 0) to the plane would choose the cheap one, which is least accurate."""
    two = pd.DataFrame({"accuracy": [0.7, 0.9], "latency_ms": [1.0, 9.0], "onnx_mb": [1.0, 9.0]})
    names = NAMES | {"onnx_mb": METRICS["onnx_mb"]}
    choice = choose(two, names, by="knee")
    assert (choice.design, choice.runner_up) == (1, 0)
    assert choice.rule.startswith("the larger accuracy of two, because a front of two designs has no knee")
    assert "choose.by=onnx_mb" in choice.rule
    alike = two.assign(accuracy=0.9, onnx_mb=[9.0, 1.0])  # the first objective that differs decides
    assert choose(alike, names, by="knee")[:2] == (0, 1)
    assert choose(two.iloc[[0, 0]], names, by="knee").rule == "the knee of the front"


def test_a_front_of_one_has_no_knee() -> None:
    assert choose(DESIGNS.iloc[[2, 4]], NAMES, by="knee").rule == "the only one on the front"
    only = choose(DESIGNS, NAMES, by="knee", where="accuracy > 0.94")
    assert only.rule == "the only one on the front where accuracy > 0.94" and only[:2] == (10, None)


def test_designs_that_are_not_compressed_are_found() -> None:
    designs = DESIGNS.assign(**{"compress.fraction": [None, "0.5", "0.5", None, "0.25"]})
    assert choose(designs, NAMES, by="accuracy", where="compress.fraction == 0")[:2] == (10, 13)
