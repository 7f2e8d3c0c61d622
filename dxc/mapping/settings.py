"""What map.py is asked: the keys of conf/map.yaml, which explains each, checked."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dxc.config.checked import Amount, Flag, Limit, Part, Positive, Text, must_be
from dxc.errors import ConfigError, is_number
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.crossing_layers import checked_codes
from dxc.geo.mosaic import SUFFIXES
from dxc.geo.settings import Columns, Rasters

Mode = Literal["auto", "chips", "dense", "corridor"]


def _path(value: Any) -> Any:
    return value if value is None or isinstance(value, Path) else Path(str(value))


def _text(value: Any) -> Any:
    return None if value is None else str(value)  # study=2026


File = Annotated[Path | None, BeforeValidator(_path)]
Name = Annotated[str | None, BeforeValidator(_text)]
Share = Annotated[
    int | float, must_be(lambda value: is_number(value) and 0 < value < 1, "a number between 0 and 1")
]
Places = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else [] if value is None else value),
]

BandNames = Annotated[
    list[str],
    must_be(
        lambda names: isinstance(names, list | tuple) and bool(names) and not set(names) - set(PHOTO_BANDS),
        f"names of the photo's bands, out of {', '.join(PHOTO_BANDS)}",
    ),
]


def _overlap(one: Path, other: Path) -> bool:
    """Whether two rasters share a file: each may be a file, the folder of it or a pattern."""
    a, b = Path(one).resolve(), Path(other).resolve()
    return a == b or a == b.parent or b == a.parent or fnmatch(str(a), str(b)) or fnmatch(str(b), str(a))


def _would_take(given: Path, path: Path) -> bool:
    """Whether a folder of tiles or a pattern would take a file in, whose name may not exist yet."""
    a, b = given.resolve(), path.resolve()
    patterns = [str(a)] if len(a.parts) == len(b.parts) else []
    if "**" in a.parts:  # stands for any folders, or none
        patterns = [str(a), str(a).replace("**/", "")]
    alike = a != b and any(fnmatch(str(b), each) for each in patterns)
    return path.suffix.lower() in SUFFIXES and (a == b.parent or alike)


KEPT = 0.05
"""Windows of a lower probability are not kept as candidates; the raster shows them."""


class Store(Part):
    """Where runs are tracked."""

    uri: Text
    artifacts: Places = Field(default=[])


class Fit(Part):
    """A region that the network was trained on; the threshold of the dense pass is fitted there."""

    dem: Rasters = None
    photo: Rasters = None
    crossings: File = None
    crossings_layer: Name = None
    crossings_xy: Columns = None
    crossings_crs: Name = None
    photo_bands: BandNames | None = None
    dem_units: Name = None
    crs: Name = None


def _regions(value: Any) -> Any:
    """One region, or several, or none."""
    listed = [value] if isinstance(value, Mapping | Fit) else value
    if not (listed is None or isinstance(listed, list | tuple)):
        raise ValueError(
            f" must be a list of regions, [{{dem:FILE,photo:FILE,crossings:FILE}}], not {value!r:.80}"
        )
    return listed or []


class MapSettings(Part):
    """Which network is run over which rasters, how, and where the map goes. conf/map.yaml explains each key."""

    run: Name = None
    study: Name = None
    pick: Text = "knee"
    onnx: File = None
    fold: Name = None
    dem: Rasters = None
    photo: Rasters = None
    roads: File = None
    truth: File = None
    out: Annotated[Path, BeforeValidator(_path)]
    breached: File = None
    codes: dict[str, Any] = Field(default={})

    mode: Mode = "auto"
    corridor_m: Limit = 15
    stride_m: Positive | None = None
    jitter_m: Limit | None = None
    every_window: Flag = False
    refine: Flag = True
    screen_logit: Annotated[
        int | float | None, must_be(lambda value: value is None or is_number(value), "a number, or null")
    ] = None
    screen_recall: Share = 0.99
    screen_margin: Amount = 0.5
    fit: Annotated[list[Fit], BeforeValidator(_regions)] = Field(default=[])
    threshold: Annotated[
        int | float,
        must_be(
            lambda value: is_number(value) and KEPT <= value < 1, f"a number of at least {KEPT} and below 1"
        ),
    ] = 0.5
    merge_m: Limit = 30
    alarms_per_km2: Amount = 1
    calibrate: Literal["auto", "none"] = "auto"

    roads_layer: Name = None
    truth_layer: Name = None
    truth_xy: Columns = None
    truth_crs: Name = None
    photo_bands: BandNames = Field(default=list(PHOTO_BANDS))
    dem_units: Name = None
    crs: Name = None
    vrt_anywhere: Flag = False
    tile_m: Positive = 1000

    provider: Literal["cpu", "cuda"] = "cpu"
    threads: Positive | None = None
    batch: Positive = 32
    overwrite: Flag = False
    progress: Flag = True
    log: Flag = True
    cache_dir: Text = "cache"
    tracking: Store

    @model_validator(mode="after")
    def _together(self) -> Self:
        named = [key for key in ("run", "study", "onnx") if getattr(self, key) is not None]
        if len(named) != 1 and named != ["study", "onnx"]:
            told = "none of them is given" if not named else f"{' and '.join(named)} are given"
            raise ValueError(
                f"which network? Give one of run=RUN_ID, study=NAME (analyze.py's choice) or onnx=FILE; {told}."
            )
        if self.onnx is not None and self.fold is not None:
            raise ValueError(
                f"fold={self.fold} chooses a network of a run or a study, and onnx={self.onnx} is one already: leave "
                "one of them out."
            )
        if self.dem is None and self.photo is None:
            raise ValueError("neither dem nor photo is given: a map is made of dem=..., photo=... or both.")
        if self.mode == "corridor" and self.roads is None:
            raise ValueError("mode=corridor needs the roads: give roads=roads.gpkg, or mode=chips.")
        self._check_screen()
        if self.out.suffix.lower() != ".gpkg":
            raise ValueError(f"out={self.out} must be a GeoPackage: out={self.out.stem or 'crossings'}.gpkg.")
        if self.breached is not None:
            if self.dem is None:
                raise ValueError(
                    f"breached={self.breached} is cut out of an elevation model: give dem=... too."
                )
            if self.breached.suffix.lower() not in (".tif", ".tiff"):
                raise ValueError(
                    f"breached={self.breached} is a GeoTIFF: breached={self.breached.stem or 'breached'}.tif."
                )
        if self.way == "dense" and self.screen_logit is None:
            mapped, fitted = (
                [path for of in places for paths in (of.dem, of.photo) for path in paths or ()]
                for places in ([self], self.fit)
            )
            if any(_overlap(one, other) for one in mapped for other in fitted):
                of = "" if self.fold is None else f" of fold={self.fold}"
                raise ValueError(
                    f"fit: the threshold{of} would be fitted on the region that it maps. Give another region in fit, "
                    "one that the network was trained on, or screen_logit; with fold=all and truth, leave fit out: "
                    "each region is fitted on the others."
                )
        given = [
            self.roads,
            self.truth,
            self.onnx,
            *(each.crossings for each in self.fit),
            *(self.dem or ()),
            *(self.photo or ()),
        ]
        read = [self.dem, self.photo, *(each.dem for each in self.fit), *(each.photo for each in self.fit)]
        places = [place for paths in read for place in paths or ()]
        for path, place in itertools.product(self.results, places):
            if _would_take(place, path):
                raise ValueError(
                    f"{path} would lie among the tiles of {place}, and the next call would read it as one of them: "
                    "give it another place."
                )
        inputs = {path.resolve() for path in given if path is not None}
        if taken := [path for path in self.results if path.resolve() in inputs]:
            raise ValueError(f"{taken[0]} is an input, which a map does not replace: give it another name.")
        try:
            checked_codes(self.codes)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def _check_screen(self) -> None:
        """Raise ValueError where a key of the dense pass is given that nothing would read."""
        given = [key for key in ("fit", "screen_logit") if getattr(self, key) not in (None, [])]
        fitting = [
            key for key in ("screen_recall", "screen_margin")
            if getattr(self, key) != type(self).model_fields[key].default
        ]  # fmt: skip
        if self.way != "dense" and (unread := given + fitting):
            raise ValueError(
                f"{unread[0]} belongs to the dense pass, and there is none"
                + (f" with mode={self.mode}" if self.mode != "auto" else "")
                + f": give mode=dense, or leave {unread[0]} out."
            )
        if self.screen_logit is not None and (unread := given[:-1] + fitting):
            raise ValueError(
                f"{unread[0]} says how a threshold is fitted, and screen_logit={self.screen_logit:g} is the threshold "
                "itself: leave one of them out."
            )

    @property
    def way(self) -> str:
        """The mode; for auto what it stands for."""
        if self.mode != "auto":
            return self.mode
        if self.fit or self.screen_logit is not None:
            return "dense"
        return "corridor" if self.roads is not None else "chips"

    @property
    def raster(self) -> Path:
        """Where the probabilities go."""
        return self.out.with_name(f"{self.out.stem}_probability.tif")

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation."""
        return self.out.with_name(f"{self.out.stem}_evaluation")

    @property
    def results(self) -> list[Path]:
        """What a call writes."""
        more = [self.evaluation] if self.truth is not None else []
        return [self.out, self.raster, *more, *([self.breached] if self.breached is not None else [])]
