"""Calls to a store that does not answer: when and for how long they are repeated, and how they end."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from dxc.errors import TrackingError
from dxc.tracking.patience import Patient


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses in s, on a clock that the test controls."""
    made: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", made.append)
    monkeypatch.setattr("time.monotonic", lambda: sum(made))
    return made


def _failing(times: int, error: Exception) -> Callable[[], str]:
    """A call that raises `error` this many times, then answers."""
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "answer"

    return call


def test_calls_are_repeated_after_growing_pauses(pauses: list[float]) -> None:
    call = _failing(7, requests.ConnectionError("refused"))
    assert Patient("http://host", patience_s=60)._patiently(call) == "answer"
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15]


def test_no_pause_goes_beyond_the_patience(pauses: list[float]) -> None:
    with pytest.raises(TrackingError, match="http://host.*refused"):
        Patient("http://host", patience_s=7)._patiently(_failing(9, requests.ConnectionError("refused")))
    assert pauses == [0.5, 1, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST), TrackingError),
        (OSError(errno.ENOSPC, "No space left on device", "mlflow.db"), TrackingError),
        (FileNotFoundError("model.onnx"), FileNotFoundError),
        (ValueError("a bug"), ValueError),
    ],
)
def test_what_waiting_does_not_mend_is_raised_at_once(
    error: Exception, expected: type[Exception], pauses: list[float]
) -> None:
    with pytest.raises(expected):
        Patient("http://host", patience_s=60)._patiently(_failing(1, error))
    assert pauses == []
