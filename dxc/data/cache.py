"""Manifest + channels -> one memory-mapped array on disk, built once.

A cache is a folder. Its name is a hash of everything that its numbers depend on (files, channels, normalisation,
repair, size, bands). So it is never stale: other chips or settings make another folder. It is built under a lock in a
temporary folder, which is then renamed. So two processes that need the same cache build it once, and a killed build
leaves no half cache.

    images.npy    float32 (rows, C, H, W), one row for each chip of the manifest, in its order;
                  with size=any one such file for each size that occurs: images-HxW.npy
    cache.json    the good chips (row, region, name, label; which overlap; the edge of a pixel on the ground; sizes and
                  boxes where the recipe asks for them), the bad chips with the reason, and digests

A cache that is incomplete or damaged is built again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dxc.bars import Steps
from dxc.data.bands import (
    NORMALISATIONS,
    REPAIRS,
    check_channels,
    fitting_override,
    fixed_constants,
    needed_photo_bands,
    stack_channels,
)
from dxc.data.layout import CLASS_NAMES, CLASSES, LAYOUT_HELP, Chip, Manifest, scan
from dxc.errors import BadChip, BadChipsError, ConfigError, DataError, require_whole
from dxc.files import sync_to_disk, whole_folder
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.overlaps import Outline, outline_of, overlap_groups, pixel_m
from dxc.geo.rasterfiles import MAX_SIZE, block_trouble
from dxc.geo.voc import UnusableAnnotation, read_voc
from dxc.models.registry import MIN_SIZE
from dxc.processes import end_with_parent

log = logging.getLogger(__name__)

FORMAT = 5  # raise it when the meaning of a cache changes: old caches are then no longer found
CHUNK = 32  # chips a worker takes at a time: small enough for a smooth progress bar
SERIAL_BELOW = 256  # chips; starting worker processes takes longer than reading these
GDAL_OPTIONS = {
    # without it, GDAL lists the whole folder for every file it opens: quadratic in the chips
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # take the CRS as the file spells it; looking up its code takes a third of the time of opening a chip
    "GTIFF_SRS_SOURCE": "GEOKEYS",
}
DEM_DTYPES = ("int16", "uint16", "int32", "uint32", "float32", "float64")
PHOTO_DTYPES = ("uint8", "uint16")
ANY_SIZE = "any"
TOO_SMALL = f"data.size={ANY_SIZE} needs {MIN_SIZE} x {MIN_SIZE} at least, for a pyramid of features"
TOO_LARGE = f"a chip has {MAX_SIZE} x {MAX_SIZE} at most"
CHANGED = "its size changed while it was read; leave chips alone meanwhile"
MAX_FILE_BYTES = 2**28  # 268 MB: twice the largest chip of four bands of 16 bits; files are read whole
MAX_SHIFT_PIXELS = 2.0  # elevation and photo of one chip may be cut on grids that differ by about a pixel


@dataclass(frozen=True)
class Recipe:
    """How a chip becomes an array. The recipe and the files make the identity of a cache."""

    channels: tuple[str, ...]
    normalise: str = "per_chip"
    repair: str = "mean"
    size: int | str = 100
    """Height and width of every chip in pixels. ANY_SIZE: each chip has its own, from MIN_SIZE to MAX_SIZE."""
    photo_bands: tuple[str, ...] = PHOTO_BANDS
    check_georeference: bool = True
    boxes: bool = False
    """Whether chips have the boxes of their crossings. A chip is then labelled by its boxes."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that cannot work."""
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
        if isinstance(self.size, str) and self.size != ANY_SIZE:
            raise ConfigError(f"data.size must be a number of pixels or {ANY_SIZE}, not {self.size!r}")
        if self.size != ANY_SIZE:
            require_whole("data.size", self.size, at_least=1)
            if int(self.size) > MAX_SIZE:
                raise ConfigError(f"data.size={self.size}: {TOO_LARGE}")


