"""The rasters of a synthetic watershed: 1 m elevation and aerial photo, drawn from the plan in terrain.py.

First channels are carved into the ground, then embankments are laid over the channels. So the elevation model shows a
road that runs over a channel, and not the pipe under it. This is the "digital dam", the reason why crossings have to
be found. The photo comes last.

Rasters are (height, width), photos (4, height, width) with the bands red, green, blue, nir. Photos hold reflectance
(fraction) until they are developed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import KDTree
from scipy.special import ndtri

from dxc.errors import DataError
from dxc.synthetic.terrain import (
    CROSSINGS_PER_KM2,
    EDGE_M,
    FLOW_CELL_M,
    STEP_M,
    Crossing,
    Floats,
    Line,
    RegionSpec,
    find_streams,
    fractal_terrain,
    lay_roads,
    profile_roads,
)

# reflectance (fraction) of red, green, blue, nir
WATER = (0.17, 0.22, 0.21, 0.09)
TREE = (0.17, 0.25, 0.15, 0.55)
CONCRETE = (0.86, 0.85, 0.82, 0.80)
ROOF = (0.88, 0.87, 0.86, 0.84)
LUSH = (0.24, 0.37, 0.22, 0.70)
RIPE = (0.50, 0.47, 0.29, 0.60)
STUBBLE = (0.60, 0.54, 0.42, 0.63)

WALL_OFF_M = 1.4  # from the road's edge to the middle of a headwall
WALL_HALF_M = 1.5  # half the thickness of a headwall
BOX_MARGIN_M = 1.0  # people draw a box one pixel larger than the structure
LEAST_BOX_M = 8.0


@dataclass
class Region:
    """One region in memory; local coordinates."""

    spec: RegionSpec
    dem: Floats  # (h, w) float32, m
    photo: NDArray[np.uint8]  # (4, h, w)
    streams: list[Line]
    roads: list[Line]
    crossings: list[Crossing]
    water: NDArray[np.bool_] = field(repr=False)  # (h, w): open water, not under trees


# ---------------------------------------------------------------- from lines to pixels


@njit(cache=True)
def _stamp(
    xy: Floats, last: NDArray[np.bool_], reach_m: float, away: Floats, vertex: NDArray[np.int32]
) -> None:  # pragma: no cover - compiled
    """Lower `away` to the distance from the polylines, and note the nearest vertex, within reach_m.

    Args:
        xy: (n, 2) vertices of all lines, m.
        last: (n,) which vertices end a line.
        reach_m: distance from a line within which pixels are changed.
        away: (h, w) distance, m; changed.
        vertex: (h, w) index of the nearest vertex; changed.
    """
    height, width = away.shape
    for i in range(len(xy) - 1):
        if last[i]:
            continue
        ax, ay = xy[i]
        ux, uy = xy[i + 1, 0] - ax, xy[i + 1, 1] - ay
        square = ux * ux + uy * uy
        if square == 0.0:
            continue
        top, bottom = min(ay, ay + uy) - reach_m, max(ay, ay + uy) + reach_m
        left, right = min(ax, ax + ux) - reach_m, max(ax, ax + ux) + reach_m
        for r in range(max(0, int(top)), min(height, int(bottom) + 1)):
            for c in range(max(0, int(left)), min(width, int(right) + 1)):
                px, py = c + 0.5 - ax, r + 0.5 - ay
                t = min(1.0, max(0.0, (px * ux + py * uy) / square))
                d = np.hypot(px - t * ux, py - t * uy)
                if d < away[r, c] and d < reach_m:
                    away[r, c] = d
                    vertex[r, c] = i if t < 0.5 else i + 1


class Near(NamedTuple):
    """The pixels within reach of some lines, and the values of the nearest line there. All (k,)."""

    pixel: NDArray[np.int64]  # index into the flat raster
    away: Floats  # distance to the centre line, m
    vertex: NDArray[np.int32]  # nearest vertex, in the concatenation of all lines
    z: Floats
    half: Floats


def near(lines: Sequence[Line], shape: tuple[int, int], reach_m: float) -> Near:
    """Pixels of a raster (h, w) within reach_m of the lines."""
    away = np.full(shape, np.inf, np.float32)
    vertex = np.full(shape, -1, np.int32)
    xy = np.concatenate([line.xy for line in lines])
    last = np.zeros(len(xy), bool)
    last[np.cumsum([len(line.xy) for line in lines]) - 1] = True
    _stamp(xy, last, reach_m, away, vertex)
    index = np.flatnonzero(vertex >= 0)
    v = vertex.ravel()[index]
    z = np.concatenate([line.z for line in lines]).astype(np.float32)[v]
    half = np.concatenate([line.half_m for line in lines]).astype(np.float32)[v]
    return Near(index, away.ravel()[index], v, z, half)


def carve_channels(dem: Floats, streams: Near, bank_slope: float) -> None:
    """Cut beds with sloping banks into the ground; changes dem (h, w), m."""
    profile = streams.z + np.maximum(0, streams.away - streams.half) * bank_slope
    flat = dem.reshape(-1)
    flat[streams.pixel] = np.minimum(flat[streams.pixel], profile)


def raise_embankments(dem: Floats, roads: Near, ditch_m: Floats) -> None:
    """Lay road surfaces over whatever is there, channels too; changes dem (h, w), m.

    Fill slopes at 1 in 2 on either side, and cuts slope the same.

    Args:
        dem: (h, w), m; changed.
        roads: the pixels near roads, (k,).
        ditch_m: (k,) depth of a ditch 3 m wide beside the road, 0 for none.
    """
    flat = dem.reshape(-1)
    ground = flat[roads.pixel]
    beyond = roads.away - roads.half
    ground = ground - ditch_m * np.clip(1 - np.abs(beyond - 3.0) / 1.5, 0, 1)
    fill, cut = roads.z - beyond * 0.5, roads.z + np.maximum(0, beyond - 4.0) * 0.5
    shaped = np.maximum(np.minimum(ground, cut), fill)
    flat[roads.pixel] = np.where(beyond <= 0, roads.z, shaped)


class Window(NamedTuple):
    """A small square of a raster around a point: slices, and metres from the point along two axes."""

    part: tuple[slice, slice]
    u: Floats
    v: Floats


def window(shape: tuple[int, int], x: float, y: float, reach_m: float, axis: Any = (1.0, 0.0)) -> Window:
    """Pixels within reach_m of a point.

    Args:
        shape: (h, w) of the raster.
        x: of the point, m.
        y: of the point, m.
        reach_m: half the edge of the window.
        axis: unit vector along which u runs; v runs to the right of it.
    """
    top, bottom = max(0, int(y - reach_m)), min(shape[0], int(y + reach_m) + 1)
    left, right = max(0, int(x - reach_m)), min(shape[1], int(x + reach_m) + 1)
    dx, dy = np.arange(left, right)[None, :] + 0.5 - x, np.arange(top, bottom)[:, None] + 0.5 - y
    part = (slice(top, bottom), slice(left, right))
    return Window(part, dx * axis[0] + dy * axis[1], dy * axis[0] - dx * axis[1])


def cover(photo: Floats, pixel: NDArray[np.int64], reflectance: Any, shade: Any = 1.0) -> None:
    """Paint pixels in one reflectance.

    Args:
        photo: (4, h, w); changed.
        pixel: (k,) indices into a flat band.
        reflectance: (4,), fraction.
        shade: factor of the reflectance, a number or (k,).
    """
    for band, value in zip(photo, reflectance, strict=True):
        band.reshape(-1)[pixel] = value * shade


def cover_part(
    photo: Floats, w: Window, mask: NDArray[np.bool_], reflectance: Any, shade: float = 1.0
) -> None:
    """Paint the pixels of a window that a mask picks.

    Args:
        photo: (4, h, w); changed.
        w: the window.
        mask: of the window's shape.
        reflectance: (4,), fraction.
        shade: factor of the reflectance.
    """
    for band, value in zip(photo, reflectance, strict=True):
        band[w.part][mask] = value * shade


def texture(rng: Generator, size: int = 1024, exponent: float = 1.0) -> Floats:
    """Periodic noise (size, size) with mean 0 and standard deviation 1. Its amplitude falls as frequency^-exponent."""
    f = np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :])
    f[0, 0] = 1.0
    noise = fft.irfft2(fft.rfft2(rng.standard_normal((size, size))) * f**-exponent, s=(size, size))
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def tiled(tile: Floats, shape: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> Floats:
    """The periodic tile repeated over a raster (h, w)."""
    rolled = np.roll(tile, shift, (0, 1))
    times = (-(-shape[0] // tile.shape[0]), -(-shape[1] // tile.shape[1]))
    return np.tile(rolled, times)[: shape[0], : shape[1]]


# ---------------------------------------------------------------- the photo


def paint_fields(shape: tuple[int, int], spec: RegionSpec, tile: Floats, rng: Generator) -> Floats:
    """Reflectance (4, h, w) of a patchwork of fields, each with its crop, brightness and rows."""
    turn = np.radians(spec.rotation_deg)
    y, x = np.ogrid[: shape[0], : shape[1]]
    u = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)
    v = (y * np.cos(turn) - x * np.sin(turn)).astype(np.float32)
    wobble = tiled(tile, shape) * 2.0
    row = np.floor((v + wobble) / spec.field_m[1]).astype(np.int32)
    row -= row.min()
    shift = rng.uniform(0, spec.field_m[0], row.max() + 1).astype(np.float32)
    col = np.floor((u + wobble + shift[row]) / spec.field_m[0]).astype(np.int32)
    col -= col.min()
    columns = int(col.max()) + 1
    fields = row * columns + col
    count = int(fields.max()) + 1
    palette = np.array([LUSH, RIPE, STUBBLE, spec.soil, spec.grass])
    crop = rng.choice(5, count, p=spec.crops)
    colour = palette[crop] * np.exp(rng.normal(0, 0.14, (count, 1)) + rng.normal(0, 0.035, (count, 4)))
    rows_amplitude = (rng.random(count) < 0.6) * rng.uniform(0.02, 0.12, count)
    period = rng.uniform(4.0, 12.0, count)
    across = rng.random(count) < 0.5
    rows = np.sin(2 * np.pi * np.where(across[fields], u, v) / period.astype(np.float32)[fields])
    rows *= rows_amplitude.astype(np.float32)[fields]
    patchy = rng.uniform(0.03, 0.16, count).astype(np.float32)[fields]
    rows += 1 + patchy * tiled(tile, shape, (311, 97))
    return np.stack([colour[:, b].astype(np.float32)[fields] * rows for b in range(4)])


@njit(cache=True)
def _crowns(
    photo: Floats, trees: Floats, colour: Floats, sun: tuple[float, float], shadow: float
) -> None:  # pragma: no cover - compiled
    """Paint trees (n, 4: x, y, radius in m, brightness) with shadows; sun is the unit vector towards it."""
    _, height, width = photo.shape
    for i in range(len(trees)):
        x, y, radius, bright = trees[i]
        for r in range(max(0, int(y - 3 * radius)), min(height, int(y + 3 * radius) + 1)):
            for c in range(max(0, int(x - 3 * radius)), min(width, int(x + 3 * radius) + 1)):
                dx, dy = c + 0.5 - x, r + 0.5 - y
                d = np.hypot(dx, dy)
                if d < radius:
                    lit = bright * (1.0 + 0.45 * (dx * sun[0] + dy * sun[1]) / radius)
                    for b in range(4):
                        photo[b, r, c] = colour[b] * lit
                elif np.hypot(dx + sun[0] * radius * 1.2, dy + sun[1] * radius * 1.2) < radius * 0.9:
                    for b in range(4):
                        photo[b, r, c] *= shadow


def reaches(vertices: int, share: float, rng: Generator) -> NDArray[np.bool_]:
    """Marks along a line, (vertices,). They are true in stretches of some 100 m that cover about `share` of it."""
    sigma = 20.0
    wave = ndimage.gaussian_filter1d(rng.standard_normal(vertices + 120), sigma)[60:-60]
    deviation = (2 * np.sqrt(np.pi) * sigma) ** -0.5  # of white noise after that filter
    return wave < deviation * ndtri(share)


def plant_trees(streams: list[Line], side_m: float, spec: RegionSpec, rng: Generator) -> Floats:
    """Trees (n, 4: x, y, crown radius in m, brightness): riparian woods in reaches, groves, windbreaks."""
    found = []
    for stream in streams:
        wooded = reaches(len(stream.xy), spec.wooded, rng)
        at = stream.xy[wooded & (rng.random(len(wooded)) < 0.75)]
        found.append(at + rng.normal(0, 6.5, at.shape))
    km2 = (side_m / 1000) ** 2
    for _ in range(round(25 * km2)):  # groves
        n = rng.integers(4, 30)
        found.append(rng.uniform(0, side_m, 2) + rng.normal(0, rng.uniform(6, 18), (n, 2)))
    for _ in range(round(10 * km2)):  # windbreaks on the field grid
        angle = np.radians(spec.rotation_deg) + np.pi / 2 * rng.integers(2)
        along = np.arange(0, rng.uniform(60, 250), 4.5)[:, None] * (np.cos(angle), np.sin(angle))
        found.append(rng.uniform(0, side_m, 2) + along + rng.normal(0, 1.0, along.shape))
    xy = np.concatenate(found)
    return np.column_stack([xy, rng.uniform(1.8, 4.5, len(xy)), rng.uniform(0.75, 1.3, len(xy))])


def clear_of(xy: Floats, crossings: list[Crossing], roads: list[Line]) -> NDArray[np.bool_]:
    """Which places (n, 2) lie outside of the right of way, (n,). It has no trees, and is wider at crossings."""
    centre_lines = KDTree(np.concatenate([road.xy for road in roads]))
    points = KDTree(np.array([[c.x, c.y] for c in crossings]))
    return (centre_lines.query(xy)[0] > 8) & (points.query(xy)[0] > 20)


def paint_streams(
    photo: Floats, water: NDArray[np.bool_], streams: list[Line], at: Near, broad: Floats, rough: Floats,
    spec: RegionSpec, rng: Generator,
) -> None:  # fmt: skip
    """Paint a ragged strip of grass along the banks, then the bed: open water in some reaches, else bare soil."""
    ragged, soft = broad.reshape(-1), rough.reshape(-1)
    strip = at.pixel[at.away < at.half + 4 + 3 * ragged[at.pixel]]
    cover(photo, strip, spec.grass, 0.9 + 0.08 * soft[strip])
    wet = np.concatenate([reaches(len(s.xy), spec.wet, rng) for s in streams])[at.vertex]
    bed = at.away < at.half
    for part, colour in ((bed & ~wet, np.multiply(spec.soil, 0.85)), (bed & wet, WATER)):
        cover(photo, at.pixel[part], colour, 1 + 0.1 * soft[at.pixel[part]])
    water.reshape(-1)[at.pixel[bed & wet]] = True


def paint_roads(
    photo: Floats, roads: list[Line], at: Near, rough: Floats, spec: RegionSpec, rng: Generator,
) -> None:  # fmt: skip
    """Paint grassy verges 2 m wide, then the surface. Each road is a little lighter or darker than its kind."""
    soft = rough.reshape(-1)
    verge = at.pixel[at.away < at.half + 2.0]
    cover(photo, verge, spec.grass, 1 + 0.1 * soft[verge])
    surfaces = {"paved": spec.paved, "gravel": spec.gravel, "track": np.multiply(spec.soil, 1.1)}
    kinds = np.concatenate([np.full(len(r.xy), list(surfaces).index(r.kind)) for r in roads])
    wear = np.concatenate([np.full(len(r.xy), np.exp(rng.normal(0, 0.12))) for r in roads])
    for k, colour in enumerate(surfaces.values()):
        on = (at.away < at.half) & (kinds[at.vertex] == k)
        cover(photo, at.pixel[on], colour, wear[at.vertex[on]] + 0.05 * soft[at.pixel[on]])


def paint_trees(photo: Floats, trees: Floats, spec: RegionSpec) -> None:
    """Paint trees (n, 4) with their shadows on the side away from the sun."""
    azimuth = np.radians(spec.sun[0])
    _crowns(photo, trees, np.array(TREE), (float(np.sin(azimuth)), float(-np.cos(azimuth))), 0.55)


# ---------------------------------------------------------------- structures at crossings and elsewhere


def dig_pool(
    dem: Floats, w: Window, radius_m: float, level_m: float, bank_slope: float = 1.2
) -> NDArray[np.bool_]:
    """Dig an oval pool with sloping banks into dem, 1.4 times as long as wide.

    Returns which of the window's pixels lie within its shore.
    """
    out = np.hypot(w.u / 1.4, w.v) - radius_m  # roughly the distance from the shore, m
    dem[w.part] = np.minimum(dem[w.part], level_m + np.maximum(0, out) * bank_slope)
    return out < 0


def scour_pools(
    dem: Floats, photo: Floats, water: NDArray[np.bool_], crossings: list[Crossing], streams: list[Line],
    rng: Generator,
) -> None:  # fmt: skip
    """Dig a scour pool below the outlet of each culvert, and some ponding above its inlet. Most hold water.

    The outlet jet of a culvert scours a pool some pipe diameters wide (FHWA HEC-14, chapter 5). Call this before the
    embankments are raised, because they fill what lies under them.
    """
    for c in crossings:
        xy = streams[c.stream].xy
        here = int(np.argmin(np.hypot(xy[:, 0] - c.x, xy[:, 1] - c.y)))
        foot = c.road_half_m + min(4.0, 1.2 * max(0.5, c.road_z - c.bed_z))
        for side in (-1, 1):
            outlet = side > 0 and c.culvert
            radius = rng.uniform(3.0, 5.5) if outlet else rng.uniform(2.5, 4.5)
            there = here + side * round((foot + radius * 0.6) / STEP_M)
            x, y = xy[min(max(there, 0), len(xy) - 1)]
            w = window(dem.shape, x, y, 12.0, c.downstream)
            pool = dig_pool(dem, w, radius, c.bed_z - (rng.uniform(0.4, 0.8) if outlet else 0.1))
            if rng.random() < (0.92 if side > 0 else 0.8):
                cover_part(photo, w, pool, WATER)
                water[w.part] |= pool


def build_headwalls(photo: Floats, crossings: list[Crossing], rng: Generator) -> None:
    """Paint concrete walls where the stream passes under the road, on both sides of nearly every crossing."""
    for c in crossings:
        if rng.random() < 0.93:
            for side in (-1, 1):
                x, y = np.array([c.x, c.y]) + side * c.downstream * (c.road_half_m + WALL_OFF_M)
                w = window(photo.shape[1:], x, y, 9.0, c.along_road)
                half = rng.uniform(3.8, 5.5)
                wall = (np.abs(w.u) < half) & (np.abs(w.v) < WALL_HALF_M)
                cover_part(photo, w, wall, CONCRETE, rng.uniform(0.8, 1.0))
                c.wall_half_m = max(c.wall_half_m, half)


def structure_box_m(crossing: Crossing, streams: list[Line]) -> tuple[float, float]:
    """Width (east-west) and height in m of the box that a person would draw around a crossing, centred on it.

    The box holds the road where the stream passes under it, and the two ends of the pipe or bridge. The ends are as far
    apart as the road is wide. An end is as wide as its headwall or, without one, as the channel.
    """
    xy, halves = streams[crossing.stream].xy, streams[crossing.stream].half_m
    channel = float(halves[np.argmin(np.hypot(xy[:, 0] - crossing.x, xy[:, 1] - crossing.y))])
    along, half = crossing.along_road, crossing.wall_half_m or channel + 1.0
    ends = np.abs(crossing.downstream) * (crossing.road_half_m + WALL_OFF_M)
    extent = ends + np.abs(along) * half + np.abs(along[::-1]) * WALL_HALF_M + BOX_MARGIN_M
    width, height = np.maximum(2 * extent, LEAST_BOX_M)
    return float(width), float(height)


def scatter_works(
    dem: Floats, photo: Floats, water: NDArray[np.bool_], streams: list[Line], roads: list[Line],
    crossings: list[Crossing], spec: RegionSpec, rng: Generator,
) -> None:  # fmt: skip
    """Add ponds, slabs, sheds, berms and lots away from crossings. So no single part of a crossing gives it away.

    Two in three stand by a road or a stream, the others anywhere. All stay 40 m away from crossings.
    """
    side = dem.shape[0]
    km2 = side**2 / 1e6
    by = np.concatenate([line.xy for line in (*streams, *roads)])
    lines = KDTree(by)
    points = KDTree(np.array([[c.x, c.y] for c in crossings]))
    on_road = KDTree(np.concatenate([line.xy for line in roads]))
    for _ in range(round(600 * km2)):
        if rng.random() < 0.67:
            x, y = by[rng.integers(len(by))] + rng.normal(0, 14, 2)
        else:
            x, y = rng.uniform(0, side, 2)
        kind = rng.choice(5, p=(0.31, 0.33, 0.1, 0.13, 0.13))
        gap = on_road.query((x, y))[0]
        inside = 12 < x < side - 12 and 12 < y < side - 12
        if not inside or gap < 9 or points.query((x, y))[0] < 40:
            continue
        _, i = lines.query((x, y))
        j = min(max(int(i), 2), len(by) - 3)
        axis = by[j + 2] - by[j - 2]
        axis = axis / max(1e-6, np.hypot(*axis))
        if rng.random() < 0.5:
            axis = np.array([-axis[1], axis[0]])
        if kind == 0:  # stock pond or pool
            radius = min(rng.uniform(3.0, 8.0), max(2.5, gap - 6))
            w = window(dem.shape, x, y, 18.0, axis)
            pool = dig_pool(dem, w, radius, float(dem[int(y), int(x)]) - rng.uniform(0.5, 1.5))
            cover_part(photo, w, pool, WATER)
            water[w.part] |= pool
        elif kind == 1:  # feed bunk, slab, wall
            w = window(dem.shape, x, y, 9.0, axis)
            slab = (np.abs(w.u) < rng.uniform(2.5, 6)) & (np.abs(w.v) < rng.uniform(0.9, 2))
            cover_part(photo, w, slab, CONCRETE, rng.uniform(0.65, 1.1))
        elif kind == 2 and gap > 14:  # a shed, with its shadow beside it
            w = window(dem.shape, x, y, 16.0, axis)
            a, b = rng.uniform(4, 9), rng.uniform(3, 5)
            cover_part(photo, w, (np.abs(w.u - 1.5) < a) & (np.abs(w.v - 2) < b), spec.soil, 0.4)
            cover_part(photo, w, (np.abs(w.u) < a) & (np.abs(w.v) < b), ROOF, rng.uniform(0.7, 1.08))
        elif kind == 3 and lines.query((x, y))[0] > 30:  # berm or terrace: an embankment that carries no road
            w = window(dem.shape, x, y, 50.0, axis)
            length, top, high = rng.uniform(12, 26), rng.uniform(1.5, 4), rng.uniform(*spec.embankment_m)
            across = np.clip(high - np.maximum(0, np.abs(w.v) - top) * 0.5, 0, None)
            bump = across * np.clip(length - np.abs(w.u), 0, 4) / 4
            dem[w.part] += bump.astype(np.float32)
            cover_part(photo, w, bump > 0.1, spec.grass)
        elif kind == 4:  # worn ground or a gravel lot
            w = window(dem.shape, x, y, 14.0, axis)
            lot = np.hypot(w.u / 1.5, w.v) < min(rng.uniform(3, 9), gap - 2)
            cover_part(photo, w, lot, spec.soil if rng.random() < 0.5 else spec.gravel, rng.uniform(0.8, 1.2))


# ---------------------------------------------------------------- a region as a whole


def simulate_region(spec: RegionSpec, crossings: int, seed: int, edge_m: float = EDGE_M) -> Region:
    """Simulate one region with an exact number of crossings.

    Args:
        spec: the kind of region.
        crossings: their number.
        seed: of the random numbers.
        edge_m: least distance of a crossing from the edge of the raster.

    Raises:
        DataError: there is no room for all crossings; five rasters of increasing size were tried.
    """
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    side = max(600.0, 1000 * np.sqrt(crossings / CROSSINGS_PER_KM2)) + 2 * edge_m
    for _ in range(5):
        cells = int(np.ceil(side / FLOW_CELL_M / 4)) * 4
        side = cells * FLOW_CELL_M
        ground, streams = find_streams(fractal_terrain(cells, FLOW_CELL_M, spec, rng), spec, rng)
        routes, points = lay_roads(streams, side, crossings, spec, rng, edge_m)
        if len(points) == crossings:
            break
        side *= 1.15
    else:
        raise DataError(
            f"region {spec.name}: found room for {len(points)} of {crossings} crossings; try another seed"
        )
    roads = profile_roads(routes, points, streams, ground, spec, rng)
    broad, fine = texture(rng, exponent=1.3), texture(rng, exponent=0.6)

    dem = ndimage.zoom(ground, FLOW_CELL_M, order=3, mode="nearest", grid_mode=True)
    shape = dem.shape
    rough = tiled(fine, shape)
    dem += rough * 0.03
    by_stream, by_road = near(streams, shape, 30.0), near(roads, shape, 16.0)
    photo = paint_fields(shape, spec, broad, rng)
    water = np.zeros(shape, bool)

    carve_channels(dem, by_stream, spec.bank_slope)
    paint_streams(photo, water, streams, by_stream, tiled(broad, shape), rough, spec, rng)
    scour_pools(dem, photo, water, points, streams, rng)
    ditch = [np.full(len(r.xy), (rng.random() < 0.5) * rng.uniform(0.2, 0.6), np.float32) for r in roads]
    raise_embankments(dem, by_road, np.concatenate(ditch)[by_road.vertex])
    scatter_works(dem, photo, water, streams, roads, points, spec, rng)
    trees = plant_trees(streams, side, spec, rng)
    trees = trees[clear_of(trees[:, :2], points, roads)]
    paint_trees(photo, trees, spec)
    paint_roads(photo, roads, by_road, rough, spec, rng)
    build_headwalls(photo, points, rng)
    water &= photo[3] < 1.5 * WATER[3]  # except where trees, roads or walls were painted over it
    return Region(spec, dem.astype(np.float32), develop(photo, dem, spec, rng), streams, roads, points, water)


def develop(photo: Floats, dem: Floats, spec: RegionSpec, rng: Generator) -> NDArray[np.uint8]:
    """Turn reflectance into a photo: light it by the sun, and add haze and sensor noise.

    Args:
        photo: (4, h, w) reflectance, fraction.
        dem: (h, w), m.
        spec: the kind of region.
        rng: of the noise.

    Returns:
        uint8 (4, h, w), never 0.
    """
    azimuth, elevation = np.radians(spec.sun)
    south, east = np.gradient(dem)
    lit = np.sin(elevation) + np.cos(elevation) * (np.cos(azimuth) * south - np.sin(azimuth) * east)
    lit = np.clip(lit / np.sin(elevation) / np.sqrt(1 + south**2 + east**2), 0.5, 1.4).astype(np.float32)
    out = np.empty(photo.shape, np.uint8)
    for b in range(4):
        noise = rng.standard_normal(dem.shape, dtype=np.float32) * 0.012
        out[b] = np.clip((photo[b] * lit + spec.haze + noise) * 255, 1, 254)
    return out
