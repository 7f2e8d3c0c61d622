"""Where chips lie: on whole metres, in both rasters and, if without a crossing, away from every crossing.

And which crossings' boxes a chip shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import shapely

DRAWS_AT_ONCE = 2048
DRAWS_IN_VAIN = 100  # rounds of DRAWS_AT_ONCE random places none of which will do: there are none
LEAST_SHARE = 0.25  # of a box that a chip has to show if the crossing itself lies beyond it


class Spot(NamedTuple):
    """A place to cut: its upper left corner in whole metres of the target CRS, and where it came from."""

    name: str
    label: str  # T or F
    left: int
    top: int
    source: str  # crossing, random, or the file of lines it was drawn along, or of negatives that shows it
    point: int | None = None  # row of the crossing among the points


@dataclass(frozen=True)
class CrossingBoxes:
    """What the crossings cover on the ground: boxes along the axes of the target CRS, centred on the points."""

    ids: np.ndarray  # int, (n,)
    xy: np.ndarray  # float, (n, 2), target CRS
    edges: np.ndarray  # float, (n, 2), m east-west and north-south; nan: not known

    @classmethod
    def of(cls, ids: np.ndarray, xy: np.ndarray, edges: np.ndarray) -> CrossingBoxes:
        """The boxes of points, some of which may lie nowhere; of several in one pixel the first whose box is known."""
        known = np.isfinite(edges).all(axis=1)
        rows = np.argsort(~known, kind="stable")
        rows = rows[np.isfinite(xy[rows]).all(axis=1)]
        pixels = np.column_stack([np.floor(xy[rows, 0]), np.ceil(xy[rows, 1])])
        rows = np.sort(rows[np.unique(pixels, axis=0, return_index=True)[1]])
        return cls(ids[rows], xy[rows], edges[rows])

    def in_chip(self, left: int, top: int, size: int) -> np.ndarray:
        """Boxes (k, 4) of a chip, clipped to it: xmin, ymin, xmax, ymax in pixel edges from its upper left corner.

        A box is in the chip if its crossing is, or LEAST_SHARE of it. Boxes that are not known are left out.
        """
        centre, here = self._centres(left, top, size)
        low, high = np.clip(centre - self.edges / 2, 0, size), np.clip(centre + self.edges / 2, 0, size)
        share = np.prod(high - low, axis=1) / np.prod(self.edges, axis=1)
        known = np.isfinite(self.edges).all(axis=1)
        return np.hstack([low, high])[known & (here | (share >= LEAST_SHARE))]

    def unknown_in_chip(self, left: int, top: int, size: int) -> np.ndarray:
        """Ids of the crossings in a chip whose box is not known."""
        _, here = self._centres(left, top, size)
        return self.ids[here & ~np.isfinite(self.edges).all(axis=1)]

    def _centres(self, left: int, top: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Of all crossings: pixels from the chip's upper left corner (n, 2), and which lie in the chip (n,)."""
        centre = (self.xy - (left, top)) * (1, -1)
        return centre, np.all((centre >= 0) & (centre < size), axis=1)

    @cached_property
    def tree(self) -> shapely.STRtree:
        """The outlines on the ground; a point where a box is not known."""
        half = np.nan_to_num(self.edges, nan=0.0) / 2
        return shapely.STRtree(shapely.box(*(self.xy - half).T, *(self.xy + half).T))


