"""Exported networks that are scheduled, small and with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dxc.deploy.export import export_onnx
from dxc.hardware.schedule import program, roofline
from dxc.hardware.schedule.inception import export_inception
from dxc.models.sppnet import SppNet
from tests.conftest import Once
from tests.hardware.networks import exported_resnet


def _export(folder: Path) -> None:
    torch.manual_seed(0)
    export_inception(folder / "inception.onnx", width=0.02)
    exported_resnet(folder / "resnet.onnx")
    for level in (4, 5):
        model = SppNet(3, level=level, features=16)
        export_onnx(model, folder / f"sppnet{level}.onnx", in_channels=3, size=64)


@pytest.fixture(scope="session")
def networks(once: Once) -> Path:
    """A folder with inception.onnx, resnet.onnx, sppnet4.onnx and sppnet5.onnx."""
    return once("scheduled-networks", _export)


@pytest.fixture
def programs_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs say that they are on a GPU, and are not. Its peaks are 1e12 operations and 1e12 bytes a second."""
    load = program.load_program

    def loaded(onnx: Path, **settings: Any) -> program.Program:
        device = torch.device(settings.pop("device"))
        return replace(load(onnx, device="cpu", **settings), device=device)

    monkeypatch.setattr(program, "load_program", loaded)
    monkeypatch.setattr(roofline, "measure_peaks", lambda *_: roofline.Peaks(1e12, 1e12))
