"""Runs a program as a schedule says: interpreted anywhere, and on a GPU as one CUDA graph with a stream for each group.

At the beginning of a stage the main stream forks by an event: each group after the first waits for it on a stream of
its own. At the end the main stream waits for all groups. All values stay alive until the whole graph is captured, so
that no stream gets memory that another one still reads. A graph has one pool of memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dxc.hardware.schedule.dag import Schedule, Stage, require_valid
from dxc.hardware.schedule.program import TOLERANCE, Program

WARM_UP = 3
ROUNDS = 7
RUNS = 20
"""A time is the median of ROUNDS rounds of RUNS runs, after WARM_UP rounds."""
ROUND_MS = 100.0
"""Longest round. A slower network has fewer runs in each."""


class Execution(Protocol):
    """A way to run a program."""

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs for a batch of images. Earlier outputs stay as they are."""

    def poison(self) -> None:
        """Overwrite the outputs of the last run with NaN, so that a run that does not write them shows."""

    def ms(self, runs: int) -> float:
        """Mean time of some runs, one after the other, on images that are there already."""


class InOrderExecution:
    """Operator by operator in the order of the file, without a graph: what torch does by itself."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.program.run_in_order(image)

    def poison(self) -> None:
        """It keeps no outputs."""

    def ms(self, runs: int) -> float:
        return elapsed_ms(lambda: self.program.run_in_order(self.program.image), runs, self.program.device)


class InterpretedExecution(InOrderExecution):
    """Stage by stage without streams. The groups of a stage run one after the other, the last one first.

    Args:
        program: what is run.
        schedule: of its operators.
    """

    def __init__(self, program: Program, schedule: Schedule) -> None:
        require_valid(schedule, program.dag)
        super().__init__(program)
        self.schedule = schedule

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        values = self.program.start(image)
        for stage in self.schedule:
            for group in reversed(stage):
                self.program.run_group(group, values)
        return self.program.results(values)

    def ms(self, runs: int) -> float:
        return elapsed_ms(lambda: self(self.program.image), runs, self.program.device)


class Streams:
    """The main stream of a device, and one for each further group of a stage."""

    def __init__(self) -> None:
        self.main = torch.cuda.Stream()
        self._others: list[Any] = []

    def others(self, number: int) -> list[Any]:
        """The streams of so many further groups."""
        while len(self._others) < number:
            self._others.append(torch.cuda.Stream())
        return self._others[:number]


class GraphExecution:
    """A schedule as one CUDA graph.

    Args:
        program: what is run, on a GPU.
        schedule: of its operators.
        streams: of its device.
    """

    def __init__(self, program: Program, schedule: Schedule, streams: Streams) -> None:
        require_valid(schedule, program.dag)
        self._streams = streams
        self._image = program.image.clone()
        self._outputs: tuple[Tensor, ...] = ()

        def run() -> dict[str, Any]:
            values = program.start(self._image)
            for stage in schedule:
                run_side_by_side(program, stage, values, streams)
            self._outputs = program.results(values)
            return values

        self._graph = captured(run, streams)

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        torch.cuda.synchronize()
        with torch.cuda.stream(self._streams.main):
            self._image.copy_(image)
            self._graph.replay()
            outputs = tuple(each.clone() for each in self._outputs)
        torch.cuda.synchronize()
        return outputs

    def poison(self) -> None:
        torch.cuda.synchronize()
        for each in self._outputs:
            each.fill_(float("nan"))
        torch.cuda.synchronize()

    def ms(self, runs: int) -> float:
        return replayed_ms(self._graph, runs, self._streams)


def run_side_by_side(program: Program, stage: Stage, values: dict[str, Any], streams: Streams) -> None:
    """Run a stage, begun on the main stream and ended on it. The main stream has to be the current one.

    Args:
        program: what is run.
        stage: groups of operators.
        values: what is there already, by name; the results are added.
        streams: of the device.
    """
    first, *others = stage
    if not others:
        program.run_group(first, values)
        return
    fork = torch.cuda.Event()
    fork.record(streams.main)
    ends = []
    for stream, group in zip(streams.others(len(others)), others, strict=True):
        stream.wait_event(fork)
        with torch.cuda.stream(stream):
            program.run_group(group, values)
            end = torch.cuda.Event()
            end.record(stream)
        ends.append(end)
    program.run_group(first, values)
    for end in ends:
        streams.main.wait_event(end)


def captured(run: Callable[[], object], streams: Streams, pool: Any = None) -> torch.cuda.CUDAGraph:
    """What a function does on the main stream, as a CUDA graph.

    It runs once before, on the same streams: libraries choose their algorithms and take their workspaces then, which
    they cannot while a graph is captured.

    Args:
        run: enqueues the work; what it returns stays alive until the graph is captured.
        streams: of the device.
        pool: of memory, to be shared with graphs that never run at the same time; None: its own. One of them has to
            live: a pool whose graphs are all gone cannot be used again.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(streams.main):
        run()
        torch.cuda.synchronize()
        if pool is None:
            graph.capture_begin()
        else:
            graph.capture_begin(pool=pool)
        try:
            alive = run()
        finally:
            graph.capture_end()
        del alive
    torch.cuda.synchronize()
    return graph


