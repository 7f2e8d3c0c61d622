"""Runs of one and two ranks on this machine: what is timed, what is measured, what happens when a rank fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from dxc.errors import ScalingError
from dxc.hardware.schedule import roofline
from dxc.hardware.schedule.roofline import Peaks, training_step_s
from dxc.models.resnet import TinyResNet
from dxc.scaling.launch import launch_here
from dxc.scaling.worker import Request, Run, measured_blocks
from tests.scaling.runs import SMALL, result_of, written


@pytest.mark.long
def test_two_ranks_train_for_the_time_and_measure_their_communication(tmp_path: Path) -> None:
    """A pause of 50 ms stands for computation: so the times of a step are known on any machine."""
    written(tmp_path, simulated_step_ms=50)
    launch_here(tmp_path)
    result = result_of(tmp_path)
    assert result["wall_seconds"] == pytest.approx(1.5, abs=1)
    assert result["wall_spread_s"] < 0.5
    assert result["images_per_second"] == pytest.approx(2 * 4 * result["steps"] / result["wall_seconds"])
    assert result["step_s"] == pytest.approx(result["wall_seconds"] / result["steps"])
    assert result["compute_s"] > 0.05
    assert result["synced_s"] > 0.05
    assert "least_step_s" not in result  # a pause has no roofline
    assert result["loader_s"] == 0  # images are made on the device
    assert result["gradient_bytes"] == 4 * result["params"]
    sizes = [size for size, *_ in result["reduced"]]
    assert sizes == sorted(sizes) and sizes[0] == 4 and sizes[-1] == result["gradient_bytes"]
    assert all(seconds > 0 for _, seconds, _ in result["reduced"])
    assert 0 <= result["accuracy"] <= 1
    assert len(result["hosts"]) == 2


@pytest.mark.slow
def test_one_rank_ends_at_its_target(tmp_path: Path) -> None:
    """Four made classes are learned within seconds; the time stands still while a run validates."""
    about = {
        "kind": "made",
        "classes": 2,
        "channels": 3,
        "size": 16,
        "seed": 0,
        "images": 0,
        "digest": "made",
    }
    written(
        tmp_path, devices=1, seconds=40, target=0.6, measured_s=0, device_batch=16,
        about={**about, "validation_images": 64},
    )  # fmt: skip
    launch_here(tmp_path)
    result = result_of(tmp_path)
    assert result["accuracy"] >= 0.6
    assert result["seconds_to_accuracy"] == pytest.approx(result["wall_seconds"])
    assert result["wall_seconds"] < 40
    assert "compute_s" not in result


@pytest.mark.long
def test_a_rank_that_dies_ends_the_run_with_one_clear_error(tmp_path: Path) -> None:
    written(tmp_path, seconds=60)
    killed = threading.Event()

    def kill() -> None:
        """Rank 1, as a kernel out of memory does it, once both train."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not killed.is_set():
            for process in psutil.process_iter():
                try:
                    mine = str(tmp_path) in process.cmdline() and process.environ().get("RANK") == "1"
                    if mine and process.cpu_times().user > 2:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.set()
                        return
                except psutil.Error:
                    continue
            time.sleep(0.2)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(
        ScalingError, match="rank 1 was ended by SIGKILL; the system may have been out of memory"
    ):
        launch_here(tmp_path)
    assert killed.is_set()
    left = [each for each in psutil.process_iter() if str(tmp_path) in " ".join(_command(each))]
    assert not left
    assert not (tmp_path / "result.json").exists()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_learning_rate(tmp_path: Path) -> None:
    written(tmp_path, devices=1, learning_rate=1e30, rise_steps=0, seconds=0.5)
    with pytest.raises(
        ScalingError, match=r"rank 0 on .*: the loss is nan after .* set a smaller optimizer\.lr"
    ):
        launch_here(tmp_path)


@pytest.mark.slow
def test_ranks_that_find_nobody_say_where_they_looked(tmp_path: Path) -> None:
    written(tmp_path, nodes=2, devices=1, timeout_s=3)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1"}
    with pytest.raises(ScalingError, match=r"rank 1 on \S+: found no 2 ranks at 127\.0\.0\.1:1 within 3 s"):
        launch_here(tmp_path, environment=environment)


@pytest.mark.parametrize(
    ("step_s", "several", "expected"),
    [
        (0.1, True, (2, 11)),  # 10 s / (3 kinds x 3 steps x 0.1 s)
        (0.01, True, (2, 30)),
        (0.5, True, (1, 3)),  # 10 / (3 x 2 x 0.5): two steps a block would give two blocks
        (6.0, True, (1, 3)),  # not fewer, though it takes longer
        (0.5, False, (2, 10)),
        (2.0, False, (1, 5)),
    ],
)
def test_how_many_blocks_are_measured(step_s: float, several: bool, expected: tuple[int, int]) -> None:
    assert measured_blocks(10, step_s, several) == expected


@pytest.mark.parametrize(
    ("more", "known"),
    [
        ({}, True),
        ({"accelerator": "cuda", "precision": "bf16-mixed"}, True),
        ({"accelerator": "cuda"}, False),  # 32 bits, or TF32: two peaks
        ({"simulated_step_ms": 5}, False),
        ({"measured_s": 0}, False),
    ],
)
def test_the_least_time_of_a_step(more: dict[str, Any], known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = object.__new__(Run)  # without its processes
    run.request = Request.model_validate({**SMALL, "devices": 1, **more})
    run.device = torch.device("cpu")
    run.fabric = SimpleNamespace(barrier=lambda: None)  # type: ignore[assignment]
    monkeypatch.setattr(roofline, "measure_peaks", lambda device, precision: Peaks(1e9, 1e9))
    network = TinyResNet(3, 4, width=8)
    precision = "bf16" if more.get("precision") == "bf16-mixed" else "fp32"
    least_s = training_step_s(network, torch.zeros(4, 3, 16, 16), Peaks(1e9, 1e9), precision)
    assert run._roofline() == ({"least_step_s": pytest.approx(least_s)} if known else {})
    assert least_s > 1e-4

    def full(device: torch.device, precision: str) -> Peaks:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(roofline, "measure_peaks", full)
    assert run._roofline() == {}


def test_devices_that_are_not_equal_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = object.__new__(Run)  # without its processes
    run.device = torch.device("cpu")
    monkeypatch.setattr(Run, "_everyones", lambda self, name: ["A100", "V100"])
    with pytest.raises(
        ScalingError, match=r"the devices are not equal: rank 0: A100; rank 1: V100\. The slowest"
    ):
        run._require_equal_devices()
