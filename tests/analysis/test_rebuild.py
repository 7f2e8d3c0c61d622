"""The printed command yields the same dxc.trial."""

from __future__ import annotations

import shlex

import pytest
from hydra import compose, initialize_config_dir

from dxc.analysis.rebuild import CONF, command
from dxc.config import resolved, trial_hash
from dxc.errors import AnalysisError


def _config(*overrides: str, script: str = "train") -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolved(compose(script, overrides=list(overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3"],
        ["data=5ch", "model.kernel=5", "model.pool=max", "model.pool_stride=1", "data.batch_size=8"],
        ["hardware=pi", "optimizer=sgd", "optimizer.lr=0.005"],
        ["experiment=conventional_resnet18", "source=chips", r"source.root='some where/it\'s'"],
        ["experiment=demo", "data.split=region"],
        ["data.channels=[dem,red,green,blue]", "data.size=50", "trainer.max_epochs=1"],
        ["trainer.precision=bf16-mixed", "data.normalise=per_column"],
    ],
)
def test_the_command_is_of_the_same_trial(overrides: list[str]) -> None:
    config = _config(*overrides)
    python, script, *rebuilt = shlex.split(command(config, trial=trial_hash(config)))
    assert (python, script) == ("python", "train.py")
    again = _config(*rebuilt)
    assert trial_hash(again) == trial_hash(config)
    assert again["source"].get("root") == config["source"].get("root")
    assert len(rebuilt) <= max(len(overrides), 1) + 7


def test_short() -> None:
    assert command(_config()) == "python train.py"
    assert command(_config("data=5ch", "model.kernel=5")) == "python train.py data=5ch model.kernel=5"
    # what a pool would be like is not asked for without one
    assert command(_config("model.pool=none", "model.pool_kernel=2")) == "python train.py"


def test_another_conf() -> None:
    with pytest.raises(AnalysisError, match="would train .* not 0123456789ab"):
        command(_config(), trial="0123456789ab")
