"""How far a long step is, where the output is a file."""

from __future__ import annotations

import time

import pytest

from dxc.bars import Steps, each


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be set."""
    time_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: time_s[0])
    return time_s


def test_a_line_every_few_seconds(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(10, "costs of networks", "network") as bar:
        for _ in range(4):
            now[0] += 2
            bar.update()
        now[0] += 1
        bar.say("wide.onnx")
    assert capsys.readouterr().err.splitlines() == [
        "costs of networks: 10 networks",
        "costs of networks: 2 of 10, about 16 s left",
        "costs of networks: 4 of 10, about 12 s left",
        "costs of networks: 5 of 10, wide.onnx",
    ]


def test_a_total_that_is_estimated(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(700, "measuring", "network", done=5, why="that fit in 11 minutes") as bar:
        now[0] += 4
        bar.update("resnet\x1b 2.00 ms", total=105)
        now[0] += 4
        bar.update(total=3)  # not fewer than are done
    assert capsys.readouterr().err.splitlines() == [
        "measuring: at most 700 networks",
        "measuring: 6 of about 105 that fit in 11 minutes, about 7 min left (resnet\\x1b 2.00 ms)",
        "measuring: 7 of about 7 that fit in 11 minutes",
    ]


def test_long_steps_fill_no_log(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A line every 3 s at first, after 10 minutes every 30 s; nothing where it is not shown."""
    for shown in (True, False):
        with Steps(1200, "measuring", "network", shown=shown) as bar:
            for _ in range(1200):
                now[0] += 0.5
                bar.update()
        lines = capsys.readouterr().err.splitlines()
        assert (60 < len(lines) < 80) if shown else not lines


def test_quick_work_says_nothing_in_a_pipe_until_it_takes_long(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for item in each(range(4), "reading", "chip", quick=True):
        now[0] += 2.0 if item else 0.5
    assert capsys.readouterr().err.splitlines() == ["reading: 3 of 4, about 2 s left"]  # 1.5 s each
    with Steps(100, "reading", "chip", quick=True) as bar:
        now[0] += 4
        bar.update(steps=50)
    assert capsys.readouterr().err.splitlines() == ["reading: 50 of 100, about 4 s left"]
