"""The way out: proxies, certificate authorities, the hub's address, and a least rate for what servers send and take.

One HTTP client for everything that is fetched or published. A server that lets a byte through now and then would hold
a run up for years, and a read timeout does not see it, since every byte is in time. Measured is the time that is spent
waiting for the server, headers included; idle connections and a slow disk do not count. It sits below httpx because
httpx has a limit for each read only; and for each write, of whatever size: a part of 16 MiB would have to be through in
its time.
"""

import functools
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import certifi
import httpcore
import httpx

from llava_api.addresses import is_spared
from llava_api.constants import PROXY_KEYS
from llava_api.spec import Download
from llava_trainer.sources.credentials import read_key
from llava_trainer.sources.refusals import refused

SECRET_FIELD = "spec.download.secretRef"
_HTTP_KEY, _HTTPS_KEY = PROXY_KEYS
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
"""Longest silence of a server. Shorter than the grace period, so that a pod that is asked to stop can still say so."""
ANSWER_TIMEOUT_S = 120.0
"""Until a server begins to answer what it was sent: megabytes may lie in the kernel's buffer behind a slow line, and to
make a file of many parts, or to hash and move one of gigabytes, takes its time. A signal ends the wait."""
WINDOW_S = 60.0
"""Waiting after which the rate is looked at."""
MIN_BYTES_PER_S = 1024
"""A file of 5 GB would take two months at this rate: whatever works at all is faster."""
_PIECE_BYTES = 16 << 10
"""What is written at a time: a record of TLS, which is through as a whole or not at all."""
SENDING = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=ANSWER_TIMEOUT_S)
"""For a request that changes something."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """How other machines are reached."""

    hub_endpoint: str | None = None
    """None: the hub's own."""
    http_proxy: str | None = field(default=None, repr=False)
    https_proxy: str | None = field(default=None, repr=False)
    no_proxy: str = ""
    ca_pem: str | None = field(default=None, repr=False)
    """Further authorities to trust, besides the public ones."""


def read_network(download: Download, ca_file: Path, secret: Path, environ: Mapping[str, str]) -> Network:
    """The network as the run says; what it leaves out is taken from a Secret, or the usual environment variables.

    Args:
        download: what the run says, completed by the installation.
        ca_file: further authorities.
        secret: folder with the keys httpProxy and httpsProxy of a Secret; no folder is none.
        environ: the environment.

    Raises:
        StageError: SourceRefused, if the authorities' file holds no certificate, a key of the Secret is empty, or the
            run names a Secret that has neither.
    """
    if download.secret_ref is not None and not any((secret / key).exists() for key in (_HTTP_KEY, _HTTPS_KEY)):
        # Nobody names a Secret for nothing. The installation's is not named: a namespace may do without.
        raise refused(
            f"{SECRET_FIELD}: Secret {download.secret_ref.name} has neither key {_HTTP_KEY} nor {_HTTPS_KEY}: put the "
            "proxy's address into one of them"
        )

    def chosen(said: str | None, name: str, key: str | None = None) -> str | None:
        said = said or (read_key(secret / key, SECRET_FIELD, key) if key else None)
        return said or environ.get(name.upper()) or environ.get(name) or None

    return Network(
        hub_endpoint=(download.hub_endpoint or environ.get("HF_ENDPOINT") or "").rstrip("/") or None,
        http_proxy=chosen(download.http_proxy, "http_proxy", _HTTP_KEY),
        https_proxy=chosen(download.https_proxy, "https_proxy", _HTTPS_KEY),
        no_proxy=chosen(download.no_proxy, "no_proxy") or "",
        ca_pem=_read_authorities(ca_file),
    )


def _read_authorities(file: Path) -> str | None:
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise refused(f"spec.download.caConfigMap: ca.crt must hold certificates in PEM form: {error}") from error
    return text


