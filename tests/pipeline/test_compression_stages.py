"""Compressed designs: what is done once, what each fold claims, and what a run says it came from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from dxc.compress import prune, quantise
from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.deploy.export import count_params
from dxc.deploy.metadata import read_metadata
from dxc.errors import CompressionError, ConfigError
from dxc.models.resnet import ResNet
from dxc.pipeline import networks
from dxc.pipeline.kept import kept_folder
from dxc.pipeline.result import Result
from dxc.pipeline.run import run
from dxc.pipeline.stages import network_identities, train_identity
from dxc.tracking.record import Record
from dxc.training import crossval
from tests.conftest import ChipMaker


def _plan(root: Path, *further: str) -> Plan:
    overrides = [
        "source=chips", f"source.root={root}", f"cache_dir={root.parent}/cache", "data=5ch", "data.size=20",
        "data.batch_size=8", "data.folds=2", "trainer.max_epochs=2", "hardware.predictors=[]",
        "hardware.measure=false", "profile=none", "progress=false", "compress.finetune_epochs=1",
    ]  # fmt: skip
    if "model=sppnet" not in further:
        overrides.append("model.width=8")
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return Plan.of(compose("train", overrides=[*overrides, *further]))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often networks are trained, fine-tuned, pruned and quantised."""
    done: Counter[str] = Counter()
    train_fold, validated_fold, quantising = crossval.train_fold, networks.validated_fold, quantise.quantise

    def trained(*args: Any, **kwargs: Any) -> Any:
        done["finetuned" if kwargs.get("start") else "trained"] += 1
        return train_fold(*args, **kwargs)

    def pruned(*args: Any, **kwargs: Any) -> Any:
        done["pruned"] += 1
        return validated_fold(*args, **kwargs)

    def quantised(*args: Any, **kwargs: Any) -> Any:
        done["quantised"] += 1
        return quantising(*args, **kwargs)

    monkeypatch.setattr(crossval, "train_fold", trained)
    monkeypatch.setattr(networks, "validated_fold", pruned)
    monkeypatch.setattr(quantise, "quantise", quantised)
    return done


def _run(plan: Plan, folder: Path) -> tuple[Result, dict[str, str], Path]:
    """The result, its tags and its network file."""
    result = run(plan, folder / "artifacts", record=Record(folder / "record", run_id="1"))
    record = Record.read(folder / "record")
    assert record is not None
    return result, record.content["tags"], folder / "artifacts" / "model.onnx"


