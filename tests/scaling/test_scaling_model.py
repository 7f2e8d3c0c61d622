"""Speed-up tables and the model of the step time, against numbers computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dxc.scaling.model import Fit, amdahl, fit
from dxc.scaling.results import Outcome, gains

# a made machine: 100 ms for 8 images, 10 MB of gradients, 1 GB/s, 1 ms a message; half of an all-reduce is hidden
COMPUTE_S, BYTES, BANDWIDTH, LATENCY_S, EXPOSED = 0.1, 10_000_000, 1e9, 1e-3, 0.5


def _reduce_s(total: int, size: float = BYTES) -> float:
    return 2 * (total - 1) / total * size / BANDWIDTH + 2 * (total - 1) * LATENCY_S


def _run(total: int, **more: object) -> Outcome:
    """8 images a device on the made machine, without noise."""
    step_s = COMPUTE_S + EXPOSED * _reduce_s(total)
    run = Outcome(
        scaling="weak",
        nodes=1,
        devices=total,
        device_batch=8,
        images_per_second=8 * total / step_s,
        wall_seconds=60,
        step_s=step_s,
        synced_s=step_s,
        synced_error_s=0.001,
        compute_s=COMPUTE_S,
        compute_error_s=0.001,
        gradient_bytes=BYTES,
        reduced=[(size, _reduce_s(total, size), 1e-5) for size in (4, BYTES)] if total > 1 else [],
    )
    return replace(run, **more)  # type: ignore[arg-type]


def test_gains_by_hand() -> None:
    one = _run(1, images_per_second=100.0, accuracy=0.5, seconds_to_accuracy=50.0)
    two = _run(2, images_per_second=180.0, accuracy=0.6, seconds_to_accuracy=31.25)
    four = _run(4, images_per_second=300.0, accuracy=0.75)
    rows = gains([four, one, two], price_per_device_hour=6.0)
    assert [row.outcome.total for row in rows] == [1, 2, 4]
    assert [row.speedup for row in rows] == pytest.approx([1, 1.8, 3.0])
    assert [row.efficiency for row in rows] == pytest.approx([1, 0.9, 0.75])
    assert math.isnan(rows[0].added_speedup)
    assert [row.added_speedup for row in rows[1:]] == pytest.approx([0.8, 0.6])  # (3.0 - 1.8) / 2 devices
    assert rows[1].accuracy_speedup == pytest.approx(1.6)
    assert math.isnan(rows[2].accuracy_speedup)
    # a minute on four devices: 4 / 60 hours at 6; 75 points of accuracy
    assert rows[2].outcome.device_hours == pytest.approx(4 / 60)
    assert rows[2].price == pytest.approx(0.4)
    assert rows[2].price_per_point == pytest.approx(0.4 / 75)
    assert all(math.isnan(row.price) for row in gains([one, two]))


def test_a_series_without_one_device_counts_its_smallest_run_as_ideal() -> None:
    rows = gains([_run(2, images_per_second=100.0), _run(4, images_per_second=150.0)])
    assert [row.speedup for row in rows] == pytest.approx([2, 3])


def test_series_are_compared_apart() -> None:
    strong = [_run(n, scaling="strong", device_batch=8 // n, images_per_second=50.0 * n) for n in (1, 2)]
    rows = gains([*strong, _run(1, images_per_second=100.0), _run(2, images_per_second=120.0)])
    assert [(row.outcome.scaling, row.speedup) for row in rows] == [
        ("strong", 1),
        ("strong", 2),
        ("weak", 1),
        ("weak", pytest.approx(1.2)),
    ]


def test_shares_and_what_bound_a_run() -> None:
    run = _run(2, step_s=0.4, loader_s=0.1, synced_s=0.3, compute_s=0.1)
    assert run.communication_share == pytest.approx(2 / 3)
    assert run.loader_share == pytest.approx(1 / 4)
    assert run.bound_by == "network"  # 2/3 of the 3/4 that are no wait
    assert replace(run, compute_s=0.25).bound_by == "compute"
    assert replace(run, loader_s=0.3).bound_by == "loader"
    assert _run(1).communication_share == 0 and _run(1).bound_by == "compute"


def test_share_of_the_roofline() -> None:
    assert math.isnan(_run(2).roofline_share)
    assert _run(2, step_s=0.4, least_step_s=0.1).roofline_share == pytest.approx(0.25)


def _known(*totals: int) -> Fit:
    found = fit([_run(total) for total in totals])
    assert found is not None
    return found


def test_the_fit_finds_the_machine_and_predicts_it() -> None:
    found = _known(1, 2)
    assert found.model.bandwidth == pytest.approx(BANDWIDTH)
    assert found.model.latency_s == pytest.approx(LATENCY_S)
    assert found.model.exposed == pytest.approx(EXPOSED)
    predicted = found.predict(8, "weak", 8)
    # 100 ms + half of (2 x 7/8 x 10 ms + 14 ms) = 115.75 ms
    assert predicted.images_per_second == pytest.approx(64 / 0.11575)
    assert predicted.speedup == pytest.approx(8 * 0.1 / 0.11575)
    assert predicted.low < predicted.speedup < predicted.high
    assert predicted.high - predicted.low < 0.1 * predicted.speedup  # errors of 1 %
    assert found.largest == 2


def test_the_interval_grows_with_the_errors_and_with_a_trend() -> None:
    def width(second: Outcome) -> float:
        found = fit([_run(1), second])
        assert found is not None
        predicted = found.predict(4, "weak", 8)
        return predicted.high - predicted.low

    narrow = width(_run(2))
    assert width(_run(2, compute_error_s=0.005, synced_error_s=0.005)) > 2 * narrow
    slower = _run(2, compute_s=0.12, synced_s=0.12 + EXPOSED * _reduce_s(2))
    assert width(slower) > 1.5 * narrow


def test_strong_scaling_splits_the_batch() -> None:
    """20 ms a step and 10 ms an image: eight images take 100 ms, four 60 ms."""
    runs = []
    for total in (1, 2):
        share = 8 // total
        compute = 0.02 + 0.01 * share
        step = compute + EXPOSED * _reduce_s(total)
        runs.append(
            _run(total, scaling="strong", device_batch=share, compute_s=compute, synced_s=step, step_s=step,
                 images_per_second=8 / step)
        )  # fmt: skip
    found = fit(runs)
    assert found is not None
    assert (found.model.fixed_s, found.model.image_s) == pytest.approx((0.02, 0.01))
    # 20 + 2 x 10 ms of computation, half of (15 + 6) ms of all-reduce
    assert found.predict(4, "strong", 8).speedup == pytest.approx(0.1 / 0.0505)
    assert found.stops_at("strong", 8) == 4


def test_where_it_stops() -> None:
    found = _known(1, 2, 4)
    # half of (20 + 2 (N - 1)) ms reach the 100 ms of computation at N = 91
    assert found.stops_at("weak", 8) == 128
    assert found.predict(64, "weak", 8).efficiency > 0.5 > found.predict(128, "weak", 8).efficiency


def test_one_device_tells_nothing_of_communication() -> None:
    assert fit([_run(1)]) is None


def test_amdahl() -> None:
    law = amdahl([1, 2, 4], [1, 1 / (0.1 + 0.9 / 2), 1 / (0.1 + 0.9 / 4)])
    assert law is not None
    assert law.serial == pytest.approx(0.1)
    assert law.error == pytest.approx(0, abs=1e-9)
    assert law.speedup(math.inf) == pytest.approx(10)
    alone = amdahl([1, 2], [1, 1.8])
    assert alone is not None and alone.serial == pytest.approx(1 / 9) and math.isnan(alone.error)
    assert amdahl([1], [1.0]) is None
    faster = amdahl([2], [2.2])  # more than ideal, by noise or caches
    assert faster is not None and faster.serial == 0
