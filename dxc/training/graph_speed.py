"""Measures how long a training step of the graph engine takes: with the folds side by side, as they are trained."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dxc.config.plan import Plan
from dxc.data.augment import planned_augmentation
from dxc.training.build import build_task
from dxc.training.graph import VALIDATED_AT_ONCE, GraphSteps, autocast_dtype, steps_at_once
from dxc.training.on_device import DeviceChips

LEAST_ROUNDS = 3
MOST_S = 3.0  # of large networks fewer rounds are timed: they spread little


class RandomChips:
    """Random chips of a plan's shape, in place of those on the disk."""

    def __init__(self, plan: Plan, count: int) -> None:
        self._shape = (plan.model.in_channels, plan.data.image_size, plan.data.image_size)
        self.has_boxes = plan.data.boxes
        self.labels = np.ones(count, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).random((len(indices), *self._shape), np.float32)

    def boxes(self, indices: np.ndarray) -> np.ndarray:
        return np.full((len(indices), 1, 4), 0.5, np.float32)


def seconds_by_graphs(
    plan: Plan, device: torch.device, *, model: nn.Module | None = None, at_least_s: float = 1.0
) -> tuple[float, float]:
    """Median seconds per image in training and in validation.

    Args:
        plan: fitted to this machine; why_eager() of it is ''.
        device: CUDA; on another one the steps run one by one.
        model: the network, such as a pruned one; None: the plan's.
        at_least_s: shortest duration of each of the two measurements, seconds.
    """
    data, batch = plan.data, plan.data.batch_size
    folds = int(data.argument("folds") or 1) if data.argument("split") == "kfold" else 1
    dtype = autocast_dtype(str(plan.trainer.precision))
    channels_last = plan.trainer.channels_last and device.type == "cuda"
    count = max(batch, VALIDATED_AT_ONCE)
    chips = DeviceChips(
        RandomChips(plan, count), device, dtype=dtype or torch.float32, channels_last=channels_last
    )
    index = np.resize(np.arange(count), (steps_at_once(batch), batch))
    trained: list[tuple[GraphSteps, torch.cuda.Stream | None]] = []
    try:
        for _ in range(folds):
            steps = GraphSteps(
                chips, {batch: len(index)}, autocast=dtype, augment=planned_augmentation(plan.data)
            )
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            try:
                with torch.cuda.stream(stream):
                    task = build_task(plan, copy.deepcopy(model)).to(device)
                    if channels_last:
                        task = task.to(memory_format=torch.channels_last)
                    optimizer = plan.optimizer.build()(task.parameters())
                    steps.prepare(optimizer)
                    steps.begin(task, optimizer)
            except torch.cuda.OutOfMemoryError:
                if not trained:
                    raise
                break  # so many are trained at once
            trained.append((steps, stream))

        def train() -> None:
            for steps, stream in trained:
                with torch.cuda.stream(stream):
                    steps.run(index)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        def validate() -> None:
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None),
            ):
                task.model.eval()(chips.batch(np.arange(count))["image"])
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        training = _median_s(train, at_least_s) / (len(trained) * index.size)
        return training, _median_s(validate, at_least_s) / count
    finally:
        for steps, _ in trained:
            steps.close()


def _median_s(work: Callable[[], None], at_least_s: float) -> float:
    """Median seconds of a piece of work. The first time, which may allocate memory, does not count."""
    work()
    seconds: list[float] = []
    while not seconds or (
        (len(seconds) < LEAST_ROUNDS or sum(seconds) < at_least_s) and sum(seconds) < MOST_S
    ):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
