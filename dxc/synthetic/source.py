"""Synthetic watersheds as files, and a source of chips. Chips are cut from them like from real watersheds.

There are four farmland regions, loosely like Nebraska, Illinois, California and North Dakota. terrain.py makes the plan
of a region, and render.py makes its rasters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import multiprocessing
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dxc.bars import Steps
from dxc.data.cache import usable_cores
from dxc.data.source import ChipSource
from dxc.errors import ConfigError, DataError, require_whole
from dxc.files import sync_everything, whole_folder
from dxc.geo.bands import PHOTO_BANDS
from dxc.processes import end_with_parent
from dxc.synthetic.render import Region, simulate_region, structure_box_m
from dxc.synthetic.terrain import EDGE_M, Floats, RegionSpec

log = logging.getLogger(__name__)

GENERATOR_VERSION = (
    2  # part of the cached folder's name: increase it when a pixel changes, here or in the cutter
)
NODATA = -9999.0
CHIP_M = 100  # edge of the published chips
LEAST_CHIP_M, LARGEST_CHIP_M = 16, 400  # larger chips without a crossing find no room

REGIONS: tuple[RegionSpec, ...] = (
    RegionSpec(
        name="NE", epsg=26914, origin=(630_000.0, 4_530_000.0), height_m=480.0, relief_m=7.0, hurst=0.8,
        tilt=0.004, stream_area_ha=2.0, depth_m=1.8, bank_slope=0.6, embankment_m=(0.5, 1.5),
        field_m=(210.0, 260.0), rotation_deg=0.0, soil=(0.47, 0.4, 0.32, 0.52),
        grass=(0.36, 0.41, 0.27, 0.58), crops=(0.45, 0.15, 0.1, 0.1, 0.2), paved=(0.52, 0.52, 0.52, 0.5),
        gravel=(0.72, 0.68, 0.6, 0.72), paved_share=0.3, wooded=0.5, wet=0.5, sun=(150.0, 50.0), haze=0.0,
    ),
    RegionSpec(
        name="IL", epsg=26916, origin=(390_000.0, 4_490_000.0), height_m=210.0, relief_m=4.0, hurst=0.75,
        tilt=0.003, stream_area_ha=1.8, depth_m=1.5, bank_slope=0.8, embankment_m=(0.4, 1.1),
        field_m=(260.0, 180.0), rotation_deg=2.0, soil=(0.33, 0.29, 0.25, 0.38),
        grass=(0.3, 0.38, 0.22, 0.6), crops=(0.15, 0.0, 0.25, 0.45, 0.15), paved=(0.44, 0.44, 0.45, 0.43),
        gravel=(0.66, 0.64, 0.6, 0.64), paved_share=0.6, wooded=0.6, wet=0.6, sun=(170.0, 60.0), haze=0.0,
    ),
    RegionSpec(
        name="CA", epsg=26910, origin=(570_000.0, 4_340_000.0), height_m=60.0, relief_m=11.0, hurst=0.85,
        tilt=0.008, stream_area_ha=2.0, depth_m=2.2, bank_slope=0.5, embankment_m=(0.6, 1.8),
        field_m=(160.0, 160.0), rotation_deg=12.0, soil=(0.58, 0.49, 0.38, 0.62),
        grass=(0.6, 0.54, 0.37, 0.66), crops=(0.25, 0.25, 0.15, 0.15, 0.2), paved=(0.38, 0.38, 0.4, 0.37),
        gravel=(0.64, 0.56, 0.46, 0.66), paved_share=0.5, wooded=0.35, wet=0.35, sun=(130.0, 45.0),
        haze=0.02,
    ),
    RegionSpec(
        name="ND", epsg=26915, origin=(230_000.0, 5_190_000.0), height_m=330.0, relief_m=2.5, hurst=0.75,
        tilt=0.002, stream_area_ha=2.2, depth_m=1.3, bank_slope=0.4, embankment_m=(0.6, 1.4),
        field_m=(300.0, 220.0), rotation_deg=-3.0, soil=(0.27, 0.25, 0.23, 0.31),
        grass=(0.44, 0.44, 0.3, 0.52), crops=(0.2, 0.3, 0.3, 0.1, 0.1), paved=(0.58, 0.57, 0.56, 0.56),
        gravel=(0.62, 0.58, 0.52, 0.6), paved_share=0.2, wooded=0.25, wet=0.65, sun=(160.0, 38.0), haze=0.0,
    ),
)  # fmt: skip


class RegionFiles(NamedTuple):
    """The files of one region: dem.tif, photo.tif, and the others as .gpkg. Their CRS is the region's UTM zone."""

    dem: Path
    photo: Path
    crossings: Path
    roads: Path
    streams: Path
    approaches: Path
    """Parts of roads that come close to a stream but are far from any crossing: the hardest negatives."""


