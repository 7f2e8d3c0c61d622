"""Tables of an analysis: numbers as text, order, and files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from dxc.analysis.network_file import NetworkFile
from dxc.evaluation.bootstrap import Comparison
from dxc.metrics import METRICS
from dxc.report.findings import answer, compared_in_words, front_profile_in_short
from dxc.report.tables import front_profile, listing, number, ranges, write

NAN = float("nan")
TWO = {name: METRICS[name] for name in ("accuracy", "params")}
DESIGNS = pd.DataFrame(
    {
        "name": ["a", "b", "c", "d"],
        "accuracy": [0.9, 0.95, 0.9, 0.8],
        "params": [2_000_000.0, 11_183_810.0, 1_000_000.0, NAN],
        "spread.accuracy": [0.01, NAN, 0.0, 0.02],
        "kernel": [3.0, 5.0, None, 0.12345],
        "pool": pd.Series(["max", "none", None, "max"], dtype=object),
        "n": [2, 1, 1, 3],
    }
)


@pytest.mark.parametrize(
    ("name", "value", "spread", "text"),
    [
        ("accuracy", 0.94567, 0.0123, "0.9457 ± 0.0123"),
        ("accuracy", 0.94567, 0.0, "0.9457 ± 0.0000"),
        ("accuracy", NAN, 0.1, "-"),
        ("latency_ms", 1234.567, NAN, "1,234.57"),
        ("latency_ms/cortexA76cpu_tflite21", 3.14159, NAN, "3.14"),
        ("efficiency_ms", 0.98765, NAN, "0.988"),
        ("optimum_batch", 32.0, NAN, "32"),
        ("onnx_mb", 44.7349, NAN, "44.73"),
        ("params", 11_183_810.0, NAN, "11,183,810"),
        ("macs", 1_234_567.0, NAN, "1,234,567"),
        ("f1", 0.123456, 0.00123456, "0.1235 ± 0.001235"),
        ("f1", 0.0, NAN, "0"),
    ],
)
def test_numbers_as_text(name: str, value: float, spread: float, text: str) -> None:
    assert number(name, value, spread) == text


def test_ranges_by_hand() -> None:
    table = ranges(DESIGNS, TWO)
    assert table[["better", "min", "max", "designs"]].to_numpy().tolist() == [
        ["higher", "0.8000", "0.9500", 4],
        ["lower", "1,000,000", "11,183,810", 4],
    ]


def test_designs_are_listed_best_first() -> None:
    """Of equal ones in their order; what is missing is last, and a dash."""
    table = listing(DESIGNS, TWO, ["kernel", "pool"], more=["n"])
    assert list(table.columns)[0::3] == ["design", "n"] and list(table.columns)[4:] == ["kernel", "pool"]
    assert table.to_numpy().tolist() == [
        ["b", "0.9500", "11,183,810", "1", "5", "none"],
        ["a", "0.9000 ± 0.0100", "2,000,000", "2", "3", "max"],
        ["c", "0.9000 ± 0.0000", "1,000,000", "1", "-", "-"],
        ["d", "0.8000 ± 0.0200", "-", "3", "0.1235", "max"],
    ]
    smallest = listing(DESIGNS, {"params": TWO["params"]}, [])
    assert list(smallest["design"]) == ["c", "a", "b", "d"]


SUMMARY = pd.DataFrame(
    {
        "name": ["big", "big", "big", "small"],
        "batch": [8, 1, 2, 1],
        "ms": [16.0, 5.0, 4.0, 1.23456],
        "ms_per_image": [2.0, 5.0, 2.0, 1.23456],
        "memory_ms": [0.5, 0.25, 0.1, NAN],
        "peak_memory_mb": [NAN, 123.456, NAN, 40.0],
        "conv": [0.5, 0.31, 0.6, 0.2],
        "pooling": [0.1, 0.05, 0.1, 0.4],
        "matmul": [0.1, 0.44, 0.05, 0.1],
        "other": [0.05, 0.0, 0.05, 0.1],
        "source": ["torch", "torch", "torch", "nsight"],
    }
)


def test_profiled_networks_in_a_table() -> None:
    table = front_profile(SUMMARY)
    one = ["big", "1", "5", "5", "0.25", "123.5", "31.0", "44.0", "5.0", "0.0", "torch"]
    assert table.iloc[1].tolist() == one
    one = ["small", "1", "1.235", "1.235", "-", "40", "20.0", "10.0", "40.0", "10.0", "nsight"]
    assert table.iloc[3].tolist() == one


def test_profiled_networks_in_short() -> None:
    """The smallest batch, whatever comes first; of equal times an image, the first one."""
    table = front_profile_in_short(SimpleNamespace(summary=SUMMARY, device="a GPU"))
    assert table.iloc[:, 0].tolist() == ["big", "small"]
    assert [row.dropna().tolist() for _, row in table.iterrows()] == [
        ["big", "5", "2, batch 8", "123.5", "matmul, 44 %"],
        ["small", "1.235", "1.235, batch 1", "40", "pooling, 40 %"],
    ]


def test_a_comparison_in_words() -> None:
    found = Comparison(0.0125, -0.005, 0.03, 7, 2, 0.1797)
    analysis = SimpleNamespace(comparison=("a", "b", found))
    assert compared_in_words(analysis) == (
        "compared:  a less b: accuracy +0.0125, 95 % between -0.0050 and +0.0300; McNemar p = 0.18 (7 chips only the "
        "first has right, 2 only the second)"
    )
    without = SimpleNamespace(comparison=("a", "b", found._replace(p_value=NAN)))
    assert compared_in_words(without).endswith("between -0.0050 and +0.0300")
    assert compared_in_words(SimpleNamespace(comparison=None)) == ""


def _answer(**changes: object) -> list[str]:
    designs = pd.DataFrame({"name": ["a", "b", "c"], "unstable": [False, True, False]})
    analysis = {
        "designs": designs,
        "front": designs.iloc[:1],
        "choice": SimpleNamespace(design=0, runner_up=None, rule="the knee"),
        "commands": ("train a", "train c"),
        "notes": ("one", "two"),
        "machines": {},
        "title": "study first",
        "objectives": TWO,
        "hypervolume": 0.123456,
        "reference": {"accuracy": 0.5, "params": 2e6},
        "comparison": None,
        "network": NetworkFile(),
        "knobs": [],
    }
    return answer(SimpleNamespace(**analysis | changes))


def test_an_answer_in_lines() -> None:
    said = [
        "3 designs of study first, 1 on the front of accuracy, parameters; hypervolume 0.1235 from accuracy 0.5, "
        "parameters 2e+06",
        "note:      one",
        "note:      two",
        "choice:    a: the knee",
        "reproduce: train a",
    ]
    assert _answer() == said
    assert _answer(commands=("", "")) == said[:4]
    two = SimpleNamespace(design=0, runner_up=2, rule="the knee")
    assert _answer(choice=two) == [*said, "runner-up: c", "reproduce: train c"]
    assert _answer(choice=two, commands=("train a", "")) == [*said, "runner-up: c"]
    unstable_choice = SimpleNamespace(design=1, runner_up=None, rule="the knee")
    unstable = _answer(
        choice=unstable_choice, front=pd.DataFrame({"name": ["a", "b"], "unstable": [False, True]})
    )
    assert unstable[3].startswith("unstable: ") and unstable[3].endswith(": b")
    assert unstable[5].strip().startswith("it is on the front in few of the bootstrap draws")
    compared = _answer(comparison=("a", "b", Comparison(0.01, 0.0, 0.02, 3, 1, NAN)))
    assert compared[3].startswith("compared:  a less b")


def test_a_table_in_three_formats(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"design": ["a", "b"], "accuracy": ["0.9000 ± 0.0100", "1"], "f1": ["0.7000", "1.0000"]}
    )
    paths = write(table, tmp_path / "report", "front")
    assert [path.name for path in paths] == ["front.md", "front.tex", "front.csv"]
    md, tex, csv = (path.read_text() for path in paths)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in md.splitlines()]
    assert [lines[0], *lines[2:]] == [
        ["design", "accuracy", "f1"],
        ["a", "0.9000 ± 0.0100", "0.7000"],
        ["b", "1", "1.0000"],
    ]
    rows = [[cell.strip(" \\") for cell in line.split("&")] for line in tex.splitlines() if "&" in line]
    assert rows[1:] == [["a", r"0.9000 $\pm$ 0.0100", "0.7000"], ["b", "1", "1.0000"]]
    assert r"\toprule" in tex and "±" not in tex
    pd.testing.assert_frame_equal(pd.read_csv(paths[2], dtype=str, keep_default_na=False), table)
    assert csv.splitlines()[0] == "design,accuracy,f1"
