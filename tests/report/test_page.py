"""The page of a front as text: what it holds, that it is whole, and that text from the store stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest

from dxc.metrics import METRICS, Metric, undeclared
from dxc.report.page import page

Designs = tuple[pd.DataFrame, dict[str, Metric], list[str]]

EVIL = '</td></script><script>alert("$1")</script><img src=x onerror=alert(1)>&amp;'


class Parsed(HTMLParser):
    """Elements in order, scripts' text, and the table's cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img"):
            self._open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements are not nested well"

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.text[tag][-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.text["script"][0], parse_constant=_no_constant)

    def rows(self) -> list[list[str]]:
        cells, columns = self.text["td"], len(self.text["th"])
        return [cells[start : start + columns] for start in range(0, len(cells), columns)]


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def _parsed(designs: Designs, **options: Any) -> Parsed:
    return Parsed(page(*designs, **{"title": "Front of study 'demo'", "sections": [], **options}))


def test_heading_and_summary(four: Designs) -> None:
    parsed = _parsed(four)
    assert parsed.text["h1"] == parsed.text["title"] == ["Front of study 'demo'"]
    assert parsed.text["p"][1] == (  # below what is said where there is no JavaScript
        "2 of 4 designs are on the front of accuracy, predicted latency and ONNX file: no other is at least as good "
        "in all of them and better in one; 1 of them is unstable, on the front in few of the bootstrap draws."
    )
    assert "Higher is better: accuracy. Lower is better: predicted latency, ONNX file." in " ".join(
        parsed.text["p"]
    )


def test_nothing_is_fetched(four: Designs) -> None:
    parsed = _parsed(four)
    loading = [
        (tag, attrs) for tag, attrs in parsed.elements if {"src", "href", "srcset", "data"} & set(attrs)
    ]
    assert loading == []
    assert {"link", "iframe", "object", "img"}.isdisjoint(tag for tag, _ in parsed.elements)
    assert not re.search(r"@import|url\(", parsed.text["style"][0])


def test_the_policy_allows_the_pages_scripts_and_nothing_else(four: Designs) -> None:
    parsed = _parsed(four)
    policy = next(attrs["content"] for tag, attrs in parsed.elements if attrs.get("http-equiv")) or ""
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in parsed.text["script"][1:]  # the first is data
    ]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert len(digests) == 2


def test_the_scatter_holds_the_front(four: Designs) -> None:
    designs, objectives, _ = four
    data = _parsed(four).data
    assert data["axes"] == ["latency_ms", "", "accuracy"]  # flat, until a third axis is chosen
    assert [(group["title"], group["rows"]) for group in data["groups"]] == [
        ("other designs", [2, 3]),
        ("front", [0]),
        ("front, unstable", [1]),
    ]
    assert [group["marker"]["symbol"] for group in data["groups"]] == ["circle", "diamond", "diamond-open"]
    assert data["front"] == [0, 1]
    for column, name in zip(data["objectives"], objectives, strict=True):
        assert column["name"] == name
        assert column["values"] == designs[name].tolist()
    assert data["objectives"][0]["spread"] == [0.01, 0.02, None, 0.03]
    assert [column["label"] for column in data["objectives"]] == [
        "accuracy (fraction)",
        "predicted latency (ms)",
        "ONNX file (MB)",
    ]
    assert [column["log"] for column in data["objectives"]] == [False, False, True]


def test_hover_says_what_a_design_is(four: Designs) -> None:
    hover = _parsed(four).data["hover"]
    assert hover[0].split("<br>") == [
        "<b>a</b>",
        "data 5ch, kernel 3, batch_size 8",
        "accuracy: 0.9000 ± 0.0100",
        "predicted latency: 1.0000 ± 0.2500 ms",
        "ONNX file: 10.0000 MB",
        "probability of being on the front: 0.90",
        "mean of 3 runs",
        f"run {'a' * 32}",
    ]
    assert "mean of 1 run<br>" in hover[2]
    assert "probability of being on the front: –<br>" in hover[2]


def test_selects_choose_among_objectives(four: Designs, by_chance: Callable[..., Designs]) -> None:
    def selects(designs: Designs) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in _parsed(designs).elements if tag in ("select", "option")]

    assert selects(by_chance(20, 2)) == []
    boxes = selects(by_chance(20, 5))
    assert [box["name"] for box in boxes if "name" in box] == ["x", "z", "y"]
    assert [box["value"] for box in boxes if "selected" in box] == ["latency_ms", "accuracy", ""]
    assert len(boxes) == 3 + 3 * 5 + 1  # and none, for a flat plot
    two = _parsed(by_chance(20, 2)).data
    assert two["axes"] == ["latency_ms", "accuracy"]


