"""Does the water get through? Flow over a DEM before and after breaching.

Water that ponds behind an embankment is modelled by filling depressions (Wang and Liu 2006, doi
10.1080/13658810500433453), and then runs down the steepest of eight directions. A DEM is routed in tiles, so
memory does not grow with it. Water from farther away than their margin is not counted: contributing areas are lower
bounds, which a threshold of a hectare does not notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.transform import from_bounds
from rasterio.windows import Window

from dxc.geo.breach import LEAST_CUT_M, BreachLine, Dem, target_cells
from dxc.geo.formats import GDAL_OPTIONS

Floats = NDArray[np.floating[Any]]

WITHIN_M = 5.0
LEAST_HA = 1.0
POND_M = 0.1  # water that is shallower than this lies in the roughness of the ground
TILE = 2048  # edge of a tile in cells; routing takes about 60 bytes a cell
MARGIN_M = 500.0  # around a tile: a hectare is 100 m by 100 m
_NODATA = -9999.0


@dataclass(frozen=True)
class Flow:
    """Where water runs on one DEM.

    Attributes:
        area_ha: (n,) the greatest contributing area within WITHIN_M of each crossing, ha; NaN where the crossing lies
            outside of the DEM or has no data around it.
        ponded_m2: ground that is under more than POND_M of water once all depressions are full.
        mapped_m2: ground with data.
    """

    area_ha: Floats
    ponded_m2: float
    mapped_m2: float

    def passes(self, least_ha: float = LEAST_HA) -> NDArray[np.bool_]:
        """At which crossings (n,) the flow of so many hectares or more passes."""
        return np.nan_to_num(self.area_ha, nan=-1.0) >= least_ha


@dataclass(frozen=True)
class FlowChange:
    """What breach lines do to the flow.

    Attributes:
        before: on the DEM as it is.
        after: on the breached DEM.
        cells_changed: cells that the lines lower.
    """

    before: Flow
    after: Flow
    cells_changed: int

    def metrics(self) -> dict[str, float]:
        """Values for the table of metrics; none where no crossing lies on the DEM."""
        known = np.isfinite(self.after.area_ha)
        if not known.any():
            return {}
        return {
            "flow_passes": float(self.after.passes()[known].mean()),
            "ponded_km2": self.after.ponded_m2 / 1e6,
            "cells_changed": float(self.cells_changed),
        }


def accumulate(elevation: Floats, valid: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Fill depressions and route water. Water leaves at the edge of the data.

    Args:
        elevation: (h, w), m.
        valid: (h, w) which cells have data.

    Returns:
        The depth of the water in m, and the number of cells that drain through each, itself among them, both (h, w) and
        0 where there is no data.
    """
    if not valid.any():
        return np.zeros(elevation.shape, np.float32), np.zeros(elevation.shape, np.float32)
    depth, flow = _routed(elevation, valid)
    return np.where(valid, depth, 0), np.where(valid, flow.upstream_area(), 0).astype(np.float32)


def _routed(elevation: Floats, valid: NDArray[np.bool_]) -> tuple[Floats, Any]:
    """Depth of the water (h, w) in m, and the flow directions of pyflwdir, whose areas are numbers of cells."""
    import pyflwdir
    from affine import Affine

    ground = np.where(valid, elevation, _NODATA).astype(np.float32)
    if ground[valid].min() <= _NODATA:  # no elevation on Earth; a file may claim any
        ground[valid] -= ground[valid].min()
    filled, directions = pyflwdir.dem.fill_depressions(ground, nodata=_NODATA, outlets="edge")
    flow = pyflwdir.from_array(directions, ftype="d8", transform=Affine(1, 0, 0, 0, 1, 0), latlon=False)
    return filled - ground, flow


def subwatersheds(dem: Dem, *, least_km2: float = 0.25, edge: int = 1000) -> list[shapely.Geometry]:
    """Divide a DEM into subwatersheds, the blocks over which dxc.evaluation.crossings draws its intervals.

    They are found on a coarse version of the DEM, which is fine enough for that. Where a stream leaves the DEM or joins
    another, a subwatershed may be smaller; those of less than a tenth of least_km2 are left out.

    Args:
        dem: the elevation model.
        least_km2: area from which a stream begins a subwatershed.
        edge: greatest width and height of the coarse version in cells.

    Returns:
        Polygons or multipolygons in the DEM's CRS, the largest first.

    Raises:
        DataError: the DEM cannot be read.
    """
    elevation, (left, right, bottom, top) = dem.overview(edge)
    valid = np.isfinite(elevation)
    if not valid.any():
        return []
    high, wide = elevation.shape
    metres = dem.crs.linear_units_factor[1]
    cell_km2 = (right - left) / wide * (top - bottom) / high * metres**2 / 1e6
    _, flow = _routed(np.where(valid, elevation, 0), valid)
    labels, _ = flow.subbasins_area(least_km2 / cell_km2, uparea=flow.upstream_area())
    labels = np.where(valid, labels, 0).astype(np.int32)
    place = from_bounds(left, bottom, right, top, wide, high)
    parts: dict[int, list[shapely.Geometry]] = {}
    for outline, label in shapes(labels, mask=labels > 0, transform=place):
        parts.setdefault(int(label), []).append(shapely.geometry.shape(outline))
    whole = [shapely.union_all(each) for each in parts.values()]
    large = [each for each in whole if each.area * metres**2 / 1e6 >= least_km2 / 10]
    return sorted(large, key=shapely.area, reverse=True)


