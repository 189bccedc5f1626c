"""Whether this process does its work, not only whether it answers.

A leader proves it by a heartbeat that a worker of the queue takes, before any run's key that waits there; a standby by
its tries to lead, whatever comes of them: an API server that is away is not cured by a restart of this process.
"""

import asyncio
from collections.abc import Awaitable, Callable

from llava_operator.kube.objects import Key
from llava_operator.loop.workqueue import WorkQueue

HEARTBEAT = Key("", "heartbeat")
"""Key that is no run: working on it is the proof."""
MISSED_BEATS = 6
"""Heartbeats that may be missing, beyond a pass's longest time, before the process counts as stuck."""


class Health:
    """When the process last proved that it works."""

    def __init__(self, *, heartbeat_s: float, longest_pass_s: float, clock: Callable[[], float]) -> None:
        """Make one for a queue whose workers may take ``longest_pass_s`` before the next of them takes a heartbeat."""
        self._heartbeat_s = heartbeat_s
        self._limit_s = MISSED_BEATS * heartbeat_s + longest_pass_s
        self._clock = clock
        self._last = clock()
        self.is_ready = False
        """Whether it can lead, or leads."""

    def beat(self) -> None:
        """Note a proof, now."""
        self._last = self._clock()

    def note_ready(self) -> None:
        """Note that the API server has answered: it can lead, or leads."""
        self.is_ready = True

    @property
    def silence_s(self) -> float:
        """Seconds since the last proof."""
        return self._clock() - self._last

    @property
    def is_alive(self) -> bool:
        """Whether the last proof is recent enough."""
        return self.silence_s <= self._limit_s

    async def beat_while(self, work: Awaitable[None]) -> None:
        """Count as alive until ``work`` is done, which may take longer than a pass: no queue proves it yet."""
        beating = asyncio.create_task(self._beat_on())
        try:
            await work
        finally:
            beating.cancel()

    async def _beat_on(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(self._heartbeat_s)

    async def keep_beating(self, queue: WorkQueue[Key]) -> None:
        """Put the heartbeat's key on the queue, for ever."""
        while True:
            queue.add(HEARTBEAT, first=True)
            await asyncio.sleep(self._heartbeat_s)
