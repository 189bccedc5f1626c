"""Which sample is seen when, by whom and beside whom: batches that no number of ranks changes, little filling, rows
that are packed alike."""

import dataclasses
import itertools

import numpy as np
import pytest

from llava_api.report import MicroBatch
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.training.batch_plan import LOOKED_THROUGH, BatchPlan, cover
from llava_trainer.training.epoch_order import Grouping, order_epoch
from llava_trainer.training.rank_batches import Limits, plan_packed_rows, plan_padded_rows

GROUPINGS: tuple[Grouping, ...] = ("modality", "length", "none")


def draw_sizes(num_samples: int = 28, *, longest: int = 60, seed: int = 0) -> SampleSizes:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, longest + 1, num_samples)
    images = (rng.random(num_samples) < 0.7).astype(int)
    return SampleSizes(tokens=tokens, images=images, supervised=rng.integers(1, tokens))


def make_plan(**changes) -> BatchPlan:
    plan = BatchPlan(
        sizes=draw_sizes(), global_batch=12, per_device_batch=3, max_length=60, world_size=2, epochs=2, seed=7
    )
    return dataclasses.replace(plan, **changes)


def filling(plan: BatchPlan) -> float:
    """Share of computed positions that hold a token."""
    real = computed = 0
    for step, rank in itertools.product(range(plan.total_steps), range(plan.world_size)):
        for rows in plan.rank_batch(step, rank):
            lengths = [sum(int(plan.sizes.tokens[index]) for index in row) for row in rows]
            real += sum(lengths)
            computed += len(rows) * max(lengths, default=0)
    return real / computed


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_an_epoch_sees_every_sample_once(grouping: Grouping, packing: bool):
    plan = make_plan(grouping=grouping, packing=packing)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 6)
    epochs = [[index for step in range(first, first + 3) for index in plan.batch(step)] for first in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(28))] * 2
    assert epochs[0] != epochs[1]
    assert [len(plan.batch(step)) for step in range(3)] == [12, 12, 4]
    assert [plan.epoch_at(step) for step in (0, 3, 6)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("world_size", "per_device"), [(1, 12), (1, 2), (2, 3), (3, 4), (4, 1), (5, 1)])
def test_processes_share_a_batch_without_overlap_and_run_equally_often(world_size: int, per_device: int, packing: bool):
    plan = make_plan(world_size=world_size, per_device_batch=per_device, packing=packing)
    for step in range(plan.total_steps):
        shares = [plan.rank_batch(step, rank) for rank in range(world_size)]
        seen = [index for share in shares for rows in share for row in rows for index in row]
        assert sorted(seen) == sorted(plan.batch(step))
        assert len({len(share) for share in shares}) == 1
        for rows in (rows for share in shares for rows in share):
            lengths = [sum(int(plan.sizes.tokens[index]) for index in row) for row in rows]
            assert len(rows) * max(lengths, default=0) <= per_device * plan.max_length
            if not packing:
                assert len(rows) <= per_device
                assert all(len(row) == 1 for row in rows)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_batches_depend_neither_on_processes_nor_on_packing(grouping: Grouping):
    plans = [
        make_plan(world_size=world_size, per_device_batch=per_device, grouping=grouping, packing=packing)
        for world_size, per_device, packing in ((1, 12, False), (4, 1, False), (2, 3, True))
    ]
    for step in range(plans[0].total_steps):
        assert len({plan.batch(step) for plan in plans}) == 1


def test_another_seed_gives_another_order():
    assert make_plan().batch(0) != make_plan(seed=8).batch(0)


def test_modality_groups_are_of_one_kind_until_only_left_overs_remain():
    sizes = draw_sizes(4000)
    order = order_epoch(sizes, "modality", 32, seed=0, epoch=0)
    kinds = [set(sizes.images[order[begin : begin + 32]] > 0) for begin in range(0, 4000, 32)]
    assert [len(kind) for kind in kinds[:-2]] == [1] * (len(kinds) - 2)
    # Mega-batches of either kind come in random order.
    changes = sum(first != second for first, second in itertools.pairwise(kinds[:-2]))
    assert changes > 20


def test_groups_leave_less_to_fill():
    shares = {
        grouping: filling(make_plan(sizes=draw_sizes(2048), global_batch=64, per_device_batch=16, grouping=grouping))
        for grouping in GROUPINGS
    }
    assert shares["none"] < 0.6
    assert shares["modality"] > 0.9
    assert shares["length"] > 0.98
    packed = make_plan(sizes=draw_sizes(2048), global_batch=64, per_device_batch=16, packing=True)
    assert filling(packed) > 0.97


