"""Every committed configuration composes; identities; what a configuration may name."""

from __future__ import annotations

import copy
import functools
import re
import shlex
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from dxc.config.build import KINDS, build
from dxc.config.compose import PROJECT_ROOT, TYPICAL_SIZE, image_size, resolved
from dxc.config.hardware import Hardware
from dxc.config.identity import (
    NOT_IDENTITY,
    UNRECORDED,
    canonical,
    design_hash,
    is_identity,
    params_and_tags,
    trial_hash,
)
from dxc.config.names import describe, flatten, quote_texts
from dxc.errors import ConfigError
from dxc.models import resnet
from dxc.models.resnet import ResNet
from dxc.scaling.settings import Settings as Scaling
from dxc.search.space import parse_space
from dxc.synthetic.source import SyntheticSource
from scale import TEXTS

CONF = PROJECT_ROOT / "conf"
CONF_SCALE = PROJECT_ROOT / "conf_scale"
"""Options that scale.py alone has."""


@functools.cache
def _composed(script: str, *overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolved(compose(script, overrides=list(overrides)))


def _compose(*overrides: str, script: str = "train") -> dict:
    return copy.deepcopy(_composed(script, *overrides))


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = ("model", "task", "data", "source", "hardware", "optimizer", "scheduler", "trainer", "experiment")


FILES = {
    f"{group}={path.stem}": path
    for folder in (CONF, CONF_SCALE)
    for group in GROUPS
    for path in sorted((folder / group).glob("*.yaml"))
}


@pytest.mark.parametrize("override", FILES)
def test_every_option_composes_and_builds_by_its_command(override: str) -> None:
    """The command that heads an option's file chooses it, its keys exist, and each section builds what it is for."""
    lines = FILES[override].read_text().splitlines()
    (command,) = [line for line in lines[:2] if line.startswith("# python ")]
    script, *overrides = shlex.split(re.split(r"\s+\(", command.removeprefix("# python "))[0])
    assert script in ("train.py", "search.py", "scale.py")
    overrides = [each for each in overrides if each != "-m"]  # of a sweep its first point
    group = override.split("=")[0]
    assert any(each == override or each.startswith(f"{group}.") for each in overrides)
    if script == "scale.py":
        overrides = quote_texts(overrides, TEXTS)
    config = _compose(*overrides, script=script.removesuffix(".py"))
    if script == "scale.py":
        assert build(Scaling.of(config).model.values(), "model")
        return
    assert config["model"]["in_channels"] == len(config["data"]["channels"])
    Hardware.of(config["hardware"])

    model, source = build(config["model"], "model"), build(config["source"], "source")
    optimizer = build(config["optimizer"], "optimizer")(model.parameters())
    assert isinstance(model, torch.nn.Module) and isinstance(optimizer, torch.optim.Optimizer)
    if config["scheduler"] is not None:
        scheduler = build(config["scheduler"], "scheduler")(optimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert build(config["data"], "data", source=source).source is source
    task = build(config["task"], "task", model=model, optimizer=None, scheduler=None)
    assert type(task).__name__.lower() == ("detectiontask" if config["boxes"] else "classificationtask")
    devices = {"devices": 1, "accelerator": "cpu", "precision": "32-true"}  # of the machine that tests
    assert isinstance(build(config["trainer"], "trainer", **devices), pl.Trainer)


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


@pytest.mark.parametrize("override", [each for each, path in FILES.items() if CONF_SCALE in path.parents])
def test_options_of_scale_cannot_be_chosen_elsewhere(override: str) -> None:
    group, _, option = override.partition("=")
    with pytest.raises(MissingConfigException, match=f"Could not find '{group}/{option}'"):
        _compose(override)


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
        "trainer.devices=[0]",  # one of them, whichever
        "trainer.devices=[2]",
        "hardware.host=pi@raspberrypi.local",
        "hardware.python=venv/bin/python",
        "hardware.remote=true",
        "hardware.measure=false",
        "hardware.packages_dir=/elsewhere",
        "hardware.packages_url=http://127.0.0.1",
        "hardware.limits.latency_ms=5",
    ],
)
def test_what_a_result_does_not_depend_on_is_not_identity(override: str) -> None:
    assert trial_hash(_compose(override)) == trial_hash(_compose())
    assert params_and_tags(_compose(override))[0] == params_and_tags(_compose())[0]


