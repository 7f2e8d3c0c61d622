"""The features of calibrated predictors, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dxc.hardware.predict.features import TARGET, derive, to_ms, work
from dxc.hardware.predict.packages import Package

# of 15 x 15 pixels with 20 channels: stride 2 leaves 8 x 8
CONV = [15, 20, 90, 3, 2]  # to 90 channels: 90 x 9 x 20 weights
POOL = [15, 20, 20, 3, 2]


@pytest.mark.parametrize(
    ("name", "given", "derived", "millions"),
    [
        (
            "conv-bn-relu",
            CONV,
            # output, MACs 64 x 16200, weights, values in and out, MACs a value; channels beyond whole vectors; rows
            [8, 1_036_800, 16_200, 4500, 5760, 1_036_800 / 26_460, 4, 10, 26, 2],
            1.0368,
        ),
        (
            "dwconv-relu",
            [15, 20, 20, 3, 2],
            [8, 64 * 180, 180, 4500, 1280, 11_520 / 5960, 4, 4, 20, 2],
            0.01152,
        ),
        ("maxpool", POOL, [8, 1280, 24 * 24 * 20, 4], 0.01152 + 0.005),
        ("avgpool", POOL, [8, 1280, 24 * 24 * 20, 4], 0.01152 + 0.005),
        ("fc", [48, 5], [240], 0.00024 + 0.01),
        ("concat", [7, 2, 16, 24], [40, 49 * 40], 1.0),
        ("relu", [7, 16], [49 * 16], 1.0),
        ("gap", [16], [], 1.0),
    ],
)
def test_features_and_work_by_hand(
    name: str, given: list[float], derived: list[float], millions: float
) -> None:
    features = np.array([given, given], dtype=float)
    assert derive(name, features) == pytest.approx(np.array([given + derived] * 2))
    assert work(name, features) == pytest.approx([millions] * 2)


class _Sum:
    """Predicts a thousandth of the sum of its features."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        return features.sum(axis=1) / 1000


@pytest.mark.parametrize(
    ("about", "ms"),
    [
        ({}, 0.053),  # published: nn-Meter's features as they are, milliseconds
        ({"target": "ms"}, 0.053),
        ({"target": TARGET}, np.exp(0.293) * 0.01024),  # the logarithm of what a million operations take
    ],
)
def test_milliseconds_of_published_and_calibrated_packages(about: dict[str, Any], ms: float) -> None:
    package = Package("p", Path("p"), Path("r"), {"fc": _Sum()}, about)  # type: ignore[dict-item]
    assert to_ms(package, "fc", np.array([[48.0, 5.0]])) == pytest.approx([ms])
