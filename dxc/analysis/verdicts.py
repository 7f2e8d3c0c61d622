"""Whether what was measured counts, as the tags of runs say it (dxc.metrics.Metric.verdicts)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dxc.metrics import INVALID, METRICS, VALID, why_invalid

if TYPE_CHECKING:
    import pandas as pd


def is_invalid(runs: pd.DataFrame, name: str) -> np.ndarray:
    """Whether a metric was measured and does not count, bool (n,).

    Args:
        runs: one row a run or a design, with the tags as columns. A tag that is not there says nothing.
        name: of the metric.
    """
    found = np.zeros(len(runs), dtype=bool)
    for tag in METRICS[name].verdicts if name in METRICS else ():
        if tag in runs:
            found |= runs[tag].astype(object).map(why_invalid).ne("").to_numpy(dtype=bool)
    return found


def of_repeats(said: pd.Series) -> str:
    """One verdict for the repeats of a design: a repeat that counts is enough, and of those that do not, the newest
    says why.

    Args:
        said: a tag of Metric.verdicts of each repeat, oldest first.
    """
    texts = [each for each in said if isinstance(each, str) and each]
    if VALID in texts:
        return VALID
    invalid = [each for each in texts if each.startswith(INVALID)]
    return (invalid or texts or [""])[-1]
