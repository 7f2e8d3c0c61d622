"""Decides which files GDAL may open, and with which driver, from their bytes and before GDAL sees them.

GDAL goes by the content of a file, not by its name. A file named dem.tif may be a virtual raster (VRT) that reads any
other file or address. A file named roads.gpkg or roads.geojson may be a virtual layer or a pipeline. So these rules
hold here:

- rasters are GeoTIFF (cloud-optimised too) and ERDAS Imagine .img, and mosaics of these whose name ends in .vrt. What
  lies beside a raster and belongs to it (.msk, .ovr, .aux) is looked at the same way; what a raster names elsewhere
  is refused.
- a .vrt is parsed here and written again from what may be in it; GDAL sees only that. It has no masks or overviews of
  its own, no computed bands, and sources that lie below its folder.
- vectors are GeoPackage, GeoJSON, shapefile and file geodatabase (.gdb). dxc.geo.tables reads .csv.
- files are local: no addresses, no /vsi... paths, no archives, no names of layers or bands inside a file.
"""

from __future__ import annotations

import shlex
import stat
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from dxc.errors import DataError
from dxc.geo.guarded_xml import UnusableXml, parse_xml
from dxc.geo.rasterfiles import block_trouble

GDAL_OPTIONS = {
    # the only address that may be opened is "none", which is not one
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    # MB of blocks that it keeps; its default is 5 % of the machine's memory. Whatever reads first decides
    "GDAL_CACHEMAX": 64,
}
"""What GDAL may do. Every thread sets these options while it opens or reads a raster."""

MAX_VRT_BYTES = 20_000_000  # a mosaic of about 10,000 tiles
MAX_BLOCK_BYTES = 1_000_000_000  # a survey's raster in a single strip is usual; a chip's blocks are smaller
RASTER_FORMATS = "a GeoTIFF, an ERDAS Imagine .img or a .vrt mosaic of these"
VECTOR_FORMATS = "a GeoPackage, GeoJSON, shapefile or file geodatabase"
POINT_FORMATS = "a GeoPackage, GeoJSON, shapefile, file geodatabase or .csv"
VECTOR_DRIVERS = ("GPKG", "GeoJSON", "ESRI Shapefile", "OpenFileGDB")

_RASTER_MAGIC = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff", b"EHFA_HEADER_TAG": "HFA",
}  # fmt: skip
# what GDAL opens beside NAME.EXT without being asked: NAME.EXT.ovr, NAME.EXT.msk, NAME.EXT.aux and NAME.aux
_BESIDE = (".ovr", ".msk", ".aux")

# Elements of a .vrt that GDAL does not see: they only describe the raster, or serve reduced resolutions.
_VRT_DROPPED = {
    "Metadata", "Overview", "OverviewList", "Histograms", "CategoryNames", "GDALRasterAttributeTable",
    "BlockXSize", "BlockYSize", "blockXSize", "blockYSize",
}  # fmt: skip
_SOURCES = {"SimpleSource", "ComplexSource", "AveragedSource", "NoDataFromMaskSource", "KernelFilteredSource"}
_SOURCE_PARTS = {
    "SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "ScaleOffset", "ScaleRatio",
    "LUT", "UseMaskBand", "ColorTableComponent", "Exponent", "SrcMin", "SrcMax", "DstMin", "DstMax", "Clamp", "Kernel",
    "MaskValueThreshold", "NoData", "RemappedValue",
}  # fmt: skip
_VRT_CHILDREN = {
    "VRTDataset": {"SRS", "GeoTransform", "MaskBand", "VRTRasterBand"},
    "MaskBand": {"VRTRasterBand"},
    "VRTRasterBand": {
        "Description", "UnitType", "Offset", "Scale", "NoDataValue", "HideNoDataValue", "ColorInterp", "ColorTable",
        "MaskBand", *_SOURCES,
    },
    "ColorTable": {"Entry"},
    "Kernel": {"Size", "Coefs"},
    **dict.fromkeys(_SOURCES, _SOURCE_PARTS),
}  # fmt: skip
_VRT_ATTRIBUTES = {
    "VRTDataset": {"rasterXSize", "rasterYSize"},
    "SRS": {"dataAxisToSRSAxisMapping", "coordinateEpoch"},
    "VRTRasterBand": {"dataType", "band", "subClass"},
    "Entry": {"c1", "c2", "c3", "c4"},
    "SourceFilename": {"relativeToVRT", "shared"},
    "SourceProperties": {"RasterXSize", "RasterYSize", "DataType", "BlockXSize", "BlockYSize"},
    "SrcRect": {"xOff", "yOff", "xSize", "ySize"},
    "DstRect": {"xOff", "yOff", "xSize", "ySize"},
    "Kernel": {"normalized"},
    **{tag: {"resampling"} for tag in _SOURCES},
}


