"""The result of one configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """What came out of one configuration. Metrics are named as in dxc.metrics.METRICS."""

    name: str
    metrics: dict[str, float]
    source: str
    """What it was trained on: '1,200 synthetic chips (seed 0)', 'chips of FOLDER'."""
    score: str
    """The metric that the configuration is judged by: accuracy, or average_precision of a detector."""
    fold_scores: dict[str, float]
    predictions: pd.DataFrame
    """Out-of-fold predictions: region, name, label, fold, probability (see
    dxc.evaluation.answers.probability_columns), of a detector also its box cx, cy, w, h (relative to the image); one
    row a validated chip."""
    onnx: Path
    excluded: int
    notes: tuple[str, ...]
    """What costs could not be had, and why."""
    run_id: str
    experiment_id: str
    tracking_uri: str
    study: str
    predicted_for: str = ""
    """The machines that the predictors describe (dxc.hardware.costs.predicted_for); '' where nothing was predicted."""
    measured_on: str = ""
