"""Communication as it is measured, against a link of known bandwidth. A pause stands for computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dxc.scaling.launch import launch_here
from dxc.scaling.model import fit, ring
from dxc.scaling.results import Outcome
from tests.scaling.network import missing, network
from tests.scaling.runs import result_of, written

pytestmark = pytest.mark.slow

MODEL = {"_target_": "dxc.models.resnet.TinyResNet", "in_channels": 3, "num_classes": 4, "width": 48}
MEASURED = {"model": MODEL, "simulated_step_ms": 150, "seconds": 6, "measured_s": 8}


def _outcome(folder: Path, total: int, mbit_per_second: float) -> Outcome:
    written(folder, **{**MEASURED, "nodes": total, "devices": 1})
    if total == 1:
        launch_here(folder)
    else:
        with network(total, mbit_per_second) as joined:
            launch_here(folder, environment=joined.environment, prefixes=joined.prefixes)
    result: dict[str, Any] = result_of(folder)
    known = {name: result[name] for name in Outcome.__dataclass_fields__ if result.get(name) is not None}
    return Outcome(scaling="weak", nodes=total, devices=1, device_batch=4, simulated=True, **known)


@pytest.mark.skipif(bool(missing()), reason=missing() or "it can be made")
def test_a_link_of_known_bandwidth(tmp_path: Path) -> None:
    mbit = 100
    one, two = _outcome(tmp_path / "one", 1, mbit), _outcome(tmp_path / "two", 2, mbit)
    bytes_per_second = mbit * 1e6 / 8
    # a ring sends each byte once over each link of two
    theory_s = ring(2)[0] * two.gradient_bytes / bytes_per_second
    size, reduce_s, _ = two.reduced[-1]
    assert size == two.gradient_bytes
    assert reduce_s == pytest.approx(theory_s, rel=0.15)
    assert two.communication_share == pytest.approx(theory_s / (two.compute_s + theory_s), rel=0.15)
    found = fit([one, two])
    assert found is not None
    assert found.model.bandwidth == pytest.approx(bytes_per_second, rel=0.15)
    efficiency = two.images_per_second / one.images_per_second / 2
    assert efficiency == pytest.approx(one.compute_s / (one.compute_s + theory_s), rel=0.15)
    assert two.bound_by == ("network" if theory_s > two.compute_s else "compute")