def convert_raster(path: Path) -> str:
    """How to make a raster that can be read of one that GDAL knows."""
    return f"Convert it: gdal_translate {shlex.quote(str(path))} NEW.tif"


def convert_vector(path: Path) -> str:
    """How to make a vector file that can be read of one that GDAL knows."""
    return f"Convert it: ogr2ogr NEW.gpkg {shlex.quote(str(path))}"


class _Refused(Exception):
    """A raster is not opened; the message is the reason."""


class _Seen:
    """The checked files with their drivers, and listings of folders. All tiles of a mosaic share one."""

    def __init__(self) -> None:
        self.files: dict[Path, str] = {}
        self._listings: dict[Path, dict[str, list[Path]]] = {}

    def beside(self, path: Path) -> list[Path]:
        """Rasters that GDAL opens along with this one. It ignores upper and lower case."""
        folder = path.parent
        if folder not in self._listings:
            listing = self._listings[folder] = {}
            for other in folder.iterdir():
                if other.suffix.lower() in _BESIDE:
                    listing.setdefault(other.name.lower(), []).append(other)
        names = {f"{path.name}{end}".lower() for end in _BESIDE} | {f"{path.stem}.aux".lower()}
        return sorted(other for name in names for other in self._listings[folder].get(name, []))


@dataclass(frozen=True)
class RasterFile:
    """A raster that was checked and may be opened. Each thread opens it for itself."""

    path: Path
    driver: str  # GTiff, HFA or VRT
    name: str = field(repr=False)  # what GDAL is given: an absolute path, or the XML of a mosaic
    files: tuple[Path, ...] = field(repr=False)  # all files that it is read from

    def open(self) -> Any:
        """Open it for reading, in rasterio. Raises RasterioIOError."""
        with rasterio.Env(**GDAL_OPTIONS):
            return rasterio.open(self.name, driver=self.driver)


def raster_file(what: str, path: Path, *, vrt_anywhere: bool = False) -> RasterFile:
    """Check a raster and all files that it is read from.

    Args:
        what: DEM or photo, for messages.
        path: the file.
        vrt_anywhere: whether a mosaic (.vrt) may have sources that do not lie below its own folder.

    Raises:
        DataError: the raster cannot be opened; the message says why.
    """
    if not path.is_file():
        raise DataError(
            f"{what} {path}: {'is a folder' if path.exists() else 'no such file'}. Give a local file: {RASTER_FORMATS}."
        )
    own = path.absolute()
    try:
        if _starts_as_vrt(path):
            if path.suffix.lower() != ".vrt":
                raise _Refused(
                    "is a virtual raster (VRT), which reads other files, but its name does not end in .vrt. If "
                    "you trust it, rename it; else ask for the raster itself"
                )
            xml, sources = _mosaic(own, vrt_anywhere)
            return RasterFile(path, "VRT", xml, (own, *sources))
        seen = _Seen()
        with rasterio.Env(**GDAL_OPTIONS):
            _look(own, {own.parent.resolve(), own.resolve().parent}, seen)
        return RasterFile(path, seen.files[own], str(own), tuple(seen.files))
    except _Refused as reason:
        raise DataError(f"{what} {path}: {reason}.") from reason.__cause__
    except (OSError, RasterioError) as error:
        text = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(
            f"{what} {path}: not a raster that can be read ({text}). Give {RASTER_FORMATS}. {convert_raster(path)}"
        ) from error


