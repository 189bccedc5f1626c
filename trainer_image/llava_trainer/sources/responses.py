"""One request to a server: redirects, what an answer tells of the file, and what a failure means.

Knows nothing about files on the disk.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from llava_api.text import show
from llava_trainer.retrying import TransientError
from llava_trainer.sources.refusals import READING, Access, explain_failure, refused, unavailable

_MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}
MAX_ANSWER_BYTES = 64 << 20
"""Of an answer that is read as a whole: a page of a listing has some hundred kilobytes."""
_MAX_ERROR_BYTES = 64 << 10
_CODE = re.compile(rb"<Code>(\w{1,60})</Code>")
"""S3's word for what is wrong."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_PLAIN_ENCODINGS = frozenset({"", "identity", "aws-chunked"})
"""The last is what S3 remembers of how some clients upload; it sends the object as it is."""
_PACKED_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate", "compress", "br", "zstd"})
_OWN_WORDS = ("Server disconnected without sending a response", "peer closed connection", "peer unexpectedly closed")
"""Beginnings of what httpcore and h11 say of a server that breaks off; none of them repeats what it has sent."""
_STATUS = re.compile(r"[1-9]\d\d\b")
_QUOTED = re.compile(r"'[^']*'")
_RATE_LIMIT = re.compile(r";\s*t=(\d{1,6})")


Origin = tuple[str, str, int]


def origin_of(url: str) -> Origin:
    """Scheme, host and port of an address: what a credential is pinned to.

    Raises:
        ValueError: it is no http or https address, or has a user's name in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None or parts.password is not None:
        raise ValueError("no http or https address without credentials")
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]


class WrongRedirectError(TransientError):
    """A server sends on to where nobody follows. Servers do so while they are being set up; most do it for good."""


class TooLargeError(TransientError):
    """An answer is larger than what was asked for can be."""


@contextlib.contextmanager
def open_response(
    client: httpx.Client, url: str, headers: Mapping[str, str], credential: Mapping[str, str]
) -> Iterator[httpx.Response]:
    """Ask for ``url``; redirects are followed, but never from https to http.

    Args:
        client: follows none by itself.
        url: what to ask for.
        headers: for every server on the way.
        credential: headers for the scheme, host and port of ``url`` alone: where it is sent on to another (as the hub
            sends to its CDN), they stay behind.

    Raises:
        WrongRedirectError: it leads to no answer.
        httpx.TransportError: see ``explain_transport``.
    """
    pinned = origin_of(url)
    for _ in range(_MAX_REDIRECTS):
        sent = {**headers, **credential} if origin_of(url) == pinned else headers
        response = client.send(client.build_request("GET", url, headers=sent), stream=True)
        try:
            following = response.next_request
            if following is None:
                yield response
                return
        finally:
            response.close()
        if urlsplit(url).scheme == "https" and following.url.scheme != "https":
            raise WrongRedirectError("the server sends on from https to another protocol, which is not followed")
        url = str(following.url.copy_with(username=None, password=None))
    raise WrongRedirectError(f"the server sends on more than {_MAX_REDIRECTS} times")


def read_bounded(response: httpx.Response, most: int = MAX_ANSWER_BYTES) -> bytes:
    """The whole body, as it came.

    A packed one is refused: a few bytes of it may be gigabytes before anybody has counted them.

    Raises:
        TooLargeError: it is larger than ``most`` bytes.
        TransientError: it is packed.
        httpx.RequestError: it breaks off.
    """
    if (packing := _find_packing(response)) is not None:
        raise TransientError(f"an answer with Content-Encoding{packing}, although a plain one was asked for")
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > most:
            raise TooLargeError(f"an answer of more than {most:,} bytes")
    return bytes(content)


def version_of(response: httpx.Response) -> str:
    """What tells this version of a file from another: its strong ETag, else its time of change; empty if neither."""
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return str(tag)
    return str(response.headers.get("Last-Modified", ""))


def is_tag_opaque(response: httpx.Response) -> bool:
    """Whether an S3 ETag is no MD5 although it looks like one: with keys of KMS or of the client."""
    headers = response.headers
    return (
        headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )


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
    if (packing := _find_packing(response)) is not None:
        raise refused(
            f"{field}: {address} comes with Content-Encoding{packing}, although the plain file was asked for: have the "
            "server (or what stands before it) send it as it is"
        )


def _find_packing(response: httpx.Response) -> str | None:
    """How a body is packed, with a space before it; empty where no encoding's name tells it, None if it is not."""
    parts = [part.strip().lower() for part in response.headers.get("Content-Encoding", "").split(",")]
    if set(parts) <= _PLAIN_ENCODINGS:
        return None
    # Anything else may be what the server was sent.
    return f" {', '.join(parts)}" if set(parts) <= _PLAIN_ENCODINGS | _PACKED_ENCODINGS else ""


def describe_transport(error: httpx.RequestError) -> str:
    """What went wrong with a connection, in words of the system, of TLS and of the library alone.

    The library repeats what a server or a proxy has sent, which may be the credentials that it got: as a status line
    that is none, a reason, an address to go on to. Of that nothing is told but a proxy's status.
    """
    kind = type(error).__name__
    text = str(error)
    if isinstance(error, httpx.ProxyError):
        status = _STATUS.match(text)
        return f"{kind}: HTTP {status[0]}" if status else kind
    is_own = isinstance(error, httpx.TimeoutException | httpx.NetworkError)
    if not is_own and not (isinstance(error, httpx.RemoteProtocolError) and text.startswith(_OWN_WORDS)):
        return kind
    # A redirect leads to hosts that the server has named, and TLS tells them.
    unquoted = _QUOTED.sub("'...'", text)
    return show(f"{kind}: {unquoted}", max_chars=300)


def explain_transport(error: httpx.RequestError, field: str, address: str) -> Exception:
    """A failed connection: worth another try, or one that no try will mend."""
    text = describe_transport(error)
    if isinstance(error, httpx.LocalProtocolError):
        return refused(f"{field}: {address}: the request could not be made ({text})")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return unavailable(
            f"{field}: {address}: the server's certificate is not trusted ({text}); put its authority into the "
            "ConfigMap that spec.download.caConfigMap names"
        )
    if isinstance(error, httpx.ProxyError):
        if text.endswith(" 407"):
            return explain_failure(407, field, address)
        return TransientError(f"the proxy refused ({text}); look at spec.download.httpsProxy and noProxy")
    if isinstance(error, httpx.UnsupportedProtocol):
        return refused(f"{field}: {address}: neither an http nor an https address ({text})")
    return TransientError(text)


def explain_answer(
    response: httpx.Response, field: str, address: str, *, role: str | None = None, access: Access = READING
) -> Exception:
    """An answer without content: worth another try, or one that no try will mend."""
    code = ""
    with contextlib.suppress(httpx.RequestError, TransientError):
        if found := _CODE.search(read_bounded(response, _MAX_ERROR_BYTES)):
            code = found[1].decode()
    wait_s = parse_wait_s(response.headers)
    return explain_failure(response.status_code, field, address, code=code, wait_s=wait_s, role=role, access=access)


def parse_wait_s(headers: Mapping[str, str]) -> float | None:
    """What the server asks to wait before the next try; None if it says nothing. Names of headers as httpx has them."""
    asked = headers.get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    with contextlib.suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    # The hub's own way to say it: RateLimit: "resolvers";r=0;t=123
    reset = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(reset[1]) if reset else None
