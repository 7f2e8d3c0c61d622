"""Maps synthetic watersheds that were held out of training: what a map finds, and what it takes.

    python benchmarks/map.py --save               maps of all regions, with three seeds: about 6 hours of one core
    python benchmarks/map.py --extents --save     time and memory of 4, 16 and 64 km2; alone on the machine, please
    python benchmarks/map.py --tiny               a few minutes: small regions, one held out, little training

It takes the way of a user. For each region and seed, the other three regions are cut by prepare.py and train a network.
map.py then maps these three, and what it finds there beside the known crossings are hard negatives: prepare.py cuts
chips of them (negatives=), and a new network is trained. This makes a round more; --rounds says how many. After each
round the held-out region is mapped, and it has no part in anything before. Modes:

    corridor    windows near roads
    dense       a dense pass of the network says where windows are worth it; it is fitted on the training regions
    screened    both: windows near roads where the dense pass says so
    chips       windows everywhere, every fourth one first

A mode with -every looks at every window (every_window=true): chips-every decides chip by chip.

The training regions are mapped in the modes of --mine, with points from a probability of --mine-threshold on. Points of
the held-out region are matched one to one with the true crossings within 15 m. Its maps show points of a probability of
0.5; a threshold keeps those of them that are at least so probable. Intervals (95 %) draw subwatersheds. Flow passes
where the runoff of a hectare or more gets within 5 m of a true crossing on the elevation model with breach lines.
Seconds and processor time (`cpu`, which other programs change less) are those of the whole command, and so is the peak
of memory. Extents are squares of 2, 4 and 8 km, filled with mirrored copies of a region, and the network is that of the
last round without the region. Costs are medians of --repeats maps, of slow modes of one. The middle square is mapped
with all cores, too. Three more ways are there to compare with, the last two on the smaller squares: chips, chips-every,
and

    whole       windows everywhere of rasters that are read whole, as float64, as tools do that hold them in memory

Whatever is finished lies in --work, and the same command goes on from there. Give another folder after a change of the
code.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from _record import RESULTS, ROOT, save
from hydra import compose, initialize_config_dir
from rasterio.windows import Window

from dxc.config.plan import Plan
from dxc.data.cache import usable_cores
from dxc.data.folds import Fold
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import Metadata
from dxc.deploy.predictor import Predictor
from dxc.evaluation.crossings import BlockCounts, Blocks, MapScore, evaluate_map
from dxc.files import write_atomically
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.breach import Dem, breach_lines
from dxc.geo.chips import cut_region
from dxc.geo.flow import flow_at, subwatersheds
from dxc.geo.mosaic import open_mosaic
from dxc.geo.record import Record
from dxc.hardware.spec import device_name
from dxc.synthetic.source import REGIONS, RegionFiles, make_region, region_files
from dxc.text import counted
from dxc.training.crossval import train_fold

JITTER_M = 5
QUICK, SLOW = ["corridor", "screened", "dense", "chips"], ["chips-every", "whole"]
"""Modes whose cost is measured. The slow ones take minutes, so they are run once."""
LEAST_P = 0.5
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


class Mapped(NamedTuple):
    """A map, and what the command that made it took."""

    out: Path
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float

    @property
    def km2(self) -> float:
        return float(gpd.read_file(self.out, layer="mapped_area")["ground_km2"].item())

    def cost(self, km2: float | None = None) -> dict[str, float]:
        """What a km2 took; km2 is that of the map unless it is given."""
        km2 = self.km2 if km2 is None else km2
        return {
            "km2": km2, "seconds_per_km2": self.seconds / km2, "cpu_seconds_per_km2": self.cpu_seconds / km2,
            "km2_per_hour": 3600 * km2 / self.seconds, "peak_memory_mb": self.peak_memory_mb,
        }  # fmt: skip


class Compared(NamedTuple):
    """The points of a map beside the true ones."""

    truth: np.ndarray
    found: np.ndarray
    p: np.ndarray
    blocks: Blocks

    def score(self, threshold: float) -> MapScore:
        return evaluate_map(self.truth, self.found, self.p, self.blocks, threshold=threshold)


# ------------------------------------------------------------------------------------------- steps


def regions_of(arguments: argparse.Namespace, folder: Path) -> dict[str, RegionFiles]:
    """The synthetic regions, made where they are missing."""
    made = {}
    for spec in REGIONS:
        place = folder / "regions" / spec.name
        if not place.exists():
            print(f"making {spec.name}", flush=True)
            make_region(spec, place, crossings=arguments.chips // (2 * len(REGIONS)), seed=0)
        made[spec.name] = region_files(place)
    return made


def cut(
    files: RegionFiles,
    out: Path,
    region: str,
    seed: int,
    negatives: Sequence[Path],
    arguments: argparse.Namespace,
) -> Record:
    """python prepare.py"""
    report = cut_region(
        dem=files.dem, photo=files.photo, crossings=files.crossings, out=out, region=region,
        near=[files.roads, files.streams], jitter_m=JITTER_M, seed=seed, negatives=negatives,
        workers=arguments.threads, progress=False,
    )  # fmt: skip
    print(
        "  " + "; ".join(line for line in report.describe().splitlines() if "folder" not in line), flush=True
    )
    record = Record.read(report.folder)
    assert record is not None  # it was just written
    return record


def trained(chips: Path, normalise: str, seed: int, path: Path, arguments: argparse.Namespace) -> None:
    """Train on all chips of a folder and export. Nothing is chosen by the chips that validate: they train too."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [
            "source=chips", f"source.root={chips}", "data=7ch", f"data.normalise={normalise}", "data.split=region",
            f"seed={seed}", f"trainer.max_epochs={arguments.epochs}", f"model.width={arguments.width}",
            f"data.augment={arguments.augment}", "scheduler=cosine",
            "trainer.accelerator=auto", "trainer.precision=32-true", "progress=false",
            f"cache_dir={arguments.work / 'cache'}",
        ]  # fmt: skip
        plan = Plan.of(compose("train", overrides=overrides))
    datamodule = plan.data.build(source=plan.source.build())
    datamodule.prepare_data()
    cache = datamodule.cache
    assert cache is not None  # it was prepared
    everything = np.arange(len(cache.labels))
    fold = Fold("all", everything, everything[::10])
    done = train_fold(plan, datamodule, fold, 0, device_name(plan.trainer.accelerator))
    said = Metadata(
        **datamodule.fed, classes=cache.classes, photo_bands=cache.photo_bands, pixel_m=cache.pixel_m
    )
    export_onnx(done.model.eval(), path, in_channels=len(said.channels), size=100, metadata=said)
    print(f"  trained on {len(everything)} chips in {done.seconds:.0f} s", flush=True)


