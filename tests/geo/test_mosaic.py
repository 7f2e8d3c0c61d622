"""Tiles read as one raster: pixel by pixel what the raster was before it was cut."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from dxc.errors import DataError
from dxc.geo.chips import cut_region
from dxc.geo.mosaic import open_mosaic, tile_paths
from tests.geo.surveys import LEFT, RASTERS, TOP, heights, photo, survey, write_raster

QUARTERS = ((0, 0), (0, 150), (150, 0), (150, 150))  # row and column of tiles of 150 x 150


def cut(pixels: np.ndarray, folder: Path, overlap: int = 0, **profile: Any) -> Path:
    """Four tiles of pixels (300, 300) or (bands, 300, 300), which overlap by some pixels."""
    for number, (row, column) in enumerate(QUARTERS):
        part = pixels[..., row : row + 150 + overlap, column : column + 150 + overlap]
        write_raster(folder / f"t{number}.tif", part, left=LEFT + column, top=TOP - row, **profile)
    return folder


def read(folder: Any) -> tuple[np.ndarray, np.ndarray]:
    """All pixels, and the mask of the first band as bool."""
    with open_mosaic("DEM", folder).file.open() as file:
        return file.read(), file.read_masks(1) > 0


@pytest.mark.parametrize("overlap", [0, 17])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "uint16"])
def test_a_mosaic_is_the_raster_that_was_cut(tmp_path: Path, overlap: int, dtype: str) -> None:
    pixels = (heights() * 50).astype(dtype)
    pixels[100:120, 140:160] = 7
    found, valid = read(cut(pixels, tmp_path / "tiles", overlap, nodata=7))
    np.testing.assert_array_equal(found[0], pixels)
    assert valid.all()  # the mask says where tiles lie; pixels without data have their value
    with open_mosaic("DEM", tmp_path / "tiles").file.open() as file:
        assert (file.nodata, file.transform.c, file.transform.f) == (7, LEFT, TOP)


def test_real_rasters_cut_and_put_together(tmp_path: Path) -> None:
    if not RASTERS.is_dir():
        pytest.skip("the real rasters are not here")
    for path in sorted(RASTERS.glob("*.tif")):
        with rasterio.open(path) as source:
            pixels = source.read()
            profile = {
                "driver": "GTiff", "count": source.count, "dtype": source.dtypes[0], "crs": source.crs,
                "nodata": source.nodata, "photometric": "minisblack",
            }  # fmt: skip
            half, third = source.height // 2, source.width // 3
            for number, (row, column) in enumerate([(0, 0), (0, third), (half, 0), (half, third)]):
                window = Window(
                    column,
                    row,
                    source.width - third if column else third,
                    source.height - half if row else half,
                )
                (tmp_path / path.stem).mkdir(exist_ok=True)
                with rasterio.open(
                    tmp_path / path.stem / f"{number}.tif", "w", width=window.width, height=window.height,
                    transform=source.window_transform(window), **profile,
                ) as tile:  # fmt: skip
                    tile.write(source.read(window=window))
            with open_mosaic("raster", tmp_path / path.stem).file.open() as mosaic:
                np.testing.assert_array_equal(mosaic.read(), pixels)
                assert (mosaic.crs, mosaic.nodata) == (source.crs, source.nodata)
                assert mosaic.transform.almost_equals(source.transform, 1e-6)


def test_chips_of_tiles_are_the_chips_of_the_whole(tmp_path: Path) -> None:
    job = survey(tmp_path)
    job["crossings"] = job["crossings"].rename(tmp_path / "given.gpkg")
    cut_region(**job)
    cut(heights(), tmp_path / "dem", nodata=-9999)
    cut(photo(), tmp_path / "photo", 20, photometric="minisblack")
    tiles = {"dem": tmp_path / "dem", "photo": str(tmp_path / "photo" / "*.tif"), "region": "B"}
    cut_region(**{**job, **tiles})
    chips = sorted((tmp_path / "chips" / "A").rglob("*.tif"))
    assert len(chips) == 12
    for path in chips:
        other = Path(str(path).replace("/A", "/B").replace("A_", "B_"))
        with rasterio.open(path) as one, rasterio.open(other) as two:
            np.testing.assert_array_equal(one.read(), two.read())
            assert one.transform == two.transform


def test_gaps_have_no_data_whatever_the_pixels_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.zeros((300, 300), np.uint16)  # 0 is an elevation here, and what GDAL fills gaps with
    folder = cut(pixels, tmp_path / "tiles")
    (folder / "t3.tif").unlink()
    with caplog.at_level(logging.INFO):
        mosaic = open_mosaic("DEM", folder)
    found, valid = read(folder)
    assert found.shape == (1, 300, 300)
    assert not valid[150:, 150:].any() and valid[:150].all() and valid[:, :150].all()
    assert mosaic.notes == (
        "DEM: 3 tiles as one raster, x 500000..500300, y 4999700..5000000, in EPSG:26915, pixels of 1 x 1, 1 band of "
        "uint16",
        "DEM: no tile covers 25.0% of their common frame: x 500150..500300, y 4999700..4999850. There is no data there",
    )
    assert [record.message for record in caplog.records] == list(mosaic.notes)


def test_a_later_tile_covers_an_earlier_one_where_it_has_data(tmp_path: Path) -> None:
    one, two = np.full((40, 40), 1, np.float32), np.full((40, 40), 2, np.float32)
    two[:, :5] = -9999  # a collar, as surveys have it
    write_raster(tmp_path / "a.tif", one, nodata=-9999)
    write_raster(tmp_path / "b.tif", two, left=LEFT + 30, nodata=-9999)
    found, _ = read([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert found[0, 0, :35].tolist() == [1] * 35 and found[0, 0, 35:].tolist() == [2] * 35
    found, _ = read([tmp_path / "b.tif", tmp_path / "a.tif"])
    assert found[0, 0, :40].tolist() == [1] * 40
    (note,) = open_mosaic("DEM", tmp_path).notes[1:]
    assert note.startswith("DEM: 1 pair of tiles overlap, most of all a.tif and b.tif")


def test_tiles_keep_their_own_no_data_value_and_mask(tmp_path: Path) -> None:
    one, two = np.full((40, 40), 1, np.float32), np.full((40, 40), 2, np.float32)
    one[0, 0], two[0, 0] = -9999, -1
    write_raster(tmp_path / "a.tif", one, nodata=-9999)
    write_raster(tmp_path / "b.tif", two, left=LEFT + 40, nodata=-1)
    masked = write_raster(tmp_path / "c.tif", np.full((40, 40), 3, np.float32), left=LEFT + 80)
    with rasterio.open(masked, "r+") as file:
        file.write_mask(np.arange(1600).reshape(40, 40) % 40 > 0)
    found, valid = read(tmp_path)
    assert found[0, 0, [0, 1, 40, 41, 81]].tolist() == [-9999, 1, -9999, 2, 3]
    assert not valid[:, 80].any() and valid[:, 81:].all() and valid[:, :80].all()


def test_one_bad_tile_does_not_take_the_others_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cut(heights(), tmp_path / "tiles", compress="deflate")
    write_raster(folder / "utm16.tif", heights()[:50, :50], crs="EPSG:26916")
    write_raster(folder / "photo.tif", photo()[:, :50, :50])
    (folder / "text.tif").write_text("no raster")
    whole = (folder / "t2.tif").read_bytes()
    (folder / "broken.tif").write_bytes(whole[: len(whole) // 2])
    mosaic = open_mosaic("DEM", folder)
    assert sum("is left out" in record.message for record in caplog.records) == 4
    assert mosaic.tiles == 4 and np.array_equal(read(folder)[0][0], heights())
    reasons = {path.name: reason for path, reason in mosaic.left_out}
    assert (
        "it is in EPSG:26916, pixels of 1 x 1, 1 band of float32; most tiles are in EPSG:26915"
        in reasons["utm16.tif"]
    )
    assert "4 bands of uint8" in reasons["photo.tif"]
    assert "not a raster that can be read" in reasons["text.tif"]
    assert "seems truncated or damaged" in reasons["broken.tif"]


def test_tiles_beside_the_grid_are_moved_to_it(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", np.full((40, 40), 1, np.float32))
    write_raster(tmp_path / "b.tif", np.full((40, 40), 2, np.float32), left=LEFT + 40.3)
    found, _ = read(tmp_path)
    assert found.shape == (1, 40, 80) and (found[0, 0, 40:] == 2).all()
    assert "up to 0.30 pixels beside the grid" in open_mosaic("DEM", tmp_path).notes[-1]


def test_what_is_not_clear_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "two" / "a.tif", heights())
    write_raster(tmp_path / "two" / "b.tif", heights(), crs="EPSG:26916")
    with pytest.raises(
        DataError, match=r"2 tiles are of 2 kinds(.|\n)*1 tile in EPSG:26916.*: b.tif"
    ) as error:
        open_mosaic("DEM", tmp_path / "two")
    assert "Give those of one kind" in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without rasters"):
        open_mosaic("DEM", tmp_path / "empty")
    with pytest.raises(DataError, match="no file has such a name"):
        open_mosaic("DEM", str(tmp_path / "*.img"))
    with pytest.raises(DataError, match="no such file"):
        open_mosaic("DEM", tmp_path / "none.tif")
    with pytest.raises(DataError, match="an empty list"):
        open_mosaic("DEM", [])
    for name in "ab":
        (tmp_path / "two" / f"{name}.tif").write_text("x")
    with pytest.raises(DataError, match=r"none of 2 tiles can be read:\n.*a.tif"):
        open_mosaic("DEM", tmp_path / "two")


def test_a_tile_that_is_a_virtual_raster_is_not_followed(tmp_path: Path) -> None:
    folder = cut(heights(), tmp_path / "tiles")
    secret = write_raster(tmp_path / "secret.tif", heights())
    for name in ("bad.tif", "bad.vrt"):
        (folder / name).write_text(
            f'<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
            f"<SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
        )
    mosaic = open_mosaic("DEM", [folder, folder / "bad.vrt"])
    assert [path.name for path, _ in mosaic.left_out] == ["bad.tif", "bad.vrt"]
    assert all(path.parent == folder for path in mosaic.file.files)


def test_a_name_is_no_markup(tmp_path: Path) -> None:
    """Names come from a disk: they may hold what XML has a meaning for."""
    folder = tmp_path / "a & b <c>"
    cut(heights(), folder)
    assert np.array_equal(read(folder)[0][0], heights())


def test_what_a_path_stands_for(tmp_path: Path) -> None:
    for name in ("b.tif", "a.TIF", "c.img", "d.vrt", "e.txt", ".hidden.tif"):
        (tmp_path / name).write_text("")
    names = [path.name for path in tile_paths("DEM", tmp_path)]
    assert names == ["a.TIF", "b.tif", "c.img"]
    assert [path.name for path in tile_paths("DEM", [tmp_path / "b.tif", str(tmp_path / "?.*")])] == [
        "b.tif", "a.TIF", "c.img", "d.vrt", "e.txt",
    ]  # fmt: skip
    odd = tmp_path / "tile[1].tif"
    odd.write_text("")
    assert tile_paths("DEM", odd) == [odd]  # a name with brackets is a name where such a file exists
