"""Published figures of training ResNet-50 on several GPUs, to show beside measured ones."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One row of a published table. speedup: relative to `per` GPUs of the same table, which count as that many."""

    machine: str
    gpus: int
    images_per_second: float | None
    minutes: float | None
    speedup: float
    per: int
    source: str

    @property
    def efficiency(self) -> float:
        return self.speedup / self.gpus


_DGX = "NVIDIA DeepLearningExamples, ResNet-50 v1.5 for PyTorch, container 21.03"
_MLPERF = "MLPerf Training 3.0, ResNet-50 to its target accuracy"
PUBLISHED = (
    Published("DGX A100 80 GB, mixed precision", 1, 2470, None, 1.0, 1, _DGX),
    Published("DGX A100 80 GB, mixed precision", 8, 16621, None, 16621 / 2470, 1, _DGX),
    *(
        Published("H100", gpus, None, minutes, 8 * 13.47 / minutes, 8, _MLPERF)
        for gpus, minutes in ((8, 13.47), (64, 2.66), (512, 0.51), (3584, 0.18))
    ),
)
