"""Partial training of a plan, which a search uses to decide whether to go on."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from dxc.config.plan import Plan
from dxc.pipeline.heading import check, heading, record_chips
from dxc.pipeline.kept import kept_folder, remove_least_used
from dxc.pipeline.machine import fitted
from dxc.pipeline.networks import Bench, network_stages
from dxc.pipeline.stages import Artifact, identities, train_identity
from dxc.training.build import read_chips
from dxc.training.crossval import engines_of

if TYPE_CHECKING:
    from dxc.tracking.record import Record


def train_part(
    plan: Plan,
    record: Record,
    *,
    folds: int,
    epochs: int,
    begun: float | None = None,
    gpu: int | None = None,
) -> list[float]:
    """Scores of the first `folds` folds after `epochs` epochs each: a first look at a design.

    Folds are kept under the identity of their own train stage. That of all the epochs is run()'s: such folds are not
    trained again there.

    Args:
        plan: as requested.
        record: what is found is written there.
        folds: how many are trained.
        epochs: of each.
        begun: see run().
        gpu: see run().
    """
    requested, plan = plan, fitted(plan, gpu=gpu)
    check(plan)
    datamodule = plan.data.build(source=plan.source.build())
    with record.opened(plan.tracking.uri, **heading(plan, requested)) as tracked:
        cache = read_chips(datamodule)
        record_chips(tracked, requested, cache.data_hash)
        tracked.tag({"dxc.base": train_identity(requested, cache.data_hash)})
        bench = Bench(
            requested.with_trainer(max_epochs=epochs),
            plan.with_trainer(max_epochs=epochs),
            datamodule,
            cache,
            tracked,
            record.folder,
            since=(begun or time.time()) if plan.again else 0.0,
            count=folds,
        )
        design = Artifact()
        stages = network_stages(bench)
        for stage, identity in zip(stages, identities(stages), strict=True):
            design = stage.work(design, kept_folder(plan.cache_dir, identity))
        scores = [fold.score for fold in design.folds]
        seconds = sum(fold.seconds for fold in design.folds)
        tracked.tag({"dxc.engine": engines_of(design.folds)})
        tracked.log({"fold_score": statistics.mean(scores), "fit_seconds": seconds})
    remove_least_used(plan.cache_dir, plan.kept_gb)
    return scores
