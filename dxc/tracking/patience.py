"""Repeats calls to a store that does not answer, and checks the runs that it returns."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

from dxc.errors import DxcError, TrackingError
from dxc.tracking.client import PAGE
from dxc.tracking.schema import store_message
from dxc.untrusted import is_hash, is_run_id

log = logging.getLogger(__name__)


IDENTITIES = ("dxc.trial", "dxc.design", "dxc.base", "dxc.search")
"""Tags that hold 12 hexadecimal digits. Any other value is no identity and is dropped."""


@contextlib.contextmanager
def full_disk_said(uri: str) -> Iterator[None]:
    """Turn any error that a full disk causes into a TrackingError that names the place."""
    try:
        yield
    except DxcError:
        raise
    except Exception as error:
        if (full := disk_full(error, uri)) is not None:
            raise full from error
        raise


@dataclass(frozen=True)
class StoredRun:
    """One run of a store. Its metrics hold the last value of each curve."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    start_ms: int
    end_ms: int | None
    artifact_uri: str

    @property
    def is_trial(self) -> bool:
        """Whether it is a trial: neither the parent run of a study, nor an analysis, a map or a run of scale.py."""
        return self.tags.get("dxc.kind") not in ("study", "analysis", "map", "scaling")

    @property
    def is_finished(self) -> bool:
        """Whether it has all its results. MLflow's status alone does not say so: see dxc.search.ledger.STATUS."""
        return self.status == "FINISHED" and self.tags.get("dxc.state", "finished") == "finished"


T = TypeVar("T")


class Patient:
    """Calls the store at `uri`. Where the store does not answer, a call is repeated after growing pauses for
    `patience_s` seconds; then it raises TrackingError."""

    def __init__(self, uri: str, patience_s: float) -> None:
        self.uri = uri
        self._client: Any = None
        self._patience_s = patience_s

    def _search(
        self, experiment_id: str, condition: str, *, deleted: bool = False, limit: int | None = None
    ) -> Iterator[StoredRun]:
        """Runs of an experiment that meet a filter in MLflow's syntax, oldest first."""
        token = None
        while True:
            page = self._page(experiment_id, condition, limit or PAGE, deleted=deleted, token=token)
            yield from sound_runs(page)
            token = page.token
            if not token or limit:
                return

    def _page(
        self,
        experiment_id: str,
        condition: str,
        size: int,
        *,
        order: str = "start_time",
        deleted: bool = False,
        token: str | None = None,
    ) -> Any:
        from mlflow.entities import ViewType

        return self._patiently(
            lambda: self._client.search_runs(
                [experiment_id],
                condition,
                run_view_type=ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY,
                max_results=size,
                order_by=[f"attributes.{order} ASC"],
                page_token=token,
            )
        )

    def _patiently(self, action: Callable[[], T]) -> T:
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        def may_pass(error: BaseException) -> bool:
            return (
                isinstance(error, MlflowException | RequestException)
                and getattr(error, "error_code", "") not in PERMANENT
                and disk_full(error) is None
            )

        calls = Retrying(
            retry=retry_if_exception(may_pass),
            wait=wait_exponential(multiplier=0.5, max=15),
            stop=stop_before_delay(self._patience_s),
            before_sleep=_log_pause,
            reraise=True,
        )
        try:
            return calls(action)
        except (MlflowException, OSError) as error:
            if (full := disk_full(error, self.uri)) is not None:
                raise full from error
            if isinstance(error, OSError) and not isinstance(error, RequestException):
                raise  # waiting does not help, for instance where a file is missing
            raise TrackingError(store_message(self.uri, error)) from error


def _log_pause(state: RetryCallState) -> None:
    log.warning("the MLflow store does not answer; trying again in %.1f s", state.upcoming_sleep)


PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""MLflow's error codes for which repeating a call is useless."""


def disk_full(error: BaseException, uri: str = "") -> TrackingError | None:
    """The TrackingError to raise if a full disk caused this error, else None.

    Args:
        error: the error. Its causes are searched too.
        uri: the store that was written to. The message names it where a database does not name its file.

    """
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "database or disk is full" in str(cause):
            if isinstance(error, DxcError):  # it says where, and what to do
                return TrackingError(str(error))
            # of a copy, the second name is the target, and the target has no space
            where = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
            if where is None and uri.startswith("sqlite:///"):
                where = uri.removeprefix("sqlite:///")
            return TrackingError(
                f"no space left on the disk{f' for {where}' if where else ''}: {cause}\n"
                "Free some, then go on with the same command"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def sound_runs(runs: Iterable[Any]) -> Iterator[StoredRun]:
    """Convert MLflow's runs. Runs with an invalid id are skipped with a warning, because ids become file names."""
    for run in runs:
        if is_run_id(run.info.run_id):
            yield stored_run(run)
        else:
            log.warning("a run is skipped: its id %r is not 32 hexadecimal digits", run.info.run_id)


def stored_run(run: Any) -> StoredRun:
    """Convert one run. Identity tags that are invalid are dropped, because they become folder names."""
    tags = dict(run.data.tags)
    for key in IDENTITIES:
        if tags.get(key) and not is_hash(tags[key]):
            log.warning(
                "run %s: its tag %s is ignored: %r is not 12 hexadecimal digits",
                run.info.run_id,
                key,
                tags.pop(key),
            )
    return StoredRun(
        run.info.run_id,
        run.info.status,
        tags,
        dict(run.data.metrics),
        dict(run.data.params),
        run.info.start_time,
        run.info.end_time,
        run.info.artifact_uri,
    )
