"""Boxes as tensors of any shape (..., 4), in any unit of length, x to the right and y down.

Boxes have two formats. Batches and networks use cxcywh (centre x, centre y, width, height). Overlaps are computed in
xyxy (left, top, right, bottom). The shapes of two arguments broadcast: box_iou(box[..., None, :], boxes) compares one
box with many.

The boxes of a batch are padded: cxcywh (B, M, 4) relative to the image, with NaN in rows beyond an image's own boxes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH_L1_BETA = 1 / 9
"""Error, as a fraction of the image, from which smooth L1 grows linearly. With torch's default, 1, it never would,
because no relative error is larger. The region proposals of Faster R-CNN use 1/9, in torchvision and in the authors'
code (sigma = 3)."""

_LEAST_AREA = 1e-12  # least area of a union, so that boxes without area do not divide by 0


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size -> corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners -> centre and size."""
    near, far = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(near + far) / 2, far - near], dim=-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of pairs of xyxy boxes (..., 4): (...) in 0..1.

    It is 0 where neither box has an area.
    """
    return _iou_and_union(boxes, others)[0]


def generalised_box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of pairs of xyxy boxes (..., 4): (...) in -1..1.

    It is IoU - (hull - union) / hull, where hull is the smallest box around both. So it also tells how far apart two
    boxes are that do not touch (Rezatofighi et al. 2019, doi 10.1109/CVPR.2019.00075, algorithm 1).
    """
    iou, union = _iou_and_union(boxes, others)
    sides = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    hull = _product(sides)
    return iou - (hull - union) / hull.clamp(min=_LEAST_AREA)


def giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """1 - generalised IoU of xyxy boxes (..., 4): (...) in 0..2."""
    return 1 - generalised_box_iou(boxes, others)


def smooth_l1_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """Smooth L1 of cxcywh boxes (..., 4) relative to the image, summed over the four numbers: (...).

    A number that is off by d costs d^2 / (2 beta) below beta = SMOOTH_L1_BETA, d - beta / 2 from there on
    (Girshick 2015, doi 10.1109/ICCV.2015.169, equations 2 and 3, there with beta = 1).
    """
    boxes, others = torch.broadcast_tensors(boxes, others)
    return F.smooth_l1_loss(boxes, others, reduction="none", beta=SMOOTH_L1_BETA).sum(dim=-1)


def _iou_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    near = torch.maximum(boxes[..., :2], others[..., :2])
    far = torch.minimum(boxes[..., 2:], others[..., 2:])
    intersection = _product((far - near).clamp(min=0))
    union = _area(boxes) + _area(others) - intersection
    return intersection / union.clamp(min=_LEAST_AREA), union


def _area(boxes: Tensor) -> Tensor:
    return _product(boxes[..., 2:] - boxes[..., :2])


def _product(sides: Tensor) -> Tensor:
    """Width times height: (..., 2) -> (...).

    Not by torch's prod: its gradient asks the device whether a factor is 0, which no CUDA graph can record.
    """
    return sides[..., 0] * sides[..., 1]


def least_loss(box: Tensor, boxes: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """For each image the loss of its predicted box against the true box with the least loss.

    Args:
        box: predicted boxes (B, 4), cxcywh.
        boxes: padded true boxes (B, M, 4), cxcywh.
        loss: of pairs of cxcywh boxes (..., 4) -> (...), such as smooth_l1_loss.

    Returns:
        (B,), 0 for an image without boxes. Neither it nor its gradient contains the NaN of the padding.
    """
    own, filled = _own(boxes)
    least = loss(box[:, None], filled).masked_fill(~own, torch.inf).amin(dim=1)
    return least.masked_fill(~own.any(dim=1), 0)


def best_iou(box: Tensor, boxes: Tensor) -> Tensor:
    """For each image the IoU of its predicted box with the true box that it overlaps most.

    Args:
        box: predicted boxes (B, 4), cxcywh.
        boxes: padded true boxes (B, M, 4), cxcywh.

    Returns:
        (B,), NaN for an image without boxes.
    """
    own, filled = _own(boxes)
    iou = box_iou(cxcywh_to_xyxy(box[:, None]), cxcywh_to_xyxy(filled))
    return iou.masked_fill(~own, -torch.inf).amax(dim=1).masked_fill(~own.any(dim=1), torch.nan)


def _own(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the padded boxes (B, M, 4) are an image's own, (B, M); and the boxes with numbers in place of NaN.

    A NaN that is masked only after the arithmetic still reaches the gradient as 0 x NaN.
    """
    own = ~boxes.isnan().any(dim=-1)
    # made on the device: a constant from the host would stop a CUDA graph
    whole_image = torch.cat([boxes.new_full((2,), 0.5), boxes.new_ones(2)])
    return own, torch.where(own[..., None], boxes, whole_image)
