"""Metrics of the pooled predictions of a detector, over all images with and without a crossing.

Box metrics follow the rules of COCO (Lin et al. 2014, doi 10.1007/978-3-319-10602-1_48) as faster-coco-eval computes
them. Each image has one predicted box, whose score is the probability of a crossing. Boxes are judged in order of
score. A box is a true positive if its IoU with a true box of its image reaches a threshold, else a false positive. In
images without a crossing every box is a false positive. With p(r) the precision at recall r,

    AP = 1/101 * sum over r in {0, 0.01, ..., 1} of the largest p(r') with r' >= r,

which is the mean of the interpolated precision over 101 recall points, and 0 beyond the recall that is reached. The AP
of doi 10.1145/3624062.3624260 is the same. Every true box counts in the recall. In an image with several true boxes,
the one predicted box can find only one.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOX = ("cx", "cy", "w", "h")  # columns of predictions: centre and size relative to the image
CATEGORY = 1  # the only one


class TrueBoxes(NamedTuple):
    """The true boxes of n images, as dxc.data.cache has them: TrueBoxes(cache.boxes(index), cache.sizes[index])."""

    boxes: np.ndarray
    """float (n, M, 4): cx, cy, w, h relative to the image; rows beyond an image's own are NaN."""
    sizes: np.ndarray
    """int (n, 2): height and width of the images in pixels."""


class PrecisionRecall(NamedTuple):
    """The points of a precision-recall curve, from the lowest threshold (recall 1) to the highest."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    threshold: NDArray[np.float64]
    """Thresholds of the probability. At or above it an image is predicted to hold a crossing."""


def precision_recall_curve(probability: ArrayLike, label: ArrayLike) -> PrecisionRecall:
    """Precision and recall of presence at every probability that occurs.

    Args:
        probability: (n,) of a crossing.
        label: (n,) 1 = crossing.

    Raises:
        ValueError: there is no crossing, so recall is undefined.

    """
    from sklearn.metrics import precision_recall_curve as curve

    label = np.asarray(label)
    if not label.any():
        raise ValueError("a precision-recall curve needs images with a crossing")
    precision, recall, threshold = curve(label, np.asarray(probability, np.float64))
    return PrecisionRecall(precision[:-1], recall[:-1], threshold)  # the last point, (1, 0), has no threshold


def recall_at_precision(
    probability: ArrayLike, label: ArrayLike, *, min_precision: float = 0.9
) -> dict[str, float]:
    """recall_at_precision: the largest recall of presence at which precision is at least `min_precision`.

    The result is empty without a crossing, and where no threshold reaches that precision.

    Args:
        probability: (n,) of a crossing.
        label: (n,) 1 = crossing.
        min_precision: the required precision, a fraction.
    """
    if not np.any(label):
        return {}
    curve = precision_recall_curve(probability, label)
    recall = curve.recall[curve.precision >= min_precision]
    return {"recall_at_precision": float(recall.max())} if len(recall) else {}


def box_metrics(probability: ArrayLike, boxes: ArrayLike, truth: TrueBoxes) -> dict[str, float]:
    """box_ap50 (AP at IoU 0.5), box_ap (mean AP over IoU 0.5, 0.55, ..., 0.95) and mean_iou, as fractions.

    mean_iou ignores the probability. For each image with a crossing it takes the IoU of the predicted box with the true
    box that it overlaps most; the result is their mean. Predictions of equal probability rank in their order. The
    result is empty where no image has a box.

    Args:
        probability: (n,) of a crossing.
        boxes: (n, 4) predicted boxes, cx, cy, w, h relative to the image.
        truth: the true boxes and sizes of the images.

    Raises:
        ValueError: lengths differ.

    """
    import torch

    from dxc.evaluation.boxes import best_iou

    probability, boxes = np.asarray(probability, np.float64), np.asarray(boxes, np.float64)
    if not len(probability) == len(boxes) == len(truth.boxes) == len(truth.sizes):
        raise ValueError(
            f"{len(probability)} probabilities, {len(boxes)} boxes, true boxes of {len(truth.boxes)} and sizes of "
            f"{len(truth.sizes)} images"
        )
    true = np.asarray(truth.boxes, np.float64)
    crossing = _own(true).any(axis=1)
    if not crossing.any():
        return {}
    precision = _interpolated_precision(probability, boxes, TrueBoxes(true, truth.sizes))
    iou = best_iou(torch.from_numpy(boxes[crossing]), torch.from_numpy(true[crossing]))
    return {
        "box_ap50": float(precision[0].mean()),
        "box_ap": float(precision.mean()),
        "mean_iou": float(iou.mean()),
    }


def _interpolated_precision(
    probability: np.ndarray, boxes: np.ndarray, truth: TrueBoxes
) -> NDArray[np.float64]:
    """Precision (10 IoU thresholds, 101 recall points) for boxes of any size. At least one image has a box."""
    from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]

    images = [
        {"id": number, "height": int(height), "width": int(width)}
        for number, (height, width) in enumerate(truth.sizes, start=1)
    ]
    owner, _ = own = np.nonzero(_own(truth.boxes))
    true = _annotations(owner, truth.boxes[own], truth.sizes)
    for number, annotation in enumerate(true, start=1):  # 0 would mean no match
        annotation.update(id=number, iscrowd=0, area=annotation["bbox"][2] * annotation["bbox"][3])
    predicted = _annotations(np.arange(len(boxes)), boxes, truth.sizes)
    for annotation, score in zip(predicted, probability, strict=True):
        annotation["score"] = float(score)

    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it logs five lines per evaluation
    ground_truth = COCO({"images": images, "annotations": true, "categories": [{"id": CATEGORY}]})
    evaluation = COCOeval_faster(ground_truth, ground_truth.loadRes(predicted), "bbox")
    evaluation.params.maxDets = [1]  # per image; there is only one
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0]  # the one category, area range and number of boxes


def _own(boxes: np.ndarray) -> NDArray[np.bool_]:
    """Which rows of (n, M, 4) are boxes: (n, M)."""
    return ~np.isnan(boxes).any(axis=-1)


def _annotations(owner: np.ndarray, boxes: np.ndarray, sizes: np.ndarray) -> list[dict[str, Any]]:
    """COCO annotations, whose boxes are left, top, width, height in pixels.

    Args:
        owner: (k,) number of each box's image.
        boxes: (k, 4) cx, cy, w, h relative to the image.
        sizes: (n, 2) height and width of the images in pixels.
    """
    height, width = np.asarray(sizes)[owner].T
    pixels = boxes * np.stack([width, height, width, height], axis=1)
    pixels[:, :2] -= pixels[:, 2:] / 2
    return [
        {"image_id": int(image) + 1, "category_id": CATEGORY, "bbox": bbox}
        for image, bbox in zip(owner, pixels.tolist(), strict=True)
    ]
