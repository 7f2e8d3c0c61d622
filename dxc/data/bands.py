"""Raw bands of one chip -> its channels, by name.

Input: an elevation band and the photo's bands, each (H, W). Output: float32 (C, H, W) in the requested order.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from dxc.errors import ConfigError
from dxc.geo.bands import PHOTO_BANDS

Array = np.ndarray

INDICES = {
    # Normalised differences (a - b) / (a + b) of raw bands, each in [-1, 1].
    # Water is high: McFeeters (1996), doi 10.1080/01431169608948714.
    "ndwi": ("green", "nir"),
    # Vegetation is high: Tucker (1979), doi 10.1016/0034-4257(79)90013-0.
    "ndvi": ("nir", "red"),
}

NORMALISATIONS = ("per_chip", "per_column", "fixed", "none")
"""fixed: constants, one pair a channel. Those of chips follow from the type of their photos (fixed_constants), those of
a published set belong to the set."""
LOCAL_MEAN_SIGMA = 25
"""normalise=fixed: standard deviation in pixels of the Gaussian whose mean is subtracted from elevation."""
LOCAL_MEAN_REACH = 3 * LOCAL_MEAN_SIGMA
"""Pixels from which on the Gaussian is cut off."""
SPARSE_FROM = 512
"""Edge of an image in pixels from which on its smoother is a sparse matrix."""
REPAIRS = ("mean", "reference")

LEAST_RANGE = float(10 * np.finfo(np.float32).eps)
"""per_column: a column with a smaller range counts as constant, like constant features in scikit-learn."""


CHANNEL_SETS: dict[str, tuple[str, ...]] = {
    "1ch": ("dem",),
    "3ch": ("red", "green", "blue"),
    "4ch": ("red", "green", "blue", "nir"),
    "5ch": ("dem", "red", "green", "blue", "nir"),
    "7ch": ("dem", "red", "green", "blue", "nir", "ndwi", "ndvi"),
}
"""The options of conf/data with their channels."""


def fitting_override(bands: Sequence[str]) -> str:
    """The override that uses all bands of chips: data=NAME of the largest set made of just these, else data.channels.

    Args:
        bands: that the chips hold: dem, if they hold elevation, and those of the photo.

    >>> fitting_override(["dem"]), fitting_override(["dem", "red", "green", "blue"])
    ('data=1ch', 'data.channels=[dem,red,green,blue]')
    """
    name = _fitting_set(bands)
    return f"data={name}" if name else f"data.channels=[{','.join(bands)}]"


def fitting_channels(bands: Sequence[str]) -> tuple[str, ...]:
    """The channels that `fitting_override` chooses.

    Args:
        bands: that the chips hold, as there.

    >>> fitting_channels(["red", "green"])
    ('red', 'green')
    """
    name = _fitting_set(bands)
    return CHANNEL_SETS[name] if name else tuple(bands)


def _fitting_set(bands: Sequence[str]) -> str | None:
    """The largest set of CHANNEL_SETS made of just these bands."""
    fitting = [
        name
        for name, channels in CHANNEL_SETS.items()
        if {*needed_photo_bands(channels), *({"dem"} & {*channels})} == {*bands}
    ]
    return max(fitting, key=lambda name: len(CHANNEL_SETS[name]), default=None)


def needed_photo_bands(channels: Sequence[str]) -> list[str]:
    """Photo bands from which the channels are made, each once, in the order of PHOTO_BANDS."""
    used = {band for channel in channels for band in INDICES.get(channel, (channel,))}
    return [band for band in PHOTO_BANDS if band in used]


def check_channels(channels: Sequence[str], photo_bands: Sequence[str] = PHOTO_BANDS) -> None:
    """Raise ConfigError unless every channel is known, named once and can be made from the available bands.

    Args:
        channels: names of the channels.
        photo_bands: names of the available photo bands.
    """
    known = ("dem", *PHOTO_BANDS, *INDICES)
    if not channels:
        raise ConfigError(f"data.channels is empty; choose from {', '.join(known)}")
    for channel in channels:
        if channel not in known:
            raise ConfigError(f"data.channels: unknown channel '{channel}'; there are {', '.join(known)}")
    if len(set(channels)) < len(channels):
        raise ConfigError(f"data.channels names a channel twice: {', '.join(channels)}")
    missing = [band for band in needed_photo_bands(channels) if band not in photo_bands]
    if missing:
        alone = f"{fitting_override(photo_bands)} fits the photos, " if photo_bands else ""
        raise ConfigError(
            f"data.channels needs the photo band(s) {', '.join(missing)}, but source.photo_bands has only "
            f"{', '.join(photo_bands) or 'none'}; drop the channels made of them or give photos that have them: {alone}"
            f"{fitting_override(('dem', *photo_bands))} fits with elevation"
        )


def stack_channels(
    dem: Array | None,
    photo: Mapping[str, Array],
    channels: Sequence[str],
    *,
    normalise: str = "per_chip",
    repair: str = "mean",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Array:
    """The channels of one chip, float32 (C, H, W).

    dem: (H, W) elevations in metres, None where no channel needs them; photo: band name -> (H, W) digital numbers.
    Elevation and photo bands are normalised as requested. Indices are not: they are computed from the raw bands and
    lie in [-1, 1] anyway. normalise=fixed rescales the channels with `mean` and `std`, one of each a channel; indices
    too. It takes elevation less its local mean.
    """
    if normalise == "fixed":
        relief = None if dem is None else elevation_above_local_mean(dem)
        plain = stack_channels(relief, photo, channels, normalise="none", repair=repair)
        return scale_fixed(plain[None], mean, std)[0]
    rescale = {"per_chip": scale_per_chip, "per_column": scale_per_column, "none": _as_float32}[normalise]
    mend = {"mean": repair_mean, "reference": repair_reference}[repair]

    bands = {**photo} if dem is None else {**photo, "dem": dem}

    def channel(name: str) -> Array:
        if name in INDICES:
            first, second = INDICES[name]
            return mend(normalised_difference(bands[first], bands[second]))
        return rescale(bands[name])

    return np.stack([channel(name) for name in channels])


def normalised_difference(a: Array, b: Array) -> Array:
    """(a - b) / (a + b), float32; NaN where both are 0. Computed in float: uint8 would wrap around."""
    a, b = _as_float32(a), _as_float32(b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a - b) / (a + b)


def scale_per_chip(band: Array) -> Array:
    """Minimum to 0 and maximum to 1 over the whole band (H, W); a constant band becomes 0."""
    band = _as_float32(band)
    low, high = band.min(), band.max()
    return (band - low) / (high - low) if high > low else np.zeros_like(band)


def scale_per_column(band: Array) -> Array:
    """Minimum to 0 and maximum to 1 in each image column on its own; a constant column becomes 0.

    This is scikit-learn's MinMaxScaler.fit_transform(band), operation by operation in float32, because the
    published chips went through it (doi 10.1145/3624062.3624258). Its rounding shows on flat ground: 1.0002
    instead of 1 at 400 m elevation.
    """
    band = _as_float32(band)
    low = band.min(axis=0)
    extent = band.max(axis=0) - low
    extent[extent < LEAST_RANGE] = 1
    scale = np.float32(1) / extent
    return band * scale + (np.float32(0) - low * scale)


def fixed_constants(channels: Sequence[str], photo_type: str | None) -> dict[str, tuple[float, ...]]:
    """mean and std of normalise=fixed for chips: photos become 0..1, elevation stays in metres, indices in [-1, 1].

    Args:
        channels: names of the channels.
        photo_type: of the photos, uint8 or uint16; None without photos.
    """
    greatest = 1.0 if photo_type is None else float(np.iinfo(photo_type).max)
    return {
        "mean": (0.0,) * len(channels),
        "std": tuple(greatest if channel in PHOTO_BANDS else 1.0 for channel in channels),
    }


def elevation_above_local_mean(dem: Array) -> Array:
    """Elevation (H, W) less its local mean, float32, in the unit of the elevations.

    The mean is Gaussian, with a standard deviation of LOCAL_MEAN_SIGMA pixels, cut off at LOCAL_MEAN_REACH. Beyond the
    image nothing is known, and a mean of one side alone would be wrong by the slope times 20 pixels. So the smoother is
    the local linear one along each axis (Fan 1992, doi 10.1080/01621459.1992.10476255): away from the border it is the
    Gaussian mean, and everywhere it keeps planes as they are. A plane has a relief of 0 wherever its chip was cut.
    """
    dem = np.asarray(dem, np.float64)
    dem = dem - dem.mean()  # so that the sums below round little
    rows, columns = (_local_linear(edge) for edge in dem.shape)
    # OpenBLAS shares a product of 100 x 100 out to all cores and waits busily for each: beside other programs, that
    # took 30 ms instead of 0.25
    with _thread_pools().limit(limits=1, user_api="blas"):
        smooth = rows @ dem
        return (dem - (columns @ smooth.T).T).astype(np.float32)


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """The thread pools of the libraries of this process. Looking for them takes longer than a product."""
    return ThreadpoolController()


@functools.lru_cache(maxsize=8)
def _local_linear(edge: int) -> Any:
    """The matrix (edge, edge) of the local linear smoother along an axis of so many pixels; its rows sum to 1."""
    reach = min(LOCAL_MEAN_REACH, edge - 1)
    shift = np.arange(-reach, reach + 1)
    place = np.arange(edge)[:, None] + shift
    inside = (place >= 0) & (place < edge)
    weight = np.where(inside, np.exp(-0.5 * (shift / LOCAL_MEAN_SIGMA) ** 2), 0.0)
    zeroth, first, second = ((weight * shift**power).sum(axis=1, keepdims=True) for power in (0, 1, 2))
    # a single pixel, or a line of them without extent, has no slope
    spread = zeroth * second - first**2
    weight = np.where(spread > 0, weight * (second - shift * first) / np.where(spread > 0, spread, 1), weight)
    row = np.broadcast_to(np.arange(edge)[:, None], place.shape)[inside]
    if edge < SPARSE_FROM:
        matrix = np.zeros((edge, edge))
        matrix[row, place[inside]] = weight[inside]
        return matrix
    from scipy.sparse import csr_array

    return csr_array((weight[inside], (row, place[inside])), shape=(edge, edge))


def scale_fixed(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(images - mean) / std of each channel, float32.

    Args:
        images: (n, C, H, W), of any type.
        mean: of each channel, C numbers.
        std: of each channel, C numbers above 0.
    """
    columns = (1, -1, 1, 1)
    offset, scale = (np.asarray(each, np.float32).reshape(columns) for each in (mean, std))
    scaled = images.astype(np.float32)  # a copy
    scaled -= offset
    scaled /= scale
    return scaled


def repair_mean(index: Array) -> Array:
    """Replace NaN (0/0) pixels of an index (H, W) by the mean of their valid 4-neighbours, or by 0 if none is valid."""
    hole = np.isnan(index)
    if not hole.any():
        return index
    padded = np.pad(index, 1, constant_values=np.nan)
    around = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    valid = ~np.isnan(around)
    total, count = np.where(valid, around, 0).sum(axis=0), valid.sum(axis=0)
    return np.where(hole, total / np.maximum(count, 1), index).astype(np.float32)


def repair_reference(index: Array) -> Array:
    """The published repair of NaN pixels, kept to reproduce the published chips.

    A pixel becomes the sum of its non-NaN 4-neighbours, with coordinates clamped at the border, divided by 4. The
    divisor is 4 however many neighbours are valid. Pixels are repaired in row-major order and in place, so a repaired
    pixel counts for the next one.
    """
    repaired = index.copy()
    last_row, last_column = repaired.shape[0] - 1, repaired.shape[1] - 1
    for row, column in np.argwhere(np.isnan(repaired)):
        total = np.float32(0)
        for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            neighbour = repaired[min(last_row, max(0, row + down)), min(last_column, max(0, column + right))]
            if not np.isnan(neighbour):
                total += neighbour
        repaired[row, column] = total / 4
    return repaired


def _as_float32(band: Array) -> Array:
    return np.asarray(band, dtype=np.float32)
