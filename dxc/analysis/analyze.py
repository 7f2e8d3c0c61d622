"""The trunk of an analysis: runs -> designs -> front -> bootstrap -> choice -> tables, figures, page -> MLflow."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.analysis.choice import Choice, choose, prize_metrics
from dxc.analysis.condition import meets
from dxc.analysis.deployed import deployed
from dxc.analysis.designs import Designs, default_objectives, designs_of, parse_objectives, require_comparable
from dxc.analysis.front_profile import FrontProfile, profile_front
from dxc.analysis.network_file import NetworkFile, chosen_file
from dxc.analysis.out_of_fold import outcomes_of
from dxc.analysis.published import published_study
from dxc.analysis.questions import Choose, Questions
from dxc.analysis.reproduce import command_of
from dxc.analysis.runs import read_runs
from dxc.config.names import flatten
from dxc.errors import AnalysisError, TrackingError
from dxc.evaluation.bootstrap import (
    Comparison,
    Outcomes,
    accuracy_draws,
    average_precision_draws,
    compare,
    probability_non_dominated,
)
from dxc.files import folder_name
from dxc.hardware.measure.energy.metering import Metering, artifact_of
from dxc.metrics import ENERGY_METER, METRICS, ORIGIN_TAGS, Metric, named_origins
from dxc.pareto import dominators, hypervolume, non_dominated, ranks, reference_point
from dxc.text import counted
from dxc.tracking.places import OutsideError
from dxc.tracking.reader import Reader, study_names
from dxc.tracking.run import start_run
from dxc.tracking.store import Store
from dxc.tracking.view import DATASET

if TYPE_CHECKING:
    import pandas as pd

DRAWN = {"accuracy": accuracy_draws, "average_precision": average_precision_draws}
"""What the bootstrap draws, by objective; of several the first."""
RANKED = 20_000  # designs; larger sets get no ranks beyond the first, which take O(n^2)


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis.

    Attributes:
        designs: see dxc.analysis.designs, with more columns: front (bool), rank (1 is the front), dominated_by (name of
            a front member, '' on the front), p_front (probability of being on the front, NaN if unknown) and unstable
            (on the front with a p_front below bootstrap.unstable_below).
        commands: commands that train the chosen design and the runner-up.
    """

    title: str
    objectives: Mapping[str, Metric]
    designs: pd.DataFrame
    knobs: Sequence[str]
    aside: pd.DataFrame
    reference: Mapping[str, float]
    hypervolume: float
    choice: Choice
    commands: tuple[str, str]
    comparison: tuple[str, str, Comparison] | None
    baseline: Designs | None
    front_profile: FrontProfile | None
    notes: Sequence[str]
    machines: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """{origin: {machine or chips: number of runs}} of objectives; see dxc.metrics.named_origins."""
    network: NetworkFile = field(default_factory=NetworkFile)
    """The exported file of the chosen design."""
    whole: bool = False
    """Whether the terminal shows all designs, not the front alone: a published table as it is printed."""
    deployed: pd.DataFrame | None = None
    """Those that were run on a device; see dxc.analysis.deployed. None if none was."""
    power: Metering | None = None
    """What a meter saw of the chosen design."""
    view: str = ""
    """Address of the designs in MLflow's UI; '' where nothing was written to the store."""

    @property
    def front(self) -> pd.DataFrame:
        """Members of the front, in the order of the designs. Tables and figures sort them."""
        return self.designs[self.designs["front"]]


