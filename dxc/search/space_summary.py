"""Summary of a space before training: its distinct trials, their costs, what limits rule out, the expected time."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dxc.config.hardware import Hardware
from dxc.config.names import describe
from dxc.config.plan import Plan
from dxc.data.cache import usable_cores
from dxc.errors import SearchError
from dxc.metrics import known_costs
from dxc.search.costs import Known, NetworkCosts, over_limits
from dxc.search.settings import DEFAULT_TRIALS, Settings
from dxc.search.space import Catalogue, Identity, Point, Space

WHOLE_SPACE = 20_000  # points; in a larger space, costs are computed when points are proposed
SAMPLE = 2_000  # candidates that tuner=pareto considers of a larger space


@dataclass(frozen=True)
class Chips:
    """What the trials are trained on. of_section: dxc.data of each data and source section, as _section writes them.
    folds and images are per trial."""

    of_section: Mapping[str, str]
    folds: int
    train_images: int
    val_images: int

    @property
    def hashes(self) -> list[str]:
        """dxc.data of the variants, each once."""
        return list(dict.fromkeys(self.of_section.values()))

    def hash_of(self, plan: Plan) -> str:
        """dxc.data of what a trial is trained on; '' where its chips were not read."""
        return self.of_section.get(_section(plan), "")


def _section(plan: Plan) -> str:
    """What chips depend on, of a plan."""
    data = {key: value for key, value in plan.data.values().items() if key != "batch_size"}
    return json.dumps([data, plan.source.values()], sort_keys=True, default=str)


def prepare_chips(catalogue: Catalogue) -> Chips:
    """Read the chips of every data variant once, before trials beside each other would."""
    hashes: dict[str, str] = {}
    sections: dict[str, Plan] = {}
    for point in _data_points(catalogue):
        plan = catalogue.identity(point).plan
        sections.setdefault(_section(plan), plan)
    for section, plan in sections.items():
        datamodule = plan.data.build(source=plan.source.build())
        datamodule.prepare_data()
        hashes[section] = datamodule.cache.data_hash
        folds = datamodule.folds
    return Chips(
        hashes, len(folds), sum(len(fold.train) for fold in folds), sum(len(fold.val) for fold in folds)
    )


def _data_points(catalogue: Catalogue) -> Iterator[Point]:
    """Points that differ only in the axes of data and source."""
    axes = catalogue.space.axes
    ranges = [
        range(len(a.values)) if a.path.split(".")[0].split("@")[0] in ("data", "source") else (0,)
        for a in axes
    ]
    return itertools.product(*ranges)


class SpaceSummary:
    """Summary of a space before anything is trained."""

    def __init__(self, space: Space, catalogue: Catalogue, settings: Settings, costs: NetworkCosts) -> None:
        self.space = space
        self.catalogue = catalogue
        self.settings = settings
        self.costs = costs
        self.whole = space.size <= WHOLE_SPACE

    @cached_property
    def trials(self) -> dict[str, Point]:
        """The distinct trials of the space, or of a sample of a space that is too large."""
        if self.whole:
            trials = self.catalogue.distinct()
        else:
            rng = random.Random(self.settings.seed)
            drawn = [tuple(rng.randrange(len(a.values)) for a in self.space.axes) for _ in range(SAMPLE)]
            trials = {self.catalogue.identity(point).trial: point for point in drawn}
        identities = [self.catalogue.identity(point) for point in trials.values()]
        self.costs.compute({i.network: i.config for i in identities}, jobs=usable_cores(), progress=True)
        return trials

    def identity(self, trial: str) -> Identity:
        return self.catalogue.identity(self.trials[trial])

    def known(self, identity: Identity) -> Known:
        return self.costs.of(identity.network, identity.config)

    def against(self, identity: Identity) -> str:
        """The reason why a trial is not trained; '' if it is."""
        known = self.known(identity)
        if reason := self.costs.refused.get(identity.network):
            return reason
        return "; ".join(over_limits(known, self.settings.limits))

    @cached_property
    def feasible(self) -> list[str]:
        return [trial for trial in self.trials if not self.against(self.identity(trial))]

    def wanted(self) -> int:
        """The number of trials that the study should have."""
        if not self.whole:
            return self.settings.max_trials or DEFAULT_TRIALS
        default = len(self.feasible) if self.settings.tuner == "grid" else DEFAULT_TRIALS
        return min(self.settings.max_trials or default, len(self.feasible))

    def require_feasible(self) -> None:
        """Raise SearchError where no trial is feasible. It says how many each limit rules out, and which trial is
        nearest."""
        if self.feasible:
            return
        counts: dict[str, int] = {}
        nearest: tuple[float, str] | None = None
        limits = self.settings.limits
        for trial in self.trials:
            identity = self.identity(trial)
            known = self.known(identity)
            if not known:
                counts["no network can be built"] = counts.get("no network can be built", 0) + 1
                continue
            over = {name: known[name] / limits[name] for name in limits if known.get(name, 0) > limits[name]}
            for name in over:
                text = f"search.limits.{name}={limits[name]:g}"
                counts[text] = counts.get(text, 0) + 1
            worst = max(over.values())
            if nearest is None or worst < nearest[0]:
                values = ", ".join(f"{name} {known[name]:.4g}" for name in over)
                nearest = (worst, f"{describe(identity.config)} with {values}")
        lines = "\n".join(
            f"  {text} rules out {count} of {len(self.trials)}" for text, count in counts.items()
        )
        closest = f"\nThe nearest is {nearest[1]}." if nearest else ""
        raise SearchError(
            f"no point of the space is within the limits:\n{lines}{closest}\nRaise a limit, or widen the space"
        )

    def unchecked_limits(self, hardware: Hardware) -> list[str]:
        """A line for each limit that cannot rule out trials, because its cost is not known before training."""
        known = {cost for trial in self.trials for cost in self.known(self.identity(trial))}
        lines = [
            f"search.limits.{cost}={limit:g} is not checked: hardware={hardware.name} does not give {cost} "
            "before training"
            for cost, limit in self.settings.limits.items()
            if known and cost not in known
        ]
        return lines + [
            f"hardware.limits.{cost}={limit:g} rules out no trial: {cost} is not known before training; the tag "
            "dxc.within_limits of each trial says what came of it"
            for cost, limit in hardware.limits.items()
            if cost not in known_costs()
        ]

    def counts(self) -> dict[str, int]:
        networks = {self.identity(trial).network for trial in self.trials}
        return {
            "points": self.space.size,
            "trials": len(self.trials),
            "networks": len(networks),
            "infeasible": len(self.trials) - len(self.feasible),
        }

    def table(self) -> list[tuple[str, Known, str]]:
        """(description, known costs, reason if it is not trained) of every distinct trial."""
        rows = []
        for trial in self.trials:
            identity = self.identity(trial)
            rows.append((describe(identity.config), self.known(identity), self.against(identity)))
        return rows

    def estimate(self, chips: Chips) -> float:
        """Estimated seconds to train all feasible trials one after the other.

        Training steps of four networks are timed, from the fewest to the most multiply-accumulates. The others are
        interpolated.
        """
        from dxc.training.speed import seconds_per_image

        by_macs = sorted(self.feasible, key=lambda trial: self.known(self.identity(trial))["macs"])
        timed = {by_macs[place * (len(by_macs) - 1) // 3] for place in range(4)}
        points = []
        for trial in timed:
            identity = self.identity(trial)
            points.append((self.known(identity)["macs"], *seconds_per_image(identity.plan)))
        macs = np.array([p[0] for p in points])
        train, val = (np.array([p[k] for p in points]) for k in (1, 2))
        total = 0.0
        for trial in self.feasible:
            identity = self.identity(trial)
            epochs = identity.config["trainer"]["max_epochs"]
            at = self.known(identity)["macs"]
            seconds = chips.train_images * _line(macs, train, at) + chips.val_images * _line(macs, val, at)
            total += epochs * seconds
        return total


def _line(x: Any, y: Any, at: float) -> float:
    """Linear interpolation at `at` between the nearest points, or extrapolation from the nearest two."""
    order = np.argsort(x)
    x, y = x[order], y[order]
    if at <= x[-1] or len(x) < 2:
        return float(np.interp(at, x, y))
    return float(y[-1] + (y[-1] - y[-2]) / max(x[-1] - x[-2], 1.0) * (at - x[-1]))
