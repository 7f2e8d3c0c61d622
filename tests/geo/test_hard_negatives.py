"""False alarms of a map become chips without a crossing; hits, near copies and unusable points do not."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.warp import transform

from dxc.config.checked import checked
from dxc.data.datamodule import ChipDataModule, FolderSource
from dxc.errors import ConfigError, DataError
from dxc.geo.chips import CutReport, cut_region
from dxc.geo.crossing_layers import LINE_COLUMNS, point_frame, write_layers
from dxc.geo.record import Record
from dxc.geo.settings import CutSettings
from tests.geo.surveys import CRS, LEFT, POINTS, SIZE, TOP, heights, survey, write_points, write_raster


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return survey(tmp_path)


def beside(number: int, east: float, south: float = 0.0) -> tuple[float, float]:
    """A place so many metres from a crossing, counted from 1."""
    x, y = POINTS[number - 1]
    return x + east, y - south


def write_map(path: Path, xy: Sequence[tuple[float, float]]) -> Path:
    """As map.py writes it: points, most certain first, breach lines and the mapped area."""
    points = point_frame([(*each, np.nan) for each in xy], CRS, np.linspace(0.9, 0.6, len(xy)))
    columns = dict.fromkeys(LINE_COLUMNS, 1.0)
    line = shapely.LineString([(LEFT, TOP, 1), (LEFT + 1, TOP, 1)])
    lines = gpd.GeoDataFrame({name: [value] for name, value in columns.items()}, geometry=[line], crs=CRS)
    area = gpd.GeoDataFrame({"km2": [0.1]}, geometry=[shapely.box(LEFT, TOP - 300, LEFT + 300, TOP)], crs=CRS)
    write_layers(path, points, lines, area, {})
    return path


def rows(report: CutReport) -> list[dict[str, str]]:
    with (report.folder / "chips.csv").open() as file:
        return list(csv.DictReader(file))


def alarms(report: CutReport, name: str = "map.gpkg") -> list[tuple[float, float]]:
    """Centres of the chips that come from a file."""
    return [(float(row["x"]), float(row["y"])) for row in rows(report) if row["source"] == name]


# ------------------------------------------------------------------------------------------- what becomes a chip


def test_false_alarms_become_chips_and_hits_do_not(job: dict[str, Any], tmp_path: Path) -> None:
    """29.5 m from a crossing is a hit, 30 m is none. (150, 150) and its neighbour at 20 m show the same."""
    far = (LEFT + 150.5, TOP - 150.5)
    points = [
        beside(1, 29.5), beside(1, 30), beside(2, 0, 35), far, (far[0] + 20, far[1]), beside(3, 2),
        (LEFT + 3, TOP - 200),
    ]  # fmt: skip
    plain = cut_region(**job, negatives=[])
    report = cut_region(
        **(job | {"out": tmp_path / "more"}), negatives=[write_map(tmp_path / "map.gpkg", points)]
    )
    wanted = [beside(1, 30), beside(2, 0, 35), far]
    assert alarms(report) == [(x - 0.5, y + 0.5) for x, y in wanted]  # the corner of the centre pixel
    assert (report.positives, report.negatives, report.hard_negatives) == (3, 6, 3)
    assert report.describe().splitlines()[2] == (
        "hard negatives: 3 of the chips without a crossing. Points that gave none: 2 hits, closer than 30 m to a "
        "crossing; 1 closer than 30 m to another; 1 where no whole chip can be cut"
    )
    record = Record.read(report.folder)
    assert record is not None and (record.negatives, record.hard_negatives) == (6, 3)
    assert record.settings["negatives_m"] == 30 and record.missing(report.folder) == 0
    # the others are where they are without a map
    assert [row for row in rows(report) if row["source"] != "map.gpkg"] == rows(plain)
    names = [row["name"] for row in rows(report) if row["source"] == "map.gpkg"]
    assert len({row["name"] for row in rows(report)}) == 9
    column, row = (int(wanted[2][0] - LEFT) - SIZE // 2, int(TOP - wanted[2][1]) - SIZE // 2)
    with rasterio.open(report.folder / "ADEM" / "F" / f"{names[2]}.tif") as chip:
        np.testing.assert_array_equal(chip.read(1), heights()[row : row + SIZE, column : column + SIZE])
    again = cut_region(**(job | {"out": tmp_path / "more"}), negatives=[tmp_path / "map.gpkg"])
    assert again.found_complete and again.hard_negatives == 3
    with pytest.raises(DataError, match=r"cut with other settings \(negatives_m, negatives\)"):
        cut_region(**(job | {"out": tmp_path / "more"}), negatives_m=20)


def test_several_maps_in_any_crs_the_most_certain_points_first(job: dict[str, Any], tmp_path: Path) -> None:
    """Of the second file the first point shows what the first file's first point shows."""
    one = [(LEFT + 40.5, TOP - 200.5), (LEFT + 100.5, TOP - 200.5)]
    two = [(LEFT + 45.5, TOP - 200.5), (LEFT + 250.5, TOP - 200.5)]
    degrees = list(zip(*transform(CRS, "EPSG:4326", *zip(*two, strict=True)), strict=True))
    path = tmp_path / "two.geojson"
    gpd.GeoDataFrame(geometry=[shapely.Point(p) for p in degrees], crs="EPSG:4326").to_file(path)
    maps = [write_map(tmp_path / "map.gpkg", one), path]
    report = cut_region(**job, negatives=maps)
    assert len(alarms(report)) == 2 and len(alarms(report, "two.geojson")) == 1
    few = cut_region(**job, negatives=maps, negatives_max=1, overwrite=True)
    assert alarms(few) == [(LEFT + 40, TOP - 200)] and not alarms(few, "two.geojson")
    assert "1 more than negatives_max=1" not in few.describe()  # two are
    assert "2 more than negatives_max=1" in few.describe()


