"""The bands of an aerial photo. Free of rasterio, so that a configuration is checked quickly."""

from __future__ import annotations

PHOTO_BANDS = ("red", "green", "blue", "nir")
"""Bands of a USGS NAIP photo in file order."""
