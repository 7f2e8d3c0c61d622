"""A run that is written while it is computed.

It ends FAILED (an exception) or KILLED (a signal) with its traceback as an artifact; what it logged before stays.
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
from dxc.tracking.client import log_batch, open_store, standard_tags
from dxc.tracking.patience import full_disk_said
from dxc.tracking.places import OutsideError, Places
from dxc.tracking.schema import store_message


class Sink(Protocol):
    """Where an experiment puts what it finds: a Run or a Record."""

    run_id: str
    experiment_id: str
    uri: str
    stored: bool
    """Whether log_files has copied the files, so that they may be removed."""

    def log(self, metrics: Mapping[str, float], curves: Sequence[Point] = ()) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def log_files(self, folder: Path, under: str | None = None) -> None: ...


class Run:
    """An MLflow run that is being written; without a client it writes nothing."""

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
        """Metrics of dxc.metrics and curves (name, value, step), in as few calls as MLflow allows.

        A value that is not finite is missing and is not logged. A metric that dxc.metrics does not declare
        is a KeyError: it has no unit and no direction.
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

    def log_files(self, folder: Path, under: str | None = None) -> None:
        """Everything in `folder` becomes an artifact under its relative path, in the artifact folder `under`.

        Raises OutsideError where the store says that artifacts lie elsewhere than its own; see Places.
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
    """Open a run in experiment `study` of the store at `uri`, with params and tags; close it with its status.

    artifacts: where files may be put beside the store's own places (see Places). Not `enabled`, nothing is written: one
    run has one writer, however many processes compute it. Raises TrackingError where the store cannot be used. SIGINT
    and SIGTERM become Stopped while it is open.
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
        with contextlib.suppress(MlflowException, OSError):  # it ends even where it keeps no files
            client.set_terminated(run_id, status)
        if isinstance(error, MlflowException):  # its message repeats the address
            raise TrackingError(store_message(uri, error)) from error
        raise
    client.set_terminated(run_id, "FINISHED")
