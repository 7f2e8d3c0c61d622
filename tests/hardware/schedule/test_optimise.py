"""The dynamic program against brute force, under an artificial cost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest

from dxc.hardware.schedule import optimise
from dxc.hardware.schedule.dag import Dag, Schedule, Stage, require_valid
from dxc.hardware.schedule.optimise import (
    Limits,
    cheapest,
    endings,
    greedy,
    ios,
    limits_of,
    sequential,
    sets_left,
)

Cost = Callable[[Stage], float]


def random_dag(rng: random.Random, operators: int) -> Dag:
    chance = rng.choice([0.15, 0.3, 0.5])
    return Dag(
        tuple(
            sum(1 << before for before in range(number) if rng.random() < chance)
            for number in range(operators)
        )
    )


def artificial(seed: int) -> Cost:
    """A cost without any structure: whatever the program assumes about costs besides their sum shows."""

    def cost(stage: Stage) -> float:
        return random.Random(repr((seed, sorted(map(sorted, stage))))).uniform(1, 2) * len(stage) ** 0.5

    return cost


def all_schedules(dag: Dag, limits: Limits) -> Iterator[Schedule]:
    """Every schedule within the limits, from the first stage on, with sets and without the program's own functions."""
    needs = [{j for j in range(number) if bits >> j & 1} for number, bits in enumerate(dag.before)]

    def groups(chosen: frozenset[int]) -> list[tuple[int, ...]]:
        found: list[set[int]] = []
        for each in sorted(chosen):
            linked = [
                group
                for group in found
                if any(each in needs[other] or other in needs[each] for other in group)
            ]
            found = [group for group in found if group not in linked] + [{each}.union(*linked)]
        return sorted(tuple(sorted(group)) for group in found)

    def after(done: frozenset[int]) -> Iterator[Schedule]:
        left = set(range(len(needs))) - done
        if not left:
            yield ()
        for size in range(1, len(left) + 1):
            for chosen in map(frozenset, combinations(sorted(left), size)):
                stage = groups(chosen)
                if (
                    all(needs[each] <= done | chosen for each in chosen)
                    and len(stage) <= limits.groups
                    and max(map(len, stage)) <= limits.operators_per_group
                ):
                    for rest in after(done | chosen):
                        yield (tuple(stage), *rest)

    return after(frozenset())


@pytest.mark.parametrize("seed", range(60))
def test_the_dynamic_program_equals_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    dag = random_dag(rng, rng.randint(1, 6))
    limits = Limits(rng.randint(1, 3), rng.randint(1, 4))
    cost = artificial(seed)
    schedule, ms = cheapest(dag, cost, limits)
    require_valid(schedule, dag)
    assert ms == pytest.approx(sum(map(cost, schedule)))
    assert ms == pytest.approx(min(sum(map(cost, each)) for each in all_schedules(dag, limits)), rel=1e-12)


def test_stages_are_measured_once() -> None:
    asked: list[Stage] = []

    def cost(stage: Stage) -> float:
        asked.append(stage)
        return 1.0

    dag = Dag((0, 1, 1, 1, 0b1110))
    cheapest(dag, cost, Limits())
    assert len(asked) == len(set(asked))


def test_sets_and_endings_by_hand() -> None:
    diamond = Dag((0, 0b1, 0b1, 0b110))  # 0 -> 1, 2 -> 3
    assert sorted(endings(diamond, 0b1111, Limits(1, 4))) == [0b1000]
    assert sorted(endings(diamond, 0b1111, Limits(2, 4))) == [0b1000, 0b1010, 0b1100]
    assert sorted(endings(diamond, 0b0111, Limits(2, 4))) == [0b010, 0b100, 0b110]
    assert sorted(endings(diamond, 0b0111, Limits(2, 1))) == [0b010, 0b100]
    assert diamond.groups(0b1010) == ((1, 3),) and diamond.groups(0b0110) == ((1,), (2,))
    assert sets_left(diamond, Limits(1, 4)) == [0b001, 0b011, 0b101, 0b111, 0b1111]


