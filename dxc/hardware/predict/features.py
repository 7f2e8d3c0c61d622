"""Features of calibrated predictors, computed from nn-Meter's kernel features.

Published packages use nn-Meter's features unchanged and predict milliseconds. A package of
dxc.hardware.calibrate.calibrate predicts the logarithm of milliseconds per unit of work, because this varies by a
factor of ten where milliseconds vary by ten thousand. It uses the same features and others derived from them: bytes
moved, arithmetic intensity, and how channels fill vector registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dxc.hardware.predict.kernels import INT8

if TYPE_CHECKING:
    from dxc.hardware.predict.packages import Package

TARGET = "log_ms_per_work"
"""Value of `target` in the package.json of a calibrated package."""

VECTOR = 16  # float32 lanes of the widest vector registers (AVX-512); others have a divisor of it
REGISTER_ROWS = 6  # output pixels that ONNX Runtime's convolutions keep in registers at a time


def to_ms(package: Package, name: str, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predicted milliseconds (n,) of one predictor.

    Args:
        package: the package.
        name: of the predictor.
        features: rows of nn-Meter's features (n, k).
    """
    forest = package.regressors[name]
    if package.about.get("target") != TARGET:
        return forest.predict(features)
    return calibrated_ms(forest, name, features)


def calibrated_ms(model: Any, name: str, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Milliseconds (n,) from a model that predicts TARGET.

    Args:
        model: a Forest, or the scikit-learn model from which it was made.
        name: of the predictor.
        features: rows of nn-Meter's features (n, k).
    """
    return np.exp(model.predict(derive(name, features))) * work(name, features)


def derive(name: str, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """nn-Meter's features (n, k) with the derived ones appended, for the predictor `name`."""
    name = name.removeprefix(INT8)
    columns = list(features.T)
    if "conv" in name:
        size, c_in, c_out, kernel, stride = columns[:5]
        out, macs, weights = _convolution(name, features)
        moved_in, moved_out = size**2 * c_in, out**2 * c_out
        columns += [out, macs, weights, moved_in, moved_out, macs / (moved_in + moved_out + weights)]
        columns += [c_in % VECTOR, c_out % VECTOR, c_out % (4 * VECTOR), out % REGISTER_ROWS]
    elif name in ("maxpool", "avgpool"):
        size, c_in, _, kernel, stride = columns[:5]
        out = np.ceil(size / stride)
        columns += [out, out**2 * c_in, (out * kernel) ** 2 * c_in, c_in % VECTOR]
    elif name == "fc":
        columns += [columns[0] * columns[1]]
    elif name == "concat":
        channels = sum(columns[2:])
        columns += [channels, columns[0] ** 2 * channels]
    elif len(columns) > 1:
        columns += [columns[0] ** 2 * columns[1]]
    return np.stack(columns, axis=1)


def work(name: str, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Millions of operations of each row (n,), with a minimum for calls that cost more than their arithmetic."""
    name = name.removeprefix(INT8)
    if "conv" in name:
        return _convolution(name, features)[1] / 1e6
    if name in ("maxpool", "avgpool"):
        size, c_in, _, kernel, stride = features.T[:5]
        return (np.ceil(size / stride) * kernel) ** 2 * c_in / 1e6 + 0.005
    if name == "fc":
        return features[:, 0] * features[:, 1] / 1e6 + 0.01
    return np.ones(len(features))


def _convolution(
    name: str, features: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Output size, multiply-accumulates and weights. The features do not hold the padding; 'same' is assumed."""
    size, c_in, c_out, kernel, stride = features.T[:5]
    out = np.ceil(size / stride)
    weights = c_out * kernel**2 * (1 if "dwconv" in name else c_in)
    return out, out**2 * weights, weights
