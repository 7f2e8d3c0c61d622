"""MLflow's client: opens a store, logs in batches, words error messages."""

from __future__ import annotations

import getpass
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dxc.config.compose import PROJECT_ROOT
from dxc.errors import TrackingError
from dxc.masking import login_of, masked
from dxc.metrics import Point
from dxc.tracking.view import VIEW, view_link, view_tag

# Limits of one MLflow log_batch call.
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_PARAM_LENGTH = 6000
MAX_DATASET_NAME = 500


PAGE = 1000  # runs read at once


def log_batch(
    client: Any,
    run_id: str,
    *,
    points: Sequence[Point] = (),
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    time_ms: int | None = None,
    gone: Sequence[str] = (),
) -> None:
    """Log to a run in as few calls as MLflow allows. A value that is not finite is missing and is not logged.

    Args:
        client: MLflow's client.
        run_id: the run.
        points: (metric, value, step).
        params: by name.
        tags: by name.
        time_ms: time of the points in ms since 1970; None: now.
        gone: metrics that the run has and that are missing from now on. MLflow removes none, so they become NaN.
    """
    from mlflow.entities import Metric, Param, RunTag

    now_ms = int(time.time() * 1000) if time_ms is None else time_ms
    metrics = [Metric(name, value, now_ms, step) for name, value, step in points if math.isfinite(value)]
    metrics += [Metric(name, math.nan, now_ms, 0) for name in gone]
    entries = [Param(key, param_text(value)) for key, value in (params or {}).items()]
    marks = [RunTag(key, masked(str(value))) for key, value in (tags or {}).items()]
    while metrics or entries or marks:
        client.log_batch(run_id, metrics=metrics[:MAX_METRICS], params=entries[:MAX_PARAMS], tags=marks)
        metrics, entries, marks = metrics[MAX_METRICS:], entries[MAX_PARAMS:], []


def log_dataset(client: Any, run_id: str, dataset: Mapping[str, str]) -> None:
    """Log what a run is trained on as its dataset in MLflow. Repeating it changes nothing.

    Args:
        client: MLflow's client.
        run_id: the run.
        dataset: see dataset_of().
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(**{key: masked(value) for key, value in dataset.items()})
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


def dataset_of(name: str, digest: str, source: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of an MLflow dataset.

    Args:
        name: for people.
        digest: identity of its content.
        source: where it comes from.
    """
    return {
        "name": name[:MAX_DATASET_NAME],
        "digest": digest,
        "source_type": "dxc",
        "source": json.dumps(source, default=str),
    }


def param_text(value: Any) -> str:
    """The text that is stored for a param's value."""
    return masked(str(value))[:MAX_PARAM_LENGTH]


def open_store(uri: str, study: str) -> tuple[Any, str]:
    """MLflow's client and the id of a study's experiment. An embedded store is created, one process at a time.

    Args:
        uri: address of the store.
        study: name of the experiment.
    """
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    scheme, _, location = uri.partition(":///")
    if scheme != "sqlite":
        client = new_client(uri)
        return client, _experiment_id(client, study, artifacts=None)
    database = Path(location)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            client = new_client(uri)
            # artifacts lie beside the database, wherever the command was started
            artifacts = (database.resolve().parent / "mlartifacts").as_uri()
            return client, _experiment_id(client, study, artifacts=artifacts)
    except OSError as error:
        raise MlflowException(f"{error.strerror}: {database.parent}") from error


def new_client(uri: str) -> Any:
    """MLflow's client for an address. For a database it creates missing tables."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default waits for minutes
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines per run
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # two bars per file
    from mlflow import MlflowClient

    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.WARNING)  # dozens of lines about database migrations
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line per attempt
    return MlflowClient(tracking_uri=server_address(uri))


def server_address(uri: str) -> str:
    """The address for MLflow, without the login of a server.

    The login is moved to the environment variables that MLflow reads. So no message, redirect or artifact address of
    MLflow repeats it.
    """
    login = login_of(uri) if uri.startswith(("http://", "https://")) else None
    if login is None:
        return uri
    if not login.password:  # a token
        os.environ["MLFLOW_TRACKING_TOKEN"] = login.user
    else:
        os.environ["MLFLOW_TRACKING_USERNAME"] = login.user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = login.password
    return login.address


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
        tags = {
            "mlflow.experimentKind": "custom_model_development",
        }
        experiment_id = client.create_experiment(study, artifact_location=location, tags=tags | view_tag())
        note = (
            f"[Designs side by side]({view_link(experiment_id)}) (Views > {VIEW}). Their Pareto front (dxc.front, "
            f"dxc.rank): python analyze.py study={study} tag=true"
        )
        client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
        return experiment_id
    except MlflowException:
        found = client.get_experiment_by_name(study)  # another process may have been faster
        if found is None:
            raise
        return found.experiment_id


def standard_tags() -> dict[str, str]:
    """The tags that MLflow's UI shows as user, source and version."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
    }
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container whose user has no name


def git_commit() -> str | None:
    """Commit of this checkout, with '+changes' if the working tree differs. None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None