def test_a_layer_by_its_name(job: dict[str, Any], tmp_path: Path) -> None:
    path = write_points(tmp_path / "two.gpkg", [(LEFT + 150.5, TOP - 150.5)], layer="checked")
    write_points(path, [(LEFT + 40.5, TOP - 200.5)], layer="others")
    with pytest.raises(DataError, match=r"negatives .*2 layers .* with negatives_layers=NAME"):
        cut_region(**job, negatives=path)
    assert alarms(cut_region(**job, negatives=path, negatives_layers="others"), "two.gpkg") == [
        (LEFT + 40, TOP - 200)
    ]


def test_no_chip_shows_a_box_in_part(job: dict[str, Any], tmp_path: Path) -> None:
    """A box of 16 m reaches 8 m from its crossing, and a chip 10 m from its centre."""
    path = write_map(tmp_path / "map.gpkg", [beside(1, 17), beside(2, 0, 20)])
    report = cut_region(**job, negatives=path, negatives_m=10, boxes=16)
    assert alarms(report) == [(POINTS[1][0] - 0.5, POINTS[1][1] + 0.5 - 20)]
    assert "1 so close to a crossing that a chip shows its box" in report.describe()
    assert not list(report.folder.glob("AAer/F/*.xml"))


def test_a_hole_in_the_rasters_costs_that_chip_alone(job: dict[str, Any], tmp_path: Path) -> None:
    pixels = heights()
    pixels[190:210, 30:50] = -9999
    write_raster(job["dem"], pixels, nodata=-9999)
    path = write_map(tmp_path / "map.gpkg", [(LEFT + 40.5, TOP - 200.5), (LEFT + 250.5, TOP - 200.5)])
    report = cut_region(**job, negatives=path)
    assert alarms(report) == [(LEFT + 250, TOP - 200)]
    assert "Points that gave none: 1 DEM without data in the chip" in report.describe()


# ------------------------------------------------------------------------------------------- folds


