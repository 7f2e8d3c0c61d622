"""Schedules of one file compared like for like: the same operators, batch, precision and device, measured in turn.

    eager            operator by operator, as torch does by itself
    sequential       the same as one CUDA graph
    greedy           each operator in the first stage in which it can run, as one CUDA graph
    ios              the schedule with the least sum of measured stages, as one CUDA graph
    compiled         torch.compile, mode max-autotune-no-cudagraphs
    compiled_graph   torch.compile, mode max-autotune

A gain is always against `sequential` at the same batch: it is computed where one batch is measured, and nothing here
takes times of two batch sizes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.errors import HardwareError, first_line
from dxc.files import write_atomically
from dxc.hardware.schedule.dag import Schedule
from dxc.hardware.schedule.program import Program

if TYPE_CHECKING:
    import pandas as pd

    from dxc.hardware.schedule.roofline import Peaks

log = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LEAST_GAIN = 0.02
"""A schedule gains if it is faster by more than this and by more than its rounds spread."""


@dataclass
class Comparison:
    """Schedules of one file.

    Attributes:
        device: name of the device.
        conditions: device, torch and precision, for tags.
        rows: one for each batch and schedule; see table().
        notes: what is missing, and why.
    """

    device: str
    conditions: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """One row for each batch and schedule.

        Columns: network, device, precision, batch, schedule; batch_ms (median) and spread (interquartile range /
        median) of one run; ms_per_image; gain (batch_ms of `sequential` at this batch / batch_ms); stages; groups (most
        side by side); stages_ms (sum of the stages, each measured alone); measured_stages (different ones that the
        search measured); roofline_ms and roofline_share (roofline_ms / batch_ms); error (largest, against the order of
        the file, relative); plan (operators of the file by number: groups between | and stages between ;). What is
        unknown is NaN or ''.
        """
        import pandas as pd

        return pd.DataFrame(self.rows, columns=COLUMNS)

    def save(self, path: Path) -> None:
        """Write the table as Parquet, or as CSV where the name ends so."""
        table = self.table()
        csv = path.suffix == ".csv"
        write_atomically(path, table.to_csv(index=False) if csv else table.to_parquet(index=False))

    def metrics(self) -> dict[str, float]:
        """sequential_latency_ms and scheduled_latency_ms of dxc.metrics: one image at batch 1, measured in turn."""
        found = {row["schedule"]: row["batch_ms"] for row in self.rows if row["batch"] == 1}
        named = {"sequential_latency_ms": "sequential", "scheduled_latency_ms": "ios"}
        return {
            metric: found[schedule]
            for metric, schedule in named.items()
            if schedule in found and not math.isnan(found[schedule])
        }

    def curves(self) -> list[tuple[str, float, int]]:
        """(name, value, batch size): time of one image by schedule, and gains."""
        points = []
        for row in self.rows:
            for column in ("ms_per_image", "gain"):
                if not math.isnan(row[column]):
                    points.append((f"schedule/{row['schedule']}/{column}", row[column], row["batch"]))
        return points

    def findings(self) -> list[str]:
        """Where running operators side by side gains, where it does not, and by how much, in sentences."""
        gains: dict[int, float] = {}
        none: list[int] = []
        for batch in sorted({row["batch"] for row in self.rows}):
            of = {row["schedule"]: row for row in self.rows if row["batch"] == batch}
            if not {"sequential", "ios"} <= of.keys() or math.isnan(of["ios"]["gain"]):
                continue
            spread = max(LEAST_GAIN, of["ios"]["spread"], of["sequential"]["spread"])
            if of["ios"]["gain"] > 1 + spread:
                gains[batch] = of["ios"]["gain"]
            else:
                none.append(batch)
        lines = []
        if gains:
            each = ", ".join(f"{gain:.2f} times at batch {batch}" for batch, gain in gains.items())
            lines.append(f"scheduling gains over the sequential graph of the same batch: {each}")
        if none:
            lines.append(f"scheduling gains nothing at batch {', '.join(map(str, none))}")
        return lines


COLUMNS = (
    "network", "device", "precision", "batch", "schedule", "batch_ms", "spread", "ms_per_image", "gain", "stages",
    "groups", "stages_ms", "measured_stages", "roofline_ms", "roofline_share", "error", "plan",
)  # fmt: skip


def compare_schedules(
    onnx: Path,
    batches: Sequence[int] = BATCHES,
    *,
    precision: str = "fp32",
    device: str = "cuda",
    compile_batches: Sequence[int] = (),
    compile_seconds: float = 120.0,
    seconds: float | None = None,
    out: Path | None = None,
) -> Comparison:
    """Find, run and measure the schedules of a file, batch by batch.

    A batch that cannot be measured, or for which there is no time, is left out with a note, as all larger ones are.

    Args:
        onnx: the file.
        batches: batch sizes.
        precision: fp32 (without TF32), bf16 or fp16.
        device: cuda; or cpu, where groups run one after the other, so that nothing can be gained.
        compile_batches: batch sizes at which torch.compile is measured too. Each takes tens of seconds.
        compile_seconds: time limit of torch.compile, all batch sizes and modes together.
        seconds: time limit of the rest; None: no limit.
        out: file of the table (.parquet or .csv), written anew after each batch.

    Raises:
        ConfigError: an unknown precision.
        HardwareError: there is no such device, or the file cannot be run at the first batch size.
    """
    import torch

    from dxc.hardware.schedule.program import exact_numbers
    from dxc.hardware.schedule.roofline import measure_peaks
    from dxc.hardware.spec import device_name

    if device == "cuda" and not torch.cuda.is_available():
        raise HardwareError(
            "schedules are measured on a GPU, and there is no CUDA device here; on the processor (--device cpu) groups "
            "run one after the other"
        )
    name = device_name(device)
    said = f"torch {torch.__version__}" + (f", CUDA {torch.version.cuda}" if device == "cuda" else "")
    found = Comparison(name, f"{name}; {said}, {precision}")
    if device == "cpu":
        found.notes.append(
            "a processor has no streams: groups ran one after the other, so no schedule can gain"
        )
    batches = _possible_batches(onnx, sorted(set(batches)), found.notes)
    macs = _macs(onnx, found.notes)
    begun = time.perf_counter()
    with exact_numbers(precision), torch.inference_mode():
        peaks = measure_peaks(torch.device(device), precision)
        last_s = 0.0
        for place, batch in enumerate(batches):
            started = time.perf_counter()
            left_out = ", ".join(map(str, batches[place:]))
            if seconds is not None and place and started - begun + 1.5 * last_s > seconds:
                found.notes.append(f"batch {left_out} left out: {seconds:.0f} s are allowed")
                break
            try:
                found.rows += _compare_batch(onnx, batch, precision, device, macs, peaks, found)
            except (HardwareError, RuntimeError) as error:  # torch's, such as too little memory
                if place == 0:
                    raise HardwareError(f"{onnx}: schedules cannot be measured: {error}") from error
                reason = first_line(error)
                found.notes.append(f"batch {left_out} left out: {reason}")
                break
            finally:
                if device == "cuda":
                    torch.cuda.empty_cache()
            last_s = time.perf_counter() - started
            log.info("%s, %s, batch %d: schedules took %.1f s", onnx.name, precision, batch, last_s)
            if out is not None:
                found.save(out)
    measured = {row["batch"] for row in found.rows}
    if compile_batches := [batch for batch in compile_batches if batch in measured]:
        _add_compiled(onnx, compile_batches, precision, device, compile_seconds, found)
        if out is not None:
            found.save(out)
    return found


def _possible_batches(onnx: Path, batches: list[int], notes: list[str]) -> list[int]:
    """The batch sizes that a file can compute, as in dxc.hardware.measure.batches."""
    from dxc.hardware.measure.batches import CHECK_IMAGES, check_batch
    from dxc.hardware.onnx_file import fixed_batch, load_onnx

    if (fixed := fixed_batch(load_onnx(onnx), str(onnx))) != 1:
        notes.append(f"its batch is fixed at {fixed}, so it is measured at {fixed}")
        return [fixed]
    if batches[-1] > 1:
        try:
            check_batch(onnx, min(CHECK_IMAGES, batches[-1]))
        except HardwareError as error:
            notes.append(f"only batch 1 is measured: {error}")
            return [1]
    return batches


def _macs(onnx: Path, notes: list[str]) -> float:
    """Multiply-accumulates of one image; NaN where they are unknown."""
    from dxc.hardware.network import read_network

    try:
        network = read_network(onnx)
    except HardwareError as error:
        notes.append(f"no share of the roofline: {error}")
        return math.nan
    if network.macs is None:
        notes.append(f"no share of the roofline: the MACs of {network.uncounted} are not known")
        return math.nan
    return network.macs


def _compare_batch(
    onnx: Path, batch: int, precision: str, device: str, macs: float, peaks: Peaks, found: Comparison
) -> list[dict[str, Any]]:
    from dxc.hardware.schedule.cost import StageTimes
    from dxc.hardware.schedule.execution import (
        Execution,
        InOrderExecution,
        Streams,
        execution,
        is_equal,
        largest_error,
        times_in_turn,
    )
    from dxc.hardware.schedule.optimise import BY_NAME
    from dxc.hardware.schedule.program import load_program

    program = load_program(onnx, batch=batch, precision=precision, device=device)
    streams = Streams() if device == "cuda" else None
    cost = StageTimes(program, streams)
    schedules = {name: make(program.dag, cost) for name, make in BY_NAME.items()}
    measured_stages = cost.measured
    executions: dict[str, Execution] = {"eager": InOrderExecution(program)}
    executions |= {name: execution(program, each, streams) for name, each in schedules.items()}
    errors = {name: largest_error(program, each) for name, each in executions.items()}
    for name in [name for name, error in errors.items() if not is_equal(program, error)]:
        found.notes.append(
            f"batch {batch}: {name} is not measured, because its outputs differ from those in the order of the file by "
            f"{errors[name]:.1e}"
        )
        del executions[name]
    times = times_in_turn(executions)
    least = peaks.least_ms(macs * batch, program.bytes_once)
    return [
        _row(found, program, name, times.get(name), times.get("sequential"), least, errors[name])
        | (_of_schedule(schedules[name], cost, measured_stages, name) if name in schedules else {})
        for name in errors
    ]


def _row(
    found: Comparison,
    program: Program,
    schedule: str,
    ms: np.ndarray | None,
    sequential: np.ndarray | None,
    least_ms: float,
    error: float,
) -> dict[str, Any]:
    """A row of the table, without what only a schedule has. Both times are of this program, so of one batch."""
    middle = math.nan if ms is None else float(np.median(ms))
    base = math.nan if sequential is None else float(np.median(sequential))
    spread = math.nan if ms is None else float(np.subtract(*np.percentile(ms, [75, 25])) / middle)
    return {
        "network": Path(program.source).stem,
        "device": found.device,
        "precision": program.precision,
        "batch": program.batch,
        "schedule": schedule,
        "batch_ms": middle,
        "spread": spread,
        "ms_per_image": middle / program.batch,
        "gain": base / middle,
        "stages": math.nan,
        "groups": math.nan,
        "stages_ms": math.nan,
        "measured_stages": math.nan,
        "roofline_ms": least_ms,
        "roofline_share": least_ms / middle,
        "error": error,
        "plan": "",
    }


def _of_schedule(schedule: Schedule, cost: Any, measured: int, name: str) -> dict[str, Any]:
    return {
        "stages": len(schedule),
        "groups": max(map(len, schedule)),
        "stages_ms": sum(map(cost, schedule)),
        "measured_stages": measured if name == "ios" else math.nan,
        "plan": plan_in_words(schedule),
    }


def plan_in_words(schedule: Schedule) -> str:
    """'0; 1 2 | 3; 4': operators by number, groups between | and stages between ;."""
    return "; ".join(" | ".join(" ".join(map(str, group)) for group in stage) for stage in schedule)


def _add_compiled(
    onnx: Path, batches: Sequence[int], precision: str, device: str, seconds: float, found: Comparison
) -> None:
    """Add rows of torch.compile to those of the same batch."""
    from dxc.hardware.schedule.compiled import compiled_times

    compiled = compiled_times(onnx, batches, precision=precision, device=device, seconds=seconds)
    found.notes += compiled.notes
    for batch, by_name in compiled.ms.items():
        for name, row in _compiled_rows(batch, by_name, compiled.errors[batch], found.rows).items():
            at = max(place for place, each in enumerate(found.rows) if each["batch"] == batch)
            found.rows.insert(at + 1, row)
            if math.isnan(row["batch_ms"]):
                found.notes.append(
                    f"batch {batch}: {name} is not measured, because its outputs differ by {row['error']:.1e}"
                )


def _compiled_rows(
    batch: int, by_name: Mapping[str, np.ndarray], errors: Mapping[str, float], rows: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    from dxc.hardware.schedule.program import TOLERANCE

    (sequential,) = [row for row in rows if row["batch"] == batch and row["schedule"] == "sequential"]
    made = {}
    for name, ms in by_name.items():
        equal = (
            errors[name] <= 10 * TOLERANCE[sequential["precision"]]
        )  # fused operators round in other places
        middle = float(np.median(ms)) if equal else math.nan
        made[name] = {
            **dict.fromkeys(("stages", "groups", "stages_ms", "measured_stages"), math.nan),
            **{key: sequential[key] for key in ("network", "device", "precision", "batch", "roofline_ms")},
            "schedule": name,
            "batch_ms": middle,
            "spread": float(np.subtract(*np.percentile(ms, [75, 25])) / middle),
            "ms_per_image": middle / batch,
            "gain": sequential["batch_ms"] / middle,
            "roofline_share": sequential["roofline_ms"] / middle,
            "error": errors[name],
            "plan": "",
        }
    return made
