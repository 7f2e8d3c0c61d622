"""Boxes against hand computations, and properties that hold for any boxes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dxc.evaluation.boxes import (
    SMOOTH_L1_BETA,
    best_iou,
    box_iou,
    cxcywh_to_xyxy,
    generalised_box_iou,
    giou_loss,
    least_loss,
    smooth_l1_loss,
    xyxy_to_cxcywh,
)

NAN = float("nan")


def _random_boxes(seed: int, *shape: int) -> Tensor:
    """xyxy in the unit square."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)


def test_conversions_by_hand_and_back() -> None:
    xyxy = torch.tensor([[1.0, 2.0, 5.0, 10.0]])  # 4 wide, 8 high
    cxcywh = torch.tensor([[3.0, 6.0, 4.0, 8.0]])
    torch.testing.assert_close(xyxy_to_cxcywh(xyxy), cxcywh)
    torch.testing.assert_close(cxcywh_to_xyxy(cxcywh), xyxy)
    boxes = _random_boxes(0, 3, 5)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


@pytest.mark.parametrize(
    ("box", "other", "iou", "giou"),
    [
        # the same
        ([0, 0, 2, 2], [0, 0, 2, 2], 1, 1),
        # intersection 1 x 2, union 4 + 4 - 2 = 6, hull 3 x 2 = 6
        ([0, 0, 2, 2], [1, 0, 3, 2], 2 / 6, 2 / 6 - 0 / 6),
        # intersection 1 x 1, union 4 + 4 - 1 = 7, hull 3 x 3 = 9
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
        # one inside the other: intersection 1, union 16, hull 16
        ([0, 0, 4, 4], [1, 1, 2, 2], 1 / 16, 1 / 16),
        # apart along x: union 2, hull 4 x 1
        ([0, 0, 1, 1], [3, 0, 4, 1], 0, 0 - 2 / 4),
        # apart along both, where the product of two negative sides must not count: union 2, hull 3 x 3
        ([0, 0, 1, 1], [2, 2, 3, 3], 0, 0 - 7 / 9),
        # touching corners: union 2, hull 2 x 2
        ([0, 0, 1, 1], [1, 1, 2, 2], 0, 0 - 2 / 4),
    ],
)
def test_overlaps_by_hand(box: list[int], other: list[int], iou: float, giou: float) -> None:
    pair = torch.tensor(box, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    assert float(box_iou(*pair)) == pytest.approx(iou)
    assert float(generalised_box_iou(*pair)) == pytest.approx(giou)
    assert float(giou_loss(*pair)) == pytest.approx(1 - giou)


def test_overlaps_are_symmetric_bounded_and_ordered() -> None:
    boxes, others = _random_boxes(1, 40, 1), _random_boxes(2, 1, 60)
    iou, giou = box_iou(boxes, others), generalised_box_iou(boxes, others)
    assert iou.shape == giou.shape == (40, 60)
    assert (iou == 0).any()  # some are apart
    assert (iou > 0).any()
    torch.testing.assert_close(iou, box_iou(others, boxes))
    torch.testing.assert_close(giou, generalised_box_iou(others, boxes))
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou > -1) & (giou <= iou + 1e-12)).all()
    # neither asks for the unit, nor for the same unit along both axes
    scale = torch.tensor([300.0, 20.0, 300.0, 20.0], dtype=torch.float64)
    torch.testing.assert_close(box_iou(boxes * scale, others * scale), iou)
    torch.testing.assert_close(generalised_box_iou(boxes * scale, others * scale), giou)


def test_boxes_without_area_overlap_nothing() -> None:
    point = torch.tensor([1.0, 1.0, 1.0, 1.0], requires_grad=True)
    assert box_iou(point, point).item() == 0
    giou_loss(point, torch.tensor([1.0, 1.0, 1.0, 1.0])).backward()
    assert point.grad is not None
    assert point.grad.isfinite().all()


def test_smooth_l1_by_hand() -> None:
    box, true = torch.tensor([0.5, 0.5, 0.2, 0.9]), torch.tensor([0.45, 0.5, 0.3, 0.4])
    # beta 1/9: errors 0.05 and 0.1 lie below it, 0.5 beyond
    # 0.05^2 / (2/9) = 0.01125, 0, 0.1^2 / (2/9) = 0.045, 0.5 - 1/18 = 0.44444
    assert pytest.approx(1 / 9) == SMOOTH_L1_BETA
    assert float(smooth_l1_loss(box, true)) == pytest.approx(0.01125 + 0.045 + 0.5 - 1 / 18)
    assert smooth_l1_loss(box, true.expand(3, 2, 4)).shape == (3, 2)


def test_the_box_that_costs_least_counts() -> None:
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).repeat(3, 1).requires_grad_()
    boxes = torch.tensor(
        [
            # costs 0.3 - 1/18 and 0.2 - 1/18: the second
            [[0.8, 0.5, 0.2, 0.2], [0.3, 0.5, 0.2, 0.2], [NAN] * 4],
            # the same box twice
            [[0.5, 0.9, 0.2, 0.2], [0.5, 0.9, 0.2, 0.2], [0.9, 0.9, 0.2, 0.2]],
            # none
            [[NAN] * 4] * 3,
        ]
    )
    least = least_loss(box, boxes, smooth_l1_loss)
    assert least.tolist() == pytest.approx([0.2 - 1 / 18, 0.4 - 1 / 18, 0])
    least.sum().backward()
    # slope 1 beyond beta; the first must move left, the second down
    torch.testing.assert_close(
        box.grad, torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 0]]), msg=str(box.grad)
    )


@pytest.mark.parametrize(
    "loss", [smooth_l1_loss, lambda a, b: giou_loss(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))]
)
def test_padding_leaks_no_nan(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    box = torch.rand(4, 4, requires_grad=True)
    boxes = torch.full((4, 3, 4), NAN)
    boxes[0, 0] = torch.tensor([0.5, 0.5, 0.3, 0.3])
    boxes[2, :2] = torch.tensor([0.2, 0.6, 0.1, 0.4])
    least = least_loss(box, boxes, loss)
    least.sum().backward()
    assert least.isfinite().all()
    assert box.grad is not None
    assert box.grad.isfinite().all()
    assert (box.grad[[0, 2]].abs().sum(dim=1) > 0).all()
    assert (box.grad[[1, 3]] == 0).all()


def test_best_iou_is_that_with_the_nearest_box() -> None:
    box = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    boxes = torch.tensor([[[0.5, 0.25, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [NAN] * 4], [[NAN] * 4] * 3])
    # 0 0 0.5 0.5 and 0.25 0 0.75 0.5: intersection 0.125, union 0.25 + 0.25 - 0.125
    assert best_iou(box, boxes).tolist() == pytest.approx([1 / 3, NAN], nan_ok=True)
