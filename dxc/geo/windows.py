"""Cuts chips out of a region's rasters with several threads, and writes each as a GeoTIFF: whole or not at all.

Where boxes are wanted, a chip with a crossing has one more file: the annotation beside its photo, or its elevation
where there is no photo.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from dxc.bars import Steps
from dxc.files import write_atomically
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.rasters import Raster, open_raster
from dxc.geo.sites import CrossingBoxes, Spot
from dxc.geo.voc import write_voc

KINDS = {"DEM": "DEM", "photo": "Aer"}
"""What a raster is -> how the name of the folder of its chips ends."""
CHIP_NODATA = -9999.0  # declared in every DEM chip; no pixel of a chip has it
STRIP_M = 500  # chips are read strip by strip of the region


class Cutter:
    """Cuts chips into a folder with several threads, each with its own handles on the rasters."""

    def __init__(
        self,
        folder: Path,
        rasters: tuple[Raster, ...],
        photo_bands: tuple[str, ...],
        size: int,
        region: str,
        workers: int,
        boxes: CrossingBoxes | None = None,
    ) -> None:
        self.folder, self.rasters, self.photo_bands, self.size = folder, rasters, photo_bands, size
        self.region, self.boxes = region, boxes
        self._mine = threading.local()
        self._open: list[Any] = []
        for raster in rasters:
            for label in ("F", "T"):
                (folder / f"{region}{KINDS[raster.what]}" / label).mkdir(parents=True, exist_ok=True)
        # rasterio silences this harmless warning by means that do not work in threads
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="cut")

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for source in self._open:
            source.close()

    def paths(self, chip: Spot) -> tuple[Path, ...]:
        """The files of a chip: one of each raster, and the annotation where it has one."""
        images = [
            self.folder / f"{self.region}{KINDS[raster.what]}" / chip.label / f"{chip.name}.tif"
            for raster in self.rasters
        ]
        annotated = self.boxes is not None and chip.label == "T"
        annotation = [images[-1].with_suffix(".xml")] if annotated else []
        return *images, *annotation

    def collect(
        self, candidates: Iterator[Spot], wanted: int, what: str, progress: bool
    ) -> tuple[list[Spot], list[tuple[Spot, str]]]:
        """Cut candidates until `wanted` are done.

        No more candidates are tried at once than are still wanted. So the result depends neither on the number of
        threads nor on an earlier, interrupted call.

        Args:
            candidates: places to try, in order.
            wanted: number of chips.
            what: the kind of chips, for the progress bar.
            progress: whether to show a progress bar.

        Returns:
            The chips that are done, and those that cannot be cut with the reason.
        """
        done: list[Spot] = []
        failed: list[tuple[Spot, str]] = []
        with Steps(wanted, f"{self.region} {what}", "chip", shown=progress, quick=True) as bar:
            while batch := list(itertools.islice(candidates, wanted - len(done))):
                reasons: dict[Spot, str | None] = {}
                # neighbours follow each other, so that GDAL still holds their blocks unpacked
                route = sorted(batch, key=lambda spot: (spot.top // STRIP_M, spot.left, spot.name))
                for spot, reasons[spot] in zip(route, self._pool.map(self.cut, route), strict=True):
                    bar.update(steps=int(reasons[spot] is None))
                done += [spot for spot in batch if reasons[spot] is None]
                failed += [(spot, reason) for spot in batch if (reason := reasons[spot]) is not None]
        return done, failed

    def cut(self, chip: Spot) -> str | None:
        """Write the files of one chip unless they are there. Returns the reason where it cannot be cut."""
        files = self.paths(chip)
        if all(map(_is_whole, files)):
            return None
        images = []
        for raster, source in zip(self.rasters, self._sources(), strict=True):
            pixels = raster.read(source, chip.left, chip.top, self.size)
            if pixels is None:
                return f"{raster.what} without data in the chip"
            images.append(pixels)
        for file, pixels, raster in zip(
            files, images, self.rasters, strict=False
        ):  # an annotation may follow
            place = from_origin(chip.left, chip.top, 1, 1)
            names = ("dem",) if raster.what == "DEM" else self.photo_bands
            content = _geotiff(pixels, place, raster.target_crs, names)
            write_atomically(file, content, sync=False)  # cut_region syncs all chips at once
        if self.boxes is not None and len(files) > len(images):
            found = self.boxes.in_chip(chip.left, chip.top, self.size)
            edge, depth, image = self.size, len(images[-1]), files[len(images) - 1].name
            write_voc(files[-1], found, width=edge, height=edge, image=image, depth=depth, sync=False)
        return None

    def _sources(self) -> tuple[Any, Any]:
        if not hasattr(self._mine, "sources"):
            self._mine.sources = tuple(open_raster(raster.what, raster.file) for raster in self.rasters)
            self._open += self._mine.sources
        return self._mine.sources


def _is_whole(file: Path) -> bool:
    """Whether a chip's file is there and not empty. After a power cut, a file that was not synced may be empty."""
    return file.is_file() and file.stat().st_size > 0


def _geotiff(pixels: np.ndarray, place: rasterio.Affine, crs: CRS, names: Sequence[str]) -> bytes:
    """A GeoTIFF in memory. If GDAL wrote the file itself, it would only log a full disk."""
    profile = {
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
    }
    if names == ("dem",):
        profile["nodata"] = CHIP_NODATA
    else:
        # left to itself, GDAL declares the fourth of four uint8 bands to be transparency
        profile["photometric"] = "rgb" if names[:3] == PHOTO_BANDS[:3] else "minisblack"
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", crs=crs, transform=place, **profile) as file:
            file.write(pixels)
            file.descriptions = names
        return bytes(memory.getbuffer())
