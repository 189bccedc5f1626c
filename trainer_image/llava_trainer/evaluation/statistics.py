"""What chance could make of a score: intervals by resampling groups, and a sign-flip test. Pure functions of numbers.

Questions about one image or document are not independent, so whole groups are drawn; the estimand is the score over all
questions. Before groups are drawn two are added, of mean size: one in which every answer is the best and one in which
every answer is the worst (of two models: best of one and worst of the other, and the other way round). This is after
D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
paired data", Journal of Educational and Behavioral Statistics 37 (2012). The plain percentile bootstrap does not know
what a small set happens not to hold: where all of 30 answers are right it is certain that the score is 1.
docs/evaluation.md has a table of how often these intervals cover what is true.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llava_api.judging import CONFIDENCE
from llava_trainer.evaluation.draws import Draws, Numbers, enumerate_flips

_EXACT_FLIPS = 14
"""Groups up to which every way to flip their signs is gone through: 16,384 of them."""


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


def estimate_score(draws: Draws, groups: npt.NDArray[np.intp], tallies: Tallies) -> Callable[[], Estimate]:
    """One model's score, once everything is drawn.

    Args:
        draws: asked for the resamples.
        groups: number of each question's group, from 0 without gaps; one question at least.
        tallies: of the model's answers.
    """
    pooled = pool(groups, tallies.found)
    added = np.stack([tallies.best.sum(axis=0), tallies.worst.sum(axis=0)]) / len(pooled)
    drawn = draws.resample(np.concatenate([pooled, added]), ratio)
    return lambda: _bound(float(ratio(pooled.sum(axis=0))), drawn())


def estimate_gain(draws: Draws, groups: npt.NDArray[np.intp], base: Tallies, tuned: Tallies) -> Callable[[], Estimate]:
    """By how much ``tuned`` is better than ``base`` on the same questions; arguments as in ``estimate_score``."""
    pooled = np.concatenate([pool(groups, base.found), pool(groups, tuned.found)], axis=1)
    num_groups = len(pooled)
    best, worst = base.best.sum(axis=0) / num_groups, base.worst.sum(axis=0) / num_groups
    added = np.stack([np.concatenate([worst, best]), np.concatenate([best, worst])])
    drawn = draws.resample(np.concatenate([pooled, added]), _gain)
    return lambda: _bound(float(_gain(pooled.sum(axis=0))), drawn())


def sign_flip_p_value(draws: Draws, groups: npt.NDArray[np.intp], base: Numbers, tuned: Numbers) -> Callable[[], float]:
    """Two-sided p-value of a sign-flip test: how often a gain as large comes about where the models are equal.

    Where they are, a coin might as well have drawn which of the two gave a group's answers. Up to ``_EXACT_FLIPS``
    groups whose tallies differ, every way to draw is gone through; else some are drawn, and what was found counts as
    one of them (B. Phipson and G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010).

    Args:
        draws: asked for the flips.
        groups: as in ``estimate_score``.
        base: of shape (questions, 2).
        tuned: the same.
    """
    before, after = pool(groups, base), pool(groups, tuned)
    differs = (before != after).any(axis=1)
    changes = (after - before)[differs]
    if not len(changes):
        return lambda: 1.0
    base_sums, tuned_sums = before.sum(axis=0), after.sum(axis=0)
    found = abs(float(_gain(np.concatenate([base_sums, tuned_sums]))))

    def is_as_large(moved: Numbers) -> npt.NDArray[np.bool_]:
        gains = _gain(np.concatenate([base_sums + moved, tuned_sums - moved], axis=1))
        # Sums in another order differ in their last digits.
        return np.abs(gains) >= found - 1e-12

    if len(changes) <= _EXACT_FLIPS:
        exact = float(is_as_large(enumerate_flips(len(changes)) @ changes).mean())
        return lambda: exact
    drawn = draws.flip(changes, is_as_large)
    return lambda: (int(drawn().sum()) + 1) / (len(drawn()) + 1)


def _gain(sums: Numbers) -> Numbers:
    """Of shape (..., 4), base's two sums and tuned's, to (...)."""
    return ratio(sums[..., 2:]) - ratio(sums[..., :2])


def _bound(value: float, drawn: Numbers) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # What was measured lies in its interval, however far the added groups have moved that.
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
