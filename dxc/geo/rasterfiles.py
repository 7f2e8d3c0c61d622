"""Limits of size for rasters. They are checked before a pixel is read: a header can ask for gigabytes of memory."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_BLOCK_BYTES = 2**27
"""Largest block (tile or strip) once unpacked, 134 MB. GDAL holds whole blocks, however small the window that is read.
A chip of the largest size with four bands of 16 bits takes as much in a single block."""
MAX_SIZE = 4096
"""Largest height and width of a chip in pixels. A file of some hundred bytes may claim a million, and a chip is read
whole."""


def block_trouble(raster: Any, *, max_bytes: int = MAX_BLOCK_BYTES) -> str | None:
    """Why no pixel of an open dataset should be read: the blocks of a band are too large. None where they are not.

    GDAL unpacks a block whole. Where bands are interleaved by pixel, it unpacks the block of all bands.

    Args:
        raster: an open rasterio dataset.
        max_bytes: largest block once unpacked.
    """
    interleaved = raster.count > 1 and getattr(raster.interleaving, "name", "pixel") == "pixel"
    for (height, width), dtype in zip(raster.block_shapes, raster.dtypes, strict=True):
        needed = height * width * _item_bytes(dtype) * (raster.count if interleaved else 1)
        if needed > max_bytes:
            return (
                f"its blocks of {width} x {height} pixels take {needed / 1e6:,.0f} MB each, more than "
                f"{max_bytes / 1e6:,.0f} MB; write it again in smaller ones: gdal_translate -co TILED=YES IN OUT"
            )
    return None


def _item_bytes(dtype: str) -> int:
    """Bytes of a number. GDAL has types that numpy lacks: complex numbers of integers."""
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 16