class Note(NamedTuple):
    """A remark on a usable file that its owner should know."""

    path: Path
    text: str


@dataclass(frozen=True)
class ChipCache:
    """An opened cache. Chips are numbered 0..n-1 over the good ones, in (region, name) order."""

    folder: Path
    regions: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    """int64 (n,): 1 = crossing, 0 = none. In a cache with boxes: 1 = at least one box."""
    sizes: np.ndarray
    """int64 (n, 2): height and width in pixels."""
    excluded: tuple[BadChip, ...]
    notes: tuple[Note, ...]
    """What was corrected in the chips: boxes clipped to their image."""
    groups: np.ndarray
    """int64 (n,): chips with the same number show the same ground, wholly or in part (dxc.geo.overlaps)."""
    unplaced: int
    """Number of chips that do not say where they lie. Their overlaps are not known, so each is a group of its own."""
    pixel_m: float | None
    """Edge of a pixel on the ground in metres. None where chips do not tell or differ."""
    data_hash: str
    """Identity of the chips by their content (region, name, label, bytes of the files). It is the same on every
    machine."""
    photo_bands: tuple[str, ...]
    """Bands of the photos, in file order; none where chips hold elevation alone."""
    photo_type: str | None
    """Type of the photos' pixels, uint8 or uint16; None without photos, and where chips differ."""
    _rows: np.ndarray
    _one_size: bool
    _boxes: np.ndarray | None
    """float32 (all boxes, 4), chip by chip; None in a cache without boxes."""
    _box_ends: np.ndarray
    """int64 (n + 1,): the boxes of chip i are _boxes[_box_ends[i] : _box_ends[i + 1]]."""

    @cached_property
    def _images(self) -> dict[tuple[int, int], np.ndarray]:
        return {}  # opened when first needed: a cache of many sizes has many files

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        # a pickled memory map would carry all the pixels into every loader process
        return {key: value for key, value in self.__dict__.items() if key != "_images"}

    @property
    def has_boxes(self) -> bool:
        return self._boxes is not None

    @property
    def unit(self) -> str:
        return "chip"

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASS_NAMES

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read chips of one size into memory: float32 (len(indices), C, H, W). Raises ValueError for several sizes."""
        indices = np.asarray(indices)
        sizes = self.sizes[indices]
        if (sizes != sizes[0]).any():
            raise ValueError(
                f"all chips of a batch need one size; these have {len(np.unique(sizes, axis=0))}"
            )
        height, width = sizes[0].tolist()
        if (height, width) not in self._images:
            path = self.folder / _array_name(height, width, one_size=self._one_size)
            try:
                self._images[height, width] = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise DataError(
                    f"cache_dir: {path} is gone or damaged ({error}); the same command builds it again"
                ) from error
        return self._images[height, width][self._rows[indices]]

    def boxes(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Boxes of chips: float32 (len(indices), M, 4), where M is the largest number of boxes and at least 1.

        Rows beyond a chip's own boxes are NaN. A box is (cx, cy, w, h), its centre and size relative to the image:
        0..1, x to the right, y down. Raises ValueError for a cache without boxes.
        """
        if self._boxes is None:
            raise ValueError("this cache was built without boxes")
        indices = np.asarray(indices)
        begin = self._box_ends[indices]
        counts = self._box_ends[indices + 1] - begin
        boxes = np.full((len(indices), max(1, counts.max(initial=0)), 4), np.nan, np.float32)
        number = np.arange(boxes.shape[1])
        own = number < counts[:, None]
        boxes[own] = self._boxes[(begin[:, None] + number)[own]]
        return boxes


