"""Chips are compared with rasters whose every pixel is known. No test trusts the code under test."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio._env import get_gdal_config
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform

from dxc.config.checked import checked
from dxc.errors import ConfigError, DataError
from dxc.geo import chips as cutting
from dxc.geo import voc
from dxc.geo import windows as cutter_module
from dxc.geo.chips import CutReport, LeftOut, cut_region
from dxc.geo.settings import CutSettings
from dxc.geo.sites import CrossingBoxes
from dxc.geo.voc import read_voc

CRS = "EPSG:26915"
LEFT, TOP = 500_000.0, 5_000_000.0
RGBN = ("red", "green", "blue", "nir")
SIZE = 20  # of the chips in most tests: small ones say as much


def write_raster(
    path: Path,
    pixels: np.ndarray,
    *,
    left: float = LEFT,
    top: float = TOP,
    step: float = 1.0,
    crs: str | None = CRS,
    nodata: float | None = None,
    **profile: Any,
) -> Path:
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    place = from_origin(left, top, step, step)
    count, height, width = pixels.shape
    profile |= {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=place, **profile) as file:
        file.write(pixels)
    return path


def write_points(path: Path, xy: Sequence[Any], crs: str | None = CRS, **columns: Any) -> Path:
    points = [shapely.Point(*p) if p is not None else None for p in xy]
    gpd.GeoDataFrame(columns, geometry=points, crs=crs).to_file(path)
    return path


def terrain(size: int = 400) -> np.ndarray:
    return np.random.default_rng(1).normal(300, 20, (size, size)).astype(np.float32)


def aerial(size: int = 400, bands: int = 4) -> np.ndarray:
    return np.random.default_rng(2).integers(1, 255, (bands, size, size)).astype(np.uint8)


POINTS = [(LEFT + 100.3, TOP - 100.6), (LEFT + 250.9, TOP - 80.1), (LEFT + 300.0, TOP - 300.0)]


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """Arguments for a small cut: 400 x 400 m, three crossings."""
    return {
        "dem": write_raster(tmp_path / "dem.tif", terrain(), nodata=-9999),
        "photo": write_raster(tmp_path / "photo.tif", aerial(), nodata=0),
        "crossings": write_points(tmp_path / "points.gpkg", POINTS),
        "out": tmp_path / "chips",
        "region": "NE",
        "size_m": SIZE,
        "min_distance_m": 60,
        "progress": False,
    }


def chips(report: CutReport, kind: str, label: str) -> dict[str, Path]:
    folder = report.folder / f"{report.region}{kind}" / label
    return {path.stem: path for path in sorted(folder.glob("*.tif"))}


def table(report: CutReport, name: str) -> list[dict[str, str]]:
    with (report.folder / name).open() as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------------------------- pixels and places


def test_published_layout_and_same_stems(job: dict[str, Any]) -> None:
    report = cut_region(**job)
    assert (report.positives, report.negatives, report.crs, report.left_out) == (3, 3, CRS, ())
    assert report.folder == job["out"] / "NE"
    assert [p.name for p in job["out"].iterdir()] == ["NE"]  # no partial folder stays
    assert list(chips(report, "DEM", "T")) == ["NE_T_00001", "NE_T_00002", "NE_T_00003"]
    assert list(chips(report, "DEM", "F")) == ["NE_F_00001", "NE_F_00002", "NE_F_00003"]
    for label in "TF":
        assert list(chips(report, "DEM", label)) == list(chips(report, "Aer", label))


def test_same_grid_pixels_are_copied_to_where_their_georeference_says(job: dict[str, Any]) -> None:
    report = cut_region(**job)
    for label in "TF":
        for kind, source in (("DEM", terrain()[None]), ("Aer", aerial())):
            for path in chips(report, kind, label).values():
                with rasterio.open(path) as chip:
                    assert (chip.crs, chip.shape) == (rasterio.CRS.from_string(CRS), (SIZE, SIZE))
                    left, top = chip.transform @ (0, 0)
                    col, row = int(left - LEFT), int(TOP - top)
                    np.testing.assert_array_equal(chip.read(), source[:, row : row + SIZE, col : col + SIZE])


def test_bands_types_and_nodata_of_the_chips(job: dict[str, Any]) -> None:
    report = cut_region(**job)
    with rasterio.open(chips(report, "DEM", "T")["NE_T_00001"]) as dem:
        assert (dem.count, dem.dtypes, dem.nodata) == (1, ("float32",), -9999)
    with rasterio.open(chips(report, "Aer", "T")["NE_T_00001"]) as photo:
        assert (photo.count, photo.dtypes[0], photo.descriptions) == (4, "uint8", RGBN)
        assert ColorInterp.alpha not in photo.colorinterp  # near infrared is not transparency


def test_point_lies_in_the_centre_pixel(job: dict[str, Any]) -> None:
    report = cut_region(**job)
    for (x, y), path in zip(POINTS, chips(report, "DEM", "T").values(), strict=True):
        with rasterio.open(path) as chip:
            assert chip.index(x, y) == (SIZE // 2, SIZE // 2)
    rows = table(report, "chips.csv")
    assert rows[0] == {
        "name": "NE_T_00001", "label": "T", "x": str(LEFT + 100), "y": str(TOP - 100), "crs": CRS,
        "point_id": "1", "point_x": "500100.300", "point_y": "4999899.400", "source": "crossing",
    }  # fmt: skip
    assert [row["source"] for row in rows] == ["crossing"] * 3 + ["random"] * 3


def test_default_chip_is_100_m(job: dict[str, Any]) -> None:
    report = cut_region(**(job | {"size_m": 100, "max_positives": 1}))
    with rasterio.open(chips(report, "Aer", "F").popitem()[1]) as chip:
        assert (chip.shape, chip.res) == ((100, 100), (1.0, 1.0))


def plane(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.05 * (x - LEFT) - 0.03 * (y - TOP) + 250


def pixel_centres(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with rasterio.open(path) as chip:
        cols, rows = np.meshgrid(np.arange(chip.width) + 0.5, np.arange(chip.height) + 0.5)
        x, y = chip.transform @ (cols, rows)
        return x, y, chip.read(1)


@pytest.mark.parametrize(("step", "shift"), [(0.3, 0.0), (0.61, 0.17), (1.0, 0.5), (5.0, 1.3)])
def test_a_plane_stays_a_plane_at_any_resolution(job: dict[str, Any], step: float, shift: float) -> None:
    cells = int(400 / step)
    centre = (np.arange(cells) + 0.5) * step
    x, y = np.meshgrid(LEFT + shift + centre, TOP - shift - centre)
    write_raster(job["dem"], plane(x, y).astype(np.float32), left=LEFT + shift, top=TOP - shift, step=step)
    report = cut_region(**job)
    for path in chips(report, "DEM", "T").values():
        x, y, z = pixel_centres(path)
        np.testing.assert_allclose(z, plane(x, y), atol=0.01)


def test_dem_in_another_crs_is_warped_to_the_place_it_belongs(job: dict[str, Any]) -> None:
    """The plane is defined in zone 15, but the DEM is written in zone 14, 6 degrees from its centre."""
    (x0,), (y0,) = transform(CRS, "EPSG:26914", [LEFT + 200], [TOP - 200])
    cells = np.arange(700) + 0.5
    x14, y14 = np.meshgrid(x0 - 350 + cells, y0 + 350 - cells)
    x, y = (np.reshape(v, x14.shape) for v in transform("EPSG:26914", CRS, x14.ravel(), y14.ravel()))
    write_raster(job["dem"], plane(x, y).astype(np.float32), left=x0 - 350, top=y0 + 350, crs="EPSG:26914")
    report = cut_region(**job, crs=CRS)
    assert report.positives == 3
    for path in chips(report, "DEM", "T").values():
        x, y, z = pixel_centres(path)
        np.testing.assert_allclose(z, plane(x, y), atol=0.01)


def test_photo_is_averaged_when_it_shrinks(job: dict[str, Any]) -> None:
    board = np.where(np.indices((800, 800)).sum(0) % 2, 100, 200).astype(np.uint8)
    noise = aerial(800)[:3]
    write_raster(job["photo"], np.stack([board, *noise]), step=0.5)
    report = cut_region(**job)
    with rasterio.open(chips(report, "Aer", "T")["NE_T_00001"]) as chip:
        np.testing.assert_array_equal(chip.read(1), 150)
        blocks = noise[:, 180:220, 180:220].reshape(3, SIZE, 2, SIZE, 2).mean((2, 4))
        np.testing.assert_allclose(chip.read((2, 3, 4)), blocks, atol=0.5)


def test_photo_is_interpolated_when_it_grows_and_keeps_uint16(job: dict[str, Any]) -> None:
    x = np.tile((np.arange(80) + 0.5) * 5, (80, 1))
    write_raster(job["photo"], np.stack([10 * x] * 4).astype(np.uint16), step=5)
    report = cut_region(**job)
    with rasterio.open(chips(report, "Aer", "T")["NE_T_00001"]) as chip:
        assert chip.dtypes[0] == "uint16"
        expected = 10 * (chip.transform.c - LEFT + np.arange(SIZE) + 0.5)
        np.testing.assert_allclose(chip.read(1), np.tile(expected, (SIZE, 1)), atol=1)


def test_integer_dem_with_a_scale_becomes_metres(job: dict[str, Any]) -> None:
    path = write_raster(job["dem"], np.full((400, 400), 2500, np.int16))
    with rasterio.open(path, "r+") as dem:
        dem.scales, dem.offsets = (0.1,), (5.0,)
    report = cut_region(**job)
    with rasterio.open(chips(report, "DEM", "T")["NE_T_00001"]) as chip:
        np.testing.assert_allclose(chip.read(1), 255.0)


# ------------------------------------------------------------------------------------------------ CRS


def geographic_dem(path: Path) -> Path:
    """About 400 x 400 m around the middle of the other rasters, in degrees; values are the longitude."""
    (lon,), (lat,) = transform(CRS, "EPSG:4326", [LEFT + 200], [TOP - 200])
    step = 5e-6
    lons = np.tile(lon - 500 * step + (np.arange(1000) + 0.5) * step, (1000, 1))
    return write_raster(
        path, ((lons - lon) * 1e5).astype(np.float32), left=lon - 500 * step, top=lat + 500 * step,
        step=step, crs="EPSG:4326",
    )  # fmt: skip


def test_degrees_become_utm(job: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    geographic_dem(job["dem"])
    with caplog.at_level(logging.INFO):
        report = cut_region(**job)
    assert report.crs == "EPSG:32615"
    assert "EPSG:4326 is not in metres of ground: its grid is that of EPSG:32615" in caplog.text
    (lon,), _ = transform(CRS, "EPSG:4326", [LEFT + 200], [TOP - 200])
    x, y, z = pixel_centres(chips(report, "DEM", "T")["NE_T_00001"])
    lons = np.reshape(transform("EPSG:32615", "EPSG:4326", x.ravel(), y.ravel())[0], x.shape)
    np.testing.assert_allclose(z, (lons - lon) * 1e5, atol=0.2)  # 0.2 of 1e-5 degrees: 0.16 m


@pytest.mark.parametrize(
    ("crs", "unit_m"),
    [("EPSG:26849", 1200 / 3937), ("EPSG:3857", 1.0)],  # Minnesota North in US feet; world Mercator
)
def test_feet_and_mercator_become_utm(job: dict[str, Any], crs: str, unit_m: float) -> None:
    (x,), (y,) = transform(CRS, crs, [LEFT + 200], [TOP - 200])
    half = 400 / unit_m
    step = 2 * half / 800
    write_raster(job["dem"], terrain(800), left=x - half, top=y + half, step=step, crs=crs)
    report = cut_region(**job)
    assert report.crs == "EPSG:32615"
    assert report.positives == 3


def test_points_in_degrees_from_a_geojson(job: dict[str, Any], tmp_path: Path) -> None:
    lons, lats = transform(CRS, "EPSG:4326", *zip(*POINTS, strict=True))
    path = write_points(tmp_path / "points.geojson", list(zip(lons, lats, strict=True)), "EPSG:4326")
    report = cut_region(**(job | {"crossings": path}))
    with rasterio.open(chips(report, "DEM", "T")["NE_T_00000"]) as chip:
        assert chip.index(*POINTS[0]) == (SIZE // 2, SIZE // 2)


def test_points_from_a_shapefile_of_single_multipoints(job: dict[str, Any], tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[shapely.MultiPoint([p]) for p in POINTS], crs=CRS)
    frame.to_file(tmp_path / "points.shp")
    assert cut_region(**(job | {"crossings": tmp_path / "points.shp"})).positives == 3


def test_the_layer_of_points_is_found_among_others(job: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "both.gpkg"
    gpd.GeoDataFrame(geometry=[LINE], crs=CRS).to_file(path, layer="roads")
    gpd.GeoDataFrame(geometry=[shapely.Point(p) for p in POINTS], crs=CRS).to_file(path, layer="points")
    assert cut_region(**(job | {"crossings": path})).positives == 3
    gpd.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=CRS).to_file(path, layer="wells")
    with pytest.raises(
        DataError,
        match=r"2 layers .* layer=NAME; .*points \(Point\), wells \(Point\)",
    ):
        cut_region(**(job | {"crossings": path}), overwrite=True)
    assert cut_region(**(job | {"crossings": path, "layer": "points"}), overwrite=True).positives == 3
    with pytest.raises(DataError, match=r"no layer culverts\. Its layers are: roads \(LineString\), points"):
        cut_region(**(job | {"crossings": path, "layer": "culverts"}), overwrite=True)


def test_heights_in_a_compound_crs_do_not_matter(job: dict[str, Any]) -> None:
    write_raster(job["dem"], terrain(), crs="EPSG:26915+5703")
    report = cut_region(**job)
    assert report.crs == CRS
    with rasterio.open(chips(report, "DEM", "T")["NE_T_00001"]) as chip:
        np.testing.assert_array_equal(chip.read(1), terrain()[90:110, 90:110])


# ------------------------------------------------------------------------------------------ negatives


def centres(report: CutReport, label: str) -> np.ndarray:
    rows = [row for row in table(report, "chips.csv") if row["label"] == label]
    return np.array([(float(row["x"]), float(row["y"])) for row in rows])


def test_negatives_keep_away_from_every_crossing_even_those_left_out(job: dict[str, Any]) -> None:
    beside = [(LEFT - 5.0, TOP - y) for y in range(0, 400, 40)]  # outside: no chip, yet a crossing
    xy = POINTS + beside
    write_points(job["crossings"], xy)
    report = cut_region(**job)
    assert (report.positives, report.negatives, len(report.left_out)) == (3, 3, 10)
    away = np.linalg.norm(centres(report, "F")[:, None] - np.array(xy)[None], axis=2)
    assert away.min() >= 60
    inside = (centres(report, "F") - (LEFT, TOP)) * (1, -1)
    assert inside.min() >= SIZE / 2
    assert inside.max() <= 400 - SIZE / 2


def test_seed_decides_places_and_workers_do_not(job: dict[str, Any], tmp_path: Path) -> None:
    job["jitter_m"] = 3.0
    one = cut_region(**(job | {"out": tmp_path / "a", "workers": 1}))
    again = cut_region(**(job | {"out": tmp_path / "b", "workers": 4}))
    other = cut_region(**(job | {"out": tmp_path / "c", "seed": 1}))
    assert contents(one.folder) == contents(again.folder)
    assert not np.array_equal(centres(one, "F"), centres(other, "F"))
    assert not np.array_equal(centres(one, "T"), centres(other, "T"))


def test_jitter_shifts_within_bounds(job: dict[str, Any]) -> None:
    xy = [(LEFT + 40 + 30 * i, TOP - 40 - 60 * j) for i in range(10) for j in range(3)]
    write_points(job["crossings"], xy)
    report = cut_region(**(job | {"jitter_m": 4.5, "min_distance_m": 20}))
    shifts = []
    for point, path in zip(xy, chips(report, "DEM", "T").values(), strict=True):
        with rasterio.open(path) as chip:
            shifts.append(np.array(chip.index(*point)) - SIZE // 2)
    assert np.abs(shifts).max() == 4
    assert len(np.unique(shifts, axis=0)) > 10
    assert table(report, "chips.csv")[0]["point_x"] == f"{xy[0][0]:.3f}"  # the crossing itself stays


def test_jitter_never_costs_a_chip_at_the_edge(job: dict[str, Any]) -> None:
    write_points(job["crossings"], [(LEFT + 10.5, TOP - 10.5 - i) for i in range(0, 100, 10)])
    assert cut_region(**(job | {"jitter_m": 5.0})).positives == 10


def test_near_share_of_the_negatives_lies_on_the_lines(job: dict[str, Any], tmp_path: Path) -> None:
    road = shapely.LineString([(LEFT - 50, TOP - 200), (LEFT + 500, TOP - 210)])
    stream = shapely.MultiLineString([[(LEFT + 30, TOP), (LEFT + 60, TOP - 400)]])
    for name, line in (("roads", road), ("streams", stream)):
        gpd.GeoDataFrame(geometry=[line], crs=CRS).to_file(tmp_path / f"{name}.gpkg")
    write_points(job["crossings"], [(LEFT + 200 + 15 * i, TOP - 50) for i in range(10)])
    near = [tmp_path / "roads.gpkg", tmp_path / "streams.gpkg"]
    report = cut_region(**job, near=near, near_share=0.7)
    rows = [row for row in table(report, "chips.csv") if row["label"] == "F"]
    sources = [row["source"] for row in rows]
    assert sources.count("random") == 3
    assert {"roads.gpkg", "streams.gpkg"} <= set(sources)
    for row in rows:
        place = shapely.Point(float(row["x"]), float(row["y"]))
        line = {"roads.gpkg": road, "streams.gpkg": stream}.get(row["source"])
        assert line is None or line.distance(place) < 1.5  # the centre pixel's diagonal


# ---------------------------------------------------------------------------------------------- boxes


def boxes_of(report: CutReport, size: int = SIZE) -> dict[str, list[list[float]]]:
    folder = report.folder / f"{report.region}Aer"
    found = {
        path.stem: read_voc(path, width=size, height=size).boxes.tolist() for path in folder.rglob("*.xml")
    }
    return dict(sorted(found.items()))


def test_boxes_of_one_edge_are_centred_on_the_points(job: dict[str, Any]) -> None:
    """Point 1 is 10.3 m right of its chip's left edge and 10.6 m below its upper one: 7.3..13.3 and 7.6..13.6 m."""
    report = cut_region(**job, boxes=6)
    assert boxes_of(report) == {
        "NE_T_00001": [[7, 7, 14, 14]],
        "NE_T_00002": [[7, 7, 14, 14]],  # 10.9, 10.1
        "NE_T_00003": [[7, 7, 13, 13]],  # 10.0, 10.0
    }
    assert report.boxes == 3
    assert (
        f"boxes: 3, in an XML file beside each photo in {report.folder / 'NEAer' / 'T'}" in report.describe()
    )


