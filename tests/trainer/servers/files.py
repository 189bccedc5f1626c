"""A server of files that fails when it is told to: it breaks off, answers 503, ignores ranges, changes a file."""

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO, Literal, Self, cast
from urllib.parse import unquote, urlsplit

from tests.trainer.servers.authority import Authority
from tests.trainer.servers.running import run_server


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one answer."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    """Bytes of the body after which the connection is cut."""
    ignore_range: bool = False
    piece: int | None = None
    """Bytes that an answer to a range holds at most, as its Content-Range says."""
    framing: Literal["length", "chunked", "close"] = "length"
    """How the body's end is told: by its length, by a last chunk, or by nothing but the connection's."""
    pause_s: float = 0
    """Between single bytes of an answer, its headers included."""
    silent: threading.Event | None = None
    """Nothing is answered until it is set."""


@dataclass(frozen=True, kw_only=True)
class Request:
    path: str
    range: str | None
    authorization: str | None
    host: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """By their names in lower case."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class FileServer:
    """Files by path. ``faults`` of a path are used up one a request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.password: str | None = None
        """What the Authorization header must be."""
        self.has_tags = True
        self.requests: list[Request] = []
        self.posts: list[bytes] = []
        """Bodies of what was pushed here."""
        self.base = ""

    def add(self, path: str, content: bytes) -> bytes:
        self.files[path] = content
        return content

    def asked(self, path: str) -> list[str | None]:
        """The ranges that were asked for of one path."""
        return [request.range for request in self.requests if request.path == path]

    def take(self, body: bytes) -> int:
        """Keep what was pushed here; the status to answer with."""
        self.posts.append(body)
        return 200

    def answer(self, request: Request) -> Answer:
        """The whole file, before faults and ranges."""
        if self.password is not None and request.authorization != self.password:
            return Answer(status=401 if request.authorization is None else 403)
        if request.path not in self.files:
            return Answer(status=404)
        content = self.files[request.path]
        tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'} if self.has_tags else {}
        return Answer(status=200, body=content, headers=tag)

    @contextmanager
    def run(self, authority: Authority | None, address: str = "127.0.0.1") -> Iterator[Self]:
        """Serve on one address; without an authority over plain HTTP."""
        outer = self

        class Handler(_Handler):
            server_of_files = outer

        with run_server(Handler, authority, address) as self.base:
            yield self


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_files: FileServer

    def do_POST(self) -> None:
        status = self.server_of_files.take(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(status, b"{}", {}, Fault())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = Request(
            path=path, range=self.headers.get("Range"), authorization=self.headers.get("Authorization"),
            host=self.headers.get("Host", ""), query=urlsplit(self.path).query,
            headers={name.lower(): value for name, value in self.headers.items()},
        )  # fmt: skip
        server = self.server_of_files
        server.requests.append(request)
        waiting = server.faults.get(path)
        fault = waiting.pop(0) if waiting else Fault()
        if fault.silent is not None:
            fault.silent.wait(30)
        if fault.status is not None:
            self._send(fault.status, b"", fault.headers, fault)
            return
        answer = server.answer(request)
        headers = {**answer.headers, **fault.headers}
        begin = re.fullmatch(r"bytes=(\d+)-", request.range or "")
        wanted = self.headers.get("If-Range")
        fits = wanted is None or wanted == answer.headers.get("ETag")
        if answer.status == 200 and begin and fits and not fault.ignore_range:
            first, size = int(begin[1]), len(answer.body)
            if first >= size:
                self._send(416, b"", {"Content-Range": f"bytes */{size}"}, fault)
                return
            end = size if fault.piece is None else min(size, first + fault.piece)
            headers = {"Content-Range": f"bytes {first}-{end - 1}/{size}", **headers}
            self._send(206, answer.body[first:end], headers, fault)
            return
        self._send(answer.status, answer.body, headers, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault) -> None:
        if fault.pause_s:
            self.wfile = cast(Any, _Slowly(self.wfile, fault.pause_s))
        self.send_response(status)
        if fault.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif fault.framing == "length" and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = fault.break_after is not None or fault.framing == "close"
        body = body if fault.break_after is None else body[: fault.break_after]
        if fault.framing == "chunked":
            self.wfile.write(b"%x\r\n" % len(body) + body + (b"\r\n0\r\n\r\n" if fault.break_after is None else b""))
        else:
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Slowly:
    """Writes one byte at a time."""

    def __init__(self, stream: BinaryIO, pause_s: float) -> None:
        self._stream = stream
        self._pause_s = pause_s

    def write(self, data: bytes) -> None:
        for number in data:
            self._stream.write(bytes([number]))
            self._stream.flush()
            time.sleep(self._pause_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
