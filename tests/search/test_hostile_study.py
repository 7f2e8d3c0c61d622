"""A search on a store that somebody hostile can write to: tags of its trials are data."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dxc.errors import SearchError
from dxc.search.ledger import Ledger, rungs_from
from dxc.search.study import LauncherError
from dxc.tracking.store import Store
from tests.search.searches import Searching


@pytest.fixture
def store(store_file: Path) -> Store:
    return Store(f"sqlite:///{store_file}", "first", patience_s=0)


def _planned(store: Store, folder: Path, count: int) -> list[str]:
    """Run ids of so many planned trials."""
    with Ledger(store, folder) as ledger:
        ledger.open({"seed": 0}, force=False)
        return [ledger.plan(f"{n:012x}", name="n", overrides=["k=1"], tags={}).run_id for n in range(count)]


def test_tags_that_no_search_has_written(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = [
        {"dxc.trial": str(tmp_path / "victim")},
        {"dxc.trial": "../../victim"},
        {"dxc.point": "[" * 100_000},
        {"dxc.point": '{"a": 1}'},
        {"dxc.rungs": '[{"folds": {}}]'},
        {"dxc.state": "../x"},
        {"dxc.number": "many"},
    ]
    good, owned, *others = _planned(store, tmp_path / "study", 2 + len(changes))
    for run_id, tags in zip(others, changes, strict=True):
        store.tag(run_id, tags)
    store.tag(owned, {"dxc.search": "../../victim"})
    with Ledger(store, tmp_path / "study") as ledger, caplog.at_level(logging.WARNING):
        ledger.open({"seed": 0}, force=False)
        assert {entry.run_id for entry in ledger.entries.values()} == {good, owned}
        entry = next(each for each in ledger.entries.values() if each.run_id == owned)
        assert entry.owner == "" and not ledger.elsewhere(entry)
    assert caplog.text.count("is set aside, it is not a trial") == len(changes)
    assert not (tmp_path / "victim").exists()


def test_a_damaged_study(store: Store, tmp_path: Path) -> None:
    _planned(store, tmp_path / "study", 0)
    (parent,) = store.runs(dxc__kind="study")
    for text in ("[" * 100_000, "[1]", "{"):
        store.tag(parent.run_id, {"dxc.fixed": text})
        with Ledger(store, tmp_path / "study") as ledger, pytest.raises(SearchError, match="dxc.fixed"):
            ledger.open({"seed": 0}, force=False)


def test_rungs_are_numbers() -> None:
    for text in ('[{"folds": 1, "epochs": 2, "accuracies": ["x"]}]', '[{"folds": 1}]', "[" * 10_000):
        with pytest.raises((ValueError, KeyError, TypeError)):
            rungs_from(text)


def test_overrides_of_a_tag_are_not_launched(searching: Searching) -> None:
    """A planned trial whose tag was changed is launched with what the space says of its hash."""
    launched: list[list[str]] = []

    def keep(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        launched.extend(map(list, jobs))
        raise LauncherError("not today")

    for hostile in (None, ["hydra.sweep.dir=/victim", "model._target_=os.system"]):
        if hostile:
            client = MlflowClient(searching.uri)
            for run in searching.trials():
                client.set_tag(run.run_id, "dxc.point", json.dumps(hostile))
        with pytest.raises(SearchError, match="not today"):
            searching("search.max_trials=2", launch=keep)
    first, *again = launched
    assert again and "victim" not in str(launched) and "os.system" not in str(launched)
    assert {each.split("=")[0] for each in again[0]} == {each.split("=")[0] for each in first}
