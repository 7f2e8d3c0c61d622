"""Chips on disk -> manifest: which files make which chip.

Two layouts are read. Folder names tell them apart, and each region has a folder:

    ROOT/NE_WFBB/NEWFBB_DEM/{F,T}/*.tif  with  ROOT/NE_WFBB/NEWFBB_Aer/{F,T}/*.tif    (published)
    ROOT/NE/dem/{F,T}/*.tif              with  ROOT/NE/photo/{F,T}/*.tif              (flat)

An elevation chip and a photo chip belong together when region, class folder and file stem are the same. Chips may hold
elevation alone or a photo alone: their regions have no folder for the other, all regions of a root alike.
F = no crossing (label 0), T = crossing (label 1). Where boxes are wanted, a crossing's are in a Pascal VOC file
beside its photo: ROOT/NE_WFBB/NEWFBB_Aer/T/NAME.xml (see dxc.geo.voc), or beside its elevation where there is no photo.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from dxc.errors import BadChip, DataError

CLASSES = {"F": 0, "T": 1}
CLASS_NAMES = ("no crossing", "crossing")
"""By label."""
DEM_FOLDER_ENDS = ("dem",)
PHOTO_FOLDER_ENDS = ("aer", "photo")
RASTERS = (".tif", ".tiff")
ANNOTATIONS = (".xml",)
# NAME.tif.aux.xml and NAME.tif.xml: notes of GDAL and ArcGIS about a raster
FOREIGN_XML = (".aux", *RASTERS)


LAYOUT_HELP = (
    "expected REGION/<name ending in DEM>/{F,T}/*.tif beside REGION/<name ending in Aer or photo>/{F,T}/*.tif, or one "
    "of the two in all regions"
)


@dataclass(frozen=True, order=True)
class Chip:
    """One chip: its files, which show the same ground, its class (label 1 = T), and the file of its boxes, if any."""

    region: str
    name: str
    label: int
    dem: Path | None = field(compare=False)
    """None in chips of a photo alone."""
    photo: Path | None = field(compare=False)
    """None in chips of elevation alone."""
    annotation: Path | None = field(default=None, compare=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Its rasters, elevation first."""
        return tuple(path for path in (self.dem, self.photo) if path is not None)


@dataclass(frozen=True)
class Manifest:
    """All chips under a root in (region, name) order, the files that belong to no chip, and a fingerprint."""

    root: Path
    chips: tuple[Chip, ...]
    bad: tuple[BadChip, ...]
    fingerprint: str
    """Changes when a file is added, removed, replaced or written to; costs a stat a file, no reading."""
    has_dem: bool = True
    """Whether the chips hold elevation."""
    has_photo: bool = True
    """Whether the chips hold a photo."""


@dataclass(frozen=True)
class _File:
    path: Path
    region: str
    klass: str
    name: str
    stamp: str


def scan(root: Path | str, *, boxes: bool = False) -> Manifest:
    """Find the chips under a folder.

    Raises DataError where there is no such folder, it cannot be read, there is no region in it, a region lacks one of
    the two kinds that others have, or boxes are wanted and there is no annotation at all. Files that make no chip (no
    partner, a name used twice) are listed in `bad`, never guessed about.
    """
    root = Path(root)
    try:
        return _scan(root, boxes)
    except OSError as error:
        raise DataError(
            f"source.root: {error.filename or root} cannot be read ({error.strerror or error}); "
            "give a folder that you may read"
        ) from error


