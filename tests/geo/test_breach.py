"""Breach lines through an embankment in a valley whose elevations are known, and the DEM with them cut in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.crs import CRS

from dxc.errors import ConfigError, DataError
from dxc.geo.breach import BreachLine, Dem, breach_lines, breached, lowest_ends, target_cells
from dxc.geo.elevation import METRES
from dxc.geo.formats import raster_file
from tests.geo.surveys import LEFT, TOP, write_raster

EDGE = 60
CROSSING = (LEFT + 30.5, TOP - 30.5)
BANK = slice(28, 33)  # rows of the embankment


def valley() -> np.ndarray:
    """A valley that falls 0.1 m a row to the south, with an embankment 3 m high across it. The bed is column 30."""
    rows, columns = np.indices((EDGE, EDGE))
    ground = 100 - 0.1 * rows + 0.2 * np.abs(columns - 30)
    ground[BANK] = 103
    return ground.astype(np.float32)


def dem_of(folder: Path, pixels: np.ndarray, **profile: Any) -> Dem:
    return Dem.look(raster_file("DEM", write_raster(folder / "dem.tif", pixels, **profile)))


def test_the_line_joins_the_lowest_cells_on_both_sides(tmp_path: Path) -> None:
    found = breach_lines(dem_of(tmp_path, valley()), np.array([CROSSING]))
    (line,) = found.lines
    assert (line.crossing, found.without, found.crs) == (0, {}, CRS.from_epsg(26915))
    # the foot of the embankment (row 27) and the lowest cell within 25 m of the crossing (row 55), upper end first
    np.testing.assert_allclose(
        line.xyz, [[LEFT + 30.5, TOP - 27.5, 97.3], [LEFT + 30.5, TOP - 55.5, 94.5]], atol=1e-4
    )


@pytest.mark.parametrize(("off_m", "along_the_bed"), [(3.0, True), (6.0, False)])
def test_a_point_beside_the_stream_still_finds_its_bed(
    tmp_path: Path, off_m: float, along_the_bed: bool
) -> None:
    """Points of a map err by some metres. A line passes its point within 4 m. The bed is a ditch of one cell."""
    ground = np.broadcast_to(100 - 0.02 * np.arange(EDGE)[:, None], (EDGE, EDGE)).copy()
    ground[:, 30] -= 2
    ground[BANK] = 103
    (line,) = breach_lines(
        dem_of(tmp_path, ground.astype(np.float32)), np.array([[CROSSING[0] + off_m, CROSSING[1]]])
    ).lines
    assert bool(np.all(line.xyz[:, 0] == LEFT + 30.5)) == along_the_bed


def test_only_cells_above_the_line_are_lowered(tmp_path: Path) -> None:
    dem = dem_of(tmp_path, valley(), nodata=-9999)
    lines = breach_lines(dem, np.array([CROSSING])).lines
    assert breached(dem, lines, tmp_path / "breached.tif") == 5
    expected = valley()
    expected[BANK, 30] = 100 - 0.1 * np.arange(28, 33)
    with rasterio.open(tmp_path / "breached.tif") as file, dem.open() as source:
        np.testing.assert_allclose(file.read(1), expected, atol=1e-4)
        np.testing.assert_array_equal(np.delete(file.read(1), 30, axis=1), np.delete(valley(), 30, axis=1))
        for name in ("crs", "transform", "nodata", "dtypes", "shape"):
            assert getattr(file, name) == getattr(source, name)
        assert file.profile["tiled"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("unit", "scale"), [("foot", 1.0), ("US survey foot", 1.0), ("metre", 0.01)])
def test_elevations_in_the_files_own_unit(tmp_path: Path, unit: str, scale: float) -> None:
    stored = valley() / METRES[unit] / scale
    stored = np.round(stored).astype(np.int32) if scale < 1 else stored.astype(np.float32)
    path = write_raster(tmp_path / "dem.tif", stored)
    with rasterio.open(path, "r+") as file:
        file.units, file.scales, file.offsets = (unit,), (scale,), (0.0,)
    dem = Dem.look(raster_file("DEM", path))
    (line,) = breach_lines(dem, np.array([CROSSING])).lines
    np.testing.assert_allclose(line.xyz[:, 2], [97.3, 94.5], atol=0.01)  # lines are in metres
    assert breached(dem, [line], tmp_path / "out.tif") == 5
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.units, file.scales) == ((unit,), (scale,))
        bed = file.read(1)[BANK, 30] * scale * METRES[unit]
    np.testing.assert_allclose(bed, 100 - 0.1 * np.arange(28, 33), atol=0.011)


def test_map_units_of_feet_and_coarse_cells() -> None:
    """25 m are fewer cells where cells are larger."""
    ground = valley()
    ends = lowest_ends(ground, np.ones_like(ground, bool), 30.5, 30.5, cell_m=(2.0, 2.0))
    assert ends is not None
    np.testing.assert_allclose(ends, [[30, 27, 97.3], [30, 42, 95.8]], atol=1e-4)


def test_a_dem_in_feet_across_and_up(tmp_path: Path) -> None:
    """EPSG:2265, North Dakota in feet: 1 cell = 3 ft, so 25 m are 27 cells."""
    path = tmp_path / "dem.tif"
    pixels = (valley() / 0.3048).astype(np.float32)
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:2265", transform=rasterio.transform.from_origin(2e6, 5e5, 3, 3),
        width=EDGE, height=EDGE, count=1, dtype="float32",
    ) as file:  # fmt: skip
        file.write(pixels, 1)
    dem = Dem.look(raster_file("DEM", path), "ft")
    assert dem.cell_m == pytest.approx((3 * 0.3048,) * 2, rel=1e-5)
    (line,) = breach_lines(dem, np.array([[2e6 + 91.5, 5e5 - 91.5]])).lines
    # the nearest row 3 m away or more is 26: 4 cells are 3.66 m; 27 cells are 24.7 m
    np.testing.assert_allclose(
        line.xyz, [[2e6 + 91.5, 5e5 - 79.5, 97.4], [2e6 + 91.5, 5e5 - 172.5, 94.3]], atol=1e-3
    )


def test_points_in_another_crs(tmp_path: Path) -> None:
    dem = dem_of(tmp_path, valley())
    lonlat = Transformer.from_crs(26915, 4326, always_xy=True).transform(*CROSSING)
    (line,) = breach_lines(dem, np.array([lonlat]), CRS.from_epsg(4326)).lines
    np.testing.assert_allclose(
        line.xyz[:, :2], [[LEFT + 30.5, TOP - 27.5], [LEFT + 30.5, TOP - 55.5]], atol=1e-6
    )


def test_no_data_and_borders(tmp_path: Path) -> None:
    pixels = valley()
    pixels[48:] = -9999
    dem = dem_of(tmp_path, pixels, nodata=-9999)
    corner = (LEFT + 30.5, TOP - 58.5)  # nothing but no-data to the south and around
    found = breach_lines(
        dem, np.array([CROSSING, (LEFT - 500, TOP), corner, (np.inf, 0), (LEFT + 0.5, TOP - 0.5)])
    )
    assert found.without == {
        1: "lies outside of the DEM", 2: "has no data on two opposite sides", 3: "has no place in the DEM's CRS",
        4: "has no data on two opposite sides",
    }  # fmt: skip
    (line,) = found.lines
    assert line.xyz[1, 1:] == pytest.approx([TOP - 47.5, 95.3])  # the last row with data
    breached(dem, [line], tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.read(1)[48:] == -9999).all() and file.nodata == -9999


def test_where_lines_meet_the_lowest_counts(tmp_path: Path) -> None:
    dem = dem_of(tmp_path, valley())
    across = np.array([[LEFT + 20.5, TOP - 30.5, 99.0], [LEFT + 40.5, TOP - 30.5, 98.0]])
    down = np.array([[LEFT + 30.5, TOP - 20.5, 90.0], [LEFT + 30.5, TOP - 40.5, 80.0]])
    rows, columns, z = target_cells(dem, [BreachLine(0, across), BreachLine(1, down)])
    assert len(rows) == 41  # 21 each, one of them shared
    at = (rows == 30) & (columns == 30)
    assert z[at] == pytest.approx([85.0]) and z[(rows == 30) & (columns == 20)] == pytest.approx([99.0])
    diagonal = np.array([[LEFT + 0.5, TOP - 0.5, 9.0], [LEFT + 3.5, TOP - 2.5, 0.0]])
    rows, columns, z = target_cells(dem, [BreachLine(0, diagonal)])
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 0), (1, 1), (1, 2), (2, 3)]
    np.testing.assert_allclose(z, [9, 6, 3, 0])


def test_a_dem_larger_than_a_strip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dxc.geo.breach.CELLS_AT_ONCE", 1)  # strips of one block, 256 rows
    pixels = np.full((600, 40), 5.0, np.float32)
    dem = dem_of(tmp_path, pixels)
    line = BreachLine(0, np.array([[LEFT + 7.5, TOP - 0.5, 3.0], [LEFT + 7.5, TOP - 599.5, 2.0]]))
    assert breached(dem, [line], tmp_path / "out.tif") == 600
    pixels[:, 7] = np.linspace(3, 2, 600)
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_allclose(file.read(1), pixels, atol=1e-6)


def test_what_cannot_work(tmp_path: Path) -> None:
    dem = dem_of(tmp_path, valley())
    with pytest.raises(DataError, match="is the DEM itself"):
        breached(dem, [], tmp_path / "dem.tif")
    with pytest.raises(DataError, match="cannot be written"):
        breached(dem, [], tmp_path / "nowhere" / "out.tif")
    with pytest.raises(ConfigError, match="a breach line of 2 m to each side needs cells of less than 1 m"):
        breach_lines(dem, np.array([CROSSING]), reach_m=2)
    path = tmp_path / "degrees.tif"
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:4326", transform=rasterio.transform.from_origin(-93, 45, 1e-5, 1e-5),
        width=EDGE, height=EDGE, count=1, dtype="float32",
    ) as file:  # fmt: skip
        file.write(valley(), 1)
    with pytest.raises(DataError, match="EPSG:4326, is in degrees; .* Project it first"):
        Dem.look(raster_file("DEM", path))


def test_elevations_of_places_and_an_overview(tmp_path: Path) -> None:
    pixels = valley()
    pixels[0, 0] = -9999
    dem = dem_of(tmp_path, pixels, nodata=-9999)
    places = np.array(
        [CROSSING, (LEFT + 30.5, TOP - 10.5), (LEFT + 0.5, TOP - 0.5), (LEFT - 1, TOP), (np.inf, 0)]
    )
    np.testing.assert_allclose(dem.elevation_at(places), [103, 99, np.nan, np.nan, np.nan], atol=1e-4)
    small, extent = dem.overview(edge=20)
    assert extent == (LEFT, LEFT + EDGE, TOP - EDGE, TOP) and small.shape == (20, 20)
    assert np.isnan(small[0, 0])
    np.testing.assert_allclose(small.ravel()[1:], valley()[::3, ::3].ravel()[1:], rtol=1e-6)
