"""Several trials on one GPU: which GPU a trial trains on, and how much of its memory it may take.

A machine has as many slots as a search runs trials at once. Slot k is on GPU k modulo the number of GPUs, so that they
fill evenly. A trial holds its slot's lock while it trains, in a process of its own whose memory torch limits to its
share. So a large network fails alone instead of taking the memory of its neighbours. The search then runs fewer trials
at once, and that one again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dxc.config.plan import Plan
from dxc.errors import HardwareError

log = logging.getLogger(__name__)

SLOTS = "slots"  # in the study's folder, one lock for each
CONTEXT_BYTES = 600e6  # what CUDA takes for a process, beside what torch limits
LEAST_SHARE = 0.02  # of a small GPU with many trials
POLL_S = 0.2
ON_GPUS = ("auto", "gpu", "cuda")  # values of trainer.accelerator


@dataclass(frozen=True)
class Slot:
    """A trial's place. neighbours: how many trials share the memory of its GPU with it at most."""

    gpu: int
    neighbours: int

    @property
    def is_shared(self) -> bool:
        return self.neighbours > 0


def gpus_here(plan: Plan, chosen: Sequence[int] | None = None) -> list[int]:
    """Numbers of the GPUs that trials of a plan are spread over; none where a trial does not train on one of them.

    Args:
        plan: as requested.
        chosen: search.gpus; None: all of this machine.

    Raises:
        HardwareError: the machine has GPUs, but not those.
    """
    if plan.trainer.accelerator not in ON_GPUS or plan.trainer.devices != 1:
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen is None:
        return list(range(count))
    if count and (absent := [number for number in chosen if number >= count]):
        raise HardwareError(
            f"search.gpus={list(chosen)}: there is no GPU {absent[0]}; this machine has {count}, counted from 0"
        )
    return list(chosen)


def slot_of(number: int, gpus: Sequence[int], at_once: int) -> Slot:
    """A slot by its number.

    Args:
        number: from 0 to at_once - 1.
        gpus: numbers of the GPUs.
        at_once: trials at once on all of them.
    """
    place = number % len(gpus)
    return Slot(gpus[place], len(range(place, at_once, len(gpus))) - 1)


def fewer(gpus: Sequence[int], at_once: int) -> int:
    """How many trials run at once where the fullest GPU has one less; at least one on each."""
    return max(1, math.ceil(at_once / len(gpus)) - 1) * len(gpus)


@contextlib.contextmanager
def free_slot(folder: Path, gpus: Sequence[int], at_once: int) -> Iterator[Slot]:
    """Hold a free slot of this machine, and limit this process to its share of the GPU's memory.

    Waits where all are taken: by trials that have outlived an earlier search.

    Args:
        folder: of the study.
        gpus: numbers of the GPUs, at least one.
        at_once: how many slots there are.
    """
    with _lock(folder / SLOTS, at_once) as number:
        taken = slot_of(number, gpus, at_once)
        _limit_memory(taken)
        try:
            yield taken
        finally:
            free_memory()


_last: int | None = None
"""The slot of this process's last trial. Its CUDA context is on that GPU; one on a further GPU takes more memory."""


@contextlib.contextmanager
def _lock(folder: Path, count: int) -> Iterator[int]:
    """Hold the first free one of `count` locks, this process's last one before all others."""
    global _last
    folder.mkdir(parents=True, exist_ok=True)
    while (held := _first_free(folder, sorted(range(count), key=lambda number: number != _last))) is None:
        time.sleep(POLL_S)
    _last, lock = held
    try:
        yield _last
    finally:
        lock.release()


def _first_free(folder: Path, numbers: Sequence[int]) -> tuple[int, FileLock] | None:
    for number in numbers:
        lock = FileLock(folder / str(number))
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            return number, lock
    return None


def _limit_memory(taken: Slot) -> None:
    """Limit what this process may take of its GPU's memory, in equal shares for all that it may have beside it."""
    import torch

    if not torch.cuda.is_available():
        return
    share = 1.0
    if taken.is_shared:
        total = torch.cuda.get_device_properties(taken.gpu).total_memory
        share = max(LEAST_SHARE, 1 / (taken.neighbours + 1) - CONTEXT_BYTES / total)
    log.info(
        "GPU %d, with %.0f %% of its memory beside up to %d other trials",
        taken.gpu, 100 * share, taken.neighbours,
    )  # fmt: skip
    torch.cuda.set_per_process_memory_fraction(share, taken.gpu)


def free_memory() -> None:
    """Give unused memory of the GPU back, so that trials of other processes can have it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lacked_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a device had no memory left."""
    import torch

    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
        ):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


_SIGNS = ("CUDA out of memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""What CUDA, cuDNN and cuBLAS say where torch does not say it for them."""
