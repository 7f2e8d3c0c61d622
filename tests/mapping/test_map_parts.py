"""Lattice, merging, dense pass, judging: by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin
from scipy.ndimage import maximum_filter, minimum_filter

from dxc.config.checked import checked
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import read_metadata
from dxc.errors import ConfigError, DataError
from dxc.mapping.certainty import calibration_of
from dxc.mapping.grid import Grid, stride_for
from dxc.mapping.ground import Ground, _nearest
from dxc.mapping.judging import Judged, judge
from dxc.mapping.merging import Merged, merge
from dxc.mapping.network import MapNetwork
from dxc.mapping.screen import MARGIN_M, Screen, dense_network, fitted_threshold
from dxc.mapping.settings import MapSettings
from dxc.models.resnet import ResNet
from dxc.models.sppnet import SppNet
from dxc.tracking.run import start_run
from tests.mapping.world import SIZE, SeesSpots, write_network


def test_windows_lie_on_multiples_of_the_stride_and_cover_the_area_once() -> None:
    area = shapely.box(1003, 2007, 1050, 2031)
    grid = Grid.over(area, stride=10, size=20)
    # centres at x = 10 c + 10.5 in 1003..1050, y = -10 r - 10.5 in 2007..2031
    assert (grid.column, grid.columns) == (100, 4)
    assert (grid.row, grid.rows) == (-204, 3)
    places = []
    for tile in grid.tiles(20):
        x, y = grid.centres(tile)
        places += [(cx, cy) for cy in y.tolist() for cx in x.tolist()]
    expected = [(x, y) for y in (2029.5, 2019.5, 2009.5) for x in (1010.5, 1020.5, 1030.5, 1040.5)]
    assert sorted(places) == sorted(expected)


@pytest.mark.parametrize(
    ("asked", "jitter", "stride"),
    [(None, 5.0, 10), (15, 5.0, 15), (None, None, 8), (12, None, 12), (None, 35.0, 50), (None, 0.0, 8)],
)
def test_stride_goes_with_the_jitter(asked: int | None, jitter: float | None, stride: int) -> None:
    assert stride_for(asked, jitter, 100) == stride


def test_a_stride_that_misses_crossings_is_refused_with_the_right_numbers() -> None:
    with pytest.raises(ConfigError, match=r"stride_m=50.*up to 25 m.*is 5 m; give stride_m=15 or less"):
        stride_for(50, 5.0, 100)


def test_a_cluster_of_windows_becomes_the_point_in_its_middle() -> None:
    x = np.array([0, 10, 20, 0, 10, 20, 100, 70.0])
    y = np.array([0, 0, 0, 10, 10, 10, 5, 5.0])
    p = np.array([0.9, 1, 0.9, 0.9, 1, 0.9, 0.7, 0.4])
    found = merge(x, y, p, apart_m=30, spread_m=15, least=0.5)
    np.testing.assert_allclose(np.column_stack(found), [[10, 5, 1], [100, 5, 0.7]], atol=1e-6)
    # order of the windows, as of tiles, does not matter
    turned = merge(x[::-1], y[::-1], p[::-1], apart_m=30, spread_m=15, least=0.5)
    np.testing.assert_allclose(np.column_stack(turned), np.column_stack(found), atol=1e-6)


def test_no_two_points_lie_closer_than_asked() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 300, (2, 500))
    found = merge(x, y, rng.uniform(0, 1, 500), apart_m=30, spread_m=10, least=0.5)
    away = np.hypot(found.x[:, None] - found.x, found.y[:, None] - found.y)
    np.fill_diagonal(away, np.inf)
    assert len(found.x) > 20
    assert away.min() > 15  # seeds lie 30 m apart, points are means within 10 m of them
    assert (np.diff(found.p) <= 0).all()


def test_a_window_that_two_tiles_looked_at_counts_once() -> None:
    x, y, p = np.array([0.0, 5.0]), np.zeros(2), np.array([0.8, 0.8])
    once = merge(x, y, p, apart_m=30, spread_m=10, least=0.5)
    twice = merge(np.append(x, 5), np.append(y, 0), np.append(p, 0.7), apart_m=30, spread_m=10, least=0.5)
    assert once.x.tolist() == twice.x.tolist() == [2.5]
    assert twice.p.tolist() == once.p.tolist()


def test_nothing_certain_gives_no_point() -> None:
    assert len(merge(np.zeros(2), np.zeros(2), np.full(2, 0.4), apart_m=30, spread_m=5, least=0.5).x) == 0


def test_less_certain_points_change_none_of_the_map() -> None:
    x, y = np.array([0, 10, 40, 45, 90.0]), np.zeros(5)
    p = np.array([0.9, 0.3, 0.3, 0.3, 0.2])
    alone = merge(x, y, p, apart_m=30, spread_m=12, least=0.5)
    more = merge(x, y, p, apart_m=30, spread_m=12, least=0.5, weakest=0.25)
    # 0.3 + 0.3 at 40 and 45 become one point; the window at 10 belongs to the first; 0.2 is too little
    np.testing.assert_allclose(np.column_stack(alone), [[2.5, 0, 0.9]], atol=1e-6)
    np.testing.assert_allclose(np.column_stack(more), [[2.5, 0, 0.9], [42.5, 0, 0.3]], atol=1e-6)


def test_outlines_are_squares_around_the_centres_of_windows() -> None:
    grid = Grid.over(shapely.box(1003, 2007, 1050, 2031), stride=10, size=20)
    (tile,) = grid.tiles(1000)
    cells = np.zeros((tile.rows, tile.columns), bool)
    assert grid.outlines(tile, cells) == []
    cells[1, 2:] = True  # centres at x = 1030.5 and 1040.5, y = 2019.5
    (outline,) = grid.outlines(tile, cells)
    assert outline.bounds == (1025.5, 2014.5, 1045.5, 2024.5)


def _judged(points: np.ndarray, truth: np.ndarray, p: list[float], edge: float = 400.0) -> Judged:
    area = shapely.box(-100, -100, edge, 100)
    road = shapely.LineString([(-100, 0), (edge, 0)])
    found = Merged(*points.T, np.array(p))
    return judge(found, truth, threshold=0.5, area=area, crs=CRS.from_epsg(26915), roads=[road])


def test_a_map_is_judged_by_its_points_from_the_threshold_on() -> None:
    points = np.array([[10, 0], [11, 1], [100, 0], [201, 0]])
    judged = _judged(points, np.array([[0, 0], [20, 0], [200, 0.0]]), [0.9, 0.8, 0.7, 0.4])
    metrics = judged.metrics(15)
    assert metrics["map_recall"] == metrics["map_precision"] == pytest.approx(2 / 3)
    assert metrics["false_alarms_per_km2"] == pytest.approx(1 / 0.1)
    # 15 a km2 are 1.5 in 0.1 km2: all points count; 5 a km2 allow none, so only those of 0.9 and 0.8 do
    assert metrics["map_recall_at_false_alarms"] == 1
    assert judged.metrics(5)["map_recall_at_false_alarms"] == pytest.approx(2 / 3)
    assert metrics["false_alarms_per_road_km"] == pytest.approx(1 / 0.5)
    assert judged.score.curve["recall"].iloc[-1] == 1  # the point of 0.4 finds the third crossing
    assert sorted(judged.places()["kind"]) == ["false alarm", "hit", "hit", "missed"]
    curve = judged.reliability()
    assert curve["share"].tolist() == [1, 0, 1, 1] and curve["probability"].tolist() == [0.4, 0.7, 0.8, 0.9]
    said = dict(judged.lines())
    assert said["found"] == "2 of 3 true crossings have a point within 15 m: recall 0.67"
    assert said["right"] == "2 of 3 points are true crossings: precision 0.67"
    assert said["false alarms"] == "10.00 a km2 of 0.10 km2, 2.00 a km of road"
    assert said["intervals"].startswith("none: only 1 square of 500 m; a bootstrap needs 5 or more")
    assert judged.flow is None and "flow" not in said


def test_intervals_are_drawn_over_squares_where_there_is_no_elevation_model() -> None:
    truth = np.column_stack([np.arange(10) * 500.0, np.zeros(10)])
    points = truth[:8]
    judged = _judged(points, truth, [0.9] * 8, edge=4900.0)
    recall = judged.score.main.recall
    assert recall.value == 0.8 and recall.low < 0.75 and recall.high == 1
    assert dict(judged.lines())["in brackets"] == "95 % bootstrap intervals over 10 squares of 500 m"


# ---------------------------------------------------------------------------------------- probabilities


def _network(run_id: str | None) -> MapNetwork:
    return MapNetwork(Path("model.onnx"), "ab", run_id, "first", "run")


@pytest.mark.long
def test_probabilities_are_those_of_chips_that_were_held_out(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = checked(MapSettings, {"run": "a", "dem": "dem.tif", "out": "a.gpkg", "tracking": {"uri": uri}})
    (tmp_path / "files").mkdir()
    p = np.repeat([0.01, 0.999], 600)
    label = np.repeat([0, 1, 0], [600, 360, 240])  # of those that seem sure, six of ten are crossings
    pd.DataFrame({"probability": p, "label": label}).to_parquet(tmp_path / "files" / "predictions.parquet")
    with start_run(uri, study="first", name="one", params={}, tags={"dxc.kind": "trial"}) as run:
        run.log_files(tmp_path / "files")
    with start_run(uri, study="first", name="bare", params={}, tags={"dxc.kind": "trial"}) as bare:
        pass
    found, words = calibration_of(settings, _network(run.run_id))
    np.testing.assert_allclose(found([0.01, 0.999, 1.0]), [0, 0.6, 0.6], atol=1e-9)
    assert words.startswith("calibrated (isotonic) on 1,200 out-of-fold predictions of run")
    assert (
        "error on these 0.204 before, 0.000 after" in words
        and "where 30% of windows show a crossing" in words
    )
    found, words = calibration_of(settings, _network(bare.run_id))
    assert found.method == "none" and f"run {bare.run_id} has no predictions.parquet" in words
    found, words = calibration_of(settings, _network(None))
    assert found.method == "none" and "give run=RUN_ID" in words
    off = settings.model_copy(update={"calibrate": "none"})
    assert calibration_of(off, _network(run.run_id))[0].method == "none"


# ------------------------------------------------------------------------------------------- ground


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[:, 9:12], np.s_[5:8, :]])
@pytest.mark.parametrize("crs", ["EPSG:26915", "EPSG:26914", "turned"])
def test_a_glance_at_a_lattice_finds_the_data_that_reading_finds(
    crs: str, part: tuple[slice, slice], tmp_path: Path
) -> None:
    """crs is that of the raster, which may be turned by 90 degrees; the map is in EPSG:26915."""
    place = {
        "EPSG:26915": from_origin(500_000, 4_600_000, 0.7, 0.7),
        "EPSG:26914": from_origin(900_000, 4_600_000, 1, 1),
        "turned": Affine(0, 1, 500_000, -1, 0, 4_600_000),
    }[crs]
    profile = {
        "driver": "GTiff",
        "count": 1,
        "height": 300,
        "width": 400,
        "dtype": "float32",
        "nodata": -9999,
    }
    profile |= {"crs": "EPSG:26915" if crs == "turned" else crs, "transform": place}
    pixels = np.full((300, 400), 50, np.float32)
    pixels[60:140, 100:300] = -9999
    with rasterio.open(tmp_path / "dem.tif", "w", **profile) as file:
        file.write(pixels, 1)
    ground = Ground([tmp_path / "dem.tif"], None, needed=["dem"], photo_bands=["red"], crs="EPSG:26915")
    west, south, east, north = (round(each) for each in ground.area.bounds)
    x, y = west - 19.5 + 8 * np.arange((east - west) // 8), north + 19.5 - 8 * np.arange((north - south) // 8)
    with ground:
        _, valid = ground.read(west - 20, north + 20, east - west + 40, north - south + 40)
        seen = ground.has_data(x[part[1]], y[part[0]])
    read = valid[::8, ::8][: len(y), : len(x)]
    # it does not resample: they may differ at the border of the data
    inner = (minimum_filter(read, 3) | ~maximum_filter(read, 3))[part]
    assert inner.mean() > 0.4 and 0 < read[part].mean() < 1 and (seen == read[part])[inner].all()


@pytest.mark.parametrize("hole", [False, True])
def test_pixels_without_data_repeat_the_nearest_that_has(hole: bool) -> None:
    """Columns 2 to 6 of rows 1 to 4 have data. The nearest pixel is found by hand, with all distances."""
    valid = np.zeros((7, 9), bool)
    valid[1:5, 2:7] = True
    if hole:
        valid[2, 3] = False
    rows, columns = np.indices(valid.shape)
    found = np.broadcast_arrays(*_nearest(valid))
    assert valid[tuple(found)].all()
    there = np.argwhere(valid)
    least = np.hypot(rows[..., None] - there[:, 0], columns[..., None] - there[:, 1]).min(axis=2)
    np.testing.assert_allclose(np.hypot(rows - found[0], columns - found[1]), least)


# ------------------------------------------------------------------------------------------- dense pass


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("dense") / "resnet.onnx", ResNet(1, width=4))


def test_dense_network_of_one_chip_answers_like_the_network(resnet: Path) -> None:
    model = onnx.load(resnet)
    dense, stride = dense_network(model, SIZE, resnet)
    onnx.checker.check_model(dense)
    image = np.random.default_rng(0).random((1, 1, SIZE, SIZE), dtype=np.float32)
    answers = [
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, {"image": image})[0].ravel()
        for each in (model, dense)
    ]
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5)
    assert stride == 16


def test_dense_answers_do_not_depend_on_the_rectangle(resnet: Path) -> None:
    """The same ground in two rectangles with margins gives the same answers on one lattice of the CRS."""
    metadata = read_metadata(onnx.load(resnet), resnet)
    screen = Screen(resnet, metadata, SIZE, provider="cpu", threads=1)
    ground = np.random.default_rng(1).integers(0, 255, (700, 700), dtype=np.uint8)

    def answers(left: int, top: int, width: int, height: int) -> tuple[np.ndarray, int, int]:
        west, north, east, south = screen.margins(left, top, width, height)
        assert min(west, north, east, south) >= MARGIN_M
        row, column = -(top + north), left - west
        assert row % 16 == column % 16 == 0
        part = ground[row : row + north + height + south, column : column + west + width + east]
        return screen.log_odds({"red": part}), row, column

    one, row, column = answers(200, -210, 120, 90)
    other, row2, column2 = answers(233, -247, 150, 100)
    down, right = (row2 - row) // 16, (column2 - column) // 16
    inner = np.s_[7:9, 7:9]
    shifted = np.s_[7 + down : 9 + down, 7 + right : 9 + right]
    np.testing.assert_allclose(other[inner], one[shifted], atol=1e-4)


def test_windows_pass_within_a_stride_of_an_answer(resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(resnet, read_metadata(onnx.load(resnet), resnet), SIZE, provider="cpu", threads=1)
    odds = np.full((6, 6), -9.0)
    odds[2, 3] = 1.0
    monkeypatch.setattr(screen, "log_odds", lambda bands: odds)
    screen.threshold = 0.0
    half = SIZE // 2 + 0.5
    # the answer stands for the window whose centre is at x = 3 x 16 + half, y = -(2 x 16 + half)
    x = 48 + half + np.array([-16, -15, 0, 15, 16])
    y = -(32 + half) + np.array([16, 10, 0, -17])
    expected = np.zeros((4, 5), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(screen.passes({}, 0, 0, x, y), expected)


def test_threshold_keeps_the_asked_share_of_training_crossings() -> None:
    best = np.arange(100.0)
    assert fitted_threshold(best, 0.9, 0) == 10  # 90 of 100 are 10 or more
    assert fitted_threshold(best, 0.995, 0) == 0
    # the median is 49.5
    assert fitted_threshold(best, 0.9, 0.5) == 10 - 0.5 * 39.5
    assert fitted_threshold(best, 0.1, 0.5) == 90  # above the median: never raised
    with pytest.raises(DataError, match="no crossing lies"):
        fitted_threshold(np.zeros(0), 0.9, 0.5)


@pytest.mark.parametrize("normalise", ["per_chip", "per_column"])
def test_a_normalisation_of_chips_is_refused_with_what_to_do(normalise: str, tmp_path: Path) -> None:
    path = write_network(tmp_path / "chip.onnx", ResNet(1, width=4), normalise=normalise)
    with pytest.raises(ConfigError, match=rf"normalise={normalise}.*mode=chips.*data.normalise=fixed"):
        Screen(path, read_metadata(onnx.load(path), path), SIZE, provider="cpu", threads=1)


def test_networks_that_cannot_slide_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    for model in (SeesSpots(), SppNet(1, level=2, features=8)):
        export_onnx(model, path, in_channels=1, size=SIZE)
        with pytest.raises(
            ConfigError, match=r"cannot slide over a tile. Without fit and screen_logit, give mode=chips"
        ):
            dense_network(onnx.load(path), SIZE, path)
