"""The trunk: one configuration -> one Result.

GeoTIFF chips -> channels -> k-fold training -> ONNX -> what it costs -> MLflow.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dxc.config.build import build
from dxc.config.compose import image_size, resolved
from dxc.config.names import describe
from dxc.files import write_atomically
from dxc.masking import masked, masked_tree
from dxc.models import takes_any_size
from dxc.pipeline.heading import check, heading
from dxc.pipeline.result import Result
from dxc.processes import end_with_parent
from dxc.report.run_figures import draw_detections, draw_efficiency
from dxc.training.build import build_task, fit_to_machine, is_first_process, read_chips
from dxc.training.crossval import TrainedFold, trained_fold

if TYPE_CHECKING:
    import pandas as pd

    from dxc.data.cache import ChipCache
    from dxc.tracking.record import Record
    from dxc.training.task import Task

log = logging.getLogger(__name__)


FIGURES = "figures"
CHECKPOINTS = "checkpoints"
COSTS = "costs"


def run(
    cfg: DictConfig,
    out: Path,
    *,
    record: Record | None = None,
    keep: Path | None = None,
    after_fold: Callable[[list[float]], None] | None = None,
) -> Result:
    """Train, export and track what `cfg` describes; files are written to the folder `out`.

    record: kept there instead of in an MLflow run (trials of a search). keep: a folder for each fold that is
    trained; those that lie there are not trained again. after_fold: called with the folds' scores so far.

    Raises DxcError for everything that a user can mend. From the moment the configuration is known to be
    sound, whatever goes wrong is recorded in the tracked run too.
    """
    from dxc.hardware.costs import cost
    from dxc.hardware.spec import Hardware
    from dxc.tracking import run as tracking

    if multiprocessing.parent_process() is not None or not is_first_process():
        end_with_parent(os.getppid())  # a worker of Hydra's joblib launcher, or one of several devices
    config = resolved(cfg)
    hardware = Hardware.of(config["hardware"])
    datamodule = build(config["data"], "data", source=build(config["source"], "source"))
    requested = config
    config = fit_to_machine(config)
    check(config, hardware)

    with (record.opened if record else tracking.start_run)(
        config["tracking"]["uri"], **heading(config, requested), enabled=is_first_process()
    ) as tracked:
        cache = read_chips(datamodule)
        tracked.tag({"dxc.data": cache.data_hash})

        folds: list[TrainedFold] = []
        for number, fold in enumerate(datamodule.folds):
            folds.append(trained_fold(config, datamodule, fold, number, keep))
            if after_fold is not None:
                after_fold([each.score for each in folds])
        if not is_first_process():
            sys.exit()  # one of several devices: its share is done, the first process goes on

        out.mkdir(parents=True, exist_ok=True)
        predictions = _out_of_fold(folds, cache)
        best = max(folds, key=lambda fold: fold.score)
        metrics = {
            **_metrics(folds, predictions, cache, build_task(config, best.model)),
            **_export(best, config, out),
            "fold_score": statistics.mean(fold.score for fold in folds),
            "fit_seconds": sum(fold.seconds for fold in folds),  # of kept folds too
            "images_per_second": sum(f.trained_images for f in folds) / sum(f.train_seconds for f in folds),
        }
        tracked.log(metrics, [point for fold in folds for point in fold.curves])
        tracked.tag({"dxc.exported_fold": best.name})
        _write_files(requested, cache, predictions, folds, out)  # what the tag dxc.trial is of
        if cache.has_boxes:
            draw_detections(config, cache, predictions, out / FIGURES)
        tracked.log_files(out)
        if tracked.stored:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)  # MLflow has them: kept twice otherwise

        # last: whatever happens here, the training is on record
        costs = cost(
            out / "model.onnx",
            hardware,
            out / COSTS,
            known=metrics,
            profile=config["profile"],
            progress=config["progress"],
        )
        if costs.efficiency is not None:
            draw_efficiency(config, costs, out / COSTS)
        metrics |= costs.metrics
        tracked.log(costs.metrics, costs.curves)
        tracked.tag(costs.tags)
        tracked.log_files(out / COSTS, under=COSTS)

    return Result(
        name=describe(config),
        metrics=metrics,
        score=config["score"],
        fold_scores={fold.name: fold.score for fold in folds},
        predictions=predictions,
        onnx=out / "model.onnx",
        excluded=len(cache.excluded),
        notes=tuple(costs.notes),
        predicted_for=costs.tags.get("dxc.predicted_for", ""),
        measured_on=costs.tags.get("dxc.measured_on", ""),
        run_id=tracked.run_id,
        experiment_id=tracked.experiment_id,
        tracking_uri=masked(tracked.uri),
        study=config["study"],
    )


def _out_of_fold(folds: list[TrainedFold], cache: ChipCache) -> pd.DataFrame:
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
    folds: list[TrainedFold], predictions: pd.DataFrame, cache: ChipCache, task: Task
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


def _export(fold: TrainedFold, config: dict[str, Any], out: Path) -> dict[str, float]:
    """Export one fold's network; its size, parameters and multiply-accumulates."""
    from dxc.deploy.export import count_macs, count_params, export_any_size, export_onnx

    in_channels, size = len(config["data"]["channels"]), image_size(config["data"]["size"])
    exported = export_onnx(fold.model, out / "model.onnx", in_channels=in_channels, size=size)
    log.info(
        "exported %s: %.2f MB, agrees with torch to %.0e",
        fold.name,
        exported.onnx_mb,
        exported.max_relative_error,
    )
    if config["any_size_file"] and takes_any_size(config["model"]):
        export_any_size(fold.model, out / "model_any_size.onnx", in_channels=in_channels)
    return {
        "onnx_mb": exported.onnx_mb,
        "params": count_params(fold.model),
        "macs": count_macs(fold.model, in_channels=in_channels, size=size),
    }


def _write_files(
    config: dict[str, Any],
    cache: ChipCache,
    predictions: pd.DataFrame,
    folds: list[TrainedFold],
    out: Path,
) -> None:
    """The run's files beside its network; those of an attempt that was killed are written anew.

    Checkpoints are one state_dict a fold; torch.load(path, weights_only=True) reads them.
    """
    import pandas as pd
    import torch

    from dxc.report.tables import comma_separated

    OmegaConf.save(OmegaConf.create(masked_tree(config)), out / "config.yaml")
    predictions.to_parquet(out / "predictions.parquet", index=False)
    if cache.excluded:
        listing = pd.DataFrame(cache.excluded, columns=["path", "reason"], dtype=object)
        write_atomically(out / "excluded_chips.csv", comma_separated(listing))
    if config["tracking"]["checkpoints"]:
        (out / CHECKPOINTS).mkdir(exist_ok=True)
        for fold in folds:
            torch.save(fold.model.state_dict(), out / CHECKPOINTS / f"{fold.name}.pt")
