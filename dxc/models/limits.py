"""How small an image a network can take."""

from __future__ import annotations

MIN_SIZE = 16
"""Least height and width in pixels of chips that may be of any size: three poolings leave 2 x 2 features of them,
what a pyramid of features needs."""
