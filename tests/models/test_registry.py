"""The registry: entries agree with their modules and conf/, and a new network needs only a new entry."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.identity import canonical, design_hash, trial_hash
from dxc.config.names import describe
from dxc.config.plan import Plan
from dxc.deploy.export import export_onnx
from dxc.errors import ConfigError
from dxc.hardware.calibrate import calibrate
from dxc.hardware.calibrate.calibrate import Reference, _specs, measure_kernels
from dxc.hardware.calibrate.networks import draw, families
from dxc.hardware.costs import cost
from dxc.models import registry
from dxc.models.registry import (
    NETWORKS,
    Calibration,
    Network,
    canonical_knobs,
    model_name,
    output_names,
    short_label,
)
from dxc.pipeline.heading import check, heading
from dxc.pipeline.machine import fitted
from dxc.search.space import Catalogue, parse_space
from dxc.training.build import build_task

CONF = PROJECT_ROOT / "conf"


def _compose(*overrides: str, script: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, overrides=list(overrides))


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_conf_says_what_the_entry_says(option: str) -> None:
    """Each option of conf/model has a task, a space, and the outputs that the task judges."""
    config = resolved(_compose(f"model={option}"))
    entry = registry.network(config["model"])
    trained_by = OmegaConf.load(CONF / "task" / f"{entry.task}.yaml")
    assert config["task"] == OmegaConf.to_container(trained_by)["task"]
    task = build_task(Plan.of(config))
    assert task.answers == entry.outputs == output_names(task.model)
    assert entry.space == option  # search.py chooses it by the option's name
    axes = OmegaConf.load(CONF / "space" / f"{entry.space}.yaml")
    assert {key.removeprefix("model.") for key in axes if key.startswith("model.")} <= config["model"].keys()


def test_every_entry_is_of_a_module() -> None:
    """Each class exists and takes the knobs that calibration draws."""
    for entry in NETWORKS.values():
        module, _, name = entry.target.rpartition(".")
        arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert entry.calibration is not None
        drawn = entry.calibration.draw(np.random.default_rng(0))
        assert drawn.keys() - {"size"} <= arguments.keys()
        assert "size" in drawn


def test_the_registry_is_free_of_torch() -> None:
    code = (
        "import sys; from dxc.models.registry import short_label;"
        "print(short_label({'_target_': 'dxc.models.sppnet.SppNet', 'kernel': 3}), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "sppnet k3 False\n"


def test_labels() -> None:
    resnet = {"_target_": "dxc.models.resnet.ResNet", "kernel": 7, "stride": 2, "padding": 3, "width": 64}
    pool = {"pool_kernel": 3, "pool_stride": 2}
    assert short_label(resnet | pool | {"blocks": 2, "pool": "max"}) == "resnet18 k7 s2 p3 w64 pool3/2"
    assert short_label(resnet | pool | {"blocks": [3, 4, 6, 3], "pool": "none"}) == "resnet34 k7 s2 p3 w64"
    mobilenet = {"_target_": "dxc.models.mobilenet.MobileNetV1", "stride": 1, "width": 0.25}
    assert short_label(mobilenet) == "mobilenet_v1 s1 w0.25"


def test_a_class_without_an_entry() -> None:
    """All knobs of an unregistered class count, as in runs of others. Errors say where to add a missing entry."""
    model = {"_target_": "dxc.models.other.Other", "pool": "none", "pool_kernel": 3}
    assert canonical_knobs(model) == model
    for read in (model_name, short_label, registry.network):
        with pytest.raises(
            ConfigError, match=r"Other is not registered; known are dxc\.models\.resnet.*registry\.py"
        ):
            read(model)


class Tiny(nn.Module):
    """A network that dxc does not know: a convolution, an optional second one with its own kernel, and the mean."""

    def __init__(
        self, in_channels: int, *, channels: int = 8, second: str = "none", second_kernel: int = 3
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.second = nn.Identity() if second == "none" else nn.Conv2d(channels, channels, second_kernel)
        self.fc = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))

    def check_input_size(self, size: int) -> None:
        if size < 16:
            raise ConfigError(f"tiny takes 16 pixels or more, not {size}")


def _tiny_meaningful(knobs: dict) -> dict:
    if knobs.get("second") == "none":
        knobs.pop("second_kernel", None)
    return knobs


def _draw_tiny(rng: np.random.Generator) -> dict:
    return {"in_channels": 5, "size": 32, "channels": int(rng.integers(4, 33)), "second": "conv"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DictConfig]:
    """Add a network: a module dxc.models.tiny, its entry, and an option of conf/model given as overrides."""
    module = types.ModuleType("dxc.models.tiny")
    monkeypatch.setattr(Tiny, "__module__", module.__name__)
    module.Tiny = Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(
        NETWORKS,
        "tiny",
        Network(
            target="dxc.models.tiny.Tiny",
            task="classification",
            space="tiny",
            name=lambda knobs: "tiny",
            short_knobs=lambda knobs: f"c{knobs['channels']}",
            meaningful=_tiny_meaningful,
            outputs=("yes_and_no",),
            calibration=Calibration(_draw_tiny, weight=20),
        ),
    )
    option = [
        *(f"~model.{knob}" for knob in ("num_classes", "kernel", "stride", "padding", "pool", "pool_kernel")),
        *(f"~model.{knob}" for knob in ("pool_stride", "width", "blocks")),
        "model._target_=dxc.models.tiny.Tiny", "+model.channels=8", "+model.second=none", "+model.second_kernel=3",
    ]  # fmt: skip
    return lambda *overrides, script="train": _compose(*option, "data=5ch", *overrides, script=script)


def test_a_new_network_is_described_and_told_apart(tiny: Callable[..., DictConfig]) -> None:
    config = resolved(tiny())
    assert describe(config) == "tiny c8, 5ch b16"
    assert canonical(config)["model"] == {
        "_target_": "dxc.models.tiny.Tiny", "in_channels": 5, "channels": 8, "second": "none",
    }  # fmt: skip
    twin, other = (resolved(tiny(f"model.{knob}=5")) for knob in ("second_kernel", "channels"))
    assert trial_hash(twin) == trial_hash(config) and design_hash(twin) == design_hash(config)
    assert trial_hash(other) != trial_hash(config)

    space = parse_space(
        {"model.channels": "4,8", "model.second": "none,conv", "model.second_kernel": "1,3"}, []
    )
    catalogue = Catalogue(space, lambda overrides: tiny(*overrides), lambda key: False)
    assert space.size == 8 and len(catalogue.distinct()) == 6


def test_a_new_network_is_checked_trained_exported_and_costed(
    tiny: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.of(tiny("hardware.predictors=[ort_cpu_xeon]", "hardware.measure=false", "model.second=conv"))
    with pytest.raises(
        ConfigError, match=r"and tiny answers with yes_and_no; leave task= out, the model chooses"
    ):
        check(plan)
    monkeypatch.setitem(NETWORKS, "tiny", replace(NETWORKS["tiny"], outputs=("scores",)))
    check(fitted(plan))
    assert heading(plan, plan)["tags"]["model"] == "tiny"
    model = plan.model.build()
    assert isinstance(build_task(plan, model).model, Tiny)

    file = export_onnx(model, tmp_path / "m.onnx", in_channels=5, size=32).path
    assert [each.name for each in onnx.load(file).graph.output] == ["scores"]
    costs = cost(file, plan.hardware, tmp_path / "costs", profile="none", progress=False)
    assert costs.metrics["latency_ms/ort_cpu_xeon"] == costs.metrics["latency_ms"] > 0


@pytest.mark.long
@pytest.mark.parametrize("option", ["mobilenet_v1", "resnet8", "resnet50"])
def test_predictors_know_every_kernel_of_networks_for_small_images(option: str, tmp_path: Path) -> None:
    plan = Plan.of(_compose(f"model={option}", "data=cifar10", "hardware.measure=false"))
    torch.manual_seed(0)
    model = plan.model.build()
    for each in model.modules():  # biases as training leaves them
        if isinstance(each, nn.BatchNorm2d):
            nn.init.normal_(each.bias)
    assert plan.model.values()["num_classes"] == 10 and plan.model.in_channels == 3
    file = export_onnx(model, tmp_path / "m.onnx", in_channels=3, size=32).path
    costs = cost(file, plan.hardware, tmp_path / "costs", profile="none", progress=False)
    assert costs.metrics["latency_ms"] > 0 and costs.metrics["uncovered_macs_share"] == 0


def test_a_new_network_is_drawn_for_calibration(
    tiny: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"resnet": 7, "bottleneck_resnet": 1, "resnet8": 1, "sppnet": 7, "mobilenet": 3}
    assert families() == {**known, "tiny": 20, "random_kernels": 3}
    drawn = []
    for number, spec in enumerate(_specs(records := [], 40, seed=0, max_seconds=1e9)):  # type: ignore[var-annotated]
        drawn.append(spec)
        if number == 9:
            break
        records.append(types.SimpleNamespace(seconds=0.0, valid=True))
    assert "tiny" in {spec["family"] for spec in drawn}

    monkeypatch.setattr(calibrate, "SECONDS", 0.003)
    spec = draw("tiny", np.random.default_rng(0))
    assert spec == {
        "family": "tiny",
        "in_channels": 5,
        "size": 32,
        "channels": spec["channels"],
        "second": "conv",
    }
    record = measure_kernels(json.loads(json.dumps(spec)), 1, Reference(1))
    wide = spec["channels"]
    convolutions = [features[:5] for op, features, _, _ in record.kernels if op == "conv-relu"]
    assert convolutions == [[32, 5, wide, 3, 1], [32, wide, wide, 3, 1]]