def test_boxes_only_add_annotations(job: dict[str, Any], tmp_path: Path) -> None:
    without = cut_region(**job)
    assert without.boxes is None
    assert "boxes:" not in without.describe()
    both = contents(cut_region(**(job | {"out": tmp_path / "b"}), boxes=6).folder)
    added = {f"NEAer/T/NE_T_0000{i}.xml" for i in (1, 2, 3)}
    before = contents(without.folder)
    del both["cut.json"], before["cut.json"]
    assert {name: content for name, content in both.items() if name not in added} == before
    assert added < set(both)


def test_a_tile_holds_the_boxes_of_all_its_crossings(job: dict[str, Any]) -> None:
    """Two crossings are painted as white rectangles. The boxes have to lie on the white pixels."""
    photo = np.minimum(aerial(600), 200)
    crossings = {(250.0, 300.0): (30.0, 12.0), (371.0, 330.0): (16.0, 24.0)}
    for (x, y), (width, height) in crossings.items():
        rows, cols = (
            slice(int(y - height / 2), int(y + height / 2)),
            slice(int(x - width / 2), int(x + width / 2)),
        )
        photo[:, rows, cols] = 255
    write_raster(job["dem"], terrain(600))
    write_raster(job["photo"], photo)
    widths, heights = zip(*crossings.values(), strict=True)
    xy = [(LEFT + x, TOP - y) for x, y in crossings]
    write_points(job["crossings"], xy, width_m=widths, height_m=heights)
    report = cut_region(
        **(job | {"size_m": 256, "jitter_m": 40, "min_distance_m": 0}), boxes=["width_m", "height_m"]
    )
    found = boxes_of(report, 256)
    assert (list(found), report.boxes) == (["NE_T_00001", "NE_T_00002"], 4)
    for name, boxes in found.items():
        with rasterio.open(chips(report, "Aer", "T")[name]) as chip:
            white = chip.read(1) == 255
        assert len(boxes) == 2
        for xmin, ymin, xmax, ymax in np.array(boxes, int):
            assert white[ymin:ymax, xmin:xmax].all()
            white[ymin:ymax, xmin:xmax] = False
        assert not white.any()
    for path in chips(report, "Aer", "F").values():
        with rasterio.open(path) as chip:
            assert chip.read(1).max() <= 200


