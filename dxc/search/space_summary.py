"""Summary of a space before training: its distinct trials, their costs, what limits rule out, the expected time."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.bars import Steps
from dxc.config.compose import image_size
from dxc.config.hardware import Hardware
from dxc.config.identity import canonical
from dxc.config.names import describe, flatten
from dxc.config.plan import Plan
from dxc.data.cache import usable_cores
from dxc.errors import SearchError
from dxc.metrics import Metric, known_costs, metric_of
from dxc.models.registry import canonical_knobs
from dxc.pipeline.machine import fitted
from dxc.pipeline.stages import PRUNE, TRAIN, network_sections
from dxc.pipeline.stages import identity as stage_identity
from dxc.search.cost_estimate import interpolate, levels, spread_out
from dxc.search.costs import Known, NetworkCosts, over_limits, untrained_network
from dxc.search.front import Trainings
from dxc.search.settings import DEFAULT_TRIALS, Settings
from dxc.search.space import Catalogue, Identity, Point, Space, network_hash, shaping

if TYPE_CHECKING:
    from dxc.data.datamodule import ImageDataModule
    from dxc.data.folds import Fold

WHOLE_SPACE = 20_000  # points; in a larger space, costs are computed when points are proposed
SAMPLE = 2_000  # candidates that tuner=pareto considers of a larger space
COMPUTED = 20  # networks that estimates of the others rest on; a network takes half a second
DOUBT = 2.0  # times the largest error of an estimate: farther over a limit, a network is over it for certain
FEW = 3  # networks whose costs are computed without a word of how far it is
SETTLED = 8  # networks that are computed at most, one after the other, to find the least cost
TIMED = 4  # networks whose training steps are timed


@dataclass(frozen=True)
class Chips:
    """What the trials are trained on. of_section: dxc.data of each data and source section, as _section writes them.
    titles: of the sources, for people. folds and images are per trial. variants: those that were read."""

    of_section: Mapping[str, str]
    titles: Sequence[str]
    folds: int
    train_images: int
    val_images: int
    variants: Sequence[tuple[Plan, ImageDataModule]] = ()

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


def prepare_chips(catalogue: Catalogue, *, dry_run: bool = False) -> Chips:
    """Read the chips of every data variant once, before trials beside each other would.

    Args:
        catalogue: of the space.
        dry_run: whether chips that are only to be made are neither made nor read; they have no hash then.
    """
    hashes: dict[str, str] = {}
    titles: list[str] = []
    sections: dict[str, Plan] = {}
    for point in _data_points(catalogue):
        plan = catalogue.identity(point).plan
        sections.setdefault(_section(plan), plan)
    folds: list[Fold] = []
    unread: list[tuple[Plan, ImageDataModule]] = []
    for plan in sections.values():
        datamodule = plan.data.build(source=plan.source.build())
        titles.append(datamodule.source.title)
        if dry_run and (planned := datamodule.planned_folds()):
            folds = planned
        else:
            unread.append((plan, datamodule))
    with Steps(len(unread), "reading chips, once", "set of channels", shown=bool(unread)) as bar:
        for plan, datamodule in unread:
            datamodule.prepare_data()
            assert datamodule.cache is not None  # prepare_data fills it
            hashes[_section(plan)] = datamodule.cache.data_hash
            folds = datamodule.folds
            bar.update()
    return Chips(
        hashes,
        list(dict.fromkeys(titles)),
        folds=len(folds),
        train_images=sum(len(fold.train) for fold in folds),
        val_images=sum(len(fold.val) for fold in folds),
        variants=unread,
    )


def _data_points(catalogue: Catalogue) -> Iterator[Point]:
    """Points that differ only in the axes of data and source."""
    axes = catalogue.space.axes
    ranges = [
        range(len(a.values)) if a.path.split(".")[0].split("@")[0] in ("data", "source") else (0,)
        for a in axes
    ]
    return itertools.product(*ranges)


@dataclass(frozen=True)
class _Piece:
    """One training: of a design's network before pruning, or after it (fine-tuning). macs: of the network trained."""

    identity: Identity
    pruned: bool
    epochs: int
    macs: float


