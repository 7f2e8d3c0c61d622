"""Reads points out of a CSV: two columns of coordinates, found by their usual names or named, in a CRS that is stated.

A table is a foreign file: it is read as text, within limits, and nothing in it is computed or obeyed.
"""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from dxc.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
MAX_CSV_BYTES = 100_000_000
MAX_CSV_ROWS = 1_000_000
MAX_LINE = 1_000_000  # characters
MAX_TOLD = 30  # columns that a message names
SEPARATORS = ",;\t|"
DEGREES = "EPSG:4326"
"""What longitude and latitude are in where nothing else is stated: WGS 84."""
LON_LAT = tuple(itertools.product(("longitude", "lon", "long", "lng"), ("latitude", "lat")))
X_Y = (("x", "y"), ("easting", "northing"), ("point_x", "point_y"))


@dataclass(frozen=True)
class PointTable:
    """Points of a CSV."""

    ids: np.ndarray  # int, (n,): number of the row, counted from 1 without the header
    xy: np.ndarray  # float, (n, 2): x or longitude, y or latitude; nan: no number
    crs: str  # as it was stated, or DEGREES
    columns: dict[str, np.ndarray]  # float, (n,); nan: no number


def is_table(path: Path) -> bool:
    """Whether a file is taken for a table of points, by its name."""
    return path.suffix.lower() in SUFFIXES


def read_points(
    what: str, path: Path, columns: Sequence[str], *, xy: Sequence[str] | None, crs: str | None
) -> PointTable:
    """Read the points of a CSV, or raise a DataError that says why that cannot be.

    Args:
        what: the key that names the file, for messages.
        columns: of numbers, to be read too.
        xy: names of the two columns of coordinates; None: those with a usual name.
        crs: of the coordinates; None: DEGREES, if the columns are found and called longitude and latitude.
    """
    pair, degrees, found = _read(what, path, columns, xy, crs)
    points = np.column_stack([found[name] for name in pair])
    points[~np.isfinite(points).all(axis=1)] = np.nan
    if crs is None and not degrees:
        raise DataError(
            f"{what} {path}: does not say in which CRS {pair[0]} and {pair[1]} are. State it, e.g. "
            f"{what}_crs=EPSG:26915, or {what}_crs={DEGREES} for degrees."
        )
    if crs is None:
        beyond = (np.abs(points) > (180, 90)).any(axis=1).sum()
        if 2 * beyond > np.isfinite(points[:, 0]).sum():
            raise DataError(
                f"{what} {path}: {pair[0]} and {pair[1]} are not degrees in {beyond} of {len(points)} rows. State "
                f"their CRS, e.g. {what}_crs=EPSG:26915."
            )
        log.info("%s: columns %s and %s are taken as degrees in %s.", path, *pair, DEGREES)
    else:
        log.info("%s: columns %s and %s are taken as x and y in %s.", path, *pair, crs)
    return PointTable(np.arange(1, len(points) + 1), points, crs or DEGREES, {c: found[c] for c in columns})


def _read(
    what: str, path: Path, columns: Sequence[str], xy: Sequence[str] | None, crs: str | None
) -> tuple[tuple[str, str], bool, dict[str, np.ndarray]]:
    """Columns of x and y, whether these are degrees by their names, and the numbers of all columns asked for."""
    size = path.stat().st_size
    if size > MAX_CSV_BYTES:
        raise DataError(
            f"{what} {path}: has {size / 1e6:,.0f} MB, a table of points at most {MAX_CSV_BYTES / 1e6:.0f} MB. Convert "
            f"it: ogr2ogr NEW.gpkg FILE -oo X_POSSIBLE_NAMES=longitude -oo Y_POSSIBLE_NAMES=latitude -a_srs {DEGREES}"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(MAX_LINE)
            separator = max(SEPARATORS, key=first.count)
            file.seek(0)
            reader = csv.reader(_lines(file), delimiter=separator, strict=True)
            names = [name.strip() for name in next(reader, [])]
            pair, degrees = _coordinates(what, path, names, xy, crs)
            wanted = list(dict.fromkeys([*pair, *columns]))
            if missing := [name for name in wanted if name not in names]:
                raise DataError(f"{what} {path}: has no column {', '.join(missing)}; it has {_told(names)}.")
            places = [names.index(name) for name in wanted]
            # semicolons and tabs go with a decimal comma in much of the world
            comma = separator != ","
            rows = (row for row in reader if any(row))
            numbers = [
                [_number(row[place], comma) if place < len(row) else np.nan for place in places]
                for row in itertools.islice(rows, MAX_CSV_ROWS)
            ]
            if next(rows, None) is not None:
                raise DataError(f"{what} {path}: has more than {MAX_CSV_ROWS:,} rows. Give fewer.")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} {path}: is not text in UTF-8 ({error}). Save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{what} {path}: is not a CSV ({error}). Save it as CSV in UTF-8.") from error
    except OSError as error:
        raise DataError(f"{what} {path}: cannot be read ({error.strerror or error}).") from error
    if not numbers:
        raise DataError(f"{what} {path}: holds no row below its header. Give a file with crossing points.")
    return pair, degrees, dict(zip(wanted, np.array(numbers, float).T, strict=True))


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a file; one may be no longer than MAX_LINE."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"a line has {MAX_LINE:,} characters or more")
        yield line


def _coordinates(
    what: str, path: Path, names: Sequence[str], xy: Sequence[str] | None, crs: str | None
) -> tuple[tuple[str, str], bool]:
    """The columns of x and y, and whether their names say that they are degrees."""
    if xy is not None:
        return (xy[0], xy[1]), (xy[0].lower(), xy[1].lower()) in LON_LAT
    lower = {name.lower(): name for name in reversed(names)}
    # a table with both: what is stated in metres is x and y
    known = (*LON_LAT, *X_Y) if crs in (None, DEGREES) else (*X_Y, *LON_LAT)
    for x, y in known:
        if x in lower and y in lower:
            return (lower[x], lower[y]), (x, y) in LON_LAT
    raise DataError(
        f"{what} {path}: has no columns longitude and latitude, or x and y; it has {_told(names)}. Name the two, "
        f"x or longitude first: {what}_xy=[COLUMN,COLUMN]."
    )


def _number(text: str, comma: bool) -> float:
    try:
        return float(text.replace(",", ".") if comma else text)
    except ValueError:
        return np.nan


def _told(names: Sequence[str]) -> str:
    """Names of columns for a message; a foreign file may have thousands, of any length."""
    return (
        ", ".join(name[:60] for name in names[:MAX_TOLD]) + ", ..." * (len(names) > MAX_TOLD) or "no columns"
    )
