"""Metrics of detections against a case computed by hand, and against pycocotools, scikit-learn and torchmetrics."""

from __future__ import annotations

import contextlib
import io
import logging

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryRecallAtFixedPrecision

from dxc.evaluation.average_precision import (
    TrueBoxes,
    box_metrics,
    precision_recall_curve,
    recall_at_precision,
)

NAN = float("nan")
NONE = [[NAN] * 4] * 2


def _by_hand() -> tuple[list[float], list[list[float]], TrueBoxes]:
    """Six images of 100 x 200 pixels with five true boxes; see test_by_hand."""
    square = [0.5, 0.5, 0.2, 0.2]
    true = [
        [square, [NAN] * 4],
        NONE,
        [square, [0.2, 0.2, 0.2, 0.2]],
        [square, [NAN] * 4],
        NONE,
        [square, [NAN] * 4],
    ]
    predicted = [
        [0.5, 0.5, 0.2, 0.2],  # IoU 1
        [0.5, 0.5, 0.2, 0.2],  # no crossing there
        [0.5, 0.5, 0.2, 0.155],  # IoU 0.775 with the first, 0 with the second
        [0.5, 0.5, 0.2, 0.082],  # IoU 0.41
        [0.1, 0.1, 0.1, 0.1],  # no crossing there
        [0.5, 0.5, 0.1, 0.124],  # IoU 0.31
    ]
    return [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], predicted, TrueBoxes(np.array(true), np.array([[100, 200]] * 6))


def test_by_hand() -> None:
    """Five true boxes; six predictions in order of score.

    IoU >= 0.50, 0.55, 0.60, 0.65, 0.70, 0.75: TP FP TP FP FP FP
        recall 1/5 1/5 2/5 ..., precision 1 1/2 2/3 ...
        interpolated: 1 for recall 0 .. 0.20 (21 points), 2/3 for 0.21 .. 0.40 (20 points), 0 beyond
        AP = (21 + 20 * 2/3) / 101
    IoU >= 0.80, 0.85, 0.90, 0.95: TP FP FP FP FP FP
        AP = 21 / 101
    """
    metrics = box_metrics(*_by_hand())
    ap50 = (21 + 20 * 2 / 3) / 101
    assert metrics["box_ap50"] == pytest.approx(ap50)
    assert metrics["box_ap"] == pytest.approx((6 * ap50 + 4 * 21 / 101) / 10)
    # of the four images with a crossing; 0.1 x 0.124 of 0.2 x 0.2 is 0.31
    assert metrics["mean_iou"] == pytest.approx((1 + 0.775 + 0.41 + 0.31) / 4)


def _random_case(seed: int, images: int = 60) -> tuple[np.ndarray, np.ndarray, TrueBoxes]:
    """Images of several sizes with 0 to 3 boxes, predictions near one of them or anywhere; some scores are equal."""
    rng = np.random.default_rng(seed)
    true = np.full((images, 3, 4), NAN)
    predicted = np.concatenate(
        [rng.uniform(0.2, 0.8, (images, 2)), rng.uniform(0.05, 0.4, (images, 2))], axis=1
    )
    for number in range(images):
        count = rng.integers(0, 4)
        true[number, :count, :2] = rng.uniform(0.2, 0.8, (count, 2))
        true[number, :count, 2:] = rng.uniform(0.05, 0.4, (count, 2))
        if count and rng.random() < 0.8:
            noise = rng.normal(0, rng.choice([0.003, 0.03]), 4)
            predicted[number] = np.clip(true[number, rng.integers(count)] + noise, 0.01, 1)
    sizes = rng.integers(16, 900, (images, 2))
    return rng.random(images).round(2), predicted, TrueBoxes(true, sizes)


