"""The live view of a search in a terminal of its own: that it is drawn, fits, and leaves the terminal as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dxc.config.compose import PROJECT_ROOT
from tests.report.terminals import Terminal

PROGRAM = """
import sys, time
from pathlib import Path
from dxc.errors import exit_cleanly, signals_raise
from dxc.report.progress import Progress, Standing, Training
from dxc.report.progress_page import Trained
from dxc.training.epochs import Epoch, write_epoch

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
names = ["resnet18 w4", "resnet18 [red]w8[/red] \\x1b[2J" + 60 * "x"]
trials = [
    Trained("0" * 12, names[0], {"accuracy": 0.8, "onnx_mb": 1.0}, True),
    Trained("1" * 12, names[1], {"accuracy": 0.9, "onnx_mb": 2.0}, True),
]
standing = Standing(2, 3, 4, 2, 20, False)
progress = Progress("first", ["accuracy", "onnx_mb"], "accuracy")
print("before")
with exit_cleanly(), signals_raise():
    progress.finished(trials)
    write_epoch(folder / "1", Epoch("fold1", 3, 10))
    work = [Training(f"{n:012}", f"resnet18 w{n}", [("training", folder / str(n))], 5) for n in range(1, 10)]
    with progress.running(work, lambda: standing):
        progress.infeasible("resnet18 w512", "too large")
        if seconds < 0:
            raise RuntimeError("a bug")
        for _ in range(int(20 * seconds)):  # a signal just before a long sleep would be heard after it
            time.sleep(0.05)
print("after")
"""

Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Terminal] = []

    def begin(seconds: float, **options: object) -> Terminal:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(seconds)]
        started.append(Terminal(command, cwd=PROJECT_ROOT, **options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for terminal in started:
        terminal.close()


def _shown(terminal: Terminal) -> list[str]:
    return [line.rstrip() for line in terminal.screen.lines if line.strip()]


def _until_drawn(terminal: Terminal) -> None:
    """Until the view is drawn again below the line that is printed while it is there."""
    terminal.until("too large")
    terminal.until("failed")


def test_it_is_drawn_and_gone_at_the_end(start: Start) -> None:
    terminal = start(3)
    _until_drawn(terminal)
    lines = _shown(terminal)
    assert lines[0] == "before" and lines[1].split() == [
        "resnet18",
        "w512",
        "not",
        "trained:",
        "too",
        "large",
    ]
    assert lines[2] == "accuracy (fraction); ◆ the front of these two"
    assert "".join(lines[3:12]).count("◆") == 2 and "ONNX file (MB)" in lines[13]
    assert lines[14].startswith("best so far: accuracy 0.9000   2.00 MB   resnet18 [red]w8[/red] \\x1b[2Jxx")
    assert lines[15] == "training fold 1 of 5, epoch 3 of 10: resnet18 w1"
    assert lines[16] == "training fold 1 of 5: resnet18 w2"
    assert lines[20:] == [
        "training fold 1 of 5: resnet18 w6",
        "... and 3 more",
        "2 of 20 trials done, 3 stopped early, 4 failed",
    ]
    assert len(lines) == 23 and all(len(line) <= 80 for line in lines)
    assert terminal.screen.cursor  # also while it is drawn
    assert terminal.end() == 0
    assert _shown(terminal) == [*lines[:2], "after"]


@pytest.mark.parametrize(("width", "height"), [(80, 12), (40, 24)])
def test_a_small_terminal_gets_no_plot(start: Start, width: int, height: int) -> None:
    terminal = start(1, width=width, height=height)
    _until_drawn(terminal)
    assert not any("front of these two" in line for line in _shown(terminal))
    assert "4 failed" in " ".join(_shown(terminal)[-2:])  # wrapped, not cut
    assert terminal.end() == 0
    assert _shown(terminal)[-1] == "after" and not any("best so far" in line for line in _shown(terminal))


@pytest.mark.parametrize(
    ("seconds", "stop", "status", "last"),
    [
        (60, "ctrl-c", 130, "stopped by SIGINT"),
        (60, signal.SIGTERM, 143, "stopped by SIGTERM"),
        (-1, None, 1, "RuntimeError: a bug"),
    ],
)
def test_however_it_ends_the_terminal_is_sound(
    start: Start, seconds: float, stop: object, status: int, last: str
) -> None:
    terminal = start(seconds)
    if stop is not None:
        _until_drawn(terminal)
    if stop == "ctrl-c":
        terminal.type(b"\x03")
    assert terminal.end(stop if isinstance(stop, signal.Signals) else None, seconds=30) == status
    lines = _shown(terminal)
    assert terminal.screen.cursor and lines[-1] == last
    assert not any("best so far" in line for line in lines)


def test_one_that_is_killed_leaves_the_cursor(start: Start) -> None:
    terminal = start(60)
    _until_drawn(terminal)
    assert terminal.end(signal.SIGKILL) == -signal.SIGKILL
    assert terminal.screen.cursor


def test_colours_are_left_out_where_they_are_not_wanted(start: Start) -> None:
    terminal = start(0.5, env={"NO_COLOR": "1"})
    assert terminal.end() == 0
    assert "best so far" in terminal.raw and terminal.screen.colours == 0


def test_a_dumb_terminal_gets_lines(start: Start) -> None:
    terminal = start(0.5, env={"TERM": "dumb"})
    assert terminal.end() == 0
    assert "\x1b" not in terminal.raw and "best so far" not in terminal.raw
    assert _shown(terminal)[-1] == "after"


def test_a_pipe_gets_lines_whatever_it_is_told(tmp_path: Path) -> None:
    """FORCE_COLOR is set by many builds."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "0.5"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "1", "TERM": "xterm"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [["before"], ["resnet18", "w512", "not", "trained:", "too", "large"], ["after"]]
