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
                over a bad line breaks off often and is fetched all the same. tenacity counts tries only.

        Raises:
            StageError: SourceUnavailable after the last try; whatever else ``attempt`` raises.
            StoppedError: ``stop`` was set while waiting.
        """
        failures = 0

        def count(state: tenacity.RetryCallState) -> None:
            nonlocal failures
            failures = 1 if has_progressed() else failures + 1

        def wait_s(state: tenacity.RetryCallState) -> float:
            error = _error_of(state)
            return self.patience.wait_s(failures, error.wait_s)

        def sleep(seconds: float) -> None:
            if self.stop.wait(seconds):
                raise StoppedError

        def give_up(state: tenacity.RetryCallState) -> _Result:
            error = _error_of(state)
            raise unavailable(f"{self.what} could not be fetched, {failures} times in a row: {error}") from error

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError), after=count, wait=wait_s,
            stop=lambda state: failures >= self.patience.tries, sleep=sleep, retry_error_callback=give_up,
        )  # fmt: skip
        return trying(attempt)


def _error_of(state: tenacity.RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError), "it is what is tried again"
    return error
