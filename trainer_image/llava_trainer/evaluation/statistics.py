"""What chance could make of a score: intervals by resampling groups, and a sign-flip test. Pure functions of numbers.

Questions about one image or document are not independent, so whole groups are drawn; the estimand is the score over all
questions. Before groups are drawn two are added, of mean size: one in which every answer is the best and one in which
every answer is the worst (of two models: best of one and worst of the other, and the other way round). This is after
D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
paired data", Journal of Educational and Behavioral Statistics 37 (2012). The plain percentile bootstrap does not know
what a small set happens not to hold: where all of 30 answers are right it is certain that the score is 1.
docs/evaluation.md has a table of how often these intervals cover what is true.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llava_api.judging import CONFIDENCE

NUM_RESAMPLES = 10_000
SEED = 20_120_229
_EXACT_FLIPS = 14
"""Groups up to which every way to flip their signs is gone through: 16,384 of them."""
_CHUNK = 1_000_000
"""Draws that are made at a time; each takes 8 bytes or less."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number that was measured, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Tallies:
    """What each question's answer adds to a score: what it does add, and what the best and the worst would.

    Each is of shape (questions, 2): numerator and denominator.
    """

    found: Numbers
    best: Numbers
    worst: Numbers

    def at(self, places: npt.NDArray[np.intp]) -> "Tallies":
        """Those of the questions at these places."""
        return Tallies(found=self.found[places], best=self.best[places], worst=self.worst[places])


def ratio(sums: Numbers) -> Numbers:
    """Numerator by denominator, of shape (..., 2) to (...); 0 where the denominator is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)


def pool(groups: npt.NDArray[np.intp], values: Numbers) -> Numbers:
    """Sums of each group.

    Args:
        groups: number of each question's group, from 0 without gaps; shape (questions,).
        values: of shape (questions, columns).

    Returns:
        Of shape (groups, columns).
    """
    return np.stack([np.bincount(groups, weights=column) for column in values.T], axis=1)


def estimate_score(groups: npt.NDArray[np.intp], tallies: Tallies, *, seed: int = SEED) -> Estimate:
    """One model's score.

    Args:
        groups: number of each question's group, from 0 without gaps; one question at least.
        tallies: of the model's answers.
        seed: of the resamples.
    """
    pooled = pool(groups, tallies.found)
    num_groups = len(pooled)
    added = np.stack([tallies.best.sum(axis=0), tallies.worst.sum(axis=0)]) / num_groups
    drawn = ratio(resample(np.concatenate([pooled, added]), seed=seed))
    return _bound(float(ratio(pooled.sum(axis=0))), drawn)


def estimate_gain(groups: npt.NDArray[np.intp], base: Tallies, tuned: Tallies, *, seed: int = SEED) -> Estimate:
    """By how much ``tuned`` is better than ``base`` on the same questions; arguments as in ``estimate_score``."""
    pooled = np.concatenate([pool(groups, base.found), pool(groups, tuned.found)], axis=1)
    num_groups = len(pooled)
    best, worst = base.best.sum(axis=0) / num_groups, base.worst.sum(axis=0) / num_groups
    added = np.stack([np.concatenate([worst, best]), np.concatenate([best, worst])])
    return _bound(float(_gain(pooled.sum(axis=0))), _gain(resample(np.concatenate([pooled, added]), seed=seed)))


def resample(rows: Numbers, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Numbers:
    """Sums of as many rows as there are, drawn with replacement, ``num_resamples`` times.

    Args:
        rows: of shape (rows, columns).
        seed: the same seed draws the same rows, whatever they hold.
        num_resamples: how often.

    Returns:
        Of shape (num_resamples, columns).
    """
    return np.concatenate([counts @ rows for counts in draw_counts(len(rows), seed, num_resamples)])


def draw_counts(num_rows: int, seed: int, num_resamples: int) -> Iterator[Numbers]:
    """How often each row is drawn in each resample, of shape (some resamples, rows), until there are enough."""
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _CHUNK // num_rows)
    for begin in range(0, num_resamples, at_a_time):
        num_drawn = min(at_a_time, num_resamples - begin)
        drawn = generator.integers(0, num_rows, size=(num_drawn, num_rows))
        drawn += np.arange(num_drawn)[:, None] * num_rows
        counts = np.bincount(drawn.ravel(), minlength=num_drawn * num_rows)
        yield counts.reshape(num_drawn, num_rows).astype(np.float64)


def sign_flip_p_value(groups: npt.NDArray[np.intp], base: Numbers, tuned: Numbers, *, seed: int = SEED) -> float:
    """Two-sided p-value of a sign-flip test: how often a gain as large comes about where the models are equal.

    Where they are, a coin might as well have drawn which of the two gave a group's answers. Up to ``_EXACT_FLIPS``
    groups whose tallies differ, every way to draw is gone through; else ``NUM_RESAMPLES`` are drawn, and what was found
    counts as one of them (B. Phipson and G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010).

    Args:
        groups: as in ``estimate_score``.
        base: of shape (questions, 2).
        tuned: the same.
        seed: of what is drawn.
    """
    before, after = pool(groups, base), pool(groups, tuned)
    differs = (before != after).any(axis=1)
    changes = (after - before)[differs]
    if not len(changes):
        return 1.0
    is_exact = len(changes) <= _EXACT_FLIPS
    base_sums, tuned_sums = before.sum(axis=0), after.sum(axis=0)
    found = abs(float(_gain(np.concatenate([base_sums, tuned_sums]))))
    num_as_large = num_all = 0
    for swapped in _enumerate_flips(len(changes)) if is_exact else _draw_flips(len(changes), seed):
        moved = swapped @ changes
        gains = _gain(np.concatenate([base_sums + moved, tuned_sums - moved], axis=1))
        # Sums in another order differ in their last digits.
        num_as_large += int((np.abs(gains) >= found - 1e-12).sum())
        num_all += len(gains)
    return num_as_large / num_all if is_exact else (num_as_large + 1) / (num_all + 1)


def _enumerate_flips(num_groups: int) -> Iterator[Numbers]:
    numbers = np.arange(2**num_groups)[:, None]
    yield ((numbers >> np.arange(num_groups)) & 1).astype(np.float64)


def _draw_flips(num_groups: int, seed: int) -> Iterator[Numbers]:
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _CHUNK // num_groups)
    for begin in range(0, NUM_RESAMPLES, at_a_time):
        size = (min(at_a_time, NUM_RESAMPLES - begin), num_groups)
        yield generator.integers(0, 2, size=size).astype(np.float64)


def _gain(sums: Numbers) -> Numbers:
    """Of shape (..., 4), base's two sums and tuned's, to (...)."""
    return ratio(sums[..., 2:]) - ratio(sums[..., :2])


def _bound(value: float, drawn: Numbers) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # What was measured lies in its interval, however far the added groups have moved that.
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