def unreadable(what: str, path: Path, window: Any, error: Exception) -> DataError:
    """The error to raise where pixels of an open raster cannot be read.

    Args:
        what: DEM or photo, for messages.
        path: the file.
        window: the window that was read.
        error: the error of rasterio.
    """
    return DataError(
        f"{what} {path}: cannot be read at row {window.row_off}, column {window.col_off} "
        f"({error.__cause__ or error}). The file seems truncated or damaged: fetch or write it again."
    )


def _header(path: Path, size: int) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
        raise _Refused(f"{path} is not a regular file")
    with path.open("rb") as file:
        return file.read(size)


def _starts_as_vrt(path: Path) -> bool:
    head = _header(path, 4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<") and b"<VRT" in head


def _look(path: Path, folders: set[Path], seen: _Seen) -> None:
    """Check one GeoTIFF or .img and the files beside it. `seen` gets each file with its driver.

    All files have to lie below `folders`: the folder of `path` and, where it is a link, the folder of its target.
    """
    head = _header(path, 32)
    driver = next((name for magic, name in _RASTER_MAGIC.items() if head.startswith(magic)), None)
    if driver is None:
        raise _Refused(
            f"{path.name} is not a raster that can be read. Give {RASTER_FORMATS}. {convert_raster(path)}"
        )
    seen.files[path] = driver
    for other in seen.beside(path):
        if not seen.files.get(other):
            _require_below(other, folders)
            _look(other, folders, seen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # masks and overviews never are
        source = rasterio.open(path, driver=driver)
    with source:
        # asked first: GDAL opens the files that it lists
        if source.get_tag_item("OVERVIEW_FILE", "OVERVIEWS"):
            raise _Refused(
                f"{path.name} names a file of overviews elsewhere (OVERVIEW_FILE). Write it again without: "
                "gdal_translate FILE NEW.tif"
            )
        for name in source.files:
            _require_below(Path(name), folders)
            seen.files.setdefault(Path(name).absolute(), "")
        if trouble := block_trouble(source, max_bytes=MAX_BLOCK_BYTES):
            raise _Refused(f"{path.name}: {trouble}")


def _require_below(path: Path, folders: set[Path]) -> None:
    if not any(path.resolve().is_relative_to(folder) for folder in folders):
        raise _Refused(f"reads {path}, which does not lie below its own folder")


# ------------------------------------------------------------------------------------------- mosaics


def _mosaic(path: Path, anywhere: bool) -> tuple[str, list[Path]]:
    """The XML of a mosaic with only what is allowed in it, and the files that it is read from."""
    try:
        root = parse_xml(path, max_bytes=MAX_VRT_BYTES, noun="mosaic")
    except UnusableXml as error:
        raise _Refused(str(error)) from error
    if root.tag != "VRTDataset":
        raise _Refused(f"is not a mosaic that dxc reads: its root is <{root.tag[:40]}>, not <VRTDataset>")
    folder = path.resolve().parent  # of the target where `path` is a link, as in GDAL
    seen = _Seen()
    if masks := [other.name for other in seen.beside(path) if other.suffix.lower() == ".msk"]:
        raise _Refused(f"has a mask beside it, {masks[0]}, which is not read. {_WRITE_IT_OUT}")
    tiles: dict[Path, str] = {}
    clean = _clean(root, folder, tiles)
    # without the option, GDAL would list the folder again for each tile
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE", **GDAL_OPTIONS):
        for tile, text in tiles.items():
            if not tile.is_file():
                raise _Refused(
                    f"its source {text[:200]} is not a local file. Fetch it beside the mosaic first"
                )
            if _starts_as_vrt(tile):
                raise _Refused(f"its source {text[:200]} is a virtual raster itself. {_WRITE_IT_OUT}")
            if not anywhere and not tile.resolve().is_relative_to(folder):
                raise _Refused(
                    f"its source {text[:200]} does not lie below its own folder {folder}. If you trust the file, allow "
                    "it with vrt_anywhere=true"
                )
            if not seen.files.get(tile):  # an empty driver: known only as a part of another raster
                _look(tile, {tile.resolve().parent} if anywhere else {folder}, seen)
    return ElementTree.tostring(clean, encoding="unicode"), list(seen.files)


_WRITE_IT_OUT = "Write the mosaic out as a GeoTIFF, if you trust it: gdal_translate FILE.vrt NEW.tif"


def _clean(element: ElementTree.Element, folder: Path, tiles: dict[Path, str]) -> ElementTree.Element:
    """A copy with only what a mosaic needs. `tiles` gets the path of each source, and its spelling in the file."""
    kind = element.get("subClass", "VRTSourcedRasterBand" if element.tag == "VRTRasterBand" else "")
    if kind not in ("", "VRTSourcedRasterBand"):
        raise _Refused(f"is not a plain mosaic but has a {kind[:40]}. {_WRITE_IT_OUT}")
    children = [child for child in element if child.tag not in _VRT_DROPPED]
    attributes = {name: value for name, value in element.items() if name not in _VRT_DROPPED}
    odd = [f"<{child.tag}>" for child in children if child.tag not in _VRT_CHILDREN.get(element.tag, set())]
    odd += [f"{name}=" for name in attributes if name not in _VRT_ATTRIBUTES.get(element.tag, set())]
    if odd:
        raise _Refused(f"has {odd[0][:40]} in <{element.tag}>, which dxc does not follow. {_WRITE_IT_OUT}")
    copy = ElementTree.Element(element.tag, attributes)
    copy.text = (element.text or "").strip()
    if element.tag == "SourceFilename":
        relative = element.get("relativeToVRT", "0").strip()
        # as in GDAL: without relativeToVRT a path is relative to the working directory
        tile = ((folder if relative == "1" else Path()) / copy.text).absolute()
        tiles[tile] = copy.text
        copy.attrib = {"relativeToVRT": "0"}
        copy.text = str(tile)
    copy.extend([_clean(child, folder, tiles) for child in children])
    return copy


# ------------------------------------------------------------------------------------------- vectors


def vector_name(what: str, path: Path, formats: str = VECTOR_FORMATS) -> str:
    """What to give to pyogrio for a vector file, told by its bytes; or raise a DataError that says why it is none.

    Args:
        what: crossings or near, for messages.
        formats: what may be given instead, for messages.

    The driver that GDAL then takes has to be one of VECTOR_DRIVERS: pyogrio cannot be told.
    """
    if not path.exists():
        raise DataError(f"{what} {path}: no such file. Give a local file: {formats}.")
    own, suffix = str(path.absolute()), path.suffix.lower()
    refused = DataError(
        f"{what} {path}: not a vector file that can be read. Give {formats}. {convert_vector(path)}"
    )
    if "!" in own:
        raise DataError(
            f"{what} {path}: its name has a '!', which stands for a file in an archive. Rename it."
        )
    if path.is_dir():
        if suffix == ".gdb" and any(path.glob("*.gdbtable")):
            return own
        raise refused
    try:
        head = _header(path, 1024)
    except _Refused as reason:
        raise DataError(f"{what} {path}: is not a regular file. Give {formats}.") from reason
    except OSError as error:
        raise DataError(f"{what} {path}: cannot be read ({error.strerror or error}).") from error
    if suffix == ".gpkg" and head.startswith(b"SQLite format 3\0"):
        return own
    if suffix == ".shp" and head.startswith(b"\0\0\x27\x0a"):
        return own
    if suffix in (".geojson", ".json") and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return f"GeoJSON:{own}"  # else GDAL runs the pipeline that a JSON file may describe
    if suffix == ".zip":
        raise DataError(f"{what} {path}: is an archive. Unpack it and give the file that is in it.")
    raise refused
