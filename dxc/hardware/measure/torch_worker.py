"""Times one ONNX file with torch in its own process: request on stdin, result on stdout (JSON), as worker.py.

    python -m dxc.hardware.measure.torch_worker

It imports dxc and runs here only; ONNX Runtime's worker is the one that is copied to other devices. The protocol, the
warm-up and what is timed are those of worker.py. On a GPU a run is one replay of a CUDA graph between two events:
inputs and outputs stay on the device. On a processor it is one call of the network.

Before anything is timed, outputs are compared with those of ONNX Runtime on the CPU (dxc.hardware.measure.reference).

Memory is that of the device: on a GPU what torch's allocator held at most for weights, inputs, outputs and workspaces
while it captured and ran (torch.cuda.max_memory_allocated), without the CUDA context; on a processor as in worker.py.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dxc.errors import first_line
from dxc.hardware.measure import worker
from dxc.hardware.measure.worker import MARK, Refused

ALLOWED = {"float32": 1e-3, "TF32": 5e-2}
"""Largest error of an output relative to its largest value. TF32 has 10 bits of mantissa: errors add up over layers,
and weigh more where the last sum is small. So a GPU that is timed in TF32 is compared in float32 first."""


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Time request['model'] on the inputs of request['reference']; else the request is that of worker.py.

    request['cuda_graph']: False runs operator by operator on a GPU.
    """
    load = list(os.getloadavg())
    signal.alarm(request.get("timeout_seconds", 0))
    if request.get("affinity"):
        worker.pin(request["affinity"])
    try:
        import numpy as np
        import torch

        from dxc.errors import HardwareError
        from dxc.hardware.graph import OnnxModule
        from dxc.hardware.torch_runtime import arithmetic, capture, outputs_of, uses_tf32, warm_up
    except ImportError as error:
        raise Refused("torch", str(error)) from error

    cuda = request["provider"] == "cuda"
    if cuda and not torch.cuda.is_available():
        raise Refused("cuda", f"torch {torch.__version__} finds no CUDA device")
    torch.set_num_threads(request["threads"])
    with np.load(request["reference"]) as arrays:
        given = {name: arrays[name] for name in arrays.files}
    inputs = [torch.from_numpy(given[f"input{place}"]) for place in range(request["inputs"])]
    expected = [given[f"output{place}"] for place in range(request["outputs"])]
    baseline = worker.resident_bytes()
    reset = worker.reset_peak()
    precision = "TF32" if cuda and uses_tf32() else "float32"
    try:
        module = OnnxModule(Path(request["model"])).eval()
    except HardwareError as error:
        raise Refused("operators", str(error).removeprefix(request["model"]).lstrip(": ")) from error
    if (
        cuda
    ):  # all work is in one stream, for each has a workspace of cuBLAS; the default one cannot be captured
        torch.cuda.set_stream(torch.cuda.Stream())
    if precision == "TF32":
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode():
                exact = outputs_of(module.cuda()(*(each.cuda() for each in inputs)))
        except Exception as error:
            raise Refused("run", first_line(error, named=True)) from error
        compared([each.cpu().numpy() for each in exact], expected, "float32")
        del exact
        torch.backends.cudnn.allow_tf32 = True
    with torch.inference_mode(), arithmetic(request["provider"]):
        try:
            if cuda:
                module, inputs = module.cuda(), [each.cuda() for each in inputs]
                warm_up(module, inputs)
                torch.cuda.reset_peak_memory_stats()
            else:
                module(*inputs)
        except Exception as error:  # too little memory, or an operator that cannot take what it gets
            raise Refused("run", first_line(error, named=True)) from error
        if cuda and request["cuda_graph"]:
            try:
                graph, outputs = capture(module, inputs)
                graph.replay()
            except Exception as error:
                raise Refused("capture", first_line(error, named=True)) from error
            execute = graph.replay
        else:
            outputs = outputs_of(module(*inputs))

            def execute() -> None:
                module(*inputs)

        if cuda:
            torch.cuda.synchronize()
        largest = compared([each.cpu().numpy() for each in outputs], expected, precision)
        run = timed_cuda(torch, execute) if cuda else timed_cpu(execute)
        run()
        warmup_runs, raw_ms = worker.timed_runs(request, run)
    if cuda:
        memory = {
            "baseline_memory_mb": 0.0,
            "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6,
        }
        source = "torch.cuda.max_memory_allocated"
    else:
        peak, source = worker.peak_bytes()
        memory = {
            "baseline_memory_mb": baseline / 1e6,
            "peak_memory_mb": max(0.0, (peak - baseline) / 1e6),
        }
        source = source if reset else source + ", imports included"
    execution = "CUDA graph" if cuda and request["cuda_graph"] else "eager"
    return {
        "raw_ms": raw_ms,
        **memory,
        "environment": {
            "device": worker.device(request["provider"]),
            "cpu": worker.processor(),
            "cores": os.cpu_count(),
            "runtime": "torch",
            "torch": torch.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
            "provider": request["provider"],
            "execution": execution,
            "arithmetic": precision,
            "largest_error": largest,
            "threads": request["threads"],
            "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "warmup_runs": warmup_runs,
            "memory_from": source,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "load_average": load,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    }


def compared(outputs: list[Any], expected: list[Any], precision: str) -> float:
    """The largest error of outputs. Raises Refused if it is larger than is allowed in this precision."""
    largest = largest_error(outputs, expected)
    if not largest <= ALLOWED[precision]:  # true for NaN too
        raise Refused(
            "outputs",
            f"its outputs differ from ONNX Runtime's by {largest:.1e} of the largest value, and "
            f"{ALLOWED[precision]:.0e} is allowed in {precision}",
        )
    return largest


def largest_error(outputs: list[Any], expected: list[Any]) -> float:
    """The largest error of an output relative to its largest value; infinite where shapes differ.

    Args:
        outputs: arrays of a batch.
        expected: arrays of all of its images or of the first.
    """
    import numpy as np

    if len(outputs) != len(expected):
        return float("inf")
    errors = []
    for ours, theirs in zip(outputs, expected, strict=True):
        ours = ours[: len(theirs)] if theirs.ndim else ours
        if ours.shape != theirs.shape:
            return float("inf")
        largest = max(float(np.abs(theirs).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        errors.append(float(np.abs(ours - theirs).max(initial=0.0)) / largest)
    return float(np.max(errors))  # NaN wins


def timed_cpu(execute: Any) -> Any:
    """A function that executes once and returns the milliseconds."""

    def run() -> float:
        before = time.perf_counter()
        execute()
        return (time.perf_counter() - before) * 1000

    return run


def timed_cuda(torch: Any, execute: Any) -> Any:
    """A function that executes once and returns the milliseconds between two events around the run."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def run() -> float:
        start.record()
        execute()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    return run


if __name__ == "__main__":
    try:
        answer = main(json.load(sys.stdin))
    except Refused as refused:
        answer = {"error": refused.kind, "message": str(refused)}
    print("\n" + MARK + json.dumps(answer), flush=True)