@functools.lru_cache(maxsize=2)
def build_tls_context(network: Network) -> ssl.SSLContext:
    """Trust in the public authorities (the machine's and certifi's) and in the network's own.

    Kept, since all clients of a stage have the same, and reading the authorities takes 40 ms.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=certifi.where())
    if network.ca_pem is not None:
        context.load_verify_locations(cadata=network.ca_pem)
    return context


def build_client(
    network: Network,
    through: Callable[[httpx.BaseTransport], httpx.BaseTransport] = lambda way_out: way_out,
    *,
    follow_redirects: bool = False,
) -> httpx.Client:
    """The client. It reads nothing from the environment.

    Args:
        network: the way out.
        through: what stands before it.
        follow_redirects: by itself; whoever does not set it looks at each (``responses``).
    """
    # Its lines hold whole addresses, signatures included.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    context = build_tls_context(network)
    transports: dict[str | None, httpx.BaseTransport] = {
        proxy: _build_transport(context, _parse_proxy(proxy, context))
        for proxy in (None, network.http_proxy, network.https_proxy)
    }
    return httpx.Client(
        transport=through(_Router(network, transports)),
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        # Nothing that is packed: of that only whoever has unpacked it knows how much it is.
        headers={"User-Agent": "llava-trainer", "Accept-Encoding": "identity"},
        trust_env=False,
        follow_redirects=follow_redirects,
    )


def _build_transport(context: ssl.SSLContext, proxy: httpx.Proxy | None) -> httpx.HTTPTransport:
    transport = httpx.HTTPTransport(verify=context, proxy=proxy)
    # httpx has no argument for it; that it works, the tests of slow servers tell.
    transport._pool._network_backend = PacedBackend()
    return transport


def choose_proxy(network: Network, scheme: str, host: str, port: int | None) -> str | None:
    """The proxy for an address; None is the direct way."""
    proxy = network.https_proxy if scheme == "https" else network.http_proxy
    return None if proxy is None or is_spared(network.no_proxy, host, port) else proxy


def _parse_proxy(proxy: str | None, context: ssl.SSLContext) -> httpx.Proxy | None:
    if proxy is None:
        return None
    try:
        parsed = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    except (ValueError, httpx.InvalidURL):
        parsed = None
    if parsed is None or parsed.url.scheme not in ("http", "https"):
        # Not the value: it may hold a password.
        raise refused(
            "spec.download.httpsProxy and httpProxy must be addresses like http://proxy.example:3128, and so must keys "
            "of these names in the Secret of spec.download.secretRef"
        )
    if parsed.url.scheme == "https":
        return httpx.Proxy(parsed.url, auth=parsed.auth, ssl_context=context)
    return parsed


@dataclass(frozen=True)
class _Router(httpx.BaseTransport):
    """Sends each request by the proxy that is meant for it, redirected ones too."""

    network: Network
    transports: Mapping[str | None, httpx.BaseTransport]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
        proxy = choose_proxy(self.network, url.scheme, url.host, port)
        return self.transports[proxy].handle_request(request)

    def close(self) -> None:
        for transport in self.transports.values():
            transport.close()


class PacedBackend(httpcore.SyncBackend):
    """httpcore's own way to the network, with a least rate for what is sent and for what comes back."""

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """See httpcore."""
        return _PacedStream(super().connect_tcp(host, port, timeout, local_address, socket_options))


class _PacedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._received = _Pace(httpcore.ReadTimeout)
        self._sent = _Pace(httpcore.WriteTimeout)
        self._is_answering = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        begin = time.monotonic()
        data = self._stream.read(max_bytes, timeout)
        if self._is_answering:
            self._received.note(time.monotonic() - begin, len(data))
        # What comes before that is the server's own time to think, which the timeout alone limits.
        self._is_answering = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._is_answering:
            # Another request: what the last one left waiting is not its.
            self._received.begin()
            self._sent.begin()
            self._is_answering = False
        whole = memoryview(buffer)
        for offset in range(0, len(whole), _PIECE_BYTES):
            piece = whole[offset : offset + _PIECE_BYTES]
            begin = time.monotonic()
            self._stream.write(piece, timeout)  # type: ignore[arg-type]  # sockets take what is no copy
            self._sent.note(time.monotonic() - begin, len(piece))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        return _PacedStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Pace:
    """Time spent waiting, and what came of it."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error
        self.begin()

    def begin(self) -> None:
        self._waited_s, self._num_bytes = 0.0, 0

    def note(self, waited_s: float, num_bytes: int) -> None:
        self._waited_s += waited_s
        self._num_bytes += num_bytes
        if self._waited_s >= WINDOW_S:
            if self._num_bytes < MIN_BYTES_PER_S * self._waited_s:
                raise self._error(f"slower than {MIN_BYTES_PER_S:,} bytes a second")
            self.begin()
