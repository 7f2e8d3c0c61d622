"""Where windows lie: on a lattice of the CRS, so that a window does not depend on the tile that it is computed in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import shapely

from dxc.errors import ConfigError

LEAST_JITTER_M = 4.0
"""A network without a known jitter is taken to tolerate so much: the pooling of its first layers."""
STRIDE_IN_JITTERS = 2
"""Default stride: a window's centre comes within the jitter of every crossing, on either axis."""
MOST_IN_JITTERS = 3
"""Largest stride. Beyond it crossings lie further from the centres of windows than those of the training chips did: at
a stride of 25 m and a jitter of 5 m, 14 % of crossings were missed; at 50 m, 78 %."""


MOST_STRIDE_IN_WINDOW = 4
"""A window of so many strides or more shows a crossing that is a stride from its middle in its inner half."""


class Tile(NamedTuple):
    """Windows that are computed together: rows and columns of the lattice, counted from its origin."""

    number: int
    row: int
    column: int
    rows: int
    columns: int

    def grown(self, ring: int) -> Tile:
        """The tile with as many windows more on each side."""
        return Tile(
            self.number, self.row - ring, self.column - ring, self.rows + 2 * ring, self.columns + 2 * ring
        )

    def every_fourth(self) -> np.ndarray:
        """Every second window of every second row of the whole lattice: bool (rows, columns)."""
        row, column = np.ogrid[: self.rows, : self.columns]
        even: np.ndarray = ((row + self.row) % 2 == 0) & ((column + self.column) % 2 == 0)
        return even


class Grid(NamedTuple):
    """A lattice of square windows over an area. Window (r, c) has its upper left corner at x = c stride, y = -r stride,
    in metres of the CRS, and shows what lies in its pixel (size // 2, size // 2), as training chips do.

    Attributes:
        stride: from one window to the next, metres.
        size: edge of a window in pixels of 1 m.
        row, column: of the first window.
        rows, columns: number of windows.
    """

    stride: int
    size: int
    row: int
    column: int
    rows: int
    columns: int

    @classmethod
    def over(cls, area: shapely.Geometry, *, stride: int, size: int) -> Grid:
        """The windows whose centres lie in the bounding box of an area.

        Args:
            area: in the CRS of the map.
            stride: from one window to the next, metres.
            size: edge of a window, metres.
        """
        west, south, east, north = area.bounds
        half = size // 2 + 0.5
        column, last_column = math.ceil((west - half) / stride), math.floor((east - half) / stride)
        row, last_row = math.ceil((-north - half) / stride), math.floor((-south - half) / stride)
        return cls(stride, size, row, column, max(0, last_row - row + 1), max(0, last_column - column + 1))

    def tiles(self, edge_m: int) -> Iterator[Tile]:
        """Tiles of about `edge_m`, row by row."""
        cells = max(1, edge_m // self.stride)
        number = 0
        for row in range(0, self.rows, cells):
            for column in range(0, self.columns, cells):
                yield Tile(
                    number, self.row + row, self.column + column,
                    min(cells, self.rows - row), min(cells, self.columns - column),
                )  # fmt: skip
                number += 1

    def outlines(self, tile: Tile, cells: np.ndarray) -> list[shapely.Geometry]:
        """Polygons of some cells of a tile, which are squares of a stride around the centres of its windows.

        Args:
            tile: the tile.
            cells: bool (rows, columns).
        """
        from rasterio.features import shapes
        from rasterio.transform import from_origin

        x, y = self.centres(tile)
        if not cells.any():
            return []
        half = self.stride / 2
        place = from_origin(x[0] - half, y[0] + half, self.stride, self.stride)
        found = shapes(cells.astype(np.uint8), mask=cells, transform=place)
        return [shapely.geometry.shape(outline) for outline, _ in found]

    def corner(self, tile: Tile) -> tuple[int, int]:
        """x and y of the upper left corner of a tile's first window."""
        return tile.column * self.stride, -tile.row * self.stride

    def centres(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """x (columns,) and y (rows,) of the centres of a tile's windows, metres."""
        left, top = self.corner(tile)
        half = self.size // 2 + 0.5
        return left + half + np.arange(tile.columns) * self.stride, top - half - np.arange(
            tile.rows
        ) * self.stride


def stride_for(asked: int | None, jitter_m: float | None, reach_m: float) -> int:
    """The stride of windows in metres.

    Args:
        asked: stride_m; None chooses it.
        jitter_m: largest distance of crossings from the centres of the training chips; None: not known.
        reach_m: edge of a window; a detector with a large jitter sees far.

    Raises:
        ConfigError: the stride does not go with the jitter.
    """
    jitter = max(LEAST_JITTER_M, jitter_m or 0.0)
    most = max(1, min(math.floor(MOST_IN_JITTERS * jitter), math.floor(reach_m / 2)))
    if asked is None:
        return min(most, max(1, math.floor(STRIDE_IN_JITTERS * jitter)))
    if asked > most:
        known = "is not known" if jitter_m is None else f"is {jitter_m:g} m"
        raise ConfigError(
            f"stride_m={asked}: crossings would lie up to {asked / 2:g} m from the centre of the nearest window on "
            f"each axis. The jitter of the network's training chips {known}; give stride_m={most} or less, or train "
            "with more jitter (source.jitter_m, prepare.py jitter_m) and say it: jitter_m=METRES."
        )
    return asked


def windows_overlap(stride_m: int, jitter_m: float | None, size: int) -> bool:
    """Whether one of every fourth window sees something of a crossing wherever it lies.

    A network that has always seen crossings in the middle of its chips may see them only there. And a crossing, which
    lies up to a stride from the middle of the nearest of these windows on each axis, has to lie well inside it.

    Args:
        stride_m: from one window to the next.
        jitter_m: largest distance of crossings from the centres of the training chips; None: not known.
        size: edge of a window, metres.
    """
    if jitter_m is None or jitter_m < LEAST_JITTER_M:
        return False
    return stride_m <= min(STRIDE_IN_JITTERS * jitter_m, size / MOST_STRIDE_IN_WINDOW)
