"""Times prepare.py, and shows that its memory does not grow with the raster.

    python benchmarks/prepare.py                 about 1 minute and 0.5 GB of temporary disk on 2 cores
    python benchmarks/prepare.py --photo-step 0.6 --save

A region of 10,000 x 10,000 m and one of 2,500 x 2,500 m have the same number of crossings, a 1 m DEM and a 4-band
photo. `python prepare.py` cuts each in its own process. All printed figures are measured medians of the repeats.
Seconds include the start of Python, which is also given separately.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from _record import ROOT, save
from rasterio.transform import from_origin
from rasterio.windows import Window

CRS, LEFT, TOP, CHIP_M, BANDS = "EPSG:26915", 500_000, 5_000_000, 100, 5
BLOCK = 512


def write_raster(path: Path, extent_m: int, step: float, bands: int, dtype: str) -> None:
    """A tiled, deflated GeoTIFF as agencies deliver them, block by block: noise on a slope."""
    cells = round(extent_m / step)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 16, (bands, BLOCK, BLOCK))
    profile = {"driver": "GTiff", "width": cells, "height": cells, "count": bands, "dtype": dtype, "crs": CRS}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate"}
    with rasterio.open(path, "w", transform=from_origin(LEFT, TOP, step, step), **profile) as file:
        for row in range(0, cells, BLOCK):
            for col in range(0, cells, BLOCK):
                height, width = min(BLOCK, cells - row), min(BLOCK, cells - col)
                block = noise[:, :height, :width] + (row + col) / cells * 100
                file.write(block.astype(dtype), window=Window(col, row, width, height))


def make_region(folder: Path, extent_m: int, points: int, photo_step: float) -> None:
    folder.mkdir()
    write_raster(folder / "dem.tif", extent_m, 1.0, 1, "float32")
    write_raster(folder / "photo.tif", extent_m, photo_step, 4, "uint8")
    rng = np.random.default_rng(1)
    x, y = rng.uniform(60, extent_m - 60, (2, points))
    gpd.GeoDataFrame(geometry=gpd.points_from_xy(LEFT + x, TOP - y), crs=CRS).to_file(folder / "points.gpkg")


def cut(folder: Path, workers: int) -> tuple[float, float, int]:
    """Seconds, peak resident memory in MB (1e6 bytes) and chip pairs of one `python prepare.py`."""
    command = [
        sys.executable, str(ROOT / "prepare.py"), f"dem={folder}/dem.tif", f"photo={folder}/photo.tif",
        f"crossings={folder}/points.gpkg", f"out={folder}/chips", "region=R", "overwrite=true",
        "min_distance_m=75", "progress=false", f"workers={workers}", f"hydra.run.dir={folder}/run",
    ]  # fmt: skip
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)  # the peak of this child, not of all children so far
    seconds = time.perf_counter() - started
    found = re.search(r"(\d+) chips with a crossing, (\d+) without", output)
    if status != 0 or found is None:
        raise SystemExit(f"prepare.py failed:\n{output}")
    scale = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * scale / 1e6, int(found[1]) + int(found[2])


def start_up_seconds() -> float:
    """Seconds that Python and its imports take, without a cut."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import dxc.geo.chips, hydra"], cwd=ROOT, check=True)
    return time.perf_counter() - started


def measure(folder: Path, extent_m: int, arguments: argparse.Namespace) -> dict[str, Any]:
    make_region(folder, extent_m, arguments.points, arguments.photo_step)
    runs = [cut(folder, arguments.workers) for _ in range(arguments.repeats)]
    seconds, memory_mb = (statistics.median(run[i] for run in runs) for i in (0, 1))
    pairs = runs[0][2]
    result = {
        "extent_m": extent_m,
        "chip_pairs": pairs,
        "seconds": seconds,
        "seconds_all": [round(run[0], 2) for run in runs],
        "output_mpixel_per_s": pairs * BANDS * CHIP_M**2 / seconds / 1e6,
        "area_mpixel_per_s": extent_m**2 / seconds / 1e6,
        "peak_memory_mb": memory_mb,
        "raster_mb": extent_m**2 * (4 + 4 / arguments.photo_step**2) / 1e6,
    }
    print(
        f"{extent_m} x {extent_m} m, {result['raster_mb']:.0f} MB raw: {pairs} pairs in {seconds:.1f} s\n"
        f"  {result['output_mpixel_per_s']:.2f} Mpixel/s written (every band of every chip counted)\n"
        f"  {result['area_mpixel_per_s']:.2f} Mpixel/s covered (1 m cells of the region)\n"
        f"  {memory_mb:.0f} MB peak memory"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=500, help="crossings in each region")
    parser.add_argument("--photo-step", type=float, default=1.0, help="metres; 0.6 is that of today's NAIP")
    parser.add_argument("--large", type=int, default=10_000, help="metres")
    parser.add_argument("--small", type=int, default=2_500, help="metres")
    parser.add_argument("--workers", type=int, default=2, help="threads of prepare.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/prepare.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        small = measure(Path(name) / "small", arguments.small, arguments)
        large = measure(Path(name) / "large", arguments.large, arguments)
    start_up = statistics.median(start_up_seconds() for _ in range(arguments.repeats))
    memory_ratio = large["peak_memory_mb"] / small["peak_memory_mb"]
    area_ratio = (arguments.large / arguments.small) ** 2
    print(f"of these seconds {start_up:.1f} are the start of Python and its imports")
    print(f"{area_ratio:.0f} times the area: {memory_ratio:.2f} times the memory")
    if arguments.save:
        save(
            "prepare",
            {
                "settings": {key: value for key, value in vars(arguments).items() if key != "save"},
                "small": small, "large": large, "start_up_seconds": start_up,
                "memory_ratio": memory_ratio, "area_ratio": area_ratio,
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
