"""Compares predicted boxes with true boxes: intersection over union, matching, and TP, FN, FP or TN of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    pass


Floats = NDArray[np.floating[Any]]


MIN_IOU = 0.5
"""IoU with a true box from which a predicted box is in the right place: that of the metric box_ap50."""

KINDS = {
    "TP": f"found, IoU ≥ {MIN_IOU:g}",
    "FN": "crossing missed",
    "FP": "false alarm, or box in the wrong place",
    "TN": "rightly rejected",
}


class Sample(NamedTuple):
    """One image and the prediction of a detector. The image is positive if it has a true box.

    Attributes:
        image: (C, H, W).
        boxes: true boxes (n, 4).
        box: the predicted box (4,).
        probability: of a crossing.

    """

    image: Floats
    boxes: Floats
    box: Floats
    probability: float
    name: str = ""


def kind(sample: Sample, threshold: float = 0.5) -> str:
    """What the prediction of an image counts as, in terms of KINDS: TP, FN, FP, TN, or two of them.

    As in box_ap50, a reported box is right where its IoU with a true box is at least MIN_IOU. A box in the wrong place
    is a false alarm, and the crossing is missed: 'FP + FN'. One box finds one of several crossings: 'TP + FN'.
    """
    crossings = len(known_boxes(sample.boxes))
    reported = sample.probability > threshold  # as accuracy and F1 count
    found = reported and bool((match(sample.boxes, [sample.box], [sample.probability]) >= 0).any())
    counts = {"TP": found, "FP": reported and not found, "FN": crossings > found}
    return " + ".join(each for each, holds in counts.items() if holds) or "TN"


def match(
    boxes: ArrayLike, predicted: ArrayLike, scores: ArrayLike, *, min_iou: float = MIN_IOU
) -> NDArray[np.int_]:
    """For each predicted box the index of the true box that it matches, (m,); -1 for a false alarm.

    As in COCO's evaluation, boxes are matched from the highest score on. Each takes the free true box with the greatest
    IoU of at least `min_iou`.

    Args:
        boxes: true boxes (n, 4).
        predicted: predicted boxes (m, 4).
        scores: of the predicted boxes, (m,).
        min_iou: least IoU of a match.
    """
    overlap = iou(boxes, predicted)
    found = np.full(overlap.shape[1], -1)
    for j in np.argsort(-np.asarray(scores, dtype=float), kind="stable"):
        free = np.where(np.isin(np.arange(len(overlap)), found), -1.0, overlap[:, j])
        if len(free) and free.max() >= min_iou:
            found[j] = free.argmax()
    return found


def iou(boxes: ArrayLike, others: ArrayLike) -> Floats:
    """Intersection over union (n, m) of boxes (n, 4) and others (m, 4); 0 where neither has an area."""
    import torch

    from dxc.evaluation.boxes import box_iou, cxcywh_to_xyxy

    one, other = (cxcywh_to_xyxy(torch.from_numpy(known_boxes(each))) for each in (boxes, others))
    return box_iou(one[:, None], other[None]).numpy()


def known_boxes(boxes: ArrayLike) -> Floats:
    """Rows (n, 4) that are boxes."""
    return np.asarray(boxes, dtype=float).reshape(-1, 4)[are_known(boxes)]


def are_known(boxes: ArrayLike) -> NDArray[np.bool_]:
    """Which rows (n,) are boxes."""
    return np.isfinite(np.asarray(boxes, dtype=float).reshape(-1, 4)).all(axis=1)