def _scan(root: Path, boxes: bool) -> Manifest:
    if not root.is_dir():
        raise DataError(f"source.root: there is no folder {root}; give the folder that holds the regions")
    regions = sorted(
        (path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.name,
    )
    dems, photos, annotations = [], [], []
    kinds: dict[
        tuple[int, int], str
    ] = {}  # folders of elevation and of photos -> the first region that has so many
    for region in regions:
        dem_folders = _subfolders(region, DEM_FOLDER_ENDS)
        photo_folders = _subfolders(region, PHOTO_FOLDER_ENDS)
        if not dem_folders and not photo_folders:
            continue  # some other folder: a README's pictures, say
        if len(dem_folders) > 1 or len(photo_folders) > 1:
            raise DataError(
                f"region {region} has {len(dem_folders)} elevation and {len(photo_folders)} photo folders; "
                f"{LAYOUT_HELP}"
            )
        kinds.setdefault((len(dem_folders), len(photo_folders)), region.name)
        dems += [file for folder in dem_folders for file in _files(folder, region.name, RASTERS)]
        photos += [file for folder in photo_folders for file in _files(folder, region.name, RASTERS)]
        if boxes:
            files = _files((photo_folders or dem_folders)[0], region.name, ANNOTATIONS)
            annotations += [file for file in files if not file.name.lower().endswith(FOREIGN_XML)]
    if len(kinds) > 1:
        held = {(1, 1): "elevation and photos", (1, 0): "elevation alone", (0, 1): "photos alone"}
        told = ", ".join(f"{name} holds {held[kind]}" for kind, name in sorted(kinds.items(), reverse=True))
        raise DataError(f"source.root: the regions under {root} hold different files: {told}; {LAYOUT_HELP}")
    if not dems and not photos:
        raise DataError(f"source.root: no chips under {root}; {LAYOUT_HELP}")
    if boxes and not annotations:
        raise DataError(
            f"source.root: no boxes under {root}; a detector learns from Pascal VOC files beside the photos: "
            "REGION/<name ending in Aer or photo>/T/NAME.xml"
        )

    ((has_dem, has_photo),) = [(bool(of_dem), bool(of_photo)) for of_dem, of_photo in kinds]
    chips, bad = _pair(dems, photos) if has_dem and has_photo else _alone(dems or photos, photo=has_photo)
    if boxes:
        chips, unannotated = _annotate(chips, annotations, photos if has_photo else dems)
        bad += unannotated
    stamps = "\n".join(
        f"{f.path.relative_to(root)} {f.stamp}"
        for f in sorted(dems + photos + annotations, key=lambda f: f.path)
    )
    fingerprint = hashlib.blake2b(stamps.encode(), digest_size=16).hexdigest()
    return Manifest(root, tuple(sorted(chips)), tuple(sorted(bad)), fingerprint, has_dem, has_photo)


def _alone(files: list[_File], *, photo: bool) -> tuple[list[Chip], list[BadChip]]:
    """Files of elevation alone, or of photos alone -> chips, and the files that make none with the reason."""
    chips, bad = [], []
    for (region, name), same in _by_identity(files).items():
        if len(same) > 1:
            bad += _named_alike(same, region, name)
        else:
            path = same[0].path
            paths = (None, path) if photo else (path, None)
            chips.append(Chip(region, name, CLASSES[same[0].klass], *paths))
    return chips, bad


def _named_alike(files: list[_File], region: str, name: str) -> list[BadChip]:
    reason = f"the name {name} occurs {len(files)} times in region {region}"
    return [BadChip(file.path, reason) for file in files]


def _pair(dems: list[_File], photos: list[_File]) -> tuple[list[Chip], list[BadChip]]:
    """Elevation and photo files -> chips, and the files that belong to none with the reason."""
    chips, bad = [], []
    dem_of, photo_of = _by_identity(dems), _by_identity(photos)
    for region, name in sorted({*dem_of, *photo_of}):
        its_dems, its_photos = dem_of.get((region, name), []), photo_of.get((region, name), [])
        # A name means one place in its region. A second file (other class, .tif and .tiff) contradicts the first.
        if len(its_dems) > 1 or len(its_photos) > 1:
            for files in (its_dems, its_photos):
                bad += _named_alike(files, region, name) if len(files) > 1 else []
        elif not its_photos:
            bad.append(BadChip(its_dems[0].path, "elevation chip without a photo of the same name"))
        elif not its_dems:
            bad.append(BadChip(its_photos[0].path, "photo chip without an elevation chip of the same name"))
        elif its_dems[0].klass != its_photos[0].klass:
            bad.append(
                BadChip(its_dems[0].path, f"in class {its_dems[0].klass}, its photo in {its_photos[0].klass}")
            )
        else:
            label = CLASSES[its_dems[0].klass]
            chips.append(Chip(region, name, label, its_dems[0].path, its_photos[0].path))
    return chips, bad


def _annotate(
    chips: list[Chip], annotations: list[_File], images: list[_File]
) -> tuple[list[Chip], list[BadChip]]:
    """Chips with their annotations, without those that should have one and have none, or more than one.

    images: what the annotations lie beside, the photos or, without these, the elevation.
    """
    annotated, bad = [], []
    of, shown = _by_identity(annotations), _by_identity(images)
    noun = "photo" if all(chip.photo for chip in chips) else "elevation chip"
    for chip in chips:
        files = of.get((chip.region, chip.name), [])
        image = chip.files[-1]
        klass = image.parent.name
        if len(files) > 1:
            bad += [
                BadChip(
                    file.path, f"the name {chip.name} is annotated {len(files)} times in region {chip.region}"
                )
                for file in files
            ]
        elif files and files[0].klass != klass:
            bad.append(BadChip(files[0].path, f"in class {files[0].klass}, its {noun} in {klass}"))
        elif not files and chip.label == CLASSES["T"]:
            bad.append(BadChip(image, f"crossing without boxes: {chip.name}.xml is missing beside it"))
        else:
            annotated.append(replace(chip, annotation=files[0].path if files else None))
    bad += [
        BadChip(file.path, f"annotation without a{'n' * (noun[0] == 'e')} {noun} of the same name")
        for file in annotations
        if (file.region, file.name) not in shown
    ]
    return annotated, bad


def _by_identity(files: list[_File]) -> dict[tuple[str, str], list[_File]]:
    grouped = defaultdict(list)
    for file in files:
        grouped[file.region, file.name].append(file)
    return grouped


def _subfolders(region: Path, ends: tuple[str, ...]) -> list[Path]:
    return [path for path in sorted(region.iterdir()) if path.is_dir() and path.name.lower().endswith(ends)]


def _files(folder: Path, region: str, suffixes: tuple[str, ...]) -> Iterator[_File]:
    for klass in CLASSES:
        if not (folder / klass).is_dir():
            continue
        with os.scandir(folder / klass) as entries:
            for entry in entries:
                name = Path(entry.name)
                if name.suffix.lower() not in suffixes or entry.name.startswith("."):
                    continue
                try:
                    stat = entry.stat()
                except OSError:  # a link to nothing, or removed just now: reading it gives the error
                    stamp = "missing"
                else:
                    # ctime and inode catch what size and mtime miss: a rewrite that restores the time stamp.
                    stamp = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
                yield _File(Path(entry.path), region, klass, name.stem, stamp)
