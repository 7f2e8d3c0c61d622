"""Runs in MLflow. The only module that imports mlflow.

One run = one configuration; experiment = study. start_run writes a run while it is computed: it goes FAILED (an
exception) or KILLED (a signal) with its traceback as an artifact; whatever it logged before stays. A search keeps what
a trial says in a Record on disk first, and uploads it to the trial's run in a Store: a server that is away loses
nothing. A Reader reads what others have written, and changes nothing.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import errno
import gc
import getpass
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from dxc.config import PROJECT_ROOT
from dxc.errors import DxcError, TrackingError, signals_raise
from dxc.files import write_atomically
from dxc.masking import for_link, login_of, masked, masked_tree
from dxc.pareto import objective
from dxc.untrusted import is_hash, is_run_id, load_json

log = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported first

# Limits of one MLflow log_batch call.
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_PARAM_LENGTH = 6000

WENT_ON_WITH = "dxc.went_on_with"
"""Tag of a trial that went on with other params than it was begun with: {param: value}, JSON."""

UI = "http://127.0.0.1:5000"  # where `make ui` serves a store that is no server
VIEW = "designs"  # name and key of the saved view of a study's runs
COLUMNS = (
    *(f"metrics.{name}" for name in ("accuracy", "latency_ms", "measured_latency_ms", "onnx_mb")),
    *(f"tags.{name}" for name in ("dxc.rank", "dxc.front", "data")),
    *(f"params.model.{knob}" for knob in ("kernel", "stride", "padding", "pool", "width")),
    "params.data.batch_size",
)
"""Of a saved view: of hundreds of metrics, tags and params those that designs are compared by."""

PAGE = 1000  # runs read at once
MAX_LISTED = 2000  # run ids in one condition: databases and MLflow's parser limit them

IDENTITIES = ("dxc.trial", "dxc.design", "dxc.search")
"""Tags that hold 12 hexadecimal digits; anything else in them is no identity, and is not kept as one."""
MAX_RECORD_BYTES = 64_000_000  # of record.json: curves of many folds and epochs

Point = tuple[str, float, int]
"""One point of a curve: name, value, step."""


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
        """Metrics of the objective table and curves (name, value, step), in as few calls as MLflow allows.

        A value that is not finite is missing and is not logged. A metric that is not in the objective table
        is a KeyError: it has no unit and no direction.
        """
        for name in metrics:
            objective(name)
        if self._client is not None:
            points = [(name, value, 0) for name, value in metrics.items()] + list(curves)
            _log(self._client, self.run_id, points=points)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags in one call."""
        if self._client is not None:
            _log(self._client, self.run_id, tags=tags)

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
        client, experiment_id = _open_store(uri, study)
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
        _log(client, run_id, params=params, tags={**_standard_tags(), **tags})
    except MlflowException as error:
        raise TrackingError(_store_message(uri, error)) from error

    run = Run(client, run_id, experiment_id, uri, artifacts)
    try:
        with signals_raise(), _full_disk_said(uri):
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
            raise TrackingError(_store_message(uri, error)) from error
        raise
    client.set_terminated(run_id, "FINISHED")


@contextlib.contextmanager
def _full_disk_said(uri: str) -> Iterator[None]:
    """A full disk, wherever an experiment met it, becomes a TrackingError that names the place."""
    try:
        yield
    except DxcError:
        raise
    except Exception as error:
        if (full := disk_full(error, uri)) is not None:
            raise full from error
        raise


