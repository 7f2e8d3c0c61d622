"""Schedules of a network: one operator after the other, greedy, and IOS's dynamic program.

IOS (Ding et al., MLSys 2021, arXiv 2011.01302) finds the schedule with the least sum of stage costs. An ending of a set
of operators is a part of it that nothing outside of the part reads. The last stage is an ending, so

    cost[S] = min over endings E of S of (cost[S - E] + cost of stage E)

The operators of a stage that depend on each other are one group. Two limits bound the search: operators a group and
groups a stage. Blocks of the network are scheduled one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dxc.hardware.schedule.dag import Dag, Group, Schedule, Stage, members, shifted

StageCost = Callable[[Stage], float]
"""ms of a stage; its groups hold numbers of operators in the network."""

MAX_STAGES = 400
"""Different stages of a block up to which it is searched with the full limits. Each stage has to be measured."""
MAX_SETS = 20_000
"""Sets of operators that may be left in a block. They cost seconds of computing."""


class Limits(NamedTuple):
    """What a stage may hold."""

    operators_per_group: int = 2
    groups: int = 4


DEFAULT = Limits()


def sequential(dag: Dag) -> Schedule:
    """One operator after the other."""
    return tuple(((each,),) for each in range(len(dag.before)))


def greedy(dag: Dag) -> Schedule:
    """Every operator in the first stage in which all that it needs has ended."""
    stages: list[Stage] = []
    done = 0
    while done != dag.everything:
        ready = [each for each in members(dag.everything & ~done) if not dag.before[each] & ~done]
        stages.append(tuple((each,) for each in ready))
        for each in ready:
            done |= 1 << each
    return tuple(stages)


def ios(dag: Dag, cost: StageCost, limits: Limits = DEFAULT) -> Schedule:
    """The schedule with the least sum of stage costs, block by block.

    A block with more than MAX_STAGES different stages gets groups of one operator; if there are still more, fewer
    groups. A block that is too wide even then runs one operator after the other. So the number of measurements stays
    bounded.

    Args:
        dag: the operators of the network.
        cost: of a stage in ms.
        limits: what a stage may hold.
    """
    found: list[Stage] = []
    for block in dag.blocks():
        part = dag.part(block)
        possible = limits_of(part, limits)
        schedule = (
            cheapest(part, _in_network(cost, block.start), possible)[0] if possible else sequential(part)
        )
        found += shifted(schedule, block.start)
    return tuple(found)


def _in_network(cost: StageCost, start: int) -> StageCost:
    return lambda stage: cost(shifted([stage], start)[0])


def limits_of(dag: Dag, limits: Limits) -> Limits | None:
    """The widest limits up to those wanted with which a block has at most MAX_STAGES different stages.

    Args:
        dag: the operators of the block.
        limits: those that are wanted.

    Returns:
        None where there are more stages, or more than MAX_SETS sets of operators, whatever the limits.
    """
    tried = [limits, *(Limits(1, groups) for groups in range(limits.groups, 0, -1))]
    return next((each for each in tried if sets_left(dag, each) is not None), None)


def sets_left(dag: Dag, limits: Limits) -> list[int] | None:
    """The sets of operators that may be left while the dynamic program goes back from the last stage, smaller ones
    first.

    Args:
        dag: the operators of a block.
        limits: what a stage may hold.

    Returns:
        None where there are more than MAX_SETS, or more than MAX_STAGES different stages.
    """
    met, waiting, stages = {dag.everything}, [dag.everything], set()
    while waiting:
        left = waiting.pop()
        for ending in endings(dag, left, limits):
            stages.add(ending)
            rest = left & ~ending
            if rest and rest not in met:
                met.add(rest)
                waiting.append(rest)
            if len(stages) > MAX_STAGES or len(met) > MAX_SETS:
                return None
    return sorted(met, key=int.bit_count)


def endings(dag: Dag, left: int, limits: Limits) -> Iterator[int]:
    """The endings of a set of operators that are within the limits.

    Args:
        dag: the operators of a block.
        left: the set; all that its operators need is in it or has run.
        limits: what a stage may hold.
    """
    numbers = sorted(members(left), reverse=True)  # what reads an operator is decided on before it

    def choose(place: int, chosen: int, groups: tuple[int, ...]) -> Iterator[int]:
        if place == len(numbers):
            if chosen and len(groups) <= limits.groups:
                yield chosen
            return
        yield from choose(place + 1, chosen, groups)
        number = numbers[place]
        if dag.after[number] & left & ~chosen:
            return  # something outside of the ending would read it
        touched = [group for group in groups if group & dag.after[number]]
        joined = 1 << number
        for group in touched:
            joined |= group
        if joined.bit_count() > limits.operators_per_group:
            return  # groups only grow
        grown = (*(group for group in groups if group not in touched), joined)
        # two groups can only become one of three operators or more: else there is no way back from too many
        if limits.operators_per_group < 3 and len(grown) > limits.groups:
            return
        yield from choose(place + 1, chosen | 1 << number, grown)

    yield from choose(0, 0, ())


def cheapest(dag: Dag, cost: StageCost, limits: Limits) -> tuple[Schedule, float]:
    """The schedule of a block with the least sum of stage costs, and that sum.

    Of equal sums, the schedule with fewer groups side by side is taken.

    Args:
        dag: the operators of the block.
        cost: of a stage in ms; asked once for each stage.
        limits: what a stage may hold, as limits_of() gives them.
    """
    costs: dict[int, float] = {}
    best: dict[int, tuple[float, int, int]] = {0: (0.0, 0, 0)}  # ms, groups beside the first, the last stage

    def of_stage(ending: int, groups: Stage) -> float:
        if ending not in costs:
            costs[ending] = cost(groups)
        return costs[ending]

    for left in sets_left(dag, limits) or ():
        found: list[tuple[float, int, int]] = []
        for ending in endings(dag, left, limits):
            ms, beside, _ = best[left & ~ending]
            groups = dag.groups(ending)
            found.append((ms + of_stage(ending, groups), beside + len(groups) - 1, ending))
        best[left] = min(found)
    schedule: list[tuple[Group, ...]] = []
    left = dag.everything
    while left:
        ending = best[left][2]
        schedule.append(dag.groups(ending))
        left &= ~ending
    return tuple(reversed(schedule)), best[dag.everything][0]


BY_NAME: dict[str, Callable[[Dag, StageCost], Schedule]] = {
    "sequential": lambda dag, cost: sequential(dag),
    "greedy": lambda dag, cost: greedy(dag),
    "ios": ios,
}
"""The schedules that are compared, by name."""
