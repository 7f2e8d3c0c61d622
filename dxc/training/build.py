"""Builds the task of a configuration and reads the chips it is trained on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dxc.config.build import build
from dxc.errors import ConfigError
from dxc.models.registry import model_name, network

if TYPE_CHECKING:
    import torch

    from dxc.data.cache import ChipCache
    from dxc.data.datamodule import ChipDataModule
    from dxc.training.task import Task

log = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Whether this is the main process. Lightning starts further processes where trainer.devices > 1."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def check_task(config: dict[str, Any], task: Task) -> None:
    """Raise ConfigError where network, task, boxes and score do not go together.

    Args:
        config: a resolved configuration.
        task: the built task.
    """
    entry, name = network(config["model"]), model_name(config["model"])
    if entry.outputs != task.answers:
        raise ConfigError(
            f"task: {type(task).__name__} judges {' and '.join(task.answers)}, and {name} answers with "
            f"{' and '.join(entry.outputs)}; leave task= out, the model chooses it (task={entry.task})"
        )
    boxes = "box" in task.answers
    if config["boxes"] != boxes or config["data"]["boxes"] != boxes:
        raise ConfigError(
            f"boxes={str(not boxes).lower()} does not go with {name}; leave it out, it follows from the task"
        )
    if config["score"] not in task.scores:
        raise ConfigError(
            f"score={config['score']} is not a score of a fold; choose one of {', '.join(task.scores)}"
        )


def build_task(config: dict[str, Any], model: torch.nn.Module | None = None) -> Task:
    """Build the task: a network with its loss, metrics and optimizer.

    Args:
        config: a resolved configuration.
        model: the network; None builds a new one.
    """
    return build(
        config["task"],
        "task",
        model=model or build(config["model"], "model"),
        optimizer=build(config["optimizer"], "optimizer"),
        scheduler=None if config["scheduler"] is None else build(config["scheduler"], "scheduler"),
    )


def fit_to_machine(config: dict[str, Any]) -> dict[str, Any]:
    """Resolve accelerator=auto. Without a GPU it is the CPU in full precision, because mixed precision is slower
    there."""
    import torch

    trainer = config["trainer"]
    if trainer["accelerator"] != "auto" or torch.cuda.is_available():
        return config
    log.info(
        "no GPU here: hardware=%s trains on the processor, in full precision", config["hardware"]["name"]
    )
    return {**config, "trainer": {**trainer, "accelerator": "cpu", "precision": "32-true"}}


def read_chips(datamodule: ChipDataModule) -> ChipCache:
    """Prepare and read the chips. The log says how many were found and which were excluded."""
    datamodule.prepare_data()
    cache = datamodule.cache
    if cache is None:  # prepare_data opens it or raises
        raise RuntimeError("the datamodule has no chips after prepare_data()")
    regions = ", ".join(sorted(set(cache.regions)))
    log.info("%d chips (%d with a crossing) from %s", len(cache), cache.labels.sum(), regions)
    if cache.excluded:
        log.warning("%d files were left out:", len(cache.excluded))
        for chip in cache.excluded:
            log.warning("  %s: %s", chip.path, chip.reason)
    if cache.notes:
        log.warning("%d remarks on annotations:", len(cache.notes))
        for note in cache.notes:
            log.warning("  %s: %s", note.path, note.text)
    return cache
