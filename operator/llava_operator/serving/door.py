"""The door that connections come through: how many there are, which are let in, and which one goes.

aiohttp does not bound their number. So they are accepted here; everything behind that is asyncio's and aiohttp's.

It shares the process' event loop. In a thread it would share the interpreter's lock, and hold the loop up all the same.
What keeps the work for strangers small is that little of it is let in: so many handshakes a second, and one request
that is refused on each.
"""

import asyncio
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from llava_operator.recent import Recent
from llava_operator.serving.allowances import MAX_KNOWN, Allowances
from llava_operator.serving.connections import Closed, Connection, Limits

logger = logging.getLogger(__name__)

_BATCH = 16
"""Connections that are accepted in one go."""
_BREATH_S = 0.004
"""Pause after one was turned away: more than 4,000 a second stay in the kernel's queue."""
_RETRY_S = 1.0
"""Pause after a connection could not be accepted: no file descriptor is left."""
_THE_KNOWN, _STRANGERS = "addresses of known clients", "all others"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: what was turned away leaves nothing behind in the kernel either."""


@dataclass(kw_only=True)
class Door:
    """Lets connections in, knows which are open, and decides which one goes when there are too many."""

    limits: Limits
    count: Callable[[Closed], None]
    clock: Callable[[], float] = time.monotonic
    _strangers: dict[str, dict[Connection, None]] = field(default_factory=dict)
    """By address, the oldest first."""
    _kept: dict[Hashable, Connection] = field(default_factory=dict)
    _known: Recent[str] = field(default_factory=lambda: Recent(MAX_KNOWN))
    """Addresses of known clients."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        limits = self.limits
        self._new: Allowances[str] = Allowances(per_s=limits.new_per_s, burst=limits.new_at_once, clock=self.clock)
        self._calm: Allowances[str] = Allowances(per_s=1, burst=1, clock=self.clock)
        self._new_of_source: Allowances[str] = Allowances(
            per_s=limits.new_per_source_per_s, burst=limits.new_per_source_at_once, clock=self.clock
        )
        self.requests: Allowances[str] = Allowances(
            per_s=limits.requests_per_source_per_s, burst=round(2 * limits.requests_per_source_per_s), clock=self.clock
        )

    async def accept(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        """Accept connections, for ever."""
        while True:
            await _wait_readable(listener)
            are_welcome = True
            try:
                for _ in range(_BATCH):
                    sock, address = listener.accept()
                    sock.setblocking(False)
                    are_welcome &= self._receive(sock, address[0], protocol, context)
            except BlockingIOError:
                pass
            except OSError as error:
                logger.warning("no connection can be accepted, again in %g s: %s", _RETRY_S, error)
                await asyncio.sleep(_RETRY_S)
            if not are_welcome:
                await asyncio.sleep(_BREATH_S)

    def _receive(
        self,
        sock: socket.socket,
        source: str,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
    ) -> bool:
        """Serve a connection or turn it away."""
        # New runs share what a flood from many addresses leaves; those that have reported do not share it.
        others = _THE_KNOWN if source in self._known else _STRANGERS
        # Half is left to those that come once in a while, as the kubelet does.
        leave = 0 if self._calm.take(source) else self.limits.new_at_once / 2
        if self._new_of_source.take(source) and self._new.take(others, leave=leave):
            self._make_room(source)
            self._serve(sock, Connection(source, protocol(), self.limits), context)
            return True
        self.count(Closed.RATE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.close()
        return False

    def keep(self, connection: Connection, client: Hashable, next_s: float) -> bool:
        """See ``keep_for``; it takes the place of the connection that the client had."""
        self._known.add(connection.source)
        before = self._kept.get(client)
        is_over = connection.task is None or connection.task.done()
        if is_over or next_s >= self.limits.idle_s or (before is None and len(self._kept) >= self.limits.kept):
            return False
        if before is connection:
            return True
        if before is not None:
            self._end(before)
        self._forget(connection)
        self._kept[client], connection.client = connection, client
        return True

    async def close(self) -> None:
        """End what is open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # asyncio closes their sockets in the loop's next round.
        await asyncio.sleep(0)

    def _make_room(self, source: str) -> None:
        of_source = self._strangers.get(source, {})
        if len(of_source) >= self.limits.connections_per_source:
            self._end(next(iter(of_source)))
        if sum(map(len, self._strangers.values())) >= self.limits.connections:
            most = max(self._strangers, key=lambda one: len(self._strangers[one]))
            self._end(next(iter(self._strangers[most])))

    def _end(self, connection: Connection) -> None:
        self.count(Closed.CROWDED)
        self._forget(connection)
        assert connection.task is not None
        connection.task.cancel()

    def _serve(self, sock: socket.socket, connection: Connection, context: ssl.SSLContext | None) -> None:
        self._strangers.setdefault(connection.source, {})[connection] = None
        connection.task = asyncio.create_task(self._last(sock, connection, context))
        self._tasks.add(connection.task)
        # Not in the task itself: one that is cancelled before its first step runs nothing of it.
        connection.task.add_done_callback(lambda task: self._bury(task, sock, connection))

    def _bury(self, task: asyncio.Task[None], sock: socket.socket, connection: Connection) -> None:
        self._tasks.discard(task)
        self._forget(connection)
        sock.close()

    async def _last(self, sock: socket.socket, connection: Connection, context: ssl.SSLContext | None) -> None:
        """From the handshake to the end of a connection."""
        loop = asyncio.get_running_loop()
        tls = {"ssl_handshake_timeout": self.limits.handshake_s, "ssl_shutdown_timeout": self.limits.farewell_s}
        try:
            await loop.connect_accepted_socket(lambda: connection, sock, ssl=context, **(tls if context else {}))
            if connection.is_made:
                await connection.last()
            else:
                self.count(Closed.HANDSHAKE)
        except TimeoutError:
            self.count(Closed.SLOW if connection.is_made else Closed.HANDSHAKE)
        except OSError:
            # ssl's errors are OSErrors.
            self.count(Closed.HANDSHAKE)

    def _forget(self, connection: Connection) -> None:
        of_source = self._strangers.get(connection.source, {})
        of_source.pop(connection, None)
        if not of_source:
            self._strangers.pop(connection.source, None)
        if self._kept.get(connection.client) is connection:
            del self._kept[connection.client]


async def _wait_readable(listener: socket.socket) -> None:
    """Wait until there is a connection to accept. sock_accept loses the one that it has when it is cancelled."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(listener, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(listener)
