"""The plan of a synthetic watershed: ground, streams and roads as lines, and where they cross.

The module follows the order in which the terrain is made: fractal ground, flow and streams, roads. render.py turns the
plan into rasters, and source.py writes files.

Local coordinates are metres: x to the east, y to the south, (0, 0) the upper left corner of the raster, so
pixel (row, column) of a 1 m raster has its centre at (column + 0.5, row + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import fft, ndimage

Floats = NDArray[np.floating[Any]]

FLOW_CELL_M = (
    4  # grid on which flow is routed: 16 times fewer cells than at 1 m, and streams are smoothed anyway
)
STEP_M = 2.0  # spacing of the vertices of every line
EDGE_M = 110.0  # from a crossing to the edge: every chip of 100 m lies inside, jitter included
SPACING_M = 120.0  # between crossings: no chip of 100 m shows two
CLEAR_M = 15.0  # least distance from a stream's centre line to a road that does not cross it
MIN_ANGLE_DEG = 45.0  # between road and stream at a crossing
CROSSINGS_PER_KM2 = 10.0  # what the roads and streams below give without crowding


@dataclass(frozen=True)
class RegionSpec:
    """What makes one region differ from the next."""

    name: str
    epsg: int  # UTM zone, metres
    origin: tuple[float, float]  # easting and northing of the upper left corner (m)
    height_m: float  # mean elevation
    relief_m: float  # standard deviation of the fractal ground over 2 km
    hurst: float  # 0..1, smoothness of the fractal ground
    tilt: float  # regional slope (m/m)
    stream_area_ha: float  # contributing area at which a channel begins
    depth_m: float  # channel depth at 1 km2 of contributing area
    bank_slope: float  # rise of the banks (m/m)
    embankment_m: tuple[float, float]  # least and greatest height of a road over the ground
    field_m: tuple[float, float]  # width and height of a field
    rotation_deg: float  # of the field and road grid
    soil: tuple[float, float, float, float]  # reflectance of bare soil
    grass: tuple[float, float, float, float]  # reflectance of grass in the photo's season
    crops: tuple[float, float, float, float, float]  # shares of lush, ripe, stubble, bare, grass fields
    paved: tuple[float, float, float, float]  # reflectance of the main roads
    gravel: tuple[float, float, float, float]  # reflectance of the lesser roads
    paved_share: float
    wooded: float  # share of stream length under trees
    wet: float  # share of stream length with open water
    sun: tuple[float, float]  # azimuth and elevation (degrees)
    haze: float = 0.0  # added to every band: thin air or bright atmosphere


@dataclass
class Line:
    """A stream (running downstream) or a road. Arrays have one value a vertex, and vertices are STEP_M apart."""

    xy: Floats  # (n, 2), m
    z: Floats  # (n,), elevation of the bed or of the road surface, m
    half_m: Floats  # (n,), half the bed's or the surface's width
    kind: str  # stream | paved | gravel | track
    area_km2: float = 0.0  # streams: contributing area at the lower end


@dataclass
class Crossing:
    """Where a road crosses a stream. Directions are unit vectors (dx, dy)."""

    x: float
    y: float
    downstream: Floats
    along_road: Floats
    stream: int  # index into the streams
    culvert: bool = True  # else a bridge: no scour pool
    bed_z: float = 0.0
    road_half_m: float = 0.0
    road_z: float = 0.0
    wall_half_m: float = 0.0  # half the length of its headwalls, 0 for none


# ---------------------------------------------------------------- ground and flow


def fractal_terrain(cells: int, cell_m: float, spec: RegionSpec, rng: Generator) -> Floats:
    """Elevation (cells, cells) in m: fractional Brownian ground on a tilted plane.

    Spectral synthesis: white noise, each frequency f scaled by f^-(H+1) (Saupe 1988, "Algorithms for random
    fractals", doi 10.1007/978-1-4612-3784-6_2). Wavelengths over 2 km are damped so that relief does not grow with
    the size of the raster.
    """
    size = max(cells, round(2000 / cell_m))  # a small raster is cut from ground that has all wavelengths
    fx = fft.rfftfreq(size, cell_m)
    fy = fft.fftfreq(size, cell_m)
    frequency = np.hypot(fy[:, None], fx[None, :])
    amplitude = np.maximum(frequency, 1 / 2000) ** -(spec.hurst + 1)
    amplitude[0, 0] = 0
    noise = rng.standard_normal((size, size))
    ground = fft.irfft2(fft.rfft2(noise) * amplitude, s=(size, size))
    ground = ground[:cells, :cells] * (spec.relief_m / ground.std())
    direction = rng.uniform(0, 2 * np.pi)
    along = np.arange(cells) * cell_m * spec.tilt
    plane = np.cos(direction) * along[None, :] + np.sin(direction) * along[:, None]
    return (ground + plane - plane.mean() + spec.height_m).astype(np.float32)


def find_streams(ground: Floats, spec: RegionSpec, rng: Generator) -> tuple[Floats, list[Line]]:
    """Route water over the ground (FLOW_CELL_M grid) and trace channels.

    Channels begin at a threshold of contributing area (O'Callaghan & Mark 1984, doi
    10.1016/S0734-189X(84)80011-0). They widen and deepen downstream by hydraulic geometry, w ~ Q^0.5 and d ~ Q^0.4
    (Leopold & Maddock 1953, doi 10.3133/pp252). Q grows somewhat slower than the area.

    Args:
        ground: (n, n) elevation in m, cells of FLOW_CELL_M.
        spec: the kind of region.
        rng: of the random numbers.

    Returns:
        The ground with depressions filled, as water sees it, and the streams.
    """
    import pyflwdir
    from affine import Affine

    filled, d8 = pyflwdir.dem.fill_depressions(ground, nodata=-9999.0, outlets="edge")
    flow = pyflwdir.from_array(d8, ftype="d8", transform=Affine(1, 0, 0, 0, 1, 0), latlon=False)
    area_km2 = flow.upstream_area() * FLOW_CELL_M**2 / 1e6
    streams = []
    for feature in flow.streams(mask=area_km2 > spec.stream_area_ha / 100):
        cells = np.asarray(feature["geometry"]["coordinates"], float)  # (n, 2) x, y of cell centres, in cells
        if len(cells) < 4:
            continue
        col, row = np.floor(cells).astype(int).T
        xy = resample(smooth(cells * FLOW_CELL_M, 3.0))
        share = np.linspace(0, 1, len(xy))
        at = np.linspace(0, 1, len(cells))
        area = np.interp(share, at, area_km2[row, col])
        surface = np.interp(share, at, np.minimum.accumulate(filled[row, col]))
        size = np.exp(rng.normal(0, 0.2))
        half = size * (0.9 + 1.2 * area**0.5)
        depth = size * spec.depth_m * np.clip(area, 0.05, None) ** 0.25
        streams.append(Line(xy, surface - depth, half, "stream", float(area[-1])))
    return filled, streams


def smooth(xy: Floats, sigma: float) -> Floats:
    """A line (n, 2) smoothed over sigma vertices. Its ends stay in place, so confluences stay joined."""
    n = len(xy)
    straight = xy[0] + np.linspace(0, 1, n)[:, None] * (xy[-1] - xy[0])
    bend = np.concatenate(
        [-(xy - straight)[:0:-1], xy - straight, -(xy - straight)[-2::-1]]
    )  # odd at both ends
    return straight + ndimage.gaussian_filter1d(bend, sigma, axis=0)[n - 1 : 2 * n - 1]


def resample(xy: Floats, step_m: float = STEP_M) -> Floats:
    """The line (n, 2) with vertices about step_m apart. Its ends stay."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    at = np.linspace(0, length[-1], max(2, round(length[-1] / step_m) + 1))
    return np.column_stack([np.interp(at, length, xy[:, 0]), np.interp(at, length, xy[:, 1])])


# ---------------------------------------------------------------- roads and crossings


def candidate_roads(
    streams: list[Line], side_m: float, spec: RegionSpec, rng: Generator
) -> list[tuple[str, Floats]]:
    """Lines (kind, (n, 2)) along which roads may run, in the order in which they are built.

    They are valley roads along one bank of a stream, section roads on the field grid, and field tracks across streams.
    The valley roads matter: they give chips with a road and a stream but no crossing.

    Args:
        streams: the streams.
        side_m: edge of the region.
        spec: the kind of region.
        rng: of the random numbers.
    """
    found: list[tuple[str, Floats]] = []
    km2 = (side_m / 1000) ** 2
    long = [s for s in streams if len(s.xy) * STEP_M > 160]
    for _ in range(round(4 * km2)):
        stream = long[rng.integers(len(long))].xy
        n = min(len(stream), int(rng.uniform(160, 500) / STEP_M))
        start = rng.integers(len(stream) - n + 1)
        part = smooth(stream[start : start + n], 10)
        tangent = np.gradient(part, axis=0)
        normal = tangent[:, ::-1] * (-1, 1) / np.hypot(*tangent.T)[:, None]
        away = part + normal * rng.uniform(15, 30) * rng.choice((-1, 1))
        kind = "gravel" if rng.random() < 0.6 else "track"
        found.append((kind, resample(smooth(resample(away), 12))))
    turn = np.radians(spec.rotation_deg)
    east, south = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    for axis, across in ((east, south), (south, east)):
        offset = -side_m * 0.8
        while offset < side_m * 0.8:
            offset += rng.uniform(450, 800)
            ends = np.array([-side_m, side_m])[:, None] * axis + side_m / 2 + offset * across
            wobble = resample(ends, 200.0)
            wobble += rng.normal(0, 6, len(wobble))[:, None] * across
            found.append(
                ("paved" if rng.random() < spec.paved_share else "gravel", smooth(resample(wobble), 25))
            )
    for _ in range(round(60 * km2)):
        stream = long[rng.integers(len(long))].xy
        i = rng.integers(5, len(stream) - 5)
        dx, dy = stream[i + 5] - stream[i - 5]
        heading = np.arctan2(dy, dx) + np.pi / 2 + rng.uniform(-0.7, 0.7)
        bend = rng.normal(0, 0.15)
        if rng.random() < 0.6:  # along the nearer axis of the field grid
            heading, bend = turn + np.pi / 2 * np.round((heading - turn) / (np.pi / 2)), 0.0
        reach = rng.uniform(60, 220, 2) * (-1, 1)
        steps = np.linspace(reach[0], reach[1], 40)
        angle = heading + bend * steps / 200
        track = stream[i] + np.column_stack([np.cos(angle), np.sin(angle)]) * steps[:, None]
        found.append(("gravel" if rng.random() < 0.5 else "track", resample(track)))
    return found


def lay_roads(
    streams: list[Line], side_m: float, count: int, spec: RegionSpec, rng: Generator, edge_m: float = EDGE_M
) -> tuple[list[tuple[str, Floats]], list[Crossing]]:
    """Build candidate roads until they make `count` crossings. Roads touch streams only at crossings.

    A crossing has to be SPACING_M or more from the others, edge_m from the edge, not too oblique, and away from
    confluences. Where a candidate fails, the road stops before the stream and goes on behind it.

    Args:
        streams: the streams.
        side_m: edge of the region.
        count: number of crossings.
        spec: the kind of region.
        rng: of the random numbers.
        edge_m: least distance of a crossing from the edge of the raster.

    Returns:
        Roads (kind, (n, 2)), and crossings, which may be fewer than count.
    """
    import shapely

    stream_lines = np.array([shapely.LineString(s.xy) for s in streams])
    tree = shapely.STRtree(stream_lines)
    joints = shapely.STRtree(shapely.points(np.concatenate([s.xy[[0, -1]] for s in streams])))
    frame = shapely.box(0, 0, side_m, side_m)
    roads: list[tuple[str, Floats]] = []
    taken = np.zeros((int(side_m) // 10 + 1,) * 2, bool)  # 10 m cells within some 20 m of a road
    crossings: list[Crossing] = []
    for kind, xy in candidate_roads(streams, side_m, spec, rng):
        line = shapely.LineString(xy).intersection(frame)
        if kind == "track" and len(crossings) >= count:
            continue
        if line.is_empty or line.geom_type != "LineString":
            continue
        col, row = (resample(np.asarray(line.coords), 10.0) // 10).astype(int).T
        if taken[row, col].mean() > 0.3:
            continue  # runs beside an existing road
        good: list[Crossing] = []
        bad: list[Crossing] = []
        for j in tree.query(line, predicate="intersects"):
            for point in shapely.get_parts(line.intersection(stream_lines[j])):
                at = shapely.centroid(point)
                down, along = heading_at(stream_lines[j], at), heading_at(line, at)
                angle = np.degrees(np.arcsin(min(1.0, abs(down[0] * along[1] - down[1] * along[0]))))
                ok = (
                    angle >= MIN_ANGLE_DEG
                    and min(at.x, at.y, side_m - at.x, side_m - at.y) >= edge_m
                    and all(np.hypot(c.x - at.x, c.y - at.y) >= SPACING_M for c in crossings)
                    and len(joints.query(at, predicate="dwithin", distance=25)) == 0
                    and line.boundary.distance(at) > 45
                )
                (good if ok else bad).append(Crossing(at.x, at.y, down, along, int(j)))
        chosen: list[Crossing] = []
        for c in good:  # a failed crossing nearby would interrupt the road right beside this one
            clear = all(np.hypot(c.x - o.x, c.y - o.y) >= SPACING_M for o in (*chosen, *bad))
            if clear and len(crossings) + len(chosen) < count:
                chosen.append(c)
        clear_m = CLEAR_M + min(20.0, rng.exponential(6))
        # a gate is as wide as the clearing is along the most oblique road
        gates = shapely.union_all([shapely.Point(c.x, c.y).buffer(1.5 * clear_m) for c in chosen])
        banks = shapely.union_all(stream_lines[tree.query(line.buffer(40))])
        keep_off = banks.buffer(clear_m).difference(gates)
        pieces = [p for p in shapely.get_parts(line.difference(keep_off)) if p.length >= 70]
        if not chosen and kind == "track":
            continue
        made = [c for c in chosen if any(p.distance(shapely.Point(c.x, c.y)) < 0.5 for p in pieces)]
        crossings += made
        for piece in pieces:
            roads.append((kind, resample(np.asarray(piece.coords))))
            for x, y in (roads[-1][1][::3] // 10).astype(int):
                taken[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = True
    return roads, crossings


def heading_at(line: Any, point: Any, reach_m: float = 6.0) -> Floats:
    """Unit vector (dx, dy) along a shapely line at one of its points, taken over 2 x reach_m."""
    at = line.project(point)
    a, b = line.interpolate(max(0.0, at - reach_m)), line.interpolate(min(line.length, at + reach_m))
    step = np.array([b.x - a.x, b.y - a.y])
    return step / np.hypot(*step)


def profile_roads(
    roads: list[tuple[str, Floats]], crossings: list[Crossing], streams: list[Line], ground: Floats,
    spec: RegionSpec, rng: Generator,
) -> list[Line]:  # fmt: skip
    """Give every road its width and its surface elevation (m), and every crossing its bed and deck.

    The surface follows the ground (FLOW_CELL_M grid), smoothed along the road over some 25 m and raised by the
    embankment. At a crossing it lies at least 1.2 m above the bed.
    """
    vertices = np.concatenate([s.xy for s in streams])
    bed = np.concatenate([s.z for s in streams])
    for c in crossings:
        c.bed_z = float(bed[np.argmin(np.hypot(vertices[:, 0] - c.x, vertices[:, 1] - c.y))])
        c.culvert = bool(rng.random() < 0.8)
    lines = []
    for kind, xy in roads:
        at = xy[:, ::-1].T / FLOW_CELL_M - 0.5
        z = ndimage.gaussian_filter1d(ndimage.map_coordinates(ground, at, order=1, mode="nearest"), 12.0)
        low, high = spec.embankment_m
        z = z + (rng.uniform(low, high) if kind != "track" else rng.uniform(0.2, low))
        half = {"paved": 4.2, "gravel": 3.3, "track": 2.5}[kind] * rng.uniform(0.85, 1.2)
        for c in crossings:
            away = np.hypot(xy[:, 0] - c.x, xy[:, 1] - c.y)
            if away.min() < 2.0:
                lack = max(0.0, c.bed_z + 1.2 - float(z[np.argmin(away)]))
                z = z + lack * np.exp(-((away / 25.0) ** 2))
                c.road_half_m, c.road_z = half, float(z[np.argmin(away)])
        lines.append(Line(xy, z, np.full(len(xy), half), kind))
    return lines
