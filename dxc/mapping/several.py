"""Several maps of one command: of each region by the network that did not see it, or by each design of a front.

They are not jobs of a Hydra multirun: at the end, all of them make one table with pooled figures, an error of one must
not end the others, and which folds or designs there are is only known from the store.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from dxc.config.checked import checked
from dxc.config.compose import resolved
from dxc.config.identity import digest
from dxc.errors import ConfigError, DataError, DxcError
from dxc.evaluation.crossings import (
    WITHIN_M,
    AtDistance,
    BlockCounts,
    MapScore,
    pooled_curve,
    recall_at_false_alarms,
)
from dxc.geo.chips import disk_trouble
from dxc.mapping.network import chosen_run, exported_folds, front_of
from dxc.mapping.run import MapReport, make_map
from dxc.mapping.settings import Fit, MapSettings
from dxc.mapping.tracked import record_in_design
from dxc.metrics import MAP_FIGURES
from dxc.report.map_page import POOLED, write_maps
from dxc.text import counted
from dxc.tracking.reader import Reader

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ALL, FRONT = "all", "front"


def asked_maps(cfg: DictConfig) -> list[MapSettings]:
    """The maps that a command asks for: one, unless fold names several or pick=front.

    Args:
        cfg: of conf/map.yaml, as Hydra composed it. Interpolations of fold are filled in for each map.

    Raises:
        ConfigError: values that cannot work, or maps that would replace each other.
        AnalysisError: the run or the study does not have what is asked for.
        TrackingError: the store, the study or the run does not exist.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    if cfg.fold is None and any("${fold}" in str(value) for value in plain.values()):  # type: ignore[union-attr]
        raise ConfigError("${fold} stands in a path, and no fold is given: add fold=all or fold=NAME")
    listed = [str(each) for each in cfg.fold] if isinstance(cfg.fold, ListConfig) else None
    if listed == []:
        raise ConfigError("fold is an empty list: name folds, such as fold=[NE,IL], or fold=all")
    settings = _of_fold(cfg, listed[0]) if listed else checked(MapSettings, resolved(cfg))
    front = settings.study is not None and settings.onnx is None and settings.pick == FRONT
    several = listed is not None or settings.fold == ALL
    if not (front or several):
        return [settings]
    reader = Reader(settings.tracking.uri, artifacts=settings.tracking.artifacts)
    run_ids = front_of(settings) if front else [settings.run or chosen_run(settings)[0]]
    asked = []
    for run_id in run_ids:
        folds = listed if listed is not None else exported_folds(reader, run_id) if several else [None]
        regions = {fold: settings if fold is None else _of_fold(cfg, fold) for fold in folds}
        for one in regions.values():
            others = [each for each in regions.values() if each.fold != one.fold]
            values: dict[str, Any] = {"run": run_id, "study": None, "fit": _fit(one, others)}
            if front:
                trial = reader.run(run_id)[0].tags.get("dxc.trial", run_id[:12])
                values["out"] = _marked(one.out, trial)
                values["breached"] = None if one.breached is None else _marked(one.breached, trial)
            asked.append(one.model_copy(update=values))
    _require_apart(asked)
    return asked


def _fit(one: MapSettings, others: Sequence[MapSettings]) -> list[Fit]:
    """The regions on which a dense pass is fitted where a map names none: those of the other maps whose crossings are
    known. Its network was trained on all of them."""
    if one.way != "dense" or one.fit or one.screen_logit is not None:
        return one.fit
    return [
        Fit(
            dem=other.dem, photo=other.photo, crossings=other.truth, crossings_layer=other.truth_layer,
            crossings_xy=other.truth_xy, crossings_crs=other.truth_crs,
            photo_bands=other.photo_bands, dem_units=other.dem_units, crs=other.crs,
        )
        for other in others if other.truth is not None
    ]  # fmt: skip


def _of_fold(cfg: DictConfig, fold: str) -> MapSettings:
    one = copy.deepcopy(cfg)
    one.fold = fold
    return checked(MapSettings, resolved(one))


def _marked(path: Path, trial: str) -> Path:
    """maps/crossings_3519c8f7b6e0.gpkg."""
    return path.with_name(f"{path.stem}_{trial}{path.suffix}")


def _require_apart(asked: Sequence[MapSettings]) -> None:
    """Raise ConfigError where two maps have one result, or two folds one region."""
    example = "'out=maps/${fold}.gpkg' 'dem=regions/${fold}/dem.tif'"
    owner: dict[Path, MapSettings] = {}
    for one in asked:
        for path in one.results:
            if path in owner:
                raise ConfigError(
                    f"{path} would be the result of several maps. Put ${{fold}} in out and breached: {example}"
                )
            owner[path] = one
    region: dict[Path, str | None] = {}
    for one in asked:
        grounds = {path.absolute() for paths in (one.dem, one.photo) for path in paths or ()}
        for path in grounds:
            if region.setdefault(path, one.fold) != one.fold:
                raise ConfigError(
                    f"{path} would be mapped by the networks of several folds, and only one of them did not see it. "
                    f"Put ${{fold}} in dem, photo, roads and truth: {example}"
                )


