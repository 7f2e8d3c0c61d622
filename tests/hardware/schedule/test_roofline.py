"""The least time of a network, and the block that schedules are tried on."""

from __future__ import annotations

import pytest
import torch

from dxc.hardware.schedule.inception import InceptionBlock
from dxc.hardware.schedule.roofline import Peaks, measure_peaks


def test_the_longer_of_computing_and_moving() -> None:
    peaks = Peaks(flops=2e12, bandwidth=1e11)
    assert peaks.least_ms(macs=3e9, moved=1e8) == pytest.approx(3.0)  # 6e9 operations against 1 ms
    assert peaks.least_ms(macs=1e9, moved=5e8) == pytest.approx(5.0)


def test_peaks_of_this_processor() -> None:
    peaks = measure_peaks(torch.device("cpu"), "fp32")
    assert 1e9 < peaks.flops < 1e14 and 1e8 < peaks.bandwidth < 1e13


def test_the_inception_block_has_the_published_channels() -> None:
    block = InceptionBlock()
    assert block.in_channels == 1280
    channels = {
        name: part[0].out_channels
        for name, part in block.named_children()
        if isinstance(part, torch.nn.Sequential)
    }
    assert channels == {
        "single": 320, "fork": 384, "fork_wide": 384, "fork_high": 384, "deep": 448, "deep_square": 384,
        "deep_wide": 384, "deep_high": 384, "pooled": 192,
    }  # fmt: skip
    with torch.inference_mode():
        assert block(torch.rand(1, 1280, 8, 8)).shape == (1, 2048, 8, 8)
