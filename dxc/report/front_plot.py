"""The score of trials against one cost: as text for a terminal, and as coordinates for an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dxc.metrics import directions, label_of, metric_of, title_of
from dxc.pareto import non_dominated

LOG_FROM = 30  # a cost that spans more than this factor gets a logarithmic axis
MARGIN = 0.05  # of an axis, before the least and after the greatest value
FRONT, OTHER = "◆", "·"


class Place(NamedTuple):
    """A trial in the plot: shares of the plot's width from the left and of its height from the bottom."""

    trial: int
    x: float
    y: float
    on_front: bool


@dataclass(frozen=True)
class Axis:
    """One axis: from `low` to `high` of the metric `name`."""

    name: str
    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, name: str, values: Sequence[float]) -> Axis:
        """An axis with room for all of the values, at least one."""
        low, high = min(values), max(values)
        log = low > 0 and high > LOG_FROM * low
        if log:
            room = (high / low) ** MARGIN
            return cls(name, low / room, high * room, log)
        room = MARGIN * (high - low) or MARGIN * (abs(high) or 1.0)
        least = 0.0 if low >= 0 else -math.inf  # no axis goes where no value can be
        most = 1.0 if metric_of(name).unit == "fraction" else math.inf
        return cls(name, max(low - room, least), min(high + room, most), log)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis, about so many."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
            inside = [value for value in every if self.low <= value <= self.high]
            if len(inside) <= 2 * most:
                return inside
            return [value for value in inside if math.log10(value) % 1 < 1e-9] or inside
        rough = (self.high - self.low) / (most - 1)
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    @property
    def label(self) -> str:
        """Title with unit, such as 'predicted latency (ms)'."""
        return label_of(self.name, metric_of(self.name))

    @property
    def title(self) -> str:
        return title_of(self.name)


@dataclass(frozen=True)
class FrontPlot:
    """The trials that have both a score and the cost."""

    score: Axis
    cost: Axis
    places: Sequence[Place]
    """In the order of the trials; on_front: no other is as good in both."""

    def front(self) -> list[Place]:
        """Those on the front, from the left to the right."""
        return sorted((place for place in self.places if place.on_front), key=lambda place: place.x)


def front_plot(
    trials: Sequence[Mapping[str, float]], score: str, objectives: Sequence[str]
) -> FrontPlot | None:
    """Make the plot of the score against the first of the costs.

    Args:
        trials: metrics of each finished trial.
        score: name of the vertical metric.
        objectives: of the search; the first beside the score is the cost.

    Returns:
        The plot; None where there is no cost, or no trial that has both.
    """
    cost = next((name for name in objectives if name != score), None)
    if cost is None:
        return None
    known = [n for n, metrics in enumerate(trials) if {score, cost} <= metrics.keys()]
    points = [(trials[n][score], trials[n][cost]) for n in known]
    finite = [(n, point) for n, point in zip(known, points, strict=True) if all(map(math.isfinite, point))]
    if not finite:
        return None
    keep = non_dominated([point for _, point in finite], maximise=directions([score, cost]))
    vertical = Axis.over(score, [point[0] for _, point in finite])
    horizontal = Axis.over(cost, [point[1] for _, point in finite])
    places = [
        Place(n, horizontal.share(right), vertical.share(up), bool(kept))
        for (n, (up, right)), kept in zip(finite, keep, strict=True)
    ]
    return FrontPlot(vertical, horizontal, places)


def as_lines(plot: FrontPlot, *, width: int, height: int, plain: bool = False) -> list[str]:
    """The plot in lines of at most `width` characters: the frame, `height` rows of points, and the labels.

    Args:
        plot: what is drawn.
        width: characters of a line; at least 40.
        height: rows of points; at least 2.
        plain: ASCII only.
    """
    front, other = ("*", ".") if plain else (FRONT, OTHER)
    side, corner, bottom = ("|", "+", "-") if plain else ("│", "└", "─")
    top, low = (_number(plot.score, plot.score.high), _number(plot.score, plot.score.low))
    margin = max(len(top), len(low))
    columns = width - margin - 2
    rows = [[" "] * columns for _ in range(height)]
    for place in sorted(plot.places, key=lambda place: place.on_front):  # the front is drawn over the others
        row = height - 1 - round(place.y * (height - 1))
        rows[row][round(place.x * (columns - 1))] = front if place.on_front else other
    labels = [top, *[""] * (height - 2), low]
    lines = [f"{plot.score.label}; {front} the front of these two"[:width]]
    lines += [
        f"{label:>{margin}} {side}{''.join(row)}".rstrip() for label, row in zip(labels, rows, strict=True)
    ]
    lines.append(f"{'':>{margin}} {corner}{bottom * columns}")
    left, right = _number(plot.cost, plot.cost.low), _number(plot.cost, plot.cost.high)
    room = columns - len(left) - len(right) - 2
    said = [f"{plot.cost.label}, log scale"] if plot.cost.log else []
    between = next((text for text in [*said, plot.cost.label] if len(text) <= room), "")
    lines.append(f"{'':>{margin}}  {left}{between:^{columns - len(left) - len(right)}}{right}")
    return lines


def _number(axis: Axis, value: float) -> str:
    """A value at the end of an axis, with the digits that tell both ends apart."""
    if metric_of(axis.name).unit == "count":
        return f"{value:,.0f}"
    return f"{value:.3f}" if metric_of(axis.name).unit == "fraction" else f"{value:.2f}"
