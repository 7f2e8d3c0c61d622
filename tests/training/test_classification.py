"""The task and its trainer: metrics against scikit-learn, predictions in order, nothing left changed."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn import metrics as sk
from torch.utils.data import DataLoader

from dxc.data.datamodule import ChipDataModule, FolderSource
from dxc.models.resnet import ResNet
from dxc.training.classification import ClassificationTask, pooled_metrics
from dxc.training.task import Task
from dxc.training.trainer import FoldTrainer
from tests.conftest import ChipMaker


def _fit(
    make_chips: ChipMaker, width: int = 4, **options: object
) -> tuple[ClassificationTask, FoldTrainer, ChipDataModule]:
    root = make_chips(per_class=8)
    datamodule = ChipDataModule(
        FolderSource(str(root)),
        channels=["dem", "red"],
        batch_size=5,
        size=20,
        folds=4,
        cache_dir=str(root.parent / "cache"),
        progress=False,
    )
    datamodule.prepare_data()
    datamodule.select(datamodule.folds[0], seed=0)
    pl.seed_everything(0, verbose=False)
    task = ClassificationTask(ResNet(2, width=width), functools.partial(torch.optim.Adam, lr=1e-2))
    options = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "progress": False} | options
    trainer = FoldTrainer(**options)
    trainer.fit(task, datamodule=datamodule)
    return task, trainer, datamodule


def test_predictions_are_the_last_epochs_in_chip_order(make_chips: ChipMaker) -> None:
    task, trainer, datamodule = _fit(make_chips)
    val = datamodule.folds[0].val
    predictions = task.predictions
    assert predictions["index"].tolist() == val.tolist()
    assert predictions["label"].tolist() == datamodule.cache.labels[val].tolist()
    task.eval()
    with torch.inference_mode():
        scores = task(torch.from_numpy(datamodule.cache.images(val)))
    torch.testing.assert_close(predictions["probability"], scores.softmax(1)[:, 1], atol=1e-5, rtol=1e-4)
    accuracy = (scores.argmax(1).numpy() == datamodule.cache.labels[val]).mean()
    assert float(trainer.callback_metrics["val_accuracy"]) == pytest.approx(accuracy)


def test_validation_loss_is_the_cross_entropy_of_all_chips(make_chips: ChipMaker) -> None:
    task, trainer, datamodule = _fit(make_chips)
    val = datamodule.folds[0].val
    task.eval()
    with torch.inference_mode():
        scores = task(torch.from_numpy(datamodule.cache.images(val)))
    expected = sk.log_loss(datamodule.cache.labels[val], scores.double().softmax(1).numpy(), labels=[0, 1])
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(expected, rel=1e-3)


def test_history_and_counts(make_chips: ChipMaker) -> None:
    _, trainer, _ = _fit(make_chips, max_epochs=3)
    names = {name for name, _, _ in trainer.history}
    assert names == {"train_loss", "val_loss", "val_accuracy"}
    for name in names:
        assert [epoch for each, _, epoch in trainer.history if each == name] == [1, 2, 3]
    assert trainer.trained_images == 3 * 12
    assert trainer.train_seconds > 0


def test_training_loss_is_the_mean_over_images_of_its_own_epoch() -> None:
    """Three batches of 8, 8 and 4 images; nothing is learnt, so the epoch's loss is the cross-entropy of all 20."""
    image = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    label = (torch.arange(20) >= 16).long()  # the small batch is the other class
    batches = [
        {"image": image[part], "label": label[part], "index": part} for part in torch.arange(20).split(8)
    ]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    torch.nn.init.constant_(model[1].bias, 0.0)
    model[1].bias.data[1] = -3.0
    with torch.inference_mode():
        expected = float(torch.nn.functional.cross_entropy(model(image), label))
    trainer = FoldTrainer(max_epochs=2, accelerator="cpu", devices=1, progress=False, limit_val_batches=0)
    trainer.fit(
        ClassificationTask(model, functools.partial(torch.optim.SGD, lr=0.0)),
        DataLoader(batches, batch_size=None),
    )
    assert trainer.history == [("train_loss", pytest.approx(expected, rel=1e-5), epoch) for epoch in (1, 2)]


