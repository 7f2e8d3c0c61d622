"""The printed command yields the same dxc.trial."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dxc.analysis.reproduce import CONF, command, command_of
from dxc.config.compose import resolved
from dxc.config.identity import trial_hash
from dxc.config.overrides import quoted_value
from dxc.config.plan import Plan
from dxc.errors import AnalysisError
from dxc.pipeline.chain import chain
from dxc.pipeline.networks import Bench
from dxc.pipeline.stages import identities


def _config(*overrides: str, script: str = "train") -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolved(compose(script, overrides=list(overrides)))


@pytest.mark.long
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
        ["hardware.predictors=[my_cpu,other]", "hardware.threads=4", "hardware.affinity=[0,2]"],
        ["hardware=pi", "hardware.predictors=[]", "hardware.batches=[1,2,4]", "hardware.name=pi5"],
        ["hardware=a100", "hardware.provider=cpu", "hardware.precision=32-true"],
        ["model=sppnet", "scheduler=step", "scheduler.gamma=0.5", "task.min_precision=0.8"],
        ["study=2026", "hardware.predictors=[edge_cpu]", "hardware.packages_dir=/my/packages"],
    ],
)
def test_the_command_is_of_the_same_trial(overrides: list[str]) -> None:
    config = _config(*overrides)
    python, script, *rebuilt = shlex.split(command(config, trial=trial_hash(config)))
    assert (python, script) == ("python", "train.py")
    again = _config(*rebuilt)
    assert trial_hash(again) == trial_hash(config)
    assert again["source"].get("root") == config["source"].get("root")
    assert str(again["study"]) == str(config["study"])
    assert len(rebuilt) <= max(len(overrides), 1) + 7


def test_short() -> None:
    assert command(_config()) == "python train.py"
    assert command(_config("data=5ch", "model.kernel=5")) == "python train.py data=5ch model.kernel=5"
    # what a pool would be like is not asked for without one
    assert command(_config("model.pool=none", "model.pool_kernel=2")) == "python train.py"


def test_a_device_is_kept_and_its_address_is_not() -> None:
    config = _config(
        "hardware=pi", "hardware.predictors=[x]", "hardware.host=pi@10.0.0.7", "hardware.python=venv/bin/python",
        "hardware.remote=false", "hardware.measure=false", "hardware.packages_dir=/elsewhere",
        "hardware.limits.latency_ms=5",
    )  # fmt: skip
    assert command(config) == (
        "python train.py hardware=pi 'hardware.predictors=[x]' hardware.packages_dir=/elsewhere"
    )


def test_the_folder_of_predictors_is_named_where_they_are_the_users_own() -> None:
    """Another machine's checkout has another default folder; what comes with dxc or is published is found without."""
    for names in ("ort_cpu_xeon", "ort_cpu_xeon,cortexA76cpu_tflite21"):
        config = _config(f"hardware.predictors=[{names}]", "hardware.packages_dir=/home/other/dxc/packages")
        assert "packages_dir" not in command(config)


def test_the_store_is_the_one_that_was_read() -> None:
    default = _config()["tracking"]["uri"]
    assert command(_config("study=first"), store=default) == "python train.py study=first"
    assert command(_config(), store="http://127.0.0.1:5000") == (
        "python train.py 'tracking.uri='\"'\"'http://127.0.0.1:5000'\"'\"''"
    )
    assert "secret" not in command(_config(), store="http://me:secret@127.0.0.1:5000")


def test_another_conf() -> None:
    with pytest.raises(AnalysisError, match="would train .* not 0123456789ab"):
        command(_config(), trial="0123456789ab")
    with pytest.raises(AnalysisError, match=r"\npython train.py data=5ch$"):  # the warning comes first
        command(_config("data=5ch"), trial="0123456789ab")


@pytest.mark.parametrize(
    "change",
    [
        {"model": {**_config()["model"], "newknob": 3}},
        {"source": None},
        {"model": None},
        {"data": ["dem"]},
        {"optimizer": "adam"},
    ],
)
def test_what_todays_conf_cannot_say(change: dict) -> None:
    with pytest.raises(AnalysisError, match="mlflow.source.git.commit"):
        command(_config() | change, trial="0123456789ab")


def test_no_configuration() -> None:
    with pytest.raises(AnalysisError, match="today's conf/ cannot describe this configuration"):
        command(["model", "data"])  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    OmegaConf.save(_config("data=5ch"), path)
    assert command_of(path, trial_hash(_config("data=5ch"))) == "python train.py data=5ch"
    for content in (
        "model: [",
        "- model\n- data\n",
        "resnet",
        "",
        "model: ${",
        "\x00",
        "model: {}",
        "data: 7ch\nmodel: x",
    ):
        path.write_text(content)
        with pytest.raises(AnalysisError):
            command_of(path, None)
    with pytest.raises(AnalysisError, match="cannot be read"):
        command_of(tmp_path / "absent.yaml", None)


@pytest.mark.parametrize(
    "text",
    [
        "/data/Flüsse", "C:\\dir", "C:\\dir\\", "it's", "a\\'b", "\\\\server\\share", "", " ", "a b", "a,b", "5",
        "1e3", "1_0", "null", "True", "0x1F", "..", "-", "a=b", "[x]", "{x}", "ﬁ²", "日本", 'say "no"', "a:b", "a\tb",
    ],
)  # fmt: skip
def test_text_goes_through_hydras_parser(text: str) -> None:
    (plain,) = OverridesParser.create().parse_overrides([f"source.root={quoted_value(text)}"])
    assert plain.value() == text and isinstance(plain.value(), str)
    (listed,) = OverridesParser.create().parse_overrides([f"source.root={quoted_value([text, 5, text])}"])
    assert listed.value() == [text, 5, text]


@pytest.mark.parametrize(
    "overrides",
    [
        ["compress.fraction=0.25", "compress.quantise=static", "compress.calibration_images=64"],
        ["compress=l1", "compress.finetune_epochs=3", "compress.finetune_lr=0.01", "compress.align=8"],
        ["model=sppnet", "compress.quantise=dynamic"],
    ],
)
def test_a_compressed_design_is_rebuilt_from_base_to_end(overrides: list[str]) -> None:
    """The printed command gives the same identity at every stage of the chain."""
    config = _config(*overrides)
    _, _, *rebuilt = shlex.split(command(config, trial=trial_hash(config)))
    plans = [Plan.of(each) for each in (config, _config(*rebuilt))]
    cache: Any = SimpleNamespace(data_hash="chips")  # all that identities need of the chips
    unused: Any = None
    chains = [chain(Bench(plan, plan, unused, cache, unused, Path())) for plan in plans]
    assert identities(chains[0]) == identities(chains[1])
    assert len(chains[0]) > 3
    if "compress=l1" in overrides:
        assert "compress=l1" in rebuilt and not any("fraction" in each for each in rebuilt)
