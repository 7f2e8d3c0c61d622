"""What messages are made of, and which values count as numbers."""

from __future__ import annotations

import numpy as np
import pytest

from dxc.errors import first_line, is_number, is_whole


@pytest.mark.parametrize(
    ("error", "said", "named"),
    [
        (ValueError("no such file"), "no such file", "ValueError: no such file"),
        (RuntimeError("\n  one\ntwo\nthree"), "one", "RuntimeError: one"),
        (MemoryError(), "MemoryError", "MemoryError"),
        (OSError("  \n"), "OSError", "OSError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, said: str, named: str) -> None:
    assert first_line(error) == said
    assert first_line(error, named=True) == named


@pytest.mark.parametrize(
    ("value", "number", "whole"),
    [
        (3, True, True),
        (0, True, False),
        (9, True, False),
        (3.0, True, False),
        (np.float32(3), True, False),
        (True, False, False),
        ("3", False, False),
        (None, False, False),
        (3j, False, False),
    ],
)
def test_what_counts_as_a_number(value: object, number: bool, whole: bool) -> None:
    assert is_number(value) is number
    assert is_whole(value, 1, 8) is whole
