"""The least time of a network, and the block that schedules are tried on."""

from __future__ import annotations

import pytest
import torch

from dxc.hardware.schedule.inception import InceptionBlock
from dxc.hardware.schedule.roofline import Peaks, measure_peaks, training_step_s


def test_the_longer_of_computing_and_moving() -> None:
    peaks = Peaks(flops=2e12, bandwidth=1e11)
    assert peaks.least_ms(macs=3e9, moved=1e8) == pytest.approx(3.0)  # 6e9 operations against 1 ms
    assert peaks.least_ms(macs=1e9, moved=5e8) == pytest.approx(5.0)


def test_peaks_of_this_processor() -> None:
    peaks = measure_peaks(torch.device("cpu"), "fp32")
    assert 1e9 < peaks.flops < 1e14 and 1e8 < peaks.bandwidth < 1e13


def test_the_least_time_of_a_training_step_by_hand() -> None:
    """Two images of 3 x 4 x 4. Convolution: 256 outputs of 27 weights, 6,912 multiply-accumulates, 13.824 ms, against
    568 numbers or 2.272 ms; two passes. Linear: 10 outputs of 128 weights, 2.56 ms, against 906 numbers or 3.624 ms in
    32 bits and 1.812 ms in 16; three passes."""
    peaks = Peaks(flops=1e6, bandwidth=1e6)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 5),
    )
    images = torch.ones(2, 3, 4, 4)
    assert training_step_s(network, images, peaks, "fp32") == pytest.approx(2 * 13.824e-3 + 3 * 3.624e-3)
    assert training_step_s(network, images, peaks, "bf16") == pytest.approx(2 * 13.824e-3 + 3 * 2.56e-3)
    assert network.training and network[1].num_batches_tracked == 0
    assert not network[0]._forward_hooks
    shapes = training_step_s(network.to("meta"), images.to("meta"), peaks, "fp32")
    assert shapes == pytest.approx(2 * 13.824e-3 + 3 * 3.624e-3)


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
