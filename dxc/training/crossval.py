"""Cross-validation: one network per fold, trained or loaded from the kept ones."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dxc
from dxc.config.plan import Plan
from dxc.errors import ConfigError
from dxc.files import write_atomically
from dxc.text import counted, each_once
from dxc.training.build import build_task, is_first_process
from dxc.training.engine import EngineName, chosen_engine
from dxc.training.epochs import Epoch, write_epoch

if TYPE_CHECKING:
    import pytorch_lightning as pl
    import torch
    from torch import nn

    from dxc.data.datamodule import ImageDataModule
    from dxc.data.folds import Fold
    from dxc.metrics import Point
    from dxc.training.on_device import DeviceChips
    from dxc.training.side_by_side import Turn
    from dxc.training.task import Task
    from dxc.training.trainer import FoldTrainer

log = logging.getLogger(__name__)

TAKEN = "DXC_TAKEN_FOLDS"
"""Environment variable with the names of the folds that are not trained. It is for the processes that Lightning starts
for further devices: all processes must train the same folds, but the kept files may change meanwhile."""
ROOMS = ("data", "evaluation", "models", "training")
"""Packages of dxc that determine the numbers of a fold."""


@dataclass(frozen=True)
class TrainedFold:
    """One fold after training; `model` is on the CPU."""

    name: str
    accuracy: float
    score: float
    model: torch.nn.Module
    predictions: dict[str, torch.Tensor]
    curves: list[Point]
    seconds: float
    """Wall time of the whole fold. train_seconds is the training alone, which processed trained_images. While folds are
    trained side by side, each has an equal share of the time: those of all folds add up to what the user waited."""
    train_seconds: float
    trained_images: int
    device: str
    """The device it was trained on, as in the tag device."""
    engine: str
    """eager or graph (dxc.training.engine)."""
    precision: str
    """What it was trained in, such as 32-true: where the plan says auto, what was chosen."""
    trained_at: float
    """When its training ended, in seconds since 1970."""


class KeptFolds:
    """Folds of one stage on disk: FOLDER/NAME.pt, with the digest of the code that made them.

    Args:
        folder: of this stage's identity, and of nothing else.
        build: makes the network of its state_dict. None: the networks are not kept; those that are read are empty.
        rooms: packages of dxc that determine the numbers of a fold. What other code made is not read.
        since: folds that were made before this time (seconds since 1970) are not read.
    """

    def __init__(
        self,
        folder: Path,
        build: Callable[[Mapping[str, Any]], nn.Module] | None,
        *,
        rooms: tuple[str, ...] = ROOMS,
        since: float = 0.0,
    ) -> None:
        self.folder = folder
        self._build = build
        self._rooms = rooms
        self._since = since

    def read(self, name: str) -> TrainedFold | None:
        """A kept fold. None where there is none, or where it cannot be used; the log says why."""
        import torch

        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        try:
            kept = torch.load(path, weights_only=True)
            weights, points, code = kept.pop("weights"), kept.pop("points"), kept.pop("code")
            if code == _code(self._rooms):
                fold = TrainedFold(
                    **kept,
                    model=self._build(weights) if self._build else torch.nn.Identity(),
                    curves=[(name, value, step) for name, value, step in points],
                )
                return fold if fold.trained_at >= self._since else None
            reason = "other code of dxc trained it"
        except Exception as error:  # torch raises errors of many classes for a damaged file
            reason = f"it is damaged ({type(error).__name__})"
        log.warning("%s of the cache is trained again: %s (%s)", path.stem, reason, path)
        return None

    def keep(self, fold: TrainedFold) -> None:
        """Write a fold where read() finds it. If the disk has no room for it, the work goes on."""
        import torch

        own = {each.name for each in fields(TrainedFold)} - {"model", "curves"}
        content: dict[str, Any] = {name: getattr(fold, name) for name in own}
        content["weights"] = fold.model.state_dict() if self._build else {}
        content["points"] = [list(point) for point in fold.curves]
        content["code"] = _code(self._rooms)
        buffer = io.BytesIO()  # torch reports a full disk as an error of its own
        torch.save(content, buffer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / f"{fold.name}.pt", buffer.getvalue())
        except OSError as error:
            log.warning("cache_dir: %s cannot be kept and will be trained again: %s", fold.name, error)


def kept_networks(plan: Plan, folder: Path, *, since: float = 0.0) -> KeptFolds:
    """The kept folds of a plan's train stage."""

    def build(weights: Mapping[str, Any]) -> nn.Module:
        model = plan.model.build()
        model.load_state_dict(weights)
        return model

    return KeptFolds(folder, build, since=since)


