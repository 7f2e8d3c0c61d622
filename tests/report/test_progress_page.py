"""The page of a search that is not over: what it shows, when it is written, and that nothing in it is obeyed."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dxc.report import progress_page
from dxc.report.front_plot import Axis, as_lines, front_plot
from dxc.report.progress import Progress, Standing
from dxc.report.progress_page import COMPLETE, RUNNING, STOPPED, ProgressPage, Trained

OBJECTIVES = ["accuracy", "latency_ms", "onnx_mb"]
EVIL = '</title><script>alert(1)</script>"\x1b[2J<b>'
TRIALS = [
    Trained("a" * 12, "small", {"accuracy": 0.8, "latency_ms": 1.0, "onnx_mb": 1.0}, True),
    Trained("b" * 12, EVIL, {"accuracy": 0.7, "latency_ms": 2.0, "onnx_mb": 2.0}, False),
    Trained("c" * 12, "large", {"accuracy": 0.9, "latency_ms": 4.0, "onnx_mb": 3.0}, True),
    Trained("d" * 12, "unpredicted", {"accuracy": 0.6, "onnx_mb": 0.5}, True),
]


def _html(trials: list[Trained], state: str = RUNNING) -> str:
    plot = front_plot([trial.metrics for trial in trials], "accuracy", OBJECTIVES)
    page = ProgressPage(Path("unused"), "first", OBJECTIVES, "accuracy")
    page.notes = ["latency is predicted for <edge>"]
    return page.html(trials, plot, "2 of 5 trials done", [f"at work {EVIL}"], state)


def test_what_it_shows() -> None:
    html = _html(TRIALS)
    assert '<meta http-equiv="refresh" content="10">' in html
    assert "2 of 5 trials done" in html and "Note: latency is predicted for &lt;edge&gt;" in html
    assert "predicted latency (ms)" in html and "ONNX file (MB)" in html
    rows = [re.sub(r"<[^>]*>", "|", row) for row in re.findall(r"<tr><td.*?</tr>", html, re.DOTALL)]
    cells = [[each for each in row.replace("\n", "").split("|") if each] for row in rows]
    assert [row[-1][0] for row in cells] == ["c", "a", "d", "b"]  # the front, best first; then the others
    assert cells[0] == ["◆ front", "large", "0.9000", "4.00", "3.00", "c" * 12]
    assert cells[2] == ["◆ front", "unpredicted", "0.6000", "–", "0.50", "d" * 12]
    assert "3 of 4 on the front so far" in html


def test_the_plot() -> None:
    """A mark for each trial that has both values, higher where it is better, and the front as steps."""
    html = _html(TRIALS)
    diamonds = [tuple(map(float, each)) for each in re.findall(r'<path d="M([\d.]+) ([\d.]+)l6 6', html)]
    circles = [tuple(map(float, each)) for each in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', html)]
    (small, large), (other,) = diamonds, circles
    assert small[0] < other[0] < large[0]
    assert large[1] < small[1] < other[1]  # down is worse
    (steps,) = re.findall(r'<path d="(M[\d.]+ [\d.]+ H[\d.]+ V[\d.]+)"', html)
    assert steps == f"M{small[0]} {small[1] + 6} H{large[0]} V{large[1] + 6}"


def test_names_are_text() -> None:
    class Elements(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: set[str] = set()

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.found.add(tag)

    for state in (RUNNING, COMPLETE, STOPPED):
        html = _html(TRIALS, state)
        reader = Elements()
        reader.feed(html)
        assert not {"script", "b"} & reader.found
        assert "\x1b" not in html and "\\x1b[2J" in html
        assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("state", "said"), [(COMPLETE, "Ended"), (STOPPED, "the same command goes on from here")]
)
def test_a_search_that_has_ended_is_not_loaded_again(state: str, said: str) -> None:
    html = _html(TRIALS, state)
    assert "refresh" not in html and said in html and "at work" not in html


def test_before_the_first_trial_has_ended() -> None:
    assert "None yet." in _html([]) and "<svg" not in _html([])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress_page, "EVERY_S", 0.3)
    monkeypatch.setattr(progress_page, "SHARE", 1.0)
    yield


def _until(true: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


@pytest.mark.usefixtures("quick")
def test_it_is_not_written_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty trials in no time are two writings: the first at once, the last a little later; the end at once."""
    written: list[str] = []
    write = progress_page.write_atomically

    def counted(path: Path, content: str, *, sync: bool) -> None:
        write(path, content, sync=sync)
        written.append(content)

    monkeypatch.setattr(progress_page, "write_atomically", counted)
    page = ProgressPage(tmp_path / "reports" / "first" / "index.html", "first", OBJECTIVES, "accuracy")
    for number in range(20):
        page.show([], None, f"{number} of 20 trials done", [], RUNNING)
    assert "0 of 20 trials done" in written[0]
    assert _until(lambda: "19 of 20 trials done" in written[-1])
    before = len(written)
    assert 2 <= before <= 4  # two, and more on a machine that is too busy for twenty calls in three seconds
    page.show([], None, "20 of 20 trials done", [], RUNNING)
    page.show([], None, "all is done", [], COMPLETE)
    assert "all is done" in page.path.read_text()
    time.sleep(0.5)
    assert len(written) <= before + 2 and "all is done" in page.path.read_text()  # nothing comes late
    assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    assert [path.name for path in page.path.parent.iterdir()] == ["index.html"]