@dataclass(frozen=True)
class OneMap:
    """One of several maps: what was asked, the name of its design, and what came of it."""

    settings: MapSettings
    design: str
    report: MapReport | None
    """None: it could not be made."""
    error: str = ""
    """Why it could not be made, or not be tracked."""

    @property
    def score(self) -> MapScore | None:
        """None where it was not judged."""
        judged = self.report.judged if self.report is not None else None
        return None if judged is None else judged.score

    def row(self) -> dict[str, Any]:
        """Its row of Maps.table()."""
        row = {
            "design": self.design,
            "fold": self.settings.fold or "",
            "within_m": math.nan,
            "error": self.error,
        }
        if (report := self.report) is None:
            return row
        row |= {"points": report.crossings, "km2": report.km2, "seconds_per_km2": report.seconds_per_km2}
        if report.judged is not None:
            score = report.judged.score
            row |= {"truth": score.truth, **score.main.columns()}
            row["map_recall_at_false_alarms"] = report.judged.recall_at(self.settings.alarms_per_km2)
        return row


@dataclass(frozen=True)
class Maps:
    """The result of a command that makes several maps, in the order in which they were asked for."""

    maps: Sequence[OneMap]
    files: Path | None
    """The folder of the table's files."""

    def table(self) -> pd.DataFrame:
        """One row a map, and one of all folds of a design.

        Columns: design, fold, truth (number of true crossings), points, hits, each figure with its _low and _high,
        map_recall_at_false_alarms, km2, seconds_per_km2, error.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for design, maps in self._by_design().items():
            rows += [each.row() for each in maps]
            if (pooled := Pooled.of(maps)) is not None:
                reports = [each.report for each in maps if each.report is not None]
                fresh = sum(each.fresh_km2 for each in reports)
                rows.append(
                    {
                        "design": design, "fold": POOLED, "error": "", "truth": int(pooled.counts.truth.sum()),
                        "points": int(pooled.counts.predicted.sum()), "km2": float(pooled.counts.km2.sum()),
                        "seconds_per_km2": sum(each.seconds for each in reports) / fresh if fresh else math.nan,
                        **pooled.figures.columns(), "map_recall_at_false_alarms": pooled.recall_at,
                    }
                )  # fmt: skip
        columns = [
            "design", "fold", "truth", "points", "within_m", "hits",
            *(f"{name}{end}" for name in MAP_FIGURES for end in ("", "_low", "_high")),
            "map_recall_at_false_alarms", "km2", "seconds_per_km2", "error",
        ]  # fmt: skip
        return pd.DataFrame(rows).reindex(columns=columns)

    def said(self) -> list[tuple[str, str]]:
        """Labels and texts for people."""
        lines = []
        for maps in self._by_design().values():
            if (pooled := Pooled.of(maps)) is not None:
                blocks = [each.report.judged.blocks for each in maps if each.report and each.report.judged]
                noun = "subwatershed" if all("subwatershed" in each for each in blocks) else "block"
                lines.append(
                    (
                        "pooled",
                        f"{len(blocks)} of {counted(len(maps), 'region')}; in brackets 95 % bootstrap intervals over "
                        f"their {counted(len(pooled.counts.km2), noun)}. They do not say how much regions differ",
                    )
                )
        if len(lines) > 1:  # of one kind for each design
            lines = list(dict.fromkeys(lines))
        for each in self.maps:
            name = " ".join(
                part for part in (each.settings.fold, f"({each.design})" * self._several_designs) if part
            )
            if each.report is None:
                lines.append(("no map", f"{name}: {each.error}"))
            else:
                page = each.report.evaluation
                if each.error:
                    lines.append(("not tracked", f"{name}: {each.error}"))
                lines.append(("map", f"{name}: {each.report.out}" + (f", report {page}" if page else "")))
        return lines

    @property
    def failed(self) -> list[OneMap]:
        """Those that could not be made, or not be tracked."""
        return [each for each in self.maps if each.error]

    @property
    def _several_designs(self) -> bool:
        return len({each.design for each in self.maps}) > 1

    def _by_design(self) -> dict[str, list[OneMap]]:
        found: dict[str, list[OneMap]] = {}
        for each in self.maps:
            found.setdefault(each.design, []).append(each)
        return found


@dataclass(frozen=True)
class Pooled:
    """All maps of one design as one.

    Attributes:
        counts: what lies in each block of all maps.
        figures: recall, precision and false alarms.
        recall_at: metric map_recall_at_false_alarms.
    """

    counts: BlockCounts
    figures: AtDistance
    recall_at: float

    @classmethod
    def of(cls, maps: Sequence[OneMap]) -> Pooled | None:
        """Those that were judged; None of fewer than two."""
        scores = [each.score for each in maps if each.score is not None]
        if len(scores) < 2:
            return None
        counts = BlockCounts.joined([each.counts for each in scores])
        recall_at, _ = recall_at_false_alarms(pooled_curve(scores), maps[0].settings.alarms_per_km2)
        return cls(counts, counts.figures(WITHIN_M), recall_at)


def make_maps(asked: Sequence[MapSettings]) -> Maps:
    """Make several maps, one after the other. One that cannot be made does not stop the others.

    If the command is interrupted or a map cannot be made, the same command goes on with what is missing.

    Args:
        asked: of asked_maps().
    """
    reader = Reader(asked[0].tracking.uri, artifacts=asked[0].tracking.artifacts)
    names = _names(reader, [str(each.run) for each in asked])
    done: list[OneMap] = []
    for number, settings in enumerate(asked, 1):
        run_id = str(settings.run)
        of = f"{settings.fold} by {names[run_id]}" if settings.fold is not None else names[run_id]
        log.info("map %d of %d: %s", number, len(asked), of)
        alone = sum(each.run == run_id for each in asked) == 1
        try:
            report = make_map(settings, one_of_several=True, into_design=alone)
            if report.untracked:
                log.warning("map %d of %d is made, but not tracked: %s", number, len(asked), report.untracked)
            done.append(OneMap(settings, names[run_id], report, report.untracked))
        except DxcError as error:
            log.warning("map %d of %d: %s", number, len(asked), error)
            done.append(OneMap(settings, names[run_id], None, str(error)))
    made = Maps(done, None)
    recorded = True
    try:
        _record_pooled(reader, made)
    except DxcError as error:  # the maps are there, and their table says the same
        recorded = False
        log.warning(
            "the pooled figures are not in the runs of the designs: %s\nRepeat the command to write them: it computes "
            "no map again.",
            error,
        )
    if any(each.report is not None for each in done):
        folder = asked[0].out.parent if len({each.out.parent for each in asked}) == 1 else _common(asked)
        with disk_trouble(folder):
            write_maps(made.table(), folder, alarms_per_km2=asked[0].alarms_per_km2)
        made = Maps(done, folder)
    if recorded and not made.failed:
        for each in done:
            if each.report is not None and each.report.kept is not None:
                shutil.rmtree(each.report.kept, ignore_errors=True)
    return made


def require_all(made: Maps) -> None:
    """Raise DataError where a map could not be made, or not be tracked."""
    if made.failed:
        raise DataError(
            f"{len(made.failed)} of {counted(len(made.maps), 'map')} could not be made or tracked; the lines above say "
            "why. Mend that and repeat the command: it keeps what it has made."
        )


def _names(reader: Reader, run_ids: Sequence[str]) -> dict[str, str]:
    """The names of runs. Those that several share get the id of their run, too."""
    found = {
        run_id: reader.run(run_id)[0].tags.get("mlflow.runName", run_id) for run_id in dict.fromkeys(run_ids)
    }
    several = [name for name in found.values() if list(found.values()).count(name) > 1]
    return {run_id: f"{name} [{run_id[:12]}]" if name in several else name for run_id, name in found.items()}


def _common(asked: Sequence[MapSettings]) -> Path:
    """The deepest folder that holds all maps."""
    first, *others = [each.out.absolute().parent for each in asked]
    return next(folder for folder in (first, *first.parents) if all(o.is_relative_to(folder) for o in others))


def _record_pooled(reader: Reader, made: Maps) -> None:
    """Write what all folds together say of a design into its run, where all of them could be judged."""
    for maps in made._by_design().values():
        reports = [each.report for each in maps if each.report is not None]
        pooled = Pooled.of(maps)
        judged = all(each.score is not None for each in maps)
        settings, run_id = maps[0].settings, str(maps[0].settings.run)
        if pooled is None or not judged or not settings.log:
            continue
        figures = {metric: getattr(pooled.figures, name) for name, metric in MAP_FIGURES.items()}
        values = {name: figure.value for name, figure in figures.items() if figure is not None}
        values["map_recall_at_false_alarms"] = pooled.recall_at
        mapped = sorted((str(each.network.fold), each.mapped, each.mode) for each in reports)
        tags = {
            "dxc.mapped": f"{', '.join(fold for fold, _, _ in mapped)} ({digest(mapped)})",
            "dxc.map_mode": ", ".join(dict.fromkeys(mode for _, _, mode in mapped)),
            "dxc.map_fold": ", ".join(fold for fold, _, _ in mapped),
            "dxc.map_roads": ", ".join(dict.fromkeys(each.roads for each in reports if each.roads)),
        }
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        record_in_design(settings, run_id, reader.run(run_id)[1], finite, tags)