def trained_folds(
    plan: Plan,
    datamodule: ImageDataModule,
    kept: KeptFolds,
    *,
    device: str,
    count: int | None = None,
    starts: Sequence[TrainedFold] = (),
    after_fold: Callable[[list[float]], None] | None = None,
) -> list[TrainedFold]:
    """The folds of a datamodule in their order. A fold is read if it is kept, else trained.

    A kept fold is trained again if it cannot be read, if other code trained it, or if the network that it starts from
    is newer. Processes of further devices return only the folds that they train.

    Args:
        plan: fitted to this machine.
        datamodule: with its chips read.
        kept: folds of this configuration on these chips.
        device: name of the device that trains here.
        count: only this many folds, from the first; None: all.
        starts: the fold that each one goes on from; () trains new networks.
        after_fold: called with the scores so far, of the first folds, after each fold.
    """
    folds = datamodule.folds[:count]
    start_of = {start.name: start for start in starts}
    found: dict[str, TrainedFold] = {}
    if is_first_process():
        for fold in folds:
            start = start_of.get(fold.name)
            each = kept.read(fold.name)
            if each is not None and (start is None or each.trained_at >= start.trained_at):
                found[fold.name] = each
        os.environ[TAKEN] = json.dumps(list(found))
        if found:
            log.info("%s", _taken(list(found.values()), len(folds)))
    taken = set(json.loads(os.environ.get(TAKEN, "[]")))

    missing = {number: fold for number, fold in enumerate(folds) if fold.name not in taken}
    done = {number: found[fold.name] for number, fold in enumerate(folds) if fold.name in found}
    said = 0

    def say() -> None:
        nonlocal said
        while after_fold is not None and said in done:
            said += 1
            after_fold([done[number].score for number in range(said)])

    say()
    # closed at once where after_fold raises: no fold goes on then
    with contextlib.closing(_train(plan, datamodule, missing, device, kept.folder, start_of)) as training:
        for number, each in training:
            done[number] = each
            if is_first_process():
                kept.keep(each)
            say()
    return [done[number] for number in sorted(done)]


def _train(
    plan: Plan,
    datamodule: ImageDataModule,
    folds: dict[int, Fold],
    device: str,
    kept: Path,
    start_of: Mapping[str, TrainedFold],
) -> Generator[tuple[int, TrainedFold]]:
    """Train folds by their numbers: one after the other, or side by side where graphs train them."""
    if not folds:
        return
    engine, torch_device = chosen_engine(plan)
    if engine == "eager":
        for number, fold in folds.items():
            start = start_of.get(fold.name)
            yield number, train_fold(plan, datamodule, fold, number, device, kept, start=start)
    else:
        yield from train_side_by_side(
            plan, datamodule, folds, device, kept, on=torch_device, start_of=start_of
        )


