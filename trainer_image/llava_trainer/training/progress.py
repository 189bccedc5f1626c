"""How far one training process is, and how long its steps take: the loop writes it down, others read it."""

from collections import deque
from dataclasses import dataclass, field

_RECENT_STEPS = 20
"""Whose slowest one tells how long a step may take: batches differ, and a checkpoint is written beside some of them."""
_ENOUGH_STEPS = 3
"""Before so many nothing is concluded: in the first ones kernels are chosen, memory is taken, connections are made."""


@dataclass
class Progress:
    """Optimiser steps of one training process. Written by the main thread alone; any thread may read."""

    step: int | None = None
    """Steps that are done in all, those of earlier attempts included; None until it is known where training begins."""
    attempt_steps: int = 0
    """Steps that this attempt has done."""
    last_step_s: float = 0.0
    """How long this process was at the last of them, without the copy for a checkpoint; 0 before the first."""
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))

    def begin(self, step: int) -> None:
        """Training begins after so many steps of earlier attempts."""
        self.step = step

    def finish_step(self, step: int, seconds: float) -> None:
        """One more is done, ``step`` in all; it took this rank so many seconds."""
        self.step = step
        self.attempt_steps += 1
        self.last_step_s = seconds

    def measure(self, seconds: float) -> None:
        """Note how long a step took. Every rank is told the first one's number, so that all conclude the same."""
        self._seconds.append(seconds)

    @property
    def slowest_step_s(self) -> float | None:
        """Seconds of the slowest of the last steps; None while too few are known."""
        # A copy: the main thread may add to it meanwhile.
        recent = tuple(self._seconds)
        return max(recent) if len(recent) >= _ENOUGH_STEPS else None
