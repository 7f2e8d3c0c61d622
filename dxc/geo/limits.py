"""How large a chip may be."""

from __future__ import annotations

MAX_SIZE = 4096
"""Largest height and width in pixels: a file of some hundred bytes may claim a million, and a chip is read whole."""