def train_side_by_side(
    plan: Plan,
    datamodule: ImageDataModule,
    folds: dict[int, Fold],
    device: str,
    kept: Path,
    *,
    on: torch.device,
    start_of: Mapping[str, TrainedFold] = MappingProxyType({}),
) -> Generator[tuple[int, TrainedFold]]:
    """Train folds on one device with the graph engine, all at the same time; see dxc.training.side_by_side.

    Args:
        plan: fitted to this machine; why_eager() of it is ''.
        datamodule: with its chips read.
        folds: by number.
        device: name of the device.
        kept: see train_fold.
        on: the device. On one that is not CUDA nothing is recorded: the steps run one by one.
        start_of: the fold that each one goes on from, by name; see train_fold.

    Yields:
        (number, fold), as they end.
    """
    import torch

    from dxc.training.graph import autocast_dtype
    from dxc.training.on_device import DeviceChips
    from dxc.training.side_by_side import Job, side_by_side

    assert datamodule.cache is not None  # its chips were read
    # elsewhere as the eager engine gives them: see breaks_in_channels_last
    channels_last = plan.trainer.channels_last and on.type == "cuda"
    dtype = autocast_dtype(str(plan.trainer.precision)) or torch.float32
    chips = DeviceChips(datamodule.cache, on, dtype=dtype, channels_last=channels_last)
    log.info(
        "trainer.engine: graph, %s on %s, %d chips %s",
        "1 fold" if len(folds) == 1 else f"{len(folds)} folds side by side",
        device,
        len(datamodule.cache),
        f"in its memory ({chips.image_bytes / 1e9:.2g} GB)"
        if chips.images is not None
        else f"streamed from the host (their {chips.image_bytes / 1e9:.2g} GB do not fit beside the networks)",
    )

    def job(number: int, fold: Fold, bar: int) -> Job[TrainedFold]:
        def work(turn: Turn, clock: Callable[[], float]) -> TrainedFold:
            place = _Place(chips, turn, clock, bar, len(folds))
            start = start_of.get(fold.name)
            return train_fold(plan, datamodule, fold, number, device, kept, place, start=start)

        return Job(fold.name, work)

    jobs = [job(number, fold, bar) for bar, (number, fold) in enumerate(folds.items())]
    numbers = list(folds)
    with contextlib.closing(side_by_side(jobs, on)) as ended:
        for place, fold in ended:
            yield numbers[place], fold


@dataclass(frozen=True)
class _Place:
    """Where the graph engine trains a fold. bar: the line of its progress bar; together: folds that are trained at
    once."""

    chips: DeviceChips
    turn: Turn
    clock: Callable[[], float]
    bar: int
    together: int


def engines_of(folds: Sequence[TrainedFold]) -> str:
    """The engines that trained folds (tag dxc.engine): 'graph'; 'eager and graph' where kept folds were trained
    otherwise."""
    return each_once(fold.engine for fold in folds)


def _taken(folds: Sequence[TrainedFold], of: int) -> str:
    """'2 of 5 folds are taken from the cache, trained 2026-11-26 18:42 on NAME in 32-true; again=true trains anew'."""
    times = [time.strftime("%Y-%m-%d %H:%M", time.localtime(fold.trained_at)) for fold in folds]
    when = times[0] if min(times) == max(times) else f"{min(times)} to {max(times)}"
    where = each_once(f"{fold.device} in {fold.precision}" for fold in folds)
    verb = "is" if len(folds) == 1 else "are"
    return (
        f"{len(folds)} of {counted(of, 'fold')} {verb} taken from the cache, trained {when} on {where}; "
        "again=true trains anew"
    )


