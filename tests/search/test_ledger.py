"""A study's trials in a real store, seen by two searches of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from dxc.errors import SearchError
from dxc.search.ledger import ARTIFACTS, Ledger, rungs_from, rungs_to
from dxc.search.states import FAILED, FINISHED, INFEASIBLE, PLANNED, RUNNING, STOPPED, Rung
from dxc.tracking.record import Record
from dxc.tracking.store import Store

FIRST, SECOND, THIRD = "a" * 12, "b" * 12, "c" * 12
FIXED = {"seed": 0, "trainer.max_epochs": 1}


@pytest.fixture
def ledger_of(tmp_path: Path, store_file: Path) -> Callable[[], Ledger]:
    """Another search of the same study."""
    return lambda: Ledger(Store(f"sqlite:///{store_file}", "first", patience_s=0), tmp_path / "study")


def _plan(ledger: Ledger, trial: str) -> None:
    ledger.plan(trial, name=trial, overrides=["model.width=8"], tags={"dxc.design": "d" * 12})


def _result(ledger: Ledger, trial: str, state: str, **content: object) -> Record:
    """What the trial's process leaves on disk."""
    folder = ledger.folder / trial
    (folder / ARTIFACTS).mkdir(parents=True)
    (folder / ARTIFACTS / "note.txt").write_text("kept")
    tags = {"dxc.rungs": rungs_to({Rung(1, 1): [0.75]})}
    kept = {"metrics": {"accuracy": 0.75}, "curves": [], "tags": tags, "files": []}
    record = Record(folder, run_id=ledger.entries[trial].run_id, state=state, **{**kept, **content})
    record.write()
    return record


def test_rungs_come_back_as_they_went() -> None:
    rungs = {Rung(1, 2): [0.7], Rung(5, 5): [0.8, 0.9, 0.85, 0.8, 0.7]}
    assert rungs_from(rungs_to(rungs)) == rungs
    assert rungs_from("[]") == {}


def test_another_search_sees_what_was_planned(ledger_of: Callable[[], Ledger]) -> None:
    with ledger_of() as one, ledger_of() as two:
        one.open(FIXED, force=False)
        _plan(one, FIRST)
        one.infeasible(
            SECOND,
            name=SECOND,
            overrides=["model.width=64"],
            tags={},
            parameters={"model.width": 64},
            reason="too large",
            known={"onnx_mb": 44.0},
        )
        two.open(FIXED, force=False)
        assert two.parent == one.parent
        assert set(two.entries) == {FIRST, SECOND}
        planned, infeasible = two.entries[FIRST], two.entries[SECOND]
        assert (planned.state, planned.overrides, planned.number) == (PLANNED, ["model.width=8"], 0)
        assert (planned.owner, planned.attempts) == (one.search_id, 0)
        assert (infeasible.state, infeasible.reason, infeasible.number) == (INFEASIBLE, "too large", 1)
        assert infeasible.metrics == {"onnx_mb": 44.0}
        assert {run.tags["dxc.trial"]: run.status for run in two.store.runs(dxc__kind="trial")} == {
            FIRST: "SCHEDULED",
            SECOND: "FINISHED",
        }
        # while the first is alive the trial is its own
        assert two.elsewhere(planned) and not one.elsewhere(one.entries[FIRST])
        assert not two.elsewhere(infeasible)
        _plan(one, THIRD)
        two.refresh_if_shared()
        assert THIRD in two.entries
    assert not two.elsewhere(planned)
    two.take_over(planned)
    (again,) = (run for run in two.store.runs(dxc__trial=FIRST))
    assert (again.tags["dxc.search"], again.tags["dxc.state"]) == (two.search_id, PLANNED)


def test_a_search_alone_does_not_read_the_store_again(ledger_of: Callable[[], Ledger]) -> None:
    with ledger_of() as one:
        one.open(FIXED, force=False)
        _plan(one, FIRST)
        one.entries.clear()
        one.refresh_if_shared()
        assert one.entries == {}
        with ledger_of() as two:
            one.refresh_if_shared()
            assert set(one.entries) == {FIRST}
            one.entries.clear()
            assert two.search_id != one.search_id
        one.refresh_if_shared()  # the other may have planned one before it ended
        assert set(one.entries) == {FIRST}
        one.entries.clear()
        one.refresh_if_shared()
        assert one.entries == {}


