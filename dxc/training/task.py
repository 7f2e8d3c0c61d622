"""What all tasks share: the loss of an epoch, the collected validation outputs, the learning rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from dxc.data.datamodule import Batch
from dxc.errors import TrainingError

if TYPE_CHECKING:
    import pandas as pd

    from dxc.evaluation.average_precision import TrueBoxes
    from dxc.training.graph import GraphSteps

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class Task(pl.LightningModule):
    """Trains a module on dict batches (see dxc.data.datamodule); a subclass defines how outputs are evaluated.

    Args:
        model: the network.
        optimizer: makes the optimizer of the parameters.
        scheduler: makes the learning rate schedule for an optimizer. It is stepped once per epoch. None: no schedule.

    Raises:
        TrainingError: at the end of an epoch whose loss is not a number.

    Logs train_loss, and what a subclass logs in `validated`, once per epoch. After each validation epoch `predictions`
    holds that epoch's validation outputs on the CPU, ordered by index: index int64 (n,), label int64 (n,),
    probability float32 (n,) of label 1, and what a subclass adds; of more than two classes it is (n, classes).
    """

    answers: ClassVar[tuple[str, ...]]
    """Names of the module's outputs that the task can judge, as its entry in dxc.models.registry lists them."""
    scores: ClassVar[tuple[str, ...]]
    """Metrics of a fold, logged as val_NAME, of which more is better. The key `score` is one of them."""

    def __init__(
        self, model: nn.Module, optimizer: OptimizerFactory, *, scheduler: SchedulerFactory | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN must not be averaged away
        self.predictions: dict[str, Tensor] = {}
        self._outputs: list[dict[str, Tensor]] = []
        self._steps: GraphSteps | None = None

    def train_by(self, steps: GraphSteps) -> None:
        """Let the graph engine train. Loaders give numbers of chips then (dxc.training.graph), not batches."""
        self.automatic_optimization = False
        self._steps = steps

    def settle(self) -> None:
        """Wait until the device has done what it was told."""
        if self._steps is not None:
            self._steps.settle()
        elif self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def batch_loss(self, output: Any, batch: Batch) -> Tensor:
        """The loss (scalar) of the module's output for one batch. It must not ask the device for values: a CUDA graph
        records it."""
        raise NotImplementedError

    def judged(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """The part of the module's output that validation keeps: float tensors (B, ...) for a batch of B images. Only
        B may differ between batches."""
        raise NotImplementedError

    def validated(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Log the metrics of one validation epoch and return `predictions` without index and label.

        Args:
            outputs: index, label and what `judged` kept of all n images, (n, ...); each image once, ordered by index.
        """
        raise NotImplementedError

    def pooled_metrics(self, predictions: pd.DataFrame, truth: TrueBoxes | None = None) -> dict[str, float]:
        """Metrics of the pooled out-of-fold predictions, named as in dxc.metrics.METRICS.

        A metric that the labels do not define (one class only) is left out; it is not 0.

        Args:
            predictions: one row per chip with label and probability (dxc.evaluation.answers.probability_columns); a
                detector adds the box as cx, cy, w, h.
            truth: the true boxes of the same chips in the same order; None for a classifier.
        """
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self._steps is not None:
            self._steps.prepare(optimizer)
        if self.scheduler is None:
            return optimizer
        schedule: dict[str, Any] = {"scheduler": self.scheduler(optimizer), "interval": "epoch"}
        if self.automatic_optimization:
            schedule["monitor"] = "val_loss"  # only ReduceLROnPlateau uses it
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def forward(self, image: Tensor) -> Any:
        return self.model(image)

    def on_train_start(self) -> None:
        if self._steps is not None:
            self._steps.begin(self, self.trainer.optimizers[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if self._steps is not None:
            self._steps.run(batch["index"])
            return None
        loss = self.batch_loss(self.model(batch["image"]), batch)
        # not with self.log, which takes longer in every step
        # one value per image: torchmetrics 1.9.0 ignores weights with this nan_strategy
        self.train_loss.update(loss.detach().expand(len(batch["label"])))
        return loss

    def on_train_epoch_end(self) -> None:
        if self._steps is not None:
            loss = self._steps.epoch_loss()
        else:
            loss = self.train_loss.compute()
            self.train_loss.reset()
        if not loss.isfinite():
            raise TrainingError(
                f"the training loss is {float(loss)} after epoch {self.current_epoch + 1}; "
                "lower optimizer.lr, or use full precision (trainer.precision=32-true)"
            )
        self.log("train_loss", loss, sync_dist=True)
        if self._steps is not None and self.scheduler is not None:  # Lightning does where it optimises itself
            schedule: Any = self.lr_schedulers()
            schedule.step()

    def on_fit_end(self) -> None:
        if self._steps is not None:
            self._steps.close()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self._steps is not None:
            batch = self._steps.chips.batch(batch["index"])
        kept = self.judged(self.model(batch["image"]), batch)
        self._outputs.append({"index": batch["index"], "label": batch["label"], **kept})
        if self._steps is not None:
            self._steps.turn.pass_on()

    def on_validation_epoch_end(self) -> None:
        if self._steps is not None:
            self._steps.settle()  # others work meanwhile
        outputs = {key: torch.cat([part[key] for part in self._outputs]) for key in self._outputs[0]}
        self._outputs.clear()
        if self.trainer.world_size > 1:
            gathered: Any = self.all_gather(outputs)  # adds a leading dimension of one entry per device
            outputs = {key: value.flatten(0, 1) for key, value in gathered.items()}
        outputs = _each_chip_once(outputs)
        predictions = {"index": outputs["index"], "label": outputs["label"], **self.validated(outputs)}
        self.predictions = {key: value.cpu() for key, value in predictions.items()}


def _each_chip_once(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sort by index and drop repeats. With several devices, Lightning repeats chips to give each device equally
    many."""
    position = {int(index): place for place, index in enumerate(outputs["index"].tolist())}
    order = torch.tensor([position[index] for index in sorted(position)], device=outputs["index"].device)
    return {key: value[order] for key, value in outputs.items()}