def test_a_chip_beside_that_of_a_crossing_stays_in_its_fold(
    job: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Chips of 40 m around 12 crossings; each has a false alarm 30 m east of it, so that the two chips overlap."""
    crossings = [
        (LEFT + 30.5 + 90 * column, TOP - 30.5 - 75 * row) for row in range(4) for column in range(3)
    ]
    write_points(job["crossings"], crossings)
    path = write_map(tmp_path / "map.gpkg", [(x + 30, y) for x, y in crossings])
    with caplog.at_level(logging.INFO):
        report = cut_region(**(job | {"size_m": 40}), negatives=path)
    assert report.hard_negatives == 12
    assert "24 of 24 crossings and negatives lie closer than a chip (40 m) to another" in caplog.text
    datamodule = ChipDataModule(
        FolderSource(str(job["out"])), channels=["dem"], size=40, folds=3, cache_dir=str(tmp_path / "cache"),
        progress=False,
    )  # fmt: skip
    datamodule.prepare_data()
    assert datamodule.cache is not None
    names = list(datamodule.cache.names)
    hard = [names.index(row["name"]) for row in rows(report) if row["source"] == "map.gpkg"]
    crossed = [names.index(row["name"]) for row in rows(report) if row["label"] == "T"]
    assert len(datamodule.folds) == 3
    for fold in datamodule.folds:
        for chip, crossing in zip(hard, crossed, strict=True):
            assert (chip in fold.val) == (crossing in fold.val)


# ------------------------------------------------------------------------------------------- bad input


def test_a_map_without_false_alarms_changes_nothing(
    job: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = cut_region(**job, negatives=write_map(tmp_path / "map.gpkg", [beside(1, 3), beside(2, 0, 8)]))
    assert (report.negatives, report.hard_negatives) == (3, 0)
    assert (
        "hard negatives: 0 of the chips without a crossing. Points that gave none: 2 hits"
        in report.describe()
    )
    report = cut_region(**job, negatives=write_map(tmp_path / "none.gpkg", []), overwrite=True)
    assert (report.negatives, report.hard_negatives) == (3, 0)
    assert "none.gpkg: its layer is empty, so it gives no chip" in caplog.text
    assert "hard negatives" not in report.describe()


def test_files_that_cannot_be_meant(job: dict[str, Any], tmp_path: Path) -> None:
    away = write_points(tmp_path / "away.gpkg", [(LEFT + 5000, TOP), (LEFT + 6000, TOP)])
    with pytest.raises(
        DataError, match=r"away\.gpkg: none of its 2 points lies where chips may lie \(x 500000"
    ):
        cut_region(**job, negatives=away)
    lines = tmp_path / "lines.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.LineString([(LEFT, TOP), (LEFT + 9, TOP)])], crs=CRS).to_file(lines)
    with pytest.raises(
        DataError, match=r"negatives .*lines\.gpkg: 1 of 1 geometries are LineString; single points"
    ):
        cut_region(**job, negatives=lines)
    nowhere = tmp_path / "nowhere.gpkg"
    gpd.GeoDataFrame(geometry=[None], crs=CRS).to_file(nowhere, layer="points", geometry_type="Point")
    with pytest.raises(DataError, match=r"negatives .*nowhere\.gpkg: holds no point"):
        cut_region(**job, negatives=nowhere)
    (tmp_path / "empty.gpkg").touch()
    with pytest.raises(DataError, match=r"negatives .*empty\.gpkg: not a vector file that can be read"):
        cut_region(**job, negatives=tmp_path / "empty.gpkg")
    (tmp_path / "points.csv").write_text("longitude,latitude\n-93,45\n")
    with pytest.raises(DataError, match=r"negatives .*points\.csv: not a vector file"):
        cut_region(**job, negatives=tmp_path / "points.csv")
    with pytest.raises(DataError, match=r"negatives .*none\.gpkg: no such file"):
        cut_region(**job, negatives=tmp_path / "none.gpkg")
    assert not job["out"].exists() or not list(job["out"].iterdir())


SOUND = {
    "dem": "dem.tif",
    "crossings": "points.gpkg",
    "out": "chips",
    "region": "NE",
    "negatives": "map.gpkg",
}


def test_a_negative_lies_further_off_than_a_crossing_is_shifted() -> None:
    """Shifted by 20 m along both axes and a part of a pixel, a crossing lies 29.7 m from the centre; by 21 m, 31.1."""
    assert checked(CutSettings, SOUND | {"jitter_m": 20}).negatives_m == 30
    with pytest.raises(
        ConfigError, match=r"negatives_m=30 is too little for jitter_m=21: .*negatives_m=32 or more"
    ):
        checked(CutSettings, SOUND | {"jitter_m": 21})
    checked(CutSettings, SOUND | {"jitter_m": 21, "negatives": []})
    checked(CutSettings, SOUND | {"jitter_m": 21, "negatives_m": 32})
    with pytest.raises(ConfigError, match=r"negatives_layers names 2 layers for 1 files in negatives"):
        checked(CutSettings, SOUND | {"negatives_layers": ["a", "b"]})
