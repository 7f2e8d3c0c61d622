"""The graph engine against the eager one: on a processor its steps run one by one, and give the same networks."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils._python_dispatch import TorchDispatchMode

from dxc.compress.prune import channel_fraction_pruning, remove_channel, shaped_like
from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.data.datamodule import ImageDataModule
from dxc.errors import ConfigError, TrainingError
from dxc.training import crossval, graph, graph_speed, on_device, speed
from dxc.training.build import build_task, read_chips
from dxc.training.classification import ClassificationTask
from dxc.training.crossval import (
    KeptFolds,
    TrainedFold,
    kept_networks,
    train_fold,
    train_side_by_side,
    trained_folds,
)
from dxc.training.engine import chosen_engine, why_eager
from dxc.training.graph import GraphSteps, IndexChunks, ValidationChunks, steps_at_once
from dxc.training.graph_speed import seconds_by_graphs
from dxc.training.on_device import DeviceChips
from dxc.training.side_by_side import Job, SharedClock, side_by_side
from dxc.training.speed import seconds_per_image
from tests.conftest import ChipMaker

CPU = torch.device("cpu")


def _plan(root: Path, *further: str) -> Plan:
    overrides = [
        "source=chips", f"source.root={root}", f"cache_dir={root.parent}/cache", "data=5ch", "data.size=20",
        "data.batch_size=5", "data.folds=2", "trainer.max_epochs=3", "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "hardware.predictors=[]", "hardware.measure=false", "profile=none", "progress=false",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return Plan.of(compose("train", overrides=[*overrides, *further]))


def _images_plan(folder: Path, *further: str) -> Plan:
    """Of 60 images of ten classes: 50 train, in two batches of 20 and one of 10."""
    overrides = [
        "data=cifar10", "source=synthetic_images", "source.images=60", f"cache_dir={folder}/cache", "model=resnet8",
        "model.width=4", "data.batch_size=20", "trainer.max_epochs=2", "trainer.accelerator=cpu",
        "trainer.precision=32-true", "hardware.predictors=[]", "hardware.measure=false", "profile=none",
        "progress=false",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return Plan.of(compose("train", overrides=[*overrides, *further]))


def _datamodule(plan: Plan) -> ImageDataModule:
    datamodule = plan.data.build(source=plan.source.build())
    read_chips(datamodule)
    return datamodule


def _both(plan: Plan, tmp_path: Path, on: torch.device = CPU) -> tuple[list[TrainedFold], list[TrainedFold]]:
    """Folds of the eager engine, and of the graph engine."""
    datamodule = _datamodule(plan)
    folds = dict(enumerate(datamodule.folds))
    eager = [train_fold(plan, datamodule, fold, number, "here") for number, fold in folds.items()]
    by_graphs = dict(train_side_by_side(plan, datamodule, folds, "here", tmp_path / "kept", on=on))
    return eager, [by_graphs[number] for number in folds]


RESNET = ("model.width=4",)
SPPNET = ("model=sppnet", "model.level=2", "model.features=16", "task.box_loss=giou")


@pytest.mark.parametrize(
    "further",
    [
        (*RESNET,),
        (*RESNET, "optimizer=sgd", "scheduler=step", "scheduler.step_size=1", "trainer.channels_last=false"),
        (*RESNET, "trainer.precision=bf16-mixed"),
        (*SPPNET, "optimizer.lr=1e-4"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_both_engines_train_the_same_network(
    further: tuple[str, ...],
    streamed: bool,
    make_chips: ChipMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """12 chips a fold: two batches of five and one of two."""
    if streamed:
        if "trainer.precision=bf16-mixed" in further:
            pytest.skip("shown by the others")
        monkeypatch.setattr(on_device, "_free_bytes", lambda device: 0)
    plan = _plan(make_chips(per_class=12, boxes=True), *further)
    eager, by_graphs = _both(plan, tmp_path)
    for one, other in zip(eager, by_graphs, strict=True):
        assert (one.name, one.trained_images) == (other.name, other.trained_images)
        expected = one.model.state_dict()
        for name, value in other.model.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
        assert [point[::2] for point in other.curves] == [point[::2] for point in one.curves]
        assert [value for _, value, _ in other.curves] == pytest.approx(
            [value for _, value, _ in one.curves], abs=1e-5
        )
        assert other.predictions.keys() == one.predictions.keys()
        for name, value in other.predictions.items():
            torch.testing.assert_close(value, one.predictions[name], atol=1e-5, rtol=1e-4)
        assert next(other.model.parameters()).is_contiguous()


@pytest.mark.parametrize(
    ("augment", "streamed"), [("crop_flip", False), ("crop_flip", True), ("flip_rotate", False)]
)
def test_both_engines_augment_alike(
    augment: str, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same shifts, flips and turns of the same images, in an epoch of two sizes of batches; others in the next."""
    if streamed:
        monkeypatch.setattr(on_device, "_free_bytes", lambda device: 0)
    plan = _images_plan(tmp_path, f"data.augment={augment}")
    ((one,), (other,)) = _both(plan, tmp_path)
    ((_,), (plain,)) = _both(_images_plan(tmp_path, "data.augment=none"), tmp_path)
    expected = one.model.state_dict()
    assert other.trained_images == one.trained_images == 2 * 50
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    for name, value in other.predictions.items():
        torch.testing.assert_close(value, one.predictions[name], atol=1e-5, rtol=1e-4)
    weights = [torch.cat([each.flatten() for each in fold.model.parameters()]) for fold in (one, plain)]
    assert (weights[0] - weights[1]).abs().max() > 1e-3  # without augmentation it is another network


