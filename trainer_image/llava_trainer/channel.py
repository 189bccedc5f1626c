"""One report to the operator, over a TLS connection that is kept. It takes no longer than it may, whatever answers."""

import http.client
import json
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llava_api.report import ProgressAnswer
from llava_api.run_config import Reporting
from llava_api.text import show

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAX_ANSWER_BYTES = 4096
_MAX_AUTHORITY_BYTES = 1024 * 1024
_TOKEN = re.compile("[ -~]+")
_MAX_TOLD = 200
"""Characters of an answer that are told."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the operator says to a report."""

    next_report_s: float | None = None
    """When the next report is welcome; None if the operator has not said."""
    trouble: str | None = None
    """Why the report was not accepted."""
    is_stale: bool = False
    """Whether that is because the operator has given this attempt up, or does not know of it yet."""


class Channel:
    """The way to the operator: one TLS connection for as long as it lasts."""

    def __init__(self, reporting: Reporting, timeout_s: float) -> None:
        self._reporting = reporting
        self._timeout_s = timeout_s
        self._authority = b""
        self._connection: http.client.HTTPSConnection | None = None

    def push(self, body: str) -> Answer:
        """Push one report, in ``timeout_s`` for connecting and as much for the answer.

        Raises:
            OSError: the connection failed, in TLS or below it, or took too long.
            http.client.HTTPException: what came is no HTTP.
            ValueError: the address, the token or the authority is none.
        """
        address = urlsplit(self._reporting.url)
        if address.scheme != "https" or address.hostname is None:
            url = self._reporting.url
            return Answer(trouble=f"reporting.url is {url!r} and must begin with https://: the token is sent there")
        # Both rotate while a stage runs.
        authority = _read_start(self._reporting.ca_file)
        token = self._reporting.token_file.read_text(encoding="ascii").strip()
        if not _TOKEN.fullmatch(token):
            # http.client would tell the whole header.
            raise ValueError(f"{self._reporting.token_file} holds no token")
        if authority != self._authority:
            self.close()
            self._authority = authority
        try:
            if self._connection is not None:
                try:
                    return self._exchange(self._connection, address.path, token, body)
                except (ConnectionError, http.client.BadStatusLine, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    # The operator has ended it in between, or is another process by now.
                    self.close()
            self._connection = self._connect(address.hostname, address.port)
            return self._exchange(self._connection, address.path, token, body)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, host: str, port: int | None) -> http.client.HTTPSConnection:
        # Not create_default_context: with an empty file it would trust every public authority.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self._authority.decode("ascii"))
        context.sslsocket_class = _TimedSocket
        connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)
        connection.connect()
        return connection

    def _exchange(self, connection: http.client.HTTPSConnection, path: str, token: str, body: str) -> Answer:
        assert isinstance(connection.sock, _TimedSocket), "made with the context above"
        connection.sock.ends_at = time.monotonic() + self._timeout_s
        connection.sock.settimeout(self._timeout_s)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", path or "/", body=body, headers=headers)
        answer = connection.getresponse()
        text = answer.read(_MAX_ANSWER_BYTES)
        if answer.will_close or not answer.isclosed():
            # Or it has more to say than we listen to.
            self.close()
        if not 200 <= answer.status < 300:
            is_stale = answer.status == http.client.CONFLICT
            return Answer(trouble=f"HTTP {answer.status}: {_error_of(text)}", is_stale=is_stale)
        return Answer(next_report_s=_next_report_of(text))


class _TimedSocket(ssl.SSLSocket):
    """Stops reading at an instant: the timeout of a socket alone begins anew with every byte that comes."""

    ends_at = 0.0

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0) -> int:
        """See socket.recv_into.

        Raises:
            TimeoutError: the time is over.
        """
        left_s = self.ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer took too long")
        self.settimeout(left_s)
        return super().recv_into(buffer, nbytes, flags)


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_AUTHORITY_BYTES)


def _next_report_of(answer: bytes) -> float | None:
    """When the operator wants the next report; None if it does not say so in its own form."""
    try:
        return ProgressAnswer.model_validate_json(answer).next_report_seconds
    except ValueError:
        return None


def _error_of(answer: bytes) -> str:
    """The ``error`` of an answer in the operator's form, else the answer's beginning."""
    try:
        told = json.loads(answer)
    except (ValueError, RecursionError):
        told = None
    error = told.get("error") if isinstance(told, dict) else None
    if not isinstance(error, str):
        error = answer[:_MAX_TOLD].decode("utf-8", errors="replace")
    return show(error, max_chars=_MAX_TOLD)
