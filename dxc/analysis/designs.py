"""Runs -> designs. Repeats become one row. Runs that cannot be compared are refused; incomplete runs are set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dxc.analysis.verdicts import is_invalid
from dxc.config.identity import canonical_compression, is_identity
from dxc.errors import AnalysisError
from dxc.metrics import METRICS, Metric, is_declared, is_of_one_fold, metric_of, spread_of, undeclared
from dxc.models.registry import canonical_knobs
from dxc.text import counted

if TYPE_CHECKING:
    import pandas as pd

KNOB_SECTIONS = ("model", "task", "data", "optimizer", "scheduler", "compress", "hardware", "trainer")
NO_KNOBS = {
    # named by another column, or derived
    "model._target_",
    "task._target_",
    "scheduler._target_",
    "scheduler._partial_",
    "model.in_channels",
    "model.num_classes",
    "data._target_",
    "data.channels",
    "hardware.name",
    "optimizer._partial_",
    "trainer._target_",
    "trainer.devices",
}
COMPRESSED_BY = ("fraction", "quantise")
"""Keys of a section compress that mean something in every design: 0 and none are values too."""
LARGEST = 1e300  # MLflow stores infinity as the largest float


class Designs(NamedTuple):
    """Designs and the runs that gave none.

    Attributes:
        frame: one row per design; see `designs_of`.
        knobs: columns that differ between designs.
        aside: the runs that are not in the frame, with columns run_id, name, reason.
    """

    frame: pd.DataFrame
    knobs: list[str]
    aside: pd.DataFrame


MAPS_FIRST = "python map.py study=NAME pick=front truth=... gives it to the designs of a front"
COSTS = ("latency_ms", "onnx_mb")
"""Objectives beside the score, where none are named."""
MEASURED_LATENCY = "measured_latency_ms"
"""In the place of a predicted latency, where runs are quantised: predictors describe kernels in float32."""


def default_objectives(runs: pd.DataFrame) -> list[str]:
    """The score that these runs were searched and trained for (param `score`; accuracy where none says), and COSTS.

    Raises AnalysisError where the runs have several scores.
    """
    counts = runs["score"].dropna().astype(str).value_counts() if "score" in runs else {}
    scores = {name: int(count) for name, count in counts.items() if name in METRICS}
    if len(scores) > 1:
        listing = ", ".join(f"{name} ({counted(count, 'run')})" for name, count in scores.items())
        first = next(iter(scores))
        raise AnalysisError(
            f"these runs are judged by different scores: {listing}\nName the objectives, "
            f"objectives=[{first},{','.join(COSTS)}], or choose some runs, \"where=score == '{first}'\""
        )
    return [*(scores or ["accuracy"]), *_costs(runs)]


def _costs(runs: pd.DataFrame) -> list[str]:
    """COSTS that quantised runs have too. The measured latency stands in for the predicted one if all runs have it."""
    quantised = "compress.quantise" in runs and runs["compress.quantise"].isin(["dynamic", "static"]).any()
    if not quantised or ("latency_ms" in runs and runs["latency_ms"].notna().all()):
        return [*COSTS]
    measured = MEASURED_LATENCY in runs and bool(runs[MEASURED_LATENCY].notna().all())
    return [MEASURED_LATENCY] * measured + [cost for cost in COSTS if cost != "latency_ms"]


def parse_objectives(names: Sequence[str], runs: pd.DataFrame) -> dict[str, Metric]:
    """['accuracy', 'flops:min'] -> declared objectives, or undeclared ones with their direction.

    Raises AnalysisError for an objective that no run logged, or whose direction is not known.
    """
    from pandas.api.types import is_numeric_dtype

    found: dict[str, Metric] = {}
    for text in names:
        name, _, direction = str(text).partition(":")
        if direction not in ("", "min", "max"):
            raise AnalysisError(f"objectives: {text} must end in :min or :max")
        if name not in runs or not is_numeric_dtype(runs[name].dtype) or runs[name].isna().all():
            counts = {
                column: int(runs[column].notna().sum())
                for column in runs.columns
                if is_numeric_dtype(runs[column].dtype) and not is_of_one_fold(column)
            }
            listing = ", ".join(f"{column} ({count})" for column, count in counts.items() if count)
            how = f"; {MAPS_FIRST}" if is_declared(name) and metric_of(name).origin == "mapped" else ""
            raise AnalysisError(f"objectives: no run logged {name}{how}; runs that logged one: {listing}")
        try:
            declared = metric_of(name)
        except KeyError:
            if not direction:
                raise AnalysisError(
                    f"objectives: the direction of {name} is not known; write {name}:min or {name}:max"
                ) from None
            declared = undeclared(name, maximise=direction == "max")
        found[name] = replace(declared, maximise=direction == "max") if direction else declared
    if not found:
        raise AnalysisError("objectives is empty; name at least one, such as objectives=[accuracy,onnx_mb]")
    return found


def comparable_by(objectives: Mapping[str, Metric]) -> dict[str, str]:
    """Columns in which runs must be equal for all of these objectives to be compared, each in words."""
    return {column: words for each in objectives.values() for column, words in each.comparable_by.items()}


def require_comparable(runs: pd.DataFrame, objectives: Mapping[str, Metric], mix: Sequence[str]) -> None:
    """Raise AnalysisError where runs differ in what makes the figures of an objective another thing (its comparable_by:
    the chips they were judged by, the machine they were measured on), unless `mix` names it. Runs without the tag
    differ from those that have it; runs that lack an objective are set aside anyway and do not count."""
    import pandas as pd

    runs = runs[runs[list(objectives)].notna().all(axis=1)]
    differing = []
    for tag, words in comparable_by(objectives).items():
        if tag not in runs or tag in mix:
            continue
        counts = runs[tag].astype("object").value_counts(dropna=False)
        if len(counts) > 1:
            spelled = [None if pd.isna(value) else str(value) for value in counts.index]
            listing = ", ".join(
                f"{'none' if value is None else repr(value)} ({counted(count, 'run')})"
                for value, count in zip(spelled, counts, strict=True)
            )
            differing.append((tag, f"  {tag} ({words}): {listing}", spelled[0]))
    if differing:
        lines = "\n".join(line for _, line, _ in differing)
        tag, _, value = differing[0]
        every = ",".join(tag for tag, _, _ in differing)
        choose = "Ask" if value is None else f"Choose some, \"where={tag} == '{value}'\", or ask"
        raise AnalysisError(
            f"these runs differ in what makes their figures comparable:\n{lines}\n"
            f"{choose} for the mixture: mix=[{every}]"
        )


def designs_of(runs: pd.DataFrame, objectives: Mapping[str, Metric]) -> Designs:
    """One row a design: means over its repeats (equal but for the seed, or trained twice), as far as they can be
    compared: by other chips, or on another machine, it is another row.

    Columns: name, trial, run_id (of the newest repeat), runs (list of run ids, oldest first), n, the objectives,
    spread.OBJECTIVE and the knobs. The spread is the sample standard deviation over repeats; for a single run the one
    over its folds, NaN where it is unknown. For latency_ms it is the one over predictors, averaged over repeats,
    because repeats share the network.

    """
    import pandas as pd

    names = list(objectives)
    missing = runs[names].isna().to_numpy()
    invalid = missing & np.column_stack([is_invalid(runs, name) for name in names])
    endless = runs[names].abs().to_numpy(dtype=float, na_value=np.nan) > LARGEST
    reasons = [
        "; ".join(
            f"{what} {', '.join(name for name, holds in zip(names, row, strict=True) if holds)}"
            for what, row in (
                ("no", absent & ~refused),
                ("an invalid", refused),
                ("not finite:", infinite),
            )
            if row.any()
        )
        for absent, refused, infinite in zip(missing, invalid, endless, strict=True)
    ]
    unusable = (missing | endless).any(axis=1)
    aside = runs[["run_id", "name"]].assign(reason=reasons)[unusable].reset_index(drop=True)
    runs = runs[~unusable]
    knobs = _knobs(runs)
    keys = [
        runs[key].astype("object").where(runs[key].notna(), runs["run_id"]) if key in runs else runs["run_id"]
        for key in ("dxc.design", "dxc.data")
    ]
    facts = [name for name in comparable_by(objectives) if name in runs and name != "dxc.data"]
    keys += [_text(runs[name]) for name in facts]
    design = runs.groupby(keys, sort=False).ngroup().to_numpy()  # in the order in which they first ended
    groups = runs.groupby(design)
    newest = runs.iloc[groups.cumcount().groupby(design).idxmax().map(runs.index.get_loc)]
    counts = groups.size().to_numpy()
    columns: dict[str, Any] = {
        "name": newest["name"].astype(str),
        "trial": _text(newest["dxc.trial"]) if "dxc.trial" in runs else "",
        "run_id": newest["run_id"].astype(str),
        "runs": groups["run_id"].agg(list).to_numpy(),
        "n": counts,
    }
    columns |= {name: groups[name].mean().to_numpy(dtype=float) for name in names}
    for name in names:
        within = spread_of(name)
        alone = groups[within].mean().to_numpy(dtype=float) if within in runs else np.nan
        same = name in METRICS and METRICS[name].same_in_repeats
        over = alone if same else groups[name].std(ddof=1).to_numpy(dtype=float)
        columns[f"spread.{name}"] = np.where(counts > 1, over, alone)
    frame = pd.DataFrame(columns | dict(knobs.loc[newest.index])).reset_index(drop=True)
    return Designs(frame, list(knobs.columns), aside)


def _text(column: pd.Series) -> pd.Series:
    """As text, '' where it is missing."""
    return column.astype("object").where(column.notna(), "").astype(str)


def _plain(value: Any) -> Any:
    """A param as the configuration had it: MLflow keeps texts."""
    if value == "None":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _knobs(runs: pd.DataFrame) -> pd.DataFrame:
    """The knobs that differ between these runs. Knobs without an effect (pool knobs without a pool, epochs of
    fine-tuning without pruning) are missing values."""
    import pandas as pd

    named = [tag for tag in ("model", "data", "hardware") if tag in runs]
    params = [
        c
        for c in runs.columns
        if c.split(".")[0] in KNOB_SECTIONS and "." in c and c not in NO_KNOBS and is_identity(c)
    ]
    knobs = runs[[*named, *params]].astype("object")
    network = [c for c in params if c.startswith("model.")]
    if network:
        described = runs[[c for c in ("model._target_", *network) if c in runs]].astype("object")
        described.columns = [c.removeprefix("model.") for c in described]
        kept = [canonical_knobs(row) for row in described.to_dict("records")]
        for column in network:
            key = column.removeprefix("model.")
            meaningful = [key in each for each in kept]
            knobs[column] = knobs[column].where(meaningful, None)
    compression = [c for c in params if c.startswith("compress.")]
    if compression:
        given = knobs[compression].apply(lambda column: column.map(_plain)).astype("object")
        given.columns = [c.removeprefix("compress.") for c in given]
        effective = [canonical_compression(row) for row in given.to_dict("records")]
        for column in compression:
            key = column.removeprefix("compress.")
            if key not in COMPRESSED_BY:
                kept_values = given[key].where([key in each for each in effective], None)
                knobs[column] = kept_values.where(kept_values.notna(), None)
    for column in knobs:
        numbers = pd.to_numeric(knobs[column], errors="coerce")
        if (numbers.notna() | knobs[column].isna()).all():
            knobs[column] = numbers
    # a knob that only some designs have tells two of them apart only by its values
    # further keys of compression are missing wherever nothing is compressed, which fraction and quantise say already
    further = {c for c in compression if c not in ("compress.fraction", "compress.quantise")}
    given = {c: knobs[c].dropna() if c in further else knobs[c] for c in knobs}
    return knobs[[c for c in knobs if len(given[c].unique()) > 1]]
