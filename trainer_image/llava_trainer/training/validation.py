"""Held-out samples while it trains: their loss a token, and the share of their answers that are exact.

The same samples each time, by the training loop's own parts. They are divided over the ranks by length, and what is
summed up is a sum over tokens and answers: from the same weights it is the same number however many ranks there are.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from llava_api.spec import TrainingValidation
from llava_trainer.data.processor import Processor
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.gang.stopping import StopAgreement
from llava_trainer.gang.watchdog import Beat, Doing
from llava_trainer.gang.world import World
from llava_trainer.training.batches import MicroBatch, RowLoader, tensor_of
from llava_trainer.training.held_out_answers import HeldOutAnswers
from llava_trainer.training.model_under_training import ModelUnderTraining
from llava_trainer.training.phase import Phase
from llava_trainer.training.rank_batches import Limits, Rows, plan_padded_rows
from llava_trainer.training.timing import is_validation_due

logger = logging.getLogger(__name__)

MAX_TOLD = 20
"""Times that one validation tells how far it is. By micro-batches, not by a clock: each such report counts as a step
forward with the operator, and one that hangs must not make any."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What held-out samples have shown after a step; the same in every rank, but for ``texts``."""

    loss: float
    """Per supervised token."""
    exact: float | None
    """Fraction of the answers of which every token, ``</s>`` included, is the likeliest one: what greedy decoding gives
    exactly. None where every answer is cut off by the length limit."""
    answers: int
    """Answers that this is a fraction of."""
    samples: int
    seconds: float
    """How long training stood still for it."""
    texts: tuple[str, ...] | None = None
    """What the model has answered to a few questions; in the first rank, where some are asked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Validator:
    """Looks at held-out samples. Every rank has one, and calls the same after the same steps."""

    settings: TrainingValidation
    phase: Phase
    model: ModelUnderTraining
    world: World
    samples: SampleFile
    """Held-out ones; at least one."""
    processor: Processor
    beat: Beat
    answers: HeldOutAnswers | None = None
    """None: no question is asked."""

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether to look after ``step`` steps: every so many, and after the last."""
        return is_validation_due(step, total_steps, self.settings.every_steps)

    def validate(self, agreement: StopAgreement, on_looked: Callable[[int, int], None] | None = None) -> Validation:
        """Look at all of them with the weights as they are.

        Args:
            agreement: on stopping between micro-batches.
            on_looked: told now and then, MAX_TOLD times at most, how many samples of how many are done by all ranks;
                counted by this rank's micro-batches, of which the others have as many.

        Raises:
            AskedToStopError: before a micro-batch, in every rank.
            ImageError, ImageCutError, OSError: a sample cannot be loaded any more; prepare could.
        """
        began = time.monotonic()
        counts = np.zeros(4)
        self.model.module.eval()
        try:
            for number, rows in enumerate(self._rank_rows, start=1):
                if number > 1:
                    self.beat(Doing.WAITING)
                    agreement.check()
                if number < len(self._rank_rows):
                    agreement.ask()
                counts += self._judge(rows)
                if on_looked and is_to_be_told(number, len(self._rank_rows)):
                    on_looked(len(self.indices) * number // len(self._rank_rows), len(self.indices))
            texts = self.answers.answer(agreement) if self.answers else None
        finally:
            self.model.module.train()
        self.beat(Doing.WAITING)
        loss, tokens, exact, answers = self.world.sum(*counts.tolist())
        return Validation(
            loss=loss / tokens if tokens else 0.0,
            exact=exact / answers if answers else None,
            answers=int(answers),
            samples=len(self.indices),
            seconds=time.monotonic() - began,
            texts=texts,
        )

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Numbers of the samples that are looked at, in the file's order."""
        return draw_samples(len(self.samples), self.settings.samples, self.phase.training.seed)

    @cached_property
    def _rank_rows(self) -> Sequence[Rows]:
        """Micro-batches of this rank. Each rank has the same number: ZeRO-3 gathers weights from all in each."""
        training = self.phase.training
        limits = Limits(
            per_device_batch=training.batch.per_device, max_length=training.max_length, world_size=self.world.world_size
        )
        tokens = [self.samples[index].num_tokens or 0 for index in self.indices]
        return [batches[self.world.rank] for batches in plan_padded_rows(self.indices, tokens, limits, by_length=True)]

    @cached_property
    def _loader(self) -> RowLoader:
        return RowLoader(
            samples=self.samples, processor=self.processor, images=self.phase.images,
            max_length=self.phase.training.max_length, template=self.phase.template, dtype=self.model.dtype,
            pinned=self.world.device.type == "cuda",
        )  # fmt: skip

    @torch.no_grad()
    def _judge(self, rows: Rows) -> np.ndarray:
        """Summed loss, tokens, exact answers and answers of one micro-batch: float64 [4]."""
        self.beat(Doing.LOADING)
        micro_batch = self._loader.load(rows)
        self.beat(Doing.COMPUTING)
        judged = self.model.engine(**micro_batch.to(self.world.device), each=True)
        losses, likeliest = judged.double().cpu().numpy().T
        exact, answers = count_exact(micro_batch, likeliest > 0, self.processor.eos_token_id)
        return np.array([losses.sum(), len(losses), exact, answers])


def is_to_be_told(done: int, total: int) -> bool:
    """Whether ``done`` of ``total`` is where a validation tells how far it is: MAX_TOLD times, as even as can be."""
    return done * MAX_TOLD // total > (done - 1) * MAX_TOLD // total


def draw_samples(available: int, wanted: int, seed: int) -> tuple[int, ...]:
    """Which of a file's samples are looked at, in its order: all where there are no more, else drawn by ``seed``."""
    if wanted >= available:
        return tuple(range(available))
    drawn = np.random.default_rng(seed).choice(available, wanted, replace=False)
    return tuple(sorted(int(index) for index in drawn))


def count_exact(micro_batch: MicroBatch, likeliest: np.ndarray, eos_token_id: int) -> tuple[int, int]:
    """Answers that are exact, and answers that are whole.

    Args:
        micro_batch: padded rows.
        likeliest: bool [supervised]: whether each supervised token is the likeliest.
        eos_token_id: what a whole answer ends with; one that the length limit has cut off does not count.
    """
    predicting, labels = (tensor_of(micro_batch.tensors, name) for name in ("predicting", "labels"))
    if predicting.numel() == 0:
        return 0, 0
    places = predicting.cpu().numpy()
    targets = labels.flatten()[predicting + 1].cpu().numpy()
    # An answer's tokens follow each other; between two answers stands a question, or a row's end.
    begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    ends = np.append(begins[1:], len(places)) - 1
    is_whole = targets[ends] == eos_token_id
    is_exact = np.logical_and.reduceat(likeliest, begins)
    return int((is_exact & is_whole).sum()), int(is_whole.sum())