def test_a_neighbour_is_in_the_chip_with_its_point_or_a_quarter_of_its_box(job: dict[str, Any]) -> None:
    """The chip of the first reaches from x 90 to 110; boxes are 10 m wide."""
    for x, expected in (
        (109.5, [[5, 5, 15, 15], [14, 5, 20, 15]]),  # the point is in it
        (112.5, [[5, 5, 15, 15], [17, 5, 20, 15]]),  # 2.5 m of 10: a quarter
        (112.6, [[5, 5, 15, 15]]),
    ):
        write_points(job["crossings"], [(LEFT + 100, TOP - 100), (LEFT + x, TOP - 100)])
        assert boxes_of(cut_region(**job, boxes=10, overwrite=True))["NE_T_00001"] == expected


def test_a_shifted_crossing_stays_in_its_chip_with_its_box(job: dict[str, Any]) -> None:
    xy = [(LEFT + 40.4 + 30 * i, TOP - 40.7 - 60 * j) for i in range(10) for j in range(3)]
    write_points(job["crossings"], xy)
    report = cut_region(**(job | {"jitter_m": 9.9, "min_distance_m": 20}), boxes=8)
    found = list(boxes_of(report).values())
    assert [len(boxes) for boxes in found] == [1] * 30
    for (x, y), path, ((xmin, ymin, xmax, ymax),) in zip(
        xy, chips(report, "Aer", "T").values(), found, strict=True
    ):
        with rasterio.open(path) as chip:
            col, row = ~chip.transform @ (x, y)
        assert (xmin, ymin) == (max(0, np.floor(col - 4)), max(0, np.floor(row - 4)))
        assert (xmax, ymax) == (min(SIZE, np.ceil(col + 4)), min(SIZE, np.ceil(row + 4)))
    assert sum(SIZE in box or 0 in box for (box,) in found) > 5  # some are clipped


