"""Receivers of notifications of every kind, on this machine, each in a thread of its own."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENDLESS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Keeps what it is sent, and answers as told, the last answer again and again."""

    answers: list[tuple[int, dict[str, str]]]
    received: list[Received] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def next_answer(self) -> tuple[int, dict[str, str]]:
        return self.answers[min(len(self.received), len(self.answers)) - 1]


@contextlib.contextmanager
def receiving(
    *answers: int | tuple[int, dict[str, str]],
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[Receiver]:
    """A receiver with these answers: statuses, with headers or without."""
    made = Receiver([one if isinstance(one, tuple) else (one, {}) for one in answers or (202,)])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, headers = made.next_answer()
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        made.scheme = "https"
    made.port = server.server_address[1]
    with _running(server.serve_forever):
        yield made
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def saying(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that reads a little and then says anything at all, until the other side has enough; yields its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(0.1)
                    connection.recv(65536)
                    while not stop.is_set():
                        talk(connection)

    with _running(serve):
        yield int(listening.getsockname()[1])
        stop.set()
    listening.close()


@contextlib.contextmanager
def _running(serve: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)
    assert not thread.is_alive()
