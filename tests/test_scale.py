"""scale.py on the command line. What it does is tested in tests/scaling/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.slow
def test_a_study_on_two_devices(tmp_path: Path) -> None:
    """Two ranks of this machine, trained, measured and reported; the second time nothing is run."""
    command = [
        *(
            "model=resnet8",
            "source.classes=4",
            "data.size=16",
            "batch=4",
            "accelerator=cpu",
            "oversubscribe=true",
        ),
        *("devices=1,2", "minutes=0.03", "measured_seconds=0.5", "warmup_steps=2"),
        *(f"cache_dir={tmp_path}/cache", f"out={tmp_path}/reports", f"hydra.run.dir={tmp_path}/run"),
        f"tracking.uri=sqlite:///{tmp_path}/runs.db",
    ]
    first = _scale(*command, timeout=600)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (
        "2 devices, weak, batch 4: 2 devices gave" in first.stdout
        or "times one device's images/s" in first.stdout
    )
    assert (tmp_path / "reports" / "scale" / "index.html").is_file()
    again = _scale(*command, timeout=600)
    assert again.stderr.count("kept, ") + again.stdout.count("kept, ") == 2
