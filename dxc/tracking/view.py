"""Saves a view of a study in MLflow's UI."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Sequence

from dxc.masking import for_link
from dxc.metrics import METRICS

UI = "http://127.0.0.1:5000"  # where `make ui` serves a store that is no server
VIEW = "designs"  # name and key of the saved view of a study's runs
SETTINGS = (
    *(f"tags.{name}" for name in ("dxc.rank", "dxc.front", "data")),
    *(f"params.model.{knob}" for knob in ("kernel", "stride", "padding", "pool", "width")),
    "params.data.batch_size",
)
"""The tags and params of a new study's saved view, beside metrics (Metric.in_view)."""


def view_columns() -> list[str]:
    """The columns of a new study's saved view: metrics, then settings."""
    return [*(f"metrics.{name}" for name, metric in METRICS.items() if metric.in_view), *SETTINGS]


def view_address(uri: str, experiment_id: str) -> str:
    """The address at which MLflow's UI compares the designs of a study: on the server, or on the one of `make ui`.

    The plain address of an experiment opens the language model pages of MLflow 3.17.
    """
    server = for_link(uri) if uri.startswith("http") else UI
    return (
        f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
    )


def view_tag(
    columns: Sequence[str] | None = None, order_by: str | None = None, *, ascending: bool = False
) -> dict[str, str]:
    """The tag of an experiment that holds a saved view of its finished designs, as the UI's `Save as new view` writes
    it since MLflow 3.15 (mlflow/demo/generators/saved_views.py does it for traces).

    Args:
        columns: in their order; None: view_columns().
        order_by: the column that runs are sorted by; None: the first one.
        ascending: the least value first.
    """
    columns = view_columns() if columns is None else columns
    order_by = order_by or columns[0]

    def quoted(column: str) -> str:
        kind, _, name = column.partition(".")
        return f"{kind}.`{name}`"

    run = "attributes.`Run Name`"
    widths = {
        quoted(column): max(100, 8 * len(column.partition(".")[2])) for column in columns
    }  # of their names
    state = {
        # not the run of a search, nor an analysis
        "searchFilter": "tags.`dxc.design` LIKE '%' and attributes.status = 'FINISHED'",
        "orderByKey": quoted(order_by),
        "orderByAsc": ascending,
        "selectedColumns": list(widths),
        "columnOrder": [run, *widths],
        "columnWidths": {run: 300, **widths},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now_ms = int(time.time() * 1000)
    view = {"name": VIEW, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}
