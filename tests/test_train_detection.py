"""A detector from chips with boxes to MLflow, by the trunk of train.py; mistakes a user can make."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from sklearn.metrics import average_precision_score

from dxc.analysis.reproduce import command
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.identity import trial_hash
from dxc.config.plan import Plan
from dxc.deploy.predictor import Predictor
from dxc.errors import BadChipsError, ConfigError, DataError
from dxc.models.sppnet import SppNet
from dxc.pipeline.result import Result
from dxc.pipeline.run import run
from tests.conftest import ChipMaker

pytestmark = pytest.mark.usefixtures("store_file")

BANDS = ("red", "green", "blue", "nir")
SMALL = [
    "model=sppnet", "model.features=16", "data=4ch", "data.size=40", "data.batch_size=4", "data.split=holdout",
    "trainer.max_epochs=2", "hardware.predictors=[]", "hardware.measure=false", "profile=none", "progress=false",
]  # fmt: skip


def _composed(root: Path, *overrides: str):
    common = ["source=chips", f"source.root={root}", f"cache_dir={root.parent}/cache", *SMALL]
    common.append(f"tracking.uri=sqlite:///{root.parent}/mlflow.db")
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=[*common, *overrides])


def _train(root: Path, *overrides: str) -> Result:
    return run(Plan.of(_composed(root, *overrides)), root.parent / "out")


@pytest.mark.long
def test_what_a_run_leaves(make_chips: ChipMaker) -> None:
    root = make_chips(per_class=10, size=40, boxes=True)
    result = _train(root, "optimizer=sgd", "scheduler=step", "study=boxes")
    predictions = result.predictions
    assert list(predictions) == ["region", "name", "label", "fold", "probability", "cx", "cy", "w", "h"]
    numbers = predictions[["cx", "cy", "w", "h"]].to_numpy()
    assert len(predictions) == 4 and ((numbers >= 0) & (numbers <= 1)).all()
    expected = average_precision_score(predictions["label"], predictions["probability"])
    assert result.metrics["average_precision"] == pytest.approx(expected)
    assert (result.score, list(result.fold_scores)) == ("average_precision", ["holdout"])
    assert result.fold_scores["holdout"] == pytest.approx(expected)
    # every true box is the middle third of the image
    low, high = numbers[:, :2] - numbers[:, 2:] / 2, numbers[:, :2] + numbers[:, 2:] / 2
    true_low, true_high = 13 / 40, 26 / 40
    inside = np.clip(np.minimum(high, true_high) - np.maximum(low, true_low), 0, None).prod(axis=1)
    iou = inside / (numbers[:, 2:].prod(axis=1) + (true_high - true_low) ** 2 - inside)
    assert result.metrics["mean_iou"] == pytest.approx(iou[predictions["label"] == 1].mean(), rel=1e-5)

    client = MlflowClient(f"sqlite:///{root.parent}/mlflow.db")
    tracked = client.get_run(result.run_id)
    assert tracked.info.run_name == "sppnet k3 l4 f16, 4ch b4"
    assert {"accuracy", "average_precision", "box_ap50", "box_ap", "mean_iou"} <= tracked.data.metrics.keys()
    assert tracked.data.tags["model"] == "sppnet"
    files = {file.path for file in client.list_artifacts(result.run_id)}
    assert {"model.onnx", "model_any_size.onnx", "figures", "predictions.parquet"} <= files
    drawn = {file.path for file in client.list_artifacts(result.run_id, "figures")}
    names = ["chips.jpg", "confusion_matrix.png", "most_wrong.jpg", "precision_recall.png"]
    names += ["precision_recall.svg", "samples.png", "samples.svg"]
    assert sorted(drawn) == [f"figures/{name}" for name in names]
    for name in ("precision_recall.svg", "samples.svg"):
        text = Path(client.download_artifacts(result.run_id, f"figures/{name}")).read_text()
        said = f"4 {result.source}, each judged by a network that was not trained on it (holdout)"
        assert said in " ".join(re.findall(r"<!-- (.*?) -->", text))
    assert result.notes[0].startswith("4 chips: accuracy ") and "(95 % interval, Wilson)" in result.notes[0]
    assert not [note for note in result.notes if "was not drawn" in note]

    # both say how they are fed, and answer to raw chips what validation said of them
    for name, size in (("model.onnx", (40, 40)), ("model_any_size.onnx", "any")):
        predictor = Predictor(client.download_artifacts(result.run_id, name))
        assert predictor.metadata.size == size and predictor.metadata.channels == BANDS
        assert predictor.metadata.trial == tracked.data.tags["dxc.trial"]
        for chip in predictions.itertuples():
            path = root / chip.region / f"{chip.region}Aer" / "FT"[chip.label] / f"{chip.name}.tif"
            with rasterio.open(path) as raster:
                prediction = predictor.predict(raster.read(), BANDS)
            assert prediction.presence[0] == pytest.approx(chip.probability, abs=1e-5)
            np.testing.assert_allclose(
                prediction.boxes[0], [chip.cx, chip.cy, chip.w, chip.h], rtol=0, atol=1e-5
            )

    # both files are the network whose weights were kept
    import onnxruntime

    (checkpoint,) = client.list_artifacts(result.run_id, "checkpoints")
    model = SppNet(4, features=16).eval()
    model.load_state_dict(
        torch.load(client.download_artifacts(result.run_id, checkpoint.path), weights_only=True)
    )
    for name, sizes in (("model.onnx", [(40, 40)]), ("model_any_size.onnx", [(40, 40), (33, 57), (16, 16)])):
        session = onnxruntime.InferenceSession(client.download_artifacts(result.run_id, name))
        for height, width in sizes:
            image = torch.rand(2, 4, height, width, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                expected_outputs = model(image)
            for found, wanted in zip(
                session.run(None, {"image": image.numpy()}), expected_outputs, strict=True
            ):
                np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)

    # the command that rebuilds it names the same trial
    config = resolved(_composed(root, "optimizer=sgd", "scheduler=step"))
    assert "model=sppnet" in command(config, trial=trial_hash(config)).split()


def test_chips_of_any_size(make_chips: ChipMaker) -> None:
    """Three sizes in one study; the figures show them, and the fixed file is for the usual 100 pixels."""
    import onnx

    root = make_chips(per_class=12, size=[(40, 40), (24, 56), (64, 32)], boxes=True)
    result = _train(root, "data.size=any", "trainer.max_epochs=1")
    assert len(result.predictions) == 5
    shape = onnx.load(result.onnx).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape[1:]] == [4, 100, 100]


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        (["data.size=12"], ConfigError, "16"),
        (["model.kernel=2"], ConfigError, "model.kernel"),
        (["model.level=6"], ConfigError, "model.level"),
        (["task.box_loss=l3"], ConfigError, "task.box_loss"),
        (["+task.box_los=giou"], ConfigError, "box_los"),
        (["scheduler=step", "scheduler.step_size=none"], ConfigError, "scheduler: "),
        (["scheduler=step", "scheduler.step_size=0"], ConfigError, "scheduler: "),
        (["scheduler=step", "+scheduler.gama=0.1"], ConfigError, "gama"),
        (
            ["score=f2"],
            ConfigError,
            "score=f2 is not a score of a fold; choose one of average_precision, accuracy, mean_iou",
        ),
        (["score=loss"], ConfigError, "score=loss is not a score of a fold"),
        (["task=classification"], ConfigError, "leave task= out, the model chooses it"),
        (["boxes=false"], ConfigError, "boxes=false does not go with sppnet"),
        (["data.boxes=false"], ConfigError, "boxes=false does not go with sppnet"),
        (["scheduler=step", "scheduler.gamma=x", "trainer.max_epochs=4"], ConfigError, "scheduler: "),
    ],
)
def test_what_cannot_work(
    make_chips: ChipMaker, overrides: list[str], kind: type[Exception], message: str
) -> None:
    root = make_chips(per_class=10, size=40, boxes=True)
    with pytest.raises(kind, match=message):
        _train(root, *overrides)


def test_bad_annotations_are_listed_together(make_chips: ChipMaker) -> None:
    root = make_chips(per_class=10, size=40, boxes=True)
    photos = root / "NE" / "NEAer" / "T"
    (photos / "NE_T_000.xml").unlink()
    broken = photos / "NE_T_001.xml"
    broken.write_text(broken.read_text().replace("<name>culvert</name>", "<name>cow</name>"))
    (photos / "NE_T_002.xml").write_text("<annotation>")
    with pytest.raises(BadChipsError) as error:
        _train(root)
    text = str(error.value)
    assert "3 bad chips" in text and "cow" in text and "NE_T_002.xml" in text and "NE_T_000" in text
    left = _train(root, "source.on_bad_chip=skip", "trainer.max_epochs=1")
    assert left.excluded == 3
    listing = pd.read_csv(left.onnx.parent / "excluded_chips.csv")
    assert len(listing) == 3


def test_chips_without_any_annotation(make_chips: ChipMaker) -> None:
    with pytest.raises(DataError, match="xml"):
        _train(make_chips(per_class=10, size=40))
