"""Which sample is seen when and by whom. Pure arithmetic: everything follows from seed, sizes and step.

Batches are defined over all ranks: step ``s`` sees the same samples however many processes share them, so that
neither the number of workers nor gradient accumulation changes what is learned. The data position of a checkpoint is
its step, nothing more.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llava_api.failures import Reason
from llava_api.report import MicroBatch
from llava_trainer.data.mixed_samples import count_drawn
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.errors import StageError
from llava_trainer.training.epoch_order import Grouping, order_epoch
from llava_trainer.training.mixture import Mixture
from llava_trainer.training.phase import Phase
from llava_trainer.training.rank_batches import Limits, Rows, plan_packed_rows, plan_padded_rows

LOOKED_THROUGH = 2_000
"""Steps of later epochs that are looked through for what takes the most memory; the first epoch always is."""

LOOKED_THROUGH_MIXED = 10_000
"""The same of a mixture, until every sample of it has been seen."""

_EXTREMES = (
    "the longest micro-batch", "the micro-batch with the most pictures",
    "the micro-batch with the most supervised tokens",
)  # fmt: skip
"""In the order of what ``BatchPlan`` measures."""


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """A micro-batch that takes the most of something, and may take the most memory."""

    name: str
    """What it has most of, to be told."""
    rows: Rows
    tokens: int
    """Rows x longest row, filled-up positions included."""
    images: int
    supervised: int
    """Tokens that are learned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPlan:
    """Steps and batches of a training run."""

    sizes: SampleSizes
    global_batch: int
    """Samples of one optimiser step over all ranks."""
    per_device_batch: int
    """Samples that one rank holds at a time; packed, as many tokens as that many of the longest."""
    max_length: int
    world_size: int
    epochs: int
    seed: int
    grouping: Grouping = "modality"
    packing: bool = False
    max_steps: int | None = None
    """Steps of the whole run, whatever ``epochs`` says; None to go by that."""
    mixture: Mixture | None = None
    """Which samples an epoch has; None where each has all of them."""

    @property
    def num_samples(self) -> int:
        """Samples of one pass."""
        return len(self.sizes) if self.mixture is None else self.mixture.samples_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass; the last one takes the samples that are left and repeats none."""
        return math.ceil(self.num_samples / self.global_batch)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.epochs if self.max_steps is None else self.max_steps

    def epoch_at(self, step: int) -> float:
        """Passes through the dataset after ``step`` steps."""
        return step / self.steps_per_epoch

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of the samples that all ranks together see in ``step`` (counted from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _order(self, epoch)
        begin = position * self.global_batch
        return tuple(int(index) for index in order[begin : begin + self.global_batch])

    def rank_batch(self, step: int, rank: int) -> tuple[Rows, ...]:
        """Micro-batches that process ``rank`` runs in ``step``.

        Every rank runs the same number, since each ends in a reduction that all take part in: at the end of an
        epoch a micro-batch may be shorter than the others', or empty.
        """
        return tuple(batches[rank] for batches in self._rank_batches(step))

    def find_extremes(self) -> list[Extreme]:
        """The micro-batches of any rank with the most positions, images, and learned tokens; each but once."""
        most: dict[str, tuple[tuple[int, ...], Rows]] = {}
        for rows in self.list_micro_batches():
            measured = self._measure(rows)
            for number, name in enumerate(_EXTREMES):
                if name not in most or measured[number:] > most[name][0]:
                    most[name] = (measured[number:], rows)
        found: dict[Rows, Extreme] = {}
        for name, (_, rows) in most.items():
            tokens, images, supervised = self._measure(rows)
            found.setdefault(rows, Extreme(name=name, rows=rows, tokens=tokens, images=images, supervised=supervised))
        return list(found.values())

    def find_largest(self) -> MicroBatch:
        """What a rank holds at most: of positions, of images, and of tokens that are learned."""
        extremes = self.find_extremes()
        return MicroBatch(
            rows=len(extremes[0].rows),
            tokens=extremes[0].tokens,
            pictures=max(one.images for one in extremes),
            supervised=max(one.supervised for one in extremes),
        )

    def list_micro_batches(self) -> Iterator[Rows]:
        """Those of all ranks in the epochs that are looked through.

        An epoch holds the same samples as every other, in other company: with many steps all of them come near to the
        most that there can be, with few steps every epoch is looked at. Of a mixture later epochs hold other samples:
        epochs are looked at until all have been seen, as far as that takes no minutes.
        """
        epochs = LOOKED_THROUGH // self.steps_per_epoch
        if self.mixture is not None:
            whole = min(self.mixture.epochs_per_pass, LOOKED_THROUGH_MIXED // self.steps_per_epoch)
            epochs = max(epochs, whole)
        most = max(1, epochs) * self.steps_per_epoch
        for step in range(min(self.total_steps, most)):
            yield from (rows for batches in self._rank_batches(step) for rows in batches if rows)

    def _measure(self, rows: Rows) -> tuple[int, int, int]:
        """Positions, filled-up ones included, images, and tokens that are learned."""
        samples = [index for row in rows for index in row]
        positions = len(rows) * max(int(self.sizes.tokens[list(row)].sum()) for row in rows)
        return positions, int(self.sizes.images[samples].sum()), int(self.sizes.supervised[samples].sum())

    def _rank_batches(self, step: int) -> list[tuple[Rows, ...]]:
        batch = self.batch(step)
        tokens = [int(count) for count in self.sizes.tokens[list(batch)]]
        limits = Limits(per_device_batch=self.per_device_batch, max_length=self.max_length, world_size=self.world_size)
        if self.packing:
            return plan_packed_rows(batch, tokens, limits)
        return plan_padded_rows(batch, tokens, limits, by_length=self.grouping != "none")


def make_plan(phase: Phase, sizes: SampleSizes, world_size: int, sizes_mixed: Sequence[int] = ()) -> BatchPlan:
    """Steps and batches of a run.

    Args:
        phase: what is trained, and how.
        sizes: of all samples, those of the mixture last.
        world_size: ranks.
        sizes_mixed: samples of each dataset of the mixture.

    Raises:
        StageError: InvalidData; there is nothing to train on.
    """
    if len(sizes) == sum(sizes_mixed):
        raise StageError(Reason.INVALID_DATA, f"{phase.samples_file} holds no sample to train on")
    training = phase.training
    return BatchPlan(
        sizes=sizes,
        global_batch=training.batch.num_samples,
        per_device_batch=training.batch.per_device,
        max_length=training.max_length,
        world_size=world_size,
        epochs=training.epochs,
        seed=training.seed,
        grouping=training.grouping,
        packing=training.packing,
        max_steps=training.max_steps,
        mixture=_mix(phase, len(sizes) - sum(sizes_mixed), tuple(sizes_mixed)),
    )


def cover(one: MicroBatch, other: MicroBatch) -> MicroBatch:
    """A micro-batch that takes no less memory than either: with the positions, and the pairs of positions, of both.

    Pairs are rows x length^2: few packed rows may have more of them than many rows that are filled up with as many
    positions, and the other way round.
    """
    tokens = max(one.tokens, other.tokens)
    pairs = max(some.tokens**2 // some.rows for some in (one, other))
    rows = tokens**2 // pairs
    return MicroBatch(
        rows=rows,
        tokens=-(-tokens // rows) * rows,
        pictures=max(one.pictures, other.pictures),
        supervised=max(one.supervised, other.supervised),
    )


def _mix(phase: Phase, num_main: int, sizes_mixed: tuple[int, ...]) -> Mixture | None:
    if not phase.mixture:
        return None
    for part, size in zip(phase.mixture, sizes_mixed, strict=True):
        if size == 0:
            raise StageError(Reason.INVALID_DATA, f"{part.samples_file} holds no sample to train on")
    return Mixture(
        num_main=num_main, sizes=sizes_mixed, drawn=count_drawn(num_main, [part.share for part in phase.mixture])
    )


@lru_cache(maxsize=2)
def _order(plan: BatchPlan, epoch: int) -> np.ndarray:
    """Order of the samples in an epoch; drawing it for every step would cost milliseconds with a million samples."""
    members = None if plan.mixture is None else plan.mixture.list_epoch(epoch, plan.seed)
    return order_epoch(plan.sizes, plan.grouping, plan.global_batch, plan.seed, epoch, members)
