"""Reads an MLflow store without changing it."""

from __future__ import annotations

import contextlib
import difflib
import gc
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dxc.errors import TrackingError
from dxc.masking import masked
from dxc.tracking.client import PAGE, new_client, server_address
from dxc.tracking.patience import Patient, StoredRun, sound_runs
from dxc.tracking.places import Places
from dxc.tracking.schema import require_tables
from dxc.untrusted import is_run_id

log = logging.getLogger(__name__)


MAX_LISTED = 2000  # run ids in one condition: databases and MLflow's parser limit them


@dataclass(frozen=True)
class Study:
    """An experiment of a store. created_ms distinguishes it from one with the same id in another database."""

    name: str
    experiment_id: str
    created_ms: int | None


class Reader(Patient):
    """Reads an MLflow store. It creates nothing: no file, no table, no experiment.

    Args:
        uri: address of the store.
        artifacts: folders or addresses (s3://bucket/runs) where files of runs may lie besides the store's own; see
            Places.

    Raises:
        TrackingError: there is no store, it cannot be used, or its tables are of another version of MLflow.

    """

    def __init__(self, uri: str, *, artifacts: Sequence[str] = ()) -> None:
        super().__init__(uri, patience_s=0)  # MLflow tries a server four times
        self._places = Places.of(uri, artifacts)
        with _no_garbage():
            require_tables(uri)
            self._client = self._patiently(lambda: new_client(uri))

    def studies(self) -> list[Study]:
        """The studies of the store, oldest first, without deleted ones."""
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
        """The study with this name. If there is none, raises TrackingError, which lists the existing ones."""
        found = self._patiently(lambda: self._client.get_experiment_by_name(name))
        if found is None:
            raise TrackingError(self._no_study(name))
        if found.lifecycle_stage == "deleted":
            raise TrackingError(f"study '{name}' was deleted in MLflow; restore it there or name another one")
        return _study(found)

    def _no_study(self, name: str, listed: int = 12, counted: int = 100) -> str:
        """The error message for a missing study.

        Args:
            name: of the study.
            listed: number of studies that the message lists.
            counted: runs are counted up to this number, because MLflow reads all runs that it counts.
        """
        studies = {each.name: each for each in self.studies()}
        close = difflib.get_close_matches(name, studies, n=3)
        lines = []
        for each in list(dict.fromkeys([*close, *reversed(studies)]))[:listed]:
            runs = list(self._search(studies[each].experiment_id, "status = 'FINISHED'", limit=counted))
            finished = sum(run.is_trial and run.is_finished for run in runs)
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
        """Runs that have ended, in any state, in pages ordered by end time.

        A page begins at the end time of the last run of the page before, not at a position. Positions shift when runs
        are deleted or resumed meanwhile, and runs would be skipped.

        Args:
            study: the experiment.
            since_ms: earliest end time. A run without an end time has not ended.
            before_ms: runs that ended at this time or later are left out.
            without: at most MAX_LISTED run ids to leave out.

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
            if fresh := list(sound_runs(run for run in page if run.info.run_id not in seen)):
                yield fresh
            if len(page) < size:
                return
            seen = {run.info.run_id for run in page}
            if page[-1].info.end_time == since_ms:
                size *= 2  # more runs ended at one time than fit on a page
            since_ms = page[-1].info.end_time

    def unfinished(self, study: Study) -> list[StoredRun]:
        """Runs that are planned or running."""
        over = ("FINISHED", "FAILED", "KILLED")
        return list(
            self._search(study.experiment_id, " and ".join(f"status != '{status}'" for status in over))
        )

    def deleted(self, study: Study, *, without: Collection[str] = ()) -> list[str]:
        """Ids of deleted runs. `without` holds at most MAX_LISTED run ids to leave out."""
        condition = f"run_id NOT IN ({_listed(without)})" if without else ""
        return [run.run_id for run in self._search(study.experiment_id, condition, deleted=True)]

    def among(self, study: Study, run_ids: Collection[str]) -> list[StoredRun]:
        """The runs with these ids that have ended and are not deleted; at most MAX_LISTED ids."""
        condition = f"status != 'RUNNING' and status != 'SCHEDULED' and run_id IN ({_listed(run_ids)})"
        return list(self._search(study.experiment_id, condition)) if run_ids else []

    def artifact(self, run_id: str, name: str, folder: Path, *, under: str | None = None) -> Path | None:
        """The path of one file of a run; None where the run does not have it.

        Do not write to it. If the store is a local folder, it is the store's own file. Else it is a copy in `folder`.

        Args:
            run_id: the run.
            name: path of the file in the run's artifacts.
            folder: where a copy is put.
            under: the run's artifact_uri if it is known.

        Raises:
            OutsideError: the address does not belong to the store. Nothing is opened.

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
                    artifact_uri=f"{place}/{name}",
                    dst_path=str(folder),
                    tracking_uri=server_address(self.uri),
                )
            )
        except (MlflowException, OSError) as error:
            log.debug("run %s: no %s: %s", run_id, name, masked(str(error), self.uri))
            return None

    def names(self, run_id: str, under: str) -> list[str]:
        """Names of the files of a run that lie in one folder of its artifacts, sorted; [] where there is none.

        Args:
            run_id: the run.
            under: path of the folder in the run's artifacts.

        Raises:
            OutsideError: the address does not belong to the store. Nothing is opened.
        """
        from mlflow.exceptions import MlflowException

        try:
            place = self._places.of_run(run_id, self._client.get_run(run_id).info.artifact_uri)
            if isinstance(place, Path):
                folder = place / under
                return sorted(each.name for each in folder.iterdir() if self._places.file(run_id, each))
            listed = self._client.list_artifacts(run_id, under)
            return sorted(PurePosixPath(each.path).name for each in listed if not each.is_dir)
        except (MlflowException, OSError) as error:
            log.debug("run %s: no folder %s: %s", run_id, under, masked(str(error), self.uri))
            return []

    def maps(self, study: Study) -> list[StoredRun]:
        """Finished maps of the networks of a study, oldest first."""
        condition = "tags.`dxc.kind` = 'map' and status = 'FINISHED'"
        return list(self._search(study.experiment_id, condition))

    def run(self, run_id: str) -> tuple[StoredRun, str]:
        """One run, and the study that it belongs to. Raises TrackingError where there is none."""
        if not is_run_id(run_id):
            raise TrackingError(
                f"{run_id!r:.80} is no id of a run: 32 hexadecimal digits, as MLflow's page shows it"
            )
        try:
            found = self._patiently(lambda: self._client.get_run(run_id))
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise TrackingError(
                f"run {run_id}: no such run in the MLflow store {masked(self.uri)}. analyze.py shows the runs of a "
                "study, and tracking.uri=ADDRESS names another store"
            ) from error
        run = next(iter(sound_runs([found])), None)
        if run is None or found.info.lifecycle_stage == "deleted":
            raise TrackingError(f"run {run_id} was deleted in MLflow; restore it there or name another one")
        study = self._patiently(lambda: self._client.get_experiment(found.info.experiment_id)).name
        return run, study

    def keeps_locally(self, run_id: str) -> bool:
        """Whether the files of a run lie in a local folder, so that artifact() gives the store's own file.

        Raises OutsideError where the address does not belong to the store.
        """
        from mlflow.exceptions import MlflowException

        try:
            address = self._client.get_run(run_id).info.artifact_uri
        except MlflowException:
            return False
        return isinstance(self._places.of_run(run_id, address), Path)


def study_names(uri: str) -> list[str]:
    """Studies of a store, oldest first. Raises TrackingError as Reader does."""
    return [study.name for study in Reader(uri).studies()]


def _study(experiment: Any) -> Study:
    return Study(experiment.name, experiment.experiment_id, experiment.creation_time)


def _listed(run_ids: Collection[str]) -> str:
    return ", ".join(f"'{run_id}'" for run_id in run_ids)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Switch off garbage collection. It takes a quarter of the time of importing MLflow and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
