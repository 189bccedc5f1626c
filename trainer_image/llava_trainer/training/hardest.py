"""Training samples with the highest loss, as the model found them when it learned from them: likely label errors.

Taken from the forward passes that training does anyway: each rank keeps a bounded number of its own samples, and they
are joined at each checkpoint and at the end. Those of the last epoch that was gone through count; of the one under way
where none was. Knows neither models nor images.
"""

import heapq
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from llava_api.report import MAX_SIZE
from llava_trainer.files import write_whole
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.rank_batches import Rows

KEPT = 32
"""Samples that are kept of an epoch."""
_EPOCHS = 2
"""The last that was gone through, and the one under way."""
_MAX_FILE_BYTES = 1024 * 1024

_Count = Annotated[int, Field(ge=0, le=MAX_SIZE)]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleLoss:
    """What one sample's loss was when it was learned from."""

    loss: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Per supervised token."""
    index: _Count
    """Number of the sample: in the file of training samples, and on from there in those of the mixture."""
    tokens: _Count
    """Supervised tokens."""
    step: _Count
    """Step that learned from it, counted from 1."""


@dataclass(frozen=True, kw_only=True)
class EpochLosses:
    """The hardest samples of an epoch, or of a part of it."""

    epoch: _Count
    """Counted from 0."""
    first_step: _Count
    """Steps that were done before the first one that is looked at."""
    seen: _Count
    """Samples that they are the hardest of."""
    hardest: Annotated[tuple[SampleLoss, ...], Field(max_length=KEPT)]
    """The hardest first."""


@dataclass(frozen=True, kw_only=True)
class HardestState:
    """What is known after ``step`` steps, of all ranks together."""

    step: _Count
    num_samples: _Count
    """Of one epoch."""
    epochs: Annotated[tuple[EpochLosses, ...], Field(max_length=_EPOCHS)]
    """The last that was gone through, if any, and the one under way."""

    @property
    def last(self) -> EpochLosses | None:
        """Of the last epoch that was gone through; of the one under way where none was."""
        whole = [one for one in self.epochs if one.seen >= self.num_samples]
        return (whole or self.epochs or (None,))[-1]


_STATE = TypeAdapter(HardestState)


class HardestSamples:
    """Those of one rank. All ranks call the same in the same steps."""

    def __init__(self, plan: BatchPlan, file: Path, carried: Sequence[EpochLosses] = ()) -> None:
        """Begin with what earlier attempts have found, in the first rank; ``file`` is where this one keeps it."""
        self._plan = plan
        self._file = file
        self._epochs = {one.epoch: one for one in carried}

    def note(self, step: int, rank_batch: Sequence[Rows], losses: np.ndarray) -> None:
        """Take in what this rank has learned from.

        Args:
            step: counted from 0.
            rank_batch: its micro-batches.
            losses: float [samples, 2]: summed loss and supervised tokens of each, in the order of the rows.
        """
        epoch = step // self._plan.steps_per_epoch
        indices = [index for rows in rank_batch for row in rows for index in row]
        new = [
            SampleLoss(loss=float(loss / tokens), index=index, tokens=int(tokens), step=step + 1)
            for index, (loss, tokens) in zip(indices, losses.tolist(), strict=True)
            if tokens
        ]
        known = self._epochs.get(epoch) or EpochLosses(epoch=epoch, first_step=step, seen=0, hardest=())
        self._epochs[epoch] = replace(known, hardest=_hardest((*known.hardest, *new)))
        self._epochs = {number: one for number, one in self._epochs.items() if number > epoch - _EPOCHS}

    def keep(self, step: int, world: World, check: Callable[[], None]) -> None:
        """Join what all ranks know after ``step`` steps, and write it down. Every rank calls it.

        Args:
            step: steps that are done.
            world: all of them.
            check: called in the first rank before it writes; raises if this attempt does not count any more.

        Raises:
            OSError: it cannot be written.
        """
        told = world.gather(tuple(self._epochs.values()))
        if told is None:
            return
        parts: dict[int, list[EpochLosses]] = {}
        for one in chain.from_iterable(told):
            parts.setdefault(one.epoch, []).append(one)
        epochs = tuple(self._join(step, parts[epoch]) for epoch in sorted(parts)[-_EPOCHS:])
        state = HardestState(step=step, num_samples=self._plan.num_samples, epochs=epochs)
        check()
        write_whole(self._file, _STATE.dump_json(state, indent=1).decode() + "\n")

    def _join(self, step: int, parts: Sequence[EpochLosses]) -> EpochLosses:
        epoch, first_step = parts[0].epoch, min(one.first_step for one in parts)
        begin = epoch * self._plan.steps_per_epoch

        def samples_until(number: int) -> int:
            return min((number - begin) * self._plan.global_batch, self._plan.num_samples)

        return EpochLosses(
            epoch=epoch,
            first_step=first_step,
            seen=samples_until(step) - samples_until(first_step),
            hardest=_hardest(entry for one in parts for entry in one.hardest),
        )


def _hardest(losses: Iterable[SampleLoss]) -> tuple[SampleLoss, ...]:
    return tuple(heapq.nsmallest(KEPT, losses, key=lambda one: (-one.loss, one.index)))


def read_hardest(file: Path) -> HardestState | None:
    """What was kept; None where there is no such file, or it is not one of these."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
        return _STATE.validate_json(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s does not tell which samples were the hardest: %s", file, error)
        return None


def carry_over(file: Path, step: int) -> tuple[EpochLosses, ...]:
    """What is known of the steps that are not done again, by the file of the attempt whose checkpoint is resumed.

    The file may be of a later step than the checkpoint. What it had dropped for samples of steps that are done again
    would be dropped again.
    """
    state = read_hardest(file)
    if state is None or state.step < step:
        return ()
    return tuple(
        replace(one, hardest=tuple(entry for entry in one.hardest if entry.step <= step))
        for one in state.epochs
        if one.first_step < step
    )
