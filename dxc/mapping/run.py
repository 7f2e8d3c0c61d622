"""The trunk of map.py: settings -> network -> windows of all tiles -> points, raster -> files and a tracked run."""

from __future__ import annotations

import glob
import json
import logging
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely
from rasterio.errors import RasterioError

from dxc.bars import Steps
from dxc.data.cache import usable_cores
from dxc.deploy.metadata import ANY, Metadata
from dxc.deploy.predictor import Predictor
from dxc.errors import ConfigError, DataError, DxcError, TrackingError
from dxc.evaluation.calibration import Calibration
from dxc.files import write_atomically
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.breach import REACH_M, Breaches, Dem, breach_lines, breached, require_breachable
from dxc.geo.chips import disk_trouble, fingerprint
from dxc.geo.crossing_layers import line_frame, point_frame, write_layers
from dxc.geo.flow import FlowChange, flow_change
from dxc.geo.rasters import Points, project_xy, read_lines
from dxc.geo.record import digest_of
from dxc.mapping.certainty import calibration_of
from dxc.mapping.finding import Finder, Found
from dxc.mapping.grid import Grid, Tile, stride_for, windows_overlap
from dxc.mapping.ground import Ground
from dxc.mapping.judging import Judged, flow_in_words, judge
from dxc.mapping.merging import Merged, merge
from dxc.mapping.network import MapNetwork, network_of
from dxc.mapping.raster import write_probabilities
from dxc.mapping.screen import Screen, fitted_threshold
from dxc.mapping.settings import KEPT, Fit, MapSettings
from dxc.mapping.tracked import track
from dxc.report.map_page import write_evaluation
from dxc.text import counted, duration

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

log = logging.getLogger(__name__)

SEAM = 0.02
"""Share of a region that may lie on the mapped ground: tiles overlap at their borders."""
MOST_ROUTED = 4
"""An elevation model of more than so many times the mapped ground is not routed: it would take longer than the map."""
OWN = "own.json"
"""In the folder of what is kept: results that are there are of this map, whose command has not ended."""
TYPICAL_WINDOW = 100
"""Edge in metres of the windows of a network that takes any size."""
WHERE_NO_RESULT_DEPENDS = {
    "out", "progress", "log", "threads", "batch", "overwrite", "tracking", "cache_dir", "run", "study", "pick", "onnx",
    "truth", "truth_layer", "truth_xy", "truth_crs", "fold", "threshold", "merge_m", "breached", "codes", "calibrate",
    "alarms_per_km2",
}  # fmt: skip
"""Settings on which the probabilities of windows do not depend; an interrupted map goes on with others of these."""


@dataclass(frozen=True)
class MapReport:
    """The result of a map."""

    out: Path
    raster: Path
    network: MapNetwork
    mode: str
    stride_m: int
    every_window: bool
    crossings: int
    km2: float
    windows: int
    seconds: float
    """Of the call that looked at the last windows; an interrupted one before it is not counted."""
    fresh_km2: float
    """Mapped by that call."""
    judged: Judged | None
    screen_logit: float | None
    fitted: bool
    """Whether this call fitted screen_logit."""
    probabilities: str
    """What they mean."""
    lines: str
    """How many breach lines there are."""
    mapped: str
    """The rasters, and the true crossings: tag dxc.mapped."""
    roads: str
    """Along which it looked, and how far from them: tag dxc.map_roads; '' without."""
    breached: Path | None = None
    flow: FlowChange | None = None
    """On the elevation model and on the breached one, at the points; None where no breached one was asked for."""
    evaluation: Path | None = None
    """The page of the evaluation."""
    kept: Path | None = None
    """The folder with the probabilities of its windows, where it was not removed."""
    untracked: str = ""
    """Why its run could not be written, where that was so."""

    @property
    def seconds_per_km2(self) -> float:
        """NaN where this call mapped nothing."""
        return self.seconds / self.fresh_km2 if self.fresh_km2 else math.nan

    def said(self) -> list[tuple[str, str]]:
        """Labels and texts for people; what is known of the evaluation is in judged."""
        pace = f", {self.seconds_per_km2:.1f} s a km2" if self.fresh_km2 else ""
        sparse = "" if self.every_window else ", every fourth one first"
        screened = []
        if self.screen_logit is not None:
            least = f"{self.screen_logit:g}"
            again = f"; a map of other ground needs no fit if you give screen_logit={least}"
            screened = [
                (
                    "dense pass",
                    f"windows where it says {least} (log-odds) or more{again if self.fitted else ''}",
                )
            ]
        found = [
            (
                "map",
                f"{counted(self.crossings, 'crossing')} in {self.km2:.2f} km2: {self.windows:,} windows in "
                f"{duration(self.seconds)}{pace}",
            ),
            ("network", self.network.why),
            ("mode", f"{self.mode}, a window every {self.stride_m} m{sparse}"),
            *screened,
            ("probabilities", self.probabilities),
            ("breach lines", self.lines),
            ("points", f"{self.out}"),
            ("raster", f"{self.raster} (probability = value / 255)"),
        ]
        if self.breached is not None:
            found.append(("breached", f"{self.breached}"))
        if self.flow is not None and self.judged is None:  # else it is told of the true crossings
            found += flow_in_words(self.flow, "point")
        return found

    def table(self) -> pd.DataFrame | None:
        """The score by distance, see MapScore.table; None without true crossings."""
        return None if self.judged is None else self.judged.score.table()

    def answers(self) -> list[tuple[str, str]]:
        """What the comparison with true crossings gave."""
        return [] if self.judged is None else self.judged.lines()


