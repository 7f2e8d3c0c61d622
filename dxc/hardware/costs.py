"""All costs of one exported file on one device: predicted, measured, scheduled, profiled.

The parts do not depend on each other. A part that fails gives a line with the reason, and the others go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dxc.bars import Steps
from dxc.config.hardware import Hardware
from dxc.errors import DxcError
from dxc.hardware.onnx_file import fixed_batch, load_onnx, onnx_mb
from dxc.hardware.spec import absent, device_name, runtime_of
from dxc.metrics import INVALID, LATENCY_VERDICT, VALID
from dxc.text import counted, visible

if TYPE_CHECKING:
    import pandas as pd

    from dxc.hardware.measure.batches import Efficiency
    from dxc.hardware.measure.latency import Measurement
    from dxc.hardware.network import Network
    from dxc.hardware.predict.packages import Package
    from dxc.hardware.predict.predict import Prediction

log = logging.getLogger(__name__)

SCHEDULE_SECONDS = 60.0
"""Time limit for the schedules of a run. Batch sizes that would take longer are left out."""
COMPARE_PROFILE_SECONDS = 30.0
"""Time limit of the profile of a file in a comparison. Larger batch sizes are left out."""


@dataclass
class Costs:
    """Metrics are named as in dxc.metrics.METRICS; what could not be had is absent, and a note says why."""

    metrics: dict[str, float] = field(default_factory=dict)
    curves: list[tuple[str, float, int]] = field(default_factory=list)
    """(name, value, batch size)"""
    tags: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    efficiency: Efficiency | None = None
    """The measurements, where there is more than one batch size."""


def cost(
    onnx: Path,
    hardware: Hardware,
    out: Path,
    *,
    known: Mapping[str, float] | None = None,
    profile: str = "auto",
    progress: bool = True,
) -> Costs:
    """Predict, measure and profile one exported file; tables, raw values and traces go to the folder `out`.

    known: metrics that hardware.limits may name and that are counted elsewhere (params, macs). profile: auto | none |
    torch | nsight. Raises nothing for a part that fails: results of a training are not
    lost because costing failed.
    """
    log.info("costs of the exported network for hardware=%s", hardware.name)
    out.mkdir(parents=True, exist_ok=True)
    costs = Costs()
    with _part("predicted", costs, out):
        _predict(onnx, hardware, out, costs, progress)
    with _part("measured", costs, out):
        _measure(onnx, hardware, out, costs)
    with _part("scheduled", costs, out):
        _schedule(onnx, hardware, out, costs)
    with _part("profiled", costs, out):
        _profile(onnx, hardware, out, costs, profile)
    with _part("sized", costs, out):
        _check_limits(hardware, costs, {"onnx_mb": onnx_mb(onnx), **(known or {}), **costs.metrics})
    return costs


@contextlib.contextmanager
def _part(name: str, costs: Costs, out: Path) -> Iterator[None]:
    try:
        yield
    except DxcError as error:
        costs.notes.append(f"not {name}: {error}")
    except Exception as error:  # a bug or a broken library: the run keeps its training, and the trace
        (out / f"{name}_error.txt").write_text(traceback.format_exc())
        costs.notes.append(
            f"not {name}: {type(error).__name__}: {error} (a fault of dxc or a library; {name}_error.txt)"
        )


def _predict(onnx: Path, hardware: Hardware, out: Path, costs: Costs, progress: bool) -> None:
    import pandas as pd

    from dxc.hardware.predict.predict import describe_coverage, latency_metrics

    if not hardware.predictors:
        costs.notes.append(
            f"not predicted: hardware={hardware.name} names no predictor (hardware.predictors=[NAME])"
        )
    predictions = predict_all(onnx, find_packages(hardware, costs.notes, progress=progress))
    if not predictions:
        return
    costs.metrics |= latency_metrics(predictions)
    costs.notes += [line for each in predictions if (line := describe_coverage(each))]
    costs.notes += [line for each in predictions if (line := described_machine(each))]
    costs.tags["dxc.predictors"] = ", ".join(sorted(each.package for each in predictions))
    costs.tags["dxc.packages"] = _packages_hash(predictions)
    costs.tags["dxc.predicted_for"] = predicted_for({each.package: each.about for each in predictions})
    pd.concat([each.table() for each in predictions]).to_parquet(out / "kernels.parquet", index=False)


def _packages_hash(predictions: Sequence[Prediction]) -> str:
    """What the packages say of themselves: one that was calibrated anew has the same name."""
    about = sorted(
        json.dumps([each.package, each.about], sort_keys=True, default=str) for each in predictions
    )
    return hashlib.blake2b(json.dumps(about).encode(), digest_size=6).hexdigest()


def find_packages(hardware: Hardware, notes: list[str], *, progress: bool = True) -> list[Package]:
    """The available packages of the hardware. Each missing one adds a line to `notes`."""
    from dxc.hardware.predict.packages import UnreachableError, available, find_package

    packages = []
    folder = Path(hardware.packages_dir)
    unreached: list[str] = []  # one failed attempt is enough
    for name in hardware.predictors:
        if unreached and name not in available(folder):
            unreached.append(name)
            continue
        try:
            packages.append(
                find_package(name, packages_dir=folder, packages_url=hardware.packages_url, progress=progress)
            )
        except UnreachableError as error:
            unreached.append(name)
            reason = error
        except DxcError as error:
            notes.append(f"not predicted by {name}: {error}")
    if unreached:
        notes.append(f"not predicted by {', '.join(unreached)}: {reason}")
    return packages


def predict_all(onnx: Path | Network, packages: Sequence[Package]) -> list[Prediction]:
    """One prediction per package. The file is read once, unless it is read already."""
    from dxc.hardware.predict.kernels import graph_of_network, read_graph
    from dxc.hardware.predict.predict import predict

    if not packages:
        return []
    graph = read_graph(onnx) if isinstance(onnx, Path) else graph_of_network(onnx)
    return [predict(graph, package) for package in packages]


def predicted_for(packages: Mapping[str, Mapping[str, Any]]) -> str:
    """Which machines predictors {name: package.json} describe: 'my_cpu (onnxruntime 1.31.1, 1 thread, Intel Xeon)'.

    A package that does not say is named after its device and runtime.
    """
    return "; ".join(
        f"{name} ({about['runtime']} {about['runtime_version']}, "
        f"{counted(about['threads'], 'thread')}, {about['device']})"
        if about
        else name
        for name, about in packages.items()
    )


def described_machine(prediction: Prediction) -> str | None:
    """A hint where a calibrated package describes another machine than this one."""
    about = prediction.about
    if not about or about["device"] == device_name():
        return None
    return (
        f"{prediction.package} describes another machine than this one: python calibrate.py name=my_cpu makes a "
        "predictor for this one"
    )


def _measure(onnx: Path, hardware: Hardware, out: Path, costs: Costs) -> None:
    if reason := absent(hardware):
        costs.notes.append(f"not measured: {reason}")
        return
    from dxc.hardware.measure.batches import measure_batches

    def measured(batch: int) -> Measurement:
        measurement = measure_on(onnx, hardware, batch)
        measurement.save(out / f"measured_batch{batch}.json")
        return measurement

    batch = fixed_batch(load_onnx(onnx), str(onnx))
    log.info("measuring latency and memory on %s", hardware.host or "this machine")
    efficiency = measure_batches(onnx, hardware.batches if batch == 1 else [batch], measured)
    for measurement in efficiency.measurements:
        if measurement.valid:
            costs.curves += [
                ("measured/batch_ms", measurement.median_ms, measurement.batch),
                ("measured/ms_per_image", measurement.median_ms / measurement.batch, measurement.batch),
            ]
    costs.notes += [*efficiency.notes, *describe_execution(efficiency.measurements)]
    if why := runtime_of(hardware)[1]:
        costs.notes.append(why)
    if len(efficiency.measurements) > 1:
        costs.efficiency = efficiency
    first = efficiency.measurements[0]
    costs.metrics |= first.metrics() | efficiency.metrics()
    if batch != 1:
        costs.notes.append(describe_batch(first))
    costs.tags["dxc.measured_on"] = ("emulated, " if hardware.emulated else "") + describe_conditions(first)
    costs.tags[LATENCY_VERDICT] = VALID if first.valid else f"{INVALID}{first.reason}"


def measure_on(onnx: Path, hardware: Hardware, batch: int = 1) -> Measurement:
    """Measure one file as the hardware section describes."""
    from dxc.hardware.measure.latency import measure

    return measure(
        onnx,
        runtime=runtime_of(hardware)[0],
        provider=hardware.provider,
        threads=hardware.threads,
        batch=batch,
        affinity=hardware.affinity,
        host=hardware.host,
        remote_python=hardware.python,
    )


def describe_batch(measurement: Measurement) -> str:
    """A note on the time of a file with a fixed batch of several images."""
    batch, ms = measurement.batch, measurement.median_ms
    took = f" (a batch took {ms:.2f} ms, {ms / batch:.2f} ms an image)" if measurement.valid else ""
    return (
        f"its batch is fixed at {batch}, so it is measured at {batch}{took}; a measured latency is of one image, as "
        "MACs and predictions are: export with an open batch"
    )


def describe_execution(measurements: Sequence[Measurement]) -> list[str]:
    """Notes where torch could not run a file as a CUDA graph, and so ran it operator by operator, and where memory is
    that of a GPU."""
    environments = [each.environment for each in measurements]
    reasons = [each["eager_because"] for each in environments if "eager_because" in each]
    notes = [
        f"measured operator by operator, because it cannot be captured as a CUDA graph: {reason}"
        for reason in dict.fromkeys(reasons)
    ]
    if any(str(each.get("memory_from")).startswith("torch.cuda") for each in environments):
        notes.append("peak memory is device memory, as torch allocated it (weights, outputs, workspaces)")
    return notes


def describe_conditions(measurement: Measurement) -> str:
    """'Intel Xeon, 4 cores; onnxruntime 1.31.1, cpu, 1 thread', 'NVIDIA A100; torch 2.11.0, cuda, CUDA graph, TF32'."""
    env = measurement.environment
    if env.get("runtime") == "torch" and env["provider"] == "cuda":
        return f"{env['device']}; torch {env['torch']}, cuda, {env['execution']}, {env['arithmetic']}"
    if env.get("runtime") == "torch":
        return f"{env['device']}; torch {env['torch']}, cpu, {counted(env['threads'], 'thread')}"
    threads = counted(env["threads"], "thread") if "threads" in env else "? threads"
    return (
        f"{env.get('device', 'unknown device')}; onnxruntime {env.get('onnxruntime', '?')}, "
        f"{env.get('provider', 'cpu')}, {threads}"
    )


def _schedule(onnx: Path, hardware: Hardware, out: Path, costs: Costs) -> None:
    if not hardware.schedule:
        return
    import torch

    reason = absent(hardware)
    if not reason and hardware.host:
        reason = "schedules are measured on this machine only, and hardware.host names another one"
    if not reason and not torch.cuda.is_available():
        reason = "schedules run on the streams of a GPU, and there is no CUDA device here"
    if reason:
        costs.notes.append(f"not scheduled: {reason}")
        return
    from dxc.hardware.schedule.compare import compare_schedules

    found = compare_schedules(onnx, hardware.batches, seconds=SCHEDULE_SECONDS, out=out / "schedules.parquet")
    costs.metrics |= found.metrics()
    costs.curves += found.curves()
    costs.notes += [*found.findings(), *found.notes]
    costs.tags["dxc.scheduled_on"] = found.conditions
    costs.tags.setdefault("dxc.measured_on", found.conditions)


def _profile(onnx: Path, hardware: Hardware, out: Path, costs: Costs, mode: str) -> None:
    import torch

    from dxc.hardware.profiling.torch_profile import profile_network

    if mode != "none":
        log.info("tracing its operators")
    profiled = profile_network(
        onnx,
        out / "profile",
        mode=mode,
        accelerator="gpu" if hardware.provider == "cuda" and torch.cuda.is_available() else "cpu",
        threads=hardware.threads,
    )
    costs.tags["dxc.profile"] = profiled.mode
    if profiled.note:
        costs.notes.append(profiled.note)
    costs.curves += profiled.curves()


def _check_limits(hardware: Hardware, costs: Costs, known: Mapping[str, float]) -> None:
    """Tag dxc.within_limits: false where a limit is broken, else unknown where one could not be checked, else true."""
    over = [
        f"{name} {known[name]:.4g} is over the limit of {limit:g} (hardware.limits.{name})"
        for name, limit in hardware.limits.items()
        if name in known and known[name] > limit
    ]
    unchecked = [
        f"hardware.limits.{name}={limit:g} was not checked: {name} is not known of this network"
        for name, limit in hardware.limits.items()
        if name not in known
    ]
    costs.notes += over + unchecked
    costs.tags["dxc.within_limits"] = "false" if over else "unknown" if unchecked else "true"


class Comparison(NamedTuple):
    """What files cost, for `python -m dxc.hardware`.

    Attributes:
        table: one row a file: file, latency_ms (mean over packages), latency_ms/NAME each, measured_latency_ms,
            measured_latency_p95_ms, measured (valid, invalid, not measured, or at batch N), error (predicted /
            measured - 1, where both are there), efficiency_ms, optimum_batch, peak_memory_mb, onnx_mb, macs. What is
            missing is NaN, and a note says why.
        notes: on what is missing, and on how it was measured.
        batches: where several batch sizes are measured, one row a file and batch size: file, batch, batch_ms,
            ms_per_image (both NaN where the measurement is invalid), measured (valid, invalid), optimum (whether it has
            the least time an image).
        profile: where files are profiled, one row a file, profiler and batch size: file and the columns of
            dxc.hardware.profiling.tables.by_batch.
    """

    table: pd.DataFrame
    notes: list[str]
    batches: pd.DataFrame
    profile: pd.DataFrame


def compare(
    files: Sequence[Path], hardware: Hardware, *, profile: str | None = None, progress: bool = True
) -> Comparison:
    """Predicted against measured for a list of exported files, side by side.

    Args:
        files: the exported files.
        hardware: the device. All of its batch sizes are measured.
        profile: auto | none | torch | nsight; None: auto where several batch sizes are measured here, else none.
        progress: whether to show a bar.
    """
    import pandas as pd

    notes: list[str] = []
    packages = find_packages(hardware, notes, progress=progress)
    if packages:
        notes.append(f"predicted for {predicted_for({each.name: each.about for each in packages})}")
    reason = absent(hardware)
    if reason:
        notes.append(f"not measured: {reason}")
    elif why := runtime_of(hardware)[1]:
        notes.append(why)
    if profile is None:
        here = not reason and hardware.host is None
        profile = "auto" if here and len(hardware.batches) > 1 else "none"
    rows, batches, profiles = [], [], []
    what = "predicting" if reason else "predicting and measuring, a few seconds a file"
    with Steps(len(files), what, "file", shown=progress) as bar:
        for path in files:
            bar.say(path.name)
            found = _compared(path, hardware, packages, reason, profile, notes)
            rows.append(found.row)
            batches += found.batches
            profiles += found.profiles
            bar.update()
    table = pd.DataFrame(rows)
    if "measured_latency_ms" not in table and (table.get("measured", pd.Series()) == "invalid").any():
        table["measured_latency_ms"] = float("nan")
        notes.append("no measured latency: no measurement of one image is valid")
    return Comparison(
        table,
        list(dict.fromkeys(notes)),
        pd.DataFrame(batches),
        pd.concat(profiles, ignore_index=True) if profiles else pd.DataFrame(),
    )


@dataclass
class _Compared:
    row: dict[str, object]
    batches: list[dict[str, object]] = field(default_factory=list)
    profiles: list[pd.DataFrame] = field(default_factory=list)


def _compared(
    path: Path,
    hardware: Hardware,
    packages: Sequence[Package],
    not_measured: str,
    profile: str,
    notes: list[str],
) -> _Compared:
    """What one file costs. Each part of it stands alone: one that cannot be had adds a line to `notes`."""
    from dxc.hardware.network import read_network
    from dxc.hardware.predict.predict import describe_coverage, latency_metrics

    name = visible(path)
    row: dict[str, object] = {"file": name}
    found = _Compared(row)
    latency: dict[str, float] = {}

    def note(line: str) -> None:
        notes.append(f"{path}: {line}")

    @contextlib.contextmanager
    def part(what: str) -> Iterator[None]:
        try:
            yield
        except DxcError as error:
            note(f"{what}: {str(error).removeprefix(f'{path}: ')}")
        except Exception as error:  # a bug or a broken library: the other parts and files go on
            log.debug("%s: %s", path, what, exc_info=True)
            note(f"{what}: {type(error).__name__}: {error} (a fault of dxc or a library)")

    try:
        model = load_onnx(path)
    except DxcError as error:
        notes.append(str(error))
        return found
    with part("no size"):
        row["onnx_mb"] = onnx_mb(path)
    with part("no MACs, not predicted"):
        network = read_network(path)
        if network.macs is None:
            note(f"no MACs: those of {network.uncounted} are not known")
        else:
            row["macs"] = network.macs
        with part("not predicted"):
            predictions = predict_all(network, packages)
            latency = latency_metrics(predictions)
            row |= latency
            for each in predictions:
                if line := describe_coverage(each):
                    note(line)
                if line := described_machine(each):
                    notes.append(line)
    row["measured"] = "not measured"
    if profile != "none":
        with part("not profiled"):
            found.profiles.append(_profiled(path, hardware, profile, note).assign(file=name))
    if not_measured:
        return found
    with part("not measured"):
        batch = fixed_batch(model, str(path))
        efficiency = _measured(path, hardware, batch)
        measurement = efficiency.measurements[0]
        row |= measurement.metrics() | efficiency.metrics()
        notes.append(f"measured on {describe_conditions(measurement)}")
        row["measured"] = "valid" if measurement.valid else "invalid"
        for line in (*efficiency.notes, *describe_execution(efficiency.measurements)):
            note(line)
        if batch != 1:
            row["measured"] = f"at batch {batch}" if measurement.valid else f"invalid at batch {batch}"
            note(describe_batch(measurement))
        elif len(efficiency.measurements) > 1:
            found.batches = [
                {
                    "file": name,
                    "batch": one.batch,
                    "batch_ms": one.median_ms if one.valid else float("nan"),
                    "ms_per_image": one.median_ms / one.batch if one.valid else float("nan"),
                    "measured": "valid" if one.valid else "invalid",
                    "optimum": one.batch == efficiency.optimum_batch,
                }
                for one in efficiency.measurements
            ]
        if "measured_latency_ms" in row and "latency_ms" in latency:
            row["error"] = latency["latency_ms"] / measurement.median_ms - 1
    return found


def _measured(path: Path, hardware: Hardware, batch: int) -> Efficiency:
    """Measure all batch sizes of the hardware, or that of a file whose batch is fixed."""
    from dxc.hardware.measure.batches import measure_batches

    batches = hardware.batches if batch == 1 else [batch]
    return measure_batches(path, batches, lambda each: measure_on(path, hardware, each))


def _profiled(path: Path, hardware: Hardware, mode: str, note: Callable[[str], None]) -> pd.DataFrame:
    """Profile a file at the batch sizes of the hardware, or if it has one only, at those of the profiler."""
    from dxc.hardware.profiling.tables import by_batch
    from dxc.hardware.profiling.torch_profile import BATCHES, profile_network

    with tempfile.TemporaryDirectory(prefix="dxc-") as folder:
        profiled = profile_network(
            path,
            Path(folder),
            mode=mode,
            accelerator="gpu" if hardware.provider == "cuda" else "cpu",
            threads=hardware.threads,
            batches=hardware.batches if len(hardware.batches) > 1 else BATCHES,
            budget_seconds=COMPARE_PROFILE_SECONDS if mode == "auto" else None,
        )
    if profiled.note:
        note(profiled.note)
    return by_batch(profiled.table)