def test_boxes_are_in_metres_of_the_chips_crs(job: dict[str, Any], tmp_path: Path) -> None:
    lons, lats = transform(CRS, "EPSG:4326", *zip(*POINTS, strict=True))
    path = write_points(
        tmp_path / "points.geojson", list(zip(lons, lats, strict=True)), "EPSG:4326", edge=["6", "6", "6"]
    )  # numbers written as text
    report = cut_region(**(job | {"crossings": path}), boxes="edge")
    assert boxes_of(report)["NE_T_00000"] == [[7, 7, 14, 14]]


def test_negatives_show_no_part_of_a_box(job: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    xy = [(LEFT + 30 + 36 * i, TOP - 30 - 40 * j) for i in range(10) for j in range(9)]
    write_points(job["crossings"], xy, edge=[4.0, 14.0, 9.0] * 30)
    report = cut_region(**(job | {"min_distance_m": 1.0}), boxes="edge")
    assert report.negatives == 90
    away = np.abs(centres(report, "F")[:, None] - np.array(xy)[None]).max(axis=2)
    assert (away >= SIZE / 2 + np.tile([2.0, 7.0, 4.5], 30)).all()
    # (sqrt(2) x 20 + sqrt(2) x 14) / 2 = 24.04
    assert "chip and the largest box (24 m): a chip without a crossing shows no box" in caplog.text
    caplog.clear()
    cut_region(**(job | {"min_distance_m": 24.1, "max_positives": 5}), boxes="edge", overwrite=True)
    assert "largest box" not in caplog.text


def test_crossings_without_a_size_are_left_out(job: dict[str, Any]) -> None:
    beside = [(x + 8, y) for x, y in POINTS[:1]]
    write_points(
        job["crossings"], [*POINTS, *beside, (LEFT + 50, TOP - 300), (LEFT + 70, TOP - 350)],
        w=[9.0, 0.0, -3.0, None, float("inf"), 9.0], h=["9", "9", "9", "9", "9", "wide"], kept=[5] * 6,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"6 geometries|no crossing lies where") as error:
        cut_region(**job, boxes=["w", "h"])
    assert "5 no positive number in w or h" in str(error.value)
    write_points(job["crossings"], [*POINTS, *beside], w=[9.0, 0.0, 3.0, None])
    report = cut_region(**job, boxes="w")
    assert reasons(report) == {
        1: "its chip also shows a crossing without a size: point 4",
        2: "no positive number in w",
        4: "no positive number in w",
    }
    assert list(boxes_of(report)) == ["NE_T_00003"]
    assert table(report, "left_out.csv")[1]["reason"] == "no positive number in w"


def test_points_in_one_pixel_give_one_box(job: dict[str, Any]) -> None:
    write_points(job["crossings"], [(LEFT + 100.2, TOP - 100.2), (LEFT + 100.7, TOP - 100.9)], w=[6.0, 9.0])
    report = cut_region(**job, boxes="w")
    assert boxes_of(report) == {"NE_T_00001": [[7, 7, 14, 14]]}  # 10.2 +- 3
    write_points(job["crossings"], [(LEFT + 100.2, TOP - 100.2), (LEFT + 100.7, TOP - 100.9)], w=[None, 6.0])
    assert boxes_of(cut_region(**job, boxes="w", overwrite=True)) == {"NE_T_00002": [[7, 7, 14, 14]]}


def test_boxes_larger_than_a_chip_are_warned_of(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    write_points(job["crossings"], POINTS, w=[6.0, 21.0, 60.0])
    assert boxes_of(cut_region(**job, boxes="w"))["NE_T_00003"] == [[0, 0, SIZE, SIZE]]
    assert "2 of 3 boxes are larger than a chip of 20 m" in caplog.text


def test_an_interrupted_cut_with_boxes_goes_on_to_the_same_result(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cut_region(**(job | {"out": tmp_path / "whole"}), boxes=6)
    write = voc.write_atomically

    def dies_at_the_second(path: Path, content: str, **options: bool) -> None:
        if path.stem == "NE_T_00002":
            raise KeyboardInterrupt
        write(path, content, **options)

    monkeypatch.setattr(voc, "write_atomically", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        cut_region(**job, boxes=6, workers=1)
    monkeypatch.undo()
    (partial,) = job["out"].iterdir()
    assert (partial / "NEAer" / "T" / "NE_T_00002.tif").exists()  # the photo is there, the annotation is not
    assert not (partial / "NEAer" / "T" / "NE_T_00002.xml").exists()
    report = cut_region(**job, boxes=6, workers=1)
    assert contents(report.folder) == contents(whole.folder)
    assert [p.name for p in job["out"].iterdir()] == ["NE"]


def test_boxes_are_part_of_an_interrupted_cuts_name(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any, __: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cutter_module.Cutter, "cut", interrupted)
    write_points(job["crossings"], POINTS, w=[6.0] * 3)
    names = []
    for boxes in (None, 6, "w"):
        with pytest.raises(KeyboardInterrupt):
            cut_region(**job, boxes=boxes)
        names.append({path.name for path in job["out"].iterdir()}.difference(names).pop())
    record = {
        "version": 3, "region": "NE", "size_m": SIZE, "jitter_m": 0.0, "min_distance_m": 60,
        "near_share": 0.5, "crs": None, "photo_bands": list(RGBN), "dem_units": None, "seed": 0,
        "max_positives": None, "boxes": None, "layer": None, "crossings_xy": None, "crossings_crs": None,
        "near_layers": [], "negatives": 0, "negatives_layers": [], "negatives_m": 30.0, "negatives_max": None,
    }  # fmt: skip
    stats = [(path, path.stat()) for path in (job["dem"], job["photo"], job["crossings"])]
    files = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    digest = hashlib.sha256(json.dumps([record, files], sort_keys=True).encode()).hexdigest()[:12]
    assert names[0] == f".NE.partial-{digest}"


# ------------------------------------------------------------------------------------------- left out


def reasons(report: CutReport) -> dict[int, str]:
    return {point.id: point.reason for point in report.left_out}


def test_left_out_points_are_listed_with_id_place_and_reason(job: dict[str, Any]) -> None:
    dem = terrain()
    dem[95:100, 100] = -9999
    dem[80, 250] = np.nan
    dem[300, 300] = np.inf
    write_raster(job["dem"], dem, nodata=-9999)
    write_raster(job["photo"], aerial()[:, :, :380], nodata=0)
    more = [None, (LEFT + 5, TOP - 200), (LEFT + 375, TOP - 200), (LEFT + 900, TOP)]
    good = [(LEFT + 180.2, TOP - 180.2), (LEFT + 180.7, TOP - 180.9)]
    write_points(job["crossings"], POINTS + more + good)
    report = cut_region(**job)
    assert (report.positives, report.negatives) == (1, 1)
    assert reasons(report) == {
        1: "DEM without data in the chip",
        2: "DEM without data in the chip",
        3: "DEM without data in the chip",
        4: "no geometry",
        5: "chip not inside the DEM and the photo",
        6: "chip not inside the photo",
        7: "chip not inside the DEM and the photo",
        9: "same pixel as point 8",
    }
    rows = table(report, "left_out.csv")
    assert rows[4] == {
        "id": "5", "x": "500005.0", "y": "4999800.0", "crs": CRS,
        "reason": "chip not inside the DEM and the photo",
    }  # fmt: skip
    assert "3 DEM without data in the chip" in report.describe()


def test_undeclared_fill_values_are_no_elevations(job: dict[str, Any]) -> None:
    dem = terrain()
    dem[100, 100], dem[80, 250] = -9999, 3.4e38
    write_raster(job["dem"], dem)
    assert reasons(cut_region(**job)) == dict.fromkeys((1, 2), "DEM without data in the chip")


def test_nodata_0_of_a_photo_means_all_bands(job: dict[str, Any]) -> None:
    photo = aerial()
    photo[0] = 0  # red is 0 everywhere: dark, not missing
    photo[3, 75:85, 245:255] = 0  # and near infrared over water
    photo[:, 300, 300] = 0  # nothing at all
    write_raster(job["photo"], photo, nodata=0)
    report = cut_region(**job)
    assert reasons(report) == {3: "photo without data in the chip"}
    with rasterio.open(chips(report, "Aer", "T")["NE_T_00002"]) as chip:
        np.testing.assert_array_equal(chip.read(), photo[:, 70:90, 240:260])


def test_nodata_on_another_grid(job: dict[str, Any]) -> None:
    """Also after resampling, one missing pixel spoils a chip, but dark pixels of one band do not."""
    dem = terrain()
    dem[100, 109] = -9999
    write_raster(job["dem"], dem, left=LEFT + 0.5, nodata=-9999)
    photo = aerial(800)
    photo[3, :, :600] = 0  # no near infrared at all: were this band transparency, nothing would be left
    photo[:, 160, 500] = 0
    write_raster(job["photo"], photo, step=0.5, nodata=0)
    report = cut_region(**job)
    assert reasons(report) == {1: "DEM without data in the chip", 2: "photo without data in the chip"}


def test_zeros_are_data_where_no_nodata_is_declared(job: dict[str, Any]) -> None:
    write_raster(job["photo"], np.zeros((4, 400, 400), np.uint8))
    assert cut_region(**job).positives == 3


def test_a_photo_mask_counts(job: dict[str, Any]) -> None:
    mask = np.full((400, 400), 255, np.uint8)
    mask[290:310, 290:310] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
        write_raster(job["photo"], aerial()), "r+"
    ) as photo:  # fmt: skip
        photo.write_mask(mask)
    assert reasons(cut_region(**job)) == {3: "photo without data in the chip"}


def test_coordinates_that_do_not_exist_are_left_out(job: dict[str, Any], tmp_path: Path) -> None:
    lons, lats = transform(CRS, "EPSG:4326", *zip(*POINTS, strict=True))
    xy = [*zip(lons, lats, strict=True), (-93.0, 95.0)]
    path = write_points(tmp_path / "odd.gpkg", xy, "EPSG:4326")
    report = cut_region(**(job | {"crossings": path}))
    assert (report.positives, list(reasons(report))) == (3, [4])


def test_max_positives_takes_the_first_that_will_do(job: dict[str, Any]) -> None:
    write_points(job["crossings"], [(LEFT - 50, TOP), *POINTS])
    report = cut_region(**(job | {"max_positives": 2}))
    assert list(chips(report, "DEM", "T")) == ["NE_T_00002", "NE_T_00003"]
    assert (report.negatives, list(reasons(report))) == (2, [1])


# --------------------------------------------------------------------------------- interruption, disk


def test_an_interrupted_cut_goes_on_to_the_same_result(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cut_region(**(job | {"out": tmp_path / "whole"}))
    written: list[str] = []
    write = cutter_module.write_atomically

    def dies_at_the_fifth_file(path: Path, content: bytes, **options: bool) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        write(path, content, **options)
        written.append(path.name)

    monkeypatch.setattr(cutter_module, "write_atomically", dies_at_the_fifth_file)
    with pytest.raises(KeyboardInterrupt):
        cut_region(**job, workers=1)
    monkeypatch.setattr(cutter_module, "write_atomically", write)
    (partial,) = job["out"].iterdir()
    assert partial.name.startswith(".NE.partial-")
    finished = {path.name: path.stat().st_ino for path in partial.glob("NEDEM/*/*.tif")}
    assert len(finished) == 3
    del finished[max(finished)]  # its photo was never written
    (partial / "NEDEM" / "T" / min(finished)).write_bytes(b"")  # what a power cut may leave
    del finished[min(finished)]
    (partial / "NEDEM" / "T" / ".NE_T_00009.tif.1").write_bytes(b"half")  # of a process that was killed

    report = cut_region(**job, workers=1)
    assert contents(report.folder) == contents(whole.folder)
    assert {p.name: p.stat().st_ino for p in report.folder.glob("NEDEM/*/*.tif")}.items() >= finished.items()
    assert [p.name for p in job["out"].iterdir()] == ["NE"]


def test_a_full_disk_is_said_and_the_cut_can_go_on(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def full(draft: Path, path: Path) -> Path:
        if "_F_" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(draft, path)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"disk is full.*goes on"):
        cut_region(**job)
    monkeypatch.undo()
    (partial,) = job["out"].iterdir()
    assert len(list(partial.rglob("*.tif"))) == 6  # the whole ones
    assert not list(partial.rglob(".*"))  # no half one
    assert cut_region(**job).negatives == 3


def test_an_existing_region_is_only_replaced_when_asked(job: dict[str, Any]) -> None:
    first = cut_region(**job)
    before = contents(first.folder)
    with pytest.raises(DataError, match=r"NE exists already.*overwrite=true"):
        cut_region(**job, seed=1)
    assert contents(first.folder) == before
    second = cut_region(**job, seed=1, overwrite=True)
    assert contents(second.folder) != before
    assert [p.name for p in job["out"].iterdir()] == ["NE"]


def test_a_finished_region_is_left_as_it_is(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = cut_region(**job, boxes=6)
    before = contents(first.folder)
    monkeypatch.setattr(cutter_module.Cutter, "cut", None)
    again = cut_region(**job, boxes=6)
    assert again == replace(first, left_out=(), found_complete=True)
    assert again.describe().startswith(
        "NE: complete, nothing to do: 3 chips with a crossing, 3 without, in EPSG"
    )
    assert contents(first.folder) == before
    with pytest.raises(DataError, match=r"NE exists already: it was cut with other settings \(seed, boxes\)"):
        cut_region(**job, boxes=7, seed=1)
    os.utime(job["photo"], (1, 1))
    with pytest.raises(DataError, match=r"NE exists already: it was cut from other files, or they changed"):
        cut_region(**job, boxes=6)


@pytest.mark.parametrize(
    "gone", ["NEDEM/T/NE_T_00001.tif", "NEAer/F/NE_F_00001.tif", "NEAer/T/NE_T_00002.xml"]
)
def test_a_region_that_is_not_complete_any_more(job: dict[str, Any], gone: str) -> None:
    folder = cut_region(**job, boxes=6).folder
    before = contents(folder)
    (folder / gone).unlink()
    with pytest.raises(DataError, match=r"not complete any more: 1 of its files are gone"):
        cut_region(**job, boxes=6)
    cut_region(**job, boxes=6, overwrite=True)
    assert contents(folder) == before


@pytest.mark.parametrize("record", [b"", b"{}", b"[" * 99, b'{"digest": 1e999}'])
def test_a_damaged_record_says_nothing(job: dict[str, Any], record: bytes) -> None:
    folder = cut_region(**job).folder
    (folder / "cut.json").write_bytes(record)
    with pytest.raises(DataError, match=r"has no cut\.json that says what it was cut with"):
        cut_region(**job)


def test_overwriting_removes_nothing_that_is_not_prepares_own(job: dict[str, Any]) -> None:
    folder = cut_region(**job).folder
    (folder / "NEDEM/T/NE_T_00001.tif.aux.xml").write_text("GDAL's notes on a chip go with it")
    cut_region(**job, overwrite=True)
    for name in ("NEDEM/T/mine.tif", "notes/labels.csv", "chips.csv.bak"):
        mine = folder / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(DataError, match=rf"did not write and will not remove: {name[:5]}"):
            cut_region(**job, overwrite=True)
        assert mine.read_text() == "mine"
        mine.unlink()
        if name.startswith("notes"):
            mine.parent.rmdir()


@pytest.mark.parametrize(("given", "folders"), [("dem", {"NEDEM"}), ("photo", {"NEAer"})])
def test_elevation_alone_and_a_photo_alone(job: dict[str, Any], given: str, folders: set[str]) -> None:
    both = contents(cut_region(**(job | {"out": job["out"] / "both"}), boxes=6).folder)
    alone = {key: value for key, value in job.items() if key not in {"dem", "photo"} - {given}}
    report = cut_region(**alone, boxes=6)
    assert {path.name for path in report.folder.iterdir() if path.is_dir()} == folders
    found = contents(report.folder)
    images = {name: content for name, content in found.items() if "/T/" in name and name.endswith(".tif")}
    assert len(images) == 3
    assert images.items() <= both.items()  # the same pixels in the same places
    (kind,) = folders
    assert sorted(name for name in found if name.endswith(".xml")) == [
        f"{kind}/T/NE_T_0000{i}.xml" for i in (1, 2, 3)
    ]
    assert report.bands == (("dem",) if given == "dem" else RGBN)
    assert (
        f"boxes: 3, in an XML file beside each {'elevation' if given == 'dem' else 'photo'}"
        in report.describe()
    )
    assert cut_region(**alone, boxes=6).found_complete


def test_neither_elevation_nor_a_photo(job: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="neither dem nor photo is given"):
        cut_region(**{key: value for key, value in job.items() if key not in ("dem", "photo")})


def test_columns_and_layers_that_cannot_be(job: dict[str, Any]) -> None:
    for keys, says in (
        ({"crossings_xy": ["x"]}, r"crossings_xy must name two columns, .* not \['x'\]"),
        ({"near_layers": ["a", "b"]}, "near_layers names 2 layers for 0 files"),
    ):
        with pytest.raises(ConfigError, match=says):
            cut_region(**job, **keys)


def test_layers_of_lines(job: dict[str, Any], tmp_path: Path) -> None:
    roads = tmp_path / "lines.gpkg"
    along = shapely.LineString([(LEFT + 20, TOP - 380), (LEFT + 380, TOP - 380)])
    for layer, line in (("roads", along), ("streams", FAR_LINE)):
        gpd.GeoDataFrame(geometry=[line], crs=CRS).to_file(roads, layer=layer)
    with pytest.raises(DataError, match=r"near_layers=NAME; its layers are: roads \(LineString\), streams"):
        cut_region(**job, near=[roads])
    report = cut_region(**job, near=[roads], near_layers=["roads"], near_share=1)
    with (report.folder / "chips.csv").open() as file:
        assert [row["y"] for row in csv.DictReader(file) if row["label"] == "F"] == [str(TOP - 380)] * 3


def test_a_photo_in_degrees_gets_its_utm_zone(job: dict[str, Any]) -> None:
    del job["dem"]
    step = 1 / 111_000
    place = from_origin(-93.0, 45.2, step * 1.4, step)
    with rasterio.open(job["photo"]) as file:
        pixels = file.read()
    with rasterio.open(
        job["photo"], "w", driver="GTiff", width=pixels.shape[2], height=pixels.shape[1], count=len(pixels),
        dtype="uint8", crs="EPSG:4326", transform=place, photometric="minisblack",
    ) as file:  # fmt: skip
        file.write(pixels)
    middle = place @ (pixels.shape[2] / 2, pixels.shape[1] / 2)
    points = gpd.GeoDataFrame(geometry=[shapely.Point(middle)], crs="EPSG:4326")
    points.to_file(job["crossings"])
    assert cut_region(**job).crs == "EPSG:32615"


def test_a_folder_that_is_no_region_is_never_replaced(job: dict[str, Any]) -> None:
    (job["out"] / "NE").mkdir(parents=True)
    (job["out"] / "NE" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not made by prepare\.py"):
        cut_region(**job, overwrite=True)
    assert (job["out"] / "NE" / "thesis.txt").read_text() == "mine"


def test_gdal_caches_little_while_cutting(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL's own limit is 5 % of the machine's memory, so that memory grows with the raster."""
    limits, cut = set(), cutter_module.Cutter.cut

    def spy(self: Any, spot: Any) -> str | None:
        limits.add(int(get_gdal_config("GDAL_CACHEMAX")))
        return cut(self, spot)

    monkeypatch.setattr(cutter_module.Cutter, "cut", spy)
    cut_region(**job, workers=2)
    assert limits == {64}  # MB


def test_out_that_cannot_be_written(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written.*Give a folder"):
        cut_region(**(job | {"out": tmp_path / "file" / "chips"}))


# ----------------------------------------------------------------------------------------- bad input


def rewrite(key: str, pixels: np.ndarray, **options: Any) -> Any:
    def change(job: dict[str, Any]) -> None:
        write_raster(job[key], pixels, **options)

    return change


def replace_by(key: str, name: str, content: bytes | None) -> Any:
    def change(job: dict[str, Any]) -> None:
        job[key] = job["dem"].with_name(name)
        if content is not None:
            job[key].write_bytes(content)

    return change


def truncate(key: str) -> Any:
    def change(job: dict[str, Any]) -> None:
        content = job[key].read_bytes()
        job[key].write_bytes(content[: len(content) // 3])

    return change


def points(xy: Sequence[Any], crs: str | None = CRS) -> Any:
    return lambda job: write_points(job["crossings"], xy, crs)


def shapes(*geometry: shapely.Geometry, key: str = "crossings") -> Any:
    def change(job: dict[str, Any]) -> None:
        path = job["dem"].with_name(f"other_{key}.gpkg")
        gpd.GeoDataFrame(geometry=list(geometry), crs=CRS).to_file(path)
        job[key] = [path] if key == "near" else path

    return change


LINE = shapely.LineString([(LEFT, TOP), (LEFT + 9, TOP)])
FAR_LINE = shapely.LineString([(LEFT - 900, TOP), (LEFT - 800, TOP)])

BAD_INPUT = {
    "no dem": (replace_by("dem", "none.tif", None), r"DEM .*none\.tif: no such file"),
    "no photo": (replace_by("photo", "none.tif", None), r"photo .*none\.tif: no such file"),
    "no points": (replace_by("crossings", "none.gpkg", None), r"crossings .*none\.gpkg: no such file"),
    "dem is a folder of DEM and photo": (lambda job: job.update(dem=job["dem"].parent), "2 tiles are of 2 kinds"),
    "dem is text": (replace_by("dem", "notes.tif", b"hello"), "not a raster that can be read"),
    "points are text": (replace_by("crossings", "p.gpkg", b"hello"), "not a vector file that can be read"),
    "points are a table": (replace_by("crossings", "p.csv", b"a,b\n1,2\n"), "has no columns longitude and latitude"),
    "truncated dem": (truncate("dem"), r"DEM .*dem\.tif.*cannot be read at row.*truncated"),
    "truncated photo": (truncate("photo"), r"photo .*photo\.tif.*cannot be read at row.*truncated"),
    "dem without crs": (rewrite("dem", terrain(), crs=None), "DEM .*has no known CRS.*gdal_edit"),
    "photo without crs": (rewrite("photo", aerial(), crs=None), "photo .*has no known CRS"),
    "dem without place": (lambda job: bare_raster(job["dem"]), "DEM .*has no georeference"),
    "dem of 3 bands": (rewrite("dem", aerial(bands=3)), "has 3 bands; a DEM has 1"),
    "dem of uint8": (rewrite("dem", aerial(bands=1)), "uint8; 256 steps.*hillshade"),
    "complex dem": (rewrite("dem", terrain().astype(np.complex64)), "complex numbers"),
    "photo of 3 bands": (rewrite("photo", aerial(bands=3)), r"has 3 bands, .* names 4.*=\[red,green,blue\]"),
    "photo of 5 bands": (rewrite("photo", aerial(bands=5)), "has 5 bands, .* names 4. Name the bands"),
    "photo of floats": (rewrite("photo", aerial().astype(np.float32)), "is float32; .*uint8 or uint16"),
    "no overlap": (
        rewrite("photo", aerial(), left=LEFT + 2000), r"do not overlap.*500000\.\.500400.*502000\.\.502400",
    ),
    "points without crs": (lambda job: replace_points_without_crs(job), "crossings .*has no CRS"),
    "empty points": (points([]), "holds no"),
    "only empty points": (points([None, None]), "holds no point"),
    "lines for points": (shapes(LINE), "1 of 1 geometries are LineString"),
    "many-point multipoint": (shapes(shapely.MultiPoint(POINTS)), "are MultiPoint.*explodecollections"),
    "no point inside": (
        points([(LEFT + 5000, TOP)]), r"no crossing lies where.*505000\.\.505000.*500000\.\.500400",
    ),
    "nothing but nodata": (
        rewrite("dem", np.full((400, 400), -9999, np.float32)), "no chip .*3 DEM without data",
    ),
    "boxes without a column": (
        lambda job: job.update(boxes="edge"), r"crossings .*has no column edge; it has no columns\.",
    ),
    "boxes of another column": (
        lambda job: (write_points(job["crossings"], POINTS, w=[1.0] * 3, kind=["a"] * 3), job.update(boxes=["w", "h"])),
        r"crossings .*has no column h; it has w, kind\.",
    ),
    "boxes of words": (
        lambda job: (write_points(job["crossings"], POINTS, kind=["a"] * 3), job.update(boxes="kind")),
        "holds no positive number in kind",
    ),
    "boxes of truth values": (
        lambda job: (write_points(job["crossings"], POINTS, seen=[True] * 3), job.update(boxes="seen")),
        "holds no positive number in seen",
    ),
    "near is missing": (lambda job: job.update(near=[Path("none.gpkg")]), r"near none\.gpkg: no such file"),
    "near are points": (shapes(shapely.Point(LEFT, TOP), key="near"), "holds geometries other than lines"),
    "near is elsewhere": (shapes(FAR_LINE, key="near"), "no line lies on the ground of the rasters"),
    "no room for negatives": (
        lambda job: job.update(min_distance_m=1000), "only 0 of 3 chips without.*1000 m.*min_distance_m",
    ),
    "no room near lines": (
        lambda job: (shapes(LINE, key="near")(job), job.update(min_distance_m=150)),
        "only 0 of 2 .*near_share",
    ),
}  # fmt: skip


def bare_raster(path: Path) -> None:
    with rasterio.open(path, "w", driver="GTiff", width=9, height=9, count=1, dtype="float32", crs=CRS):
        pass


def replace_points_without_crs(job: dict[str, Any]) -> None:
    job["crossings"] = job["dem"].with_name("bare.shp")
    write_points(job["crossings"], POINTS, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_explained_and_leaves_nothing(job: dict[str, Any], change: Any, message: str) -> None:
    change(job)
    with pytest.raises(DataError, match=message):
        cut_region(**job)
    assert not list(job["out"].glob("*")) if job["out"].exists() else True


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"region": "../NE"}, "names a folder"),
        ({"region": ""}, "names a folder"),
        ({"region": ".NE"}, "names a folder"),
        ({"min_distance_m": -1}, "min_distance_m must be"),
        ({"min_distance_m": float("nan")}, "min_distance_m must be"),
        ({"jitter_m": -0.5}, "jitter_m must be"),
        ({"jitter_m": 10}, "would shift a crossing out of its chip"),
        ({"size_m": 0}, "size_m must be"),
        ({"size_m": 10.5}, "size_m must be"),
        ({"near_share": 1.5}, "near_share must be"),
        ({"seed": -1}, "seed must be"),
        ({"max_positives": 0}, "max_positives must be"),
        ({"workers": 0}, "workers must be"),
        ({"crs": "EPSG:4326"}, "is geographic"),
        ({"crs": "EPSG:26849"}, "not projected in metres"),
        ({"crs": "EPSG:999999"}, "not a known CRS"),
        ({"crs": "utm 15"}, "not a known CRS"),
        ({"photo_bands": ["red", "green", "blue", "infrared"]}, "out of red, green, blue, nir"),
        ({"photo_bands": ["red", "red", "blue", "nir"]}, "once"),
        ({"boxes": 0}, "boxes must be metres, .* at most size_m=20,.* not 0"),
        ({"boxes": -4.5}, "boxes must be .* not -4.5"),
        ({"boxes": 20.5}, "boxes must be .* not 20.5"),
        ({"boxes": float("nan")}, "boxes must be .* not nan"),
        ({"boxes": True}, "boxes must be .* not True"),
        ({"boxes": []}, r"boxes must be .* not \[\]"),
        ({"boxes": ["w", "h", "d"]}, r"boxes must be .* not \[w,h,d\]"),
        ({"boxes": {"w": 1}}, "boxes must be .* not .*"),
    ],
)
def test_bad_arguments_are_explained(job: dict[str, Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cut_region(**(job | values))
    assert not job["out"].exists()


def test_rgb_photo_and_its_band_names(job: dict[str, Any]) -> None:
    write_raster(job["photo"], aerial(bands=3))
    report = cut_region(**job, photo_bands=["red", "green", "blue"])
    with rasterio.open(chips(report, "Aer", "T")["NE_T_00001"]) as chip:
        assert chip.descriptions == ("red", "green", "blue")


def test_a_distance_below_the_half_diagonal_is_warned_of(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cut_region(**(job | {"min_distance_m": 14.0}))
    assert "half diagonal (14 m)" in caplog.text


def test_crossings_closer_than_a_chip_are_counted(
    job: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Chips are 20 m: three within 19 m of another, one 20 m from them, which only touches, one far away."""
    x, y = LEFT + 100.5, TOP - 100.5
    points = [(x, y), (x + 19, y), (x + 19, y + 19), (x + 39, y), (x + 200, y - 200)]
    job["crossings"] = write_points(tmp_path / "near.gpkg", points)
    with caplog.at_level(logging.INFO):
        cut_region(**job)
    (line,) = [text for text in caplog.messages if "closer than a chip" in text]
    assert line.startswith("3 of 5 crossings lie closer than a chip (20 m) to another: their chips overlap")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        cut_region(**(job | {"region": "CA", "crossings": write_points(tmp_path / "apart.gpkg", POINTS)}))
    assert "closer than a chip" not in caplog.text


# ---------------------------------------------------------------- by hand, without rasters

SOUND = {"dem": "dem.tif", "crossings": "points.gpkg", "out": "chips", "region": "NE"}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"size_m": 2}, {"size_m": 1}),
        ({"size_m": 4096}, {"size_m": 4097}),
        ({"jitter_m": 49.9}, {"jitter_m": 50}),
        ({"jitter_m": 0}, {"jitter_m": -0.1}),
        ({"min_distance_m": 0}, {"min_distance_m": -1}),
        ({"near_share": 0}, {"near_share": -0.01}),
        ({"near_share": 1}, {"near_share": 1.01}),
        ({"seed": 1}, {"seed": -1}),
        ({"max_positives": 1}, {"max_positives": 0}),
        ({"negatives_m": 0}, {"negatives_m": -1}),
        ({"negatives_max": 1}, {"negatives_max": 0}),
        ({"workers": 1}, {"workers": 0}),
        ({"workers": 1000}, {"workers": 1001}),
        ({"boxes": [100, 0.1]}, {"boxes": [100.1, 5]}),
        ({"boxes": ["width_m", 3]}, {"boxes": [3, 0]}),
        ({"boxes": [2, 3]}, {"boxes": [2, 3, 4]}),
        ({"photo_bands": ["nir", "red"]}, {"photo_bands": ["nir", "nir"]}),
        ({"photo_bands": ["red", "green", "blue"]}, {"photo_bands": []}),
        ({"region": "a-B_9"}, {"region": "_a"}),
    ],
)
def test_the_last_value_that_works_and_the_first_that_does_not(
    good: dict[str, Any], bad: dict[str, Any]
) -> None:
    checked(CutSettings, SOUND | good)
    (key,) = bad
    with pytest.raises(ConfigError, match=f"^{key}"):
        checked(CutSettings, SOUND | bad)


def test_what_a_command_line_may_write_otherwise() -> None:
    """Numbers for texts, one for a list, null for the usual bands."""
    written = {
        "region": 7,
        "out": 2026,
        "crs": 26915,
        "near": "roads.gpkg",
        "near_layers": "all",
        "photo_bands": "red",
    }
    settings = checked(CutSettings, SOUND | written)
    assert (settings.region, settings.out, settings.crs) == ("7", Path("2026"), "26915")
    assert (settings.near, settings.layers_of_near) == ([Path("roads.gpkg")], ["all"])
    assert settings.photo_bands == ["red"]
    assert checked(CutSettings, SOUND | {"photo_bands": None}).photo_bands == ["red", "green", "blue", "nir"]
    assert checked(CutSettings, SOUND | {"boxes": 5}).edges == [5, 5]
    assert checked(CutSettings, SOUND | {"boxes": ["w", 5]}).edges == ["w", 5]
    several = SOUND | {"near": ["a.gpkg", "b.gpkg"], "near_layers": "roads"}
    assert checked(CutSettings, several).layers_of_near == ["roads", "roads"]


@pytest.mark.parametrize(
    ("distance", "edges", "warned"),
    [
        (70.8, None, False),  # half of the diagonal of a chip of 100 m is 70.7 m
        (70.7, None, True),
        (73.3, [[3.0, 4.0], [np.nan, 9.0]], False),  # and of 3 x 4 m 2.5 m more
        (73.1, [[1.0, 1.0], [3.0, 4.0]], True),
        (70.8, [[np.nan, np.nan]], False),
    ],
)
def test_a_distance_that_is_too_small_by_hand(
    distance: float, edges: list | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = edges and CrossingBoxes(np.arange(len(edges)), np.zeros((len(edges), 2)), np.array(edges))
    cutting._warn_of_neighbours(distance, 100, boxes)
    assert bool(caplog.records) is warned


def test_a_report_counts_what_was_left_out_by_reason() -> None:
    reasons = ["no geometry", "same pixel as point 7", "same pixel as point 9"]
    left_out = tuple(LeftOut(n, 0.0, 0.0, "EPSG:4326", reason) for n, reason in enumerate(reasons))
    report = CutReport(Path("out/NE"), "NE", "EPSG:26914", 3, 4, left_out, 5)
    lines = report.describe().splitlines()
    assert lines[0] == "NE: 3 chips with a crossing, 4 without, in EPSG:26914"
    assert lines[2].startswith("boxes: 5, ") and lines[2].endswith("out/NE/NEAer/T")
    assert lines[3] == "3 points left out, see out/NE/left_out.csv:"
    assert [line.split()[0] for line in lines[4:]] == ["2", "1"]  # the most first
    one = CutReport(Path("out/NE"), "NE", "EPSG:26914", 3, 4, left_out[:1])
    assert one.describe().splitlines()[2:] == [
        "1 point left out, see out/NE/left_out.csv:",
        "  1 no geometry",
    ]
    assert len(CutReport(Path("out/NE"), "NE", "EPSG:26914", 3, 4, ()).describe().splitlines()) == 2