@pytest.mark.long
def test_what_was_done_is_not_done_again(make_chips: ChipMaker, tmp_path: Path, work: Counter[str]) -> None:
    root = make_chips(per_class=8)
    base, base_tags, _ = _run(_plan(root), tmp_path / "0")
    assert work == {"trained": 2}
    runs = {}
    for number, kind in enumerate(("none", "dynamic", "static"), 1):
        plan = _plan(root, "compress.fraction=0.5", f"compress.quantise={kind}")
        runs[kind] = _run(plan, tmp_path / str(number))
    assert work == {"trained": 2, "finetuned": 2, "pruned": 2, "quantised": 4}

    # identities, from the base to the end
    stages = {
        kind: dict(each.split(":") for each in tags["dxc.stages"].split())
        for kind, (_, tags, _) in runs.items()
    }
    assert [*stages["none"]] == ["train", "prune", "finetune", "export", "cost"]
    assert [*stages["static"]] == ["train", "prune", "finetune", "export", "quantise", "cost"]
    assert {tags["dxc.base"] for _, tags, _ in runs.values()} == {base_tags["dxc.base"]}
    for name in ("train", "prune", "finetune", "export"):
        assert len({each[name] for each in stages.values()}) == 1
    assert stages["dynamic"]["quantise"] != stages["static"]["quantise"]

    # the numbers
    params = {kind: result.metrics["params"] for kind, (result, _, _) in runs.items()}
    assert set(params.values()) == {params["none"]} and params["none"] < base.metrics["params"] / 3
    assert runs["none"][0].metrics["macs"] == runs["static"][0].metrics["macs"] < base.metrics["macs"] / 3
    assert "accuracy_drop" not in runs["none"][0].metrics
    for kind in ("dynamic", "static"):
        result, _, path = runs[kind]
        drop = runs["none"][0].metrics["accuracy"] - result.metrics["accuracy"]
        assert result.metrics["accuracy_drop"] == pytest.approx(drop)
        assert result.metrics["onnx_mb"] == pytest.approx(path.stat().st_size / 1e6)
        assert result.metrics["onnx_mb"] < runs["none"][0].metrics["onnx_mb"]
        said = read_metadata(onnx.load(path), path)
        assert (said.quantised, said.trial) == (kind, plan_trial(root, kind))
        assert not list(path.parent.glob(".*"))
    # the time of a derived network is that of its base too
    assert runs["none"][0].metrics["fit_seconds"] > base.metrics["fit_seconds"]

    # the same again, and another device for the costs: nothing is done
    before = dict(work)
    again, _, path = _run(
        _plan(root, "compress.fraction=0.5", "compress.quantise=static", "hardware.threads=2"), tmp_path / "4"
    )
    assert work == before
    assert again.metrics["accuracy"] == runs["static"][0].metrics["accuracy"]
    assert read_metadata(onnx.load(path), path).trial != plan_trial(root, "static")

    # a fold of the base that is lost is trained again, and all that came from it
    (kept_folder(tmp_path / "cache", base_tags["dxc.base"]) / "fold1.pt").unlink()
    _run(_plan(root, "compress.fraction=0.5", "compress.quantise=static"), tmp_path / "5")
    assert work == {"trained": 3, "finetuned": 3, "pruned": 3, "quantised": 5}


def plan_trial(root: Path, kind: str) -> str:
    return _plan(root, "compress.fraction=0.5", f"compress.quantise={kind}").trial


def test_every_fold_is_judged_by_its_quantised_file(make_chips: ChipMaker, tmp_path: Path) -> None:
    """The accuracy that is claimed is that of the files on every validation chip, in ONNX Runtime."""
    root = make_chips(per_class=8)
    plan = _plan(root, "compress.quantise=static", "compress.calibration_images=5")
    result, tags, path = _run(plan, tmp_path / "run")
    stages = dict(each.split(":") for each in tags["dxc.stages"].split())
    assert [*stages] == ["train", "export", "quantise", "cost"]
    datamodule = plan.data.build(source=plan.source.build())
    datamodule.prepare_data()
    right = []
    for fold in datamodule.folds:
        file = kept_folder(tmp_path / "cache", stages["quantise"]) / f"{fold.name}.onnx"
        assert read_metadata(onnx.load(file), file).calibration_images == 5
        session = onnxruntime.InferenceSession(file)
        (scores,) = session.run(None, {"image": datamodule.cache.images(fold.val)})
        right.append(np.mean(scores.argmax(1) == datamodule.cache.labels[fold.val]))
        if fold.name == tags["dxc.exported_fold"]:
            (own,) = onnxruntime.InferenceSession(path).run(
                None, {"image": datamodule.cache.images(fold.val)}
            )
            assert np.array_equal(own, scores)
        shown = result.predictions[result.predictions["fold"] == fold.name]
        there = np.exp(scores[:, 1]) / np.exp(scores).sum(1)
        assert np.allclose(np.sort(shown["probability"]), np.sort(there), atol=1e-6)
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right))


