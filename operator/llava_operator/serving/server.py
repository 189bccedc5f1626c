"""Serves an aiohttp application to anybody, within the limits of ``connections``."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http import HttpProcessingError

from llava_operator.serving.connections import Closed, Connection, Limits
from llava_operator.serving.door import Door

logger = logging.getLogger(__name__)

SHUTDOWN_S = 2.0
"""Longest wait for open connections when the process ends."""
_BACKLOG = 1024
"""Connections that wait in the kernel: with fewer, a flood has those of others dropped, who try again after 1 s."""
_DOOR: web.AppKey[Door] = web.AppKey("door", Door)


def keep_for(request: web.Request, client: Hashable, next_s: float) -> bool:
    """Note that a client is known by now, and keep its connection for its next request.

    Args:
        request: of the client.
        client: whom it is from.
        next_s: seconds until its next request.

    Returns:
        Whether it is kept; False if it should rather be ended now.
    """
    connection = _connection_of(request)
    return connection is not None and request.config_dict[_DOOR].keep(connection, client, next_s)


def _connection_of(request: web.Request) -> Connection | None:
    """None if it is lost already."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, Connection) else None


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give a request its time. After a refusal there is no other one on the same connection."""
    door, connection = request.config_dict[_DOOR], _connection_of(request)
    limits = door.limits
    if connection is None:
        raise ConnectionResetError("the client is gone")
    connection.give(limits.request_s)
    try:
        if not door.requests.take(connection.source):
            door.count(Closed.RATE)
            raise web.HTTPTooManyRequests
        answer = await handler(request)
    except web.HTTPException as refusal:
        refusal.force_close()
        raise
    finally:
        # A last answer needs no longer; what is kept gets more below.
        connection.give(limits.lingering_s + limits.farewell_s)
    if answer.status >= 400:
        answer.force_close()
    elif request.keep_alive and answer.keep_alive is not False:
        connection.give(limits.idle_s + limits.farewell_s)
    return answer


@asynccontextmanager
async def serve(
    app: web.Application,
    port: int,
    *,
    count: Callable[[Closed], None],
    context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    host: str | None = None,
) -> AsyncIterator[int]:
    """Serve ``app`` as long as the context lasts; yields the port.

    Args:
        app: must not be in use yet.
        port: 0 takes a free one.
        count: called when the server ends a connection.
        context: serves TLS.
        limits: of what clients may take.
        host: address to listen at; None means all.

    Raises:
        OSError: nothing can listen there; the message names the port.
    """
    limits = limits or Limits()
    door = app[_DOOR] = Door(limits=limits, count=count)
    app.middlewares.append(_guard)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_build_logger(),
        shutdown_timeout=SHUTDOWN_S,
        keepalive_timeout=limits.idle_s,
        lingering_time=limits.lingering_s,
        max_line_size=1024,
        max_headers=32,
        # A small body may unpack to a huge one.
        auto_decompress=False,
    )
    await runner.setup()
    assert runner.server is not None
    listeners: list[socket.socket] = []
    accepting: list[asyncio.Task[None]] = []
    try:
        listeners += _listen(host, port)
        accepting += [asyncio.create_task(door.accept(one, runner.server, context)) for one in listeners]
        yield listeners[0].getsockname()[1]
    finally:
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)
        for listener in listeners:
            listener.close()
        await runner.cleanup()
        await door.close()


def _listen(host: str | None, port: int) -> list[socket.socket]:
    """Sockets for IPv4 and IPv6, as far as the machine has them."""
    listeners: list[socket.socket] = []
    errors: list[OSError] = []
    for address in (host,) if host is not None else ("0.0.0.0", "::"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listeners.append(socket.create_server((address, port), family=family, backlog=_BACKLOG))
        except OSError as error:
            errors.append(error)
    fatal = next((error for error in errors if error.errno == errno.EADDRINUSE or not listeners), None)
    for listener in listeners:
        listener.setblocking(False)
        if fatal is not None:
            listener.close()
    if fatal is not None:
        raise OSError(fatal.errno, f"port {port} cannot be listened at: {fatal.strerror}")
    return listeners


def _build_logger() -> logging.Logger:
    """Where aiohttp's server logs to: errors of ours, but not what strangers send, which would fill the log."""
    quiet = logging.Logger(f"{__name__}.http")
    quiet.parent = logger
    quiet.addFilter(_is_ours)
    return quiet


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
