"""Trainings that share one device: a thread and a stream each, and one of them at work on the host at a time.

The threads take turns. A turn ends where a training has launched a chunk of its steps, or waits for the device. So the
device has the steps of all trainings in its queues and computes them at the same time, while on the host nothing ever
happens at the same time: Lightning, torch's global settings and the recording of graphs need no further care.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from dxc.errors import TrainingError

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_S = 0.5  # how soon the main thread heeds a signal


class Turn(Protocol):
    """The place of one training among those beside it."""

    def pass_on(self) -> None:
        """Let the others work, and wait for the next turn."""

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the device. The others work meanwhile."""


class _Alone:
    """The turn of a training with none beside it."""

    def pass_on(self) -> None:
        pass

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()


ALONE: Turn = _Alone()


class Abandoned(BaseException):
    """Ends a training because another one failed, or because the user stopped; not an Exception, so that nothing
    swallows it."""


class _Turns:
    """Gives turns in the order in which they are asked for."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = self._serving = 0
        self.stopped = False

    def take(self) -> None:
        with self._condition:
            ticket = self._next
            self._next += 1
            self._condition.wait_for(lambda: self._serving == ticket)

    def give(self) -> None:
        with self._condition:
            self._serving += 1
            self._condition.notify_all()

    def pass_on(self) -> None:
        with self._condition:  # at once: the others do not overtake
            self.give()
            self.take()
        self._heed()

    def wait(self, event: torch.cuda.Event) -> None:
        if event.query():
            return
        self.give()
        try:
            event.synchronize()
        finally:
            self.take()
        self._heed()

    def _heed(self) -> None:
        if self.stopped:
            raise Abandoned


class SharedClock:
    """Divides the wall time among those at work: the times of all of them add up to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: dict[int, float] = {}
        self._at_work: set[int] = set()
        self._last = time.perf_counter()

    def enter(self, number: int) -> None:
        with self._lock:
            self._advance()
            self._at_work.add(number)
            self._shares[number] = 0.0

    def leave(self, number: int) -> None:
        with self._lock:
            self._advance()
            self._at_work.discard(number)

    def read(self, number: int) -> float:
        """Seconds: the share of one since it entered."""
        with self._lock:
            self._advance()
            return self._shares[number]

    def _advance(self) -> None:
        now = time.perf_counter()
        for each in self._at_work:
            self._shares[each] += (now - self._last) / len(self._at_work)
        self._last = now


@dataclass(frozen=True)
class Job(Generic[T]):
    """One training. work(turn, clock): trains, calls `turn` where others may work, and takes its times, in seconds,
    from `clock`."""

    name: str
    work: Callable[[Turn, Callable[[], float]], T]


def side_by_side(jobs: Sequence[Job[T]], device: torch.device) -> Generator[tuple[int, T]]:
    """Do all jobs on one device, as many at once as its memory holds.

    A job that finds no memory while others are at work begins anew when one of them has ended, and from then on no more
    of them are at work at once.

    Args:
        jobs: in their order.
        device: CUDA; on another one they take turns all the same.

    Yields:
        (number of the job, its result), as they end.

    Raises:
        TrainingError: a job finds no memory although it is alone. Whatever a job raises is raised here, when the others
            have been ended.
    """
    if len(jobs) == 1:
        try:
            with _stream(device):
                result = jobs[0].work(ALONE, time.perf_counter)
        except torch.cuda.OutOfMemoryError as error:
            raise _no_memory(jobs[0].name, error) from error
        yield 0, result
        return

    turns, clock = _Turns(), SharedClock()
    ended: queue.Queue[tuple[int, T | None, BaseException | None]] = queue.Queue()

    def work(number: int) -> None:
        result: T | None = None
        error: BaseException | None = None
        turns.take()
        try:
            clock.enter(number)
            if turns.stopped:
                raise Abandoned
            with _stream(device):
                result = jobs[number].work(turns, lambda: clock.read(number))
        except torch.cuda.OutOfMemoryError as raised:
            _let_go(raised)
            error = torch.cuda.OutOfMemoryError(str(raised))
        except BaseException as raised:
            error = raised
        finally:
            clock.leave(number)
            turns.give()
            ended.put((number, result, error))

    waiting, at_work, most = list(range(len(jobs))), dict[int, threading.Thread](), len(jobs)
    try:
        while waiting or at_work:
            while waiting and len(at_work) < most:
                number = waiting.pop(0)
                at_work[number] = threading.Thread(
                    target=work, args=(number,), name=jobs[number].name, daemon=True
                )
                at_work[number].start()
            number, result, failure = _next(ended)
            at_work.pop(number).join()
            if isinstance(failure, torch.cuda.OutOfMemoryError):
                if not at_work:
                    raise _no_memory(jobs[number].name, failure) from failure
                waiting.insert(0, number)
                if len(at_work) < most:
                    most = len(at_work)
                    log.info(
                        "the device has no memory for %s beside %d others; %d are trained at once",
                        jobs[number].name, most, most,
                    )  # fmt: skip
            elif failure is not None:
                raise failure
            else:
                yield number, result
    finally:
        turns.stopped = True
        for thread in at_work.values():
            thread.join()


def _let_go(error: BaseException) -> None:
    """Free the memory that others need: the frames of a traceback hold what its functions had made."""
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    gc.collect()  # a task and its trainer hold each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _next(ended: queue.Queue) -> tuple:
    """The next job that ends. Signals are heeded while it waits."""
    while True:
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=POLL_S)


@contextlib.contextmanager
def _stream(device: torch.device) -> Iterator[None]:
    """A stream of its own for whatever this thread computes: graphs cannot be recorded on the default one."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
        torch.cuda.current_stream().synchronize()


def _no_memory(name: str, error: Exception) -> TrainingError:
    first = str(error).partition(". ")[0]
    return TrainingError(
        f"{name}: the device has no memory for this training ({first}); lower data.batch_size, train in mixed "
        "precision (trainer.precision=bf16-mixed), or take a smaller network"
    )
