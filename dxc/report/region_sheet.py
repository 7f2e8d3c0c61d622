"""The sheet of chips that prepare.py leaves with a region: a first look at what was cut. Free of torch."""

from __future__ import annotations

from pathlib import Path

from dxc.data.bands import fitting_channels
from dxc.data.cache import Recipe
from dxc.data.sample import sample_of_folder
from dxc.errors import DataError
from dxc.geo.record import OVERVIEWS, Record
from dxc.report.chip_sheet import draw_chip_sheet
from dxc.report.run_figures import CHIPS_SHOWN, drawn_or_noted


def sheet_line(folder: Path, *, redraw: bool) -> str:
    """Draw some chips of a region, unless its sheet is there; where it lies, or why there is none.

    A sheet that cannot be drawn costs no chips, whatever the reason.

    Args:
        folder: of the region, OUT/REGION, complete.
        redraw: whether a sheet that is there is drawn again.
    """
    sheet = folder / OVERVIEWS[0]
    notes = [] if sheet.is_file() and not redraw else drawn_or_noted("chips", lambda: _draw(sheet))
    return notes[0] if notes else f"sheet of chips: {sheet}"


def _draw(sheet: Path) -> None:
    folder = sheet.parent
    record = Record.read(folder)
    if record is None:
        raise DataError(f"{folder} has no record of its chips")
    photo = tuple(
        band for band in record.bands if band != "dem"
    )  # none, with elevation alone: no channel needs any
    recipe = Recipe(
        channels=fitting_channels(record.bands),
        size=record.size_m,
        photo_bands=photo,
        boxes=bool(record.boxes),
    )
    chips = sample_of_folder(folder.parent, recipe, CHIPS_SHOWN, region=record.region)
    draw_chip_sheet(chips, folder, stem=sheet.stem, source=f"chips of {record.region}")