def mapped(
    onnx: Path,
    files: RegionFiles,
    out: Path,
    arguments: argparse.Namespace,
    *more: str,
    threshold: float = LEAST_P,
) -> Mapped:
    """python map.py"""
    said = out.with_suffix(".json")
    if not out.exists():
        said.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        str(ROOT / "map.py"), f"onnx={onnx}", f"dem={files.dem}", f"photo={files.photo}",
        f"out={out}", f"stride_m={arguments.stride}", f"threshold={threshold}", f"threads={arguments.threads}",
        "overwrite=true", "progress=false", f"hydra.run.dir={out.parent}/run", *more,
    ]  # fmt: skip
    return Mapped(out, *metered(said, command))


def metered(said: Path, script: list[str]) -> list[float]:
    """Run a script of Python: its seconds, its processor seconds and its peak of memory in MB. What `said` holds of an
    earlier call is taken."""
    if not said.exists():
        command = [sys.executable, "-c", METER, sys.executable, *script]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{script[0]} failed:\n{done.stdout}{done.stderr}")
        write_atomically(said, done.stdout.splitlines()[-1])
    used: list[float] = json.loads(said.read_text())
    return used


def keys_of(mode: str, files: RegionFiles, known: Sequence[RegionFiles]) -> list[str]:
    """What map.py is told of a mode. `known` are the training regions on which the dense pass is fitted."""
    if mode.endswith("-every"):
        return [*keys_of(mode.removesuffix("-every"), files, known), "every_window=true"]
    if mode == "corridor":
        return [f"roads={files.roads}"]
    if mode == "chips":
        return ["mode=chips"]
    near = [f"roads={files.roads}"] if mode == "screened" else []
    keys = ("dem", "photo", "crossings")
    fit = ["{" + ",".join(f"{key}:{getattr(each, key)}" for key in keys) + "}" for each in known]
    return ["mode=dense", *near, f"fit=[{','.join(fit)}]"]