def analyze(asked: Questions) -> tuple[Analysis, Path]:
    """Answer the questions that conf/analysis/analyze.yaml describes.

    Returns:
        The result, and the folder with tables, figures and page.

    Raises:
        TrackingError: the store or the study does not exist.
        AnalysisError: the analysis has no answer.
    """
    import pandas as pd

    from dxc.report.findings import write_report

    published = published_study((asked.study or ["resnet18"])[0]) if asked.published else None
    named = asked.objectives
    if published is not None:
        runs, baseline_runs, title = published.runs, published.baseline, str(published.runs["study"].iloc[0])
        notes = [f"published: {published.source}", *published.notes]
        named = list(published.objectives) if named is None else named
    else:
        runs, baseline_runs, title, notes = tracked_runs(asked)
    found, objectives = selected(runs, asked.where, named, asked.mix)
    found = found._replace(frame=_told_apart(found.frame))
    frame, reference, volume = with_front(found, objectives)
    uri, cache_dir = asked.tracking.uri, Path(asked.cache_dir)
    outcomes: list[list[Outcomes]] = [[] for _ in range(len(frame))]
    if published is None:
        outcomes, more = outcomes_of(
            frame, runs, uri, cache_dir=cache_dir, artifacts=asked.tracking.artifacts
        )
        notes += more
    frame = with_front_probability(frame, objectives, outcomes, **asked.bootstrap.values())
    notes += [] if published is not None else _remarks(frame, found, objectives)
    if published is not None:
        notes += [
            f"{name} dominates {', '.join(others)}"
            for name, others in frame[~frame["front"]].groupby("dominated_by", sort=False)["name"]
        ]
    rule = asked.choose
    choice = chosen(frame, runs, objectives, rule, asked.mix)
    comparison = None
    if asked.compare:
        draws, seed = asked.bootstrap.draws, asked.bootstrap.seed
        comparison = compared(frame, outcomes, asked.compare, draws=draws, seed=seed)
    shown = runs[runs["run_id"].isin([run_id for repeats in frame["runs"] for run_id in repeats])]
    baseline = None
    if baseline_runs is not None:
        shown = pd.concat([shown, baseline_runs], ignore_index=True)
        beside = pd.concat([runs[runs["run_id"].isin(frame["run_id"])], baseline_runs], ignore_index=True)
        require_comparable(beside, objectives, asked.mix)
        lacking = [name for name in objectives if name not in baseline_runs]
        baseline = designs_of(baseline_runs.assign(**dict.fromkeys(lacking, np.nan)), objectives)
        if len(baseline.aside):
            notes.append(f"baseline: {len(baseline.aside)} of {len(baseline_runs)} runs lack an objective")
    commands, network = ("", ""), NetworkFile()
    on_device, power = None, None
    if published is None:
        reader = Reader(uri, artifacts=asked.tracking.artifacts)
        commands = _commands(frame, choice, reader)
        run_id = frame.loc[choice.design, "run_id"]
        network = chosen_file(reader, run_id, export=rule.export, rebuild=commands[0])
        if len(found_there := deployed(shown)):
            on_device, power = found_there, _power(reader, run_id, runs)
    folder = Path(asked.out) / folder_name(title)
    try:
        front_profile = (
            None if published is not None else _profiled(asked, frame, objectives, folder / "profiles")
        )
    except OSError as error:
        raise AnalysisError(f"out={asked.out}: profiles cannot be written: {error}") from error
    notes += front_profile.notes if front_profile is not None else []
    analysis = Analysis(
        title,
        objectives,
        frame,
        found.knobs,
        found.aside,
        reference,
        volume,
        choice,
        commands,
        comparison,
        baseline,
        front_profile,
        notes,
        machines_of(shown, objectives),
        network,
        whole=published is not None,
        deployed=on_device,
        power=power,
    )
    print("analyze: drawing figures and writing tables", file=sys.stderr, flush=True)
    try:
        write_report(analysis, folder)
    except OSError as error:
        raise AnalysisError(f"out={asked.out}: the report cannot be written: {error}") from error
    if published is None:
        try:
            analysis = replace(analysis, view=_record(asked, analysis, folder, runs))
        except (OSError, TrackingError) as error:
            analysis = replace(analysis, notes=[*notes, f"not kept in MLflow: {error}"])
    return analysis, folder


def chosen(
    frame: pd.DataFrame,
    runs: pd.DataFrame,
    objectives: Mapping[str, Metric],
    rule: Choose,
    mix: Sequence[str],
) -> Choice:
    """The design that a rule chooses, among those of with_front().

    Args:
        frame: designs with their front.
        runs: all runs, with everything that a condition or a prize may ask for.
        objectives: of the front.
        rule: the section choose.
        mix: see conf/analysis/analyze.yaml.

    Raises:
        AnalysisError: there is no such design.
    """
    others = runs.set_index("run_id")[[name for name in runs if name not in frame]]
    known = _with_prize(frame.join(others, on="run_id"), runs, rule.by, mix)
    return choose(known, objectives, by=rule.by, where=rule.where, weights=rule.weights)


def _with_prize(designs: pd.DataFrame, runs: pd.DataFrame, by: str, mix: Sequence[str]) -> pd.DataFrame:
    """Designs with what decides on a prize as the mean over their repeats. Raises AnalysisError where runs cannot be
    compared by it."""
    own = runs.set_index("run_id").loc[[run_id for repeats in designs["runs"] for run_id in repeats]]
    for name in prize_metrics(by, own):
        require_comparable(own, {name: METRICS[name]}, mix)
        designs = designs.assign(**{name: [own.loc[repeats, name].mean() for repeats in designs["runs"]]})
    return designs


