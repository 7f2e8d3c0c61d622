"""The trunk: one configuration -> one Result.

GeoTIFF chips -> channels -> a chain of stages (k-fold training -> ONNX -> what it costs) -> MLflow.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dxc.config.build import build
from dxc.config.compose import resolved
from dxc.config.names import describe
from dxc.masking import masked
from dxc.pipeline.chain import Bench, chain
from dxc.pipeline.heading import check, heading
from dxc.pipeline.kept import kept_folder, remove_least_used
from dxc.pipeline.result import Result
from dxc.pipeline.stages import Artifact, identities, tags
from dxc.processes import end_with_parent
from dxc.training.build import fit_to_machine, is_first_process, read_chips

if TYPE_CHECKING:
    from dxc.tracking.record import Record


def run(
    cfg: DictConfig,
    out: Path,
    *,
    record: Record | None = None,
    begun: float | None = None,
    after_fold: Callable[[list[float]], None] | None = None,
) -> Result:
    """Train, export and track what `cfg` describes.

    Args:
        cfg: composed by Hydra.
        out: a folder for the run's files.
        record: kept there instead of in an MLflow run (trials of a search).
        begun: with again=true, kept results from this time on serve all the same (seconds since 1970); now, unless
            something that was stopped goes on.
        after_fold: called with the folds' scores so far.

    Raises DxcError for everything that a user can mend. From the moment the configuration is known to be
    sound, whatever goes wrong is recorded in the tracked run too.
    """
    from dxc.hardware.spec import Hardware
    from dxc.tracking import run as tracking

    if multiprocessing.parent_process() is not None or not is_first_process():
        end_with_parent(os.getppid())  # a worker of Hydra's joblib launcher, or one of several devices
    requested = resolved(cfg)
    config = fit_to_machine(requested)
    hardware = Hardware.of(config["hardware"])
    datamodule = build(config["data"], "data", source=build(config["source"], "source"))
    check(config, hardware)
    since = (begun or time.time()) if config["again"] else 0.0

    with (record.opened if record else tracking.start_run)(
        config["tracking"]["uri"], **heading(config, requested), enabled=is_first_process()
    ) as tracked:
        cache = read_chips(datamodule)
        stages = chain(Bench(requested, config, hardware, datamodule, cache, tracked, out, since, after_fold))
        tracked.tag({"dxc.data": cache.data_hash, **tags(stages)})

        design = Artifact()
        for stage, identity in zip(stages, identities(stages), strict=True):
            design = stage.work(design, kept_folder(config["cache_dir"], identity))

    remove_least_used(config["cache_dir"], config["kept_gb"])
    assert design.onnx is not None  # every chain exports
    return Result(
        name=describe(config),
        metrics=dict(design.metrics),
        score=config["score"],
        fold_scores={fold.name: fold.score for fold in design.folds},
        predictions=design.predictions,
        onnx=design.onnx,
        excluded=len(cache.excluded),
        notes=tuple(design.notes),
        predicted_for=design.tags.get("dxc.predicted_for", ""),
        measured_on=design.tags.get("dxc.measured_on", ""),
        run_id=tracked.run_id,
        experiment_id=tracked.experiment_id,
        tracking_uri=masked(tracked.uri),
        study=config["study"],
    )
