"""Schedules are run as they say: interpreted, on a simulated GPU, and on a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dxc.hardware.schedule import execution
from dxc.hardware.schedule.cost import StageTimes
from dxc.hardware.schedule.dag import Schedule, Stage
from dxc.hardware.schedule.execution import (
    GraphExecution,
    InOrderExecution,
    InterpretedExecution,
    Streams,
    is_equal,
    largest_error,
    runs_in_a_round,
    times_in_turn,
)
from dxc.hardware.schedule.optimise import greedy, ios, sequential
from dxc.hardware.schedule.program import Program, exact_numbers, load_program
from tests.hardware.schedule.simulated_gpu import LAUNCH_MS, simulated

NAMES = ("inception", "resnet", "sppnet4", "sppnet5")


def longest_group(stage: Stage) -> float:
    return max(map(len, stage)) + 0.01 * len(stage)


def schedules(program: Program) -> dict[str, Schedule]:
    dag = program.dag
    return {"sequential": sequential(dag), "greedy": greedy(dag), "ios": ios(dag, longest_group)}


@pytest.mark.parametrize("name", NAMES)
def test_schedules_compute_the_same(name: str, networks: Path) -> None:
    program = load_program(networks / f"{name}.onnx", batch=2)
    for schedule in schedules(program).values():
        assert largest_error(program, InterpretedExecution(program, schedule)) == 0
    with pytest.raises(ValueError, match="operator"):
        InterpretedExecution(program, sequential(program.dag)[::-1])


@pytest.mark.parametrize("name", NAMES)
def test_graphs_with_streams_on_a_simulated_gpu(
    name: str, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every order that streams and events allow, and twice, since a graph keeps what it wrote."""
    with torch.inference_mode(), simulated(monkeypatch) as gpu:
        program = load_program(networks / f"{name}.onnx", batch=2)
        for schedule in schedules(program).values():
            one = GraphExecution(program, schedule, Streams())
            for seeds in ((1, 2, 3), (4, 5, 6), (7, 8, 9)):
                assert largest_error(program, one, seeds) < 1e-6
        assert (gpu.graphs, gpu.replays) == (3, 27)


def test_a_missing_wait_shows(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation is worth something: without the fork, or without a join, it fails."""
    with torch.inference_mode(), simulated(monkeypatch):
        program = load_program(networks / "inception.onnx")
        schedule = ios(program.dag, longest_group)
        stream = torch.cuda.Stream

        class Streams_(Streams):
            def __init__(self, forgetful: str) -> None:
                self.main: Any = stream()
                self._others = [stream() for _ in range(8)]
                for each in [self.main] if forgetful == "main" else self._others:
                    each.wait_event = lambda event: None

        with pytest.raises(AssertionError, match="a stream was not joined"):
            GraphExecution(program, schedule, Streams_("main"))
        one = GraphExecution(program, schedule, Streams_("others"))
        assert not is_equal(program, largest_error(program, one, range(20)))


class _Forgets(InOrderExecution):
    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.full_like(each, torch.nan) for each in super().__call__(image))


class _Answers(InOrderExecution):
    """The right answer for the images of the program, and for no others."""

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return super().__call__(self.program.image)


def test_outputs_that_are_not_written_or_old_are_not_equal(networks: Path) -> None:
    program = load_program(networks / "resnet.onnx")
    assert is_equal(program, largest_error(program, InOrderExecution(program)))
    for wrong in (_Forgets(program), _Answers(program)):
        assert not is_equal(program, largest_error(program, wrong))


def test_stages_cost_their_longest_group_on_a_simulated_gpu(
    networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode(), simulated(monkeypatch) as gpu:
        program = replace(load_program(networks / "inception.onnx"), device=torch.device("cuda"))
        cost = StageTimes(program, Streams())
        conv_relu, pool = cost(((0,),)), cost(((8,),))
        assert (conv_relu, pool) == (2, 1)
        assert cost(((0,), (1,), (3,), (8,))) == 2  # side by side
        assert cost(((8, 9), (0,))) == 3
        graphs = gpu.graphs
        assert cost(((0,), (8,), (1,), (3,))) == 2 and gpu.graphs == graphs  # known
        found = ios(program.dag, cost)
        assert sum(map(cost, found)) == 2 + 2 + 2 + 1
        assert sum(map(cost, sequential(program.dag))) == 9 * 2 + 2
        one = GraphExecution(program, found, Streams())
        assert one.ms(7) == 7
        assert InOrderExecution(program).ms(3) == 20 * LAUNCH_MS


def test_a_long_stage_is_repeated_less(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    with torch.inference_mode(), simulated(monkeypatch) as gpu:
        monkeypatch.setattr(
            "dxc.hardware.schedule.cost.replayed_ms",
            lambda graph, runs, streams: lengths.append(len(graph.calls)) or 1.0,
        )
        program = replace(load_program(networks / "resnet.onnx"), device=torch.device("cuda"))
        assert StageTimes(program, Streams())(((29,),)) * (25 // LAUNCH_MS) == 1  # 25 ms have room for 5
        assert gpu.graphs == 1 and len(lengths) == 3 + 7


def test_times_are_taken_in_turn() -> None:
    order: list[str] = []

    class One:
        def __init__(self, name: str, ms: float) -> None:
            self.name, self.takes = name, ms

        def ms(self, runs: int) -> float:
            order.append(f"{self.name}{runs}")
            return self.takes + len(order) / 1000

    executions: Any = {"a": One("a", 1.0), "b": One("b", 30.0)}
    times = times_in_turn(executions)
    assert order == ["a1", "b1"] + ["a20", "b3"] * 10
    assert [len(each) for each in times.values()] == [7, 7]
    assert times["a"][0] == pytest.approx(1.009)  # after three rounds to warm up
    assert [runs_in_a_round(ms) for ms in (0.0, 5.0, 33.0, 1000.0)] == [20, 20, 3, 1]


def test_a_processor_measures_without_streams(networks: Path) -> None:
    program = load_program(networks / "resnet.onnx")
    cost = StageTimes(program)
    whole = (tuple(range(len(program.operators))),)
    assert 0 < cost(((0,),)) < cost(whole)
    assert cost.measured == 2
    assert isinstance(execution.execution(program, sequential(program.dag), None), InterpretedExecution)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_graphs_with_streams_on_a_gpu(name: str, precision: str, networks: Path) -> None:
    with exact_numbers(precision), torch.inference_mode():
        program = load_program(networks / f"{name}.onnx", batch=2, precision=precision, device="cuda")
        streams = Streams()
        cost = StageTimes(program, streams)
        for schedule in (*schedules(program).values(), ios(program.dag, cost)):
            one = GraphExecution(program, schedule, streams)
            assert is_equal(program, largest_error(program, one))
            assert is_equal(program, largest_error(program, one, (4, 5, 6)))
            assert 0 < one.ms(20) < 100
        assert all(ms > 0 for ms in cost._known.values())
