"""A connection that anybody may open: how long it may last, what clients may take, and why one is ended.

aiohttp bounds the size of a request's head, but neither the time of a handshake nor that of a body or an answer that
nobody reads.
"""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum


class Closed(StrEnum):
    """Why the server has ended a connection; the label of a metric."""

    RATE = "rate"
    """Turned away: too many new ones a second from its address, or from all; or too many requests from its address."""
    CROWDED = "crowded"
    """The oldest had to make room for a new one."""
    HANDSHAKE = "handshake"
    """No TLS was agreed on in time, or none at all."""
    SLOW = "slow"
    """No whole request came, or its answer was not read, in time."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may take. A TLS connection takes 0.29 MB, a handshake with a request about 2 ms of the loop.

    An address may stand for many pods (a node's, where traffic is masqueraded). It is not shut out when it has its
    share, but its own oldest connection makes room. Since no more than half of them are new at once, each pod behind it
    still has a second, and a report takes a tenth of one. The same holds for all addresses together.
    """

    connections: int = 64
    """Open at a time, besides kept ones."""
    connections_per_source: int = 16
    """The same from one address."""
    kept: int = 128
    """Connections that are kept for a known client, one for each; others do not crowd them out."""
    new_per_s: float = 32
    """From addresses from which known clients have come, and as many from all others."""
    new_at_once: int = 16
    """The same, after a while without."""
    new_per_source_per_s: float = 8
    new_per_source_at_once: int = 8
    requests_per_source_per_s: float = 32
    handshake_s: float = 5
    head_s: float = 10
    """From the handshake to the end of the first request's head."""
    request_s: float = 10
    """From the end of the head to the answer; the body comes within it."""
    idle_s: float = 30
    """From an answer to the end of the next request's head."""
    lingering_s: float = 1
    """How long a body that is not wanted is still read, so that its sender gets to see the answer."""
    farewell_s: float = 2
    """For the end of TLS, and for reading a last answer."""


class Connection(asyncio.Protocol):
    """One connection: hands all that comes on to aiohttp, and ends when its time is over."""

    def __init__(self, source: str, protocol: asyncio.Protocol, limits: Limits) -> None:
        self.source = source
        self.client: Hashable | None = None
        """The one that it is kept for."""
        self.task: asyncio.Task[None] | None = None
        self._protocol = protocol
        self._limits = limits
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = self._loop.create_future()
        self._ends_at = 0.0
        self._timeout: asyncio.Timeout | None = None

    async def last(self) -> None:
        """Wait until it is lost, and end it when its time is over.

        Raises:
            TimeoutError: it had to be ended.
        """
        assert self._transport is not None
        try:
            async with asyncio.timeout_at(self._ends_at) as self._timeout:
                await self._lost
        finally:
            self._timeout = None
            self._transport.abort()

    @property
    def is_made(self) -> bool:
        """Whether there has been one: asyncio also returns from handshakes that the client has broken off."""
        return self._transport is not None

    def give(self, seconds: float) -> None:
        """Let it last so long from now on."""
        self._ends_at = self._loop.time() + seconds
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self._ends_at)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol, as for the ones below; here the handshake is over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.give(self._limits.head_s)
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._protocol.connection_lost(exc)
        if not self._lost.done():
            self._lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Nothing more will come."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The client has read on."""
        self._protocol.resume_writing()
