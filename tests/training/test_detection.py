"""The detection task: its loss by hand, what it logs and predicts, its schedule; and what classification shares."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dxc.data.datamodule import Batch
from dxc.errors import ConfigError, TrainingError
from dxc.evaluation.average_precision import TrueBoxes, box_metrics
from dxc.evaluation.boxes import giou_loss
from dxc.training.classification import ClassificationTask, pooled_metrics
from dxc.training.detection import DetectionTask
from dxc.training.task import Task
from dxc.training.trainer import FoldTrainer

NAN = float("nan")
SIZE = 24
SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Answer(NamedTuple):
    presence: Tensor
    box: Tensor


class Detector(nn.Module):
    """Two convolutions, then two heads that see where things are."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(8 * (SIZE // 4) ** 2, 32), nn.ReLU()),
        )
        self.presence, self.box = nn.Linear(32, 1), nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Answer:
        features = self.features(image)
        return Answer(self.presence(features).squeeze(1), self.box(features).sigmoid())


class Constant(nn.Module):
    """Answers what it holds, whatever it is shown."""

    def __init__(self, presence: list[float], box: list[list[float]]) -> None:
        super().__init__()
        self.presence = nn.Parameter(torch.tensor(presence))
        self.box = nn.Parameter(torch.tensor(box))

    def forward(self, image: Tensor) -> Answer:
        return Answer(self.presence + 0, self.box + 0)