class Record:
    """What one trial says, on disk: a Sink that writes record.json at every step, to be uploaded later.

    content: name, params, tags, metrics, curves, time_ms and whatever its owner adds (dxc.search.trial). A record
    that is there already goes on.
    """

    stored = False  # the files stay where they are until they are uploaded

    def __init__(self, folder: Path, **content: Any) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"tags": {}, "metrics": {}, "curves": [], **content}
        self.run_id = self.experiment_id = self.uri = ""

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record that lies in `folder`; None where none is or it cannot be read."""
        try:
            return cls(folder, **load_json(folder / "record.json", limit=MAX_RECORD_BYTES))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, **changes: Any) -> None:
        """Change entries of the content and write it; an interrupted write leaves the record before it."""
        self.content |= masked_tree(changes)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "record.json", json.dumps(self.content))

    def log(self, metrics: Mapping[str, float], curves: Sequence[Point] = ()) -> None:
        for name in metrics:
            objective(name)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.write(
            metrics=self.content["metrics"] | finite,
            curves=[*self.content["curves"], *(list(point) for point in curves if math.isfinite(point[1]))],
            time_ms=int(time.time() * 1000),
        )

    def tag(self, tags: Mapping[str, str]) -> None:
        self.write(tags=self.content["tags"] | {key: str(value) for key, value in tags.items()})

    def log_files(self, folder: Path, under: str | None = None) -> None:
        """Nothing to do: upload takes the folder as it is."""

    @contextlib.contextmanager
    def opened(
        self,
        uri: str,
        *,
        study: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: Sequence[str] = (),
        enabled: bool = True,
    ) -> Iterator[Record]:
        """start_run's place, for an experiment that is recorded here. Signals raise Stopped in it too."""
        self.write(
            name=name, params={key: masked(str(value))[:MAX_PARAM_LENGTH] for key, value in params.items()}
        )
        self.tag(tags)
        with signals_raise():
            yield self


@dataclass(frozen=True)
class StoredRun:
    """One run as it stands in a store; metrics hold the last value of each curve."""

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
        """Whether it is a configuration, and not what holds a study together or says what was found out about it."""
        return self.tags.get("dxc.kind") not in ("study", "analysis")


T = TypeVar("T")


class _Patient:
    """Calls to the store at `uri`. Each is tried again, with growing pauses, for `patience_s` seconds where the store
    does not answer; then TrackingError."""

    def __init__(self, uri: str, patience_s: float) -> None:
        self.uri = uri
        self._client: Any = None
        self._patience_s = patience_s

    def _search(
        self, experiment_id: str, condition: str, *, deleted: bool = False, limit: int | None = None
    ) -> Iterator[StoredRun]:
        """Runs of an experiment that meet a condition of MLflow's, oldest first."""
        token = None
        while True:
            page = self._page(experiment_id, condition, limit or PAGE, deleted=deleted, token=token)
            yield from _sound(page)
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

        deadline = time.monotonic() + self._patience_s
        pause_s = 0.5
        while True:
            try:
                return action()
            except (MlflowException, RequestException, OSError) as error:
                if (full := disk_full(error, self.uri)) is not None:
                    raise full from error
                if isinstance(error, OSError) and not isinstance(error, RequestException):
                    raise  # a file that is not there, say: waiting does not bring it
                if getattr(error, "error_code", "") in PERMANENT or time.monotonic() + pause_s > deadline:
                    raise TrackingError(_store_message(self.uri, error)) from error
                log.warning("the MLflow store does not answer; trying again in %.1f s", pause_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 15)


