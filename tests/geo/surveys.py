"""A survey as it is delivered: elevations, photo and crossings of the same 300 x 300 m, and the arguments of a cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio.transform import from_origin

from dxc.config.compose import PROJECT_ROOT

RASTERS = Path(os.environ.get("DXC_RASTERS", PROJECT_ROOT.parent / "shared" / "data" / "rasters"))
"""A folder of real GeoTIFFs, where there is one."""
CRS = "EPSG:26915"
LEFT, TOP, EDGE, SIZE = 500_000.0, 5_000_000.0, 300, 20
POINTS = [(LEFT + 60.5, TOP - 60.5), (LEFT + 240.5, TOP - 80.5), (LEFT + 150.5, TOP - 240.5)]


def write_raster(
    path: Path, pixels: np.ndarray, *, left: float = LEFT, top: float = TOP, driver: str = "GTiff",
    crs: str | None = CRS, **profile: Any,
) -> Path:  # fmt: skip
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    place = from_origin(left, top, 1, 1)
    profile |= {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "driver": driver}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", crs=crs, transform=place, **profile) as file:
        file.write(pixels)
    return path


def heights() -> np.ndarray:
    return np.random.default_rng(1).normal(300, 20, (EDGE, EDGE)).astype(np.float32)


def photo(bands: int = 4) -> np.ndarray:
    return np.random.default_rng(2).integers(1, 255, (bands, EDGE, EDGE)).astype(np.uint8)


def write_points(path: Path, xy: Sequence[tuple[float, float]] = POINTS, **options: Any) -> Path:
    gpd.GeoDataFrame(geometry=[shapely.Point(p) for p in xy], crs=CRS).to_file(path, **options)
    return path


def survey(folder: Path) -> dict[str, Any]:
    """Arguments of `cut_region` for a small cut."""
    return {
        "dem": write_raster(folder / "dem.tif", heights(), nodata=-9999),
        "photo": write_raster(folder / "photo.tif", photo(), photometric="minisblack"),
        "crossings": write_points(folder / "points.gpkg"),
        "out": folder / "chips",
        "region": "A",
        "size_m": SIZE,
        "min_distance_m": 40,
        "progress": False,
        "workers": 1,
    }


def chip(folder: Path, kind: str, number: int) -> np.ndarray:
    """Pixels of the chip of a crossing, counted from 1."""
    with rasterio.open(folder / f"A{kind}" / "T" / f"A_T_{number:05d}.tif") as file:
        return file.read()


def under(pixels: np.ndarray, number: int) -> np.ndarray:
    """The part of a raster of the survey that the chip of a crossing shows."""
    x, y = POINTS[number - 1]
    row, column = int(TOP - y) - SIZE // 2, int(x - LEFT) - SIZE // 2
    return pixels[..., row : row + SIZE, column : column + SIZE]