def test_cheap_forks_give_stages_of_branches() -> None:
    """Three branches of two operators, between a first and a last operator: side by side they cost their longest."""
    branches = Dag((0, 1, 0b10, 1, 0b1000, 1, 0b100000, 0b1010100))

    def side_by_side(stage: Stage) -> float:
        return max(map(len, stage)) + 0.1 * len(stage)

    assert ios(branches, side_by_side) == (
        ((0,),),
        ((1, 2), (3, 4), (5, 6)),
        ((7,),),
    )

    def one_at_a_time(stage: Stage) -> float:
        return sum(map(len, stage)) * len(stage)

    assert all(len(stage) == 1 for stage in ios(branches, one_at_a_time))


def test_greedy_runs_each_as_early_as_possible() -> None:
    dag = Dag((0, 0b1, 0b10, 0b1, 0b1100))
    assert greedy(dag) == (((0,),), ((1,), (3,)), ((2,),), ((4,),))
    assert sequential(dag) == tuple(((each,),) for each in range(5))
    for seed in range(20):
        each = random_dag(random.Random(seed), 9)
        for schedule in (greedy(each), sequential(each), ios(each, artificial(seed))):
            require_valid(schedule, each)


def test_blocks_are_cut_where_one_value_is_live() -> None:
    chain_diamond_chain = Dag((0, 0b1, 0b10, 0b10, 0b1100, 0b10000))
    assert chain_diamond_chain.blocks() == [range(0, 1), range(1, 2), range(2, 5), range(5, 6)]
    skip = Dag((0, 0b1, 0b10, 0b101))  # 3 adds what 0 and 2 gave
    assert skip.blocks() == [range(0, 1), range(1, 4)]
    heads = Dag((0, 0b1, 0b1))
    assert heads.blocks() == [range(0, 1), range(1, 3)]
    features_too = Dag((0, 0b1, 0b10), results=0b1)  # what 0 gives is an output as well
    assert features_too.blocks() == [range(0, 1), range(1, 3)]
    of_the_image = Dag((0, 0b1, 0, 0b110))  # 2 reads the image, as 0 does
    assert of_the_image.blocks() == [range(0, 4)]
    assert Dag(()).blocks() == []


def test_blocks_do_not_change_the_optimum() -> None:
    """A cost by which it never pays to cross a cut: blocks give what the whole gives."""
    for seed in range(20):
        rng = random.Random(seed)
        first, second = random_dag(rng, 3), random_dag(rng, 3)
        ends = 0b111 & ~sum({1 << j for bits in first.before for j in range(3) if bits >> j & 1})
        join = (*first.before, ends)
        dag = Dag((*join, *(bits << 4 if bits else 0b1000 for bits in second.before)))
        cost = artificial(seed)
        limits = Limits(1, 4)  # groups of one operator cannot cross a cut
        whole = cheapest(dag, cost, limits)[1]
        assert sum(map(cost, ios(dag, cost, limits))) == pytest.approx(whole)


def test_wide_blocks_get_narrower_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Dag((0,) * 7 + (0b1111111,))
    assert limits_of(wide, Limits()) == Limits(2, 4)
    monkeypatch.setattr(
        optimise, "MAX_STAGES", 100
    )  # 98 sets of 1 to 4 of 7, the last operator, and pairs with it
    assert limits_of(wide, Limits()) == Limits(1, 4)
    monkeypatch.setattr(optimise, "MAX_STAGES", 40)
    assert limits_of(wide, Limits()) == Limits(1, 2)
    monkeypatch.setattr(optimise, "MAX_SETS", 20)
    assert limits_of(wide, Limits()) is None
    assert ios(wide, artificial(0)) == sequential(wide)


def test_a_wide_block_takes_no_time() -> None:
    wide = Dag((0,) * 40 + ((1 << 40) - 1,))
    assert limits_of(wide, Limits()) is None


def test_schedules_that_cannot_be_are_refused() -> None:
    dag = Dag((0, 0b1, 0b1))
    for wrong in ((((0, 1),),), (((0, 1), (2,)),), (((1,),), ((0,),), ((2,),)), (((0, 0, 1, 2),),)):
        with pytest.raises(ValueError, match="operator"):
            require_valid(wrong, dag)
    require_valid((((0, 1, 2),),), dag)
    with pytest.raises(ValueError, match="come before"):
        Dag((0b10, 0))
