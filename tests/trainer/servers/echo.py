"""A server or proxy that sends what it was sent back where no HTTP library expects it."""

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.trainer.servers.authority import Authority


@contextmanager
def run_echo(answer: Callable[[str], str], authority: Authority | None = None) -> Iterator[str]:
    """Answer each request with bytes made of its credential; the server's address.

    Args:
        answer: makes an answer of the value of the header (Proxy-)Authorization.
        authority: vouches for it; None: plain HTTP.
    """

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            said = ""
            while (line := self.rfile.readline().decode("latin-1").strip()) != "":
                name, _, value = line.partition(":")
                if name.lower() in ("authorization", "proxy-authorization"):
                    said = value.strip()
            self.wfile.write(answer(said).encode("latin-1"))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        if authority is not None:
            server.socket = authority.server_context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"{'https' if authority else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


ECHOES: dict[str, Callable[[str], str]] = {
    "a status line": lambda said: f"Authorization: {said}\r\n\r\n",
    "a status line with a quote": lambda said: f"don't: {said}\r\n\r\n",
    "a header line": lambda said: f"HTTP/1.1 200 OK\r\n{said}\r\n\r\n",
    "a chunk": lambda said: f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{said}\r\n",
    "a redirect": lambda said: f"HTTP/1.1 302 Found\r\nLocation: https://h:{said}/\r\nContent-Length: 0\r\n\r\n",
    "another protocol": lambda said: (
        f"HTTP/1.1 302 Found\r\nLocation: {said.split()[-1]}://h/\r\nContent-Length: 0\r\n\r\n"
    ),
    "an encoding": lambda said: f"HTTP/1.1 200 OK\r\nContent-Encoding: {said}\r\nContent-Length: 2\r\n\r\n{{}}",
    "a reason": lambda said: f"HTTP/1.1 403 {said}\r\nContent-Length: 0\r\n\r\n",
}
"""Where it comes back."""