def _scenes(images: int = 48, seed: int = 0, batch_size: int = 8) -> list[Batch]:
    """Noise; in three of four images bright squares, two in every fourth. M differs from batch to batch."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.1, (images, 1, SIZE, SIZE)).astype(np.float32)
    boxes = np.full((images, 2, 4), NAN, np.float32)
    for number in range(images):
        for one in range((0, 1, 1, 2 if number >= batch_size else 1)[number % 4]):
            side = int(rng.integers(6, 10))
            x, y = rng.integers(0, SIZE - side, 2)
            image[number, 0, y : y + side, x : x + side] = 1
            boxes[number, one] = np.array([x + side / 2, y + side / 2, side, side]) / SIZE
    label = ~np.isnan(boxes[:, 0, 0])
    batches = []
    for start in range(0, images, batch_size):
        part = slice(start, start + batch_size)
        count = 2 if not np.isnan(boxes[part, 1]).all() else 1
        batches.append(
            {
                "image": torch.from_numpy(image[part]),
                "label": torch.from_numpy(label[part].astype(np.int64)),
                "index": torch.arange(images)[part],
                "boxes": torch.from_numpy(boxes[part, :count]),
            }
        )
    return batches


def _fit(task: Task, train: list[Batch], val: list[Batch] | None = None, **options: object) -> FoldTrainer:
    def loader(batches: list[Batch]) -> DataLoader:
        return DataLoader(batches, batch_size=None)

    options = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "progress": False} | options
    trainer = FoldTrainer(**options)
    trainer.fit(task, loader(train), loader(train if val is None else val))
    return trainer


def _joined(batches: list[Batch], key: str) -> np.ndarray:
    return torch.cat([batch[key] for batch in batches]).numpy()


def _truth(batches: list[Batch]) -> TrueBoxes:
    most = max(batch["boxes"].shape[1] for batch in batches)
    padded = [
        np.pad(
            batch["boxes"].numpy(), ((0, 0), (0, most - batch["boxes"].shape[1]), (0, 0)), constant_values=NAN
        )
        for batch in batches
    ]
    boxes = np.concatenate(padded)
    return TrueBoxes(boxes, np.full((len(boxes), 2), SIZE))


BATCH = {
    "image": torch.zeros(3, 1, 8, 8),
    "label": torch.tensor([1, 0, 1]),
    "index": torch.arange(3),
    "boxes": torch.tensor(
        [
            [[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]],
            [[NAN] * 4, [NAN] * 4],
            [[0.4, 0.4, 0.4, 0.4], [NAN] * 4],
        ]
    ),
}


def _loss_of_batch(**options: object) -> tuple[Constant, Tensor]:
    model = Constant([0.0, 1.0, 2.0], [[0.5, 0.5, 0.2, 0.4], [0.9, 0.9, 0.9, 0.9], [0.4, 0.4, 0.4, 0.4]])
    task = DetectionTask(model, SGD, **options)
    return model, task.batch_loss(model(BATCH["image"]), BATCH)


# logits 0 (true), 1 (false), 2 (true)
PRESENCE_LOSS = (math.log(2) + math.log(1 + math.e) + math.log(1 + math.exp(-2))) / 3


@pytest.mark.parametrize(
    ("box_loss", "box_weight", "expected"),
    [
        # images 0 and 2 have boxes: 0.2 off in one number, and no error: (0.2 - 1/18 + 0) / 2
        ("smooth_l1", 1.0, PRESENCE_LOSS + (0.2 - 1 / 18) / 2),
        ("smooth_l1", 3.0, PRESENCE_LOSS + 3 * (0.2 - 1 / 18) / 2),
        ("smooth_l1", 0, PRESENCE_LOSS),
        # half of the predicted box is the true one, and the hull is the predicted one: 1 - 1/2
        ("giou", 1.0, PRESENCE_LOSS + (0.5 + 0) / 2),
    ],
)
def test_loss_by_hand(box_loss: str, box_weight: float, expected: float) -> None:
    model, loss = _loss_of_batch(box_loss=box_loss, box_weight=box_weight)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert model.presence.grad is not None
    assert model.box.grad is not None
    # d BCE / d logit = (probability - label) / images
    expected_slope = (torch.tensor([0.0, 1.0, 2.0]).sigmoid() - BATCH["label"]) / 3
    torch.testing.assert_close(model.presence.grad, expected_slope)
    assert model.box.grad.isfinite().all()
    assert (model.box.grad[1] == 0).all()  # no crossing: no word about the box
    if box_loss == "smooth_l1":
        assert model.box.grad[0].tolist() == pytest.approx(
            [0, 0, 0, box_weight / 2]
        )  # slope 1, two crossings


def test_what_is_not_given() -> None:
    _, given = _loss_of_batch(box_loss="smooth_l1", box_weight=1.0, min_precision=1)  # the largest there is
    assert _loss_of_batch()[1].item() == given.item()
    assert DetectionTask(Detector(), SGD).min_precision == 0.9


def test_a_batch_without_crossings_has_no_box_loss() -> None:
    model = Constant([0.0, 1.0], [[0.5] * 4] * 2)
    batch = {
        "label": torch.tensor([0, 0]),
        "boxes": torch.full((2, 1, 4), NAN),
        "image": torch.zeros(2, 1, 8, 8),
    }
    loss = DetectionTask(model, SGD).batch_loss(model(batch["image"]), batch)
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)
    loss.backward()
    assert model.presence.grad is not None
    assert model.presence.grad.tolist() == pytest.approx([0.25, 1 / (1 + math.exp(-1)) / 2])
    assert model.box.grad is not None
    assert (model.box.grad == 0).all()


def test_validation_logs_and_predicts() -> None:
    train, val = _scenes(seed=1), _scenes(images=20, seed=2)
    val = val[::-1]  # out of order, and the first batch has another M than the second
    assert {batch["boxes"].shape[1] for batch in val} == {1, 2}
    pl.seed_everything(0, verbose=False)
    task = DetectionTask(Detector(), SGD, box_loss="giou", box_weight=0.5)
    trainer = _fit(task, train, val, max_epochs=2)
    assert {name for name, _, _ in trainer.history} == {
        "train_loss",
        "val_loss",
        "val_accuracy",
        "val_average_precision",
        "val_mean_iou",
    }

    predictions, val = task.predictions, val[::-1]
    assert predictions["index"].tolist() == list(range(20))
    label = _joined(val, "label")
    assert predictions["label"].tolist() == label.tolist()
    with torch.inference_mode():
        output = task.eval()(torch.from_numpy(_joined(val, "image")))
    probability = output.presence.sigmoid()
    torch.testing.assert_close(predictions["probability"], probability, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predictions["box"], output.box, atol=1e-5, rtol=1e-4)
    assert predictions["box"].dtype == torch.float32

    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val_accuracy"] == pytest.approx(((probability > 0.5).numpy() == label).mean())
    assert logged["val_average_precision"] == pytest.approx(
        sk.average_precision_score(label, probability), abs=1e-5
    )
    truth = _truth(val)
    pooled = box_metrics(probability, output.box, truth)
    assert logged["val_mean_iou"] == pytest.approx(pooled["mean_iou"], abs=1e-5)
    # every image with its boxes one by one
    losses = []
    for box, own in zip(output.box, truth.boxes, strict=True):
        corners = [_corners(each) for each in own if not np.isnan(each[0])]
        if corners:
            losses.append(min(float(giou_loss(_corners(box), each)) for each in corners))
    expected = sk.log_loss(label, probability.double(), labels=[0, 1]) + 0.5 * np.mean(losses)
    assert logged["val_loss"] == pytest.approx(expected, rel=1e-4)


def _corners(box: Tensor | np.ndarray) -> Tensor:
    cx, cy, w, h = (float(number) for number in box)
    return torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_training_learns_presence_and_place(box_loss: str) -> None:
    pl.seed_everything(0, verbose=False)
    task = DetectionTask(Detector(), functools.partial(torch.optim.Adam, lr=3e-3), box_loss=box_loss)
    trainer = _fit(task, _scenes(96, seed=1), max_epochs=20)
    curve = {
        name: [value for each, value, _ in trainer.history if each == name] for name, _, _ in trainer.history
    }
    assert curve["train_loss"][-1] < 0.5 * curve["train_loss"][0]
    assert curve["val_accuracy"][-1] > 0.95
    assert curve["val_average_precision"][-1] > 0.95
    assert curve["val_mean_iou"][-1] > max(0.3, curve["val_mean_iou"][0])


def test_metrics_that_validation_leaves_undefined_are_not_logged() -> None:
    def only(wanted: int) -> list[Batch]:
        batches = []
        for batch in _scenes(16):
            kept = batch["label"] == wanted
            batches.append({key: value[kept] for key, value in batch.items()})
        return batches

    names = {
        wanted: set(_fit(DetectionTask(Detector(), SGD), _scenes(16), only(wanted)).callback_metrics)
        for wanted in (0, 1)
    }
    always = {"train_loss", "val_loss", "val_accuracy"}
    assert names == {0: always, 1: {*always, "val_mean_iou"}}


def test_mixed_precision_and_channels_last_on_a_cpu() -> None:
    seen: set[tuple[torch.dtype, bool]] = set()

    class Spy(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            convolution = pl_module.model.features[0]
            last = pl_module.model.features[2].weight.is_contiguous(memory_format=torch.channels_last)
            convolution.register_forward_hook(lambda _m, _i, out: seen.add((out.dtype, last)))

    pl.seed_everything(0, verbose=False)
    task = DetectionTask(Detector(), SGD, box_loss="giou")
    trainer = _fit(
        task, _scenes(), max_epochs=4, precision="bf16-mixed", channels_last=True, callbacks=[Spy()]
    )
    assert seen == {(torch.bfloat16, True)}
    losses = [value for name, value, _ in trainer.history if name == "train_loss"]
    assert losses[-1] < losses[0]
    assert {task.predictions[key].dtype for key in ("probability", "box")} == {torch.float32}


def test_a_loss_that_is_not_a_number_ends_training() -> None:
    task = DetectionTask(Detector(), functools.partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(
        TrainingError, match=r"the training loss is (nan|inf) after epoch 1; lower optimizer.lr"
    ):
        _fit(task, _scenes())


def _classifier(scheduler: Callable | None) -> ClassificationTask:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2))
    return ClassificationTask(model, SGD, scheduler=scheduler)


def _detector(scheduler: Callable | None) -> DetectionTask:
    return DetectionTask(Detector(), SGD, scheduler=scheduler)


STEP = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.1)


@pytest.mark.parametrize("task_of", [_classifier, _detector])
@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [(None, [0.1] * 7), (STEP, [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])],
)
def test_the_scheduler_steps_once_an_epoch(
    task_of: Callable[[Callable | None], Task], scheduler: Callable | None, expected: list[float]
) -> None:
    rates: list[list[float]] = []

    class Spy(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            rates.append([])

        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            rates[-1].append(trainer.optimizers[0].param_groups[0]["lr"])

    _fit(task_of(scheduler), _scenes(16), max_epochs=7, callbacks=[Spy()])
    assert rates == [[pytest.approx(rate)] * 2 for rate in expected]


def test_a_scheduler_may_watch_the_validation_loss() -> None:
    plateau = functools.partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9, factor=0.5
    )
    trainer = _fit(_detector(plateau), _scenes(16), max_epochs=4)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)  # no epoch is that good


def test_pooled_metrics_of_both_tasks_have_one_signature() -> None:
    batches = _scenes(seed=3)
    rng = np.random.default_rng(0)
    label = _joined(batches, "label")
    truth = _truth(batches)
    box = np.nan_to_num(truth.boxes[:, 0], nan=0.5) * 0.9
    predictions = pd.DataFrame(
        {
            "region": "NE",
            "name": [f"{number:03d}" for number in range(48)],
            "label": label,
            "fold": "fold1",
            "probability": np.clip(label * 0.3 + rng.random(48) * 0.7, 0, 1).astype(np.float32),
            **{name: box[:, column].astype(np.float32) for column, name in enumerate(("cx", "cy", "w", "h"))},
        }
    )
    presence = pooled_metrics(
        torch.tensor(predictions["probability"].to_numpy()), torch.tensor(predictions["label"].to_numpy())
    )
    assert set(presence) == {"average_precision", "f1", "auroc"}
    assert _classifier(None).pooled_metrics(predictions, None) == presence
    detected = _detector(None).pooled_metrics(predictions, truth)
    assert set(detected) == {*presence, "recall_at_precision", "box_ap50", "box_ap", "mean_iou"}
    assert {name: detected[name] for name in presence} == presence
    boxes = box_metrics(predictions["probability"], box.astype(np.float32), truth)
    assert {name: detected[name] for name in boxes} == boxes
    assert 0 < detected["recall_at_precision"] <= 1
    more = DetectionTask(Detector(), SGD, min_precision=0.76).pooled_metrics(predictions, truth)
    assert more["recall_at_precision"] > detected["recall_at_precision"]
    with pytest.raises(ValueError, match="need the true boxes"):
        _detector(None).pooled_metrics(predictions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_loss": "iou"}, "task.box_loss=iou is unknown; choose one of smooth_l1, giou"),
        ({"box_weight": -1.0}, "task.box_weight must be a number of at least 0, not -1.0"),
        ({"box_weight": NAN}, "task.box_weight must be a number of at least 0, not nan"),
        ({"box_weight": "2x"}, "task.box_weight must be a number of at least 0, not '2x'"),
        ({"min_precision": 0}, "task.min_precision must be above 0 and at most 1, not 0"),
        ({"min_precision": 1.5}, "task.min_precision must be above 0 and at most 1, not 1.5"),
        ({"min_precision": 90}, "task.min_precision must be above 0 and at most 1, not 90"),
    ],
)
def test_values_that_cannot_work(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionTask(Detector(), SGD, **options)
