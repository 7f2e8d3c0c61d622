"""Runs -> designs on their device: what was measured there, of one device and one meter a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dxc.analysis.verdicts import is_invalid, of_repeats
from dxc.metrics import ENERGY_METER, INVALID_RUNS, VERDICTS, why_invalid

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (
    "device_accuracy", "measured_latency_ms", "energy_mj", "net_energy_mj", "max_power_w", "peak_memory_mb", "fom",
)  # fmt: skip
"""Metrics of the table, in its order. One that no run has is a column of missing values: that too is an answer."""
PROVED = "dxc.deployed"
ONE_THING = ("dxc.design", "dxc.data", "dxc.measured_on", ENERGY_METER)
"""Repeats are equal in these: what was measured on two devices, or with two meters, is two rows."""


def deployed(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each design on a device, the largest figure of merit first, then the most accurate.

    Columns: name, device, runtime, meter, n (runs), run_id (of the newest), runs, SHOWN as means over the repeats whose
    value counts, missing where there is none, the tags VERDICTS, which say why, and for each of these TAG.invalid, the
    number of repeats that are invalid.

    Args:
        runs: finished runs. Those that no device has proved are left out.
    """
    import numpy as np
    import pandas as pd

    proved = np.zeros(len(runs), dtype=bool)
    for mark in ("device_accuracy", PROVED):  # images without labels give no accuracy
        if mark in runs:
            proved |= (runs[mark].notna() & (runs[mark].astype(object) != "")).to_numpy(dtype=bool)
    if not proved.any():
        counts = [INVALID_RUNS.format(tag) for tag in VERDICTS]
        described = ["name", "device", "runtime", "meter", "n", "run_id", "runs"]
        return pd.DataFrame(columns=[*described, *SHOWN, *VERDICTS, *counts])
    runs = runs[proved]

    def said(tag: str, missing: str | pd.Series = "") -> pd.Series:
        if tag not in runs:
            return pd.Series(missing, runs.index, dtype=object)
        column = runs[tag].astype(object)
        return column.where(column.notna(), missing)

    # 'Cortex-A53, 4 cores; onnxruntime 1.16.3, cpu, 4 threads': see dxc.hardware.costs.describe_conditions
    places = [str(each).partition("; ") for each in said("dxc.measured_on")]
    frame = pd.DataFrame(
        {
            "name": runs["name"].astype(str),
            "device": [device for device, _, _ in places],
            "runtime": [runtime or "-" for _, _, runtime in places],
            "meter": said(ENERGY_METER).map(str).to_numpy(),
            "run_id": runs["run_id"].astype(str),
            **{
                name: runs[name].astype(float).mask(is_invalid(runs, name)) if name in runs else np.nan
                for name in SHOWN
            },
            **{tag: said(tag).map(str) for tag in VERDICTS},
            **{INVALID_RUNS.format(tag): said(tag).map(why_invalid).ne("") for tag in VERDICTS},
        }
    )
    keys = [
        said(tag, runs["run_id"].astype(object) if tag in ONE_THING[:2] else "").map(str) for tag in ONE_THING
    ]
    groups = frame.groupby(keys, sort=False)
    found = groups[["name", "device", "runtime", "meter", "run_id"]].last()
    found.insert(4, "n", groups.size())
    found["runs"] = groups["run_id"].agg(list)
    verdicts = groups[list(VERDICTS)].agg(of_repeats)
    invalid = groups[[INVALID_RUNS.format(tag) for tag in VERDICTS]].sum()
    return (
        found.join(groups[list(SHOWN)].mean())
        .join(verdicts)
        .join(invalid)
        .sort_values(["fom", "device_accuracy"], ascending=False, kind="stable", na_position="last")
        .reset_index(drop=True)
    )
