"""Intervals over groups and the sign-flip test: what they come to, and how often they are right."""

import itertools
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from llava_trainer.evaluation import statistics
from llava_trainer.evaluation.draws import Draws, Numbers
from llava_trainer.evaluation.statistics import Estimate, Tallies, pool, ratio
from tests.benchmarks.coverage import LEAST_COVERAGE, MOST_ABOVE, bound, judge, simulate

Result = TypeVar("Result")


def estimate_score(groups: np.ndarray, tallies: Tallies) -> Estimate:
    return drawn(statistics.estimate_score, groups, tallies)


def estimate_gain(groups: np.ndarray, base: Tallies, tuned: Tallies) -> Estimate:
    return drawn(statistics.estimate_gain, groups, base, tuned)


def sign_flip_p_value(groups: np.ndarray, base: Numbers, tuned: Numbers) -> float:
    return drawn(statistics.sign_flip_p_value, groups, base, tuned)


def drawn(ask: Callable[..., Callable[[], Result]], *values: object) -> Result:
    """What comes of one thing that is asked for by itself."""
    draws = Draws()
    tell = ask(draws, *values)
    draws.draw()
    return tell()


def resample(rows: Numbers, *, seed: int) -> Numbers:
    """Every column of the sums, one after the other."""
    draws = Draws(seed=seed, num_resamples=2000)
    columns = [draws.resample(rows[:, [column]], lambda sums: sums[:, 0]) for column in range(rows.shape[1])]
    draws.draw()
    return np.stack([column() for column in columns], axis=1)


def points(*found: float) -> Tallies:
    """Answers that are worth so many points of one each."""
    ones = np.ones(len(found))
    return Tallies(
        found=np.stack([np.array(found, dtype=float), ones], axis=1),
        best=np.stack([ones, ones], axis=1),
        worst=np.stack([0 * ones, ones], axis=1),
    )


def singles(number: int) -> np.ndarray:
    return np.arange(number)


def test_scores_are_those_of_all_questions_and_groups_are_drawn_whole() -> None:
    groups = np.array([0, 0, 0, 1])
    assert pool(groups, points(1, 0, 1, 0).found).tolist() == [[2, 3], [0, 1]]
    found = estimate_score(groups, points(1, 0, 1, 0))
    assert found.value == 0.5
    # Ten questions of one document say less than ten of ten.
    together = estimate_score(np.repeat(np.arange(10), 10), points(*np.repeat([1, 0], 50)))
    apart = estimate_score(singles(100), points(*np.repeat([1, 0], 50)))
    assert together.value == apart.value == 0.5
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_what_a_set_happens_not_to_hold_is_not_ruled_out() -> None:
    """All 30 answers are right: the plain bootstrap would say that the score is 1 for certain."""
    found = estimate_score(singles(30), points(*[1] * 30))
    assert found.value == found.high == 1.0
    assert 0.85 < found.low < 0.95
    gained = estimate_gain(singles(30), points(*[0] * 30), points(*[1] * 30))
    assert (gained.value, gained.high) == (1.0, 1.0)
    assert 0.7 < gained.low < 0.9
    level = estimate_gain(singles(30), points(*[1] * 30), points(*[1] * 30))
    assert level.value == 0.0
    assert level.low == pytest.approx(-level.high, abs=0.04) != 0.0


def test_the_added_groups_have_the_mean_size_and_the_sets_own_mixture() -> None:
    """With two groups of 3 and 1 questions, by hand: every resample of the four rows that are drawn."""
    groups = np.array([0, 0, 0, 1])
    found = estimate_score(groups, points(1, 1, 1, 0))
    rows = [(3, 3), (0, 1), (2, 2), (0, 2)]
    every = [sum(n for n, _ in drawn) / sum(d for _, d in drawn) for drawn in itertools.product(rows, repeat=4)]
    assert found.value == 0.75
    low, high = np.quantile(every, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_f1_is_calculated_anew_in_each_resample() -> None:
    """Its numerator and denominator are drawn together; a mean of each question's own F1 would be another number."""
    tallies = Tallies(
        found=np.array([[2.0, 2.0], [0.0, 1.0], [0.0, 0.0], [2.0, 2.0], [0.0, 1.0]] * 4),
        best=np.array([[2.0, 2.0]] * 10 + [[0.0, 0.0]] * 10),
        worst=np.array([[0.0, 1.0]] * 20),
    )
    found = estimate_score(singles(20), tallies)
    assert found.value == pytest.approx(4 / 6)
    assert 0.3 < found.low < found.value < found.high <= 1.0


def test_nothing_by_nothing_is_nothing() -> None:
    assert ratio(np.array([[0.0, 0.0], [1.0, 2.0]])).tolist() == [0.0, 0.5]
    never_yes = Tallies(found=np.zeros((9, 2)), best=np.ones((9, 2)), worst=np.zeros((9, 2)))
    assert estimate_score(singles(9), never_yes).value == 0.0


def test_a_seed_draws_the_same_groups_whatever_they_hold() -> None:
    rows = np.eye(5)
    found = resample(rows, seed=1)
    assert found.shape == (2000, 5)
    assert (found.sum(axis=1) == 5).all()
    assert (found == resample(rows, seed=1)).all()
    assert (found != resample(rows, seed=2)).any()
    assert (2 * found == resample(2 * rows, seed=1)).all()
    assert found.mean(axis=0) == pytest.approx(np.ones(5), abs=0.1)


def test_many_groups_are_drawn_in_parts() -> None:
    generator = np.random.default_rng(0)
    right = (generator.random(20_000) < 0.3).astype(float)
    found = estimate_score(singles(20_000), points(*right))
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 20_000), rel=0.1)


# --- the sign-flip test