def make_map(settings: MapSettings, *, one_of_several: bool = False, into_design: bool = True) -> MapReport:
    """Map crossings, as conf/map.yaml describes.

    The probabilities of each tile are kept in a hidden folder beside the result, whose name is a hash of the network,
    the rasters and the settings. If an interrupted call is repeated, it goes on with the tiles that are missing.

    Args:
        settings: see dxc.mapping.settings.MapSettings.
        one_of_several: what is kept stays until the caller removes it (MapReport.kept): so a command that makes several
            maps goes on after those that it had made. If it cannot be tracked, MapReport.untracked says why.
        into_design: whether its metrics become those of the design, too. They do not where several maps judge a design.

    Raises:
        ConfigError: values that cannot work, or that do not go with the network.
        DataError: an input that cannot be used, or no room for the result.
        ExportError: the network cannot be run.
        TrackingError: the store, study or run cannot be used. A map that was made and not tracked stays.
    """
    if not _unfinished(settings.out):
        _require_new(
            settings
        )  # before anything is looked at; what an interrupted call left is compared below
    with tempfile.TemporaryDirectory() as folder:
        return _make_map(
            settings,
            network_of(settings, Path(folder)),
            one_of_several=one_of_several,
            into_design=into_design,
        )


def _unfinished(out: Path) -> list[Path]:
    """The folders in which calls that were interrupted kept their tiles."""
    return sorted(out.parent.glob(f".{glob.escape(out.stem)}.partial-*"))


def _forsake(out: Path, folder: Path) -> None:
    """Say which other maps of this name were interrupted. What stands at `out` is theirs no more."""
    for other in _unfinished(out):
        if other != folder:
            (other / OWN).unlink(missing_ok=True)
            log.warning(
                "%s holds an unfinished map with other settings; remove it if nobody needs it.", other
            )


def _require_new(settings: MapSettings) -> None:
    """Raise ConfigError where a result is there already."""
    for path in settings.results:
        if (path.exists() or path.is_symlink()) and not settings.overwrite:
            key = "breached" if path == settings.breached else "out"
            raise ConfigError(
                f"{key}: {path} exists already. Give another {key}=, or replace it with overwrite=true."
            )


