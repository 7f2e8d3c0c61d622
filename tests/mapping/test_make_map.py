"""Maps from end to end, of a place whose crossings are known, with a network that sees them without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import torch

from dxc.config.checked import checked
from dxc.deploy.metadata import Metadata
from dxc.deploy.predictor import Predictor
from dxc.errors import ConfigError, DataError, DxcError
from dxc.mapping import run as module
from dxc.mapping.finding import Finder
from dxc.mapping.ground import Ground
from dxc.mapping.network import chosen_run
from dxc.mapping.run import MapReport, make_map
from dxc.mapping.settings import Fit, MapSettings
from dxc.models.resnet import ResNet
from tests.mapping.world import (
    CROSSINGS,
    HEIGHT,
    NORTH,
    SIZE,
    WEST,
    WIDTH,
    SeesSpots,
    elevations,
    write_dem,
    write_network,
    write_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("world")
    return {**write_world(folder), "onnx": write_network(folder / "network.onnx")}


def _map(world: dict[str, Path], out: Path, **values: Any) -> MapReport:
    given: dict[str, Any] = {
        "onnx": world["onnx"], "photo": world["photo"], "photo_bands": ["red", "green", "blue"], "out": out,
        "progress": False, "threads": 1, "tracking": {"uri": f"sqlite:///{Path(out).parent}/mlflow.db"},
    }  # fmt: skip
    return make_map(checked(MapSettings, {**given, **values}))


def _points(out: Path) -> np.ndarray:
    frame = gpd.read_file(out, layer="crossings")
    assert frame["rank"].tolist() == list(range(1, len(frame) + 1))
    return np.column_stack([frame.geometry.x, frame.geometry.y, frame["probability"]])


@pytest.mark.long
def test_every_crossing_has_one_point_where_it_lies(world: dict[str, Path], tmp_path: Path) -> None:
    report = _map(world, tmp_path / "map.gpkg", stride_m=4, truth=world["truth"], tile_m=100)
    points = _points(tmp_path / "map.gpkg")
    assert len(points) == len(CROSSINGS) == report.crossings
    true = np.array(CROSSINGS) + 0.5
    away = np.hypot(points[:, 0, None] - (WEST + true[:, 0]), points[:, 1, None] - (NORTH - true[:, 1])).min(
        axis=1
    )
    assert away.max() < 3
    assert (points[:, 2] > 0.9).all()
    assert report.judged is not None
    main = report.judged.score.main
    assert (main.hits, main.recall.value, main.precision.value) == (5, 1, 1)
    area = gpd.read_file(tmp_path / "map.gpkg", layer="mapped_area")
    assert area.crs.to_epsg() == 26915
    hole = 30 * 40
    assert area["km2"].item() == pytest.approx((330 * 260 - hole) / 1e6, rel=1e-3)
    assert area.geometry.area.item() / 1e6 == area["km2"].item()


class SeesOnlySpots(SeesSpots):
    """Is certain that there is nothing where no spot is."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = 1.5 * super().forward(image) - torch.tensor([0.0, 4.0])
        return scores


def test_windows_between_others_place_points_closer(world: dict[str, Path], tmp_path: Path) -> None:
    true = np.array(CROSSINGS) + 0.5
    sharp = {**world, "onnx": write_network(tmp_path / "sharp.onnx", SeesOnlySpots())}
    away, windows, pixels = {}, {}, {}
    for refine in (False, True):
        out = tmp_path / f"{refine}.gpkg"
        windows[refine] = _map(sharp, out, stride_m=9, threshold=0.1, refine=refine).windows
        points = _points(out)
        assert len(points) == len(CROSSINGS)
        offsets = points[:, 0, None] - (WEST + true[:, 0]), points[:, 1, None] - (NORTH - true[:, 1])
        away[refine] = np.hypot(*offsets).min(axis=1)
        with rasterio.open(out.with_name(f"{refine}_probability.tif")) as file:
            pixels[refine] = file.read()
    assert away[True].mean() < 0.7 * away[False].mean()
    # 1 to 4 windows of the lattice see a crossing; one has 8 more around it, a square of 4 has 21
    more = windows[True] - windows[False]
    assert 8 * len(CROSSINGS) <= more <= 21 * len(CROSSINGS)
    np.testing.assert_array_equal(pixels[True], pixels[False])  # the raster shows the lattice


