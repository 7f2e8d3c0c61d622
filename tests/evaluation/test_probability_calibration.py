"""Calibration of probabilities whose error is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from dxc.errors import AnalysisError
from dxc.evaluation.calibration import Calibration, calibration_error, fit_calibration, reliability


def _predictions(temperature: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stated and true probabilities, and labels drawn from the true ones; logits are `temperature` times too large."""
    rng = np.random.default_rng(5)
    logit = rng.normal(0, 2, n)
    true = 1 / (1 + np.exp(-logit))
    return 1 / (1 + np.exp(-logit * temperature)), true, rng.random(n) < true


@pytest.mark.parametrize("temperature", [3.0, 0.5, 1.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    stated, true, label = _predictions(temperature)
    fitted = fit_calibration(stated, label)
    assert fitted.temperature == pytest.approx(temperature, rel=0.04) and fitted.fitted_on == 20_000
    np.testing.assert_allclose(fitted(stated), true, atol=0.01)


def test_nine_of_ten_on_predictions_that_were_held_out() -> None:
    stated, _, label = _predictions(3.0)
    for method in ("temperature", "isotonic"):
        fitted = fit_calibration(stated[::2], label[::2], method=method)  # type: ignore[arg-type]
        before = calibration_error(stated[1::2], label[1::2])["calibration_error"]
        after = calibration_error(fitted(stated[1::2]), label[1::2])["calibration_error"]
        assert before > 0.1 and after < 0.02, method
        sure = np.abs(fitted(stated[1::2]) - 0.9) < 0.05
        assert label[1::2][sure].mean() == pytest.approx(0.9, abs=0.05)


def test_isotonic_mends_what_no_temperature_can() -> None:
    rng = np.random.default_rng(1)
    stated = rng.random(20_000)
    label = rng.random(20_000) < 0.3 * stated**2  # a map: few are crossings
    fitted = fit_calibration(stated, label, method="isotonic")
    grid = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(fitted(grid), 0.3 * grid**2, atol=0.03)
    assert (np.diff(fitted(np.linspace(0, 1, 1001))) >= 0).all()
    at_best = fit_calibration(stated, label)
    assert np.abs(at_best(grid) - 0.3 * grid**2).max() > 0.1


def test_the_error_by_hand() -> None:
    p = [0.05, 0.15, 0.15, 0.95, 1.0, np.nan]
    label = [0, 0, 1, 1, 1, 1]
    curve = reliability(p, label)
    assert curve["count"].tolist() == [1, 2, 2] and curve["share"].tolist() == [0, 0.5, 1]
    assert curve["low"].tolist() == pytest.approx([0, 0.1, 0.9])
    # 1 x 0.05, 2 x |0.15 - 0.5|, 2 x |0.975 - 1|, over 5
    assert calibration_error(p, label)["calibration_error"] == pytest.approx((0.05 + 0.7 + 0.05) / 5)
    assert calibration_error([], []) == {}


def test_the_curve_is_scikit_learns() -> None:
    stated, _, label = _predictions(2.0, 500)
    share, mean = calibration_curve(label, stated, n_bins=10)
    curve = reliability(stated, label)
    np.testing.assert_allclose(curve["share"], share)
    np.testing.assert_allclose(curve["probability"], mean)


def test_wilsons_interval() -> None:
    curve = reliability([0.55] * 10, [1] * 8 + [0] * 2)
    assert curve[["share_low", "share_high"]].iloc[0].tolist() == pytest.approx(
        [0.4901625, 0.9433178], abs=1e-6
    )


def test_it_is_kept_as_numbers() -> None:
    stated, _, label = _predictions(3.0, 2000)
    for fitted in (
        Calibration(), fit_calibration(stated, label), fit_calibration(stated, label, method="isotonic"),
    ):  # fmt: skip
        again = Calibration.of(json.loads(json.dumps(fitted.to_dict())))
        assert again == fitted
        np.testing.assert_array_equal(again(stated), fitted(stated))


def test_certain_predictions_stay_finite() -> None:
    fitted = fit_calibration([0.0, 1.0, 1.0, 0.0, 1.0], [0, 1, 1, 0, 0])
    assert np.isfinite(fitted([0.0, 0.5, 1.0])).all() and fitted([0.5]) == pytest.approx([0.5])
    assert np.isnan(fitted([np.nan])).all()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "its method is 'None'"),
        ({"method": "pickle"}, "its method is 'pickle', not one of none, temperature, isotonic"),
        ({"method": "temperature", "temperature": 0}, "no positive number"),
        ({"method": "temperature", "temperature": float("inf")}, "no positive number"),
        ({"method": "isotonic"}, "it has no knots"),
        ({"method": "isotonic", "knots": [[0, 0, 0]]}, "not pairs of numbers"),
        ({"method": "isotonic", "knots": [[0, 0], [1, 2]]}, "not pairs of numbers"),
        ({"method": "isotonic", "knots": [[0, 0.5], [1, 0.4]]}, "do not rise"),
        ({"method": "none", "fitted_on": "many"}, "fitted_on is no count"),
    ],
)
def test_what_is_no_calibration_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(AnalysisError, match=why):
        Calibration.of(values)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(AnalysisError, match="2 predictions, 2 of them of crossings: .* both classes"):
        fit_calibration([0.2, 0.9], [1, 1])
    with pytest.raises(AnalysisError, match="Are these logits"):
        fit_calibration([-2.0, 3.0], [0, 1])
    with pytest.raises(AnalysisError, match="2 probabilities and 1 labels"):
        reliability([0.2, 0.9], [1])
