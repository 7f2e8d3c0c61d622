"""Partial training of a configuration, which a search uses to decide whether to go on."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dxc.config.build import build
from dxc.config.compose import resolved
from dxc.pipeline.heading import check, heading
from dxc.training.build import fit_to_machine, read_chips
from dxc.training.crossval import trained_fold

if TYPE_CHECKING:
    from dxc.tracking.record import Record


def train_part(cfg: DictConfig, record: Record, *, folds: int, epochs: int, keep: Path) -> list[float]:
    """Scores of the first `folds` folds after `epochs` epochs each: a first look at a configuration.

    Trained folds are kept in the folder `keep`, as in run(). Folds that were trained for all epochs are reused.
    """
    from dxc.hardware.spec import Hardware

    requested = resolved(cfg)
    config = fit_to_machine(requested)
    check(config, Hardware.of(config["hardware"]))
    shorter = {**config, "trainer": {**config["trainer"], "max_epochs": epochs}}
    datamodule = build(config["data"], "data", source=build(config["source"], "source"))
    with record.opened(config["tracking"]["uri"], **heading(config, requested)) as tracked:
        cache = read_chips(datamodule)
        tracked.tag({"dxc.data": cache.data_hash})
        scores: list[float] = []
        for number, fold in enumerate(datamodule.folds[:folds]):
            scores.append(trained_fold(shorter, datamodule, fold, number, keep).score)
        mean = statistics.mean(scores)
        tracked.log({"fold_score": mean}, [(f"part/{config['score']}", mean, folds * epochs)])
    return scores
