"""Stands before a server, speaks TLS, and does to one request after the other what it is told to.

It lets a request's body break off on the way, answers in the server's place, loses an answer, or calls something (which
kills the client, say) before a request gets through, or after.
"""

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Self
from urllib.parse import urlsplit

from tests.trainer.servers.authority import Authority
from tests.trainer.servers.running import run_server

_PIECE = 64 << 10
_OF_A_CONNECTION = ("connection", "transfer-encoding", "content-length", "date", "server")
"""Headers of an answer that are not handed on."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one request."""

    cut_after: int | None = None
    """Bytes of its body that the server gets before both connections are cut."""
    status: int | None = None
    """Answered in the server's place, which gets nothing."""
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    loses_answer: bool = False
    """The server gets all of it, and the client no answer."""
    before: Callable[[], None] | None = None
    """Called before the server gets any of it; nothing more happens then."""
    after: Callable[[], None] | None = None
    """Called when the server has answered; the answer is lost."""


@dataclass(frozen=True, kw_only=True)
class Relayed:
    """A request as it came."""

    method: str
    path: str
    """With its query."""
    authorization: str | None
    size: int
    """Bytes of its body, as its header tells."""
    headers: dict[str, str]
    """By their names in lower case."""


class Relay:
    """``faults`` by a request's number, from 0; ``choose`` decides where no number is known beforehand."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.requests: list[Relayed] = []
        self.faults: dict[int, Fault] = {}
        self.choose: Callable[[Relayed], Fault | None] = lambda request: None
        self.base = ""
        self._lock = threading.Lock()

    def begin(self, faults: dict[int, Fault] | None = None) -> None:
        """Count from 0 again."""
        with self._lock:
            self.requests = []
            self.faults = dict(faults or {})
            self.choose = lambda request: None

    def take(self, request: Relayed) -> Fault:
        """What happens to this one."""
        with self._lock:
            self.requests.append(request)
            return self.faults.get(len(self.requests) - 1) or self.choose(request) or Fault()

    @contextmanager
    def run(self, authority: Authority | None) -> Iterator[Self]:
        """Serve on a free port of 127.0.0.1; without an authority over plain HTTP."""
        outer = self

        class Handler(_Handler):
            relay = outer

        with run_server(Handler, authority) as self.base:
            yield self


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    relay: Relay
    disable_nagle_algorithm = True
    """Headers and body of an answer are two packets: the second would wait until the first is acknowledged."""

    def _relay(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        request = Relayed(
            method=self.command, path=self.path, authorization=self.headers.get("Authorization"), size=size,
            headers={name.lower(): value for name, value in self.headers.items()},
        )  # fmt: skip
        fault = self.relay.take(request)
        if fault.before is not None:
            fault.before()
            self._cut()
        elif fault.status is not None:
            self.rfile.read(size)
            self._answer(fault.status, [*fault.headers], fault.body)
        else:
            self._forward(size, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _relay

    def _forward(self, size: int, fault: Fault) -> None:
        upstream = self.relay.upstream
        assert upstream.hostname is not None
        connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "keep-alive"):
                    connection.putheader(name, value)
            if isinstance(self.connection, ssl.SSLSocket):
                connection.putheader("X-Forwarded-Proto", "https")
            connection.endheaders()
            left = size if fault.cut_after is None else min(size, fault.cut_after)
            while left and (piece := self.rfile.read(min(left, _PIECE))):
                connection.send(piece)
                left -= len(piece)
            if fault.cut_after is not None:
                self._cut()
                return
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if fault.after is not None:
            fault.after()
        if fault.loses_answer or fault.after is not None:
            self._cut()
            return
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _OF_A_CONNECTION]
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(response.status, kept, body, length)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True
        # Also where the client still sends: what it has sent lies unread, so that it is a reset.
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass
