"""The rasters of a map, read rectangle by rectangle on one grid of 1 m pixels, as prepare.py cuts chips."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import rasterio

from dxc.errors import ConfigError
from dxc.geo.chips import common_ground, fingerprint, look_at_rasters
from dxc.geo.formats import GDAL_OPTIONS
from dxc.geo.mosaic import Sources, open_mosaic
from dxc.geo.rasters import open_raster


class Ground:
    """Elevation model and photo of one place. A context: the rasters are open inside of it.

    Args:
        dem: elevation model, or None: a file, a folder of tiles, a pattern or a list of these.
        photo: aerial photo, likewise.
        needed: bands that the network is fed with, dem and those of photos.
        photo_bands: names of the photo's bands; see conf/map.yaml.
        dem_units: of the elevations; None asks the file.
        crs: of the map; None: that of the first raster, or its UTM zone.
        vrt_anywhere: whether a .vrt may name files outside its folder.

    Raises:
        ConfigError: the rasters do not give what the network needs.
        DataError: a raster cannot be used, or they do not overlap.
    """

    def __init__(
        self,
        dem: Sources | None,
        photo: Sources | None,
        *,
        needed: Sequence[str],
        photo_bands: Sequence[str],
        dem_units: str | None = None,
        crs: str | None = None,
        vrt_anywhere: bool = False,
    ) -> None:
        of_photo = [band for band in needed if band != "dem"]
        lacking = [] if dem is not None or "dem" not in needed else ["dem (give dem=FILE)"]
        if photo is None and of_photo:
            lacking.append(f"{', '.join(of_photo)} (give photo=FILE)")
        elif missing := [band for band in of_photo if band not in photo_bands]:
            lacking.append(f"{', '.join(missing)} (photo_bands names {', '.join(photo_bands)})")
        if lacking:
            raise ConfigError(
                f"the network is fed with {', '.join(needed)}, and the rasters do not give {' and '.join(lacking)}. "
                "Give them, or map with a network of other channels."
            )
        mosaics = {
            what: open_mosaic(what, sources, vrt_anywhere=vrt_anywhere)
            for what, sources in (("DEM", dem), ("photo", photo))
            if sources is not None
        }
        self.dem = mosaics["DEM"].file if "DEM" in mosaics else None
        """The elevation model, whether the network is fed with it or not."""
        wanted = {"DEM": "dem" in needed, "photo": bool(of_photo)}
        files = [(what, mosaic.file) for what, mosaic in mosaics.items() if wanted[what]]
        self.inputs = [fingerprint(path) for _, file in files for path in file.files]
        """What the rasters that the network is fed with are known by, to see a change."""
        self.given = [fingerprint(path) for mosaic in mosaics.values() for path in mosaic.file.files]
        """The same of all rasters: flow is judged on an elevation model that a network of photos is not fed with."""
        self.rasters = look_at_rasters(files, crs=crs, photo_bands=photo_bands, dem_units=dem_units)
        self.crs = self.rasters[0].target_crs
        self.area = common_ground(self.rasters)
        """The ground that all rasters cover, in the CRS of the map."""
        self._needed = tuple(needed)
        self._photo_bands = tuple(photo_bands)
        self._env = rasterio.Env(**GDAL_OPTIONS)
        self._sources: list[Any] = []

    def __enter__(self) -> Ground:
        self._env.__enter__()
        self._sources = [open_raster(raster.what, raster.file) for raster in self.rasters]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in self._sources:
            source.close()
        self._env.__exit__(kind, error, trace)

    def read(self, left: int, top: int, width: int, height: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Read a rectangle.

        Args:
            left: x of its left edge, metres.
            top: y of its upper edge, metres.
            width: in pixels of 1 m.
            height: in pixels of 1 m.

        Returns:
            The needed bands by name, each (height, width), and which pixels all rasters have data of, bool (height,
            width). Pixels without data repeat the nearest one that has: a window at a border shows no cliff.
        """
        bands: dict[str, np.ndarray] = {}
        everywhere = np.ones((height, width), bool)
        for raster, source in zip(self.rasters, self._sources, strict=True):
            pixels, valid = raster.read_part(source, left, top, width, height)
            everywhere &= valid
            names = ("dem",) if raster.what == "DEM" else self._photo_bands
            wanted = {name: band for name, band in zip(names, pixels, strict=True) if name in self._needed}
            if not valid.all() and valid.any():
                nearest = _nearest(valid)
                wanted = {name: band[nearest] for name, band in wanted.items()}
            bands |= wanted
        return {name: bands[name] for name in self._needed}, everywhere

    def has_data(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Which places of a lattice all rasters have data of, bool (rows, columns).

        Args:
            x: of the places (columns,), from west to east, metres.
            y: likewise (rows,), from north to south.
        """
        everywhere = np.ones((len(y), len(x)), bool)
        for raster, source in zip(self.rasters, self._sources, strict=True):
            everywhere &= raster.has_data(source, x, y)
        return everywhere


def _nearest(valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """Row and column of the nearest pixel with data, arrays that index (height, width)."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
    first, last = (rows[0], columns[0]), (rows[-1], columns[-1])
    if valid[first[0] : last[0] + 1, first[1] : last[1] + 1].all():
        # at the edge of a raster, which is the usual case and takes no search
        row, column = (
            np.arange(edge).clip(*ends) for edge, *ends in zip(valid.shape, first, last, strict=True)
        )
        return np.ix_(row, column)
    indices = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return tuple(indices)
