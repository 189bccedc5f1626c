"""How a server of HTTP runs for a test."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.trainer.servers.authority import Authority


@contextmanager
def run_server(
    handler: type[BaseHTTPRequestHandler], authority: Authority | None = None, address: str = "127.0.0.1"
) -> Iterator[str]:
    """Serve on a free port of one address, without an authority over plain HTTP; gives the address with its scheme."""
    server = _Server((address, 0), handler)
    if authority is not None:
        server.socket = authority.server_context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if authority else 'http'}://{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up, or are killed, are what these tests are about."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
