"""Which step is the best so far, and when there is no use in going on. Pure: what a validation showed in, what follows.

Kept in every checkpoint, so that it survives restarts, and decided by the first rank for all.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter

from llava_api.spec import Training
from llava_trainer.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What validations have shown so far."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    validated_step: int | None = None
    """Step after which was looked last; None before the first time."""
    best_step: int | None = None
    best_loss: float = 0.0
    best_exact: float | None = None
    """What was seen after the best step."""
    reference_loss: float = 0.0
    reference_exact: float | None = None
    """What was seen at the last improvement, as early stopping counts them."""
    without_improvement: int = 0
    """Validations since then."""
    lowest_loss: float | None = None
    """Lowest held-out loss so far, whatever is selected by."""

    def judge(self, step: int, validation: Validation, training: Training) -> Self:
        """What is known after another validation.

        The best is the best, by however little; of equal shares of exact answers the one with the lower loss, and of
        what is equal in both the first. An improvement, which early stopping waits for, is a better one by
        ``earlyStopping.minimumDelta`` at least.
        """
        known = replace(self, validated_step=step, lowest_loss=_lower(self.lowest_loss, validation.loss))
        by, delta = selected_by(training), training.early_stopping.minimum_delta if training.early_stopping else 0.0
        value = _rank(validation.loss, validation.exact, by)
        if self.best_step is None or value > _rank(self.best_loss, self.best_exact, by):
            known = replace(known, best_step=step, best_loss=validation.loss, best_exact=validation.exact)
        reference = _rank(self.reference_loss, self.reference_exact, by)
        if self.best_step is None or (value > reference and value[0] - reference[0] >= delta):
            return replace(
                known, reference_loss=validation.loss, reference_exact=validation.exact, without_improvement=0
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
            ValidationError: it is not what this version writes.
        """
        # As JSON: strict about numbers, and a dataclass may come as a dict.
        return TypeAdapter(cls).validate_json(json.dumps(dict(fields)))


def _rank(loss: float, exact: float | None, by: str) -> tuple[float, float]:
    """The larger, the better; what is no number is worse than any."""
    lower = -math.inf if math.isnan(loss) else -loss
    return (lower, 0.0) if by == "loss" else (exact or 0.0, lower)


def _lower(so_far: float | None, loss: float) -> float | None:
    if math.isnan(loss):
        return so_far
    return loss if so_far is None else min(so_far, loss)


def selected_by(training: Training) -> str:
    """``loss`` or ``exact``."""
    return training.keep_best.by if training.keep_best else "loss"