def compared(made: Mapped, files: RegionFiles, parts: Sequence[shapely.Geometry]) -> Compared:
    points, truth = gpd.read_file(made.out, layer="crossings"), gpd.read_file(files.crossings)
    whole = shapely.box(*_bounds(files.dem))  # crossings away from the roads count too
    found, true = (np.column_stack([each.geometry.x, each.geometry.y]) for each in (points, truth))
    blocks = Blocks.of_polygons(
        parts, true, found, area=whole, roads=list(gpd.read_file(files.roads).geometry)
    )
    return Compared(true, found, points["probability"].to_numpy(float), blocks)


def _bounds(raster: Path) -> tuple[float, ...]:
    with rasterio.open(raster) as file:
        return tuple(file.bounds)


def flow_passes(files: RegionFiles, map_: Compared, threshold: float) -> float:
    """The share of true crossings that water passes, with the breach lines of the points of a threshold."""
    dem = Dem.look(open_mosaic("DEM", [files.dem]).file)
    lines = breach_lines(dem, map_.found[map_.p >= threshold]).lines
    after = flow_at(dem, map_.truth, lines=lines)
    return float(after.passes()[np.isfinite(after.area_ha)].mean())


def figures(scores: Sequence[MapScore]) -> dict[str, Any]:
    """Of maps as if they were one."""
    counts = BlockCounts.joined([each.counts for each in scores])
    main = counts.figures(scores[0].within_m)
    found: dict[str, Any] = {
        "crossings": int(counts.truth.sum()), "points": int(counts.predicted.sum()), "hits": main.hits
    }  # fmt: skip
    for name in ("recall", "precision", "false_alarms_per_km2", "false_alarms_per_road_km"):
        interval = getattr(main, name)
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def told(row: dict[str, Any]) -> str:
    def value(name: str) -> str:
        return f"{name} {row[name]:.3f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"

    return (
        f"{row['mode']:9} p >= {row['threshold']:g}, round {row['round']}: {value('recall')}  {value('precision')}  "
        f"{row['false_alarms_per_km2']:.2f} false alarms/km2"
    )


def told_cost(cost: dict[str, float]) -> str:
    return (
        f"{cost['seconds_per_km2']:.1f} s/km2 ({cost['cpu_seconds_per_km2']:.1f} cpu), "
        f"{cost['km2_per_hour']:.0f} km2/h, {cost['peak_memory_mb']:.0f} MB"
    )


# ------------------------------------------------------------------------------------------- the parts


def held_out(
    region: str, seed: int, normalise: str, regions: dict[str, RegionFiles], arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], Compared]]:
    """Rounds without a region, and its map after each: rows of figures, and the maps by mode and round."""
    others = [name for name in regions if name != region]
    home = arguments.work / f"{normalise}-{region}-{seed}"
    dem = Dem.look(open_mosaic("DEM", [regions[region].dem]).file)
    parts = subwatersheds(dem)
    rows: list[dict[str, Any]] = []
    maps: dict[tuple[str, int], Compared] = {}
    negatives: dict[str, list[Path]] = {name: [] for name in others}
    least = arguments.mine_threshold
    for number in range(arguments.rounds + 1):
        print(f"{region} held out, {normalise}, seed {seed}, round {number}", flush=True)
        place = home / (f"round{number}-{'-'.join(arguments.mine)}-{least:g}" if number else "round0")
        cuts = [
            cut(regions[name], place / "chips", name, seed, negatives[name], arguments) for name in others
        ]
        onnx = place / "model.onnx"
        if not onnx.exists():
            trained(place / "chips", normalise, seed, onnx, arguments)
        for mode in arguments.modes if number == arguments.rounds else arguments.early_modes:
            if mode == "dense" and normalise != "fixed":
                continue
            keys = keys_of(mode, regions[region], [regions[name] for name in others])
            made = mapped(onnx, regions[region], place / f"{mode}.gpkg", arguments, *keys)
            maps[mode, number] = map_ = compared(made, regions[region], parts)
            cost = made.cost()
            print(f"  {mode}: {told_cost(cost)}")
            for threshold in arguments.thresholds:
                row = {
                    "normalise": normalise, "region": region, "seed": seed, "round": number, "mode": mode,
                    "threshold": threshold, "chips_with": sum(each.positives for each in cuts),
                    "chips_without": sum(each.negatives for each in cuts),
                    "hard_negatives": sum(each.hard_negatives for each in cuts), **cost,
                    **figures([map_.score(threshold)]), "flow_passes": flow_passes(regions[region], map_, threshold),
                }  # fmt: skip
                rows.append(row)
                print(f"  {told(row)}, flow passes {row['flow_passes']:.3f}", flush=True)
        if number < arguments.rounds:
            for name, mode in itertools.product(others, arguments.mine):
                known = [regions[other] for other in others if other != name]
                out, keys = place / f"mined-{name}-{mode}-{least:g}.gpkg", keys_of(mode, regions[name], known)
                mapped(onnx, regions[name], out, arguments, *keys, threshold=least)
                negatives[name].append(out)
    return rows, maps


