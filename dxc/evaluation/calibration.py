"""Makes probabilities mean what they say: of the predictions of 0.9, nine of ten are crossings.

A calibration is fitted on out-of-fold predictions, which a network made for images that it had not seen. It is kept as
numbers, in JSON: whoever reads it runs no code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxc.errors import AnalysisError, is_number
from dxc.evaluation.few_chips import wilson_interval

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.floating[Any]]
Method = Literal["none", "temperature", "isotonic"]

METHODS: tuple[Method, ...] = ("none", "temperature", "isotonic")
BINS = 10
MAX_KNOTS = 10_000  # of an isotonic function; more are no calibration of ours
LEAST = 1e-6  # probabilities of 0 and 1 have no logit: they are taken as this far from it
ISOTONIC_FROM = (
    1000  # predictions that an isotonic fit should have, or it follows the noise (Niculescu-Mizil 2005)
)


@dataclass(frozen=True)
class Calibration:
    """A function from a network's probability to one that can be relied on.

    Attributes:
        method: none, temperature (Guo et al. 2017, arXiv 1706.04599: the logit is divided by one number) or isotonic
            (Zadrozny and Elkan 2002, doi 10.1145/775047.775151: a rising step-like function).
        temperature: of that method; more than 1 makes predictions less certain.
        knots: of isotonic, (k, 2): the network's probability and what it becomes, linear in between.
        fitted_on: number of predictions.
    """

    method: Method = "none"
    temperature: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()
    fitted_on: int = 0

    def __call__(self, probability: ArrayLike) -> Floats:
        """Calibrated probabilities. The order of predictions is kept, but isotonic may make some equal.

        Args:
            probability: of any shape, 0..1; NaN stays NaN.
        """
        p = np.asarray(probability, dtype=float)
        if self.method == "temperature":
            return _from_logit(_logit(p) / self.temperature)
        if self.method == "isotonic":
            x, y = np.array(self.knots).T
            return np.interp(p, x, y)
        return p

    def to_dict(self) -> dict[str, Any]:
        """Numbers and texts for JSON."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "knots": [list(each) for each in self.knots],
            "fitted_on": self.fitted_on,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what to_dict() gave, checked: it may come from elsewhere.

        Raises:
            AnalysisError: it is no calibration.
        """
        method, temperature, knots = (
            values.get("method"),
            values.get("temperature", 1.0),
            values.get("knots", []),
        )
        fitted_on = values.get("fitted_on", 0)
        trouble = ""
        if method not in METHODS:
            trouble = f"its method is {str(method)[:40]!r}, not one of {', '.join(METHODS)}"
        elif not (is_number(temperature) and math.isfinite(temperature) and temperature > 0):
            trouble = "its temperature is no positive number"
        elif not (isinstance(knots, list) and len(knots) <= MAX_KNOTS and all(map(_is_knot, knots))):
            trouble = "its knots are not pairs of numbers from 0 to 1"
        elif method == "isotonic" and not knots:
            trouble = "it has no knots"
        elif np.any(np.diff(np.array(knots, float).reshape(-1, 2), axis=0) < 0):
            trouble = "its knots do not rise"
        elif isinstance(fitted_on, bool) or not isinstance(fitted_on, int) or fitted_on < 0:
            trouble = "fitted_on is no count"
        if trouble or method not in METHODS:
            raise AnalysisError(f"not a calibration of probabilities: {trouble}. Fit it again.")
        return cls(method, float(temperature), tuple((float(a), float(b)) for a, b in knots), fitted_on)


def _is_knot(knot: Any) -> bool:
    return (
        isinstance(knot, list | tuple) and len(knot) == 2 and all(is_number(v) and 0 <= v <= 1 for v in knot)
    )  # fmt: skip


def fit_calibration(
    probability: ArrayLike, label: ArrayLike, *, method: Literal["temperature", "isotonic"] = "temperature"
) -> Calibration:
    """Fit a calibration on out-of-fold predictions.

    Args:
        probability: (n,) of a crossing, 0..1.
        label: (n,) 1 = crossing, 0 = none. Their share has to be that of where the calibration is used: balanced chips
            make a map too certain.
        method: temperature, whose one number few predictions suffice for; isotonic, which mends any shape but wants
            about ISOTONIC_FROM predictions.

    Raises:
        AnalysisError: predictions of one class only, or none.
    """
    p, positive = _checked(probability, label)
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, positive)
        knots = [
            (float(x), float(y)) for x, y in zip(fitted.X_thresholds_, fitted.y_thresholds_, strict=True)
        ]
        return Calibration("isotonic", knots=tuple(_thinned(knots)), fitted_on=len(p))
    from scipy.optimize import minimize_scalar

    logit = _logit(p)

    def loss(log_temperature: float) -> float:
        """Cross entropy, whose logarithm of a sum does not overflow."""
        scaled = logit / math.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - positive * scaled))

    found = minimize_scalar(
        loss, bounds=(math.log(0.02), math.log(50)), method="bounded", options={"xatol": 1e-6}
    )
    return Calibration("temperature", temperature=math.exp(found.x), fitted_on=len(p))


def _thinned(knots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(knots) <= MAX_KNOTS:
        return knots
    return [knots[i] for i in np.unique(np.linspace(0, len(knots) - 1, MAX_KNOTS).round().astype(int))]


def reliability(probability: ArrayLike, label: ArrayLike, *, bins: int = BINS) -> pd.DataFrame:
    """The reliability curve, one row a bin with predictions: low, high, mean probability, share of crossings, count.

    Bins have equal width. `share_low` and `share_high` are Wilson's 95 % interval of the share (doi
    10.1080/01621459.1927.10502953).

    Args:
        probability: (n,) of a crossing, 0..1.
        label: (n,) 1 = crossing, 0 = none.
        bins: number of bins from 0 to 1.
    """
    import pandas as pd

    p, positive = _paired(probability, label)
    place = np.minimum((p * bins).astype(int), bins - 1)
    rows = []
    for each in np.unique(place):
        here = place == each
        n, share = int(here.sum()), float(positive[here].mean())
        low, high = wilson_interval(int(positive[here].sum()), n)
        rows.append(
            {
                "low": each / bins, "high": (each + 1) / bins, "probability": float(p[here].mean()), "share": share,
                "share_low": low, "share_high": high, "count": n,
            }
        )  # fmt: skip
    columns = ["low", "high", "probability", "share", "share_low", "share_high", "count"]
    return pd.DataFrame(rows, columns=columns)


def calibration_error(probability: ArrayLike, label: ArrayLike, *, bins: int = BINS) -> dict[str, float]:
    """calibration_error: the expected calibration error (Naeini et al. 2015, doi 10.1609/aaai.v29i1.9602).

    It is the mean over predictions of |mean probability - share of crossings| in their bin of equal width. There is
    none without predictions.

    Args:
        probability: (n,) of a crossing, 0..1.
        label: (n,) 1 = crossing, 0 = none.
        bins: number of bins from 0 to 1.

    >>> calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0])
    {'calibration_error': 0.25}
    """
    curve = reliability(probability, label, bins=bins)
    if curve.empty:
        return {}
    apart = (curve["probability"] - curve["share"]).abs()
    return {"calibration_error": round(float((apart * curve["count"]).sum() / curve["count"].sum()), 12)}


def _paired(probability: ArrayLike, label: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Known probabilities and their labels. Raises AnalysisError for values that are no probabilities."""
    p, labels = np.asarray(probability, dtype=float).reshape(-1), np.asarray(label).reshape(-1)
    if len(p) != len(labels):
        raise AnalysisError(f"{len(p)} probabilities and {len(labels)} labels: give one label for each.")
    known = np.isfinite(p)
    if np.any((p[known] < 0) | (p[known] > 1)):
        raise AnalysisError("probabilities lie from 0 to 1. Are these logits?")
    return p[known], labels[known] == 1


def _checked(probability: ArrayLike, label: ArrayLike) -> tuple[Floats, Floats]:
    p, positive = _paired(probability, label)
    if not (positive.any() and (~positive).any()):
        raise AnalysisError(
            f"{len(p)} predictions, {int(positive.sum())} of them of crossings: a calibration is fitted on "
            "predictions of both classes."
        )
    return p, positive.astype(float)


def _logit(p: Floats) -> Floats:
    p = np.clip(p, LEAST, 1 - LEAST)
    return np.log(p / (1 - p))


def _from_logit(logit: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(logit / 2)))  # does not overflow
