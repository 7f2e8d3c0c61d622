"""scale.py on the command line. What it does is tested in tests/scaling/."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dxc.config.compose import PROJECT_ROOT


def _scale(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scale.py", *arguments]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=timeout)


def test_help_says_what_to_type() -> None:
    done = _scale("--help")
    assert "python scale.py devices=1,2,4,8 minutes=5" in done.stdout
    assert "resnet50" in done.stdout and "imagefolder" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["devices=0"], "devices must be different whole numbers of at least 1, such as 1,2,4, not "),
        (["until=loss=1"], "until must be accuracy=SHARE"),
        (["source=imagefolder"], "no value for source.root; give it on the command line: source.root=..."),
        (
            ["devices=1,2", "hydra/launcher=submitit_slurm"],
            "accelerator=cuda or accelerator=cpu is needed on Slurm",
        ),
    ],
)
def test_mistakes_get_one_message(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = _scale(*arguments, f"hydra.run.dir={tmp_path}/out", f"cache_dir={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().startswith(f"error: {says}")
    assert "Traceback" not in done.stderr


def _small(folder: Path) -> list[str]:
    """A study of one and two devices that takes seconds."""
    return [
        "model=resnet8", "source.classes=4", "data.size=16", "batch=4", "accelerator=cpu", "oversubscribe=true",
        "devices=1,2", "measured_seconds=0.5", "warmup_steps=2", f"cache_dir={folder}/cache", f"out={folder}/reports",
        f"hydra.run.dir={folder}/run", f"tracking.uri=sqlite:///{folder}/runs.db",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_study_on_two_devices(tmp_path: Path) -> None:
    """Two ranks of this machine, trained, measured and reported; the second time nothing is run."""
    command = [*_small(tmp_path), "minutes=0.03"]
    first = _scale(*command, timeout=600)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "times one device's images/s" in first.stdout
    assert (tmp_path / "reports" / "scale" / "index.html").is_file()
    again = _scale(*command, timeout=600)
    assert again.stderr.count("kept, ") + again.stdout.count("kept, ") == 2


@pytest.mark.slow
def test_a_study_that_is_killed_in_its_second_run_goes_on_with_it(tmp_path: Path) -> None:
    command = [*_small(tmp_path), "minutes=0.15"]
    killed = subprocess.Popen(
        [sys.executable, "scale.py", *command],
        cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not _training(tmp_path, ranks=2):
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)  # its ranks are in groups of their own
        killed.wait()
    deadline = time.monotonic() + 10
    while _processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _processes(tmp_path)
    (first,) = (tmp_path / "cache" / "scaling").glob("*/result.json")
    before = first.read_bytes(), first.stat().st_mtime_ns
    again = _scale(*command, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (again.stderr + again.stdout).count("kept, ") == 1
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert len(list((tmp_path / "cache" / "scaling").glob("*/result.json"))) == 2
    assert not _processes(tmp_path)


def _processes(folder: Path) -> list[psutil.Process]:
    """Ranks of runs in this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "dxc.scaling.worker" in process.cmdline() and any(
                str(folder) in each for each in process.cmdline()
            ):
                found.append(process)
    return found


def _training(folder: Path, ranks: int) -> bool:
    """Whether a run of so many ranks has got past its imports."""
    with contextlib.suppress(psutil.Error):
        busy = [
            process
            for process in _processes(folder)
            if process.environ().get("WORLD_SIZE") == str(ranks) and process.cpu_times().user > 2
        ]
        return len(busy) == ranks
    return False
