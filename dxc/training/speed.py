"""Measures how long a training step takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dxc.config.build import build
from dxc.config.compose import image_size
from dxc.training.build import build_task, fit_to_machine

if TYPE_CHECKING:
    pass


LEAST_STEPS = 5
MOST_S = 3.0  # of large networks fewer steps are timed: they spread little


def seconds_per_image(config: dict[str, Any], *, at_least_s: float = 1.0) -> tuple[float, float]:
    """Median seconds per image in training and in validation, measured on random chips in a few seconds.

    Loading chips and the work of the trainer are not included; they are small in comparison.
    """
    import torch

    from dxc.training.trainer import breaks_in_channels_last

    config = fit_to_machine(config)
    on_gpu = config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    batch, size = config["data"]["batch_size"], image_size(config["data"]["size"])
    task = build_task(config).to(device)
    model: Any = task.model
    if config["trainer"]["channels_last"] and (on_gpu or not breaks_in_channels_last(model)):
        model = model.to(memory_format=torch.channels_last)
    optimizer = build(config["optimizer"], "optimizer")(model.parameters())
    images = torch.rand(batch, config["model"]["in_channels"], size, size, device=device)
    labels = torch.ones(batch, dtype=torch.long, device=device)
    batch_of = {"image": images, "label": labels, "boxes": torch.full((batch, 1, 4), 0.5, device=device)}
    precision = str(config["trainer"]["precision"])
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
