"""Where a trial is, and how far it was trained."""

from __future__ import annotations

from dataclasses import dataclass

# Where a trial is. The last four are final.
PLANNED, RUNNING = "planned", "running"
FINISHED, FAILED, INFEASIBLE, STOPPED = "finished", "failed", "infeasible", "stopped"
"""stopped: trained in part and not worth more, by median stopping or by tuner=pareto."""


@dataclass(frozen=True)
class Rung:
    """A part of the protocol: the first `folds` folds, `epochs` epochs each."""

    folds: int
    epochs: int
