"""A configuration is checked once, into a typed plan."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from pydantic import Field

from dxc.config.checked import Flag, Part, Positive, checked, one_of
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.identity import design_hash, trial_hash
from dxc.config.plan import Plan
from dxc.errors import ConfigError
from dxc.pipeline.stages import train_identity

EXPERIMENTS = sorted(path.stem for path in (PROJECT_ROOT / "conf" / "experiment").glob("*.yaml"))


def _composed(*overrides: str, script: str = "train") -> dict[str, Any]:
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return resolved(compose(script, overrides=list(overrides)))


@pytest.mark.parametrize(
    "override", ["model=sppnet", "scheduler=step", *(f"experiment={e}" for e in EXPERIMENTS)]
)
def test_a_plan_holds_the_whole_configuration(override: str) -> None:
    config = _composed(override)
    config.pop("search", None)  # of an experiment that is a search
    plan = Plan.of(config)
    assert plan.values() == config
    assert (plan.trial, plan.design) == (trial_hash(config), design_hash(config))
    assert plan.data.channels == config["data"]["channels"]
    assert plan.trainer.max_epochs == config["trainer"]["max_epochs"]
    assert plan.hardware.limits == config["hardware"]["limits"]


def test_names_and_sizes() -> None:
    plan = Plan.of(_composed("data=5ch", "data.size=64", "model.width=48"))
    assert plan.name == "resnet18 k3 s2 p1 w48, 5ch b16"
    assert (plan.model.name, plan.data.name, plan.data.image_size) == ("resnet18", "5ch", 64)
    assert plan.model.argument("width") == 48 and plan.model.argument("level") is None
    assert Plan.of(_composed("model=sppnet", "data.size=any")).data.image_size == 100


def test_another_trainer_is_another_plan() -> None:
    plan = Plan.of(_composed())
    short = plan.with_trainer(max_epochs=1)
    assert (plan.trainer.max_epochs, short.trainer.max_epochs) == (5, 1)
    assert short.values()["trainer"] == {**plan.values()["trainer"], "max_epochs": 1}
    assert short.trial == Plan.of(_composed("trainer.max_epochs=1")).trial != plan.trial
    with pytest.raises(ValueError, match="frozen"):
        plan.seed = 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["seed=-1"], "seed must be a whole number of at least 0, not -1"),
        (["seed=true"], "seed must be a whole number of at least 0, not True"),
        (["study=a/b"], "study=a/b names a folder and an MLflow experiment: use letters"),
        (["again=3"], "again must be true or false, not 3"),
        (["profile=perf"], "profile must be auto, none, torch or nsight, not 'perf'"),
        (["+colour=red"], "the configuration has no colour; it has again, any_size_file"),
        (["+tracking.user=me"], "tracking has no user; it has artifacts, checkpoints, uri"),
        (["tracking.uri=null"], "tracking.uri must be a text, not None"),
        (["data.channels=[1,2]"], "data.channels must be a list of names, such as [dem,red], not [1, 2]"),
        (["data.size=big"], "data.size must be an edge in pixels, or any, not 'big'"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be a whole number of at least 1, not 0"),
        (["hardware.limits.onnx_mb=much"], "hardware.limits.onnx_mb must be a number over 0, not 'much'"),
        (["hardware.affinity=[0,-1]"], "hardware.affinity[1] must be a whole number of at least 0, not -1"),
        (["~tracking.uri"], "tracking.uri is missing"),
        (["data.channels=3"], "the configuration cannot be resolved"),
        (["model._target_=os.system"], "model._target_: os.system is not allowed"),
    ],
)
def test_values_that_cannot_be(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Plan.of(_composed(*overrides))
    assert str(raised.value).startswith(says)


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        Plan.of(_composed("seed=-1", "kept_gb=much", "hardware.threads=0", "+a=1", "+b=2"))
    first, *rest = str(raised.value).splitlines()
    assert first.startswith("the configuration has no a, b; it has")
    assert sorted(rest) == [
        "hardware.threads must be a whole number of at least 1, not 0",
        "kept_gb must be a number of gigabytes from 0, or null for no limit, not 'much'",
        "seed must be a whole number of at least 0, not -1",
    ]


class _Inner(Part):
    count: Positive
    kind: Annotated[str, one_of(lambda: ("red", "blue"))] = "red"


class _Outer(Part):
    inner: _Inner
    flags: list[Flag] = Field(default=[])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"inner": {"count": 1, "other": 2}}, "place.inner has no other; it has count, kind"),
        ({"inner": 3}, "place.inner must be a section with keys, not 3"),
        ({}, "place.inner is missing"),
        (
            {"inner": {"count": 1, "kind": "green"}},
            "place.inner.kind=green is unknown; choose one of red, blue",
        ),
        ({"inner": {"count": 1.0}}, "place.inner.count must be a whole number of at least 1, not 1.0"),
        ({"inner": {"count": 1}, "flags": [True, "no"]}, "place.flags[1] must be true or false, not 'no'"),
        ([], "place must be a section with keys, not []"),
    ],
)
def test_where_a_fault_lies(values: Any, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checked(_Outer, values, "place")
    assert str(raised.value) == says


def test_what_nobody_gave_is_not_among_the_values() -> None:
    part = checked(_Outer, {"inner": {"count": 2}})
    assert part.inner.kind == "red" and part.values() == {"inner": {"count": 2}}


def test_a_plan_of_finetuning() -> None:
    plan = Plan.of(_composed("scheduler=step", "compress.fraction=0.5", "compress.finetune_epochs=3"))
    assert plan.compress.prunes and not plan.compress.quantises
    assert plan.name == "resnet18 k3 s2 p1 w32, 7ch b16, 0.5 pruned e3"
    tuned = plan.for_finetuning()
    assert tuned.trainer.max_epochs == 3 and tuned.optimizer == plan.optimizer
    assert (plan.trainer.max_epochs, plan.scheduler.argument("step_size")) == (5, 3)
    weight = torch.nn.Parameter(torch.zeros(1))
    other = Plan.of(_composed("compress=l1", "compress.finetune_epochs=3", "compress.finetune_lr=0.4"))
    assert other.compress.fraction == 0.5
    optimizer = other.for_finetuning().optimizer.build()([weight])
    schedule = other.for_finetuning().scheduler.build()(optimizer)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.4, 0.3, 0.1])


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["compress.finetune_epochs=3", "compress.align=8", "compress.calibration_images=5"], True),
        (["compress.finetune_lr=1"], True),
        (["compress.fraction=0.0"], True),
        (["compress.fraction=0.1"], False),
        (["compress.quantise=dynamic"], False),
    ],
)
def test_what_is_not_compressed_has_the_identity_of_the_base(overrides: list[str], same: bool) -> None:
    assert (Plan.of(_composed(*overrides)).trial == Plan.of(_composed()).trial) is same


@pytest.mark.parametrize(
    ("given", "more", "same"),
    [
        (["compress.fraction=0.5", "compress.finetune_epochs=0"], "compress.finetune_lr=1", True),
        (["compress.fraction=0.5"], "compress.finetune_lr=1", False),
        (["compress.fraction=0.5"], "compress.finetune_epochs=1", False),
        (["compress.fraction=0.5"], "compress.align=8", False),
        (["compress.fraction=0.5"], "model.width=48", False),
        (["compress.quantise=dynamic"], "compress.calibration_seed=1", True),
        (["compress.quantise=static"], "compress.calibration_seed=1", False),
        (["compress.quantise=static"], "compress.quantise=dynamic", False),
    ],
)
def test_what_changes_a_compressed_design(given: list[str], more: str, same: bool) -> None:
    assert (Plan.of(_composed(*given)).trial == Plan.of(_composed(*given, more)).trial) is same


@pytest.mark.long
def test_the_published_grid_of_compressed_networks() -> None:
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        composed = compose("train", overrides=["experiment=edge_milestones"], return_hydra_config=True)
    axes = composed.hydra.sweeper.params
    combinations = [
        [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
        for values in itertools.product(*(str(values).split(",") for values in axes.values()))
    ]
    plans = [Plan.of(_composed("experiment=edge_milestones", *each)) for each in combinations]
    assert len({plan.trial for plan in plans}) == len(plans) == 45
    assert {plan.compress.fraction for plan in plans} == {0.05, 0.25, 0.5, 0.75, 0.9}
    assert {plan.compress.finetune_epochs for plan in plans} == {0, 3, 5}
    assert {plan.compress.quantise for plan in plans} == {"none", "dynamic", "static"}
    assert len({train_identity(plan, "chips") for plan in plans}) == 1  # one network is trained
    for epochs, more in ((16, ()), (3, ("trainer.max_epochs=3",))):  # the learning rate ends at 0
        scheduler = Plan.of(_composed("experiment=edge_milestones", *more)).scheduler
        assert scheduler is not None and scheduler.argument("T_max") == epochs
    assert (plans[0].model.name, plans[0].model.argument("width"), plans[0].data.name) == (
        "mobilenet_v1",
        1.0,
        "cifar10",
    )
