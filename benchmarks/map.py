"""Maps a synthetic watershed that was held out of training: how long it takes, in how much memory, and what it finds.

    python benchmarks/map.py                     about an hour and 5 GB of temporary disk on 4 cores
    python benchmarks/map.py --tiny              about 5 minutes: one part, one seed, little training
    python benchmarks/map.py --regions IL ND --seeds 3 --save

For each region and seed, a network is trained on the other three regions, once with data.normalise=fixed and once with
per_chip. `python map.py` then maps the held-out region, each mode in a process of its own:

    corridor    windows near roads
    dense       a dense pass of the network says where windows are worth it; it is fitted on a training region
    chips       windows everywhere, chip by chip: what the others are compared with

Points are matched one to one with the true crossings within 15 m. Seconds are measured, of the whole command, and of
its processor time (`cpu`), which other programs on the machine change less. Peak memory is that of the command. Extents
are squares of 2, 4 and 8 km, filled with mirrored copies of the region: only time and memory are of interest there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from _record import ROOT, save
from hydra import compose, initialize_config_dir
from rasterio.windows import Window

from dxc.config.plan import Plan
from dxc.data.datamodule import ImageDataModule
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import Metadata
from dxc.evaluation.crossings import Blocks, evaluate_map
from dxc.hardware.spec import device_name
from dxc.synthetic.source import REGIONS, RegionFiles, region_files
from dxc.training.crossval import train_fold

NEAR = "corridor"
METER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[1:]).returncode
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
scale = 1 if sys.platform == "darwin" else 1024
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * scale / 1e6]))
sys.exit(code)
"""
"""Runs a command from a small process. Linux counts the memory of the process that starts another for that one too, and
this one has trained a network."""
TOLD = (
    "seconds_per_km2", "cpu_seconds_per_km2", "km2_per_hour", "peak_memory_mb", "map_recall", "map_precision",
    "false_alarms_per_km2",
)  # fmt: skip


def planned(normalise: str, seed: int, arguments: argparse.Namespace) -> Plan:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [
            "data=7ch", f"data.normalise={normalise}", "data.split=region", f"seed={seed}",
            f"source.chips={arguments.chips}", f"trainer.max_epochs={arguments.epochs}",
            f"model.width={arguments.width}", "trainer.accelerator=auto", "trainer.precision=32-true",
        ]  # fmt: skip
        return Plan.of(compose("train", overrides=overrides))


def network(plan: Plan, datamodule: ImageDataModule, region: str, path: Path) -> float:
    """Train on the other regions and export. Returns the accuracy on the chips of the region."""
    (number, fold), *_ = [(n, f) for n, f in enumerate(datamodule.folds) if f.name == region]
    trained = train_fold(plan, datamodule, fold, number, device_name(plan.trainer.accelerator))
    cache = datamodule.cache
    assert cache is not None  # it was prepared
    said = Metadata(
        **datamodule.fed, classes=cache.classes, photo_bands=cache.photo_bands, pixel_m=cache.pixel_m
    )
    export_onnx(trained.model.eval(), path, in_channels=len(said.channels), size=100, metadata=said)
    return trained.accuracy


