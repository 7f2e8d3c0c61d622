"""Inference efficiency: the time per image when images are processed in batches.

    e(n) = latency of one execution / n        ms per image, n images per batch; less is better

The batch size with the least e(n) is the optimum (doi 10.1145/3624062.3624260, where n is 1, 2, 4, ..., 64 and 32 is
best on an RTX A5500). All batch sizes run the same file. Its outputs for a batch are compared with its outputs for the
images one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dxc.errors import HardwareError
from dxc.hardware.measure.latency import Measurement

if TYPE_CHECKING:
    import pandas as pd

MAX_SECONDS = 30.0
"""Longest time to measure one batch size. Larger ones are left out."""

EXECUTIONS = 17  # 2 and StopRule's min_runs
"""Executions when a slow file is measured: the first, one to warm up, and the timed ones."""

CHECK_IMAGES = 4
MAX_RELATIVE_ERROR = 1e-4  # as for the exported file against torch


@dataclass(frozen=True)
class Efficiency:
    """Measurements of one file at ascending batch sizes. The notes say which are missing or invalid, and why."""

    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()

    @property
    def ms_per_image(self) -> dict[int, float]:
        """e(n) in ms by batch size n, for valid measurements. It is empty for fewer than two batch sizes."""
        valid = {m.batch: m.median_ms / m.batch for m in self.measurements if m.valid}
        return valid if len(valid) > 1 else {}

    @property
    def optimum_batch(self) -> int | None:
        """Batch size with the least e(n), the smallest of several. None where there is nothing to compare."""
        return optimum(self.ms_per_image)

    def metrics(self) -> dict[str, float]:
        """efficiency_ms (the least), efficiency_ms/batchN and optimum_batch of dxc.metrics, or nothing."""
        best = self.optimum_batch
        if best is None:
            return {}
        per_image = self.ms_per_image
        parts = {f"efficiency_ms/batch{batch}": ms for batch, ms in per_image.items()}
        return {"efficiency_ms": per_image[best], **parts, "optimum_batch": float(best)}

    def table(self) -> pd.DataFrame:
        """One row per batch size: batch, ms_per_image (median), q25_ms and q75_ms (quartiles per image), valid.

        dxc.report.efficiency draws it.
        """
        import pandas as pd

        rows = [
            (m.batch, m.median_ms / m.batch, *(np.percentile(m.raw_ms, [25, 75]) / m.batch), m.valid)
            for m in self.measurements
        ]
        return pd.DataFrame(rows, columns=["batch", "ms_per_image", "q25_ms", "q75_ms", "valid"])


def optimum(ms_per_image: Mapping[int, float]) -> int | None:
    """The batch size with the least time per image, the smallest of several. None for fewer than two sizes.

    Args:
        ms_per_image: time per image in ms by batch size, of valid measurements.
    """
    if len(ms_per_image) < 2:
        return None
    return min(ms_per_image, key=lambda batch: (ms_per_image[batch], batch))


def measure_batches(
    onnx: Path,
    batches: Sequence[int],
    measure: Callable[[int], Measurement],
    *,
    max_seconds: float = MAX_SECONDS,
) -> Efficiency:
    """Measure one file at ascending batch sizes.

    It ends with a note before the first batch size that would take over max_seconds, or that cannot be measured (too
    little memory, a file with a fixed batch).

    Args:
        onnx: the file.
        batches: batch sizes.
        measure: measures one batch size.
        max_seconds: longest time to measure one batch size.

    Raises:
        DxcError: `measure` cannot measure the first batch size.
    """
    first, *larger = batches
    taken = [measure(first)]
    notes: list[str] = []
    if larger:
        try:
            check_batch(onnx, min(CHECK_IMAGES, larger[-1]))
        except HardwareError as error:
            notes.append(f"only batch {first} is measured: {error}")
            larger = []
    for place, batch in enumerate(larger):
        left_out = ", ".join(str(each) for each in larger[place:])
        seconds = EXECUTIONS * taken[-1].median_ms / 1000 * batch / taken[-1].batch
        if seconds > max_seconds:
            notes.append(
                f"batch {left_out} not measured: batch {batch} would take about {seconds:.0f} s, "
                f"and {max_seconds:g} s are allowed"
            )
            break
        try:
            taken.append(measure(batch))
        except HardwareError as error:
            notes.append(f"batch {left_out} not measured: {error}")
            break
    efficiency = Efficiency(tuple(taken))
    return Efficiency(tuple(taken), (*notes, *_notes(efficiency)))


def _notes(efficiency: Efficiency) -> list[str]:
    """Notes on the optimum: invalid batch sizes, and ties."""
    several = len(efficiency.measurements) > 1
    ignored = "; it does not count for optimum_batch" if several else ""
    notes = [
        f"measured latency at batch {each.batch} is invalid: {each.reason}{ignored}"
        for each in efficiency.measurements
        if not each.valid
    ]
    if not several:
        return notes
    best = efficiency.optimum_batch
    if best is None:
        return [*notes, "no efficiency_ms: fewer than two batch sizes have a valid measurement"]
    least, spreads = efficiency.ms_per_image[best], {m.batch: m.spread for m in efficiency.measurements}
    equal = [
        str(batch)
        for batch, ms in efficiency.ms_per_image.items()
        if batch != best and ms <= least * (1 + max(spreads[batch], spreads[best]))
    ]
    if equal:
        notes.append(
            f"optimum_batch is {best}; within the spread of the runs it ties with batch {', '.join(equal)}"
        )
    return notes


def check_batch(onnx: Path, images: int = CHECK_IMAGES) -> None:
    """Raise HardwareError unless a batch of random images gives the same outputs as its images one by one.

    They are compared on this machine's CPU, relative to the largest value of the output (MAX_RELATIVE_ERROR). If a
    graph mixes up its batch (a size fixed inside, a sum over it), its time is not that of n images.

    Args:
        onnx: the file.
        images: number of images in the batch.
    """
    from dxc.hardware.measure.ort import session

    try:
        runner = session(str(onnx), threads=1)
        (image,) = runner.get_inputs()
        names = [output.name for output in runner.get_outputs()]
        batch = np.random.default_rng(0).random((images, *image.shape[1:]), dtype=np.float32)
        alone = [runner.run(None, {image.name: batch[i : i + 1]}) for i in range(images)]
        together = runner.run(None, {image.name: batch})
    except Exception as error:  # the error classes of onnxruntime differ between versions
        raise HardwareError(
            f"{onnx} cannot compute a batch of {images}: {type(error).__name__}: {error}; export it with an open "
            "batch, or measure single images only: hardware.batches=[1]"
        ) from error
    for name, whole, *parts in zip(names, together, *alone, strict=True):
        expected = np.concatenate([np.atleast_1d(part) for part in parts])
        if whole.shape != expected.shape:
            difference = f"the shape {whole.shape}, not {expected.shape}"
        else:
            largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
            relative = float(np.abs(whole - expected).max()) / largest
            if relative <= MAX_RELATIVE_ERROR:  # false for NaN too
                continue
            difference = f"a relative error of {relative:.1e}, {MAX_RELATIVE_ERROR:.0e} is allowed"
        raise HardwareError(
            f"{onnx} mixes up its images: compared with one at a time, output '{name}' of a batch of {images} has "
            f"{difference}; is a batch size fixed inside the graph? hardware.batches=[1] measures one at a time"
        )
