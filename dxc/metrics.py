"""Every metric a run can carry, declared once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[str, float, int]
"""One point of a curve: name, value, step."""


class Objective(NamedTuple):
    """One metric of a run. `maximise` is True where more is better.

    comparable_by: tags and params of runs that must be equal for two values of it to be compared. origin: how it is
    known. predicted: by predictors, of the machine in tag dxc.predicted_for; measured: on the machine in tag
    dxc.measured_on; counted: from the network alone; trained: what training gave. '' where it is not declared.
    """

    unit: str
    maximise: bool
    meaning: str
    comparable_by: tuple[str, ...] = ()
    origin: str = ""


# by the same chips, and by networks that had not seen them in the same sense
JUDGED = ("dxc.data", "data.split")
PREDICTED = ("dxc.predictors", "dxc.packages")  # by the same predictors: their names, and what they say
MEASURED = ("dxc.measured_on", "hardware.affinity")  # device, runtime, provider, threads; and the cores

OBJECTIVES: dict[str, Objective] = {
    "accuracy": Objective("fraction", True, "mean over folds, last epoch", JUDGED, origin="trained"),
    "accuracy_std": Objective(
        "fraction", False, "sample std. deviation over folds", JUDGED, origin="trained"
    ),
    "average_precision": Objective(
        "fraction", True, "pooled out-of-fold predictions", JUDGED, origin="trained"
    ),
    "f1": Objective("fraction", True, "pooled out-of-fold predictions", JUDGED, origin="trained"),
    "auroc": Objective("fraction", True, "pooled out-of-fold predictions", JUDGED, origin="trained"),
    "box_ap50": Objective(
        "fraction", True, "boxes, average precision at IoU 0.5 (COCO), pooled", JUDGED, origin="trained"
    ),
    "box_ap": Objective(
        "fraction",
        True,
        "boxes, mean average precision at IoU 0.5 to 0.95 (COCO), pooled",
        JUDGED,
        origin="trained",
    ),
    "mean_iou": Objective(
        "fraction",
        True,
        "predicted against true box, over the images with a crossing",
        JUDGED,
        origin="trained",
    ),
    "recall_at_precision": Objective(
        "fraction",
        True,
        "greatest recall at a precision of task.min_precision (0.9)",
        (*JUDGED, "task.min_precision"),
        origin="trained",
    ),
    "latency_ms": Objective(
        "ms", False, "mean over the hardware's nn-Meter predictors", PREDICTED, origin="predicted"
    ),
    "latency_std_ms": Objective(
        "ms", False, "sample standard deviation over the predictors", PREDICTED, origin="predicted"
    ),
    "uncovered_macs_share": Objective(
        "fraction", False, "MACs of kernels without a predictor, in no latency", PREDICTED, origin="counted"
    ),
    "measured_latency_ms": Objective("ms", False, "median", MEASURED, origin="measured"),
    "measured_latency_p95_ms": Objective("ms", False, "95th percentile", MEASURED, origin="measured"),
    "efficiency_ms": Objective(
        "ms",
        False,
        "latency / batch, least over the batch sizes",
        (*MEASURED, "hardware.batches"),
        origin="measured",
    ),
    "optimum_batch": Objective(
        "count",
        False,
        "images in the batch with that least; fewer wait less",
        (*MEASURED, "hardware.batches"),
        origin="measured",
    ),
    "onnx_mb": Objective("1e6 bytes", False, "size of the exported file", origin="counted"),
    "peak_memory_mb": Objective(
        "1e6 bytes", False, "peak of the inference process less its baseline", MEASURED, origin="measured"
    ),
    "params": Objective("count", False, "trainable parameters", origin="counted"),
    "macs": Objective("count", False, "multiply-accumulates an image", origin="counted"),
    "fold_score": Objective(
        "fraction",
        True,
        "mean over folds of the metric that the key `score` names; what tuners see",
        JUDGED,
        origin="trained",
    ),
    "fit_seconds": Objective(
        "s", False, "wall time of training, all folds", ("device", "dxc.data"), origin="trained"
    ),
    "images_per_second": Objective(
        "1/s", True, "images a second while training", ("device",), origin="trained"
    ),
}


def objective(metric: str) -> Objective:
    """The objective a metric belongs to; `latency_ms/NAME` (one predictor) is declared by `latency_ms`.

    Raises KeyError for a metric that is not declared: a bug, not a user's mistake.
    """
    return OBJECTIVES[metric.split("/")[0]]


def directions(names: Sequence[str]) -> list[bool]:
    """For each objective, whether more is better. Raises KeyError as objective() does."""
    return [objective(name).maximise for name in names]