def test_params_are_the_identity_and_tags_the_rest() -> None:
    """Once each, and without what says nothing of a run."""
    params, tags = params_and_tags(_compose("trainer.devices=[2]", "hardware.limits.latency_ms=5"))
    assert params["trainer.devices"] == 1 and params["model.width"] == 32
    assert "model.pool_kernel" not in {*params, *tags}  # no pool
    assert tags["hardware.limits.latency_ms"] == 5 and "data.num_workers" in tags
    assert not params.keys() & tags.keys() and not UNRECORDED & {*params, *tags}
    assert not any(key.startswith(("tracking.", "search.", "study")) for key in {*params, *tags})


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
        "score=f1",
        "model=sppnet",
        "optimizer=sgd",
        "scheduler=step",
        "data.size=50",
        "trainer.devices=2",
        "trainer.devices=[0,2]",
        "hardware=pi",
        "hardware.name=other",
        "hardware.precision=bf16-mixed",
        "hardware.accelerator=gpu",
        "hardware.runtime=other",
        "hardware.provider=cuda",
        "hardware.threads=4",
        "hardware.affinity=[0]",
        "hardware.batches=[1,2]",
        "hardware.predictors=[my_cpu]",
        "hardware.predictors=[]",
    ],
)
def test_what_a_result_depends_on_is_identity(override: str) -> None:
    assert trial_hash(_compose(override)) != trial_hash(_compose())


def test_every_fact_of_hardware_is_thought_of() -> None:
    """A key that comes later is identity until somebody says why it is not."""
    facts = {key for key in _compose()["hardware"] if is_identity(f"hardware.{key}")}
    assert facts == {"name", "runtime", "provider", "threads", "affinity", "batches", "predictors"}
    assert canonical(_compose())["hardware"].keys() == facts
    assert NOT_IDENTITY["hardware"] == _compose()["hardware"].keys() - facts
    assert not is_identity("hardware.limits.latency_ms") and is_identity("model.kernel")
    assert is_identity("seed") and not is_identity("study") and not is_identity("tracking.uri")


def test_predictors_have_no_order() -> None:
    two, turned = (_compose(f"hardware.predictors={each}") for each in ("[a,b]", "[b,a]"))
    assert trial_hash(two) == trial_hash(turned)
    assert two["hardware"]["predictors"] == ["a", "b"] and turned["hardware"]["predictors"] == ["b", "a"]


def test_devices_are_counted() -> None:
    for devices, count in (([0], 1), ([2], 1), ([0, 2], 2), (2, 2), ("auto", "auto")):
        assert canonical({"trainer": {"devices": devices}}) == {"trainer": {"devices": count}}


def test_task_score_and_size_are_identity() -> None:
    given = {"task": {"_target_": "x.Task"}, "scheduler": None, "score": "accuracy"}
    assert canonical(given) == given
    given = {"source": {"size_m": 100, "boxes": False}, "data": {"boxes": False, "split": "kfold"}}
    assert canonical(given) == given


@pytest.mark.parametrize(
    ("split", "kept"),
    [("kfold", {"folds", "fold_seed"}), ("holdout", {"fold_seed"}), ("region", set())],
)
def test_what_a_split_depends_on(split: str, kept: set[str]) -> None:
    data = canonical({"data": {"split": split, "folds": 3, "fold_seed": 7}})["data"]
    assert data.keys() == kept | {"split"}


@pytest.mark.parametrize(
    ("channels", "kept"),
    [(["dem", "ndvi"], True), (["dem", "ndwi"], True), (["ndwi", "ndvi"], True), (["dem", "nir"], False)],
)
def test_repair_means_something_with_an_index(channels: list[str], kept: bool) -> None:
    data = canonical({"data": {"channels": channels, "split": "kfold", "repair": "mean"}})["data"]
    assert ("repair" in data) == kept


def test_the_order_of_keys_means_nothing() -> None:
    config = _compose()
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(config.items())
    }
    assert list(turned) != list(config)
    assert trial_hash(turned) == trial_hash(config) and design_hash(turned) == design_hash(config)


