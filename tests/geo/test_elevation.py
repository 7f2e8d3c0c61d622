"""Elevations in chips are metres, whatever the DEM stores them in; fill values never become ground."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from dxc.errors import ConfigError, DataError
from dxc.geo.chips import cut_region
from dxc.geo.elevation import METRES, known_unit
from tests.geo.surveys import CRS, EDGE, LEFT, TOP, chip, heights, survey, under, write_raster


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return survey(tmp_path)


def rewrite(job: dict[str, Any], pixels: np.ndarray, *, unit: str | None = None, **options: Any) -> None:
    scale, offset = options.pop("scale", 1.0), options.pop("offset", 0.0)
    write_raster(job["dem"], pixels, **options)
    with rasterio.open(job["dem"], "r+") as dem:
        dem.scales, dem.offsets = (scale,), (offset,)
        if unit is not None:
            dem.units = (unit,)


def reasons(report: Any) -> dict[int, str]:
    return {point.id: point.reason for point in report.left_out}


# ----------------------------------------------------------------------------------- scale and fills


def test_millimetres_as_whole_numbers_are_elevations_once_scaled(job: dict[str, Any]) -> None:
    """1,609 m are 1,609,000 mm. Taken as metres, this is more than any elevation."""
    millimetres = np.round((heights() + 1309) * 1000).astype(np.int32)
    rewrite(job, millimetres, scale=0.001, nodata=-(2**31), unit="m")
    report = cut_region(**job)
    assert report.positives == 3
    for number in (1, 2, 3):
        pixels = chip(report.folder, "DEM", number)[0]
        np.testing.assert_allclose(pixels, under(millimetres, number) / 1000, rtol=1e-7)
        assert abs(pixels.mean() - 1609) < 5


def test_an_offset_counts_before_the_limits(job: dict[str, Any]) -> None:
    """Below zero in the file, 300 m on the ground."""
    stored = np.full((EDGE, EDGE), -20_000, np.int32)
    rewrite(job, stored, scale=0.5, offset=10_300.0)
    assert (chip(cut_region(**job).folder, "DEM", 1) == 300).all()


def test_fill_values_that_nobody_declared_stay_out(job: dict[str, Any]) -> None:
    for fill, dtype, scale in ((-9999, "float32", 1), (3.4e38, "float32", 10), (-32768, "int16", 0.1)):
        stored = np.round(heights()).astype(dtype)
        stored[60, 60] = fill
        rewrite(job, stored, scale=scale)
        assert reasons(cut_region(**job, overwrite=True)) == {1: "DEM without data in the chip"}


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_scale_that_gives_no_elevations_is_an_error(job: dict[str, Any], scale: float) -> None:
    rewrite(job, heights(), scale=scale)
    with pytest.raises(DataError, match="has a scale of .*which give no elevations"):
        cut_region(**job)


# --------------------------------------------------------------------------------------------- units

FOOT, SURVEY_FOOT = 0.3048, 1200 / 3937
BY_BAND = [
    ("US survey foot", SURVEY_FOOT), ("us-ft", SURVEY_FOOT), ("Foot_US", SURVEY_FOOT), ("US Survey Feet", SURVEY_FOOT),
    ("ft", FOOT), ("feet", FOOT), ("foot", FOOT), ("m", 1.0), ("metre", 1.0), ("Meters", 1.0), (None, 1.0),
]  # fmt: skip
BY_CRS = [(f"{CRS}+5703", 1.0), (f"{CRS}+6360", SURVEY_FOOT), (f"{CRS}+8228", FOOT)]


@pytest.mark.parametrize(("unit", "metres"), BY_BAND)
def test_the_unit_of_the_band(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture, unit: str | None, metres: float
) -> None:
    rewrite(job, heights(), unit=unit)
    with caplog.at_level(logging.INFO):
        report = cut_region(**job)
    expected = under(heights(), 1).astype(float) * metres
    np.testing.assert_allclose(chip(report.folder, "DEM", 1)[0], expected, rtol=1e-7)
    name = {FOOT: "feet", SURVEY_FOOT: "US survey feet"}.get(metres)
    assert (f"elevations are in {name} (from its band) and become metres" in caplog.text) == (
        name is not None
    )
    assert ("elevations are in" in caplog.text) == (name is not None)


@pytest.mark.parametrize(("crs", "metres"), BY_CRS)
def test_the_unit_of_the_vertical_crs(job: dict[str, Any], crs: str, metres: float) -> None:
    rewrite(job, heights(), crs=crs)
    report = cut_region(**job)
    assert report.crs == CRS
    expected = under(heights(), 1).astype(float) * metres
    np.testing.assert_allclose(chip(report.folder, "DEM", 1)[0], expected, rtol=1e-7)


def test_the_two_feet_are_exact(job: dict[str, Any]) -> None:
    rewrite(job, np.full((EDGE, EDGE), 3937.0))
    for key, metres in (("us-ft", 1200.0), ("ft", 1199.9976), ("m", 3937.0)):
        pixels = chip(cut_region(**job, dem_units=key, overwrite=True).folder, "DEM", 1)
        np.testing.assert_array_equal(pixels, np.float32(metres))


def test_the_key_overrides_the_file(job: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    rewrite(job, np.full((EDGE, EDGE), 1000.0), crs=f"{CRS}+6360", unit="yard")
    with caplog.at_level(logging.INFO):
        report = cut_region(**job, dem_units="feet")
    np.testing.assert_array_equal(chip(report.folder, "DEM", 1), np.float32(304.8))
    assert "in feet (dem_units)" in caplog.text


def test_units_that_are_not_known_or_disagree_name_the_key(job: dict[str, Any]) -> None:
    rewrite(job, heights(), unit="yard")
    with pytest.raises(
        DataError,
        match=r"its band says that its elevations are in 'yard', an unknown unit.*dem_units=m, ft or us-ft",
    ):
        cut_region(**job)
    rewrite(job, heights(), crs=f"{CRS}+6360", unit="m")
    with pytest.raises(
        DataError, match=r"its CRS says .* in US survey feet, and its band in metres.*dem_units="
    ):
        cut_region(**job)
    with pytest.raises(ConfigError, match="dem_units=yard is not a known unit"):
        cut_region(**job, dem_units="yard")
    assert not job["out"].exists()


def test_of_two_kinds_of_feet_the_crs_decides(job: dict[str, Any]) -> None:
    rewrite(job, np.full((EDGE, EDGE), 3937.0), crs=f"{CRS}+6360", unit="ft")
    np.testing.assert_array_equal(chip(cut_region(**job).folder, "DEM", 1), np.float32(1200))


def test_fill_values_in_feet(job: dict[str, Any]) -> None:
    """An undeclared -9999 ft would be 3,048 m below the sea. Death Valley and Denver in feet are ground."""
    feet = np.full((EDGE, EDGE), 5280, np.float32)
    feet[60, 60], feet[80, 240], feet[240, 150] = -9999, -999999, -282
    rewrite(job, feet, nodata=-999999, unit="ft")
    report = cut_region(**job)
    assert reasons(report) == dict.fromkeys((1, 2), "DEM without data in the chip")
    pixels = chip(report.folder, "DEM", 3)
    np.testing.assert_allclose([pixels.min(), pixels.max()], [-282 * 0.3048, 1609.344], rtol=1e-7)


def test_feet_of_the_map_alone_are_warned_of(job: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    (x,), (y,) = transform(CRS, "EPSG:26849", [LEFT + 150], [TOP - 150])  # Minnesota North in US survey feet
    rewrite(job, np.full((1200, 1200), 300.0), crs="EPSG:26849", left=x - 600, top=y + 600)
    report = cut_region(**job)
    np.testing.assert_allclose(chip(report.folder, "DEM", 1), 300)
    assert "its map is in US survey feet. Elevations are taken as metres" in caplog.text
    caplog.clear()
    report = cut_region(**job, dem_units="us-ft", overwrite=True)
    np.testing.assert_allclose(chip(report.folder, "DEM", 1), 300 * SURVEY_FOOT, rtol=1e-6)
    assert "taken as metres" not in caplog.text


def test_spellings() -> None:
    assert [known_unit(text) for text in ("U.S. survey foot", "ftUS", "metres", "ft", "international foot")] == [
        "US survey foot", "US survey foot", "metre", "foot", "foot",
    ]  # fmt: skip
    assert [known_unit(text) for text in ("cm", "yard", "", "Clarke's foot", "degree")] == [None] * 5
    assert METRES == {"metre": 1.0, "foot": FOOT, "US survey foot": SURVEY_FOOT}
