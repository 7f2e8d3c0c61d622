"""How much training a search saves: a whole grid is recorded once, and every tuner searches the record again.

    python benchmarks/search_cost.py             replays the recorded grid, about 25 minutes on 4 cores
    python benchmarks/search_cost.py --part replay --strategies pareto 'optuna tpe' 'optuna nsga2' 'optuna gp'
                                                 against Optuna's samplers, which need: pip install optuna
    python benchmarks/search_cost.py --record    records it: 4 processes for 2 hours; interrupted, it goes on

    python benchmarks/search_cost.py --space sppnet --record --part replay
                                                 the second space: recorded, then replayed
    python benchmarks/search_cost.py --part proposals
                                                 seconds that a proposal among 6,466 candidates takes, a few seconds

The first space is the published one at a quarter of its width, without its middle: 120 networks x 2 channel sets (first
kernel 3, 5; stride 1, 2; padding 1, 2, 3; five pools; width 8, 16) on 800 synthetic chips at 2 m (50 x 50 pixels),
3 folds of 5 epochs, batch 16, 3 seeds of the training. results/search_grid.csv holds the accuracy of each fold after
each epoch. The constants of search.tuner=pareto were chosen on it.

The second space, sppnet, was used to choose nothing: 108 detectors (first kernel 1, 3, 5, 7; pyramid level 1, 2, 3; two
linear layers) on 480 synthetic chips of 24 x 24 pixels, 3 folds of 4 epochs, two seeds; its score is average precision.
Noise of its single seed counts as truth.

A replay gives a tuner the accuracies of one seed. What counts is what it trained in full, judged by the means over
seeds: the hypervolume (accuracy, latency_ms, onnx_mb; reference: a tenth of the grid's range beyond its worst) as a
share of the whole grid's, and the share of the true front that is among it. A budget is a share of the grid's epochs.
Optuna's samplers are told all three objectives. Its and our proposals are timed, in seconds of the process's own time
(one thread), so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _record import ROOT, save
from hydra import compose, initialize_config_dir
from tqdm import tqdm

from dxc.config.compose import resolved
from dxc.config.hardware import Hardware
from dxc.config.plan import Plan
from dxc.data.cache import usable_cores
from dxc.files import write_atomically
from dxc.metrics import directions
from dxc.pareto import hypervolume, non_dominated, reference_point
from dxc.processes import end_with_parent
from dxc.search.costs import NetworkCosts
from dxc.search.front import Candidates, FrontSearch, epochs_of, knob_groups, knob_numbers
from dxc.search.space import Axis, Catalogue, Space, network_hash, parse_space
from dxc.search.states import Rung
from dxc.search.strategies import NniTuner

CACHE = ROOT / "cache"
BUDGETS = (0.02, 0.05, 0.10, 0.20)
ENOUGH = 0.99

Knobs = tuple[str, ...]
"""Values of a space's axes, in their order; the pool's knobs are 3 and 2 without a pool."""


@dataclass(frozen=True)
class Recorded:
    """A space of which every network was trained.

    Args:
        axes: {key below model, or data: its values}
        chips: number of synthetic chips.
        score: the metric of a fold that is searched.
        overrides: of conf/train.yaml.
        halved: whether the chips have half their resolution.
        table, results: files in benchmarks/results.
    """

    axes: Mapping[str, tuple[str, ...]]
    chips: int
    seeds: int
    folds: int
    epochs: int
    score: str
    overrides: tuple[str, ...]
    halved: bool
    table: str
    results: str

    @property
    def objectives(self) -> list[str]:
        return [self.score, "latency_ms", "onnx_mb"]

    @property
    def curves(self) -> list[str]:
        """Columns of the table: the score of each fold after each epoch."""
        return [
            f"fold{fold}_epoch{epoch}"
            for fold in range(1, self.folds + 1)
            for epoch in range(1, self.epochs + 1)
        ]

    @property
    def training(self) -> int:
        """Epochs that one network costs."""
        return self.folds * self.epochs

    @property
    def path(self) -> Path:
        return RECORDS / self.table

    def grid(self) -> list[Knobs]:
        """The distinct points of the space."""
        return list(dict.fromkeys(self.distinct(values) for values in product(*self.axes.values())))

    def distinct(self, values: Knobs) -> Knobs:
        """Knobs that mean something: without a pool, its kernel and stride are always the same."""
        named = dict(zip(self.axes, values, strict=True))
        if named.get("pool") == "none":
            named |= {"pool_kernel": "3", "pool_stride": "2"}
        return tuple(named.values())


RECORDS = ROOT / "benchmarks" / "results"
SPACES = {
    "resnet18": Recorded(
        axes={
            "data": ("5ch", "7ch"),
            "kernel": ("3", "5"),
            "stride": ("1", "2"),
            "padding": ("1", "2", "3"),
            "pool": ("none", "max"),
            "pool_kernel": ("2", "3"),
            "pool_stride": ("1", "2"),
            "width": ("8", "16"),
        },
        chips=800,
        seeds=3,
        folds=3,
        epochs=5,
        score="accuracy",
        overrides=("data.size=50",),
        halved=True,
        table="search_grid.csv",
        results="search_cost",
    ),
    "sppnet": Recorded(
        axes={
            "kernel": ("1", "3", "5", "7"),
            "level": ("1", "2", "3"),
            "features": ("64", "256", "1024"),
            "features2": ("none", "64", "256"),
        },
        chips=480,
        seeds=2,
        folds=3,
        epochs=4,
        score="average_precision",
        overrides=("model=sppnet", "data=5ch", "data.size=24", "data.batch_size=16", "source.jobs=1"),
        halved=False,
        table="search_grid_sppnet.csv",
        results="search_cost_sppnet",
    ),
}


# --- recording -------------------------------------------------------------------------------------------------------


def halve(root: Path, out: Path) -> None:
    """Chips of half the resolution: every 2 x 2 pixels averaged."""
    import rasterio
    from rasterio.enums import Resampling

    for path in tqdm(sorted(root.rglob("*.tif")), desc="2 m chips", leave=False, disable=None):
        with rasterio.open(path) as file:
            height, width = file.height // 2, file.width // 2
            bands = file.read(out_shape=(file.count, height, width), resampling=Resampling.average)
            profile = {
                "driver": "GTiff",
                "count": file.count,
                "dtype": bands.dtype,
                "height": height,
                "width": width,
                "crs": file.crs,
                "transform": file.transform * file.transform.scale(2, 2),
            }
        target = out / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(target, "w", **profile) as file:
            file.write(bands)


def halved_chips(count: int) -> Path:
    from dxc.synthetic.source import SyntheticSource

    out = CACHE / f"search-cost-chips-{count}"
    if not out.exists():
        draft = out.with_name(f".{out.name}")
        halve(SyntheticSource(chips=count, cache_dir=str(CACHE)).prepare(), draft)
        draft.rename(out)
    return out


def composed_config(space: Recorded, data: str | None, *overrides: str) -> dict[str, Any]:
    chosen = [] if data is None else [f"data={data}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolved(compose("train", overrides=[*space.overrides, *chosen, *overrides]))


@cache
def prepared(name: str, data: str | None, accelerator: str) -> tuple[dict[str, Any], Any]:
    """The configuration of one channel set and its chips, once a process."""
    space = SPACES[name]
    chips = [f"source.chips={space.chips}"]
    if space.halved:
        chips = ["source=chips", f"source.root={halved_chips(space.chips)}"]
    config = composed_config(
        space,
        data,
        *chips,
        f"data.folds={space.folds}",
        f"cache_dir={CACHE}",
        f"trainer.max_epochs={space.epochs}",
        f"trainer.accelerator={accelerator}",
        "trainer.precision=32-true",  # the same on every machine
        "progress=false",
    )
    plan = Plan.of(config)
    datamodule = plan.data.build(source=plan.source.build())
    datamodule.prepare_data()
    return config, datamodule


def configured(space: Recorded, config: dict[str, Any], knobs: Knobs) -> dict[str, Any]:
    own = {
        key: int(value) if value.isdigit() else value for key, value in zip(space.axes, knobs, strict=True)
    }
    own.pop("data", None)
    return {**config, "model": {**config["model"], **own}}


def data_of(space: Recorded, knobs: Knobs) -> str | None:
    """The channel set, where it is searched."""
    return dict(zip(space.axes, knobs, strict=True)).get("data")


def train(name: str, knobs: Knobs, seed: int, accelerator: str) -> dict[str, Any]:
    """One trial: the score of each fold after each epoch."""
    import logging

    import torch

    from dxc.training.crossval import train_fold

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    space = SPACES[name]
    config, datamodule = prepared(name, data_of(space, knobs), accelerator)
    plan = Plan.of({**configured(space, config, knobs), "seed": 10 * seed})
    started = time.perf_counter()
    folds = [
        train_fold(plan, datamodule, fold, number, accelerator)
        for number, fold in enumerate(datamodule.folds)
    ]
    curve = [
        value for fold in folds for key, value, _ in fold.curves if key.startswith(f"val_{space.score}.")
    ]
    return {
        **dict(zip(space.axes, knobs, strict=True)),
        "seed": seed,
        **dict(zip(space.curves, curve, strict=True)),
        "seconds": time.perf_counter() - started,
    }


def record(name: str, jobs: int, accelerator: str) -> None:
    """Train what is missing of the grid and write the table; lines are kept in cache/ until it is complete."""
    space = SPACES[name]
    for data in dict.fromkeys(data_of(space, knobs) for knobs in space.grid()):
        prepared(name, data, accelerator)
    lines = CACHE / space.path.with_suffix(".jsonl").name
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {(*(row[axis] for axis in space.axes), row["seed"]) for row in rows}
    todo: list[tuple[Knobs, int]] = []
    for seed in range(space.seeds):
        points = [knobs for knobs in space.grid() if (*knobs, seed) not in done]
        random.Random(seed).shuffle(points)  # an even load, and a fair estimate of the time left
        todo += [(knobs, seed) for knobs in points]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, end_with_parent) as pool, lines.open("a") as file:
        futures = [pool.submit(train, name, knobs, seed, accelerator) for knobs, seed in todo]
        for future in tqdm(as_completed(futures), total=len(futures), unit="trial"):
            rows.append(future.result())
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    write_table(space, rows)


def write_table(space: Recorded, rows: list[dict[str, Any]]) -> None:
    """Add what the networks cost and write the table that is shipped."""
    axes = list(space.axes)
    known = costs_of_grid(space)
    table = pd.DataFrame(rows)
    for name in ("latency_ms", "onnx_mb", "macs"):
        table[name] = [known[knobs][name] for knobs in table[axes].itertuples(index=False, name=None)]
    table = table[[*axes, "seed", "latency_ms", "onnx_mb", "macs", *space.curves, "seconds"]]
    table = table.sort_values([*axes, "seed"])
    write_atomically(space.path, table.to_csv(index=False, float_format="%.6g"))
    print(f"wrote {space.path.relative_to(ROOT)}: {len(table)} trials")


def costs_of_grid(space: Recorded) -> dict[Knobs, dict[str, float]]:
    configs = {}
    for data in dict.fromkeys(data_of(space, knobs) for knobs in space.grid()):
        base = composed_config(space, data)
        configs |= {
            knobs: configured(space, base, knobs) for knobs in space.grid() if data_of(space, knobs) == data
        }
    costs = NetworkCosts(Hardware.of(base["hardware"]), CACHE)
    costs.compute({network_hash(c): c for c in configs.values()}, jobs=usable_cores(), progress=True)
    return {knobs: costs.of(network_hash(config), config) for knobs, config in configs.items()}


# --- replaying -------------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """A trial that was trained in full, the epochs that the search had spent by then, and the mean processor seconds of
    its proposals (not a number where they are not timed)."""

    epochs: int
    point: int
    seconds: float = float("nan")


class Grid:
    """The recorded table: curves (points, seeds, folds, epochs), costs (points, 2), accuracy by seed means."""

    def __init__(self, space: Recorded, table: pd.DataFrame) -> None:
        self.space = space
        axes = list(space.axes)
        table = table.astype(dict.fromkeys(axes, str)).set_index([*axes, "seed"]).sort_index()
        self.points = [knobs for knobs in space.grid() if knobs in set(table.index.droplevel("seed"))]
        self.seeds = sorted(set(table.index.get_level_values("seed")))
        ordered = table.loc[[(*knobs, seed) for knobs in self.points for seed in self.seeds]]
        scores = ordered[space.curves].to_numpy()
        self.curves = scores.reshape(len(self.points), len(self.seeds), space.folds, space.epochs)
        self.costs = ordered[["latency_ms", "onnx_mb"]].to_numpy()[:: len(self.seeds)]
        self.accuracy = self.curves[..., -1].mean(axis=(1, 2))
        self.values = np.column_stack([self.accuracy, self.costs])
        self.maximise = directions(space.objectives)
        self.reference = reference_point(self.values, maximise=self.maximise)
        self.front = set(np.flatnonzero(non_dominated(self.values, maximise=self.maximise)))
        self.whole = self._volume(range(len(self.points)))
        self.epochs = len(self.points) * space.training

    def _volume(self, points: Any) -> float:
        return hypervolume(self.values[list(points)], reference=self.reference, maximise=self.maximise)

    def score(self, points: list[int]) -> tuple[float, float]:
        """Share of the hypervolume, and of the front, that these points hold by the means over seeds."""
        return self._volume(points) / self.whole, len(self.front & set(points)) / len(self.front)

    def seen(self, point: int, seed: int) -> float:
        """The accuracy a tuner is told: mean over folds, last epoch, of one training."""
        return float(self.curves[point, self.seeds[seed % len(self.seeds)], :, -1].mean())


def by_nni(name: str, grid: Grid, seed: int, budget: int) -> Iterator[Spent]:
    """One of NNI's tuners, on accuracy, as search.py uses it."""
    space = Space(tuple(Axis(key, values) for key, values in grid.space.axes.items()), ())
    number = {knobs: n for n, knobs in enumerate(grid.points)}
    total = budget // grid.space.training
    tuner = NniTuner(name, space, seed=seed, trials=total, parallel=1, maximise=True)
    rng = random.Random(seed)
    told: dict[int, float] = {}
    repeats = 0
    while len(told) < total:
        if repeats > 200:  # as dxc.search.study does
            point = rng.choice([n for n in range(len(grid.points)) if n not in told])
            told[point], repeats = grid.seen(point, seed), 0
            yield Spent(len(told) * grid.space.training, point)
            continue
        proposal = tuner.ask()
        if proposal is None:
            break
        own = zip(grid.space.axes.values(), proposal.point, strict=True)
        point = number[grid.space.distinct(tuple(values[position] for values, position in own))]
        new = point not in told
        repeats = 0 if new else repeats + 1
        told.setdefault(point, grid.seen(point, seed))
        tuner.tell(proposal, told[point])
        if new:
            yield Spent(len(told) * grid.space.training, point)


