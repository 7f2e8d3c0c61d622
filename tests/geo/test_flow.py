"""Water that ponds behind an embankment of known size, and runs through once it is breached."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest

from dxc.geo.breach import Dem, breach_lines
from dxc.geo.flow import accumulate, cells_lowered, flow_at, flow_change, subwatersheds
from dxc.geo.formats import raster_file
from tests.geo.surveys import LEFT, TOP, write_raster

EDGE = 240
CROSSING = np.array([(LEFT + 120.5, TOP - 150.5)])


def _valley(folder: Path) -> Dem:
    """A valley to the south, 2.8 ha above an embankment that is lower at the eastern end than over the bed."""
    rows, columns = np.indices((EDGE, EDGE))
    ground = 100 - 0.02 * rows + 0.05 * np.abs(columns - 120)
    ground[148:153] = np.maximum(ground[148:153], 103)
    ground[148:153, 200:] = 102.5
    ground[:, :20] = -9999
    return Dem.look(
        raster_file("DEM", write_raster(folder / "dem.tif", ground.astype(np.float32), nodata=-9999))
    )


def test_water_passes_only_where_it_is_breached(tmp_path: Path) -> None:
    dem = _valley(tmp_path)
    lines = breach_lines(dem, CROSSING).lines
    beyond = np.array([(LEFT - 1000, TOP), (np.nan, np.nan), (LEFT + 5.5, TOP - 5.5)])
    change = flow_change(dem, np.concatenate([CROSSING, beyond]), lines)
    assert list(change.before.passes()) == [False] * 4 and list(change.after.passes()) == [True] + [False] * 3
    assert np.isnan(change.after.area_ha[1:]).all()
    # nearly all of 150 rows x 220 columns drain there; water on ridge lines may go elsewhere
    assert 2.5 < change.after.area_ha[0] <= 3.4
    assert change.before.area_ha[0] < 0.2
    assert change.cells_changed == cells_lowered(dem, lines) == 5
    assert change.after.mapped_m2 == EDGE * (EDGE - 20)
    assert change.after.ponded_m2 < 50 < 5000 < change.before.ponded_m2
    assert change.metrics() == {
        "flow_passes": 1.0,
        "ponded_km2": change.after.ponded_m2 / 1e6,
        "cells_changed": 5,
    }


def test_no_crossing_on_the_dem_gives_no_metric(tmp_path: Path) -> None:
    assert flow_change(_valley(tmp_path), np.array([(LEFT - 1000, TOP)]), ()).metrics() == {}


def test_depth_and_cells_of_a_basin() -> None:
    """A bowl of 3 x 3 cells, 2 m deep, in a plain that falls to the east."""
    ground = np.broadcast_to(10 - 0.01 * np.arange(11.0), (11, 11)).copy()
    ground[4:7, 4:7] = 8
    depth, cells = accumulate(ground, np.ones_like(ground, bool))
    assert np.count_nonzero(depth > 0.1) == 9
    np.testing.assert_allclose(depth[4:7, 4:7], ground[5, 7] - 8, atol=0.05)
    assert cells[:, -1].sum() + cells[:, 0].sum() + cells[0, 1:-1].sum() + cells[-1, 1:-1].sum() >= 121


def test_tiles_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dem = _valley(tmp_path)
    lines = breach_lines(dem, CROSSING).lines
    whole = flow_at(dem, CROSSING, lines=lines)
    monkeypatch.setattr("dxc.geo.flow.TILE", 100)
    tiled = flow_at(dem, CROSSING, lines=lines)
    assert tiled.mapped_m2 == whole.mapped_m2
    np.testing.assert_allclose(tiled.area_ha, whole.area_ha)  # the margin reaches the edges
    assert tiled.ponded_m2 == whole.ponded_m2


def test_subwatersheds_of_two_valleys(tmp_path: Path) -> None:
    """Two valleys to the south, with a ridge between them at column 120."""
    rows, columns = np.indices((EDGE, EDGE))
    ground = (100 - 0.02 * rows + 0.05 * np.abs(columns % 120 - 60)).astype(np.float32)
    dem = Dem.look(raster_file("DEM", write_raster(tmp_path / "dem.tif", ground)))
    west, east = subwatersheds(dem, least_km2=0.015)
    for each, centre in zip(sorted([west, east], key=lambda s: s.centroid.x), (60, 180), strict=True):
        assert each.centroid.x - LEFT == pytest.approx(centre, abs=8)
        assert 0.015e6 <= each.area <= 0.0292e6
    assert west.intersection(east).area == 0
    assert subwatersheds(dem, least_km2=1) == []


@pytest.mark.slow
def test_water_passes_at_true_crossings_of_synthetic_watersheds(tmp_path: Path) -> None:
    """The bar: 0.97 of the true crossings, of all four regions together."""
    from dxc.synthetic.source import REGIONS, make_region

    passes, before = [], []
    for spec in REGIONS:
        files = make_region(spec, tmp_path / spec.name, crossings=25, seed=1)
        dem = Dem.look(raster_file("DEM", files.dem))
        points = gpd.read_file(files.crossings).get_coordinates().to_numpy()
        change = flow_change(dem, points, breach_lines(dem, points).lines)
        passes += list(change.after.passes())
        before += list(change.before.passes())
        assert change.cells_changed < 40 * len(points)
    assert np.mean(passes) >= 0.97 and np.mean(before) < 0.6
