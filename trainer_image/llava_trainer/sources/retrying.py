"""Trying again: exponential backoff with full jitter, a bounded number of times in a row."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from llava_trainer.sources.refusals import TransientError, unavailable

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often something is tried. Jitter keeps many pods from coming back at the same moment."""

    tries: int = 8
    """In a row, without getting anywhere."""
    first_s: float = 1.0
    most_s: float = 60.0
    most_asked_s: float = 300.0
    """Longest wait that a server may ask for: the hub counts requests over five minutes."""

    def wait_s(self, failures: int, asked_s: float | None = None) -> float:
        """Seconds to wait after so many failures in a row; no less than the server asked for, within reason."""
        longest = min(self.most_s, self.first_s * 2 ** (failures - 1))
        return max(random.uniform(0, longest), min(self.most_asked_s, asked_s or 0))


class StoppedError(Exception):
    """Another file failed, or the pod is asked to stop: nobody waits for this one any more."""


@dataclass(frozen=True, kw_only=True)
class Retrier:
    """Calls something until it raises no TransientError.

    Attributes:
        what: field and address, for the message.
        patience: how often.
        stop: set when it is no longer worth it.
    """

    what: str
    patience: Patience
    stop: threading.Event

    def __call__(self, attempt: Callable[[], _Result], has_progressed: Callable[[], bool] = lambda: False) -> _Result:
        """The result of the first try that has one.

        Args:
            attempt: one try.
            has_progressed: whether the failed try got something done; the count begins anew then, since a long file
                over a bad line breaks off often and is fetched all the same.

        Raises:
            StageError: SourceUnavailable after the last try; whatever else ``attempt`` raises.
            StoppedError: ``stop`` was set while waiting.
        """

        def count(state: tenacity.RetryCallState) -> None:
            if has_progressed():
                state.attempt_number = 1

        def wait_s(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return self.patience.wait_s(state.attempt_number, getattr(error, "wait_s", None))

        def sleep(seconds: float) -> None:
            if self.stop.wait(seconds):
                raise StoppedError

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError), after=count, wait=wait_s, sleep=sleep,
            stop=tenacity.stop_after_attempt(self.patience.tries),
        )  # fmt: skip
        try:
            return trying(attempt)
        except tenacity.RetryError as spent:
            failures, error = spent.last_attempt.attempt_number, spent.last_attempt.exception()
            raise unavailable(f"{self.what} could not be fetched, {failures} times in a row: {error}") from error