def part_of(files: RegionFiles, folder: Path, edge_m: int | None, offset: int = 0) -> RegionFiles:
    """A square of a region from `offset` metres on, filled with mirrored copies where it is larger. None: all of it."""
    if edge_m is None:
        return files
    folder.mkdir()
    made = region_files(folder)
    for source, target in ((files.dem, made.dem), (files.photo, made.photo)):
        with rasterio.open(source) as file:
            place = file.window_transform(Window(offset, offset, edge_m, edge_m))
            profile = {**file.profile, "height": edge_m, "width": edge_m, "transform": place}
            pixels = file.read()[:, offset:, offset:]
        edge = pixels.shape[1]
        copies = range(-(-edge_m // edge))
        with rasterio.open(target, "w", **profile) as out:
            for row, column in itertools.product(copies, copies):
                tile = pixels[:, :: -1 if row % 2 else 1, :: -1 if column % 2 else 1]
                tile = tile[:, : edge_m - row * edge, : edge_m - column * edge]
                out.write(tile, window=Window(column * edge, row * edge, tile.shape[2], tile.shape[1]))
    west, north = place.c, place.f
    first = shapely.box(west, north - edge, west + edge, north)
    square = shapely.box(west, north - edge_m, west + edge_m, north)
    for name in ("crossings", "roads"):
        frame = gpd.read_file(getattr(files, name)).clip(first)[["geometry"]]
        parts = []
        for row, column in itertools.product(copies, copies):
            flip_x, flip_y = (-1 if column % 2 else 1), (-1 if row % 2 else 1)
            move_x = west + column * edge - (west if flip_x > 0 else -west - edge)
            move_y = north - row * edge - (north if flip_y > 0 else -north + edge)
            parts.append(frame.affine_transform([flip_x, 0, 0, flip_y, move_x, move_y]))
        shapes = gpd.GeoDataFrame(geometry=pd.concat(parts, ignore_index=True), crs=frame.crs).clip(square)
        shapes.to_file(getattr(made, name), driver="GPKG")
    return made


def mapped(onnx: Path, files: RegionFiles, out: Path, threads: int, *more: str) -> dict[str, Any]:
    """One `python map.py`: what it takes and what it finds."""
    command = [
        sys.executable, str(ROOT / "map.py"), f"onnx={onnx}", f"dem={files.dem}", f"photo={files.photo}",
        f"out={out}", f"threads={threads}", "overwrite=true", "progress=false",
        f"hydra.run.dir={out.parent}/run", *more,
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", METER, *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"map.py failed:\n{done.stdout}{done.stderr}")
    seconds, cpu_seconds, peak_memory_mb = json.loads(done.stdout.splitlines()[-1])
    area = gpd.read_file(out, layer="mapped_area")["km2"].item()
    points = gpd.read_file(out, layer="crossings")
    truth = gpd.read_file(files.crossings)
    with rasterio.open(files.dem) as file:
        whole = shapely.box(*file.bounds)  # crossings away from the roads count too
    found, true = (np.column_stack([each.geometry.x, each.geometry.y]) for each in (points, truth))
    score = evaluate_map(
        true, found, points["probability"], Blocks.of_grid(500, true, found, area=whole), threshold=0, draws=1
    )
    return {
        "km2": area, "seconds_per_km2": seconds / area, "cpu_seconds_per_km2": cpu_seconds / area,
        "km2_per_hour": 3600 * area / seconds, "peak_memory_mb": peak_memory_mb,
        "map_precision": float("nan"), **score.metrics(), "crossings": score.truth, "points": score.predicted,
    }  # fmt: skip


def told(name: str, figures: dict[str, Any]) -> str:
    return (
        f"{name:28} {figures['seconds_per_km2']:7.1f} s/km2 ({figures['cpu_seconds_per_km2']:.1f} cpu) "
        f"{figures['km2_per_hour']:7.1f} km2/h {figures['peak_memory_mb']:6.0f} MB  "
        f"recall {figures['map_recall']:.3f}  precision {figures['map_precision']:.3f}  "
        f"{figures['false_alarms_per_km2']:.1f} false alarms/km2"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--regions", nargs="+", default=[spec.name for spec in REGIONS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--chips", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--strides", type=int, nargs="+", default=[8, 12])
    parser.add_argument("--tiny", action="store_true", help="one part of IL, one seed, little training")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/map.json")
    arguments = parser.parse_args()
    edge, extents = None, (2000, 4000, 8000)
    if arguments.tiny:
        arguments.regions, arguments.seeds, arguments.chips = ["IL"], 1, 160
        arguments.epochs, arguments.width, arguments.strides = 3, 8, [12]
        edge, extents = 800, (400, 800)
    results: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for normalise in ("fixed", "per_chip"):
            for seed in range(arguments.seeds):
                plan = planned(normalise, seed, arguments)
                source = plan.source.build()
                datamodule = plan.data.build(source=source)
                datamodule.prepare_data()
                regions = source.folder / "regions"
                for region in arguments.regions:
                    onnx = folder / f"{normalise}-{region}-{seed}.onnx"
                    accuracy = network(plan, datamodule, region, onnx)
                    print(
                        f"{normalise}, {region} held out, seed {seed}: accuracy {accuracy:.4f} on its chips"
                    )
                    held_out = region_files(regions / region)
                    part = part_of(held_out, folder / f"{normalise}-{region}-{seed}", edge, offset=1000)
                    other = next(spec.name for spec in REGIONS if spec.name != region)
                    known = region_files(regions / other)
                    fit = [f"fit.{key}={getattr(known, key)}" for key in ("dem", "photo", "crossings")]
                    for stride in arguments.strides:
                        modes = {NEAR: [f"roads={part.roads}"], "chips": ["mode=chips"]}
                        if normalise == "fixed":
                            modes["dense"] = ["mode=dense", *fit]
                        for mode, more in modes.items():
                            keys = [f"stride_m={stride}", f"threshold={arguments.threshold}", *more]
                            found = mapped(onnx, part, folder / "map.gpkg", arguments.threads, *keys)
                            results.append(
                                {"normalise": normalise, "region": region, "seed": seed, "mode": mode,
                                 "stride_m": stride, "accuracy": accuracy, **found}
                            )  # fmt: skip
                            print(told(f"  {mode}, stride {stride} m", found))
                    if normalise == "fixed" and not sizes:
                        for extent in extents:
                            square = part_of(held_out, folder / f"square-{extent}", extent)
                            keys = [f"roads={square.roads}", f"stride_m={arguments.strides[-1]}"]
                            found = mapped(onnx, square, folder / "map.gpkg", arguments.threads, *keys)
                            sizes.append({"extent_m": extent, **found})
                            print(told(f"  {extent / 1000:g} x {extent / 1000:g} km, corridor", found))
    for normalise in ("fixed", "per_chip"):
        for mode in (NEAR, "dense", "chips"):
            for stride in arguments.strides:
                alike = [
                    each for each in results
                    if (each["normalise"], each["mode"], each["stride_m"]) == (normalise, mode, stride)
                ]  # fmt: skip
                if alike:
                    numbers = {
                        key: statistics.median(each[key] for each in alike) for key in alike[0] if key in TOLD
                    }
                    print(told(f"{normalise}, {mode}, {stride} m (median)", numbers))
    memory = sizes[-1]["peak_memory_mb"] / sizes[0]["peak_memory_mb"]
    print(f"{(extents[-1] / extents[0]) ** 2:g} times the ground: {memory:.2f} times the memory")
    if arguments.save:
        settings = {key: value for key, value in vars(arguments).items() if key != "save"}
        save("map", {"settings": settings, "maps": results, "extents": sizes, "memory_ratio": memory})


if __name__ == "__main__":
    main()
