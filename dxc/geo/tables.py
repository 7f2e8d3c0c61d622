"""Reads points out of a CSV: two columns of coordinates, found by their usual names or named, in a CRS that is stated.

A table is a foreign file: it is read as text, within limits, and nothing in it is computed or obeyed.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dxc.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
MAX_CSV_BYTES = 200_000_000
MAX_CSV_ROWS = 2_000_000
MAX_COLUMNS = 1000
SEPARATORS = ",;\t|"
DEGREES = "EPSG:4326"
"""What longitude and latitude are in where nothing else is stated: WGS 84."""
LON_LAT = (("longitude", "latitude"), ("lon", "lat"), ("long", "lat"), ("lng", "lat"))
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
        what: crossings, for messages.
        columns: of numbers, to be read too.
        xy: names of the two columns of coordinates; None: those with a usual name.
        crs: of the coordinates; None: DEGREES, if the columns are found and called longitude and latitude.
    """
    header, rows = _rows(what, path)
    names = [name.strip() for name in header]
    pair, degrees = _coordinates(what, path, names, xy, crs)
    if missing := [name for name in columns if name not in names]:
        raise DataError(f"{what} {path}: has no column {', '.join(missing)}; it has {', '.join(names)}.")
    if crs is None and not degrees:
        raise DataError(
            f"{what} {path}: does not say in which CRS {pair[0]} and {pair[1]} are. State it, e.g. "
            f"crossings_crs=EPSG:26915, or crossings_crs={DEGREES} for degrees."
        )
    found = {name: _numbers(rows, names.index(name)) for name in dict.fromkeys([*pair, *columns])}
    points = np.column_stack([found[name] for name in pair])
    points[~np.isfinite(points).all(axis=1)] = np.nan
    if crs is None:
        beyond = (np.abs(points) > (180, 90)).any(axis=1).sum()
        if 2 * beyond > np.isfinite(points[:, 0]).sum():
            raise DataError(
                f"{what} {path}: {pair[0]} and {pair[1]} are not degrees in {beyond} of {len(points)} rows. State "
                "their CRS, e.g. crossings_crs=EPSG:26915."
            )
        log.info("%s: columns %s and %s are taken as degrees in %s.", path, *pair, DEGREES)
    else:
        log.info("%s: columns %s and %s are taken as x and y in %s.", path, *pair, crs)
    return PointTable(np.arange(1, len(points) + 1), points, crs or DEGREES, {c: found[c] for c in columns})


def _rows(what: str, path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows, none of which is empty."""
    size = path.stat().st_size
    if size > MAX_CSV_BYTES:
        raise DataError(
            f"{what} {path}: has {size / 1e6:,.0f} MB, a table of points at most {MAX_CSV_BYTES / 1e6:.0f} MB. Convert "
            f"it: ogr2ogr NEW.gpkg FILE -oo X_POSSIBLE_NAMES=longitude -oo Y_POSSIBLE_NAMES=latitude -a_srs {DEGREES}"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(100_000)
            separator = max(SEPARATORS, key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = next(reader, [])
            if len(header) > MAX_COLUMNS:
                raise DataError(f"{what} {path}: has {len(header)} columns, at most {MAX_COLUMNS} are read.")
            rows = []
            for row in reader:
                if any(row):
                    rows.append(row)
                if len(rows) > MAX_CSV_ROWS:
                    raise DataError(f"{what} {path}: has more than {MAX_CSV_ROWS:,} rows. Give fewer.")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} {path}: is not text in UTF-8 ({error}). Save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{what} {path}: is not a CSV ({error}). Save it as CSV in UTF-8.") from error
    except OSError as error:
        raise DataError(f"{what} {path}: cannot be read ({error.strerror or error}).") from error
    if separator != ",":  # a decimal comma
        rows = [[cell.replace(",", ".") for cell in row] for row in rows]
    if not rows:
        raise DataError(f"{what} {path}: holds no row below a header. Give a file with crossing points.")
    return header, rows


def _coordinates(
    what: str, path: Path, names: Sequence[str], xy: Sequence[str] | None, crs: str | None
) -> tuple[tuple[str, str], bool]:
    """The columns of x and y, and whether their names say that they are degrees."""
    if xy is not None:
        if missing := [name for name in xy if name not in names]:
            raise DataError(f"{what} {path}: has no column {', '.join(missing)}; it has {', '.join(names)}.")
        pair = (xy[0].lower(), xy[1].lower())
        return (xy[0], xy[1]), pair in LON_LAT
    lower = {name.lower(): name for name in reversed(names)}
    # a table with both: what is stated in metres is x and y
    known = (*LON_LAT, *X_Y) if crs in (None, DEGREES) else (*X_Y, *LON_LAT)
    for x, y in known:
        if x in lower and y in lower:
            return (lower[x], lower[y]), (x, y) in LON_LAT
    raise DataError(
        f"{what} {path}: has no columns longitude and latitude, or x and y; it has {', '.join(names)}. Name the two, "
        "x or longitude first: crossings_xy=[COLUMN,COLUMN]."
    )


def _numbers(rows: Sequence[Sequence[str]], column: int) -> np.ndarray:
    """A column as floats, nan where a cell holds no number or is not there."""
    return np.array([_number(row[column]) if column < len(row) else np.nan for row in rows], float)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
