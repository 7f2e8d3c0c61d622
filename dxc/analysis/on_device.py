"""What designs cost on their device, each measured there: the course's table 3, and the design for each prize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.analysis.analyze import runs_of_table, written
from dxc.analysis.choice import PRIZES, choose, prize_metrics
from dxc.analysis.condition import meets
from dxc.analysis.deployed import deployed
from dxc.analysis.questions import Questions
from dxc.errors import AnalysisError, first_line

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DeploymentTable:
    """Designs that were run on a device.

    Attributes:
        title: the studies.
        frame: see deployed().
        lines: notes, and the design for each prize.
    """

    title: str
    frame: pd.DataFrame
    lines: Sequence[str]


def deployment_table(asked: Questions) -> tuple[DeploymentTable, Path]:
    """Read the runs of some studies into a table, and write it; see DeploymentTable.

    Args:
        asked: `where` selects runs, `choose.where` the designs that may win a prize.

    Returns:
        The table, and the folder of its files.

    Raises:
        TrackingError: the store or the study does not exist.
        AnalysisError: no run was deployed.
    """
    from dxc.report.on_device import missing, write_deployment

    runs, title, notes = runs_of_table(asked)
    frame = deployed(runs)
    if frame.empty:
        raise AnalysisError(
            f"no run of {title}{f' with {asked.where}' if asked.where else ''} was run on a device; "
            f"python deploy.py study={asked.study[0]} hardware=... does it"
        )
    lines = [f"note:      {note}" for note in (*notes, *missing(frame))] + prizes(frame, asked.choose.where)
    folder = written(asked, title, lambda folder: write_deployment(frame, folder))
    return DeploymentTable(title, frame, lines), folder


def prizes(frame: pd.DataFrame, where: str | None) -> list[str]:
    """A line for each prize: the design that has it, or why there is none. Designs on several devices, with several
    numbers of threads, or with several meters, compete for none.

    Args:
        frame: of deployed().
        where: a condition; None for all designs.
    """
    from dxc.report.on_device import comparable

    lines = []
    for by in PRIZES:
        heading = f"{by}:".ljust(11)
        try:
            choice = choose(frame, {}, by=by, where=where)
        except AnalysisError as error:
            lines.append(heading + "none: " + first_line(error))
            continue
        meeting = frame[meets(frame, where)] if where else frame
        if comparable(meeting, prize_metrics(by, meeting)[0]):
            lines.append(f"{heading}{frame.loc[choice.design, 'name']}: {choice.rule}")
        else:
            lines.append(
                f"{heading}none, because these figures are of several devices, runtimes or meters; where= chooses some"
            )
    return lines
