"""The probability of a crossing in each window of a tile, and where in the window it lies."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from dxc.deploy.predictor import Predictor
from dxc.files import write_atomically
from dxc.mapping.grid import Grid, Tile
from dxc.mapping.ground import Ground
from dxc.mapping.screen import Screen
from dxc.mapping.settings import KEPT

HINT = 0.001
"""Around a window of this probability, all are looked at. At a stride of twice the jitter, a crossing lies within the
jitter of one window, and within a stride, on each axis, of one of those that are looked at first. Networks see a little
of it there: of ten networks in the corridors of benchmarks/map.py, one lost 2 of 94 crossings with 0.01 and 1 with
0.005, and none lost any with 0.002."""
UNSEEN = np.float32(np.nan)


class Found(NamedTuple):
    """What a tile holds.

    Attributes:
        probability: float32 (rows, columns); NaN where no window was looked at. Windows that were spared because those
            beside them see nothing have the greatest probability of these.
        x, y: float64 (n,), places of the windows with a probability of at least KEPT, metres.
        p: float32 (n,), their probabilities.
        seen: number of lattice cells of the mapped ground: all that have data, whether or not roads or a screen ruled
            them out.
        holes: bool (rows, columns), lattice cells of the ground that have no data.
        windows: number of windows that the network answered.
    """

    probability: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    seen: int
    holes: np.ndarray
    windows: int

    def write(self, path: Path) -> None:
        """Write it as numbers, whole or not at all."""
        import io

        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self._asdict())
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Found | None:
        """What was written; None where there is nothing whole."""
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {name: file[name] for name in cls._fields}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        return cls(**{**values, "seen": int(values["seen"]), "windows": int(values["windows"])})


class _View(NamedTuple):
    """What was read for some windows of the lattice.

    Attributes:
        bands: raw bands, each (height, width).
        valid: which pixels have data, bool (height, width).
        left, top: of the pixels, metres.
        centres: which windows have data in their middle, bool (rows, columns).
        passed: which of them a screen lets through, likewise; all without one.
    """

    bands: dict[str, np.ndarray]
    valid: np.ndarray
    left: int
    top: int
    centres: np.ndarray
    passed: np.ndarray


class Finder:
    """Runs a network over tiles.

    Args:
        predictor: the exported network.
        ground: the rasters, open.
        grid: of the windows.
        near: lines near which windows lie, in the CRS of the map; None: everywhere.
        near_m: how near.
        screen: looks where windows are worth it; None: all of them.
        refine: look half a stride around each window that is kept, too. A crossing lies in the middle of the windows
            that see it, and with four times as many of them the middle is known better. Boxes need none of that.
        every_window: False: look at every second window of every second row first, and at the others only where one
            beside them, or at their corners, has a HINT of a crossing. Not for boxes.
        batch: windows in one execution.
    """

    def __init__(
        self,
        predictor: Predictor,
        ground: Ground,
        grid: Grid,
        *,
        near: np.ndarray | None = None,
        near_m: float = 0,
        screen: Screen | None = None,
        refine: bool = True,
        every_window: bool = False,
        batch: int = 32,
    ) -> None:
        self._predictor, self._ground, self._grid = predictor, ground, grid
        self._lines = None if near is None else shapely.STRtree(near)
        self._near_m, self._screen, self._batch = near_m, screen, batch
        boxed = "box" in predictor.metadata.outputs
        self._between = grid.stride // 2 if refine and not boxed else 0
        """From a window to those around it that are looked at too, in pixels; 0: none are."""
        self._every_window = every_window

    def wanted(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Which windows of a tile have their centre in the area, and which of these near a line, bool (rows, columns)
        each."""
        x, y = (each.ravel() for each in np.meshgrid(*self._grid.centres(tile)))
        inside = near = shapely.contains_xy(self._ground.area, x, y)
        if self._lines is not None and inside.any():
            places = np.flatnonzero(inside)
            at = shapely.points(x[places], y[places])
            near = np.zeros_like(inside)
            near[places[self._lines.query(at, "dwithin", distance=self._near_m)[0]]] = True
        return inside.reshape(tile.rows, tile.columns), near.reshape(tile.rows, tile.columns)

    def find(self, tile: Tile) -> Found:
        """Run the network over the windows of a tile."""
        # windows of the next tiles say whether those at the border are looked at: no window depends on its tile
        ring = 0 if self._every_window else 1
        mine = np.s_[ring : ring + tile.rows, ring : ring + tile.columns]
        tile = tile.grown(ring)
        own = np.zeros((tile.rows, tile.columns), bool)
        own[mine] = True
        ground, wanted = self.wanted(tile)
        inside = ground & own
        wanted = _needed(wanted, self._first(tile), own)
        probability = np.full(wanted.shape, UNSEEN)
        unread = inside.copy()
        if not (wanted & own).any():
            holes = self._without_data(tile, unread)
            none, seen = np.zeros(0), int(inside.sum()) - int(holes.sum())
            return Found(probability[mine], none, none, none.astype(np.float32), seen, holes[mine], 0)
        part, here = _bounds(tile, wanted)
        unread[here] = False
        own, view = own[here], self._view(part, wanted[here])
        holes = self._without_data(tile, unread)
        holes[here] = inside[here] & ~view.centres
        missing: np.ndarray = self._first(tile) & ~ground
        missing[here] |= self._first(part) & wanted[here] & ~view.centres
        at_edge = np.logical_or.reduce(_eight_around(missing, False))
        wanted = _needed(wanted[here] & view.centres & view.passed, self._first(part), own)
        said, probability[here], looked, boxes = self._on_lattice(
            view.bands, part, wanted, own, at_edge[here]
        )
        at, answers = self._corners(looked), said[looked]
        if self._between:
            more = self._around(at[answers >= KEPT], view)
            answers = np.concatenate([answers, self._answers(view.bands, more)[0]])
            at = np.concatenate([at, more])
        size, kept = self._grid.size, answers >= KEPT
        half = size // 2
        xs, ys = view.left + at[:, 1] + half + 0.5, view.top - at[:, 0] - half - 0.5
        if boxes is not None:  # the centre of a box may lie beyond the raster's edge
            xs, ys = view.left + at[:, 1] + boxes[:, 0] * size, view.top - at[:, 0] - boxes[:, 1] * size
            kept &= shapely.contains_xy(self._ground.area, xs, ys)
        seen = int(inside.sum()) - int(holes.sum())
        return Found(probability[mine], xs[kept], ys[kept], answers[kept], seen, holes[mine], len(at))

    def _without_data(self, tile: Tile, cells: np.ndarray) -> np.ndarray:
        """Which of some cells of a tile have no data, bool (rows, columns) each."""
        if not cells.any():
            return np.zeros_like(cells)
        return cells & ~self._ground.has_data(*self._grid.centres(tile))

    def _view(self, part: Tile, wanted: np.ndarray) -> _View:
        """Read what the windows of a part show, and those half a stride around them. There is a dense pass where some
        of the `wanted` ones, bool (rows, columns), have data."""
        stride, size, between = self._grid.stride, self._grid.size, self._between
        left, top = self._grid.corner(part)
        left, top = left - between, top + between
        width, height = ((count - 1) * stride + size + 2 * between for count in (part.columns, part.rows))
        west, north, east, south = (
            self._screen.margins(left, top, width, height) if self._screen else (0, 0, 0, 0)
        )
        bands, valid = self._ground.read(
            left - west, top + north, width + west + east, height + north + south
        )
        inner = np.s_[north : north + height, west : west + width]
        middle = slice(between + size // 2, None, stride)
        centres = valid[inner][middle, middle][: part.rows, : part.columns]
        passed = np.ones_like(centres)
        if self._screen is not None and (centres & wanted).any():
            passed = self._screen.passes(bands, left - west, top + north, *self._grid.centres(part))
        return _View(
            {name: band[inner] for name, band in bands.items()}, valid[inner], left, top, centres, passed
        )

    def _first(self, tile: Tile) -> np.ndarray:
        """Which windows of a tile are looked at first, bool (rows, columns)."""
        return np.ones((tile.rows, tile.columns), bool) if self._every_window else tile.every_fourth()

    def _corners(self, cells: np.ndarray) -> np.ndarray:
        """Rows and columns (n, 2) of the corners of some windows, bool (rows, columns), in what was read."""
        corners: np.ndarray = np.argwhere(cells) * self._grid.stride + self._between
        return corners

    def _on_lattice(
        self,
        bands: dict[str, np.ndarray],
        part: Tile,
        wanted: np.ndarray,
        own: np.ndarray,
        at_edge: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Look at windows of the lattice.

        Args:
            bands: what they show.
            part: the windows.
            wanted: which of them, bool (rows, columns).
            own: which belong to the tile and not to those beside it, likewise.
            at_edge: which have one around them that would be looked at first and has no data, likewise.

        Returns:
            Their probabilities, float32 (rows, columns), NaN where none was looked at; the same with the greatest
            probability beside them for those that were spared; which windows of the tile were looked at, likewise bool;
            a detector's boxes of these (n, 4).
        """
        said = np.full(wanted.shape, UNSEEN)
        first = self._first(part)
        looked = wanted & first
        said[looked], boxes = self._answers(bands, self._corners(looked))
        others = wanted & own & ~first
        highest = np.fmax.reduce(_eight_around(said, np.float32(-np.inf)))
        asked = _eight_around(looked, False).sum(axis=0)
        possible = _eight_around(self._first(part.grown(1)), False).sum(axis=0)[1:-1, 1:-1]
        # at the edge of the data, and where roads or a screen rule out most of those around it, a window may be the
        # only one near a crossing
        spared = others & ~at_edge & (2 * asked >= possible) & (highest < HINT)
        rest = others & ~spared
        said[rest] = self._answers(bands, self._corners(rest))[0]
        shown = np.where(spared, highest, said)
        return said, shown, own & (looked | rest), boxes

    def _around(self, at: np.ndarray, view: _View) -> np.ndarray:
        """The windows half a stride around some windows, each once: rows and columns of their corners (n, 2).

        Args:
            at: rows and columns of the corners of the windows (k, 2) in the view.
            view: what was read.
        """
        steps = np.array(list(itertools.product((-1, 0, 1), repeat=2))) * self._between
        more = np.unique((at[:, None] + steps[steps.any(axis=1)]).reshape(-1, 2), axis=0)
        row, column = more.T + self._grid.size // 2
        inside = shapely.contains_xy(self._ground.area, view.left + column + 0.5, view.top - row - 0.5)
        return more[inside & view.valid[row, column]]

    def _answers(self, bands: dict[str, np.ndarray], at: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Probabilities (n,) of the windows whose corners lie at rows and columns (n, 2) of a rectangle; a detector's
        boxes (n, 4)."""
        size = self._grid.size
        probabilities, boxes = [np.zeros(0, np.float32)], [np.zeros((0, 4), np.float32)]
        for start in range(0, len(at), self._batch):
            corners = at[start : start + self._batch]
            windows = {
                name: np.stack([band[r : r + size, c : c + size] for r, c in corners])
                for name, band in bands.items()
            }
            answer = self._predictor.predict(windows, batch_size=self._batch)
            probabilities.append(answer.presence)
            if answer.boxes is not None:
                boxes.append(answer.boxes)
        found = np.concatenate(probabilities)
        return found, np.concatenate(boxes) if len(boxes) > 1 else None


def _eight_around(cells: np.ndarray, none: Any) -> np.ndarray:
    """What is beside each cell and at its corners: (8, rows, columns).

    Args:
        cells: (rows, columns).
        none: what is beyond them.
    """
    rows, columns = cells.shape
    padded = np.pad(cells, 1, constant_values=none)
    steps = [step for step in itertools.product(range(3), repeat=2) if step != (1, 1)]
    return np.stack([padded[down : down + rows, right : right + columns] for down, right in steps])


def _bounds(tile: Tile, wanted: np.ndarray) -> tuple[Tile, tuple[slice, slice]]:
    """The smallest part of a tile with all wanted windows, and its rows and columns in the tile. Only what they show
    is read.

    Args:
        tile: the tile.
        wanted: at least one window, bool (rows, columns).
    """
    rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
    (top, bottom), (left, right) = ((int(each[0]), int(each[-1]) + 1) for each in (rows, columns))
    part = Tile(tile.number, tile.row + top, tile.column + left, bottom - top, right - left)
    return part, (slice(top, bottom), slice(left, right))


def _needed(wanted: np.ndarray, first: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The wanted windows of a tile, and those of the next tiles that say whether one of them is looked at: bool (rows,
    columns), as the arguments."""
    undecided = wanted & own & ~first
    return wanted & (own | (first & _eight_around(undecided, False).any(axis=0)))
