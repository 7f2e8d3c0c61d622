"""A map against true crossings: what it found, how sure that is, and whether water gets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

from dxc.errors import DataError
from dxc.evaluation.calibration import reliability
from dxc.evaluation.crossings import (
    BLOCKS_FOR_INTERVAL,
    Blocks,
    Interval,
    MapScore,
    evaluate_map,
    match_points,
    recall_at_false_alarms,
)
from dxc.geo.breach import Breaches, Dem
from dxc.geo.flow import LEAST_HA, WITHIN_M, FlowChange, flow_change, subwatersheds
from dxc.geo.rasters import project_xy
from dxc.mapping.merging import Merged
from dxc.text import counted

if TYPE_CHECKING:
    import pandas as pd
    from rasterio.crs import CRS

SQUARE_M = 500.0
"""Edge of the blocks where there is no elevation model: as large as the least subwatershed."""


@dataclass(frozen=True)
class Judged:
    """The evaluation of a map.

    Attributes:
        score: recall, precision and false alarms.
        truth: (n, 2) true crossings, metres.
        points: those of the map, and less certain ones for the curve over thresholds.
        blocks: what intervals are drawn over, in words.
        flow: on the elevation model, at the true crossings; None without one.
        notes: what could not be evaluated, and why.
    """

    score: MapScore
    truth: np.ndarray
    points: Merged
    blocks: str
    flow: FlowChange | None
    notes: tuple[str, ...] = ()

    def recall_at(self, alarms_per_km2: float) -> float:
        """Metric map_recall_at_false_alarms, for so many false alarms a km2."""
        return recall_at_false_alarms(self.score.curve, alarms_per_km2)[0]

    def metrics(self, alarms_per_km2: float) -> dict[str, float]:
        """By the names of dxc.metrics.

        Args:
            alarms_per_km2: the false alarms at which recall is read.
        """
        flow = self.flow.metrics() if self.flow is not None else {}
        return {**self.score.metrics(), "map_recall_at_false_alarms": self.recall_at(alarms_per_km2), **flow}

    def places(self) -> pd.DataFrame:
        """Columns x, y and kind (hit, missed, false alarm) of the points at the map's threshold."""
        return self.score.points(self.truth, self.points.xy)

    def reliability(self) -> pd.DataFrame:
        """What share of the map's points are crossings, by their probability; see dxc.evaluation.calibration."""
        inside = self.score.truth_inside
        match = match_points(self.truth[inside], self.points.xy, within_m=self.score.within_m)
        return reliability(self.points.p, match >= 0)

    def lines(self) -> list[tuple[str, str]]:
        """Labels and texts for people."""
        score, main = self.score, self.score.main
        found = [
            (
                "found",
                f"{main.hits} of {counted(score.truth, 'true crossing')} have a point within {score.within_m:g} m: "
                f"recall {_value(main.recall)}",
            ),
            (
                "right",
                f"{main.hits} of {counted(score.predicted, 'point')} are true crossings: precision "
                f"{_value(main.precision)}",
            ),
        ]
        alarms = f"{_value(main.false_alarms_per_km2)} a km2 of {score.km2:.2f} km2"
        if main.false_alarms_per_road_km is not None:
            alarms += f", {_value(main.false_alarms_per_road_km)} a km of road"
        found.append(("false alarms", alarms))
        if np.isfinite(main.recall.low):
            found.append(("in brackets", f"95 % bootstrap intervals over {self.blocks}"))
        else:
            found.append(
                (
                    "intervals",
                    f"none: only {self.blocks}; a bootstrap needs {BLOCKS_FOR_INTERVAL} or more. Map a larger area.",
                )
            )
        if self.flow is not None:
            found += flow_in_words(self.flow, "true crossing")
        return found + [("note", note) for note in self.notes]


def _value(interval: Interval) -> str:
    """'0.93 (0.88 to 0.97)'."""
    if not np.isfinite(interval.value):
        return "unknown"
    spread = f" ({interval.low:.2f} to {interval.high:.2f})" if np.isfinite(interval.low) else ""
    return f"{interval.value:.2f}{spread}"


def flow_in_words(flow: FlowChange, place: str) -> list[tuple[str, str]]:
    """Labels and texts for people.

    Args:
        flow: what breach lines did.
        place: what the places are at which it was looked at.
    """
    known = np.isfinite(flow.after.area_ha)
    if not known.any():
        return [("flow", f"unknown: no {place} lies on the elevation model")]
    before, after = (int(each.passes()[known].sum()) for each in (flow.before, flow.after))
    return [
        (
            "flow",
            f"the runoff of {LEAST_HA:g} ha or more passes within {WITHIN_M:g} m of {before} of "
            f"{counted(int(known.sum()), place)} on the elevation model as it is, and of {after} with the "
            "breach lines cut in",
        ),
        (
            "ponds",
            f"{flow.before.ponded_m2 / 1e6:.3f} km2 before, {flow.after.ponded_m2 / 1e6:.3f} km2 after; "
            f"{counted(flow.cells_changed, 'cell')} lowered",
        ),
    ]


def judge(
    points: Merged,
    truth: np.ndarray,
    *,
    threshold: float,
    area: shapely.Geometry,
    crs: CRS,
    roads: Sequence[shapely.Geometry] | None = None,
    dem: Dem | None = None,
    breaches: Breaches | None = None,
) -> Judged:
    """Compare a map with true crossings.

    Args:
        points: of the map, and less certain ones.
        truth: (n, 2) true crossings, metres.
        threshold: probability from which a point belongs to the map.
        area: the mapped ground. True crossings away from roads count where only the roads were looked at.
        crs: of all these.
        roads: lines; None where none are known.
        dem: elevation model, for subwatersheds and flow.
        breaches: lines of the map's points.

    Raises:
        AnalysisError: no true crossing lies in the area.
    """
    notes = []
    polygons: list[shapely.Geometry] = []
    flow = None
    if dem is not None:
        try:
            polygons = [_moved(each, dem.crs, crs) for each in subwatersheds(dem)]
            flow = flow_change(dem, truth, breaches.lines if breaches is not None else (), crs)
        except DataError as error:
            notes.append(f"flow was not routed: {error}")
    if polygons:
        blocks = Blocks.of_polygons(polygons, truth, points.xy, area=area, roads=roads)
        name = counted(len(blocks.km2), "subwatershed")
    else:
        blocks = Blocks.of_grid(SQUARE_M, truth, points.xy, area=area, roads=roads)
        name = f"{counted(len(blocks.km2), 'square')} of {SQUARE_M:g} m"
    score = evaluate_map(truth, points.xy, points.p, blocks, threshold=threshold)
    return Judged(score, truth, points, name, flow, tuple(notes))


def _moved(shape: shapely.Geometry, source: CRS, target: CRS) -> shapely.Geometry:
    moved = shapely.transform(shape, lambda xy: np.column_stack(project_xy(source, target, *xy.T)))
    return shapely.make_valid(moved)
