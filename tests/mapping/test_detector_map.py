"""Maps of detectors: boxes are merged, and their centres are the points."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from torch import nn

from dxc.config.checked import checked
from dxc.mapping.run import MapReport, make_map
from dxc.mapping.settings import MapSettings
from dxc.models.sppnet import SppNet
from tests.mapping.world import CROSSINGS, HEIGHT, NORTH, SIZE, WEST, WIDTH, write_network, write_world

JITTER = 11.0


class BoxesSpots(nn.Module):
    """Sees a bright spot of 5 x 5 pixels that lies in the image as a whole, and says where its centre is.

    Without a spot, its box lies in the upper left corner.
    """

    output_names = ("presence", "box")

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bright = torch.relu(image[:, 0] - 0.5)  # 0.5 in a spot, else 0
        total = bright.sum(dim=(1, 2))
        place = torch.arange(SIZE) + 0.5
        cx = (bright.sum(dim=1) * place).sum(dim=1) / (total + 1e-6) / SIZE
        cy = (bright.sum(dim=2) * place).sum(dim=1) / (total + 1e-6) / SIZE
        edge = torch.full_like(cx, 5 / SIZE)
        return 4 * total - 46, torch.stack([cx, cy, edge, edge], dim=1)  # 4 of a whole spot, -4 of 21 pixels


class BoxesEverything(nn.Module):
    """Sees something in every image, beyond its upper left corner."""

    output_names = ("presence", "box")

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        there = image[:, 0].mean(dim=(1, 2)) * 0 + 5
        corner = torch.stack([there * 0 + 0.01, there * 0 + 0.01, there * 0 + 0.1, there * 0 + 0.1], dim=1)
        return there, corner


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_world(tmp_path_factory.mktemp("world"))


def _map(
    world: dict[str, Path], model: nn.Module, out: Path, **values: object
) -> tuple[MapReport, gpd.GeoDataFrame]:
    onnx = write_network(out.with_suffix(".onnx"), model, jitter_m=JITTER)
    report = make_map(
        checked(MapSettings, {
            "onnx": onnx, "photo": world["photo"], "photo_bands": ["red", "green", "blue"], "out": out,
            "progress": False, "threads": 1, "log": False,
            "tracking": {"uri": f"sqlite:///{out.parent}/mlflow.db"}, **values,
        })
    )  # fmt: skip
    return report, gpd.read_file(out, layer="crossings")


@pytest.mark.long
@pytest.mark.parametrize("tile_m", [70, 1000])
def test_points_lie_where_the_boxes_are(world: dict[str, Path], tmp_path: Path, tile_m: int) -> None:
    """Each crossing is seen by windows up to 13 m away, of several tiles; its point lies in the middle of its spot."""
    report, points = _map(world, BoxesSpots(), tmp_path / "map.gpkg", truth=world["truth"], tile_m=tile_m)
    assert report.stride_m == SIZE // 2  # of twice the jitter, and half a window
    true = np.array(CROSSINGS) + 0.5  # columns and rows of the middles of spots
    expected = np.column_stack([WEST + true[:, 0], NORTH - true[:, 1]])
    found = np.column_stack([points.geometry.x, points.geometry.y])
    assert len(found) == len(CROSSINGS)
    np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], atol=0.01)
    np.testing.assert_allclose(points["probability"], 1 / (1 + np.exp(-4)), atol=1e-4)
    assert report.judged is not None
    main = {each.within_m: each for each in report.judged.score.at}[5]
    assert (main.recall.value, main.precision.value) == (1, 1)


def test_boxes_of_one_crossing_become_one_point(world: dict[str, Path], tmp_path: Path) -> None:
    _, points = _map(world, BoxesSpots(), tmp_path / "map.gpkg", stride_m=3)
    assert len(points) == len(CROSSINGS)


def test_no_point_lies_beyond_the_ground(world: dict[str, Path], tmp_path: Path) -> None:
    """Windows at the edge show ground beyond it, and a box may lie there."""
    _, points = _map(world, BoxesEverything(), tmp_path / "map.gpkg", merge_m=20)
    area = shapely.box(WEST, NORTH - HEIGHT, WEST + WIDTH, NORTH)
    assert len(points) > 20
    assert shapely.contains_xy(area, points.geometry.x, points.geometry.y).all()


def test_a_detector_that_dxc_trains_maps(world: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    report, points = _map(
        world,
        SppNet(1, features=128),
        tmp_path / "map.gpkg",
        threshold=0.06,
        truth=world["truth"],
        merge_m=30,
    )
    assert report.windows > 50
    found = np.column_stack([points.geometry.x, points.geometry.y])
    assert report.crossings == len(found) > 1
    away = np.hypot(*(found[:, None] - found[None]).transpose(2, 0, 1))[~np.eye(len(found), dtype=bool)]
    assert away.min() > 15
    assert report.judged is not None and report.judged.score.predicted == len(found)


class LosesItself(BoxesSpots):
    """Answers no number for windows without a spot."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        presence, box = super().forward(image)
        dark = image[:, 0].amax(dim=(1, 2)) < 0.1
        return torch.where(dark, torch.log(presence * 0 - 1), presence), box


def test_windows_without_an_answer_have_no_point(world: dict[str, Path], tmp_path: Path) -> None:
    _, whole = _map(world, BoxesSpots(), tmp_path / "whole.gpkg")
    _, points = _map(world, LosesItself(), tmp_path / "map.gpkg")
    assert len(points) == len(whole) == len(CROSSINGS)
