"""Prints results as tables in the terminal."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.masking import masked
from dxc.metrics import METRICS, STATED, Metric, label_of, metric_of, title_of
from dxc.report.terminal import PIPE_COLUMNS, Column, new_console, print_table, print_text
from dxc.text import counted
from dxc.tracking.view import view_address

if TYPE_CHECKING:
    import pandas as pd

    from dxc.pipeline.result import Result


def print_result(result: Result) -> None:
    """Print the metrics with unit and meaning, the folds, and where to look next."""
    rows: list[tuple[str, float, Metric, str]] = []  # title, value, row, key
    for name, declared in METRICS.items():
        if name in result.metrics:
            rows.append((declared.title, result.metrics[name], declared, name))
        parts = [metric for metric in result.metrics if metric.startswith(f"{name}/")]
        for metric in parts if len(parts) > 1 else ():  # one is the mean itself
            rows.append((f"  {metric.removeprefix(f'{name}/')}", result.metrics[metric], declared, ""))
    columns = [
        Column("metric", [title for title, *_ in rows], words=True),
        Column("value", [format(value, declared.format) for _, value, declared, _ in rows]),
        Column("unit", [declared.symbol for _, _, declared, _ in rows], words=True),
        Column("origin", [declared.origin for _, _, declared, _ in rows], words=True),
        Column("what it is", [declared.meaning if key else "" for *_, declared, key in rows], words=True),
    ]
    console = new_console()
    if console.width >= PIPE_COLUMNS:
        columns.insert(4, Column("key", [key for *_, key in rows], words=True))
    print_table(console, columns, title=result.name)
    folds = ", ".join(f"{name} {score:.4f}" for name, score in result.fold_scores.items())
    heading = f"{title_of(result.score)} by {'fold' if len(result.fold_scores) > 1 else 'split'}:"
    for line in (
        f"{heading:<17} {folds}",
        f"trained on:       {result.source}",
        *([f"predicted for:    {result.predicted_for}"] if result.predicted_for else []),
        *([f"measured on:      {result.measured_on}"] if result.measured_on else []),
        *(f"note:             {note}" for note in result.notes),
        *(
            [f"left out: {counted(result.excluded, 'file')}, listed in excluded_chips.csv"]
            if result.excluded
            else []
        ),
        f"network:          {os.path.relpath(result.onnx)}",
        f"tracked:          run {result.run_id} of study '{result.study}' in {masked(result.tracking_uri)}",
        f"compare:          {where_to_compare(result.tracking_uri, result.experiment_id)}",
    ):
        print_text(console, line)


def where_to_compare(uri: str, experiment_id: str) -> str:
    """The address of a study's designs in MLflow's UI, and how to start that where no server runs.

    Args:
        uri: address of the store.
        experiment_id: the experiment of the study.
    """
    address = view_address(uri, experiment_id)
    return address if uri.startswith("http") else f"{address} (after make ui)"


def origin_lines(
    objectives: Mapping[str, Metric],
    named: Mapping[str, Mapping[str, int]],
    *,
    listed: int = 6,
    width: int = 300,
) -> list[str]:
    """One line per origin: 'trained:   accuracy on 1,200 synthetic chips (seed 0)', 'predicted: latency for NAME'.

    Several names are listed with their numbers of runs.

    Args:
        objectives: the metrics that are shown.
        named: see dxc.metrics.named_origins. Names come from a store: long ones are cut.
        listed: at most so many names of an origin are listed.
        width: of a name, in characters.
    """
    lines = []
    for origin, counts in named.items():
        metrics = [
            title_of(name).removeprefix(f"{origin} ")
            for name, each in objectives.items()
            if each.origin == origin
        ]
        what = {"trained": "chips", "mapped": "an area"}.get(origin, "a machine")
        names = []
        for name, runs in list(counts.items())[:listed]:
            said = name if len(name) <= width else f"{name[: width - 1]}…"
            said = said or f"{what} that no tag names"
            names.append(said if len(counts) == 1 else f"{said} ({counted(runs, 'run')})")
        if len(counts) > listed:
            names.append(f"{len(counts) - listed} others")
        word = "for" if origin == "predicted" else "on"
        lines.append(f"{origin + ':':<10} {', '.join(metrics)} {word} {' | '.join(names)}")
    return lines


def print_package(folder: Path) -> None:
    """Print what a calibrated package describes, its held-out errors, what it is good enough for, and how to use it."""
    from dxc.hardware.calibrate.calibrate import verdict

    about = json.loads((folder / "package.json").read_text())
    errors = [
        ("all networks" if title == "all" else f"{title.rstrip('s')} {name}", error)
        for title, of in about["held_out"].items()
        for name, error in of.items()
    ]
    shares = {"within 5 %": "within_5_percent", "within 10 %": "within_10_percent", "mean error": "mape"}
    console = new_console()
    print_table(
        console,
        [
            Column("what", [what for what, _ in errors], words=True),
            Column("held out", [error["n"] for _, error in errors]),
            *(
                Column(heading, [f"{error[key]:.1%}" for _, error in errors])
                for heading, key in shares.items()
            ),
        ],
        title=f"{folder.name}: errors on networks and kernels held out of the fit",
    )
    for line in (
        f"describes: {about['device']}; {about['runtime']} {about['runtime_version']}, "
        f"{counted(about['threads'], 'thread')}",
        f"made from: {counted(about['networks'], 'network')} in {about['minutes_measuring']} min, fitted in "
        f"{about['minutes_fitting']} min ({about['networks_too_noisy']} too noisy to use)",
        f"verdict:   {verdict(about)}",
        f"package:   {os.path.relpath(folder)}",
        f"next:      python train.py hardware.predictors=[{folder.name}]",
    ):
        print_text(console, line)


def print_comparison(
    table: pd.DataFrame,
    notes: Sequence[str],
    *,
    batches: pd.DataFrame | None = None,
    profile: pd.DataFrame | None = None,
    published: pd.DataFrame | None = None,
) -> None:
    """Print what files cost (dxc.hardware.costs.compare).

    Args:
        table: predicted against measured, a row a file.
        notes: lines below the tables.
        batches: measured latency, a row a file and batch size.
        profile: where the time goes, a row a file, profiler and batch size.
        published: shares to show beside the profile: batch, and columns as in `profile`.
    """
    names = _file_names(list(table["file"]))
    table, batches, profile = (
        frame if frame is None or frame.empty else frame.assign(file=frame["file"].map(names))
        for frame in (table, batches, profile)
    )
    rows = table.to_dict("records")
    headings = _comparison_headings(list(table))
    columns = [Column("file", [row["file"] for row in rows], words=True)]
    for name, heading in headings.items():
        if name in table:
            cells = [
                "-" if row[name] != row[name] else _compared(name, row[name]) for row in rows
            ]  # NaN is missing
            columns.append(Column(heading, cells, words=name == "measured"))
    console = new_console()
    print_table(console, columns)
    if batches is not None and not batches.empty:
        print_table(console, _batch_columns(batches), title="measured latency by batch size")
    if profile is not None and not profile.empty:
        _print_profile(console, profile, published)
    for note in notes:
        print_text(console, f"note: {note}")


def _file_names(paths: Sequence[str]) -> dict[str, str]:
    """The name of each file, or its path where two files have one name."""
    names = {path: Path(path).name for path in paths}
    counts = Counter(names.values())
    return {path: name if counts[name] == 1 else path for path, name in names.items()}


def _number(value: Any, written: str = ".3f") -> str:
    return "-" if value != value else format(value, written)


def _percent(value: Any) -> str:
    return "-" if value != value else f"{100 * value:.1f}"


def _batch_columns(batches: pd.DataFrame) -> list[Column]:
    measured = [
        "optimum" if best else said
        for best, said in zip(batches["optimum"], batches["measured"], strict=True)
    ]
    return [
        Column("file", list(batches["file"]), words=True),
        Column("batch", list(batches["batch"])),
        Column("a batch (ms)", [_number(ms) for ms in batches["batch_ms"]]),
        Column("an image (ms)", [_number(ms, ".4f") for ms in batches["ms_per_image"]]),
        Column("measurement", measured, words=True),
    ]


CALLS_SHOWN = 5
"""API calls with a column of their own; the others are summed up."""


def _print_profile(console: Any, profile: pd.DataFrame, published: pd.DataFrame | None) -> None:
    """Share of operator or kernel time by class with memory operations, and on a GPU the share of API calls."""
    first = [
        Column("file", list(profile["file"]), words=True),
        Column("profiler", list(profile["source"]), words=True),
        Column("batch", list(profile["batch"])),
    ]
    times = ("ms", "ms_per_image", "memory_ms", "memory_share")
    calls = [name for name in profile if name.startswith("api/")]
    kinds = [name for name in profile if name not in ("file", "source", "batch", *times, *calls)]
    columns = [*first, Column("a batch (ms)", [_number(ms) for ms in profile["ms"]])]
    columns += [Column(f"{kind} (%)", [_percent(share) for share in profile[kind]]) for kind in kinds]
    columns.append(Column("memory (ms)", [_number(ms) for ms in profile["memory_ms"]], detail=True))
    columns.append(Column("memory (%)", [_percent(share) for share in profile["memory_share"]], detail=True))
    if published is not None:
        by_batch = published.set_index("batch")
        for kind in by_batch:
            shares = by_batch[kind].reindex(profile["batch"])
            columns.append(Column(f"published: {kind} (%)", [_percent(share) for share in shares]))
    title = "share of operator or kernel time by class; memory: copies, and on a processor changes of layout"
    print_table(console, columns, title=title)
    if published is not None:
        source = "original SPP-Net on an NVIDIA RTX A5500, by Nsight Systems (doi 10.1145/3624062.3624260)"
        print_text(console, f"published: {source}")
    if calls:
        shown = [
            Column(f"{each.removeprefix('api/')} (%)", [_percent(s) for s in profile[each]]) for each in calls
        ]
        if len(calls) > CALLS_SHOWN:
            rest = profile[calls[CALLS_SHOWN:]].sum(axis=1, min_count=1)
            shown = [*shown[:CALLS_SHOWN], Column("other calls (%)", [_percent(share) for share in rest])]
        print_table(console, [*first, *shown], title="share of the time of all CUDA API calls")


def _comparison_headings(columns: Sequence[str]) -> dict[str, str]:
    """Column -> heading, in order: what is predicted, what is measured, what is counted."""
    headings: dict[str, str] = {}
    for origin in (*STATED, "counted"):
        for name, metric in METRICS.items():
            if metric.origin != origin or not metric.in_comparison:
                continue
            headings[name] = label_of(name, metric)
            parts = [column for column in columns if column.startswith(f"{name}/")]
            for part in parts if len(parts) > 1 else ():  # one is the mean itself
                headings[part] = label_of(part, metric)
            if name == "measured_latency_ms":
                headings |= {"error": "error", "measured": "measurement"}
    return headings


def _compared(name: str, value: Any) -> str:
    if name == "error":
        return f"{value:+.1%}"
    return value if name == "measured" else metric_of(name).brief(value)
