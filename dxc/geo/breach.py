"""Breach lines: how water gets through a road embankment in an elevation model that does not show the pipe.

At each crossing, a straight line joins the lowest cells on both sides of the embankment. The ground is cut down to
that line and stays as it is everywhere else. This follows the practice of hydro-conditioning by hand, such as
Denmark's dhm-hydro-adjust: one straight segment a crossing, with an elevation at both ends, linear between them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from dxc.errors import ConfigError, DataError
from dxc.files import whole_file
from dxc.geo.elevation import METRES, elevation_unit
from dxc.geo.formats import GDAL_OPTIONS, RasterFile
from dxc.geo.photobands import PhotoBands
from dxc.geo.rasters import Raster, check_dem, crs_name, horizontal, open_raster, project_xy

Floats = NDArray[np.floating[Any]]

REACH_M = 25.0
"""Greatest distance of a line's end from its crossing: roads with their ditches are narrower than twice that."""
DIRECTIONS = 32  # in which the line is looked for
SECTOR_DEG = 45.0  # width of the sector in which the lowest cell of a direction is taken
LEAST_M = 3.0  # the ends lie at least this far from the crossing: its own pixels are embankment
MISS_M = 4.0  # greatest distance of the line from the crossing: points of a map err by as much
CELLS_AT_ONCE = 4_000_000  # of a strip of the DEM that is written again
LEAST_CUT_M = 0.001  # a cell that is higher than the line by less stays: it is on it
TYPES = ("int16", "int32", "uint16", "uint32", "float32", "float64")


@dataclass(frozen=True)
class Dem:
    """A DEM on its own grid. Elevations are read in metres."""

    raster: Raster
    crs: CRS
    transform: rasterio.Affine
    width: int
    height: int

    @classmethod
    def look(cls, file: RasterFile, dem_units: str | None = None) -> Dem:
        """Check a DEM whose cells are measured on a map.

        Args:
            file: the checked file.
            dem_units: unit of its elevations; None asks the file.

        Raises:
            DataError: the file is no DEM, or its CRS is in degrees.
        """
        with open_raster("DEM", file) as source:
            check_dem(file.path, source)
            crs = horizontal(source.crs)
            if not crs.is_projected:
                raise DataError(
                    f"DEM {file.path}: its CRS, {crs_name(crs)}, is in degrees; breach lines are measured in metres. "
                    "Project it first, e.g. gdalwarp -t_srs EPSG:26915 -r bilinear IN OUT"
                )
            if source.transform.b or source.transform.d:
                raise DataError(
                    f"DEM {file.path}: its grid is rotated. Write it with north up first: gdalwarp IN OUT"
                )
            unit = elevation_unit(file.path, source, dem_units)
            raster = Raster.look("DEM", file, source, crs, PhotoBands((1,)), unit)
            return cls(raster, crs, source.transform, source.width, source.height)

    @property
    def cell_m(self) -> tuple[float, float]:
        """Width and height of a cell in metres."""
        metres = self.crs.linear_units_factor[1]
        return abs(self.transform.a) * metres, abs(self.transform.e) * metres

    def open(self) -> Any:
        """Open it for reading, in rasterio."""
        return open_raster("DEM", self.raster.file)

    def to_cells(self, xy: Floats) -> Floats:
        """Column and row (n, 2) of coordinates (n, 2). (0.5, 0.5) is the centre of the first cell."""
        return np.column_stack(~self.transform @ (xy[:, 0], xy[:, 1]))

    def to_map(self, cells: Floats) -> Floats:
        """Coordinates (n, 2) of columns and rows (n, 2)."""
        return np.column_stack(self.transform @ (cells[:, 0], cells[:, 1]))

    def own(self, xy: Floats, crs: CRS | None = None) -> Floats:
        """Places in the DEM's CRS, (n, 2); not finite where they have none.

        Args:
            xy: (n, 2).
            crs: of the places; None: that of the DEM.
        """
        given = np.asarray(xy, float).reshape(-1, 2)
        return given if crs is None else np.column_stack(project_xy(horizontal(crs), self.crs, *given.T))

    def elevation_at(self, xy: Floats, crs: CRS | None = None) -> Floats:
        """Elevations (n,) in metres of the cells under some places; NaN where there is none.

        Args:
            xy: (n, 2).
            crs: of the places; None: that of the DEM.

        Raises:
            DataError: the DEM cannot be read.
        """
        own = self.own(xy, crs)
        found = np.full(len(own), np.nan)
        placed = np.isfinite(own).all(axis=1)
        cells = np.full((len(own), 2), -1.0)
        cells[placed] = self.to_cells(own[placed])
        inside = ((cells >= 0) & (cells < (self.width, self.height))).all(axis=1)
        with rasterio.Env(**GDAL_OPTIONS), self.open() as source:
            for i in np.flatnonzero(inside):
                column, row = np.floor(cells[i])
                elevation, valid = self.raster.elevations(source, Window(column, row, 1, 1))
                if valid[0, 0]:
                    found[i] = elevation[0, 0]
        return found

    def overview(self, edge: int = 1500) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
        """A small version for pictures: elevations in m, NaN where there is none, at most so many pixels wide and high.

        Args:
            edge: greatest width and height in pixels.

        Returns:
            (h, w), and its left, right, bottom and top edge in the DEM's CRS.

        Raises:
            DataError: the DEM cannot be read.
        """
        step = max(1, math.ceil(max(self.width, self.height) / edge))
        rows, columns = np.arange(0, self.height, step), np.arange(0, self.width, step)
        small = np.full((len(rows), len(columns)), np.nan, np.float32)
        with rasterio.Env(**GDAL_OPTIONS), self.open() as source:
            for i, row in enumerate(rows):
                elevation, valid = self.raster.elevations(source, Window(0, int(row), self.width, 1))
                small[i] = np.where(valid, elevation, np.nan)[0, columns]
        (left, top), (right, bottom) = self.to_map(np.array([(0, 0), (self.width, self.height)], float))
        return small, (float(left), float(right), float(bottom), float(top))

    def around(self, column: float, row: float, reach_m: float) -> Window | None:
        """The window of all cells within a distance of a place, clipped to the DEM; None where there is none."""
        wide, high = (reach_m / edge for edge in self.cell_m)
        left, right = max(0, math.floor(column - wide)), min(self.width, math.ceil(column + wide))
        top, bottom = max(0, math.floor(row - high)), min(self.height, math.ceil(row + high))
        return Window(left, top, right - left, bottom - top) if right > left and bottom > top else None


