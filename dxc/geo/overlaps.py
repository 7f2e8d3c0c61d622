"""Finds chips that show the same ground, from the georeference of their files.

Parts of two overlapping chips are almost the same. A network that trains on one and is validated on the other could
memorise instead of recognise. Chips that are linked by overlaps, directly or through others, make a group. A
group stays on one side of every split (dxc.data.folds).

Any shared ground counts, not only a large share of a chip: two chips of one road that share a corner can show the same
crossing in it. A seam does not count: chips may touch, or overlap by less than half a pixel of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SEAM_PIXELS = 0.25  # cut off each edge before outlines are compared


class Outline(NamedTuple):
    """The ground under a chip: its CRS as WKT, and its four corners there, x0, y0, x1, y1, ..., without the seam."""

    crs: str
    corners: tuple[float, ...]


def outline_of(crs: Any, transform: Any, height: int, width: int) -> Outline | None:
    """The outline of a raster from its georeference.

    Args:
        crs: rasterio's CRS, or None.
        transform: rasterio's affine transform.
        height: of the raster in pixels.
        width: of the raster in pixels.

    Returns:
        None where the georeference is missing or makes no sense: no CRS, the identity, pixels without area, or
        coordinates that are not finite.
    """
    if not crs or transform.is_identity:
        return None
    low, right, bottom = SEAM_PIXELS, width - SEAM_PIXELS, height - SEAM_PIXELS
    corners = [transform @ corner for corner in ((low, low), (right, low), (right, bottom), (low, bottom))]
    flat = tuple(float(value) for corner in corners for value in corner)
    if not all(map(math.isfinite, flat)) or transform.determinant == 0:
        return None
    return Outline(crs.wkt, flat)


def pixel_m(outlines: Sequence[Outline | None], sizes: Sequence[tuple[int, int]]) -> float | None:
    """Edge of a pixel on the ground in metres.

    Args:
        outlines: of the chips.
        sizes: heights and widths of the same chips in pixels.

    Returns:
        None where one chip does not tell (a CRS in degrees, no georeference), where pixels are not square, or where
        chips differ by more than 1 %.
    """
    edges: list[float] = []
    metres: dict[str, float | None] = {}
    for outline, (height, width) in zip(outlines, sizes, strict=True):
        if outline is None:
            return None
        if outline.crs not in metres:
            metres[outline.crs] = _unit_m(outline.crs)
        unit = metres[outline.crs]
        if unit is None:
            return None
        a, b, c, _ = np.array(outline.corners).reshape(4, 2)
        edges += [
            unit * math.dist(a, b) / (width - 2 * SEAM_PIXELS),
            unit * math.dist(b, c) / (height - 2 * SEAM_PIXELS),
        ]
    if not edges or max(edges) > 1.01 * min(edges):
        return None
    return round(float(np.median(edges)), 6)


def _unit_m(crs: str) -> float | None:
    """Metres in a unit of a CRS; None where its unit is no length."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_wkt(crs).linear_units_factor[1]
    except CRSError:
        return None


def overlap_groups(outlines: Sequence[Outline | None]) -> np.ndarray:
    """Number of each chip's group, int64 (n,). Groups are counted from 0 in the order in which they appear.

    Chips of different CRSs are compared in longitude and latitude. A chip without an outline is a group of its own.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(outlines)
    if not count:
        return np.zeros(0, np.int64)
    pairs = np.concatenate([np.zeros((2, 0), int), *_overlaps(outlines)], axis=1)
    links = coo_array((np.ones(pairs.shape[1]), pairs), shape=(count, count))
    _, component = connected_components(links, directed=False)
    _, first, group = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group].astype(np.int64)


def _overlaps(outlines: Sequence[Outline | None]) -> list[np.ndarray]:
    """Pairs of chips that overlap, int (2, pairs): an array for each CRS, and one for pairs of different CRSs."""
    members: dict[str, list[int]] = {}
    for number, outline in enumerate(outlines):
        if outline is not None:
            members.setdefault(outline.crs, []).append(number)
    found, everywhere, numbers = [], [], []
    for crs, chips in members.items():
        corners = np.array([outline.corners for i in chips if (outline := outlines[i])]).reshape(-1, 4, 2)
        found.append(_overlapping(corners, np.array(chips)))
        if len(members) > 1 and (degrees := _in_degrees(crs, corners)) is not None:
            everywhere.append(degrees)
            numbers += chips
    if everywhere:
        found.append(_overlapping(np.concatenate(everywhere), np.array(numbers)))
    return found


def _overlapping(corners: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Numbers, int (2, pairs), of the outlines (n, 4, 2) that meet."""
    import shapely

    shapes = shapely.polygons(corners)
    return numbers[shapely.STRtree(shapes).query(shapes, "intersects")]


def _in_degrees(crs: str, corners: np.ndarray) -> np.ndarray | None:
    """Corners (n, 4, 2) as longitude and latitude; None where the CRS is not on the Earth, as for a building site."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        x, y = transform(crs, "EPSG:4326", *corners.reshape(-1, 2).T)
    except (CPLE_BaseError, RasterioError, ValueError):
        return None
    degrees = np.column_stack([x, y]).reshape(-1, 4, 2)
    return degrees if np.isfinite(degrees).all() else None
