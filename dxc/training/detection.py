"""Detection: is there a drainage crossing in the image, and where?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_accuracy, binary_average_precision

from dxc.data.datamodule import Batch
from dxc.errors import ConfigError, is_number, require_one_of
from dxc.evaluation.boxes import best_iou, cxcywh_to_xyxy, giou_loss, least_loss, smooth_l1_loss
from dxc.training.classification import pooled_metrics as presence_metrics
from dxc.training.task import OptimizerFactory, SchedulerFactory, Task

if TYPE_CHECKING:
    import pandas as pd

    from dxc.evaluation.average_precision import TrueBoxes


class DetectorOutput(Protocol):
    """Output of a detector for B images: one box per image, and whether there is a crossing."""

    @property
    def presence(self) -> Tensor:
        """Logits (B,)."""

    @property
    def box(self) -> Tensor:
        """(B, 4): cx, cy, w, h relative to the image, 0..1."""


def _giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    return giou_loss(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(others))


BOX_LOSSES = {"smooth_l1": smooth_l1_loss, "giou": _giou_loss}
"""Losses of pairs of cxcywh boxes: (..., 4), (..., 4) -> (...)."""


class DetectionTask(Task):
    """Trains a module (B, C, H, W) -> DetectorOutput on batches with boxes; see Task for the scheduler.

    The loss is the binary cross entropy of presence, mean over the images, plus box_weight times the box loss, mean
    over the images with a crossing. A network predicts one box per image. Where an image has several true boxes, the
    one with the least loss counts.

    Args:
        model: (B, C, H, W) -> DetectorOutput.
        optimizer: makes the optimizer of the parameters.
        scheduler: see Task.
        box_loss: smooth_l1 or giou, see dxc.evaluation.boxes.
        box_weight: weight of the box loss.
        min_precision: the precision of recall_at_precision.

    Raises:
        ConfigError: a value that cannot work.
        TrainingError: at the end of an epoch whose loss is not a number.

    Logs train_loss, val_loss, val_accuracy (presence at probability 0.5), val_average_precision (presence) and
    val_mean_iou (see dxc.evaluation.average_precision) once per epoch, as fractions. The last two are left out where
    the validation chips do not define them. `predictions` holds index, label, probability and box float32 (n, 4):
    cx, cy, w, h.
    """

    answers = ("presence", "box")
    scores = ("average_precision", "accuracy", "mean_iou")

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        *,
        scheduler: SchedulerFactory | None = None,
        box_loss: str = "smooth_l1",
        box_weight: float = 1.0,
        min_precision: float = 0.9,
    ) -> None:
        require_one_of("task.box_loss", box_loss, BOX_LOSSES)
        if not is_number(box_weight) or not 0 <= box_weight < math.inf:
            raise ConfigError(f"task.box_weight must be a number of at least 0, not {box_weight!r}")
        if not is_number(min_precision) or not 0 < min_precision <= 1:
            raise ConfigError(f"task.min_precision must be above 0 and at most 1, not {min_precision!r}")
        super().__init__(model, optimizer, scheduler=scheduler)
        self.box_loss = BOX_LOSSES[box_loss]
        self.box_weight = box_weight
        self.min_precision = min_precision

    def batch_loss(self, output: DetectorOutput, batch: Batch) -> Tensor:
        box_loss = least_loss(output.box.float(), batch["boxes"], self.box_loss)
        return self._loss(output.presence.float(), batch["label"], box_loss)

    def judged(self, output: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        box = output.box.float()
        return {
            "presence": output.presence.float(),
            "box": box,
            "box_loss": least_loss(box, batch["boxes"], self.box_loss),
            "iou": best_iou(box, batch["boxes"]),
        }

    def validated(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        # torch sorts reproducibly on the CPU only
        outputs = {key: value.cpu() for key, value in outputs.items()}
        label, probability = outputs["label"], outputs["presence"].sigmoid()
        metrics = {
            "val_loss": self._loss(outputs["presence"], label, outputs["box_loss"]),
            "val_accuracy": binary_accuracy(probability, label),
        }
        if 0 < int(label.sum()) < len(label):
            metrics["val_average_precision"] = binary_average_precision(probability, label)
        if label.any():
            metrics["val_mean_iou"] = outputs["iou"][label == 1].mean()
        self.log_dict({name: float(value) for name, value in metrics.items()}, sync_dist=True)
        return {"probability": probability, "box": outputs["box"]}

    def pooled_metrics(self, predictions: pd.DataFrame, truth: TrueBoxes | None = None) -> dict[str, float]:
        """For presence the metrics of classification and recall_at_precision; for boxes box_ap50, box_ap and mean_iou.

        Raises ValueError where `truth` is missing.
        """
        from dxc.evaluation.average_precision import BOX, box_metrics, recall_at_precision

        if truth is None:
            raise ValueError("metrics of boxes need the true boxes")
        probability, label = (predictions[name].to_numpy() for name in ("probability", "label"))
        return {
            **presence_metrics(torch.tensor(probability), torch.tensor(label)),
            **recall_at_precision(probability, label, min_precision=self.min_precision),
            **box_metrics(probability, predictions[list(BOX)].to_numpy(), truth),
        }

    def _loss(self, presence: Tensor, label: Tensor, box_loss: Tensor) -> Tensor:
        """The loss, from logits, labels and box losses (n,). Box losses are 0 in images without a crossing."""
        presence_loss = F.binary_cross_entropy_with_logits(presence, label.float())
        return presence_loss + self.box_weight * box_loss.sum() / label.sum().clamp(min=1)