def by_optuna(name: str, grid: Grid, seed: int, budget: int) -> Iterator[Spent]:
    """One of Optuna's samplers, on all objectives; a repeated proposal is answered from what is known."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    total = budget // grid.space.training
    samplers: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        # its own population of 50 would be most of a budget: as many as NNI's evolution gets
        "nsga2": lambda: optuna.samplers.NSGAIISampler(
            population_size=min(32, max(8, total // 4)), seed=seed
        ),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
    }
    study = optuna.create_study(
        directions=["maximize" if each else "minimize" for each in grid.maximise], sampler=samplers[name]()
    )
    number = {knobs: n for n, knobs in enumerate(grid.points)}
    rng = random.Random(seed)
    told: dict[int, float] = {}
    repeats = asked = 0
    seconds = 0.0
    while len(told) < total:
        if repeats > 200:  # as with NNI's tuners
            point, repeats = rng.choice([n for n in range(len(grid.points)) if n not in told]), 0
        else:
            started = time.process_time()
            trial = study.ask()
            knobs = tuple(trial.suggest_categorical(key, values) for key, values in grid.space.axes.items())
            seconds, asked = seconds + time.process_time() - started, asked + 1
            point = number[grid.space.distinct(knobs)]
            study.tell(trial, [grid.seen(point, seed), *map(float, grid.costs[point])])
        repeats = repeats + 1 if point in told else 0
        if point not in told:
            told[point] = grid.seen(point, seed)
            yield Spent(len(told) * grid.space.training, point, seconds / asked)


def by_local_search(grid: Grid, seed: int, budget: int) -> Iterator[Spent]:
    """Pareto local search (Paquete et al. 2004): from a member of the front so far to a neighbour, which differs in one
    knob; from a random point where the front has no new neighbours."""
    rng = random.Random(seed)
    told: dict[int, float] = {}
    total = budget // grid.space.training

    def differ(one: Knobs, other: Knobs) -> int:
        named, others = (dict(zip(grid.space.axes, knobs, strict=True)) for knobs in (one, other))
        keys = set(named)
        if "none" in (named.get("pool"), others.get("pool")):
            keys -= {"pool_kernel", "pool_stride"}
        return sum(named[key] != others[key] for key in keys)

    def step() -> int:
        known = list(told)
        values = np.column_stack([[told[n] for n in known], grid.costs[known]])
        front = [
            n for n, kept in zip(known, non_dominated(values, maximise=grid.maximise), strict=True) if kept
        ]
        rng.shuffle(front)
        for member in front:
            new = [
                n
                for n, knobs in enumerate(grid.points)
                if n not in told and differ(knobs, grid.points[member]) == 1
            ]
            if new:
                return rng.choice(new)
        return rng.choice([n for n in range(len(grid.points)) if n not in told])

    while len(told) < total:
        point = step() if told else rng.randrange(len(grid.points))
        told[point] = grid.seen(point, seed)
        yield Spent(len(told) * grid.space.training, point)


def by_front(rungs: list[tuple[int, float]], grid: Grid, seed: int, budget: int) -> Iterator[Spent]:
    """search.tuner=pareto, one trial after the other."""
    full = Rung(grid.space.folds, grid.space.epochs)
    ladder = [Rung(folds, max(1, round(share * full.epochs))) for folds, share in rungs] + [full]
    named = [dict(zip(grid.space.axes, knobs, strict=True)) for knobs in grid.points]
    rows: list[dict[str, Any]] = []
    for knobs in named:
        known = {key: int(value) if value.isdigit() else value for key, value in knobs.items()}
        if knobs.get("pool") == "none":
            del known["pool_kernel"], known["pool_stride"]
        rows.append(known)
    names = [str(n) for n in range(len(grid.points))]
    candidates = Candidates(
        names, knob_numbers(rows), grid.costs, grid.space.objectives[1:], knob_groups(rows)
    )
    search = FrontSearch(candidates, ladder, seed=seed)
    curves = grid.curves[:, grid.seeds[seed % len(grid.seeds)]]
    seen: dict[str, dict[Rung, list[float]]] = {}
    spent = asked = 0
    seconds = 0.0
    while True:
        started = time.process_time()
        chosen = search.next(seen, count=1, epochs_left=budget - spent)
        seconds, asked = seconds + time.process_time() - started, asked + 1
        if not chosen:
            break
        ((name, rung),) = chosen
        seen.setdefault(name, {})[rung] = list(curves[int(name), : rung.folds, rung.epochs - 1])
        spent += epochs_of(ladder, ladder.index(rung))
        if rung == ladder[-1]:
            yield Spent(spent, int(name), seconds / asked)


RUNGS = {
    "pareto": [(1, 1.0)],
    "pareto, epochs first": [(1, 0.4), (1, 1.0)],
    "pareto, no rungs": [],
}
OPTUNA = {"optuna tpe": "tpe", "optuna nsga2": "nsga2", "optuna gp": "gp"}
STRATEGIES = (*RUNGS, "random", "tpe", "evolution", "local search")
"""Those that need nothing but what dxc needs; OPTUNA's are replayed where they are named."""


