"""Cut an elevation model, an aerial photo or both into chips, with and without a drainage crossing.

One call of `cut_region` makes one region in the published folder layout (one file stem = one place):

    OUT/NE/NEDEM/{F,T}/*.tif    elevation, float32, 1 x size x size
    OUT/NE/NEAer/{F,T}/*.tif    photo, uint8 or uint16, bands x size x size
    OUT/NE/NEAer/T/*.xml        with boxes: where the crossings lie in the photo, as Pascal VOC
    OUT/NE/cut.json             what the chips hold, and what they were cut with
    OUT/NE/chips.csv            where each chip lies and which point it shows
    OUT/NE/left_out.csv         the points that gave no chip, and why

With elevation alone, or a photo alone, there is no folder for the other, and boxes lie beside the elevation.

The rasters are warped to one grid of 1 m pixels whose lines are whole metres of a projected CRS. They are
only read in windows a little larger than a chip, so memory does not grow with the raster.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import shapely
from rasterio.crs import CRS

from dxc.config.checked import checked
from dxc.errors import DataError
from dxc.files import sync_everything, sync_to_disk, write_atomically
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.elevation import elevation_unit
from dxc.geo.formats import GDAL_OPTIONS, RasterFile
from dxc.geo.mosaic import open_mosaic
from dxc.geo.photobands import PhotoBands, choose_bands
from dxc.geo.rasters import (
    Points,
    Raster,
    check_dem,
    crs_name,
    extent_text,
    metric_crs,
    open_raster,
    read_lines,
)
from dxc.geo.record import CHIPS, LEFT_OUT, NAME, Record, digest_of, foreign_files
from dxc.geo.settings import CutSettings
from dxc.geo.sites import Area, CrossingBoxes, Spot
from dxc.geo.windows import Cutter
from dxc.text import counted

log = logging.getLogger(__name__)

CUTS_PER_NEGATIVE = 20  # so many sites may lack data for each one that has data
SETTINGS_OF_CHIPS = {
    "region", "size_m", "jitter_m", "min_distance_m", "near_share", "crs", "dem_units", "seed", "max_positives",
    "layer", "crossings_xy", "crossings_crs", "negatives_m", "negatives_max",
}  # fmt: skip
"""Settings that the pixels and places of chips depend on, beside those that cut_region writes in one spelling."""


class LeftOut(NamedTuple):
    """A point without a chip. x and y are in `crs`, the CRS of the points' file (nan: no geometry)."""

    id: int
    x: float
    y: float
    crs: str
    reason: str


@dataclass(frozen=True)
class CutReport:
    """The result of `cut_region`."""

    folder: Path
    region: str
    crs: str
    positives: int
    negatives: int
    left_out: tuple[LeftOut, ...]
    boxes: int | None = None
    """Number of boxes in all chips; None where none were requested."""
    bands: tuple[str, ...] = ("dem", *PHOTO_BANDS)
    """What a chip holds: dem, if it holds elevation, then the bands of its photo."""
    found_complete: bool = False
    """Whether all chips were there already. left_out is then empty: left_out.csv has the points."""
    hard_negatives: int = 0
    """How many of the chips without a crossing lie at points of `negatives`."""
    not_negative: tuple[tuple[str, int], ...] = ()
    """Why other points of `negatives` gave no chip, and how many. Empty where all chips were there already."""

    def describe(self) -> str:
        """Several lines for people: counts, CRS, folder, boxes, left-out points by reason."""
        done = "complete, nothing to do: " if self.found_complete else ""
        lines = [
            f"{self.region}: {done}{counted(self.positives, 'chip')} with a crossing, {self.negatives} without, "
            f"in {self.crs}",
            f"folder: {self.folder}",
        ]
        if self.hard_negatives or self.not_negative:
            others = "".join(f"; {count} {reason}" for reason, count in self.not_negative)
            left = f". Points that gave none: {others.removeprefix('; ')}" if others else ""
            lines.append(f"hard negatives: {self.hard_negatives} of the chips without a crossing{left}")
        if self.boxes is not None:
            kind, image = ("DEM", "elevation") if self.bands == ("dem",) else ("Aer", "photo")
            where = self.folder / f"{self.region}{kind}" / "T"
            lines.append(f"boxes: {self.boxes}, in an XML file beside each {image} in {where}")
        if self.left_out:
            lines.append(
                f"{counted(len(self.left_out), 'point')} left out, see {self.folder / 'left_out.csv'}:"
            )
            lines += [f"  {line}" for line in _by_reason(self.left_out)]
        return "\n".join(lines)