def test_parallel_axes(by_chance: Callable[..., Designs]) -> None:
    """Words and few numbers have a tick a value; their lines lie aside of it by less than half the way."""
    designs, objectives, knobs = by_chance(100, 4)
    axes = _parsed((designs, objectives, knobs)).data["dimensions"]
    assert [axis["label"] for axis in axes] == [
        "data",
        "kernel",
        "stride",
        "padding",
        "pool",
        "width",
        "lr",
        "batch_size",
        "accuracy (fraction)",
        "predicted latency (ms)",
        "ONNX file (MB)",
        "MACs",
    ]
    data, width, rate, accuracy, latency = (axes[place] for place in (0, 5, 6, 8, 9))
    assert data["ticktext"] == ["5ch", "7ch"]
    assert [round(value) for value in data["values"]] == (designs["data"] == "7ch").astype(int).tolist()
    assert width["ticktext"] == ["8", "16", "32", "48", "64"]
    chosen = [int(width["ticktext"][round(value)]) for value in width["values"]]
    assert chosen == designs["model.width"].tolist()
    best, worst = int(designs["accuracy"].argmax()), int(designs["accuracy"].argmin())
    assert width["values"][best] % 1 == pytest.approx(0.15, abs=0.01)
    assert width["values"][worst] % 1 == pytest.approx(0.85, abs=0.01)
    assert rate["values"] == pytest.approx(np.log10(designs["optimizer.lr"]))
    assert rate["tickvals"] == [-4, -3, -2]
    assert rate["ticktext"] == ["0.0001", "0.001", "0.01"]
    assert accuracy["values"] == designs["accuracy"].tolist()
    assert accuracy["range"] == [designs["accuracy"].min(), designs["accuracy"].max()]
    assert latency["ticktext"] == ["0.2", "0.5", "1", "2", "5"]
    assert latency["tickvals"] == pytest.approx(np.log10([0.2, 0.5, 1, 2, 5]))


def test_no_axis_shows_what_cannot_be(four: Designs) -> None:
    """An accuracy of 1 with its bar, and the axis of a single value, end at 1; 2 % more draw the marker whole."""
    designs, objectives, knobs = four
    one = designs.head(1).assign(accuracy=1.0, **{"spread.accuracy": 0.1})
    data = _parsed((one, objectives, knobs)).data
    limits = {each["name"]: each["limits"] for each in data["objectives"]}
    assert limits["accuracy"] == pytest.approx([None, 1 + 0.02 * 0.12])  # from 0.88 to 1
    assert limits["onnx_mb"] == [None, None]  # 10 MB, far from 0
    dimension = data["dimensions"][len(knobs)]
    assert (dimension["label"], dimension["range"]) == ("accuracy (fraction)", [0.5, 1.0])
    assert _parsed((designs, objectives, knobs)).data["objectives"][0]["limits"] == [None, None]


def test_table_is_the_front_best_first(four: Designs) -> None:
    parsed = _parsed(four)
    assert parsed.text["th"] == [
        "design",
        "accuracy (fraction)",
        "predicted latency (ms)",
        "ONNX file (MB)",
        "P(on the front)",
        "runs",
        "run",
    ]
    assert parsed.rows() == [
        ["b", "0.9600 ± 0.0200", "2.0000", "11.0000", "0.30 (unstable)", "2", "b" * 32],
        ["a", "0.9000 ± 0.0100", "1.0000 ± 0.2500", "10.0000", "0.90", "3", "a" * 32],
    ]
    headings = [attrs for tag, attrs in parsed.elements if tag == "th"]
    assert all(attrs["scope"] == "col" for attrs in headings)
    assert [attrs.get("aria-sort") for attrs in headings] == [
        None,
        "descending",
        None,
        None,
        None,
        None,
        None,
    ]
    assert len(parsed.text["button"]) == len(headings)


def test_unknown_numbers_are_dashes(four: Designs) -> None:
    designs, objectives, knobs = four
    designs["p_front"] = np.nan
    designs["model.kernel"] = [3, None, 3, 5]
    parsed = _parsed((designs, objectives, knobs))
    assert parsed.rows()[1][4] == "–"
    kernel = parsed.data["dimensions"][1]
    assert kernel["ticktext"] == ["3", "5", "–"]
    sorted_by = [attrs["data-sort"] for tag, attrs in parsed.elements if tag == "td"]
    assert sorted_by[4] == ""
    assert "nan" not in sorted_by


