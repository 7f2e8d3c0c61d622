"""Manifest + channels -> one memory-mapped array on disk, built once.

A cache is a folder named by everything that its numbers depend on (files, channels, normalisation, repair,
size, bands), so it is never stale: other chips or other settings make another folder. It is built beside its
place and renamed into it, under a lock: two processes that need the same cache build it once, and a killed
build leaves nothing that could be taken for a cache.

    images.npy    float32 (rows, C, H, W), one row for each chip of the manifest, in its order
    cache.json    chips that are good (row, region, name, label), chips that are not (and why), digests
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from functools import partial as partial_function
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dxc.data.bands import (
    NORMALISATIONS,
    PHOTO_BANDS,
    REPAIRS,
    check_channels,
    needed_photo_bands,
    stack_channels,
)
from dxc.data.layout import Chip, scan
from dxc.errors import BadChip, BadChipsError, ConfigError, DataError, require_whole

FORMAT = 1  # raise it when the meaning of a cache changes: old ones are then not found any more
CHUNK = 32  # chips a worker takes at a time: small enough for a smooth progress bar
SERIAL_BELOW = 256  # chips; starting worker processes takes longer than reading these
GDAL_OPTIONS = {
    # else GDAL lists the whole folder for every file it opens: quadratic in the chips
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # the CRS as the file spells it, without looking its code up: a third of the time of opening a chip
    "GTIFF_SRS_SOURCE": "GEOKEYS",
}
DEM_DTYPES = ("int16", "uint16", "int32", "uint32", "float32", "float64")
PHOTO_DTYPES = ("uint8", "uint16")
MAX_SHIFT_PIXELS = 2.0  # elevation and photo of one chip may be cut on grids that differ by about a pixel


@dataclass(frozen=True)
class Recipe:
    """How a chip becomes an array; together with the files it is the identity of a cache."""

    channels: tuple[str, ...]
    normalise: str = "per_chip"
    repair: str = "mean"
    size: int = 100
    photo_bands: tuple[str, ...] = PHOTO_BANDS
    check_georeference: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that no chip could be read with."""
        for band in self.photo_bands:
            if band not in PHOTO_BANDS:
                raise ConfigError(
                    f"source.photo_bands: unknown band '{band}'; there are {', '.join(PHOTO_BANDS)}"
                )
        check_channels(self.channels, self.photo_bands)
        for key, value, choices in (
            ("normalise", self.normalise, NORMALISATIONS),
            ("repair", self.repair, REPAIRS),
        ):
            if value not in choices:
                raise ConfigError(f"data.{key}: unknown '{value}'; there are {', '.join(choices)}")
        require_whole("data.size", self.size, at_least=1)