def open_cache(
    root: Path | str,
    recipe: Recipe,
    *,
    cache_dir: Path | str,
    on_bad_chip: str = "raise",
    workers: int | None = None,
    progress: bool = True,
) -> ChipCache:
    """Open the cache of the chips under `root`, and build it if needed. Thread-safe and process-safe.

    Args:
        root: folder that holds the regions.
        recipe: how a chip becomes an array.
        cache_dir: folder of the caches.
        on_bad_chip: 'raise', or 'skip' to leave bad chips out and list them in `excluded`.
        workers: processes that read chips; None for one per core.
        progress: whether to show progress bars.

    Raises:
        BadChipsError: there are bad chips, all of which it lists, and on_bad_chip is 'raise'.
        DataError: no chip is left, the chips do not hold what a channel is made of, or the disk is full.

    """
    from filelock import FileLock

    if on_bad_chip not in ("raise", "skip"):
        raise ConfigError(f"source.on_bad_chip must be raise or skip, not {on_bad_chip!r}")
    manifest = scan(root, boxes=recipe.boxes)
    _check_held(manifest, recipe)
    if manifest.bad and on_bad_chip == "raise" and not manifest.chips:
        raise BadChipsError(manifest.bad, root=manifest.root)
    folder = Path(cache_dir) / f"chips-{_cache_key(manifest.fingerprint, recipe)}"
    try:
        cache = _load(folder, recipe)
    except _NoCache:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                cache = _load_or_build(folder, manifest, recipe, workers, progress)
        except OSError as error:
            raise _disk_error(error, folder) from error
        except BrokenExecutor as error:
            raise DataError(
                f"a process that reads the chips under {root} was killed: memory ran out, or a file crashed the "
                f"reader ({error}); the same command begins again"
            ) from error
    if cache.excluded and on_bad_chip == "raise":
        raise BadChipsError(cache.excluded, root=manifest.root)
    if not len(cache):
        raise DataError(f"no usable chip is left under {root}: all {len(cache.excluded)} were excluded")
    return cache


def _check_held(manifest: Manifest, recipe: Recipe) -> None:
    """Raise DataError where a channel is made of elevation or photos, and the chips hold none."""
    held = [*(["dem"] if manifest.has_dem else []), *(recipe.photo_bands if manifest.has_photo else [])]
    needed = [*(["dem"] if "dem" in recipe.channels else []), *needed_photo_bands(recipe.channels)]
    if missing := [band for band in needed if band not in held]:
        alone = "elevation alone (dem)" if manifest.has_dem else f"photos alone ({', '.join(held)})"
        raise DataError(
            f"source.root: the chips under {manifest.root} hold {alone}, and data.channels="
            f"[{','.join(recipe.channels)}] needs {', '.join(missing)} too. {fitting_override(held)} fits these chips. "
            f"If they should hold more: {LAYOUT_HELP}"
        )


def _cache_key(fingerprint: str, recipe: Recipe) -> str:
    identity = json.dumps([FORMAT, fingerprint, asdict(recipe)], sort_keys=True)
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


class _NoCache(Exception):
    """There is no cache that can be used; the message is the reason."""


# errors that reading a damaged cache.json or .npy file raises
_DAMAGES = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RecursionError)


def _load_or_build(
    folder: Path, manifest: Manifest, recipe: Recipe, workers: int | None, progress: bool
) -> ChipCache:
    """Load the cache if another process has built it meanwhile, else build it. The caller holds the lock."""
    try:
        return _load(folder, recipe)
    except _NoCache as reason:
        if folder.exists():
            log.warning("cache_dir: %s is damaged (%s) and is built again", folder, reason)
            shutil.rmtree(folder)
    _build(folder, manifest.chips, manifest.bad, recipe, workers, progress)
    try:
        return _load(folder, recipe)
    except _NoCache as reason:
        raise OSError(errno.EIO, f"the files just written cannot be read: {reason}") from reason


