"""What designs do to a map: a row a map, beside what its network was worth on chips and what it costs.

Maps are ranked among those of one area, mode, fold and corridor alone: crossings of one area are harder to find than
those of another, a narrow corridor along few roads has fewer chances of a false alarm, and a network that has seen an
area is no equal of one that has not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.analysis.analyze import runs_of_table, written
from dxc.analysis.questions import Questions
from dxc.errors import AnalysisError
from dxc.metrics import METRICS
from dxc.text import counted
from dxc.tracking.patience import StoredRun
from dxc.tracking.reader import Reader

if TYPE_CHECKING:
    import pandas as pd

RANKED_BY = ("map_recall_at_false_alarms", "map_recall", "map_precision")
"""What decides on a rank, the first first."""
OF_MAP = (
    "map_recall_at_false_alarms", "map_recall", "map_precision", "false_alarms_per_km2", "seconds_per_km2",
)  # fmt: skip
OF_DESIGN = ("accuracy", "average_precision", "latency_ms", "measured_latency_ms")
ONE_RANKING = ("area", "mode", "fold", "roads", "alarms_per_km2")
"""Maps are ranked among those that are equal in these."""
SAME_MAP = ("dxc.mapped", "dxc.mapped_by", "dxc.map_mode", "dxc.map_roads")
SAME_MAP_PARAMS = (
    "stride_m", "merge_m", "threshold", "alarms_per_km2", "calibrate", "every_window", "refine",
)  # fmt: skip
"""Of maps that are equal in these tags and params, the newest counts."""


@dataclass(frozen=True)
class MapTable:
    """Maps of the designs of some studies.

    Attributes:
        title: the studies.
        frame: see mapped().
        lines: notes.
    """

    title: str
    frame: pd.DataFrame
    lines: Sequence[str]


def map_table(asked: Questions) -> tuple[MapTable, Path]:
    """Read the maps of some studies into a table, and write it; see MapTable.

    Args:
        asked: `where` selects the runs of designs.

    Returns:
        The table, and the folder of its files.

    Raises:
        TrackingError: the store or the study does not exist.
        AnalysisError: there is no map that was compared with true crossings.
    """
    from dxc.report.map_table import write_map_table

    runs, title, notes = runs_of_table(asked)
    reader = Reader(asked.tracking.uri, artifacts=asked.tracking.artifacts)
    maps = [each for name in asked.study for each in reader.maps(reader.study(name))]
    frame = mapped(runs, maps)
    if frame.empty:
        of = f"{title}{f' with {asked.where}' if asked.where else ''}"
        raise AnalysisError(
            f"no run of {of} has a map that was compared with true crossings; python map.py study={asked.study[0]} "
            "pick=front truth=... makes them"
        )
    lines = [f"note:      {note}" for note in [*notes, *_remarks(frame)]]
    folder = written(asked, title, lambda folder: write_map_table(frame, folder))
    return MapTable(title, frame, lines), folder


def mapped(runs: pd.DataFrame, maps: Sequence[StoredRun]) -> pd.DataFrame:
    """One row a map, the best of each ranking first; rankings are in the order of their first maps.

    Columns: ranking (number, from 1), rank (among the maps of a ranking), name, area, mode, fold, roads (along which
    it looked, how far from them, and a digest; '' without), stride_m, threshold, merge_m, calibrate, every_window,
    refine, machine, alarms_per_km2, OF_DESIGN, OF_MAP, run_id (of the map), design_run.

    Args:
        runs: of designs, finished.
        maps: of Reader.maps(). Those of other runs, and those without true crossings, are left out.
    """
    import numpy as np
    import pandas as pd

    of = runs.set_index("run_id")
    newest: dict[tuple[str, ...], StoredRun] = {}
    for each in maps:
        key = (
            each.tags.get("dxc.network_run", ""),
            *(each.tags.get(tag, "") for tag in SAME_MAP),
            *(each.params.get(name, "") for name in SAME_MAP_PARAMS),
        )
        if key[0] in of.index and "map_recall" in each.metrics:
            newest[key] = each
    rows = []
    for (design, *_), each in newest.items():
        known = of.loc[design]
        rows.append(
            {
                "name": str(known["name"]),
                "area": each.tags.get("dxc.mapped", ""),
                "mode": each.tags.get("dxc.map_mode", ""),
                "fold": each.tags.get("dxc.map_fold", ""),
                "roads": each.tags.get("dxc.map_roads", ""),
                "stride_m": _number(each.params, "stride_m"),
                "threshold": _number(each.params, "threshold"),
                "merge_m": _number(each.params, "merge_m"),
                "calibrate": each.params.get("calibrate", ""),
                "every_window": each.params.get("every_window", "").lower(),
                "refine": each.params.get("refine", "").lower(),
                "machine": each.tags.get("dxc.measured_on", ""),
                "alarms_per_km2": _number(each.params, "alarms_per_km2"),
                **{name: float(known[name]) if name in of else np.nan for name in OF_DESIGN},
                **{name: each.metrics.get(name, np.nan) for name in OF_MAP},
                "run_id": each.run_id,
                "design_run": design,
            }
        )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame.insert(0, "ranking", frame.groupby(list(ONE_RANKING), sort=False, dropna=False).ngroup() + 1)
    worse_first = [True, *(not METRICS[name].maximise for name in RANKED_BY)]
    frame = frame.sort_values(
        ["ranking", *RANKED_BY], ascending=worse_first, kind="stable", na_position="last"
    )
    places = frame.groupby("ranking").cumcount() + 1
    same = [frame[name].fillna(-1) for name in RANKED_BY]  # equal maps share a rank
    frame.insert(1, "rank", places.groupby([frame["ranking"], *same]).transform("min"))
    return frame.reset_index(drop=True)


def _number(params: Mapping[str, str], name: str) -> float:
    try:
        return float(params.get(name, ""))
    except ValueError:
        return float("nan")


def _remarks(frame: pd.DataFrame) -> list[str]:
    notes = []
    rankings = int(frame["ranking"].max())
    if rankings > 1:
        notes.append(
            f"{counted(rankings, 'ranking')}: maps of different areas, modes, folds and corridors are not compared "
            "with each other"
        )
    if (frame.groupby("ranking")["machine"].agg(lambda each: len(set(each))) > 1).any():
        notes.append("mapping times are of several machines, and only those of one can be compared")
    return notes
