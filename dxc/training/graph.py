"""Training steps that a device repeats on its own: one CUDA graph a step, launched without a word of Python's.

A step is always the same work on the same memory: it gathers the batch by its numbers, computes the loss and its
gradient, and changes the weights. So it is recorded once and replayed (CUDA graphs, docs.pytorch.org/docs/stable/notes/
cuda.html#cuda-graphs). At batch 8 the host needs several times as long to launch the kernels of a step one by one as
the device needs to compute them.

On a device without graphs the same steps run one by one. Tests compare them with the eager engine that way.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dxc.data.augment import Augmentation
from dxc.training.side_by_side import ALONE, Turn

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from dxc.training.on_device import DeviceChips
    from dxc.training.task import Task

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps before the recording: libraries make their plans and take their memory in the first ones."""
MOST_STEPS = 32
CHUNK_IMAGES = 2048
"""Steps that Lightning hands over at a time: at most so many, of about so many images in all. Its own work is spread
over them, and other folds wait no longer than this for their turn."""
VALIDATED_AT_ONCE = 256
"""Images of a validation batch. It is not data.batch_size: validation gives the same numbers for each image alone."""


class IndexChunks:
    """The training batches of a loader as numbers of chips, several batches at a time.

    Args:
        batches: gives the numbers of a batch, int64 (B,); the last batch may be smaller.
        batch_size: of all others.

    Yields {"index": int64 array (steps, B)}; a smaller last batch comes alone.
    """

    def __init__(self, batches: DataLoader, batch_size: int) -> None:
        self._batches, self._batch_size = batches, batch_size
        images: Any = batches.dataset
        self.whole, self.last = divmod(len(images), batch_size)
        self.steps = steps_at_once(batch_size)

    @property
    def sizes(self) -> dict[int, int]:
        """{images of a batch: most batches of this size in a chunk}."""
        sizes = {self._batch_size: min(self.whole, self.steps), self.last: 1}
        return {size: steps for size, steps in sizes.items() if size and steps}

    def __len__(self) -> int:
        return -(-self.whole // self.steps) + bool(self.last)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        waiting: list[np.ndarray] = []
        for index in self._batches:
            if waiting and (len(waiting) == self.steps or len(index) < self._batch_size):
                yield {"index": np.stack(waiting)}
                waiting = []
            waiting.append(index)
        if waiting:
            yield {"index": np.stack(waiting)}


class ValidationChunks:
    """Numbers of chips in their order: {"index": int64 array (B,)}."""

    def __init__(self, chips: np.ndarray, batch_size: int) -> None:
        self._parts = np.split(chips, range(batch_size, len(chips), batch_size))

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return ({"index": part} for part in self._parts)


def steps_at_once(batch_size: int) -> int:
    """Steps in a chunk of batches of this size."""
    return max(1, min(MOST_STEPS, CHUNK_IMAGES // batch_size))


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What convolutions compute in with a precision of dxc.training.engine.PRECISIONS; None for full precision."""
    return torch.bfloat16 if precision in ("bf16-mixed", "bf16") else None  # Lightning takes both names


def has_graphs(device: torch.device) -> bool:
    """Whether work on a device can be recorded."""
    return device.type == "cuda"


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimizer's step be recorded: nothing of it may be on the host, so that a graph does not repeat an old
    learning rate or count of steps."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        group["fused"], group["foreach"] = True, False
        if "capturable" in group:
            group["capturable"] = True
    optimizer._warned_capturable_if_run_uncaptured = True  # the warm-up is uncaptured


class GraphSteps:
    """Trains a task by chunks of steps (IndexChunks). Task calls it; see Task.train_by.

    Args:
        chips: on the device that trains.
        sizes: {images of a batch: most batches of this size in a chunk}.
        autocast: dtype of mixed precision; None for full precision.
        turn: of this training among those beside it.
        augment: changes training images; None: they are as they are.
        seed: of what it draws, as ImageDataModule.select takes it.
    """

    def __init__(
        self,
        chips: DeviceChips,
        sizes: Mapping[int, int],
        *,
        autocast: torch.dtype | None = None,
        turn: Turn = ALONE,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.chips, self.turn = chips, turn
        self._augment = augment
        self._drawing = torch.Generator().manual_seed(seed)
        self._autocast = autocast
        self._sizes = sizes
        self._steps: dict[int, _Step] = {}
        self._images = 0
        self.captured = False
        """Whether steps are replayed, not launched kernel by kernel."""

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Make an optimizer ready, before a schedule gets it."""
        if self.chips.device.type == "cuda":
            make_capturable(optimizer, self.chips.device)

    def begin(self, task: Task, optimizer: torch.optim.Optimizer) -> None:
        """Record the steps. The task and the optimizer's state are as before when it returns.

        Args:
            task: on the device, in training mode.
            optimizer: prepared.
        """
        self._total = torch.zeros((), dtype=torch.float64, device=self.chips.device)
        self._steps = {
            size: _Step(self.chips, task, optimizer, self._total, self._autocast, size, steps, self._augment)
            for size, steps in self._sizes.items()
        }
        if has_graphs(self.chips.device):
            self._record(task, optimizer)
        self._total.zero_()

    def run(self, index: np.ndarray) -> None:
        """Train the batches of a chunk, int64 (steps, B), one after the other."""
        step = self._steps[index.shape[1]]
        step.feed(index, self.turn, self._drawing)
        for _ in index:
            step.run()
        self._images += index.size
        self.turn.pass_on()

    def settle(self) -> None:
        """Wait until the device has done all steps."""
        if self.chips.device.type == "cuda":
            event = _event()
            event.record()
            self.turn.wait(event)

    def epoch_loss(self) -> Tensor:
        """The mean loss of the images since the last call, a scalar."""
        loss = (self._total / self._images).float()
        self._total.zero_()
        self._images = 0
        return loss

    def close(self) -> None:
        """Give the memory of the graphs back."""
        for step in self._steps.values():
            step.close()
        self._steps.clear()

    def _record(self, task: Task, optimizer: torch.optim.Optimizer) -> None:
        kept = {name: value.clone() for name, value in task.model.state_dict().items()}
        try:
            for step in self._steps.values():
                step.warm_up()
                with _no_word_to_the_host():
                    step.warm_up(1)
            torch.cuda.current_stream().synchronize()
            pool = torch.cuda.graph_pool_handle()
            for step in self._steps.values():
                step.capture(pool)
            self.captured = True
        except RuntimeError as error:
            memory = torch.cuda.OutOfMemoryError
            # the end of a recording that found no memory may fail too
            if isinstance(error, memory) or isinstance(error.__context__, memory):
                self.close()
                optimizer.zero_grad(set_to_none=True)
                raise memory(str(error.__context__ or error)) from error
            log.warning("no CUDA graph of a training step; its kernels are launched one by one: %s", error)
            for step in self._steps.values():
                step.close()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in task.model.state_dict().items():
                value.copy_(kept[name])
            # moments, momentum, count of steps: as if none had been taken
            for value in (each for state in optimizer.state.values() for each in state.values()):
                if isinstance(value, Tensor):
                    value.zero_()


def _room_for_drawn(augment: Augmentation, steps: int, size: int, **options: Any) -> tuple[torch.Tensor, ...]:
    """Room for what is drawn for a chunk: each (steps, size). options: of torch.zeros."""
    one = augment.draw(1, torch.Generator())
    return tuple(torch.zeros((steps, size), dtype=each.dtype, **options) for each in one)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(blocking=True)  # who waits for it leaves the cores to the others


@dataclass
class _Slot:
    """Host memory for one chunk. event: the device has read it."""

    index: Tensor
    images: Tensor | None
    drawn: tuple[torch.Tensor, ...] | None
    event: torch.cuda.Event | None = None


class _Step:
    """One training step for batches of one size. All that it reads and writes stays where it is.

    Which batch of the chunk it takes is counted on the device (`cursor`), so that a replay is all the host does.
    """

    def __init__(
        self,
        chips: DeviceChips,
        task: Task,
        optimizer: torch.optim.Optimizer,
        total: Tensor,
        autocast: torch.dtype | None,
        size: int,
        steps: int,
        augment: Augmentation | None,
    ) -> None:
        device = chips.device
        self._augment = augment
        self._drawn = None if augment is None else _room_for_drawn(augment, steps, size, device=device)
        self._chips, self._task, self._optimizer, self._total = chips, task, optimizer, total
        self._autocast, self._size = autocast, size
        self._index = torch.zeros((steps, size), dtype=torch.int64, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        streamed = chips.images is None
        # streamed: the images of a chunk lie in the order of their batches
        self._rows = torch.arange(steps * size, device=device).view(steps, size) if streamed else self._index
        self._images = chips.images if chips.images is not None else chips.empty(steps * size).zero_()
        pinned = device.type == "cuda"
        self._slots = [
            _Slot(
                torch.zeros((steps, size), dtype=torch.int64, pin_memory=pinned),
                chips.empty(steps * size, pinned=True) if streamed else None,
                None if augment is None else _room_for_drawn(augment, steps, size, pin_memory=pinned),
            )
            for _ in range(2)
        ]
        self._graph: torch.cuda.CUDAGraph | None = None

    def feed(self, index: np.ndarray, turn: Turn, drawing: torch.Generator) -> None:
        """Bring the numbers of a chunk to the device, its images where they are streamed, and how they are augmented.

        Args:
            index: int64 (steps, B).
            turn: of this training among those beside it.
            drawing: draws each batch's augmentation, as the eager engine's does.
        """
        slot = self._slots[0]
        self._slots.reverse()
        if slot.event is not None:
            turn.wait(slot.event)
        steps = len(index)
        slot.index[:steps].copy_(torch.from_numpy(index))
        self._index[:steps].copy_(slot.index[:steps], non_blocking=True)
        if slot.images is not None:
            self._chips.read(index.reshape(-1), slot.images[: index.size])
            self._images[: index.size].copy_(slot.images[: index.size], non_blocking=True)
        if self._augment is not None and slot.drawn is not None and self._drawn is not None:
            for step in range(steps):
                for room, drawn in zip(slot.drawn, self._augment.draw(self._size, drawing), strict=True):
                    room[step].copy_(drawn)
            for here, there in zip(self._drawn, slot.drawn, strict=True):
                here[:steps].copy_(there[:steps], non_blocking=True)
        self._cursor.zero_()
        if self._cursor.is_cuda:
            slot.event = slot.event or _event()
            slot.event.record()

    def run(self) -> None:
        """Train one batch."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._work()

    def warm_up(self, times: int = WARM_UP) -> None:
        for _ in range(times):
            self._cursor.zero_()
            self._work()
        self._cursor.zero_()

    def capture(self, pool: Any) -> None:
        """Record the step on the current stream, which must not be the device's default one.

        Args:
            pool: of memory, shared with steps that never run at the same time.
        """
        self._optimizer.zero_grad(set_to_none=True)  # the gradients are part of the recording
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        # thread_local: a training beside this one may wait for the device meanwhile
        recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        with _own_workspaces(), recording:
            self._work()
        self._graph = graph

    def close(self) -> None:
        if self._graph is not None:
            self._graph.reset()
            self._graph = None

    def _work(self) -> None:
        index = self._index.index_select(0, self._cursor)[0]
        rows = self._rows.index_select(0, self._cursor)[0]
        batch = self._chips.gather(self._images, rows, index)
        if self._augment is not None and self._drawn is not None:
            drawn = tuple(each.index_select(0, self._cursor)[0] for each in self._drawn)
            image = self._augment.apply(batch["image"], drawn)
            if self._chips.channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            batch["image"] = image
        self._optimizer.zero_grad(set_to_none=True)
        kind = self._cursor.device.type
        # without a cache: weights that were converted in one step would be those of all replays
        with torch.autocast(
            kind, self._autocast or torch.bfloat16, enabled=self._autocast is not None, cache_enabled=False
        ):
            loss = self._task.batch_loss(self._task.model(batch["image"]), batch)
        with torch.autocast(kind, enabled=False):  # Lightning's is around a training step
            loss.backward()
            self._optimizer.step()
        self._total.add_(loss.detach(), alpha=self._size)
        self._cursor.add_(1)


@contextlib.contextmanager
def _no_word_to_the_host() -> Iterator[None]:
    """Raise RuntimeError for what waits for the device. A recording that fails at it would leave torch's memory
    management in an odd state."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not find everything; the recording does
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let a graph have workspaces of cuBLAS in its own memory. Lightning frees the common ones at the end of each
    fit(), while other folds still replay theirs."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()
