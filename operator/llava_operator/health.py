"""Whether this process does its work, not only whether it answers.

A leader proves it by a heartbeat that goes through the queue like a run's key; a standby by its tries to lead.
"""

import asyncio
from collections.abc import Callable

from llava_operator.views import Key
from llava_operator.workqueue import WorkQueue

HEARTBEAT = Key("", "heartbeat")
"""Key that is no run: working on it is the proof."""
MISSED_BEATS = 6
"""Heartbeats that may be missing before the process counts as stuck."""


class Health:
    """When the process last proved that it works."""

    def __init__(self, *, heartbeat_s: float, clock: Callable[[], float]) -> None:
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._last = clock()
        self.is_ready = False
        """Whether it can lead, or leads."""

    def beat(self) -> None:
        """Note a proof, now."""
        self._last = self._clock()
        self.is_ready = True

    @property
    def silence_s(self) -> float:
        """Seconds since the last proof."""
        return self._clock() - self._last

    @property
    def is_alive(self) -> bool:
        """Whether the last proof is recent enough."""
        return self.silence_s <= MISSED_BEATS * self._heartbeat_s

    async def keep_beating(self, queue: WorkQueue[Key]) -> None:
        """Put the heartbeat's key on the queue, for ever."""
        while True:
            queue.add(HEARTBEAT)
            await asyncio.sleep(self._heartbeat_s)
