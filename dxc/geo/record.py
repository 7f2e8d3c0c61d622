"""What a finished region says about itself, in OUT/REGION/cut.json: what its chips hold, and what they were cut with.

It lets the same command see that there is nothing to do, and the command that trains name what fits the chips. Free of
rasterio. A record may come from elsewhere with its chips: it is data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.rasterfiles import MAX_SIZE
from dxc.untrusted import load_json

NAME = "cut.json"
CHIPS = "chips.csv"
LEFT_OUT = "left_out.csv"
OVERVIEWS = ("chips.jpg",)
"""Pictures of the chips that may lie beside the tables (dxc.report.region_sheet)."""
MAX_BYTES = 100_000
BAND_NAMES = ("dem", *PHOTO_BANDS)


class Record(BaseModel):
    """What a region's chips hold, and what they were cut with.

    Attributes:
        region: its name.
        digest: hash of all settings and input files.
        settings: the settings by key; files are only in the digest.
        bands: that a chip holds: dem, if it holds elevation, then those of its photo in file order.
        size_m: edge of a chip in metres and pixels.
        crs: of the chips.
        positives, negatives: number of chips with and without a crossing.
        hard_negatives: how many of the latter lie at points of a map that are no crossing.
        boxes: number of boxes in all chips; None where none were requested.
        left_out: number of points that gave no chip.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=200)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    settings: dict[str, Any]
    bands: Annotated[list[Annotated[str, Field(pattern=f"^({'|'.join(BAND_NAMES)})$")]], Field(min_length=1)]
    size_m: Annotated[int, Field(ge=2, le=MAX_SIZE)]
    crs: str
    positives: Annotated[int, Field(ge=0)]
    negatives: Annotated[int, Field(ge=0)]
    hard_negatives: Annotated[int, Field(ge=0)]
    boxes: Annotated[int, Field(ge=0)] | None
    left_out: Annotated[int, Field(ge=0)]

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a region's folder; None where there is none, or it is not one."""
        try:
            return cls.model_validate(load_json(folder / NAME, limit=MAX_BYTES))
        except (OSError, ValueError, ValidationError, RecursionError):
            return None

    def missing(self, folder: Path) -> int:
        """How many files of its chips are no longer in its folder."""
        kinds = [*(["DEM"] if "dem" in self.bands else []), *(["Aer"] if self.bands != ["dem"] else [])]
        wanted = [(kind, label, ".tif") for kind in kinds for label in "FT"]
        if self.boxes is not None:
            wanted.append((kinds[-1], "T", ".xml"))
        gone = sum(not (folder / name).is_file() for name in (CHIPS, LEFT_OUT))
        for kind, label, end in wanted:
            there = len(list((folder / f"{self.region}{kind}" / label).glob(f"{self.region}_{label}_*{end}")))
            gone += max(0, (self.positives if label == "T" else self.negatives) - there)
        return gone


def foreign_files(folder: Path, region: str) -> list[Path]:
    """What lies in a region's folder and is not prepare.py's own, in order.

    Notes that GDAL makes of a chip (NAME.tif.aux.xml) go with it.
    """
    own = re.compile(
        rf"{region}(DEM|Aer)(/[FT](/{region}_([FT])_\d+\.(tif|xml|tif\.aux\.xml))?)?"
        rf"|{'|'.join(map(re.escape, (NAME, CHIPS, LEFT_OUT, *OVERVIEWS)))}"
    )
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_symlink() or not own.fullmatch(path.relative_to(folder).as_posix())
    )


def digest_of(settings: Mapping[str, Any], files: list[Any]) -> str:
    """Identity of a cut: all settings, and of each input file its path, size and time."""
    text = json.dumps([dict(settings), files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