@dataclass(frozen=True)
class Area:
    """Where chips may lie: the common extent of both rasters, and the crossings to keep away from."""

    region: str
    size: int
    common: shapely.Geometry
    crossings: shapely.STRtree
    min_distance_m: float
    boxes: CrossingBoxes | None = None  # no chip without a crossing shows any part of these

    def corner(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Upper left corners of the chips whose pixel (size // 2, size // 2) holds x, y."""
        half = self.size // 2
        return np.floor(x).astype(int) - half, np.ceil(y).astype(int) + half

    def outlines(self, left: np.ndarray, top: np.ndarray) -> np.ndarray:
        """The chips' outlines."""
        return shapely.box(left, top - self.size, left + self.size, top)

    def inside(self, left: np.ndarray, top: np.ndarray) -> np.ndarray:
        """Whether the whole chip lies in both rasters' extents, bool (n,)."""
        return shapely.covers(self.common, self.outlines(left, top))

    def negatives(
        self, rng: np.random.Generator, lines: list[tuple[str, np.ndarray]], seen: set[tuple[int, int]]
    ) -> Iterator[Spot]:
        """Random places without a crossing, for ever: near the lines if given, else anywhere in the extent.

        Each file of lines gets an equal part, each metre of a file the same chance. Names are given by the
        caller, `seen` holds the places taken. Ends after DRAWS_IN_VAIN rounds in which no place would do.
        """
        vain = 0
        while vain < DRAWS_IN_VAIN:
            vain += 1
            x, y, source = self._along(rng, lines) if lines else self._anywhere(rng)
            left, top = self.corner(x, y)
            good = self.inside(left, top)
            centres = shapely.points(left + self.size / 2, top - self.size / 2)
            near = self.crossings.query(centres[good], "dwithin", self.min_distance_m)[0]
            good[np.flatnonzero(good)[near]] = False
            if self.boxes is not None:
                outlines = self.outlines(left[good], top[good])
                good[np.flatnonzero(good)[self.boxes.tree.query(outlines, "intersects")[0]]] = False
            for i in np.flatnonzero(good):
                place = (int(left[i]), int(top[i]))
                if place not in seen:
                    seen.add(place)
                    vain = 0
                    yield Spot("", "F", *place, source=source[i])

    def why_no_negative(self, xy: np.ndarray, apart_m: float, seen: set[tuple[int, int]]) -> list[str | None]:
        """Why the points of a map make no chips without a crossing, (n,); None where they do.

        Of points that lie close together, the first one counts.

        Args:
            xy: (n, 2) m; nan or infinite where a point has no place.
            apart_m: a point closer to a crossing is a hit. A point closer to an earlier one shows the same.
            seen: corners of chips that exist already.
        """
        from scipy.spatial import cKDTree

        there = np.isfinite(xy).all(axis=1)
        places = np.where(there[:, None], xy, 0.0)
        left, top = self.corner(*places.T)
        inside = self.inside(left, top)
        points, closer = shapely.points(places), np.nextafter(apart_m, 0)
        hits = np.zeros(len(xy), bool)
        hits[self.crossings.query(points, "dwithin", closer)[0]] = True
        boxed = np.zeros(len(xy), bool)
        if self.boxes is not None:
            boxed[self.boxes.tree.query(self.outlines(left, top), "intersects")[0]] = True
        tree = cKDTree(places)
        taken = np.zeros(len(xy), bool)
        reasons: list[str | None] = []
        for i, place in enumerate(zip(left.tolist(), top.tolist(), strict=True)):
            reason = None
            if not there[i]:
                reason = "no place in the CRS of the chips"
            elif hits[i]:
                reason = f"hits, closer than {apart_m:g} m to a crossing"
            elif not inside[i]:
                reason = "where no whole chip can be cut"
            elif boxed[i]:
                reason = "so close to a crossing that a chip shows its box"
            elif place in seen or taken[tree.query_ball_point(places[i], closer)].any():
                reason = f"closer than {apart_m:g} m to another"
            taken[i] = reason is None
            reasons.append(reason)
        return reasons

    def _anywhere(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
        x0, y0, x1, y1 = self.common.bounds
        x, y = rng.uniform((x0, y0), (x1, y1), (DRAWS_AT_ONCE, 2)).T
        return x, y, ["random"] * DRAWS_AT_ONCE

    @staticmethod
    def _along(
        rng: np.random.Generator, lines: list[tuple[str, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        lengths = [shapely.length(parts) for _, parts in lines]
        weights = np.concatenate([length / length.sum() / len(lines) for length in lengths])
        parts = np.concatenate([parts for _, parts in lines])
        names = np.concatenate([[name] * len(parts) for name, parts in lines])
        picked = rng.choice(len(parts), DRAWS_AT_ONCE, p=weights)
        points = shapely.line_interpolate_point(parts[picked], rng.random(DRAWS_AT_ONCE), normalized=True)
        return shapely.get_x(points), shapely.get_y(points), [str(name) for name in names[picked]]