def maps_part(arguments: argparse.Namespace, regions: dict[str, RegionFiles]) -> None:
    rows: list[dict[str, Any]] = []
    for normalise in arguments.normalise:
        maps: dict[tuple[str, int], list[Compared]] = {}
        for region, seed in itertools.product(arguments.regions, arguments.seeds):
            found, own = held_out(region, seed, normalise, regions, arguments)
            rows += found
            for key, map_ in own.items():
                maps.setdefault(key, []).append(map_)
            summary = [
                {"normalise": normalise, "mode": mode, "round": number, "threshold": threshold, "maps": len(alike),
                 **figures([each.score(threshold) for each in alike])}
                for (mode, number), alike in sorted(maps.items()) for threshold in arguments.thresholds
            ]  # fmt: skip
            if arguments.save:
                kept(maps=rows, summary=summary, settings=settings_of(arguments))
        print(f"all maps, {normalise}:")
        for row in sorted(summary, key=lambda row: (row["mode"], row["threshold"], row["round"])):
            print(told(row))


def extents_part(arguments: argparse.Namespace, regions: dict[str, RegionFiles]) -> None:
    """Time and memory by the ground that is mapped, by a network that has not seen the first region."""
    region, normalise = arguments.regions[0], "fixed"
    others = [name for name in regions if name != region]
    home = arguments.work / f"{normalise}-{region}-0"
    if not (networks := sorted(home.glob("round*/model.onnx"))):
        for name in others:
            cut(regions[name], home / "round0" / "chips", name, 0, [], arguments)
        networks = [home / "round0" / "model.onnx"]
        trained(home / "round0" / "chips", normalise, 0, networks[0], arguments)
    onnx = networks[-1]
    edges = (400, 800, 1600) if arguments.tiny else (2000, 4000, 8000)
    rows: list[dict[str, Any]] = []
    for edge, mode, threads in measured_extents(edges, arguments.threads, usable_cores()):
        if mode not in arguments.extent_modes or edge // edges[0] not in arguments.extent_sizes:
            continue
        square = part_of(regions[region], arguments.work / "squares" / f"{region}-{edge}", edge)
        keys = keys_of(mode, square, [regions[name] for name in others]) if mode != "whole" else []
        costs: list[dict[str, float]] = []
        found = ""
        row: dict[str, Any] = {"extent_m": edge, "mode": mode, "threads": threads}
        for repeat in range(1 if mode in SLOW else arguments.repeats):
            out = arguments.work / "squares" / f"{region}-{edge}-{mode}-{threads}-{repeat}.gpkg"
            if mode == "whole":
                command = [__file__, "--read-whole", onnx, square.dem, square.photo]
                command += ["--stride", arguments.stride, "--threads", threads]
                used = metered(out.with_suffix(".json"), [str(each) for each in command])
                costs.append(Mapped(out, *used).cost((edge / 1000) ** 2))
                continue
            own = argparse.Namespace(**vars(arguments) | {"threads": threads})
            made = mapped(onnx, square, out, own, *keys)
            costs.append(made.cost())
            main = compared(made, square, [shapely.box(*_bounds(square.dem))]).score(LEAST_P).main
            row |= {"recall": main.recall.value, "precision": main.precision.value}
            found = f"; recall {main.recall.value:.3f}, precision {main.precision.value:.3f}"
        row |= {"repeats": len(costs)} | {
            name: float(np.median([each[name] for each in costs])) for name in costs[0]
        }
        spread = [each["cpu_seconds_per_km2"] for each in costs]
        row |= {"cpu_seconds_per_km2_low": min(spread), "cpu_seconds_per_km2_high": max(spread)}
        rows.append(row)
        print(
            f"{edge / 1000:g} x {edge / 1000:g} km, {mode}, {counted(threads, 'thread')}: {told_cost(row)}{found}",
            flush=True,
        )
    ratios = extent_ratios(rows, edges, arguments.threads)
    for mode, of in ratios.items():
        print(f"{mode}: {of['ground']:g} times the ground takes {of['memory']:.2f} times the memory")
        for name, ratio in of.items():
            if "speedup" in name:
                print(f"  {ratio:.1f} times as fast as every window, chip by chip ({name})")
    if arguments.save:
        named = settings_of(arguments) | {"network": onnx.parent.name}
        kept(extents=rows, extent_settings=named, extent_ratios=ratios)


