"""Chooses the design to deploy: constraints first, then one objective, the knee of the front, weights, or a prize.

A prize (see PRIZES) is for one figure among all designs that meet the condition, whatever the objectives are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dxc.analysis.condition import meets
from dxc.errors import AnalysisError
from dxc.hardware.measure.energy.protocol import advice
from dxc.metrics import ENERGY_VERDICT, METRICS, VERDICTS, Metric, metric_of, title_of, why_invalid
from dxc.pareto import knee_distances, non_dominated, normalised_losses

if TYPE_CHECKING:
    import pandas as pd


PRIZES = {
    "fom": ("fom",),
    "latency": ("measured_latency_ms", "latency_ms"),
    "energy": ("energy_mj",),
}
"""What choose.by may ask for beside the objectives: the metric that decides, the first that a design has."""
SCORES = ("device_accuracy", "accuracy", "average_precision")
"""What decides between equals of a prize, the first that a design has."""


def prize_metrics(by: str, designs: pd.DataFrame) -> list[str]:
    """The metric that decides on a prize, then the score that decides between equals, if designs have one.

    It is [] for what is no prize, and where no design has such a metric.

    Args:
        by: choose.by.
        designs: one row per design or run.
    """

    def first(names: Sequence[str]) -> list[str]:
        return [name for name in names if name in designs and designs[name].notna().any()][:1]

    metric = first(PRIZES.get(by, ()))
    return metric + first(SCORES) if metric else []


class Choice(NamedTuple):
    """Index labels of the chosen design and the runner-up, and the rule in words.

    The runner-up is second on the front by the rule. Where the front has one member only, it is the best design without
    that member. It is None where there is no other design.
    """

    design: int
    runner_up: int | None
    rule: str


def choose(
    designs: pd.DataFrame,
    objectives: Mapping[str, Metric],
    *,
    by: str,
    where: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> Choice:
    """Choose the best design by a rule, on the front of the designs that meet a condition.

    Args:
        designs: one row per design.
        objectives: the objectives of the front.
        by: 'knee', 'weights' (of normalised objectives; a larger weight counts more), the name of an objective, or one
            of PRIZES.
        where: a condition (see dxc.analysis.condition); None for all designs.
        weights: {objective: weight} for by='weights'.

    Raises:
        AnalysisError: no design meets the condition, or there is no such rule.

    """
    feasible = designs
    if where:
        feasible = designs[meets(designs, where)]
        if feasible.empty:
            raise AnalysisError(_nearest(designs, objectives, where))
    if by in PRIZES:
        return _prize(feasible, by, where)
    values = feasible[list(objectives)].to_numpy(dtype=float)
    maximise = [each.maximise for each in objectives.values()]
    front = feasible[non_dominated(values, maximise=maximise)]
    values = front[list(objectives)].to_numpy(dtype=float)
    losses = normalised_losses(values, maximise=maximise)
    knee = knee_distances(values, maximise=maximise)
    apart = [
        place for place in range(len(objectives)) if len(losses) == 2 and losses[0, place] != losses[1, place]
    ]
    if by == "knee" and apart:  # both are ends of the front: their distances say nothing
        name, other = list(objectives)[apart[0]], list(objectives)[apart[-1]]
        score = -losses[:, apart[0]]
        rule = (
            f"the {'larger' if objectives[name].maximise else 'smaller'} {title_of(name)} of two, because a front of "
            f"two designs has no knee (choose.by={other} asks for the best {title_of(other)})"
        )
    elif by == "knee" and len(front) == 1:
        score, rule = knee, "the only one on the front"
    elif by == "knee":
        score, rule = knee, "the knee of the front"
    elif by == "weights":
        score, rule = -losses @ _weights(weights, objectives), "the weighted sum of normalised objectives"
    elif by in objectives:
        score = -losses[:, list(objectives).index(by)]
        rule = f"the {'largest' if objectives[by].maximise else 'smallest'} {title_of(by)}"
    else:
        raise AnalysisError(
            f"choose.by={by} is unknown; choose one of knee, weights, {', '.join([*objectives, *PRIZES])}"
        )
    order = np.lexsort((-knee, -score))  # the knee decides between equals
    ranked = front.index[order]
    rule += f" where {where}" if where else ""
    runner_up = ranked[1] if len(ranked) > 1 else None
    if (
        runner_up is None and len(feasible) > 1
    ):  # nothing else is on the front: the best of what would be without it
        runner_up = choose(feasible.drop(index=ranked[0]), objectives, by=by, weights=weights).design
    return Choice(ranked[0], runner_up, rule)


def _prize(designs: pd.DataFrame, by: str, where: str | None) -> Choice:
    """The design with the best value of one metric, of equals the one with the best score, and the next one."""
    columns = prize_metrics(by, designs)
    if not columns:
        raise AnalysisError(
            f"choose.by={by}: no design{f' that meets {where}' if where else ''} has {' or '.join(PRIZES[by])}; "
            f"{_what_to_do(designs, by)}"
        )
    metric = columns[0]
    known = designs[designs[metric].notna()]
    worse_first = [not metric_of(name).maximise for name in columns]
    ranked = known.sort_values(columns, ascending=worse_first, kind="stable", na_position="last").index
    rule = f"the {'largest' if METRICS[metric].maximise else 'smallest'} {title_of(metric)}"
    rule += f" where {where}" if where else ""
    return Choice(ranked[0], ranked[1] if len(ranked) > 1 else None, rule)


def _what_to_do(designs: pd.DataFrame, by: str) -> str:
    """How designs get the metric of a prize that none of them has. If it was measured but is invalid, that comes first.

    Args:
        designs: with the tags of Metric.verdicts, where they are known.
        by: one of PRIZES.
    """
    said = []
    for tag in (tag for tag in METRICS[PRIZES[by][0]].verdicts if tag in designs):
        reasons = [why for each in designs[tag] if (why := why_invalid(each))]
        if reasons:
            advised = f"; {advice(reasons)}" if tag == ENERGY_VERDICT else ""
            what = f"the {VERDICTS[tag]} of {len(reasons)} of {len(designs)} was measured and is invalid"
            said.append(f"{what}: {reasons[0]:.500}{advised}")
    if said:
        return "; ".join(said)
    if by == "fom" and "energy_mj" in designs and designs["energy_mj"].notna().any():
        return "their accuracy on the device is missing: deploy them with labelled images (images=test)"
    return "measure them" if by == "latency" else "deploy them with a meter: python deploy.py energy=..."


def _weights(weights: Mapping[str, float] | None, objectives: Mapping[str, Metric]) -> np.ndarray:
    if not weights:
        raise AnalysisError(
            f"choose.by=weights needs them: 'choose.weights={{{','.join(f'{name}:1' for name in objectives)}}}'"
        )
    if unknown := [name for name in weights if name not in objectives]:
        raise AnalysisError(
            f"choose.weights: {', '.join(unknown)} is none of the objectives {', '.join(objectives)}"
        )
    numbers = np.array([weights.get(name, 0) for name in objectives], dtype=float)
    if not (numbers >= 0).all() or not numbers.sum() > 0:
        raise AnalysisError("choose.weights must be 0 or more, and one of them more")
    return numbers / numbers.sum()


def _nearest(designs: pd.DataFrame, objectives: Mapping[str, Metric], where: str) -> str:
    """What there is, for a condition that nothing meets."""
    best: Sequence[str] = [
        f"{name} {designs[name].max() if each.maximise else designs[name].min():.4g}"
        for name, each in objectives.items()
    ]
    return f"no design meets choose.where: {where}\nThe best there is, each by itself: {', '.join(best)}"
