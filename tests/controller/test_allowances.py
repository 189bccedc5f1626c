"""How often something may happen."""

from llava_operator.serving.allowances import Allowances
from tests.controller.desk import Clock


def test_so_many_at_once_and_so_many_a_second_for_each() -> None:
    clock = Clock()
    allowances: Allowances[str] = Allowances(per_s=0.5, burst=3, clock=clock)
    assert [allowances.take("a") for _ in range(5)] == [True, True, True, False, False]
    assert allowances.take("b")
    clock.now += 1.9
    assert not allowances.has("a")
    clock.now += 0.2
    assert allowances.has("a")
    assert [allowances.take("a") for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [allowances.take("a") for _ in range(5)] == [True, True, True, False, False]


def test_asking_in_vain_costs_nothing() -> None:
    clock = Clock()
    allowances: Allowances[str] = Allowances(per_s=1, burst=1, clock=clock)
    assert allowances.take("a")
    for _ in range(10):
        clock.now += 0.125
        allowances.take("a")
    assert not allowances.has("a")
    clock.now += 0.75
    assert allowances.has("a")


def test_some_may_be_left_to_others() -> None:
    allowances: Allowances[str] = Allowances(per_s=0, burst=4, clock=Clock())
    assert [allowances.take("all", leave=2) for _ in range(3)] == [True, True, False]
    assert [allowances.take("all") for _ in range(3)] == [True, True, False]


def test_who_was_quiet_the_longest_is_forgotten_first() -> None:
    allowances: Allowances[int] = Allowances(per_s=0, burst=1, clock=Clock(), max_known=2)
    assert allowances.take(1)
    assert allowances.take(2)
    assert not allowances.take(1)
    assert allowances.take(3)
    assert allowances.has(2)
    assert not allowances.has(1)
