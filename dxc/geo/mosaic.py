"""Several raster tiles read as one, without copying a pixel.

Surveys deliver elevation models and photos as tiles. A mosaic is a virtual raster (VRT) that this module writes itself,
in memory, from tiles that dxc.geo.formats has checked. Tiles have to be of one kind: the same CRS, pixel size, bands
and type. A tile that cannot be read, or is of another kind than most, is left out and named; the others are read.
"""

from __future__ import annotations

import glob
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from dxc.errors import DataError
from dxc.geo.formats import GDAL_OPTIONS, RASTER_FORMATS, RasterFile, raster_file
from dxc.geo.rasters import crs_name
from dxc.text import counted

log = logging.getLogger(__name__)

SUFFIXES = (".tif", ".tiff", ".img")
"""Files of a folder that are tiles. A .vrt in it is a mosaic of them, and would count each pixel twice."""
SHARE_OF_ONE_KIND = 0.5  # of the tiles; with less it is not clear which are meant
LISTED = 5  # tiles, gaps and overlaps that a message names
_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip
_COLOURS = {
    "red": "Red",
    "green": "Green",
    "blue": "Blue",
    "alpha": "Alpha",
    "gray": "Gray",
    "undefined": "Undefined",
}

Sources = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Mosaic:
    """Tiles as one raster.

    Attributes:
        file: to open; it is the tile itself where there is only one.
        tiles: number of tiles in it.
        left_out: tiles that are not in it, and why.
        notes: what a user should know of it: how many tiles, gaps, overlaps.
    """

    file: RasterFile
    tiles: int
    left_out: tuple[tuple[Path, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tile:
    file: RasterFile
    crs: CRS
    transform: rasterio.Affine
    width: int
    height: int
    types: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str | None, ...]
    names: tuple[str | None, ...]
    colours: tuple[str, ...]
    nodata: float | None
    masked: bool  # has a mask of its own, beside no-data and alpha
    block: tuple[int, int]  # height and width

    @property
    def kind(self) -> tuple[Any, ...]:
        """What tiles of one mosaic have in common."""
        a, e = self.transform.a, self.transform.e
        return (self.crs.to_wkt(), f"{a:.9g}", f"{e:.9g}", self.types, self.scales, self.offsets, self.units)

    def describe(self) -> str:
        """'EPSG:26915, pixels of 1 x 1, 1 band of float32'."""
        size = f"{abs(self.transform.a):g} x {abs(self.transform.e):g}"
        bands = f"{counted(len(self.types), 'band')} of {self.types[0]}"
        scale = f", scale {self.scales[0]:g}" if set(self.scales) != {1.0} else ""
        unit = f", in {self.units[0]}" if self.units[0] else ""
        return f"{crs_name(self.crs)}, pixels of {size}, {bands}{scale}{unit}"

    @property
    def outline(self) -> shapely.Polygon:
        (x0, y0), (x1, y1) = self.transform @ (0, 0), self.transform @ (self.width, self.height)
        return shapely.box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


def tile_paths(what: str, given: Sources) -> list[Path]:
    """The files that a path, a folder, a pattern or a list of these stands for, each once, sorted within each.

    Args:
        what: DEM or photo, for messages.
        given: a file; a folder, whose rasters are meant (not those of folders in it); a pattern such as tiles/*.tif; or
            a list of these.

    Raises:
        DataError: there is nothing of that name, or no raster in a folder.
    """
    several = [given] if isinstance(given, str | Path) else list(given)
    if not several:
        raise DataError(f"{what}: an empty list. Give {RASTER_FORMATS}, a folder or a pattern of these.")
    found: dict[Path, None] = {}
    for each in several:
        path = Path(each)
        if path.is_dir():
            inside = sorted(
                p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
            )
            if not inside:
                raise DataError(
                    f"{what} {path}: a folder without rasters ({', '.join(SUFFIXES)}). Give the folder that holds "
                    f"them, or a pattern such as {path}/*/*.tif"
                )
        elif path.exists() or not glob.has_magic(str(each)):
            inside = [path]  # whoever opens it says where there is none
        else:
            # in the order of names on every machine
            inside = sorted(p for p in map(Path, glob.glob(str(each), recursive=True)) if p.is_file())  # noqa: PTH207
            if not inside:
                raise DataError(f"{what} {each}: no file has such a name. Check the pattern.")
        found |= dict.fromkeys(inside)
    return list(found)


def open_mosaic(what: str, given: Sources, *, vrt_anywhere: bool = False) -> Mosaic:
    """Check one raster or many, and make them one to be read.

    Where tiles overlap, the later in the order of tile_paths() covers the earlier, unless it has no data there. Where
    no tile lies, there is no data.

    Args:
        what: DEM or photo, for messages.
        given: see tile_paths().
        vrt_anywhere: whether a .vrt that is given alone may have sources that do not lie below its own folder.

    Raises:
        DataError: no tile can be read, or the tiles are of different kinds and it is not clear which are meant.
    """
    paths = tile_paths(what, given)
    if len(paths) == 1:
        return Mosaic(raster_file(what, paths[0], vrt_anywhere=vrt_anywhere), 1)
    tiles: list[_Tile] = []
    left_out: list[tuple[Path, str]] = []
    for path in paths:
        try:
            tiles.append(_tile(what, path))
        except DataError as error:
            left_out.append((path, str(error)))
    if not tiles:
        shown = "\n".join(f"  {reason}" for _, reason in left_out[:LISTED])
        raise DataError(f"{what}: none of {len(paths)} tiles can be read:\n{shown}")
    tiles, others = _of_one_kind(what, tiles)
    left_out += others
    notes = [_said(what, tiles), *_gaps_and_overlaps(what, tiles)]
    for path, reason in left_out[:LISTED]:
        log.warning("%s %s is left out: %s", what, path, reason)
    if len(left_out) > LISTED:
        log.warning("%s: %d more tiles are left out.", what, len(left_out) - LISTED)
    if len(tiles) == 1:
        return Mosaic(tiles[0].file, 1, tuple(left_out))
    for note in notes:
        log.info("%s", note)
    where = _where(given, paths)
    files = tuple(dict.fromkeys(file for tile in tiles for file in tile.file.files))
    return Mosaic(RasterFile(where, "VRT", _xml(tiles), files), len(tiles), tuple(left_out), tuple(notes))


def _where(given: Sources, paths: Sequence[Path]) -> Path:
    """A name for messages: the folder or pattern, or the folder that all tiles lie in."""
    if isinstance(given, str | Path):
        return Path(given)
    if len(given) == 1:
        return Path(given[0])
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def _tile(what: str, path: Path) -> _Tile:
    """Check one tile. Raises DataError that says why it cannot be part of a mosaic."""
    file = raster_file(what, path)
    if file.driver == "VRT":
        raise DataError(f"{path.name} is a mosaic itself (.vrt). Give it alone, or give its tiles.")
    try:
        with rasterio.Env(**GDAL_OPTIONS), file.open() as source:
            if source.crs is None or source.transform.is_identity:
                raise DataError(
                    f"{path.name} has no {'CRS' if source.crs is None else 'georeference'}. Give it one, e.g. "
                    "gdal_edit.py -a_srs EPSG:26915 FILE"
                )
            if source.transform.b or source.transform.d:
                raise DataError(f"{path.name} is rotated. Write it with north up: gdalwarp IN OUT")
            if odd := set(source.dtypes) - _TYPES.keys():
                raise DataError(f"{path.name} is {odd.pop()}; tiles are {', '.join(_TYPES)}")
            # a download that broke off has its header, but not its last pixels
            source.read(window=Window(source.width - 1, source.height - 1, 1, 1))
            flags = source.mask_flag_enums[0]
            return _Tile(
                file=file, crs=source.crs, transform=source.transform, width=source.width, height=source.height,
                types=tuple(source.dtypes), scales=tuple(source.scales), offsets=tuple(source.offsets),
                units=tuple(source.units), names=tuple(source.descriptions),
                colours=tuple(each.name for each in source.colorinterp), nodata=source.nodata,
                masked=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags, block=source.block_shapes[0],
            )  # fmt: skip
    except RasterioError as error:
        text = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(
            f"{path.name} seems truncated or damaged ({text}). Fetch or write it again."
        ) from error


def _of_one_kind(what: str, tiles: Sequence[_Tile]) -> tuple[list[_Tile], list[tuple[Path, str]]]:
    """The tiles of the most frequent kind, and the others with the reason why they are left out."""
    counts = Counter(tile.kind for tile in tiles)
    (kind, most), *_ = counts.most_common(1)
    chosen = [tile for tile in tiles if tile.kind == kind]
    if most <= SHARE_OF_ONE_KIND * len(tiles) and len(counts) > 1:
        shown = []
        for each, count in counts.most_common(LISTED):
            first = next(tile for tile in tiles if tile.kind == each)
            shown.append(f"  {counted(count, 'tile')} in {first.describe()}: {first.file.path.name}, ...")
        raise DataError(
            f"{what}: {len(tiles)} tiles are of {len(counts)} kinds, and no kind is that of most:\n"
            + "\n".join(shown)
            + "\nGive those of one kind, and the others in a call of their own; or warp them: gdalwarp -t_srs ..."
        )
    others = [
        (tile.file.path, f"it is in {tile.describe()}; most tiles are in {chosen[0].describe()}")
        for tile in tiles
        if tile.kind != kind
    ]
    return chosen, others


def _said(what: str, tiles: Sequence[_Tile]) -> str:
    left, bottom, right, top = shapely.total_bounds([tile.outline for tile in tiles])
    return (
        f"{what}: {len(tiles)} tiles as one raster, x {left:.0f}..{right:.0f}, y {bottom:.0f}..{top:.0f}, in "
        f"{tiles[0].describe()}"
    )


def _gaps_and_overlaps(what: str, tiles: Sequence[_Tile]) -> list[str]:
    """Sentences on where no tile lies, where several do, and on tiles beside the others' grid."""
    notes = []
    outlines = np.array([tile.outline for tile in tiles])
    pixel = abs(tiles[0].transform.a)
    # outlines of tiles that touch may differ by a rounding error
    covered = shapely.union_all(shapely.buffer(outlines, pixel / 100, join_style="mitre"))
    frame = shapely.box(*shapely.bounds(covered))
    gaps = shapely.get_parts(shapely.difference(frame, covered))
    gaps = gaps[shapely.area(gaps) > pixel**2 / 2]
    if len(gaps):
        gaps = gaps[np.argsort(-shapely.area(gaps))]
        shown = "; ".join(
            "x {0:.0f}..{2:.0f}, y {1:.0f}..{3:.0f}".format(*gap.bounds) for gap in gaps[:LISTED]
        )
        more = f" and {len(gaps) - LISTED} more" if len(gaps) > LISTED else ""
        share = shapely.area(gaps).sum() / frame.area
        notes.append(
            f"{what}: no tile covers {share:.1%} of their common frame: {shown}{more}. There is no data there"
        )
    one, other = shapely.STRtree(outlines).query(outlines, "intersects")
    pairs = one < other
    common = shapely.area(shapely.intersection(outlines[one[pairs]], outlines[other[pairs]]))
    overlapping = common > pixel**2 / 2
    if overlapping.any():
        i, j = one[pairs][overlapping], other[pairs][overlapping]
        widest = int(common[overlapping].argmax())
        names = f"{tiles[i[widest]].file.path.name} and {tiles[j[widest]].file.path.name}"
        notes.append(
            f"{what}: {counted(len(i), 'pair')} of tiles overlap, most of all {names}. The later of a pair counts "
            "where it has data"
        )
    shift = max(max(_shift(tile, tiles[0])) for tile in tiles)
    if shift > 0.01:
        notes.append(
            f"{what}: tiles lie up to {shift:.2f} pixels beside the grid of the first; they are moved to it"
        )
    return notes


def _place(tile: _Tile, first: _Tile) -> tuple[float, float]:
    """Column and row of a tile's corner on the grid of the first one."""
    column, row = ~first.transform @ (tile.transform.c, tile.transform.f)
    return float(column), float(row)


def _shift(tile: _Tile, first: _Tile) -> tuple[float, float]:
    """How far a tile lies beside the grid of the first one, in pixels."""
    column, row = _place(tile, first)
    return abs(column - round(column)), abs(row - round(row))


def _xml(tiles: Sequence[_Tile]) -> str:
    """The virtual raster.

    Besides the bands it has a mask that says where tiles lie. So no value of a pixel has to stand for "no tile here".
    """
    first = tiles[0]
    places = [tuple(round(v) for v in _place(tile, first)) for tile in tiles]
    left, top = min(c for c, _ in places), min(r for _, r in places)
    width = max(c + tile.width for (c, _), tile in zip(places, tiles, strict=True)) - left
    height = max(r + tile.height for (_, r), tile in zip(places, tiles, strict=True)) - top
    x, y = first.transform @ (left, top)
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ElementTree.SubElement(root, "SRS").text = first.crs.to_wkt()
    numbers = (x, first.transform.a, 0.0, y, 0.0, first.transform.e)
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in numbers)
    nodata = next((tile.nodata for tile in tiles if tile.nodata is not None), None)
    for band, dtype in enumerate(first.types, 1):
        element = ElementTree.SubElement(root, "VRTRasterBand", dataType=_TYPES[dtype], band=str(band))
        if first.names[band - 1]:
            ElementTree.SubElement(element, "Description").text = first.names[band - 1]
        if first.units[band - 1]:
            ElementTree.SubElement(element, "UnitType").text = first.units[band - 1]
        ElementTree.SubElement(element, "Offset").text = repr(first.offsets[band - 1])
        ElementTree.SubElement(element, "Scale").text = repr(first.scales[band - 1])
        if nodata is not None:
            ElementTree.SubElement(element, "NoDataValue").text = _number(nodata)
        colour = first.colours[band - 1]
        if colour in _COLOURS:
            ElementTree.SubElement(element, "ColorInterp").text = _COLOURS[colour]
        for tile, (column, row) in zip(tiles, places, strict=True):
            _source(element, tile, band, column - left, row - top)
    mask = ElementTree.SubElement(ElementTree.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    for tile, (column, row) in zip(tiles, places, strict=True):
        _source(mask, tile, 1, column - left, row - top, constant=255)
    return ElementTree.tostring(root, encoding="unicode")


def _source(
    parent: ElementTree.Element, tile: _Tile, band: int, column: int, row: int, *, constant: int | None = None
) -> None:
    """One tile in one band.

    Args:
        parent: the band.
        tile: the tile.
        band: of the tile, from 1.
        column: of the mosaic, of the tile's left edge.
        row: of the mosaic, of its upper edge.
        constant: a value to write instead of the tile's pixels, wherever it has a pixel.
    """
    skips = tile.nodata is not None and constant is None
    plain = constant is None and not skips and not tile.masked
    source = ElementTree.SubElement(parent, "SimpleSource" if plain else "ComplexSource")
    name = ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0")
    name.text = str(tile.file.path.absolute())
    ElementTree.SubElement(source, "SourceBand").text = str(band)
    ElementTree.SubElement(
        source, "SourceProperties", RasterXSize=str(tile.width), RasterYSize=str(tile.height),
        DataType=_TYPES[tile.types[band - 1]], BlockXSize=str(tile.block[1]), BlockYSize=str(tile.block[0]),
    )  # fmt: skip
    size = {"xSize": str(tile.width), "ySize": str(tile.height)}
    ElementTree.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
    ElementTree.SubElement(source, "DstRect", {"xOff": str(column), "yOff": str(row), **size})
    if tile.masked:
        ElementTree.SubElement(source, "UseMaskBand").text = "true"
    if skips:
        ElementTree.SubElement(source, "NODATA").text = _number(tile.nodata)
    if constant is not None:
        ElementTree.SubElement(source, "ScaleOffset").text = str(constant)
        ElementTree.SubElement(source, "ScaleRatio").text = "0"


def _number(value: float | None) -> str:
    return "nan" if value is None or math.isnan(value) else repr(float(value))