def test_text_from_the_store_stays_text(four: Designs) -> None:
    designs, objectives, _ = four
    designs["name"] = [f"{EVIL}{k}" for k in range(4)]
    designs["run_id"] = EVIL
    designs["score"] = designs["spread.score"] = 0.5
    objectives |= {
        "score": replace(undeclared("score", maximise=False), unit=EVIL, meaning=EVIL),
        EVIL: undeclared(EVIL, maximise=True),
    }
    designs[f"spread.{EVIL}"] = 0.0
    designs[EVIL] = designs["accuracy"]
    designs["word"] = [EVIL, "b", EVIL, "b"]
    ours = (designs, objectives, ["word"])
    parsed = _parsed(ours, title=EVIL, answer=[(EVIL, EVIL)], note=EVIL, sections=[(EVIL, "<p>trusted</p>")])
    others = _parsed(ours, answer=[("x", "y")], note="x", sections=[("x", "<p>y</p>")])
    plain = [tag for tag, _ in others.elements]
    assert [tag for tag, _ in parsed.elements] == plain
    assert plain.count("script") == 3
    assert "img" not in plain
    assert not [name for _, attrs in parsed.elements for name in attrs if name.startswith("on")]
    assert parsed.text["h1"] == parsed.text["title"] == [EVIL]
    assert parsed.text["h2"][-1] == EVIL
    assert {row[0] for row in parsed.rows()} == {f"{EVIL}0", f"{EVIL}1"}
    # plotly draws these as its own markup: no tag in them but its <b> and <br>
    assert {tag for text in parsed.data["hover"] for tag in re.findall(r"<[^>]*>", text)} == {
        "<b>",
        "</b>",
        "<br>",
    }
    assert not [axis["label"] for axis in parsed.data["dimensions"] if "<" in axis["label"]]
    assert not [column["label"] for column in parsed.data["objectives"] if "<" in column["label"]]


def test_the_answer_stands_first_and_captions_say_where_figures_come_from(four: Designs) -> None:
    answer = [("choice", "a: the knee"), ("reproduce", "python train.py\n  model.width=8"), ("", "further")]
    parsed = _parsed(four, answer=answer, note="measured: latency on a board")
    assert parsed.text["h2"] == ["Answer", "Trade-offs", "Front", "Knobs and objectives"]
    assert parsed.text["dt"] == ["choice", "reproduce"]
    assert parsed.text["dd"][0] == "a: the knee" and parsed.text["dd"][2] == "further"
    assert parsed.text["p"].count("measured: latency on a board") == 2
    assert parsed.text["caption"][0].endswith("measured: latency on a board")


def test_sections_follow_in_order(four: Designs) -> None:
    sections = [("Main effects & more", "<p>first <em>one</em></p>"), ("Method", "<p>second</p>")]
    html = page(*four, title="t", sections=sections)
    assert html.index("<h2>Main effects &amp; more</h2>") < html.index("<p>first <em>one</em></p>")
    assert (
        html.index("<p>first <em>one</em></p>") < html.index("<h2>Method</h2>") < html.index("<p>second</p>")
    )
    assert html.index("</table>") < html.index("<h2>Main effects")


def test_one_objective_is_no_front(four: Designs) -> None:
    designs, objectives, knobs = four
    with pytest.raises(ValueError, match="two objectives"):
        page(designs, {"accuracy": objectives["accuracy"]}, knobs, title="t", sections=[])


@pytest.mark.parametrize("count", [1, 10_000])
def test_one_design_and_ten_thousand(by_chance: Callable[..., Designs], count: int) -> None:
    designs, objectives, knobs = by_chance(count, 3)
    html = page(designs, objectives, knobs, title="t", sections=[])
    data = Parsed(html).data
    assert len(data["hover"]) == len(data["objectives"][0]["values"]) == count
    assert data["front"] == np.flatnonzero(designs["front"]).tolist()
    assert len(html) < 15e6
    assert (f"of {count:,} designs" if count > 1 else "There is one design: the front of") in html
    for axis in data["dimensions"]:
        low, high = axis["range"]
        assert low < high
        assert all(low <= value <= high for value in axis["values"])


def test_the_same_front_gives_the_same_page(four: Designs) -> None:
    assert page(*four, title="t", sections=[]) == page(*four, title="t", sections=[])


def test_missing_objectives_are_null(four: Designs) -> None:
    designs, objectives, knobs = four
    designs.loc[3, "latency_ms"] = math.nan
    data = _parsed((designs, objectives, knobs)).data
    assert data["objectives"][1]["values"] == [1.0, 2.0, 1.5, None]
    assert METRICS["latency_ms"].unit in data["objectives"][1]["label"]
    assert "latency: – ± 0.5000 ms" in data["hover"][3]
