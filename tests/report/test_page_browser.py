"""The page of a front as a person sees it, in headless Chromium; pictures go to DXC_SCREENSHOTS if that is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dxc.metrics import Metric
from dxc.report import tables
from dxc.report.page import page

Designs = tuple[pd.DataFrame, dict[str, Metric], list[str]]

pytestmark = pytest.mark.browser

VERMILLION, GREY = (213, 94, 0), (153, 153, 153)
EVIL = '<script>document["title"]="owned"</script><img src=x onerror=alert(1)>'


class Tab:
    """A page opened in the browser, and what it said and asked for while it was open."""

    def __init__(self, browser: Any, file: Path, pictures: Path, width: int) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._pictures = pictures
        self.view = browser.new_page(viewport={"width": width, "height": 900})
        self.view.on("console", lambda message: self._said(message.type, message.text))
        self.view.on("pageerror", lambda error: self._said("error", str(error)))
        self.view.on("dialog", self._asked)
        self.view.on("request", lambda request: self.requests.append(request.url))
        self.view.goto(file.as_uri())
        self.view.wait_for_selector("#scatter .main-svg")
        self.view.wait_for_selector("#parallel .axis-title >> nth=0")
        self.settle()

    def _said(self, kind: str, text: str) -> None:
        if kind == "error":
            self.messages.append(text)

    def _asked(self, dialog: Any) -> None:
        self._said("error", f"a dialog: {dialog.message}")
        dialog.dismiss()

    def settle(self) -> None:
        """Software WebGL takes a moment to draw."""
        self.view.wait_for_timeout(1000)

    def run(self, code: str) -> Any:
        return self.view.evaluate(code)

    def picture(self, name: str, selector: str | None = None) -> np.ndarray:
        """Pixels (height, width, 3) of an element, or of the whole page."""
        path = self._pictures / f"{name}.png"
        if selector:
            self.view.locator(selector).screenshot(path=path)
        else:
            self.view.screenshot(path=path, full_page=True)
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).astype(int)


def _pixels(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many are of this colour, nearly."""
    return int((np.abs(picture - colour).max(axis=2) < 16).sum())


