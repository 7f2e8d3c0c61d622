"""Reading finished runs from a real MLflow store, and the cache of it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from pandas.testing import assert_frame_equal

import dxc.analysis.runs as module
import dxc.tracking.patience as patience
import dxc.tracking.reader as reader_module
from dxc.analysis.runs import MARGIN_MS, Runs, read_runs
from dxc.errors import TrackingError
from dxc.tracking.patience import StoredRun
from dxc.tracking.reader import Reader, Study, study_names
from dxc.tracking.run import start_run

DAY = 24 * 3600 * 1000
BEGIN = 1_700_000_000_000
OLDER = "75868b020152"  # the tables before those of the pinned MLflow


class Tracked:
    """A store, and what a user does with it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.uri = f"sqlite:///{file}"
        self.client = MlflowClient(self.uri)
        self.cache = file.parent / "cache"
        self.experiments: dict[str, str] = {}

    def run(
        self,
        day: float = 0,
        *,
        study: str = "s",
        status: str = "FINISHED",
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """A run that begins on a day and ends an hour later; returns its id."""
        if study not in self.experiments:
            self.experiments[study] = self.client.create_experiment(study)
        start = BEGIN + int(day * DAY)
        run_id = self.client.create_run(
            self.experiments[study], start_time=start, run_name=f"day {day}"
        ).info.run_id
        self.client.log_batch(
            run_id,
            [Metric(name, value, start, 0) for name, value in (metrics or {"accuracy": 0.9}).items()],
            [Param(key, value) for key, value in (params or {}).items()],
            [RunTag(key, value) for key, value in (tags or {}).items()],
        )
        self.end(run_id, day, status)
        return run_id

    def end(self, run_id: str, day: float, status: str = "FINISHED") -> None:
        if status in ("RUNNING", "SCHEDULED"):
            self.client.update_run(run_id, status)
        else:
            self.client.set_terminated(run_id, status, BEGIN + int(day * DAY) + 3_600_000)

    def sql(self, statement: str, *values: str) -> None:
        with closing(sqlite3.connect(self.file)) as database, database:
            database.execute(statement, values)

    def read(self, *studies: str, **options: Any) -> Runs:
        return read_runs(self.uri, studies or ("s",), cache_dir=self.cache, **options)

    def ids(self) -> list[str]:
        return list(self.read().frame["run_id"])

    def cache_files(self) -> list[Path]:
        return [path for path in self.cache.rglob("*") if path.is_file()]


@pytest.fixture
def tracked(store_file: Path) -> Tracked:
    return Tracked(store_file)


# --- the table -------------------------------------------------------------------------------------------------------


def test_values(tracked: Tracked) -> None:
    second = tracked.run(
        2,
        metrics={"latency_ms": 2.5},
        params={"model.kernel": "5"},
        tags={"dxc.trial": "b" * 12, "mlflow.note": "x"},
    )
    first = tracked.run(
        1,
        metrics={
            "accuracy": 0.75,
            "val_accuracy.fold1": 0.5,
            "val_loss.fold1": 3.0,
            "train_loss.fold12": 1.0,
        },
        params={"model.kernel": "3", "model.pool": "None"},
        tags={"dxc.trial": "a" * 12, "model": "resnet18"},
    )
    found = tracked.read()
    assert (found.others, found.fetched) == ({}, 2)
    frame = found.frame
    assert list(frame.columns) == [
        *("run_id", "name", "study", "experiment_id", "start_time", "end_time", "artifact_uri"),
        *("accuracy", "latency_ms", "val_accuracy.fold1"),
        *("dxc.trial", "model"),
        *("model.kernel", "model.pool"),
    ]
    assert isinstance(frame.index, pd.RangeIndex)
    assert list(frame["run_id"]) == [first, second]  # oldest first, not in the order of making
    assert list(frame["name"]) == ["day 1", "day 2"]
    assert list(frame["study"]) == ["s", "s"]
    assert list(frame["experiment_id"]) == [tracked.experiments["s"]] * 2
    assert frame["start_time"][0] == pd.Timestamp(BEGIN + DAY, unit="ms", tz="UTC")
    assert frame["end_time"][0] - frame["start_time"][0] == pd.Timedelta(hours=1)
    assert frame["artifact_uri"][0] == tracked.client.get_run(first).info.artifact_uri
    np.testing.assert_array_equal(frame["accuracy"], [0.75, np.nan])
    np.testing.assert_array_equal(frame["latency_ms"], [np.nan, 2.5])
    assert frame["accuracy"].dtype == np.float64
    assert list(frame["model.kernel"]) == ["3", "5"]
    assert list(frame["model.pool"].isna()) == [False, True]
    assert frame["model.pool"][0] == "None"  # a text, not missing
    assert isinstance(frame["model.kernel"].dtype, pd.CategoricalDtype)
    assert all(isinstance(each, str) for each in frame["model.kernel"].cat.categories)


def test_from_the_cache_it_is_the_same_table(tracked: Tracked) -> None:
    for day in range(4):
        tracked.run(
            day * 3, params={f"p{day}": "x", "knob": "ba"[day % 2]}, metrics={"m": day, f"m{day}": 0.0}
        )
    tracked.run(1, status="KILLED", params={"only killed": "1"})
    cold = tracked.read()
    warm = tracked.read()
    assert (cold.fetched, warm.fetched) == (4, 0)
    assert cold.others == warm.others == {"killed": 1}
    assert "only killed" not in cold.frame
    assert_frame_equal(cold.frame, warm.frame)


def test_a_metric_that_is_not_a_number(tracked: Tracked) -> None:
    tracked.run(metrics={"auroc": float("nan"), "accuracy": 0.5})
    assert np.isnan(tracked.read().frame["auroc"][0])
    tracked.run(9, metrics={"auroc": 0.5})
    np.testing.assert_array_equal(tracked.read().frame["auroc"], [np.nan, 0.5])


def test_of_one_name_metric_wins_over_tag_over_param(tracked: Tracked) -> None:
    tracked.run(
        1, metrics={"x": 1.0}, tags={"x": "t", "y": "t", "name": "t"}, params={"y": "p", "study": "p"}
    )
    tracked.run(2, metrics={"z": 1.0}, tags={"x": "t"}, params={"x": "p", "y": "p"})
    frame = tracked.read().frame
    assert not frame.columns.duplicated().any()
    np.testing.assert_array_equal(
        frame["x"], [1.0, np.nan]
    )  # in every row, whatever others have of that name
    assert frame["y"][0] == "t"
    assert frame["y"].isna()[1]
    assert list(frame["name"]) == ["day 1", "day 2"]
    assert list(frame["study"]) == ["s", "s"]


def test_several_studies(tracked: Tracked) -> None:
    tracked.run(1, study="b", params={"only": "b"})
    tracked.run(0, study="a", metrics={"f1": 0.5})
    tracked.run(2, study="a", status="FAILED")
    tracked.run(2, study="c")
    found = tracked.read("b", "a", "b")
    assert list(found.frame["study"]) == ["a", "b"]
    assert found.others == {"failed": 1}
    assert list(found.frame["only"].isna()) == [True, False]
    assert study_names(tracked.uri)[-3:] == ["b", "a", "c"]
    assert list(tracked.read("c").frame.columns[-1:]) == ["accuracy"]  # nothing of the others


def test_runs_that_are_not_finished_are_counted(tracked: Tracked) -> None:
    tracked.run(0, tags={"dxc.kind": "study"})
    tracked.run(0, status="RUNNING", tags={"dxc.kind": "study"})
    tracked.run(0, tags={"dxc.kind": "analysis"})
    trial = tracked.run(1, tags={"dxc.kind": "trial", "dxc.state": "finished"})
    plain = tracked.run(2)
    for status, tags in (
        ("FAILED", {}),
        ("KILLED", {}),
        ("FINISHED", {"dxc.state": "infeasible"}),
        ("FINISHED", {"dxc.state": "infeasible"}),
        ("FINISHED", {"dxc.state": "stopped"}),
        ("RUNNING", {}),
        ("SCHEDULED", {"dxc.state": "planned"}),
    ):
        tracked.run(3, status=status, tags=tags)
    others = {"failed": 1, "infeasible": 2, "killed": 1, "planned": 1, "running": 1, "stopped": 1}
    for _ in range(2):
        found = tracked.read()
        assert list(found.frame["run_id"]) == [trial, plain]
        assert found.others == others


def test_nothing_finished(tracked: Tracked) -> None:
    tracked.run(status="RUNNING")
    found = tracked.read()
    assert len(found.frame) == 0
    assert list(found.frame.columns) == list(module.FIXED)
    assert str(found.frame["start_time"].dtype) == "datetime64[ms, UTC]"
    assert found.others == {"running": 1}


# --- what is read again ----------------------------------------------------------------------------------------------


def test_only_new_runs_are_read(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [tracked.run(day) for day in (0, 5, 5.5)]
    assert tracked.read().fetched == 3
    pages: list[str] = []
    stored = patience.stored_run
    monkeypatch.setattr(patience, "stored_run", lambda run: (pages.append(run.info.run_id), stored(run))[1])
    new = tracked.run(6, params={"new": "1"})
    late = tracked.run(5.25)  # its host's clock is behind, or its store was away
    found = tracked.read()
    assert pages == [late, new]  # from MLflow, too
    assert found.fetched == 2
    assert list(found.frame["run_id"]) == [old[0], old[1], late, old[2], new]
    assert list(found.frame["new"].isna()) == [True] * 4 + [False]
    assert tracked.read(refresh=True).fetched == 5


def test_many_known_runs_of_one_day(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTED", 3)
    known = [tracked.run(number / 100) for number in range(8)]
    assert tracked.read().fetched == 8
    new = [tracked.run(day) for day in (-0.5, 0.015, 0.035, 0.9)]
    found = tracked.read()
    assert found.fetched == 4
    assert set(found.frame["run_id"]) == {*known, *new}
    assert tracked.read().fetched == 0


def test_a_clock_in_the_future_hides_nothing(tracked: Tracked) -> None:
    today = (time.time() * 1000 - BEGIN) / DAY
    run_ids = [tracked.run(today - 10), tracked.run(today + 4000)]
    assert tracked.ids() == run_ids
    run_ids.insert(1, tracked.run(today))
    found = tracked.read()
    assert (list(found.frame["run_id"]), found.fetched) == (run_ids, 1)


def test_a_stopped_run_that_goes_on(tracked: Tracked) -> None:
    run_id = tracked.run(1, tags={"dxc.state": "stopped"})
    tracked.run(1.5)
    assert tracked.read().others == {"stopped": 1}
    tracked.client.update_run(run_id, "RUNNING")
    tracked.client.set_tag(run_id, "dxc.state", "running")
    assert tracked.read().others == {"running": 1}
    tracked.client.set_tag(run_id, "dxc.state", "stopped")
    tracked.end(run_id, 1.6)
    assert tracked.read().others == {"stopped": 1}
    tracked.client.set_tag(run_id, "dxc.state", "finished")
    tracked.end(run_id, 1.7)  # it went on and finished between two looks
    found = tracked.read()
    assert (found.others, found.fetched) == ({}, 1)
    assert run_id in set(found.frame["run_id"])


@pytest.mark.parametrize("status", ["RUNNING", "SCHEDULED"])
def test_a_finished_run_that_runs_again(tracked: Tracked, status: str) -> None:
    run_id, other = tracked.run(1), tracked.run(9)
    assert tracked.ids() == [run_id, other]
    tracked.client.update_run(run_id, status)
    for _ in range(2):
        found = tracked.read()
        assert list(found.frame["run_id"]) == [other]
        assert found.others == {status.lower(): 1}
    tracked.client.log_metric(run_id, "accuracy", 0.1, step=1)
    tracked.end(run_id, 10)
    assert list(tracked.read().frame["accuracy"]) == [0.1, 0.9]
    tracked.client.update_run(other, status)
    assert tracked.read(refresh=True).others == {status.lower(): 1}


def test_a_run_that_ends_while_reading(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = tracked.run(1, status="RUNNING")
    unfinished = Reader.unfinished

    def and_then_it_ends(reader: Reader, study: Study) -> list[StoredRun]:
        found = unfinished(reader, study)
        tracked.end(run_id, 1)
        return found

    monkeypatch.setattr(Reader, "unfinished", and_then_it_ends)
    found = tracked.read()
    assert (list(found.frame["run_id"]), found.others) == ([run_id], {})


def test_deleted_runs_disappear_and_come_back(tracked: Tracked) -> None:
    first, second, third = (tracked.run(day, params={f"p{day}": "1"}) for day in (0, 10, 20))
    assert tracked.ids() == [first, second, third]
    tracked.client.delete_run(first)
    found = tracked.read()
    assert (list(found.frame["run_id"]), found.fetched) == ([second, third], 0)
    assert "p0" not in found.frame
    tracked.client.delete_run(third)
    assert tracked.ids() == [second]
    tracked.client.restore_run(first)
    tracked.client.restore_run(third)
    found = tracked.read()
    assert (list(found.frame["run_id"]), found.fetched) == ([first, second, third], 2)
    assert tracked.read().fetched == 0


def test_a_run_deleted_before_the_first_look_comes_back(tracked: Tracked) -> None:
    first, second = tracked.run(0), tracked.run(10)
    tracked.client.delete_run(first)
    assert tracked.ids() == [second]
    tracked.client.restore_run(first)
    assert tracked.ids() == [first, second]


def test_pages(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAGE", 2)
    monkeypatch.setattr(reader_module, "PAGE", 2)
    run_ids = [tracked.run(day) for day in (0, 1, 1, 1, 1, 1, 2, 3)]  # more ended at once than fit on a page
    for status in ("RUNNING", "FAILED"):
        for _ in range(3):
            tracked.run(1, status=status)
    found = tracked.read()
    assert sorted(found.frame["run_id"]) == sorted(run_ids)
    assert (found.fetched, found.others) == (8, {"failed": 3, "running": 3})


def test_a_deletion_while_reading_hides_no_other_run(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PAGE", 2)
    monkeypatch.setattr(reader_module, "PAGE", 2)
    run_ids = [tracked.run(day) for day in range(6)]
    reader = Reader(tracked.uri)
    pages = reader.ended(reader.study("s"))
    read = [run.run_id for run in next(pages)]
    tracked.client.delete_run(run_ids[0])
    read += [run.run_id for page in pages for run in page]
    assert read == run_ids


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another"])
def test_a_damaged_cache_is_made_anew(
    tracked: Tracked, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracked.run(0, params={"knob": "a" * 1000})
    expected = tracked.read().frame
    (file,) = tracked.cache_files()
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        file.write_bytes(content[:50] + bytes([content[50] ^ 255]) + content[51:])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        pd.DataFrame({"a": [1]}).to_parquet(file)
    found = tracked.read()
    assert found.fetched == 1
    assert_frame_equal(found.frame, expected)
    assert "is damaged" in caplog.text
    assert tracked.read().fetched == 0


def test_a_cache_that_cannot_be_written(tracked: Tracked, caplog: pytest.LogCaptureFixture) -> None:
    tracked.run()
    tracked.cache.write_text("a file, not a folder")
    assert len(tracked.read().frame) == 1
    assert "cannot be kept" in caplog.text


def test_another_database_in_its_place(tracked: Tracked, store_file: Path, _new_store: Path) -> None:
    tracked.run()
    assert len(tracked.ids()) == 1
    other = store_file.with_name("other.db")
    other.write_bytes(_new_store.read_bytes())
    second = Tracked(other)
    second.cache = tracked.cache
    run_id = second.run()
    with closing(sqlite3.connect(other)) as source, closing(sqlite3.connect(store_file)) as target:
        source.backup(target)  # over the old one: MLflow keeps its file open
    found = tracked.read()
    assert (list(found.frame["run_id"]), found.fetched) == ([run_id], 1)


def test_readers_at_once(tracked: Tracked) -> None:
    for day in range(5):
        tracked.run(day)
    reader = Reader(tracked.uri)
    known, _ = module._read(reader, reader.study("s"), module._nothing(), ())
    path = tracked.cache / "runs.parquet"
    module._save(path, known)

    def work(_: int) -> bool:
        module._save(path, known)
        return module._load(path).table.equals(known.table.unify_dictionaries())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(80)))
    assert tracked.cache_files() == [path]  # no drafts are left


# --- stores and studies that cannot be read ---------------------------------------------------------------------------


def test_no_such_study(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(3):
        tracked.run(day, study="rivers")
    tracked.run(study="rivers", status="FAILED")
    tracked.run(study="rivers", tags={"dxc.kind": "study"})
    tracked.run(study="roads")
    with pytest.raises(TrackingError) as caught:
        tracked.read("rivrs")
    message = str(caught.value)
    assert "no study 'rivrs'" in message
    assert "did you mean rivers?" in message
    assert "  rivers: 3 finished" in message
    assert "  roads: 1 finished" in message
    assert [each.name for each in tracked.client.search_experiments()] == ["roads", "rivers", "Default"]
    assert not tracked.cache_files()


def test_a_deleted_study(tracked: Tracked) -> None:
    tracked.run()
    tracked.client.delete_experiment(tracked.experiments["s"])
    with pytest.raises(TrackingError, match="study 's' was deleted in MLflow"):
        tracked.read()
    assert study_names(tracked.uri) == ["Default"]


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    for uri in (f"sqlite:///{tmp_path}/no/mlflow.db", "sqlite:///:memory:", "sqlite://"):
        with pytest.raises(TrackingError, match="there is no MLflow store at") as caught:
            read_runs(uri, ["s"], cache_dir=tmp_path)
        assert "tracking.uri=" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_files_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.touch()
    with pytest.raises(TrackingError, match="there is no MLflow store at"):
        study_names(f"sqlite:///{file}")
    assert file.stat().st_size == 0
    file.write_text("something else" * 100)
    with pytest.raises(TrackingError, match="cannot be used: .*not a database"):
        study_names(f"sqlite:///{file}")


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "ftp://nowhere", "nowhere", "mysql://nobody@127.0.0.1:9/x"]
)
def test_stores_that_cannot_be_used(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match="cannot be used"):
        read_runs(uri, ["s"], cache_dir=tmp_path / "cache")
    assert not list(tmp_path.iterdir())


SET_VERSION = "UPDATE alembic_version SET version_num = ?"


@pytest.mark.parametrize("some_tables", [False, True])
def test_tables_of_an_older_mlflow_are_left_alone(tracked: Tracked, some_tables: bool) -> None:
    tracked.run()
    tracked.sql(SET_VERSION, OLDER)
    if some_tables:  # MLflow would bring such a database up to date by itself
        tracked.sql("DROP TABLE scheduler_leases")
    before = tracked.file.read_bytes()
    with pytest.raises(TrackingError, match=f"mlflow db upgrade {tracked.uri}"):
        tracked.read()
    assert tracked.file.read_bytes() == before


def test_tables_of_a_newer_mlflow(tracked: Tracked) -> None:
    tracked.run()
    tracked.sql(SET_VERSION, "ffffffffffff")
    message = "newer MLflow than .*\n.*pip install --upgrade mlflow"
    with pytest.raises(TrackingError, match=message):
        tracked.read()
    uri = f"sqlite:///{tracked.file.parent}/./mlflow.db"  # MLflow has the other open already
    with pytest.raises(TrackingError, match=message), start_run(uri, study="s", name="n", params={}, tags={}):
        pass


def test_the_margin_is_a_day() -> None:
    assert MARGIN_MS == DAY
