"""A place with crossings that are known, and a network that sees them without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from torch import nn

from dxc.data.bands import fixed_constants
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import Metadata

CRS, WEST, NORTH = "EPSG:26915", 500_003, 5_000_007
WIDTH, HEIGHT, SIZE = 330, 260, 32
CROSSINGS = ((60, 70), (100, 65), (101, 170), (280, 200), (325, 130))
"""Column and row of crossings: two lie 40 m apart, one lies close to the edge of the raster."""


class SeesSpots(nn.Module):
    """Scores of a bright spot of the first channel within 5 pixels of the centre."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        middle = SIZE // 2
        part = image[:, 0, middle - 5 : middle + 6, middle - 5 : middle + 6]
        there = 40 * part.mean(dim=(1, 2)) - 4  # a whole spot of 5 x 5 pixels has a mean of 25 / 121
        return torch.stack([torch.zeros_like(there), there], dim=1)


def write_network(path: Path, model: nn.Module | None = None, **said: Any) -> Path:
    """Export a network of the channel red that sees the crossings of the world."""
    facts: dict[str, Any] = {"channels": ("red",), "normalise": "fixed", "jitter_m": 4.0, "pixel_m": 1.0}
    facts |= fixed_constants(("red",), "uint8") | said
    if facts["normalise"] != "fixed":
        facts["mean"] = facts["std"] = None
    export_onnx(
        model or SeesSpots(), path, in_channels=len(facts["channels"]), size=SIZE, metadata=Metadata(**facts)
    )
    return path


def elevations() -> np.ndarray:
    """Ground that falls to the south, a gully under each crossing, and a wall across it: metres, (HEIGHT, WIDTH)."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    ground = 100 - 0.02 * rows
    gullies = np.min([np.abs(columns - column) for column, _ in CROSSINGS], axis=0)
    ground = ground - np.clip(1.5 - 0.3 * gullies, 0, None)
    for column, row in CROSSINGS:
        wall = (np.abs(rows - row) <= 3) & (np.abs(columns - column) <= 20)
        ground = np.where(wall, 102 - 0.02 * row, ground)
    return ground.astype(np.float32)


def write_dem(folder: Path) -> list[Path]:
    """Two tiles, west and east, of elevations()."""
    paths = []
    for name, start, end in (("west", 0, 128), ("east", 128, WIDTH)):
        place = from_origin(WEST + start, NORTH, 1, 1)
        profile = {"driver": "GTiff", "count": 1, "height": HEIGHT, "width": end - start, "dtype": "float32"}
        paths.append(folder / f"dem_{name}.tif")
        with rasterio.open(paths[-1], "w", crs=CRS, transform=place, nodata=-9999, **profile) as file:
            file.write(elevations()[:, start:end], 1)
    return paths


def write_world(folder: Path, *, hole: bool = True) -> dict[str, Path]:
    """photo.tif with a bright spot at each crossing, truth.gpkg, and roads.gpkg in another CRS.

    Args:
        folder: where to.
        hole: whether a part of the photo is without data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photo = np.random.default_rng(0).integers(1, 20, (3, HEIGHT, WIDTH), dtype=np.uint8)
    for column, row in CROSSINGS:
        photo[0, row - 2 : row + 3, column - 2 : column + 3] = 255
    if hole:
        photo[:, 200:230, 150:190] = 0
    profile = {"driver": "GTiff", "count": 3, "height": HEIGHT, "width": WIDTH, "dtype": "uint8", "nodata": 0}
    with rasterio.open(
        folder / "photo.tif", "w", crs=CRS, transform=from_origin(WEST, NORTH, 1, 1), **profile
    ) as file:
        file.write(photo)
    xy = np.array(CROSSINGS) + 0.5
    points = gpd.points_from_xy(WEST + xy[:, 0], NORTH - xy[:, 1], crs=CRS)
    gpd.GeoDataFrame(geometry=points).to_file(folder / "truth.gpkg")
    from shapely import LineString

    road = LineString([(WEST + 40, NORTH - 68), (WEST + 120, NORTH - 68)])
    gpd.GeoDataFrame(geometry=[road], crs=CRS).to_crs("EPSG:4326").to_file(folder / "roads.gpkg")
    return {name: folder / file for name, file in (
        ("photo", "photo.tif"), ("truth", "truth.gpkg"), ("roads", "roads.gpkg"))}  # fmt: skip
