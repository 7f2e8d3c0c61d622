"""map.py on the command line. What it makes is tested in tests/mapping/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dxc.config.compose import PROJECT_ROOT


def _map(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "map.py", *arguments]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no value for out; give it on the command line: out=..."),
        (["out=map.gpkg", "dem=dem.tif"], "which network? Give one of run=RUN_ID, study=NAME"),
        (["out=map.gpkg", "onnx=gone.onnx", "dem=dem.tif"], "onnx=gone.onnx: no such file"),
        (
            ["out=map.gpkg", "onnx=a.onnx", "dem=a.tif", "mode=fast"],
            "mode must be auto, chips, dense or corridor",
        ),
    ],
)
def test_mistakes_get_one_message(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = _map(*arguments, f"hydra.run.dir={tmp_path}/out")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    done = _map("out=map.gpkg", "corridor=15", f"hydra.run.dir={tmp_path}/out")
    assert done.returncode != 0
    assert "corridor" in done.stderr


def test_help_says_what_to_type() -> None:
    done = _map("--help")
    assert (
        "python map.py run=RUN_ID dem=dem.tif photo=naip.tif roads=roads.gpkg out=crossings.gpkg"
        in done.stdout
    )
