"""Rows of a profile, and the share of each class of operators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = ("source", "batch", "table", "name", "ms", "share")

# Operators of torch and ONNX Runtime, and kernels of cuDNN and cuBLAS. The first match in the name counts.
MEMORY = re.compile(
    r"nchwto|nhwcto|converttensor|reorder|memcpy|memset|copy_|::clone|contiguous|transpose", re.I
)
TRANSFER = re.compile(
    r"memcpy|memset", re.I
)  # torch.profiler's names for the work of a GPU outside of kernels
API = re.compile(r"cu(da)?[A-Z]")
CLASSES = (
    # a mean or maximum over the image is global pooling: aten::mean calls aten::sum, or on a GPU a kernel with MeanOps
    ("pooling", re.compile(r"pool|reduce_?mean|reduce_?max|aten::(mean|sum|amax)$|MeanOps", re.I)),
    ("conv", re.compile(r"conv|fprop|winograd|implicit_gemm|dgrad|wgrad|im2col|fft2d", re.I)),
    ("matmul", re.compile(r"gemm|gemv|addmm|matmul|aten::mm$|aten::bmm$|linear|cublas|nvjet|splitk", re.I)),
)


def operator_class(name: str) -> str:
    """'conv', 'matmul', 'pooling' or 'other', from the name of an operator or kernel."""
    if MEMORY.search(name):
        return "other"
    return next((kind for kind, pattern in CLASSES if pattern.search(name)), "other")


@dataclass(frozen=True)
class Profile:
    """A profile. mode: the profiler used, torch | nsight | none. note: the reason if it is not the requested one."""

    mode: str
    note: str
    batches: tuple[int, ...]
    table: pd.DataFrame
    files: tuple[Path, ...]

    def curves(self) -> list[tuple[str, float, int]]:
        """(name, value, batch size): shares by class and of API calls, memory time, time per image."""
        points = []
        for row in self.table.itertuples():
            name = {
                "operators": f"profile/{row.source}/share/{row.name}",
                "api": f"profile/{row.source}/api/{row.name}",
                "memory": f"profile/{row.source}/memory_ms",
                "latency": f"profile/{row.source}/ms_per_image",
            }[row.table]
            value = {"memory": row.ms, "latency": row.ms / row.batch}.get(row.table, row.share)
            points.append((name, float(value), int(row.batch)))
        return points


def share_rows(source: str, batch: int, ms_by_name: Mapping[str, float]) -> list[tuple[Any, ...]]:
    """Rows of the tables `operators` and `memory`.

    Args:
        source: the profiler.
        batch: images in one execution.
        ms_by_name: time by name of an operator or kernel.
    """
    total = sum(ms_by_name.values())
    by_class = dict.fromkeys([*(kind for kind, _ in CLASSES), "other"], 0.0)
    for name, ms in ms_by_name.items():
        by_class[operator_class(name)] += ms
    memory = sum(ms for name, ms in ms_by_name.items() if MEMORY.search(name))

    def share(ms: float) -> float:
        return ms / total if total else float("nan")

    rows: list[tuple[Any, ...]] = [
        (source, batch, "operators", kind, ms, share(ms)) for kind, ms in by_class.items()
    ]
    return [*rows, (source, batch, "memory", "all", memory, share(memory))]


def gpu_rows(
    source: str, batch: int, kernels: Mapping[str, float], memory_ms: float, api: Mapping[str, float]
) -> list[tuple[Any, ...]]:
    """Rows of a GPU's tables: kernel times by class, copies and memsets, and API calls.

    Args:
        source: the profiler.
        batch: images in one execution.
        kernels: ms by name of a kernel.
        memory_ms: time of copies and memsets.
        api: ms by name of an API call.
    """
    rows = [row for row in share_rows(source, batch, kernels) if row[2] == "operators"]
    busy, spent = sum(kernels.values()) + memory_ms, sum(api.values()) or float("nan")
    rows.append((source, batch, "memory", "all", memory_ms, memory_ms / (busy or float("nan"))))
    return rows + [(source, batch, "api", name, ms, ms / spent) for name, ms in api.items()]
