"""Today's chain: train -> export -> cost. A further stage is one more function here, and one more line in chain()."""

from __future__ import annotations

import logging
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dxc.config.identity import canonical
from dxc.config.plan import Plan
from dxc.evaluation.few_chips import notes_on_few_chips
from dxc.files import write_atomically
from dxc.masking import masked_tree
from dxc.pipeline.stages import TRAIN, Artifact, Stage, train_section
from dxc.report.run_figures import draw_efficiency, draw_run
from dxc.training.build import build_task, is_first_process
from dxc.training.crossval import TrainedFold, trained_folds

if TYPE_CHECKING:
    import pandas as pd

    from dxc.data.cache import ChipCache
    from dxc.data.datamodule import ChipDataModule
    from dxc.deploy.metadata import Metadata
    from dxc.metrics import Point
    from dxc.tracking.run import Sink
    from dxc.training.task import Task

log = logging.getLogger(__name__)

FIGURES = "figures"
CHECKPOINTS = "checkpoints"
COSTS = "costs"


@dataclass(frozen=True)
class Bench:
    """What the stages of one run have in common."""

    requested: Plan
    """The plan as it was given. Identities are of this one, on every machine."""
    plan: Plan
    """The same, fitted to this machine."""
    datamodule: ChipDataModule
    cache: ChipCache
    tracked: Sink
    out: Path
    """The folder for files of the run, which become its artifacts."""
    since: float = 0.0
    """Results that were kept before this time (seconds since 1970) are computed anew."""
    draw_chips: bool = True
    """Whether the run has a sheet of its chips."""
    after_fold: Callable[[list[float]], None] | None = None
    """Called with the scores of the folds so far."""


def chain(bench: Bench) -> list[Stage]:
    """The stages of a run, in their order."""
    return [
        Stage(TRAIN, train_section(bench.requested, bench.cache.data_hash), partial(train, bench)),
        Stage("export", {}, partial(export, bench)),
        Stage("cost", canonical(bench.requested.values())["hardware"], partial(cost, bench)),
    ]


def train(bench: Bench, artifact: Artifact, kept: Path) -> Artifact:
    """Train a network a fold, or take it from the folder `kept`; the best one goes on."""
    from dxc.hardware.spec import device_name

    folds = trained_folds(
        bench.plan,
        bench.datamodule,
        kept,
        device=device_name(bench.plan.trainer.accelerator),
        since=bench.since,
        after_fold=bench.after_fold,
    )
    if not is_first_process():
        sys.exit()  # one of several devices: its share is done, the first process goes on

    bench.out.mkdir(parents=True, exist_ok=True)
    predictions = _out_of_fold(folds, bench.cache)
    best = max(folds, key=lambda fold: fold.score)
    metrics = {
        **_metrics(folds, predictions, bench.cache, build_task(bench.plan, best.model)),
        "fold_score": statistics.mean(fold.score for fold in folds),
        "fit_seconds": sum(fold.seconds for fold in folds),  # of kept folds too
        "images_per_second": sum(f.trained_images for f in folds) / sum(f.train_seconds for f in folds),
    }
    bench.tracked.log(metrics, _curves(folds, bench.plan.score))
    bench.tracked.tag({"device": " and ".join(sorted({fold.device for fold in folds}))})
    _write_files(bench, predictions, folds)
    notes = [
        *notes_on_few_chips(predictions, bench.cache.groups[predictions.index]),
        *draw_run(
            bench.plan,
            bench.datamodule.source.noun,
            bench.cache,
            predictions,
            bench.out / FIGURES,
            chips=bench.draw_chips,
        ),
    ]
    return replace(
        artifact,
        folds=folds,
        predictions=predictions,
        network=best.model,
        fold=best.name,
        metrics={**artifact.metrics, **metrics},
        notes=(*artifact.notes, *notes),
    )


def export(bench: Bench, artifact: Artifact, kept: Path) -> Artifact:
    """Write the network as ONNX, and bring all files so far to the tracked run."""
    from dxc.deploy.export import count_macs, count_params, export_any_size, export_onnx

    network: Any = artifact.network
    onnx = bench.out / "model.onnx"
    in_channels, size = len(bench.plan.data.channels), bench.plan.data.image_size
    metadata = _metadata(bench)
    exported = export_onnx(network, onnx, in_channels=in_channels, size=size, metadata=metadata)
    log.info(
        "exported %s: %.2f MB, agrees with torch to %.0e",
        artifact.fold,
        exported.onnx_mb,
        exported.max_relative_error,
    )
    if bench.plan.any_size_file and bench.plan.model.entry.any_size:
        any_size = bench.out / "model_any_size.onnx"
        export_any_size(network, any_size, in_channels=in_channels, metadata=metadata)
    metrics = {
        "onnx_mb": exported.onnx_mb,
        "params": count_params(network),
        "macs": count_macs(network, in_channels=in_channels, size=size),
    }
    bench.tracked.log(metrics)
    bench.tracked.tag({"dxc.exported_fold": artifact.fold})
    bench.tracked.log_files(bench.out)
    if bench.tracked.stored:
        shutil.rmtree(bench.out / CHECKPOINTS, ignore_errors=True)  # MLflow has them: kept twice otherwise
    return replace(artifact, onnx=onnx, metrics={**artifact.metrics, **metrics})