def make_region(
    spec: RegionSpec, folder: Path | str, *, crossings: int, seed: int, boxes: bool = False, edge_m: float = EDGE_M
) -> RegionFiles:  # fmt: skip
    """Simulate a region and write its rasters and vectors. The files appear all at once.

    Args:
        spec: the kind of region.
        folder: a new folder for the files.
        crossings: number of crossings.
        seed: of the random numbers.
        boxes: whether crossings have the size of a box around them, in the columns width_m (east-west) and height_m.
        edge_m: least distance of a crossing from the edge of the raster.

    Raises:
        ConfigError: crossings < 1.
        DataError: the folder exists already, or there is no room for the crossings.
    """
    import geopandas
    import rasterio
    import shapely
    from rasterio.enums import ColorInterp
    from rasterio.transform import from_origin

    folder = Path(folder)
    if crossings < 1:
        raise ConfigError(f"crossings must be at least 1, not {crossings}")
    if folder.exists():
        raise DataError(f"{folder} exists already: remove it or name another folder")
    region = simulate_region(spec, crossings, seed, edge_m)
    west, north = spec.origin
    height, width = region.dem.shape

    def to_world(xy: Floats) -> Floats:
        return np.column_stack([west + xy[:, 0], north - xy[:, 1]])

    def write_raster(path: Path, bands: NDArray[Any], nodata: float | None, names: Sequence[str]) -> None:
        with rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=len(bands), dtype=bands.dtype,
            crs=f"EPSG:{spec.epsg}", transform=from_origin(west, north, 1.0, 1.0), nodata=nodata, tiled=True,
            blockxsize=256, blockysize=256, compress="deflate", zlevel=1,
            predictor=3 if bands.dtype.kind == "f" else 2,
        ) as file:  # fmt: skip
            if len(bands) == len(PHOTO_BANDS):  # GDAL would call the fourth band alpha
                file.colorinterp = [*file.colorinterp[:3], ColorInterp.undefined]
            file.write(bands)
            for i, name in enumerate(names, 1):
                file.set_band_description(i, name)

    def write_vectors(path: Path, shapes: list[Any], columns: dict[str, list[Any]]) -> None:
        frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=f"EPSG:{spec.epsg}")
        frame.to_file(path, driver="GPKG")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as part:
        write_raster(part / "dem.tif", region.dem[None], NODATA, ("elevation",))
        write_raster(part / "photo.tif", region.photo, None, PHOTO_BANDS)
        at = to_world(np.array([[c.x, c.y] for c in region.crossings]))
        columns: dict[str, list[Any]] = {
            "kind": ["culvert" if c.culvert else "bridge" for c in region.crossings]
        }
        if boxes:
            sizes = [structure_box_m(c, region.streams) for c in region.crossings]
            columns["width_m"], columns["height_m"] = (list(edges) for edges in zip(*sizes, strict=True))
        write_vectors(part / "crossings.gpkg", list(shapely.points(at)), columns)
        for name, lines in (("roads", region.roads), ("streams", region.streams)):
            shapes = [shapely.LineString(to_world(line.xy)) for line in lines]
            write_vectors(part / f"{name}.gpkg", shapes, {"kind": [line.kind for line in lines]})
        close = [shapely.LineString(to_world(xy)) for xy in find_approaches(region)]
        write_vectors(part / "approaches.gpkg", close, {"kind": ["approach"] * len(close)})
    return region_files(folder)


