"""How often an interval of a gain covers what is true, where that is known: simulated sets of questions in groups.

Every cell of the grid is 2,000 sets. Of a group with its size, the base's and the tuned model's chance to be right are
drawn around what is true (a beta distribution, with a correlation of 0.3 within a group), then the answers.
The resamples are those that evaluation draws: they go by seed and number of groups alone, so that one matrix product
resamples all sets of a cell. ``make bench-coverage``
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llava_trainer.evaluation.draws import NUM_RESAMPLES, SEED, Numbers, draw_counts

NUM_SETS = 2_000
NUM_GROUPS = (8, 30, 100, 300)
CHANCES = ((0.0, 0.97), (0.2, 0.8), (0.5, 0.5))
"""Of base and tuned to be right: a model that learns the format, one that learns much, one that learns nothing."""
SIZES = ("one", "equal", "skewed")
"""Questions of a group: one; four; one to some dozens, log-normal with a median of three."""
CORRELATION = 0.3
LEAST_COVERAGE, MOST_ABOVE = 0.94, 0.035
_AT_A_TIME = 200


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Simulated sets: sums of each group, each of shape (sets, groups)."""

    base: Numbers
    """Right answers of the base."""
    tuned: Numbers
    questions: Numbers
    gain: float
    """What is true."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How intervals did in one cell of the grid."""

    coverage: float
    """Fraction of intervals that hold what is true."""
    above: float
    """Fraction of lower bounds that lie above it: gates that pass wrongly, were it the limit."""
    width: float
    """Mean width."""


def simulate(num_groups: int, sizes: str, chances: tuple[float, float], *, num_sets: int, seed: int = 0) -> Sets:
    """Draw sets of so many groups."""
    generator = np.random.default_rng([seed, num_groups, SIZES.index(sizes), int(100 * chances[1])])
    shape = (num_sets, num_groups)
    if sizes == "skewed":
        questions = 1.0 + np.floor(generator.lognormal(np.log(2.5), 1.0, size=shape))
    else:
        questions = np.full(shape, 1.0 if sizes == "one" else 4.0)
    base, tuned = (_answer(generator, chance, questions) for chance in chances)
    return Sets(base=base, tuned=tuned, questions=questions, gain=chances[1] - chances[0])


def _answer(generator: np.random.Generator, chance: float, questions: Numbers) -> Numbers:
    if chance in (0.0, 1.0):
        return chance * questions
    spread = (1 - CORRELATION) / CORRELATION
    of_group = generator.beta(chance * spread, (1 - chance) * spread, size=questions.shape)
    return generator.binomial(questions.astype(int), of_group).astype(float)


def bound(sets: Sets, *, is_adjusted: bool = True) -> Numbers:
    """Lower and upper bound of each set's gain, of shape (2, sets); plain percentiles where not adjusted."""
    gained, questions = sets.tuned - sets.base, sets.questions
    if is_adjusted:
        mean = questions.mean(axis=1, keepdims=True)
        gained = np.concatenate([gained, mean, -mean], axis=1)
        questions = np.concatenate([questions, mean, mean], axis=1)
    counts = np.concatenate(list(draw_counts(gained.shape[1], SEED, NUM_RESAMPLES)))
    return np.concatenate(
        [
            np.quantile((counts @ gained[part].T) / (counts @ questions[part].T), [0.025, 0.975], axis=0)
            for part in (slice(begin, begin + _AT_A_TIME) for begin in range(0, len(gained), _AT_A_TIME))
        ],
        axis=1,
    )


def judge(sets: Sets, bounds: Numbers) -> Cell:
    """How often these bounds are right."""
    low, high = bounds
    # What was measured lies in its interval, and rounding decides nothing.
    value = (sets.tuned - sets.base).sum(axis=1) / sets.questions.sum(axis=1)
    low, high = np.minimum(low, value) - 1e-9, np.maximum(high, value) + 1e-9
    return Cell(
        coverage=float(((low <= sets.gain) & (sets.gain <= high)).mean()),
        above=float((low > sets.gain).mean()),
        width=float((high - low).mean()),
    )


def walk_grid() -> Iterator[tuple[int, str, tuple[float, float]]]:
    """Every cell."""
    for chances in CHANCES:
        for sizes in SIZES:
            for num_groups in NUM_GROUPS:
                yield num_groups, sizes, chances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=NUM_SETS, help="simulated sets of a cell")
    num_sets = parser.parse_args().sets
    begun = time.monotonic()
    print("| base → tuned | questions a group | groups | covers | low above truth | plain: covers | low above truth |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    failed = 0
    for num_groups, sizes, chances in walk_grid():
        sets = simulate(num_groups, sizes, chances, num_sets=num_sets)
        cell, plain = (judge(sets, bound(sets, is_adjusted=adjusted)) for adjusted in (True, False))
        is_met = cell.coverage >= LEAST_COVERAGE and cell.above <= MOST_ABOVE
        failed += not is_met
        print(
            f"| {chances[0]} → {chances[1]} | {sizes} | {num_groups} | {cell.coverage:.1%} | {cell.above:.1%} "
            f"| {plain.coverage:.1%} | {plain.above:.1%} |{'' if is_met else ' <-- out of bounds'}",
            flush=True,
        )
    print(f"{failed} cells out of bounds; {time.monotonic() - begun:.0f} s")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
