"""Serves the metrics' text slice by slice, between which the event loop goes on.

At a stretch, 10,000 runs would take a second and more, in the loop that also renews the Lease and answers probes; a
thread would share the interpreter's lock and hold the loop up all the same. So the text is made, written and dropped in
slices, of all scrapes together one a round of the loop.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Final

AT_ONCE, AT_ONCE_PER_SOURCE = 16, 2
"""Scrapes at a time, of all and of one address. Two: Prometheus may come as a pair, and from behind one address."""
_CHUNK: Final = 32_768
"""Bytes that are worth a write of their own."""


class BusyError(Exception):
    """There are as many scrapes as are served at a time."""


class Exposition:
    """Exposes what several sources tell, each in slices of a few ms."""

    def __init__(self, *sources: Callable[[], Iterator[str]]) -> None:
        self._sources = sources
        self._turn = asyncio.Lock()
        self._scrapes: Counter[str] = Counter()

    @contextmanager
    def admit(self, source: str) -> Iterator[None]:
        """Count a scrape from an address as long as the context lasts.

        Raises:
            BusyError: it has to wait until others are over.
        """
        if self._scrapes[source] >= AT_ONCE_PER_SOURCE or self._scrapes.total() >= AT_ONCE:
            raise BusyError(f"{AT_ONCE_PER_SOURCE} scrapes of one address and {AT_ONCE} of all are served at a time")
        self._scrapes[source] += 1
        try:
            yield
        finally:
            self._scrapes[source] -= 1
            # Zeros go, too: whoever can have many addresses shall not fill the memory.
            self._scrapes = +self._scrapes

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The whole text."""
        slices = chain.from_iterable(source() for source in self._sources)
        pending = bytearray()
        while True:
            async with self._turn:
                text = next(slices, None)
                await asyncio.sleep(0)
            if text is None:
                break
            # A character that cannot be written shall not take everything else away.
            pending += text.encode(errors="replace")
            if len(pending) >= _CHUNK:
                yield bytes(pending)
                pending.clear()
        yield bytes(pending)