def test_training_learns(make_chips: ChipMaker) -> None:
    _, trainer, _ = _fit(make_chips, max_epochs=8)
    losses = [value for name, value, _ in trainer.history if name == "train_loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("channels_last", "width", "expected"),
    [(True, 16, True), (False, 16, False), (True, 8, False)],  # the last would crash torch 2.13.0
)
def test_memory_format_is_an_option_and_is_undone(
    make_chips: ChipMaker, channels_last: bool, width: int, expected: bool
) -> None:
    seen = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            weight = pl_module.model.layer2[0].conv1.weight
            seen.append(weight.is_contiguous(memory_format=torch.channels_last))

    task, _, _ = _fit(make_chips, width=width, channels_last=channels_last, callbacks=[Spy()])
    assert set(seen) == {expected}
    assert task.model.layer2[0].conv1.weight.is_contiguous()


def test_one_line_a_fold_without_a_terminal(make_chips: ChipMaker, capsys: pytest.CaptureFixture) -> None:
    _fit(make_chips, progress=True, title="fold1 (1 of 4)")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fold1")]
    assert len(lines) == 1
    assert "epoch 2/2, loss " in lines[0]
    assert "val accuracy" in lines[0]


def test_pooled_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    probability = np.clip(label * 0.3 + rng.random(200) * 0.7, 0, 1).astype(np.float32)
    ours = pooled_metrics(torch.from_numpy(probability), torch.from_numpy(label))
    assert ours["average_precision"] == pytest.approx(
        sk.average_precision_score(label, probability), abs=1e-5
    )
    assert ours["auroc"] == pytest.approx(sk.roc_auc_score(label, probability), abs=1e-5)
    assert ours["f1"] == pytest.approx(sk.f1_score(label, probability > 0.5), abs=1e-5)


def test_metrics_without_a_meaning_are_missing() -> None:
    for label in ([1, 1], [0, 0]):
        assert set(pooled_metrics(torch.tensor([0.2, 0.9]), torch.tensor(label))) == {"f1"}
    # one of each class is enough: of three, the crossing ranks second
    one = pooled_metrics(torch.tensor([0.2, 0.4, 0.9]), torch.tensor([0, 1, 0]))
    assert one == {"f1": 0.0, "average_precision": pytest.approx(0.5), "auroc": pytest.approx(0.5)}


class _Gathering(Task):
    """Keeps what it judged as its prediction, and stands for the first of two devices."""

    def validated(self, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"probability": outputs["score"]}

    def all_gather(self, outputs: dict[str, torch.Tensor], **_: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
        other = {
            "index": torch.tensor([1, 7, 3]),
            "label": torch.tensor([0, 1, 1]),
            "score": torch.tensor([0.1, 0.7, 0.3]),
        }
        return {key: torch.stack([value, other[key]]) for key, value in outputs.items()}


@pytest.mark.parametrize(
    ("devices", "index"), [(1, [3, 4, 9]), (2, [1, 3, 4, 7, 9])]  # the second has number 3 once more
)  # fmt: skip
def test_outputs_of_all_devices_are_predicted_once_and_in_order(devices: int, index: list[int]) -> None:
    task = _Gathering(torch.nn.Identity(), functools.partial(torch.optim.SGD, lr=0.1))
    task._trainer = SimpleNamespace(world_size=devices)  # type: ignore[assignment]
    for batch in ([9, 3], [4]):
        part = torch.tensor(batch)
        task._outputs.append({"index": part, "label": part % 2, "score": part / 10})
    task.on_validation_epoch_end()
    assert task.predictions["index"].tolist() == index
    assert task.predictions["label"].tolist() == [each % 2 if each != 1 else 0 for each in index]
    assert task.predictions["probability"].tolist() == pytest.approx([each / 10 for each in index])
    assert task._outputs == []