def test_shares_stand_side_by_side_in_length():
    limits = Limits(per_device_batch=2, max_length=100, world_size=2)
    tokens = [10, 80, 30, 60, 70, 20, 50, 40]
    assert plan_padded_rows(range(8), tokens, limits, by_length=True) == [
        (((1,), (4,)), ((3,), (6,))),
        # Whoever had the longer share of one micro-batch gets the shorter one of the next.
        (((5,), (0,)), ((7,), (2,))),
    ]
    assert plan_padded_rows(range(8), tokens, limits, by_length=False)[0] == (((0,), (1,)), ((2,), (3,)))


def test_a_short_batch_is_shared_out_evenly():
    limits = Limits(per_device_batch=4, max_length=100, world_size=2)
    (shares,) = plan_padded_rows(range(5), [50, 40, 30, 20, 10], limits, by_length=True)
    assert [len(rows) for rows in shares] == [3, 2]
    (shares,) = plan_padded_rows(range(1), [50], limits, by_length=True)
    assert shares == (((0,),), ())
    (shares,) = plan_packed_rows(range(1), [50], limits)
    assert shares == (((0,),), ())


def test_packed_rows_are_alike():
    rng = np.random.default_rng(0)
    # Images of 576 tokens: three hardly ever fit into a row of 2,048.
    tokens = [int(576 + length) for length in rng.integers(60, 400, 128)]
    limits = Limits(per_device_batch=8, max_length=2048, world_size=2)
    for shares in plan_packed_rows(range(128), tokens, limits):
        lengths = [sum(tokens[index] for index in row) for rows in shares for row in rows]
        assert min(lengths) / max(lengths) > 0.97
        totals = [sum(tokens[index] for row in rows for index in row) for rows in shares]
        assert min(totals) / max(totals) > 0.97


def test_a_packed_micro_batch_of_one_sample_at_a_time_keeps_to_its_limit():
    limits = Limits(per_device_batch=1, max_length=100, world_size=1)
    shared = plan_packed_rows(range(6), [100, 90, 60, 30, 5, 5], limits)
    assert all(sum([100, 90, 60, 30, 5, 5][index] for row in rows for index in row) <= 100 for (rows,) in shared)


@pytest.mark.parametrize("packing", [False, True])
def test_no_micro_batch_of_any_epoch_holds_more_than_what_is_planned_with(packing: bool):
    """A little over or under what goes into one micro-batch: some epochs fill it, others need two half full ones."""
    plan = make_plan(sizes=draw_sizes(14, seed=3), global_batch=7, per_device_batch=4, packing=packing, world_size=1,
                     epochs=20)  # fmt: skip
    largest = plan.find_largest()
    held = [rows for step in range(plan.total_steps) for rows in plan.rank_batch(step, 0)]
    samples = [[index for row in rows for index in row] for rows in held]
    tokens = [len(rows) * max(sum(int(plan.sizes.tokens[index]) for index in row) for row in rows) for rows in held]
    assert largest.tokens == max(tokens)
    assert largest.rows in {len(rows) for rows, held_tokens in zip(held, tokens, strict=True)
                            if held_tokens == largest.tokens}  # fmt: skip
    assert largest.pictures == max(int(plan.sizes.images[some].sum()) for some in samples)
    assert largest.supervised == max(int(plan.sizes.supervised[some].sum()) for some in samples)
    first_epoch = len(plan.rank_batch(0, 0)) + len(plan.rank_batch(1, 0))
    assert not packing or max(tokens) > 1.3 * max(tokens[:first_epoch])


def micro_batch(rows: int, length: int, **changes: int) -> MicroBatch:
    return MicroBatch(**({"rows": rows, "tokens": rows * length, "pictures": rows, "supervised": 10} | changes))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # Packed rows beside held-out ones that are filled up: attention's memory is theirs, not that of 8 short rows.
        ((2, 4096), (8, 1000), (2, 8192)), ((2, 4096), (8, 1100), (2, 8800)), ((2, 4001), (8, 1001), (2, 8008)),
        # Held-out rows that are far more leave few packed ones no say in how many there are.
        ((1, 1000), (8, 1000), (8, 8000)),
        # Without packing there are as many on both sides, or fewer where a batch is small.
        ((8, 500), (8, 700), (8, 5600)), ((8, 700), (8, 500), (8, 5600)), ((3, 2000), (4, 1000), (3, 6000)),
    ],
)  # fmt: skip
def test_one_micro_batch_stands_for_two(one: tuple[int, int], other: tuple[int, int], expected: tuple[int, int]):
    found = cover(micro_batch(*one, supervised=7), micro_batch(*other, pictures=3))
    assert (found.rows, found.tokens) == expected
    assert (found.pictures, found.supervised) == (max(one[0], 3), 10)
    assert found == cover(micro_batch(*other, pictures=3), micro_batch(*one, supervised=7))


