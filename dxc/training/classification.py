"""Classification: is there a drainage crossing in the chip, or which of several classes does the image show?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
)

from dxc.data.datamodule import Batch
from dxc.evaluation.answers import probabilities_of
from dxc.training.task import OptimizerFactory, SchedulerFactory, Task

if TYPE_CHECKING:
    import pandas as pd

    from dxc.evaluation.average_precision import TrueBoxes


class ClassificationTask(Task):
    """Trains a module (B, C, H, W) -> (B, num_classes); see Task for the scheduler and the errors.

    Logs train_loss, val_loss and val_accuracy (fraction) once an epoch. `predictions` holds index, label and
    probability: float32 (n,) of label 1 with two classes, else (n, classes).
    """

    answers = ("scores",)
    scores = ("accuracy",)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        *,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(model, optimizer, scheduler=scheduler)
        self.loss = self.configure_losses()
        self.val_metrics = self.configure_metrics().clone(prefix="val_")

    def configure_losses(self) -> nn.Module:
        """Scores (B, classes) and labels (B,) -> scalar."""
        return nn.CrossEntropyLoss()

    def configure_metrics(self) -> MetricCollection:
        """Metrics of one validation epoch, from scores (B, classes) and labels (B,)."""
        return MetricCollection({"accuracy": MulticlassAccuracy(average="micro")})

    def batch_loss(self, output: Tensor, batch: Batch) -> Tensor:
        return self.loss(output, batch["label"])

    def judged(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"scores": output.float()}

    def validated(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        scores, label = outputs["scores"], outputs["label"]
        self.log("val_loss", self.loss(scores, label), sync_dist=True)
        self.log_dict(self.val_metrics(scores, label), sync_dist=True)
        probabilities = scores.softmax(dim=1)
        return {"probability": probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities}

    def pooled_metrics(self, predictions: pd.DataFrame, truth: TrueBoxes | None = None) -> dict[str, float]:
        """average_precision, f1 and auroc, of more than two classes f1 and auroc; see the functions that compute them.
        `truth` is not used."""
        probability = torch.tensor(probabilities_of(predictions))
        label = torch.tensor(predictions["label"].to_numpy())
        return (pooled_metrics if probability.ndim == 1 else pooled_metrics_of_classes)(probability, label)


def pooled_metrics(probability: Tensor, label: Tensor) -> dict[str, float]:
    """average_precision, f1 (threshold 0.5) and auroc of pooled out-of-fold predictions, as fractions.

    A metric that the labels do not define (one class only) is left out; it is not 0.

    Args:
        probability: float (n,) of a crossing.
        label: int (n,) 1 = crossing.
    """
    metrics: dict[str, Any] = {"f1": BinaryF1Score()}
    if 0 < int(label.sum()) < len(label):
        metrics |= {"average_precision": BinaryAveragePrecision(), "auroc": BinaryAUROC()}
    return {name: float(metric(probability, label)) for name, metric in metrics.items()}


def pooled_metrics_of_classes(probability: Tensor, label: Tensor) -> dict[str, float]:
    """f1 (macro average) and auroc (one class against the rest, macro average) of pooled out-of-fold predictions.

    The averages are over the classes that occur. auroc is left out where only one does; it is not 0.

    Args:
        probability: float (n, classes).
        label: int (n,).
    """
    classes = probability.shape[1]
    there = label.unique()
    f1 = MulticlassF1Score(classes, average="none")(probability, label)
    metrics = {"f1": float(f1[there].mean())}
    if len(there) > 1:
        auroc = [BinaryAUROC()(probability[:, each], (label == each).long()) for each in there.tolist()]
        metrics["auroc"] = float(torch.stack(auroc).mean())
    return metrics
