"""An MLflow run that is written while it is computed.

An exception ends it as FAILED, and a signal as KILLED; the tag dxc.state says it in small letters. The traceback
becomes an artifact. What was logged before stays.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dxc.errors import TrackingError, signals_raise
from dxc.masking import masked
from dxc.metrics import Point, metric_of
from dxc.tracking.client import dataset_of, log_batch, log_dataset, open_store, standard_tags
from dxc.tracking.patience import full_disk_said
from dxc.tracking.places import OutsideError, Places
from dxc.tracking.schema import store_message


class Sink(Protocol):
    """Where a pipeline writes its results: a Run or a Record."""

    run_id: str
    experiment_id: str
    uri: str
    stored: bool
    """Whether log_files copies the files, so that they may be removed."""

    def log(self, metrics: Mapping[str, float], curves: Sequence[Point] = ()) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def log_dataset(self, name: str, digest: str, source: Mapping[str, Any]) -> None: ...

    def log_files(self, folder: Path, under: str | None = None) -> None: ...


class Run:
    """An MLflow run that is being written. Without a client it writes nothing."""

    stored = True

    def __init__(
        self, client: Any | None, run_id: str, experiment_id: str, uri: str, artifacts: Sequence[str] = ()
    ) -> None:
        self._client = client
        self._places = Places.of(uri, artifacts)
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.uri = uri

    def log(self, metrics: Mapping[str, float], curves: Sequence[Point] = ()) -> None:
        """Log in as few calls as MLflow allows. A value that is not finite is missing and is not logged.

        Args:
            metrics: by name, as in dxc.metrics.
            curves: (name, value, step).

        Raises:
            KeyError: dxc.metrics does not declare a metric, so it has no unit and no direction.
        """
        for name in metrics:
            metric_of(name)
        if self._client is not None:
            points = [(name, value, 0) for name, value in metrics.items()] + list(curves)
            log_batch(self._client, self.run_id, points=points)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags in one call."""
        if self._client is not None:
            log_batch(self._client, self.run_id, tags=tags)

    def log_dataset(self, name: str, digest: str, source: Mapping[str, Any]) -> None:
        """Log what the run is trained on.

        Args:
            name: of the chips, for people.
            digest: identity of their content, as in the tag dxc.data.
            source: the section of the configuration that they come from.
        """
        if self._client is not None:
            log_dataset(self._client, self.run_id, dataset_of(name, digest, source))

    def log_files(self, folder: Path, under: str | None = None) -> None:
        """Log all files of a folder as artifacts with their relative paths.

        Args:
            folder: the files.
            under: artifact folder to put them in; None: the root.

        Raises:
            OutsideError: the artifact address of the run lies outside the store's places; see Places.
        """
        if self._client is not None:
            self._places.of_run(self.run_id, self._client.get_run(self.run_id).info.artifact_uri)
            self._client.log_artifacts(self.run_id, str(folder), under)


@contextlib.contextmanager
def start_run(
    uri: str,
    *,
    study: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    artifacts: Sequence[str] = (),
    enabled: bool = True,
) -> Iterator[Run]:
    """Open a run with params and tags, and close it with its status. SIGINT and SIGTERM raise Stopped meanwhile.

    Args:
        uri: address of the store.
        study: name of the experiment, which is created if needed.
        name: name of the run.
        params: params of the run.
        tags: tags of the run.
        artifacts: further folders and addresses where files may be put (see Places).
        enabled: False writes nothing. One process writes a run even if several compute it.

    Raises:
        TrackingError: the store cannot be used.

    """
    from mlflow.exceptions import MlflowException

    if not enabled:
        yield Run(None, "", "", uri)
        return
    try:
        client, experiment_id = open_store(uri, study)
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
        log_batch(client, run_id, params=params, tags={**standard_tags(), **tags})
    except MlflowException as error:
        raise TrackingError(store_message(uri, error)) from error

    run = Run(client, run_id, experiment_id, uri, artifacts)
    try:
        with signals_raise(), full_disk_said(uri):
            yield run
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with contextlib.suppress(MlflowException, OSError):  # the first error is the one to show
            text = "".join(traceback.format_exception(error))
            if not isinstance(error, OutsideError):
                client.log_text(run_id, masked(text, uri), "traceback.txt")
        with contextlib.suppress(MlflowException, OSError):  # the run ends even if its files cannot be kept
            _end(client, run_id, status)
        if isinstance(error, MlflowException):  # its message repeats the address
            raise TrackingError(store_message(uri, error)) from error
        raise
    _end(client, run_id, "FINISHED")


def _end(client: Any, run_id: str, status: str) -> None:
    client.set_tag(run_id, "dxc.state", status.lower())
    client.set_terminated(run_id, status)
