"""What prepare.py is given, checked: the keys of conf/prepare.yaml."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from dxc.config.checked import Flag, Natural, Part, must_be
from dxc.errors import is_number, is_whole
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.rasterfiles import MAX_SIZE


def _path(value: Any) -> Any:
    return value if isinstance(value, Path) else Path(str(value))  # a folder may be called 2026


def _text(value: Any) -> Any:
    return None if value is None else str(value)  # crs=26915


def _several(value: Any) -> Any:
    """near=roads.gpkg is as good as near=[roads.gpkg], and null as an empty list."""
    return [value] if isinstance(value, str | Path) else [] if value is None else value


def _rasters(value: Any) -> Any:
    """A list of files, folders and patterns; None where there is no such raster."""
    return None if value is None else [_path(each) for each in _several(value)]


def _number(low: float, high: float, what: str) -> BeforeValidator:
    return must_be(lambda value: is_number(value) and low <= value <= high, what)


def _whole(low: int, high: int, what: str) -> BeforeValidator:
    return must_be(lambda value: is_whole(value, low, high), what)


def _region(name: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(name)):
        raise ValueError(
            f"={name} names a folder and its files: use letters, digits, - and _, e.g. region=NE."
        )
    return str(name)


def _out(folder: Path) -> Path:
    if not str(folder).isprintable():
        raise ValueError(" has characters that cannot be shown or typed: give another name.")
    return folder


def _bands(bands: Any) -> Any:
    bands = list(PHOTO_BANDS) if bands is None else [bands] if isinstance(bands, str) else bands
    if not bands or len(set(bands)) < len(bands) or set(bands) - set(PHOTO_BANDS):
        raise ValueError(
            f" must name each band of the photo once, in its order, out of {', '.join(PHOTO_BANDS)}, not "
            f"[{','.join(map(str, bands))}]"
        )
    return list(bands)


def _columns(names: Any) -> Any:
    if names is not None and not (len(names) == 2 and all(isinstance(name, str) for name in names)):
        raise ValueError(f" must name two columns, x or longitude first, e.g. [lon,lat], not {names!r}")
    return names


Columns = Annotated[list[str] | None, BeforeValidator(_columns)]


def _for_each(files: Sequence[Path], layers: list[str | None]) -> list[str | None]:
    """One layer is for all files."""
    return layers * len(files) if len(layers) == 1 else layers


Text = Annotated[str | None, BeforeValidator(_text)]
Rasters = Annotated[list[Path] | None, BeforeValidator(_rasters)]
"""Of one place: a file, a folder of tiles, a pattern or a list of these (dxc.geo.mosaic)."""
Metres = Annotated[int | float, _number(0, 1e9, "0 metres or more")]


class CutSettings(Part):
    """What the chips of one region are cut from, and how. conf/prepare.yaml explains each key."""

    dem: Rasters = None
    photo: Rasters = None
    """Without one of them, chips hold the other alone."""
    crossings: Annotated[Path, BeforeValidator(_path)]
    out: Annotated[Path, BeforeValidator(lambda value: _out(_path(value)))]
    region: Annotated[str, BeforeValidator(_region)]
    layer: Text = None
    """Of `crossings`, if it has several."""
    crossings_xy: Columns = None
    """Columns of x and y, or longitude and latitude, in a .csv. None: those with a usual name."""
    crossings_crs: Text = None
    """CRS of a .csv (None: EPSG:4326 for columns called longitude and latitude), or of a file that names none."""
    photo_bands: Annotated[list[str], BeforeValidator(_bands)] = Field(default=list(PHOTO_BANDS))
    """Names of the photo's bands, in order. An alpha band that is a mask does not count. Fewer names choose bands by
    the names and colours in the file. Without those, four bands count as red, green, blue, nir."""
    dem_units: Text = None
    """Unit of the elevations: m, ft or us-ft. None: the unit of the DEM's CRS or band, else metres. Elevations of the
    chips are in metres."""
    vrt_anywhere: Flag = False
    """Whether a .vrt mosaic may have sources that do not lie below its own folder."""
    crs: Text = None
    """Projected CRS in metres. None: the DEM's own, else the photo's, or its UTM zone if that is not in metres."""
    size_m: Annotated[int, _whole(2, MAX_SIZE, f"a whole number of metres, 2 to {MAX_SIZE}")] = 100
    """Edge of a chip in metres and pixels."""
    boxes: float | str | list[float | str] | None = None
    """Edge of the crossings' boxes in metres, or the column of `crossings` with each one's own; two for width
    (east-west) and height (north-south). None: no annotations. A crossing without a positive number in the column has
    no chip, and neither has a crossing whose chip would show it."""
    jitter_m: Annotated[int | float, _number(0, 5000, "0 metres or more")] = 0.0
    max_positives: Annotated[
        int | None,
        must_be(
            lambda value: value is None or is_whole(value, 1),
            "a whole number, 1 or more, or null for all",
        ),
    ] = None
    """Stop after so many chips with a crossing, in the order of the file."""
    min_distance_m: Metres = 100.0
    near: Annotated[list[Path], BeforeValidator(_several)] = Field(default=[])
    near_layers: Annotated[list[str | None], BeforeValidator(_several)] = Field(default=[])
    """One for each file of `near`, None for its only one; or one for all, or none."""
    near_share: Annotated[int | float, _number(0, 1, "a share from 0 to 1")] = 0.5
    negatives: Annotated[list[Path], BeforeValidator(_several)] = Field(default=[])
    """Points that a map shows. Those that are no crossing get chips, beside the others without one."""
    negatives_layers: Annotated[list[str | None], BeforeValidator(_several)] = Field(default=[])
    """As near_layers, for the files of `negatives`."""
    negatives_m: Metres = 30.0
    """Least distance of such a point from every crossing, and from another such point."""
    negatives_max: Annotated[
        int | None,
        must_be(
            lambda value: value is None or is_whole(value, 1),
            "a whole number, 1 or more, or null for all",
        ),
    ] = None
    """Stop after so many chips of `negatives`: the first points of each file, which of a map are the most certain."""
    seed: Natural = 0
    overwrite: Flag = False
    """Cut the chips again and replace those that are there. Only what this room wrote is removed."""
    workers: Annotated[int, _whole(1, 1000, "a whole number of threads, 1 or more")] = 2
    """Their number does not change the result."""
    progress: Flag = True

    @property
    def edges(self) -> list[Any]:
        """Width and height of boxes, as `boxes` gives them."""
        return self.boxes if isinstance(self.boxes, list) else [self.boxes, self.boxes]

    @property
    def layers_of_near(self) -> Sequence[str | None]:
        """A layer for each file of `near`; none where none is named."""
        return _for_each(self.near, self.near_layers)

    @property
    def layers_of_negatives(self) -> Sequence[str | None]:
        """A layer for each file of `negatives`; none where none is named."""
        return _for_each(self.negatives, self.negatives_layers)

    @model_validator(mode="before")
    @classmethod
    def _boxes(cls, values: Any) -> Any:
        """Before pydantic tries the kinds of value that boxes may be: it would complain of each."""
        boxes, size_m = values.get("boxes"), values.get("size_m", 100)
        if boxes is None or not is_number(size_m):
            return values
        edges = list(boxes) if isinstance(boxes, list | tuple) else [boxes, boxes]
        is_edge = [isinstance(edge, str) or (is_number(edge) and 0 < edge <= size_m) for edge in edges]
        if len(edges) != 2 or not all(is_edge):
            given = f"[{','.join(map(str, edges))}]" if isinstance(boxes, list | tuple) else boxes
            raise ValueError(
                f"boxes must be metres, more than 0 and at most size_m={size_m}, or the name of a column of the "
                f"crossings, or two of these for width and height, e.g. boxes=[width_m,height_m], not {given}"
            )
        return values

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.dem is None and self.photo is None:
            raise ValueError(
                "neither dem nor photo is given: chips are cut out of dem=..., photo=... or both."
            )
        if self.jitter_m >= self.size_m / 2:
            raise ValueError(
                f"jitter_m={self.jitter_m:g} would shift a crossing out of its chip: stay below half of "
                f"size_m={self.size_m}."
            )
        for key, layers, files in (
            ("near", self.layers_of_near, self.near),
            ("negatives", self.layers_of_negatives, self.negatives),
        ):
            if layers and len(layers) != len(files):
                raise ValueError(
                    f"{key}_layers names {len(layers)} layers for {len(files)} files in {key}: name one for all, or "
                    "one for each (null for the only one of a file)."
                )
        least = math.sqrt(2) * (self.jitter_m + 1)  # as far as a crossing may lie from the centre of its chip
        if self.negatives and self.negatives_m < least:
            raise ValueError(
                f"negatives_m={self.negatives_m:g} is too little for jitter_m={self.jitter_m:g}: crossings lie up to "
                f"{least:.0f} m from the centre of their chips, and chips of negatives would show the same. Give "
                f"negatives_m={math.ceil(least)} or more, or a smaller jitter_m."
            )
        return self
