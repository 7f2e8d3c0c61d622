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

# Operators of torch and ONNX Runtime, and kernels of cuDNN, cuBLAS, CUTLASS, torch and Triton. The first match in the
# name counts.
MEMORY = re.compile(
    r"nchwto|nhwcto|converttensor|reorder|memcpy|memset|copy_|::clone|contiguous|transpose|CatArrayBatchedCopy",
    re.I,
)
CLASSES = (
    # a mean or maximum over the image is global pooling: aten::mean calls aten::sum, or on a GPU a kernel with MeanOps
    (
        "pooling",
        re.compile(r"pool|reduce_?mean|reduce_?max|aten::(mean|sum|amax)$|MeanOps|MaxNanFunctor", re.I),
    ),
    # Triton's pointwise kernels are named after all that they fuse: the bias of a convolution is one
    ("elementwise", re.compile(r"triton_poi_")),
    (
        "conv",
        # offsets and tiles are computed for a convolution; in a name of CUTLASS it is fprop, gemm in others
        re.compile(
            r"conv(?!ert)|fprop|winograd|implicit_gemm|dgrad|wgrad|im2col|fft2d|computeOffsetsKernel", re.I
        ),
    ),
    (
        "matmul",
        re.compile(
            r"gemm|gemv|addmm|matmul|aten::mm$|aten::bmm$|linear|cublas|nvjet|splitk|dot_kernel|triton_\w*_mm",
            re.I,
        ),
    ),
    (
        "normalisation",
        re.compile(r"batch_?norm|layer_?norm|group_?norm|instance_?norm|bn_fw|RowwiseMoments", re.I),
    ),
    ("softmax", re.compile(r"softmax", re.I)),
    (
        "elementwise",
        re.compile(
            r"elementwise|^aten::(add|sub|mul|div|relu|clamp\w*|threshold|sigmoid|hardsigmoid|hardswish|leaky_relu)_?$"
            r"|^(Add|Sub|Mul|Div|Sum|Min|Max|Relu|Clip|Sigmoid|HardSigmoid|HardSwish|LeakyRelu)$"
        ),
    ),
)
USUAL = ("conv", "matmul", "pooling")
"""Classes that every profile has rows of, and `other`; the rest have rows where they take time."""
KINDS = (*USUAL, "elementwise", "normalisation", "softmax", "other")


def operator_class(name: str) -> str:
    """One of KINDS, from the name of an operator or kernel: 'other' of copies, changes of layout and unknown names."""
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
    by_class = dict.fromkeys(KINDS, 0.0)
    for name, ms in ms_by_name.items():
        by_class[operator_class(name)] += ms
    memory = sum(ms for name, ms in ms_by_name.items() if MEMORY.search(name))

    def share(ms: float) -> float:
        return ms / total if total else float("nan")

    rows: list[tuple[Any, ...]] = [
        (source, batch, "operators", kind, ms, share(ms))
        for kind, ms in by_class.items()
        if ms or kind in (*USUAL, "other")
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


def by_batch(table: pd.DataFrame) -> pd.DataFrame:
    """One row per profiler and batch size: source, batch, ms and ms_per_image (wall time); a column for each class of
    KINDS that occurs (share of operator or kernel time); memory_ms and memory_share (copies, and on a processor changes
    of layout); on a GPU api/NAME (share of the time of all CUDA API calls), the largest first.

    Args:
        table: of a Profile.
    """
    import pandas as pd

    rows = []
    for (source, batch), part in table.groupby(["source", "batch"], sort=False):
        row: dict[str, object] = {"source": source, "batch": int(batch)}
        for each in part[part["table"] == "latency"].itertuples():
            row |= {"ms": each.ms, "ms_per_image": each.ms / int(batch)}
        shares = part[part["table"] == "operators"].set_index("name")["share"]
        row |= {kind: shares[kind] for kind in KINDS if kind in shares}
        for each in part[part["table"] == "memory"].itertuples():
            row |= {"memory_ms": each.ms, "memory_share": each.share}
        row |= {f"api/{each.name}": each.share for each in part[part["table"] == "api"].itertuples()}
        rows.append(row)
    found = pd.DataFrame(rows)
    if found.empty:
        return found
    calls = found.filter(regex="^api/").fillna(0.0).mean().sort_values(ascending=False, kind="stable")
    first = [name for name in ("source", "batch", "ms", "ms_per_image", *KINDS) if name in found]
    memory = [name for name in ("memory_ms", "memory_share") if name in found]
    return found[[*first, *memory, *calls.index]]


def published_shares() -> pd.DataFrame:
    """Share of kernel time by batch size as published: columns batch and matmul, pooling, conv (0 to 1).

    The original SPP-Net on an NVIDIA RTX A5500, by Nsight Systems (doi 10.1145/3624062.3624260). What the classes leave
    was not published.
    """
    import pandas as pd

    table = pd.read_csv(Path(__file__).with_name("published_shares.csv"))
    shares = table[["matmul_percent", "pooling_percent", "conv_percent"]] / 100
    return shares.rename(columns=lambda name: name.removesuffix("_percent")).assign(batch=table["batch"])[
        ["batch", "matmul", "pooling", "conv"]
    ]
