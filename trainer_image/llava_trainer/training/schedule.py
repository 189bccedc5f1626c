"""The course of the learning rate. A pure function of the step, so that a checkpoint has nothing of it to keep."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine or a line down to a floor, or constant.

    As in transformers' ``get_scheduler``, which LLaVA trains with (with a floor ``cosine_with_min_lr``): the warm-up
    rounds up, and the first of its steps has a learning rate of 0. A run of one step has no warm-up: it would learn
    nothing.
    """

    kind: Literal["cosine", "linear", "constant"]
    total_steps: int
    warmup_ratio: float
    floor: float = 0.0
    """Share of the peak learning rate that the last step nears."""

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return math.ceil(self.total_steps * self.warmup_ratio) if self.total_steps > 1 else 0

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by in ``step`` (counted from 0)."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        left = 1.0 - progress if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.floor + (1.0 - self.floor) * max(0.0, left)