def replay(name: str, strategy: str, seed: int, budget: float) -> list[Spent]:
    """What a strategy trained in full within a share of the grid's epochs; with all of them, until it has ENOUGH."""
    grid = _grid(name)
    epochs = int(budget * grid.epochs)
    if strategy in RUNGS:
        proposed = by_front(RUNGS[strategy], grid, seed, epochs)
    elif strategy in OPTUNA:
        proposed = by_optuna(OPTUNA[strategy], grid, seed, epochs)
    elif strategy == "local search":
        proposed = by_local_search(grid, seed, epochs)
    else:
        proposed = by_nni(strategy, grid, seed, epochs)
    done: list[Spent] = []
    for each in proposed:
        done.append(each)
        if budget == 1.0 and grid.score([one.point for one in done])[0] >= ENOUGH:
            break
    return done


@cache
def _grid(name: str) -> Grid:
    path = SPACES[name].path
    if not path.exists():
        raise SystemExit(
            f"{path.relative_to(ROOT)} is missing: record the space first (--space {name} --record)"
        )
    return Grid(SPACES[name], pd.read_csv(path))


def _one_thread() -> None:
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"


def replays(name: str, seeds: int, strategies: Sequence[str]) -> dict[str, Any]:
    """Strategies with every budget, and without one until it holds ENOUGH of the hypervolume."""
    grid = _grid(name)
    figures: dict[str, Any] = {}
    tasks = [
        (strategy, seed, budget)
        for strategy in strategies
        for seed in range(seeds)
        for budget in (*BUDGETS, 1.0)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(replay, name, *task): task for task in tasks}
        done = {}
        for future in tqdm(as_completed(futures), total=len(tasks), unit="replay", leave=False, disable=None):
            done[futures[future]] = future.result()
    for strategy in strategies:
        own: dict[str, Any] = {}
        for budget in BUDGETS:
            scores = [
                grid.score([each.point for each in done[strategy, seed, budget]]) for seed in range(seeds)
            ]
            own[f"{budget:.0%}"] = {
                "hypervolume": _quartiles([volume for volume, _ in scores]),
                "front": _quartiles([share for _, share in scores]),
            }
        own["epochs_to_99_percent"] = _quartiles(
            [_reached(grid, done[strategy, seed, 1.0]) for seed in range(seeds)]
        )
        own["worst_after_20%"] = round(
            min(
                grid.score([each.point for each in done[strategy, seed, BUDGETS[-1]]])[0]
                for seed in range(seeds)
            ),
            4,
        )
        times = [done[strategy, seed, BUDGETS[-1]][-1].seconds for seed in range(seeds)]
        if np.isfinite(times).all():
            own["seconds_a_proposal"] = round(statistics.median(times), 4)
        figures[strategy] = own
    return figures


