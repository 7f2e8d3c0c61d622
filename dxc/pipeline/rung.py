"""Partial training of a configuration, which a search uses to decide whether to go on."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dxc.config.build import build
from dxc.config.compose import resolved
from dxc.pipeline.heading import check, heading
from dxc.pipeline.kept import kept_folder, remove_least_used
from dxc.pipeline.stages import train_identity
from dxc.training.build import fit_to_machine, read_chips
from dxc.training.crossval import trained_folds

if TYPE_CHECKING:
    from dxc.tracking.record import Record


def train_part(
    cfg: DictConfig, record: Record, *, folds: int, epochs: int, begun: float | None = None
) -> list[float]:
    """Scores of the first `folds` folds after `epochs` epochs each: a first look at a configuration.

    Folds are kept under the identity of their own train stage. That of all the epochs is run()'s: such folds are not
    trained again there.

    Args:
        cfg: composed by Hydra.
        record: what is found is written there.
        folds: how many are trained.
        epochs: of each.
        begun: see run().
    """
    from dxc.hardware.spec import Hardware, device_name

    requested = resolved(cfg)
    config = fit_to_machine(requested)
    check(config, Hardware.of(config["hardware"]))
    datamodule = build(config["data"], "data", source=build(config["source"], "source"))
    with record.opened(config["tracking"]["uri"], **heading(config, requested)) as tracked:
        cache = read_chips(datamodule)
        tracked.tag({"dxc.data": cache.data_hash, "dxc.base": train_identity(requested, cache.data_hash)})
        trained = trained_folds(
            {**config, "trainer": {**config["trainer"], "max_epochs": epochs}},
            datamodule,
            kept_folder(config["cache_dir"], train_identity(requested, cache.data_hash, epochs=epochs)),
            device=device_name(config["trainer"]["accelerator"]),
            count=folds,
            since=(begun or time.time()) if config["again"] else 0.0,
        )
        scores = [fold.score for fold in trained]
        mean = statistics.mean(scores)
        tracked.log({"fold_score": mean}, [(f"part/{config['score']}", mean, folds * epochs)])
    remove_least_used(config["cache_dir"], config["kept_gb"])
    return scores
