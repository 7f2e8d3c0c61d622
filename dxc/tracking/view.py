"""Saves a view of a study in MLflow's UI."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from dxc.masking import for_link
from dxc.metrics import METRICS

UI = "http://127.0.0.1:5000"  # where `make ui` serves a store that is not a server
VIEW = "designs"  # name and key of the saved view of a study's runs
DATASET = "attributes.Dataset"
"""The column of MLflow's runs table that names what a run was trained on."""
SETTINGS = (
    *(f"tags.{name}" for name in ("dxc.rank", "dxc.front", "data")),
    *(f"params.model.{knob}" for knob in ("kernel", "stride", "padding", "pool", "width")),
    "params.data.batch_size",
)
"""The tags and params in the saved view of a new study. Its metrics are those with Metric.in_view."""


def view_columns() -> list[str]:
    """The columns of a new study's saved view: what runs were trained on, metrics, settings."""
    return [DATASET, *(f"metrics.{name}" for name, metric in METRICS.items() if metric.in_view), *SETTINGS]


def view_address(uri: str, experiment_id: str) -> str:
    """The address at which MLflow's UI compares the designs of a study, on the store's server or on that of `make ui`.

    The plain address of an experiment would open MLflow 3.17's pages for language models.

    Args:
        uri: address of the store.
        experiment_id: the experiment of the study.
    """
    server = for_link(uri) if uri.startswith("http") else UI
    return f"{server}/{view_link(experiment_id)}"


def view_link(experiment_id: str) -> str:
    """The same address without the server, for links on MLflow's own pages."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def view_tag(
    columns: Sequence[str] | None = None, order_by: str | None = None, *, ascending: bool = False
) -> dict[str, str]:
    """The tag of an experiment that holds a saved view of its finished designs.

    It is the tag that `Save as new view` in the UI writes since MLflow 3.15. mlflow/demo/generators/saved_views.py
    writes one for traces.

    Args:
        columns: in their order; None: view_columns().
        order_by: the column that runs are sorted by; None: the first metric.
        ascending: whether the smallest value comes first.
    """
    columns = view_columns() if columns is None else columns
    order_by = order_by or next(column for column in columns if column.startswith("metrics."))

    def quoted(column: str) -> str:
        kind, _, name = column.partition(".")
        return f"{kind}.`{name}`"

    run = "attributes.`Run Name`"
    widths = {quoted(column): max(100, 8 * len(column.partition(".")[2])) for column in columns}
    if DATASET in columns:
        widths[quoted(DATASET)] = 200
    state = {
        # leaves out the runs of searches and analyses, and trials that were stopped or not begun
        "searchFilter": "tags.`dxc.design` LIKE '%' and tags.`dxc.state` = 'finished'",
        "orderByKey": quoted(order_by),
        "orderByAsc": ascending,
        "selectedColumns": list(widths),
        "columnOrder": [run, *widths],
        "columnWidths": {run: 250, **widths},
        **_charts(columns, order_by),
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now_ms = int(time.time() * 1000)
    view = {"name": VIEW, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}


def _charts(columns: Sequence[str], order_by: str) -> dict[str, Any]:
    """The first charts of the view: the metric that runs are sorted by against each cost, then the metrics as bars."""
    best = order_by.removeprefix("metrics.")
    names = [column.removeprefix("metrics.") for column in columns if column.startswith("metrics.")]
    costs = [
        name
        for name in names
        if name != best and not (name in METRICS and METRICS[name].origin in ("trained", "mapped"))
    ]
    if best == order_by or not costs:
        return {}
    first, own = "designs", "Model metrics"  # `own` is MLflow's name of its section
    against = [
        {"type": "SCATTER", "isGenerated": False, "metricSectionId": first, "runsCountToCompare": 100}
        | {"uuid": f"{best}-{cost}", "xaxis": {"key": cost, "type": "METRIC"}}
        | {"yaxis": {"key": best, "type": "METRIC"}}
        for cost in costs
    ]
    bars = [  # MLflow adds the other metrics after these, and curves last
        {"type": "BAR", "isGenerated": True, "metricSectionId": own, "runsCountToCompare": 100}
        | {"uuid": name, "metricKey": name, "displayName": name}
        for name in names
    ]
    charts = [{"deleted": False, **chart} for chart in (*against, *bars)]
    named = {first: f"{best} against costs", own: own}
    sections = [
        {
            "uuid": each,
            "name": name,
            "display": True,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
        }
        for each, name in named.items()
    ]
    return {"compareRunCharts": charts, "compareRunSections": sections, "isAccordionReordered": True}
