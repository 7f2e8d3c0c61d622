"""Identifies the bands of a photo: colours, near infrared, and an alpha band that masks transparent pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from dxc.errors import DataError
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.formats import unreadable

log = logging.getLogger(__name__)

SAMPLES, SAMPLE_EDGE = 8, 64  # windows a side, and their pixels
READ_WHOLE = 1_000_000  # pixels; a smaller photo is not sampled
OPAQUE_SHARE = 0.99  # of the pixels that are not 0; the rest are half transparent, along edges


@dataclass(frozen=True)
class PhotoBands:
    """Bands of a photo, counted from 1."""

    indexes: tuple[int, ...]  # in the order of photo_bands
    mask: int | None = None  # number of the alpha band that says which pixels have no data
    opaque: int = 255  # value of the mask where there are data


def choose_bands(path: Path, photo: Any, names: Sequence[str]) -> PhotoBands:
    """Find the named bands in an open photo.

    If there are as many names as bands, they name the bands in the file's order. An alpha band that is a mask does not
    count. Fewer names choose bands by the names and colours that the file gives them. If it gives none, four bands are
    red, green, blue and near infrared.

    Args:
        path: the file, for messages.
        photo: the open dataset.
        names: of the bands, from PHOTO_BANDS.

    Raises:
        DataError: the names do not fit the bands, or no aerial photo has this number of bands or this type.
    """
    if set(photo.dtypes) - {"uint8", "uint16"} or len(set(photo.dtypes)) > 1:
        raise DataError(
            f"photo {path}: is {'/'.join(sorted(set(photo.dtypes)))}; an aerial photo is uint8 or uint16. Convert "
            "it, e.g. gdal_translate -ot UInt16 -scale ..."
        )
    alphas = [band for band, colour in enumerate(photo.colorinterp, 1) if colour == ColorInterp.alpha]
    mask, opaque, seen = None, None, ""
    for band in alphas:
        opaque, seen = _opaque(path, photo, band)
        if opaque is not None:
            mask = band
            break
        log.info("Band %d of the photo is marked as alpha but %s: it is an image band.", band, seen)
    bands = [band for band in range(1, photo.count + 1) if band != mask]
    if not alphas and photo.count == 4 and len(names) == 4:
        look, seen_there = _opaque(path, photo, 4)
        if look is not None:
            log.warning(
                "Band 4 of the photo is taken for %s, but %s. If it is a mask, mark it: gdal_edit.py -colorinterp_4 "
                "alpha FILE", names[3], seen_there,
            )  # fmt: skip
    if len(names) == len(bands):
        chosen = tuple(bands)
    else:
        found = _by_name(photo, bands, names) if len(names) < len(bands) else None
        if found is None:
            raise DataError(_misfit(path, photo, names, bands, mask, seen))
        chosen = found
        log.info("Bands %s of the photo are taken as %s.", ", ".join(map(str, chosen)), ", ".join(names))
    if mask is None or opaque is None:
        return PhotoBands(chosen)
    log.info("Band %d of the photo is its mask (it %s): transparent pixels are without data.", mask, seen)
    return PhotoBands(chosen, mask, opaque)


def _by_name(photo: Any, bands: Sequence[int], names: Sequence[str]) -> tuple[int, ...] | None:
    """Positions of the named bands among `bands`; None where they are not known."""
    given: dict[str, int] = {}
    for band in bands:
        said = (photo.descriptions[band - 1] or "").strip().lower()
        name = {"near infrared": "nir", "near-infrared": "nir"}.get(said, said)
        if name not in PHOTO_BANDS:
            name = photo.colorinterp[band - 1].name
        if name in PHOTO_BANDS:
            given.setdefault(name, band)
    if not given and len(bands) == len(PHOTO_BANDS):
        given = dict(zip(PHOTO_BANDS, bands, strict=True))
    unnamed = [band for band in bands if band not in given.values() and not photo.descriptions[band - 1]]
    if "nir" not in given and len(unnamed) == 1 and {"red", "green", "blue"} <= set(given):
        given["nir"] = unnamed[0]
    return tuple(given[name] for name in names) if set(names) <= set(given) else None


def _misfit(
    path: Path, photo: Any, names: Sequence[str], bands: Sequence[int], mask: int | None, seen: str
) -> str:
    told = f"photo_bands=[{','.join(names)}] names {len(names)}"
    if mask is not None:
        ask = (
            "photo_bands=[red,green,blue]"
            if len(bands) == 3
            else f"photo_bands with its {len(bands)} other bands"
        )
        return (
            f"photo {path}: has {photo.count} bands, but band {mask} is a mask (marked as alpha, it {seen}), and "
            f"{told}. Give {ask}: transparent pixels are then without data."
        )
    hint = "Name the bands that the photo has, in their order."
    if photo.count == 3:
        hint = "A photo without near infrared works with photo_bands=[red,green,blue]."
    return f"photo {path}: has {photo.count} bands, but {told}. {hint}"


def _opaque(path: Path, photo: Any, band: int) -> tuple[int | None, str]:
    """The value of opaque pixels if a band is a mask, else None; and in words what the band holds.

    A mask holds 0 and one other value: 255, or the greatest of its type. The values of image bands vary. Large photos
    are sampled in SAMPLES x SAMPLES windows, and read further only while these hold nothing but 0.
    """
    counts: dict[int, int] = {}
    windows, whole = _windows(photo)
    for window in windows:
        _count(path, photo, band, window, counts)
    if not whole and set(counts) == {0}:
        for _, window in photo.block_windows(band):
            _count(path, photo, band, window, counts)
            if set(counts) != {0}:
                break
    place = "" if whole else f" in {SAMPLES * SAMPLES} windows of {SAMPLE_EDGE} x {SAMPLE_EDGE} pixels"
    total, zeros = sum(counts.values()), counts.pop(0, 0)
    if not counts:
        return None, f"holds nothing but 0{place}"
    top = max(counts)
    if top in (255, np.iinfo(photo.dtypes[band - 1]).max) and counts[top] >= OPAQUE_SHARE * sum(
        counts.values()
    ):
        share = "only" if len(counts) == 1 else "almost only"
        return top, f"holds {share} 0 ({zeros / total:.1%}) and {top}{place}"
    return None, f"holds {len(counts) + bool(zeros)} different values up to {top}{place}"


def _windows(photo: Any) -> tuple[Iterator[Window], bool]:
    """Windows spread over a photo, and whether they cover all of it."""
    if photo.width * photo.height <= READ_WHOLE:
        return iter([Window(0, 0, photo.width, photo.height)]), True
    wide, high = min(SAMPLE_EDGE, photo.width), min(SAMPLE_EDGE, photo.height)
    rows = np.linspace(0, photo.height - high, SAMPLES).astype(int)
    columns = np.linspace(0, photo.width - wide, SAMPLES).astype(int)
    return (Window(int(c), int(r), wide, high) for r in rows for c in columns), False


def _count(path: Path, photo: Any, band: int, window: Window, counts: dict[int, int]) -> None:
    """Add to `counts` how often each value occurs in a window."""
    try:
        values, numbers = np.unique(photo.read(band, window=window), return_counts=True)
    except RasterioError as error:
        raise unreadable("photo", path, window, error) from error
    for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
        counts[value] = counts.get(value, 0) + number
