"""A least rate for what servers send: one that lets a byte through now and then would hold a run up for years.

A read timeout does not see it, since every byte is in time. Measured is the time that is spent waiting for the server,
headers included; idle connections and a slow disk do not count. It sits below httpx because httpx has a limit for each
read only.
"""

import time
from collections.abc import Iterable
from typing import Any

import httpcore

WINDOW_S = 60.0
"""Waiting after which the rate is looked at."""
MIN_BYTES_PER_S = 1024
"""A file of 5 GB would take two months at this rate: whatever works at all is faster."""


class PacedBackend(httpcore.SyncBackend):
    """httpcore's own way to the network, with a least rate for what comes back."""

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """See httpcore."""
        return _PacedStream(super().connect_tcp(host, port, timeout, local_address, socket_options))


class _PacedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._waited_s = 0.0
        self._num_bytes = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        begin = time.monotonic()
        data = self._stream.read(max_bytes, timeout)
        self._waited_s += time.monotonic() - begin
        self._num_bytes += len(data)
        if self._waited_s >= WINDOW_S:
            if self._num_bytes < MIN_BYTES_PER_S * self._waited_s:
                raise httpcore.ReadTimeout(f"slower than {MIN_BYTES_PER_S:,} bytes a second")
            self._begin_window()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Another request: what the last one left waiting is not its.
        self._begin_window()
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        return _PacedStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _begin_window(self) -> None:
        self._waited_s, self._num_bytes = 0.0, 0
