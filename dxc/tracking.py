"""Runs in MLflow. The only module that imports mlflow.

One run = one configuration; experiment = study. A run goes FAILED (an exception) or KILLED (a signal) with
its traceback as an artifact; whatever it logged before stays.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dxc.config import PROJECT_ROOT
from dxc.errors import Stopped, TrackingError
from dxc.pareto import objective

# Limits of one MLflow log_batch call.
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_PARAM_LENGTH = 6000

Point = tuple[str, float, int]
"""One point of a curve: name, value, step."""


class Run:
    """An MLflow run that is being written; without a client it writes nothing."""

    def __init__(self, client: Any | None, run_id: str, experiment_id: str, uri: str) -> None:
        self._client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.uri = uri

    def log(self, metrics: Mapping[str, float], curves: Sequence[Point] = ()) -> None:
        """Metrics of the objective table and curves (name, value, step), in as few calls as MLflow allows.

        A value that is not finite is missing and is not logged. A metric that is not in the objective table
        is a KeyError: it has no unit and no direction.
        """
        from mlflow.entities import Metric

        if self._client is None:
            return
        now_ms = int(time.time() * 1000)
        for name in metrics:
            objective(name)
        points = [(name, value, 0) for name, value in metrics.items()] + list(curves)
        entities = [Metric(name, value, now_ms, step) for name, value, step in points if math.isfinite(value)]
        for start in range(0, len(entities), MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=entities[start : start + MAX_METRICS])

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags in one call."""
        from mlflow.entities import RunTag

        if self._client is None:
            return
        self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_files(self, folder: Path, under: str | None = None) -> None:
        """Everything in `folder` becomes an artifact under its relative path, in the artifact folder `under`."""
        if self._client is not None:
            self._client.log_artifacts(self.run_id, str(folder), under)


@contextlib.contextmanager
def start_run(
    uri: str,
    *,
    study: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    enabled: bool = True,
) -> Iterator[Run]:
    """Open a run in experiment `study` of the store at `uri`, with params and tags; close it with its status.

    Not `enabled`, nothing is written: one run has one writer, however many processes compute it.
    Raises TrackingError where the store cannot be used. SIGINT and SIGTERM become Stopped while it is open.
    """
    from mlflow.entities import Param, RunTag
    from mlflow.exceptions import MlflowException

    if not enabled:
        yield Run(None, "", "", uri)
        return
    try:
        client, experiment_id = _open_store(uri, study)
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
        entities = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in params.items()]
        all_tags = [RunTag(key, str(value)) for key, value in {**_standard_tags(), **tags}.items()]
        client.log_batch(run_id, params=entities[:MAX_PARAMS], tags=all_tags)
        for start in range(MAX_PARAMS, len(entities), MAX_PARAMS):
            client.log_batch(run_id, params=entities[start : start + MAX_PARAMS])
    except MlflowException as error:
        raise TrackingError(_store_message(uri, error)) from error

    run = Run(client, run_id, experiment_id, uri)
    try:
        with _signals_raise():
            yield run
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with contextlib.suppress(MlflowException, OSError):  # the first error is the one to show
            client.log_text(run_id, "".join(traceback.format_exception(error)), "traceback.txt")
            client.set_terminated(run_id, status)
        raise
    client.set_terminated(run_id, "FINISHED")


def _open_store(uri: str, study: str) -> tuple[Any, str]:
    """Client and experiment id; an embedded store is created, one process at a time."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its default waits for minutes
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.WARNING)  # dozens of lines about database migrations

    scheme, _, location = uri.partition(":///")
    if scheme != "sqlite":
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment_id(client, study, artifacts=None)
    database = Path(location)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            client = MlflowClient(tracking_uri=uri)
            # beside its database, wherever the command was started
            artifacts = (database.resolve().parent / "mlartifacts").as_uri()
            return client, _experiment_id(client, study, artifacts=artifacts)
    except OSError as error:
        raise MlflowException(f"{error.strerror}: {database.parent}") from error


def _experiment_id(client: Any, study: str, *, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(study)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"study '{study}' was deleted in MLflow; restore it there or choose another name: study=NAME"
            )
        return found.experiment_id
    try:
        location = f"{artifacts}/{study}" if artifacts else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on its runs
        return client.create_experiment(study, artifact_location=location, tags=kind)
    except MlflowException:
        found = client.get_experiment_by_name(study)  # another process may have been faster
        if found is None:
            raise
        return found.experiment_id


def _store_message(uri: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"tracking.uri: the MLflow store {uri} cannot be used: {reason}\n"
        "Check the address and that its server runs, or keep runs in a file: tracking.uri=sqlite:///mlflow.db"
    )


def _standard_tags() -> dict[str, str]:
    """The tags that MLflow's own UI shows as user, source and version."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
    }
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container with a numeric user


def _git_commit() -> str | None:
    """Commit of this checkout, with '+changes' where the working tree differs; None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped in the main thread: a run is closed before its process ends."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    try:
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
