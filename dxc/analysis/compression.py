"""What compression costs and gains: a row for each fraction, number of epochs and kind of quantisation.

The course's tables 1 and 2: networks pruned by 5 to 90 %, fine-tuned for 0, 3 and 5 epochs, in float32 and quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.analysis.analyze import machines_of, runs_of_table, written
from dxc.analysis.designs import require_comparable
from dxc.analysis.questions import Questions
from dxc.analysis.verdicts import is_invalid, of_repeats
from dxc.config.names import compression_names
from dxc.errors import AnalysisError
from dxc.metrics import METRICS, VERDICTS

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (
    "accuracy", "accuracy_drop", "device_accuracy", "onnx_mb", "params", "macs", "latency_ms", "measured_latency_ms",
    "peak_memory_mb", "max_power_w", "energy_mj", "net_energy_mj", "fom",
)  # fmt: skip
"""Metrics of the table, in its order; those that no run has are left out."""
EVEN_INVALID = ("measured_latency_ms", "energy_mj")
"""Of these, metrics that are shown where all that was measured does not count, so that the table says so."""
KINDS = ("none", "dynamic", "static")


@dataclass(frozen=True)
class CompressionTable:
    """Designs by how they are compressed.

    Attributes:
        title: the studies.
        frame: one row a design: network, fraction, align, steps, finetune_epochs (missing where nothing was pruned),
            quantise, n (runs), each of `metrics` as its mean over the repeats whose value counts, spread.accuracy, over
            repeats or over the folds of one run, and the tags VERDICTS that runs have.
        metrics: in their order.
        lines: notes, and where the figures are from.
    """

    title: str
    frame: pd.DataFrame
    metrics: Sequence[str]
    lines: Sequence[str]


def compression_table(asked: Questions) -> tuple[CompressionTable, Path]:
    """Read the runs of some studies into a table, and write it; see CompressionTable.

    Args:
        asked: `where` selects runs, `mix` names tags in which they may differ.

    Returns:
        The table, and the folder of its files.

    Raises:
        TrackingError: the store or the study does not exist.
        AnalysisError: no run is left, or the runs cannot be compared.
    """
    from dxc.report.compression import write_compression
    from dxc.report.console import origin_lines

    runs, title, notes = runs_of_table(asked)
    if runs.empty:
        raise AnalysisError(f"where={asked.where} leaves no finished run")
    metrics = shown(runs)
    for name in metrics:
        require_comparable(runs, {name: METRICS[name]}, asked.mix)
    rows = {name: METRICS[name] for name in metrics}
    origins = origin_lines(rows, machines_of(runs, rows))
    lines = [*(f"note:      {note}" for note in notes), *origins]
    table = CompressionTable(title, compressed(runs, metrics), metrics, lines)
    folder = written(
        asked, title, lambda folder: write_compression(table.frame, metrics, folder, note="; ".join(origins))
    )
    return table, folder


def shown(runs: pd.DataFrame) -> list[str]:
    """The metrics of the table of some runs.

    Args:
        runs: finished runs.
    """

    def is_shown(name: str) -> bool:
        known = name in runs and bool(runs[name].notna().any())
        return known or (name in EVEN_INVALID and bool(is_invalid(runs, name).any()))

    return [name for name in SHOWN if name in METRICS and is_shown(name)]


def compressed(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """CompressionTable.frame of runs.

    Args:
        runs: finished runs, with their params as texts.
        metrics: of them; one that no run has is a column without values.
    """
    import numpy as np
    import pandas as pd

    def number(key: str, missing: float) -> pd.Series:
        if key not in runs:
            return pd.Series(missing, runs.index)
        return pd.to_numeric(runs[key], errors="coerce").fillna(missing)

    fraction, epochs = number("compress.fraction", 0), number("compress.finetune_epochs", 0)
    verdicts = [tag for tag in VERDICTS if tag in runs]
    # runs of other designs do not say what means nothing in theirs; params are categorical
    kinds = runs["compress.quantise"].astype(object).fillna("none") if "compress.quantise" in runs else "none"
    frame = pd.DataFrame(
        {
            "network": [_network(run) for run in runs.to_dict("records")],
            "fraction": fraction,
            "align": number("compress.align", 1).where(fraction > 0, 1),
            "steps": number("compress.steps", 1).where((fraction > 0) & (epochs > 0), 1),
            "finetune_epochs": epochs.where(fraction > 0, np.nan),
            "quantise": pd.Series(kinds, runs.index).astype(str),
            "design": runs["dxc.design"].fillna(runs["run_id"]) if "dxc.design" in runs else runs["run_id"],
            **{name: number(name, np.nan).mask(is_invalid(runs, name)) for name in metrics},
            **{tag: runs[tag].astype(object) for tag in verdicts},
        }
    )
    within = runs["accuracy_std"].astype(float) if "accuracy_std" in runs else np.nan
    frame["spread.accuracy"] = within
    keys = ["network", "fraction", "align", "steps", "finetune_epochs", "quantise", "design"]
    groups = frame.groupby(keys, dropna=False, sort=False)
    found = groups[[*metrics, "spread.accuracy"]].mean()
    found.insert(0, "n", groups.size())
    if verdicts:
        found = found.join(groups[verdicts].agg(of_repeats))
    if "accuracy" in metrics:
        repeated = found["n"] > 1
        found["spread.accuracy"] = found["spread.accuracy"].where(~repeated, groups["accuracy"].std(ddof=1))
    found = found.reset_index().drop(columns="design")
    order = found["quantise"].map(lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    return (
        found.assign(order=order)
        .sort_values(
            ["network", "order", "fraction", "align", "steps", "finetune_epochs"],
            kind="stable",
            na_position="first",
        )
        .drop(columns="order")
        .reset_index(drop=True)
    )


def _network(run: dict[str, object]) -> str:
    """The name of a run without what it says of compression."""
    keys = ("fraction", "align", "steps", "finetune_epochs", "quantise")
    given = {key: run.get(f"compress.{key}") for key in keys}
    compress = {
        key: _plain(value) for key, value in given.items() if not (value is None or value != value)
    }  # NaN: missing
    name = str(run["name"])
    try:
        said = ", ".join(compression_names(compress))
    except (TypeError, ValueError):  # a stranger's run
        return name
    return name.removesuffix(f", {said}") if said else name


def _plain(value: object) -> object:
    """A param as the configuration had it."""
    try:
        number = float(str(value))
    except ValueError:
        return value
    return int(number) if number.is_integer() else number