def _load(folder: Path, recipe: Recipe) -> ChipCache:
    """The cache in `folder`. Raises _NoCache where there is none or it is incomplete."""
    path = folder / "cache.json"
    try:
        cache = _from_record(folder, json.loads(path.read_text()), recipe)
        needed: dict[_Size, int] = {}
        for (height, width), row in zip(cache.sizes.tolist(), cache._rows.tolist(), strict=True):
            needed[height, width] = max(row + 1, needed.get((height, width), 0))
        for (height, width), rows in needed.items():
            path = folder / _array_name(height, width, one_size=cache._one_size)
            images = np.load(path, mmap_mode="r")  # a ValueError unless it is as long as its header says
            if images.shape[1:] != (len(recipe.channels), height, width) or len(images) < rows:
                raise ValueError(f"holds an array of shape {images.shape}")
    except FileNotFoundError as error:
        raise _NoCache(f"{path.name} is missing") from error
    except _DAMAGES as error:
        raise _NoCache(f"{path.name}: {error!r}") from error
    return cache


def _from_record(folder: Path, record: Any, recipe: Recipe) -> ChipCache:
    """The cache that cache.json describes. Raises one of many errors where the file is damaged."""
    rows, regions, names, labels = zip(*record["chips"], strict=True) if record["chips"] else ((),) * 4
    one_size = recipe.size != ANY_SIZE
    sizes = np.full((len(names), 2), recipe.size) if one_size else np.array(record["sizes"])
    boxes = record["boxes"] if recipe.boxes else []
    if len(record["groups"]) != len(names) or (recipe.boxes and len(boxes) != len(names)):
        raise ValueError("its lists are of different lengths")
    return ChipCache(
        folder=folder,
        regions=regions,
        names=names,
        labels=np.asarray(labels, dtype=np.int64),
        sizes=sizes.astype(np.int64).reshape(-1, 2),
        excluded=tuple(BadChip(Path(path), reason) for path, reason in record["excluded"]),
        notes=tuple(Note(Path(path), text) for path, text in record.get("notes", [])),
        groups=np.asarray(record["groups"], dtype=np.int64),
        unplaced=int(record["unplaced"]),
        pixel_m=None if record["pixel_m"] is None else float(record["pixel_m"]),
        data_hash=record["data_hash"],
        photo_bands=recipe.photo_bands if record["has_photo"] else (),
        photo_type=record["photo_types"][0] if len(record["photo_types"]) == 1 else None,
        _rows=np.asarray(rows, dtype=np.int64),
        _one_size=one_size,
        _boxes=np.array([box for of_chip in boxes for box in of_chip], np.float32).reshape(-1, 4)
        if recipe.boxes
        else None,
        _box_ends=np.cumsum([0, *(len(of_chip) for of_chip in boxes)]),
    )


def _build(
    folder: Path,
    chips: Sequence[Chip],
    bad: Sequence[BadChip],
    recipe: Recipe,
    workers: int | None,
    progress: bool,
) -> None:
    """Read every chip into the arrays of a new cache. The caller holds its lock."""
    workers = 1 if len(chips) < SERIAL_BELOW else workers or usable_cores()
    with whole_folder(folder, locked=True) as draft:
        with _mapper(workers) as mapper:
            in_chunks = partial(_in_chunks, mapper, progress)
            sizes: list[_Size | None]
            if isinstance(recipe.size, int):
                sizes = [(recipe.size, recipe.size)] * len(chips)
            else:
                sizes = in_chunks("reading sizes", _read_sizes, chips)
            counts = Counter(size for size in sizes if size is not None)
            shapes = {size: (count, len(recipe.channels), *size) for size, count in counts.items()}
            _require_space(folder.parent, sum(math.prod(shape) * 4 for shape in shapes.values()))
            slots = _make_slots(draft, sizes, shapes, one_size=isinstance(recipe.size, int))
            outcomes = in_chunks("reading chips", partial(_read_chunk, recipe), chips, slots)
        _write_record(draft / "cache.json", chips, bad, recipe, slots, outcomes)
        for path in (*draft.iterdir(), draft):
            sync_to_disk(path)  # without it, a power cut could leave a cache of zeros under the final name