def _reached(grid: Grid, done: list[Spent]) -> float:
    """Share of the grid's epochs that was spent when ENOUGH of the hypervolume was there; infinite if it never was."""
    for n in range(1, len(done) + 1):
        if grid.score([each.point for each in done[:n]])[0] >= ENOUGH:
            return done[n - 1].epochs / grid.epochs
    return float("inf")


def _quartiles(values: list[float]) -> list[float]:
    """[median, lower quartile, upper quartile]"""
    ordered = sorted(values)
    low, middle, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    return [
        round(value, 4) for value in (statistics.median(values) if np.isfinite(high) else middle, low, high)
    ]


def show(name: str, figures: dict[str, Any]) -> None:
    grid = _grid(name)
    print(
        f"{len(grid.points)} points, {len(grid.seeds)} seeds; {grid.space.score} {grid.accuracy.min():.3f} to "
        f"{grid.accuracy.max():.3f}, {len(grid.front)} on the front by the means over seeds"
    )
    print(
        "share of the grid's hypervolume: median (quartiles), and of its front, after a share of its epochs"
    )
    for strategy, own in figures.items():
        cells = []
        for budget in BUDGETS:
            (middle, low, high), (front, _, _) = own[f"{budget:.0%}"].values()
            cells.append(f"{budget:.0%}: {middle:.3f} ({low:.3f} to {high:.3f}), front {front:.2f}")
        middle, low, high = own["epochs_to_99_percent"]
        print(f"{strategy:22s} {'   '.join(cells)}   99 % after {middle:.1%} ({low:.1%} to {high:.1%})")
        if "worst_after_20%" in own:
            print(f"{'':22s} worst replay after 20%: {own['worst_after_20%']:.3f}")
        if "seconds_a_proposal" in own:
            print(f"{'':22s} {own['seconds_a_proposal']:.3f} s of the processor a proposal")
    if not {"random", "pareto"} <= set(figures):
        return
    ratio = figures["random"]["epochs_to_99_percent"][0] / figures["pareto"]["epochs_to_99_percent"][0]
    print(f"random needs {ratio:.1f} times the epochs of pareto for 99 % of the hypervolume")


