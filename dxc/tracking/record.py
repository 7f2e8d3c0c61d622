"""The record of a trial on disk. It is uploaded later, so that nothing is lost while the server is away."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dxc.errors import signals_raise
from dxc.files import write_atomically
from dxc.masking import masked_tree
from dxc.metrics import Point, metric_of
from dxc.tracking.client import dataset_of, param_text
from dxc.untrusted import load_json

MAX_RECORD_BYTES = 64_000_000  # of record.json: curves of many folds and epochs


class Record:
    """The record of a trial on disk: a Sink that writes record.json at every step. It is uploaded later.

    Args:
        folder: folder of the trial. An existing record in it is continued.
        content: name, params, tags, metrics, curves, dataset, time_ms, and what its owner adds (dxc.search.trial).
    """

    stored = False  # the files stay where they are until they are uploaded

    def __init__(self, folder: Path, **content: Any) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"tags": {}, "metrics": {}, "curves": [], **content}
        self.run_id = self.experiment_id = self.uri = ""

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in `folder`; None where there is none that can be read."""
        try:
            return cls(folder, **load_json(folder / "record.json", limit=MAX_RECORD_BYTES))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, **changes: Any) -> None:
        """Change entries of the content and write the file. An interrupted write leaves the previous file."""
        self.content |= masked_tree(changes)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "record.json", json.dumps(self.content))

    def log(self, metrics: Mapping[str, float], curves: Sequence[Point] = ()) -> None:
        for name in metrics:
            metric_of(name)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.write(
            metrics=self.content["metrics"] | finite,
            curves=[*self.content["curves"], *(list(point) for point in curves if math.isfinite(point[1]))],
            time_ms=int(time.time() * 1000),
        )

    def tag(self, tags: Mapping[str, str]) -> None:
        self.write(tags=self.content["tags"] | {key: str(value) for key, value in tags.items()})

    def log_dataset(self, name: str, digest: str, source: Mapping[str, Any]) -> None:
        """See dxc.tracking.run.Run.log_dataset."""
        self.write(dataset=dataset_of(name, digest, source))

    def log_files(self, folder: Path, under: str | None = None) -> None:
        """Does nothing: the upload takes the whole folder."""

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
        """Replaces start_run, with the same arguments, for a run that is recorded on disk. Signals raise Stopped."""
        self.write(name=name, params={key: param_text(value) for key, value in params.items()})
        self.tag(tags)
        with signals_raise():
            yield self
