"""A band that is marked as alpha is a mask if it looks like one, and near infrared if it does not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from dxc.errors import DataError
from dxc.geo import photobands
from dxc.geo.chips import cut_region
from dxc.geo.photobands import PhotoBands, choose_bands
from tests.geo.surveys import chip, photo, survey, under, write_raster

RGB = ["red", "green", "blue"]
RGBN = [*RGB, "nir"]
COLLAR = 200  # first transparent column: the second crossing's chip lies beyond


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return survey(tmp_path)


def rgba(opaque: int = 255, dtype: type = np.uint8) -> np.ndarray:
    pixels = photo().astype(dtype)
    pixels[3] = opaque
    pixels[:3, :, COLLAR:], pixels[3, :, COLLAR:] = 255, 0
    return pixels


def reasons(report: Any) -> dict[int, str]:
    return {point.id: point.reason for point in report.left_out}


ALPHA = {"photometric": "rgb", "alpha": "yes"}


def test_an_alpha_of_0_and_255_is_not_near_infrared(job: dict[str, Any]) -> None:
    write_raster(job["photo"], rgba(), **ALPHA)
    with pytest.raises(
        DataError, match=r"band 4 is a mask .*0 \(33\.3%\) and 255.*photo_bands=\[red,green,blue\]"
    ):
        cut_region(**job)
    assert not job["out"].exists()


@pytest.mark.parametrize(("opaque", "dtype"), [(255, np.uint8), (255, np.uint16), (65535, np.uint16)])
def test_its_transparent_pixels_are_without_data(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture, opaque: int, dtype: type
) -> None:
    write_raster(job["photo"], rgba(opaque, dtype), **ALPHA)
    with caplog.at_level(logging.INFO):
        report = cut_region(**job, photo_bands=RGB)
    assert reasons(report) == {2: "photo without data in the chip"}
    assert chip(report.folder, "Aer", 1).shape[0] == 3
    np.testing.assert_array_equal(chip(report.folder, "Aer", 1), under(rgba(opaque, dtype)[:3], 1))
    with rasterio.open(report.folder / "AAer" / "T" / "A_T_00001.tif") as file:
        assert file.descriptions == tuple(RGB)
    assert f"Band 4 of the photo is its mask (it holds only 0 (33.3%) and {opaque})" in caplog.text
    for path in report.folder.glob("AAer/F/*.tif"):  # none of the collar, which is white, in any chip
        with rasterio.open(path) as file:
            assert file.bounds.right <= 500_000 + COLLAR


def test_the_mask_is_warped_with_the_photo(job: dict[str, Any]) -> None:
    """Also on another grid, one transparent pixel spoils a chip."""
    pixels = photo()
    pixels[3] = 255
    pixels[3, 240, 150] = 0
    write_raster(job["photo"], pixels, left=500_000.5, **ALPHA)
    assert reasons(cut_region(**job, photo_bands=RGB)) == {3: "photo without data in the chip"}


def test_a_fifth_band_may_be_the_mask(job: dict[str, Any]) -> None:
    """Near infrared and a mask, as from warping a photo with an alpha band."""
    pixels = np.concatenate([photo(), rgba()[3:]])
    write_raster(job["photo"], pixels, photometric="minisblack")
    with rasterio.open(job["photo"], "r+") as file:
        file.colorinterp = [*file.colorinterp[:4], ColorInterp.alpha]
    report = cut_region(**job)
    assert reasons(report) == {2: "photo without data in the chip"}
    np.testing.assert_array_equal(chip(report.folder, "Aer", 1), under(photo(), 1))


def test_near_infrared_that_is_marked_as_alpha_is_data(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pixels = photo()
    pixels[3, 75:85, 235:245] = 0  # water
    write_raster(job["photo"], pixels, **ALPHA)
    with caplog.at_level(logging.INFO):
        report = cut_region(**job)
    assert report.positives == 3
    np.testing.assert_array_equal(chip(report.folder, "Aer", 2), under(pixels, 2))
    assert "Band 4 of the photo is marked as alpha but holds 255 different values up to 254" in caplog.text


def test_the_band_beside_three_colours_is_near_infrared(job: dict[str, Any]) -> None:
    """A band without a name: in a file of blue, green and red, the order does not count."""
    with rasterio.open(job["photo"], "r+") as file:
        file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    report = cut_region(**job, photo_bands=["nir", "red", "green"])
    np.testing.assert_array_equal(chip(report.folder, "Aer", 1), under(photo()[[3, 2, 1]], 1))


@pytest.mark.parametrize("profile", [ALPHA, {"photometric": "minisblack"}])
def test_three_bands_of_four(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture, profile: dict[str, str]
) -> None:
    """Bands are chosen by the colours in the file (rgb), or by the customary order if it has none."""
    write_raster(job["photo"], photo(), **profile)
    with caplog.at_level(logging.INFO):
        report = cut_region(**job, photo_bands=RGB)
    np.testing.assert_array_equal(chip(report.folder, "Aer", 1), under(photo()[:3], 1))
    assert "Bands 1, 2, 3 of the photo are taken as red, green, blue" in caplog.text
    report = cut_region(**job, photo_bands=["nir", "red", "green"], overwrite=True)
    np.testing.assert_array_equal(chip(report.folder, "Aer", 1), under(photo()[[3, 0, 1]], 1))


def test_names_in_the_file_come_before_the_customary_order(job: dict[str, Any]) -> None:
    with rasterio.open(job["photo"], "r+") as file:
        file.descriptions = ("Blue", "Green", "Red", "Near Infrared")
    report = cut_region(**job, photo_bands=["red", "nir"])
    np.testing.assert_array_equal(chip(report.folder, "Aer", 1), under(photo()[[2, 3]], 1))


def test_names_that_cannot_be_told_are_an_error(job: dict[str, Any]) -> None:
    with rasterio.open(job["photo"], "r+") as file:
        file.descriptions = ("coastal", "blue", "green", "red")
    with pytest.raises(DataError, match=r"has 4 bands, but photo_bands=\[red,nir\] names 2"):
        cut_region(**job, photo_bands=["red", "nir"])


def test_a_band_that_looks_like_a_mask_but_is_not_marked_is_warned_of(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    write_raster(job["photo"], rgba(), photometric="minisblack")
    assert cut_region(**job).positives == 3
    assert "Band 4 of the photo is taken for nir, but holds only 0 (33.3%) and 255" in caplog.text


# ------------------------------------------------------------------------------------- large photos


def decide(path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[PhotoBands | str, int]:
    """The decision for RGB, and the number of pixels of the alpha band that were read."""
    write_raster(path, pixels, **ALPHA)
    looked = 0
    count = photobands._count

    def counting(path: Path, source: Any, band: int, window: Window, counts: dict[int, int]) -> None:
        nonlocal looked
        looked += window.width * window.height
        count(path, source, band, window, counts)

    monkeypatch.setattr(photobands, "_count", counting)
    with rasterio.open(path) as source:
        found = choose_bands(path, source, RGB)
    monkeypatch.undo()
    return found, looked


def test_a_large_photo_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 64 x 64 all over the photo decide. Half transparent pixels along an edge do not rule out a mask."""
    edge = 1200
    pixels = np.full((4, edge, edge), 100, np.uint8)
    pixels[3] = 255
    pixels[3, :, 500:] = 0
    pixels[3, :, 500] = 128  # in the window from 487 to 551
    found, looked = decide(tmp_path / "mask.tif", pixels, monkeypatch)
    assert (found, looked) == (PhotoBands((1, 2, 3), mask=4, opaque=255), 64 * 64 * 64)
    pixels[3] = np.random.default_rng(3).integers(0, 256, (edge, edge))
    assert decide(tmp_path / "nir.tif", pixels, monkeypatch) == (PhotoBands((1, 2, 3)), 64 * 64 * 64)


def test_a_photo_in_a_corner_of_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all windows are transparent, the search goes on."""
    edge = 1200
    pixels = np.zeros((4, edge, edge), np.uint8)
    pixels[3, 80:150, 80:150] = 255  # between the windows
    found, looked = decide(tmp_path / "island.tif", pixels, monkeypatch)
    assert found == PhotoBands((1, 2, 3), mask=4, opaque=255)
    assert 64 * 64 * 64 < looked < edge * edge
