"""Probabilities of windows as a raster: a cloud-optimised GeoTIFF, uint8, scale 1/255."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window

from dxc.files import whole_file
from dxc.geo.formats import GDAL_OPTIONS
from dxc.mapping.grid import Grid, Tile

SCALE = 1 / 255


def write_probabilities(path: Path, grid: Grid, crs: CRS, tiles: Iterable[tuple[Tile, np.ndarray]]) -> None:
    """Write the raster, whole or not at all. A pixel is as large as the stride and centred on its window's centre.
    Windows that were not looked at have no data (a mask), but for those that were spared: see mapping.finding.Found.

    Args:
        path: of the .tif.
        grid: of the windows.
        crs: of the map.
        tiles: with their probabilities (rows, columns), NaN where no window was looked at.

    Raises:
        OSError: it cannot be written.
        RasterioError: likewise.
    """
    half = grid.size // 2 + 0.5
    west = grid.column * grid.stride + half - grid.stride / 2
    north = -grid.row * grid.stride - half + grid.stride / 2
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "height": grid.rows, "width": grid.columns, "crs": crs,
        "transform": from_origin(west, north, grid.stride, grid.stride), "tiled": True, "blockxsize": 256,
        "blockysize": 256, "compress": "deflate",
    }  # fmt: skip
    with whole_file(path) as draft, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, **GDAL_OPTIONS):
        # whole_file removes all that begins like the draft
        flat = draft.with_name(f"{draft.name}.flat.tif")
        with rasterio.open(flat, "w", **profile) as file:
            file.scales, file.offsets = (SCALE,), (0.0,)
            file.set_band_description(1, "probability of a crossing")
            for tile, probability in tiles:
                window = Window(tile.column - grid.column, tile.row - grid.row, tile.columns, tile.rows)
                known = np.isfinite(probability)
                values = np.rint(np.where(known, probability, 0) * 255).astype(np.uint8)
                file.write(values, 1, window=window)
                file.write_mask(known, window=window)
        rasterio.shutil.copy(
            flat, draft, driver="COG", compress="deflate", overview_resampling="average", blocksize=256
        )
