"""What a search says while it works: how far it is, in words, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dxc.report.progress import Progress, Standing, Training
from dxc.report.progress_page import Trained
from dxc.search.ledger import Entry
from dxc.search.states import Rung
from dxc.text import duration
from dxc.training.epochs import Epoch, write_epoch


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


def test_the_budget_counts_finetuning(capsys: pytest.CaptureFixture[str]) -> None:
    """4 trials x 2 folds x (10 + 3) epochs."""
    progress = Progress("first", ["accuracy", "onnx_mb"], "accuracy")
    progress.budget(4, [Rung(1, 10), Rung(2, 10)], finetuning=3)
    progress.budget(4, [Rung(2, 10)], finetuning=3)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(
        "budget: 4 trials of 2 folds x 10 epochs each and up to 3 of fine-tuning, 104 epochs in all; a trial is tried"
    )
    shared = "A network that several are pruned from is trained and counted once"
    assert said.endswith(f"budget: 4 trials of 2 folds x 10 epochs each and up to 3 of fine-tuning. {shared}")


def test_what_is_at_work(tmp_path: Path) -> None:
    """By the folds that are kept so far, and what the process says of its epochs; one that is being written is none."""
    kept = tmp_path / "kept"
    work = Training("0" * 12, "resnet18 w32", [("training", kept)], folds=5)
    assert work.at() == "training fold 1 of 5"
    write_epoch(kept, Epoch("fold1", 3, 10))
    (kept / ".fold1.pt.0123456789abcdef").touch()
    assert work.at() == "training fold 1 of 5, epoch 3 of 10"
    write_epoch(kept, Epoch("fold1", 4, 10, together=3))
    assert work.at() == "training 3 of 5 folds side by side, epoch 4 of 10"
    (kept / "fold1.pt").touch()
    assert work.at() == "training fold 2 of 5"  # what is said is of the fold before
    write_epoch(kept, Epoch("fold2", 1, 10))
    assert work.at() == "training fold 2 of 5, epoch 1 of 10"
    for fold in range(2, 6):
        (kept / f"fold{fold}.pt").touch()
    assert work.at() == "exporting and profiling"
    assert replace(work, part=True).at() == "recording the result"

    # what is pruned from folds that were trained already
    pruned, finetuned = tmp_path / "pruned", tmp_path / "finetuned"
    work = replace(
        work, stages=[("training", kept), ("pruning", pruned), ("fine-tuning", finetuned)], folds=2
    )
    assert work.at() == "pruning fold 1 of 2"
    pruned.mkdir()
    for fold in (1, 2):
        (pruned / f"fold{fold}.pt").touch()
    write_epoch(finetuned, Epoch("fold1", 2, 3))
    assert work.at() == "fine-tuning fold 1 of 2, epoch 2 of 3"
    for fold in (1, 2):
        (finetuned / f"fold{fold}.pt").touch()
    assert work.at() == "exporting and profiling"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"fold": "f", "number": 1, "of": 2}', "[" * 2000,
     '{"fold": "f\\u0000", "number": 1, "of": 2, "together": 1}x',
     *('{"number": 1, "of": 2, ' + each + "}" for each in (
         '"fold": 1, "together": 1', '"fold": "../x", "together": 1', '"fold": "f", "together": 0',
         '"fold": "f", "together": "many"', '"fold": "f", "together": 1, "of": 0',
         '"fold": "f", "together": 1, "number": "\\u001b[2J"'))],
)  # fmt: skip
def test_what_others_left_there_is_not_shown(content: str, tmp_path: Path) -> None:
    (tmp_path / "epoch.json").write_text(content)
    assert Training("0" * 12, "resnet18", [("training", tmp_path)], folds=5).at() == "training fold 1 of 5"


def test_the_view(tmp_path: Path, clock: Callable[[float], None]) -> None:
    """Trials at work by name until they have ended, the best so far, and the standing."""
    progress = Progress("first", ["accuracy", "latency_ms"], "accuracy")
    work = [
        Training(f"{width:012}", f"resnet18 w{width}", [("training", tmp_path / str(width))], folds=5)
        for width in (32, 64)
    ]
    with progress.running(work, lambda: _standing(0)):
        empty = progress.view(_standing(0))
        ended = Entry("000000000032", "1" * 32, "failed", [], 0, reason="why")
        progress.trial("resnet18 w32", ended, part=None, on_front=False, standing=_standing(0))
        assert progress.view(_standing(0)).training == ["training fold 1 of 5: resnet18 w64"]
    assert (empty.plot, empty.best) == (None, "")
    assert empty.training == ["training fold 1 of 5: resnet18 w32", "training fold 1 of 5: resnet18 w64"]
    progress.finished(
        [
            Trained("0" * 12, "resnet18 w4", {"accuracy": 0.9, "latency_ms": 1.0, "onnx_mb": 1.0}, True),
            Trained("1" * 12, "resnet18 w8", {"accuracy": 0.95, "latency_ms": 2.0, "onnx_mb": 2.0}, True),
            Trained("2" * 12, "resnet18 w9", {"accuracy": 0.85, "latency_ms": 3.0, "onnx_mb": 3.0}, False),
        ]
    )
    view = progress.view(_standing(4.3, finished=3, stopped=2))
    assert view.best == "best so far: accuracy 0.9500   2.00 ms predicted   resnet18 w8"
    assert view.standing == "3 trials trained, 2 in part; 4.3 of 20 trials' worth of epochs used"
    assert view.plot is not None and [place.on_front for place in view.plot.places] == [True, True, False]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(89.4, "89 s"), (90, "2 min"), (3540, "59 min"), (3600, "1 h 0 min"), (172_800, "2 d 0 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