def test_what_sizes_follow_from() -> None:
    assert image_size("any") == TYPICAL_SIZE == 100
    assert image_size(64) == 64
    assert _compose("data.size=any")["source"]["size_m"] == 100
    assert _compose("data.size=256")["source"]["size_m"] == 256
    assert _compose()["source"]["jitter_m"] == 5.0
    assert _compose("model=sppnet")["source"]["jitter_m"] == pytest.approx(35)
    assert _compose("model=sppnet", "data.size=200")["source"]["jitter_m"] == pytest.approx(70)


def test_knobs_without_a_meaning_by_context() -> None:
    assert trial_hash(_compose("model.pool=max", "model.pool_kernel=2")) != trial_hash(
        _compose("model.pool=max")
    )
    assert trial_hash(_compose("data=5ch", "data.repair=reference")) == trial_hash(_compose("data=5ch"))
    assert trial_hash(_compose("data.split=region", "data.folds=3")) == trial_hash(
        _compose("data.split=region")
    )


@pytest.mark.long
def test_what_images_of_a_published_set_depend_on() -> None:
    known = ("data=cifar10", "model=resnet8")
    plain = trial_hash(_compose(*known))
    for same in (
        ["data.fold_seed=1"],  # with split=given
        ["data.folds=3"],
        ["source.root=elsewhere"],
        ["source.classes=[a,b,c,d,e,f,g,h,i,j]"],
        ["data.dataset=mine"],
    ):
        assert trial_hash(_compose(*known, *same)) == plain, same
    for other in (
        ["data.mean=[1,2,3]"],
        ["data.augment=none"],
        ["data.pad=2"],
        ["data.split=kfold"],
        ["source=synthetic_images"],
    ):
        assert trial_hash(_compose(*known, *other)) != plain, other
    without = (*known, "data.augment=none", "data.normalise=none")
    assert trial_hash(_compose(*without, "data.pad=2", "data.std=[1,1,1]")) == trial_hash(_compose(*without))


def test_repeats_of_a_design_share_its_hash() -> None:
    assert design_hash(_compose("seed=1")) == design_hash(_compose("seed=2"))
    assert design_hash(_compose("model.kernel=5")) != design_hash(_compose())


def test_the_hash_is_pinned() -> None:
    """Identities are written into other people's stores: a change here is a change of contract."""
    resnet = {"_target_": "dxc.models.resnet.ResNet", "pool": "none"}
    config = {"model": {**resnet, "pool_kernel": 2, "width": 32.0}, "seed": 3}
    assert canonical(config) == {"model": {**resnet, "width": 32}, "seed": 3}
    assert trial_hash(config) == "f5dd306bf042"


def test_run_names_say_the_configuration() -> None:
    assert describe(_compose()) == "resnet18 k3 s2 p1 w32, 7ch b16"
    pooled = _compose("data=5ch", "model.pool=max", "model.pool_stride=1", "model.blocks=[3,4,6,3]")
    assert describe(pooled) == "resnet34 k3 s2 p1 w32 pool3/1, 5ch b16"


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}