def _by_reason(left_out: Iterable[LeftOut]) -> list[str]:
    counts = Counter(re.sub(r" \d+$", " another", point.reason) for point in left_out)
    return [f"{n} {reason}" for reason, n in counts.most_common()]


def cut_region(**values: Any) -> CutReport:
    """Cut the chips of one region, as many without a crossing as with one.

    A chip with a crossing shows its point in pixel (size // 2, size // 2), shifted by up to `jitter_m` whole
    pixels along each axis. A chip without one has its centre at least `min_distance_m` from every crossing of
    the file. A share `near_share` of them are centred on the lines of the files `near`, the others lie anywhere.

    Beside these, each point of the files `negatives` that lies at least `negatives_m` from every crossing and from each
    other becomes the centre of a chip without one. Of a map these are false alarms: the hard negatives of Felzenszwalb
    et al. 2010, doi 10.1109/TPAMI.2009.167, section 4. Such a chip may show a crossing away from its centre.

    With `boxes` every chip with a crossing has an annotation with the box of each crossing of the file that is in the
    chip: the crossing itself lies there, or a quarter or more of its box does. Boxes are centred on the points, lie
    along the axes of the chips' CRS and are clipped to the chip. A chip without a crossing shows no part of a box.

    Chips are collected in a hidden folder beside the final one, whose name is a hash of all inputs. If an interrupted
    call is repeated, it finds its chips there and continues. At the end the folder is renamed. If a finished call is
    repeated, it finds that there is nothing to do.

    Args:
        values: see dxc.geo.settings.CutSettings.

    Raises:
        ConfigError: an argument that cannot work.
        DataError: an input that cannot be used, no place for the chips, or no room to write them.
    """
    settings = checked(CutSettings, values)
    dem, photo, out, region, size_m = (
        settings.dem,
        settings.photo,
        settings.out,
        settings.region,
        settings.size_m,
    )
    edges, near = settings.edges, settings.near
    job = {
        "version": 3,
        **settings.model_dump(mode="json", include=SETTINGS_OF_CHIPS),
        "photo_bands": None if photo is None else settings.photo_bands,
        "boxes": None if settings.boxes is None else edges,
        "near_layers": list(settings.layers_of_near),
        "negatives": len(settings.negatives),
        "negatives_layers": list(settings.layers_of_negatives),
    }
    given = [(what, paths) for what, paths in (("DEM", dem), ("photo", photo)) if paths is not None]
    bands = (*(["dem"] if dem is not None else []), *(settings.photo_bands if photo is not None else []))
    final = out / region
    files = [
        (what, open_mosaic(what, paths, vrt_anywhere=settings.vrt_anywhere).file) for what, paths in given
    ]
    inputs = [
        fingerprint(path)
        for path in (
            *(path for _, file in files for path in file.files),
            settings.crossings,
            *near,
            *settings.negatives,
        )
    ]
    digest = digest_of(job, inputs)
    if (done := _complete(final, digest, job, settings.overwrite)) is not None:
        return CutReport(
            final, region, done.crs, done.positives, done.negatives, (), done.boxes, tuple(done.bands), True,
            done.hard_negatives,
        )  # fmt: skip
    rasters = look_at_rasters(
        files, crs=settings.crs, photo_bands=settings.photo_bands, dem_units=settings.dem_units
    )
    target = rasters[0].target_crs
    columns = dict.fromkeys(edge for edge in edges if isinstance(edge, str))
    points = Points.read(
        settings.crossings,
        target,
        list(columns),
        layer=settings.layer,
        xy=settings.crossings_xy,
        crs=settings.crossings_crs,
    )
    shown = None if settings.boxes is None else _crossing_boxes(settings.crossings, points, edges, size_m)
    _warn_of_neighbours(settings.min_distance_m, size_m, shown)
    area = Area(
        region,
        size_m,
        common_ground(rasters),
        shapely.STRtree(points.shapes()),
        settings.min_distance_m,
        shown,
    )
    lines = [
        (path.name, read_lines(path, target, area.common, of_file))
        for path, of_file in itertools.zip_longest(near, settings.layers_of_near)
    ]
    alarms = _alarms(settings, target, area)

    folder = out / f".{region}.partial-{digest}"
    if folder.exists():
        log.info("Going on with the chips that an interrupted cut left in %s.", folder)
    with (
        disk_trouble(out),
        rasterio.Env(**GDAL_OPTIONS),
        Cutter(
            folder, rasters, tuple(settings.photo_bands), size_m, region, settings.workers, shown
        ) as cutter,
    ):
        try:
            positives, left_out = _cut_positives(cutter, area, points, settings)
            number, seen = itertools.count(1), set[tuple[int, int]]()
            negatives = _cut_negatives(cutter, area, len(positives), lines, settings, number, seen)
            hard, not_negative = _cut_hard_negatives(cutter, area, alarms, settings, number, seen)
        except DataError:
            shutil.rmtree(folder, ignore_errors=True)  # it would fail the same way again
            raise
        _say_overlaps(positives, hard, area)
        _write_tables(folder, positives + negatives + hard, left_out, points, size_m, crs_name(target))
        shown_boxes = (
            sum(len(shown.in_chip(chip.left, chip.top, size_m)) for chip in positives) if shown else None
        )
        record = Record(
            region=region, digest=digest, settings=job, bands=list(bands), size_m=size_m, crs=crs_name(target),
            positives=len(positives), negatives=len(negatives) + len(hard), hard_negatives=len(hard),
            boxes=shown_boxes, left_out=len(left_out),
        )  # fmt: skip
        write_atomically(folder / NAME, record.to_json())
        _move_into_place(folder, final)
    for other in out.glob(f".{region}.partial-*"):
        log.warning("%s holds an unfinished cut with other settings; remove it if nobody needs it.", other)
    return CutReport(
        final, region, crs_name(target), len(positives), len(negatives) + len(hard), tuple(left_out), shown_boxes,
        bands, hard_negatives=len(hard), not_negative=not_negative,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- checks


def _warn_of_neighbours(min_distance_m: float, size_m: int, boxes: CrossingBoxes | None) -> None:
    """Warn where min_distance_m allows chips without a crossing to reach one."""
    half = size_m / math.sqrt(2)
    if boxes is None:
        if min_distance_m < half:
            log.warning(
                "min_distance_m=%g is less than a chip's half diagonal (%.0f m): a chip without a crossing "
                "may show one near its corner.", min_distance_m, half,
            )  # fmt: skip
        return
    least = half + np.nan_to_num(np.hypot(*boxes.edges.T)).max(initial=0) / 2
    if min_distance_m < least:
        log.warning(
            "min_distance_m=%g is less than half the diagonals of a chip and the largest box (%.0f m): a chip without "
            "a crossing shows no box, but may lie right beside one.", min_distance_m, least,
        )  # fmt: skip


def _say_overlaps(positives: Sequence[Spot], hard: Sequence[Spot], area: Area) -> None:
    """Log how many crossings and points of negatives lie so close together that their chips show the same ground."""
    chips = [*positives, *hard]
    what = "crossings and negatives" if hard else "crossings"
    outlines = area.outlines(*np.array([(chip.left, chip.top) for chip in chips]).T)
    # outlines that only touch share no ground; those of whole metres that overlap do so by more
    tree = shapely.STRtree(shapely.buffer(outlines, -0.25, join_style="mitre"))
    overlapping = np.bincount(tree.query(tree.geometries, "intersects")[0]) > 1
    if count := int(overlapping.sum()):
        log.info(
            "%d of %d %s lie closer than a chip (%d m) to another: their chips overlap, and training keeps them "
            "on one side of every split.", count, len(chips), what, area.size,
        )  # fmt: skip


def _complete(final: Path, digest: str, job: dict[str, Any], overwrite: bool) -> Record | None:
    """The record of a region that the same command has finished; None where there is something to do.

    Raises DataError where the folder of the region is taken by anything else.
    """
    if not (final.exists() or final.is_symlink()):
        return None
    if not (final / CHIPS).is_file():  # never remove what this module did not write
        raise DataError(
            f"{final} was not made by prepare.py (it has no {CHIPS}). Move it away, or give another out=."
        )
    if overwrite:
        if others := foreign_files(final, job["region"]):
            shown = ", ".join(str(path.relative_to(final)) for path in others[:3])
            raise DataError(
                f"{final} holds {len(others)} files or folders that prepare.py did not write and will not remove: "
                f"{shown}{', ...' * (len(others) > 3)}. Move them away, or give another out= or region=."
            )
        return None
    replace = "Cut it anew with overwrite=true, or give another out= or region=."
    record = Record.read(final)
    if record is None:
        raise DataError(
            f"{final} exists already, and has no {NAME} that says what it was cut with. {replace}"
        )
    if record.digest != digest:
        now = json.loads(json.dumps(job))
        changed = [key for key in now if record.settings.get(key) != now[key]]
        what = (
            f"with other settings ({', '.join(changed)})"
            if changed
            else "from other files, or they changed since"
        )
        raise DataError(f"{final} exists already: it was cut {what}. {replace}")
    if gone := record.missing(final):
        raise DataError(f"{final} is not complete any more: {gone} of its files are gone. {replace}")
    return record


def fingerprint(path: Path) -> list[Any]:
    """Path, size and time of an input file, by which a change is seen."""
    try:
        stat = path.stat()
    except OSError:  # who reads it says so
        return [str(path), None, None]
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def look_at_rasters(
    files: Sequence[tuple[str, RasterFile]],
    *,
    crs: str | None,
    photo_bands: Sequence[str],
    dem_units: str | None,
) -> tuple[Raster, ...]:
    """Check rasters of one place and say how they are read on one grid of 1 m.

    Args:
        files: DEM or photo, and its file, of each.
        crs: of the grid; None: that of the first, or its UTM zone.
        photo_bands: names of the photo's bands.
        dem_units: of the elevations; None asks the file.

    Raises:
        ConfigError: crs or dem_units cannot be used.
        DataError: a raster cannot be used.
    """
    with rasterio.Env(**GDAL_OPTIONS), ExitStack() as stack:
        opened = [stack.enter_context(open_raster(what, file)) for what, file in files]
        what, first = files[0]
        target = metric_crs(crs, what, first.path, opened[0])
        return tuple(
            _look(what, file, source, target, photo_bands, dem_units)
            for (what, file), source in zip(files, opened, strict=True)
        )


def _look(
    what: str, file: RasterFile, source: Any, target: CRS, photo_bands: Sequence[str], dem_units: str | None
) -> Raster:
    """Check an open raster and describe it."""
    if what == "DEM":
        check_dem(file.path, source)
        unit = elevation_unit(file.path, source, dem_units)
        return Raster.look(what, file, source, target, PhotoBands((1,)), unit)
    return Raster.look(what, file, source, target, choose_bands(file.path, source, photo_bands))


def common_ground(rasters: Sequence[Raster]) -> shapely.Geometry:
    """The ground that all rasters cover."""
    common = shapely.intersection_all([raster.footprint for raster in rasters])
    if common.area == 0:
        covers = ", ".join(f"{raster.path} covers {extent_text(raster.footprint)}" for raster in rasters)
        raise DataError(
            f"the DEM and the photo do not overlap. In {crs_name(rasters[0].target_crs)} {covers}. "
            "Give rasters of one place, or check their CRS."
        )
    return _tolerant(common)


def _tolerant(outline: shapely.Geometry) -> shapely.Geometry:
    """Enlarge an outline by a millimetre, so that a chip that ends at the raster's edge is inside despite rounding."""
    return shapely.buffer(outline, 1e-3, join_style="mitre")


# ------------------------------------------------------------------------------------------ sites


def _crossing_boxes(path: Path, points: Points, edges: Sequence[Any], size_m: int) -> CrossingBoxes:
    """Each crossing's width and height in metres, given as a number for all or the name of a column."""
    given = [
        points.columns[edge] if isinstance(edge, str) else np.full(len(points.ids), edge) for edge in edges
    ]
    metres = np.column_stack(given).astype(float)
    good = _sized(points)
    if not good.any():
        raise DataError(
            f"crossings {path}: holds no positive number in {_columns(points)}. Give a column of metres, or one number "
            "for all crossings, e.g. boxes=20."
        )
    metres[~good] = np.nan
    if large := int((metres > size_m).any(axis=1).sum()):
        log.warning(
            "%d of %d boxes are larger than a chip of %d m and fill it. Is %s in metres?",
            large, len(metres), size_m, _columns(points),
        )  # fmt: skip
    return CrossingBoxes.of(points.ids, points.xy, metres)


def _sized(points: Points) -> np.ndarray:
    """Which points have a positive number in every requested column, bool (n,)."""
    good = [np.isfinite(values) & (values > 0) for values in points.columns.values()]
    return np.all([np.full(len(points.ids), True), *good], axis=0)


def _columns(points: Points) -> str:
    return " or ".join(points.columns)


def _cut_positives(
    cutter: Cutter,
    area: Area,
    points: Points,
    settings: CutSettings,
) -> tuple[list[Spot], list[LeftOut]]:
    """Cut the chips with a crossing, in the order of the file. Points without a chip are returned with the reason."""
    reasons = _misplaced(cutter.rasters, area, points)
    reach = math.floor(settings.jitter_m)
    shift = np.random.default_rng((settings.seed, 0)).integers(-reach, reach + 1, (len(points.ids), 2))
    inside = np.flatnonzero([reason is None for reason in reasons])
    left, top = area.corner(*points.xy[inside].T)
    # a shift may push a chip over the edge; such a point keeps its chip, unshifted
    shifted = area.inside(left + shift[inside, 0], top + shift[inside, 1])
    left, top = left + shift[inside, 0] * shifted, top + shift[inside, 1] * shifted
    wanted = []
    for i, x, y in zip(inside.tolist(), left.tolist(), top.tolist(), strict=True):
        unknown = [*area.boxes.unknown_in_chip(x, y, area.size)] if area.boxes else []
        if unknown:  # an annotation that keeps silent about one would teach that there is none
            reasons[i] = f"its chip also shows a crossing without a size: point {unknown[0]}"
        else:
            wanted.append(Spot(f"{area.region}_T_{points.ids[i]:05d}", "T", x, y, "crossing", i))
    if not wanted:
        whole = " and ".join(raster.what for raster in cutter.rasters)
        counts = "; ".join(_by_reason(_left_out(points, reasons)))
        raise DataError(
            f"no crossing lies where a whole chip of {whole} can be cut ({counts}). In "
            f"{crs_name(cutter.rasters[0].target_crs)} the points cover "
            f"{extent_text(shapely.multipoints(points.shapes()))}, the rasters "
            f"{extent_text(area.common)}. Check the points' CRS."
        )
    count = settings.max_positives or len(wanted)
    chips, failed = cutter.collect(iter(wanted), count, "with crossing", settings.progress)
    for chip, reason in failed:
        reasons[chip.point or 0] = reason
    left_out = _left_out(points, reasons)
    if not chips:
        counts = "; ".join(_by_reason(left_out))
        raise DataError(f"no chip with a crossing could be cut: {counts}. Check the rasters' no-data values.")
    return chips, left_out


def _misplaced(rasters: Sequence[Raster], area: Area, points: Points) -> list[str | None]:
    """The reason why a point cannot have a chip, as far as it is known without reading pixels."""
    known = np.isfinite(points.own).all(axis=1)
    projected = np.isfinite(points.xy).all(axis=1)
    left, top = area.corner(*np.where(projected[:, None], points.xy, 0).T)
    outlines = area.outlines(left, top)
    fits = [shapely.covers(_tolerant(raster.footprint), outlines) for raster in rasters]
    sized = _sized(points)
    reasons: list[str | None] = []
    taken: dict[tuple[int, int], int] = {}
    for i, place in enumerate(zip(left.tolist(), top.tolist(), strict=True)):
        outside = [raster.what for raster, fit in zip(rasters, fits, strict=True) if not fit[i]]
        if not known[i]:
            reasons.append("no geometry")
        elif not projected[i]:
            reasons.append("its coordinates do not exist in the CRS of the chips")
        elif outside:
            reasons.append(f"chip not inside the {' and the '.join(outside)}")
        elif not sized[i]:
            reasons.append(f"no positive number in {_columns(points)}")
        elif place in taken:  # two equal chips could come to stand on both sides of a split
            reasons.append(f"same pixel as point {points.ids[taken[place]]}")
        else:
            taken[place] = i
            reasons.append(None)
    return reasons


def _left_out(points: Points, reasons: Sequence[str | None]) -> list[LeftOut]:
    return [
        LeftOut(int(points.ids[i]), float(points.own[i, 0]), float(points.own[i, 1]), points.crs, reason)
        for i, reason in enumerate(reasons)
        if reason is not None
    ]


def _cut_negatives(
    cutter: Cutter,
    area: Area,
    count: int,
    lines: list[tuple[str, np.ndarray]],
    settings: CutSettings,
    number: Iterator[int],
    seen: set[tuple[int, int]],
) -> list[Spot]:
    """Cut `count` chips without a crossing: first those near the lines, then those anywhere.

    Names go on with `number`, and corners of the chips are added to `seen`.
    """
    rng = np.random.default_rng((settings.seed, 1))
    by_lines = math.floor(settings.near_share * count + 0.5) if lines else 0
    chips: list[Spot] = []
    for kind, wanted, along in (("near lines", by_lines, lines), ("anywhere", count - by_lines, [])):
        if not wanted:
            continue
        drawn = (
            chip._replace(name=f"{area.region}_F_{next(number):05d}")
            for chip in area.negatives(rng, along, seen)
        )
        candidates = itertools.islice(drawn, CUTS_PER_NEGATIVE * wanted + 100)
        done, _ = cutter.collect(candidates, wanted, f"without, {kind}", settings.progress)
        chips += done
        if len(done) < wanted:
            knob = f"near_share (now {settings.near_share:g}), or give more lines in near"
            other = "max_positives, or give rasters that reach further"
            raise DataError(
                f"only {len(done)} of {wanted} chips without a crossing ({kind}) found a place at least "
                f"{area.min_distance_m:g} m from every crossing with data in the rasters. Lower "
                f"min_distance_m or {knob if along else other}."
            )
    return chips


def _alarms(settings: CutSettings, target: CRS, area: Area) -> list[tuple[str, np.ndarray]]:
    """Name and points (n, 2) of each file of negatives, in the target CRS. Some may have no place (inf)."""
    found = []
    for path, layer in itertools.zip_longest(settings.negatives, settings.layers_of_negatives):
        xy = Points.read(path, target, layer=layer, what="negatives").xy
        if not len(xy):
            log.warning("negatives %s: its layer is empty, so it gives no chip.", path)
        elif not shapely.contains_xy(area.common, *xy.T).any():
            raise DataError(
                f"negatives {path}: none of its {counted(len(xy), 'point')} lies where chips may lie "
                f"({extent_text(area.common)}). Give a map of this region, or leave it out."
            )
        found.append((path.name, xy))
    return found


def _cut_hard_negatives(
    cutter: Cutter,
    area: Area,
    alarms: list[tuple[str, np.ndarray]],
    settings: CutSettings,
    number: Iterator[int],
    seen: set[tuple[int, int]],
) -> tuple[list[Spot], tuple[tuple[str, int], ...]]:
    """Cut a chip at each point of negatives that is no crossing; also why the other points have none, with counts.

    The first points of all files come first: map.py writes the most certain ones first.
    """
    points = [(rank, name, xy) for name, each in alarms for rank, xy in enumerate(each)]
    if not points:
        return [], ()
    points.sort(key=lambda point: point[0])
    xy = np.array([xy for _, _, xy in points])
    reasons = area.why_no_negative(xy, settings.negatives_m, seen)
    left, top = area.corner(*np.where(np.isfinite(xy), xy, 0).T)
    spots = [
        Spot(f"{area.region}_F_{next(number):05d}", "F", int(left[i]), int(top[i]), points[i][1])
        for i, reason in enumerate(reasons)
        if reason is None
    ]
    most = len(spots) if settings.negatives_max is None else min(settings.negatives_max, len(spots))
    chips, failed = cutter.collect(iter(spots), most, "without, of negatives", settings.progress)
    counts = Counter(reason for reason in reasons if reason is not None)
    counts.update(reason for _, reason in failed)
    if beyond := len(spots) - len(chips) - len(failed):
        counts[f"more than negatives_max={settings.negatives_max}"] = beyond
    return chips, tuple(counts.most_common())


# ------------------------------------------------------------------------------------------- folders


def _write_tables(
    folder: Path, chips: Sequence[Spot], left_out: Sequence[LeftOut], points: Points, size: int, crs: str
) -> None:
    """chips.csv (x, y: the chip's centre; point_x, point_y: the crossing, both in crs) and left_out.csv."""
    rows: list[tuple[Any, ...]] = []
    for chip in chips:
        centre = (chip.left + size / 2, chip.top - size / 2)
        crossing: tuple[Any, ...] = ("", "", "")
        if chip.point is not None:
            crossing = (points.ids[chip.point], *(f"{v:.3f}" for v in points.xy[chip.point]))
        rows.append((chip.name, chip.label, *centre, crs, *crossing, chip.source))
    header = ("name", "label", "x", "y", "crs", "point_id", "point_x", "point_y", "source")
    write_atomically(folder / CHIPS, _csv_bytes(header, rows))
    write_atomically(folder / LEFT_OUT, _csv_bytes(LeftOut._fields, left_out))


def _csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _move_into_place(folder: Path, final: Path) -> None:
    """Rename the finished folder. A previous folder is removed only then."""
    for draft in folder.glob("**/.*"):  # of a killed process
        draft.unlink()
    sync_everything()  # the chips; else a power cut could leave the name and empty files
    old = final.with_name(f"{folder.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    folder.rename(final)
    sync_to_disk(final.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_trouble(out: Path, key: str = "out") -> Iterator[None]:
    """Turn an error of the disk into a DataError. `key` is that of the path, for messages."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{out}: the disk is full. Free some space and repeat the command: it goes on where it "
                "stopped."
            ) from error
        raise DataError(
            f"{key}={out} cannot be written ({error}). Give a folder you may write to."
        ) from error