def flow_at(
    dem: Dem,
    xy: Floats,
    crs: CRS | None = None,
    *,
    lines: Sequence[BreachLine] = (),
    within_m: float = WITHIN_M,
) -> Flow:
    """Route water over a DEM, and see how much of it passes at crossings.

    Args:
        dem: the elevation model.
        xy: (n, 2) the crossings.
        crs: of the crossings; None: that of the DEM.
        lines: breach lines in the DEM's CRS. The cells under them are lowered before water is routed.
        within_m: distance from a crossing within which the flow counts, m.

    Raises:
        DataError: the DEM cannot be read.
    """
    own = dem.own(xy, crs)
    cells = np.full((len(own), 2), -1.0)
    placed = np.isfinite(own).all(axis=1)
    cells[placed] = dem.to_cells(own[placed])
    wide, high = dem.cell_m
    rows, columns, z = target_cells(dem, lines)
    area = np.full(len(own), np.nan)
    ponded = mapped = 0
    margin = round(MARGIN_M / min(wide, high))
    with rasterio.Env(**GDAL_OPTIONS), dem.open() as source:
        for top in range(0, dem.height, TILE):
            for left in range(0, dem.width, TILE):
                window = _grown(dem, left, top, margin)
                elevation, valid = dem.raster.elevations(source, window)
                r, c = rows - window.row_off, columns - window.col_off
                here = (r >= 0) & (r < window.height) & (c >= 0) & (c < window.width)
                elevation[r[here], c[here]] = np.minimum(elevation[r[here], c[here]], z[here])
                depth, upstream = accumulate(elevation, valid)
                core = (
                    slice(top - window.row_off, min(top + TILE, dem.height) - window.row_off),
                    slice(left - window.col_off, min(left + TILE, dem.width) - window.col_off),
                )
                ponded += int((depth[core] > POND_M).sum())
                mapped += int(valid[core].sum())
                inside = (cells // TILE == (left // TILE, top // TILE)).all(axis=1)
                inside &= (cells < (dem.width, dem.height)).all(axis=1)
                for i in np.flatnonzero(inside):
                    area[i] = _greatest(
                        upstream, valid, cells[i] - (window.col_off, window.row_off), dem.cell_m, within_m
                    )
    return Flow(area * wide * high / 1e4, ponded * wide * high, mapped * wide * high)


def flow_change(
    dem: Dem, xy: Floats, lines: Sequence[BreachLine], crs: CRS | None = None, *, within_m: float = WITHIN_M
) -> FlowChange:
    """Route water over a DEM as it is, and with breach lines cut into it.

    Args:
        dem: the elevation model.
        xy: (n, 2) the crossings at which the flow is looked at; these may be others than those of the lines.
        lines: breach lines in the DEM's CRS.
        crs: of the crossings; None: that of the DEM.
        within_m: distance from a crossing within which the flow counts, m.

    Raises:
        DataError: the DEM cannot be read.
    """
    before = flow_at(dem, xy, crs, within_m=within_m)
    after = flow_at(dem, xy, crs, lines=lines, within_m=within_m)
    return FlowChange(before, after, cells_lowered(dem, lines))


def cells_lowered(dem: Dem, lines: Sequence[BreachLine]) -> int:
    """How many cells of a DEM lie higher than the lines through them.

    Args:
        dem: the elevation model.
        lines: in its CRS.
    """
    count = 0
    rows, columns, z = target_cells(dem, lines)
    with rasterio.Env(**GDAL_OPTIONS), dem.open() as source:
        for row in np.unique(rows):
            on = rows == row
            window = Window(int(columns[on].min()), int(row), int(np.ptp(columns[on])) + 1, 1)
            elevation, valid = dem.raster.elevations(source, window)
            at = columns[on] - window.col_off
            count += int((valid[0, at] & (z[on] < elevation[0, at] - LEAST_CUT_M)).sum())
    return count


def _grown(dem: Dem, left: int, top: int, margin: int) -> Window:
    """A tile with its margin, clipped to the DEM."""
    x0, y0 = max(0, left - margin), max(0, top - margin)
    x1, y1 = min(dem.width, left + TILE + margin), min(dem.height, top + TILE + margin)
    return Window(x0, y0, x1 - x0, y1 - y0)


def _greatest(
    upstream: Floats, valid: NDArray[np.bool_], place: Floats, cell_m: tuple[float, float], within_m: float
) -> float:
    """The greatest number of upstream cells within a distance of a place; NaN where no cell there has data.

    Args:
        upstream: (h, w).
        valid: (h, w) which cells have data.
        place: column and row.
        cell_m: width and height of a cell, m.
        within_m: the distance, m. The cell of the place itself always counts.
    """
    reach = [int(np.ceil(within_m / edge)) for edge in cell_m]
    column, row = (int(v) for v in np.floor(place))
    rows = np.arange(max(0, row - reach[1]), min(upstream.shape[0], row + reach[1] + 1))
    columns = np.arange(max(0, column - reach[0]), min(upstream.shape[1], column + reach[0] + 1))
    x, y = (columns + 0.5 - place[0]) * cell_m[0], (rows + 0.5 - place[1]) * cell_m[1]
    near = np.hypot(x[None, :], y[:, None]) <= within_m
    near |= (rows[:, None] == row) & (columns[None, :] == column)
    near &= valid[np.ix_(rows, columns)]
    return float(upstream[np.ix_(rows, columns)][near].max()) if near.any() else float("nan")
