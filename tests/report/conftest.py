"""Designs to draw: four small enough to check by hand, and as many as wanted by chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from dxc.metrics import METRICS, Metric, undeclared
from dxc.pareto import non_dominated

Designs = tuple[pd.DataFrame, dict[str, Metric], list[str]]


@pytest.fixture
def four() -> Designs:
    """a and b are the front, b is unstable; a dominates c and d."""
    designs = pd.DataFrame(
        {
            "name": ["a", "b", "c", "d"],
            "run_id": ["a" * 32, "b" * 32, "c" * 32, "d" * 32],
            "trial": ["a" * 12, "b" * 12, "c" * 12, "d" * 12],
            "n": [3, 2, 1, 3],
            "front": [True, True, False, False],
            "rank": [1, 1, 2, 2],
            "dominated_by": ["", "", "a", "a"],
            "p_front": [0.9, 0.3, np.nan, np.nan],
            "unstable": [False, True, False, False],
            "accuracy": [0.90, 0.96, 0.80, 0.84],
            "latency_ms": [1.0, 2.0, 1.5, 5.0],
            "onnx_mb": [10.0, 11.0, 12.0, 400.0],
            "spread.accuracy": [0.01, 0.02, np.nan, 0.03],
            "spread.latency_ms": [0.25, np.nan, np.nan, 0.5],
            "spread.onnx_mb": [np.nan] * 4,
            "model.kernel": [3, 5, 3, 5],
            "data.batch_size": [8, 16, 8, 32],
            "data": ["5ch", "7ch", "5ch", "7ch"],
        }
    )
    names = ("accuracy", "latency_ms", "onnx_mb")
    return designs, {name: METRICS[name] for name in names}, ["data", "model.kernel", "data.batch_size"]


@pytest.fixture
def by_chance() -> Callable[..., Designs]:
    """by_chance(n, objectives): n designs by chance with so many objectives (2 to 5) and eight knobs."""

    def make(n: int, objectives: int = 3, seed: int = 0) -> Designs:
        rng = np.random.default_rng(seed)
        latency = 10 ** rng.uniform(-1, 1, n)
        values = {
            "accuracy": 0.7 + 0.1 * np.log10(latency) + rng.normal(0, 0.03, n),
            "latency_ms": latency,
            "onnx_mb": 3 * latency**0.5 * rng.uniform(0.5, 2, n),
            "macs": 1e7 * latency * rng.uniform(0.8, 1.2, n),
            "energy": rng.normal(0, 1, n),
        }
        known = {
            name: METRICS.get(name, undeclared(name, maximise=False)) for name in list(values)[:objectives]
        }
        knobs: dict[str, np.ndarray] = {
            "data": rng.choice(["5ch", "7ch"], n),
            "model.kernel": rng.choice([3, 5, 7], n),
            "model.stride": rng.choice([1, 2], n),
            "model.padding": rng.choice([1, 2, 3], n),
            "model.pool": rng.choice(["none", "max"], n),
            "model.width": rng.choice([8, 16, 32, 48, 64], n),
            "optimizer.lr": 10 ** rng.uniform(-5, -1, n),
            "data.batch_size": rng.choice([8, 16], n),
        }
        front = non_dominated(
            np.column_stack([values[name] for name in known]),
            maximise=[objective.maximise for objective in known.values()],
        )
        columns = {
            "name": [f"resnet18 k3 s2 p1 w32, 7ch b16 no. {k}" for k in range(n)],
            "run_id": [rng.bytes(16).hex() for _ in range(n)],
            "trial": [rng.bytes(6).hex() for _ in range(n)],
            "n": np.full(n, 3),
            "front": front,
            "rank": np.where(front, 1, 2),
            "dominated_by": np.where(front, "", "another"),
            "p_front": np.where(front, rng.uniform(0, 1, n), np.nan),
            **{name: values[name] for name in known},
            **{f"spread.{name}": np.abs(values[name]) * 0.02 for name in known},
            **knobs,
        }
        designs = pd.DataFrame(columns)
        designs["unstable"] = designs["front"] & (designs["p_front"] < 0.3)
        return designs, known, list(knobs)

    return make
