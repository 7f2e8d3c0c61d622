"""Times the front of many points and its certainty, compared with plain NumPy and pymoo.

    pip install --no-deps --target /tmp/pymoo pymoo==0.6.2 && export PYTHONPATH=/tmp/pymoo     (not a part of dxc)
    python benchmarks/analysis_front.py            about 6 minutes

There are two clouds in three objectives. `cube` is uniform and has a front of about a hundred points. `shell` lies near
a sphere and has a front of thousands, where algorithms differ most. It has a tenth of the points, because NumPy would
take an hour otherwise. All must find the same front:
    dxc      dxc.pareto.non_dominated (moocore: Kung et al. 1975)
    numpy    sorted by the first objective; each point is compared with the front found so far
    pymoo    NonDominatedSorting().do(..., only_non_dominated_front=True); left out without pymoo
Then the probability of being on the front for 2,000 designs in 1,000 draws: dxc against the same loop over `numpy`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from _record import save, spread

from dxc.evaluation.bootstrap import Outcomes, accuracy_draws, probability_non_dominated
from dxc.pareto import non_dominated

LOWER = [False, False, False]


def cube(points: int, rng: np.random.Generator) -> np.ndarray:
    return rng.random((points, 3))


def shell(points: int, rng: np.random.Generator) -> np.ndarray:
    directions = np.abs(rng.standard_normal((points, 3)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return 1 - directions * (1 - 0.3 * rng.random((points, 1)) ** 2)


def with_dxc(points: np.ndarray) -> np.ndarray:
    return non_dominated(points, maximise=LOWER)


def with_numpy(points: np.ndarray) -> np.ndarray:
    """The plain way: after sorting, only earlier points can dominate. It does not check for equal points, because there
    are none."""
    chosen = np.zeros(len(points), dtype=bool)
    front, size = np.empty((1024, points.shape[1])), 0
    for index in np.lexsort(points.T[::-1]):
        if not (front[:size] <= points[index]).all(axis=1).any():
            if size == len(front):
                front = np.concatenate([front, np.empty_like(front)])
            front[size], chosen[index] = points[index], True
            size += 1
    return chosen


def with_pymoo(points: np.ndarray) -> np.ndarray:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    chosen = np.zeros(len(points), dtype=bool)
    chosen[NonDominatedSorting().do(points, only_non_dominated_front=True)] = True
    return chosen


def timed(way: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    found = way(points)
    return time.perf_counter() - started, found


def probabilities(designs: int, draws: int, repeats: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """Seconds for p_front of designs that were evaluated on 800 chips in 5 folds each."""
    fold = np.arange(800) % 5
    outcomes = [[Outcomes(rng.random(800) < p, fold, "chips")] for p in rng.uniform(0.7, 0.97, designs)]
    values = np.column_stack([[each[0].accuracy for each in outcomes], rng.random((designs, 2))])
    maximise = [True, False, False]
    seconds: dict[str, list[float]] = {"dxc": [], "draws": [], "numpy": []}
    for _ in range(repeats):
        started = time.perf_counter()
        accuracy = accuracy_draws(outcomes, draws=draws, seed=0)
        seconds["draws"].append(time.perf_counter() - started)
        probability = probability_non_dominated(values, accuracy, column=0, maximise=maximise)
        seconds["dxc"].append(time.perf_counter() - started)

        started = time.perf_counter()
        count = np.zeros(designs)
        few = 20  # draws only; the loop takes the same time for each
        for draw in accuracy.T[:few]:
            count += with_numpy(np.column_stack([-draw, values[:, 1:]]))
        seconds["numpy"].append(seconds["draws"][-1] + (time.perf_counter() - started) * draws / few)
        first = probability_non_dominated(values, accuracy[:, :few], column=0, maximise=maximise)
        # two draws may have the same accuracy, but they differ in the other objectives, so the fronts agree
        if not np.allclose(first, count / few) or (probability < 0).any():
            raise SystemExit("the probabilities differ")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/analysis_front.json")
    arguments = parser.parse_args()

    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {"dxc": with_dxc, "numpy": with_numpy}
    try:
        import pymoo

        ways["pymoo"] = with_pymoo
        print(f"pymoo {pymoo.__version__}")
    except ImportError:
        print("without pymoo, which is not installed")
    results: dict[str, object] = {"repeats": arguments.repeats}
    for cloud, count in ((cube, arguments.points), (shell, arguments.points // 10)):
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        size = 0
        for repeat in range(arguments.repeats):
            points = cloud(count, np.random.default_rng(repeat))
            fronts = {}
            for name in sorted(ways, reverse=repeat % 2 == 1):
                took, fronts[name] = timed(ways[name], points)
                seconds[name].append(took)
            size = int(fronts["dxc"].sum())
            if any((each != fronts["dxc"]).any() for each in fronts.values()):
                raise SystemExit(f"{cloud.__name__}: the fronts differ")
        print(f"{cloud.__name__}: {count:,} points, {size} on the front")
        ratios = {}
        for name, each in seconds.items():
            print(f"  {name:6} {spread(each)} s")
            if name != "dxc":
                ratios[name] = [a / b for a, b in zip(each, seconds["dxc"], strict=True)]
                print(f"         {spread(ratios[name], 1)} times dxc's")
        results[cloud.__name__] = {"points": count, "front": size, "seconds": seconds, "times_dxc": ratios}

    designs, draws = 2000, 1000
    found = probabilities(designs, draws, arguments.repeats, np.random.default_rng(0))
    print(f"probability of being on the front: {designs} designs, {draws} draws of 800 chips")
    print(f"  dxc    {spread(found['dxc'])} s, of it drawing {spread(found['draws'])} s")
    times = [a / b for a, b in zip(found["numpy"], found["dxc"], strict=True)]
    print(f"  numpy  {spread(found['numpy'])} s (from 20 draws), {spread(times, 1)} times dxc's")
    results["probability"] = {"designs": designs, "draws": draws, "seconds": found, "numpy_times_dxc": times}
    if arguments.save and not math.isnan(times[0]):
        save("analysis_front", results)


if __name__ == "__main__":
    main()
