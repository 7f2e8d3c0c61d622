"""Classification: is there a drainage crossing in the chip?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, BinaryF1Score, MulticlassAccuracy

from dxc.data.datamodule import Batch
from dxc.errors import TrainingError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class ClassificationTask(pl.LightningModule):
    """Trains a module (B, C, H, W) -> (B, num_classes) on dict batches (see dxc.data.datamodule).

    Raises TrainingError at the end of an epoch whose loss is not a number.

    Logs train_loss, val_loss and val_accuracy (fraction) once an epoch. After each validation epoch
    `predictions` holds that epoch's validation outputs on the CPU: index int64 (n,), label int64 (n,) and
    probability float32 (n,) of the last class, ordered by index.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerFactory, *, num_classes: int = 2) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.loss = self.configure_losses()
        self.val_metrics = self.configure_metrics(num_classes).clone(prefix="val_")
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN must show
        self.predictions: dict[str, Tensor] = {}
        self._outputs: list[dict[str, Tensor]] = []

    def configure_losses(self) -> nn.Module:
        """Scores (B, classes) and labels (B,) -> scalar."""
        return nn.CrossEntropyLoss()

    def configure_metrics(self, num_classes: int) -> MetricCollection:
        """Metrics of one validation epoch, from scores (B, classes) and labels (B,)."""
        return MetricCollection({"accuracy": MulticlassAccuracy(num_classes, average="micro")})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self.model(batch["image"]), batch["label"])
        # accumulated by hand: self.log in every step costs more than the step's bookkeeping
        self.train_loss.update(loss.detach(), weight=len(batch["label"]))
        return loss

    def on_train_epoch_end(self) -> None:
        loss = self.train_loss.compute()
        self.train_loss.reset()
        if not loss.isfinite():
            raise TrainingError(
                f"the training loss is {float(loss)} after epoch {self.current_epoch + 1}; "
                "lower optimizer.lr, or use full precision (trainer.precision=32-true)"
            )
        self.log("train_loss", loss, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        scores = self.model(batch["image"]).float()
        self._outputs.append({"index": batch["index"], "label": batch["label"], "scores": scores})

    def on_validation_epoch_end(self) -> None:
        outputs = {key: torch.cat([part[key] for part in self._outputs]) for key in self._outputs[0]}
        self._outputs.clear()
        if self.trainer.world_size > 1:
            gathered: Any = self.all_gather(outputs)  # adds a leading dimension, one entry a device
            outputs = {key: value.flatten(0, 1) for key, value in gathered.items()}
        outputs = _each_chip_once(outputs)
        scores, label = outputs["scores"], outputs["label"]
        self.log("val_loss", self.loss(scores, label), sync_dist=True)
        self.log_dict(self.val_metrics(scores, label), sync_dist=True)
        self.predictions = {
            "index": outputs["index"].cpu(),
            "label": label.cpu(),
            "probability": scores.softmax(dim=1)[:, -1].cpu(),
        }


def _each_chip_once(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ordered by index; several devices repeat chips to make their shares equally long."""
    position = {int(index): place for place, index in enumerate(outputs["index"].tolist())}
    order = torch.tensor([position[index] for index in sorted(position)], device=outputs["index"].device)
    return {key: value[order] for key, value in outputs.items()}


def pooled_metrics(probability: Tensor, label: Tensor) -> dict[str, float]:
    """average_precision, f1 (threshold 0.5) and auroc of pooled out-of-fold predictions, as fractions.

    probability: float (n,) of a crossing; label: int (n,) 1 = crossing. A metric that the labels leave
    undefined (only one class present) is left out, not set to 0.
    """
    metrics: dict[str, Any] = {"f1": BinaryF1Score()}
    if 0 < int(label.sum()) < len(label):
        metrics |= {"average_precision": BinaryAveragePrecision(), "auroc": BinaryAUROC()}
    return {name: float(metric(probability, label)) for name, metric in metrics.items()}
