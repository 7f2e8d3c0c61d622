"""The interface of a source of chips. Free of torch, so that the processes that make chips start quickly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """A source of chips. conf/source/*.yaml name its subclasses; a section `source` can build only these."""

    on_bad_chip: str
    photo_bands: Sequence[str]
    check_georeference: bool

    @property
    def noun(self) -> str:
        """What the chips are, without their number: 'synthetic chips', 'chips of FOLDER'."""

    @property
    def title(self) -> str:
        """What the chips are, for people: '1,200 synthetic chips (seed 0)', 'chips of FOLDER'."""

    def check(self) -> None:
        """Look whether there are chips, without reading one. Raises DataError where there are none."""

    def prepare(self) -> Path:
        """Make the chips if needed. Returns the folder that holds the regions."""

    def planned(self) -> tuple[Sequence[int], Sequence[str]] | None:
        """Label and region of each chip, in (region, name) order, where they are known before there are chips."""
        return None
