"""calibrate.py on the command line. What it makes is tested in tests/hardware/calibrate/test_calibration.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dxc.config.compose import PROJECT_ROOT


def _calibrate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "calibrate.py", *arguments]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no value for name; give it on the command line: name=..."),
        (["name=x", "hardware=pi"], "hardware=pi is another machine. Name it, hardware.host=user@address"),
        (
            ["name=x", "hardware.runtime=torch"],
            "hardware.runtime=torch: a predictor is calibrated with ONNX Runtime",
        ),
        (["name=x", "networks=3"], "networks must be a whole number of at least 20, not 3"),
        (["name=x", "max_minutes=0"], "max_minutes must be a number over 0"),
        (["name=x/y"], "name=x/y names a folder"),
    ],
)
def test_mistakes_get_one_message(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = _calibrate(*arguments, f"hardware.packages_dir={tmp_path}", f"hydra.run.dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.strip().startswith(f"error: {says}")
    assert "Traceback" not in done.stderr


def test_help_says_what_to_type() -> None:
    done = _calibrate("--help")
    assert "python calibrate.py name=my_cpu" in done.stdout
    assert "hardware: a100, a5500, cpu, pi" in done.stdout
