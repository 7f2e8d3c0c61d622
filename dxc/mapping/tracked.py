"""A map in MLflow: a run of kind map in the study of its network, and its metrics in the run of the design."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.analysis.runs import forget
from dxc.files import write_atomically
from dxc.geo.chips import disk_trouble
from dxc.hardware.spec import device_name
from dxc.mapping.settings import MapSettings
from dxc.metrics import is_declared, metric_of
from dxc.text import counted
from dxc.tracking.run import start_run
from dxc.tracking.store import Store

if TYPE_CHECKING:
    from dxc.mapping.run import MapReport


def track(settings: MapSettings, report: MapReport, threads: int, *, into_design: bool) -> None:
    """Write a run of kind map in the study of the network.

    Args:
        settings: of the map.
        report: of the map.
        threads: of ONNX Runtime.
        into_design: whether the metrics of the map become those of the design, too.

    Raises:
        DataError: the disk of temporary files is full.
        TrackingError: the store cannot be used.
    """
    metrics = {"seconds_per_km2": report.seconds_per_km2}
    numbers: dict[str, Any] = {
        "crossings": report.crossings,
        "km2": round(report.km2, 4),
        "windows": report.windows,
    }
    if report.judged is not None:
        metrics |= report.judged.metrics(settings.alarms_per_km2)
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    params = settings.model_dump(
        mode="json", exclude={"tracking", "progress", "log", "overwrite", "cache_dir"}
    )
    network = report.network
    of_what = {
        "dxc.mapped": report.mapped,
        "dxc.map_mode": report.mode,
        "dxc.map_fold": network.fold or "",
        "dxc.map_roads": report.roads,
    }
    tags = {
        "dxc.kind": "map",
        "dxc.mapped_by": network.identity,
        **of_what,
        "dxc.measured_on": _machine(settings.provider, threads),
    }
    if network.run_id is not None:
        tags["dxc.network_run"] = network.run_id
    assert network.study is not None  # the caller looks
    first = next(path for paths in (settings.dem, settings.photo) for path in paths or ())
    with ExitStack() as stack:
        with disk_trouble(Path(tempfile.gettempdir())):
            files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            shutil.copy(report.out, files)
            shutil.copy(report.raster, files)
            if report.evaluation is not None:
                shutil.copytree(report.evaluation.parent, files / "evaluation")
            write_atomically(
                files / "map.json", json.dumps({**params, **metrics, **numbers}, indent=1, default=str)
            )
        with start_run(
            settings.tracking.uri,
            study=network.study,
            name=f"map of {network.fold or first.stem}",
            params={
                **params,
                **numbers,
                "mode": report.mode,
                "stride_m": report.stride_m,
                "every_window": report.every_window,
            },
            tags=tags,
            artifacts=settings.tracking.artifacts,
        ) as run:
            run.log(metrics)
            run.log_files(files)
    if into_design and report.judged is not None and network.run_id is not None:
        record_in_design(settings, network.run_id, network.study, metrics, of_what)


def record_in_design(
    settings: MapSettings, run_id: str, study: str, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> None:
    """Write what a map found into the run of its design, where an analysis finds it. What another map found is gone
    from there.

    Args:
        settings: of the map.
        run_id: of the design.
        study: that the run belongs to.
        metrics: those of a map are written.
        tags: what they are of; see dxc.metrics.MAPPED.
    """
    uri = settings.tracking.uri
    store = Store(uri, study, patience_s=0, artifacts=settings.tracking.artifacts)
    found = {name: value for name, value in metrics.items() if _of_a_map(name)}
    gone = [
        name
        for name, value in store.get(run_id).metrics.items()
        if _of_a_map(name) and name not in found and math.isfinite(value)
    ]
    every = {**tags, "alarms_per_km2": f"{settings.alarms_per_km2:g}"}
    store.log_measured(run_id, found, every, gone=gone)
    forget(uri, study, cache_dir=Path(settings.cache_dir))


def _of_a_map(name: str) -> bool:
    return is_declared(name) and metric_of(name).origin == "mapped"


def _machine(provider: str, threads: int) -> str:
    """'Intel Xeon, 4 cores; onnxruntime 1.31.1, cpu, 4 threads'."""
    from onnxruntime import __version__

    device = device_name("cuda" if provider == "cuda" else "cpu")
    return f"{device}; onnxruntime {__version__}, {provider}, {counted(threads, 'thread')}"
