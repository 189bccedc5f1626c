"""How quick training is and when it will end, from what its steps and validations have taken.

Pure: seconds come from whoever has measured them.
"""

from collections import deque
from dataclasses import dataclass

from llava_trainer.reporting import StepRate

WINDOW_S = 30.0
"""Seconds of the newest steps over which a ratio is told: one step alone may have found its batch there or not."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """What one step has taken."""

    seconds: float
    """Of the whole step, loading and checkpoints included, validation left out."""
    data_wait_s: float
    """Those of them in which the rank that waited longest waited for its batch."""
    mfu: float | None = None
    """Model FLOPs utilisation (``utilisation``) of the step; None where it is not known."""

    @property
    def data_wait_ratio(self) -> float:
        """Fraction of the step that was spent waiting for data."""
        return min(1.0, self.data_wait_s / self.seconds)


class Timing:
    """Takes in each step and each validation of an attempt."""

    def __init__(self, first_step: int, total_steps: int, validate_every: int | None = None) -> None:
        """Begin after ``first_step`` steps.

        Args:
            first_step: steps that are done.
            total_steps: of the whole training.
            validate_every: steps between two validations; None without.
        """
        self._total_steps = total_steps
        self._validate_every = validate_every
        self._validation_s: float | None = None
        self._rate = StepRate()
        self._working_s = 0.0
        self._rate.observe(first_step, 0.0)
        self._recent: deque[StepTime] = deque()
        self._recent_s = 0.0

    def note_step(self, step: int, taken: StepTime) -> None:
        """``step`` steps are done, the last of which has taken this."""
        self._working_s += taken.seconds
        self._rate.observe(step, self._working_s)
        self._recent.append(taken)
        self._recent_s += taken.seconds
        while self._recent_s - self._recent[0].seconds >= WINDOW_S:
            self._recent_s -= self._recent.popleft().seconds

    def note_validation(self, seconds: float) -> None:
        """A validation has taken so long; those to come are expected to."""
        self._validation_s = seconds

    @property
    def data_wait_ratio(self) -> float | None:
        """Fraction of the newest steps' time that was spent waiting for data; None before the first."""
        if not self._recent:
            return None
        return min(1.0, sum(taken.data_wait_s for taken in self._recent) / sum(taken.seconds for taken in self._recent))

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation of the newest steps; None before the first, and where it is not known."""
        known = [(taken.mfu * taken.seconds, taken.seconds) for taken in self._recent if taken.mfu is not None]
        return sum(used for used, _ in known) / sum(seconds for _, seconds in known) if known else None

    def seconds_to_end(self, step: int, validations_more: float = 0.0) -> float | None:
        """Estimated seconds from the end of ``step`` to training's, with the validations that are still to come.

        Args:
            step: steps that are done.
            validations_more: what is left of the validation that follows it, as a fraction of one.

        Returns:
            None while no estimate is possible. How long a validation takes is known after the first one.
        """
        steps_s = self._rate.seconds_to(self._total_steps)
        if steps_s is None:
            return None
        validations = count_validations(step, self._total_steps, self._validate_every) + validations_more
        return min(1e9, steps_s + validations * (self._validation_s or 0.0))


def is_validation_due(step: int, total_steps: int, every: int) -> bool:
    """Whether held-out samples are looked at after ``step`` steps: every so many, and after the last."""
    return step % every == 0 or step == total_steps


def count_validations(step: int, total_steps: int, every: int | None) -> int:
    """Validations that come after more than ``step`` steps."""
    if every is None or step >= total_steps:
        return 0
    return total_steps // every - step // every + (total_steps % every != 0)
