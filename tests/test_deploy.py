"""deploy.py end to end: what it needs to be told, and a command that was killed goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dxc.config.compose import PROJECT_ROOT
from tests.deployment.conftest import study, trained_study  # noqa: F401  # fixtures
from tests.deployment.studies import tracked_runs


def _command(folder: Path, *overrides: str) -> list[str]:
    places = [
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"cache_dir={folder}/cache",
        f"out={folder}/reports",
    ]
    return [sys.executable, "deploy.py", *places, "progress=false", *overrides]


def _deploy(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(folder, *overrides), cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "error: name what is deployed: study=NAME for its front, or runs=[ID,ID]"),
        (
            ["study=first", "hardware=pi"],
            "error: hardware=pi is another machine: name it, hardware.host=user@address",
        ),
        (
            ["study=first", "hardware.host='a;b'"],
            "must read user@address, such as pi@raspberrypi.local, not 'a;b'",
        ),
    ],
)
def test_what_it_needs_to_be_told(tmp_path: Path, overrides: list[str], said: str) -> None:
    done = _deploy(tmp_path, *overrides)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_deployment_goes_on(study: Path) -> None:  # noqa: F811
    """Killed with kill -9 while its second network runs: the first is not run again, nor is the second twice."""
    whole = ("study=small", "designs=all", "seconds=2")
    killed = subprocess.Popen(
        _command(study, *whole), cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("2/3") and "running" in line:
            break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    begun = time.time()
    done = _deploy(study, *whole)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("1/3") and "measured before, and not again" in line for line in lines)
    assert not any(line.startswith("2/3") and "sending" in line for line in lines)
    assert any(line.startswith("3/3") and "running" in line for line in lines)
    assert all("device_accuracy" in each.data.metrics for each in tracked_runs(study).values())
    assert (study / "reports" / "small" / "deployed.csv").stat().st_mtime > begun
