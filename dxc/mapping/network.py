"""The network of a map: a file, the file of a run, or the design that an analysis of a study would choose."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf

from dxc.analysis.analyze import chosen, selected, tracked_runs, with_front
from dxc.analysis.network_file import NETWORK
from dxc.analysis.out_of_fold import PREDICTIONS
from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.deploy.metadata import FOLDS
from dxc.errors import AnalysisError, ExportError
from dxc.mapping.settings import MapSettings
from dxc.metrics import Metric
from dxc.tracking.patience import StoredRun
from dxc.tracking.reader import Reader

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ONNX = ".onnx"
AGAIN = (
    "The same train.py command, with data.split=region and fold_files=true, exports the network of every fold; what "
    "was trained lies in cache_dir."
)
PLAIN = re.compile(r"\w[\w -]*")
"""What the name of a fold may be. It comes from the store and becomes a part of paths, in which OmegaConf would follow
${...} and the system .. and /."""


class MapNetwork(NamedTuple):
    """An exported file.

    Attributes:
        path: of the file.
        identity: hash of its content, 16 hexadecimal digits.
        run_id: of the run that it belongs to; None for a file.
        study: of that run, or the one that the map is tracked in; None: it is not tracked.
        why: in words, how it was chosen.
        fold: that was held out of its training, where a fold was asked for.
    """

    path: Path
    identity: str
    run_id: str | None
    study: str | None
    why: str
    fold: str | None = None


def network_of(settings: MapSettings, folder: Path) -> MapNetwork:
    """Find the network that is meant.

    Args:
        settings: of the map.
        folder: where a file that lies on a server is put.

    Raises:
        ExportError: there is no such file.
        TrackingError: the store, the study or the run does not exist.
        AnalysisError: the study has no such design, or the run no network of this fold.
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
        run_id, why = chosen_run(settings)
    if settings.fold is None:
        path = reader.artifact(run_id, NETWORK, folder)
    else:
        path = _of_fold(reader, run_id, settings.fold, folder)
        why += f", the network that did not see {settings.fold}"
    if path is None:
        raise AnalysisError(
            f"run {run_id} of study {study} has no {NETWORK} any more. Train the design again, or give onnx=FILE."
        )
    return _known(path, run_id, study, why)._replace(fold=settings.fold)


def _known(path: Path, run_id: str | None, study: str | None, why: str) -> MapNetwork:
    try:
        with path.open("rb") as file:
            identity = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    return MapNetwork(path, identity, run_id, study, why)


def exported_folds(reader: Reader, run_id: str) -> list[str]:
    """The folds of a run, sorted. One whose network could not be exported is among them: its map says so.

    Raises:
        AnalysisError: it has no networks of its folds, or these are no regions.
    """
    _of_regions(reader, run_id)
    names = _files(reader, run_id)
    if not names:
        raise AnalysisError(f"run {run_id} has no networks of its folds. {AGAIN}")
    folds = sorted({*names, *_evaluated(reader, run_id)})
    if refused := [fold for fold in folds if not PLAIN.fullmatch(fold)]:
        log.warning(
            "run %s: left out are folds whose names have other characters than letters, digits, -, _ and spaces: %s",
            run_id,
            ", ".join(f"{fold!r:.60}" for fold in refused[:5]),
        )
    if not (plain := [fold for fold in folds if fold not in refused]):
        raise AnalysisError(f"run {run_id} has no fold with a name that can be part of a path.")
    return plain


def _files(reader: Reader, run_id: str) -> list[str]:
    """The folds of which a run has a file."""
    return [name.removesuffix(ONNX) for name in reader.names(run_id, FOLDS) if name.endswith(ONNX)]


def _evaluated(reader: Reader, run_id: str) -> set[str]:
    """The folds of a run's out-of-fold predictions; none where they cannot be read."""
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        path = reader.artifact(run_id, PREDICTIONS, Path(folder))
        try:
            return set() if path is None else set(pd.read_parquet(path, columns=["fold"])["fold"].astype(str))
        except Exception as error:  # a file of another kind under this name
            log.warning("run %s: %s cannot be read: %s", run_id, PREDICTIONS, error)
            return set()


def _of_regions(reader: Reader, run_id: str) -> StoredRun:
    """A run whose folds are regions.

    Raises AnalysisError where they are not: then each network saw chips of every region.
    """
    run = reader.run(run_id)[0]
    split = run.params.get("data.split", "")
    if split != "region":
        told = f"was trained with data.split={split:.40}" if split else "does not say its data.split"
        raise AnalysisError(
            f"fold: run {run_id} {told}. Only with data.split=region is a fold a region, which its network did not "
            "see. Train with data.split=region fold_files=true, or leave fold out."
        )
    return run


def _of_fold(reader: Reader, run_id: str, fold: str, folder: Path) -> Path | None:
    """The file of the network that did not see a fold; the run's own file where that is the one.

    Raises AnalysisError where the run has no such network.
    """
    run = _of_regions(reader, run_id)
    names = _files(reader, run_id)
    if fold in names:
        return reader.artifact(run_id, f"{FOLDS}/{fold}{ONNX}", folder)
    exported = run.tags.get("dxc.exported_fold", "")
    if fold == exported:
        return reader.artifact(run_id, NETWORK, folder)
    there = names or [exported] * bool(exported)
    listed = f"it has {', '.join(there)}" if there else "it says of no fold"
    if not names:
        more = f" {AGAIN}"
    elif fold in _evaluated(reader, run_id):
        more = " It was trained and could not be exported: the notes of the run say why."
    else:
        more = ""
    raise AnalysisError(f"fold={fold}: run {run_id} has no network of this fold; {listed}.{more}")


def front_of(settings: MapSettings) -> list[str]:
    """The runs of the designs on the front of a study, the best in the first objective first.

    Raises:
        AnalysisError: the study has no front.
        TrackingError: the store or the study does not exist.
    """
    _, frame, objectives = _designs(_asked(settings))
    first, best = next(iter(objectives.items()))
    front = frame[frame["front"]].sort_values(first, ascending=not best.maximise, kind="stable")
    return [str(run_id) for run_id in front["run_id"]]


def chosen_run(settings: MapSettings) -> tuple[str, str]:
    """The run that analyze.py study=... choose.by=PICK would choose, and why.

    Raises:
        AnalysisError: the study has no such design.
        TrackingError: the store or the study does not exist.
    """
    asked = _asked(settings)
    runs, frame, objectives = _designs(asked)
    choice = chosen(frame, runs, objectives, asked.choose, asked.mix)
    row = frame.loc[choice.design]
    return str(row["run_id"]), f"{row['name']} of study {settings.study}: {choice.rule}"


def _asked(settings: MapSettings) -> Questions:
    """The questions of analyze.py study=... choose.by=PICK."""
    questions: Any = OmegaConf.load(PROJECT_ROOT / "conf" / "analysis" / "analyze.yaml")
    for key in ("defaults", "hydra"):
        del questions[key]
    questions.study, questions.choose.by, questions.cache_dir = (
        settings.study,
        settings.pick,
        settings.cache_dir,
    )
    questions.tracking.uri, questions.tracking.artifacts = settings.tracking.uri, settings.tracking.artifacts
    return Questions.of(resolved(questions))


def _designs(asked: Questions) -> tuple[pd.DataFrame, pd.DataFrame, Mapping[str, Metric]]:
    """(runs, designs with their front, objectives) as an analysis has them."""
    runs, _, _, _ = tracked_runs(asked)
    found, objectives = selected(runs, asked.where, asked.objectives, asked.mix)
    frame, _, _ = with_front(found, objectives)
    return runs, frame, objectives
