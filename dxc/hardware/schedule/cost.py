"""Measured costs of stages: what the dynamic program minimises."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from dxc.hardware.schedule.dag import Stage
from dxc.hardware.schedule.execution import (
    ROUND_MS,
    ROUNDS,
    RUNS,
    WARM_UP,
    Streams,
    captured,
    elapsed_ms,
    replayed_ms,
    run_side_by_side,
)
from dxc.hardware.schedule.program import Program

REPEATS_MS = ROUND_MS / 4
"""Longest graph of repeats of one stage."""


class StageTimes:
    """Measures stages in ms. Stages that do the same work are measured once.

    On a GPU a stage is one CUDA graph of 20 repeats, fewer for one that takes over a millisecond; its time is the
    median of 7 replays after 3. On a processor, where groups run one after the other, it is the median of 3 runs.

    Args:
        program: whose stages.
        streams: of its device; None on a processor.
    """

    def __init__(self, program: Program, streams: Streams | None = None) -> None:
        self.program = program
        self._streams = streams
        self._pool: Any = None if streams is None else torch.cuda.graph_pool_handle()
        self._known: dict[str, float] = {}
        self._first: torch.cuda.CUDAGraph | None = None  # keeps the pool of all graphs alive

    @property
    def measured(self) -> int:
        """Number of different stages that were measured."""
        return len(self._known)

    def __call__(self, stage: Stage) -> float:
        """Time of a stage in ms."""
        does = self.program.does(stage)
        if does not in self._known:
            self._known[does] = self._on_processor(stage) if self._streams is None else self._on_gpu(stage)
        return self._known[does]

    def _on_processor(self, stage: Stage) -> float:
        def run() -> None:
            values = dict(self.program.values)
            for group in stage:
                self.program.run_group(group, values)

        run()
        return median(elapsed_ms(run, 1, self.program.device) for _ in range(3))

    def _on_gpu(self, stage: Stage) -> float:
        streams = self._streams
        assert streams is not None

        def run(repeats: int) -> None:
            for _ in range(repeats):
                run_side_by_side(self.program, stage, dict(self.program.values), streams)

        with torch.cuda.stream(streams.main):
            run(1)
            ms = elapsed_ms(lambda: run(1), 1, self.program.device)
        repeats = max(1, min(RUNS, int(REPEATS_MS / max(ms, 1e-6))))
        graph = captured(lambda: run(repeats), streams, self._pool)
        self._first = self._first or graph
        for _ in range(WARM_UP):
            replayed_ms(graph, 1, streams)
        return median(replayed_ms(graph, 1, streams) for _ in range(ROUNDS)) / repeats
