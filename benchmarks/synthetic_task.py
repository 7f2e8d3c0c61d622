"""Shows how hard the synthetic task is. It should need geometry, not averages, and be harder in a new region.

    python benchmarks/synthetic_task.py            about 5 minutes on 4 CPU cores
    python benchmarks/synthetic_task.py --quick    one fold of five, one region of four: 2 minutes

It prints three accuracies (fraction of chips), all from dxc's own reader, folds and trainer:
  a  logistic regression on the mean, standard deviation, least and greatest value of each channel; under 0.70
  b  ResNet of the published space, 5 folds, last of 5 epochs; 0.90 or more
  c  the same network, trained on three regions and validated on the fourth; lower than b
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from _record import save
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dxc.data.cache import ChipCache, usable_cores
from dxc.data.datamodule import ChipDataModule
from dxc.hardware.spec import device_name
from dxc.models.resnet import ResNet
from dxc.synthetic.source import SyntheticSource
from dxc.training.classification import ClassificationTask
from dxc.training.trainer import FoldTrainer

CHANNELS = ("dem", "red", "green", "blue", "nir", "ndwi", "ndvi")
FOLDS, EPOCHS, BATCH, RATE = 5, 5, 16, 1e-3  # the published training


def logistic_accuracy(cache: ChipCache) -> float:
    """Mean accuracy over the folds from 4 statistics a channel."""
    chips = cache.images(range(len(cache)))
    statistics_of_channels = [getattr(chips, name)((2, 3)) for name in ("mean", "std", "min", "max")]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=42)
    features = np.concatenate(statistics_of_channels, axis=1)
    return float(cross_val_score(model, features, cache.labels, cv=folds).mean())


def network_accuracies(datamodule: ChipDataModule, *, only_first: bool) -> dict[str, float]:
    """Validation accuracy of the last epoch, by fold."""
    accuracies = {}
    for number, fold in enumerate(datamodule.folds[:1] if only_first else datamodule.folds):
        pl.seed_everything(number, verbose=False)
        network = ResNet(
            len(datamodule.recipe.channels), kernel=3, stride=2, padding=1, pool="none", width=32
        )
        task = ClassificationTask(network, functools.partial(torch.optim.Adam, lr=RATE))
        datamodule.select(fold, seed=number)
        trainer = FoldTrainer(max_epochs=EPOCHS, accelerator="cpu", devices=1, title=fold.name)
        trainer.fit(task, datamodule=datamodule)
        accuracies[fold.name] = float(trainer.callback_metrics["val_accuracy"])
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chips", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0, help="of the watershed")
    parser.add_argument("--channels", type=int, choices=(5, 7), default=7, help="5: without the indices")
    parser.add_argument("--jobs", type=int, default=2, help="processes that make the watersheds")
    parser.add_argument("--quick", action="store_true", help="one fold and one region only")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/synthetic_task.json")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as cache_dir:
        started = time.perf_counter()
        source = SyntheticSource(arguments.chips, arguments.seed, cache_dir, jobs=arguments.jobs)
        source.prepare()
        seconds = time.perf_counter() - started
        print(f"generation and cutting: {seconds:.0f} s with {arguments.jobs} processes")

        def chips(**options: Any) -> ChipDataModule:
            channels = CHANNELS[: arguments.channels]
            datamodule = ChipDataModule(
                source, channels=channels, batch_size=BATCH, cache_dir=cache_dir, **options
            )
            datamodule.prepare_data()
            return datamodule

        by_fold, by_region = chips(split="kfold", folds=FOLDS), chips(split="region")
        raw, scaled = (logistic_accuracy(data.cache) for data in (chips(normalise="none"), by_fold))  # type: ignore[arg-type]
        print(f"a  logistic regression: {raw:.3f} on raw chips, {scaled:.3f} on normalised ones", flush=True)
        figures: dict[str, Any] = {"logistic_raw": raw, "logistic_normalised": scaled}
        for letter, name, data in (("b", "folds", by_fold), ("c", "region left out", by_region)):
            accuracies = network_accuracies(data, only_first=arguments.quick)
            mean = statistics.mean(accuracies.values())
            listing = ", ".join(f"{fold} {accuracy:.3f}" for fold, accuracy in accuracies.items())
            print(f"{letter}  network, {name}: {mean:.3f} of {listing}", flush=True)
            figures[name.replace(" ", "_")] = {"mean": mean, **accuracies}
    print(f"on {device_name()}, {torch.get_num_threads()} threads")
    if arguments.save:
        settings = {key: value for key, value in vars(arguments).items() if key != "save"}
        save("synthetic_task", settings | {"generation_seconds": seconds} | figures)


if __name__ == "__main__":
    main()
