"""Cross-validation: one network per fold, trained or loaded from the kept ones."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dxc
from dxc.config.plan import Plan
from dxc.errors import ConfigError
from dxc.files import write_atomically
from dxc.text import counted
from dxc.training.build import build_task, is_first_process
from dxc.training.engine import EngineName, chosen_engine
from dxc.training.epochs import Epoch, write_epoch

if TYPE_CHECKING:
    import torch

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


def trained_folds(
    plan: Plan,
    datamodule: ImageDataModule,
    kept: Path,
    *,
    device: str,
    count: int | None = None,
    since: float = 0.0,
    after_fold: Callable[[list[float]], None] | None = None,
) -> list[TrainedFold]:
    """The folds of a datamodule in their order. A fold is read from the folder `kept` if it is there, else trained.

    A kept fold is trained again if it cannot be read, or if other code trained it. Processes of further devices return
    only the folds that they train.

    Args:
        plan: fitted to this machine.
        datamodule: with its chips read.
        kept: folder of this configuration's folds on these chips, and of nothing else.
        device: name of the device that trains here.
        count: only this many folds, from the first; None: all.
        since: folds that were trained before this time (seconds since 1970) are trained again.
        after_fold: called with the scores so far, of the first folds, after each fold.
    """
    folds = datamodule.folds[:count]
    found: dict[str, TrainedFold] = {}
    if is_first_process():
        for fold in folds:
            if (each := _read(kept / f"{fold.name}.pt", plan)) is not None and each.trained_at >= since:
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
    with contextlib.closing(_train(plan, datamodule, missing, device, kept)) as training:
        for number, each in training:
            done[number] = each
            if is_first_process():
                _keep(kept / f"{each.name}.pt", each)
            say()
    return [done[number] for number in sorted(done)]


def _train(
    plan: Plan, datamodule: ImageDataModule, folds: dict[int, Fold], device: str, kept: Path
) -> Generator[tuple[int, TrainedFold]]:
    """Train folds by their numbers: one after the other, or side by side where graphs train them."""
    if not folds:
        return
    engine, torch_device = chosen_engine(plan)
    if engine == "eager":
        for number, fold in folds.items():
            yield number, train_fold(plan, datamodule, fold, number, device, kept)
    else:
        yield from train_side_by_side(plan, datamodule, folds, device, kept, on=torch_device)


def train_side_by_side(
    plan: Plan,
    datamodule: ImageDataModule,
    folds: dict[int, Fold],
    device: str,
    kept: Path,
    *,
    on: torch.device,
) -> Generator[tuple[int, TrainedFold]]:
    """Train folds on one device with the graph engine, all at the same time; see dxc.training.side_by_side.

    Args:
        plan: fitted to this machine; why_eager() of it is ''.
        datamodule: with its chips read.
        folds: by number.
        device: name of the device.
        kept: see train_fold.
        on: the device. On one that is not CUDA nothing is recorded: the steps run one by one.

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
            return train_fold(plan, datamodule, fold, number, device, kept, place)

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
    return " and ".join(sorted({fold.engine for fold in folds}))


def _taken(folds: Sequence[TrainedFold], of: int) -> str:
    """'2 of 5 folds are taken from the cache, trained 2026-11-26 18:42 on NAME in 32-true; again=true trains anew'."""
    times = [time.strftime("%Y-%m-%d %H:%M", time.localtime(fold.trained_at)) for fold in folds]
    when = times[0] if min(times) == max(times) else f"{min(times)} to {max(times)}"
    where = " and ".join(sorted({f"{fold.device} in {fold.precision}" for fold in folds}))
    verb = "is" if len(folds) == 1 else "are"
    return (
        f"{len(folds)} of {counted(of, 'fold')} {verb} taken from the cache, trained {when} on {where}; "
        "again=true trains anew"
    )


def _read(path: Path, plan: Plan) -> TrainedFold | None:
    """Read a kept fold. None where there is none, or where it cannot be used; the log says why."""
    import torch

    if not path.exists():
        return None
    try:
        kept = torch.load(path, weights_only=True)
        weights, points, code = kept.pop("weights"), kept.pop("points"), kept.pop("code")
        if code == _code():
            model = plan.model.build()
            model.load_state_dict(weights)
            return TrainedFold(
                **kept, model=model, curves=[(name, value, step) for name, value, step in points]
            )
        reason = "other code of dxc trained it"
    except Exception as error:  # torch raises errors of many classes for a damaged file
        reason = f"it is damaged ({type(error).__name__})"
    log.warning("%s of the cache is trained again: %s (%s)", path.stem, reason, path)
    return None


def _keep(path: Path, fold: TrainedFold) -> None:
    """Write a fold where _read finds it. If the disk has no room for it, the training goes on."""
    import torch

    own = {each.name for each in fields(TrainedFold)} - {"model", "curves"}
    content: dict[str, Any] = {name: getattr(fold, name) for name in own}
    content |= {"weights": fold.model.state_dict(), "points": [list(point) for point in fold.curves]}
    content["code"] = _code()
    buffer = io.BytesIO()  # torch reports a full disk as an error of its own
    torch.save(content, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        log.warning("cache_dir: %s cannot be kept and will be trained again: %s", fold.name, error)


@functools.cache
def _code() -> str:
    """Digest of the modules that determine a fold's numbers: an edited network is trained again."""
    root = Path(dxc.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
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
) -> TrainedFold:
    """Train a new network on one fold. The seed depends only on the fold, so folds may run in any order.

    Args:
        plan: fitted to this machine.
        datamodule: with its chips read.
        fold: the chips to train and to validate on.
        number: of the fold, from 0.
        device: name of the device that trains.
        kept: the folder of this configuration's folds, which says at each epoch how far this one is.
        place: of the graph engine; None: the eager engine trains.

    Raises:
        ConfigError: the fold does not have the requested score.
    """
    import pytorch_lightning as pl

    clock = time.perf_counter if place is None else place.clock
    started = clock()
    seed = plan.seed + number
    pl.seed_everything(seed, workers=True, verbose=False)
    task = build_task(plan)
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
        trainer.fit(task, datamodule=datamodule)
    else:  # of the weights of plan.base
        trainer.validate(task, datamodule=datamodule, verbose=False)
        trainer.history.extend((name, float(value), 0) for name, value in trainer.callback_metrics.items())

    metrics = trainer.callback_metrics
    score = metrics.get(f"val_{plan.score}")
    if score is None:
        known = ", ".join(name.removeprefix("val_") for name in metrics if name.startswith("val_"))
        raise ConfigError(
            f"score={plan.score}: the {len(fold.val)} validation chips of {fold.name} do not define it; they "
            f"define {known}"
        )
    return TrainedFold(
        name=fold.name,
        accuracy=float(metrics["val_accuracy"]),
        score=float(score),
        model=task.model.cpu(),
        predictions=task.predictions,
        curves=[(f"{name}.{fold.name}", value, epoch) for name, value, epoch in trainer.history],
        seconds=clock() - started,
        train_seconds=trainer.train_seconds,
        trained_images=trainer.trained_images,
        device=device,
        engine=engine,
        precision=str(plan.trainer.precision),
        trained_at=time.time(),
    )


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
        augment=getattr(datamodule, "augment", None),
        seed=seed,
    )
    task.train_by(steps)
    trainer.fit(task, chunks, ValidationChunks(fold.val, max(size, VALIDATED_AT_ONCE)))
    return "graph" if steps.captured else "eager"
