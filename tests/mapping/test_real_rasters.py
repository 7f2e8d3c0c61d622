"""Maps of real rasters: they run through, and what they say of a place is what the network says of its pixels."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch

from dxc.config.checked import checked
from dxc.data.bands import LOCAL_MEAN_SIGMA, fixed_constants
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import Metadata
from dxc.deploy.predictor import Predictor
from dxc.mapping.run import make_map
from dxc.mapping.settings import MapSettings
from tests.geo.surveys import RASTERS

SIZE, STRIDE = 40, 10
CHANNELS = ("dem", "red")

pytestmark = pytest.mark.skipif(
    not (RASTERS / "fortbragg_dem_1m.tif").exists(), reason="no real GeoTIFFs here; DXC_RASTERS says where"
)


class MiddlePixel(torch.nn.Module):
    """Says what the pixel in the middle of its window holds: a neighbour's answer is another."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        there = 2 * image[:, 0, SIZE // 2, SIZE // 2] + 4 * image[:, 1, SIZE // 2, SIZE // 2] - 2
        return torch.stack([torch.zeros_like(there), there], dim=1)


@pytest.mark.long
def test_a_map_of_lidar_and_naip_lies_where_its_pixels_do(tmp_path: Path) -> None:
    dem, photo = RASTERS / "fortbragg_dem_1m.tif", RASTERS / "fortbragg_naip_rgb_1m.tif"
    said = Metadata(
        channels=CHANNELS,
        normalise="fixed",
        local_mean_sigma=LOCAL_MEAN_SIGMA,
        jitter_m=5.0,
        pixel_m=1.0,
        **fixed_constants(CHANNELS, "uint8"),
    )
    network, out = tmp_path / "network.onnx", tmp_path / "map.gpkg"
    export_onnx(MiddlePixel(), network, in_channels=2, size=SIZE, metadata=said)
    settings = {
        "onnx": network, "dem": dem, "photo": photo, "photo_bands": ["red", "green", "blue"], "out": out,
        "breached": tmp_path / "breached.tif", "every_window": True, "stride_m": STRIDE, "refine": False,
        "progress": False, "threads": 1, "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }  # fmt: skip
    report = make_map(checked(MapSettings, settings))
    with rasterio.open(report.raster) as file, rasterio.open(dem) as heights, rasterio.open(photo) as colours:
        assert file.crs == heights.crs and report.km2 == pytest.approx(0.45**2, rel=1e-3)
        raw = {"dem": heights.read(1), **dict(zip(("red", "green", "blue"), colours.read(), strict=True))}
        inner = SIZE // 2 + 1
        places = [
            (file.xy(*cell), heights.index(*file.xy(*cell)), file.read(1)[tuple(cell)] / 255)
            for cell in np.argwhere(file.read_masks(1) > 0)
        ]
    whole = [each for each in places if inner <= min(each[1]) and max(each[1]) < 450 - inner]
    assert len(whole) > 1500

    def answers(down: int, right: int) -> np.ndarray:
        corners = [(row - SIZE // 2 + down, column - SIZE // 2 + right) for _, (row, column), _ in whole]
        windows = {
            name: np.stack([band[r : r + SIZE, c : c + SIZE] for r, c in corners])
            for name, band in raw.items()
        }
        return Predictor(network).predict(windows).presence

    mapped = np.array([p for _, _, p in whole])
    np.testing.assert_allclose(mapped, answers(0, 0), atol=0.6 / 255)
    for step in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        assert np.abs(mapped - answers(*step)).mean() > 3 / 255  # a pixel beside it would not do
    points = gpd.read_file(out, layer="crossings")
    assert len(points) == report.crossings > 0
    with rasterio.open(dem) as heights:
        at = np.array(
            [each[0] for each in heights.sample(zip(points.geometry.x, points.geometry.y, strict=True))]
        )
    np.testing.assert_allclose(points.geometry.z, at, atol=1e-3)
    with rasterio.open(tmp_path / "breached.tif") as lowered, rasterio.open(dem) as heights:
        assert lowered.transform == heights.transform and lowered.crs == heights.crs
        assert (lowered.read(1) <= heights.read(1)).all()


def test_a_photo_of_5_m_pixels_with_no_data_runs_through(tmp_path: Path) -> None:
    photo = RASTERS / "northdakota_naip_rgbn_5m.tif"
    said = Metadata(
        channels=("nir", "red"),
        normalise="fixed",
        jitter_m=5.0,
        pixel_m=1.0,
        **fixed_constants(("nir", "red"), "uint8"),
    )
    network = tmp_path / "network.onnx"
    export_onnx(MiddlePixel(), network, in_channels=2, size=SIZE, metadata=said)
    with rasterio.open(photo) as file:
        window = rasterio.windows.Window(0, 0, 120, 100)
        profile = {**file.profile, "width": 120, "height": 100, "transform": file.window_transform(window)}
        pixels = file.read(window=window)
    with rasterio.open(tmp_path / "part.tif", "w", **profile) as file:
        file.write(pixels)
    settings = {
        "onnx": network, "photo": tmp_path / "part.tif", "out": tmp_path / "map.gpkg", "stride_m": STRIDE,
        "progress": False, "threads": 1, "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }  # fmt: skip
    report = make_map(checked(MapSettings, settings))
    covered = (pixels != 0).any(axis=0).mean() * 0.6 * 0.5
    assert report.km2 == pytest.approx(covered, abs=0.005) and report.lines.startswith("none")