def measured_extents(edges: Sequence[int], threads: int, cores: int) -> list[tuple[int, str, int]]:
    """Which edge, mode and threads are measured. Slow modes leave out the largest square, and all cores map the middle
    one."""
    measured = [(edge, mode, threads) for edge in edges for mode in QUICK + SLOW * (edge != edges[-1])]
    return measured + [(edges[1], mode, cores) for mode in [*QUICK, "chips-every"] if cores != threads]


def extent_ratios(
    rows: list[dict[str, Any]], edges: Sequence[int], threads: int
) -> dict[str, dict[str, float]]:
    """Of each mode: memory of its largest square by that of its smallest, and how many times as fast as chips-every it
    is: by processor time with `threads`, by wall time with all cores. The largest square is compared with chips-every
    on the middle one."""
    of = {(row["extent_m"], row["mode"], row["threads"]): row for row in rows}
    ratios: dict[str, dict[str, float]] = {}
    for mode in (*QUICK, "whole"):
        own = [(edge, of[edge, mode, threads]) for edge in edges if (edge, mode, threads) in of]
        if not own:
            continue
        (small, first), (large, last) = own[0], own[-1]
        ratios[mode] = {
            "ground": (large / small) ** 2,
            "memory": last["peak_memory_mb"] / first["peak_memory_mb"],
        }
        for edge, row in own:
            if (chips := of.get((min(edge, edges[1]), "chips-every", threads))) is None:
                continue
            ratios[mode][f"cpu_speedup_{edge / 1000:g}_km"] = (
                chips["cpu_seconds_per_km2"] / row["cpu_seconds_per_km2"]
            )
        for (edge, name, count), row in of.items():
            if name == mode and count != threads and (edge, "chips-every", count) in of:
                chips = of[edge, "chips-every", count]
                ratios[mode][f"wall_speedup_{edge / 1000:g}_km_all_cores"] = (
                    chips["seconds_per_km2"] / row["seconds_per_km2"]
                )
    return ratios


