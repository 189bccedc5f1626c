"""Trying again: what a server refuses for now, and what a network file system does not show yet.

tenacity waits and counts. On top come which errors may pass, that progress begins the count anew, what a server asks to
wait, and that a wait ends when nobody waits for its result any more.
"""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from llava_api.failures import Reason
from llava_trainer.errors import StageError

Result = TypeVar("Result")

_TRANSIENT_ERRNO = frozenset({errno.ESTALE, errno.EIO})
_FIRST_LOOK_S = 0.1
_LONGEST_LOOK_S = 5.0

logger = logging.getLogger(__name__)


class TransientError(Exception):
    """A try failed in a way that the next one may not.

    Attributes:
        wait_s: what the server asked to wait; None if it said nothing.
    """

    def __init__(self, message: str, *, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class StoppedError(Exception):
    """Another file failed, or the pod is asked to stop: nobody waits for this one any more."""


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


@dataclass(frozen=True, kw_only=True)
class Retrier:
    """Calls something until it raises no TransientError.

    Attributes:
        what: field and address, for the message.
        patience: how often.
        stop: set when it is no longer worth it.
        reason: of the error after the last try.
        action: what could not be done then, for the message.
    """

    what: str
    patience: Patience
    stop: threading.Event
    reason: Reason = Reason.SOURCE_UNAVAILABLE
    action: str = "be fetched"

    def __call__(self, attempt: Callable[[], Result], has_progressed: Callable[[], bool] = lambda: False) -> Result:
        """The result of the first try that has one.

        Args:
            attempt: one try.
            has_progressed: whether the failed try got something done; the count begins anew then, since a long file
                over a bad line breaks off often and is fetched all the same.

        Raises:
            StageError: ``reason`` after the last try; whatever else ``attempt`` raises.
            StoppedError: ``stop`` was set while waiting.
        """

        def count(state: tenacity.RetryCallState) -> None:
            if has_progressed():
                state.attempt_number = 1

        def wait_s(state: tenacity.RetryCallState) -> float:
            return self.patience.wait_s(state.attempt_number, getattr(_error_of(state), "wait_s", None))

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
            raise StageError(
                self.reason, f"{self.what} could not {self.action}, {failures} times in a row: {error}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Rereading:
    """Reads what another node has written to a file system that both have mounted.

    A network file system answers from what it has cached: for up to a minute (NFS' acdirmax) a node does not see a file
    that another one has just made. A server that was restarted, or a path to it that broke, shows as ESTALE or EIO that
    are over with the next attempt. Seconds say how long such errors are waited out.
    """

    transient_s: float = 20.0
    """ESTALE and EIO."""
    missing_s: float = 0.0
    """A file that is not there; 0 for who has made it, or sees the list that it is in."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def read(self, action: Callable[[], Result]) -> Result:
        """What ``action`` gives, tried again for as long as it may yet succeed.

        Raises:
            OSError: of the last attempt.
        """
        began = self.clock()

        def is_over(state: tenacity.RetryCallState) -> bool:
            return self.clock() - began + state.upcoming_sleep > self._limit_s(_error_of(state))

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OSError), stop=is_over, sleep=self.sleep, reraise=True,
            wait=tenacity.wait_exponential(multiplier=_FIRST_LOOK_S, max=_LONGEST_LOOK_S),
            before_sleep=lambda state: logger.info("again in %.1f s: %s", state.upcoming_sleep, _error_of(state)),
        )  # fmt: skip
        return trying(action)

    def _limit_s(self, error: BaseException | None) -> float:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOENT:
            return self.missing_s
        # A stale handle is also what a node sees of a file that was replaced: as long as of one that was made.
        return max(self.transient_s, self.missing_s) if number in _TRANSIENT_ERRNO else 0.0


OF_ANOTHER_NODE = Rereading(missing_s=90.0)
"""For what another process says is there: half as long again as NFS caches what it knows of a folder at most."""


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
