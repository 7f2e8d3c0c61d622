"""Tables of a GPU from torch.profiler's trace. The events are made by hand, in the form in which Kineto writes them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.profiler import ProfilerActivity, record_function

from dxc.errors import HardwareError
from dxc.hardware.profiling.cupti import RANGE, reduce_events, reduce_trace
from dxc.hardware.profiling.tables import COLUMNS, by_batch, gpu_rows, published_shares, share_rows


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, "args": args}


EVENTS = [
    {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "ts": 0.0, "args": {"name": "python"}},
    event("cuda_runtime", "cudaLaunchKernel", 5.0, 900.0),  # before the first range
    event("user_annotation", "batch 8", 1000.0, 300.0),
    event("gpu_user_annotation", "batch 8", 1010.0, 500.0),  # its shadow on the GPU
    event("cpu_op", "aten::conv2d", 1005.0, 100.0),
    event("cuda_runtime", "cudaMemcpyAsync", 1001.0, 20.0, correlation=1),
    event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 1010.0, 30.0, correlation=1),
    event("cuda_driver", "cuLaunchKernelEx", 1030.0, 10.0, correlation=2),
    event(
        "kernel",
        "sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc",
        1050.0,
        120.0,
        correlation=2,
    ),
    event("cuda_runtime", "cudaLaunchKernel", 1050.0, 10.0, correlation=3),
    event("kernel", "nvjet_tst_128x24_64x11_2x1_v_bz_TNT", 1180.0, 40.0, correlation=3),
    event("user_annotation", "batch 8", 2000.0, 100.0),
    event("cuda_runtime", "cudaLaunchKernel", 2010.0, 10.0, correlation=4),
    event(
        "kernel", "nvjet_tst_128x24_64x11_2x1_v_bz_TNT", 2090.0, 40.0, correlation=4
    ),  # ends after its range
    event("gpu_memset", "Memset (Device)", 2140.0, 10.0, correlation=5),
    event("cuda_runtime", "cudaDeviceSynchronize", 2100.0, 700.0),  # the profiler's own, after the last range
]


def test_tables_by_hand() -> None:
    """Two executions: 200 us of kernels, 40 us of copies and 50 us of API calls in all."""
    table = {
        (kind, name): (ms, share)
        for _, batch, kind, name, ms, share in reduce_events(EVENTS, 8)
        if batch == 8
    }
    assert table.pop(("latency", "batch"))[0] == pytest.approx(0.2)  # of 300 and 100 us
    expected = {
        ("operators", "conv"): (0.060, 0.6),
        ("operators", "matmul"): (0.040, 0.4),
        ("operators", "pooling"): (0.0, 0.0),
        ("operators", "other"): (0.0, 0.0),
        ("memory", "all"): (0.020, 40 / 240),
        ("api", "cudaMemcpyAsync"): (0.010, 0.4),
        ("api", "cuLaunchKernelEx"): (0.005, 0.2),
        ("api", "cudaLaunchKernel"): (0.010, 0.4),
    }
    assert table == {key: pytest.approx(value) for key, value in expected.items()}


def test_a_trace_without_what_is_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "torch_batch8.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": EVENTS}).encode()))
    assert len(reduce_trace(path, 8)) == 9
    with pytest.raises(HardwareError, match="torch_batch8.json.gz has no range 'batch 4'"):
        reduce_trace(path, 4)
    with pytest.raises(
        HardwareError, match="the trace has no kernels: torch.profiler cannot record this GPU"
    ):
        reduce_events([each for each in EVENTS if each.get("cat") != "kernel"], 8)


def test_torch_writes_ranges_so(tmp_path: Path) -> None:
    """What a processor can show: the form of an event, and the category of a range."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(f"{RANGE}8"):
        torch.ones(3) + 1
    path = tmp_path / "trace.json.gz"
    profiler.export_chrome_trace(str(path))
    with pytest.raises(HardwareError, match="has no kernels"):  # the range was found
        reduce_trace(path, 8)


def test_a_row_of_each_batch() -> None:
    rows = [
        *gpu_rows("torch", 1, {"sgemm": 3.0, "softmax_warp": 1.0}, 1.0, {"cudaA": 1.0, "cudaB": 3.0}),
        ("torch", 1, "latency", "batch", 9.0, float("nan")),
        *gpu_rows("torch", 8, {"fprop": 2.0}, 2.0, {"cudaB": 4.0}),
        ("torch", 8, "latency", "batch", 16.0, float("nan")),
        *share_rows("onnxruntime", 1, {"Conv": 1.0}),
    ]
    table = by_batch(pd.DataFrame(rows, columns=COLUMNS))
    assert list(table) == [
        "source", "batch", "ms", "ms_per_image", "conv", "matmul", "pooling", "softmax", "other",
        "memory_ms", "memory_share", "api/cudaB", "api/cudaA",
    ]  # fmt: skip
    assert table.loc[0, ["ms_per_image", "matmul", "softmax", "memory_share", "api/cudaA"]].tolist() == [
        9.0, 0.75, 0.25, 0.2, 0.25
    ]  # fmt: skip
    assert table.loc[1, ["ms_per_image", "conv", "api/cudaB"]].tolist() == [2.0, 1.0, 1.0]
    assert table.loc[1:, ["softmax", "api/cudaA"]].isna().all(axis=None)
    assert by_batch(pd.DataFrame(columns=COLUMNS)).empty


def test_published_shares() -> None:
    """Three figures of the printed table; batch 64 is mostly convolution."""
    shares = published_shares().set_index("batch")
    assert list(shares.index) == [1, 2, 4, 8, 16, 32, 64]
    assert shares.loc[1, "matmul"] == pytest.approx(0.416)
    assert shares.loc[16, "pooling"] == pytest.approx(0.171)
    assert shares.loc[64, "conv"] == pytest.approx(0.772)
