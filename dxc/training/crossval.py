"""Cross-validation: one network per fold, trained or loaded from the kept ones."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.config.build import build
from dxc.errors import ConfigError
from dxc.files import write_atomically
from dxc.training.build import build_task

if TYPE_CHECKING:
    import torch

    from dxc.data.datamodule import ChipDataModule
    from dxc.data.folds import Fold
    from dxc.metrics import Point


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


def trained_fold(
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


def train_fold(config: dict[str, Any], datamodule: ChipDataModule, fold: Fold, number: int) -> TrainedFold:
    """Train a new network on one fold. The seed depends on the fold alone, so folds may run in any order."""
    import pytorch_lightning as pl

    started = time.perf_counter()
    seed = config["seed"] + number
    pl.seed_everything(seed, workers=True, verbose=False)
    task = build_task(config)
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
