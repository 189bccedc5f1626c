"""Which sample is seen when and by whom. Pure arithmetic: everything follows from seed, sizes and step.

Batches are defined over all processes: step ``s`` sees the same samples however many processes share them, so that
neither the number of workers nor gradient accumulation changes what is learned. The data position of a checkpoint is
its step, nothing more.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps and batches of a training run."""

    num_samples: int
    global_batch: int
    """Samples of one optimiser step over all processes."""
    per_device_batch: int
    """Samples that one process holds at a time."""
    world_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass; the last one takes the samples that are left and repeats none."""
        return math.ceil(self.num_samples / self.global_batch)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def epoch_at(self, step: int) -> float:
        """Passes through the dataset after ``step`` steps."""
        return step / self.steps_per_epoch

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of the samples that all processes together see in ``step`` (counted from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, self.num_samples)
        begin = position * self.global_batch
        return tuple(int(index) for index in order[begin : begin + self.global_batch])

    def share(self, step: int, rank: int) -> tuple[tuple[int, ...], ...]:
        """Micro-batches that process ``rank`` runs in ``step``, of at most ``per_device_batch`` samples each.

        Every process runs the same number, since each ends in a reduction that all take part in: at the end of an
        epoch a micro-batch may be shorter than the others', or empty.
        """
        batch = self.batch(step)
        unit = self.per_device_batch * self.world_size
        first = rank * self.per_device_batch
        return tuple(
            batch[begin + first : begin + first + self.per_device_batch] for begin in range(0, len(batch), unit)
        )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Order of the samples in an epoch; drawing it for every step would cost milliseconds with a million samples."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
