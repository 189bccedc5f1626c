"""Which samples an epoch has where further datasets are mixed in. Pure arithmetic, the same for any number of ranks.

The dataset itself comes once and whole in each epoch. Of each dataset of the mixture an epoch has so many that its
share holds. They are taken from an endless row of passes through it, each in another random order: an epoch goes on
where the one before stopped, and nothing comes again before all has been seen. What an epoch has follows from its
number alone, so that a checkpoint has nothing of it to keep.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

_PASSES = 1
"""Last word of the seed of a pass. Seeds that differ in zeros at their end are one to numpy, and others end there."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What epochs have. Samples are numbered: first those of the dataset itself, then those of the others in turn."""

    num_main: int
    """Samples of the dataset itself."""
    sizes: tuple[int, ...]
    """Samples of each of the others, at least one."""
    drawn: tuple[int, ...]
    """How many of them an epoch has."""

    @property
    def samples_per_epoch(self) -> int:
        """Samples of one epoch, of all datasets."""
        return self.num_main + sum(self.drawn)

    @property
    def epochs_per_pass(self) -> int:
        """Epochs until every sample of every dataset has been seen."""
        return max((-(-size // count) for size, count in zip(self.sizes, self.drawn, strict=True)), default=1)

    def list_epoch(self, epoch: int, seed: int) -> np.ndarray:
        """int64 [samples_per_epoch]: the samples of an epoch, in no order that means anything."""
        begins = accumulate(self.sizes, initial=self.num_main)
        parts = [
            begin + _draw(size, count, epoch, [seed, part])
            for part, (begin, size, count) in enumerate(zip(begins, self.sizes, self.drawn, strict=False))
        ]
        return np.concatenate([np.arange(self.num_main), *parts])


def _draw(size: int, count: int, epoch: int, seed: list[int]) -> np.ndarray:
    """int64 [count]: those from ``epoch * count`` on of an endless row of passes through ``size`` samples."""
    begin, end = epoch * count, (epoch + 1) * count
    passes = range(begin // size, -(-end // size))
    row = np.concatenate([np.random.default_rng([*seed, number, _PASSES]).permutation(size) for number in passes])
    first = passes.start * size
    return row[begin - first : end - first]