@dataclass(frozen=True)
class ChipCache:
    """An opened cache. Chips are numbered 0..n-1 over the good ones, in (region, name) order."""

    folder: Path
    regions: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    """int64 (n,): 1 = crossing, 0 = none."""
    excluded: tuple[BadChip, ...]
    data_hash: str
    """Identity of the chips by content (region, name, label, bytes of both files), on every machine."""
    _rows: np.ndarray

    @cached_property
    def _images(self) -> np.ndarray:
        return np.load(self.folder / "images.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        # a pickled memory map would carry all the pixels into every loader process
        return {key: value for key, value in self.__dict__.items() if key != "_images"}

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read chips into memory: float32 (len(indices), C, H, W)."""
        return self._images[self._rows[np.asarray(indices)]]


def open_cache(
    root: Path | str,
    recipe: Recipe,
    *,
    cache_dir: Path | str,
    on_bad_chip: str = "raise",
    workers: int | None = None,
    progress: bool = True,
) -> ChipCache:
    """The cache of the chips under `root`, built first if it is not there. Thread-safe and process-safe.

    Raises BadChipsError with every bad chip if there is one and on_bad_chip is 'raise'; with 'skip' they are
    left out and listed in `excluded`. Raises DataError where no chip is left or the disk is full.
    """
    from filelock import FileLock

    if on_bad_chip not in ("raise", "skip"):
        raise ConfigError(f"source.on_bad_chip must be raise or skip, not {on_bad_chip!r}")
    manifest = scan(root)
    if manifest.bad and on_bad_chip == "raise" and not manifest.chips:
        raise BadChipsError(manifest.bad, root=manifest.root)
    folder = Path(cache_dir) / f"chips-{_cache_key(manifest.fingerprint, recipe)}"
    if not (folder / "cache.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "cache.json").is_file():  # another process may have built it meanwhile
                    _build(folder, manifest.chips, manifest.bad, recipe, workers, progress)
        except OSError as error:
            raise _disk_error(error, folder) from error
    cache = _load(folder)
    if cache.excluded and on_bad_chip == "raise":
        raise BadChipsError(cache.excluded, root=manifest.root)
    if not len(cache):
        raise DataError(f"no usable chip is left under {root}: all {len(cache.excluded)} were excluded")
    return cache


def _cache_key(fingerprint: str, recipe: Recipe) -> str:
    identity = json.dumps([FORMAT, fingerprint, asdict(recipe)], sort_keys=True)
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _load(folder: Path) -> ChipCache:
    record = json.loads((folder / "cache.json").read_text())
    rows, regions, names, labels = zip(*record["chips"], strict=True) if record["chips"] else ((),) * 4
    return ChipCache(
        folder=folder,
        regions=regions,
        names=names,
        labels=np.asarray(labels, dtype=np.int64),
        excluded=tuple(BadChip(Path(path), reason) for path, reason in record["excluded"]),
        data_hash=record["data_hash"],
        _rows=np.asarray(rows, dtype=np.int64),
    )


def _build(
    folder: Path,
    chips: Sequence[Chip],
    bad: Sequence[BadChip],
    recipe: Recipe,
    workers: int | None,
    progress: bool,
) -> None:
    """Read every chip into a temporary folder beside `folder`, then rename it into place."""
    from tqdm import tqdm

    shape = (len(chips), len(recipe.channels), recipe.size, recipe.size)
    _require_space(folder.parent, int(np.prod(shape)) * 4)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed build: the lock says nobody else is at it
    partial.mkdir()
    try:
        offset = _write_npy_header(partial / "images.npy", shape)
        starts = range(0, len(chips), CHUNK)
        read = partial_function(_read_chunk, partial / "images.npy", offset, recipe)
        jobs = [chips[start : start + CHUNK] for start in starts]
        outcomes: list[_Outcome] = []
        with (
            tqdm(
                total=len(chips), desc="reading chips", unit="chip", disable=None if progress else True
            ) as bar,
            _mapper(1 if len(chips) < SERIAL_BELOW else workers or usable_cores()) as mapper,
        ):
            for chunk_outcomes in mapper(read, starts, jobs):
                outcomes += chunk_outcomes
                bar.update(len(chunk_outcomes))
        _write_record(partial / "cache.json", chips, bad, outcomes)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """A `map` over that many processes; the built-in one for a single worker."""
    if workers == 1:
        yield map
        return
    # forkserver: its children inherit neither torch's threads nor their locks, and import rasterio only once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["rasterio", __name__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Outcome(NamedTuple):
    """What reading one chip gave: digests of its files, and the reason if it is unusable."""

    dem_digest: str
    photo_digest: str
    bad: BadChip | None


class _Unusable(Exception):
    """A chip's file cannot be used; the message is the reason."""


def _read_chunk(
    target: Path, offset: int, recipe: Recipe, first_row: int, chips: Sequence[Chip]
) -> list[_Outcome]:
    """Worker: read consecutive chips and write their rows straight into the target file.

    Writing with pwrite instead of through a memory map keeps the resident memory of a build small.
    """
    import rasterio

    row_bytes = len(recipe.channels) * recipe.size * recipe.size * 4
    outcomes = []
    descriptor = os.open(target, os.O_WRONLY)
    try:
        with rasterio.Env(**GDAL_OPTIONS):
            for row, chip in enumerate(chips, start=first_row):
                image, outcome = _read_chip(chip, recipe)
                if image is not None:
                    _write_all(descriptor, image.tobytes(), offset + row * row_bytes)
                outcomes.append(outcome)
    finally:
        os.close(descriptor)
    return outcomes


def _read_chip(chip: Chip, recipe: Recipe) -> tuple[np.ndarray | None, _Outcome]:
    """Both files of a chip -> (float32 (C, H, W) or None, outcome)."""
    digests = ["", ""]
    path = chip.dem
    try:
        dem, dem_place, digests[0] = _read_raster(path, recipe.size, bands=("dem",), dtypes=DEM_DTYPES)
        dem_band = _checked_elevation(dem[0], dem_place.nodata)
        path = chip.photo
        photo, photo_place, digests[1] = _read_raster(
            path, recipe.size, bands=recipe.photo_bands, dtypes=PHOTO_DTYPES
        )
        if not photo.any() or (photo_place.nodata is not None and (photo == photo_place.nodata).all()):
            raise _Unusable("the photo has no data anywhere in the chip")
        if recipe.check_georeference:
            _check_same_place(dem_place, photo_place)
    except _Unusable as reason:
        return None, _Outcome(digests[0], digests[1], BadChip(path, str(reason)))
    bands = dict(zip(recipe.photo_bands, photo, strict=True))
    used = {band: bands[band] for band in needed_photo_bands(recipe.channels)}
    image = stack_channels(dem_band, used, recipe.channels, normalise=recipe.normalise, repair=recipe.repair)
    return image, _Outcome(digests[0], digests[1], None)


class _Place(NamedTuple):
    """Where a raster lies: CRS (or None), affine transform, nodata value (or None)."""

    crs: object
    transform: object
    nodata: float | None


def _read_raster(
    path: Path, size: int, *, bands: Sequence[str], dtypes: Sequence[str]
) -> tuple[np.ndarray, _Place, str]:
    """One chip file -> (array (len(bands), size, size), place, digest of its bytes)."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        content = path.read_bytes()
        with rasterio.MemoryFile(content) as memory, memory.open(driver="GTiff") as raster:
            if raster.count != len(bands):
                raise _Unusable(f"has {raster.count} band(s), expected {len(bands)}: {', '.join(bands)}")
            if (raster.height, raster.width) != (size, size):
                raise _Unusable(f"is {raster.width} x {raster.height} pixels, expected {size} x {size}")
            if wrong := sorted(set(raster.dtypes) - set(dtypes)):
                raise _Unusable(f"is of type {', '.join(wrong)}, expected one of {', '.join(dtypes)}")
            array = raster.read()
            place = _Place(raster.crs, raster.transform, raster.nodata)
    except (RasterioError, OSError) as error:
        raise _Unusable(f"cannot be read as a GeoTIFF: {_one_line(error)}") from error
    return array, place, hashlib.blake2b(content, digest_size=16).hexdigest()


def _checked_elevation(dem: np.ndarray, nodata: float | None) -> np.ndarray:
    """Raise _Unusable unless every elevation is a number."""
    void = ~np.isfinite(dem)
    if nodata is not None and not np.isnan(nodata):
        void |= dem == dem.dtype.type(nodata)
    if void.all():
        raise _Unusable("has no elevation anywhere (all nodata)")
    if void.any():
        raise _Unusable(f"{int(void.sum())} of {dem.size} elevations are NaN, infinite or nodata")
    return dem


def _check_same_place(dem: _Place, photo: _Place) -> None:
    """Raise _Unusable where the two files of a chip say that they show different ground."""
    ignore = "; source.check_georeference=false trusts the file names instead"
    if dem.crs != photo.crs:
        raise _Unusable(
            f"photo is in {photo.crs or 'no CRS'}, its elevation chip in {dem.crs or 'no CRS'}{ignore}"
        )
    if dem.crs is None:
        return  # neither says where it is: their names are all there is
    a, b = dem.transform, photo.transform
    if abs(abs(a.a) - abs(b.a)) > 0.01 * abs(a.a):  # type: ignore[attr-defined]
        raise _Unusable(f"photo has pixels of {abs(b.a):g}, its elevation chip of {abs(a.a):g}{ignore}")  # type: ignore[attr-defined]
    shift = max(abs(a.c - b.c) / abs(a.a), abs(a.f - b.f) / abs(a.e))  # type: ignore[attr-defined]
    if shift > MAX_SHIFT_PIXELS:
        raise _Unusable(f"photo lies {shift:.0f} pixels away from its elevation chip{ignore}")


def usable_cores() -> int:
    """Cores this process may use: a Slurm job or a container has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_record(
    path: Path, chips: Sequence[Chip], bad: Sequence[BadChip], outcomes: Sequence[_Outcome]
) -> None:
    good = [
        (row, chip, outcome)
        for row, (chip, outcome) in enumerate(zip(chips, outcomes, strict=True))
        if outcome.bad is None
    ]
    content = [
        [chip.region, chip.name, chip.label, outcome.dem_digest, outcome.photo_digest]
        for _, chip, outcome in good
    ]
    record = {
        "chips": [[row, chip.region, chip.name, chip.label] for row, chip, _ in good],
        "excluded": sorted(
            [str(item.path), item.reason] for item in [*bad, *(o.bad for o in outcomes if o.bad is not None)]
        ),
        "data_hash": hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest(),
    }
    path.write_text(json.dumps(record))


def _write_npy_header(path: Path, shape: tuple[int, ...]) -> int:
    """Create an .npy file of zeros (sparse) with the given float32 shape; returns where its data begins."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        offset = file.tell()
        file.truncate(offset + int(np.prod(shape)) * 4)
    return offset


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(errno.ENOSPC, f"{needed_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


def _disk_error(error: OSError, folder: Path) -> DataError:
    what = "no space left" if error.errno == errno.ENOSPC else "cannot write"
    return DataError(
        f"cache_dir: {what} while building {folder} ({error.strerror or error}); "
        "free some space or point cache_dir at another disk"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())
