"""Reads the tables of a GPU from a trace of torch.profiler, which records with CUPTI as Nsight Systems does.

A trace is a list of events in the Trace Event Format (Kineto writes it): name, category, ts and dur in microseconds.
Categories: user_annotation (our ranges, 'batch 8'), cuda_runtime and cuda_driver (API calls), kernel, gpu_memcpy and
gpu_memset.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dxc.errors import HardwareError
from dxc.hardware.profiling.tables import gpu_rows

RANGE = "batch "
API = ("cuda_runtime", "cuda_driver")
TRANSFERS = ("gpu_memcpy", "gpu_memset")


def reduce_trace(path: Path, batch: int) -> list[tuple[Any, ...]]:
    """Rows of one batch size, as reduce_events() makes them.

    Args:
        path: the trace, .json.gz.
        batch: images in one execution.

    Raises:
        HardwareError: as reduce_events().
    """
    with gzip.open(path, "rb") as file:
        trace = json.load(file)
    return reduce_events(trace["traceEvents"], batch, str(path))


def reduce_events(
    events: list[Mapping[str, Any]], batch: int, place: str = "the trace"
) -> list[tuple[Any, ...]]:
    """Rows of one batch size, times as a mean over its executions: kernels by class, copies, API calls, wall time.

    API calls count that began inside of a range. All kernels and copies count, however late they ran, because nothing
    else used the GPU while it was recorded.

    Args:
        events: of the trace.
        batch: images in one execution. Each execution lies in a range 'batch N'.
        place: the trace, for messages.

    Raises:
        HardwareError: there is no such range, or no kernel.
    """
    whole = [event for event in events if event.get("ph") == "X"]
    ranges = [
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in whole
        if event.get("cat") == "user_annotation" and event["name"] == f"{RANGE}{batch}"
    ]
    if not ranges:
        raise HardwareError(f"{place} has no range '{RANGE}{batch}'")
    runs = len(ranges)

    def ms_by_name(*categories: str, inside: bool = False) -> dict[str, float]:
        found: dict[str, float] = {}
        for event in whole:
            if event.get("cat") not in categories:
                continue
            if not inside or any(start <= float(event["ts"]) < end for start, end in ranges):
                found[event["name"]] = found.get(event["name"], 0.0) + float(event["dur"]) / 1000 / runs
        return found

    kernels = ms_by_name("kernel")
    if not kernels:
        raise HardwareError(
            f"{place} has no kernels: torch.profiler cannot record this GPU; is another profiler at work, or the "
            "permission missing (developer.nvidia.com/ERR_NVGPUCTRPERM)?"
        )
    memory_ms = sum(ms_by_name(*TRANSFERS).values())
    rows = gpu_rows("torch", batch, kernels, memory_ms, ms_by_name(*API, inside=True))
    wall_ms = sum(end - start for start, end in ranges) / runs / 1000
    return [*rows, ("torch", batch, "latency", "batch", wall_ms, float("nan"))]
