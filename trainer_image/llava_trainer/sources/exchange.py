"""One request to a server: redirects, what an answer tells of the file, and what a failure means.

Knows nothing about files on the disk.
"""

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from llava_trainer.sources.refusals import TransientError, explain_status, refused, unavailable

_MAX_REDIRECTS = 5
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
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