def _in_chunks(
    mapper: Callable, progress: bool, title: str, work: Callable, *columns: Sequence[Any]
) -> list[Any]:
    """Call `work` on CHUNK chips at a time.

    Args:
        mapper: a `map`, as from _mapper.
        progress: whether to show a progress bar.
        title: of the progress bar.
        work: takes a chunk of each column and returns a list with one item a chip.
        columns: sequences with one item a chip.

    Returns:
        The items of all chunks, in the order of the chips.
    """
    starts = range(0, len(columns[0]), CHUNK)
    jobs = [[column[start : start + CHUNK] for start in starts] for column in columns]
    results: list[Any] = []
    with Steps(len(columns[0]), title, "chip", shown=progress, quick=True) as bar:
        for part in mapper(work, *jobs):
            results += part
            bar.update(steps=len(part))
    return results


@contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """A `map` over this number of processes; for one worker the built-in map."""
    if workers == 1:
        yield map
        return
    # forkserver: its children inherit neither torch's threads nor their locks, and import rasterio only once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["rasterio", __name__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_Size = tuple[int, int]  # height, width


class _Slot(NamedTuple):
    """Where one chip's pixels go: a row of the array of its size, and the offset of that row in bytes."""

    path: Path
    row: int
    offset: int
    size: _Size


class _Outcome(NamedTuple):
    """Result of reading one chip: digests of its files, and the reason if it is unusable."""

    digests: tuple[str, ...]
    """Digests of elevation and photo, if a chip holds it; with boxes also of the annotation, empty if there is none."""
    bad: BadChip | None
    boxes: tuple[tuple[float, ...], ...] = ()
    """As in ChipCache.boxes."""
    notes: tuple[Note, ...] = ()
    outline: Outline | None = None
    """The ground it shows, if it says where it lies."""
    photo_type: str | None = None
    """Type of its photo's pixels, if it has one."""


class _Unusable(Exception):
    """A chip's file cannot be used; the message is the reason."""


def _array_name(height: int, width: int, *, one_size: bool) -> str:
    return "images.npy" if one_size else f"images-{height}x{width}.npy"


def _make_slots(
    folder: Path,
    sizes: Sequence[_Size | None],
    shapes: Mapping[_Size, tuple[int, ...]],
    *,
    one_size: bool,
) -> list[_Slot | None]:
    """Create the arrays and return the slot of each chip; None for a chip without a usable size."""
    paths = {size: folder / _array_name(*size, one_size=one_size) for size in shapes}
    begins = {size: _write_npy_header(paths[size], shape) for size, shape in shapes.items()}
    next_row: Counter[_Size] = Counter()
    slots: list[_Slot | None] = []
    for size in sizes:
        if size is None:
            slots.append(None)
            continue
        row = next_row[size]
        offset = begins[size] + row * math.prod(shapes[size][1:]) * 4
        slots.append(_Slot(paths[size], row, offset, size))
        next_row[size] += 1
    return slots


def _read_sizes(chips: Sequence[Chip]) -> list[_Size | None]:
    """Worker: size of each chip by the header of its first file; None if it cannot be read or be a chip's.

    The reason is found later, when the chip is read.
    """
    import rasterio
    from rasterio.errors import RasterioError

    sizes: list[_Size | None] = []
    with rasterio.Env(**GDAL_OPTIONS):
        for chip in chips:
            try:
                _check_file(chip.files[0])
                with rasterio.open(chip.files[0], driver="GTiff") as raster:
                    sizes.append(None if _size_trouble(*raster.shape) else raster.shape)
            except (RasterioError, OSError, _Unusable):
                sizes.append(None)
    return sizes


def _size_trouble(height: int, width: int) -> str | None:
    """Why a chip of this size is not read with data.size=any; None where it is read."""
    if max(height, width) > MAX_SIZE:
        return TOO_LARGE
    return TOO_SMALL if min(height, width) < MIN_SIZE else None


