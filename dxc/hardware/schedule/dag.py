"""Operators that depend on each other, in an order of execution. Sets of them are numbers, where operator i is bit i.

stage       groups that run side by side; the next stage begins when all of them have ended
group       operators that run one after the other
schedule    stages, one after the other
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Group = tuple[int, ...]
Stage = tuple[Group, ...]
Schedule = tuple[Stage, ...]


@dataclass(frozen=True)
class Dag:
    """Operators by what they need.

    Attributes:
        before: for each operator, the set of operators whose results it reads. All of them have smaller numbers.
        results: operators that give outputs of the network. Those that no other operator reads need not be named.
    """

    before: tuple[int, ...]
    results: int = 0

    def __post_init__(self) -> None:
        if any(needed >> number for number, needed in enumerate(self.before)):
            raise ValueError("an operator needs one that does not come before it")

    @property
    def everything(self) -> int:
        """The set of all operators."""
        return (1 << len(self.before)) - 1

    @cached_property
    def after(self) -> tuple[int, ...]:
        """For each operator, the set of operators that read its result."""
        after = [0] * len(self.before)
        for number, needed in enumerate(self.before):
            for each in members(needed):
                after[each] |= 1 << number
        return tuple(after)

    def groups(self, chosen: int) -> Stage:
        """The groups of a stage: operators of a set that are connected within it.

        Args:
            chosen: the set.
        """
        found: list[Group] = []
        while chosen:
            group, border = 0, chosen & -chosen
            while border:
                group |= border
                touched = 0
                for each in members(border):
                    touched |= self.before[each] | self.after[each]
                border = touched & chosen & ~group
            found.append(tuple(members(group)))
            chosen &= ~group
        return tuple(found)

    def blocks(self) -> list[range]:
        """The parts of the network between which one value is live, so that each can be scheduled alone.

        A result of the network stays live to the end: two heads of a detector are one block.
        """
        blocks, start, last = [], 0, len(self.before) - 1
        for number in range(last):
            made = (1 << number + 1) - 1
            live = [
                each
                for each in members(made)
                # read later, or a result
                if self.after[each] & ~made or not self.after[each] or self.results >> each & 1
            ]
            # what reads the image beside the one live value would be cut off from the block where it belongs
            reads_image = any(not self.before[each] for each in range(number + 1, last + 1))
            if len(live) == 1 and not reads_image:
                blocks.append(range(start, number + 1))
                start = number + 1
        return [*blocks, range(start, last + 1)] if self.before else []

    def part(self, block: range) -> Dag:
        """The operators of a block, numbered from 0.

        Args:
            block: numbers of operators, without a gap.
        """
        kept = (1 << len(block)) - 1
        return Dag(tuple(self.before[each] >> block.start & kept for each in block))


def members(chosen: int) -> Iterator[int]:
    """The numbers in a set, ascending."""
    while chosen:
        least = chosen & -chosen
        yield least.bit_length() - 1
        chosen ^= least


def require_valid(schedule: Schedule, dag: Dag) -> None:
    """Raise ValueError unless every operator runs once and after all that it needs.

    Args:
        schedule: of all operators.
        dag: what they need.
    """
    done, listed = 0, [each for stage in schedule for group in stage for each in group]
    if sorted(listed) != list(range(len(dag.before))):
        raise ValueError("a schedule must run every operator once")
    for stage in schedule:
        ended = 0
        for group in stage:
            seen = done
            for each in group:
                if dag.before[each] & ~seen:
                    raise ValueError(f"operator {each} runs before, or beside, one that it needs")
                seen |= 1 << each
            ended |= seen
        done = ended


def shifted(schedule: Sequence[Stage], by: int) -> Schedule:
    """A block's schedule with the numbers that its operators have in the network.

    Args:
        schedule: of operators numbered from 0.
        by: number of the block's first operator.
    """
    return tuple(tuple(tuple(each + by for each in group) for group in stage) for stage in schedule)
