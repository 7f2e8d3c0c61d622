"""States of a trial, and rungs of training."""

from __future__ import annotations

from dataclasses import dataclass

# Where a trial is. The last four are final.
PLANNED, RUNNING = "planned", "running"
FINISHED, FAILED, INFEASIBLE, STOPPED = "finished", "failed", "infeasible", "stopped"
"""stopped: trained in part, then stopped by median stopping or by tuner=pareto."""


@dataclass(frozen=True)
class Rung:
    """Partial training: the first `folds` folds for `epochs` epochs each."""

    folds: int
    epochs: int
