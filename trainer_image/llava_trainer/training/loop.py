"""The training loop: step after step, with checkpoints and validations between them.

Every rank runs the same steps; what only one of them does (reports) asks whether there is a recorder.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

from llava_api.failures import Reason
from llava_trainer.attempts.folder import Fence
from llava_trainer.data.mixed_samples import MixedSamples
from llava_trainer.errors import StageError
from llava_trainer.gang.stopping import AskedToStopError, StopAgreement, StopRequest
from llava_trainer.gang.watchdog import Beat, Doing
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.checkpoint import CheckpointState
from llava_trainer.training.checks import check_finite, check_gradient, check_supervised
from llava_trainer.training.hardest import HardestSamples
from llava_trainer.training.model_under_training import ModelUnderTraining
from llava_trainer.training.phase import Phase
from llava_trainer.training.progress import Progress
from llava_trainer.training.recorder import Recorder
from llava_trainer.training.resuming import shapes_of
from llava_trainer.training.saving import Saver
from llava_trainer.training.schedule import Schedule
from llava_trainer.training.selection import Selection
from llava_trainer.training.slices import list_slices, slices_to_save
from llava_trainer.training.step import BatchTotals, StepOutcome, count_batch, draw_seed, run_step
from llava_trainer.training.validation import Validation, Validator


@dataclass(kw_only=True)
class Loop:
    """Runs the steps that are left."""

    phase: Phase
    plan: BatchPlan
    samples: MixedSamples
    """What the plan's numbers are of."""
    model: ModelUnderTraining
    world: World
    loader: BatchLoader
    saver: Saver
    recorder: Recorder | None
    """Only in the first rank."""
    stop: StopRequest
    beat: Beat
    progress: Progress
    first_step: int
    identity: Mapping[str, str]
    """What this training is, to be told in its checkpoints."""
    fence: Fence
    """Asked in the first rank."""
    hardest: HardestSamples | None = None
    """None: nobody asks which samples are the hardest."""
    validator: Validator | None = None
    """None: nobody looks at held-out samples meanwhile."""
    selection: Selection = field(default_factory=Selection)
    """What validation has shown so far."""
    last_validation: Validation | None = None

    def run(self) -> int:
        """Run them.

        Returns:
            Steps that are done in all: fewer than planned where early stopping has ended it.

        Raises:
            StageError: Interrupted, Superseded, LossNotFinite, NothingSupervised, ZeroGradient.
            OSError: a checkpoint could not be written.
        """
        step, total_steps = self.first_step, self.plan.total_steps
        if (
            step
            and self.validator
            and self.validator.is_due(step, total_steps)
            and self.selection.validated_step != step
        ):
            # What was asked to stop in the middle of looking.
            self._validate(step)
        while step < total_steps and not self.selection.is_over(self.phase.training):
            outcome, totals = self._run_step(step)
            step += 1
            self._record(step, outcome, totals)
            if self.validator and self.validator.is_due(step, total_steps):
                self._validate(step)
            if self._is_to_be_saved(step):
                self._save(step)
            self._note_saved(self.saver.check())
        self._finish_saving()
        self._keep_hardest(step)
        return step

    def _is_to_be_saved(self, step: int) -> bool:
        if step == self.plan.total_steps:
            # After the last step comes the result itself.
            return False
        is_best = self.phase.training.keep_best is not None and self.selection.best_step == step
        return is_best or step % self.phase.training.checkpoint.every_steps == 0

    def _validate(self, step: int) -> None:
        """Look at held-out samples after ``step`` steps, and decide what that means; the first rank for all."""
        assert self.validator is not None
        try:
            validation = self.validator.validate(
                self._agreement, self.recorder.record_validating if self.recorder else None
            )
        except AskedToStopError:
            self._stop_after(step)
        self.last_validation = validation
        self.selection = self.world.broadcast(self.selection.judge(step, validation, self.phase.training))
        if self.recorder:
            self.fence.check()
            self._record_selection(self.recorder)
            self.recorder.record_validation(step, validation)

    def _record(self, step: int, outcome: StepOutcome, totals: BatchTotals) -> None:
        if self.recorder:
            self.fence.check()
            self._record_selection(self.recorder)
            self.recorder.record(step, outcome, totals)

    def _record_selection(self, recorder: Recorder) -> None:
        selects = self.phase.training.selects
        recorder.record_selection(self.selection.lowest_loss, self.selection.best_step if selects else None)

    def _run_step(self, step: int) -> tuple[StepOutcome, BatchTotals]:
        began = time.monotonic()
        self.beat(Doing.LOADING)
        waited_s = self.loader.waited_s
        micro_batches = self.loader.load(step)
        waited_s = self.loader.waited_s - waited_s
        self.beat(Doing.WAITING)
        totals = count_batch(micro_batches, self.stop.received, self.world, self.progress.last_step_s, waited_s)
        if totals.last_step_s:
            self.progress.measure(totals.last_step_s)
        if totals.stop:
            self._stop_after(step)
        batch = self.plan.batch(step)
        check_supervised(totals, step + 1, batch, self.samples.describe_place)
        try:
            outcome = run_step(
                self.model, self.world, micro_batches, totals, factor=self._schedule.factor(step),
                samples=len(batch), seeds=self._draw_seeds(step), beat=self.beat, agreement=self._agreement,
            )  # fmt: skip
        except AskedToStopError:
            # The optimiser holds the state after the last step; whoever goes on does this one from its beginning.
            self._stop_after(step)
        self.progress.finish_step(step + 1, time.monotonic() - began)
        check_finite(outcome, step + 1)
        if self.hardest:
            self.hardest.note(step, self.plan.rank_batch(step, self.world.rank), outcome.sample_losses)
        if step == self.first_step:
            check_gradient(self.model, self.world, step + 1)
        return outcome, totals

    @cached_property
    def _agreement(self) -> StopAgreement:
        return StopAgreement(self.stop, self.world)

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(
            kind=self.phase.training.scheduler,
            total_steps=self.plan.total_steps,
            warmup_ratio=self.phase.training.warmup_ratio,
            floor=self.phase.training.minimum_learning_rate / self.phase.training.peak_learning_rate,
        )

    def _draw_seeds(self, step: int) -> list[int]:
        """What dropout of each micro-batch begins with; its first sample stands for it."""
        rank_batch = self.plan.rank_batch(step, self.world.rank)
        return [draw_seed(self.phase.training.seed, step, rows[0][0] if rows else 0) for rows in rank_batch]

    def _stop_after(self, step: int) -> NoReturn:
        if step > self.first_step and self.saver.begun_step != step:
            self._save(step)
        self._finish_saving()
        saved = self.saver.saved_step or self.first_step
        raise StageError(
            Reason.INTERRUPTED,
            f"training was asked to stop (SIGTERM) after step {step} of {self.plan.total_steps}; the checkpoint of "
            f"step {saved} is on the volume" if saved else
            "training was asked to stop (SIGTERM) before it had done a step",
        )  # fmt: skip

    def _save(self, step: int) -> None:
        # Before the checkpoint: whoever goes on from that finds it.
        self._keep_hardest(step)
        self.beat(Doing.SAVING)
        engine, named = self.model.engine, self.model.named_trainable()
        state = CheckpointState(
            step=step, total_steps=self.plan.total_steps, world_size=self.world.world_size,
            seed=self.phase.training.seed, parameters=shapes_of(named), training=self.identity,
            selection=self.selection.to_fields() if self.validator else {},
        )  # fmt: skip
        self.saver.begin(slices_to_save(list_slices(engine, named), engine), state)

    def _keep_hardest(self, step: int) -> None:
        if self.hardest:
            self.beat(Doing.WAITING)
            self.hardest.keep(step, self.world, self.fence.check)

    def _finish_saving(self) -> None:
        self.beat(Doing.SAVING)
        self.saver.finish()
        self._note_saved(self.saver.saved_step)

    def _note_saved(self, step: int | None) -> None:
        if self.recorder and step is not None:
            self.recorder.record_checkpoint(step)
