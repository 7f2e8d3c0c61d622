"""The command that trains on what prepare.py cut: what its chips hold decides model, channels, size and folds.

Free of torch, as prepare.py is.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path

from dxc.config.overrides import quoted_value
from dxc.data.bands import fitting_override
from dxc.data.folds import make_folds
from dxc.data.layout import CLASSES
from dxc.errors import DataError
from dxc.geo.bands import PHOTO_BANDS
from dxc.geo.overlaps import SEAM_PIXELS, Outline, overlap_groups
from dxc.geo.record import CHIPS, Record
from dxc.models.registry import MIN_SIZE, NETWORKS, Network

FOLDS = 5
"""data.folds where nothing else is said."""
SIZE = 100
"""data.size where nothing else is said."""


def next_step(out: Path) -> str:
    """`python train.py ...` for all regions in a folder; or what to do first, where no command could train on them."""
    records = {
        path.name: record
        for path in sorted(out.iterdir())
        if path.is_dir() and not path.name.startswith(".") and (record := Record.read(path)) is not None
    }
    together = f"the regions in {out} are trained together, and "
    apart = "Cut them alike, or into another out="
    bands = {name: record.bands for name, record in records.items()}
    if len({*map(tuple, bands.values())}) > 1:
        told = ", ".join(f"{name}: {' '.join(held)}" for name, held in bands.items())
        return f"{together}hold different bands ({told}). {apart}, with the same rasters and photo_bands."
    sizes = {record.size_m for record in records.values()}
    detector = _detector(sizes) if all(record.boxes is not None for record in records.values()) else None
    if len(sizes) > 1 and (detector is None or not detector.any_size):
        told = ", ".join(f"{name}: {record.size_m} m" for name, record in records.items())
        return f"{together}have chips of different sizes ({told}). {apart}, with the same size_m."
    try:
        folds = _folds({name: out / name for name in records})
    except DataError as error:
        return f"there are too few chips to train and to validate. {error}"

    (held,) = {*map(tuple, bands.values())}
    photo = [band for band in held if band != "dem"]
    (size,) = sizes if len(sizes) == 1 else ("any",)
    overrides = [
        *([] if detector is None else [f"model={detector.space}"]),
        "source=chips",
        f"source.root={quoted_value(str(out))}",
        *([f"source.photo_bands={quoted_value(photo)}"] if photo and photo != [*PHOTO_BANDS] else []),
        fitting_override(held),
        *([] if size == SIZE else [f"data.size={size}"]),
        *([] if folds == FOLDS else [f"data.folds={folds}"]),
    ]
    return shlex.join(["python", "train.py", *overrides])


def _detector(sizes: set[int]) -> Network | None:
    """The registry's first network that is trained with boxes and that conf/ offers; None where chips are too small."""
    if min(sizes) < MIN_SIZE:
        return None
    return next((each for each in NETWORKS.values() if each.task == "detection" and each.space), None)


def _folds(regions: dict[str, Path]) -> int:
    """The largest number of folds up to FOLDS that the chips allow. Raises DataError where they do not allow two."""
    labels: list[int] = []
    of: list[str] = []
    outlines: list[Outline] = []
    for region, folder in regions.items():
        record = Record.read(folder)
        size = record.size_m if record else SIZE
        for label, x, y, crs in _chips(folder / CHIPS):
            labels.append(CLASSES[label])
            of.append(region)
            outlines.append(_outline(x, y, size, crs))
    groups = overlap_groups(outlines)
    for folds in range(FOLDS, 2, -1):
        try:
            make_folds(labels, of, groups=groups, folds=folds)
        except DataError:
            continue
        return folds
    make_folds(labels, of, groups=groups, folds=2)
    return 2


def _chips(path: Path) -> Sequence[tuple[str, float, float, str]]:
    """Label, centre and CRS of the chips in a table that prepare.py wrote."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = [(row["label"], float(row["x"]), float(row["y"]), row["crs"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged ({error!r}): cut its region again with overwrite=true."
        ) from error
    if odd := [label for label, *_ in found if label not in CLASSES]:
        raise DataError(f"{path} is damaged (label {odd[0]!r}): cut its region again with overwrite=true.")
    return found


def _outline(x: float, y: float, size: int, crs: str) -> Outline:
    half = size / 2 - SEAM_PIXELS
    corners = (x - half, y + half, x + half, y + half, x + half, y - half, x - half, y - half)
    return Outline(crs, corners)
