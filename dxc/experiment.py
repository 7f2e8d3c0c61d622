"""The trunk: one configuration -> one Result.

GeoTIFF chips -> channels -> k-fold training -> ONNX -> what it costs -> MLflow.
"""

from __future__ import annotations

import inspect
import io
import logging
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dxc.config import (
    build,
    data_name,
    describe,
    design_hash,
    image_size,
    params_and_tags,
    resolved,
    trial_hash,
)
from dxc.errors import ConfigError, require_folder_name, require_whole
from dxc.files import write_atomically
from dxc.masking import masked, masked_tree
from dxc.models import model_name, takes_any_size
from dxc.processes import end_with_parent

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from dxc.data.cache import ChipCache
    from dxc.data.datamodule import ChipDataModule
    from dxc.data.folds import Fold
    from dxc.hardware import Hardware
    from dxc.hardware.costs import Costs
    from dxc.tasks.task import Task
    from dxc.tracking import Point, Record

log = logging.getLogger(__name__)

FIGURES = "figures"
CHECKPOINTS = "checkpoints"
COSTS = "costs"


@dataclass(frozen=True)
class Result:
    """What came out of one configuration. Metrics are named as in dxc.pareto.OBJECTIVES."""

    name: str
    metrics: dict[str, float]
    score: str
    """The metric that the configuration is judged by: accuracy, or average_precision of a detector."""
    fold_scores: dict[str, float]
    predictions: pd.DataFrame
    """Out-of-fold predictions: region, name, label, fold, probability, of a detector also its box cx, cy, w, h
    (relative to the image); one row a validated chip."""
    onnx: Path
    excluded: int
    notes: tuple[str, ...]
    """What costs could not be had, and why."""
    run_id: str
    experiment_id: str
    tracking_uri: str
    study: str
    predicted_for: str = ""
    """The machines that the predictors describe (dxc.hardware.costs.predicted_for); '' where nothing was predicted."""
    measured_on: str = ""


@dataclass(frozen=True)
class TrainedFold:
    """One fold after training; `model` is on the CPU."""

    name: str
    accuracy: float
    score: float
    model: torch.nn.Module
    predictions: dict[str, torch.Tensor]
    curves: list[Point]
    seconds: float
    """Wall time of the whole fold; train_seconds is its training alone, in which trained_images went through."""
    train_seconds: float
    trained_images: int


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
    from dxc import tracking
    from dxc.hardware import Hardware
    from dxc.hardware.costs import cost

    if multiprocessing.parent_process() is not None or not _is_first_process():
        end_with_parent(os.getppid())  # a worker of Hydra's joblib launcher, or one of several devices
    config = resolved(cfg)
    hardware = Hardware.of(config["hardware"])
    datamodule = build(config["data"], "data", source=build(config["source"], "source"))
    asked = config
    config = _fit_to_machine(config)
    _check(config, hardware)

    with (record.opened if record else tracking.start_run)(
        config["tracking"]["uri"], **_heading(config, asked), enabled=_is_first_process()
    ) as tracked:
        cache = _read_chips(datamodule)
        tracked.tag({"dxc.data": cache.data_hash})

        folds: list[TrainedFold] = []
        for number, fold in enumerate(datamodule.folds):
            folds.append(_trained_fold(config, datamodule, fold, number, keep))
            if after_fold is not None:
                after_fold([each.score for each in folds])
        if not _is_first_process():
            sys.exit()  # one of several devices: its share is done, the first process goes on

        out.mkdir(parents=True, exist_ok=True)
        predictions = _out_of_fold(folds, cache)
        best = max(folds, key=lambda fold: fold.score)
        metrics = {
            **_metrics(folds, predictions, cache, _task(config, best.model)),
            **_export(best, config, out),
            "fold_score": statistics.mean(fold.score for fold in folds),
            "fit_seconds": sum(fold.seconds for fold in folds),  # of kept folds too
            "images_per_second": sum(f.trained_images for f in folds) / sum(f.train_seconds for f in folds),
        }
        tracked.log(metrics, [point for fold in folds for point in fold.curves])
        tracked.tag({"dxc.exported_fold": best.name})
        _write_files(asked, cache, predictions, folds, out)  # what the tag dxc.trial is of
        if cache.has_boxes:
            _draw_detections(config, cache, predictions, out / FIGURES)
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
            _draw_efficiency(config, costs, out / COSTS)
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


