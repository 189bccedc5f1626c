"""A process that does all that it can to an endpoint.

``python -m tests.controller.flood PORT CA_FILE HOST THREADS ADDRESSES``: each thread opens connections of one bad kind
again and again, and holds each until the server ends it; they come from so many addresses.
"""

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

HEAD = b"POST /v1/progress HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\n"
Connect = Callable[[], socket.socket]


def say_nothing(tcp: Connect, tls: Connect) -> None:
    _wait(tcp())


def half_handshake(tcp: Connect, tls: Connect) -> None:
    _wait(tcp(), b"\x16\x03\x01\x02\x00\x01")


def half_head(tcp: Connect, tls: Connect) -> None:
    _wait(tls(), HEAD)


def half_body(tcp: Connect, tls: Connect) -> None:
    _wait(tls(), HEAD + b"Content-Length: 1000\r\n\r\n{")


def slow_head(tcp: Connect, tls: Connect) -> None:
    with tls() as connection:
        for byte in HEAD * 100:
            connection.send(bytes([byte]))
            time.sleep(0.2)


def junk_requests(tcp: Connect, tls: Connect) -> None:
    _wait(tls(), (HEAD + b"Content-Length: 0\r\n\r\n") * 50)


KINDS = (say_nothing, half_handshake, half_head, half_body, slow_head, junk_requests)


def _wait(connection: socket.socket, said: bytes = b"") -> None:
    with connection:
        connection.sendall(said)
        while connection.recv(4096):
            pass


def main(port: int, authority: Path, host: str, num_threads: int, num_addresses: int) -> None:
    """Go on until killed."""
    trusted = ssl.create_default_context(cafile=authority)

    def flood(number: int) -> None:
        source = (f"127.9.{number % num_addresses // 250}.{number % num_addresses % 250 + 1}", 0)

        def tcp() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), timeout=60, source_address=source)

        def tls() -> socket.socket:
            return trusted.wrap_socket(tcp(), server_hostname=host)

        while True:
            with contextlib.suppress(OSError):
                KINDS[number % len(KINDS)](tcp, tls)

    for number in range(num_threads):
        threading.Thread(target=flood, args=(number,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