def test_calibration_uses_training_chips_only(
    make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_chips(per_class=8)
    plan = _plan(root, "compress.quantise=static", "compress.calibration_images=6")
    drawn = []
    choose = quantise.calibration_chips

    def seen(train: Any, count: int, seed: int) -> Any:
        drawn.append((train, choose(train, count, seed)))
        return drawn[-1][1]

    monkeypatch.setattr(quantise, "calibration_chips", seen)
    _run(plan, tmp_path / "run")
    datamodule = plan.data.build(source=plan.source.build())
    datamodule.prepare_data()
    assert len(drawn) == 2
    for fold, (train, numbers) in zip(datamodule.folds, drawn, strict=True):
        assert np.array_equal(train, fold.train)
        assert len(numbers) == 6 and not set(numbers) & set(fold.val)


def test_without_finetuning_the_pruned_network_is_the_design(make_chips: ChipMaker, tmp_path: Path) -> None:
    plan = _plan(
        make_chips(per_class=8), "compress.fraction=0.25", "compress.finetune_epochs=0", "compress.align=4"
    )
    result, tags, _ = _run(plan, tmp_path / "run")
    stages = dict(each.split(":") for each in tags["dxc.stages"].split())
    assert [*stages] == ["train", "prune", "export", "cost"]
    weights = [
        torch.load(kept_folder(tmp_path / "cache", stages[name]) / "fold1.pt", weights_only=True)["weights"]
        for name in ("train", "prune")
    ]
    before = ResNet(5, width=8)
    before.load_state_dict(weights[0])
    by_hand = prune.remove_channel(prune.channel_fraction_pruning(before, 0.25, align=4))
    assert all(torch.equal(value, weights[1][name]) for name, value in by_hand.state_dict().items())
    assert result.metrics["params"] == count_params(by_hand)
    assert by_hand.conv1.out_channels == 8 and by_hand.layer4[0].conv1.out_channels == 48


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        (
            ["compress.fraction=1"],
            ConfigError,
            "compress.fraction must be a fraction of at least 0 and less than 1",
        ),
        (["compress.fraction=-0.1"], ConfigError, "compress.fraction must be"),
        (
            ["compress.quantise=int4"],
            ConfigError,
            "compress.quantise must be none, dynamic or static, not 'int4'",
        ),
        (["compress.finetune_epochs=-1"], ConfigError, "compress.finetune_epochs must be a whole number"),
        (
            ["compress.calibration_images=0"],
            ConfigError,
            "compress.calibration_images must be a whole number",
        ),
        (["compress.finetune_lr=0"], ConfigError, "compress.finetune_lr must be a number over 0, or null"),
        (["compress.fraction=0.95"], CompressionError, r"leaves no channel of conv1 \(8 channels\)"),
        (["compress.fraction=0.5", "trainer.devices=2"], ConfigError, "fine-tuning work on one device"),
    ],
)
def test_mistakes_before_anything_is_trained(
    overrides: list[str], error: type[Exception], says: str, make_chips: ChipMaker, tmp_path: Path
) -> None:
    root = make_chips(per_class=2)
    with pytest.raises(error, match=says):
        run(_plan(root, *overrides), tmp_path / "out", record=Record(tmp_path / "record", run_id="1"))
    assert not (tmp_path / "cache" / "stages").exists()