class SpaceSummary:
    """Summary of a space before anything is trained."""

    def __init__(self, space: Space, catalogue: Catalogue, settings: Settings, costs: NetworkCosts) -> None:
        self.space = space
        self.catalogue = catalogue
        self.settings = settings
        self.costs = costs
        self.whole = space.size <= WHOLE_SPACE
        self._estimates: dict[str, Known] = {}
        self._errors: dict[str, list[float]] = {}

    @cached_property
    def distinct(self) -> dict[str, Point]:
        """The distinct trials of the space, or of a sample of a space that is too large."""
        if self.whole:
            return self.catalogue.distinct()
        rng = random.Random(self.settings.seed)
        drawn = [tuple(rng.randrange(len(a.values)) for a in self.space.axes) for _ in range(SAMPLE)]
        return {self.catalogue.identity(point).trial: point for point in drawn}

    @cached_property
    def networks(self) -> dict[str, dict[str, Any]]:
        """The networks of the distinct trials: {hash: configuration of the first trial}."""
        found: dict[str, dict[str, Any]] = {}
        for point in self.distinct.values():
            identity = self.catalogue.identity(point)
            found.setdefault(identity.network, identity.config)
        return found

    @cached_property
    def trials(self) -> dict[str, Point]:
        """As distinct, once the costs of all networks are there: computed, or estimated by estimate_costs."""
        if not self._estimates:
            self.costs.compute(self.networks, jobs=usable_cores(), progress=True)
        return self.distinct

    def estimate_costs(self) -> None:
        """Compute the costs of a few networks and estimate those of the others, which takes seconds.

        Where one of the few cannot be built, estimates would hide others that cannot: nothing is estimated then.
        """
        hashes = list(self.networks)
        missing = set(self.costs.missing(hashes))
        if len(missing) <= COMPUTED:
            self._compute(hashes)
            return
        features = levels([_knobs(self.networks[name]) for name in hashes])
        quantised = [_quantises(self.networks[name]) for name in hashes]
        places: list[int] = []
        # apart: a cost that quantised networks lack is learnt from the rest
        for kind in sorted(set(quantised)):
            rows = [place for place, each in enumerate(quantised) if each == kind]
            there = [row for row, place in enumerate(rows) if hashes[place] not in missing]
            places += [rows[row] for row in spread_out(features[rows], COMPUTED, there[:COMPUTED])]
        self._compute([hashes[place] for place in places])
        if any(hashes[place] in self.costs.refused for place in places):
            return
        known = {place: self.costs.of(hashes[place], self.networks[hashes[place]]) for place in places}
        estimates: dict[str, Known] = {
            name: {} for place, name in enumerate(hashes) if name in missing and place not in known
        }
        ends: list[str] = []
        for cost in known_costs():
            have = [place for place in places if cost in known[place]]
            lack = [place for place in places if cost not in known[place]]
            if not have or (lack and {quantised[place] for place in lack} != {True}):
                continue
            # a cost that quantised networks do not have is estimated for the others, from these
            rows = [place for place in range(len(hashes)) if not (lack and quantised[place])]
            row_of = {place: row for row, place in enumerate(rows)}
            if not row_of.keys() >= set(have):
                continue  # some quantised networks have it
            values = [known[place][cost] for place in have]
            column, errors = interpolate(features[rows], [row_of[place] for place in have], values)
            self._errors[cost] = list(errors)
            found = {
                hashes[place]: float(column[row])
                for place, row in row_of.items()
                if hashes[place] in estimates
            }
            for name, value in found.items():
                estimates[name][cost] = value
            if found:
                ends += [end(found, key=lambda name: found[name]) for end in (min, max)]
        self._estimates = estimates
        self._compute(list(dict.fromkeys(ends)))
        for name in self._estimates.keys() - set(self.costs.missing(self._estimates)):
            del self._estimates[name]

    def _compute(self, hashes: Sequence[str]) -> None:
        progress = len(hashes) > FEW
        self.costs.compute({name: self.networks[name] for name in hashes}, progress=progress)

    def estimated(self) -> str:
        """What estimates rest on, and how far off they may be; '' where there are none."""
        if not self._estimates:
            return ""
        computed = len(self.networks) - len(self._estimates)
        off = [
            f"{name} by {np.median(errors):.1%} (at most {max(errors):.1%})"
            for name, errors in self._errors.items()
            if max(errors) >= 0.001
        ]
        off_by = f"; of these, left out in turn, the estimate is off in {', '.join(off)}" if off else ""
        return f"costs are estimated from {computed} of {len(self.networks)} networks{off_by}"

    def require_any_within_limits(self) -> None:
        """Raise SearchError where estimates leave no doubt that every network is over a limit.

        What is counted comes before what is predicted. The message says which knobs come nearest.
        """
        if not self._estimates:
            self.require_feasible()
            return
        for cost in sorted(self.settings.limits, key=lambda name: metric_of(name).origin == "predicted"):
            if cost not in self._errors:
                continue
            known, limit = self._values(cost), self.settings.limits[cost]
            if any(value <= limit for name, value in known.items() if name not in self._estimates):
                continue
            nearest = min(known, key=lambda name: known[name])
            for _ in range(SETTLED):
                if self._estimates.pop(nearest, None) is None:
                    break  # the least is computed, not estimated
                self._compute([nearest])
                known = self._values(cost)
                nearest = min(known, key=lambda name: known[name])
            doubt = 1 + DOUBT * max(self._errors[cost])
            if all(
                value > limit * (doubt if name in self._estimates else 1) for name, value in known.items()
            ):
                raise SearchError(
                    f"no point of the space is within search.limits.{cost}={limit:g}:\n"
                    f"{self._nearest(cost, nearest, known)} ({self.estimated()})\n"
                    "Nothing was trained. Raise the limit, or widen the space"
                )

    def _values(self, cost: str) -> dict[str, float]:
        """A cost of each network that has it, by hash."""
        of = {name: self._cost(name, cost) for name in self.networks}
        return {name: value for name, value in of.items() if value is not None}

    def _cost(self, network: str, cost: str) -> float | None:
        return self._known_of(network).get(cost)

    def _known_of(self, network: str) -> Known:
        return self._estimates.get(network) or self.costs.of(network, self.networks[network])

    def _nearest(self, cost: str, network: str, values: Mapping[str, float]) -> str:
        """'The smallest latency in this space is 0.41 ms, at model.width=32 model.stride=2; the limit is 0.2 ms': the
        knobs that cost the most come first."""
        metric = metric_of(cost)
        knobs = {name: _knobs(self.networks[name]) for name in values}
        effect: dict[str, float] = {}
        for key in {key for row in knobs.values() for key in row}:
            groups: dict[str, list[float]] = {}
            for name, value in values.items():
                groups.setdefault(str(knobs[name].get(key)), []).append(value)
            means = [float(np.mean(each)) for each in groups.values()]
            effect[key] = max(means) - min(means)
        axes = {axis.path for axis in self.space.axes}
        own = [key for key in sorted(knobs[network], key=lambda key: -effect[key]) if key in axes]
        at = " ".join(f"{key}={knobs[network][key]}" for key in own)
        where = f", at {at}" if at else ""
        return (
            f"The smallest {metric.title} in this space is {_amount(metric, values[network])}{where}; "
            f"the limit is {_amount(metric, self.settings.limits[cost])}"
        )

    def identity(self, trial: str) -> Identity:
        return self.catalogue.identity(self.distinct[trial])

    def known(self, identity: Identity) -> Known:
        """Costs of a network; estimates after estimate_costs."""
        return self._estimates.get(identity.network) or self.costs.of(identity.network, identity.config)

    def forget_estimates(self) -> None:
        """Have all costs computed from here on."""
        self._estimates.clear()

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
        for cost, limit in limits.items():
            found = self._values(cost)
            if found and min(found.values()) > limit:
                closest += f"\n{self._nearest(cost, min(found, key=lambda n: found[n]), found)}"
        raise SearchError(
            f"no point of the space is within the limits:\n{lines}{closest}\nNothing was trained. Raise a limit, or "
            "widen the space"
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
        """Estimated seconds to train all feasible trials one after the other, fine-tuning included. A network that
        several are pruned from is trained once.

        Training steps of four networks are timed, from the fewest to the most multiply-accumulates. The others are
        interpolated.
        """
        from dxc.training.speed import seconds_per_image

        by_macs = sorted(self._pieces(), key=lambda piece: piece.macs)
        timed = {place * (len(by_macs) - 1) // (TIMED - 1): None for place in range(TIMED)}
        points = []
        with Steps(len(timed), "timing training steps", "network") as bar:
            for place in timed:
                piece = by_macs[place]
                bar.say(describe(piece.identity.config))
                plan = fitted(piece.identity.plan)
                own = {"model": untrained_network(plan)} if piece.pruned else {}
                points.append((piece.macs, *seconds_per_image(plan, **own)))
                bar.update()
        macs = np.array([p[0] for p in points])
        train, val = (np.array([p[k] for p in points]) for k in (1, 2))
        return sum(
            piece.epochs
            * (
                chips.train_images * _line(macs, train, piece.macs)
                + chips.val_images * _line(macs, val, piece.macs)
            )
            for piece in by_macs
        )

    def _pieces(self) -> list[_Piece]:
        """Each different training of the feasible trials."""
        pieces: dict[str, _Piece] = {}
        for trial in self.feasible:
            identity = self.identity(trial)
            for name, epochs in trainings_of(identity.config):
                if name in pieces:
                    continue
                pruned = epochs is not None
                macs = self.known(identity)["macs"] if pruned else self._macs_before_pruning(identity)
                whole = identity.config["trainer"]["max_epochs"]
                pieces[name] = _Piece(identity, pruned, whole if epochs is None else epochs, macs)
        return list(pieces.values())

    def _macs_before_pruning(self, identity: Identity) -> float:
        """Multiply-accumulates of the network that a design's is pruned from, or of its own."""
        if not shaping(identity.config).get("fraction"):
            return self.known(identity)["macs"]
        whole = {**identity.config, "compress": {**identity.config["compress"], "fraction": 0}}
        network = network_hash(whole)
        if network in self.networks and "macs" in (known := self._known_of(network)):
            return known["macs"]
        from dxc.deploy.export import count_macs

        plan = identity.plan
        return count_macs(plan.model.build(), in_channels=plan.model.in_channels, size=plan.data.image_size)

    @cached_property
    def most_finetuning(self) -> int:
        """Most epochs of a fold that a network of a feasible trial is fine-tuned for."""
        trials = (trainings_of(self.identity(trial).config) for trial in self.feasible)
        return max((sum(epochs or 0 for _, epochs in each) for each in trials), default=0)

    def unknown_objectives(self) -> list[str]:
        """A line for each objective that some networks have before training and others have not."""
        configs = {each.network: each for each in map(self.identity, self.feasible)}
        lines = []
        for cost in self.settings.objectives:
            lack = [each for each in configs.values() if cost not in self.known(each)]
            if cost not in known_costs() or not 0 < len(lack) < len(configs):
                continue
            reason = "this hardware does not give it"
            offer = ""
            if all(_quantises(each.config) for each in lack):
                reason = "predictors describe kernels in float32, and these are quantised"
                offer = ". hardware.measure=true measures the latency of each trial"
            others = " and ".join(name for name in self.settings.objectives if name != cost)
            lines.append(
                f"{len(lack)} of {len(configs)} networks have no {cost}: {reason}. They are judged by {others} "
                f"alone{offer}"
            )
        return lines


def _knobs(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the costs of a network depend on, by key of the configuration; see dxc.search.space.network_hash."""
    return {
        **flatten({"model": canonical_knobs(config["model"])}),
        **{f"compress.{key}": value for key, value in shaping(config).items()},
        "data.size": image_size(config["data"]["size"]),
    }


def _quantises(config: Mapping[str, Any]) -> bool:
    return shaping(config).get("quantise", "none") != "none"


def trainings_of(config: dict[str, Any]) -> Trainings:
    """What is trained for the network of a configuration; those with equal names are one training."""
    trainings: list[tuple[str, int | None]] = []
    name = ""
    for stage, section in network_sections(canonical(config), chips=""):
        name = stage_identity(stage, section, name)
        if stage != PRUNE:
            trainings.append((name, None if stage == TRAIN else section["finetune_epochs"]))
    return trainings


def _amount(metric: Metric, value: float) -> str:
    """'0.41 ms', '11,183,810'."""
    return f"{value:,.0f}" if metric.unit == "count" else f"{value:.3g} {metric.symbol}"


def _line(x: Any, y: Any, at: float) -> float:
    """Linear interpolation at `at` between the nearest points, or extrapolation from the nearest two."""
    order = np.argsort(x)
    x, y = x[order], y[order]
    if at <= x[-1] or len(x) < 2:
        return float(np.interp(at, x, y))
    return float(y[-1] + (y[-1] - y[-2]) / max(x[-1] - x[-2], 1.0) * (at - x[-1]))
