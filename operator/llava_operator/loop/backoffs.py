"""How long kopf waits before it tries again: without end, where its own backoffs come to one or there are none."""

import itertools
from collections.abc import Callable, Iterator

LAST_BACKOFF_S = 30.0
"""Longest wait before a watch that was refused is tried again."""
LASTING_S = 60.0
"""A login that was good for so long is no failed one."""


class EndlessBackoffs:
    """Seconds between tries, for ever. kopf's own come to an end, and with them the watch, without a word to anyone."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5, 8, 13, 21), itertools.repeat(LAST_BACKOFF_S))


class LoginBackoffs:
    """How long the next login waits: not at all where the one before has lasted, else longer each time."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: float | None = None
        self._waits = iter(EndlessBackoffs())

    def next_s(self) -> float:
        """Seconds that the login has to wait that is asked for now."""
        if self._last is None or self._clock() - self._last >= LASTING_S:
            self._waits = iter(EndlessBackoffs())
            return 0.0
        return next(self._waits)

    def note(self) -> None:
        """There was a login just now."""
        self._last = self._clock()
