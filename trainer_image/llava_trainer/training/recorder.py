"""What the first rank tells the world about training: the curve on the volume, and progress reports."""

import logging
import time
from collections.abc import Sequence

from llava_trainer.reporting import Measures, Reporter
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.curve import Curve, CurvePoint
from llava_trainer.training.step import BatchTotals, StepOutcome
from llava_trainer.training.timing import StepTime, Timing
from llava_trainer.training.tracking.follower import Follower
from llava_trainer.training.utilisation import Utilisation
from llava_trainer.training.validation import Validation

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 10.0
"""Seconds between two lines in the log; the curve has every step."""


class Recorder:
    """Records every step. Speeds are those of the step itself, data loading and checkpoints included."""

    def __init__(
        self, history: Curve, reporter: Reporter, plan: BatchPlan, *, first_step: int = 0,
        validate_every: int | None = None, utilisation: Utilisation | None = None,
        followers: Sequence[Follower] = (),
    ) -> None:  # fmt: skip
        """Record what comes after ``first_step`` steps, of which there is a checkpoint if there are any."""
        self._utilisation = utilisation
        self._followers = followers
        self._history = history
        self._reporter = reporter
        self._plan = plan
        self._step = self._resumed_step = first_step
        self._checkpoint_step: int | None = first_step or None
        self._timing = Timing(first_step, plan.total_steps, validate_every)
        if history.last_validation_s is not None:
            self._timing.note_validation(history.last_validation_s)
        self._skipped = ""
        self._validation: Validation | None = None
        self._validation_step = 0
        self._lowest_loss: float | None = None
        self._best_step: int | None = None
        self._last_time = time.monotonic()
        self._last_logged = -_LOG_INTERVAL_S

    @property
    def tokens(self) -> int:
        """Real tokens trained on so far."""
        return self._history.tokens

    @property
    def last_loss(self) -> float:
        """Loss of the last step."""
        return self._history.recent_losses[-1]

    def record(self, step: int, outcome: StepOutcome, totals: BatchTotals) -> None:
        """Record that ``step`` steps are done.

        Args:
            step: how many.
            outcome: of the last one.
            totals: of its batch.
        """
        now = time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        taken = StepTime(
            seconds=seconds,
            data_wait_s=totals.data_wait_s,
            mfu=self._utilisation.mfu(step - 1, seconds) if self._utilisation else None,
        )
        self._step, self._last_time = step, now
        self._timing.note_step(step, taken)
        entry = CurvePoint(
            step=step,
            epoch=self._plan.epoch_at(step),
            loss=outcome.loss,
            learning_rate=outcome.learning_rate,
            grad_norm=outcome.grad_norm,
            tokens=outcome.tokens,
            samples_per_second=outcome.samples / taken.seconds,
            tokens_per_second=outcome.tokens / taken.seconds,
            time_s=time.time(),
            data_wait_ratio=taken.data_wait_ratio,
            mfu=taken.mfu,
            peak_gpu_memory_bytes=totals.peak_gpu_memory_bytes or None,
            eta_seconds=self._timing.seconds_to_end(step),
        )
        self._history.append(entry)
        self._tell_followers()
        self._report()
        if now - self._last_logged >= _LOG_INTERVAL_S or step == self._plan.total_steps:
            self._last_logged = now
            logger.info(
                "step %d of %d: loss %.4f, gradient norm %.3f, learning rate %.3g, %.0f tokens/s, waited %.0f %% for "
                "data",
                step, self._plan.total_steps, entry.loss, entry.grad_norm, entry.learning_rate,
                entry.tokens_per_second, 100 * taken.data_wait_ratio,
            )  # fmt: skip

    def record_validating(self, looked_at: int, samples: int) -> None:
        """Report that the validation under way has looked at so many of its samples."""
        share_left = 1 - looked_at / samples
        self._report(
            validating_samples=looked_at, message=f"looks at held-out samples: {looked_at:,} of {samples:,}",
            share_left=share_left,
        )  # fmt: skip

    def record_validation(self, step: int, validation: Validation) -> None:
        """Record what held-out samples have shown after ``step`` steps; every report from now on tells it.

        The time that it took is no step's.
        """
        self._validation, self._validation_step = validation, step
        self._timing.note_validation(validation.seconds)
        self._history.add_validation(
            step, validation_loss=validation.loss, validation_exact=validation.exact,
            validation_seconds=validation.seconds, validation_answers=validation.texts,
        )  # fmt: skip
        self._tell_followers()
        self._last_time = time.monotonic()
        self._report()

    def record_checkpoint(self, step: int) -> None:
        """Record that the checkpoint after ``step`` steps is on the disk."""
        if step != self._checkpoint_step:
            self._checkpoint_step = step
            self._report()

    def record_selection(self, lowest_loss: float | None, best_step: int | None) -> None:
        """Have every report tell the lowest held-out loss so far, and the best step; None where nothing is selected."""
        self._lowest_loss, self._best_step = lowest_loss, best_step

    def record_skipped(self, skipped: Sequence[str]) -> None:
        """Have every report tell that damaged checkpoints were passed over."""
        self._skipped = ", ".join(skipped)

    def _tell_followers(self) -> None:
        if self._history.last:
            for follower in self._followers:
                follower.note(self._history.last)

    def _report(self, *, validating_samples: int | None = None, message: str = "", share_left: float = 0.0) -> None:
        """Report what is known by now.

        Args:
            validating_samples: held-out samples that the validation under way has looked at.
            message: what training is doing.
            share_left: how much of the validation under way is left.
        """
        measures = Measures(losses=self._history.recent_losses, resumed_step=self._resumed_step)
        if self._history.last:
            measures.update(_measures_of(self._history.last))
        if (eta_s := self._timing.seconds_to_end(self._step, validations_more=share_left)) is not None:
            measures["eta_seconds"] = eta_s
        if (ratio := self._timing.data_wait_ratio) is not None:
            measures["data_wait_ratio"] = ratio
        if (mfu := self._timing.mfu) is not None:
            measures["mfu"] = mfu
        if self._checkpoint_step is not None:
            measures["checkpoint_step"] = self._checkpoint_step
        if self._validation:
            measures["validation_step"] = self._validation_step
            measures["validation_loss"] = self._validation.loss
            if self._validation.exact is not None:
                measures["validation_exact"] = self._validation.exact
        if validating_samples is not None:
            measures["validating_samples"] = validating_samples
        if self._lowest_loss is not None:
            measures["lowest_validation_loss"] = self._lowest_loss
        if self._best_step is not None:
            measures["best_step"] = self._best_step
        if self._skipped:
            measures["skipped_checkpoints"] = self._skipped
        if message:
            measures["message"] = message
        self._reporter.update(self._step, self._plan.total_steps, **measures)


def _measures_of(point: CurvePoint) -> Measures:
    """What a report takes as it is from the newest point."""
    measures = Measures(
        epoch=point.epoch,
        loss=point.loss,
        learning_rate=point.learning_rate,
        grad_norm=point.grad_norm,
        samples_per_second=point.samples_per_second,
        tokens_per_second=point.tokens_per_second,
    )
    if point.peak_gpu_memory_bytes is not None:
        measures["peak_gpu_memory_bytes"] = point.peak_gpu_memory_bytes
    return measures
