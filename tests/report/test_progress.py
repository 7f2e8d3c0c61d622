"""What a search says while it works: how far it is, in words, and how long it will take."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dxc.report.progress import Progress, Standing, Training
from dxc.search.ledger import Entry
from dxc.search.states import Rung
from dxc.text import duration


def _standing(
    done: float, *, finished: int = 0, stopped: int = 0, failed: int = 0, parts: bool = True
) -> Standing:
    return Standing(finished, stopped, failed, done, 20, parts)


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (
            _standing(4.3333, finished=3, stopped=2),
            "3 trials trained, 2 in part; 4.3 of 20 trials' worth of epochs used",
        ),
        (
            _standing(1.0, finished=1, failed=1),
            "1 trial trained, 1 failed; 1 of 20 trials' worth of epochs used",
        ),
        (_standing(0.2, stopped=1), "0 trials trained, 1 in part; 0.2 of 20 trials' worth of epochs used"),
        (_standing(5, finished=5, parts=False), "5 of 20 trials done"),
        (
            _standing(7, finished=4, stopped=2, failed=1, parts=False),
            "7 of 20 trials done, 2 stopped early, 1 failed",
        ),
    ],
)
def test_where_a_study_is(standing: Standing, said: str) -> None:
    assert str(standing) == said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = 1000.0 + seconds

    return at


def test_the_time_left_falls_where_nothing_was_done(clock: Callable[[float], None]) -> None:
    """Two of twenty trials' worth in 120 s: 18 more take 1080 s, less what passes until more is done."""
    progress = Progress("first", ["accuracy"], "accuracy")
    with progress.running([], lambda: _standing(1.0)):  # one was there already
        assert progress._left(_standing(1.0)) == []
        clock(120)
        assert progress._left(_standing(3.0)) == ["about 17 min left"]  # 60 s each, 17 to go
        clock(420)
        assert progress._left(_standing(3.0)) == ["about 12 min left"]
        assert progress._left(_standing(2.0)) == ["about 12 min left"]  # a trial that failed is tried again
        clock(2000)
        assert progress._left(_standing(3.0)) == []  # it should have been done: nothing is known
        assert progress._left(_standing(5.0)) == ["about 2 h 5 min left"]  # 500 s each, 15 to go
        assert progress._left(_standing(20.0)) == []


def _entry(state: str, **values: object) -> Entry:
    return Entry("0" * 12, "1" * 32, state, [], 0, **values)  # type: ignore[arg-type]


def test_a_line_a_trial(clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("first", ["accuracy", "onnx_mb"], "accuracy")
    progress.budget(20, [Rung(1, 10), Rung(5, 10)])
    with progress.running([], lambda: _standing(0.0)):
        clock(60)
        part = _entry("stopped", rungs={Rung(1, 10): [0.9]})
        progress.trial(
            "resnet18 w32", part, part=Rung(1, 10), on_front=False, standing=_standing(0.2, stopped=1)
        )
        whole = _entry(
            "finished", metrics={"accuracy": 0.93, "fold_score": 0.93, "accuracy_std": 0.01, "onnx_mb": 1.2}
        )
        progress.trial("resnet18 w32", whole, part=None, on_front=True, standing=_standing(1.0, finished=1))
        failed = _entry("failed", reason="ValueError: [red] is no colour")
        progress.trial(
            "resnet18 w64", failed, part=None, on_front=False, standing=_standing(2.0, finished=1, failed=1)
        )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "budget: 20 trials of 5 folds x 10 epochs each, 1,000 epochs in all; a trial is tried on 1 fold x 10 epochs "
        "first, and goes on while it may reach the front",
        "resnet18 w32 accuracy 0.9000 in part: 1 fold x 10 epochs "
        "[0 trials trained, 1 in part; 0.2 of 20 trials' worth of epochs used; about 1 h 39 min left]",
        "resnet18 w32 accuracy 0.9300 ± 0.0100 1.20 MB front "
        "[1 trial trained; 1 of 20 trials' worth of epochs used; about 19 min left]",
        "resnet18 w64 FAILED: ValueError: [red] is no colour "
        "[1 trial trained, 1 failed; 2 of 20 trials' worth of epochs used; about 9 min left]",
    ]


def test_the_fold_at_work(tmp_path: Path, clock: Callable[[float], None]) -> None:
    """By the folds that are kept so far; one that is being written is none."""
    progress = Progress("first", ["accuracy"], "accuracy")
    work = Training("resnet18 w32", tmp_path, folds=5)
    (tmp_path / ".fold1.pt.0123456789abcdef").touch()
    assert progress.status([work], _standing(0)).startswith(
        "training resnet18 w32: fold 1 of 5; 0 trials trained;"
    )
    (tmp_path / "fold1.pt").touch()
    other = Training("resnet18 w64", tmp_path / "none", folds=1)
    said = progress.status([work, other], _standing(4.3, finished=3, stopped=2))
    assert said == (
        "training 2 trials: fold 2 of 5, fold 1 of 1; 3 trials trained, 2 in part; 4.3 of 20 trials' worth of "
        "epochs used"
    )
    for fold in range(2, 6):
        (tmp_path / f"fold{fold}.pt").touch()
    assert work.fold() == "exporting its network"


def test_a_terminal_shows_it_below_the_last_line(tmp_path: Path) -> None:
    progress = Progress("first", ["accuracy"], "accuracy")
    screen = io.StringIO()
    progress._console = Console(file=screen, force_terminal=True, width=200)
    work = Training("resnet18 [w32]", tmp_path, folds=5)
    with progress.running([work], lambda: _standing(0)):
        time.sleep(0.8)
        entry = _entry("failed", reason="why")
        progress.trial("resnet18", entry, part=None, on_front=False, standing=_standing(1, failed=1))
    assert (
        "training resnet18 [w32]: fold 1 of 5; 0 trials trained; 0 of 20 trials' worth" in screen.getvalue()
    )
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines()
    assert "FAILED: why" in [line.removeprefix("resnet18").strip() for line in lines]  # no more than that


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(89.4, "89 s"), (90, "2 min"), (3540, "59 min"), (3600, "1 h 0 min"), (172_800, "2 d 0 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
