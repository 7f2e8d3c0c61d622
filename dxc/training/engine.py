"""Which engine trains a plan: graph (one CUDA graph a step, images on the device, folds side by side) or eager.

eager is Lightning's own loop on batches of a DataLoader. It trains everything, everywhere. graph needs one CUDA device
and a step that is the same every time. Both see the same batches in the same order, so their accuracies agree as those
of two seeds do.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from dxc.config.plan import Plan
from dxc.text import counted
from dxc.training.build import is_first_process

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

EngineName = Literal["eager", "graph"]

OPTIMIZERS = ("Adam", "AdamW", "SGD")
"""Of torch.optim: their fused steps read the learning rate from the device, so that a schedule reaches a graph."""
SCHEDULERS = ("StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR")
"""Of torch.optim.lr_scheduler: they change nothing but the learning rate, and need nothing but the epoch."""
CALLBACKS = ("EarlyStopping", "Timer")
"""Of Lightning: they do not take part in a step."""
PRECISIONS = ("32-true", "bf16-mixed")
OPTIONS = frozenset(
    {
        "_target_", "accelerator", "benchmark", "callbacks", "channels_last", "deterministic", "devices", "engine",
        "max_epochs", "max_time", "min_epochs", "precision", "progress",
    }
)  # fmt: skip
"""Keys of the section trainer that the graph engine knows. Each further option of pl.Trainer may change a step."""


def chosen_engine(plan: Plan) -> tuple[EngineName, torch.device]:
    """The engine that trains a plan here, and the device of the graph engine.

    Where that is eager although a CUDA device is there, or although trainer.engine=graph asks for graphs, one line of
    the log says why.

    Args:
        plan: fitted to this machine.
    """
    import torch

    asked = plan.trainer.engine
    if asked == "eager" or (asked == "auto" and not torch.cuda.is_available()):
        return "eager", torch.device("cpu")
    trainer = plan.trainer.build()
    device: torch.device = trainer.strategy.root_device
    if asked == "auto" and device.type != "cuda":
        return "eager", device
    if trainer.world_size > 1:
        reason = f"it trains on {trainer.world_size} devices"
    elif device.type != "cuda":
        reason = f"it needs a CUDA device, and this training is on {device.type}"
    else:
        reason = why_eager(plan, str(trainer.precision))
    if not reason:
        return "graph", device
    if is_first_process():
        log.info("trainer.engine: eager, not graph, because %s", reason)
    return "eager", device


def why_eager(plan: Plan, precision: str) -> str:
    """What of a plan the graph engine cannot train on one CUDA device; '' where it can.

    Args:
        plan: any.
        precision: in Lightning's words, such as bf16-mixed.
    """
    if not plan.trainer.max_epochs:
        return "there is nothing to train"
    if isinstance(plan.data.size, str):
        return f"data.size={plan.data.size}: a graph needs images of one size"
    name = plan.optimizer.target.rpartition(".")[2]
    if name not in OPTIMIZERS:
        return f"of the optimizers it knows {_listed(OPTIMIZERS)}, not {name}"
    if name == "SGD" and plan.optimizer.argument("dampening"):
        return "optimizer.dampening treats the first step differently"
    if plan.optimizer.argument("differentiable"):
        return "optimizer.differentiable is not for graphs"
    if plan.scheduler is not None:
        name = plan.scheduler.target.rpartition(".")[2]
        if name not in SCHEDULERS:
            return f"of the schedules it knows {_listed(SCHEDULERS)}, not {name}"
    if precision not in PRECISIONS:
        scaled = " (its losses are scaled, which a graph does not do)" if precision == "16-mixed" else ""
        return f"of the precisions it knows {_listed(PRECISIONS)}, not {precision}{scaled}"
    for each in plan.trainer.argument("callbacks") or ():
        if (name := str(each["_target_"]).rpartition(".")[2]) not in CALLBACKS:
            return f"of the callbacks it knows {_listed(CALLBACKS)}, not {name}"
    if others := sorted(plan.trainer.values().keys() - OPTIONS):
        return f"it does not know the {counted(len(others), 'option')} {_listed(others)} of trainer"
    return ""


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)