class Store(_Patient):
    """One study in an MLflow store; it is made where it is not there."""

    def __init__(self, uri: str, study: str, *, patience_s: float, artifacts: Sequence[str] = ()) -> None:
        super().__init__(uri, patience_s)
        self._places = Places.of(uri, artifacts)
        self.study = study
        self._client, self.experiment_id = self._patiently(lambda: _open_store(uri, study))

    def create(
        self,
        name: str,
        tags: Mapping[str, str],
        *,
        params: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> str:
        """A new run; returns its id."""
        nested = {"mlflow.parentRunId": parent} if parent else {}
        every = {**_standard_tags(), **nested, **tags}
        run_id: str = self._patiently(
            lambda: self._client.create_run(
                self.experiment_id,
                run_name=name,
                tags={key: masked(str(value)) for key, value in every.items()},
            )
        ).info.run_id
        if params:
            self._patiently(lambda: _log(self._client, run_id, params=params))
        return run_id

    def runs(self, **tags: str) -> list[StoredRun]:
        """Runs that carry these tags (a dot in a tag is written __), oldest first."""
        condition = " and ".join(
            f"tags.`{key.replace('__', '.')}` = '{value}'" for key, value in tags.items()
        )
        return list(self._search(self.experiment_id, condition))

    def get(self, run_id: str) -> StoredRun:
        return _stored(self._patiently(lambda: self._client.get_run(run_id)))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._patiently(lambda: _log(self._client, run_id, tags=tags))

    def status(self, run_id: str, status: str) -> None:
        """SCHEDULED and RUNNING are open; FINISHED, FAILED and KILLED set the end time too."""
        final = status in ("FINISHED", "FAILED", "KILLED")
        change = self._client.set_terminated if final else self._client.update_run
        self._patiently(lambda: change(run_id, status))

    def log(self, run_id: str, metrics: Mapping[str, float]) -> None:
        points = [(name, value, 0) for name, value in metrics.items()]
        self._patiently(lambda: _log(self._client, run_id, points=points))

    def save_view(self, columns: Sequence[str], *, order_by: str, ascending: bool) -> str:
        """Make these (see COLUMNS) the columns of the study's saved view in MLflow's UI, in this order, and sort its
        runs by one of them. Returns the address that shows it."""
        ((key, value),) = _view(columns, order_by, ascending=ascending).items()
        self._patiently(lambda: self._client.set_experiment_tag(self.experiment_id, key, value))
        return view_address(self.uri, self.experiment_id)

    def upload(self, run_id: str, record: Record, *, files: Path, tags: Mapping[str, str]) -> None:
        """The files of a folder, if it is there, then everything a record holds, with further tags. Doing it twice
        changes nothing.

        MLflow refuses a param that changes. A trial may go on elsewhere, on another GPU or without one: the params that
        it was begun with stay, and the tag dxc.went_on_with holds those that are different now (JSON).
        """
        content = record.content
        points = [(name, value, 0) for name, value in content["metrics"].items()]
        points += [(name, value, step) for name, value, step in content["curves"]]

        def write() -> None:
            if files.is_dir():
                self._places.of_run(run_id, self._client.get_run(run_id).info.artifact_uri)
                self._client.log_artifacts(run_id, str(files))
            begun = self._client.get_run(run_id).data
            params = {key: _param_text(value) for key, value in (content.get("params") or {}).items()}
            differing = {key: value for key, value in params.items() if begun.params.get(key, value) != value}
            now = {WENT_ON_WITH: json.dumps(differing)} if differing or WENT_ON_WITH in begun.tags else {}
            _log(
                self._client,
                run_id,
                points=points,
                params={key: value for key, value in params.items() if key not in begun.params},
                tags={"mlflow.runName": content.get("name", ""), **content["tags"], **tags, **now},
                time_ms=content.get("time_ms"),
            )

        self._patiently(write)


@dataclass(frozen=True)
class Study:
    """An experiment of a store; created_ms tells it from one of the same id in another database."""

    name: str
    experiment_id: str
    created_ms: int | None


class Reader(_Patient):
    """What an MLflow store holds. Reading creates nothing: no file, no table, no experiment.

    Raises TrackingError where there is no store, where it cannot be used, or where its tables are of another MLflow.
    artifacts: folders or addresses (s3://bucket/runs) where files of runs may lie, beside the store's own; see Places.
    """

    def __init__(self, uri: str, *, artifacts: Sequence[str] = ()) -> None:
        super().__init__(uri, patience_s=0)  # MLflow tries a server four times
        self._places = Places.of(uri, artifacts)
        with _no_garbage():
            _require_tables(uri)
            self._client = self._patiently(lambda: _client(uri))

    def studies(self) -> list[Study]:
        """Oldest first, without deleted ones."""
        found: list[Any] = []
        token = None
        while True:
            page = self._patiently(
                lambda token=token: self._client.search_experiments(  # type: ignore[misc]
                    max_results=PAGE, order_by=["creation_time ASC"], page_token=token
                )
            )
            found += page
            token = page.token
            if not token:
                return [_study(each) for each in found]

    def study(self, name: str) -> Study:
        """Raises TrackingError where there is none of this name, with those that there are."""
        found = self._patiently(lambda: self._client.get_experiment_by_name(name))
        if found is None:
            raise TrackingError(self._no_study(name))
        if found.lifecycle_stage == "deleted":
            raise TrackingError(f"study '{name}' was deleted in MLflow; restore it there or name another one")
        return _study(found)

    def _no_study(self, name: str, listed: int = 12, counted: int = 100) -> str:
        """The message; runs are counted up to `counted`, because MLflow can only count what it reads."""
        studies = {each.name: each for each in self.studies()}
        close = difflib.get_close_matches(name, studies, n=3)
        lines = []
        for each in list(dict.fromkeys([*close, *reversed(studies)]))[:listed]:
            runs = list(self._search(studies[each].experiment_id, "status = 'FINISHED'", limit=counted))
            finished = sum(run.is_trial for run in runs)
            or_more = " or more" if len(runs) == counted else ""
            lines.append(f"  {each}: {finished}{or_more} finished")
        if len(studies) > listed:
            lines.append(f"  ... and {len(studies) - listed} older ones")
        guess = f"did you mean {' or '.join(close)}? " if close else ""
        store = masked(self.uri)
        return f"no study '{name}' in the MLflow store {store}; {guess}There are:\n" + "\n".join(lines)

    def ended(
        self, study: Study, *, since_ms: int = 0, before_ms: int | None = None, without: Collection[str] = ()
    ) -> Iterator[list[StoredRun]]:
        """Runs that are over, whatever their end, in the order of their end times, by pages.

        since_ms, before_ms: end times, from the first on and before the second; a run without one is not over.
        without: at most MAX_LISTED run ids that are left out. A page begins at the end time of the last one and not
        at a position: positions shift when runs are deleted or go on meanwhile, and others would be skipped.
        """
        conditions = ["status != 'RUNNING'", "status != 'SCHEDULED'"]
        if before_ms is not None:
            conditions.append(f"end_time < {before_ms}")
        if without:
            conditions.append(f"run_id NOT IN ({_listed(without)})")
        size = PAGE
        seen: set[str] = set()
        while True:
            condition = " and ".join([*conditions, f"end_time >= {since_ms}"])
            page = self._page(study.experiment_id, condition, size, order="end_time")
            if fresh := list(_sound(run for run in page if run.info.run_id not in seen)):
                yield fresh
            if len(page) < size:
                return
            seen = {run.info.run_id for run in page}
            if page[-1].info.end_time == since_ms:
                size *= 2  # more runs than fit on a page ended at one time
            since_ms = page[-1].info.end_time

    def unfinished(self, study: Study) -> list[StoredRun]:
        """Runs that are planned or running."""
        over = ("FINISHED", "FAILED", "KILLED")
        return list(
            self._search(study.experiment_id, " and ".join(f"status != '{status}'" for status in over))
        )

    def deleted(self, study: Study, *, without: Collection[str] = ()) -> list[str]:
        """Ids of deleted runs. without: at most MAX_LISTED that are left out."""
        condition = f"run_id NOT IN ({_listed(without)})" if without else ""
        return [run.run_id for run in self._search(study.experiment_id, condition, deleted=True)]

    def among(self, study: Study, run_ids: Collection[str]) -> list[StoredRun]:
        """Those of at most MAX_LISTED runs that are over and not deleted."""
        condition = f"status != 'RUNNING' and status != 'SCHEDULED' and run_id IN ({_listed(run_ids)})"
        return list(self._search(study.experiment_id, condition)) if run_ids else []

    def artifact(self, run_id: str, name: str, folder: Path, *, under: str | None = None) -> Path | None:
        """One file of a run; None where the run does not have it (any more). To be read only: it may be the store's own
        where that is a folder here, else it is copied into `folder`.

        under: the run's artifact_uri where it is known. Raises OutsideError, and opens nothing, where that address is
        none of the store's.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        try:
            if under is None:
                under = self._client.get_run(run_id).info.artifact_uri
            place = self._places.of_run(run_id, under)
            if isinstance(place, Path):
                return self._places.file(run_id, place / name)
            return Path(
                download_artifacts(
                    artifact_uri=f"{place}/{name}", dst_path=str(folder), tracking_uri=_address(self.uri)
                )
            )
        except (MlflowException, OSError) as error:
            log.debug("run %s: no %s: %s", run_id, name, masked(str(error), self.uri))
            return None


class OutsideError(TrackingError):
    """The files of a run are said to lie where the store keeps none."""

    def __init__(self, run_id: str, address: str) -> None:
        super().__init__(
            f"run {run_id}: not read: its artifact address lies outside the store: {masked(address)!r} (if that is "
            "meant: tracking.artifacts=[FOLDER])"
        )


@dataclass(frozen=True)
class Places:
    """Where files of runs may lie: whoever writes to a store can make a run say anything of where its own are.

    A SQLite file has the folders mlartifacts and mlruns beside it, a server what it hands out itself
    (mlflow-artifacts:). Everything else has to be named by who reads: folders, addresses.
    """

    folders: Sequence[Path]
    addresses: Sequence[str]
    server: str | None
    """host:port of the store, where it is a server."""

    @classmethod
    def of(cls, uri: str, more: Sequence[str]) -> Places:
        folders = [Path(each.removeprefix("file://")).resolve() for each in more if _is_path(each)]
        if uri.startswith("sqlite:///"):
            beside = Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve().parent
            folders += [beside / "mlartifacts", beside / "mlruns"]
        served = uri.startswith(("http://", "https://"))
        server = urlsplit(for_link(uri)).netloc if served else None
        return cls(folders, [each.rstrip("/") for each in more if not _is_path(each)], server)

    def of_run(self, run_id: str, address: str) -> Path | str:
        """A run's folder, or its address. Raises OutsideError."""
        if _is_path(address):
            path = Path(unquote(urlsplit(address).path) if address.startswith("file:") else address)
            self._require_below(run_id, address, path)
            return path
        bare = address.rstrip("/")
        plain = not {"..", "."} & set(unquote(bare).split("/")) and not set(bare) & set("?#\\")
        scheme, _, rest = bare.partition(":")
        own = scheme == "mlflow-artifacts" and self.server is not None
        if plain and own and (not rest.startswith("//") or rest.split("/")[2] in ("", self.server)):
            return bare
        if plain and any(bare == each or bare.startswith(f"{each}/") for each in self.addresses):
            return bare
        raise OutsideError(run_id, address)

    def file(self, run_id: str, path: Path) -> Path | None:
        """A file where it is there; a link that leads out of the places raises OutsideError."""
        self._require_below(run_id, str(path), path)
        return path if path.is_file() else None

    def _require_below(self, run_id: str, address: str, path: Path) -> None:
        try:
            found = path.resolve() if path.is_absolute() else None
        except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL
            found = None
        if found is None or not any(found.is_relative_to(each.resolve()) for each in self.folders):
            raise OutsideError(run_id, address)


def _is_path(address: str) -> bool:
    """Whether an address means a file here: file:///a/b, file:/a/b or /a/b."""
    return address.startswith(("/", "file:/")) and not re.match(r"file://[^/]", address)


def study_names(uri: str) -> list[str]:
    """Studies of a store, oldest first. Raises TrackingError as Reader does."""
    return [study.name for study in Reader(uri).studies()]


PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""MLflow's error codes that waiting does not mend."""


def disk_full(error: BaseException, uri: str = "") -> TrackingError | None:
    """The error to show where this one, or one that caused it, is a full disk; None where it is not.

    uri: the store that was written to, to be named where a database does not say on which disk it lies.
    """
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "database or disk is full" in str(cause):
            if isinstance(error, DxcError):  # it says where, and what to do
                return TrackingError(str(error))
            # of two files, of which one was copied, the second is the one that found no room
            where = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
            if where is None and uri.startswith("sqlite:///"):
                where = uri.removeprefix("sqlite:///")
            return TrackingError(
                f"no space left on the disk{f' for {where}' if where else ''}: {cause}\n"
                "Free some, then go on with the same command"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _sound(runs: Iterable[Any]) -> Iterator[StoredRun]:
    """MLflow's runs as they stand in the store, without those whose id is none: ids become names of files."""
    for run in runs:
        if is_run_id(run.info.run_id):
            yield _stored(run)
        else:
            log.warning("a run is set aside: its id %r is not 32 hexadecimal digits", run.info.run_id)


def _stored(run: Any) -> StoredRun:
    """One run. What its tags say of its identity is checked here, once: it becomes names of folders."""
    tags = dict(run.data.tags)
    for key in IDENTITIES:
        if tags.get(key) and not is_hash(tags[key]):
            log.warning(
                "run %s: its tag %s is ignored, %r is not 12 hexadecimal digits",
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


def _study(experiment: Any) -> Study:
    return Study(experiment.name, experiment.experiment_id, experiment.creation_time)


def _listed(run_ids: Collection[str]) -> str:
    return ", ".join(f"'{run_id}'" for run_id in run_ids)


def _log(
    client: Any,
    run_id: str,
    *,
    points: Sequence[Point] = (),
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    time_ms: int | None = None,
) -> None:
    """Log to a run in as few calls as MLflow allows. A value that is not finite is missing and is not logged."""
    from mlflow.entities import Metric, Param, RunTag

    now_ms = int(time.time() * 1000) if time_ms is None else time_ms
    metrics = [Metric(name, value, now_ms, step) for name, value, step in points if math.isfinite(value)]
    entries = [Param(key, _param_text(value)) for key, value in (params or {}).items()]
    marks = [RunTag(key, masked(str(value))) for key, value in (tags or {}).items()]
    while metrics or entries or marks:
        client.log_batch(run_id, metrics=metrics[:MAX_METRICS], params=entries[:MAX_PARAMS], tags=marks)
        metrics, entries, marks = metrics[MAX_METRICS:], entries[MAX_PARAMS:], []


def _param_text(value: Any) -> str:
    """A param's value as it is stored."""
    return masked(str(value))[:MAX_PARAM_LENGTH]


def _open_store(uri: str, study: str) -> tuple[Any, str]:
    """Client and experiment id; an embedded store is created, one process at a time."""
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    scheme, _, location = uri.partition(":///")
    if scheme != "sqlite":
        client = _client(uri)
        return client, _experiment_id(client, study, artifacts=None)
    database = Path(location)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            client = _client(uri)
            # beside its database, wherever the command was started
            artifacts = (database.resolve().parent / "mlartifacts").as_uri()
            return client, _experiment_id(client, study, artifacts=artifacts)
    except OSError as error:
        raise MlflowException(f"{error.strerror}: {database.parent}") from error


def _client(uri: str) -> Any:
    """MLflow's client; one of a database makes the tables that are not there."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its default waits for minutes
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # two bars a file
    from mlflow import MlflowClient

    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.WARNING)  # dozens of lines about database migrations
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line for each time it tries again
    return MlflowClient(tracking_uri=_address(uri))


def _address(uri: str) -> str:
    """The store's address as MLflow is to use it: a server's without its login, which goes where MLflow looks for one.
    So no message of MLflow, no redirect and no artifact's address repeats it."""
    login = login_of(uri) if uri.startswith(("http://", "https://")) else None
    if login is None:
        return uri
    if not login.password:  # a token
        os.environ["MLFLOW_TRACKING_TOKEN"] = login.user
    else:
        os.environ["MLFLOW_TRACKING_USERNAME"] = login.user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = login.password
    return login.address


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """No garbage collection: it takes a quarter of the time of importing MLflow, and finds nothing there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _require_tables(uri: str) -> None:
    """Raise TrackingError unless a database is there and has the tables of this MLflow.

    MLflow itself would make a SQLite file that is not there, and change the tables of an older MLflow without asking.
    Addresses that are no database pass.
    """
    from alembic.runtime.migration import MigrationContext
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError

    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in DATABASE_ENGINES:
        return
    nothing = (
        f"there is no MLflow store at {masked(uri)}\n"
        "Train or search first, or say where the runs are: tracking.uri=ADDRESS"
    )
    try:
        if scheme == "sqlite" and not Path(make_url(uri).database or "").is_file():
            raise TrackingError(nothing)
        engine = create_engine(uri)
        try:
            with engine.connect() as connection:
                version = MigrationContext.configure(connection).get_current_revision()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:  # a server that is away, another kind of file, no driver
        raise TrackingError(_store_message(uri, error)) from error
    if version is None:
        raise TrackingError(nothing)
    if (message := _version_message(uri, version)) is not None:
        raise TrackingError(message)


def _version_message(uri: str, version: str) -> str | None:
    """What to do about a database whose tables are of this version (alembic's revision); None where they fit."""
    import mlflow
    from alembic.script import ScriptDirectory

    uri = masked(uri)
    known = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if version in known.get_heads():
        return None
    if version in {each.revision for each in known.walk_revisions()}:
        return (
            f"the tables of the MLflow store {uri} were made by an older MLflow than {mlflow.__version__}\n"
            f"Keep a copy of the database, then bring them up to date: mlflow db upgrade {uri}"
        )
    return (
        f"the tables of the MLflow store {uri} were made by a newer MLflow than {mlflow.__version__}\n"
        "Install that one (pip install --upgrade mlflow), or read through its server: tracking.uri=http://HOST:5000"
    )


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
            "mlflow.note.content": f"Designs side by side: Views > {VIEW}. Their Pareto front (dxc.front, dxc.rank): "
            f"python analyze.py study={study} tag=true",
        }
        return client.create_experiment(study, artifact_location=location, tags=tags | _view())
    except MlflowException:
        found = client.get_experiment_by_name(study)  # another process may have been faster
        if found is None:
            raise
        return found.experiment_id


def view_address(uri: str, experiment_id: str) -> str:
    """Where MLflow's UI shows the designs of a study side by side: on the server, or what `make ui` serves.

    The bare address of an experiment opens MLflow 3.17's pages about language models.
    """
    server = for_link(uri) if uri.startswith("http") else UI
    return (
        f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
    )


def _view(
    columns: Sequence[str] = COLUMNS, order_by: str = COLUMNS[0], *, ascending: bool = False
) -> dict[str, str]:
    """The tag of an experiment that holds a saved view of its finished designs, as the UI's `Save as new view` writes
    it since MLflow 3.15 (mlflow/demo/generators/saved_views.py does it for traces)."""

    def quoted(column: str) -> str:
        kind, _, name = column.partition(".")
        return f"{kind}.`{name}`"

    run = "attributes.`Run Name`"
    widths = {
        quoted(column): max(100, 8 * len(column.partition(".")[2])) for column in columns
    }  # of their names
    state = {
        # not the run of a search, nor an analysis
        "searchFilter": "tags.`dxc.design` LIKE '%' and attributes.status = 'FINISHED'",
        "orderByKey": quoted(order_by),
        "orderByAsc": ascending,
        "selectedColumns": list(widths),
        "columnOrder": [run, *widths],
        "columnWidths": {run: 300, **widths},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now_ms = int(time.time() * 1000)
    view = {"name": VIEW, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}


def _store_message(uri: str, error: Exception) -> str:
    lines = masked(str(error), uri).strip().splitlines()  # drivers repeat the address
    reason = lines[0] if lines else type(error).__name__
    if outdated := re.search(r"out-of-date database schema \(found version (\w+)", reason):
        return _version_message(uri, outdated[1]) or reason
    return (
        f"tracking.uri: the MLflow store {masked(uri)} cannot be used: {reason}\n"
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