def _profiled(
    asked: Questions, frame: pd.DataFrame, objectives: Mapping[str, Metric], folder: Path
) -> FrontProfile | None:
    """Profile the members of the front if this was requested, best first in the first objective."""
    if asked.profile == "none":
        return None
    first, best = next(iter(objectives.items()))
    members = frame[frame["front"]].sort_values(first, ascending=not best.maximise, kind="stable")
    return profile_front(
        members,
        asked.tracking.uri,
        folder,
        mode=asked.profile,
        hardware=asked.hardware,
        artifacts=asked.tracking.artifacts,
    )


def _told_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the trial, or the run, to names that several designs share (designs that differ in a learning rate, say)."""
    twice = frame["name"].duplicated(keep=False)
    mark = frame["trial"].where(frame["trial"] != "", frame["run_id"]).str[:12]
    return frame.assign(name=frame["name"].where(~twice, frame["name"] + " [" + mark + "]"))


def tracked_runs(asked: Questions) -> tuple[pd.DataFrame, pd.DataFrame | None, str, list[str]]:
    """(runs, runs of the baseline, title, notes) from MLflow."""
    uri, cache_dir, studies = asked.tracking.uri, Path(asked.cache_dir), asked.study
    if not studies:
        names = study_names(uri)
        raise AnalysisError(
            f"name a study: study={names[-1] if names else 'NAME'}; there are {', '.join(names) or 'none'}"
        )
    found = read_runs(uri, studies, cache_dir=cache_dir, refresh=asked.refresh)
    if found.frame.empty:
        others = ", ".join(f"{count} {state}" for state, count in found.others.items()) or "no other runs"
        raise AnalysisError(f"study {', '.join(studies)} has no finished run ({others})")
    notes = []
    if found.others:
        listing = ", ".join(f"{count} {state}" for state, count in found.others.items())
        notes.append(f"{len(found.frame)} finished runs; not among them: {listing}")
    baseline = None
    if named := asked.baseline:
        baseline = read_runs(uri, named, cache_dir=cache_dir, refresh=asked.refresh).frame
        if baseline.empty:
            raise AnalysisError(f"baseline: study {', '.join(named)} has no finished run")
    return found.frame, baseline, "+".join(studies), notes


def runs_of_table(asked: Questions) -> tuple[pd.DataFrame, str, list[str]]:
    """(runs that `where` selects, title, notes) for a table that stands in the place of the front."""
    runs, _, title, notes = tracked_runs(asked)
    return runs[meets(runs, asked.where)] if asked.where else runs, title, notes


def written(asked: Questions, title: str, write: Callable[[Path], None]) -> Path:
    """Write the files of such a table. Returns their folder.

    Args:
        asked: says where to.
        title: of the studies.
        write: writes them into a folder.

    Raises:
        AnalysisError: a file cannot be written.
    """
    folder = Path(asked.out) / folder_name(title)
    try:
        write(folder)
    except OSError as error:
        raise AnalysisError(f"out={asked.out}: the table cannot be written: {error}") from error
    return folder


def machines_of(runs: pd.DataFrame, objectives: Mapping[str, Metric]) -> dict[str, dict[str, int]]:
    """Analysis.machines of these runs. A run counts for an origin where it has a value of it: a quantised network has
    no predicted latency."""
    found: dict[str, dict[str, int]] = {}
    for origin, tag in ORIGIN_TAGS.items():
        own = {name: each for name, each in objectives.items() if each.origin == origin}
        columns = [name for name in own if name in runs]
        valued = runs[runs[columns].notna().any(axis=1)] if columns else runs
        said = valued[tag].astype("object").fillna("").map(str) if tag in valued else [""] * len(valued)
        if ENERGY_METER in valued and any(ENERGY_METER in each.comparable_by for each in own.values()):
            meters = valued[ENERGY_METER].astype("object").fillna("").map(str)
            said = [
                f"{on}; energy of {meter}" if meter else on for on, meter in zip(said, meters, strict=True)
            ]
        found |= named_origins([{tag: each} for each in said], own)
    return found


def _remarks(frame: pd.DataFrame, found: Designs, objectives: Mapping[str, Metric]) -> list[str]:
    notes = []
    if len(found.aside):
        counts = found.aside["reason"].value_counts()
        notes.append(
            f"set aside: {', '.join(f'{count} with {reason}' for reason, count in counts.items())} (set_aside.csv)"
        )
    if "accuracy" not in objectives:
        notes.append(
            "how sure the front is cannot be said: that is known of accuracy only, which is no objective here"
        )
    if len(frame) == 1:
        runs = len(frame["runs"].iloc[0]) + len(found.aside)
        notes.append(f"there is one design only, of {counted(runs, 'run')}: it is the front of 1")
    elif len(frame[list(objectives)].drop_duplicates()) == 1:
        notes.append(f"all {len(frame)} designs are equal in every objective: all {len(frame)} are the front")
    return notes


def _commands(frame: pd.DataFrame, choice: Choice, reader: Reader) -> tuple[str, str]:
    """Commands that train the chosen design and the runner-up again."""

    def of(place: int | None) -> str:
        if place is None:
            return ""
        row = frame.loc[place]
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = reader.artifact(row["run_id"], "config.yaml", Path(folder))
                if path is None:
                    return f"not known: run {row['run_id']} has no config.yaml any more"
                return command_of(path, row["trial"] or None, reader.uri)
            except (AnalysisError, OutsideError) as error:
                return f"not known: {error}" if isinstance(error, OutsideError) else str(error)

    return of(choice.design), of(choice.runner_up)


def _power(reader: Reader, run_id: str, runs: pd.DataFrame) -> Metering | None:
    """What a meter saw of a run; None where there is no such record that can be read."""
    tag = ORIGIN_TAGS["measured"]
    device = runs.set_index("run_id")[tag].get(run_id) if tag in runs else None
    if not isinstance(device, str):
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = reader.artifact(run_id, artifact_of(device), Path(folder))
            return None if path is None else Metering.load(path)
        except (OSError, ValueError, OutsideError):
            return None


def _record(asked: Questions, analysis: Analysis, folder: Path, runs: pd.DataFrame) -> str:
    """Write tags to the runs, and the report as a run in MLflow, if requested. Returns Analysis.view."""
    uri, study = asked.tracking.uri, str(runs["study"].iloc[0])
    address = ""
    if asked.tag or asked.log:
        store = Store(uri, study, patience_s=0, artifacts=asked.tracking.artifacts)
        address = store.save_view(**saved_view(analysis))
    if asked.tag:
        places = {run_id: row for _, row in analysis.designs.iterrows() for run_id in row["runs"]}
        for run_id in runs[
            "run_id"
        ]:  # those that a condition leaves out lose what an earlier analysis said of them
            row = places.get(run_id)
            front = "left out" if row is None else str(bool(row["front"])).lower()
            store.tag(run_id, {"dxc.front": front, "dxc.rank": "" if row is None else str(row["rank"])})
    if asked.log:
        requested = (
            "study",
            "where",
            "objectives",
            "mix",
            "baseline",
            "choose",
            "compare",
            "bootstrap",
            "profile",
        )
        given = asked.values()
        params = {
            key: ",".join(given[key]) if isinstance(given[key], list) else given[key] for key in requested
        }
        numbers = {
            "designs": len(analysis.designs),
            "front": len(analysis.front),
            "hypervolume": analysis.hypervolume,
        }
        chosen = str(analysis.designs.loc[analysis.choice.design, "trial"])
        with start_run(
            uri,
            study=study,
            name=f"analysis of {analysis.title}",
            params=flatten(params) | {"objectives": list(analysis.objectives)} | numbers,
            tags={"dxc.kind": "analysis", "dxc.chosen": chosen},
            artifacts=asked.tracking.artifacts,
        ) as run:
            run.log_files(folder)
    return address


def saved_view(analysis: Analysis) -> dict[str, Any]:
    """What designs are compared by in MLflow's table of runs: arguments of Store.save_view."""
    first, best = next(iter(analysis.objectives.items()))
    measured = [name for name, metric in METRICS.items() if metric.in_view and metric.origin == "measured"]
    columns = [
        DATASET,
        *(f"metrics.{name}" for name in dict.fromkeys([*analysis.objectives, *measured, "fit_seconds"])),
        "tags.dxc.rank",
        "tags.dxc.front",
        "tags.data",
        *(f"params.{knob}" for knob in analysis.knobs if knob != "data"),
    ]
    return {"columns": columns, "order_by": f"metrics.{first}", "ascending": not best.maximise}