@functools.cache
def _code(rooms: tuple[str, ...]) -> str:
    """Digest of the modules of some packages: an edited network is trained again."""
    root = Path(dxc.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for room in rooms for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def train_fold(
    plan: Plan,
    datamodule: ImageDataModule,
    fold: Fold,
    number: int,
    device: str,
    kept: Path | None = None,
    place: _Place | None = None,
    *,
    start: TrainedFold | None = None,
) -> TrainedFold:
    """Train a network on one fold. The seed depends only on the fold, so folds may run in any order.

    Args:
        plan: fitted to this machine.
        datamodule: with its chips read.
        fold: the chips to train and to validate on.
        number: of the fold, from 0.
        device: name of the device that trains.
        kept: the folder of this configuration's folds, which says at each epoch how far this one is.
        place: of the graph engine; None: the eager engine trains.
        start: the fold whose network is trained on; its curves, its time and its images go on. None: a new network.

    Raises:
        ConfigError: the fold does not have the requested score.
    """
    import pytorch_lightning as pl

    clock = time.perf_counter if place is None else place.clock
    started = clock()
    seed = plan.seed + number
    pl.seed_everything(seed, workers=True, verbose=False)
    task = build_task(plan, None if start is None else copy.deepcopy(start.model))
    epochs = plan.trainer.max_epochs

    def on_epoch(epoch: int) -> None:
        if kept is not None and is_first_process():
            write_epoch(kept, Epoch(fold.name, epoch, epochs, 1 if place is None else place.together))

    trainer = plan.trainer.build(
        title=f"{fold.name} ({number + 1} of {len(datamodule.folds)})",
        on_epoch=on_epoch,
        clock=clock,
        bar=0 if place is None else place.bar,
    )
    engine: EngineName = "eager"
    if place is not None:
        engine = _fit_by_graphs(trainer, task, datamodule, fold, seed, place)
    elif epochs:
        datamodule.select(fold, seed=seed)
        trainer.fit(task, datamodule=datamodule)
    else:  # of the weights of plan.base
        datamodule.select(fold, seed=seed)
        trainer.validate(task, datamodule=datamodule, verbose=False)
        trainer.history.extend((name, float(value), 0) for name, value in trainer.callback_metrics.items())

    accuracy, score = _judged(plan, trainer, fold)
    curves = [(f"{name}.{fold.name}", value, epoch) for name, value, epoch in trainer.history]
    trained = TrainedFold(
        name=fold.name,
        accuracy=accuracy,
        score=score,
        model=task.model.cpu(),
        predictions=task.predictions,
        curves=curves,
        seconds=clock() - started,
        train_seconds=trainer.train_seconds,
        trained_images=trainer.trained_images,
        device=device,
        engine=engine,
        precision=str(plan.trainer.precision),
        trained_at=time.time(),
    )
    if start is None:
        return trained
    done = max((epoch for _, _, epoch in start.curves), default=0)
    return replace(
        trained,
        curves=[*start.curves, *((name, value, epoch + done) for name, value, epoch in curves)],
        seconds=start.seconds + trained.seconds,
        train_seconds=start.train_seconds + trained.train_seconds,
        trained_images=start.trained_images + trained.trained_images,
    )


def validated_fold(
    plan: Plan, datamodule: ImageDataModule, fold: Fold, start: TrainedFold, model: nn.Module
) -> TrainedFold:
    """A trained fold with another network, which is judged by the same validation chips and is not trained.

    Args:
        plan: fitted to this machine.
        datamodule: with its chips read.
        fold: the chips to validate on.
        start: the fold that the network was made from; its curves and times stay.
        model: the network.

    Raises:
        ConfigError: the fold does not have the requested score.
    """
    import pytorch_lightning as pl

    pl.seed_everything(plan.seed, workers=True, verbose=False)
    task = build_task(plan, model)
    datamodule.select(fold, seed=plan.seed)
    trainer = plan.trainer.build(progress=False)
    trainer.validate(task, datamodule=datamodule, verbose=False)
    accuracy, score = _judged(plan, trainer, fold)
    return replace(
        start,
        accuracy=accuracy,
        score=score,
        model=task.model.cpu(),
        predictions=task.predictions,
        trained_at=time.time(),
    )


def _judged(plan: Plan, trainer: pl.Trainer, fold: Fold) -> tuple[float, float]:
    """Accuracy and score after validation. Raises ConfigError where the fold does not have the requested score."""
    metrics = trainer.callback_metrics
    score = metrics.get(f"val_{plan.score}")
    if score is None:
        known = ", ".join(name.removeprefix("val_") for name in metrics if name.startswith("val_"))
        raise ConfigError(
            f"score={plan.score}: the {len(fold.val)} validation chips of {fold.name} do not define it; they "
            f"define {known}"
        )
    return float(metrics["val_accuracy"]), float(score)


def _fit_by_graphs(
    trainer: FoldTrainer, task: Task, datamodule: ImageDataModule, fold: Fold, seed: int, place: _Place
) -> EngineName:
    """Train with the graph engine. Returns the engine it was: eager where no graph could be recorded."""
    from dxc.training.graph import (
        VALIDATED_AT_ONCE,
        GraphSteps,
        IndexChunks,
        ValidationChunks,
        autocast_dtype,
    )

    size = datamodule.batch_size
    chunks = IndexChunks(datamodule.order(fold, seed=seed), size)
    steps = GraphSteps(
        place.chips,
        chunks.sizes,
        autocast=autocast_dtype(str(trainer.precision)),
        turn=place.turn,
        augment=datamodule.augment,
        seed=seed,
    )
    task.train_by(steps)
    trainer.fit(task, chunks, ValidationChunks(fold.val, max(size, VALIDATED_AT_ONCE)))
    return "graph" if steps.captured else "eager"
