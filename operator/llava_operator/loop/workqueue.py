"""One queue of keys: each key waits in it at most once, and no key is worked on twice at a time.

A key added while it is worked on is worked on once more afterwards. Failures come back after a delay that doubles.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 60.0


class WorkQueue(Generic[K]):
    """A de-duplicating queue with delayed and repeated work. It belongs to one event loop."""

    def __init__(
        self,
        *,
        expected: tuple[type[Exception], ...] = (),
        note_wait: Callable[[K, float], None] = lambda key, seconds: None,
        note_retry: Callable[[K], None] = lambda key: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty queue.

        Args:
            expected: types of errors that are reported without their traceback.
            note_wait: called with a key that is taken, and the seconds since it was due.
            note_retry: called with a key that comes back because of an error.
            clock: seconds, of a clock that is never set.
        """
        self._expected = expected
        self._note_wait = note_wait
        self._note_retry = note_retry
        self._clock = clock
        self._ready: OrderedDict[K, float] = OrderedDict()
        """Since when each is due."""
        self._processing: set[K] = set()
        self._again: dict[K, float] = {}
        """The same, of those that are worked on."""
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._filled = asyncio.Event()

    @property
    def depth(self) -> int:
        """Keys that could be worked on now and are not."""
        return len(self._ready) + len(self._again)

    def add(self, key: K, *, delay_s: float = 0.0, first: bool = False) -> None:
        """Have ``key`` worked on, now or in ``delay_s`` seconds; the earliest of several wishes counts.

        With ``first`` it does not queue behind others.
        """
        if delay_s > 0:
            self._add_later(key, delay_s)
        else:
            self._add_due(key, self._clock(), first=first)

    def _add_due(self, key: K, since: float, *, first: bool = False) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._processing:
            self._again.setdefault(key, since)
            return
        self._ready.setdefault(key, since)
        if first:
            self._ready.move_to_end(key, last=False)
        self._filled.set()

    def _add_later(self, key: K, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        if timer := self._timers.get(key):
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._add_due, key, self._clock() + delay_s)

    async def work(self, process: Callable[[K], Awaitable[float | None]]) -> None:
        """Work on keys for ever.

        Args:
            process: works on one key and returns the seconds after which to do so again, or None. Whatever it
                raises is reported here and the key comes back after a growing delay.
        """
        while True:
            while not self._ready:
                self._filled.clear()
                await self._filled.wait()
            key, due = self._ready.popitem(last=False)
            self._processing.add(key)
            self._note_wait(key, self._clock() - due)
            try:
                delay_s = await self._attempt(key, process)
            finally:
                self._finish(key)
            if delay_s is not None:
                self.add(key, delay_s=delay_s)

    async def _attempt(self, key: K, process: Callable[[K], Awaitable[float | None]]) -> float | None:
        try:
            delay_s = await process(key)
        except Exception as error:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            self._note_retry(key)
            asked_s: float = getattr(error, "retry_after_s", None) or 0.0
            delay_s = max(asked_s, min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures, 16)))
            logger.error(
                "pass over %s failed %d times in a row, again in %.1f s: %s",
                *(key, failures + 1, delay_s, error),
                exc_info=None if isinstance(error, self._expected) else error,
            )
            return delay_s
        self._failures.pop(key, None)
        return delay_s

    def _finish(self, key: K) -> None:
        self._processing.discard(key)
        if key in self._again:
            self._add_due(key, self._again.pop(key))