def train_part(cfg: DictConfig, record: Record, *, folds: int, epochs: int, keep: Path) -> list[float]:
    """Scores of the first `folds` folds after `epochs` epochs each: a first look at a configuration.

    Folds are kept in the folder `keep` as run() does; those of all the epochs are not trained again there.
    """
    from dxc.hardware import Hardware

    asked = resolved(cfg)
    config = _fit_to_machine(asked)
    _check(config, Hardware.of(config["hardware"]))
    shorter = {**config, "trainer": {**config["trainer"], "max_epochs": epochs}}
    datamodule = build(config["data"], "data", source=build(config["source"], "source"))
    with record.opened(config["tracking"]["uri"], **_heading(config, asked)) as tracked:
        cache = _read_chips(datamodule)
        tracked.tag({"dxc.data": cache.data_hash})
        scores: list[float] = []
        for number, fold in enumerate(datamodule.folds[:folds]):
            scores.append(_trained_fold(shorter, datamodule, fold, number, keep).score)
        mean = statistics.mean(scores)
        tracked.log({"fold_score": mean}, [(f"part/{config['score']}", mean, folds * epochs)])
    return scores


def seconds_per_image(config: dict[str, Any], *, at_least_s: float = 1.0) -> tuple[float, float]:
    """Seconds that one image costs in training and in validation: the median of steps on random chips.

    Without the loading of chips and the trainer's own work, which are small beside it.
    """
    import torch

    from dxc.tasks.trainer import breaks_in_channels_last

    config = _fit_to_machine(config)
    on_gpu = config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    batch, size = config["data"]["batch_size"], image_size(config["data"]["size"])
    task = _task(config).to(device)
    model: Any = task.model
    if config["trainer"]["channels_last"] and (on_gpu or not breaks_in_channels_last(model)):
        model = model.to(memory_format=torch.channels_last)
    optimizer = build(config["optimizer"], "optimizer")(model.parameters())
    images = torch.rand(batch, config["model"]["in_channels"], size, size, device=device)
    labels = torch.ones(batch, dtype=torch.long, device=device)
    batch_of = {"image": images, "label": labels, "boxes": torch.full((batch, 1, 4), 0.5, device=device)}
    precision = str(config["trainer"]["precision"])
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    mixed = torch.autocast(device.type, dtype, enabled="mixed" in precision)

    def timed(step: Callable[[], object]) -> float:
        seconds: list[float] = []
        while len(seconds) < 5 or sum(seconds) < at_least_s:
            started = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds) / batch  # the first, which allocates, hardly moves it

    def train() -> None:
        optimizer.zero_grad()
        with mixed:
            value = task.batch_loss(model(images), batch_of)
        value.backward()
        optimizer.step()

    def validate() -> None:
        with mixed:
            model.eval()(images)

    training = timed(train)
    with torch.inference_mode():
        return training, timed(validate)