def test_a_page_of_a_thousand_trials_takes_its_share(tmp_path: Path) -> None:
    """Where writing takes long, it is done less often: less than 1 % of the time goes to it."""
    page = ProgressPage(tmp_path / "index.html", "first", OBJECTIVES, "accuracy")
    trials = [
        Trained(f"{n:012x}", f"resnet18 w{n}", {"accuracy": n / 1000, "latency_ms": n, "onnx_mb": n}, True)
        for n in range(1, 1001)
    ]
    plot = front_plot([trial.metrics for trial in trials], "accuracy", OBJECTIVES)
    began = time.thread_time()
    page.show(trials, plot, "", [], RUNNING)
    took = time.thread_time() - began
    assert took / (page._next - time.monotonic()) < 0.01
    assert page.path.read_text().count("l6 6l-6 6") == 1000


def test_a_folder_that_cannot_be_written_is_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    page = ProgressPage(tmp_path / "file" / "index.html", "first", OBJECTIVES, "accuracy")
    page.show([], None, "", [], RUNNING)
    assert not page.written and "the page of progress cannot be written" in caplog.text


def test_a_search_that_trains_nothing_leaves_the_full_report(tmp_path: Path) -> None:
    """It may be analyze.py's."""
    path = tmp_path / "first" / "index.html"
    progress = Progress("first", OBJECTIVES, "accuracy", path)
    progress.finished(TRIALS)
    standing = Standing(4, 0, 0, 4, 4, False)
    progress._write_page(standing, COMPLETE)
    assert not path.exists()
    with progress.running([], lambda: standing):
        assert "running" in path.read_text()
    progress._write_page(standing, COMPLETE)
    assert "refresh" not in path.read_text()


def test_an_axis_stays_where_values_can_be() -> None:
    assert Axis.over("accuracy", [0.9, 1.0]).high == 1.0
    assert Axis.over("accuracy", [0.5]).low == pytest.approx(0.475)
    cost = Axis.over("latency_ms", [0.0, 10.0])
    assert (cost.low, cost.high, cost.log) == (0.0, 10.5, False)
    assert cost.ticks() == [0, 5, 10]
    wide = Axis.over("latency_ms", [0.1, 10.0])
    assert wide.log and wide.share(1.0) == pytest.approx(0.5) and {0.1, 10.0} <= set(wide.ticks(9))


def test_the_plot_in_a_terminal() -> None:
    """The greatest score is in the first row, the least in the last; the cheapest is left."""
    plot = front_plot([trial.metrics for trial in TRIALS], "accuracy", OBJECTIVES)
    assert plot is not None and [place.trial for place in plot.places] == [0, 1, 2]
    lines = as_lines(plot, width=60, height=5)
    assert all(len(line) <= 60 for line in lines)
    assert lines[0] == "accuracy (fraction); ◆ the front of these two"
    rows = [line.partition("│")[2] for line in lines[1:6]]
    assert [row.strip() for row in rows] == ["◆", "", "◆", "", "·"]
    assert rows[2].index("◆") < rows[4].index("·") < rows[0].index("◆")
    assert lines[-1].split() == ["0.85", "predicted", "latency", "(ms)", "4.15"]
    plain = "".join(as_lines(plot, width=60, height=5, plain=True))
    assert plain.isascii() and plain.count("*") == 3 and plain.count("|") == 5
    one = front_plot([TRIALS[0].metrics], "accuracy", OBJECTIVES)
    assert one is not None and len(as_lines(one, width=40, height=4)) == 7
    assert front_plot([{"accuracy": 1.0}], "accuracy", OBJECTIVES) is None
    assert front_plot([TRIALS[0].metrics], "accuracy", ["accuracy"]) is None
    broken = {"accuracy": float("nan"), "latency_ms": 1.0}
    assert front_plot([broken], "accuracy", OBJECTIVES) is None
