"""The chain of a design: train -> [prune -> finetune] -> export -> [quantise] -> cost.

A further stage is one more function here, and one more line in chain().
"""

from __future__ import annotations

import logging
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dxc.config.identity import canonical
from dxc.errors import DxcError
from dxc.evaluation.few_chips import notes_on_few_chips
from dxc.files import write_atomically
from dxc.masking import masked_tree
from dxc.pipeline.kept import alone_in
from dxc.pipeline.networks import PRUNING_ROOMS, Bench, network_stages
from dxc.pipeline.stages import Artifact, Stage
from dxc.report.run_figures import draw_efficiency, draw_run
from dxc.text import each_once
from dxc.training.build import build_task
from dxc.training.crossval import KeptFolds, TrainedFold, engines_of, validated_fold

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from dxc.data.folds import Fold
    from dxc.data.images import Images
    from dxc.deploy.export import Exported
    from dxc.deploy.metadata import Metadata
    from dxc.metrics import Point
    from dxc.training.task import Task

log = logging.getLogger(__name__)

FIGURES = "figures"
CHECKPOINTS = "checkpoints"
COSTS = "costs"
ONNX, FLOAT32 = "model.onnx", ".float32.onnx"
QUANTISING_KEYS = ("quantise", "calibration_images", "calibration_seed")
QUANTISING_ROOMS = (*PRUNING_ROOMS, "deploy")
"""Packages of dxc that determine the numbers of a quantised file."""


def chain(bench: Bench) -> list[Stage]:
    """The stages of a run, in their order."""
    described = canonical(bench.requested.values())
    stages = [*network_stages(bench), Stage("export", {}, partial(export, bench))]
    if bench.requested.compress.quantises:
        section = {key: value for key, value in described["compress"].items() if key in QUANTISING_KEYS}
        stages.append(Stage("quantise", section, partial(quantise, bench)))
    return [*stages, Stage("cost", described["hardware"], partial(cost, bench))]


def record(bench: Bench, artifact: Artifact) -> Artifact:
    """Record what the folds of a design have learnt: metrics, curves, predictions, figures."""
    folds = artifact.folds
    bench.out.mkdir(parents=True, exist_ok=True)
    predictions = _out_of_fold(folds, bench.cache)
    metrics = {
        **_metrics(folds, predictions, bench.cache, build_task(bench.plan, folds[0].model)),
        "fold_score": statistics.mean(fold.score for fold in folds),
        "fit_seconds": sum(fold.seconds for fold in folds),  # of kept folds too
    }
    if train_seconds := sum(fold.train_seconds for fold in folds):  # none where weights were only evaluated
        metrics["images_per_second"] = sum(fold.trained_images for fold in folds) / train_seconds
    bench.tracked.log(metrics, _curves(folds, bench.plan.score))
    bench.tracked.tag(
        {
            "device": each_once(fold.device for fold in folds),
            "dxc.engine": engines_of(folds),
            "dxc.precision": each_once(fold.precision for fold in folds),
        }
    )
    _write_files(bench, predictions, folds)
    notes = [
        *notes_on_few_chips(
            predictions,
            bench.cache.groups[predictions.index],
            classes=bench.cache.classes,
            unit=bench.cache.unit,
        ),
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
        predictions=predictions,
        metrics={**artifact.metrics, **metrics},
        notes=(*artifact.notes, *notes),
    )


def export(bench: Bench, artifact: Artifact, kept: Path) -> Artifact:
    """Write the network as ONNX, and bring all files so far to the tracked run."""
    from dxc.deploy.export import count_macs, count_params, export_any_size

    quantises = bench.plan.compress.quantises
    if not quantises:
        artifact = record(bench, artifact)
    network: Any = artifact.network
    in_channels, size = len(bench.plan.data.channels), bench.plan.data.image_size
    exported = _export(bench, network, bench.out / (FLOAT32 if quantises else ONNX), artifact.fold)
    log.info(
        "exported %s: %.2f MB, agrees with torch to %.0e",
        artifact.fold,
        exported.onnx_mb,
        exported.max_relative_error,
    )
    if bench.plan.any_size_file and bench.plan.model.entry.any_size and not quantises:
        any_size = bench.out / "model_any_size.onnx"
        metadata = _metadata(bench, artifact.fold)
        export_any_size(network, any_size, in_channels=in_channels, metadata=metadata)
    metrics = {
        "params": count_params(network),
        "macs": count_macs(network, in_channels=in_channels, size=size),
    }
    bench.tracked.log(metrics)
    bench.tracked.tag({"dxc.exported_fold": artifact.fold})
    artifact = replace(artifact, onnx=exported.path, metrics={**artifact.metrics, **metrics})
    if quantises:
        return artifact

    def write(fold: TrainedFold, path: Path) -> None:
        if fold.name == artifact.fold:
            shutil.copyfile(exported.path, path)
        else:
            _export(bench, fold.model, path, fold.name)

    return _written(bench, _with_fold_files(bench, artifact, write))


def _with_fold_files(
    bench: Bench, artifact: Artifact, write: Callable[[TrainedFold, Path], None]
) -> Artifact:
    """Write the network of every fold where this was asked for. One that cannot be exported is left out, with a note.

    Args:
        bench: of the run.
        artifact: with its folds.
        write: writes the file of a fold.
    """
    from dxc.deploy.metadata import FOLDS

    folder = bench.out / FOLDS
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    if not bench.plan.fold_files:
        return artifact
    folder.mkdir(parents=True)
    notes = []
    for fold in artifact.folds:
        try:
            write(fold, folder / f"{fold.name}.onnx")
        except DxcError as error:
            notes.append(f"the network of fold {fold.name} is not exported: {error}")
    return replace(artifact, notes=(*artifact.notes, *notes))


