"""Times the building of a cache, shows that it is linear in the chips, and times reopening.

    python benchmarks/reading.py            about 2 minutes and 1.5 GB of temporary disk on 4 cores

Chips are random and have the published layout (float32 elevation, 4-band uint8 photo, 100 x 100) and seven channels.
Each build runs in a fresh process. It is timed from the call to the opened cache, with the start of the worker
processes. The cache is cold, but the file cache of the operating system is not. In the same session, a bare loop in one
process opens both files of a chip with rasterio and stacks the same seven channels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import rasterio
from _record import save, spread
from rasterio.transform import from_origin

from dxc.data.bands import stack_channels
from dxc.data.cache import usable_cores

CHANNELS = ("dem", "red", "green", "blue", "nir", "ndwi", "ndvi")
BUILD = """
import json, time
from dxc.data.cache import Recipe, open_cache
if __name__ == "__main__":
    def opened():
        started = time.perf_counter()
        cache = open_cache({chips!r}, Recipe({channels!r}), cache_dir={cache!r}, progress=False)
        return time.perf_counter() - started, len(cache)
    (build, chips), (reopen, _) = opened(), opened()
    print(json.dumps([build, reopen, chips]))
"""


def write_chips(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        klass = "FT"[number % 2]
        place = from_origin(500_000 + 100 * number, 4_500_000, 1, 1)
        for kind, bands, dtype in (("DEM", 1, "float32"), ("Aer", 4, "uint8")):
            path = root / "NE" / f"NE{kind}" / klass / f"{number:05d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            profile = {"count": bands, "dtype": dtype, "width": 100, "height": 100, "crs": "EPSG:26914"}
            with rasterio.open(path, "w", driver="GTiff", transform=place, **profile) as raster:
                raster.write((rng.random((bands, 100, 100)) * 255).astype(dtype))


class PeakMemory(threading.Thread):
    """Samples the memory of a process and its children: the sum of their proportional set sizes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak_bytes = psutil.Process(pid), 0

    def run(self) -> None:
        while self.process.is_running():
            try:
                family = [self.process, *self.process.children(recursive=True)]
                self.peak_bytes = max(self.peak_bytes, sum(p.memory_full_info().pss for p in family))
            except psutil.Error:  # one of them has just ended
                continue
            time.sleep(0.02)


def build(chips: Path, folder: Path) -> tuple[float, float, float, int]:
    """(build seconds, reopen seconds, peak MB, chips) of one cold build in a fresh process."""
    script = folder / "build.py"
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        script.write_text(BUILD.format(chips=str(chips), channels=CHANNELS, cache=cache))
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        memory = PeakMemory(process.pid)
        memory.start()
        output, _ = process.communicate()
    build_seconds, reopen_seconds, count = json.loads(output)
    return build_seconds, reopen_seconds, memory.peak_bytes / 1e6, count


def bare_loop(chips: Path, count: int = 500) -> float:
    """Chips a second of one process without checks, cache or workers."""
    started = time.perf_counter()
    for path in sorted((chips / "NE/NEDEM").glob("*/*.tif"))[:count]:
        with rasterio.open(path) as raster:
            dem = raster.read(1)
        with rasterio.open(chips / "NE/NEAer" / path.parent.name / path.name) as raster:
            photo = dict(zip(("red", "green", "blue", "nir"), raster.read(), strict=True))
        stack_channels(dem, photo, CHANNELS)
    return count / (time.perf_counter() - started)


SPIN = (
    "import time; t = time.perf_counter(); sum(i * i for i in range(10**7)); print(time.perf_counter() - t)"
)


def effective_cores() -> float:
    """Number of cores that one process per core really gets. Shared machines give less than they promise."""

    def seconds(processes: int) -> float:
        running = [
            subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) for _ in range(processes)
        ]
        return statistics.mean(float(process.communicate()[0]) for process in running)

    cores = usable_cores()
    return cores * seconds(1) / seconds(cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chips", type=int, nargs=2, default=[1000, 4000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/reading.json")
    arguments = parser.parse_args()
    cores = effective_cores()
    print(f"{usable_cores()} processes at once get the work of {cores:.1f} cores done here")
    figures: dict = {
        "chips": arguments.chips,
        "repeats": arguments.repeats,
        "processes": usable_cores(),
        "effective_cores": round(cores, 2),
        "builds": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        medians = []
        for count in arguments.chips:
            chips = folder / f"chips{count}"
            write_chips(chips, count)
            loops, rates, reopens, peaks = [], [], [], []
            for _ in range(arguments.repeats):
                loops.append(bare_loop(chips))
                seconds, reopen, peak, read = build(chips, folder)
                rates.append(read / seconds)
                reopens.append(reopen)
                peaks.append(peak)
            ratio = [rate / loop for rate, loop in zip(rates, loops, strict=True)]
            print(
                f"{count} chips: {spread(rates, 0)} chips/s, {spread(ratio)} times the bare loop's "
                f"{spread(loops, 0)};\n  reopened in {spread(reopens, 3)} s; {max(peaks):.0f} MB peak memory "
                "(all processes)"
            )
            medians.append(statistics.median(rates))
            figures["builds"][str(count)] = {
                "chips_per_second": rates,
                "bare_loop_chips_per_second": loops,
                "ratio": ratio,
                "reopen_seconds": reopens,
                "peak_memory_mb": peaks,
            }
    growth = medians[0] / medians[1]
    print(f"time a chip at {arguments.chips[1]} chips is {growth:.2f} times that at {arguments.chips[0]}")
    if arguments.save:
        save("reading", figures | {"time_per_chip_growth": growth})


if __name__ == "__main__":
    main()
