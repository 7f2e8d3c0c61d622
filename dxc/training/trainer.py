"""The trainer of one fold: Lightning's Trainer with quiet defaults and a record of each epoch."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import nn
from tqdm import tqdm

from dxc.errors import require_whole
from dxc.text import for_terminal

if TYPE_CHECKING:
    from dxc.training.task import Task

# Lightning repeats its device list, a tip and "max_epochs reached" for every fold.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
# Chips come from one memory map: loader processes would only add copies.
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # a search's trials are single processes
warnings.filterwarnings(
    "ignore", ".*treespec, LeafSpec.*"
)  # comes from Lightning 2.6.6 on torch 2.13; nothing can be done here


class FoldTrainer(pl.Trainer):
    """pl.Trainer for one fold. `conf/trainer/*.yaml` is its argument list. Any other option of pl.Trainer can be added
    on the command line (`+trainer.gradient_clip_val=1`).

    Args:
        max_epochs: number of epochs; 0 for validate() alone.
        engine: auto, eager or graph; dxc.training.crossval heeds it. See dxc.training.engine.
        channels_last: keep the weights in NHWC memory order, which is faster on CPUs by a seventh or more. Networks
            that torch 2.13.0 would crash on are exempt on a CPU (see breaks_in_channels_last).
        progress: a progress bar per fold on a terminal, one line per fold elsewhere.
        title: of the progress bar.
        on_epoch: called with the number of each epoch, from 1, when it begins.
        clock: gives the time in seconds. Of folds that are trained side by side each has a clock of its own, which
            divides the wall time among them.
        bar: the line of the progress bar on a terminal, from 0.
        callbacks: further callbacks.
        options: of pl.Trainer.

    After fit(): `history` holds (metric, value, epoch) of every epoch, `train_seconds` the time of the training epochs
    without validation by `clock`, `trained_images` how many images these took.
    """

    def __init__(
        self,
        *,
        max_epochs: int = 5,
        engine: str = "auto",
        channels_last: bool = True,
        progress: bool = True,
        title: str = "",
        on_epoch: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        bar: int = 0,
        callbacks: list[pl.Callback] | None = None,
        **options: Any,
    ) -> None:
        require_whole("trainer.max_epochs", max_epochs, at_least=0)
        # with deterministic=warn torch fills new memory before use, which costs kernels in each step and mends nothing
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.engine = engine
        self.watch = _Watch(on_epoch, clock)
        super().__init__(
            max_epochs=max_epochs,
            callbacks=[
                *(callbacks or []),
                self.watch,
                *([_ChannelsLast()] if channels_last else []),
                *([_FoldProgress(title, bar)] if progress else []),
            ],
            logger=False,  # dxc.tracking.run logs a whole run at once
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )

    @property
    def history(self) -> list[tuple[str, float, int]]:
        return self.watch.history

    @property
    def train_seconds(self) -> float:
        return self.watch.train_seconds

    @property
    def trained_images(self) -> int:
        return self.watch.trained_images


class _ChannelsLast(pl.Callback):
    """Converts the weights to channels_last. Convolutions follow the memory format of their weights."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type == "cpu" and breaks_in_channels_last(pl_module):
            return
        pl_module.to(memory_format=torch.channels_last)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.to(memory_format=torch.contiguous_format)


def breaks_in_channels_last(module: nn.Module) -> bool:
    """Whether torch would corrupt memory with this network in channels_last on a CPU.

    In torch 2.13.0 the backward pass of a strided 1x1 convolution in channels_last writes out of bounds where its input
    channels do not fill a vector register, which holds 16 with AVX-512
    (github.com/uxlfoundation/oneDNN/issues/6035). The gradients are wrong, or the process crashes. The shortcuts of a
    ResNet narrower than that are such convolutions.
    """
    return any(
        conv.kernel_size == (1, 1) and max(conv.stride) > 1 and conv.in_channels < 16
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d)
    )


class _Watch(pl.Callback):
    """Records the metrics of each epoch, and the time spent on training without validation."""

    def __init__(self, on_epoch: Callable[[int], None] | None, clock: Callable[[], float]) -> None:
        self._on_epoch, self._clock = on_epoch, clock
        self.history: list[tuple[str, float, int]] = []
        self.train_seconds = 0.0
        self.trained_images = 0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record(trainer, trainer.current_epoch)
        if self._on_epoch is not None:
            self._on_epoch(trainer.current_epoch + 1)
        self._since = self._clock()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record(trainer, trainer.current_epoch)  # the number of epochs, not the index of the last

    def _record(self, trainer: pl.Trainer, epoch: int) -> None:
        """Record the metrics of a finished epoch. It is called one epoch late: Lightning calls callbacks before the
        task logs its training loss."""
        for name, value in trainer.callback_metrics.items():
            self.history.append((name, float(value), epoch))

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained_images += len(batch["index"].reshape(-1)) * trainer.world_size
        if trainer.is_last_batch:  # Lightning validates before it ends the epoch
            pl_module.settle()
            self.train_seconds += self._clock() - self._since


class _FoldProgress(pl.Callback):
    """One progress bar per fold over all its epochs; without a terminal, one line when the fold is done."""

    def __init__(self, title: str, bar: int = 0) -> None:
        self.title, self._line = for_terminal(title), bar
        self._bar: tqdm | None = None
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(
                total=int(trainer.num_training_batches) * (trainer.max_epochs or 1),
                desc=self.title,
                unit="batch",
                position=self._line,
                bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}",
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._state(trainer))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
        elif trainer.is_global_zero:
            seconds = time.perf_counter() - self._since
            print(f"{self.title}: {self._state(trainer)}, {seconds:.0f} s", file=sys.stderr, flush=True)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _state(self, trainer: pl.Trainer) -> str:
        metrics = trainer.callback_metrics
        shown = [f"epoch {trainer.current_epoch + (self._bar is not None)}/{trainer.max_epochs}"]
        shown += [
            f"{label} {float(metrics[key]):.{digits}f}"
            for key, label, digits in (("train_loss", "loss", 3), ("val_accuracy", "val accuracy", 4))
            if key in metrics
        ]
        return ", ".join(shown)
