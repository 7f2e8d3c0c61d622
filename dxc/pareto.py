"""Objectives: every metric a run can carry, declared once with its unit and direction.

Tracking, tables and figures take names, units and directions from here.
"""

from __future__ import annotations

from typing import NamedTuple


class Objective(NamedTuple):
    """One metric of a run. `maximise` is True where more is better."""

    unit: str
    maximise: bool
    meaning: str


OBJECTIVES: dict[str, Objective] = {
    "accuracy": Objective("fraction", True, "mean over folds, last epoch"),
    "accuracy_std": Objective("fraction", False, "sample std. deviation over folds"),
    "average_precision": Objective("fraction", True, "pooled out-of-fold predictions"),
    "f1": Objective("fraction", True, "pooled out-of-fold predictions"),
    "auroc": Objective("fraction", True, "pooled out-of-fold predictions"),
    "latency_ms": Objective("ms", False, "predicted, mean over the hardware's nn-Meter predictors"),
    "latency_std_ms": Objective("ms", False, "predicted, sample standard deviation over the predictors"),
    "uncovered_macs_share": Objective(
        "fraction", False, "MACs of kernels without a predictor, in no latency"
    ),
    "measured_latency_ms": Objective("ms", False, "measured on the machine in tag dxc.measured_on, median"),
    "measured_latency_p95_ms": Objective("ms", False, "measured there, 95th percentile"),
    "onnx_mb": Objective("1e6 bytes", False, "size of the exported file"),
    "peak_memory_mb": Objective(
        "1e6 bytes", False, "measured, peak of the inference process less its baseline"
    ),
    "params": Objective("count", False, "trainable parameters"),
    "macs": Objective("count", False, "multiply-accumulates an image"),
    "fit_seconds": Objective("s", False, "wall time of training, all folds"),
    "images_per_second": Objective("1/s", True, "images a second while training"),
}


def objective(metric: str) -> Objective:
    """The objective a metric belongs to; `latency_ms/NAME` (one predictor) is declared by `latency_ms`.

    Raises KeyError for a metric that is not declared: a bug, not a user's mistake.
    """
    return OBJECTIVES[metric.split("/")[0]]