def test_both_engines_finetune_the_same_network(
    make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruned networks, whose shapes the plan does not know, are trained on; those they come from stay as they are."""
    plan = _plan(
        make_chips(per_class=12), *RESNET, "trainer.max_epochs=2", "compress=l1", "compress.fraction=0.5",
        "compress.finetune_epochs=3",
    )  # fmt: skip
    datamodule = _datamodule(plan)
    starts = []
    for number, fold in enumerate(datamodule.folds):
        trained = train_fold(plan.with_trainer(max_epochs=2), datamodule, fold, number, "here")
        masked = channel_fraction_pruning(trained.model, 0.5, image_size=20)
        starts.append(replace(trained, model=remove_channel(masked, image_size=20)))
    before = [copy.deepcopy(start.model.state_dict()) for start in starts]

    def finetuned(engine: str) -> list[TrainedFold]:
        monkeypatch.setattr(crossval, "chosen_engine", lambda plan: (engine, CPU))
        folder = tmp_path / engine
        kept = KeptFolds(folder, lambda weights: shaped_like(plan.model.build(), weights))
        folds = trained_folds(plan.for_finetuning(), datamodule, kept, device="here", starts=starts)
        again = trained_folds(plan.for_finetuning(), datamodule, kept, device="here", starts=starts)
        assert [fold.trained_at for fold in again] == [fold.trained_at for fold in folds]
        return folds

    for start, old, one, other in zip(starts, before, finetuned("eager"), finetuned("graph"), strict=True):
        assert other.trained_images == one.trained_images == (2 + 3) * 12
        losses = [epoch for name, _, epoch in other.curves if name == f"train_loss.{other.name}"]
        assert losses == [1, 2, 3, 4, 5]
        assert [point[::2] for point in other.curves] == [point[::2] for point in one.curves]
        expected = one.model.state_dict()
        assert expected["fc.weight"].shape[1] < plan.model.build().state_dict()["fc.weight"].shape[1]
        for name, value in other.model.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
            assert torch.equal(start.model.state_dict()[name], old[name])
        assert not torch.equal(expected["fc.weight"], old["fc.weight"])


class _Graph:
    """In place of a CUDA graph: replays what ran while it was recorded."""

    replayed = 0

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    def replay(self) -> None:
        assert self.work is not None
        self.work()
        type(self).replayed += 1

    def reset(self) -> None:
        self.work = None


@pytest.mark.parametrize("further", [(*RESNET,), (*RESNET, "optimizer=sgd", "scheduler=step")])
def test_a_recording_leaves_nothing_behind(
    further: tuple[str, ...], make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With graphs that this processor pretends to have: what the warm-up trained is taken back."""
    work = graph._Step._work
    recording: list[_Graph] = []

    def recorded(self: Any) -> None:
        work(self)
        if recording:
            recording[0].work = lambda: work(self)

    @contextlib.contextmanager
    def record(graph: _Graph, *, pool: str, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        recording.append(graph)
        yield
        recording.clear()

    stream = SimpleNamespace(synchronize=lambda: None)
    for name, fake in {
        "CUDAGraph": _Graph, "graph": record, "graph_pool_handle": lambda: "pool", "current_stream": lambda: stream,
        "get_sync_debug_mode": lambda: 0, "set_sync_debug_mode": lambda mode: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graph._Step, "_work", recorded)
    monkeypatch.setattr(graph, "has_graphs", lambda device: True)
    monkeypatch.setattr(_Graph, "replayed", 0)
    eager, by_graphs = _both(_plan(make_chips(per_class=12), *further), tmp_path)
    assert _Graph.replayed == 2 * 3 * 3  # folds, epochs, batches
    for one, other in zip(eager, by_graphs, strict=True):
        assert other.engine == "graph"
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_a_schedule_reaches_the_steps(make_chips: ChipMaker, tmp_path: Path) -> None:
    """From the second epoch on the learning rate is 0: one epoch and three give the same weights."""
    _check_schedule(make_chips(per_class=6), tmp_path, CPU)


def _check_schedule(root: Path, tmp_path: Path, on: torch.device) -> None:
    further = (*RESNET, "optimizer=sgd", "scheduler=step", "scheduler.step_size=1", "scheduler.gamma=0.0")
    parameters = []
    for epochs in (1, 3):
        plan = _plan(root, *further, f"trainer.max_epochs={epochs}", *_accelerator(on))
        datamodule = _datamodule(plan)
        ((_, fold),) = train_side_by_side(plan, datamodule, {0: datamodule.folds[0]}, "here", tmp_path, on=on)
        parameters.append(torch.cat([each.detach().flatten() for each in fold.model.parameters()]))
        assert int(fold.model.bn1.num_batches_tracked) == 2 * epochs  # six chips: five and one
    assert torch.equal(*parameters)


def _accelerator(on: torch.device) -> tuple[str, ...]:
    return ("trainer.accelerator=gpu",) if on.type == "cuda" else ()


def test_callbacks_and_errors_of_a_fold(
    make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early stopping stops a fold when it is due; a loss that is not a number ends the training of all."""
    root = make_chips(per_class=6)
    stopping = "_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val_loss,patience:1,min_delta:100"
    plan = _plan(root, *RESNET, "trainer.max_epochs=9", f"+trainer.callbacks=[{{{stopping}}}]")
    datamodule = _datamodule(plan)
    folds = dict(enumerate(datamodule.folds))
    for _, fold in train_side_by_side(plan, datamodule, folds, "here", tmp_path, on=CPU):
        assert max(epoch for _, _, epoch in fold.curves) == 2
        assert fold.trained_images == 2 * 6
    plan = _plan(root, *RESNET, "optimizer.lr=1e30")
    with pytest.raises(TrainingError, match="the training loss is (nan|inf) after epoch"):
        dict(train_side_by_side(plan, datamodule, folds, "here", tmp_path, on=CPU))
    assert not any(thread.name.startswith("fold") for thread in threading.enumerate())


def test_kept_folds_are_not_trained(
    make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three folds is kept; the others are trained side by side, kept, and told in their order."""
    plan = _plan(make_chips(per_class=9), *RESNET, "data.folds=3", "trainer.max_epochs=1")
    datamodule = _datamodule(plan)
    monkeypatch.setattr(crossval, "chosen_engine", lambda plan: ("graph", CPU))
    trained, told = [], []
    kept = kept_networks(plan, tmp_path)

    def counted(*arguments: Any, **options: Any) -> TrainedFold:
        trained.append(arguments[2].name)
        return train_fold(*arguments, **options)

    monkeypatch.setattr(crossval, "train_fold", counted)
    first = trained_folds(plan, datamodule, kept, device="here", after_fold=told.append)
    assert sorted(trained) == [fold.name for fold in first] == ["fold1", "fold2", "fold3"]
    assert told == [[fold.score for fold in first[:count]] for count in (1, 2, 3)]
    (tmp_path / "fold1.pt").unlink()
    (tmp_path / "fold3.pt").unlink()
    trained.clear()
    again = trained_folds(plan, datamodule, kept, device="here")
    assert sorted(trained) == ["fold1", "fold3"]
    assert [fold.score for fold in again] == [fold.score for fold in first]
    assert {fold.engine for fold in again} == {"eager"}  # there are no graphs here
    assert {path.name for path in tmp_path.glob("*.pt")} == {"fold1.pt", "fold2.pt", "fold3.pt"}

    def stop(scores: list[float]) -> None:
        raise InterruptedError

    for path in tmp_path.glob("*.pt"):
        path.unlink()
    with pytest.raises(InterruptedError):
        trained_folds(plan, datamodule, kept, device="here", after_fold=stop)
    assert not any(thread.name.startswith("fold") for thread in threading.enumerate())


def test_batches_are_those_of_the_loader(make_chips: ChipMaker) -> None:
    """Two epochs, in the order in which the eager engine sees them."""
    plan = _plan(make_chips(per_class=12), "data.batch_size=2")
    datamodule = _datamodule(plan)
    fold = datamodule.folds[0]
    datamodule.select(fold, seed=7)
    loader, chunks = datamodule.train_dataloader(), IndexChunks(datamodule.order(fold, seed=7), 2)
    chunks.steps = 4
    for _ in range(2):
        expected = [batch["index"].tolist() for batch in loader]
        assert [batch.tolist() for chunk in chunks for batch in chunk["index"]] == expected
        assert [chunk["index"].shape for chunk in chunks] == [(4, 2), (2, 2)]
        list(loader)  # as the line before drew an order
    assert len(chunks) == 2
    parts = [part["index"].tolist() for part in ValidationChunks(np.arange(7), 3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]
    assert [steps_at_once(size) for size in (1, 8, 64, 256, 5000)] == [32, 32, 32, 8, 1]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_chips_on_a_device(
    channels_last: bool, share: float, make_chips: ChipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "_free_bytes", lambda device: 10 * 5 * 20 * 20 * 2)
    monkeypatch.setattr(on_device, "AT_ONCE", 3)
    cache = _datamodule(_plan(make_chips(boxes=True), "model=sppnet")).cache
    assert cache is not None
    chips = DeviceChips(cache, CPU, dtype=torch.bfloat16, channels_last=channels_last, share=share)
    assert chips.image_bytes == 10 * 5 * 20 * 20 * 2  # two bytes a pixel and channel of ten chips
    assert (chips.images is None) == (share == 0)
    index = np.array([7, 0, 9])
    batch = chips.batch(index)
    assert torch.equal(batch["image"], torch.from_numpy(cache.images(index)).bfloat16())
    assert batch["image"].shape == (3, 5, 20, 20)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert batch["image"].is_contiguous(memory_format=memory_format)
    assert batch["index"].tolist() == [7, 0, 9]
    assert batch["label"].tolist() == cache.labels[index].tolist()
    np.testing.assert_array_equal(batch["boxes"].numpy(), cache.boxes(index))


@pytest.mark.parametrize(
    ("further", "says"),
    [
        ((), ""),
        (("optimizer=sgd", "scheduler=step", "trainer.precision=bf16-mixed"), ""),
        (("+trainer.callbacks=[{_target_:pytorch_lightning.callbacks.Timer,duration:{hours:1}}]",), ""),
        (("model=sppnet", "data.size=any"), "data.size=any: a graph needs images of one size"),
        (("optimizer._target_=torch.optim.RAdam",), "knows Adam, AdamW, SGD, not RAdam"),
        (("optimizer=sgd", "+optimizer.dampening=0.1"), "optimizer.dampening treats the first step"),
        (
            ("scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"),
            "knows StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR, not OneCycleLR",
        ),
        (("trainer.precision=16-mixed",), "not 16-mixed (its losses are scaled, which a graph does not do)"),
        (("+trainer.gradient_clip_val=1",), "does not know the 1 option gradient_clip_val of trainer"),
        (
            ("+trainer.callbacks=[{_target_:pytorch_lightning.callbacks.StochasticWeightAveraging}]",),
            "knows EarlyStopping, Timer, not StochasticWeightAveraging",
        ),
    ],
)
def test_what_a_graph_cannot_train(further: tuple[str, ...], says: str, tmp_path: Path) -> None:
    plan = _plan(tmp_path, *further)
    reason = why_eager(plan, str(plan.trainer.precision))
    assert (says in reason) and bool(says) == bool(reason)


def test_the_engine_without_a_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert chosen_engine(_plan(tmp_path)) == ("eager", CPU)
        assert chosen_engine(_plan(tmp_path, "trainer.engine=eager")) == ("eager", CPU)
        assert not caplog.records
        for further in ((), ("trainer.devices=2",)):
            assert chosen_engine(_plan(tmp_path, "trainer.engine=graph", *further)) == ("eager", CPU)
    assert [record.message for record in caplog.records] == [
        "trainer.engine: eager, not graph, because it needs a CUDA device, and this training is on cpu",
        "trainer.engine: eager, not graph, because it trains on 2 devices",
    ]
    with pytest.raises(ConfigError, match="trainer.engine must be auto, eager or graph, not 'fast'"):
        _plan(tmp_path, "trainer.engine=fast")
    assert _plan(tmp_path, "trainer.engine=eager").trial == _plan(tmp_path).trial


def test_times_side_by_side_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = SharedClock()
    clock.enter(0)
    now[0] = 10  # one alone
    clock.enter(1)
    now[0] = 30  # two, 10 s each
    clock.leave(0)
    now[0] = 37
    assert (clock.read(0), clock.read(1)) == (20, 17)


def test_turns_memory_and_failures(caplog: pytest.LogCaptureFixture) -> None:
    """Three at once, one on the host at a time; the third finds no memory and comes later, then two are at work."""
    here, most, order = [], [], []
    begun: set[int] = set()
    failed: list[weakref.ref] = []

    def job(number: int) -> Job[int]:
        def work(turn: Any, clock: Callable[[], float]) -> int:
            if number == 2 and not failed:
                big = Big()
                failed.append(weakref.ref(big))
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            begun.add(number)
            while len(begun) < 2:  # a thread may start late
                turn.pass_on()
            for _ in range(5):
                here.append(number)
                most.append(len(here))
                time.sleep(0.001)
                here.remove(number)
                order.append(number)
                turn.pass_on()
            return 10 * number

        return Job(f"fold{number + 1}", work)

    class Big:
        """What a failed fold leaves."""

        def __init__(self) -> None:
            self.itself = self

    with caplog.at_level("INFO"):
        done = dict(side_by_side([job(number) for number in range(3)], CPU))
    assert done == {0: 0, 1: 10, 2: 20}
    assert failed[0]() is None  # its memory is free
    assert set(most) == {1}  # never two on the host
    assert order[:4] in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert "the device has no memory for fold3 beside 2 others; 2 are trained at once" in caplog.text

    def none(turn: Any, clock: Callable[[], float]) -> int:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def last(turn: Any, clock: Callable[[], float]) -> int:
        while True:
            turn.pass_on()

    for jobs in ([Job("fold1", none)], [Job("fold1", none), Job("fold2", none)]):
        with pytest.raises(
            TrainingError, match=r"fold\d: the device has no memory .*; lower data.batch_size"
        ):
            dict(side_by_side(jobs, CPU))

    def wrong(turn: Any, clock: Callable[[], float]) -> int:
        turn.pass_on()
        raise KeyError("wrong")

    with pytest.raises(KeyError, match="wrong"):
        dict(side_by_side([Job("fold1", last), Job("fold2", wrong)], CPU))
    assert not any(thread.name.startswith("fold") for thread in threading.enumerate())


@pytest.mark.parametrize("further", [RESNET, ("model=sppnet", "data.split=holdout")])
def test_seconds_per_image_are_those_of_the_engine(
    further: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 20 ms and nothing else does: two folds, or one, take turns on this device."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(self: GraphSteps, index: np.ndarray) -> None:
        now[0] += 0.02 * len(index)
        assert index.shape == (32, 5)

    monkeypatch.setattr(GraphSteps, "run", slow)
    monkeypatch.setattr(speed, "chosen_engine", lambda plan: ("graph", CPU))
    monkeypatch.setattr(graph_speed.DeviceChips, "batch", _slow_batch(now))
    training, validation = seconds_per_image(_plan(tmp_path, *further))
    assert training == pytest.approx(0.02 / 5)
    assert validation == pytest.approx(1 / 256)
    monkeypatch.undo()
    monkeypatch.setattr(graph_speed, "MOST_S", 0.0)
    monkeypatch.setattr(graph_speed, "VALIDATED_AT_ONCE", 2)
    monkeypatch.setattr(graph_speed, "steps_at_once", lambda batch: 1)
    assert min(seconds_by_graphs(_plan(tmp_path, *further), CPU, at_least_s=0)) > 0


def _slow_batch(now: list[float]) -> Callable[..., dict[str, torch.Tensor]]:
    batch = DeviceChips.batch

    def slow(self: DeviceChips, chips: np.ndarray) -> dict[str, torch.Tensor]:
        now[0] += 1
        return batch(self, chips)

    return slow


class _OnTheDevice(TorchDispatchMode):
    """Refuses what a CUDA graph cannot record: values that go to the host or come from there, and sizes that depend on
    values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        assert func not in (aten.lift_fresh.default, aten._local_scalar_dense.default, aten.nonzero.default)
        masks = args[1] if func in (aten.index.Tensor, aten.index_put_.default) else []
        assert not any(mask is not None and mask.dtype == torch.bool for mask in masks)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("further", [RESNET, SPPNET, ("model=sppnet",)])
def test_a_step_stays_on_the_device(further: tuple[str, ...], make_chips: ChipMaker) -> None:
    plan = _plan(make_chips(boxes=True), *further)
    cache = _datamodule(plan).cache
    assert cache is not None
    chips, task = DeviceChips(cache, CPU, channels_last=False), build_task(plan)
    index = torch.arange(4)
    assert chips.images is not None

    def step() -> None:
        batch = chips.gather(chips.images, index, index)
        task.batch_loss(task.model(batch["image"]), batch).backward()

    with _OnTheDevice():
        step()
    with torch.profiler.profile() as seen:  # some operators ask only where no mode is watching
        step()
    assert not {"aten::item", "aten::nonzero"} & {event.key for event in seen.key_averages()}
    with _OnTheDevice(), pytest.raises(AssertionError):
        index.new_tensor([1])


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", 0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "further",
    [
        (*RESNET, "optimizer=sgd", "scheduler=step", "scheduler.step_size=1"),
        (*RESNET, "optimizer=sgd", "trainer.channels_last=false"),
        (*SPPNET, "optimizer=sgd", "optimizer.lr=1e-4"),
        ("model.width=16", "trainer.precision=bf16-mixed", "optimizer=sgd"),
        ("model.width=16", "optimizer.lr=1e-5"),
        ("model.width=16", "optimizer.lr=1e-5", "optimizer._target_=torch.optim.AdamW"),
    ],
)  # fmt: skip
def test_graphs_train_the_same_network_on_a_gpu(
    further: tuple[str, ...],
    make_chips: ChipMaker,
    tmp_path: Path,
    cuda: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plan = _plan(make_chips(per_class=12, boxes=True), *further, *_accelerator(cuda))
    assert chosen_engine(plan) == ("graph", cuda)
    eager, by_graphs = _both(plan, tmp_path, cuda)
    rough = "trainer.precision=bf16-mixed" in further
    for one, other in zip(eager, by_graphs, strict=True):
        assert (one.engine, other.engine) == ("eager", "graph")
        expected = one.model.state_dict()
        for name, value in other.model.state_dict().items():
            near = {"atol": 5e-2, "rtol": 5e-2} if rough else {"atol": 1e-3, "rtol": 1e-2}
            torch.testing.assert_close(value, expected[name], **near)
            if name.endswith("num_batches_tracked"):
                assert int(value) == 9  # what the warm-up changed was restored
        assert [value for _, value, _ in other.curves] == pytest.approx(
            [value for _, value, _ in one.curves], abs=0.15 if rough else 1e-2
        )


@pytest.mark.gpu
def test_a_schedule_reaches_a_graph(make_chips: ChipMaker, tmp_path: Path, cuda: torch.device) -> None:
    _check_schedule(make_chips(per_class=6), tmp_path, cuda)


@pytest.mark.gpu
def test_streamed_chips_and_a_second_run_give_the_same_numbers(
    make_chips: ChipMaker, tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(
        make_chips(per_class=60), "model.width=16", "trainer.precision=bf16-mixed", *_accelerator(cuda)
    )
    datamodule = _datamodule(plan)
    folds = dict(enumerate(datamodule.folds))
    runs = []
    for free in (on_device._free_bytes, on_device._free_bytes, lambda device: 0):
        monkeypatch.setattr(on_device, "_free_bytes", free)
        trained = dict(train_side_by_side(plan, datamodule, folds, "here", tmp_path, on=cuda))
        assert {fold.engine for fold in trained.values()} == {"graph"}
        runs.append([trained[number].model.state_dict() for number in folds])
    for fold, expected in enumerate(runs[0]):
        for name, value in expected.items():
            assert torch.equal(runs[1][fold][name], value), name
            assert torch.equal(runs[2][fold][name], value), name


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded(
    make_chips: ChipMaker,
    tmp_path: Path,
    cuda: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A loss that asks the device for a value is trained all the same, kernel by kernel."""
    loss = ClassificationTask.batch_loss

    def asks(self: ClassificationTask, output: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        value = loss(self, output, batch)
        value.item()
        return value

    monkeypatch.setattr(ClassificationTask, "batch_loss", asks)
    plan = _plan(make_chips(per_class=12), *RESNET, "optimizer=sgd", *_accelerator(cuda))
    eager, uncaptured = _both(plan, tmp_path, cuda)
    assert "no CUDA graph of a training step; its kernels are launched one by one" in caplog.text
    for one, other in zip(eager, uncaptured, strict=True):
        assert other.engine == "eager"
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], value, atol=1e-3, rtol=1e-2)


@pytest.mark.gpu
def test_folds_that_do_not_fit_together_are_trained_in_turn(
    make_chips: ChipMaker, tmp_path: Path, cuda: torch.device
) -> None:
    """The process may use half as much again as one fold needs. It is the last test: it leaves memory in pieces."""
    further = ("model.width=64", "model.stride=1", "data.batch_size=60", "trainer.precision=bf16-mixed")
    plan = _plan(make_chips(per_class=60), *further, *_accelerator(cuda))
    datamodule = _datamodule(plan)
    folds = dict(enumerate(datamodule.folds))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)
    alone = [
        dict(train_side_by_side(plan, datamodule, {number: fold}, "here", tmp_path, on=cuda))[number]
        for number, fold in folds.items()
    ]
    most = torch.cuda.max_memory_reserved(cuda)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        1.5 * most / torch.cuda.get_device_properties(cuda).total_memory
    )
    try:
        together = dict(train_side_by_side(plan, datamodule, folds, "here", tmp_path, on=cuda))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for number, one in enumerate(alone):
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(together[number].model.state_dict()[name], value, atol=5e-2, rtol=5e-2)
