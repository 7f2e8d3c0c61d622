"""Measures how long a training step takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dxc.config.plan import Plan
from dxc.data.augment import planned_augmentation
from dxc.training.build import build_task, fit_to_machine
from dxc.training.engine import chosen_engine

if TYPE_CHECKING:
    from torch import nn

MOST_STEPS = 20
STEP_S = 0.3  # of a step that takes longer, fewer images are timed: the time is nearly proportional to them
FEWEST_IMAGES = 2  # batch normalisation refuses a single value per channel


def seconds_per_image(
    plan: Plan, *, model: nn.Module | None = None, budget_s: float = 0.6
) -> tuple[float, float]:
    """Median seconds per image in training and in validation with the engine that will train.

    They are measured on random chips in a few seconds. Augmentation is included.

    Loading chips and the work of the trainer are not included; they are small in comparison.

    Args:
        plan: any; it is fitted to this machine.
        model: the network, such as a pruned one; None: the plan's.
        budget_s: duration of each of the two measurements, seconds, after a step that allocates memory. A step of
            FEWEST_IMAGES images may take longer.
    """
    import torch

    from dxc.training.trainer import breaks_in_channels_last

    plan = fit_to_machine(plan)
    engine, graph_device = chosen_engine(plan)
    if engine == "graph":
        from dxc.training.graph_speed import seconds_by_graphs

        return seconds_by_graphs(plan, graph_device, model=model, at_least_s=budget_s)
    on_gpu = plan.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    batch, size = plan.data.batch_size, plan.data.image_size
    task = build_task(plan, model).to(device)
    network: Any = task.model
    if plan.trainer.channels_last and (on_gpu or not breaks_in_channels_last(network)):
        network = network.to(memory_format=torch.channels_last)
    optimizer = plan.optimizer.build()(network.parameters())
    augment, drawing = planned_augmentation(plan.data), torch.Generator().manual_seed(0)
    images = torch.rand(batch, plan.model.in_channels, size, size, device=device)
    labels = torch.ones(batch, dtype=torch.long, device=device)
    boxes = torch.full((batch, 1, 4), 0.5, device=device)
    precision = str(plan.trainer.precision)
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    mixed = torch.autocast(device.type, dtype, enabled="mixed" in precision)

    def once(step: Callable[[int], object], count: int) -> float:
        started = time.perf_counter()
        step(count)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def timed(step: Callable[[int], object]) -> float:
        few = min(batch, FEWEST_IMAGES)
        first_s = once(step, few)  # allocates memory
        each_s = (first_s if first_s > STEP_S else once(step, few)) / few
        count = max(few, min(batch, int(STEP_S / each_s)))
        seconds: list[float] = []
        while not seconds or (sum(seconds) < budget_s and len(seconds) < MOST_STEPS):
            seconds.append(once(step, count))
        return statistics.median(seconds) / count

    def train(count: int) -> None:
        optimizer.zero_grad()
        batch = images[:count]
        if augment is not None:
            batch = augment.apply(batch, augment.draw(count, drawing))
        with mixed:
            value = task.batch_loss(
                network(batch),
                {"image": batch, "label": labels[:count], "boxes": boxes[:count]},
            )
        value.backward()
        optimizer.step()

    def validate(count: int) -> None:
        with mixed:
            network.eval()(images[:count])

    training = timed(train)
    with torch.inference_mode():
        return training, timed(validate)
