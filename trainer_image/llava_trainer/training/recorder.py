"""What the first rank tells the world about training: the curve on the volume, and progress reports."""

import logging
import time
from collections.abc import Sequence

from llava_trainer.reporting import Measures, Reporter
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.curve import Curve, CurvePoint
from llava_trainer.training.step import StepOutcome
from llava_trainer.training.validation import Validation

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 10.0
"""Seconds between two lines in the log; the curve has every step."""


class Recorder:
    """Records every step. Speeds are those of the step itself, data loading and checkpoints included."""

    def __init__(self, history: Curve, reporter: Reporter, plan: BatchPlan, *, first_step: int = 0) -> None:
        """Record what comes after ``first_step`` steps, of which there is a checkpoint if there are any."""
        self._history = history
        self._reporter = reporter
        self._plan = plan
        self._resumed_step = first_step
        self._checkpoint_step: int | None = first_step or None
        self._skipped = ""
        self._peak_gpu_memory_bytes = 0
        self._last_entry: CurvePoint | None = None
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

    def record(
        self, step: int, outcome: StepOutcome, peak_gpu_memory_bytes: int = 0, validation: Validation | None = None
    ) -> None:
        """Record that ``step`` steps are done.

        Args:
            step: how many.
            outcome: of the last one.
            peak_gpu_memory_bytes: most memory that any GPU has been seen to take; 0 without.
            validation: what followed the step. The time that it took is not the step's.
        """
        self._peak_gpu_memory_bytes = peak_gpu_memory_bytes
        now = time.monotonic()
        validating_s = 0.0
        if validation:
            validating_s = validation.seconds
            self.record_validation(step, validation)
        seconds, self._last_time = max(now - self._last_time - validating_s, 1e-9), now
        entry = CurvePoint(
            step=step,
            epoch=self._plan.epoch_at(step),
            loss=outcome.loss,
            learning_rate=outcome.learning_rate,
            grad_norm=outcome.grad_norm,
            tokens=outcome.tokens,
            samples_per_second=outcome.samples / seconds,
            tokens_per_second=outcome.tokens / seconds,
            validation_loss=validation.loss if validation else None,
            validation_exact=validation.exact if validation else None,
        )
        self._history.append(entry)
        self._last_entry = entry
        self._report(entry)
        if now - self._last_logged >= _LOG_INTERVAL_S or step == self._plan.total_steps:
            self._last_logged = now
            logger.info(
                "step %d of %d: loss %.4f, gradient norm %.3f, learning rate %.3g, %.0f tokens/s",
                step, self._plan.total_steps, entry.loss, entry.grad_norm, entry.learning_rate, entry.tokens_per_second,
            )  # fmt: skip

    def record_validation(self, step: int, validation: Validation) -> None:
        """Have every report from now on tell what held-out samples have shown after ``step`` steps."""
        self._validation, self._validation_step = validation, step

    def record_checkpoint(self, step: int) -> None:
        """Record that the checkpoint after ``step`` steps is on the disk."""
        if step != self._checkpoint_step:
            self._checkpoint_step = step
            if self._last_entry:
                self._report(self._last_entry)

    def record_selection(self, lowest_loss: float | None, best_step: int | None) -> None:
        """Have every report tell the lowest held-out loss so far, and the best step; None where nothing is selected."""
        self._lowest_loss, self._best_step = lowest_loss, best_step

    def record_skipped(self, skipped: Sequence[str]) -> None:
        """Have every report tell that damaged checkpoints were passed over."""
        self._skipped = ", ".join(skipped)

    def _report(self, entry: CurvePoint) -> None:
        measures = Measures(
            epoch=entry.epoch,
            loss=entry.loss,
            learning_rate=entry.learning_rate,
            grad_norm=entry.grad_norm,
            samples_per_second=entry.samples_per_second,
            tokens_per_second=entry.tokens_per_second,
            losses=self._history.recent_losses,
        )
        measures["resumed_step"] = self._resumed_step
        if self._checkpoint_step is not None:
            measures["checkpoint_step"] = self._checkpoint_step
        if self._peak_gpu_memory_bytes:
            measures["peak_gpu_memory_bytes"] = self._peak_gpu_memory_bytes
        if self._validation:
            measures["validation_step"] = self._validation_step
            measures["validation_loss"] = self._validation.loss
            if self._validation.exact is not None:
                measures["validation_exact"] = self._validation.exact
        if self._lowest_loss is not None:
            measures["lowest_validation_loss"] = self._lowest_loss
        if self._best_step is not None:
            measures["best_step"] = self._best_step
        if self._skipped:
            measures["skipped_checkpoints"] = self._skipped
        self._reporter.update(entry.step, self._plan.total_steps, **measures)
