"""What a device measured of one network: its record, checked, and the metrics that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dxc.errors import HardwareError, first_line
from dxc.hardware.measure.latency import MAX_SPREAD, spread_of
from dxc.text import counted

_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0)]
_Name = Annotated[str, Field(max_length=300)]


class _Data(BaseModel):
    """Comes from a device: it is checked, and what is not known is left out."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Environment(_Data):
    """What the device is."""

    device: _Name
    machine: _Name = "?"
    system: _Name = "?"
    host: _Name = "?"
    python: _Name = "?"
    numpy: _Name = "?"
    runtime: _Name
    runtime_version: _Name
    provider: _Name
    threads: _Count
    affinity: list[int] | None = None
    memory_bytes: _Count | None = None

    def described(self, *, emulated: bool) -> str:
        """'Raspberry Pi 3 Model B Plus Rev 1.3, 4 cores; onnxruntime 1.31.1, cpu, 4 threads': tag dxc.measured_on.

        Args:
            emulated: whether the device is no real one.
        """
        cores = "" if self.affinity is None else f", cores {','.join(map(str, self.affinity))}"
        kind = "emulated, " if emulated else ""
        return (
            f"{kind}{self.device}; {self.runtime} {self.runtime_version}, {self.provider}, "
            f"{counted(self.threads, 'thread')}{cores}"
        )


class Repeat(_Data):
    """One window of load: all images, until its time was over."""

    images: _Count
    passes: _Count
    seconds: _Amount
    inference_seconds: _Amount
    correct: _Count | None
    median_ms: _Amount
    same_answers: bool


class FileOfResult(_Data):
    """A file beside the record."""

    bytes: Annotated[int, Field(ge=0, le=2**31)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class DeviceRecord(_Data):
    """What a device says of one network; see dxc.deploy.device_worker.measure."""

    key: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    attempt: _Name
    images: Annotated[int, Field(ge=1)]
    correct: _Count | None
    """None: the images have no labels."""
    not_finite: _Count
    repeats: Annotated[list[Repeat], Field(min_length=1)]
    outputs: dict[Annotated[str, Field(pattern="^[a-z_]{1,32}$")], list[_Count]]
    baseline_memory_bytes: _Count
    peak_memory_bytes: _Count
    memory_from: _Name
    images_in_memory: bool
    idle_seconds: _Amount
    environment: Environment
    before: dict[str, Any]
    after: dict[str, Any]
    date: _Name
    files: dict[Annotated[str, Field(pattern=r"^(times|output-[a-z_]{1,32})\.bin$")], FileOfResult]

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str) -> DeviceRecord:
        """Check what a device sent. Raises HardwareError for what is no record."""
        try:
            record = cls.model_validate(content)
            timed = sum(each.images for each in record.repeats)
            if record.files["times.bin"].bytes != 4 * timed:
                raise ValueError("it has another number of times than of runs")
            if record.correct is not None and record.correct > record.images:
                raise ValueError("it has more right answers than images")
        except (ValidationError, ValueError, KeyError) as error:
            first = first_line(error)
            raise HardwareError(f"{where}: its result cannot be used: {first}") from error
        return record

    @cached_property
    def throttled(self) -> bool:
        """Whether the firmware says, before or after, that the processor was slowed down or had too little voltage."""
        return any(str(state.get("throttled", "0x0")) != "0x0" for state in (self.before, self.after))

    @property
    def accuracy(self) -> float | None:
        """Fraction of the images that were classified rightly; None where they have no labels."""
        return None if self.correct is None else self.correct / self.images

    def latency(self, times_ms: np.ndarray) -> tuple[dict[str, float], str]:
        """Metrics of the latency, and '' or why there are none.

        Args:
            times_ms: of every run of the network, in order.
        """
        spread = spread_of(times_ms)  # type: ignore[arg-type]  # an array serves too
        if self.throttled:
            flags = " and ".join(str(each.get("throttled", "?")) for each in (self.before, self.after))
            return (
                {},
                f"the device throttled (vcgencmd get_throttled: {flags}); cool it, or give it a better supply",
            )
        if spread > MAX_SPREAD:
            return {}, (
                f"its runs spread by {spread:.0%} of their median, {MAX_SPREAD:.0%} are allowed; is the device busy? "
                "again=true measures it again"
            )
        return {
            "measured_latency_ms": float(np.median(times_ms)),
            "measured_latency_p95_ms": float(np.percentile(times_ms, 95)),
        }, ""

    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        notes = []
        if self.not_finite:
            notes.append(f"{self.not_finite} answers are not finite")
        if not all(each.same_answers for each in self.repeats):
            notes.append("repeats gave different answers")
        if not self.images_in_memory:
            notes.append("the device had too little memory for all images; they were read in blocks")
        governor = self.before.get("governor")
        if governor not in (None, "performance"):
            notes.append(f"its processor's governor is {str(governor)[:30]}, not performance")
        return notes