def test_it_holds_all_positions_and_pairs_of_both_and_hardly_more():
    rng = np.random.default_rng(0)
    for _ in range(500):
        (a, b), (c, d) = ((int(rng.integers(1, 17)), int(rng.integers(600, 4097))) for _ in range(2))
        found = cover(micro_batch(a, b), micro_batch(c, d))
        length, rest = divmod(found.tokens, found.rows)
        assert rest == 0
        assert max(a * b, c * d) <= found.tokens < max(a * b, c * d) + found.rows
        pairs = max(a * b**2, c * d**2)
        assert found.rows * length**2 >= pairs
        # A row more would have too few.
        assert found.tokens**2 < pairs * (found.rows + 1) * 1.01


def test_of_many_epochs_only_the_first_are_looked_through():
    plan = make_plan(epochs=LOOKED_THROUGH)
    looked_at = sum(1 for _ in plan.list_micro_batches())
    # Two micro-batches of each of two processes in two steps of an epoch, and one in the third.
    assert looked_at == LOOKED_THROUGH // 3 * 10


def test_an_epoch_that_is_longer_than_that_is_looked_through_as_a_whole():
    num_samples = LOOKED_THROUGH + 1
    plan = make_plan(sizes=draw_sizes(num_samples), global_batch=1, per_device_batch=1, world_size=1, epochs=3)
    seen = [index for rows in plan.list_micro_batches() for row in rows for index in row]
    assert sorted(seen) == list(range(num_samples))


@pytest.mark.parametrize("packing", [False, True])
def test_the_longest_micro_batch_is_found(packing: bool):
    plan = make_plan(packing=packing, epochs=1)
    longest = plan.find_extremes()[0]
    computed = [
        len(rows) * max((sum(int(plan.sizes.tokens[index]) for index in row) for row in rows), default=0)
        for step, rank in itertools.product(range(plan.total_steps), range(plan.world_size))
        for rows in plan.rank_batch(step, rank)
    ]
    assert longest.tokens == max(computed)
    assert longest.rows in [plan.rank_batch(step, rank)[number] for step, rank, number in itertools.product(
        range(plan.total_steps), range(plan.world_size), range(len(plan.rank_batch(0, 0)))
    ) if number < len(plan.rank_batch(step, rank))]  # fmt: skip


def test_what_has_the_most_of_something_is_found_each_but_once():
    """Four samples in micro-batches of one: the longest, one with three images, one with a long answer, another."""
    tokens, images, supervised = np.array([60, 40, 50, 10]), np.array([1, 3, 0, 1]), np.array([5, 4, 45, 1])
    sizes = SampleSizes(tokens=tokens, images=images, supervised=supervised)
    plan = make_plan(sizes=sizes, global_batch=4, per_device_batch=1, world_size=1, epochs=1)
    found = plan.find_extremes()
    assert [(one.rows, one.tokens, one.images, one.supervised) for one in found] == [
        (((0,),), 60, 1, 5), (((1,),), 40, 3, 4), (((2,),), 50, 0, 45),
    ]  # fmt: skip
    assert [one.name.split()[-2:] for one in found] == [["longest", "micro-batch"], ["most", "pictures"],
                                                        ["supervised", "tokens"]]  # fmt: skip
    same = dataclasses.replace(sizes, images=np.array([3, 1, 0, 1]), supervised=np.array([46, 4, 45, 1]))
    (only,) = dataclasses.replace(plan, sizes=same).find_extremes()
    assert only.rows == ((0,),)


@pytest.mark.parametrize(("max_steps", "epochs"), [(2, 2 / 3), (3, 1.0), (8, 8 / 3)])
def test_steps_take_the_place_of_epochs(max_steps: int, epochs: float):
    """They end within an epoch, or go through the dataset as often as it takes; what a step sees stays the same."""
    plan, by_epochs = make_plan(max_steps=max_steps), make_plan(epochs=3)
    assert (plan.total_steps, plan.epoch_at(plan.total_steps)) == (max_steps, epochs)
    assert all(plan.batch(step) == by_epochs.batch(step) for step in range(max_steps))


def test_nothing_behind_the_last_step_is_looked_at():
    """What it would take need not fit."""
    sizes = draw_sizes(240, seed=3)
    plan = make_plan(sizes=sizes, grouping="none", max_steps=1)
    seen = [index for rows in plan.list_micro_batches() for row in rows for index in row]
    assert sorted(seen) == sorted(plan.batch(0))
    whole = make_plan(sizes=sizes, grouping="none", epochs=1)
    assert plan.find_largest().tokens < whole.find_largest().tokens
