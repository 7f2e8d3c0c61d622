"""The trunk: one Plan -> one Result.

GeoTIFF chips -> channels -> a chain of stages (k-fold training -> compression -> ONNX -> what it costs) -> MLflow.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.config.plan import Plan
from dxc.masking import masked
from dxc.pipeline.chain import chain
from dxc.pipeline.heading import check, heading, record_chips
from dxc.pipeline.kept import kept_folder, remove_least_used
from dxc.pipeline.machine import fitted
from dxc.pipeline.networks import Bench
from dxc.pipeline.result import Result
from dxc.pipeline.stages import Artifact, identities, tags
from dxc.processes import end_with_parent
from dxc.training.build import is_first_process, read_chips

if TYPE_CHECKING:
    from dxc.tracking.record import Record


def run(
    plan: Plan,
    out: Path,
    *,
    record: Record | None = None,
    begun: float | None = None,
    after_fold: Callable[[list[float]], None] | None = None,
    gpu: int | None = None,
) -> Result:
    """Train, export, cost and track one design.

    Args:
        plan: as requested.
        out: a folder for the run's files.
        record: kept there instead of in an MLflow run (trials of a search). The sheet of chips is left out then: the
            study has it.
        begun: with again=true, kept results from this time on serve all the same (seconds since 1970); now, unless
            something that was stopped goes on.
        after_fold: called with the folds' scores so far.
        gpu: number of the GPU that trains, where the plan asks for one device; None: any.

    Raises DxcError for everything that a user can mend. From the moment the plan is known to be
    sound, whatever goes wrong is recorded in the tracked run too.
    """
    from dxc.tracking import run as tracking

    if multiprocessing.parent_process() is not None or not is_first_process():
        end_with_parent(os.getppid())  # a worker of Hydra's joblib launcher, or one of several devices
    requested, plan = plan, fitted(plan, gpu=gpu)
    datamodule = plan.data.build(source=plan.source.build())
    check(plan)
    since = (begun or time.time()) if plan.again else 0.0

    with (record.opened if record else tracking.start_run)(
        plan.tracking.uri, **heading(plan, requested), enabled=is_first_process()
    ) as tracked:
        cache = read_chips(datamodule)
        stages = chain(
            Bench(
                requested,
                plan,
                datamodule,
                cache,
                tracked,
                out,
                since,
                draw_chips=record is None,
                after_fold=after_fold,
            )
        )
        record_chips(tracked, requested, cache.data_hash)
        tracked.tag(tags(stages))

        design = Artifact()
        for stage, identity in zip(stages, identities(stages), strict=True):
            design = stage.work(design, kept_folder(plan.cache_dir, identity))

    remove_least_used(plan.cache_dir, plan.kept_gb)
    assert design.onnx is not None  # every chain exports
    return Result(
        name=plan.name,
        metrics=dict(design.metrics),
        score=plan.score,
        fold_scores={fold.name: fold.score for fold in design.folds},
        predictions=design.predictions,
        onnx=design.onnx,
        excluded=len(cache.excluded),
        notes=tuple(design.notes),
        source=datamodule.source.title,
        predicted_for=design.tags.get("dxc.predicted_for", ""),
        measured_on=design.tags.get("dxc.measured_on", ""),
        run_id=tracked.run_id,
        experiment_id=tracked.experiment_id,
        tracking_uri=masked(tracked.uri),
        study=plan.study,
    )
