"""The network of a map: a file, the file of a run, or the design that an analysis of a study would choose."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from dxc.analysis.analyze import selected, tracked_runs, with_front
from dxc.analysis.choice import choose
from dxc.analysis.network_file import NETWORK
from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import AnalysisError, ExportError
from dxc.mapping.settings import MapSettings
from dxc.tracking.reader import Reader


class MapNetwork(NamedTuple):
    """An exported file.

    Attributes:
        path: of the file.
        identity: hash of its content, 16 hexadecimal digits.
        run_id: of the run that it belongs to; None for a file.
        study: of that run, or the one that the map is tracked in; None: it is not tracked.
        why: in words, how it was chosen.
    """

    path: Path
    identity: str
    run_id: str | None
    study: str | None
    why: str


def network_of(settings: MapSettings, folder: Path) -> MapNetwork:
    """Find the network that is meant.

    Args:
        settings: of the map.
        folder: where a file that lies on a server is put.

    Raises:
        ExportError: there is no such file.
        TrackingError: the store, the study or the run does not exist.
        AnalysisError: the study has no such design.
    """
    if settings.onnx is not None:
        if not settings.onnx.is_file():
            raise ExportError(f"onnx={settings.onnx}: no such file")
        return _known(settings.onnx, None, settings.study, f"the file {settings.onnx}")
    reader = Reader(settings.tracking.uri, artifacts=settings.tracking.artifacts)
    if settings.run is not None:
        run_id, study, why = settings.run, reader.run(settings.run)[1], f"run {settings.run}"
    else:
        assert settings.study is not None  # one of the three is given
        study = settings.study
        run_id, why = _chosen(settings)
    path = reader.artifact(run_id, NETWORK, folder)
    if path is None:
        raise AnalysisError(
            f"run {run_id} of study {study} has no {NETWORK} any more. Train the design again, or give onnx=FILE."
        )
    return _known(path, run_id, study, why)


def _known(path: Path, run_id: str | None, study: str | None, why: str) -> MapNetwork:
    try:
        with path.open("rb") as file:
            identity = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    return MapNetwork(path, identity, run_id, study, why)


def _chosen(settings: MapSettings) -> tuple[str, str]:
    """The run that analyze.py study=... choose.by=PICK would choose, and why."""
    questions: Any = OmegaConf.load(PROJECT_ROOT / "conf" / "analysis" / "analyze.yaml")
    for key in ("defaults", "hydra"):
        del questions[key]
    questions.study, questions.choose.by, questions.cache_dir = (
        settings.study,
        settings.pick,
        settings.cache_dir,
    )
    questions.tracking.uri, questions.tracking.artifacts = settings.tracking.uri, settings.tracking.artifacts
    asked = Questions.of(resolved(questions))
    runs, _, _, _ = tracked_runs(asked)
    found, objectives = selected(runs, None, None, [])
    frame, _, _ = with_front(found, objectives)
    others = runs.set_index("run_id")[[name for name in runs if name not in frame]]
    choice = choose(frame.join(others, on="run_id"), objectives, by=settings.pick)
    row = frame.loc[choice.design]
    return str(row["run_id"]), f"{row['name']} of study {settings.study}: {choice.rule}"
