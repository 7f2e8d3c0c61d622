"""Every committed configuration composes; identities; what a configuration may name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dxc.config import PROJECT_ROOT, build, canonical, describe, design_hash, flatten, resolved, trial_hash
from dxc.errors import ConfigError
from dxc.hardware import Hardware
from dxc.search.space import parse_space

CONF = PROJECT_ROOT / "conf"


def _compose(*overrides: str, script: str = "train") -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolved(compose(script, overrides=list(overrides)))


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={option}"
        for group in ("model", "data", "source", "hardware", "optimizer", "trainer", "experiment")
        for option in _options(group)
        if (group, option) != ("source", "chips")
    ],
)
def test_every_option_composes_and_opens_with_its_command(override: str) -> None:
    lines = (CONF / f"{override.replace('=', '/')}.yaml").read_text().splitlines()
    (script,) = re.findall(r"^# python (train|search)\.py ", "\n".join(lines[:2]), re.MULTILINE)
    config = _compose(override, script=script)
    assert config["model"]["in_channels"] == len(config["data"]["channels"])
    Hardware.of(config["hardware"])


@pytest.mark.parametrize("model", _options("space"))
def test_every_space_is_of_a_model_and_has_its_knobs(model: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("search", overrides=[f"model={model}"], return_hydra_config=True)
    lines = (CONF / f"space/{model}.yaml").read_text().splitlines()
    assert lines[0].startswith(f"# python search.py model={model} ")
    space = parse_space(cfg.hydra.sweeper.params, [])
    for axis in space.axes:
        assert (CONF / axis.key).is_dir() or OmegaConf.select(
            cfg, axis.key, throw_on_missing=True
        ) is not None


def test_the_contract_command_composes() -> None:
    config = _compose(
        "model=resnet18", "data=7ch", "hardware=cpu", "model.kernel=3", "trainer.max_epochs=5", "study=first"
    )
    assert config["data"]["channels"] == ["dem", "red", "green", "blue", "nir", "ndwi", "ndvi"]
    assert config["trainer"]["max_epochs"] == 5


def test_missing_value_says_which() -> None:
    with pytest.raises(ConfigError, match=r"no value for source.root; give it .* source.root=\.\.\."):
        _compose("source=chips")


def test_same_configuration_same_trial() -> None:
    assert trial_hash(_compose()) == trial_hash(_compose("model=resnet18", "data.batch_size=16"))


@pytest.mark.parametrize(
    "override",
    [
        "model.pool_kernel=2",  # no pool
        "model.pool_stride=1",
        "model.blocks=[2,2,2,2]",
        "optimizer.lr=0.0010",
        "optimizer.weight_decay=0.0",
        "study=other",
        "progress=false",
        "cache_dir=/elsewhere",
        "tracking.uri=sqlite:///other.db",
        "data.num_workers=4",
        "trainer.devices=[1]",  # one of them, whichever
    ],
)
def test_what_a_result_does_not_depend_on_is_not_identity(override: str) -> None:
    assert trial_hash(_compose(override)) == trial_hash(_compose())


@pytest.mark.parametrize(
    "override",
    [
        "model.kernel=5",
        "model.pool=max",
        "model.blocks=3",
        "data=5ch",
        "data.batch_size=8",
        "data.normalise=per_column",
        "data.repair=reference",
        "data.folds=4",
        "optimizer.lr=0.01",
        "trainer.max_epochs=6",
        "trainer.precision=bf16-mixed",
        "source.seed=1",
        "seed=1",
    ],
)
def test_what_a_result_depends_on_is_identity(override: str) -> None:
    assert trial_hash(_compose(override)) != trial_hash(_compose())


def test_knobs_without_a_meaning_by_context() -> None:
    assert trial_hash(_compose("model.pool=max", "model.pool_kernel=2")) != trial_hash(
        _compose("model.pool=max")
    )
    assert trial_hash(_compose("data=5ch", "data.repair=reference")) == trial_hash(_compose("data=5ch"))
    assert trial_hash(_compose("data.split=region", "data.folds=3")) == trial_hash(
        _compose("data.split=region")
    )


def test_repeats_of_a_design_share_its_hash() -> None:
    assert design_hash(_compose("seed=1")) == design_hash(_compose("seed=2"))
    assert design_hash(_compose("model.kernel=5")) != design_hash(_compose())


def test_the_hash_is_pinned() -> None:
    """Identities are written into other people's stores: a change here is a change of contract."""
    config = {"model": {"_target_": "x.Net", "pool": "none", "pool_kernel": 2, "width": 32.0}, "seed": 3}
    assert canonical(config) == {"model": {"_target_": "x.Net", "pool": "none", "width": 32}, "seed": 3}
    assert trial_hash(config) == "306e7360d5c5"


def test_run_names_say_the_configuration() -> None:
    assert describe(_compose()) == "resnet18 k3 s2 p1 w32, 7ch b16"
    pooled = _compose("data=5ch", "model.pool=max", "model.pool_stride=1", "model.blocks=[3,4,6,3]")
    assert describe(pooled) == "resnet34 k3 s2 p1 w32 pool3/1, 5ch b16"


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"_target_": "os.system", "command": "true"}, "os.system is not allowed"),
        ({"_target_": "dxcevil.Net"}, "dxcevil.Net is not allowed"),
        (
            {"_target_": "torch.nn.Sequential", "x": {"_target_": "subprocess.Popen"}},
            "subprocess.Popen is not",
        ),
        ({"_target_": "torch.hub.load"}, "torch.hub.load is no class"),
        ({"_target_": "dxc.models.resnet.NoNet"}, "is no class that can be loaded"),
        (
            {"_target_": "dxc.models.resnet.ResNet", "in_channels": 5, "depth": 3},
            "refuses its arguments.*'depth'",
        ),
        (
            {"_target_": "dxc.models.resnet.ResNet", "in_channels": 5, "pool": "avg"},
            "model.pool must be none or max",
        ),
    ],
)
def test_targets(section: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(section)


def test_no_absolute_path_in_the_configurations() -> None:
    for path in CONF.rglob("*.yaml"):
        assert str(Path.home()) not in path.read_text()
        assert str(PROJECT_ROOT) not in path.read_text()
        OmegaConf.load(path)
