"""Conditions over a frame whose answers are clear to the eye."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dxc.analysis.condition import DEFAULTS, Condition, meets, resolve
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
        ("onnx_mb == '11'", []),  # a quoted number that is asked for is text, and that of 11.0 is '11.0'
        ("onnx_mb == '11.0'", [0, 3]),
        ("onnx_mb == 11", [0, 3]),
        ("onnx_mb != 11", [1, 2]),
        ("latency_ms - onnx_mb > -4", [0, 1]),
        ("latency_ms < -1 * -9", [0, 3]),
        ("latency_ms * 2 >= 18", [1, 2]),
        ("latency_ms + onnx_mb <= 19", [0, 3]),
        ("9 > latency_ms", [0, 3]),  # a constant on the left
        ("8 <= latency_ms < 20", [0, 1]),
        ("'8' < latency_ms", [1, 2]),
        ("5 < latency_ms and latency_ms < 9 or onnx_mb > 40", [0, 2]),  # and binds closer than or
        ("accuracy > 0.9 or accuracy <= 0.9", [0, 1, 2]),
        ("not accuracy == None", [0, 1, 2]),
        ("None == accuracy", [3]),
        ("None != model.pool", [0, 1, 2]),
        ("model.pool == 'none'", [0]),
        ("model.pool != 'none'", [1, 2]),  # missing is neither
        ("model.pool in ['none', 'max']", [0, 1, 2]),
        ("model.pool not in ['none']", [1, 2]),
        ("accuracy not in [0.95]", [1, 2]),
        ("data in {'7ch', '5ch'}", [0, 1, 2, 3]),
        ("data in []", []),
        ("data not in []", [0, 1, 2, 3]),
        ("kernel == pool_kernel", [0, 3]),  # two columns, as numbers
        ("kernel < pool_kernel", []),
        ("kernel > pool_kernel", [1, 2]),
        ("data < 'a'", [0, 1, 2, 3]),
        ("data > '6'", [0, 2]),  # '5ch' and '7ch' are no numbers, so text is compared
        ("progress != False", [0, 2]),
        ("accuracy > 0.8 and accuracy > 0.9 and accuracy > 0.94", [0]),
        ("latency_ms == 5 or latency_ms == 8 or latency_ms == 9", [0, 1, 3]),
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
        (
            "accuracy > 0.9 adn data == '7ch'",
            f"this does not read as a condition\n  accuracy > 0.9 adn data == '7ch'\n  {' ' * 15}^",
        ),
        ("accuracy > 1 and latency_ms", f"accuracy > 1 and latency_ms\n  {' ' * 17}^"),
        (
            "not onnx_mb",
            f"a comparison is expected here, such as accuracy > 0.9\n  not onnx_mb\n  {' ' * 4}^",
        ),
        ("onnx_mb > 1 and kernal == 3", f"onnx_mb > 1 and kernal == 3\n  {' ' * 16}^"),
        ("accuracy > None", f"accuracy > None\n  {' ' * 11}^"),
        ("accuracy is 3", f"accuracy is 3\n  {' ' * 12}^"),
        ("accuracy > 1 and 1 < 2", f"accuracy > 1 and 1 < 2\n  {' ' * 17}^"),
        ("accuracy > latency_ms % 2", "a name, a number or quoted text is expected here"),
        ("accuracy > latency_ms ** 2", "a name, a number or quoted text is expected here"),
        ("accuracy > -latency_ms", "a name, a number or quoted text is expected here"),
        ("accuracy > 0.5 > None", "None can only be compared with == and !="),
        ("data.x > 3", "no run has data.x"),
        ("data == 'Flüßé' and kernal > 1", f"data == 'Flüßé' and kernal > 1\n  {' ' * 20}^"),
        ("data == 'Flüßé' und kernel > 1", f"data == 'Flüßé' und kernel > 1\n  {' ' * 16}^"),
        ("zzz > 3", "no run has zzz; there is accuracy, data, latency_ms, latency_ms/phone, model.kernel"),
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
        resolve("x", ["b.x", "a.x"])
    assert resolve("x", ["a.x", "x", "b.x"]) == "x"  # itself goes first
    assert resolve("x", ["a.x", "ax"]) == "a.x"  # after a dot


def test_names_that_are_none_are_listed_in_part() -> None:
    columns = [f"column{number:02}" for number in range(20)]
    with pytest.raises(AnalysisError) as caught:
        resolve("zzz", columns)
    assert str(caught.value).startswith(f"no run has zzz; there is {', '.join(columns[:12])}, ...\n")
    with pytest.raises(AnalysisError, match=r"no run has kernl; there is model.kernel\n"):
        resolve("kernl", ["accuracy", "model.kernel"])


def test_text_that_holds_numbers_is_ordered_as_numbers() -> None:
    frame = pd.DataFrame({"t": ["3", "x", "5", None], "n": ["3", "10", "5", None]})

    def rows(text: str) -> list[int]:
        return list(np.flatnonzero(Condition.parse(text).mask(frame)))

    assert rows("t > 4") == [1, 2]  # a column with a word is text: 'x' and '5' come after '4'
    assert rows("n > 4") == [1, 2]  # a column of numbers is not: 10 and 5
    assert rows("n > '4'") == [1, 2]
    assert rows("n == '10'") == [1] and rows("n == 10.0") == [1]
    assert rows("n < 4") == [0] and rows("t == None") == [3]


def test_what_is_missing_spoils_nothing() -> None:
    """Three-valued logic: false and missing is false, true or missing is true; not missing is missing."""
    frame = pd.DataFrame({"a": [1.0, np.nan, np.nan], "b": [5.0, 5.0, 1.0]})

    def rows(text: str) -> list[int]:
        return list(np.flatnonzero(Condition.parse(text).mask(frame)))

    assert rows("a == 1 or b == 5") == [0, 1]
    assert rows("not (a == 1 and b == 5)") == [2]
    assert rows("not (a == 1 or b == 5)") == []
    assert rows("0 < a < 2") == [0] and rows("not 0 < a < 2") == []


def test_columns() -> None:
    condition = Condition.parse("kernel > 3 and (latency_ms/phone < 2 or accuracy > 0.9 + onnx_mb / 100)")
    assert condition.columns(FRAME.columns) == ["model.kernel", "latency_ms/phone", "accuracy", "onnx_mb"]
    twice = Condition.parse("onnx_mb > 1 and kernel > 1 and onnx_mb < 9")
    assert twice.columns(FRAME.columns) == ["onnx_mb", "model.kernel"]
    with pytest.raises(AnalysisError, match="no run has kernal; there is model.kernel"):
        Condition.parse("onnx_mb > 1 and kernal == 3").columns(FRAME.columns)


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


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("compress.fraction == 0", [0, 2]),
        ("compress.fraction > 0", [1]),
        ("fraction < 0.3", [0, 2]),
        ("compress.quantise == 'none'", [0, 1]),
        ("compress.quantise != 'none' and fraction == 0", [2]),
    ],
)
def test_a_run_that_was_not_compressed_has_the_defaults(where: str, rows: list[int]) -> None:
    runs = pd.DataFrame(
        {
            "compress.fraction": pd.Categorical([None, "0.5", None]),
            "compress.quantise": pd.Categorical([None, None, "static"]),
        }
    )
    assert list(np.flatnonzero(meets(runs, where))) == rows
    assert runs["compress.fraction"].isna().tolist() == [True, False, True]


def test_no_run_was_compressed() -> None:
    assert meets(FRAME, "compress.fraction == 0 and compress.quantise == 'none'").all()


def test_the_defaults_are_those_of_the_configuration() -> None:
    import yaml

    from dxc.config.compose import PROJECT_ROOT

    given = yaml.safe_load((PROJECT_ROOT / "conf/compress/none.yaml").read_text())
    assert {name: given[name.removeprefix("compress.")] for name in DEFAULTS} == DEFAULTS
