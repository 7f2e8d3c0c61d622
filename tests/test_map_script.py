"""benchmarks/map.py: maps of several regions evaluated as one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dxc.evaluation.crossings import Blocks

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "map.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("map_benchmark", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_the_dense_pass_is_fitted_on_all_training_regions(script: ModuleType) -> None:
    own, first, second = (script.region_files(Path(name)) for name in ("NE", "IL", "CA"))
    assert script.keys_of("dense", own, [first, second]) == [
        "mode=dense",
        "fit=[{dem:IL/dem.tif,photo:IL/photo.tif,crossings:IL/crossings.gpkg},"
        "{dem:CA/dem.tif,photo:CA/photo.tif,crossings:CA/crossings.gpkg}]",
    ]


def test_maps_of_two_regions_are_one_map_of_twice_the_ground(script: ModuleType) -> None:
    """Coordinates are the same in both regions: a point of one is no hit of the other."""
    one = script.Compared(
        np.array([[0.0, 0], [100, 0]]), np.array([[3.0, 4], [500, 0]]), np.array([0.95, 0.6]),
        Blocks(np.array([1.0, 2.0]), np.array([0, 1]), np.array([0, 1]), np.array([0.5, 0.5])),
    )  # fmt: skip
    other = script.Compared(
        np.array([[100.0, 0]]), np.array([[0.0, 0], [900, 0]]), np.array([0.99, 0.99]),
        Blocks(np.array([3.0]), np.array([0]), np.array([0, -1]), np.array([1.0])),
    )  # fmt: skip
    figures = script.figures([one.score(0.5), other.score(0.5)])
    assert (figures["crossings"], figures["points"], figures["hits"]) == (3, 3, 1)
    assert figures["recall"] == pytest.approx(1 / 3) and figures["precision"] == pytest.approx(1 / 3)
    assert figures["false_alarms_per_km2"] == pytest.approx(2 / 6)
    assert figures["false_alarms_per_road_km"] == pytest.approx(2 / 2)
    assert script.figures([one.score(0.9), other.score(0.9)])["precision"] == pytest.approx(1 / 2)