class SeesFar(torch.nn.Module):
    """Is certain of a bright spot whose centre lies up to 8 pixels from its own on each axis, and sees some of it up to
    11 pixels away."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        part = torch.relu(image[:, 0, SIZE // 2 - 10 : SIZE // 2 + 11, SIZE // 2 - 10 : SIZE // 2 + 11] - 0.5)
        seen = part.sum(dim=(1, 2))
        there = 16 * seen / 12.5 - 8  # -8 without a spot, 8 with a whole one of 25 pixels
        there = torch.where(
            seen > 0, there.clamp(min=-5), there
        )  # shows in the raster, whose pixels are in steps of 1/255
        return torch.stack([torch.zeros_like(there), there], dim=1)


def test_every_fourth_window_finds_what_all_find(world: dict[str, Path], tmp_path: Path) -> None:
    far = {**world, "onnx": write_network(tmp_path / "far.onnx", SeesFar())}
    found, windows, pixels = {}, {}, {}
    for every in (False, True):
        out = tmp_path / f"{every}.gpkg"
        windows[every] = _map(far, out, stride_m=8, refine=False, every_window=every).windows
        found[every] = _points(out)
        with rasterio.open(out.with_name(f"{every}_probability.tif")) as file:
            pixels[every] = file.read(1, masked=True).astype(int).filled(-1)
            place = file.transform
    np.testing.assert_allclose(found[False], found[True], atol=1e-5)
    # window (r, c) of the lattice has its centre at x = 8 c + 16.5, y = -(8 r + 16.5)
    rows, columns = np.indices(pixels[True].shape)
    first_column, first_row = (place.c + 4 - 16.5) / 8, -(place.f - 4 + 16.5) / 8
    even_row, even_column = (rows + first_row) % 2 == 0, (columns + first_column) % 2 == 0
    first = even_row & even_column
    there = pixels[True] >= 0

    def around(cells: np.ndarray) -> np.ndarray:
        """Of each cell, the eight around it."""
        padded = np.pad(cells, 1)
        return np.stack(
            [np.roll(padded, (r, c), axis=(0, 1))[1:-1, 1:-1] for r in (-1, 0, 1) for c in (-1, 0, 1)]
        )

    highest = around(pixels[True] * (first & there)).max(axis=0)
    asked = around(first & there).sum(axis=0)
    possible = np.where(even_row | even_column, 2, 4)  # at the edge of the data, less
    spared = there & ~first & (asked == possible) & (highest < 0.001 * 255)
    assert 0.6 < spared.sum() / there.sum() < 0.75
    assert windows[True] == there.sum()
    assert windows[False] == there.sum() - spared.sum()
    np.testing.assert_array_equal(pixels[False], np.where(spared, highest, pixels[True]))
    small = _map(far, tmp_path / "small.gpkg", stride_m=8, refine=False, tile_m=40)
    assert small.windows == windows[False]
    assert dict(small.said())["mode"] == "chips, a window every 8 m, every fourth one first"


@pytest.mark.long
@pytest.mark.parametrize("away", [*range(1, 17, 3)])
def test_a_crossing_at_the_edge_of_the_data_is_seen(
    world: dict[str, Path], tmp_path: Path, away: int
) -> None:
    """`away` pixels from all four edges: at some of them the nearest window that is looked at first lies inwards."""
    spots = [(40, away), (130, 259 - away), (away, 100), (329 - away, 180)]
    pixels = np.full((1, 260, 330), 5, np.uint8)
    for column, row in spots:
        pixels[0, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 255
    with rasterio.open(world["photo"]) as file:
        profile = {**file.profile, "count": 1, "height": 260, "width": 330}
    with rasterio.open(tmp_path / "edge.tif", "w", **profile) as file:
        file.write(pixels)
    network = write_network(tmp_path / "far.onnx", SeesFar())
    found = {}
    for every in (False, True):
        out = tmp_path / f"{every}.gpkg"
        _map(
            world, out, onnx=network, photo=tmp_path / "edge.tif", photo_bands=["red"], stride_m=8, refine=False,
            every_window=every,
        )  # fmt: skip
        found[every] = _points(out)
    assert len(found[True]) >= 3  # in a corner of its own, a spot may be cut off
    np.testing.assert_allclose(found[False], found[True], atol=1e-5)


@pytest.mark.parametrize(
    ("jitter_m", "stride_m", "every"),
    [(4.0, 8, False), (6.0, 8, False), (4.0, 9, True), (6.0, 12, True), (0.0, 8, True), (None, 8, True)],
)
def test_every_window_is_looked_at_where_they_may_not_overlap_enough(
    world: dict[str, Path], tmp_path: Path, jitter_m: float | None, stride_m: int, every: bool
) -> None:
    """A crossing lies within the jitter of one window, and a network without jitter may see it there alone."""
    network = write_network(tmp_path / "network.onnx", SeesFar(), jitter_m=jitter_m)
    given = {"onnx": network, "stride_m": stride_m, "refine": False}
    report = _map({**world, "onnx": network}, tmp_path / "a.gpkg", **given)
    assert report.every_window == every
    assert (report.windows < _map(world, tmp_path / "b.gpkg", **given, every_window=True).windows) == (
        not every
    )


@pytest.mark.parametrize("along_roads", [False, True])
@pytest.mark.parametrize("model", [SeesSpots, SeesFar])
def test_a_map_does_not_depend_on_its_tiles(
    world: dict[str, Path], tmp_path: Path, model: type[torch.nn.Module], along_roads: bool
) -> None:
    more = {"roads": world["roads"], "corridor_m": 25} if along_roads else {}
    given = {**world, "onnx": write_network(tmp_path / "network.onnx", model())}
    maps = []
    for tile_m in (30, 100, 1000):
        out = tmp_path / f"{tile_m}.gpkg"
        _map(given, out, tile_m=tile_m, stride_m=8, **more)
        with rasterio.open(out.with_name(f"{tile_m}_probability.tif")) as file:
            maps.append((_points(out), file.read(masked=True)))
    for points, pixels in maps[1:]:
        # ONNX Runtime rounds the last digit by the number of windows that it answers at once
        np.testing.assert_allclose(points, maps[0][0], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(pixels.filled(7), maps[0][1].filled(7))


def test_raster_holds_what_the_network_says_of_the_chip_around_each_pixel(
    world: dict[str, Path], tmp_path: Path
) -> None:
    """To the bit: the chip that prepare.py would cut there, through the Predictor."""
    _map(world, tmp_path / "map.gpkg", stride_m=10)
    predictor = Predictor(world["onnx"])
    with (
        rasterio.open(tmp_path / "map_probability.tif") as file,
        rasterio.open(world["photo"]) as photo,
    ):
        assert file.scales == (1 / 255,)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        pixels = file.read(1, masked=True)
        for row, column in ((4, 5), (7, 10), (12, 18), (20, 27)):
            x, y = file.xy(row, column)
            down, right = photo.index(x, y)
            corner = np.s_[down - SIZE // 2 : down + SIZE // 2, right - SIZE // 2 : right + SIZE // 2]
            chip = photo.read(1)[corner]
            assert chip.shape == (SIZE, SIZE)
            if (chip == 0).any():
                continue
            expected = predictor.predict({"red": chip}).presence[0]
            assert pixels[row, column] == np.rint(expected * 255)
        hole = [pixels.mask[file.index(WEST + c + 0.5, NORTH - r - 0.5)] for c, r in ((170, 215), (30, 30))]
        assert hole == [True, False]


@pytest.mark.long
def test_water_gets_through_at_every_point(world: dict[str, Path], tmp_path: Path) -> None:
    """With an elevation model of two tiles, which the network itself is not fed with."""
    out, cut = tmp_path / "map.gpkg", tmp_path / "breached.tif"
    codes = {"FCode": 46006, "Desc": "culvert", "FClass": None}
    dem = write_dem(tmp_path)
    report = _map(
        world, out, stride_m=8, dem=dem, truth=world["truth"], roads=world["roads"], mode="chips", breached=cut,
        codes=codes,
    )  # fmt: skip
    ground = elevations()
    points, lines = (gpd.read_file(out, layer=name) for name in ("crossings", "breach_lines"))
    assert len(points) == len(lines) == len(CROSSINGS)
    assert lines["rank"].tolist() == points["rank"].tolist()
    assert set(points["FCode"]) == set(lines["FCode"]) == {46006} and set(points["Desc"]) == {"culvert"}
    for point in points.geometry:
        assert point.z == pytest.approx(ground[int(NORTH - point.y), int(point.x - WEST)])
    ends = shapely.get_coordinates(lines.geometry, include_z=True).reshape(-1, 2, 3)
    assert (np.abs(np.diff(ends[..., 1])) > 6).all()  # north to south, through the wall
    assert (ends[:, 0, 2] > ends[:, 1, 2]).all() and (ends[..., 2] < 99).all()
    with rasterio.open(cut) as file:
        assert file.shape == (HEIGHT, WIDTH) and file.crs.to_epsg() == 26915
        lowered = ground - file.read(1)
    assert (lowered >= 0).all()
    changed = int((lowered > 0).sum())
    assert 5 * 7 <= changed < 300  # seven cells of each wall at least
    assert f"5 of 5 points; {changed} cells of the elevation model lowered" == report.lines
    assert report.judged is not None and report.judged.flow is not None
    assert report.judged.metrics(1)["cells_changed"] == changed
    flow = report.judged.flow
    assert flow.after.ponded_m2 < flow.before.ponded_m2
    assert "give run=RUN_ID" in report.probabilities
    assert report.evaluation == tmp_path / "map_evaluation" / "index.html"
    page = report.evaluation.read_text()
    assert page.count("data:image/png") == 3 and "5 of 5 true crossings have a point within 15 m" in page
    assert {path.name for path in report.evaluation.parent.iterdir()} == {
        "index.html", "curve.csv", "points.csv", "scores.csv", "scores.md", "scores.tex",
        *(f"{stem}.{kind}" for stem in ("map", "precision_recall", "reliability") for kind in ("png", "svg")),
    }  # fmt: skip


def test_corridor_looks_only_near_roads_of_another_crs(world: dict[str, Path], tmp_path: Path) -> None:
    report = _map(
        world, tmp_path / "map.gpkg", roads=world["roads"], stride_m=4, corridor_m=12, refine=False, tile_m=60
    )
    assert report.mode == "corridor"
    area = gpd.read_file(tmp_path / "map.gpkg", layer="mapped_area")
    corridor = 80 * 24 + np.pi * 12**2
    assert area["km2"].item() == area.geometry.area.item() / 1e6 == pytest.approx(corridor / 1e6, rel=0.01)
    # the ground is without the hole of 30 m by 40 m, to which no road leads
    assert area["ground_km2"].item() == report.km2 == pytest.approx((330 * 260 - 30 * 40) / 1e6, rel=1e-3)
    frame = gpd.read_file(tmp_path / "map.gpkg", layer="crossings")
    # two of the five crossings lie near the road, 2 and 3 m from it
    assert len(frame) == 2
    np.testing.assert_allclose(sorted(frame["road_m"]), [2.5, 2.5], atol=2.5)
    assert report.windows == pytest.approx((80 + 2 * 6) * 24 / 16, rel=0.2)


def test_an_interrupted_map_goes_on_where_it_stopped(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Finder.find
    found: list[int] = []

    def stops(self: Finder, tile: Any) -> Any:
        if len(found) == 5:
            raise KeyboardInterrupt
        found.append(tile.number)
        return find(self, tile)

    out = tmp_path / "map.gpkg"
    monkeypatch.setattr(Finder, "find", stops)
    with pytest.raises(KeyboardInterrupt):
        _map(world, out, tile_m=100)
    assert not out.exists()
    again: list[int] = []
    monkeypatch.setattr(Finder, "find", lambda self, tile: again.append(tile.number) or find(self, tile))  # type: ignore[func-returns-value]
    _map(world, out, tile_m=100)
    assert set(found) | set(again) == set(range(12))
    assert not set(found) & set(again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.gpkg", "map_probability.tif"]
    monkeypatch.undo()
    _map(world, tmp_path / "whole.gpkg", tile_m=100)
    np.testing.assert_array_equal(_points(out), _points(tmp_path / "whole.gpkg"))


def test_the_name_of_the_ground_does_not_depend_on_the_channels(
    world: dict[str, Path], tmp_path: Path
) -> None:
    """Designs of photos and of elevation are compared on the same files, and not on others."""
    given = {
        "onnx": world["onnx"],
        "photo": world["photo"],
        "truth": world["truth"],
        "out": tmp_path / "map.gpkg",
    }

    def mapped(dem: Path, needed: list[str]) -> str:
        settings = checked(MapSettings, {**given, "dem": dem, "tracking": {"uri": "sqlite:///none.db"}})
        ground = Ground(settings.dem, settings.photo, needed=needed, photo_bands=["red", "green", "blue"])
        return module._mapped(settings, ground)

    first, second = write_dem(tmp_path)
    of_first = {mapped(first, needed) for needed in (["red"], ["dem"], ["dem", "red"])}
    assert len(of_first) == 1
    second.replace(first)
    assert mapped(first, ["red"]) not in of_first


@pytest.mark.long
def test_dense_mode_asks_windows_only_where_the_dense_pass_answers(
    world: dict[str, Path], tmp_path: Path
) -> None:
    network = write_network(tmp_path / "resnet.onnx", ResNet(1, width=4))
    region = Path(shutil.copy(world["photo"], tmp_path / "region.tif"))
    fit = {"photo": region, "crossings": world["truth"]}
    everywhere = _map(world, tmp_path / "a.gpkg", onnx=network, mode="dense", screen_logit=-1e9)
    chips = _map(world, tmp_path / "b.gpkg", onnx=network, mode="chips")
    nowhere = _map(world, tmp_path / "c.gpkg", onnx=network, mode="dense", screen_logit=1e9)
    assert everywhere.windows == chips.windows > nowhere.windows == 0
    assert everywhere.km2 == chips.km2 == nowhere.km2
    fitted = _map(world, tmp_path / "d.gpkg", onnx=network, fit=fit, screen_recall=0.99)
    assert fitted.mode == "dense"  # the default where fit is given
    # two crossings of the five alone: of several regions, the lowest threshold counts
    few = tmp_path / "few.gpkg"
    gpd.read_file(world["truth"]).iloc[:2].to_file(few)
    both = _map(
        world, tmp_path / "f.gpkg", onnx=network, fit=[{**fit, "crossings": few}, fit], screen_recall=0.99
    )
    assert both.screen_logit == fitted.screen_logit
    assert 0 < fitted.windows <= chips.windows
    with pytest.raises(ConfigError, match=r"regions that the network was trained on: give 'fit="):
        _map(world, tmp_path / "e.gpkg", onnx=network, mode="dense")
    with pytest.raises(ConfigError, match="fit: the threshold would be fitted on the region that it maps"):
        _map(world, tmp_path / "e.gpkg", onnx=network, mode="dense", fit={**fit, "photo": world["photo"]})


@pytest.mark.parametrize(
    ("given", "way"),
    [
        ({}, "chips"),
        ({"roads": "roads.gpkg"}, "corridor"),
        ({"roads": "roads.gpkg", "screen_logit": -3}, "dense"),
        ({"fit": {"photo": "b.tif", "crossings": "b.gpkg"}}, "dense"),
        ({"roads": "roads.gpkg", "mode": "chips"}, "chips"),
    ],
)
def test_the_default_mode_follows_from_what_is_given(given: dict[str, Any], way: str, tmp_path: Path) -> None:
    values = {"onnx": "a.onnx", "photo": "a.tif", "out": "a.gpkg", "tracking": {"uri": "sqlite:///a.db"}}
    assert checked(MapSettings, {**values, **given}).way == way


@pytest.mark.long
def test_true_crossings_may_be_a_table(world: dict[str, Path], tmp_path: Path) -> None:
    true = gpd.read_file(world["truth"]).geometry
    table = tmp_path / "points.csv"
    pd.DataFrame({"x": true.x, "y": true.y}).to_csv(table, index=False)
    with pytest.raises(DataError, match=r"^truth .*points.csv: .*truth_crs=EPSG:26915"):
        _map(world, tmp_path / "none.gpkg", stride_m=8, truth=table)
    maps = [
        _map(world, tmp_path / f"{number}.gpkg", stride_m=8, **truth).judged
        for number, truth in enumerate(
            ({"truth": table, "truth_crs": "EPSG:26915"}, {"truth": world["truth"]})
        )
    ]
    assert maps[0] is not None and maps[1] is not None
    assert maps[0].score.main == maps[1].score.main
    assert maps[0].score.truth == len(CROSSINGS)


@pytest.mark.long
def test_a_map_of_a_run_is_a_run_of_its_study(world: dict[str, Path], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from dxc.tracking.run import start_run

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.onnx").write_bytes(world["onnx"].read_bytes())
    pd.DataFrame(
        {"probability": np.repeat([0.01, 0.999], 600), "label": np.repeat([0, 1, 0], [600, 360, 240])}
    ).to_parquet(tmp_path / "files" / "predictions.parquet")
    with start_run(uri, study="first", name="one", params={}, tags={"dxc.kind": "trial"}) as run:
        run.log_files(tmp_path / "files")
    report = _map(world, tmp_path / "map.gpkg", onnx=None, run=run.run_id, truth=world["truth"])
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("first").experiment_id])
    (mapped,) = [each for each in runs if each.data.tags["dxc.kind"] == "map"]
    assert mapped.info.status == "FINISHED"
    assert mapped.data.tags["dxc.network_run"] == run.run_id
    assert mapped.data.params["crossings"] == str(report.crossings)
    assert mapped.data.tags["dxc.mapped"].startswith("photo.tif (")
    assert (
        mapped.data.tags["dxc.map_mode"] == "chips" and "onnxruntime" in mapped.data.tags["dxc.measured_on"]
    )
    assert {
        "map_recall",
        "map_precision/5m",
        "false_alarms_per_km2",
        "seconds_per_km2",
    } <= mapped.data.metrics.keys()
    assert (
        _points(tmp_path / "map.gpkg")[:, 2] < 0.6
    ).all()  # as of the chips that were held out, six of ten
    assert _points(tmp_path / "map.gpkg")[:, 2].min() > 0.5
    with rasterio.open(tmp_path / "map_probability.tif") as file:
        assert 0.5 < file.read(1).max() / 255 <= 0.6
    assert {each.path for each in client.list_artifacts(mapped.info.run_id)} == {
        "map.gpkg", "map_probability.tif", "map.json", "evaluation"
    }  # fmt: skip
    kept = json.loads(Path(client.download_artifacts(mapped.info.run_id, "map.json")).read_text())
    assert (
        kept["map_recall"] == mapped.data.metrics["map_recall"] == report.judged.score.main.recall.value == 1
    )  # type: ignore[union-attr]
    # the design's own run gets them too, with what they are of; times are of another machine than its own
    design = client.get_run(run.run_id).data
    assert design.metrics["map_recall"] == 1 and "seconds_per_km2" not in design.metrics
    assert design.metrics["map_recall_at_false_alarms"] == mapped.data.metrics["map_recall_at_false_alarms"]
    assert design.tags["dxc.mapped"] == mapped.data.tags["dxc.mapped"]
    assert design.tags["alarms_per_km2"] == mapped.data.params["alarms_per_km2"] == "1"
    with pytest.raises(DxcError, match="no such run in the MLflow store"):
        _map(world, tmp_path / "other.gpkg", onnx=None, run="0" * 32)


def test_a_study_gives_the_design_that_its_analysis_would_choose(
    world: dict[str, Path], store_file: Path, tmp_path: Path
) -> None:
    from dxc.tracking.run import start_run

    uri = f"sqlite:///{store_file}"
    runs = []
    for number, accuracy in enumerate((0.9, 0.97, 0.8)):
        files = tmp_path / f"files-{number}"
        files.mkdir()
        write_network(files / "model.onnx", trial=f"{number:012x}")
        identity = {"dxc.trial": f"{number:012x}", "dxc.design": f"{number:012x}"}
        tags = {"dxc.kind": "trial", "dxc.state": "finished", **identity}
        with start_run(
            uri, study="first", name=f"network {number}", params={"model.width": number}, tags=tags
        ) as run:
            run.log({"accuracy": accuracy, "latency_ms": 5.0, "onnx_mb": 1.0})
            run.log_files(files)
        runs.append(run.run_id)
    report = _map(
        world, tmp_path / "map.gpkg", onnx=None, study="first", pick="accuracy", log=False,
        tracking={"uri": uri}, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert report.network.run_id == runs[1]
    assert "network 1 of study first: the largest accuracy" in report.network.why
    assert report.crossings == len(CROSSINGS)


def test_a_prize_is_for_the_mean_of_repeats_as_in_an_analysis(store_file: Path, tmp_path: Path) -> None:
    """The design whose newest repeat is fastest is not the one whose repeats are fastest."""
    from dxc.tracking.run import start_run

    uri = f"sqlite:///{store_file}"
    for number, (design, measured) in enumerate((("a", 10.0), ("b", 5.0), ("a", 4.0))):
        tags = {
            "dxc.kind": "trial", "dxc.state": "finished", "dxc.trial": f"{number:012x}", "dxc.design": design * 12,
            "dxc.data": "d" * 16,
        }  # fmt: skip
        with start_run(uri, study="first", name=f"{design} {number}", params={}, tags=tags) as run:
            run.log({"accuracy": 0.9, "latency_ms": 5.0, "onnx_mb": 1.0, "measured_latency_ms": measured})
    given = {"study": "first", "dem": "a.tif", "out": "a.gpkg", "tracking": {"uri": uri}}
    settings = checked(MapSettings, {**given, "pick": "latency", "cache_dir": str(tmp_path / "cache")})
    assert chosen_run(settings)[1] == "b 1 of study first: the smallest measured latency"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"out": "map.tif"}, r"out=map.tif must be a GeoPackage: out=map.gpkg"),
        ({"run": "a"}, "Give one of run=RUN_ID, study=NAME .* run and onnx are given"),
        ({"photo": None}, "neither dem nor photo is given"),
        ({"mode": "corridor"}, "mode=corridor needs the roads"),
        (
            {"mode": "chips", "screen_logit": -3},
            "screen_logit belongs to the dense pass, and there is none with mode=chips: give mode=dense",
        ),
        ({"screen_margin": 1}, "screen_margin belongs to the dense pass, and there is none: give mode=dense"),
        (
            {"mode": "dense", "screen_logit": -3, "screen_recall": 0.9},
            "screen_recall says how a threshold is fitted, and screen_logit=-3 is the threshold itself",
        ),
        (
            {"screen_logit": -3, "fit": {"photo": "b.tif", "crossings": "b.gpkg"}},
            "fit says how a threshold is fitted",
        ),
        ({"threshold": 0.01}, "threshold must be a number of at least 0.05 and below 1"),
        (
            {"photo": "tiles", "out": "tiles/map.gpkg"},
            "tiles/map_probability.tif would lie among the tiles of tiles",
        ),
        (
            {"photo": "tiles/**/*.tif", "out": "tiles/map.gpkg"},
            r"tiles/map_probability.tif would lie among the tiles of tiles/\*\*/\*.tif",
        ),
        (
            {"photo": "*.tif", "dem": "dem.tif", "out": "maps/map.gpkg", "breached": "low.tif"},
            r"low.tif would lie among the tiles of \*.tif",
        ),
        ({"truth": "map.gpkg", "out": "map.gpkg"}, "map.gpkg is an input, which a map does not replace"),
        ({"dem": "a.tif", "breached": "a.tif", "overwrite": True}, "a.tif is an input"),
        ({"breached": "b.tif"}, "breached=b.tif is cut out of an elevation model: give dem"),
        ({"breached": "b.img", "dem": "dem.tif"}, "is a GeoTIFF: breached=b.tif"),
        ({"codes": {"Fclass": 1}}, r"codes has no Fclass; did you mean FClass\?"),
        ({"calibrate": "often"}, "calibrate must be auto or none"),
        ({"threshhold": 0.5}, "has no threshhold; it has"),
        ({"threshold": 1.5}, "threshold must be a number of at least 0.05 and below 1"),
        ({"stride_m": 50}, "give stride_m=12 or less"),
        (
            {"photo_bands": ["green", "blue", "nir"]},
            r"fed with red, and the rasters do not give red \(photo_bands",
        ),
        ({"onnx": "gone.onnx"}, "onnx=gone.onnx: no such file"),
    ],
)
def test_mistakes_are_said(values: dict[str, Any], says: str, world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError if "onnx" not in values else DxcError, match=says):
        _map(world, **{"out": tmp_path / "map.gpkg", **values})


def test_an_existing_map_is_not_replaced_unasked(world: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "map.gpkg"
    out.write_text("mine")
    with pytest.raises(
        ConfigError, match=r"exists already. Give another out=, or replace it with overwrite=true"
    ):
        _map(world, out)
    assert out.read_text() == "mine"
    _map(world, out, overwrite=True)
    assert len(_points(out)) == len(CROSSINGS)


def test_inputs_that_do_not_fit_are_said(world: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "map.gpkg"
    far = gpd.read_file(world["truth"]).translate(50_000)
    far.to_file(tmp_path / "far.gpkg")
    with pytest.raises(DataError, match="none of its 5 points lies on the ground of the rasters"):
        _map(world, out, truth=tmp_path / "far.gpkg")
    far_road = gpd.read_file(world["roads"]).to_crs(26915).translate(50_000)
    far_road.to_file(tmp_path / "far_road.gpkg")
    with pytest.raises(DataError, match="roads .*far_road.gpkg: no line lies on the ground of the rasters"):
        _map(world, out, roads=tmp_path / "far_road.gpkg")
    with rasterio.open(world["photo"]) as file:
        pixels, profile = file.read(), {**file.profile, "crs": None}
    with rasterio.open(tmp_path / "bare.tif", "w", **profile) as file:
        file.write(pixels)
    with pytest.raises(DataError, match=r"photo .*bare.tif: has no known CRS"):
        _map(world, out, photo=tmp_path / "bare.tif")
    coarse = write_network(tmp_path / "coarse.onnx", pixel_m=5.0)
    with pytest.raises(ConfigError, match="trained on pixels of 5 m"):
        _map(world, out, onnx=coarse)
    assert not out.exists()


def test_a_full_disk_is_said(world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_probabilities", full)
    with pytest.raises(DataError, match="the disk is full. Free some space and repeat the command"):
        _map(world, tmp_path / "map.gpkg")


@pytest.mark.long
@pytest.mark.parametrize("broken", ["write_probabilities", "write_layers", "breached"])
def test_the_same_command_goes_on_after_a_result_could_not_be_written(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    out, lowered = tmp_path / "map.gpkg", tmp_path / "new" / "lowered.tif"
    given = {"stride_m": 8, "dem": write_dem(tmp_path), "breached": lowered}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, broken, full)
        with pytest.raises(DataError, match="the disk is full. Free some space and repeat the command"):
            _map(world, out, **given)
    assert not out.exists() or broken == "breached"
    with monkeypatch.context() as patched:
        patched.setattr(module.Finder, "find", full)  # nothing is computed again
        report = _map(world, out, **given)
    assert report.crossings and lowered.exists() and not list(tmp_path.glob(".map*"))
    said = dict(report.said())
    assert said["flow"].startswith(
        "the runoff of 1 ha or more passes within 5 m of 0 of 5 points on the elevation model"
    )
    assert report.flow is not None and report.flow.after.ponded_m2 < report.flow.before.ponded_m2
    with pytest.raises(ConfigError, match=r"map.gpkg exists already"):
        _map(world, out, **given)


@pytest.mark.long
def test_an_evaluation_of_an_earlier_map_is_said(
    world: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _map(world, tmp_path / "map.gpkg", truth=world["truth"])
    _map(world, tmp_path / "map.gpkg", overwrite=True)
    assert "map_evaluation is of an earlier map" in caplog.text


@pytest.mark.long
def test_a_road_beside_the_rasters_has_a_corridor_on_them(world: dict[str, Path], tmp_path: Path) -> None:
    road = shapely.LineString([(WEST, NORTH + 5), (WEST + WIDTH, NORTH + 5)])
    gpd.GeoDataFrame(geometry=[road], crs=26915).to_file(tmp_path / "beside.gpkg")
    report = _map(world, tmp_path / "map.gpkg", roads=tmp_path / "beside.gpkg", corridor_m=15)
    area = gpd.read_file(tmp_path / "map.gpkg", layer="mapped_area")
    assert area["km2"].item() == pytest.approx(WIDTH * 10 / 1e6, rel=0.01) and report.windows


@pytest.mark.long
def test_elevations_in_feet_give_lines_in_metres(world: dict[str, Path], tmp_path: Path) -> None:
    metres = write_dem(tmp_path)
    feet = tmp_path / "feet"
    feet.mkdir()
    for tile in metres:
        with rasterio.open(tile) as file:
            pixels, profile = file.read(masked=True), file.profile
        with rasterio.open(feet / tile.name, "w", **profile) as file:
            file.write((pixels / 0.3048).filled(-9999).astype(np.float32))
    lines = {}
    for name, given in (("metres", {"dem": metres}), ("feet", {"dem": feet, "dem_units": "ft"})):
        out = tmp_path / f"{name}.gpkg"
        _map(world, out, stride_m=8, breached=tmp_path / f"{name}.tif", **given)
        frame = gpd.read_file(out, layer="breach_lines")
        lines[name] = shapely.get_coordinates(frame.geometry, include_z=True)
    assert len(lines["metres"]) >= 2 * len(CROSSINGS) - 2
    np.testing.assert_allclose(lines["feet"], lines["metres"], atol=0.01)
    lowered = [rasterio.open(tmp_path / f"{name}.tif").read(1, masked=True) for name in ("metres", "feet")]
    np.testing.assert_allclose(lowered[1] * 0.3048, lowered[0], atol=0.01)


def test_a_region_of_a_fit_has_units_and_bands_of_its_own(world: dict[str, Path], tmp_path: Path) -> None:
    dem = write_dem(tmp_path)
    settings = checked(MapSettings, {
        "onnx": world["onnx"], "photo": world["photo"], "dem": dem, "dem_units": "us-ft", "out": tmp_path / "a.gpkg",
        "photo_bands": ["red", "green", "blue"], "tracking": {"uri": "sqlite:///a.db"},
    })  # fmt: skip
    region = Fit(dem=dem[:1], photo=world["photo"], crossings=world["truth"])
    said = Metadata(channels=("dem", "red"), normalise="fixed", mean=(0, 0), std=(1, 255))
    units = [module._ground(settings, said, of).rasters[0].unit for of in (None, region)]
    assert units == ["US survey foot", "metre"]


def test_a_photo_of_another_type_than_the_training_is_refused(world: dict[str, Path]) -> None:
    ground = Ground(None, [world["photo"]], needed=["red"], photo_bands=["red", "green", "blue"])
    fixed = {"channels": ("red",), "normalise": "fixed", "mean": (0,)}
    module._check_photo(Metadata(**fixed, std=(255,)), ground)
    module._check_photo(Metadata(channels=("red",), normalise="per_chip"), ground)
    with pytest.raises(
        ConfigError, match=r"is uint8, and the network was trained on photos of uint16.*-ot UInt16"
    ):
        module._check_photo(Metadata(**fixed, std=(65535,)), ground)


def test_a_fit_on_the_mapped_ground_is_said(
    world: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy.tif"
    copy.write_bytes(world["photo"].read_bytes())
    settings = checked(MapSettings, {
        "onnx": world["onnx"], "photo": world["photo"], "out": tmp_path / "a.gpkg",
        "photo_bands": ["red", "green", "blue"], "tracking": {"uri": "sqlite:///a.db"}, "mode": "dense",
        "fit": {"photo": copy, "crossings": world["truth"]},
    })  # fmt: skip
    said = Metadata(channels=("red", "green", "blue"))
    ground = module._ground(settings, said)

    class Certain:
        def best_near(self, *_: Any) -> float:
            return 3.0

    assert module._fitted(settings, settings.fit[0], Certain(), said, ground) == pytest.approx(3)  # type: ignore[arg-type]
    assert "lies on the ground that is mapped" in caplog.text


def test_a_result_that_stood_there_before_is_not_replaced(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, raster = tmp_path / "map.gpkg", tmp_path / "map_probability.tif"

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_points", stopped)
        with pytest.raises(KeyboardInterrupt):
            _map(world, out)
    raster.write_text("of somebody else")
    with pytest.raises(ConfigError, match=r"map_probability.tif exists already"):
        _map(world, out)
    assert raster.read_text() == "of somebody else"


@pytest.mark.long
def test_a_map_of_another_command_is_not_replaced(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "map.gpkg"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_probabilities", full)
        with pytest.raises(DataError, match="the disk is full"):
            _map(world, out, stride_m=8)
    _map(world, out, stride_m=4)
    assert "holds an unfinished map with other settings" in caplog.text
    theirs = out.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        _map(world, out, stride_m=8)
    assert out.read_bytes() == theirs


def test_a_tile_that_was_cut_off_is_mapped_again(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "map.gpkg"
    with monkeypatch.context() as patched:
        patched.setattr(module, "calibration_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _map(world, out)
    (tile,) = tmp_path.glob(".map.partial-*/tile-0.npz")
    tile.write_bytes(tile.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"tile-0.npz is damaged. Repeat the command"):
        _map(world, out)
    assert _map(world, out).crossings
