"""Reads the inputs of a cut in one projected CRS: rasters window by window, crossing points, and lines.

Each function checks one input file and says why it cannot be used. `dxc.geo.chips` decides where chips lie and writes
them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import CRSError, RasterioError, RasterioIOError
from rasterio.transform import from_origin
from rasterio.warp import reproject, transform
from rasterio.windows import Window

from dxc.errors import ConfigError, DataError
from dxc.geo.elevation import METRES
from dxc.geo.formats import (
    POINT_FORMATS,
    VECTOR_DRIVERS,
    VECTOR_FORMATS,
    RasterFile,
    convert_raster,
    convert_vector,
    unreadable,
    vector_name,
)
from dxc.geo.photobands import PhotoBands
from dxc.geo.tables import is_table, read_points

log = logging.getLogger(__name__)

# Limits of elevations in the file's own unit, after its scale and offset. Fill values that nobody declared (-9999,
# -32768, +-3.4e38) lie outside; elevations in metres, feet or cm lie inside.
ELEVATION_LIMITS = (-9000.0, 1e6)


# ------------------------------------------------------------------------------------------- rasters


@dataclass(frozen=True)
class Raster:
    """One input raster as seen from the target CRS. Each thread opens its own handle, because GDAL's are not shared."""

    what: str  # DEM or photo, for messages
    file: RasterFile
    source_crs: CRS
    target_crs: CRS
    footprint: shapely.Polygon  # in the target CRS
    resampling: Resampling
    aligned: bool  # its pixels lie on the chips' grid: nothing to resample
    bands: PhotoBands  # the bands to read; a DEM has one
    unit: str = "metre"  # of elevations, a key of METRES; a photo ignores it
    dtype: str = ""  # of its pixels, as NumPy calls it

    @classmethod
    def look(
        cls,
        what: str,
        file: RasterFile,
        source: Any,
        target_crs: CRS,
        bands: PhotoBands,
        unit: str = "metre",
    ) -> Raster:
        """Describe an open dataset: its outline in the target CRS, and how it will be resampled.

        Args:
            what: DEM or photo, for messages.
            file: the checked file.
            source: the same file, open in rasterio.
            target_crs: the CRS of the chips.
            bands: the bands to read.
            unit: of the elevations, a key of METRES.

        Raises:
            DataError: the outline does not exist in the target CRS.
        """
        steps = np.linspace(0, 1, 21)
        edge = [(t, 0.0) for t in steps] + [(1.0, t) for t in steps]
        edge += [(1 - t, 1.0) for t in steps] + [(0.0, 1 - t) for t in steps]
        corners = [source.transform @ (c * source.width, r * source.height) for c, r in edge]
        crs = horizontal(source.crs)
        xs, ys = project_xy(crs, target_crs, *np.array(corners).T)
        if not np.isfinite([xs, ys]).all():
            raise DataError(
                f"{what} {file.path}: its outline cannot be expressed in {crs_name(target_crs)}. Give a CRS that "
                "covers it: crs=EPSG:..."
            )
        footprint = shapely.make_valid(shapely.Polygon(np.column_stack([xs, ys])))
        metres = math.sqrt(footprint.area / (source.width * source.height))
        # averaging at about 1 m would only pick the nearest pixel, hence 0.9
        average = what == "photo" and metres < 0.9
        t = source.transform
        aligned = crs == target_crs and np.allclose((t.a, t.b, t.d, t.e), (1, 0, 0, -1), rtol=0, atol=1e-9)
        aligned = aligned and np.allclose((t.c, t.f), np.round((t.c, t.f)), rtol=0, atol=1e-4)
        resampling = Resampling.average if average else Resampling.bilinear
        return cls(
            what, file, crs, target_crs, footprint, resampling, bool(aligned), bands, unit, source.dtypes[0]
        )

    @property
    def path(self) -> Path:
        return self.file.path

    def elevations(self, source: Any, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Read a window of a DEM on its own grid.

        Args:
            source: the open dataset of this thread.
            window: inside of the raster.

        Returns:
            Elevations in metres, float64 (rows, columns), 0 where there are none; and which cells have one, bool.

        Raises:
            DataError: the file cannot be read.
        """
        _, found, valid = self._pixels(source, window)
        assert found is not None  # it is a DEM
        return np.where(valid, found[0], 0) * METRES[self.unit], valid

    def read(self, source: Any, left: int, top: int, size: int) -> np.ndarray | None:
        """Read the pixels of one chip: (bands, size, size), elevations in metres.

        Args:
            source: the open dataset of this thread.
            left: x of the chip's left edge in the target CRS, metres.
            top: y of the chip's upper edge in the target CRS, metres.
            size: edge of the chip in pixels of 1 m.

        Returns:
            None where a pixel of the chip has no data.
        """
        pixels, valid = self.read_part(source, left, top, size, size)
        return pixels if valid.all() else None

    def read_part(
        self, source: Any, left: int, top: int, width: int, height: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a rectangle of the target grid, whether or not the raster has data everywhere in it.

        Which pixels have data is decided here and not left to GDAL. GDAL takes the fourth band of a uint8 file for
        transparency unless its writer said otherwise. The mask is warped like the pixels.

        Args:
            source: the open dataset of this thread.
            left: x of the left edge in the target CRS, whole metres.
            top: y of the upper edge in the target CRS, whole metres.
            width: in pixels of 1 m.
            height: in pixels of 1 m.

        Returns:
            Pixels (bands, height, width), elevations in metres; and which of them have data, bool (height, width).
            Pixels without data hold any finite value.
        """
        count, kind = len(self.bands.indexes), source.dtypes[self.bands.indexes[0] - 1]
        pixels = np.zeros((count, height, width), np.float32 if self.what == "DEM" else kind)
        covered = np.zeros((height, width), bool)
        window, inside = self._window(source, left, top, width, height)
        if window is None:
            return pixels, covered
        data, elevations, valid = self._pixels(source, window)
        whole = inside and bool(valid.all())
        if not (whole or valid.any()):
            return pixels, covered
        if elevations is not None:
            data = (np.where(valid, elevations, 0) * METRES[self.unit]).astype(np.float32)
        if self.aligned:
            x, y = source.transform @ (window.col_off, window.row_off)
            row, column = round(top - y), round(x - left)
            part = np.s_[row : row + data.shape[1], column : column + data.shape[2]]
            pixels[:, *part], covered[part] = data, valid
            return pixels, covered
        grid = {
            "src_transform": source.window_transform(window),
            "src_crs": self.source_crs,
            "dst_transform": from_origin(left, top, 1, 1),
            "dst_crs": self.target_crs,
            "resampling": self.resampling,
            "tolerance": 0.0,  # exact coordinates: a chip is too small for approximation to pay
        }
        if whole:
            covered[:] = True
        else:
            share = np.zeros((height, width), np.float32)
            reproject(valid.astype(np.float32), share, **grid)
            covered = share >= 0.999
        reproject(data, pixels, **grid)
        return pixels, covered

    def has_data(self, source: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether the pixels under the places of a lattice have data, bool (rows, columns).

        Nothing is resampled, so it is quicker than read_part.

        Args:
            source: the open dataset of this thread.
            x: of the places (columns,), from west to east in the target CRS, metres.
            y: likewise (rows,), from north to south.
        """
        left, top = math.floor(x[0]), math.ceil(y[0])
        width, height = math.ceil(x[-1]) - left + 1, top - math.floor(y[-1]) + 1
        window, _ = self._window(source, left, top, width, height)
        if window is None:
            return np.zeros((len(y), len(x)), bool)
        _, _, valid = self._pixels(source, window)  # GDAL takes many times as long to read every tenth pixel
        xs, ys = (each.ravel() for each in np.meshgrid(x, y))
        columns, rows = ~source.transform @ project_xy(self.target_crs, self.source_crs, xs, ys)
        column, row = np.floor(columns - window.col_off), np.floor(rows - window.row_off)
        there = (column >= 0) & (column < window.width) & (row >= 0) & (row < window.height)
        found = np.zeros(len(xs), bool)
        found[there] = valid[row[there].astype(int), column[there].astype(int)]
        return found.reshape(len(y), len(x))

    def _window(
        self, source: Any, left: int, top: int, width: int, height: int
    ) -> tuple[Window | None, bool]:
        """The source window under a rectangle, with a margin for the resampling kernel, and whether the raster covers
        it. The window is None where there is none."""
        steps = np.linspace(0, 1, 5)
        xs, ys = (grid.ravel() for grid in np.meshgrid(left + steps * width, top - steps * height))
        xs, ys = project_xy(self.target_crs, self.source_crs, xs, ys)
        if not np.isfinite([xs, ys]).all():
            return None, False
        cols, rows = ~source.transform @ (xs, ys)
        if self.aligned:
            c0, c1, r0, r1 = (round(float(v)) for v in (cols.min(), cols.max(), rows.min(), rows.max()))
        else:
            least = min(width, height)
            margin_c, margin_r = 3 + 3 * np.ptp(cols) / least, 3 + 3 * np.ptp(rows) / least
            c0, c1 = math.floor(cols.min() - margin_c), math.ceil(cols.max() + margin_c)
            r0, r1 = math.floor(rows.min() - margin_r), math.ceil(rows.max() + margin_r)
        inside = c0 >= 0 and r0 >= 0 and c1 <= source.width and r1 <= source.height
        c0, c1, r0, r1 = max(0, c0), min(source.width, c1), max(0, r0), min(source.height, r1)
        return (Window(c0, r0, c1 - c0, r1 - r0) if c1 > c0 and r1 > r0 else None), inside

    def _pixels(self, source: Any, window: Window) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Read a window of the source: its bands, the elevations of a DEM in the file's own unit, and which pixels
        carry data. Raises DataError where the file cannot be read."""
        try:
            data = source.read(self.bands.indexes, window=window)
            elevations = _scaled(source, data) if self.what == "DEM" else None
            return data, elevations, self._valid(source, data, elevations, window)
        except RasterioError as error:
            raise unreadable(self.what, self.path, window, error) from error

    def _valid(
        self, source: Any, data: np.ndarray, elevations: np.ndarray | None, window: Window
    ) -> np.ndarray:
        """Which source pixels carry data, bool rows x columns.

        A photo pixel has no data only if none of its bands has: NAIP declares nodata 0, and a 0 in one band may be
        a dark pixel (red over water).
        """
        valid = np.ones(data.shape[1:], bool)
        if elevations is not None:
            low, high = ELEVATION_LIMITS
            valid &= np.isfinite(elevations[0]) & (elevations[0] > low) & (elevations[0] < high)
            if (
                data.dtype.kind == "i"
            ):  # the customary fill value of integers, however small it is once scaled
                valid &= data[0] != np.iinfo(data.dtype).min
        if source.nodata is not None and not math.isnan(source.nodata):
            valid &= (data != np.array(source.nodata).astype(data.dtype)).any(axis=0)
        if self.bands.mask is not None:
            valid &= source.read(self.bands.mask, window=window) == self.bands.opaque
        first = self.bands.indexes[0]
        flags = source.mask_flag_enums[first - 1]
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            valid &= source.read_masks(first, window=window) > 0
        return valid


def _scaled(source: Any, data: np.ndarray) -> np.ndarray:
    """Elevations in the file's own unit, with its scale and offset applied: float64 (1, rows, columns)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(data.astype(np.float64) * source.scales[0] + source.offsets[0])


def open_raster(what: str, file: RasterFile) -> Any:
    """Open the DEM or the photo. Raises DataError that says why it cannot be used; bands are checked apart.

    Args:
        what: DEM or photo, for messages.
        file: the checked file.
    """
    try:
        source = file.open()
    except RasterioIOError as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(
            f"{what} {file.path}: not a raster that can be read ({text}). {convert_raster(file.path)}"
        ) from error
    usable = source.crs is not None and (source.crs.is_projected or source.crs.is_geographic)
    if not usable or source.transform.is_identity:
        missing = "georeference (its transform is the identity)" if usable else "known CRS"
        source.close()
        raise DataError(
            f"{what} {file.path}: has no {missing}. Give it one, e.g. gdal_edit.py -a_srs EPSG:26915 FILE, or "
            "gdal_translate -a_srs ... -a_ullr ..."
        )
    return source


def check_dem(path: Path, dem: Any) -> None:
    """Raise DataError for a number of bands or a type that no DEM has.

    Args:
        path: the file, for messages.
        dem: the open dataset.
    """
    if dem.count != 1:
        raise DataError(f"DEM {path}: has {dem.count} bands; a DEM has 1. Are dem= and photo= swapped?")
    kind = np.dtype(dem.dtypes[0] if "complex" not in dem.dtypes[0] else "complex64")
    if kind.kind == "c":
        raise DataError(f"DEM {path}: holds complex numbers ({dem.dtypes[0]}); elevations are real numbers.")
    if kind.itemsize == 1:
        raise DataError(
            f"DEM {path}: is {kind}; 256 steps are too coarse for elevations. Is it a hillshade? Give "
            "the elevation model it was made from."
        )
    scale, offset = dem.scales[0], dem.offsets[0]
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        raise DataError(
            f"DEM {path}: has a scale of {scale:g} and an offset of {offset:g}, which give no elevations. Correct "
            "them, e.g. gdal_edit.py -scale 1 -offset 0 FILE."
        )


# ----------------------------------------------------------------------- coordinate reference systems


def crs_name(crs: CRS) -> str:
    """EPSG:26915 where there is such a code, else the WKT."""
    return str(crs.to_string())


def known_crs(key: str, wanted: str) -> CRS:
    """The CRS that a key names, such as EPSG:26915. Raises ConfigError for one that is not known."""
    try:
        return CRS.from_user_input(int(wanted) if wanted.isdigit() else wanted)
    except (CRSError, ValueError) as error:
        raise ConfigError(f"{key}={wanted} is not a known CRS. Give one like {key}=EPSG:26915.") from error


def metric_crs(wanted: str | None, what: str, path: Path, raster: Any) -> CRS:
    """The CRS of the chips: the wanted one, else the raster's if that is in metres, else its UTM zone.

    Args:
        what: DEM or photo, for messages.
        path: of the raster, for messages.
        raster: the open dataset.
    """
    if wanted is not None:
        crs = known_crs("crs", wanted)
        if not _in_metres(crs):
            unit = "is geographic (degrees)" if crs.is_geographic else "is not projected in metres"
            raise ConfigError(
                f"crs={wanted} {unit}; chips are measured in metres. Give a projected CRS such as a UTM "
                "zone, or leave crs out."
            )
        return horizontal(crs)
    own = horizontal(raster.crs)
    # world Mercator is in "metres" that shrink with latitude: 100 m of it are 70 m of ground at 45 degrees
    method = getattr(pyproj.CRS.from_wkt(own.wkt).coordinate_operation, "method_name", "")
    mercator = method.startswith(("Mercator", "Popular Visualisation"))
    if _in_metres(own) and not mercator:
        return own
    x, y = raster.transform @ (raster.width / 2, raster.height / 2)
    (lon,), (lat,) = project_xy(own, CRS.from_epsg(4326), np.array([x]), np.array([y]))
    if not (math.isfinite(lon) and math.isfinite(lat)):
        raise DataError(
            f"{what} {path}: its centre ({x:g}, {y:g}) lies outside {crs_name(own)}. Check its CRS."
        )
    zone = min(60, int((lon + 180) // 6) + 1)
    utm = CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)
    log.info(
        "The %s's %s is not in metres of ground: its grid is that of %s.", what, crs_name(own), crs_name(utm)
    )
    return utm


def _in_metres(crs: CRS) -> bool:
    return bool(crs.is_projected and math.isclose(crs.linear_units_factor[1], 1.0))


def horizontal(crs: CRS) -> CRS:
    """A CRS without its vertical part. `dxc.geo.elevation` reads that one."""
    full = pyproj.CRS.from_wkt(crs.wkt)
    return CRS.from_wkt(full.sub_crs_list[0].to_wkt()) if full.is_compound else crs


def project_xy(source: CRS, target: CRS, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the target CRS, inf where there are none. Both rasters and points go through GDAL.

    Args:
        source: CRS of the coordinates.
        target: CRS of the result.
        xs: (n,).
        ys: (n,).

    Returns:
        x and y, each (n,).
    """
    if source == target:
        return np.asarray(xs, float), np.asarray(ys, float)
    try:
        found = transform(source, target, xs, ys)
        return np.array(found[0], float), np.array(found[1], float)
    except CPLE_BaseError:  # one impossible coordinate, such as latitude 95, makes all fail
        if len(xs) == 1:
            return np.array([np.inf]), np.array([np.inf])
        alone = [project_xy(source, target, xs[i : i + 1], ys[i : i + 1]) for i in range(len(xs))]
        return np.concatenate([x for x, _ in alone]), np.concatenate([y for _, y in alone])


def extent_text(shape: shapely.Geometry) -> str:
    return "x {0:.0f}..{2:.0f}, y {1:.0f}..{3:.0f}".format(*shape.bounds)


# -------------------------------------------------------------------------------- points and lines


@dataclass(frozen=True)
class Points:
    """The crossings: ids, coordinates in the file's CRS and in the target CRS, and some columns.

    A coordinate is NaN where a feature has no geometry.
    """

    ids: np.ndarray  # int, (n,)
    own: np.ndarray  # float, (n, 2)
    crs: str
    xy: np.ndarray  # float, (n, 2), target CRS
    columns: dict[str, np.ndarray]  # float, (n,); NaN where a value is missing or no number

    def shapes(self) -> np.ndarray:
        """The points that have a place in the target CRS."""
        return shapely.points(self.xy[np.isfinite(self.xy).all(axis=1)])

    @classmethod
    def read(
        cls,
        path: Path,
        target: CRS,
        columns: Sequence[str] = (),
        *,
        layer: str | None = None,
        xy: Sequence[str] | None = None,
        crs: str | None = None,
        what: str = "crossings",
    ) -> Points:
        """Read the file of crossings, or raise a DataError that says why it is not one, or lacks a column.

        Args:
            path: the file; of negatives its layer may be empty, as a map is that found nothing.
            target: the CRS of the chips.
            columns: of numbers, to be read too.
            layer: of a file with several.
            xy: columns of the coordinates in a .csv; None: those with a usual name.
            crs: of the coordinates, where the file does not say it.
            what: the key that names the file, for messages. Negatives are never a .csv.
        """
        if what != "negatives" and is_table(path):
            return cls._of_table(path, target, columns, layer, xy, crs, what)
        if xy is not None:
            raise ConfigError(f"{what}_xy names columns of a .csv: leave it out, the file has geometries.")
        return cls._of_layer(path, target, columns, layer, crs, what)

    @classmethod
    def _of_table(
        cls,
        path: Path,
        target: CRS,
        columns: Sequence[str],
        layer: str | None,
        xy: Sequence[str] | None,
        crs: str | None,
        what: str,
    ) -> Points:
        if layer is not None:
            raise ConfigError(f"{_layer_key(what)}={layer}: a .csv has no layers, leave it out.")
        if not path.is_file():
            reason = "is no regular file" if path.exists() else "no such file"
            raise DataError(f"{what} {path}: {reason}. Give a local file: {POINT_FORMATS}.")
        stated = None if crs is None else known_crs(f"{what}_crs", crs)
        table = read_points(what, path, columns, xy=xy, crs=crs)
        own = horizontal(stated or CRS.from_user_input(table.crs))
        return cls._of(table.ids, table.xy, own, target, table.columns, path, what)

    @classmethod
    def _of(
        cls,
        ids: np.ndarray,
        own: np.ndarray,
        crs: CRS,
        target: CRS,
        columns: dict[str, np.ndarray],
        path: Path,
        what: str = "crossings",
    ) -> Points:
        present = np.isfinite(own).all(axis=1)
        if not present.any():
            raise DataError(f"{what} {path}: holds no point. Give a file with points.")
        xy = own.copy()
        xy[present] = np.column_stack(project_xy(crs, target, *own[present].T))
        return cls(ids, own, crs_name(crs), xy, columns)

    @classmethod
    def _of_layer(
        cls, path: Path, target: CRS, columns: Sequence[str], layer: str | None, stated: str | None, what: str
    ) -> Points:
        frame, crs = _read_vector(what, path, "Point", columns, layer, stated)
        if not len(frame):
            nowhere = np.zeros((0, 2))
            return cls(np.zeros(0, np.int64), nowhere, crs_name(crs), nowhere, {})
        shapes = frame.geometry.to_numpy()
        single = shapely.get_num_geometries(shapes) == 1
        shapes = np.where(
            single & (shapely.get_type_id(shapes) == 4), shapely.get_geometry(shapes, 0), shapes
        )
        present = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        odd = present & (shapely.get_type_id(shapes) != 0)
        if odd.any():
            kinds = sorted({shape.geom_type for shape in shapes[odd]})
            raise DataError(
                f"{what} {path}: {odd.sum()} of {len(shapes)} geometries are {', '.join(kinds)}; single "
                "points are needed. Convert them, e.g. ogr2ogr -explodecollections, or centroids in QGIS."
            )
        own = np.full((len(shapes), 2), np.nan)
        own[present] = shapely.get_coordinates(shapes[present])
        numbers = {name: _numbers(frame[name]) for name in columns}
        return cls._of(frame.index.to_numpy(), own, crs, target, numbers, path, what)


def _numbers(column: Any) -> np.ndarray:
    """A column as floats, NaN where it holds none. Numbers written as text count; dates and booleans do not."""
    import pandas

    if column.dtype.kind not in "iufO":
        return np.full(len(column), np.nan)
    return pandas.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)


def _layer_key(what: str) -> str:
    """The key that names a layer of the file of another key."""
    keys = {"crossings": "layer", "near": "near_layers", "negatives": "negatives_layers"}
    return keys.get(what, f"{what}_layer")


def _layer(what: str, path: Path, kind: str, layers: Sequence[tuple[str, str]], wanted: str | None) -> str:
    """The wanted layer out of (name, geometry type), or the only one of `kind`."""
    key = _layer_key(what)
    told = ", ".join(f"{name} ({geometry})" for name, geometry in layers) or "none"
    if wanted is not None:
        if wanted not in [name for name, _ in layers]:
            raise DataError(f"{what} {path}: has no layer {wanted}. Its layers are: {told}.")
        return wanted
    fitting = [name for name, geometry in layers if kind in geometry] or [name for name, _ in layers]
    if len(fitting) != 1:
        raise DataError(
            f"{what} {path}: has {len(fitting)} layers that may be meant. Name one with {key}=NAME; its layers are: "
            f"{told}."
        )
    return fitting[0]


def _read_vector(
    what: str,
    path: Path,
    kind: str,
    columns: Sequence[str] = (),
    layer: str | None = None,
    stated_crs: str | None = None,
) -> tuple[Any, CRS]:
    """One layer: a frame of ids, geometries and columns, and its horizontal CRS.

    Args:
        what: the key that names the file, for messages. Only a layer of negatives may be empty.
        kind: Point or LineString, to find the layer where none is named.
        layer: its name.
        stated_crs: the CRS of a file that does not say it.
    """
    formats = POINT_FORMATS if kind == "Point" and what != "negatives" else VECTOR_FORMATS
    opened = vector_name(what, path, formats)
    try:
        layers = [(str(name), str(geometry)) for name, geometry in pyogrio.list_layers(opened)]
        chosen = _layer(what, path, kind, layers, layer)
        info = pyogrio.read_info(opened, layer=chosen)
        if info["driver"] not in VECTOR_DRIVERS:
            raise DataError(
                f"{what} {path}: is read as {info['driver']}, not as {formats}. {convert_vector(path)}"
            )
        there = [str(name) for name in info["fields"]]
        frame = pyogrio.read_dataframe(opened, layer=chosen, columns=list(columns), fid_as_index=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, UnicodeDecodeError) as error:
        raise DataError(
            f"{what} {path}: not a vector file that can be read ({error}). Give {formats}. {convert_vector(path)}"
        ) from error
    if not hasattr(frame, "geometry") or not (len(frame) or what == "negatives"):
        raise DataError(f"{what} {path}: holds no geometry. Give a file with {kind} geometries.")
    if missing := [name for name in columns if name not in there]:
        raise DataError(
            f"{what} {path}: has no column {', '.join(missing)}; it has {', '.join(there) or 'no columns'}."
        )
    if frame.crs is None and stated_crs is not None:
        return frame, horizontal(known_crs(f"{what}_crs", stated_crs))
    if frame.crs is None or not (frame.crs.is_projected or frame.crs.is_geographic):
        raise DataError(
            f"{what} {path}: has no CRS, so its place on the rasters is unknown. Give it one, e.g. "
            "ogr2ogr -a_srs EPSG:26915 NEW.gpkg FILE (a shapefile needs its .prj)."
        )
    crs = horizontal(CRS.from_wkt(frame.crs.to_wkt()))
    if stated_crs is not None and known_crs(f"{what}_crs", stated_crs) != crs:
        raise ConfigError(
            f"{what}_crs={stated_crs}: {path} says that it is in {crs_name(crs)}. Leave {what}_crs out, or "
            "correct the file: ogr2ogr -a_srs EPSG:26915 NEW.gpkg FILE."
        )
    return frame, crs


def read_lines(
    path: Path, target: CRS, common: shapely.Geometry, layer: str | None = None, what: str = "near"
) -> np.ndarray:
    """The parts of a file's lines that lie in `common`, as LineStrings in the target CRS.

    Args:
        path: the file.
        target: the CRS of the chips.
        common: where chips may lie, in the target CRS.
        layer: of a file with several.
        what: the key that names the file, for messages.
    """
    frame, crs = _read_vector(what, path, "LineString", layer=layer)
    shapes = frame.geometry.to_numpy()
    lines = shapely.get_parts(shapes[~shapely.is_missing(shapes)])
    if (shapely.get_dimensions(lines) != 1).any():
        raise DataError(f"{what} {path}: holds geometries other than lines. Give roads or streams as lines.")

    def project(xy: np.ndarray) -> np.ndarray:
        return np.column_stack(project_xy(crs, target, *xy.T))

    lines = shapely.transform(shapely.force_2d(lines), project)
    lines = lines[np.isfinite(shapely.length(lines))]
    parts = shapely.get_parts(shapely.intersection(lines, common))
    parts = shapely.get_parts(parts)  # a collection may hold multi lines
    parts = parts[(shapely.get_dimensions(parts) == 1) & (shapely.length(parts) > 0)]
    if not len(parts):
        raise DataError(
            f"{what} {path}: no line lies on the ground of the rasters ({extent_text(common)}). Check its CRS, or "
            "leave it out."
        )
    return parts