@pytest.fixture
def show(browser: Any, pictures: Path, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """show(designs, title, sections, width): the page in a tab, which must stay silent and ask for nothing."""
    tabs = []

    def opened(designs: Designs, *, width: int = 1024, **options: Any) -> Tab:
        file = tmp_path / "page.html"
        file.write_text(page(*designs, **{"title": "Front", "sections": [], **options}))
        tabs.append(Tab(browser, file, pictures, width))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.view.close()
        assert tab.messages == []
        assert [url for url in tab.requests if not url.startswith(("data:", "blob:"))] == tab.requests[:1]
        assert tab.requests[0].startswith("file:")


def test_three_objectives(show: Callable[..., Tab], by_chance: Callable[..., Designs]) -> None:
    designs, objectives, knobs = by_chance(240)
    tab = show((designs, objectives, knobs), sections=[("Method", "<p>Some text.</p>")])
    assert tab.run("scatter.data.every(t => t.type === 'scattergl')"), "the first view is flat"
    assert tab.run("['x', 'y'].map(a => scatter._fullLayout[a + 'axis'].title.text)") == [
        "predicted latency (ms)",
        "accuracy (fraction)",
    ]
    tab.picture("three_objectives")
    tab.view.select_option("select[name=y]", "onnx_mb")
    tab.settle()
    drawn = tab.picture("three_objectives_scatter", "#scatter")
    assert _pixels(drawn, VERMILLION) > 500, "the front is not drawn"
    assert _pixels(drawn, GREY) > 200, "the other designs are not drawn"
    traces = tab.run("document.getElementById('scatter').data.map(({type, x, y, z}) => ({type, x, y, z}))")
    assert {trace["type"] for trace in traces} == {"scatter3d"}
    shown = {point for trace in traces[1:] for point in zip(trace["x"], trace["y"], trace["z"], strict=True)}
    front = designs[designs["front"]]
    assert shown == set(front[["latency_ms", "onnx_mb", "accuracy"]].itertuples(index=False, name=None))
    titles = tab.run("['x', 'y', 'z'].map(a => scatter._fullLayout.scene[a + 'axis'].title.text)")
    assert titles == ["predicted latency (ms)", "ONNX file (MB)", "accuracy (fraction)"]
    types = tab.run("['x', 'y', 'z'].map(a => scatter._fullLayout.scene[a + 'axis'].type)")
    assert types == ["log", "linear", "linear"]
    legend = tab.view.locator("#scatter .legendtext").all_text_contents()
    unstable = int(designs["unstable"].sum())
    assert legend == [
        f"other designs ({240 - len(front)})",
        f"front ({len(front) - unstable})",
        f"front, unstable ({unstable})",
    ]
    assert tab.view.locator("h2").all_inner_texts() == [
        "Trade-offs",
        "Front",
        "Knobs and objectives",
        "Method",
    ]


def test_nothing_leaves_the_page(show: Callable[..., Tab], four: Designs) -> None:
    """Plotly's button that sends a chart to its server is not there; neither is its logo, which is a link."""
    tab = show(four)
    tab.view.select_option("select[name=y]", "onnx_mb")
    tab.settle()
    tab.view.hover("#scatter")
    buttons = tab.run(
        "[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title || b.ariaLabel)"
    )
    assert "Reset camera to default" in " ".join(buttons)
    assert not [title for title in buttons if "hare" in title or "loud" in title or "lotly" in title]
    assert tab.view.locator("a").count() == 0
    blocked = tab.run("fetch('https://example.org/').then(() => 'loaded', () => 'blocked')")
    assert blocked == "blocked"
    assert all("Content Security Policy" in message or "Refused" in message for message in tab.messages)
    tab.messages.clear()


def test_choosing_axes(show: Callable[..., Tab], by_chance: Callable[..., Designs]) -> None:
    tab = show(by_chance(100, 5), width=1280)
    axes = "['x', 'y', 'z'].map(a => scatter._fullLayout.scene[a + 'axis'].title.text)"
    tab.view.select_option("select[name=y]", "onnx_mb")
    tab.view.select_option("select[name=x]", "macs")
    assert tab.run(axes) == ["MACs", "ONNX file (MB)", "accuracy (fraction)"]
    tab.view.select_option("select[name=z]", "macs")  # taken: the axes change places
    assert tab.run(axes) == ["accuracy (fraction)", "ONNX file (MB)", "MACs"]
    assert tab.view.input_value("select[name=x]") == "accuracy"
    tab.view.select_option("select[name=y]", "")
    assert tab.run(
        "scatter._fullLayout.scene === undefined || scatter.data.every(t => t.type === 'scattergl')"
    )
    flat = "['x', 'y'].map(a => scatter._fullLayout[a + 'axis'].title.text)"
    assert tab.run(flat) == ["accuracy (fraction)", "MACs"]
    tab.settle()
    assert _pixels(tab.picture("five_objectives_flat", "#scatter"), VERMILLION) > 500
    tab.view.focus("select[name=x]")  # by keyboard: the first of the list
    tab.view.keyboard.press("End")
    assert tab.run(flat) == ["energy", "MACs"]
    tab.view.select_option("select[name=y]", "latency_ms")
    assert tab.run(axes) == ["energy", "predicted latency (ms)", "MACs"]
    tab.settle()
    tab.picture("five_objectives")


def test_hover_of_two_objectives(show: Callable[..., Tab], four: Designs) -> None:
    designs, objectives, knobs = four
    del objectives["onnx_mb"]
    tab = show((designs, objectives, knobs))
    assert tab.view.locator("select").count() == 0
    assert _pixels(tab.picture("two_objectives", "#scatter"), VERMILLION) > 100
    x, y = tab.run(
        "(({xaxis, yaxis}, box) => [box.x + xaxis._offset + xaxis.l2p(1), box.y + yaxis._offset + yaxis.l2p(0.9)])"
        "(scatter._fullLayout, scatter.getBoundingClientRect())"
    )
    tab.view.mouse.move(x - 40, y - 40)
    tab.view.mouse.move(x, y, steps=5)
    label = tab.view.locator("#scatter .hovertext")
    label.wait_for()
    tab.picture("hover")
    lines = label.locator("tspan.line").all_text_contents()
    assert lines[0] == "a"
    assert "accuracy: 0.9000 ± 0.0100" in lines
    assert "predicted latency: 1.0000 ± 0.2500 ms" in lines
    assert "probability of being on the front: 0.90" in lines
    assert lines[-1] == f"run {'a' * 32}"


def test_table_equals_the_front_and_can_be_sorted(
    show: Callable[..., Tab], by_chance: Callable[..., Designs]
) -> None:
    designs, objectives, knobs = by_chance(60)
    designs.loc[designs.index[designs["front"]][:1], "p_front"] = np.nan
    tab = show((designs, objectives, knobs))
    front = designs[designs["front"]]

    def names() -> list[str]:
        return tab.view.locator(".front tbody tr td:first-child").all_inner_texts()

    def sorting() -> list[str | None]:
        return tab.run("[...document.querySelectorAll('.front th')].map(h => h.getAttribute('aria-sort'))")

    assert names() == front.sort_values("accuracy", ascending=False)["name"].tolist()
    tab.view.click(".front th button:has-text('latency')")
    assert names() == front.sort_values("latency_ms")["name"].tolist()
    assert sorting() == [None, None, "ascending", None, None, None, None]
    tab.view.keyboard.press("Enter")  # the heading has the focus
    assert names() == front.sort_values("latency_ms", ascending=False)["name"].tolist()
    for ascending in (True, False):  # an unknown probability is last either way
        tab.view.click(".front th button:has-text('P(on')")
        assert names() == front.sort_values("p_front", ascending=ascending)["name"].tolist()
    assert names()[-1] == front["name"].iloc[0]
    assert tab.run("document.querySelector('.front').tabIndex") == 0, (
        "a long table scrolls in its box, by keyboard"
    )
    assert tab.run("document.documentElement.scrollWidth") <= 1024


@pytest.mark.parametrize("width", [1200, 800])
def test_nothing_is_cut(show: Callable[..., Tab], by_chance: Callable[..., Designs], width: int) -> None:
    """Nothing in 1200 pixels, eleven parallel axes included; the page itself never scrolls sideways."""
    designs, objectives, knobs = by_chance(60)
    designs["data"] = "a long name of channels"
    answer = [("choice", "a: the knee"), ("reproduce", "python train.py " + "model.width=64 " * 30)]
    wide = tables.html(tables.listing(designs[:5], objectives, []), "measured: latency on a board " * 9)
    tab = show(
        (designs, objectives, knobs), answer=answer, sections=[("Dominated designs", wide)], width=width
    )
    tab.picture(f"width_{width}")
    assert tab.run("document.documentElement.scrollWidth") <= width
    cut = tab.run(
        "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth)"
        ".map(b => b.ariaLabel ?? b.innerText)"
    )
    assert width < 1200 or cut == [], "narrower boxes scroll"
    left = tab.run("parallel.getBoundingClientRect().left")
    texts = tab.run(
        "[...document.querySelectorAll('#parallel .axis text')].map(t => t.getBoundingClientRect().left)"
    )
    assert min(texts) >= left


def test_parallel_coordinates(show: Callable[..., Tab], by_chance: Callable[..., Designs]) -> None:
    designs, objectives, knobs = by_chance(200)
    tab = show((designs, objectives, knobs))
    labels = tab.view.locator("#parallel .axis-title").all_text_contents()
    assert labels[:3] == ["data", "kernel", "stride"]
    assert labels[-3:] == ["accuracy (fraction)", "predicted latency (ms)", "ONNX file (MB)"]
    assert {"5ch", "7ch"} <= set(tab.view.locator("#parallel .axis text").all_text_contents())
    drawn = tab.picture("parallel", "#parallel")
    assert _coloured(drawn) > 5000
    tab.view.check("#front-only")
    tab.settle()
    assert tab.run("parallel.data[0].line.color.length") == int(designs["front"].sum())
    few = tab.picture("parallel_front_only", "#parallel")
    assert 0 < _coloured(few) < _coloured(drawn)


def _coloured(picture: np.ndarray) -> int:
    return int((np.ptp(picture, axis=2) > 40).sum())


def test_names_from_the_store_do_not_run(show: Callable[..., Tab], four: Designs) -> None:
    designs, objectives, _ = four
    designs["name"], designs[EVIL], designs["word"] = EVIL, [1, 2, 3, 4], EVIL
    tab = show((designs, objectives, [EVIL, "word"]), title=f"</title>{EVIL}")
    tab.picture("names_from_the_store")
    assert tab.run("document.title") == f"</title>{EVIL}"
    assert tab.view.locator("img:not(.main-svg *)").count() == 0
    assert tab.view.locator("h1").inner_text() == f"</title>{EVIL}"
    assert tab.view.locator(".front td.name").all_inner_texts() == [EVIL, EVIL]
    assert tab.view.locator("#parallel .axis-title").first.text_content() == f"{EVIL[:23]}…"


def test_ten_thousand_designs(show: Callable[..., Tab], by_chance: Callable[..., Designs]) -> None:
    tab = show(by_chance(10_000))
    tab.picture("ten_thousand")
    assert _pixels(tab.picture("ten_thousand_scatter", "#scatter"), VERMILLION) > 200
    assert tab.run("scatter.data.reduce((sum, trace) => sum + trace.x.length, 0)") == 10_000


def test_one_design(show: Callable[..., Tab], by_chance: Callable[..., Designs]) -> None:
    tab = show(by_chance(1))
    tab.picture("one_design")
    assert _pixels(tab.picture("one_design_scatter", "#scatter"), VERMILLION) > 20
    assert tab.view.locator(".front tbody tr").count() == 1