def _pycocotools(probability: np.ndarray, predicted: np.ndarray, truth: TrueBoxes) -> tuple[float, float]:
    """AP at IoU 0.5 and at 0.5 to 0.95, with pycocotools and pixels reckoned box by box."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def pixels(box: np.ndarray, size: np.ndarray) -> list[float]:
        (cx, cy, w, h), (height, width) = box.tolist(), size.tolist()
        return [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]

    images, annotations, results = [], [], []
    for number, (boxes, size) in enumerate(zip(truth.boxes, truth.sizes, strict=True)):
        images.append({"id": number})
        for box in boxes:
            if not np.isnan(box[0]):
                bbox = pixels(box, size)
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                annotations.append({**one, "bbox": bbox, "area": bbox[2] * bbox[3]})
        score = float(probability[number])
        one = {"image_id": number, "category_id": 1, "score": score}
        results.append({**one, "bbox": pixels(predicted[number], size)})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[1], evaluation.stats[0]


@pytest.mark.parametrize("seed", range(6))
def test_boxes_equal_pycocotools(seed: int) -> None:
    case = _random_case(seed)
    metrics = box_metrics(*case)
    assert 0.02 < metrics["box_ap"] < metrics["box_ap50"] < 0.98  # a case that can tell
    assert (metrics["box_ap50"], metrics["box_ap"]) == pytest.approx(_pycocotools(*case), abs=1e-9)


def test_images_without_a_crossing_count() -> None:
    probability, predicted, truth = _by_hand()
    without = [0, 2, 3, 5]
    fewer = box_metrics(
        np.array(probability)[without],
        np.array(predicted)[without],
        TrueBoxes(truth.boxes[without], truth.sizes[without]),
    )
    # TP TP: precision stays 1 up to recall 2/5
    assert fewer["box_ap50"] == pytest.approx(41 / 101)
    assert fewer["box_ap50"] > box_metrics(probability, predicted, truth)["box_ap50"]


def test_the_unit_of_length_does_not_matter() -> None:
    """COCO sorts boxes by area in pixels; nothing of that may be left."""
    probability, predicted, truth = _random_case(0)
    expected = box_metrics(probability, predicted, truth)
    for side in (1, 100_000):
        assert box_metrics(
            probability, predicted, truth._replace(sizes=np.full_like(truth.sizes, side))
        ) == pytest.approx(expected)


def test_without_a_crossing_box_metrics_are_missing() -> None:
    truth = TrueBoxes(np.full((2, 1, 4), NAN), np.full((2, 2), 100))
    assert box_metrics([0.2, 0.9], [[0.5, 0.5, 0.1, 0.1]] * 2, truth) == {}


def test_lengths_must_agree() -> None:
    probability, predicted, truth = _by_hand()
    with pytest.raises(ValueError, match="5 probabilities, 6 boxes"):
        box_metrics(probability[:5], predicted, truth)


def test_nothing_is_printed(capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        box_metrics(*_by_hand())
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_recall_at_precision_by_hand() -> None:
    label = [1, 1, 0, 1, 0]
    probability = [0.9, 0.8, 0.7, 0.6, 0.1]
    # at or above 0.9: 1/1, 0.8: 2/2, 0.7: 2/3, 0.6: 3/4, 0.1: 3/5 precise
    for least, recall in ((0.9, 2 / 3), (0.75, 1.0), (0.6, 1.0)):
        metrics = recall_at_precision(probability, label, min_precision=least)
        assert metrics == {"recall_at_precision": pytest.approx(recall)}
    # nine of ten are 0.9, not a rounding less
    assert recall_at_precision([0.5] * 10, [1] * 9 + [0]) == {"recall_at_precision": 1.0}


@pytest.mark.parametrize("seed", range(4))
def test_recall_at_precision_equals_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 300)
    probability = np.clip(label * 0.4 + rng.random(300) * 0.6, 0, 1).astype(np.float32)
    expected, _ = BinaryRecallAtFixedPrecision(0.9)(torch.from_numpy(probability), torch.from_numpy(label))
    ours = recall_at_precision(probability, label)["recall_at_precision"]
    assert 0.1 < ours < 1
    assert ours == pytest.approx(float(expected), abs=1e-6)


def test_recall_without_a_meaning_is_missing() -> None:
    assert recall_at_precision([0.2, 0.9], [0, 0]) == {}
    assert recall_at_precision([0.9, 0.2, 0.1], [0, 1, 0]) == {}  # half of what is found, at best


def test_curve_by_hand() -> None:
    curve = precision_recall_curve([0.1, 0.9, 0.4], [0, 1, 1])
    assert curve.threshold.tolist() == [0.1, 0.4, 0.9]
    assert curve.precision.tolist() == pytest.approx([2 / 3, 1, 1])
    assert curve.recall.tolist() == [1, 1, 0.5]
    with pytest.raises(ValueError, match="needs images with a crossing"):
        precision_recall_curve([0.1], [0])
