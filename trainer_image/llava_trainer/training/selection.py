"""Which step is the best so far, and when there is no use in going on. Pure: what a validation showed in, what follows.

Kept in every checkpoint, so that it survives restarts, and decided by the first rank for all.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from llava_api.spec import Training
from llava_trainer.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What validations have shown so far."""

    validated_step: int | None = None
    """Step after which was looked last; None before the first time."""
    best_step: int | None = None
    best_loss: float = 0.0
    best_exact: float | None = None
    """What was seen after the best step."""
    without_improvement: int = 0
    """Validations since then."""
    lowest_loss: float | None = None
    """Lowest held-out loss so far, whatever is selected by."""

    def judge(self, step: int, validation: Validation, training: Training) -> Self:
        """What is known after another validation.

        An improvement is one by ``earlyStopping.minimumDelta`` at least, and by something where that is 0: of equal
        ones the first is kept.
        """
        delta = training.early_stopping.minimum_delta if training.early_stopping else 0.0
        if selected_by(training) == "loss":
            gain = self.best_loss - validation.loss
        else:
            gain = (validation.exact or 0.0) - (self.best_exact or 0.0)
        known = replace(self, validated_step=step, lowest_loss=_lower(self.lowest_loss, validation.loss))
        # What is no number is no improvement, and is compared with nothing.
        if self.best_step is None or (gain > 0 and gain >= delta):
            return replace(
                known, best_step=step, best_loss=validation.loss, best_exact=validation.exact, without_improvement=0
            )
        return replace(known, without_improvement=self.without_improvement + 1)

    def is_over(self, training: Training) -> bool:
        """Whether early stopping ends training now."""
        stopping = training.early_stopping
        return stopping is not None and self.without_improvement >= stopping.patience

    def to_fields(self) -> dict[str, Any]:
        """As a checkpoint's state has it."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """From a checkpoint's state; nothing where it has none.

        Raises:
            TypeError: it is not what this version writes.
        """
        return cls(**fields)


def _lower(so_far: float | None, loss: float) -> float | None:
    if math.isnan(loss):
        return so_far
    return loss if so_far is None else min(so_far, loss)


def selected_by(training: Training) -> str:
    """``loss`` or ``exact``."""
    return training.keep_best.by if training.keep_best else "loss"
