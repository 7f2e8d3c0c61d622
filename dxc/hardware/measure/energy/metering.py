"""What a meter said of one network, with its verdict, as it is kept beside the run: energy.json."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dxc.errors import HardwareError, is_number
from dxc.files import write_atomically
from dxc.hardware.measure.energy.protocol import Energy, Sample, Window, judge
from dxc.hardware.measure.energy.sources import Source
from dxc.untrusted import load_json

FOLDER, FILE = "deployed", "energy.json"
"""Folder of a run's artifacts, in which each device has one, and the file in that."""
MAX_BYTES = 50_000_000


@dataclass(frozen=True)
class Metering:
    """Samples and windows of one network, and what follows from them.

    Attributes:
        meter: its name.
        samples: all of the windows, and some before and after.
        windows: see dxc.hardware.measure.energy.protocol.
        energy: the verdict.
    """

    meter: str
    samples: Sequence[Sample]
    windows: Sequence[Window]
    energy: Energy

    def content(self) -> dict[str, Any]:
        """Everything in plain containers."""
        return {
            "meter": self.meter,
            "energy": self.energy.record(),
            "windows": [asdict(each) for each in self.windows],
            "samples": [list(each) for each in self.samples],
        }

    def save(self, path: Path) -> None:
        """Write everything as JSON. The file appears when it is complete."""
        write_atomically(path, json.dumps(self.content()) + "\n")

    @classmethod
    def load(cls, path: Path) -> Metering:
        """Read a file of save(), which may come from a store. It is judged as it stands: the verdict is not computed
        anew, because latency and throttling are not in it.

        Raises:
            ValueError: it is no such file.
            OSError: it cannot be read.
        """
        content = load_json(path, limit=MAX_BYTES)
        try:
            content = content.get("content", content)  # where more is written beside it
            samples = [Sample(_finite(at), _finite(watt)) for at, watt in content["samples"]]
            windows = [
                Window(
                    "load" if each["kind"] == "load" else "idle",
                    begin_s=_finite(each["begin_s"]),
                    end_s=_finite(each["end_s"]),
                    images=int(_finite(each["images"])),
                    inference_seconds=_finite(each["inference_seconds"]),
                )
                for each in content["windows"]
            ]
            said = content["energy"]
            known: dict[str, Any] = {
                key: _finite(value) for key, value in said.items() if key in _NUMBERS and value is not None
            }
            energy = Energy(valid=said["valid"] is True, reason=str(said["reason"]), **known)
            return cls(str(content["meter"]), samples, windows, energy)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no record of a meter: {error}") from error


_NUMBERS = (
    "energy_mj", "energy_error_mj", "net_energy_mj", "net_energy_error_mj", "max_power_w", "idle_before_w",
    "idle_after_w",
)  # fmt: skip


def artifact_of(device: str) -> str:
    """Path of the record among a run's artifacts.

    Args:
        device: as the tag dxc.measured_on names it.
    """
    return f"{FOLDER}/{slug(device)}/{FILE}"


def slug(device: str) -> str:
    """Name of a folder for a device: readable, and different for different devices."""
    mark = hashlib.blake2b(device.encode(), digest_size=3).hexdigest()
    return re.sub(r"[^A-Za-z0-9]+", "-", device.partition(";")[0]).strip("-")[:60] + f"-{mark}"


def _finite(value: Any) -> float:
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"it is no record of a meter: {value!r:.40} is no number")
    return float(value)


def metered(
    source: Source, windows: Sequence[Window], *, latency_ms: float | None, throttled: bool = False
) -> Metering:
    """What a meter says of the windows of one network.

    A meter that fails makes an invalid figure, not an error: accuracy and latency of the same run are sound.

    Args:
        source: open.
        windows: of one network, all of them over; see judge().
        latency_ms: see judge().
        throttled: see judge().
    """
    try:
        samples = source.during(windows)
    except HardwareError as error:
        return Metering(source.name, [], windows, Energy(False, str(error)))
    energy = judge(samples, windows, latency_ms=latency_ms, throttled=throttled)
    return Metering(source.name, samples, windows, energy)
