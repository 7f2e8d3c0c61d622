"""ONNX Runtime sessions on the CPU, and the files of its node profiler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TRUNCATED_MS = 0.0005
"""The profiler truncates durations to microseconds, so half of one is lost on average."""


class NodeTimes(NamedTuple):
    """One node of the optimised graph: its name, operator, and time of each run in ms."""

    name: str
    op: str
    ms: NDArray[np.float64]


def session(model: bytes | str, threads: int, *, profile: str | None = None) -> Any:
    """Open an InferenceSession on the CPU.

    Args:
        model: bytes or path of the file.
        threads: number of threads for one operator.
        profile: beginning of a file's name; each node is recorded in this file. None: nothing is recorded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def node_times(profile: Path, runs: int) -> list[NodeTimes]:
    """Times of the nodes in order of execution.

    Args:
        profile: file of the profiler.
        runs: number of runs in it.
    """
    events = json.loads(profile.read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    count = len(nodes) // runs
    ms = np.array([event["dur"] / 1000 for event in nodes]).reshape(runs, count) + TRUNCATED_MS
    return [
        NodeTimes(event["name"].removesuffix("_kernel_time"), event["args"]["op_name"], ms[:, number])
        for number, event in enumerate(nodes[:count])
    ]
