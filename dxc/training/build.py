"""Builds the task of a plan and reads the chips it is trained on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.config.plan import Plan
from dxc.data.layout import CLASS_NAMES
from dxc.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from dxc.data.datamodule import ImageDataModule
    from dxc.data.images import Images
    from dxc.training.task import Task

log = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Whether this is the main process. Lightning starts further processes where trainer.devices > 1."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def check_task(plan: Plan, task: Task) -> None:
    """Raise ConfigError where network, task, boxes and score do not go together.

    Args:
        plan: with the section it was built from.
        task: the built task.
    """
    entry, name = plan.model.entry, plan.model.name
    if entry.outputs != task.answers:
        raise ConfigError(
            f"task: {type(task).__name__} judges {' and '.join(task.answers)}, and {name} answers with "
            f"{' and '.join(entry.outputs)}; leave task= out, the model chooses it (task={entry.task})"
        )
    scores = plan.model.argument("num_classes")
    if scores is not None and scores != len(plan.data.classes):
        raise ConfigError(
            f"model.num_classes={scores} does not go with the {len(plan.data.classes)} classes of "
            f"data={plan.data.name}; leave it out, it follows from the data"
        )
    if "presence" in task.answers and len(plan.data.classes) != 2:
        raise ConfigError(f"{name} finds crossings in chips, and data={plan.data.name} has no crossings")
    boxes = "box" in task.answers
    if plan.boxes != boxes or plan.data.boxes != boxes:
        raise ConfigError(
            f"boxes={str(not boxes).lower()} does not go with {name}; leave it out, it follows from the task"
        )
    if plan.score not in task.scores:
        raise ConfigError(
            f"score={plan.score} is not a score of a fold; choose one of {', '.join(task.scores)}"
        )


def build_task(plan: Plan, model: torch.nn.Module | None = None) -> Task:
    """Build the task: a network with its loss, metrics and optimizer.

    Args:
        plan: its model, task, optimizer and scheduler are built.
        model: the network; None builds a new one, with the weights of plan.base if there is one.

    Raises:
        ConfigError: what a constructor refuses, or the weights of another network.
    """
    if model is None:
        model = plan.model.build()
        if plan.base is not None:
            from dxc.models.weights import load_weights

            load_weights(model, Path(plan.base))
    return plan.task.build(
        model=model,
        optimizer=plan.optimizer.build(),
        scheduler=plan.scheduler and plan.scheduler.build(),
    )


def fit_to_machine(plan: Plan, *, gpu: int | None = None) -> Plan:
    """Resolve accelerator=auto and choose the GPU.

    Without a GPU, auto is the processor. Half precision is trainer.precision=auto there, because few processors gain by
    it (see dxc.training.precision).

    Args:
        plan: as requested.
        gpu: number of the GPU for a plan that asks for one device; None leaves the choice to Lightning.
    """
    import torch

    trainer = plan.trainer
    if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return plan if gpu is None or trainer.devices != 1 else plan.with_trainer(devices=[gpu])
    if trainer.accelerator != "auto":
        return plan
    log.info("no GPU here: hardware=%s trains on the processor", plan.hardware.name)
    half = "16" in str(trainer.precision)
    return plan.with_trainer(accelerator="cpu", precision="auto" if half else trainer.precision)


def read_chips(datamodule: ImageDataModule) -> Images:
    """Prepare and read the images. The log says how many were found and which were excluded."""
    datamodule.prepare_data()
    cache = datamodule.cache
    if cache is None:  # prepare_data opens it or raises
        raise RuntimeError("the datamodule has no images after prepare_data()")
    regions = ", ".join(sorted(set(cache.regions)))
    if cache.classes == CLASS_NAMES:
        log.info("%d chips (%d with a crossing) from %s", len(cache), cache.labels.sum(), regions)
    else:
        log.info("%d %ss of %d classes from %s", len(cache), cache.unit, len(cache.classes), regions)
    if cache.excluded:
        log.warning("%d files were left out:", len(cache.excluded))
        for chip in cache.excluded:
            log.warning("  %s: %s", chip.path, chip.reason)
    if cache.notes:
        log.warning("%d remarks on annotations:", len(cache.notes))
        for note in cache.notes:
            log.warning("  %s: %s", note.path, note.text)
    return cache