# --- the cost of a space ---------------------------------------------------------------------------------------------


def cost_of_space() -> dict[str, Any]:
    """Seconds to know the costs of every network of the published space, both channel sets, from nothing."""
    import yaml

    params = yaml.safe_load((ROOT / "conf" / "space" / "resnet18.yaml").read_text())

    def composed(overrides: Any) -> Any:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", overrides=list(overrides))

    started = time.perf_counter()
    catalogue = Catalogue(parse_space(params, []), composed, lambda key: (ROOT / "conf" / key).is_dir())
    identities = [catalogue.identity(point) for point in catalogue.distinct().values()]
    identified = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        costs = NetworkCosts(Hardware.of(identities[0].config["hardware"]), Path(folder))
        costs.compute({i.network: i.config for i in identities}, jobs=usable_cores(), progress=True)
    costed = time.perf_counter()
    return {
        "points": catalogue.space.size,
        "networks": len(identities),
        "processes": usable_cores(),
        "seconds_to_identify": round(identified - started, 1),
        "seconds_to_cost": round(costed - identified, 1),
    }


def seconds_of_proposals() -> dict[str, float]:
    """Processor seconds of one proposal among 6,466 made-up candidates of six knobs, after so many trainings.

    The three best are trained already: else the search would take the most accurate one and compute no improvement.
    """
    rng = np.random.default_rng(0)
    knobs = rng.integers(0, 5, (6466, 6))
    rows = [{f"knob{k}": "abcde"[value] for k, value in enumerate(row)} for row in knobs]
    costs = np.column_stack(
        [
            np.exp(knobs.sum(axis=1) / 6 + 0.1 * rng.random(6466)),
            np.exp(knobs[:, 0] / 2 + rng.random(6466)),
            1 + rng.random(6466),
        ]
    )
    truth = 0.7 + 0.02 * knobs[:, 1] + 0.01 * knobs.sum(axis=1) + 0.01 * rng.random(6466)
    training = Rung(1, 1)
    figures = {}
    for count, trained in product((2, 3), (10, 50, 100)):
        candidates = Candidates(
            [str(n) for n in range(6466)],
            knob_numbers(rows),
            costs[:, :count],
            ["latency_ms", "onnx_mb", "macs"][:count],
            knob_groups(rows),
        )
        search = FrontSearch(candidates, [training], seed=0)
        drawn = [*np.argsort(-truth)[:3], *rng.choice(6466, trained - 3, replace=False)]
        seen = {str(n): {training: [float(truth[n])]} for n in drawn}
        times = []
        for _ in range(7):
            started = time.process_time()
            search.next(seen, count=1, epochs_left=10**6)
            times.append(time.process_time() - started)
        figures[f"{count} costs, {trained} trained"] = round(statistics.median(times), 4)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--space", choices=SPACES, default="resnet18", help="the recorded space")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="trials at once while recording")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--seeds", type=int, default=20, help="replays of each tuner")
    parser.add_argument(
        "--strategies", nargs="+", choices=(*STRATEGIES, *OPTUNA), default=STRATEGIES,
        help="replay these; the saved figures of the others stay",
    )  # fmt: skip
    parser.add_argument("--part", choices=["space", "replay", "proposals"], help="one; all if not given")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/search_{space,cost}.json"
    )
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.space, arguments.jobs, arguments.accelerator)
    if arguments.part in (None, "proposals"):
        seconds = seconds_of_proposals()
        for case, value in seconds.items():
            print(f"{case}: {value:.3f} s of the processor a proposal among 6,466 candidates")
        if arguments.save:
            save("search_proposals", {"seconds": seconds})
    if arguments.part in (None, "space"):
        space = cost_of_space()
        print(
            f"{space['points']} points of the published space, {space['networks']} networks: identified in "
            f"{space['seconds_to_identify']} s, costed in {space['seconds_to_cost']} s "
            f"with {space['processes']} processes"
        )
        if arguments.save:
            save("search_space", space)
    if arguments.part in (None, "replay"):
        figures = replays(arguments.space, arguments.seeds, arguments.strategies)
        results = SPACES[arguments.space].results
        if (path := RECORDS / f"{results}.json").exists():
            saved = json.loads(path.read_text())
            kept = saved["strategies"] if saved["replays"] == arguments.seeds else {}
            figures = {
                name: each for name in (*STRATEGIES, *OPTUNA) if (each := figures.get(name) or kept.get(name))
            }
        show(arguments.space, figures)
        if arguments.save:
            save(results, {"replays": arguments.seeds, "strategies": figures})


if __name__ == "__main__":
    main()
