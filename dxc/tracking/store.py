"""A study in an MLflow store, for writing and reading. Calls are repeated where the store does not answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dxc.masking import masked
from dxc.tracking.client import dataset_of, log_batch, log_dataset, open_store, param_text, standard_tags
from dxc.tracking.patience import Patient, StoredRun, stored_run
from dxc.tracking.places import Places
from dxc.tracking.record import Record
from dxc.tracking.view import view_address, view_tag

WENT_ON_WITH = "dxc.went_on_with"
"""Tag of a trial that was resumed with other params than it began with: {param: value}, JSON."""


class Store(Patient):
    """One study in an MLflow store. It is created if needed.

    Args:
        uri: address of the store.
        study: name of the experiment.
        patience_s: how long calls are repeated, seconds.
        artifacts: further folders and addresses where files may be put (see Places).
    """

    def __init__(self, uri: str, study: str, *, patience_s: float, artifacts: Sequence[str] = ()) -> None:
        super().__init__(uri, patience_s)
        self._places = Places.of(uri, artifacts)
        self.study = study
        self._client, self.experiment_id = self._patiently(lambda: open_store(uri, study))

    def create(
        self,
        name: str,
        tags: Mapping[str, str],
        *,
        params: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> str:
        """Create a run. Returns its id.

        Args:
            name: of the run.
            tags: of the run.
            params: of the run.
            parent: id of the parent run.
        """
        nested = {"mlflow.parentRunId": parent} if parent else {}
        every = {**standard_tags(), **nested, **tags}
        run_id: str = self._patiently(
            lambda: self._client.create_run(
                self.experiment_id,
                run_name=name,
                tags={key: masked(str(value)) for key, value in every.items()},
            )
        ).info.run_id
        if params:
            self._patiently(lambda: log_batch(self._client, run_id, params=params))
        return run_id

    def runs(self, **tags: str) -> list[StoredRun]:
        """Runs that carry these tags (a dot in a tag is written __), oldest first."""
        condition = " and ".join(
            f"tags.`{key.replace('__', '.')}` = '{value}'" for key, value in tags.items()
        )
        return list(self._search(self.experiment_id, condition))

    def get(self, run_id: str) -> StoredRun:
        return stored_run(self._patiently(lambda: self._client.get_run(run_id)))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._patiently(lambda: log_batch(self._client, run_id, tags=tags))

    def status(self, run_id: str, status: str) -> None:
        """Set the status. SCHEDULED and RUNNING are open; FINISHED, FAILED and KILLED set the end time too."""
        final = status in ("FINISHED", "FAILED", "KILLED")
        change = self._client.set_terminated if final else self._client.update_run
        self._patiently(lambda: change(run_id, status))

    def log(self, run_id: str, metrics: Mapping[str, float]) -> None:
        points = [(name, value, 0) for name, value in metrics.items()]
        self._patiently(lambda: log_batch(self._client, run_id, points=points))

    def log_measured(
        self, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str], *, gone: Sequence[str]
    ) -> None:
        """Log what was measured on a device, in one call, so that values and the name of their device stay together.

        Args:
            run_id: the run.
            metrics: the values.
            tags: what they are of.
            gone: metrics of the run that are of another device: they are missing from now on.
        """
        points = [(name, value, 0) for name, value in metrics.items()]
        self._patiently(lambda: log_batch(self._client, run_id, points=points, tags=tags, gone=gone))

    def log_dataset(self, run_id: str, name: str, digest: str, source: Mapping[str, Any]) -> None:
        """Log what a run is trained on; see dxc.tracking.client.dataset_of. Repeating it changes nothing."""
        self._patiently(lambda: log_dataset(self._client, run_id, dataset_of(name, digest, source)))

    def log_files(self, run_id: str, folder: Path) -> None:
        """Log all files of a folder as artifacts with their relative paths. Raises OutsideError; see Places."""

        def write() -> None:
            self._places.of_run(run_id, self._client.get_run(run_id).info.artifact_uri)
            self._client.log_artifacts(run_id, str(folder))

        self._patiently(write)

    def save_view(self, columns: Sequence[str], *, order_by: str, ascending: bool) -> str:
        """Save a view of the study for MLflow's UI. Returns the address that shows it.

        Args:
            columns: in their order, spelled as in view_columns().
            order_by: the column that runs are sorted by.
            ascending: whether the smallest value comes first.
        """
        ((key, value),) = view_tag(columns, order_by, ascending=ascending).items()
        self._patiently(lambda: self._client.set_experiment_tag(self.experiment_id, key, value))
        return view_address(self.uri, self.experiment_id)

    def upload(self, run_id: str, record: Record, *, files: Path, tags: Mapping[str, str]) -> None:
        """Upload files, then the content of a record and further tags. Repeating it changes nothing.

        A trial may be resumed on another GPU or without one, but MLflow refuses a param that changes. So the first
        params stay, and the tag dxc.went_on_with holds those that differ (JSON).

        Args:
            run_id: the run.
            record: the record of the trial.
            files: a folder, which need not exist.
            tags: further tags.
        """
        content = record.content
        points = [(name, value, 0) for name, value in content["metrics"].items()]
        points += [(name, value, step) for name, value, step in content["curves"]]

        def write() -> None:
            if files.is_dir():
                self._places.of_run(run_id, self._client.get_run(run_id).info.artifact_uri)
                self._client.log_artifacts(run_id, str(files))
            begun = self._client.get_run(run_id).data
            params = {key: param_text(value) for key, value in (content.get("params") or {}).items()}
            differing = {key: value for key, value in params.items() if begun.params.get(key, value) != value}
            now = {WENT_ON_WITH: json.dumps(differing)} if differing or WENT_ON_WITH in begun.tags else {}
            log_batch(
                self._client,
                run_id,
                points=points,
                params={key: value for key, value in params.items() if key not in begun.params},
                tags={"mlflow.runName": content.get("name", ""), **content["tags"], **tags, **now},
                time_ms=content.get("time_ms"),
            )
            if dataset := content.get("dataset"):
                log_dataset(self._client, run_id, dataset)

        self._patiently(write)
