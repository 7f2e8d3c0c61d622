"""A GPU that is simulated: streams, events and CUDA graphs whose operators run in any order that these allow.

Between capture_begin and capture_end, operators are recorded with what they wait for: the operator before them on their
stream, and those of events. A replay fills what they write with NaN and runs them in a random one of the orders that
are allowed. So a missing wait shows as NaN. A replay takes as many ms as its longest chain of operators: operators side
by side cost nothing. Outside of graphs an operator takes LAUNCH_MS.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

LAUNCH_MS = 5.0


class SimulatedGpu(TorchDispatchMode):
    """Switched on by simulated()."""

    def __init__(self) -> None:
        super().__init__()
        self.ms = 0.0
        self.rng = random.Random(0)
        self.graph: Graph | None = None
        self.current = Stream(self)
        self.graphs = 0
        self.replays = 0
        self.replaying = False
        self.recorded = 0  # in all graphs
        self.pools: dict[object, WeakSet[Graph]] = {}
        self.pools_used: set[object] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.replaying:
            return result
        if self.graph is None:
            self.ms += LAUNCH_MS
        else:
            self.graph.record(func, args, kwargs or {}, result, self.current)
        return result


class Stream:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu = gpu
        self.last: frozenset[int] = frozenset()

    def wait_event(self, event: Event) -> None:
        self.last |= event.last


class Event:
    def __init__(self, gpu: SimulatedGpu, enable_timing: bool = False) -> None:
        self.gpu, self.last, self.ms = gpu, frozenset[int](), 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.last, self.ms = (stream or self.gpu.current).last, self.gpu.ms

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return end.ms - self.ms


class Graph:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu = gpu
        self.calls: list[tuple[Any, Any, Any, list[Tensor], frozenset[int]]] = []

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        assert self.gpu.graph is None
        graphs = self.gpu.pools.setdefault(pool, WeakSet()) if pool else WeakSet()
        assert graphs or pool is None or pool not in self.gpu.pools_used, "all graphs of this pool are gone"
        graphs.add(self)
        self.gpu.pools_used.add(pool)
        self.gpu.graph = self
        self.gpu.graphs += 1
        self.main = self.gpu.current
        self.first = self.gpu.recorded

    def capture_end(self) -> None:
        self.gpu.graph = None
        waited = self.before(self.own(self.main.last))
        assert waited == set(range(len(self.calls))), "a stream was not joined"

    def own(self, last: frozenset[int]) -> frozenset[int]:
        """Operators of this graph among those of all, counted from 0."""
        return frozenset(each - self.first for each in last if each >= self.first)

    def before(self, numbers: frozenset[int]) -> set[int]:
        found, waiting = set(numbers), list(numbers)
        while waiting:
            for each in self.calls[waiting.pop()][4] - found:
                found.add(each)
                waiting.append(each)
        return found

    def record(self, func: Any, args: Any, kwargs: Any, result: Any, stream: Stream) -> None:
        read = {
            each.untyped_storage().data_ptr()
            for each in tree_flatten((args, kwargs))[0]
            if isinstance(each, Tensor)
        }
        written = [
            each
            for each in tree_flatten(result)[0]
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in read  # no views
        ]
        self.calls.append((func, args, kwargs, written, self.own(stream.last)))
        stream.last = frozenset({self.gpu.recorded})
        self.gpu.recorded += 1

    def replay(self) -> None:
        self.gpu.replays += 1
        self.gpu.replaying = True
        depth: dict[int, int] = {}
        for *_, written, _ in self.calls:
            for each in written:
                if each.is_floating_point():
                    each.fill_(float("nan"))
        left = set(range(len(self.calls)))
        while left:
            ready = sorted(each for each in left if not self.calls[each][4] & left)
            each = self.gpu.rng.choice(ready)
            func, args, kwargs, written, waits = self.calls[each]
            results = [x for x in tree_flatten(func(*args, **kwargs))[0] if isinstance(x, Tensor)]
            for ours, theirs in zip(written, results if written else (), strict=False):
                ours.copy_(theirs)
            depth[each] = bool(written) + max((depth[one] for one in waits), default=0)
            left.remove(each)
        self.gpu.replaying = False
        self.gpu.ms += max(depth.values(), default=0)


@contextlib.contextmanager
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedGpu]:
    """torch.cuda stands for the simulated GPU; tensors stay on the processor."""
    gpu = SimulatedGpu()

    @contextlib.contextmanager
    def stream(one: Stream) -> Iterator[None]:
        before, gpu.current = gpu.current, one
        try:
            yield
        finally:
            gpu.current = before

    for name, value in {
        "Stream": lambda: Stream(gpu),
        "Event": lambda enable_timing=False: Event(gpu),
        "CUDAGraph": lambda: Graph(gpu),
        "stream": stream,
        "synchronize": lambda: None,
        "graph_pool_handle": object,
        "empty_cache": lambda: None,
        "is_available": lambda: True,
        "get_device_name": lambda: "a simulated GPU",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with gpu:
        yield gpu
