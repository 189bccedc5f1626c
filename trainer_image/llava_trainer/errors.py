"""The one error by which a stage says why it cannot go on; every layer of the trainer may raise it."""

from llava_api.failures import Reason
from llava_api.text import show

LOST_CONNECTION_SIGN = "gloo/transport"
"""What an error of gloo says, which has no type of its own, where another process has gone."""


class StageError(Exception):
    """A stage cannot succeed, and the reason is known.

    Attributes:
        reason: row of the failure table, and with it the exit code.
        message: what is wrong, with the field or file, the value and the fix.
        rank: global rank of the process that failed first, in training.
        log_tail: last lines of that process's log, where it is not this process's own.
        step: optimiser steps that were done in all, in training.
        attempt_steps: those that this attempt has done.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        rank: int | None = None,
        log_tail: str = "",
        step: int | None = None,
        attempt_steps: int | None = None,
    ) -> None:
        # Messages name files and repeat what servers and libraries said: fit to show from here on.
        self.message = show(message, multiline=True)
        super().__init__(f"{reason}: {self.message}")
        self.reason = reason
        self.rank = rank
        self.log_tail = log_tail
        self.step = step
        self.attempt_steps = attempt_steps