TIMER = {"stmt": "pass", "setup": "import os; os.mkdir('made')"}
RESNET = {"_target_": "dxc.models.resnet.ResNet", "in_channels": 5}
STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True}
TRAINER = {"_target_": "dxc.training.trainer.FoldTrainer", "accelerator": "cpu"}
HOSTILE = {
    "a shell command": (
        "model",
        {"_target_": "os.system", "command": "mkdir made"},
        "os.system is not allowed",
    ),
    "code": ("task", {"_target_": "builtins.exec", "_args_": ["import os; os.mkdir('made')"]}, "not allowed"),
    "a process": ("source", {"_target_": "subprocess.Popen", "args": ["mkdir", "made"]}, "is not allowed"),
    "torch's process": (
        "model",
        {
            "_target_": "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
            **{"entrypoint": "mkdir", "args": ["made"], "env": {}, "local_rank_id": 0},
            **{"stdout": None, "stderr": None},
        },
        "SubprocessHandler is not allowed",
    ),
    "a timer": ("model", {"_target_": "torch.utils.benchmark.Timer", **TIMER}, "Timer is not allowed"),
    "a download": (
        "model",
        {"_target_": "torch.hub.load", "repo_or_dir": "x/y", "model": "z"},
        "not allowed",
    ),
    "a pickle": ("model", {"_target_": "torch.serialization.load", "f": "x.pt"}, "load is not allowed"),
    "torch's container": ("model", {"_target_": "torch.nn.Sequential"}, "torch.nn.Sequential is not allowed"),
    "a loader": ("data", {"_target_": "torch.utils.data.DataLoader", "dataset": []}, "is not allowed"),
    "Lightning's trainer": ("trainer", {"_target_": "pytorch_lightning.Trainer"}, "Trainer is not allowed"),
    "a file by an attribute": (
        "source",
        {"_target_": "dxc.pipeline.run.io.FileIO", "file": "made", "mode": "w"},
        "dxc.pipeline.run.io.FileIO is not allowed",
    ),
    "a path by an attribute": (
        "data",
        {"_target_": "dxc.config.compose.Path"},
        "dxc.config.compose.Path is not allowed",
    ),
    "a class by an attribute": (
        "trainer",
        {"_target_": "dxc.training.trainer.pl.Trainer"},
        "is not a class that can be loaded",
    ),
    "what a module imports": (
        "source",
        {"_target_": "dxc.synthetic.source.ProcessPoolExecutor", "max_workers": 1},
        "is not a dxc.data.source.Source, which source must be",
    ),
    "an alias in torch": (
        "scheduler",
        {"_target_": "torch.optim.lr_scheduler.partial", "_partial_": True},
        "is not a torch.optim.lr_scheduler.LRScheduler",
    ),
    "a function": (
        "model",
        {"_target_": "dxc.models.registry.canonical_knobs", "model": {}},
        "is not a torch.nn.Module",
    ),
    "no class": ("model", {"_target_": "dxc.models.resnet.NoNet"}, "is not a class that can be loaded"),
    "a module": ("model", {"_target_": "dxc.models.resnet"}, "is not a torch.nn.Module"),
    "a network as optimizer": (
        "optimizer",
        {"_target_": "torch.optim.swa_utils.AveragedModel", "_partial_": True, "model": None},
        "is not a torch.optim.Optimizer, which optimizer must be",
    ),
    "a schedule as optimizer": ("optimizer", STEP, "StepLR is not a torch.optim.Optimizer"),
    "a task as model": (
        "model",
        {"_target_": "dxc.training.classification.ClassificationTask"},
        "not allowed",
    ),
    "a name that begins alike": ("model", {"_target_": "dxc.modelsevil.Net"}, "is not allowed"),
    "dots": ("model", {"_target_": "dxc.models..Net"}, "is not a class that can be loaded"),
    "a dot first": ("model", {"_target_": ".models.Net"}, "is not allowed"),
    "nothing": ("model", {"_target_": ""}, "is not allowed"),
    "a number": ("model", {"_target_": 5}, "5 is not allowed"),
    "what a terminal obeys": ("model", {"_target_": "x\x1b[2J"}, r"'x\\x1b\[2J' is not allowed"),
    "no section": ("model", None, "model: a section with _target_ is expected here, not None"),
    "a section without": ("model", {"kernel": 3}, "a section with _target_ is expected here"),
    "in an argument": (
        "model",
        {**RESNET, "width": {"_target_": "os.system"}},
        "model.width._target_: os.system",
    ),
    "deep in an argument": (
        "model",
        {**RESNET, "blocks": [2, {"x": [{"_target_": "dxc.models.resnet.ResNet"}]}]},
        r"model.blocks\[1\].x\[0\]._target_: dxc.models.resnet.ResNet is not allowed in this place",
    ),
    "a callback that writes": (
        "trainer",
        {
            **TRAINER,
            "callbacks": [{"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "dirpath": "made"}],
        },
        r"trainer.callbacks\[0\]._target_: pytorch_lightning.callbacks.ModelCheckpoint is not allowed",
    ),
    "a callback's argument": (
        "trainer",
        {
            **TRAINER,
            "callbacks": [
                {"_target_": "pytorch_lightning.callbacks.Timer", "duration": {"_target_": "os.system"}}
            ],
        },
        r"trainer.callbacks\[0\].duration._target_: os.system is not allowed",
    ),
    "no callback": (
        "trainer",
        {**TRAINER, "callbacks": [{"_target_": "dxc.training.trainer.FoldTrainer"}]},
        "is not a pytorch_lightning.Callback, which callback must be",
    ),
    "no list": ("trainer", {**TRAINER, "callbacks": {"_target_": "os.system"}}, "callbacks must be a list"),
    "arguments by place": ("model", {**RESNET, "_args_": [5]}, "model._args_ is not allowed"),
    "not recursive": ("model", {**RESNET, "_recursive_": False}, "model._recursive_ is not allowed"),
    "converted": ("model", {**RESNET, "_convert_": "none"}, "model._convert_ is not allowed"),
    "a model in part": ("model", {**RESNET, "_partial_": True}, "model._partial_ is not allowed"),
    "a whole optimizer": ("optimizer", {**ADAM, "_partial_": False}, "optimizer._partial_ must be true"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_section_builds_only_what_it_is_for(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, section, says = HOSTILE[what]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        build(section, kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_module_is_not_even_imported(
    kind: str, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("import os\nos.mkdir('made')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    section = {"_target_": "stranger.Net"} | ({"_partial_": True} if KINDS[kind].partial else {})
    if nested:
        allowed = KINDS[kind].packages[0]
        section = {**section, "_target_": f"{allowed}.resnet.ResNet", "width": [{"x": section}]}
    with pytest.raises(ConfigError, match=r"stranger\.Net is not allowed"):
        build(section, kind)
    assert "stranger" not in sys.modules and not (tmp_path / "made").exists()


def test_nothing_is_made_before_all_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(pl.callbacks.Timer, "__init__", lambda self: made.append(self))
    callbacks = [{"_target_": "pytorch_lightning.callbacks.Timer"}, {"_target_": "dxc.training.trainer.Any"}]
    with pytest.raises(ConfigError, match="Any is not a pytorch_lightning.Callback"):
        build({**TRAINER, "callbacks": callbacks}, "trainer")
    assert not made


def test_a_class_of_the_right_base_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under an allowed name, with the right base, and not of an allowed package."""
    monkeypatch.setattr(resnet, "Borrowed", torch.nn.Sequential, raising=False)
    with pytest.raises(
        ConfigError, match=r"Borrowed is torch\.nn\.modules\.container\.Sequential, which is not"
    ):
        build({"_target_": "dxc.models.resnet.Borrowed"}, "model")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({**RESNET, "depth": 3}, r"dxc\.models\.resnet\.ResNet refuses its arguments.*'depth'"),
        ({**RESNET, "pool": "avg"}, "^model.pool must be none or max"),
    ],
)
def test_arguments_that_a_class_refuses(section: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(section, "model")


def test_what_is_built() -> None:
    section = {**RESNET, "width": 4, "blocks": [1, 1, 1, 1]}
    network = build(section, "model", width=8)
    assert isinstance(network, ResNet) and network.conv1.weight.shape[:2] == (8, 5)  # arguments go first
    optimizer = build({**ADAM, "lr": 0.5}, "optimizer")(network.parameters())
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults["lr"] == 0.5
    schedule = build({**STEP, "step_size": 2, "gamma": 0.1}, "scheduler")(optimizer)
    assert (schedule.step_size, schedule.gamma) == (2, 0.1)
    stop = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val_loss", "patience": 7}
    trainer = build({**TRAINER, "max_epochs": 3, "callbacks": [stop]}, "trainer", title="fold1")
    (early,) = [each for each in trainer.callbacks if isinstance(each, pl.callbacks.EarlyStopping)]
    assert (early.monitor, early.patience, trainer.max_epochs) == ("val_loss", 7, 3)
    assert build({**TRAINER, "callbacks": None}, "trainer").max_epochs == 5


def test_a_text_with_a_dollar_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration is resolved once: what it escaped stays what it is."""
    monkeypatch.setenv("SECRET", "told")
    source = build(
        {"_target_": "dxc.synthetic.source.SyntheticSource", "cache_dir": "${oc.env:SECRET}"}, "source"
    )
    assert isinstance(source, SyntheticSource) and source.cache_dir == Path("${oc.env:SECRET}")


def test_arguments_are_the_objects_own() -> None:
    section = {"_target_": "dxc.data.datamodule.FolderSource", "root": ".", "photo_bands": ["red"]}
    source = build(section, "source")
    source.photo_bands.append("nir")
    assert section["photo_bands"] == ["red"]


def test_no_absolute_path_in_the_configurations() -> None:
    for path in CONF.rglob("*.yaml"):
        assert str(Path.home()) not in path.read_text()
        assert str(PROJECT_ROOT) not in path.read_text()
        OmegaConf.load(path)
