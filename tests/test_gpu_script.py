"""benchmarks/gpu.py, tried on a processor: every part runs and writes its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ChipMaker

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ("environment", "tests"),
        ("train", "throughput"),
        ("determinism",),
        ("engines",),
        ("latency",),
        ("search", "resnet50"),
        ("schedule",),
    ],
)
def test_parts_on_a_processor(parts: tuple[str, ...], make_chips: ChipMaker, tmp_path: Path) -> None:
    chips, out = make_chips(per_class=8, size=100), tmp_path / "figures"
    done = run("--tiny", "--device", "cpu", "--chips", str(chips), "--out", str(out), "--parts", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in parts:
        figures = json.loads((out / f"{part}.json").read_text())
        assert figures["kind"] == "tiny" and figures["device"] and figures["seconds"] > 0
    if "determinism" in parts:
        assert figures["graph"]["equal"] and figures["eager"]["equal"]


def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("--out", str(tmp_path))
    assert done.returncode == 2
    assert "no CUDA device here: --tiny --device cpu tries the script on the processor" in done.stderr
