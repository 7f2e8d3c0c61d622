"""Profiles an exported file at several batch sizes and reduces the traces to one table.

    source       batch  table      name      ms     share
    torch        8      operators  conv      40.2   0.91      share of operator (on a GPU: kernel) time by class
    torch        8      memory     all       0.4    0.01      copies, and changes of layout
    torch        8      latency    batch     46.4             wall time of one execution, host to host
    nsight       8      api        cudaLaunchKernel  ...      share of the time of all CUDA API calls

Sources: torch.profiler on the file's operators, ONNX Runtime's node profiler (CPU), Nsight Systems (GPU). The tables
are those of doi 10.1145/3624062.3624260.

On a GPU torch.profiler and Nsight Systems record the same: operators are launched one by one, after a warm-up, with the
arithmetic of a measurement (dxc.hardware.torch_runtime.arithmetic). A CUDA graph, which is what is timed, runs the
same kernels, but it is a single API call, and so would have no table of calls. A warm GPU has loaded its libraries: the
published shares of API calls count that too.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dxc.config.plan import Profiler
from dxc.errors import HardwareError, require_one_of
from dxc.files import write_atomically
from dxc.hardware.profiling.cupti import RANGE, reduce_trace
from dxc.hardware.profiling.tables import COLUMNS, Profile, share_rows

if TYPE_CHECKING:
    from torch import Tensor, nn


BATCHES = (1, 2, 4, 8, 16, 32, 64)
AUTO_SECONDS = 1.0
"""Time limit of both traces of a processor with mode auto. Batches that would take longer are left out."""
AUTO_GPU_SECONDS = 20.0
"""The same for a GPU, where an execution takes a millisecond, and loading kernels and writing traces takes longer."""
AUTO_NSYS_SECONDS = 120.0
"""Time limit of each command of nsys with mode auto. torch.profiler takes over after it."""
GPU_RUNS = 10
"""Profiled executions of each batch size on a GPU: one of a millisecond says little."""


def profile_network(
    onnx: Path,
    out: Path,
    *,
    mode: str = "auto",
    accelerator: str = "cpu",
    threads: int = 1,
    batches: Sequence[int] = BATCHES,
    budget_seconds: float | None = None,
) -> Profile:
    """Profile a file's inference.

    Args:
        onnx: the file.
        out: folder for the traces and profile.parquet.
        mode: none; torch: torch.profiler, and on the CPU ONNX Runtime's profiler too; nsight: nsys on a GPU, or torch
            with a note if that fails; auto: nsight if there are nsys and a GPU, and if it is done in time, else torch
            in about a second (on a GPU, in up to AUTO_GPU_SECONDS).
        accelerator: cpu or gpu.
        threads: number of CPU threads.
        batches: batch sizes.
        budget_seconds: time limit; None: that of the mode.

    Raises:
        ConfigError: an unknown mode.
        HardwareError: torch cannot run the file, or there is no GPU for accelerator gpu.
    """
    import pandas as pd
    import torch

    require_one_of("profile", mode, get_args(Profiler))
    if mode == "none":
        return Profile("none", "", (), pd.DataFrame(columns=COLUMNS), ())
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise HardwareError(
            "profiling on a GPU: there is no CUDA device here; hardware=cpu profiles the processor"
        )
    out.mkdir(parents=True, exist_ok=True)
    if (batch := _fixed_batch(onnx)) != 1:
        batches = [batch]

    note, table, used = "", None, "torch"
    if mode == "nsight" or (mode == "auto" and accelerator == "gpu" and shutil.which("nsys")):
        from dxc.hardware.profiling import nsight

        try:
            limit = {"timeout_seconds": AUTO_NSYS_SECONDS} if mode == "auto" else {}
            table = nsight.profile(onnx, out, batches, **limit)
            used = "nsight"
        except HardwareError as error:
            note = f"profiled with torch.profiler, not with Nsight Systems: {error}"
    if table is None:
        on_gpu, seconds = accelerator == "gpu", budget_seconds
        if seconds is None and mode == "auto":
            seconds = AUTO_GPU_SECONDS if on_gpu else AUTO_SECONDS
        each = seconds if on_gpu else seconds and seconds / 2
        rows = list(torch_rows(onnx, out, accelerator, threads, batches, each))
        if not on_gpu:
            rows += onnxruntime_rows(onnx, out, threads, batches, seconds and seconds / 2)
        table = pd.DataFrame(rows, columns=COLUMNS)
    write_atomically(out / "profile.parquet", table.to_parquet(index=False))
    return Profile(used, note, tuple(sorted(set(table["batch"]))), table, tuple(sorted(out.iterdir())))


def torch_rows(
    onnx: Path, out: Path, accelerator: str, threads: int, batches: Sequence[int], seconds: float | None
) -> list[tuple[Any, ...]]:
    """Profile the file's operators with torch.profiler: for each batch size one run to warm up, and one profiled run.

    On a GPU there are GPU_RUNS profiled runs, and the rows are their mean.

    Args:
        onnx: the file.
        out: folder for the traces.
        accelerator: cpu or gpu.
        threads: number of CPU threads.
        batches: batch sizes.
        seconds: time limit; None: no limit.

    Raises:
        HardwareError: a GPU was not recorded.
    """
    import torch
    from torch.profiler import ProfilerActivity, record_function

    from dxc.hardware.graph import OnnxModule
    from dxc.hardware.torch_runtime import arithmetic

    device = "cuda" if accelerator == "gpu" else "cpu"
    module = OnnxModule(onnx).eval().to(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    rows: list[tuple[Any, ...]] = []
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), arithmetic(device), _without_usdt():
            with torch.profiler.profile(activities=activities):
                # the first use takes seconds: imports, and on a GPU its context and libraries
                execute(module, images(onnx, min(batches)), device)
            for batch in _within(seconds, batches):
                image = images(onnx, batch)
                execute(module, image, device)
                with torch.profiler.profile(activities=activities) as profiler:
                    started = time.perf_counter()
                    for _ in range(GPU_RUNS if device == "cuda" else 1):
                        with record_function(f"{RANGE}{batch}"):
                            execute(module, image, device)
                    wall_ms = (time.perf_counter() - started) * 1000
                    if device == "cuda":
                        torch.cuda.synchronize()  # all that was launched is in the trace
                trace = out / f"torch_batch{batch}.json.gz"
                profiler.export_chrome_trace(str(trace))
                if device == "cuda":
                    rows += reduce_trace(trace, batch)
                    continue
                events = [e for e in profiler.key_averages() if not e.key.startswith(RANGE)]
                rows += share_rows("torch", batch, {e.key: e.self_cpu_time_total / 1000 for e in events})
                rows.append(("torch", batch, "latency", "batch", wall_ms, float("nan")))
    finally:
        torch.set_num_threads(threads_before)
    return rows


def onnxruntime_rows(
    onnx: Path, out: Path, threads: int, batches: Sequence[int], seconds: float | None
) -> list[tuple[Any, ...]]:
    """The same tables from ONNX Runtime's node profiler: one run to warm up, then one profiled run.

    Args:
        onnx: the file.
        out: folder for the traces.
        threads: number of CPU threads.
        batches: batch sizes.
        seconds: time limit; None: no limit.
    """
    import numpy as np

    from dxc.hardware.measure.ort import node_times, session

    rows: list[tuple[Any, ...]] = []
    for batch in _within(seconds, batches):
        with tempfile.TemporaryDirectory() as folder:
            profiled = session(str(onnx), threads, profile=f"{folder}/profile")
            feed = {
                each.name: np.random.default_rng(0).random((batch, *each.shape[1:]), dtype=np.float32)
                for each in profiled.get_inputs()
            }
            profiled.run(None, feed)
            started = time.perf_counter()
            profiled.run(None, feed)
            wall_ms = (time.perf_counter() - started) * 1000
            trace = Path(profiled.end_profiling())
            by_op: dict[str, float] = {}
            for node in node_times(trace, runs=2):
                by_op[node.op] = by_op.get(node.op, 0.0) + float(node.ms[1])
            with gzip.open(out / f"onnxruntime_batch{batch}.json.gz", "wb") as file:
                file.write(trace.read_bytes())
        rows += share_rows("onnxruntime", batch, by_op)
        rows.append(("onnxruntime", batch, "latency", "batch", wall_ms, float("nan")))
    return rows


def _within(seconds: float | None, batches: Sequence[int]) -> Iterator[int]:
    """Batch sizes in ascending order while the next fits the time limit. Time is assumed proportional to the batch."""
    begun = last = time.perf_counter()
    before = 0
    for batch in sorted(batches):
        now = time.perf_counter()
        if seconds is not None and before and now - begun + (now - last) * batch / before > seconds:
            return
        last, before = now, batch
        yield batch


def _fixed_batch(onnx: Path) -> int:
    from dxc.hardware.onnx_file import fixed_batch, load_onnx

    return fixed_batch(load_onnx(onnx), str(onnx))


def network_shape(onnx: Path) -> list[int]:
    """Channels, height and width of a file's only input. Raises HardwareError where there are more."""
    from dxc.hardware.onnx_file import image_shape, inputs, load_onnx

    model = load_onnx(onnx)
    if len(fed := inputs(model, str(onnx))) > 1:
        raise HardwareError(
            f"{onnx} has {len(fed)} inputs, and profiling feeds images to one; it can be measured: profile=none"
        )
    return image_shape(model, str(onnx))


def images(onnx: Path, batch: int) -> Tensor:
    """A batch of random images (B, C, H, W) for a file. The global random state does not change."""
    import torch

    return torch.rand(batch, *network_shape(onnx), generator=torch.Generator().manual_seed(0))


def execute(module: nn.Module, image: Tensor, device: str) -> None:
    """One inference as in use: images (B, C, H, W) come from the host, outputs go back, and it waits for the GPU.

    Args:
        module: the network.
        image: images on the host.
        device: cpu or cuda.
    """
    answer = module(image.to(device))
    for output in answer if isinstance(answer, tuple) else (answer,):
        output.cpu()


@contextlib.contextmanager
def _without_usdt() -> Iterator[None]:
    """Drop the 'USDT:' lines that torch 2.13's profiler prints to stderr. Other lines pass."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file:
                if not line.startswith(b"USDT:"):
                    os.write(2, line)
