"""A look at the chips before anything is trained: `python train.py preview=true`."""

from __future__ import annotations

from pathlib import Path

from dxc.config.plan import Plan
from dxc.pipeline.chain import FIGURES
from dxc.report.chip_sheet import draw_chip_sheet
from dxc.report.run_figures import CHIPS_SHOWN


def preview(plan: Plan, out: Path) -> Path:
    """Write a sheet of some chips as a run would read them, and return its path. Nothing is trained or tracked.

    Chips that cannot be split into folds yet are shown too: the sheet may tell why.

    Args:
        plan: its source and data are read.
        out: a folder for the run's files.

    Raises:
        DxcError: for everything that a user can mend.
    """
    datamodule = plan.data.build(source=plan.source.build())
    return draw_chip_sheet(datamodule.sample(CHIPS_SHOWN), out / FIGURES, source=datamodule.source.noun)