def _read_chunk(recipe: Recipe, chips: Sequence[Chip], slots: Sequence[_Slot | None]) -> list[_Outcome]:
    """Worker: read chips and write each straight into its slot.

    Writing with pwrite instead of through a memory map keeps the resident memory of a build small.
    """
    import rasterio

    outcomes = []
    with rasterio.Env(**GDAL_OPTIONS):
        for chip, slot in zip(chips, slots, strict=True):
            image, outcome = _read_chip(chip, recipe, slot.size if slot else None)
            if image is not None and slot is not None:
                descriptor = os.open(slot.path, os.O_WRONLY)
                try:
                    _write_all(descriptor, image.tobytes(), slot.offset)
                finally:
                    os.close(descriptor)
            outcomes.append(outcome)
    return outcomes


def _read_chip(chip: Chip, recipe: Recipe, size: _Size | None) -> tuple[np.ndarray | None, _Outcome]:
    """Read all files of a chip.

    Args:
        chip: the chip.
        recipe: how it becomes an array.
        size: required height and width; None where the chip has no usable size.

    Returns:
        float32 (C, H, W), or None for an unusable chip; and the outcome.
    """
    digests: list[str] = []
    boxes: tuple[tuple[float, ...], ...] = ()
    notes: tuple[Note, ...] = ()
    path = chip.files[0]
    elevation: np.ndarray | None = None
    bands: dict[str, np.ndarray] = {}
    places: list[_Place] = []
    try:
        if chip.dem is not None:
            dem, place, digest = _read_raster(path, size, bands=("dem",), dtypes=DEM_DTYPES)
            digests.append(digest)
            places.append(place)
            elevation = _checked_elevation(dem[0], place.nodata)
        if chip.photo is not None:
            path = chip.photo
            beside = chip.dem is not None and recipe.size == ANY_SIZE
            photo, place, digest = _read_raster(
                path,
                size,
                bands=recipe.photo_bands,
                dtypes=PHOTO_DTYPES,
                expected="its elevation chip" if beside else "expected",
            )
            digests.append(digest)
            places.append(place)
            if not photo.any() or (place.nodata is not None and (photo == place.nodata).all()):
                raise _Unusable("the photo has no data anywhere in the chip")
            bands = dict(zip(recipe.photo_bands, photo, strict=True))
        if recipe.check_georeference and len(places) == 2:
            _check_same_place(*places)
        height, width = (photo[0] if elevation is None else elevation).shape
        if recipe.boxes and chip.annotation is None:
            digests.append("")
        elif recipe.boxes and chip.annotation is not None:
            path = chip.annotation
            boxes, notes, digest = _read_boxes(path, chip.label, height, width)
            digests.append(digest)
    except (_Unusable, UnusableAnnotation) as reason:
        return None, _Outcome(tuple(digests), BadChip(path, str(reason)))
    used = {band: bands[band] for band in needed_photo_bands(recipe.channels)}
    photo_type = str(photo.dtype) if chip.photo is not None else None
    fixed = fixed_constants(recipe.channels, photo_type) if recipe.normalise == "fixed" else {}
    image = stack_channels(
        elevation, used, recipe.channels, normalise=recipe.normalise, repair=recipe.repair, **fixed
    )
    outline = None
    if recipe.check_georeference:  # without this check the places in the files are not reliable
        outline = outline_of(places[0].crs, places[0].transform, height, width)
    return image, _Outcome(tuple(digests), None, boxes, notes, outline, photo_type)


