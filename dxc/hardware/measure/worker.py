"""Times one ONNX file in its own process: `python worker.py`, request on stdin, result on stdout (JSON).

It needs only the standard library, numpy and onnxruntime (and torch for CUDA events), because
dxc.hardware.measure.latency also copies this one file to a device and runs it there. Python 3.9 and onnxruntime 1.16
are enough (1.17 for CUDA).

    empty process | session | warm-up | timed runs          only session.run is inside the clock
    ^ baseline    |         |         ^ until max_runs, or until max_seconds and min_runs
                  |         ^ until warmup_runs and warmup_seconds, but not for longer than max_seconds
                  ^ peak: highest resident memory from here on, less the baseline

Memory is that of the host. It does not include memory of the GPU.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import time
from typing import Any, Callable

MARK = "dxc-worker:"  # begins the line with the result, because libraries may print other lines


class Refused(Exception):
    """A fault that the user can mend. Its kind tells dxc.hardware.measure.latency which advice to give."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Time request['model']. dxc.hardware.measure.latency describes the request and the answer."""
    load = list(os.getloadavg())  # read before this process adds to it
    signal.alarm(request.get("timeout_seconds", 0))  # nobody ends it on a device whose connection is lost
    if request.get("affinity"):
        pin(request["affinity"])
    # From 1.29 on, onnxruntime reports its use to Microsoft in its own threads unless this is set before it starts.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    cuda = request["provider"] == "cuda"
    try:
        import numpy as np
        import onnxruntime
    except ImportError as error:
        raise Refused("import", str(error)) from error
    provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Refused("provider", "this onnxruntime has " + ", ".join(onnxruntime.get_available_providers()))
    settings = cuda_settings() if cuda else {}
    baseline = resident_bytes()
    reset = reset_peak()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1  # more have had no effect since onnxruntime 1.14
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(request["model"], options, providers=[(provider, settings)])
    except Exception as error:  # the error classes of onnxruntime differ between versions
        raise Refused("model", str(error)) from error
    if session.get_providers()[0] != provider:
        raise Refused("cuda", provider + " could not be started")
    try:
        feeds = {each.name: random_input(np, each, request["batch"]) for each in session.get_inputs()}
        run = timed_cuda(session, feeds) if cuda else timed_cpu(session, feeds)
        run()
    except Refused:
        raise
    except Exception as error:  # too little memory, or sizes inside the file that do not fit together
        raise Refused("run", "%s: %s" % (type(error).__name__, error)) from error

    more: dict[str, Any] = {}
    if "reference" in request:
        warmup_runs, raw_ms, more = by_node(onnxruntime, options, session, feeds, request)
    else:
        warmup_runs, raw_ms = timed_runs(request, run)
    peak, source = peak_bytes()
    return {
        **more,
        "raw_ms": raw_ms,
        "baseline_memory_mb": baseline / 1e6,
        "peak_memory_mb": max(0.0, (peak - baseline) / 1e6),
        "environment": {
            "device": device(request["provider"]),
            "cpu": processor(),
            "cores": os.cpu_count(),
            "provider": request["provider"],
            "providers": session.get_providers(),
            "threads": request["threads"],
            "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "warmup_runs": warmup_runs,
            "memory_from": source if reset else source + ", imports included",
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "load_average": load,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    }


def timed_runs(request: dict[str, Any], run: Callable[[], float]) -> tuple[int, list[float]]:
    """Warm up, then time. Returns the number of runs to warm up, with the one before the call, and the times in ms.

    request: limits of dxc.hardware.measure.latency.StopRule. run: executes once and returns the milliseconds.
    """
    warmup_runs = 1
    begin = time.perf_counter()
    while warmup_runs < request["warmup_runs"] or time.perf_counter() - begin < request["warmup_seconds"]:
        if time.perf_counter() - begin > request["max_seconds"]:
            break
        run()
        warmup_runs += 1
    raw_ms: list[float] = []
    begin = time.perf_counter()
    while len(raw_ms) < request["max_runs"]:
        if time.perf_counter() - begin > request["max_seconds"] and len(raw_ms) >= request["min_runs"]:
            break
        raw_ms.append(run())
    return warmup_runs, raw_ms


def by_node(
    onnxruntime: Any, options: Any, session: Any, feeds: dict[str, Any], request: dict[str, Any]
) -> tuple[int, list[float], dict[str, Any]]:
    """Time a network and each of its nodes, for dxc.hardware.calibrate: a reference network, plain runs, runs with
    ONNX Runtime's profiler, plain runs, the reference again. Returns the runs to warm up, the plain times in ms, and
    nodes (name, operator, median ms, in order of execution) and reference_ms.

    request: reference, a file beside the model; seconds; reference_seconds.
    """
    import numpy as np

    warm_up = 2

    def timed(which: Any, given: dict[str, Any], seconds: float) -> list[float]:
        times = []  # type: list[float]
        run = timed_cpu(which, given)
        end = time.perf_counter() + seconds
        while len(times) < 4 or time.perf_counter() < end:
            times.append(run())
        return times

    other = os.path.join(os.path.dirname(request["model"]), request["reference"])
    try:
        reference = onnxruntime.InferenceSession(other, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Refused("model", str(error)) from error
    known = {each.name: random_input(np, each, 1) for each in reference.get_inputs()}
    reference.run(None, known)  # its weights have left the caches
    beside = timed(reference, known, request["reference_seconds"])
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        profiled = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
        for each in (session, profiled):
            for _ in range(warm_up):
                each.run(None, feeds)
        raw_ms = timed(session, feeds, request["seconds"] / 3)
        runs = warm_up + len(timed(profiled, feeds, request["seconds"] / 3))
        raw_ms += timed(session, feeds, request["seconds"] / 3)
        with open(profiled.end_profiling()) as file:
            events = json.load(file)
    reference.run(None, known)
    beside += timed(reference, known, request["reference_seconds"])
    of_nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    count = len(of_nodes) // runs
    nodes = []
    for number, event in enumerate(of_nodes[:count]):
        name = event["name"][: -len("_kernel_time")]
        each_ms = [e["dur"] / 1000 for e in of_nodes[number::count]][warm_up:]
        # the profiler truncates to microseconds: half of one is lost on average
        nodes.append([name, event["args"]["op_name"], float(np.median(each_ms)) + 0.0005])
    return warm_up, raw_ms, {"nodes": nodes, "reference_ms": beside}


def pin(cores: list[int]) -> None:
    """Run only on these cores. Threads that start later inherit it."""
    if not hasattr(os, "sched_setaffinity"):
        raise Refused("affinity", "this system cannot pin a process to cores")
    try:
        os.sched_setaffinity(0, cores)
    except (OSError, ValueError, OverflowError) as error:
        raise Refused("affinity", "cores %s: %s" % (cores, error)) from error
    missing = sorted(
        set(cores) - os.sched_getaffinity(0)
    )  # the kernel silently leaves out cores that it does not have
    if missing:
        raise Refused("affinity", "there is no core " + ", ".join(str(core) for core in missing))


def cuda_settings() -> dict[str, str]:
    """Options that make onnxruntime work in torch's current stream, so that torch's events time its work.

    The stream is a new one: torch's default stream has number 0, which means none to onnxruntime
    (https://github.com/microsoft/onnxruntime/pull/19619).
    """
    try:
        import torch
    except ImportError as error:
        raise Refused("torch", str(error)) from error
    if not torch.cuda.is_available():
        raise Refused("cuda", "torch %s finds no CUDA device" % torch.__version__)
    torch.cuda.set_stream(torch.cuda.Stream())
    return {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}


def random_input(np: Any, tensor: Any, batch: int) -> Any:
    """Random values for an input. Only its batch may be open."""
    dims = list(tensor.shape)
    if dims and not isinstance(dims[0], int):
        dims[0] = batch
    elif dims and dims[0] != batch:
        raise Refused("batch", "input '%s' is fixed to batch %s" % (tensor.name, dims[0]))
    unknown = [dim or "axis %d" % axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    if unknown:
        raise Refused("size", "input '%s' has no fixed %s" % (tensor.name, ", ".join(unknown)))
    if tensor.type != "tensor(float)":
        raise Refused("type", "input '%s' is a %s, not float32" % (tensor.name, tensor.type))
    return np.random.default_rng(0).random(dims, dtype=np.float32)


def timed_cpu(session: Any, feeds: dict[str, Any]) -> Callable[[], float]:
    """A function that executes once and returns the milliseconds."""

    def run() -> float:
        before = time.perf_counter()
        session.run(None, feeds)
        return (time.perf_counter() - before) * 1000

    return run


def timed_cuda(session: Any, feeds: dict[str, Any]) -> Callable[[], float]:
    """A function that executes once and returns the milliseconds between two events around the run.

    Inputs and outputs stay on the device.
    """
    import onnxruntime
    import torch

    binding = session.io_binding()
    kept = [onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for value in feeds.values()]
    for name, value in zip(feeds, kept):
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def run() -> float:
        start.record()
        session.run_with_iobinding(binding)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    run.inputs = kept  # type: ignore[attr-defined]  # keeps the bound arrays alive
    return run


def resident_bytes() -> int:
    """Resident memory now. Where /proc is missing, the peak so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()[0]


def reset_peak() -> bool:
    """Reset the peak, because imports may have needed more than they kept. Returns False if the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False  # the measured peak is then an upper bound
    return True


def peak_bytes() -> tuple[int, str]:
    """Peak resident memory since reset_peak or since the start of the process; and where it was read.

    ru_maxrss is the second choice, because on Linux it begins with the value of the parent.
    """
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024, "VmHWM"
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"


def device(provider: str) -> str:
    """Name of the processor or GPU, as dxc.hardware.spec.device_name gives it."""
    if provider == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    return "%s, %s cores" % (processor(), os.cpu_count())


def processor() -> str:
    """Model of the processor, as Linux names it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        answer = main(json.load(sys.stdin))
    except Refused as refused:
        answer = {"error": refused.kind, "message": str(refused)}
    print("\n" + MARK + json.dumps(answer), flush=True)  # a line of its own, whatever was printed before