def test_a_network_that_cannot_be_traced_is_refused_before_anything_is_trained(
    make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channels change places, in a way that no trace shows."""
    monkeypatch.setattr(
        nn.Identity, "forward", lambda layer, image: image.flip(1)
    )  # after the first convolution
    plan = _plan(make_chips(per_class=2), "compress.fraction=0.5")
    torch.manual_seed(0)  # where the weakest channels lie symmetrically, nothing changes
    with pytest.raises(CompressionError, match="ResNet gives other answers .* cannot be traced"):
        run(plan, tmp_path / "out", record=Record(tmp_path / "record", run_id="1"))
    assert not (tmp_path / "cache" / "stages").exists()


def test_the_stages_of_a_network_depend_on_no_study_and_no_run(make_chips: ChipMaker) -> None:
    """So a base is found again where its run was deleted, or belongs to another study."""
    root = make_chips(per_class=2)
    plans = [_plan(root, "compress.fraction=0.5", f"study={study}") for study in ("one", "other")]
    one, other = (network_identities(plan, "chips") for plan in plans)
    assert one == other and [name for name, _ in one] == ["train", "prune", "finetune"]
    assert one[0][1] == train_identity(_plan(root), "chips")


@pytest.mark.long
def test_identities_of_pruning_in_steps(make_chips: ChipMaker) -> None:
    """Half in two steps begins as a quarter in one; steps mean nothing where nothing is trained between them."""
    root = make_chips(per_class=2)

    def found(*overrides: str) -> list[tuple[str, str]]:
        return network_identities(_plan(root, *overrides), "chips")

    steps, quarter = found("compress.fraction=0.5", "compress.steps=2"), found("compress.fraction=0.25")
    assert [name for name, _ in steps] == ["train", "prune", "finetune", "prune", "finetune"]
    assert steps[:3] == quarter
    tenths = found("compress.fraction=0.3", "compress.steps=3")
    assert tenths[:3] == found("compress.fraction=0.1") and tenths[:5] == found(
        "compress.fraction=0.2", "compress.steps=2"
    )
    untrained = ["compress.fraction=0.5", "compress.finetune_epochs=0"]
    assert _plan(root, *untrained, "compress.steps=3").trial == _plan(root, *untrained).trial
    assert found(*untrained, "compress.steps=3") == found(*untrained)
    assert _plan(root, "compress.steps=3").trial == _plan(root).trial
    with pytest.raises(ConfigError, match="compress.steps must be a whole number of at least 1, not 0"):
        _plan(root, "compress.steps=0")


@pytest.mark.long
def test_pruned_in_steps(make_chips: ChipMaker, tmp_path: Path, work: Counter[str]) -> None:
    """As many channels go as at once, each step is fine-tuned, and the first serves another design."""
    root = make_chips(per_class=8)
    overrides = ["compress.fraction=0.5", "trainer.max_epochs=1"]
    result, tags, _ = _run(_plan(root, *overrides, "compress.steps=2"), tmp_path / "0")
    assert work == {"trained": 2, "pruned": 4, "finetuned": 4}
    names = [each.split(":")[0] for each in tags["dxc.stages"].split()]
    assert names == ["train", "prune", "finetune", "prune", "finetune", "export", "cost"]
    at_once = prune.remove_channel(prune.channel_fraction_pruning(ResNet(5, width=8), 0.5))
    assert result.metrics["params"] == count_params(at_once)
    assert result.name.endswith("0.5 pruned 2xe1")
    _run(_plan(root, "compress.fraction=0.25", "trainer.max_epochs=1"), tmp_path / "1")
    assert work == {"trained": 2, "pruned": 4, "finetuned": 4}


@pytest.mark.long
def test_a_detector_is_compressed_too(make_chips: ChipMaker, tmp_path: Path) -> None:
    root = make_chips(per_class=8, boxes=True)
    knobs = ["model.features=16", "compress.fraction=0.5", "compress.quantise=static"]
    plan = _plan(root, "model=sppnet", *knobs)
    result, tags, path = _run(plan, tmp_path / "run")
    assert [each.split(":")[0] for each in tags["dxc.stages"].split()][-2:] == ["quantise", "cost"]
    said = read_metadata(onnx.load(path), path)
    assert (said.outputs, said.quantised) == (("presence", "box"), "static")
    boxes = result.predictions[["cx", "cy", "w", "h"]].to_numpy()
    assert boxes.shape == (16, 4) and (boxes >= 0).all() and (boxes <= 1).all()
    assert {"accuracy_drop", "box_ap50"} <= result.metrics.keys()
    assert not (path.parent / "model_any_size.onnx").exists()
    with pytest.raises(ConfigError, match="compress.quantise=static needs images of one size"):
        run(_plan(root, "model=sppnet", *knobs, "data.size=any"), tmp_path / "other")
