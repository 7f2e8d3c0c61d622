"""The GeoPackage of a map, read back: geometries, fields of the specification, and styles as QGIS looks for them."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from defusedxml import ElementTree
from rasterio.crs import CRS

from dxc.errors import ConfigError, DataError
from dxc.geo.breach import Breaches, BreachLine
from dxc.geo.crossing_layers import AREA, LINES, POINTS, line_frame, point_frame, write_layers
from tests.geo.surveys import LEFT, TOP

CODES = {"FClass": 2, "EClass": None, "FCode": 123456, "Source": "USGS 3DEP 1 m", "Desc": "Culvert"}
XYZ = np.array([(LEFT + 10, TOP - 10, 97.0), (LEFT + 50, TOP - 60, np.nan)])
LINE = np.array([(LEFT + 10, TOP - 5, 98.0), (LEFT + 10, TOP - 17, 96.5)])


def some_layers(count: int = 2) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame, gpd.GeoDataFrame]:
    points = point_frame(
        XYZ[:count], "EPSG:26915", [0.6, 0.95][:count], road_m=[3.5, np.nan][:count], tile=["r0c0", "r0c1"][:count],
        model="ab12",
    )  # fmt: skip
    lines = line_frame(Breaches(CRS.from_epsg(26915), (BreachLine(0, LINE),)[:count], {}), points)
    area = gpd.GeoDataFrame(
        {"km2": [0.01]}, geometry=[shapely.box(LEFT, TOP - 100, LEFT + 100, TOP)], crs=26915
    )
    return points, lines, area


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "crossings.gpkg"
    write_layers(path, *some_layers(), CODES)
    assert {tuple(each) for each in pyogrio.list_layers(path)} == {
        (POINTS, "Point Z"), (LINES, "LineString Z"), (AREA, "MultiPolygon"), ("layer_styles", None),
    }  # fmt: skip
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("PRAGMA user_version").fetchone() == (10300,)
    points = gpd.read_file(path, layer=POINTS)
    np.testing.assert_array_equal(shapely.get_coordinates(points.geometry, include_z=True), XYZ)
    assert points.crs.to_epsg() == 26915
    assert points["rank"].tolist() == [2, 1] and points["probability"].tolist() == [0.6, 0.95]
    assert points["road_m"].isna().tolist() == [False, True] and points["tile"].tolist() == ["r0c0", "r0c1"]
    assert points["model"].tolist() == ["ab12"] * 2
    lines = gpd.read_file(path, layer=LINES)
    np.testing.assert_array_equal(shapely.get_coordinates(lines.geometry, include_z=True), LINE)
    assert lines.loc[0, ["rank", "probability", "z_upper", "z_lower", "length_m"]].tolist() == [
        2,
        0.6,
        98,
        96.5,
        12,
    ]
    for frame in (points, lines):
        assert frame["FClass"].tolist() == [2] * len(frame) and frame["EClass"].isna().all()
        assert frame["FCode"].tolist() == [123456] * len(frame) and frame["Method"].isna().all()
        assert frame["Source"].tolist() == ["USGS 3DEP 1 m"] * len(frame)
    info = pyogrio.read_info(path, layer=POINTS)
    kinds = dict(zip(info["fields"], info["dtypes"], strict=True))
    assert (kinds["FClass"], kinds["EClass"], kinds["FCode"]) == ("int16", "int16", "int32")
    assert gpd.read_file(path, layer=AREA).geometry.area.tolist() == [1e4]
    assert [each.name for each in tmp_path.iterdir()] == ["crossings.gpkg"]


def test_styles_are_where_qgis_looks_for_them(tmp_path: Path) -> None:
    path = tmp_path / "crossings.gpkg"
    write_layers(path, *some_layers(), CODES)
    with sqlite3.connect(path) as connection:
        rows = connection.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
        registered = connection.execute(
            "SELECT data_type FROM gpkg_contents WHERE table_name = 'layer_styles'"
        ).fetchall()
        columns = dict(
            connection.execute("SELECT table_name, column_name FROM gpkg_geometry_columns").fetchall()
        )
    connection.close()
    assert registered == [("attributes",)]
    assert {name: column for name, column, default, _ in rows if default == 1} == columns
    styles = {name: ElementTree.fromstring(qml) for name, _, _, qml in rows}
    for name, renderer in ((POINTS, "graduatedSymbol"), (LINES, "singleSymbol"), (AREA, "singleSymbol")):
        (found,) = styles[name].findall("renderer-v2")
        assert found.get("type") == renderer
        symbols = {symbol.get("name") for symbol in found.iter("symbol")}
        assert symbols == {each.get("symbol") for each in found.iter("range")} or symbols == {"0"}
    ranges = [(float(each.get("lower")), float(each.get("upper"))) for each in styles[POINTS].iter("range")]
    assert ranges[0][0] == 0 and ranges[-1][1] == 1
    assert all(one[1] == next_[0] for one, next_ in itertools.pairwise(ranges))
    assert styles[POINTS].find("renderer-v2").get("attr") == "probability"


def test_a_map_without_crossings_has_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "none.gpkg"
    write_layers(path, *some_layers(0), {})
    for layer in (POINTS, LINES):
        frame = gpd.read_file(path, layer=layer)
        assert len(frame) == 0 and {"probability", "rank", "FClass", "UserCode"} <= set(frame.columns)
    assert len(gpd.read_file(path, layer=AREA)) == 1


def test_lines_and_area_come_to_the_crs_of_the_points(tmp_path: Path) -> None:
    points, lines, area = some_layers()
    path = tmp_path / "a.gpkg"
    write_layers(path, points, lines.to_crs(32615), area.to_crs(4326), {})
    assert gpd.read_file(path, layer=AREA).crs.to_epsg() == 26915
    assert gpd.read_file(path, layer=AREA).geometry.area[0] == pytest.approx(1e4, rel=1e-6)


def test_points_without_an_elevation_are_points_all_the_same(tmp_path: Path) -> None:
    points, lines, area = some_layers()
    path = tmp_path / "a.gpkg"
    write_layers(path, points.set_geometry(shapely.force_2d(points.geometry)), lines, area, {})
    read = gpd.read_file(path, layer=POINTS).geometry
    assert shapely.has_z(read).all() and np.isnan(shapely.get_z(read)).all()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"Fclass": 1}, "codes has no Fclass; did you mean FClass?"),
        ({"EClass": 70_000}, "codes.EClass must be a whole number, -32768 to 32767, not 70000"),
        ({"FCode": "46006"}, "codes.FCode must be a whole number"),
        ({"UserCode": "x" * 26}, "codes.UserCode must be a text of at most 25 characters"),
    ],
)
def test_codes_that_do_not_fit(tmp_path: Path, codes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        write_layers(tmp_path / "a.gpkg", *some_layers(), codes)
    assert message in str(error.value) and not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gpkg"
    write_layers(path, *some_layers(), CODES)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("dxc.geo.crossing_layers._write_styles", full)
    with pytest.raises(
        DataError, match="cannot be written .database or disk is full.. Is there room on the disk"
    ):
        write_layers(path, *some_layers(1), CODES)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="ends in .gpkg"):
        write_layers(tmp_path / "a.shp", *some_layers(), {})
    with pytest.raises(DataError, match="lacks the columns rank"):
        points, lines, area = some_layers()
        write_layers(path, points.drop(columns="rank"), lines, area, {})
