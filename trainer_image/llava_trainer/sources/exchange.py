"""One request to a server: redirects, what an answer tells of the file, and what a failure means.

Knows nothing about files on the disk.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from llava_api.text import show
from llava_trainer.sources.refusals import TransientError, explain_status, refused, unavailable

_MAX_REDIRECTS = 5
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_PLAIN_ENCODINGS = frozenset({"", "identity", "aws-chunked"})
"""The last is what S3 remembers of how some clients upload; it sends the object as it is."""
_RATE_LIMIT = re.compile(r";\s*t=(\d{1,6})")


@contextlib.contextmanager
def open_response(client: httpx.Client, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """Ask for ``url``; redirects are followed, but never from https to http. Credentials stay with their host.

    Raises:
        TransientError: it leads to no answer.
        httpx.TransportError: see ``explain_transport``.
    """
    request = client.build_request("GET", url, headers=headers)
    for _ in range(_MAX_REDIRECTS):
        response = client.send(request, stream=True)
        try:
            following = response.next_request
            if following is None:
                yield response
                return
        finally:
            response.close()
        if urlsplit(url).scheme == "https" and following.url.scheme != "https":
            raise TransientError("the server sends on from https to another protocol, which is not followed")
        request = following
    raise TransientError(f"the server sends on more than {_MAX_REDIRECTS} times")


def version_of(response: httpx.Response) -> str:
    """What tells this version of a file from another: its strong ETag, else its time of change; empty if neither."""
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return str(tag)
    return str(response.headers.get("Last-Modified", ""))


@dataclass(frozen=True, kw_only=True)
class Body:
    """Which part of a file an answer holds, as its headers tell. Bytes.

    Attributes:
        begin: where it begins.
        end: behind its last byte; None where nothing but the connection's end, or a last chunk, tells it.
        total: of the whole file; None if it is not told.
        has_end: whether a body that breaks off can be told from a whole one.
    """

    begin: int
    end: int | None
    total: int | None
    has_end: bool


def read_body_headers(response: httpx.Response, offset: int) -> Body | None:
    """What a 200 or a 206 that answers ``bytes=OFFSET-`` holds; None if it is not what was asked for.

    https://www.rfc-editor.org/rfc/rfc9110#name-content-range
    """
    headers = response.headers
    length = int(told) if (told := headers.get("Content-Length", "")).isdecimal() else None
    has_end = length is not None or headers.get("Transfer-Encoding", "").lower() == "chunked"
    if response.status_code == 200:
        return Body(begin=0, end=length, total=length, has_end=has_end)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None:
        return None
    begin, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    if begin != offset or end <= begin or end > (end if total is None else total):
        return None
    if length is not None and length != end - begin:
        return None
    return Body(begin=begin, end=end, total=total, has_end=True)


def check_encoding(response: httpx.Response, field: str, address: str) -> None:
    """Refuse content that is not as it is stored: it would be written as if it were.

    Raises:
        StageError: SourceRefused.
    """
    told = response.headers.get("Content-Encoding", "")
    if not {part.strip().lower() for part in told.split(",")} <= _PLAIN_ENCODINGS:
        raise refused(
            f"{field}: {address} comes with Content-Encoding {show(told, max_chars=60)}, although the plain file was "
            "asked for: have the server (or what stands before it) send it as it is"
        )


def explain_transport(error: httpx.TransportError, field: str, address: str) -> Exception:
    """A failed connection: worth another try, or one that no try will mend."""
    text = f"{type(error).__name__}: {error}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return unavailable(
            f"{field}: {address}: the server's certificate is not trusted ({error}); put its authority into the "
            "ConfigMap that spec.download.caConfigMap names"
        )
    if isinstance(error, httpx.ProxyError):
        if "407" in text:
            return explain_status(407, field, address)
        return TransientError(f"the proxy refused ({error}); look at spec.download.httpsProxy and noProxy")
    if isinstance(error, httpx.UnsupportedProtocol):
        return refused(f"{field}: {address}: {error}")
    return TransientError(text)


def explain_answer(response: httpx.Response, field: str, address: str) -> Exception:
    """An answer without content: worth another try, or one that no try will mend."""
    status = response.status_code
    if status in _TRANSIENT_STATUS:
        return TransientError(f"HTTP {status}", wait_s=_asked_wait_s(response))
    return explain_status(status, field, address)


def _asked_wait_s(response: httpx.Response) -> float | None:
    asked = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    # The hub's own way to say it: RateLimit: "resolvers";r=0;t=123
    reset = _RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None
