"""Finds the unit of a DEM's elevations (metres, feet or US survey feet) from its CRS, its band or the configuration."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pyproj
from rasterio.crs import CRS

from dxc.errors import ConfigError, DataError

log = logging.getLogger(__name__)

METRES = {"metre": 1.0, "foot": 0.3048, "US survey foot": 1200 / 3937}
"""Metres in each unit, exact by definition."""
PLURAL = {"metre": "metres", "foot": "feet", "US survey foot": "US survey feet"}

_SPELLINGS = {
    "metre": "m metre metres meter meters",
    "foot": "ft foot feet intlft intlfoot internationalfoot internationalfeet footinternational footintl ift ftintl",
    "US survey foot": "usft ftus usfoot usfeet footus feetus ussurveyfoot ussurveyfeet surveyfoot surveyfeet sft ussft",
}
_UNIT_OF = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_FEET = ("foot", "US survey foot")


def known_unit(text: str) -> str | None:
    """The unit (a key of METRES) that a text such as us-ft, Foot_US or metres names; None for any other text."""
    return _UNIT_OF.get(re.sub(r"[^a-z]", "", text.lower()))


def elevation_unit(path: Path, dem: Any, wanted: str | None) -> str:
    """Find the unit of an open DEM's elevations. Where it is not obvious, the log says which it is and why.

    The unit in the configuration overrides the file. In the file, the vertical part of the CRS and the unit of the
    band have to agree. The CRS decides between the two kinds of feet, because bands often say just feet. Where neither
    names a unit, elevations are taken as metres.

    Args:
        path: the file, for messages.
        dem: the open dataset.
        wanted: the key dem_units; None asks the file.

    Returns:
        A key of METRES.

    Raises:
        ConfigError: `wanted` is not a known unit.
        DataError: the file has another unit, or names two different ones.
    """
    if wanted is not None:
        unit = known_unit(wanted)
        if unit is None:
            raise ConfigError(
                f"dem_units={wanted} is not a known unit: give m, ft or us-ft, or null to ask the DEM."
            )
        log.info("The DEM's elevations are in %s (dem_units) and become metres.", PLURAL[unit])
        return unit
    tell = "Say what its elevations are in: dem_units=m, ft or us-ft."
    by_crs, by_band = _vertical_unit(dem.crs), (dem.units[0] or "").strip()
    found: dict[str, str] = {}
    for where, text in (("its CRS", by_crs), ("its band", by_band)):
        if not text:
            continue
        unit = known_unit(text)
        if unit is None:
            raise DataError(
                f"DEM {path}: {where} says that its elevations are in '{text[:40]}', an unknown unit. {tell}"
            )
        found[where] = unit
    kinds = {"foot" if unit in _FEET else unit for unit in found.values()}
    if len(kinds) > 1:
        raise DataError(
            f"DEM {path}: its CRS says that its elevations are in {PLURAL[found['its CRS']]}, and its band in "
            f"{PLURAL[found['its band']]}. {tell}"
        )
    if not found:
        _warn_of_feet(dem.crs)
        return "metre"
    where, unit = next(iter(found.items()))
    if unit != "metre":
        log.info("The DEM's elevations are in %s (from %s) and become metres.", PLURAL[unit], where)
    return unit


def _warn_of_feet(crs: CRS) -> None:
    """Warn that metres are assumed although the map units suggest feet."""
    across = _length_unit(crs.linear_units_factor[1]) if crs.is_projected else None
    if across in _FEET:
        log.warning(
            "The DEM does not say what its elevations are in, and its map is in %s. Elevations are taken as metres. "
            "If they are in feet as well, repeat the command with dem_units=ft or us-ft.",
            PLURAL[across],
        )


def _vertical_unit(crs: CRS) -> str:
    """The unit of the vertical axis, a key of METRES or another name; empty where the CRS has no such axis."""
    full = pyproj.CRS.from_wkt(crs.wkt)
    parts = full.sub_crs_list if full.is_compound else [full]
    for part in parts:
        axes = (part.source_crs or part).axis_info if part.is_bound else part.axis_info
        for axis in axes:
            if axis.direction in ("up", "down"):
                return _length_unit(axis.unit_conversion_factor) or axis.unit_name
    return ""


def _length_unit(metres: float) -> str | None:
    """The unit of a length in metres. It is found by size, because names vary. The two feet differ by 2e-6, more than
    files round."""
    return next((unit for unit, exact in METRES.items() if math.isclose(metres, exact, rel_tol=5e-7)), None)