def read_whole(onnx: Path, dem: Path, photo: Path, stride: int, threads: int) -> None:
    """Windows everywhere, of rasters that are held in memory as float64."""
    predictor = Predictor(onnx, threads=threads)
    bands: dict[str, np.ndarray] = {}
    for path, names in ((dem, ("dem",)), (photo, PHOTO_BANDS)):
        with rasterio.open(path) as file:
            bands |= dict(zip(names, file.read(out_dtype="float64"), strict=True))
    size = 100
    height, width = bands["dem"].shape
    answers = np.zeros((height, width), np.float32)
    corners = list(itertools.product(range(0, height - size + 1, stride), range(0, width - size + 1, stride)))
    for start in range(0, len(corners), 32):
        batch = corners[start : start + 32]
        windows = {
            name: np.stack([band[row : row + size, column : column + size] for row, column in batch])
            for name, band in bands.items()
        }
        for (row, column), p in zip(batch, predictor.predict(windows).presence, strict=True):
            answers[row + size // 2, column + size // 2] = p
    print(f"{len(corners)} windows, {int((answers >= LEAST_P).sum())} of them with a crossing")


def kept(**parts: Any) -> None:
    """Write parts of the record and leave the others."""
    path = RESULTS / "map.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    own = {key: value for key, value in old.items() if key not in ("date", "device", "kind")}
    save("map", own | parts)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(arguments).items() if key not in ("save", "work")}


def part_of(files: RegionFiles, folder: Path, edge_m: int) -> RegionFiles:
    """The north-western square of a region, filled with mirrored copies where it is larger."""
    made = region_files(folder)
    if made.streams.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in ((files.dem, made.dem), (files.photo, made.photo)):
        with rasterio.open(source) as file:
            place = file.window_transform(Window(0, 0, edge_m, edge_m))
            profile = {**file.profile, "height": edge_m, "width": edge_m, "transform": place}
            pixels = file.read()
        edge = min(pixels.shape[1:])
        pixels = pixels[:, :edge, :edge]
        copies = range(-(-edge_m // edge))
        with rasterio.open(target, "w", **profile) as out:
            for row, column in itertools.product(copies, copies):
                tile = pixels[:, :: -1 if row % 2 else 1, :: -1 if column % 2 else 1]
                tile = tile[:, : edge_m - row * edge, : edge_m - column * edge]
                out.write(tile, window=Window(column * edge, row * edge, tile.shape[2], tile.shape[1]))
    west, north = place.c, place.f
    first = shapely.box(west, north - edge, west + edge, north)
    square = shapely.box(west, north - edge_m, west + edge_m, north)
    for name in ("crossings", "roads", "streams"):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [spec.name for spec in REGIONS]
    parser.add_argument("--regions", nargs="+", default=names, choices=names, help="to hold out, one by one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=1, help="of hard negatives")
    parser.add_argument("--repeats", type=int, default=3, help="of each measured map of an extent")
    parser.add_argument("--modes", nargs="+", default=["corridor", "screened", "dense"])
    parser.add_argument("--early-modes", nargs="*", default=["corridor"], help="of all rounds but the last")
    parser.add_argument(
        "--mine", nargs="+", default=["dense"], help="modes in which training regions are mapped"
    )
    parser.add_argument("--mine-threshold", type=float, default=0.1, help="of those maps")
    parser.add_argument("--normalise", nargs="+", default=["fixed"], help="fixed, per_chip (without dense)")
    parser.add_argument("--chips", type=int, default=800, help="of all regions, half of them crossings")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--augment", default="flip_rotate", help="none, flip_rotate")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--stride", type=int, default=2 * JITTER_M)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "benchmark_map")
    parser.add_argument("--extents", action="store_true", help="time and memory by extent, and nothing else")
    parser.add_argument("--extent-modes", nargs="+", default=QUICK + SLOW)
    parser.add_argument(
        "--extent-sizes", nargs="+", type=int, default=[1, 2, 4], help="edges, by the smallest"
    )
    parser.add_argument("--read-whole", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--tiny", action="store_true", help="small regions, one held out, one seed, little training"
    )
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/map.json after each region"
    )
    arguments = parser.parse_args()
    if arguments.read_whole:
        onnx, dem, photo = arguments.read_whole
        return read_whole(onnx, dem, photo, arguments.stride, arguments.threads)
    if arguments.tiny:
        arguments.regions, arguments.seeds, arguments.chips = ["IL"], [0], 160
        arguments.epochs, arguments.width = 3, 8
    arguments.work = (
        arguments.work.resolve()
        / f"{arguments.chips}-{arguments.width}-{arguments.epochs}-{arguments.augment}-{arguments.stride}"
    )
    regions = regions_of(arguments, arguments.work)
    (extents_part if arguments.extents else maps_part)(arguments, regions)


if __name__ == "__main__":
    main()