def _make_map(
    settings: MapSettings, network: MapNetwork, *, one_of_several: bool, into_design: bool
) -> MapReport:
    started = time.perf_counter()
    threads = settings.threads or usable_cores()
    predictor = Predictor(network.path, settings.provider, threads)
    said = predictor.metadata
    size = _window_size(said)
    jitter = settings.jitter_m if settings.jitter_m is not None else said.jitter_m
    stride = stride_for(settings.stride_m, jitter, size)
    mode = settings.way
    # boxes say where a crossing lies, so their windows overlap just enough that one sees it
    every_window = settings.every_window or "box" in said.outputs or not windows_overlap(stride, jitter, size)
    ground = _ground(settings, said)
    _check_photo(said, ground)
    dem, no_lines = _dem(settings, ground)
    roads = None
    if settings.roads is not None:
        reach = ground.area.buffer(settings.corridor_m)  # a road beside the ground has a corridor on it
        roads = read_lines(settings.roads, ground.crs, reach, settings.roads_layer, "roads")
    truth = None
    if settings.truth is not None:
        truth = _truth(
            "truth", settings.truth, ground,
            layer=settings.truth_layer, xy=settings.truth_xy, crs=settings.truth_crs,
        )  # fmt: skip
    screen = _screen(settings, network, said, size, threads, ground) if mode == "dense" else None
    out, grid = settings.out, Grid.over(ground.area, stride=stride, size=size)
    job = {
        "version": 6, "network": network.identity, "stride_m": stride, "mode": mode,
        "screen": screen.threshold if screen else None,
        **settings.model_dump(mode="json", exclude=WHERE_NO_RESULT_DEPENDS), "every_window": every_window,
    }  # fmt: skip
    roads_file = [] if settings.roads is None else [fingerprint(settings.roads)]
    digest = digest_of(job, [*ground.inputs, *roads_file])
    folder = out.with_name(f".{out.stem}.partial-{digest}")
    mapped = _mapped(settings, ground)
    asked = digest_of(
        settings.model_dump(mode="json", exclude={"progress", "threads", "overwrite"}), [mapped]
    )
    before = _Before.read(folder / OWN, asked)
    if before is None:
        _require_new(settings)
    if settings.breached is not None and dem is not None:
        with disk_trouble(settings.breached, "breached"):
            settings.breached.parent.mkdir(parents=True, exist_ok=True)
        require_breachable(dem, settings.breached)
    finder_lines = roads if mode in ("corridor", "dense") else None
    with disk_trouble(out), ground:
        finder = Finder(
            predictor, ground, grid,
            near=finder_lines, near_m=settings.corridor_m, screen=screen, refine=settings.refine,
            every_window=every_window, batch=settings.batch,
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        tiles = list(grid.tiles(settings.tile_m))
        fresh = _compute(folder, finder, tiles, grid, settings.progress)
    calibration, meaning = calibration_of(settings, network)
    if (least := float(calibration(KEPT))) > settings.threshold:
        log.warning(
            "Windows of which the network says less than %g are not kept, and that is %.2f once calibrated: points "
            "between threshold=%g and that are missing.", KEPT, least, settings.threshold,
        )  # fmt: skip
    candidates, area, windows = _points(folder, tiles, settings, jitter, predictor, calibration, ground, grid)
    certain = candidates.p >= settings.threshold
    points = Merged(*(each[certain] for each in candidates))
    seconds, fresh_km2 = time.perf_counter() - started, fresh * stride**2 / 1e6
    if before is not None and not fresh:
        seconds, fresh_km2 = before.seconds, before.km2
    own = _Before(asked, seconds, fresh_km2, before is not None and before.tracked)
    with disk_trouble(out):
        own.write(folder / OWN)
    breaches, lines = _breaches(dem, no_lines, points, ground)
    frame = _frame(points, ground, roads, network, dem)
    km2 = area.area / 1e6
    judged = flow = None
    if truth is not None:
        judged = judge(
            candidates, truth, threshold=settings.threshold, area=area, crs=ground.crs,
            roads=None if roads is None else list(roads), dem=dem, breaches=breaches,
        )  # fmt: skip
    with disk_trouble(out):
        try:
            write_probabilities(settings.raster, grid, ground.crs, _kept(folder, tiles, calibration))
        except RasterioError as error:
            raise DataError(f"{settings.raster}: cannot be written ({error}). Is the disk full?") from error
        corridor = None if finder_lines is None else settings.corridor_m
        write_layers(
            out,
            frame,
            line_frame(breaches, frame),
            _area(ground, area, finder_lines, corridor, km2),
            settings.codes,
        )
        if settings.breached is not None and dem is not None:
            lowered = breached(dem, breaches.lines, settings.breached)
            lines += f"; {counted(lowered, 'cell')} of the elevation model lowered"
            if judged is None:
                flow, unrouted = _flow(dem, points, breaches, ground)
                lines += unrouted
    report = MapReport(
        out, settings.raster, network, mode, stride, every_window, len(frame), km2, windows, seconds, fresh_km2, judged,
        screen.threshold if screen else None, bool(screen) and settings.screen_logit is None, meaning, lines, mapped,
        _looked_along(settings, finder_lines), settings.breached, flow,
    )  # fmt: skip
    if judged is not None:
        with disk_trouble(settings.evaluation):
            report = replace(
                report, evaluation=_evaluation(settings, report, judged, ground, roads, dem, breaches)
            )
    elif settings.evaluation.exists():
        log.warning(
            "%s is of an earlier map: this one was not compared with true crossings.", settings.evaluation
        )
    if settings.log and network.study is not None and not own.tracked:
        try:
            track(settings, report, threads, into_design=into_design)
        except DxcError as error:
            if not one_of_several:
                raise TrackingError(
                    f"{out} is made, but not tracked: {error}\nTo track it, repeat the command: its windows are not "
                    "computed again."
                ) from error
            return replace(report, kept=folder, untracked=str(error))
        own = own._replace(tracked=True)
    if one_of_several:
        with disk_trouble(out):
            own.write(folder / OWN)
        _forsake(out, folder)
        return replace(report, kept=folder)
    shutil.rmtree(folder, ignore_errors=True)
    _forsake(out, folder)
    return report


class _Before(NamedTuple):
    """What an earlier call has done of a map: what was asked, how long it took, how much was mapped, and whether it is
    tracked. Results that exist beside it are its own."""

    asked: str
    """Digest of all settings and inputs: the result of a command that asks something else is not of this map."""
    seconds: float
    km2: float
    tracked: bool

    @classmethod
    def read(cls, path: Path, asked: str) -> _Before | None:
        """What was written; None where there is nothing, or of a command that asked something else."""
        try:
            of, seconds, km2, tracked = json.loads(path.read_text())
            return cls(asked, float(seconds), float(km2), bool(tracked)) if of == asked else None
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_atomically(path, json.dumps(self))


# ------------------------------------------------------------------------------------------- inputs


def _window_size(said: Metadata) -> int:
    """Edge of a window in pixels of 1 m. Raises ConfigError where the network has other pixels."""
    if said.pixel_m is not None and not math.isclose(said.pixel_m, 1, rel_tol=0.01):
        raise ConfigError(
            f"the network was trained on pixels of {said.pixel_m:g} m, and maps have pixels of 1 m. Train it on chips "
            "that prepare.py cut."
        )
    if said.size == ANY:
        return TYPICAL_WINDOW
    height, width = said.size
    if height != width:
        raise ConfigError(
            f"the network takes images of {height} x {width} pixels; windows of a map are square."
        )
    return int(height)


def _ground(settings: MapSettings, said: Metadata, of: Fit | None = None) -> Ground:
    """The rasters that are mapped; those of a region where it is given."""
    given = settings if of is None else of
    return Ground(
        given.dem, given.photo,
        needed=said.bands, photo_bands=given.photo_bands or settings.photo_bands, dem_units=given.dem_units,
        crs=given.crs, vrt_anywhere=settings.vrt_anywhere,
    )  # fmt: skip


def _check_photo(said: Metadata, ground: Ground) -> None:
    """Raise ConfigError where normalise=fixed divides by the range of another type of photo."""
    scales = dict(zip(said.channels, said.std or (), strict=False))
    ranges = {float(np.iinfo(name).max): name for name in ("uint8", "uint16")}
    trained = {ranges[scales[band]] for band in PHOTO_BANDS if scales.get(band) in ranges}
    if said.normalise != "fixed" or len(trained) != 1:
        return
    (known,) = trained
    how = "-ot Byte -scale 0 65535 0 255" if known == "uint8" else "-ot UInt16 -scale 0 255 0 65535"
    for raster in ground.rasters:
        if raster.what == "photo" and raster.dtype != known:
            raise ConfigError(
                f"photo {raster.path} is {raster.dtype}, and the network was trained on photos of {known} with "
                f"data.normalise=fixed: its values would mean something else. Convert it: gdal_translate {how} IN OUT"
            )


def _dem(settings: MapSettings, ground: Ground) -> tuple[Dem | None, str]:
    """The elevation model on its own grid, for breach lines, or why there is none."""
    if ground.dem is None:
        return None, "none: they need an elevation model, dem=..."
    try:
        dem = Dem.look(ground.dem, settings.dem_units)
        if 2 * max(dem.cell_m) >= REACH_M:
            raise DataError(f"cells of {max(dem.cell_m):g} m are too coarse; give a finer elevation model.")
    except DataError as error:
        if settings.breached is not None:
            raise
        return None, f"none: {error}"
    return dem, ""


def _truth(key: str, path: Path, ground: Ground, **file: Any) -> np.ndarray:
    """True crossings (n, 2) on the ground.

    Args:
        key: of the file, for messages.
        path: of the file.
        ground: whose CRS they get.
        file: how it is read: layer, xy, crs.
    """
    xy = Points.read(path, ground.crs, what=key, **file).xy
    xy = xy[np.isfinite(xy).all(axis=1)]
    inside = shapely.contains_xy(ground.area, *xy.T)
    if not inside.any():
        raise DataError(
            f"{key} {path}: none of its {len(xy)} points lies on the ground of the rasters. Check its CRS."
        )
    if not inside.all():
        log.warning(
            "%d of %d points of %s lie outside the ground of the rasters.", (~inside).sum(), len(xy), key
        )
    return xy[inside]


def _screen(
    settings: MapSettings, network: MapNetwork, said: Metadata, size: int, threads: int, mapped: Ground
) -> Screen:
    """The dense pass with its threshold, which is given, or the lowest of those of training regions."""
    screen = Screen(network.path, said, size, provider=settings.provider, threads=threads)
    if settings.screen_logit is not None:
        screen.threshold = float(settings.screen_logit)
        return screen
    if not settings.fit or not all(each.crossings for each in settings.fit):
        raise ConfigError(
            "mode=dense: the dense pass needs a threshold, which is fitted on regions that the network was trained on: "
            "give 'fit=[{dem:FILE,photo:FILE,crossings:FILE}]', or the log-odds themselves: screen_logit=NUMBER."
        )
    fitted = min(_fitted(settings, each, screen, said, mapped) for each in settings.fit)
    if not math.isfinite(fitted):
        raise DataError(f"fit: the network answers {fitted} where crossings are. Train it again.")
    screen.threshold = math.floor(100 * fitted) / 100  # two digits that can be given to another map
    return screen


def _fitted(settings: MapSettings, region: Fit, screen: Screen, said: Metadata, mapped: Ground) -> float:
    """The log-odds that let most crossings of a region through."""
    ground = _ground(settings, said, region)
    _check_photo(said, ground)
    here = shapely.transform(
        ground.area, lambda xy: np.column_stack(project_xy(ground.crs, mapped.crs, *xy.T))
    )
    if np.isfinite(here.bounds).all() and here.intersection(mapped.area).area > SEAM * here.area:
        log.warning(
            "fit: the region of %s lies on the ground that is mapped. If it is the same ground, the threshold is "
            "fitted on what it maps, and the figures of an evaluation are too good.", region.crossings,
        )  # fmt: skip
    assert region.crossings is not None  # the caller looks
    crossings = _truth(
        "fit.crossings", region.crossings, ground,
        layer=region.crossings_layer, xy=region.crossings_xy, crs=region.crossings_crs,
    )  # fmt: skip
    with ground:
        best = np.array([screen.best_near(ground, x, y) for x, y in crossings])
    fitted = fitted_threshold(best, settings.screen_recall, settings.screen_margin)
    log.info(
        "The dense pass: log-odds of %.2f, from %.0f %% of the %d crossings of %s and screen_margin=%g.",
        fitted, 100 * settings.screen_recall, len(crossings), region.crossings, settings.screen_margin,
    )  # fmt: skip
    return fitted


# ------------------------------------------------------------------------------------------- tiles


def _compute(folder: Path, finder: Finder, tiles: Sequence[Tile], grid: Grid, progress: bool) -> int:
    """Run the network over the tiles that are not kept yet. Returns the number of lattice cells of these."""
    left = [tile for tile in tiles if not _file(folder, tile).exists()]
    if len(left) < len(tiles):
        log.info(
            "Going on: %d of %d tiles were mapped before (%s).", len(tiles) - len(left), len(tiles), folder
        )
    cell_km2 = grid.stride**2 / 1e6
    total = sum(tile.rows * tile.columns for tile in tiles) * cell_km2
    done = total - sum(tile.rows * tile.columns for tile in left) * cell_km2
    fresh = 0
    with Steps(len(tiles), "mapping", "tile", shown=progress, done=len(tiles) - len(left)) as bar:
        for tile in left:
            found = finder.find(tile)
            found.write(_file(folder, tile))
            fresh += found.seen
            done += tile.rows * tile.columns * cell_km2
            bar.update(f"{done:.1f} of {total:.1f} km2")
    return fresh


def _file(folder: Path, tile: Tile) -> Path:
    return folder / f"tile-{tile.number}.npz"


def _found(folder: Path, tile: Tile) -> Found:
    path = _file(folder, tile)
    if (found := Found.read(path)) is None:
        path.unlink(missing_ok=True)
        raise DataError(f"{path} is damaged. Repeat the command: it maps this tile again.")
    return found


def _kept(folder: Path, tiles: Sequence[Tile], calibration: Calibration) -> Iterator[tuple[Tile, np.ndarray]]:
    for tile in tiles:
        yield tile, calibration(_found(folder, tile).probability)


def _points(
    folder: Path,
    tiles: Sequence[Tile],
    settings: MapSettings,
    jitter: float | None,
    predictor: Predictor,
    calibration: Calibration,
    ground: Ground,
    grid: Grid,
) -> tuple[Merged, shapely.Geometry, int]:
    """Merged points of all tiles, likeliest first; the ground with data; the number of windows.

    With true crossings there are points below the threshold too.
    """
    kept: list[tuple[np.ndarray, ...]] = [(np.zeros(0), np.zeros(0), np.zeros(0, np.float32))]
    holes: list[shapely.Geometry] = []
    windows = 0
    for tile in tiles:
        found = _found(folder, tile)
        kept.append((found.x, found.y, found.p))
        holes += grid.outlines(tile, found.holes)
        windows += found.windows
    x, y, p = (np.concatenate(each) for each in zip(*kept, strict=True))
    boxed = "box" in predictor.metadata.outputs
    # the boxes of a detector point at the crossing from every window; the scores of a classifier are of windows near it
    spread = settings.merge_m / 2 if boxed or not jitter else min(settings.merge_m, 2 * jitter)
    enough = p[
        calibration(p) >= settings.threshold
    ]  # windows are merged by what the network says: it has no ties
    merged = merge(
        x, y, p, apart_m=settings.merge_m, spread_m=spread, least=enough.min() if len(enough) else np.inf,
        weakest=None if settings.truth is None else 0.0,
    )  # fmt: skip
    calibrated = Merged(merged.x, merged.y, calibration(merged.p))
    area = shapely.difference(ground.area, shapely.union_all(holes)) if holes else ground.area
    return calibrated, area, windows


# ------------------------------------------------------------------------------------------- results


def _breaches(dem: Dem | None, no_lines: str, points: Merged, ground: Ground) -> tuple[Breaches, str]:
    """A line for each point, and how many there are."""
    if dem is None:
        return Breaches(ground.crs, (), {}), no_lines
    found = breach_lines(dem, points.xy, ground.crs)
    said = f"{len(found.lines)} of {counted(len(points.x), 'point')}"
    reasons = Counter(found.without.values())
    return found, said + "".join(f"; {count} {reason}" for reason, count in reasons.items())


def _flow(dem: Dem, points: Merged, breaches: Breaches, ground: Ground) -> tuple[FlowChange | None, str]:
    """What the breach lines do to the flow at the points, or why that is not known."""
    wide, high = dem.cell_m
    with dem.open() as source:
        km2 = source.width * source.height * wide * high / 1e6
    if km2 > MOST_ROUTED * ground.area.area / 1e6:
        return None, (
            f"; flow was not routed: the elevation model has {km2:,.0f} km2, and the mapped ground "
            f"{ground.area.area / 1e6:,.1f}. Cut it to that ground"
        )
    log.info("routing water over %.1f km2, before and after the breach lines, 1 to 3 s a km2", km2)
    try:
        return flow_change(dem, points.xy, breaches.lines, ground.crs), ""
    except DataError as error:
        return None, f"; flow was not routed: {error}"


def _frame(
    points: Merged, ground: Ground, roads: np.ndarray | None, network: MapNetwork, dem: Dem | None
) -> gpd.GeoDataFrame:
    """One row a crossing, likeliest first."""
    count = len(points.x)
    away = np.full(count, np.nan)
    if roads is not None and count:
        places = shapely.points(points.xy)
        away = shapely.distance(places, roads[shapely.STRtree(roads).nearest(places)])
    z = np.full(count, np.nan) if dem is None else dem.elevation_at(points.xy, ground.crs)
    km = [f"E{math.floor(x / 1000)} N{math.floor(y / 1000)}" for x, y in points.xy]
    return point_frame(
        np.column_stack([points.xy, z]),
        ground.crs.to_wkt(),
        points.p,
        road_m=away,
        tile=km,
        model=network.identity,
    )


def _area(
    ground: Ground, area: shapely.Geometry, roads: np.ndarray | None, corridor_m: float | None, km2: float
) -> gpd.GeoDataFrame:
    """The ground that was looked at: of the mapped ground the corridor along roads, where there are some.

    Columns: km2 of it, and ground_km2 of all mapped ground, by which false alarms are counted."""
    import geopandas as gpd

    if roads is not None and corridor_m is not None:
        area = shapely.intersection(area, shapely.union_all(shapely.buffer(roads, corridor_m)))
    parts = [part for part in shapely.get_parts(area) if part.geom_type in ("Polygon", "MultiPolygon")]
    looked_at = shapely.union_all(parts)
    return gpd.GeoDataFrame(
        {"km2": [looked_at.area / 1e6], "ground_km2": [km2]}, geometry=[looked_at], crs=ground.crs.to_wkt()
    )


def _evaluation(
    settings: MapSettings,
    report: MapReport,
    judged: Judged,
    ground: Ground,
    roads: np.ndarray | None,
    dem: Dem | None,
    breaches: Breaches,
) -> Path:
    """Write the page of the evaluation and its figures, in the CRS of the elevation model where there is one."""
    if dem is None:
        west, south, east, north = ground.area.bounds
        elevation, extent, own = np.full((2, 2), np.nan), (west, east, south, north), ground.crs
    else:
        (elevation, extent), own = dem.overview(), dem.crs

    def moved(xy: np.ndarray) -> np.ndarray:
        return np.column_stack(project_xy(ground.crs, own, *xy.T))

    places = judged.places()
    if len(places):
        places[["x", "y"]] = moved(places[["x", "y"]].to_numpy(float))
    return write_evaluation(
        settings.evaluation,
        title=f"Evaluation of {settings.out.name}",
        answers=judged.lines(),
        said=report.said(),
        table=judged.score.table(),
        curve=judged.score.curve,
        threshold=settings.threshold,
        truth=judged.score.truth,
        reliability=judged.reliability(),
        elevation=elevation,
        extent=extent,
        places=places,
        roads=[] if roads is None else [moved(shapely.get_coordinates(road)) for road in roads],
        lines=[line.xyz[:, :2] for line in breaches.lines],
    )


def _mapped(settings: MapSettings, ground: Ground) -> str:
    """The rasters, and the true crossings: names for people, and a digest of all."""
    given = [path for paths in (settings.dem, settings.photo) for path in paths or ()]
    names = ", ".join(path.name for path in given[:4]) + (", ..." if len(given) > 4 else "")
    truth = [] if settings.truth is None else [fingerprint(settings.truth)]
    return f"{names} ({digest_of({}, [*ground.given, *truth])})"


def _looked_along(settings: MapSettings, roads: np.ndarray | None) -> str:
    """Tag dxc.map_roads: the roads along which it looked, how far from them, and a digest of both; '' without."""
    if roads is None or settings.roads is None:
        return ""
    digest = digest_of({"corridor_m": settings.corridor_m}, [fingerprint(settings.roads)])
    return f"{settings.corridor_m:g} m beside {settings.roads.name} ({digest})"
