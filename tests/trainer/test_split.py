"""What is held out: whole groups, as near to the wanted share as it gets, the same for the same seed."""

import random

import pytest

from llava_trainer.data.split import SplitError, choose_held_out


def split(groups: list[int], fraction: float, seed: int = 0, weights: list[int] | None = None):
    """Numbers of the items on either side."""
    sizes: dict[int, int] = {}
    for group, weight in zip(groups, weights or [1] * len(groups), strict=True):
        sizes[group] = sizes.get(group, 0) + weight
    held_out = choose_held_out(sizes, fraction=fraction, seed=seed)
    items = range(len(groups))
    return [i for i in items if groups[i] not in held_out], [i for i in items if groups[i] in held_out]


def random_groups(rng: random.Random) -> tuple[list[int], list[int]]:
    groups = [index for index in range(rng.randint(2, 30)) for _ in range(rng.choice((1, 1, 2, 7)))]
    rng.shuffle(groups)
    return groups, [rng.randint(1, 4) for _ in groups]


@pytest.mark.parametrize("seed", range(40))
def test_groups_stay_together_and_both_sides_hold_something(seed: int):
    groups, weights = random_groups(random.Random(seed))
    train, held_out = split(groups, random.Random(seed).uniform(0.01, 0.5), seed, weights)
    assert train
    assert held_out
    assert sorted(train + held_out) == list(range(len(groups)))
    assert train == sorted(train)
    assert held_out == sorted(held_out)
    assert not {groups[item] for item in train} & {groups[item] for item in held_out}


@pytest.mark.parametrize("seed", range(40))
def test_no_other_group_would_bring_the_share_nearer(seed: int):
    groups, weights = random_groups(random.Random(seed))
    fraction = random.Random(seed).uniform(0.05, 0.5)
    train, held_out = split(groups, fraction, seed, weights)
    target = fraction * sum(weights)
    found = sum(weights[item] for item in held_out)
    for group in {groups[item] for item in train}:
        size = sum(weights[item] for item in train if groups[item] == group)
        assert abs(found + size - target) >= abs(found - target)


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 10), (0.05, 5), (0.5, 50), (0.001, 1)])
def test_the_share_is_met_exactly_where_groups_are_single(fraction: float, count: int):
    _, held_out = split(list(range(100)), fraction)
    assert len(held_out) == count


def test_weights_count_and_not_items():
    _, held_out = split([0, 1, 2, 3], 0.25, weights=[1, 1, 1, 9])
    assert sum([1, 1, 1, 9][item] for item in held_out) == 3


def test_one_large_group_is_not_held_out_for_a_small_share():
    _, held_out = split([7] * 50 + [8], 0.05)
    assert held_out == [50]


def test_the_choice_follows_from_seed_and_groups_alone():
    groups = list(range(50))
    _, first = split(groups, 0.2, seed=1)
    _, again = split(groups, 0.2, seed=1)
    assert first == again
    backwards = list(reversed(groups))
    _, turned = split(backwards, 0.2, seed=1)
    assert {groups[item] for item in first} == {backwards[item] for item in turned}
    _, other = split(groups, 0.2, seed=2)
    assert first != other


def test_one_group_cannot_be_split():
    with pytest.raises(SplitError, match=r"name held-out samples in dataset\.validation\.file"):
        split([3] * 5, 0.2)
