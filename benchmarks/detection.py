"""Trains the published detectors on synthetic watersheds, and compares them with answers that need no network.

    python benchmarks/detection.py                     about half an hour on 4 cores
    python benchmarks/detection.py --chips 400 --seeds 1 --epochs 3      a short version in two minutes

The four variants (experiment=sppnet_original, sppnet_1, 2, 3) follow the published protocol: red, green and blue, batch
20, 10 epochs of SGD, 80 % of 1,200 chips to train, crossings up to 35 m from the centre. Each has three seeds, for the
weights and the order. They are compared, on the same validation chips, with answers that know only the training chips:
    majority     the same probability for every chip, and no box
    middle       the same, with a box of mean size in the middle
    told middle  true presence with that box: the box AP that is possible without looking at the image
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _record import ROOT, save, spread
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.config.plan import Plan
from dxc.data.cache import usable_cores
from dxc.evaluation.average_precision import TrueBoxes, box_metrics

VARIANTS = ("sppnet_original", "sppnet_1", "sppnet_2", "sppnet_3")
METRICS = ("average_precision", "accuracy", "box_ap50", "box_ap", "mean_iou")


def overrides_of(variant: str, arguments: argparse.Namespace) -> list[str]:
    return [
        f"experiment={variant}",
        f"source.chips={arguments.chips}",
        f"trainer.max_epochs={arguments.epochs}",
    ]


def trained(variant: str, seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Metrics of one `python train.py`."""
    store = f"sqlite:///{folder}/{variant}-{seed}.db"  # one store each, because they begin at the same time
    done = subprocess.run(
        [
            sys.executable, "train.py", *overrides_of(variant, arguments), f"seed={seed}", "progress=false",
            "hardware.measure=false", "hardware.predictors=[]", "profile=none", "any_size_file=false",
            "tracking.checkpoints=false", "again=true", f"tracking.uri={store}",
            f"hydra.run.dir={folder}/{variant}-{seed}",
        ],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{variant}, seed {seed}: {done.stderr}")
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name(variant).experiment_id])
    return {name: run.data.metrics[name] for name in METRICS}


def baselines(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Metrics of the answers without a network. Chips are made if needed."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plan = Plan.of(compose("train", overrides=overrides_of(VARIANTS[0], arguments)))
    datamodule = plan.data.build(source=plan.source.build())
    datamodule.prepare_data()
    cache, (fold,) = datamodule.cache, datamodule.folds
    label = cache.labels[fold.val]
    size = np.nanmean(cache.boxes(fold.train)[..., 2:], axis=(0, 1))
    middle = np.tile([0.5, 0.5, *size], (len(label), 1))
    truth = TrueBoxes(cache.boxes(fold.val), cache.sizes[fold.val])
    always = np.full(len(label), float(cache.labels[fold.train].mean()))
    share = float(label.mean())
    blind = {"average_precision": share, "accuracy": max(share, 1 - share)}
    return {
        "majority": blind,
        "middle": blind | box_metrics(always, middle, truth),
        "told middle": box_metrics(label.astype(float), middle, truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chips", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=usable_cores(), help="trainings, one thread each")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/detection.json")
    arguments = parser.parse_args()

    without = baselines(arguments)
    figures: dict[str, Any] = {
        "chips": arguments.chips, "epochs": arguments.epochs, "seeds": arguments.seeds, "without": without,
    }  # fmt: skip
    for name, metrics in without.items():
        print(f"{name:16} " + ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items()))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.at_once) as pool:
        jobs = {
            (variant, seed): pool.submit(trained, variant, seed, arguments, Path(name))
            for seed in range(arguments.seeds)
            for variant in VARIANTS
        }
        for variant in VARIANTS:
            of_seeds = [jobs[variant, seed].result() for seed in range(arguments.seeds)]
            figures[variant] = {metric: [each[metric] for each in of_seeds] for metric in METRICS}
            print(f"{variant:16} " + ", ".join(f"{m} {spread(v, 3)}" for m, v in figures[variant].items()))
    best = max(VARIANTS, key=lambda variant: statistics.median(figures[variant]["average_precision"]))
    print(f"best by the median of average_precision: {best}")
    if arguments.save:
        save("detection", figures)


if __name__ == "__main__":
    main()
