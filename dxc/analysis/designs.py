"""Runs -> designs. Repeats become one row. Runs that cannot be compared are refused; incomplete runs are set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dxc.config.identity import is_identity
from dxc.errors import AnalysisError
from dxc.metrics import Objective, objective
from dxc.models import canonical_knobs

if TYPE_CHECKING:
    import pandas as pd

KNOB_SECTIONS = ("model", "task", "data", "optimizer", "scheduler", "hardware", "trainer")
NO_KNOBS = {
    # named by another column, or derived
    "model._target_",
    "task._target_",
    "scheduler._target_",
    "scheduler._partial_",
    "model.in_channels",
    "data._target_",
    "data.channels",
    "hardware.name",
    "optimizer._partial_",
    "trainer._target_",
    "trainer.devices",
}
SPREADS = {"accuracy": "accuracy_std", "latency_ms": "latency_std_ms"}
"""The metric that holds the spread of another metric within one run, over folds or predictors."""
SAME_IN_REPEATS = ("latency_ms",)
"""Metrics that are predicted from the network alone. Repeats do not show their uncertainty."""
FACTS = {
    "dxc.data": "chips",
    "data.split": "how chips were split into training and validation",
    "task.min_precision": "the precision at which recall is read",
    "hardware": "hardware",
    "hardware.affinity": "the cores they were measured on",
    "hardware.batches": "the batch sizes that were measured",
    "dxc.predictors": "the predictors of latency",
    "dxc.packages": "what was in the predictors' packages",
    "dxc.measured_on": "the machine they were measured on",
    "device": "the machine they were trained on",
}
"""Words for the columns in Objective.comparable_by."""
UNDECLARED = ("hardware", "dxc.data")  # what a metric that dxc does not know is compared by
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


def parse_objectives(names: Sequence[str], runs: pd.DataFrame) -> dict[str, Objective]:
    """['accuracy', 'flops:min'] -> declared objectives, or undeclared ones with their direction.

    Raises AnalysisError for an objective that no run logged, or whose direction is not known.
    """
    from pandas.api.types import is_numeric_dtype

    found: dict[str, Objective] = {}
    for text in names:
        name, _, direction = str(text).partition(":")
        if direction not in ("", "min", "max"):
            raise AnalysisError(f"objectives: {text} must end in :min or :max")
        if name not in runs or not is_numeric_dtype(runs[name].dtype) or runs[name].isna().all():
            counts = {
                column: int(runs[column].notna().sum())
                for column in runs.columns
                if is_numeric_dtype(runs[column].dtype) and not column.startswith("fold")
            }
            listing = ", ".join(f"{column} ({count})" for column, count in counts.items() if count)
            raise AnalysisError(f"objectives: no run logged {name}; runs that logged one: {listing}")
        try:
            declared = objective(name)
        except KeyError:
            if not direction:
                raise AnalysisError(
                    f"objectives: the direction of {name} is not known; write {name}:min or {name}:max"
                ) from None
            declared = Objective("", direction == "max", name, UNDECLARED)
        found[name] = declared._replace(maximise=direction == "max") if direction else declared
    if not found:
        raise AnalysisError("objectives is empty; name at least one, such as objectives=[accuracy,onnx_mb]")
    return found


def comparable_by(objectives: Mapping[str, Objective]) -> list[str]:
    """Columns in which runs must be equal, so that all of these objectives can be compared; each once."""
    return list(dict.fromkeys(column for each in objectives.values() for column in each.comparable_by))


def require_comparable(runs: pd.DataFrame, objectives: Mapping[str, Objective], mix: Sequence[str]) -> None:
    """Check that the objectives of the runs can be compared.

    Runs must be equal in the columns of Objective.comparable_by (chips, machine), unless `mix` names the column. A run
    without the tag differs from one with it. Runs that lack an objective are set aside anyway and are not checked.

    Raises:
        AnalysisError: runs differ in such a column.
    """
    import pandas as pd

    runs = runs[runs[list(objectives)].notna().all(axis=1)]
    differing = []
    for tag in comparable_by(objectives):
        if tag not in runs or tag in mix:
            continue
        counts = runs[tag].astype("object").value_counts(dropna=False)
        if len(counts) > 1:
            spelled = [None if pd.isna(value) else str(value) for value in counts.index]
            listing = ", ".join(
                f"{'none' if value is None else repr(value)} ({count} runs)"
                for value, count in zip(spelled, counts, strict=True)
            )
            differing.append((tag, f"  {tag} ({FACTS[tag]}): {listing}", spelled[0]))
    if differing:
        lines = "\n".join(line for _, line, _ in differing)
        tag, _, value = differing[0]
        every = ",".join(tag for tag, _, _ in differing)
        choose = "Ask" if value is None else f"Choose some, \"where={tag} == '{value}'\", or ask"
        raise AnalysisError(
            f"these runs differ in what makes their figures comparable:\n{lines}\n"
            f"{choose} for the mixture: mix=[{every}]"
        )


def designs_of(runs: pd.DataFrame, objectives: Mapping[str, Objective]) -> Designs:
    """Average repeats into one row per design. Repeats differ in the seed only, or were trained twice.

    Repeats with other chips, or from another machine, cannot be compared and make another row. Runs are set aside where
    an objective is missing or not finite.

    Columns: name, trial, run_id (of the newest repeat), runs (list of run ids, oldest first), n, the objectives,
    spread.OBJECTIVE and the knobs. The spread is the sample standard deviation over repeats; for a single run the one
    over its folds, NaN where it is unknown. For latency_ms it is the one over predictors, averaged over repeats,
    because repeats share the network.

    """
    import pandas as pd

    names = list(objectives)
    missing = runs[names].isna().to_numpy()
    endless = runs[names].abs().to_numpy(dtype=float, na_value=np.nan) > LARGEST
    reasons = [
        "; ".join(
            f"{what} {', '.join(name for name, holds in zip(names, row, strict=True) if holds)}"
            for what, row in (("no", absent), ("not finite:", infinite))
            if row.any()
        )
        for absent, infinite in zip(missing, endless, strict=True)
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
        within = SPREADS.get(name)
        alone = groups[within].mean().to_numpy(dtype=float) if within in runs else np.nan
        over = alone if name in SAME_IN_REPEATS else groups[name].std(ddof=1).to_numpy(dtype=float)
        columns[f"spread.{name}"] = np.where(counts > 1, over, alone)
    frame = pd.DataFrame(columns | dict(knobs.loc[newest.index])).reset_index(drop=True)
    return Designs(frame, list(knobs.columns), aside)


def _text(column: pd.Series) -> pd.Series:
    """As text, '' where it is missing."""
    return column.astype("object").where(column.notna(), "").astype(str)


def _knobs(runs: pd.DataFrame) -> pd.DataFrame:
    """The knobs that differ between these runs. Knobs without an effect (pool knobs without a pool) are missing
    values."""
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
        spelled = knobs[network].to_numpy()
        kept = [
            canonical_knobs({c.removeprefix("model."): v for c, v in zip(network, row, strict=True)})
            for row in spelled
        ]
        for column in network:
            key = column.removeprefix("model.")
            meaningful = [key in each for each in kept]
            knobs[column] = knobs[column].where(meaningful, None)
    for column in knobs:
        numbers = pd.to_numeric(knobs[column], errors="coerce")
        if (numbers.notna() | knobs[column].isna()).all():
            knobs[column] = numbers
    return knobs[[c for c in knobs if len(knobs[c].unique()) > 1]]