def _heading(config: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What a run is recorded under; identity is what was asked for, on every machine."""
    from dxc.hardware import device_name

    params, settings = params_and_tags(config)
    return {
        "study": config["study"],
        "name": describe(config),
        "params": params,
        "artifacts": config["tracking"]["artifacts"],
        "tags": {
            **settings,
            "dxc.study": config["study"],
            "dxc.trial": trial_hash(asked),
            "dxc.design": design_hash(asked),
            "model": model_name(config["model"]),
            "data": data_name(config["data"]),
            "hardware": config["hardware"]["name"],
            "device": device_name(config["trainer"]["accelerator"]),
        },
    }


def _trained_fold(
    config: dict[str, Any], datamodule: ChipDataModule, fold: Fold, number: int, keep: Path | None
) -> TrainedFold:
    """One fold, from the folder `keep` where it is there, trained by the same epochs on the same chips.

    A file that does not hold what is kept of a fold today is trained again.
    """
    if keep is None:
        return train_fold(config, datamodule, fold, number)
    import torch

    chips = datamodule.cache.data_hash if datamodule.cache else ""
    path = keep / f"{fold.name}-{config['trainer']['max_epochs']}epochs-{chips}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        weights, points = kept.pop("weights"), kept.pop("points")
        if kept.keys() == {each.name for each in fields(TrainedFold)} - {"model", "curves"}:
            model = build(config["model"], "model")
            model.load_state_dict(weights)
            return TrainedFold(
                **kept, model=model, curves=[(name, value, step) for name, value, step in points]
            )
    trained = train_fold(config, datamodule, fold, number)
    content = {key: value for key, value in vars(trained).items() if key not in ("model", "curves")}
    content |= {"weights": trained.model.state_dict(), "points": [list(point) for point in trained.curves]}
    keep.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # torch would hide a full disk behind an error of its own
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())
    return trained


def _is_first_process() -> bool:
    """False in the further processes that Lightning starts for trainer.devices > 1."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def _check(config: dict[str, Any], hardware: Hardware) -> None:
    """Raise ConfigError or HardwareError for what cannot work, before any data is read or run recorded."""
    import torch

    from dxc.hardware.packages import check_name
    from dxc.hardware.profile import MODES

    require_whole("seed", config["seed"], at_least=0)
    require_folder_name("study", config["study"])
    task = _task(config)
    _check_task(config, task)
    task.model.check_input_size(image_size(config["data"]["size"]))  # type: ignore[operator]  # torch: tensor or module
    try:
        optimizer = build(config["optimizer"], "optimizer")([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    if config["scheduler"] is not None:
        try:
            scheduler = build(config["scheduler"], "scheduler")(optimizer)
            watches = "metrics" in inspect.signature(scheduler.step).parameters  # ReduceLROnPlateau
            for _ in range(config["trainer"]["max_epochs"]):
                optimizer.step()
                scheduler.step(*([0.0] if watches else []))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"scheduler: {error}") from error
    build(config["trainer"], "trainer")
    if config["profile"] not in MODES:
        raise ConfigError(f"profile={config['profile']} is not one of {', '.join(MODES)}")
    for name in hardware.predictors:
        check_name(name, Path(hardware.packages_dir))


def _check_task(config: dict[str, Any], task: Task) -> None:
    """Raise ConfigError where network, task, boxes and score do not go together."""
    from dxc.export import DEFAULT_OUTPUTS

    network, name = model_name(config["model"]), type(task).__name__
    outputs = tuple(getattr(task.model, "output_names", DEFAULT_OUTPUTS))
    if outputs != task.answers:
        raise ConfigError(
            f"task: {name} judges {' and '.join(task.answers)}, and {network} answers with {' and '.join(outputs)}; "
            "leave task= out, the model chooses it"
        )
    boxes = "box" in task.answers
    if config["boxes"] != boxes or config["data"]["boxes"] != boxes:
        raise ConfigError(
            f"boxes={str(not boxes).lower()} does not go with {network}; leave it out, it follows from the task"
        )
    if config["score"] not in task.scores:
        raise ConfigError(
            f"score={config['score']} is not known of a fold; choose one of {', '.join(task.scores)}"
        )


def _task(config: dict[str, Any], model: torch.nn.Module | None = None) -> Task:
    """A network, fresh unless one is given, with what it is trained by."""
    return build(
        config["task"],
        "task",
        model=model or build(config["model"], "model"),
        optimizer=build(config["optimizer"], "optimizer"),
        scheduler=None if config["scheduler"] is None else build(config["scheduler"], "scheduler"),
    )


def _fit_to_machine(config: dict[str, Any]) -> dict[str, Any]:
    """accelerator=auto without a GPU is the processor, in full precision: mixed precision is slower there."""
    import torch

    trainer = config["trainer"]
    if trainer["accelerator"] != "auto" or torch.cuda.is_available():
        return config
    log.info(
        "no GPU here: hardware=%s trains on the processor, in full precision", config["hardware"]["name"]
    )
    return {**config, "trainer": {**trainer, "accelerator": "cpu", "precision": "32-true"}}


def _read_chips(datamodule: ChipDataModule) -> ChipCache:
    """Make and read the chips, and say which were found and which left out."""
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


def train_fold(config: dict[str, Any], datamodule: ChipDataModule, fold: Fold, number: int) -> TrainedFold:
    """Train a fresh network on one fold. The seed depends on the fold alone: folds may run in any order."""
    import pytorch_lightning as pl

    started = time.perf_counter()
    seed = config["seed"] + number
    pl.seed_everything(seed, workers=True, verbose=False)
    task = _task(config)
    datamodule.select(fold, seed=seed)
    trainer = build(
        config["trainer"], "trainer", title=f"{fold.name} ({number + 1} of {len(datamodule.folds)})"
    )
    trainer.fit(task, datamodule=datamodule)

    metrics = trainer.callback_metrics
    score = metrics.get(f"val_{config['score']}")
    if score is None:
        known = ", ".join(name.removeprefix("val_") for name in metrics if name.startswith("val_"))
        raise ConfigError(
            f"score={config['score']} is not known of {fold.name}'s {len(fold.val)} validation chips; known are {known}"
        )
    return TrainedFold(
        name=fold.name,
        accuracy=float(metrics["val_accuracy"]),
        score=float(score),
        model=task.model.cpu(),
        predictions=task.predictions,
        curves=[(f"{fold.name}/{name}", value, epoch) for name, value, epoch in trainer.history],
        seconds=time.perf_counter() - started,
        train_seconds=trainer.train_seconds,
        trained_images=trainer.trained_images,
    )


def _out_of_fold(folds: list[TrainedFold], cache: ChipCache) -> pd.DataFrame:
    """The validation predictions of all folds in chip order; see Result.predictions."""
    import pandas as pd

    from dxc.tasks.average_precision import BOX

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
    from dxc.tasks.average_precision import TrueBoxes

    accuracies = [fold.accuracy for fold in folds]
    metrics = {"accuracy": statistics.mean(accuracies)}
    if len(accuracies) > 1:  # one fold has no spread: missing, not 0
        metrics["accuracy_std"] = statistics.stdev(accuracies)
    index = predictions.index.to_numpy()
    truth = TrueBoxes(cache.boxes(index), cache.sizes[index]) if cache.has_boxes else None
    return metrics | task.pooled_metrics(predictions, truth)


def _export(fold: TrainedFold, config: dict[str, Any], out: Path) -> dict[str, float]:
    """Export one fold's network; its size, parameters and multiply-accumulates."""
    from dxc.export import count_macs, count_params, export_any_size, export_onnx

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


def _draw_detections(config: dict[str, Any], cache: ChipCache, predictions: pd.DataFrame, out: Path) -> None:
    """Chips with true and predicted boxes, and the precision-recall curve."""
    import numpy as np

    from dxc.report.detections import Sample, choose_samples, precision_recall, samples
    from dxc.report.figures import save
    from dxc.tasks.average_precision import BOX

    probability, label = (predictions[name].to_numpy() for name in ("probability", "label"))
    chosen = choose_samples(probability, label)
    shown = []
    for place in chosen:
        row, index = predictions.iloc[place], np.array([predictions.index[place]])
        box = row[list(BOX)].to_numpy(dtype=float)
        shown.append(
            Sample(cache.images(index)[0], cache.boxes(index)[0], box, row["probability"], row["name"])
        )
    save(samples(shown, config["data"]["channels"]), out, "samples")
    if label.any():
        curve = precision_recall(probability, label, min_precision=config["task"]["min_precision"])
        save(curve, out, "precision_recall")


def _draw_efficiency(config: dict[str, Any], costs: Costs, out: Path) -> None:
    """Measured time an image against batch size."""
    from dxc.report.efficiency import efficiency
    from dxc.report.figures import save

    if costs.efficiency is not None:
        table = {describe(config): costs.efficiency.table()}
        save(efficiency(table, title=costs.tags["dxc.measured_on"]), out, "efficiency")