def with_front(
    found: Designs, objectives: Mapping[str, Metric]
) -> tuple[pd.DataFrame, dict[str, float], float]:
    """(designs with front, rank and dominated_by; reference point; hypervolume)."""
    frame = found.frame
    values = frame[list(objectives)].to_numpy(dtype=float)
    maximise = [each.maximise for each in objectives.values()]
    front = non_dominated(values, maximise=maximise)
    by = dominators(values, maximise=maximise)
    names = frame["name"].to_numpy(dtype=object)
    rank = ranks(values, maximise=maximise) if len(frame) <= RANKED else np.where(front, 1, 2)
    reference = reference_point(values, maximise=maximise)
    frame = frame.assign(
        front=front, rank=rank, dominated_by=np.where(by >= 0, names[by], ""), p_front=np.nan, unstable=False
    )
    volume = hypervolume(values, reference=reference, maximise=maximise)
    return frame, dict(zip(objectives, map(float, reference), strict=True)), volume


def with_front_probability(
    frame: pd.DataFrame,
    objectives: Mapping[str, Metric],
    outcomes: Sequence[Sequence[Outcomes]],
    *,
    draws: int,
    seed: int,
    unstable_below: float,
) -> pd.DataFrame:
    """Add the columns p_front and unstable: of the accuracy where it is an objective, or of the average precision.

    Args:
        frame: the designs.
        objectives: the objectives of the front.
        outcomes: outcomes of each design's repeats; an empty list where nothing is known.
        draws: number of bootstrap draws.
        seed: seed of the draws.
        unstable_below: least share of the draws in which a member has to be on the front.
    """
    names = list(objectives)
    score = next((name for name in DRAWN if name in names), None)
    if score is None or not any(outcomes):
        return frame
    drawn = DRAWN[score](outcomes, draws=draws, seed=seed)
    probability = probability_non_dominated(
        frame[names].to_numpy(dtype=float),
        drawn,
        column=names.index(score),
        maximise=[each.maximise for each in objectives.values()],
    )
    return frame.assign(p_front=probability, unstable=frame["front"] & (probability < unstable_below))