def read_some(chips: Sequence[Chip], recipe: Recipe) -> list[tuple[np.ndarray, np.ndarray] | BadChip]:
    """Read a few chips without a cache.

    Args:
        chips: of a manifest (dxc.data.layout.scan).
        recipe: how a chip becomes an array.

    Returns:
        For each chip its image float32 (C, H, W) and its boxes (M, 4) as in ChipCache.boxes, none where the recipe asks
        for none; or why it cannot be used.
    """
    import rasterio

    fixed = (recipe.size, recipe.size) if isinstance(recipe.size, int) else None
    sizes = [fixed] * len(chips) if fixed else _read_sizes(chips)
    read: list[tuple[np.ndarray, np.ndarray] | BadChip] = []
    with rasterio.Env(**GDAL_OPTIONS):
        for chip, size in zip(chips, sizes, strict=True):
            image, outcome = _read_chip(chip, recipe, size)
            if image is None:
                read.append(outcome.bad or BadChip(chip.files[0], "cannot be used"))
            else:
                read.append((image, np.array(outcome.boxes).reshape(-1, 4)))
    return read


def _read_boxes(
    path: Path, label: int, height: int, width: int
) -> tuple[tuple[tuple[float, ...], ...], tuple[Note, ...], str]:
    """An annotation -> (boxes as in ChipCache.boxes, notes, digest of its bytes)."""
    annotation = read_voc(path, width=width, height=height)
    if label == CLASSES["F"] and len(annotation.boxes):
        raise _Unusable("has a box, but its chip is in class F (no crossing)")
    empty = label == CLASSES["T"] and not len(annotation.boxes)
    remarks = (
        ["holds no object: its chip is in class T but counts as one without a crossing"] if empty else []
    )
    low, high = annotation.boxes[:, :2], annotation.boxes[:, 2:]
    try:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror or error}") from error
    relative = np.hstack([(low + high) / 2, high - low]) / [width, height, width, height]
    return (
        tuple(map(tuple, relative.tolist())),
        tuple(Note(path, text) for text in (*annotation.notes, *remarks)),
        digest,
    )


class _Place(NamedTuple):
    """Where a raster lies: CRS (or None), affine transform, nodata value (or None)."""

    crs: object
    transform: object
    nodata: float | None


def _read_raster(
    path: Path,
    size: _Size | None,
    *,
    bands: Sequence[str],
    dtypes: Sequence[str],
    expected: str = "expected",
) -> tuple[np.ndarray, _Place, str]:
    """Read one file of a chip.

    Args:
        path: the file.
        size: required height and width; None where the chip has no usable size.
        bands: names of its bands.
        dtypes: types that it may have.
        expected: in messages, where the required size comes from.

    Returns:
        Pixels (len(bands), *size), the place, and a digest of the bytes.

    Raises:
        _Unusable: the file cannot be used.
    """
    import rasterio

    try:
        _check_file(path)
        content = path.read_bytes()
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror or error}") from error
    try:
        with rasterio.MemoryFile(content) as memory, memory.open(driver="GTiff") as raster:
            if raster.count != len(bands):
                raise _Unusable(f"has {raster.count} band(s), expected {len(bands)}: {', '.join(bands)}")
            if raster.shape != size:
                raise _Unusable(
                    f"is {raster.width} x {raster.height} pixels, "
                    + (
                        f"{expected} {size[1]} x {size[0]}"
                        if size
                        else _size_trouble(*raster.shape) or CHANGED
                    )
                )
            if wrong := sorted(set(raster.dtypes) - set(dtypes)):
                raise _Unusable(f"is of type {', '.join(wrong)}, expected one of {', '.join(dtypes)}")
            if trouble := block_trouble(raster):
                raise _Unusable(trouble)
            array = raster.read()
            place = _Place(raster.crs, raster.transform, raster.nodata)
    except _Unusable:
        raise
    except Exception as error:  # rasterio raises errors of many kinds; all of them concern this file
        raise _Unusable(f"cannot be read as a GeoTIFF: {_one_line(error)}") from error
    return array, place, hashlib.blake2b(content, digest_size=16).hexdigest()