def find_approaches(region: Region, close_m: float = 38.0, far_m: float = 100.0) -> list[Floats]:
    """Parts of roads, each (n, 2), within close_m of a stream and at least far_m from every crossing."""
    from scipy.spatial import KDTree

    water = KDTree(np.concatenate([stream.xy for stream in region.streams]))
    points = KDTree(np.array([[c.x, c.y] for c in region.crossings]))
    found = []
    for road in region.roads:
        keep = (water.query(road.xy)[0] < close_m) & (points.query(road.xy)[0] > far_m)
        parts, count = ndimage.label(keep)
        found += [road.xy[parts == i] for i in range(1, count + 1) if (parts == i).sum() > 2]
    return found


def region_files(folder: Path) -> RegionFiles:
    """The paths that make_region writes in its folder."""
    names = ("dem.tif", "photo.tif", "crossings.gpkg", "roads.gpkg", "streams.gpkg", "approaches.gpkg")
    return RegionFiles(*(folder / name for name in names))


# ---------------------------------------------------------------- the source of chips


class SyntheticSource(ChipSource):
    """Chips of four synthetic regions, built once and kept.

    Args:
        chips: number of chips, a multiple of 8. Each region has a quarter, and half of them show a crossing.
        seed: another seed gives another watershed and other chips.
        cache_dir: holds synthetic-HASH/{regions,chips}/; HASH covers everything that the chips depend on.
        on_bad_chip: raise | skip, for the reader.
        jobs: regions made at once, one process each; None takes as many as there are cores, at most 4.
        near_share: share of the negatives that lie on a road or a stream; the others lie anywhere.
        jitter_m: largest distance of a crossing from its chip's centre, on either axis; less than half a chip.
        boxes: whether each chip with a crossing gets an annotation with the boxes in it (dxc.geo.voc).
        size_m: edge of a chip in metres and pixels. Chips of more than 100 m may show several crossings.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(
        self, chips: int = 1200, seed: int = 0, cache_dir: str = "cache", on_bad_chip: str = "raise",
        jobs: int | None = None, near_share: float = 0.9, jitter_m: float = 5.0, boxes: bool = False,
        size_m: int = CHIP_M,
    ) -> None:  # fmt: skip
        if chips < 8 or chips % 8:
            raise ConfigError(f"source.chips={chips}: needs a multiple of 8 (4 regions, half crossings)")
        if seed < 0:
            raise ConfigError(f"source.seed={seed}: needs 0 or more")
        if on_bad_chip not in ("raise", "skip"):
            raise ConfigError(f"source.on_bad_chip={on_bad_chip}: raise or skip")
        if jobs is not None and jobs < 1:
            raise ConfigError(f"source.jobs={jobs}: needs 1 or more, or null for one per core")
        if not 0 <= near_share <= 1:
            raise ConfigError(f"source.near_share={near_share}: a share lies between 0 and 1")
        if not isinstance(boxes, bool):
            raise ConfigError(f"source.boxes={boxes}: true or false")
        require_whole("source.size_m", size_m, at_least=LEAST_CHIP_M)
        if size_m > LARGEST_CHIP_M:
            raise ConfigError(f"source.size_m={size_m}: needs {LEAST_CHIP_M} to {LARGEST_CHIP_M} m")
        if not 0 <= jitter_m < size_m / 2:
            raise ConfigError(
                f"source.jitter_m={jitter_m}: needs 0 or more and less than half of source.size_m={size_m}"
            )
        self.chips, self.seed, self.near_share, self.jitter_m = chips, seed, near_share, jitter_m
        self.boxes, self.size_m = boxes, size_m
        self.cache_dir, self.on_bad_chip = Path(cache_dir), on_bad_chip
        self.photo_bands: Sequence[str] = (
            PHOTO_BANDS  # this and the next attribute are part of the interface ChipSource
        )
        self.check_georeference = True
        self.jobs = jobs or min(len(REGIONS), usable_cores())

    @property
    def noun(self) -> str:
        return "synthetic chips"

    @property
    def title(self) -> str:
        """'1,200 synthetic chips (seed 0)'."""
        return f"{self.chips:,} {self.noun} (seed {self.seed})"

    def check(self) -> None:
        """Do nothing: the chips are made when they are prepared."""

    def planned(self) -> tuple[Sequence[int], Sequence[str]]:
        """As many chips of each class in each region."""
        each = self.chips // (2 * len(REGIONS))
        names = sorted(spec.name for spec in REGIONS)
        return [0, 1] * (each * len(REGIONS)), [name for name in names for _ in range(2 * each)]

    def jitter(self) -> float:
        """As it was asked for."""
        return float(self.jitter_m)

    @property
    def folder(self) -> Path:
        """cache_dir/synthetic-HASH."""
        what: dict[str, Any] = {
            "version": GENERATOR_VERSION, "regions": [asdict(spec) for spec in REGIONS], "chips": self.chips,
            "seed": self.seed, "near_share": self.near_share, "jitter_m": self.jitter_m, "boxes": self.boxes,
            "size_m": self.size_m,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return self.cache_dir / f"synthetic-{digest[:12]}"

    def prepare(self) -> Path:
        """Build regions and chips if needed. Returns the root of the chips, in the published layout.

        The folder appears when all of it is done. A second process that needs the same folder waits.
        Raises DataError where the regions yield another number of chips than requested.
        """
        root = self.folder / "chips"
        if root.is_dir():
            return root
        from filelock import FileLock

        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_suffix(".lock")):
            if root.is_dir():
                return root
            with whole_folder(self.folder, locked=True) as part:
                self._build(part)
                sync_everything()
        return root

    def _build(self, part: Path) -> None:
        crossings = self.chips // 8
        tasks = [
            (spec, part, crossings, self.seed, self.near_share, self.jitter_m, self.size_m, self.boxes)
            for spec in REGIONS
        ]
        log.info(
            "making %d synthetic watersheds for %d chips (kept in %s)", len(tasks), self.chips, self.folder
        )
        with Steps(len(tasks), "making synthetic regions", "region") as bar:
            if self.jobs == 1:
                for task in tasks:
                    _make_and_cut(*task)
                    bar.update()
                return
            # spawn: forking a process that has started torch's or MLflow's threads may hang the child
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(self.jobs, len(tasks)), spawn, end_with_parent) as pool:
                for done in as_completed([pool.submit(_make_and_cut, *task) for task in tasks]):
                    done.result()
                    bar.update()


def _make_and_cut(
    spec: RegionSpec, part: Path, crossings: int, seed: int, near_share: float, jitter_m: float, size_m: int,
    boxes: bool,
) -> None:  # fmt: skip
    """One region into part/regions/NAME, its chips into part/chips/NAME."""
    from pyogrio import read_info

    from dxc.geo.chips import cut_region

    edge_m = max(EDGE_M, size_m / 2 + jitter_m + 10)
    # with the same seed, all regions would shift their chips alike: crossings would lie in the same pixels
    shifts = zlib.crc32(f"{seed} {spec.name}".encode()) if boxes else seed
    files = make_region(
        spec, part / "regions" / spec.name, crossings=crossings, seed=seed, boxes=boxes, edge_m=edge_m
    )
    close = [files.approaches] * 2 if read_info(files.approaches)["features"] else []
    cut_region(
        dem=files.dem, photo=files.photo, crossings=files.crossings, out=part / "chips", region=spec.name,
        # places are drawn by length: named twice, the short approaches give about a quarter of the hard negatives
        jitter_m=jitter_m, near=(files.roads, files.streams, *close), near_share=near_share,
        seed=shifts, progress=False, size_m=size_m, boxes=["width_m", "height_m"] if boxes else None,
        # the same distance beyond a chip's corner as the cutter's 100 m have for chips of 100 m
        min_distance_m=max(100.0, size_m / math.sqrt(2) + 29),
    )  # fmt: skip
    for label in "TF":
        found = len(list((part / "chips" / spec.name / f"{spec.name}DEM" / label).glob("*.tif")))
        if found != crossings:
            raise DataError(
                f"region {spec.name}: {found} chips of class {label} instead of {crossings}; try another seed"
            )
