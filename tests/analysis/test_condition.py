"""Conditions over a frame whose answers are clear to the eye."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dxc.analysis.condition import Condition, resolve
from dxc.errors import AnalysisError

FRAME = pd.DataFrame(
    {
        "accuracy": [0.95, 0.90, 0.85, np.nan],
        "latency_ms": [8.0, 9.0, 20.0, 5.0],
        "latency_ms/phone": [1.0, 2.0, 3.0, np.nan],
        "onnx_mb": [11.0, 12.0, 44.0, 11.0],
        "data": pd.Categorical(["7ch", "5ch", "7ch", "5ch"]),
        "model.kernel": pd.Categorical(["3", "5", "7", "3"]),
        "model.pool": pd.Categorical(["none", "max", "max", None]),
        "model.pool_kernel": pd.Categorical(["3", "2", "3", "3"]),
        "progress": pd.Categorical(["True", "False", "True", "False"]),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("accuracy > 0.9", [0]),
        ("accuracy >= 0.9", [0, 1]),
        ("accuracy > 0.8 and data == '7ch' and onnx_mb < 12", [0]),
        ("accuracy > 0.9 or latency_ms < 6", [0, 3]),  # a missing accuracy does not spoil the other side
        ("not accuracy > 0.9", [1, 2]),  # missing is neither
        ("accuracy != 0.95", [1, 2]),
        ("accuracy == None", [3]),
        ("model.pool != None", [0, 1, 2]),
        ("model.kernel in [3, 7]", [0, 2, 3]),
        ("model.kernel not in [3, 7]", [1]),
        ("data in ('5ch',)", [1, 3]),
        ("kernel > 4", [1, 2]),  # params are text in the store
        ("8 < latency_ms <= 20", [1, 2]),
        ("latency_ms/phone > 1", [1, 2]),
        ("latency_ms / onnx_mb < 0.5", [2, 3]),
        ("latency_ms > onnx_mb - 4", [0, 1]),
        ("pool == 'max' and pool_kernel == 3", [2]),
        ("progress == True", [0, 2]),
        ("latency_ms > -1", [0, 1, 2, 3]),
        ("onnx_mb > '5'", [0, 1, 2, 3]),  # as text, '11.0' is less than '5'
        ("'5' <= latency_ms < '10'", [0, 1, 3]),
        ("kernel >= '5'", [1, 2]),
        ("pool >= 'max'", [0, 1, 2]),  # text stays text
        ("not (data == '7ch' or kernel == 5)", [3]),
    ],
)
def test_rows(text: str, rows: list[int]) -> None:
    mask = Condition.parse(text).mask(FRAME)
    assert mask.dtype == bool
    assert list(np.flatnonzero(mask)) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy >", "this does not read as a condition\n  accuracy >\n            ^"),
        ("accuracy > 0.9 adn data == '7ch'", "this does not read as a condition\n"),
        ("accuracy", "a comparison is expected here, such as accuracy > 0.9\n  accuracy\n  ^"),
        ("acuracy > 0.9", "no run has acuracy; there is accuracy\n  acuracy > 0.9\n  ^"),
        ("accuracy > 0.9 and kernal == 3", "no run has kernal; there is model.kernel"),
        ("accuracy is 3", "write == or != for this"),
        ("accuracy in 3", "a list is expected here, such as [3, 5]\n  accuracy in 3\n              ^"),
        ("accuracy > None", "None can only be compared with == and !="),
        ("__import__('os').system('x') == 1", "a name, a number or quoted text is expected here"),
        ("1 < 2", "this compares two constants"),
        ("accuracy > (latency_ms if 1 else 2)", "a name, a number or quoted text is expected here"),
    ],
)
def test_mistakes_are_pointed_at(text: str, message: str) -> None:
    with pytest.raises(AnalysisError) as caught:
        Condition.parse(text).mask(FRAME)
    assert message in str(caught.value)


def test_a_name_that_could_be_two() -> None:
    with pytest.raises(AnalysisError, match="x could be a.x or b.x"):
        resolve("x", ["a.x", "b.x"])


def test_columns() -> None:
    condition = Condition.parse("kernel > 3 and (latency_ms/phone < 2 or accuracy > 0.9 + onnx_mb / 100)")
    assert condition.columns(FRAME.columns) == ["model.kernel", "latency_ms/phone", "accuracy", "onnx_mb"]


@pytest.mark.parametrize(
    "text",
    [
        "not " * 100_000 + "accuracy > 1",
        "accuracy > " + "1 + " * 100_000 + "1",
        *("not " * n + "accuracy > 1" for n in (2000, 5000)),
        *("accuracy > " + "latency_ms + " * n + "1" for n in (900, 2000, 5000)),
    ],
)
def test_a_condition_that_is_nested_too_deeply(text: str) -> None:
    def ask() -> None:
        condition = Condition.parse(text)
        condition.columns(FRAME.columns)
        condition.mask(FRAME)

    with pytest.raises(AnalysisError) as caught:
        ask()
    assert len(str(caught.value)) < 1000 or "this does not read as a condition" in str(caught.value)
