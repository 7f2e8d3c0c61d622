"""What is known of a network without training it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dxc.config.hardware import Hardware
from dxc.deploy.metadata import METADATA_BYTES
from dxc.search import costs as module
from dxc.search.costs import NetworkCosts, over_limits
from dxc.search.space import Catalogue, parse_space
from tests.search.searches import SPACE, composed, is_group

PUBLISHED = ["model.kernel=3", "model.stride=2", "model.padding=1", "model.pool=none", "model.width=32"]
PUBLISHED += ["model.pool_kernel=3", "model.pool_stride=2"]


def _networks(*arguments: str) -> tuple[dict, Hardware]:
    catalogue = Catalogue(parse_space(SPACE, arguments), composed, is_group)
    identities = [catalogue.identity(point) for point in catalogue.distinct().values()]
    return {i.network: i.config for i in identities}, Hardware.of(identities[0].config["hardware"])


def test_published_sizes(tmp_path: Path) -> None:
    """11.18 MB for the published front's network with 5 channels, although it is not trained here."""
    networks, hardware = _networks(*PUBLISHED)
    costs = NetworkCosts(hardware, tmp_path)
    costs.compute(networks)
    known = {c["model"]["in_channels"]: costs.of(h, c) for h, c in networks.items()}
    # the published file says nothing about itself
    assert round(known[5]["onnx_mb"] - METADATA_BYTES / 1e6, 2) == 11.18
    added = 2 * 32 * 3 * 3 * 4 / 1e6  # two more channels of 32 kernels, in float32
    assert known[7]["onnx_mb"] - known[5]["onnx_mb"] == pytest.approx(added, abs=2e-5)
    assert known[7]["params"] == 2_796_706
    assert 0 < known[5]["latency_ms"] < known[7]["latency_ms"]


def test_the_trained_file_costs_the_same(tmp_path: Path) -> None:
    """The figures of a network before training are those that its trial logs."""
    from dxc.config.build import build
    from dxc.deploy.export import export_onnx
    from dxc.deploy.metadata import Metadata
    from dxc.hardware.costs import find_packages, predict_all

    networks, hardware = _networks(*PUBLISHED, "data=5ch,7ch")
    costs = NetworkCosts(hardware, tmp_path)
    network, config = next(iter(networks.items()))
    known = costs.of(network, config)
    model = build(config["model"], "model")
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(4, 5, 100, 100)).square().sum().backward()
        optimizer.step()
    metadata = Metadata(
        channels=tuple(config["data"]["channels"]),
        normalise="per_column",
        pixel_m=1.0,
        trial="a" * 12,
        data="b" * 16,
    )  # a trial's file says what it came from
    exported = export_onnx(model, tmp_path / "m.onnx", in_channels=5, size=100, metadata=metadata)
    assert known["onnx_mb"] == exported.onnx_mb
    (prediction,) = predict_all(exported.path, find_packages(hardware, []))
    assert known["latency_ms"] == pytest.approx(prediction.latency_ms, rel=1e-9)


def test_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks, hardware = _networks(*PUBLISHED)
    first = NetworkCosts(hardware, tmp_path)
    first.compute(networks)
    (folder,) = (tmp_path / "costs").iterdir()
    assert {path.stem for path in folder.iterdir()} == set(networks)

    def never(*arguments: object) -> dict:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_cost", never)
    second = NetworkCosts(hardware, tmp_path)
    second.compute(networks)
    for network, config in networks.items():
        assert second.of(network, config) == first.of(network, config)


@pytest.mark.slow
def test_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks, hardware = _networks(*PUBLISHED)
    one = NetworkCosts(hardware, tmp_path / "one")
    one.compute(networks)
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    many = NetworkCosts(hardware, tmp_path / "many")
    many.compute(networks, jobs=2)
    for network, config in networks.items():
        assert many.of(network, config) == one.of(network, config)


def test_a_network_that_cannot_be_built(tmp_path: Path) -> None:
    networks, hardware = _networks(
        *PUBLISHED[2:], "model.kernel=3,40", "data.size=30", "model.stride=1", "data=5ch"
    )
    costs = NetworkCosts(hardware, tmp_path)
    costs.compute(networks)
    kernels = {config["model"]["kernel"]: network for network, config in networks.items()}
    assert "model.kernel=40 is larger than the padded chip" in costs.refused[kernels[40]]
    assert costs.of(kernels[40], networks[kernels[40]]) == {}
    assert kernels[3] not in costs.refused
    assert NetworkCosts(hardware, tmp_path).of(kernels[40], networks[kernels[40]]) == {}  # kept too


def test_over_limits() -> None:
    known = {"latency_ms": 151.0, "onnx_mb": 11.2}
    assert over_limits(known, {"latency_ms": 150, "onnx_mb": 100, "macs": 1}) == [
        "latency_ms 151 is over the limit of 150 (search.limits.latency_ms)"
    ]
    assert over_limits(known, {"latency_ms": 151}) == []
