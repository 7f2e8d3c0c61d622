"""Saves benchmark figures in benchmarks/results/NAME.json, with device and date."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from dxc.files import write_atomically
from dxc.hardware.spec import device_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def save(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the figures of one script into a folder. An interrupted write leaves the old file."""
    record = {"date": date.today().isoformat(), "device": device_name(), "kind": "measured", **figures}
    path = folder / f"{name}.json"
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    print(f"saved {os.path.relpath(path)}")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """'median (min to max)'."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
