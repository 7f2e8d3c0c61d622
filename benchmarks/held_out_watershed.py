"""Trains a detector on three synthetic watersheds and finds crossings in the fourth, which it has never seen.

    python benchmarks/held_out_watershed.py            about 10 minutes on 4 cores

Draws docs/figures/held_out_watershed.jpg. The detector is model=sppnet data=7ch with Adam for 20 epochs. It trains on
1,200 chips without those of the held-out region. Windows of 100 m slide in steps of 25 m over the part of that region
with the most crossings. A window with a crossing probability of at least 0.9 gives its box. Boxes whose centres lie
within 25 m of that of a more probable box are merged into their weighted mean. A crossing is found if a box overlaps
its own with an IoU of at least 0.25. Each box counts once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import torch
from _record import ROOT, save
from hydra import compose, initialize_config_dir
from PIL import Image
from rasterio.windows import Window

from dxc.config.plan import Plan
from dxc.data.bands import stack_channels
from dxc.evaluation.match import match
from dxc.geo.bands import PHOTO_BANDS
from dxc.hardware.spec import device_name
from dxc.report.detections import watershed
from dxc.report.figures import save as save_figure
from dxc.synthetic.source import region_files
from dxc.training.crossval import train_fold

WINDOW, STEP = 100, 25
CERTAIN, FOUND_IOU = 0.9, 0.25


def busiest(crossings: np.ndarray, height: int, width: int, edge: int) -> tuple[int, int]:
    """Row and column of the square of `edge` pixels, on a grid of STEP, with the most crossings (n, 2: x, y)."""
    corners = [(r, c) for r in range(0, height - edge + 1, STEP) for c in range(0, width - edge + 1, STEP)]
    inside = [
        ((crossings >= (c, r)) & (crossings < (c + edge, r + edge))).all(axis=1).sum() for r, c in corners
    ]
    return corners[int(np.argmax(inside))]


def windows(dem: np.ndarray, photo: np.ndarray, channels: Sequence[str]) -> tuple[np.ndarray, torch.Tensor]:
    """Upper left corners (n, 2: x, y) and images (n, C, WINDOW, WINDOW) of all windows, with the training channels."""
    height, width = dem.shape
    corners = [
        (c, r) for r in range(0, height - WINDOW + 1, STEP) for c in range(0, width - WINDOW + 1, STEP)
    ]
    images = []
    for c, r in corners:
        part = np.s_[r : r + WINDOW, c : c + WINDOW]
        bands = {name: band[part] for name, band in zip(PHOTO_BANDS, photo, strict=True)}
        images.append(stack_channels(dem[part], bands, channels))
    return np.array(corners), torch.from_numpy(np.stack(images))


def merged(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge boxes (n, 4) in pixels whose centres lie within STEP of that of a box with a higher score.

    Overlapping windows may give boxes for the same crossing that do not overlap each other. Returns the means, weighted
    by score, and the largest score of each.
    """
    left = np.argsort(-scores, kind="stable")
    found, best = [], []
    while len(left):
        near = np.linalg.norm(boxes[left, :2] - boxes[left[0], :2], axis=1) <= STEP
        found.append(np.average(boxes[left[near]], axis=0, weights=scores[left[near]]))
        best.append(scores[left[0]])
        left = left[~near]
    return np.array(found).reshape(-1, 4), np.array(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--region", default="IL", help="the one that is held out")
    parser.add_argument("--chips", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--edge", type=int, default=700, help="of the part that is shown, metres")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/held_out_watershed.json"
    )
    arguments = parser.parse_args()

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [
            "model=sppnet", "model.level=5", "data=7ch", "data.split=region", "task.box_weight=5",
            f"source.chips={arguments.chips}", f"trainer.max_epochs={arguments.epochs}",
            "trainer.accelerator=auto", "trainer.precision=32-true",
        ]  # fmt: skip
        plan = Plan.of(compose("train", overrides=overrides))
    source = plan.source.build()
    datamodule = plan.data.build(source=source)
    datamodule.prepare_data()
    (number, fold), *_ = [(n, f) for n, f in enumerate(datamodule.folds) if f.name == arguments.region]
    model = train_fold(plan, datamodule, fold, number, device_name(plan.trainer.accelerator)).model.eval()

    files = region_files(source.folder / "regions" / arguments.region)
    points = geopandas.read_file(files.crossings)
    with rasterio.open(files.dem) as dem_file, rasterio.open(files.photo) as photo_file:
        origin = dem_file.transform
        centres = np.column_stack([points.geometry.x - origin.c, origin.f - points.geometry.y])
        row, column = busiest(centres, dem_file.height, dem_file.width, arguments.edge)
        part = Window(column, row, arguments.edge, arguments.edge)
        dem, photo = dem_file.read(1, window=part), photo_file.read(window=part)
    edge = arguments.edge
    true = np.column_stack([centres - (column, row), points[["width_m", "height_m"]]]) / edge
    true = true[((true[:, :2] >= 0) & (true[:, :2] <= 1)).all(axis=1)]

    corners, images = windows(dem, photo, plan.data.channels)
    with torch.inference_mode():
        answers = [model(batch) for batch in images.split(64)]
    probability = torch.cat([each.presence for each in answers]).sigmoid().numpy()
    boxes = torch.cat([each.box for each in answers]).numpy() * WINDOW
    boxes[:, :2] += corners
    certain = probability >= CERTAIN
    boxes, scores = merged(boxes[certain], probability[certain])
    boxes = boxes / edge
    found = int((match(true, boxes, scores, min_iou=FOUND_IOU) >= 0).sum())
    print(
        f"{arguments.region}: {len(images)} windows, {len(boxes)} boxes, {found} of {len(true)} crossings found, "
        f"{len(boxes) - found} boxes at none"
    )
    whole = dict(zip(PHOTO_BANDS, photo, strict=True))
    picture = stack_channels(dem, whole, ["red", "green", "blue"])
    figure = watershed(picture, ["red", "green", "blue"], true, boxes, scores, min_iou=FOUND_IOU)
    with tempfile.TemporaryDirectory() as folder:
        drawn, _ = save_figure(figure, Path(folder), "figure")
        target = ROOT / "docs" / "figures" / "held_out_watershed.jpg"
        target.parent.mkdir(exist_ok=True)
        with Image.open(drawn) as image:  # a photo takes a fifth of the size as JPEG
            image.convert("RGB").save(target, quality=80, subsampling=0, optimize=True)
    if arguments.save:
        counts = {"region": arguments.region, "chips": arguments.chips, "epochs": arguments.epochs}
        counts |= {"windows": len(images), "boxes": len(boxes), "crossings": len(true), "found": found}
        save("held_out_watershed", counts)


if __name__ == "__main__":
    main()
