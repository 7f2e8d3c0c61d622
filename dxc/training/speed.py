"""Measures how long a training step takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from dxc.config.plan import Plan
from dxc.training.build import build_task, fit_to_machine
from dxc.training.engine import chosen_engine

LEAST_STEPS = 5
MOST_S = 3.0  # of large networks fewer steps are timed: they spread little


def seconds_per_image(plan: Plan, *, at_least_s: float = 1.0) -> tuple[float, float]:
    """Median seconds per image in training and in validation with the engine that will train.

    They are measured on random chips in a few seconds.

    Loading chips and the work of the trainer are not included; they are small in comparison.

    Args:
        plan: any; it is fitted to this machine.
        at_least_s: shortest duration of each of the two measurements, seconds.
    """
    import torch

    from dxc.training.trainer import breaks_in_channels_last

    plan = fit_to_machine(plan)
    engine, graph_device = chosen_engine(plan)
    if engine == "graph":
        from dxc.training.graph_speed import seconds_by_graphs

        return seconds_by_graphs(plan, graph_device, at_least_s=at_least_s)
    on_gpu = plan.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    batch, size = plan.data.batch_size, plan.data.image_size
    task = build_task(plan).to(device)
    model: Any = task.model
    if plan.trainer.channels_last and (on_gpu or not breaks_in_channels_last(model)):
        model = model.to(memory_format=torch.channels_last)
    optimizer = plan.optimizer.build()(model.parameters())
    images = torch.rand(batch, plan.model.in_channels, size, size, device=device)
    labels = torch.ones(batch, dtype=torch.long, device=device)
    batch_of = {"image": images, "label": labels, "boxes": torch.full((batch, 1, 4), 0.5, device=device)}
    precision = str(plan.trainer.precision)
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    mixed = torch.autocast(device.type, dtype, enabled="mixed" in precision)

    def timed(step: Callable[[], object]) -> float:
        seconds: list[float] = []
        while not seconds or (
            (len(seconds) < LEAST_STEPS or sum(seconds) < at_least_s) and sum(seconds) < MOST_S
        ):
            started = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds) / batch  # the first step, which allocates memory, hardly changes it

    def train() -> None:
        optimizer.zero_grad()
        with mixed:
            value = task.batch_loss(model(images), batch_of)
        value.backward()
        optimizer.step()

    def validate() -> None:
        with mixed:
            model.eval()(images)

    training = timed(train)
    with torch.inference_mode():
        return training, timed(validate)
