"""A full disk under the store, its artifacts or the output folder: an error that names the place."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dxc.errors import DataError, TrackingError
from dxc.tracking.patience import disk_full
from dxc.tracking.record import Record
from dxc.tracking.run import start_run
from dxc.tracking.store import Store


@pytest.fixture
def full_artifacts(store_file: Path, small_disk: Path) -> str:
    """A store whose artifacts lie on a full disk."""
    (small_disk / "mlartifacts").mkdir()
    (store_file.parent / "mlartifacts").symlink_to(small_disk / "mlartifacts")
    return f"sqlite:///{store_file}"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(os.urandom(2_000_000))
    return folder


def test_a_full_disk_under_the_artifacts_of_a_run(full_artifacts: str, out: Path) -> None:
    with (
        pytest.raises(
            TrackingError,
            match=r"no space left on the disk for .*mlartifacts/.*/model.onnx(.|\n)*same command",
        ),
        start_run(full_artifacts, study="s", name="a run", params={}, tags={}) as run,
    ):
        run.log_files(out)
    assert MlflowClient(full_artifacts).get_run(run.run_id).info.status == "FAILED"


def test_a_full_disk_under_the_artifacts_of_a_trial(full_artifacts: str, out: Path, tmp_path: Path) -> None:
    store = Store(full_artifacts, "s", patience_s=5)
    run_id = store.create("a trial", {})
    record = Record(tmp_path / "trial")
    record.write(name="a trial", params={})
    with pytest.raises(TrackingError, match=r"no space left on the disk for .*mlartifacts/.*/model.onnx"):
        store.upload(run_id, record, files=out, tags={})


def test_a_full_disk_under_the_database(store_file: Path, small_disk: Path) -> None:
    uri = f"sqlite:///{shutil.copy(store_file, small_disk)}"
    with (
        pytest.raises(
            TrackingError, match=rf"(no space left on the disk for {small_disk}/mlflow.db|disk is full)"
        ),
        start_run(uri, study="s", name="a run", params={}, tags={}) as run,
    ):
        (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        run.log({}, [(f"curve{number}", 0.1 * number, number) for number in range(4_000)])


def test_what_already_says_where_is_repeated_as_it_is() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise DataError("cache_dir: no space left while building HERE; point it elsewhere") from cause
    except DataError as error:
        assert str(disk_full(error)) == "cache_dir: no space left while building HERE; point it elsewhere"
    assert disk_full(OSError(errno.EACCES, "denied")) is None
