"""Trying again: exponential backoff with full jitter, a bounded number of times."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

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


def try_repeatedly(
    attempt: Callable[[], _Result], *, what: str, patience: Patience, stop: threading.Event,
    has_progressed: Callable[[], bool] = lambda: False,
) -> _Result:  # fmt: skip
    """Call ``attempt`` until it raises no TransientError.

    Args:
        attempt: one try.
        what: field and address, for the message.
        patience: how often.
        stop: set when it is no longer worth it.
        has_progressed: whether the failed try got something done; the count begins anew then, since a long file over
            a bad line breaks off often and is fetched all the same.

    Raises:
        StageError: SourceUnavailable after the last try; whatever else ``attempt`` raises.
        StoppedError: ``stop`` was set while waiting.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except TransientError as error:
            failures = 1 if has_progressed() else failures + 1
            if failures >= patience.tries:
                raise unavailable(f"{what} could not be fetched, {failures} times in a row: {error}") from error
            if stop.wait(patience.wait_s(failures, error.wait_s)):
                raise StoppedError from error
