"""Resamples of groups and flips of their signs, drawn once for all scores that are asked for.

What is drawn goes by the seed and by how many groups there are, whatever they hold, so that scores of the same groups
share it: to draw 10,000 times 60,000 groups takes far longer than to add up what one more score has in them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 10_000
SEED = 20_120_229
_CHUNK = 1_000_000
"""Draws that are made at a time; each takes 8 bytes or less."""

Numbers = npt.NDArray[np.float64]
Reduce = Callable[[Numbers], npt.NDArray[Any]]
"""From sums, of shape (draws, columns), to one value a draw."""


@dataclass(frozen=True)
class _Asked:
    rows: Numbers
    reduce: Reduce
    parts: list[npt.NDArray[Any]] = field(default_factory=list)

    def take(self, sums: Numbers) -> None:
        self.parts.append(self.reduce(sums))

    def result(self) -> npt.NDArray[Any]:
        assert self.parts, "draw() comes first"
        return np.concatenate(self.parts)


class Draws:
    """First everything is asked for, then drawn at once, then looked at.

    Args:
        seed: the same one draws the same.
        num_resamples: how often.
    """

    def __init__(self, *, seed: int = SEED, num_resamples: int = NUM_RESAMPLES) -> None:
        self._seed, self._num_resamples = seed, num_resamples
        self._resampled: dict[int, list[_Asked]] = defaultdict(list)
        self._flipped: list[_Asked] = []

    def resample(self, rows: Numbers, reduce: Reduce) -> Callable[[], npt.NDArray[Any]]:
        """Ask for sums of as many rows as there are, drawn with replacement.

        Args:
            rows: of shape (rows, columns).
            reduce: what is made of the sums.

        Returns:
            Gives what ``reduce`` has made, of shape (num_resamples,), after ``draw``.
        """
        asked = _Asked(rows, reduce)
        self._resampled[len(rows)].append(asked)
        return asked.result

    def flip(self, rows: Numbers, reduce: Reduce) -> Callable[[], npt.NDArray[Any]]:
        """Ask for sums of those rows that a coin chooses, each by itself; as ``resample``."""
        asked = _Asked(rows, reduce)
        self._flipped.append(asked)
        return asked.result

    def draw(self) -> None:
        """Draw all that was asked for."""
        for num_rows, all_asked in self._resampled.items():
            # One product of matrices: what is drawn is read once, which takes most of the time.
            rows = np.concatenate([asked.rows for asked in all_asked], axis=1)
            ends = np.cumsum([asked.rows.shape[1] for asked in all_asked])
            for counts in draw_counts(num_rows, self._seed, self._num_resamples):
                for asked, sums in zip(all_asked, np.split(counts @ rows, ends[:-1], axis=1), strict=True):
                    asked.take(sums)
        for flips in self._draw_flips(max((len(asked.rows) for asked in self._flipped), default=0)):
            for asked in self._flipped:
                # Each coin is thrown by itself, so that the first ones are as good as any.
                asked.take(flips[:, : len(asked.rows)] @ asked.rows)
        self._resampled.clear()
        self._flipped.clear()

    def _draw_flips(self, num_rows: int) -> Iterator[Numbers]:
        if not num_rows:
            return
        generator = np.random.default_rng(self._seed)
        for num_drawn in _split(num_rows, self._num_resamples):
            yield generator.integers(0, 2, size=(num_drawn, num_rows), dtype=np.uint8).astype(np.float64)


def draw_counts(num_rows: int, seed: int, num_resamples: int) -> Iterator[Numbers]:
    """How often each row is drawn in each resample, of shape (some resamples, rows), until there are enough."""
    generator = np.random.default_rng(seed)
    for num_drawn in _split(num_rows, num_resamples):
        drawn = generator.integers(0, num_rows, size=(num_drawn, num_rows))
        drawn += np.arange(num_drawn)[:, None] * num_rows
        counts = np.bincount(drawn.ravel(), minlength=num_drawn * num_rows)
        yield counts.reshape(num_drawn, num_rows).astype(np.float64)


def enumerate_flips(num_rows: int) -> Numbers:
    """Every way to choose some of the rows, of shape (2^num_rows, num_rows)."""
    numbers = np.arange(2**num_rows)[:, None]
    return ((numbers >> np.arange(num_rows)) & 1).astype(np.float64)


def _split(num_rows: int, num_draws: int) -> Iterator[int]:
    """How many draws are made at a time."""
    at_a_time = max(1, _CHUNK // num_rows)
    for begin in range(0, num_draws, at_a_time):
        yield min(at_a_time, num_draws - begin)