def _check_file(path: Path) -> None:
    """Raise _Unusable for folders, pipes, and files that are empty or too large."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _Unusable("is not a file")
    if status.st_size == 0:
        raise _Unusable("is empty (0 bytes)")
    if status.st_size > MAX_FILE_BYTES:
        raise _Unusable(
            f"has {status.st_size / 1e6:,.0f} MB, more than a chip's {MAX_FILE_BYTES / 1e6:.0f} MB"
        )


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
    """Raise _Unusable where the georeferences of the two files of a chip do not agree."""
    ignore = "; source.check_georeference=false trusts the file names instead"
    if dem.crs != photo.crs:
        raise _Unusable(
            f"photo is in {photo.crs or 'no CRS'}, its elevation chip in {dem.crs or 'no CRS'}{ignore}"
        )
    if dem.crs is None:
        return  # neither says where it lies: only their names connect them
    a, b = dem.transform, photo.transform
    if abs(abs(a.a) - abs(b.a)) > 0.01 * abs(a.a):  # type: ignore[attr-defined]
        raise _Unusable(f"photo has pixels of {abs(b.a):g}, its elevation chip of {abs(a.a):g}{ignore}")  # type: ignore[attr-defined]
    shift = max(abs(a.c - b.c) / abs(a.a), abs(a.f - b.f) / abs(a.e))  # type: ignore[attr-defined]
    if shift > MAX_SHIFT_PIXELS:
        raise _Unusable(f"photo lies {shift:.0f} pixels away from its elevation chip{ignore}")


def usable_cores() -> int:
    """Number of cores that this process may use. A Slurm job or a container has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_record(
    path: Path,
    chips: Sequence[Chip],
    bad: Sequence[BadChip],
    recipe: Recipe,
    slots: Sequence[_Slot | None],
    outcomes: Sequence[_Outcome],
) -> None:
    good = [
        (int(bool(outcome.boxes)) if recipe.boxes else chip.label, chip, slot, outcome)
        for chip, slot, outcome in zip(chips, slots, outcomes, strict=True)
        if slot is not None and outcome.bad is None
    ]
    content = [[chip.region, chip.name, label, *outcome.digests] for label, chip, _, outcome in good]
    record: dict[str, Any] = {
        "chips": [[slot.row, chip.region, chip.name, label] for label, chip, slot, _ in good],
        "excluded": sorted(
            [str(item.path), item.reason] for item in [*bad, *(o.bad for o in outcomes if o.bad is not None)]
        ),
        "data_hash": hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest(),
    }
    record["photo_types"] = sorted({o.photo_type for *_, o in good if o.photo_type is not None})
    record["has_photo"] = any(chip.photo for chip in chips)
    outlines = [outcome.outline for *_, outcome in good]
    record["groups"] = overlap_groups(outlines).tolist()
    record["unplaced"] = outlines.count(None) if recipe.check_georeference else 0
    record["pixel_m"] = pixel_m(outlines, [slot.size for _, _, slot, _ in good])
    if recipe.size == ANY_SIZE:
        record["sizes"] = [slot.size for _, _, slot, _ in good]
    if recipe.boxes:
        record["boxes"] = [outcome.boxes for *_, outcome in good]
        record["notes"] = sorted(
            [str(note.path), note.text] for *_, outcome in good for note in outcome.notes
        )
    path.write_text(json.dumps(record))


def _write_npy_header(path: Path, shape: tuple[int, ...]) -> int:
    """Create an .npy file of zeros (sparse) with the given float32 shape; returns where its data begins."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        offset = file.tell()
        file.truncate(offset + math.prod(shape) * 4)
    return offset


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            errno.ENOSPC, f"{needed_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free", str(folder)
        )


def _disk_error(error: OSError, folder: Path) -> DataError:
    what = "no space left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot write"
    return DataError(
        f"cache_dir: {what} while building {folder} ({error.strerror or error}); "
        "free some space or point cache_dir at another disk"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())
