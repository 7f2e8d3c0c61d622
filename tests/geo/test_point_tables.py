"""Crossings out of a CSV: columns by name, a CRS that is stated, limits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.warp import transform

from dxc.errors import ConfigError, DataError
from dxc.geo import tables
from dxc.geo.rasters import Points
from tests.geo.surveys import CRS as PROJECTED
from tests.geo.surveys import POINTS, write_points

TARGET = CRS.from_user_input(PROJECTED)
LON, LAT = transform(PROJECTED, "EPSG:4326", *zip(*POINTS, strict=True))


def _read(path: Path, text: str | bytes, columns: tuple[str, ...] = (), **options: Any) -> Points:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Points.read(path, TARGET, columns, **options)


def _degrees(header: str, separator: str = ",") -> str:
    rows = [
        f"{i}{separator}{lat:.9f}{separator}{lon:.9f}"
        for i, (lon, lat) in enumerate(zip(LON, LAT, strict=True))
    ]
    return "\n".join([header, *rows])


@pytest.mark.parametrize("names", ["latitude,longitude", "Lat,Lon", " LATITUDE , Long", '"lat","lng"'])
def test_degrees_by_the_usual_names(tmp_path: Path, names: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    points = _read(tmp_path / "p.csv", f"{_degrees(f'id,{names}')}\n9,,\n10,north,west\n")
    assert points.crs == "EPSG:4326"
    assert points.ids.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(points.xy[:3], POINTS, atol=1e-3)
    assert np.isnan(points.own[3:]).all()
    assert "are taken as degrees in EPSG:4326" in caplog.text


def test_other_columns_separators_and_the_decimal_comma(tmp_path: Path) -> None:
    text = _degrees("id;breite;laenge", ";").replace(".", ",").encode("utf-8-sig")
    points = _read(tmp_path / "p.csv", text, ("id",), xy=["laenge", "breite"], crs="4326")
    np.testing.assert_allclose(points.xy, POINTS, atol=1e-3)
    assert points.columns["id"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(
        _read(tmp_path / "p.tsv", _degrees("id\tlat\tlon", "\t")).xy, POINTS, atol=1e-3
    )


def test_projected_columns_need_a_stated_crs(tmp_path: Path) -> None:
    text = "\n".join(["Easting,Northing,lat,lon", *(f"{x},{y},0,0" for x, y in POINTS)])
    points = _read(tmp_path / "p.csv", text, crs=PROJECTED)
    assert points.xy.tolist() == [list(point) for point in POINTS]
    assert points.crs == PROJECTED
    for names in ("x,y", "easting,northing"):
        with pytest.raises(DataError, match=r"does not say in which CRS .* State it, e\.g\. crossings_crs="):
            _read(tmp_path / "p.csv", text.replace("Easting,Northing,lat,lon", f"{names},a,b"))
    with pytest.raises(DataError, match=r"lon and lat are not degrees in 3 of 3 rows"):
        _read(tmp_path / "p.csv", text.replace("Easting,Northing,lat,lon", "lon,lat,a,b"))
    with pytest.raises(ConfigError, match="crossings_crs=EPSG:0 is not a known CRS"):
        _read(tmp_path / "p.csv", text, crs="EPSG:0")


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (
            "a,b\n1,2\n",
            {},
            r"no columns longitude and latitude, or x and y; it has a, b\. Name the two.*crossings_xy=",
        ),
        ("lon,lat\n1,2\n", {"columns": ("width",)}, "has no column width; it has lon, lat"),
        ("lon,lat\n1,2\n", {"xy": ["e", "n"]}, "has no column e, n; it has lon, lat"),
        ("lon,lat\n", {}, "holds no row below its header"),
        ("", {}, "it has no columns"),
        ("lon,lat\nwest,north\n", {}, "holds no point"),
        (b"lon,lat\n\xff,1\n", {}, "is not text in UTF-8"),
        (b'lon,lat\n"1,2\n', {}, "is not a CSV"),
        ("lon,lat\n1," + "2" * 200_000, {}, "is not a CSV"),
        (",".join("abc" for _ in range(5000)), {}, r"abc, \.\.\.\. Name"),
    ],
)
def test_what_is_no_table_of_points(
    tmp_path: Path, text: str | bytes, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        _read(tmp_path / "p.csv", text, **options)


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        ("MAX_CSV_BYTES", 20, "has 0 MB"),
        ("MAX_CSV_ROWS", 2, "more than 2 rows"),
        ("MAX_LINE", 30, "a line has 30"),
    ],
)
def test_tables_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, says: str
) -> None:
    text = _degrees("id,lat,lon")
    monkeypatch.setattr(tables, limit, value)
    with pytest.raises(DataError, match=says):
        _read(tmp_path / "p.csv", text + "\n" + "," * 40)


def test_keys_that_do_not_go_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a .csv has no layers"):
        _read(tmp_path / "p.csv", _degrees("id,lat,lon"), layer="points")
    with pytest.raises(DataError, match="no such file"):
        Points.read(tmp_path / "none.csv", TARGET)
    vector = write_points(tmp_path / "p.gpkg")
    with pytest.raises(ConfigError, match="crossings_xy names columns of a .csv"):
        Points.read(vector, TARGET, xy=["a", "b"])
    with pytest.raises(ConfigError, match=r"says that it is in EPSG:26915\. Leave crossings_crs out"):
        Points.read(vector, TARGET, crs="EPSG:4326")
    assert len(Points.read(vector, TARGET, crs="26915").ids) == 3


def test_a_stated_crs_for_a_shapefile_without_one(tmp_path: Path) -> None:
    frame = gpd.read_file(write_points(tmp_path / "p.gpkg"))
    with pytest.warns(UserWarning, match="crs"):
        frame.set_crs(None, allow_override=True).to_file(tmp_path / "p.shp")
    assert not (tmp_path / "p.prj").exists()
    with pytest.raises(DataError, match="has no CRS"):
        Points.read(tmp_path / "p.shp", TARGET)
    assert Points.read(tmp_path / "p.shp", TARGET, crs=PROJECTED).xy.tolist() == [list(p) for p in POINTS]


def test_what_cannot_be_read_says_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "my points.kml"
    path.write_text("<kml/>")
    with pytest.raises(DataError, match=r"Convert it: ogr2ogr NEW\.gpkg '.*/my points\.kml'"):
        Points.read(path, TARGET)