def quantise(bench: Bench, artifact: Artifact, kept: Path) -> Artifact:
    """Quantise the network of every fold, and judge each file by the fold's validation chips, in ONNX Runtime.

    The file of the fold that is exported becomes the run's network. The loss is taken against the same networks in
    float32.
    """
    from dxc.compress.quantise import relabel

    assert artifact.onnx is not None  # the stage before wrote it
    with alone_in(kept):
        folds = [
            _quantised(bench, start, fold, kept, artifact.onnx if start.name == artifact.fold else None)
            for start, fold in zip(artifact.folds, bench.datamodule.folds, strict=True)
        ]
    artifact.onnx.unlink()

    def write(fold: TrainedFold, path: Path) -> None:
        relabel(kept / f"{fold.name}.onnx", path, _metadata(bench, fold.name))

    best = next(fold for fold in folds if fold.name == artifact.fold)
    write(best, bench.out / ONNX)
    drop = statistics.mean(fold.accuracy for fold in artifact.folds) - statistics.mean(
        fold.accuracy for fold in folds
    )
    bench.tracked.log({"accuracy_drop": drop})
    artifact = replace(artifact, folds=folds, onnx=bench.out / ONNX)
    artifact = record(bench, artifact)
    artifact = replace(artifact, metrics={**artifact.metrics, "accuracy_drop": drop})
    return _written(bench, _with_fold_files(bench, artifact, write))


def _quantised(
    bench: Bench, start: TrainedFold, fold: Fold, kept: Path, exported: Path | None
) -> TrainedFold:
    """A fold as its quantised file answers; the network stays the one in float32.

    Args:
        bench: of the run.
        start: the fold in float32.
        fold: its chips.
        kept: the folder that the quantised file lies in.
        exported: the file in float32, where it was written already.
    """
    from dxc.compress import quantise as quantising
    from dxc.deploy.runtime import OnnxRuntimeModule

    compress = bench.plan.compress
    kept_folds = KeptFolds(kept, None, rooms=QUANTISING_ROOMS, since=bench.since)
    file = kept / f"{start.name}.onnx"
    found = kept_folds.read(start.name)
    if found is None or found.trained_at < start.trained_at or not file.exists():
        images = None
        if compress.quantise == "static":
            drawn = quantising.calibration_chips(
                fold.train, compress.calibration_images, compress.calibration_seed
            )
            images = bench.cache.images(drawn)
        with tempfile.TemporaryDirectory() as folder:
            source = exported or _export(bench, start.model, Path(folder) / FLOAT32, start.name).path
            quantising.quantise(source, file, compress.quantise, images)
        on_cpu = bench.plan.with_trainer(accelerator="cpu", precision="32-true", devices=1)
        found = validated_fold(on_cpu, bench.datamodule, fold, start, OnnxRuntimeModule(file))
        kept_folds.keep(found)
    return replace(found, model=start.model)


def _export(bench: Bench, network: nn.Module, path: Path, fold: str) -> Exported:
    from dxc.deploy.export import export_onnx

    return export_onnx(
        network,
        path,
        in_channels=len(bench.plan.data.channels),
        size=bench.plan.data.image_size,
        metadata=_metadata(bench, fold),
    )


def _written(bench: Bench, artifact: Artifact) -> Artifact:
    """Bring the run's files to where it is tracked, with its network complete."""
    from dxc.hardware.onnx_file import onnx_mb

    assert artifact.onnx is not None  # an export stage wrote it
    metrics = {"onnx_mb": onnx_mb(artifact.onnx)}
    bench.tracked.log(metrics)
    bench.tracked.log_files(bench.out)
    if bench.tracked.stored:
        shutil.rmtree(bench.out / CHECKPOINTS, ignore_errors=True)  # MLflow has them: kept twice otherwise
    return replace(artifact, metrics={**artifact.metrics, **metrics})


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


def _metadata(bench: Bench, fold: str) -> Metadata:
    """What the exported file of a fold's network says: how it is fed, as the chips were, and what it came from."""
    from dxc.deploy.metadata import Metadata, dxc_version
    from dxc.tracking.client import git_commit

    return Metadata(
        **bench.datamodule.fed,
        classes=bench.cache.classes,
        photo_bands=bench.cache.photo_bands,
        pixel_m=bench.cache.pixel_m,
        fold=fold,
        trial=bench.requested.trial,
        data=bench.cache.data_hash,
        version=dxc_version(),
        commit=git_commit(),
    )


def _out_of_fold(folds: Sequence[TrainedFold], cache: Images) -> pd.DataFrame:
    """The validation predictions of all folds in chip order; see Result.predictions."""
    import pandas as pd

    from dxc.evaluation.answers import probability_columns
    from dxc.evaluation.average_precision import BOX

    parts = []
    for fold in folds:
        index = fold.predictions["index"].numpy()
        columns = {
            "region": [cache.regions[i] for i in index],
            "name": [cache.names[i] for i in index],
            "label": fold.predictions["label"].numpy(),
            "fold": fold.name,
        }
        probability = fold.predictions["probability"].numpy()
        names = probability_columns(cache.classes)
        columns |= dict(zip(names, probability.reshape(len(index), len(names)).T, strict=True))
        if "box" in fold.predictions:
            columns |= dict(zip(BOX, fold.predictions["box"].numpy().T, strict=True))
        parts.append(pd.DataFrame(columns, index=index))
    return pd.concat(parts).sort_index()


def _metrics(
    folds: Sequence[TrainedFold], predictions: pd.DataFrame, cache: Images, task: Task
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
