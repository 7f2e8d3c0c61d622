"""Designs that share a name are profiled and shown each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dxc.analysis import front_profile
from dxc.config.hardware import Hardware


def test_designs_of_one_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = []

    def profiled(reader: Any, member: Mapping[str, Any], folder: Path, mode: str, hardware: Any) -> Any:
        folders.append(folder.name)
        rows = {"source": "torch", "table": "latency", "batch": [1], "name": "", "ms": 2.0, "share": 1.0}
        return pd.DataFrame(rows), {"peak_memory_mb": None, "notes": [], "device": "cpu"}

    monkeypatch.setattr(front_profile, "Reader", lambda uri, artifacts: None)
    monkeypatch.setattr(front_profile, "_member", profiled)
    trial, run_id = "a" * 12, "b" * 32
    front = pd.DataFrame({"name": "same", "trial": [trial, ""], "run_id": ["c" * 32, run_id]})
    found = front_profile.profile_front(
        front, "", tmp_path, mode="torch", hardware=Hardware(name="cpu"), progress=False
    )
    assert folders == [trial, run_id] == list(found.summary["trial"])
    assert list(found.summary["name"]) == ["same", "same"]