@dataclass(frozen=True)
class BreachLine:
    """A line through one embankment.

    Attributes:
        crossing: row of the crossing among those that were given.
        xyz: (2, 3) x and y in the DEM's CRS, elevation in metres; the upper end first. The elevation is linear
            between the ends.
    """

    crossing: int
    xyz: Floats


@dataclass(frozen=True)
class Breaches:
    """The lines of some crossings.

    Attributes:
        crs: of the lines, the DEM's.
        lines: in the order of the crossings.
        without: row of a crossing that has no line, and the reason.
    """

    crs: CRS
    lines: tuple[BreachLine, ...]
    without: dict[int, str]


# ------------------------------------------------------------------------------------ finding the lines


def lowest_ends(
    elevation: Floats,
    valid: NDArray[np.bool_],
    column: float,
    row: float,
    *,
    cell_m: tuple[float, float] = (1.0, 1.0),
    reach_m: float = REACH_M,
) -> Floats | None:
    """The ends of the breach line of one crossing.

    In each of DIRECTIONS directions, the lowest cell of a sector is taken. Of the pairs in opposite directions whose
    line passes the crossing within MISS_M, the one counts whose higher end is the lowest: a stream runs through there.

    Args:
        elevation: (h, w) around the crossing, m.
        valid: (h, w) which cells have data.
        column: of the crossing, in cells from the left edge of the array.
        row: of the crossing, in cells from its upper edge.
        cell_m: width and height of a cell, m.
        reach_m: greatest distance of an end from the crossing.

    Returns:
        (2, 3) column and row of the ends' cells (whole numbers) and their elevations in m, the upper end first. None
        where no two opposite sectors have data.
    """
    grid = np.indices(elevation.shape)
    rows, columns = grid[0], grid[1]
    x, y = (columns + 0.5 - column) * cell_m[0], (rows + 0.5 - row) * cell_m[1]
    away = np.hypot(x, y)
    usable = valid & (away <= reach_m) & (away >= max(LEAST_M, 0.75 * max(cell_m)))
    x, y, z = x[usable], y[usable], elevation[usable].astype(float)
    if not len(z):
        return None
    directions = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    # cosine of the angle between cell and direction, (directions, cells)
    cosine = (np.cos(directions)[:, None] * x + np.sin(directions)[:, None] * y) / away[usable]
    inside = cosine >= math.cos(math.radians(SECTOR_DEG / 2))
    lowest = np.where(inside, z, np.inf).argmin(axis=1)
    known = inside.any(axis=1)
    one, other = lowest[: DIRECTIONS // 2], lowest[DIRECTIONS // 2 :]
    pairs = known[: DIRECTIONS // 2] & known[DIRECTIONS // 2 :]
    length = np.hypot(x[other] - x[one], y[other] - y[one])
    with np.errstate(divide="ignore", invalid="ignore"):
        miss = np.abs(x[one] * y[other] - x[other] * y[one]) / length
    pairs &= length > 0
    if not pairs.any():
        return None
    near = pairs & (miss <= max(MISS_M, 0.75 * max(cell_m)))
    higher = np.maximum(z[one], z[other])
    # where no line passes close by, the one that passes closest
    best = int(
        np.where(near, higher, np.inf).argmin() if near.any() else np.where(pairs, miss, np.inf).argmin()
    )
    ends = [one[best], other[best]]
    if z[ends[0]] < z[ends[1]]:
        ends.reverse()
    return np.column_stack([columns[usable][ends], rows[usable][ends], z[ends]]).astype(float)


def breach_lines(
    dem: Dem,
    xy: Floats,
    crs: CRS | None = None,
    *,
    reach_m: float = REACH_M,
) -> Breaches:
    """The breach lines of crossings. Only windows around them are read.

    Args:
        dem: the elevation model.
        xy: (n, 2) the crossings.
        crs: of the crossings; None: that of the DEM.
        reach_m: greatest distance of an end from its crossing, m.

    Returns:
        The lines, and the reason for each crossing without one. One crossing does not affect another.

    Raises:
        ConfigError: reach_m is not more than two cells of the DEM.
        DataError: the DEM cannot be read.
    """
    if not reach_m > 2 * max(dem.cell_m):
        raise ConfigError(
            f"a breach line of {reach_m:g} m to each side needs cells of less than {reach_m / 2:g} m; those of "
            f"{dem.raster.path} have {max(dem.cell_m):g} m. Give a finer DEM, or a longer reach."
        )
    own = dem.own(xy, crs)
    lines: list[BreachLine] = []
    without: dict[int, str] = {}
    with rasterio.Env(**GDAL_OPTIONS), dem.open() as source:
        for i in range(len(own)):
            if not np.isfinite(own[i]).all():
                without[i] = "has no place in the DEM's CRS"
                continue
            column, row = dem.to_cells(own[i : i + 1])[0]
            window = dem.around(column, row, reach_m)
            if window is None:
                without[i] = "lies outside of the DEM"
                continue
            elevation, valid = dem.raster.elevations(source, window)
            ends = lowest_ends(
                elevation,
                valid,
                column - window.col_off,
                row - window.row_off,
                cell_m=dem.cell_m,
                reach_m=reach_m,
            )
            if ends is None:
                without[i] = "has no data on two opposite sides"
                continue
            place = dem.to_map(ends[:, :2] + (window.col_off + 0.5, window.row_off + 0.5))
            lines.append(BreachLine(i, np.column_stack([place, ends[:, 2]])))
    return Breaches(dem.crs, tuple(lines), without)


def cells_of(dem: Dem, line: BreachLine) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The cells that a line passes, each joined to the next by an edge or a corner.

    Args:
        dem: the elevation model.
        line: in its CRS.

    Returns:
        Rows, columns and the line's elevation in metres, each (n,).
    """
    ends = dem.to_cells(line.xyz[:, :2]) - 0.5  # cell centres are whole numbers
    steps = max(1, math.ceil(np.abs(ends[1] - ends[0]).max() - 1e-6))
    share = np.arange(steps + 1) / steps
    columns, rows = np.rint(ends[0] + share[:, None] * (ends[1] - ends[0])).astype(np.int64).T
    z = line.xyz[0, 2] + share * (line.xyz[1, 2] - line.xyz[0, 2])
    inside = (rows >= 0) & (rows < dem.height) & (columns >= 0) & (columns < dem.width)
    return rows[inside], columns[inside], z[inside]


def target_cells(
    dem: Dem, lines: Sequence[BreachLine]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The cells under all lines, by row. Where lines meet, a cell gets the lowest elevation.

    Args:
        dem: the elevation model.
        lines: in its CRS.

    Returns:
        Rows, columns and elevations in metres, each (n,).
    """
    if not lines:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    rows, columns, z = (
        np.concatenate(part) for part in zip(*(cells_of(dem, line) for line in lines), strict=True)
    )
    order = np.lexsort((z, columns, rows))
    rows, columns, z = rows[order], columns[order], z[order]
    first = np.append(True, (np.diff(rows) != 0) | (np.diff(columns) != 0))
    return rows[first], columns[first], z[first]


# ------------------------------------------------------------------------------------- writing the DEM


def breached(dem: Dem, lines: Sequence[BreachLine], out: Path) -> int:
    """Write a DEM in which the cells under the lines are cut down to them. All other cells stay as they are.

    It has the grid, type, unit, scale and no-data value of the DEM, tiled and compressed without loss. The DEM is read
    in strips, so memory does not grow with it. The file is there whole or not at all.

    Args:
        dem: the elevation model.
        lines: in its CRS.
        out: the new GeoTIFF; a file of that name is replaced.

    Returns:
        The number of cells that were lowered.

    Raises:
        DataError: `out` is the DEM itself or cannot be written, or the DEM cannot be read.
    """
    try:
        require_breachable(dem, out)
        rows, columns, z = target_cells(dem, lines)
        with whole_file(out) as draft, rasterio.Env(**GDAL_OPTIONS), dem.open() as source:
            return _write(dem, source, draft, rows, columns, z)
    except (OSError, RasterioError) as error:
        text = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(
            f"{out} cannot be written ({text}). Free some space and repeat the command, or give another place."
        ) from error


def require_breachable(dem: Dem, out: Path) -> None:
    """Raise DataError where `breached` could not write its file, so that nobody waits for that.

    Args:
        dem: the elevation model.
        out: the new GeoTIFF; its folder exists.
    """
    if any(out.exists() and out.samefile(file) for file in dem.raster.file.files if file.exists()):
        raise DataError(f"{out} is the DEM itself. Give another name for the breached one.")
    with rasterio.Env(**GDAL_OPTIONS), dem.open() as source:
        if source.dtypes[0] not in TYPES:
            raise DataError(
                f"DEM {dem.raster.path}: is {source.dtypes[0]}; a breached DEM is written as one of {', '.join(TYPES)}."
            )
        _require_room(out.parent, source)


def _require_room(folder: Path, source: Any) -> None:
    """GDAL only logs that a disk is full, so ask first. Compressed elevations take no more than these bytes."""
    needed = source.width * source.height * np.dtype(source.dtypes[0]).itemsize
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: has {free / 1e9:.1f} GB left, and the breached DEM may need {needed / 1e9:.1f} GB. Free some "
            "space, or give another place."
        )


def _write(
    dem: Dem, source: Any, draft: Path, rows: NDArray[np.int64], columns: NDArray[np.int64], z: Floats
) -> int:
    """Copy the DEM strip by strip with the cells lowered, and count these."""
    dtype = np.dtype(source.dtypes[0])
    block = 512 if min(source.width, source.height) >= 512 else 256
    profile = {
        "driver": "GTiff", "width": source.width, "height": source.height, "count": 1, "dtype": dtype,
        "crs": source.crs, "transform": source.transform, "nodata": source.nodata, "tiled": True,
        "blockxsize": block, "blockysize": block, "compress": "deflate", "bigtiff": "if_safer",
        "predictor": 3 if dtype.kind == "f" else 2,
    }  # fmt: skip
    masked = any(flag.name == "per_dataset" for flag in source.mask_flag_enums[0])
    high = max(block, CELLS_AT_ONCE // source.width // block * block)
    lowered = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(draft, "w", **profile) as file,
    ):
        file.scales, file.offsets = source.scales[:1], source.offsets[:1]
        file.units, file.descriptions = source.units[:1], source.descriptions[:1]
        file.update_tags(**{k: v for k, v in source.tags().items() if k == "AREA_OR_POINT"})
        for top in range(0, source.height, high):
            window = Window(0, top, source.width, min(high, source.height - top))
            stored = source.read(1, window=window)
            here = slice(*np.searchsorted(rows, (top, top + window.height)))
            if here.start < here.stop:
                r, c = rows[here] - top, columns[here]
                elevation, valid = dem.raster.elevations(source, window)
                cut = valid[r, c] & (z[here] < elevation[r, c] - LEAST_CUT_M)
                new = _in_file(z[here][cut], source, dem.raster.unit, dtype)
                # rounding never raises a cell
                below = new < stored[r[cut], c[cut]] if source.scales[0] > 0 else new > stored[r[cut], c[cut]]
                r, c = r[cut][below], c[cut][below]
                stored[r, c] = new[below]
                lowered += int(below.sum())
            file.write(stored, 1, window=window)
            if masked:
                file.write_mask(source.read_masks(1, window=window), window=window)
    return lowered


def _in_file(metres: Floats, source: Any, unit: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Elevations in metres as the file stores them: in its unit, less its offset, by its scale, rounded down."""
    values = (metres / METRES[unit] - source.offsets[0]) / source.scales[0]
    if dtype.kind in "iu":
        values = np.floor(values) if source.scales[0] > 0 else np.ceil(values)
        values = np.clip(values, np.iinfo(dtype).min + 1, np.iinfo(dtype).max)
    return values.astype(dtype)
