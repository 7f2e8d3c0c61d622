"""The whole chain on images of ten classes: trained, exported with its constants, judged, and begun from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.metrics import f1_score, roc_auc_score

from dxc.analysis.reproduce import command_of
from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.deploy.export import count_params
from dxc.deploy.metadata import METADATA_BYTES, read_metadata
from dxc.deploy.predictor import Predictor
from dxc.errors import ConfigError, DxcError
from dxc.evaluation.answers import predicted_label, probabilities_of
from dxc.evaluation.bootstrap import Outcomes
from dxc.models.resnet import TinyResNet
from dxc.pipeline.preview import preview
from dxc.pipeline.result import Result
from dxc.pipeline.run import run
from dxc.search.costs import _cost
from dxc.synthetic.images import SHAPES, SyntheticImages
from dxc.tracking.record import Record
from tests.conftest import Once

SMALL = [
    "data=cifar10", "source=synthetic_images", "source.images=600", "model=resnet8", "model.width=4",
    "trainer.max_epochs=1", "data.batch_size=50", "hardware.predictors=[]", "hardware.measure=false", "profile=none",
    "progress=false",
]  # fmt: skip


def _plan(folder: Path, *further: str) -> Plan:
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return Plan.of(compose("train", overrides=[*SMALL, f"cache_dir={folder}/cache", *further]))


def _run(folder: Path, name: str, *further: str) -> Result:
    return run(_plan(folder, *further), folder / name, record=Record(folder / f"{name}-record", run_id="1"))


@pytest.fixture(scope="module")
def done(once: Once) -> Path:
    """A run in out/."""
    return once("published-images", lambda folder: _run(folder, "out"))


def test_what_is_recorded(done: Path) -> None:
    record = Record.read(done / "out-record")
    assert record is not None
    metrics, tags = record.content["metrics"], record.content["tags"]
    predictions = pd.read_parquet(done / "out" / "predictions.parquet")
    assert [*predictions][:4] == ["region", "name", "label", "fold"] and len(predictions) == 100
    assert [*predictions][4:] == [f"probability.{name}" for name in SHAPES]
    probability, label = probabilities_of(predictions), predictions["label"].to_numpy()
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    answers = predicted_label(probability)
    assert metrics["accuracy"] == pytest.approx((answers == label).mean())
    assert metrics["f1"] == pytest.approx(f1_score(label, answers, average="macro"), abs=1e-6)
    assert metrics["auroc"] == pytest.approx(
        roc_auc_score(label, probability / probability.sum(1, keepdims=True), multi_class="ovr"), abs=1e-6
    )
    assert "average_precision" not in metrics
    assert Outcomes.of_predictions(predictions).accuracy == pytest.approx(metrics["accuracy"])
    assert tags["data"] == "cifar10" and tags["dxc.source"] == "600 synthetic images (seed 0)"
    figures = sorted(path.name for path in (done / "out" / "figures").iterdir())
    assert figures == ["confusion_matrix.png", "most_wrong.jpg"]  # the sheet of images is drawn once a study


def test_the_exported_file_takes_raw_pixels(done: Path) -> None:
    """Its predictor normalises as training did: the same probabilities for the same images."""
    predictor = Predictor(done / "out" / "model.onnx")
    said = predictor.metadata
    assert said.classes == SHAPES and said.normalise == "fixed" and said.size == (32, 32)
    assert said.mean == (125.3, 123.0, 113.9) and said.std == (63.0, 62.1, 66.7)
    assert len(said.to_json()) < METADATA_BYTES - 200  # its size is known before training
    images = SyntheticImages(600, cache_dir=str(done / "cache")).read()
    answer = predictor.predict(images.pixels[images.held_out], ["red", "green", "blue"])
    expected = probabilities_of(pd.read_parquet(done / "out" / "predictions.parquet"))
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)
    assert answer.names == [SHAPES[each] for each in expected.argmax(axis=1)]


def test_its_size_is_known_before_training(done: Path) -> None:
    costs = _cost(_plan(done).values(), [])
    assert costs["params"] == count_params(TinyResNet(3, 10, width=4))
    assert costs["onnx_mb"] == pytest.approx((done / "out" / "model.onnx").stat().st_size / 1e6, abs=0.0002)


@pytest.mark.long
def test_the_printed_command_is_of_the_same_trial(done: Path) -> None:
    plan = _plan(done)
    command = command_of(done / "out" / "config.yaml", plan.trial)
    assert "data=cifar10" in command and "source=synthetic_images" in command and "model=resnet8" in command
    assert "num_classes" not in command and "classes" not in command


@pytest.mark.long
def test_a_checkpoint_is_evaluated_and_trained_on(done: Path, tmp_path: Path) -> None:
    base = done / "out" / "checkpoints" / "given.pt"
    (tmp_path / "cache").symlink_to(done / "cache")
    evaluated = _run(tmp_path, "evaluated", f"base={base}", "trainer.max_epochs=0", "again=true")
    first = pd.read_parquet(done / "out" / "predictions.parquet")
    np.testing.assert_allclose(probabilities_of(evaluated.predictions), probabilities_of(first), atol=1e-5)
    assert evaluated.metrics["fit_seconds"] >= 0 and "images_per_second" not in evaluated.metrics
    curves = pd.read_csv(tmp_path / "evaluated" / "curves.csv")
    assert {"val_accuracy", "val_loss"} == set(curves["metric"]) and set(curves["epoch"]) == {0}

    further = _run(tmp_path, "further", f"base={base}", "trainer.max_epochs=1")
    before, after = (
        torch.load(path, weights_only=True) for path in (base, tmp_path / "further/checkpoints/given.pt")
    )
    assert before.keys() == after.keys() and not torch.equal(before["fc.weight"], after["fc.weight"])
    assert further.metrics["accuracy"] >= 0


def test_the_content_of_a_base_is_its_identity(done: Path, tmp_path: Path) -> None:
    base = done / "out" / "checkpoints" / "given.pt"
    copy, other = tmp_path / "copy.pt", tmp_path / "other.pt"
    copy.write_bytes(base.read_bytes())
    torch.save({"a": torch.zeros(1)}, other)
    plain, first, second, third = (
        _plan(done, *each) for each in ([], [f"base={base}"], [f"base={copy}"], [f"base={other}"])
    )
    assert first.trial == second.trial and len({plain.trial, first.trial, third.trial}) == 3
    with pytest.raises(ConfigError, match="base=.*absent.pt: there is no such file"):
        _plan(done, f"base={tmp_path}/absent.pt")
    with pytest.raises(ConfigError, match="only the weights of a file .base=FILE. can be evaluated"):
        _plan(done, "trainer.max_epochs=0")
    with pytest.raises(ConfigError, match="holds the weights of another network than TinyResNet.*unknown: a"):
        run(third, tmp_path / "out", record=Record(tmp_path / "record", run_id="1"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["source=synthetic"], "synthetic chips are chips, and data=cifar10 is made of whole images"),
        (
            ["data=7ch"],
            "synthetic images are whole images, and this data= is made of chips; use data=cifar10",
        ),
        (
            ["model.num_classes=2"],
            "model.num_classes=2 does not go with the 10 classes of data=cifar10; leave it out",
        ),
        (
            ["model=sppnet"],
            "sppnet finds crossings in chips|the images of data=cifar10 have no boxes",
        ),
        (["data.size=64"], "have 32 x 32 pixels"),
    ],
)
def test_what_does_not_go_together(overrides: list[str], says: str, done: Path, tmp_path: Path) -> None:
    groups = {each.split("=")[0] for each in overrides}  # whose other keys belong to the option before
    known = [each for each in SMALL if each.split(".")[0] not in groups]
    with (
        pytest.raises(DxcError, match=says),
        initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"),
    ):
        plan = Plan.of(compose("train", overrides=[*known, *overrides, f"cache_dir={done}/cache"]))
        run(plan, tmp_path / "out", record=Record(tmp_path / "record", run_id="1"))


def test_preview(done: Path, tmp_path: Path) -> None:
    path = preview(_plan(done, "preview=true"), tmp_path)
    assert path.read_bytes()[:3] == b"\xff\xd8\xff"


def test_the_file_of_the_metadata_is_valid(done: Path) -> None:
    model = onnx.load(done / "out" / "model.onnx")
    assert read_metadata(model, "x").data == Record.read(done / "out-record").content["tags"]["dxc.data"]  # type: ignore[union-attr]
