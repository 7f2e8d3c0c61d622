"""A small request, and how tests run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dxc.scaling.worker import REQUEST, RESULT, Request

SMALL: dict[str, Any] = {
    "scaling": "weak",
    "nodes": 1,
    "devices": 2,
    "device_batch": 4,
    "accelerator": "cpu",
    "backend": "gloo",
    "precision": "32-true",
    "threads": 1,
    "channels_last": False,
    "model": {"_target_": "dxc.models.resnet.TinyResNet", "in_channels": 3, "num_classes": 4, "width": 8},
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
    "learning_rate": 0.05,
    "rise_steps": 5,
    "about": {
        "kind": "made", "classes": 4, "channels": 3, "size": 16, "seed": 0, "images": 0, "digest": "made",
        "validation_images": 32,
    },
    "seed": 0,
    "seconds": 1.5,
    "target": None,
    "look_every_s": 0.3,
    "warmup_steps": 2,
    "measured_s": 0.5,
    "timeout_s": 60,
    "simulated_step_ms": 0,
}  # fmt: skip


def written(folder: Path, **more: Any) -> Request:
    """Write request.json, as a study does."""
    folder.mkdir(parents=True, exist_ok=True)
    request = Request.model_validate({**SMALL, **more})
    (folder / REQUEST).write_text(request.model_dump_json())
    return request


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULT).read_text())
