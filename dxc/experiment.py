"""The trunk: one configuration -> one Result.

GeoTIFF chips -> channels -> k-fold training -> ONNX -> what it costs -> MLflow.
"""

from __future__ import annotations

import io
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dxc.config import build, data_name, describe, design_hash, flatten, resolved, trial_hash
from dxc.errors import ConfigError, require_folder_name, require_whole
from dxc.files import write_atomically
from dxc.models import model_name

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from dxc.data.cache import ChipCache
    from dxc.data.datamodule import ChipDataModule
    from dxc.data.folds import Fold
    from dxc.hardware import Hardware
    from dxc.tracking import Point, Record

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
COSTS = "costs"


@dataclass(frozen=True)
class Result:
    """What came out of one configuration. Metrics are named as in dxc.pareto.OBJECTIVES."""

    name: str
    metrics: dict[str, float]
    fold_accuracies: dict[str, float]
    predictions: pd.DataFrame
    """Out-of-fold predictions: region, name, label, fold, probability; one row a validated chip."""
    onnx: Path
    excluded: int
    notes: tuple[str, ...]
    """What costs could not be had, and which machine they describe."""
    run_id: str
    experiment_id: str
    tracking_uri: str
    study: str


@dataclass(frozen=True)
class TrainedFold:
    """One fold after training; `model` is on the CPU."""

    name: str
    accuracy: float
    model: torch.nn.Module
    predictions: dict[str, torch.Tensor]
    curves: list[Point]
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
    trained; those that lie there are not trained again. after_fold: called with the accuracies so far.

    Raises DxcError for everything that a user can mend. From the moment the configuration is known to be
    sound, whatever goes wrong is recorded in the tracked run too.
    """
    from dxc import tracking
    from dxc.hardware import Hardware
    from dxc.hardware.costs import cost

    config = resolved(cfg)
    hardware = Hardware.of(config["hardware"])
    datamodule = build(config["data"], source=build(config["source"]))
    asked = config
    config = _fit_to_machine(config)
    _check(config, hardware)

    with (record.opened if record else tracking.start_run)(
        config["tracking"]["uri"], **_heading(config, asked), enabled=_is_first_process()
    ) as tracked:
        cache = _read_chips(datamodule)
        tracked.tag({"dxc.data": cache.data_hash})

        started = time.perf_counter()
        folds: list[TrainedFold] = []
        for number, fold in enumerate(datamodule.folds):
            folds.append(_trained_fold(config, datamodule, fold, number, keep))
            if after_fold is not None:
                after_fold([each.accuracy for each in folds])
        fit_seconds = time.perf_counter() - started
        if not _is_first_process():
            sys.exit()  # one of several devices: its share is done, the first process goes on

        out.mkdir(parents=True, exist_ok=True)
        predictions = _out_of_fold(folds, cache)
        best = max(folds, key=lambda fold: fold.accuracy)
        metrics = {
            **_accuracy(folds, predictions),
            **_export(best, config, out),
            "fit_seconds": fit_seconds,
            "images_per_second": sum(f.trained_images for f in folds) / sum(f.train_seconds for f in folds),
        }
        tracked.log(metrics, [point for fold in folds for point in fold.curves])
        tracked.tag({"dxc.exported_fold": best.name})
        _write_files(config, cache, predictions, folds, out)
        tracked.log_files(out)
        if tracked.stored:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)  # MLflow has them: kept twice otherwise

        # last: whatever happens here, the training is on record
        costs = cost(
            out / "model.onnx", hardware, out / COSTS, profile=config["profile"], progress=config["progress"]
        )
        metrics |= costs.metrics
        tracked.log(costs.metrics, costs.curves)
        tracked.tag(costs.tags)
        tracked.log_files(out / COSTS, under=COSTS)

    return Result(
        name=describe(config),
        metrics=metrics,
        fold_accuracies={fold.name: fold.accuracy for fold in folds},
        predictions=predictions,
        onnx=out / "model.onnx",
        excluded=len(cache.excluded),
        notes=tuple(costs.notes),
        run_id=tracked.run_id,
        experiment_id=tracked.experiment_id,
        tracking_uri=tracked.uri,
        study=config["study"],
    )


def train_part(cfg: DictConfig, record: Record, *, folds: int, epochs: int, keep: Path) -> list[float]:
    """Accuracies of the first `folds` folds after `epochs` epochs each: a first look at a configuration.

    Folds are kept in the folder `keep` as run() does; those of all the epochs are not trained again there.
    """
    from dxc.hardware import Hardware

    asked = resolved(cfg)
    config = _fit_to_machine(asked)
    _check(config, Hardware.of(config["hardware"]))
    shorter = {**config, "trainer": {**config["trainer"], "max_epochs": epochs}}
    datamodule = build(config["data"], source=build(config["source"]))
    with record.opened(config["tracking"]["uri"], **_heading(config, asked)) as tracked:
        cache = _read_chips(datamodule)
        tracked.tag({"dxc.data": cache.data_hash})
        accuracies: list[float] = []
        for number, fold in enumerate(datamodule.folds[:folds]):
            accuracies.append(_trained_fold(shorter, datamodule, fold, number, keep).accuracy)
        tracked.log({}, [("part/accuracy", statistics.mean(accuracies), folds * epochs)])
    return accuracies


def seconds_per_image(config: dict[str, Any], *, at_least_s: float = 1.0) -> tuple[float, float]:
    """Seconds that one image costs in training and in validation: the median of steps on random chips.

    Without the loading of chips and the trainer's own work, which are small beside it.
    """
    import torch
    from torch import nn

    from dxc.tasks.trainer import breaks_in_channels_last

    config = _fit_to_machine(config)
    on_gpu = config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    batch, size = config["data"]["batch_size"], config["data"]["size"]
    model = build(config["model"]).to(device)
    if config["trainer"]["channels_last"] and (on_gpu or not breaks_in_channels_last(model)):
        model = model.to(memory_format=torch.channels_last)
    optimizer, loss = build(config["optimizer"])(model.parameters()), nn.CrossEntropyLoss()
    images = torch.rand(batch, config["model"]["in_channels"], size, size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
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
            value = loss(model(images), labels)
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

    return {
        "study": config["study"],
        "name": describe(config),
        "params": flatten(config),
        "tags": {
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
    """One fold, from the folder `keep` where it is there, trained by the same epochs on the same chips."""
    if keep is None:
        return train_fold(config, datamodule, fold, number)
    import torch

    chips = datamodule.cache.data_hash if datamodule.cache else ""
    path = keep / f"{fold.name}-{config['trainer']['max_epochs']}epochs-{chips}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model, curves = build(config["model"]), [(name, value, step) for name, value, step in kept["points"]]
        model.load_state_dict(kept["weights"])
        numbers = {key: kept[key] for key in kept if key not in ("weights", "points")}
        return TrainedFold(**numbers, model=model, curves=curves)
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
    build(config["model"]).check_input_size(config["data"]["size"])
    try:
        build(config["optimizer"])([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    build(config["trainer"])
    if config["profile"] not in MODES:
        raise ConfigError(f"profile={config['profile']} is not one of {', '.join(MODES)}")
    for name in hardware.predictors:
        check_name(name, Path(hardware.packages_dir))


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
    return cache


def train_fold(config: dict[str, Any], datamodule: ChipDataModule, fold: Fold, number: int) -> TrainedFold:
    """Train a fresh network on one fold. The seed depends on the fold alone: folds may run in any order."""
    import pytorch_lightning as pl

    from dxc.tasks.classification import ClassificationTask

    seed = config["seed"] + number
    pl.seed_everything(seed, workers=True, verbose=False)
    task = ClassificationTask(build(config["model"]), build(config["optimizer"]))
    datamodule.select(fold, seed=seed)
    trainer = build(config["trainer"], title=f"{fold.name} ({number + 1} of {len(datamodule.folds)})")
    trainer.fit(task, datamodule=datamodule)

    return TrainedFold(
        name=fold.name,
        accuracy=float(trainer.callback_metrics["val_accuracy"]),
        model=task.model.cpu(),
        predictions=task.predictions,
        curves=[(f"{fold.name}/{name}", value, epoch) for name, value, epoch in trainer.history],
        train_seconds=trainer.train_seconds,
        trained_images=trainer.trained_images,
    )


def _out_of_fold(folds: list[TrainedFold], cache: ChipCache) -> pd.DataFrame:
    """The validation predictions of all folds in chip order; see Result.predictions."""
    import pandas as pd

    parts = []
    for fold in folds:
        index = fold.predictions["index"].numpy()
        parts.append(
            pd.DataFrame(
                {
                    "region": [cache.regions[i] for i in index],
                    "name": [cache.names[i] for i in index],
                    "label": fold.predictions["label"].numpy(),
                    "fold": fold.name,
                    "probability": fold.predictions["probability"].numpy(),
                },
                index=index,
            )
        )
    return pd.concat(parts).sort_index()


def _accuracy(folds: list[TrainedFold], predictions: pd.DataFrame) -> dict[str, float]:
    """Mean and sample standard deviation over folds, and the metrics of the pooled predictions."""
    import torch

    from dxc.tasks.classification import pooled_metrics

    accuracies = [fold.accuracy for fold in folds]
    metrics = {"accuracy": statistics.mean(accuracies)}
    if len(accuracies) > 1:  # one fold has no spread: missing, not 0
        metrics["accuracy_std"] = statistics.stdev(accuracies)
    return metrics | pooled_metrics(
        torch.tensor(predictions["probability"].to_numpy()), torch.tensor(predictions["label"].to_numpy())
    )


def _export(fold: TrainedFold, config: dict[str, Any], out: Path) -> dict[str, float]:
    """Export one fold's network; its size, parameters and multiply-accumulates."""
    from dxc.export import count_macs, count_params, export_onnx

    shape = {"in_channels": len(config["data"]["channels"]), "size": config["data"]["size"]}
    exported = export_onnx(fold.model, out / "model.onnx", **shape)
    log.info(
        "exported %s: %.2f MB, agrees with torch to %.0e",
        fold.name,
        exported.onnx_mb,
        exported.max_relative_error,
    )
    return {
        "onnx_mb": exported.onnx_mb,
        "params": count_params(fold.model),
        "macs": count_macs(fold.model, **shape),
    }


def _write_files(
    config: dict[str, Any],
    cache: ChipCache,
    predictions: pd.DataFrame,
    folds: list[TrainedFold],
    out: Path,
) -> None:
    """The run's files beside its network.

    Checkpoints are one state_dict a fold; torch.load(path, weights_only=True) reads them.
    """
    import pandas as pd
    import torch

    from dxc.tracking import without_password

    address = without_password(config["tracking"]["uri"])
    shown = {**config, "tracking": {**config["tracking"], "uri": address}}
    OmegaConf.save(OmegaConf.create(shown), out / "config.yaml")
    predictions.to_parquet(out / "predictions.parquet", index=False)
    if cache.excluded:
        listing = pd.DataFrame(cache.excluded, columns=["path", "reason"])
        listing.to_csv(out / "excluded_chips.csv", index=False)
    if config["tracking"]["checkpoints"]:
        (out / CHECKPOINTS).mkdir()
        for fold in folds:
            torch.save(fold.model.state_dict(), out / CHECKPOINTS / f"{fold.name}.pt")