def replayed_ms(graph: torch.cuda.CUDAGraph, runs: int, streams: Streams) -> float:
    """Mean time of some replays of a graph, one after the other.

    Args:
        graph: what is replayed.
        runs: how often.
        streams: of the device.
    """
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(streams.main):
        begin.record(streams.main)
        for _ in range(runs):
            graph.replay()
        end.record(streams.main)
    end.synchronize()
    return begin.elapsed_time(end) / runs


def elapsed_ms(run: Callable[[], object], runs: int, device: torch.device) -> float:
    """Mean time of some runs, one after the other: by the clock on a processor, by events on a GPU.

    Args:
        run: one run.
        runs: how often.
        device: where it computes.
    """
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(runs):
            run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / runs
    started = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - started) * 1000 / runs


def execution(program: Program, schedule: Schedule, streams: Streams | None) -> Execution:
    """A CUDA graph where there are streams, else an interpretation.

    Args:
        program: what is run.
        schedule: of its operators.
        streams: of the device; None on a processor.
    """
    if streams is None:
        return InterpretedExecution(program, schedule)
    return GraphExecution(program, schedule, streams)


def times_in_turn(executions: Mapping[str, Execution]) -> dict[str, np.ndarray]:
    """Times of one run in ms by name, ROUNDS of each. All have a round in turn, so that a warmer device slows all.

    Args:
        executions: what is compared.
    """
    found: dict[str, list[float]] = {name: [] for name in executions}
    runs = {name: runs_in_a_round(each.ms(1)) for name, each in executions.items()}
    for each in range(WARM_UP + ROUNDS):
        for name, one in executions.items():
            ms = one.ms(runs[name])
            if each >= WARM_UP:
                found[name].append(ms)
    return {name: np.array(times) for name, times in found.items()}


def runs_in_a_round(ms: float) -> int:
    """RUNS, or as many as a round of ROUND_MS has room for, at least one."""
    return max(1, min(RUNS, int(ROUND_MS / max(ms, 1e-6))))


def largest_error(program: Program, one: Execution, seeds: Sequence[int] = (1, 2, 3)) -> float:
    """Largest difference between a way of running a program and the order of the file, relative to an output's largest
    value. It is NaN where an output was not written.

    Args:
        program: what is run.
        one: how it is run.
        seeds: of fresh images, one batch each. Outputs are overwritten with NaN before each.
    """
    errors = []
    for seed in seeds:
        image = program.fresh_image(seed)
        expected = [each.float().clone() for each in program.run_in_order(image)]
        one.poison()
        for ours, theirs in zip(one(image), expected, strict=True):
            scale = max(theirs.abs().max().item(), 1e-6)
            errors.append((ours.float() - theirs).abs().max().item() / scale)
    return float(np.max(errors))  # unlike max(), it keeps a NaN


def is_equal(program: Program, error: float) -> bool:
    """Whether an error of largest_error is within the rounding of the program's precision."""
    return error <= TOLERANCE[program.precision]