def cost(bench: Bench, artifact: Artifact, kept: Path) -> Artifact:
    """Predict, measure and profile the exported file. It comes last: the training is on record, whatever happens."""
    from dxc.hardware import costs as hardware_costs

    assert artifact.onnx is not None  # the stage before wrote it
    costs = hardware_costs.cost(
        artifact.onnx,
        bench.plan.hardware,
        bench.out / COSTS,
        known=artifact.metrics,
        profile=bench.plan.profile,
        progress=bench.plan.progress,
    )
    notes = draw_efficiency(bench.plan, costs, bench.out / COSTS)
    bench.tracked.log(costs.metrics, costs.curves)
    bench.tracked.tag(costs.tags)
    bench.tracked.log_files(bench.out / COSTS, under=COSTS)
    return replace(
        artifact,
        metrics={**artifact.metrics, **costs.metrics},
        tags={**artifact.tags, **costs.tags},
        notes=(*artifact.notes, *costs.notes, *notes),
    )


def _metadata(bench: Bench) -> Metadata:
    """What the exported file says: how it is fed, as the chips were, and what it came from."""
    from dxc.deploy.metadata import Metadata, dxc_version
    from dxc.tracking.client import git_commit

    recipe = bench.datamodule.recipe
    return Metadata(
        channels=recipe.channels,
        normalise=recipe.normalise,
        repair=recipe.repair,
        photo_bands=bench.cache.photo_bands,
        pixel_m=bench.cache.pixel_m,
        trial=bench.requested.trial,
        data=bench.cache.data_hash,
        version=dxc_version(),
        commit=git_commit(),
    )


def _out_of_fold(folds: Sequence[TrainedFold], cache: ChipCache) -> pd.DataFrame:
    """The validation predictions of all folds in chip order; see Result.predictions."""
    import pandas as pd

    from dxc.evaluation.average_precision import BOX

    parts = []
    for fold in folds:
        index = fold.predictions["index"].numpy()
        columns = {
            "region": [cache.regions[i] for i in index],
            "name": [cache.names[i] for i in index],
            "label": fold.predictions["label"].numpy(),
            "fold": fold.name,
            "probability": fold.predictions["probability"].numpy(),
        }
        if "box" in fold.predictions:
            columns |= dict(zip(BOX, fold.predictions["box"].numpy().T, strict=True))
        parts.append(pd.DataFrame(columns, index=index))
    return pd.concat(parts).sort_index()


def _metrics(
    folds: Sequence[TrainedFold], predictions: pd.DataFrame, cache: ChipCache, task: Task
) -> dict[str, float]:
    """Mean and sample standard deviation of the accuracy over folds, and the metrics of the pooled predictions."""
    from dxc.evaluation.average_precision import TrueBoxes

    accuracies = [fold.accuracy for fold in folds]
    metrics = {"accuracy": statistics.mean(accuracies)}
    if len(accuracies) > 1:  # one fold has no spread: missing, not 0
        metrics["accuracy_std"] = statistics.stdev(accuracies)
    index = predictions.index.to_numpy()
    truth = TrueBoxes(cache.boxes(index), cache.sizes[index]) if cache.has_boxes else None
    return metrics | task.pooled_metrics(predictions, truth)


def _curves(folds: Sequence[TrainedFold], score: str) -> list[Point]:
    """The curves that a run is compared by; curves.csv has all of them.

    These are the mean over folds of each metric of an epoch, and of each fold the accuracy and the score.

    Args:
        folds: trained.
        score: the metric that they are judged by.
    """
    values: dict[tuple[str, int], list[float]] = {}
    for name, value, epoch in (point for fold in folds for point in fold.curves):
        values.setdefault((name.partition(".")[0], epoch), []).append(value)
    means = [
        (name, statistics.fmean(each), epoch)
        for (name, epoch), each in values.items()
        if len(each) == len(folds)
    ]
    if len(folds) == 1:  # the mean is the fold's
        return means
    own = ("val_accuracy.", f"val_{score}.")
    return means + [point for fold in folds for point in fold.curves if point[0].startswith(own)]


def _write_files(bench: Bench, predictions: pd.DataFrame, folds: Sequence[TrainedFold]) -> None:
    """The run's files beside its network; those of an attempt that was killed are written anew.

    The configuration is the one that the tag dxc.trial is of. Checkpoints are one state_dict a fold;
    torch.load(path, weights_only=True) reads them.
    """
    import pandas as pd
    import torch

    from dxc.report.tables import comma_separated

    out, cache = bench.out, bench.cache
    OmegaConf.save(OmegaConf.create(masked_tree(bench.requested.values())), out / "config.yaml")
    predictions.to_parquet(out / "predictions.parquet", index=False)
    points = [(*name.split(".", 1)[::-1], epoch, value) for f in folds for name, value, epoch in f.curves]
    curves = pd.DataFrame(points, columns=["fold", "metric", "epoch", "value"])
    write_atomically(out / "curves.csv", comma_separated(curves))
    if cache.excluded:
        listing = pd.DataFrame(cache.excluded, columns=["path", "reason"], dtype=object)
        write_atomically(out / "excluded_chips.csv", comma_separated(listing))
    if bench.plan.tracking.checkpoints:
        (out / CHECKPOINTS).mkdir(exist_ok=True)
        for fold in folds:
            torch.save(fold.model.state_dict(), out / CHECKPOINTS / f"{fold.name}.pt")
