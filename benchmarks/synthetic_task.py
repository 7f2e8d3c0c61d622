"""How hard is the synthetic task? It should need geometry, not averages, and be harder in a new region.

    python benchmarks/synthetic_task.py            about 6 minutes on 4 CPU cores
    python benchmarks/synthetic_task.py --quick    one fold of five, one region of four: 2 minutes

Prints three figures (accuracy, fraction of chips):
  a  logistic regression on the mean, standard deviation, least and greatest value of each channel; under 0.70
  b  ResNet of the published space, 5 folds, last of 5 epochs; 0.90 or more
  c  the same network, trained on three regions and validated on the fourth; clearly under b
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from _record import save  # first: it puts the project on the path
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from dxc.data.synthetic import SyntheticSource
from dxc.hardware import device_name
from dxc.models.resnet import ResNet

Array = NDArray[Any]
FOLDS, EPOCHS, BATCH, RATE = 5, 5, 16, 1e-3  # the published training


def read_chips(root: Path) -> tuple[Array, Array, Array]:
    """Raw channels (n, 7, 100, 100): dem red green blue nir ndwi ndvi; labels (n,); regions (n,)."""
    chips, labels, regions = [], [], []
    for dem_path in sorted(root.glob("*/*DEM/[FT]/*.tif")):
        region = dem_path.parents[2].name
        photo_path = root / region / f"{region}Aer" / dem_path.parent.name / dem_path.name
        with rasterio.open(dem_path) as dem, rasterio.open(photo_path) as photo:
            bands = np.concatenate([dem.read(), photo.read()]).astype(np.float32)
        red, green, nir = bands[1], bands[2], bands[4]
        ndwi, ndvi = (green - nir) / (green + nir), (nir - red) / (nir + red)
        chips.append(np.concatenate([bands, ndwi[None], ndvi[None]]))
        labels.append(int(dem_path.parent.name == "T"))
        regions.append(region)
    return np.stack(chips), np.array(labels), np.array(regions)


def normalised(chips: Array) -> Array:
    """Each band of each chip to 0..1 over the chip; the indices stay as they are."""
    low, high = chips.min((2, 3), keepdims=True), chips.max((2, 3), keepdims=True)
    scaled = (chips - low) / np.where(high > low, high - low, 1)
    return np.concatenate([scaled[:, :5], chips[:, 5:]], axis=1).astype(np.float32)


def logistic_accuracy(chips: Array, labels: Array) -> float:
    """Figure a: mean accuracy over the folds from 4 statistics a channel."""
    stats = [getattr(chips, name)((2, 3)) for name in ("mean", "std", "min", "max")]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=42)
    return float(cross_val_score(model, np.concatenate(stats, axis=1), labels, cv=folds).mean())


def train(chips: Array, labels: Array, fit: Array, check: Array, seed: int) -> float:
    """Accuracy on the chips `check` after training on the chips `fit` (indices)."""
    torch.manual_seed(seed)
    x = torch.from_numpy(chips).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)
    net = ResNet(in_channels=chips.shape[1], kernel=3, stride=2, padding=1, pool="none", width=32)
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        net.train()
        for batch in torch.from_numpy(fit)[torch.randperm(len(fit))].split(BATCH):
            if len(batch) < 2:
                continue  # batch norm needs two
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    net.eval()
    with torch.inference_mode():
        right = [(net(x[batch]).argmax(1) == y[batch]).sum() for batch in torch.from_numpy(check).split(100)]
    return float(sum(right)) / len(check)


def measure_logistic(chips: Array, scaled: Array, labels: Array) -> dict[str, Any]:
    """Figure a."""
    raw, per_chip = logistic_accuracy(chips, labels), logistic_accuracy(scaled, labels)
    print(f"a  logistic regression: {raw:.3f} raw, {per_chip:.3f} normalised", flush=True)
    return {"logistic_raw": raw, "logistic_normalised": per_chip}


def measure_network(scaled: Array, labels: Array, regions: Array, *, quick: bool) -> dict[str, Any]:
    """Figures b and c."""
    start = time.perf_counter()
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=42).split(scaled, labels))
    names = sorted({str(name) for name in regions})
    if quick:
        folds, names = folds[:1], names[:1]
    by_fold = [train(scaled, labels, fit, check, fold) for fold, (fit, check) in enumerate(folds)]
    print(f"b  network, folds: {np.mean(by_fold):.3f} of {np.round(by_fold, 3).tolist()}", flush=True)
    by_region = {}
    for name in names:
        left_out = regions == name
        by_region[name] = train(scaled, labels, np.flatnonzero(~left_out), np.flatnonzero(left_out), 0)
    listing = ", ".join(f"{name} {value:.3f}" for name, value in by_region.items())
    print(f"c  network, region left out: {np.mean(list(by_region.values())):.3f} of {listing}", flush=True)
    return {
        "k_fold_mean": float(np.mean(by_fold)), "k_fold": by_fold,
        "region_left_out_mean": float(np.mean(list(by_region.values()))), "region_left_out": by_region,
        "training_seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chips", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0, help="of the landscape")
    parser.add_argument("--channels", type=int, choices=(5, 7), default=7, help="5: without the indices")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one fold and one region only")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/synthetic_task.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as cache_dir:
        start = time.perf_counter()
        jobs = min(4, args.threads)
        root = SyntheticSource(args.chips, args.seed, cache_dir, jobs=jobs).prepare()
        seconds = round(time.perf_counter() - start, 1)
        chips, labels, regions = read_chips(root)
    print(f"generation: {seconds} s with {jobs} processes")
    scaled = normalised(chips)[:, : args.channels]
    result: dict[str, Any] = {
        "chips": len(chips), "seed": args.seed, "channels": args.channels, "epochs": EPOCHS, "batch": BATCH,
        "threads": args.threads, "generation_seconds": seconds, "generation_processes": jobs,
    }  # fmt: skip
    result |= measure_logistic(chips[:, : args.channels], scaled, labels)
    result |= measure_network(scaled, labels, regions, quick=args.quick)
    print(f"on {device_name()}, {args.threads} threads, {date.today().isoformat()}")
    if args.save:
        save("synthetic_task", result)


if __name__ == "__main__":
    main()