def selected(
    runs: pd.DataFrame, where: str | None, objectives: Sequence[str] | None, mix: Sequence[str]
) -> tuple[Designs, dict[str, Metric]]:
    """The designs that a condition leaves, and their objectives.

    Args:
        runs: finished runs.
        where: a condition; None for all runs.
        objectives: names of metrics; None for default_objectives().
        mix: tags in which runs may differ; see require_comparable.

    Raises:
        AnalysisError: no design is left, or an objective cannot be used.
    """
    if where:
        kept = runs[meets(runs, where)]
        if kept.empty:
            raise AnalysisError(f"where={where} leaves none of {len(runs)} finished runs")
        runs = kept
    parsed = parse_objectives(default_objectives(runs) if objectives is None else objectives, runs)
    require_comparable(runs, parsed, mix)
    found = designs_of(runs, parsed)
    if found.frame.empty:
        raise AnalysisError(
            f"none of {len(runs)} finished runs has all of {', '.join(parsed)}: "
            + "; ".join(
                f"{count} with {reason}" for reason, count in found.aside["reason"].value_counts().items()
            )
        )
    return found, parsed


def compared(
    frame: pd.DataFrame, outcomes: Sequence[Sequence[Outcomes]], pair: str, *, draws: int, seed: int
) -> tuple[str, str, Comparison]:
    """Compare two designs. Each is named by its dxc.trial or a run id, or the beginning of one. Raises
    AnalysisError."""
    names = [each.strip() for each in pair.strip("[] ").split(",")]
    if len(names) != 2:
        raise AnalysisError(
            f"compare takes two designs, such as compare=3519c8f7b6e0,f3f21b364a8e, not {pair}"
        )
    places = [_place(frame, each) for each in names]
    both = [outcomes[place] for place in places]
    for each, place in zip(both, places, strict=True):
        if not each:
            raise AnalysisError(
                f"nothing is known of the folds of {frame['name'].iloc[place]}: it cannot be compared"
            )
    result = compare(both[0][-1], both[1][-1], draws=draws, seed=seed)
    if max(map(len, both)) > 1:  # means over repeats; which chips both get right is another question in each
        drawn = accuracy_draws(both, draws=draws, seed=seed)
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        first, second = (float(np.mean([each.accuracy for each in repeats])) for repeats in both)
        result = Comparison(first - second, float(low), float(high), 0, 0, float("nan"))
    return frame["name"].iloc[places[0]], frame["name"].iloc[places[1]], result


def _place(frame: pd.DataFrame, text: str) -> int:
    of_runs = frame["runs"].map(lambda runs: any(run_id.startswith(text) for run_id in runs))
    named = frame["trial"].str.startswith(text) | of_runs
    if named.sum() != 1:
        some = ", ".join(frame["trial"][:8])
        raise AnalysisError(
            f"compare: {text} names {int(named.sum())} designs; trials are {some}, ... "
            "(all are in front.csv and dominated.csv)"
        )
    return int(np.flatnonzero(named)[0])
