"""Files that do not match their names, or that name other files, are refused before GDAL follows them."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.shutil import copy as gdal_copy
from rasterio.transform import from_origin

from dxc.errors import DataError
from dxc.geo import formats
from dxc.geo.chips import cut_region
from dxc.geo.formats import raster_file
from tests.geo.surveys import (
    CRS,
    EDGE,
    LEFT,
    POINTS,
    TOP,
    chip,
    heights,
    photo,
    survey,
    under,
    write_points,
    write_raster,
)  # fmt: skip

HALF = EDGE // 2


class Listener:
    """A server on 127.0.0.1 that counts connections and serves nothing."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with client:
                client.recv(1000)
                client.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return survey(tmp_path / "survey")


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A private DEM of the same ground."""
    return write_raster(tmp_path / "private" / "secret.tif", heights() + 1000)


def source(name: object, relative: int = 0, left: int = 0, width: int = EDGE, extra: str = "") -> str:
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{EDGE}"/>'
        f'<DstRect xOff="{left}" yOff="0" xSize="{width}" ySize="{EDGE}"/>{extra}</SimpleSource>'
    )


def mosaic(*sources: str, band: str = "", root: str = "", more: str = "") -> str:
    return (
        f'<VRTDataset rasterXSize="{EDGE}" rasterYSize="{EDGE}" {root}><SRS>{CRS}</SRS>'
        f"<GeoTransform>{LEFT}, 1, 0, {TOP}, 0, -1</GeoTransform>"
        f'<VRTRasterBand dataType="Float32" band="1" {band}>{"".join(sources)}</VRTRasterBand>{more}</VRTDataset>'
    )


# ------------------------------------------------------------------------------------ what is opened


def test_a_mosaic_of_two_tiles_below_its_folder(job: dict[str, Any]) -> None:
    folder = job["dem"].parent
    for name, part in (("west", heights()[:, :HALF]), ("east", heights()[:, HALF:])):
        write_raster(folder / "tiles" / f"{name}.tif", part, left=LEFT + HALF * (name == "east"))
    tiles = [source(f"tiles/{name}.tif", 1, HALF * i, HALF) for i, name in enumerate(("west", "east"))]
    (folder / "dem.vrt").write_text(mosaic(*tiles))
    report = cut_region(**(job | {"dem": folder / "dem.vrt"}))
    assert report.positives == 3
    for number in (1, 2, 3):  # the third lies in both tiles
        np.testing.assert_array_equal(chip(report.folder, "DEM", number)[0], under(heights(), number))
    read = raster_file(
        "DEM", folder / "dem.vrt"
    ).files  # a cut that goes on looks whether any of them changed
    assert {path.name for path in read} == {"dem.vrt", "west.tif", "east.tif"}


def test_a_mosaic_that_gdal_wrote_with_all_it_tells(job: dict[str, Any]) -> None:
    with rasterio.open(job["dem"], "r+") as dem:
        dem.update_tags(AREA_OR_POINT="Area", note="a & b <c>")
        dem.scales, dem.offsets = (0.5,), (100.0,)
        dem.set_band_description(1, "bare earth")
    gdal_copy(job["dem"], job["dem"].with_suffix(".vrt"), driver="VRT")
    gdal_copy(job["photo"], job["photo"].with_suffix(".vrt"), driver="VRT")
    mosaics = {key: job[key].with_suffix(".vrt") for key in ("dem", "photo")}
    report = cut_region(**(job | mosaics))
    np.testing.assert_allclose(chip(report.folder, "DEM", 1)[0], under(heights(), 1) / 2 + 100, rtol=1e-6)
    np.testing.assert_array_equal(chip(report.folder, "Aer", 1), under(photo(), 1))


@pytest.mark.parametrize(("name", "driver"), [("dem.img", "HFA"), ("cloud.tif", "COG"), ("dem.bin", "GTiff")])
def test_formats_of_surveys(job: dict[str, Any], name: str, driver: str) -> None:
    path = write_raster(job["dem"].with_name(name), heights(), driver=driver)
    report = cut_region(**(job | {"dem": path}))
    np.testing.assert_array_equal(chip(report.folder, "DEM", 2)[0], under(heights(), 2))


@pytest.mark.parametrize(
    ("name", "driver"), [("p.gdb", "OpenFileGDB"), ("p.shp", None), ("p.geojson", "GeoJSON")]
)
def test_formats_of_crossings(job: dict[str, Any], name: str, driver: str | None) -> None:
    path = job["crossings"].with_name(name)
    frame = gpd.GeoDataFrame(geometry=[shapely.Point(p) for p in POINTS], crs=CRS)
    (frame.to_crs(4326) if driver == "GeoJSON" else frame).to_file(path, driver=driver)
    assert cut_region(**(job | {"crossings": path})).positives == 3


def test_a_mask_beside_a_raster_counts(job: dict[str, Any]) -> None:
    mask = np.full((EDGE, EDGE), 255, np.uint8)
    mask[235:245, 145:155] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(job["photo"], "r+") as file:
        file.write_mask(mask)
    assert job["photo"].with_name("photo.tif.msk").is_file()
    report = cut_region(**job)
    assert [(point.id, point.reason) for point in report.left_out] == [(3, "photo without data in the chip")]


# ----------------------------------------------------------------------------------- what is refused


def refused(job: dict[str, Any], message: str, **changes: Any) -> None:
    with pytest.raises(DataError, match=message):
        cut_region(**(job | changes))
    assert not job["out"].exists()


def test_a_vrt_named_tif_is_refused(job: dict[str, Any], private: Path) -> None:
    job["dem"].write_text(mosaic(source(private)))
    refused(job, r"dem\.tif: is a virtual raster \(VRT\), which reads other files")
    job["dem"].write_bytes(b"\xef\xbb\xbf\n <?xml version='1.0'?>\n" + mosaic(source(private)).encode())
    refused(job, r"dem\.tif: is a virtual raster \(VRT\), which reads other files")


def test_sources_elsewhere_need_a_key(
    job: dict[str, Any], private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job["dem"].with_suffix(".vrt")
    link = path.with_name("link.tif")
    link.symlink_to(private)
    monkeypatch.chdir(
        private.parent
    )  # a path without relativeToVRT is relative to where the command is typed
    for name, relative in ((private, 0), ("../private/secret.tif", 1), ("link.tif", 1), ("secret.tif", 0)):
        path.write_text(mosaic(source(name, relative)))
        refused(job, "does not lie below its own folder.*vrt_anywhere=true", dem=path)
    report = cut_region(**(job | {"dem": path}), vrt_anywhere=True)
    np.testing.assert_array_equal(chip(report.folder, "DEM", 1)[0], under(heights() + 1000, 1))


@pytest.mark.parametrize("anywhere", [False, True])
def test_no_mosaic_opens_a_connection(job: dict[str, Any], listener: Listener, anywhere: bool) -> None:
    path = job["dem"].with_suffix(".vrt")
    for name in (
        f"/vsicurl/{listener.url}/a.tif",
        f"{listener.url}/a.tif",
        f"/vsicurl?url={listener.url}/a.tif",
        f"vrt:///vsicurl/{listener.url}/a.tif",
        f"GTIFF_DIR:1:/vsicurl/{listener.url}/a.tif",
        f"/vsizip//vsicurl/{listener.url}/a.zip/a.tif",
    ):
        for relative in (0, 1):
            path.write_text(mosaic(source(name, relative)))
            refused(job, "is not a local file", dem=path, vrt_anywhere=anywhere)
    assert listener.connections == 0


ODD_MOSAICS = {
    "warped": (mosaic(source("dem.tif", 1), root='subClass="VRTWarpedDataset"'), "has a VRTWarpedDataset"),
    "a python function": (
        mosaic(source("dem.tif", 1), "<PixelFunctionLanguage>Python</PixelFunctionLanguage>",
               band='subClass="VRTDerivedRasterBand"'), "has a VRTDerivedRasterBand.*gdal_translate",
    ),
    "raw bytes": (
        mosaic("<SourceFilename>dem.tif</SourceFilename>", band='subClass="VRTRawRasterBand"'),
        "has a VRTRawRasterBand",
    ),
    "raw bytes unsaid": (mosaic("<SourceFilename>dem.tif</SourceFilename>"), "has <SourceFilename> in <VRTRasterBand>"),
    "a function unsaid": (
        mosaic("<PixelFunctionType>f</PixelFunctionType>", source("dem.tif", 1)), "has <PixelFunctionType>",
    ),
    "another spelling": (
        mosaic(source("dem.tif", 1).replace("SourceFilename", "sourcefilename")), "has <sourcefilename>",
    ),
    "an attribute": (
        mosaic(source("dem.tif", 1).replace("<SimpleSource", '<SimpleSource SourceFilename="/etc/passwd"')),
        "has SourceFilename= in <SimpleSource>",
    ),
    "options": (
        mosaic(source("dem.tif", 1, extra='<OpenOptions><OOI key="A">1</OOI></OpenOptions>')), "has <OpenOptions>",
    ),
    "groups": (mosaic(source("dem.tif", 1), more="<Group name='/'/>"), "has <Group>"),
    "nested": (mosaic(source("inner.vrt", 1)), "inner.vrt is a virtual raster itself"),
    "nested as tif": (mosaic(source("inner.tif", 1)), "inner.tif is a virtual raster itself"),
    "of a picture": (mosaic(source("picture.png", 1)), "picture.png is not a raster that can be read"),
    "of a missing tile": (mosaic(source("none.tif", 1)), "none.tif is not a local file"),
    "entities": ("<!DOCTYPE a [<!ENTITY f SYSTEM 'dem.tif'>]>" + mosaic(source("&f;", 1)), "has a DOCTYPE"),
    "deep": ("<VRTDataset>" * 100_000, "nested more than 32 deep"),
    "cut off": (mosaic(source("dem.tif", 1))[:200], "is not well-formed XML"),
    "another root": ("<OGRVRTDataSource><VRTDataset/></OGRVRTDataSource>", "its root is <OGRVRTDataSource>"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ODD_MOSAICS.values(), ids=ODD_MOSAICS)
def test_what_is_no_plain_mosaic_is_refused(job: dict[str, Any], text: str, message: str) -> None:
    folder = job["dem"].parent
    (folder / "inner.vrt").write_text(mosaic(source("dem.tif", 1)))
    (folder / "inner.tif").write_text(mosaic(source("dem.tif", 1)))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "dem.vrt").write_text(text)
    refused(job, message, dem=folder / "dem.vrt")


def test_a_mosaic_has_a_size_limit(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_VRT_BYTES", 1000)
    (job["dem"].with_suffix(".vrt")).write_text(mosaic(source("dem.tif", 1)) + " " * 1000)
    refused(job, "more than 0.001 MB", dem=job["dem"].with_suffix(".vrt"))


def test_a_mask_beside_a_mosaic_is_not_dropped_in_silence(job: dict[str, Any]) -> None:
    (job["dem"].with_suffix(".vrt")).write_text(mosaic(source("dem.tif", 1)))
    shutil.copy(job["dem"], job["dem"].with_name("dem.vrt.msk"))
    refused(job, r"has a mask beside it, dem\.vrt\.msk", dem=job["dem"].with_suffix(".vrt"))


def test_a_link_to_a_raster_is_that_raster(job: dict[str, Any], private: Path) -> None:
    """The user gave the link, so the files beside it belong to it."""
    job["dem"].unlink()
    job["dem"].symlink_to(private)
    job["dem"].with_name("dem.tif.aux.xml").write_text("<PAMDataset/>")
    report = cut_region(**job)
    np.testing.assert_array_equal(chip(report.folder, "DEM", 1)[0], under(heights() + 1000, 1))


def test_nothing_beside_a_raster_leads_elsewhere(
    job: dict[str, Any], private: Path, listener: Listener
) -> None:
    """GDAL opens masks, overviews and metadata without being asked."""
    folder = job["photo"].parent
    beside = mosaic(source(f"/vsicurl/{listener.url}/a.tif"))
    for name in ("photo.tif.msk", "photo.tif.MSK", "photo.tif.ovr", "photo.tif.ovr.msk", "photo.aux"):
        if ".ovr.msk" in name:
            shutil.copy(private, folder / "photo.tif.ovr")
        (folder / name).write_text(beside)
        refused(job, f"photo .*{name} is not a raster that can be read")
        (folder / name).unlink()
        (folder / "photo.tif.ovr").unlink(missing_ok=True)
    (folder / "photo.tif.msk").symlink_to(private)
    refused(job, r"photo.tif.msk, which does not lie below its own folder")
    (folder / "photo.tif.msk").unlink()
    for address in (f"/vsicurl/{listener.url}/a.ovr", str(private)):
        notes = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{address}</MDI></Metadata>'
        (folder / "photo.tif.aux.xml").write_text(f"<PAMDataset>{notes}</PAMDataset>")
        refused(job, "names a file of overviews elsewhere")
        (folder / "photo.tif.aux.xml").unlink()
    with rasterio.open(job["photo"], "r+") as file:  # inside the file
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{listener.url}/b.ovr")
    refused(job, "names a file of overviews elsewhere")
    (folder / "dem.vrt").write_text(mosaic(source("photo.tif", 1)))
    refused(job, "names a file of overviews elsewhere", dem=folder / "dem.vrt")
    assert listener.connections == 0


def test_gdal_itself_may_open_no_address(job: dict[str, Any], listener: Listener) -> None:
    """If a check fails, the GDAL options still allow no access to other addresses."""
    with rasterio.Env(**formats.GDAL_OPTIONS), pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(f"/vsicurl/{listener.url}/dem.tif")
    assert listener.connections == 0
    with pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(f"/vsicurl/{listener.url}/other.tif")
    assert listener.connections > 0  # so the listener does see what GDAL opens


def test_pixels_of_an_img_in_another_folder_are_refused(job: dict[str, Any], private: Path) -> None:
    folder = job["dem"].parent
    path = write_raster(folder / "s.img", heights(), driver="HFA", USE_SPILL="YES")
    assert cut_region(**(job | {"dem": path, "region": "A"})).positives == 3
    shutil.rmtree(job["out"])
    shutil.move(folder / "s.ige", private.parent / "s.i")
    (folder / "l").symlink_to(private.parent)  # a path as short as the name that it replaces
    content = path.read_bytes()
    assert content.count(b"s.ige\0") == 1
    path.write_bytes(content.replace(b"s.ige\0", b"l/s.i\0"))
    refused(job, "does not lie below its own folder", dem=path)


def test_addresses_and_paths_into_files_are_no_files(job: dict[str, Any], listener: Listener) -> None:
    for name in (f"/vsicurl/{listener.url}/dem.tif", f"{listener.url}/dem.tif", f"GTIFF_DIR:1:{job['dem']}"):
        refused(job, "no such file. Give a local file", dem=Path(name))
        refused(job, "no such file. Give a local file", crossings=Path(name))
    assert listener.connections == 0


def test_blocks_that_do_not_fit_into_memory_are_refused(job: dict[str, Any]) -> None:
    with rasterio.open(
        job["dem"], "w", driver="GTiff", width=EDGE, height=EDGE, count=1, dtype="float32", crs=CRS, tiled=True,
        blockxsize=32_000, blockysize=32_000, sparse_ok=True, transform=from_origin(LEFT, TOP, 1, 1),
    ):  # fmt: skip
        pass
    assert job["dem"].stat().st_size < 1000
    refused(job, r"blocks of 32000 x 32000 pixels take 4,096 MB each, more than 1,000 MB.*TILED=YES")


# ------------------------------------------------------------------------------------------- vectors


def ogr_vrt(address: object) -> str:
    return (
        f'<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{address}</SrcDataSource></OGRVRTLayer>'
        "</OGRVRTDataSource>"
    )


@pytest.mark.parametrize("name", ["p.gpkg", "p.geojson", "p.json", "p.shp", "p.vrt", "p.gdb", "p"])
def test_a_virtual_layer_is_refused_whatever_its_name(
    job: dict[str, Any], tmp_path: Path, listener: Listener, name: str
) -> None:
    hidden = write_points(tmp_path / "hidden.gpkg")
    for address in (hidden, f"/vsicurl/{listener.url}/points.gpkg"):
        path = job["crossings"].with_name(name)
        path.write_text(ogr_vrt(address))
        refused(job, "not a vector file that can be read. Give a GeoPackage, GeoJSON", crossings=path)
        refused(job, "near .*not a vector file that can be read", near=[path])
    assert listener.connections == 0


def test_a_pipeline_named_geojson_is_refused(job: dict[str, Any], listener: Listener) -> None:
    path = job["crossings"].with_name("p.geojson")
    command = f"gdal vector pipeline ! read /vsicurl/{listener.url}/a.gpkg ! write streamed_dataset"
    path.write_text(json.dumps({"type": "gdal_streamed_alg", "command_line": command}))
    refused(job, "not a vector file that can be read", crossings=path)
    assert listener.connections == 0


def test_archives_are_to_be_unpacked(job: dict[str, Any]) -> None:
    folder = job["crossings"].parent
    with zipfile.ZipFile(folder / "p.zip", "w") as archive:
        archive.writestr("p.gpkg", job["crossings"].read_bytes())
    refused(job, "is an archive. Unpack it", crossings=folder / "p.zip")
    shutil.copy(job["crossings"], folder / "p.zip!p.gpkg")
    refused(job, "its name has a '!'", crossings=folder / "p.zip!p.gpkg")
    write_points(folder / "p.sqlite", driver="SQLite")
    refused(job, "not a vector file that can be read", crossings=folder / "p.sqlite")


def test_a_mosaic_of_many_tiles_is_looked_at_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is listed once. Once per tile would be quadratic."""
    count = 300
    first = write_raster(tmp_path / "t000.tif", np.ones((8, 8), np.float32))
    for number in range(1, count):
        shutil.copy(first, tmp_path / f"t{number:03d}.tif")
    (tmp_path / "dem.vrt").write_text(mosaic(*(source(f"t{i:03d}.tif", 1, 0, 8) for i in range(count))))
    listed = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or iterdir(path))
    assert len(raster_file("DEM", tmp_path / "dem.vrt").files) == count + 1
    assert listed == [tmp_path]
