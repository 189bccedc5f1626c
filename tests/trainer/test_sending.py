"""What slow servers make of what they are sent: the rate counts, not how long a part takes, nor an answer."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from llava_trainer.publishing.exchange import Body, exchange
from llava_trainer.retrying import TransientError
from llava_trainer.sources import network
from llava_trainer.sources.network import SENDING, Network, build_client
from tests.trainer.places import make_place
from tests.trainer.servers.authority import Authority

BODY = bytes(8 << 20)
"""More than a kernel keeps of it."""
BYTES_PER_S = 8 << 20


@contextmanager
def run_slow_server(authority: Authority | None, answers_after_s: float = 0.0) -> Iterator[str]:
    """A server for one request, of whose body it takes BYTES_PER_S."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            if authority is not None:
                connection = authority.server_context.wrap_socket(connection, server_side=True)
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(1 << 10)
                left = len(BODY) - len(head.partition(b"\r\n\r\n")[2]) if head.startswith(b"PUT") else 0
                while left > 0 and (taken := connection.recv(16 << 10)):
                    left -= len(taken)
                    time.sleep(len(taken) / BYTES_PER_S)
                time.sleep(answers_after_s)
                if left <= 0:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http{'s' if authority else ''}://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join(10)


@pytest.mark.parametrize("tls", [True, False])
def test_large_part_may_take_its_time(authority: Authority, tls: bool) -> None:
    sending = httpx.Timeout(0.5, read=SENDING.read)
    with (
        run_slow_server(authority if tls else None) as address,
        build_client(Network(ca_pem=authority.pem)) as client,
    ):
        assert client.put(address, content=BODY, timeout=sending).status_code == 200


@pytest.mark.parametrize("tls", [True, False])
def test_server_that_takes_too_little_is_left(authority: Authority, monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    monkeypatch.setattr(network, "WINDOW_S", 0.1)
    monkeypatch.setattr(network, "MIN_BYTES_PER_S", 10 * BYTES_PER_S)
    with (
        run_slow_server(authority if tls else None) as address,
        build_client(Network(ca_pem=authority.pem)) as client,
        pytest.raises(httpx.WriteTimeout, match="slower than"),
    ):
        client.put(address, content=BODY)


def test_answer_to_what_was_sent_may_take_its_time(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(network, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(network, "WINDOW_S", 0.4)
    place = make_place("oci://127.0.0.1/a:b", tmp_path, ca_pem=authority.pem)
    with place.client:
        with run_slow_server(authority, answers_after_s=0.6) as address:
            assert exchange(place, "PUT", address, {}, Body.of(BODY)).status == 200
        with run_slow_server(authority, answers_after_s=0.6) as address, pytest.raises(TransientError):
            exchange(place, "GET", address, {})