def test_every_way_to_flip_few_groups_is_gone_through() -> None:
    """Eight groups that all gain: of 256 ways two are as extreme."""
    assert sign_flip_p_value(singles(8), points(*[0] * 8).found, points(*[1] * 8).found) == 2 / 256
    # Groups in which nothing differs say nothing.
    same = sign_flip_p_value(singles(10), points(*[0] * 8, 1, 0).found, points(*[1] * 8, 1, 0).found)
    assert same == 2 / 256


def test_it_counts_by_hand() -> None:
    """Gains of 2, 1 and -1 in three groups: of eight signs four give a sum of 2 or more in size."""
    groups = np.array([0, 0, 1, 2])
    base, tuned = points(0, 0, 0, 1), points(1, 1, 1, 0)
    sums = [abs(2 * a + b - c) for a, b, c in itertools.product((1, -1), repeat=3)]
    assert sign_flip_p_value(groups, base.found, tuned.found) == sum(one >= 2 for one in sums) / 8


def test_many_groups_are_flipped_at_random_and_never_certain() -> None:
    clear = sign_flip_p_value(singles(100), points(*[0] * 100).found, points(*[1] * 100).found)
    assert clear == 1 / 10_001
    generator = np.random.default_rng(3)
    base, tuned = (points(*generator.integers(0, 2, 60)).found for _ in range(2))
    found = sign_flip_p_value(singles(60), base, tuned)
    assert 0.05 < found <= 1.0
    assert found == sign_flip_p_value(singles(60), base, tuned)
    assert found == sign_flip_p_value(singles(60), tuned, base)


def test_equal_models_give_no_evidence() -> None:
    assert sign_flip_p_value(singles(9), points(*[1] * 9).found, points(*[1] * 9).found) == 1.0


def test_f1_is_swapped_whole() -> None:
    """Base says yes to nothing, tuned to everything, of three yes and two no; every swap by hand."""
    yes = [(2.0, 2.0)] * 3 + [(0.0, 1.0)] * 2
    no = [(0.0, 1.0)] * 3 + [(0.0, 0.0)] * 2

    def f1(answers: list[tuple[float, float]]) -> float:
        return sum(found for found, _ in answers) / (sum(most for _, most in answers) or 1)

    def gain(swapped: tuple[bool, ...]) -> float:
        after = [no[i] if swap else yes[i] for i, swap in enumerate(swapped)]
        before = [yes[i] if swap else no[i] for i, swap in enumerate(swapped)]
        return abs(f1(after) - f1(before))

    as_large = sum(gain(swapped) >= gain((False,) * 5) - 1e-9 for swapped in itertools.product((False, True), repeat=5))
    assert 2 < as_large < 32
    assert sign_flip_p_value(singles(5), np.array(no), np.array(yes)) == as_large / 32


# --- coverage


def simulated(index: int, num_groups: int) -> tuple[np.ndarray, Tallies, Tallies, Numbers]:
    """One simulated set as evaluation has it, and its bounds as the grid has them."""
    sets = simulate(num_groups, "skewed", (0.2, 0.8), num_sets=3)
    sizes = sets.questions[index].astype(int)
    groups = np.repeat(np.arange(num_groups), sizes)

    def answers(right: Numbers) -> Tallies:
        return points(*np.concatenate([np.arange(size) < count for size, count in zip(sizes, right, strict=True)]))

    return groups, answers(sets.base[index]), answers(sets.tuned[index]), bound(sets)[:, index]


def test_the_grid_is_about_the_intervals_that_evaluation_makes() -> None:
    for index in range(3):
        groups, base, tuned, bounds = simulated(index, 12)
        gained = estimate_gain(groups, base, tuned)
        assert (gained.low, gained.high) == pytest.approx(tuple(bounds), abs=1e-9)


@pytest.mark.parametrize("chances", [(0.0, 0.97), (0.2, 0.8), (0.5, 0.5)])
@pytest.mark.parametrize("sizes", ["one", "skewed"])
def test_intervals_of_few_groups_cover_what_is_true(sizes: str, chances: tuple[float, float]) -> None:
    """A part of the grid of `make bench-coverage`, whose table is in docs/evaluation.md."""
    sets = simulate(30, sizes, chances, num_sets=2000)
    cell = judge(sets, bound(sets))
    assert cell.coverage >= LEAST_COVERAGE
    assert cell.above <= MOST_ABOVE


def test_the_plain_bootstrap_does_not() -> None:
    sets = simulate(30, "one", (0.0, 0.97), num_sets=2000)
    cell = judge(sets, bound(sets, is_adjusted=False))
    assert cell.coverage < 0.7
    assert cell.above > 0.1


def test_what_is_asked_for_together_is_as_if_it_was_asked_for_alone() -> None:
    """Scores of as many groups share what is drawn; of fewer, they have draws of their own, and the first flips."""
    generator = np.random.default_rng(5)
    sets = [
        (singles(size), points(*generator.integers(0, 2, size)), points(*generator.integers(0, 2, size)))
        for size in (40, 40, 90)
    ]
    draws = Draws()
    gains = [statistics.estimate_gain(draws, *one) for one in sets]
    p_values = [statistics.sign_flip_p_value(draws, groups, base.found, tuned.found) for groups, base, tuned in sets]
    draws.draw()
    for (groups, base, tuned), gain, p_value in zip(sets, gains, p_values, strict=True):
        alone = estimate_gain(groups, base, tuned)
        assert (gain().low, gain().high) == pytest.approx((alone.low, alone.high), abs=1e-12)
        # Other flips are drawn, as many as the largest has groups.
        assert p_value() == pytest.approx(sign_flip_p_value(groups, base.found, tuned.found), abs=0.02)
