"""The stages that give a network a fold: train -> [prune -> finetune].

A search's first look runs them too, for fewer folds and epochs; see dxc.pipeline.rung.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.config.identity import canonical
from dxc.config.plan import Plan
from dxc.pipeline.kept import alone_in
from dxc.pipeline.stages import FINETUNE, PRUNE, TRAIN, Artifact, Stage, network_sections
from dxc.training.build import is_first_process
from dxc.training.crossval import (
    ROOMS,
    KeptFolds,
    TrainedFold,
    kept_networks,
    trained_folds,
    validated_fold,
)

if TYPE_CHECKING:
    from torch import nn

    from dxc.data.datamodule import ImageDataModule
    from dxc.data.images import Images
    from dxc.tracking.run import Sink

log = logging.getLogger(__name__)

PRUNING_ROOMS = (*ROOMS, "compress")
"""Packages of dxc that determine the numbers of a pruned network."""


@dataclass(frozen=True)
class Bench:
    """What the stages of one run have in common."""

    requested: Plan
    """The plan as it was given. Identities are of this one, on every machine."""
    plan: Plan
    """The same, fitted to this machine."""
    datamodule: ImageDataModule
    cache: Images
    tracked: Sink
    out: Path
    """The folder for files of the run, which become its artifacts."""
    since: float = 0.0
    """Results that were kept before this time (seconds since 1970) are computed anew."""
    draw_chips: bool = True
    """Whether the run has a sheet of its chips."""
    after_fold: Callable[[list[float]], None] | None = None
    """Called with the scores of the folds so far."""
    count: int | None = None
    """Only this many folds, from the first; None: all."""


Work = Callable[[Bench, Sequence[TrainedFold], Path], list[TrainedFold]]


def network_stages(bench: Bench) -> list[Stage]:
    """The stages of a run up to its networks, in their order."""
    sections = network_sections(canonical(bench.requested.values()), bench.cache.data_hash)
    stages = []
    for number, (name, section) in enumerate(sections, 1):
        work = partial(prune, fraction=section["fraction"]) if name == PRUNE else WORKS[name]
        # only the last networks are the design's
        its = bench if number == len(sections) else replace(bench, after_fold=None)
        stages.append(Stage(name, section, partial(_done, work, its)))
    return stages


def _done(
    work: Work,
    bench: Bench,
    artifact: Artifact,
    kept: Path,
) -> Artifact:
    """Do one of these stages. Runs that need the same networks at the same time wait for the one that began first."""
    with alone_in(kept) if is_first_process() else contextlib.nullcontext():
        folds = work(bench, artifact.folds, kept)
    if not is_first_process():
        sys.exit()  # one of several devices: its share is done, the first process goes on
    best = max(folds, key=lambda fold: fold.score)
    return replace(artifact, folds=folds, network=best.model, fold=best.name)


def train(bench: Bench, before: Sequence[TrainedFold], kept: Path) -> list[TrainedFold]:
    """Train a network a fold, or take it from the folder `kept`."""
    return trained_folds(
        bench.plan,
        bench.datamodule,
        kept_networks(bench.plan, kept, since=bench.since),
        device=_device(bench.plan),
        count=bench.count,
        after_fold=bench.after_fold,
    )


def prune(bench: Bench, before: Sequence[TrainedFold], kept: Path, *, fraction: float) -> list[TrainedFold]:
    """Remove channels from each fold's network, and judge what is left.

    Args:
        bench: of the run.
        before: folds of the stage before.
        kept: the folder of this stage.
        fraction: of the channels before any pruning; so many are gone then.
    """
    from dxc.compress import prune as pruning

    align, size = bench.plan.compress.align, bench.plan.data.image_size
    unpruned = bench.plan.model.build()
    kept_folds = _kept_pruned(bench, kept)
    folds: list[TrainedFold] = []
    for start, fold in zip(before, bench.datamodule.folds, strict=False):
        pruned = kept_folds.read(start.name)
        if pruned is None or pruned.trained_at < start.trained_at:
            smaller = pruning.pruned(start.model, fraction, align=align, image_size=size, of=unpruned)
            pruned = validated_fold(bench.plan, bench.datamodule, fold, start, smaller)
            kept_folds.keep(pruned)
            log.info("%s: pruned by %g: accuracy %.4f", fold.name, fraction, pruned.accuracy)
        folds.append(pruned)
        if bench.after_fold is not None:
            bench.after_fold([each.score for each in folds])
    return folds


def finetune(bench: Bench, before: Sequence[TrainedFold], kept: Path) -> list[TrainedFold]:
    """Train the pruned networks on."""
    return trained_folds(
        bench.plan.for_finetuning(),
        bench.datamodule,
        _kept_pruned(bench, kept),
        device=_device(bench.plan),
        count=bench.count,
        starts=before,
        after_fold=bench.after_fold,
    )


WORKS: dict[str, Work] = {TRAIN: train, FINETUNE: finetune}


def _kept_pruned(bench: Bench, folder: Path) -> KeptFolds:
    from dxc.compress.prune import shaped_like

    def build(weights: Mapping[str, Any]) -> nn.Module:
        return shaped_like(bench.plan.model.build(), weights)

    return KeptFolds(folder, build, rooms=PRUNING_ROOMS, since=bench.since)


def _device(plan: Plan) -> str:
    from dxc.hardware.spec import device_name

    return device_name(plan.trainer.accelerator)
