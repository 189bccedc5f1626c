"""One request that sends something, and its answer, which is small. Trying again is for who asks."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx

from llava_trainer.publishing.destination import Place
from llava_trainer.retrying import TransientError
from llava_trainer.sources.network import SENDING
from llava_trainer.sources.refusals import WRITING, explain_failure
from llava_trainer.sources.responses import Origin, explain_transport, origin_of, parse_wait_s, read_bounded

MAX_ANSWER_BYTES = 4 << 20
"""What a registry has to take for a manifest, and so the most that one may have."""
_CODE = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,60})"')
_WITH_BODY = ("POST", "PUT", "PATCH")


@dataclass(frozen=True, kw_only=True)
class Body:
    """What is sent; read anew for every try."""

    read: Callable[[], Iterator[bytes]]
    size: int
    """Bytes; what is read has to have as many."""

    @classmethod
    def of(cls, content: bytes) -> "Body":
        """What is in memory."""
        return cls(read=lambda: iter((content,)), size=len(content))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: httpx.Headers = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def code(self) -> str:
        """A registry's own word for what is wrong; empty if it has none."""
        found = _CODE.search(self.content)
        return found[1].decode() if found else ""


def address_of(url: str) -> tuple[httpx.URL, Origin]:
    """An address that a server has named, and what a credential for it would be pinned to.

    Raises:
        ValueError: it is none of http or https, or has a user's name in it.
    """
    try:
        return httpx.URL(url), origin_of(url)
    except httpx.InvalidURL:
        # Its text holds the address.
        raise ValueError("no address") from None


def exchange(
    place: Place,
    method: str,
    url: str | httpx.URL,
    headers: Mapping[str, str],
    body: Body | None = None,
    *,
    told: str = "",
) -> Answer:
    """Ask once; no redirect is followed.

    Args:
        place: the way out, and field and address for messages.
        method: of HTTP.
        url: not told in messages: it may hold a signature.
        headers: credentials among them; whoever asks has seen to where they go.
        body: what is sent.
        told: what is asked instead of the address, for messages.

    Raises:
        TransientError: the connection failed.
        StageError: SourceRefused or SourceUnavailable; it can never work. What ``body.read`` raises.
    """
    size = {"Content-Length": str(body.size if body else 0)} if body or method in _WITH_BODY else {}
    timeout = SENDING if method in _WITH_BODY else httpx.USE_CLIENT_DEFAULT
    request = place.client.build_request(
        method, url, headers={**headers, **size}, content=body.read() if body and body.size else None, timeout=timeout
    )
    try:
        response = place.client.send(request, stream=True)
        try:
            content = b"" if method == "HEAD" else read_bounded(response, MAX_ANSWER_BYTES)
        finally:
            response.close()
    except httpx.RequestError as error:
        # Its text may hold what was sent.
        raise explain_transport(error, place.field, told or place.address) from None
    return Answer(status=response.status_code, headers=response.headers, content=content)


def explain(place: Place, answer: Answer, *, told: str = "") -> Exception:
    """What an answer means that was not hoped for: worth another try (TransientError), or one that no try will mend."""
    return explain_failure(
        answer.status, place.field, told or place.address, code=answer.code, wait_s=parse_wait_s(answer.headers),
        access=WRITING,
    )  # fmt: skip


def try_again(answer: Answer) -> TransientError:
    """An answer that another try may not get."""
    return TransientError(f"HTTP {answer.status}{f' ({answer.code})' if answer.code else ''}")