def test_a_trial_that_is_at_work_is_elsewhere(ledger_of: Callable[[], Ledger]) -> None:
    with ledger_of() as one:
        one.open(FIXED, force=False)
        _plan(one, FIRST)
        entry = one.entries[FIRST]
        (one.folder / FIRST).mkdir()
        with FileLock(one.folder / FIRST / ".lock"):
            assert one.elsewhere(entry)
            entry.state = STOPPED
            assert not one.elsewhere(entry)
            entry.state = RUNNING
            assert one.elsewhere(entry)
        assert not one.elsewhere(entry)


@pytest.mark.parametrize(
    ("state", "status"), [(FINISHED, "FINISHED"), (FAILED, "FAILED"), (STOPPED, "FINISHED")]
)
def test_what_a_trial_left_is_taken_over_and_uploaded(
    state: str, status: str, ledger_of: Callable[[], Ledger]
) -> None:
    with ledger_of() as one:
        one.open(FIXED, force=False)
        _plan(one, FIRST)
        entry = one.entries[FIRST]
        assert not one.collect(entry)  # nothing yet
        _result(one, FIRST, state, seconds=12.5, attempts=2, reason="why")
        assert one.collect(entry)
        assert (entry.state, entry.reason, entry.seconds, entry.attempts) == (state, "why", 12.5, 2)
        assert entry.metrics == {"accuracy": 0.75}
        assert entry.rungs == {Rung(1, 1): [0.75]}
        run = one.store.get(entry.run_id)
        assert (run.status, run.tags["dxc.state"], run.metrics["accuracy"]) == (status, state, 0.75)
        assert (run.tags["dxc.seconds"], run.tags["dxc.attempts"]) == ("12.500", "2")
        assert not (one.folder / FIRST / ARTIFACTS).exists()
    two = ledger_of()
    two.open(FIXED, force=False)
    seen = two.entries[FIRST]
    assert (seen.state, seen.seconds, seen.attempts, seen.rungs) == (state, 12.5, 2, {Rung(1, 1): [0.75]})


def test_what_is_not_over_or_of_another_run_is_not_taken(ledger_of: Callable[[], Ledger]) -> None:
    with ledger_of() as one:
        one.open(FIXED, force=False)
        for trial, state, changed in (
            (FIRST, RUNNING, {"attempts": 1}),
            (SECOND, FINISHED, {"run_id": "e" * 32}),
        ):
            _plan(one, trial)
            record = _result(one, trial, state)
            record.write(**changed)
            assert not one.collect(one.entries[trial])
        assert (one.entries[FIRST].state, one.entries[FIRST].attempts) == (RUNNING, 1)
        assert (one.entries[SECOND].state, one.entries[SECOND].attempts) == (PLANNED, 0)
        one.fail(one.entries[FIRST], "it ended without a word")
        one.count_attempt(one.entries[SECOND], 3)
        first, second = (one.store.get(one.entries[trial].run_id) for trial in (FIRST, SECOND))
        assert (first.status, first.tags["dxc.reason"]) == ("FAILED", "it ended without a word")
        assert (second.tags["dxc.attempts"], one.entries[SECOND].attempts) == ("3", 3)


def test_another_configuration_is_shown_and_taken_only_by_force(ledger_of: Callable[[], Ledger]) -> None:
    ledger_of().open(FIXED, force=False)
    changed = {"seed": 1, "batch": 8}
    with pytest.raises(SearchError) as raised:
        ledger_of().open(changed, force=False)
    assert str(raised.value).splitlines()[1:4] == [
        "  batch: not there -> 8",
        "  seed: 0 -> 1",
        "  trainer.max_epochs: 1 -> not there",
    ]
    ledger_of().open(changed, force=True)
    last = ledger_of()
    last.open(changed, force=False)  # it is the study's own now
    last.close("FINISHED")
    assert last.store.get(last.parent).status == "FINISHED"
