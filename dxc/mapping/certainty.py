"""What the probabilities of a map mean: they are calibrated on what the run's networks said of chips that they had not
seen."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from dxc.analysis.out_of_fold import PREDICTIONS
from dxc.errors import AnalysisError, DxcError
from dxc.evaluation.answers import probabilities_of
from dxc.evaluation.calibration import ISOTONIC_FROM, Calibration, calibration_error, fit_calibration
from dxc.mapping.network import MapNetwork
from dxc.mapping.settings import MapSettings
from dxc.tracking.reader import Reader


def calibration_of(settings: MapSettings, network: MapNetwork) -> tuple[Calibration, str]:
    """The calibration of a map, and what it is, in words. Where none can be fitted, the words say why.

    It is isotonic; with less than ISOTONIC_FROM predictions that would follow their noise, so it is a temperature.

    Args:
        settings: of the map.
        network: with its run.
    """
    if settings.calibrate == "none":
        return Calibration(), "as the network says them (calibrate=none)"
    if network.run_id is None:
        return (
            Calibration(),
            "as the network says them: a file has no out-of-fold predictions; give run=RUN_ID",
        )
    try:
        p, label = _predictions(settings, network.run_id, network.fold)
        method = "isotonic" if len(p) >= ISOTONIC_FROM else "temperature"
        found = fit_calibration(p, label, method=method)  # type: ignore[arg-type]
    except DxcError as error:
        return Calibration(), f"as the network says them: {error}"
    before, after = (calibration_error(each, label).get("calibration_error") for each in (p, found(p)))
    share = float(np.mean(label == 1))
    without = f" of other folds than {network.fold}" if network.fold is not None else ""
    return found, (
        f"calibrated ({method}) on {len(p):,} out-of-fold predictions{without} of run {network.run_id}; error on these "
        f"{before:.3f} before, {after:.3f} after. They mean what they say where {share:.0%} of windows show a "
        "crossing, as of these chips"
    )


def _predictions(settings: MapSettings, run_id: str, fold: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels (n,) of a run, without those of a fold: its ground is what is mapped.

    Raises AnalysisError where it has none that can be used.
    """
    import pandas as pd

    reader = Reader(settings.tracking.uri, artifacts=settings.tracking.artifacts)
    with tempfile.TemporaryDirectory() as folder:
        path = reader.artifact(run_id, PREDICTIONS, Path(folder))
        if path is None:
            raise AnalysisError(f"run {run_id} has no {PREDICTIONS}")
        try:
            frame = pd.read_parquet(path)
            if fold is not None:
                frame = frame[frame["fold"].astype(str) != fold]
            p, label = probabilities_of(frame).astype(float), frame["label"].to_numpy()
        except Exception as error:  # a file of another kind under this name
            raise AnalysisError(f"{PREDICTIONS} of run {run_id} cannot be read") from error
    if p.ndim != 1:
        raise AnalysisError(f"{PREDICTIONS} of run {run_id} are of more than two classes")
    return p, label
