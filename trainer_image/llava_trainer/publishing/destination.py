"""What every kind of destination can do, and what it is made with."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import httpx

from llava_trainer.publishing.content import Content
from llava_trainer.retrying import Retrier
from llava_trainer.sources.network import Network
from llava_trainer.sources.refusals import secret_field


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How a content came to stand at a destination."""

    revision: str = ""
    """The hub's commit, or the digest of a registry's manifest; empty where there is no such thing."""
    sent_bytes: int
    """What had to be sent for it; 0 where everything was there, if not seen yet by anybody."""
    was_there: bool = False
    """Whether it was visible as a whole before, and nothing is changed."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one content goes, and by which way. Every kind of destination is made from one.

    Whoever is asked over the network uses ``client`` (or builds one from ``network``) and nothing else.
    """

    field: str
    """Of the address in the spec, ``spec.publish.destinations[1].address``, for messages."""
    address: str
    """As the spec has it; its patterns are held at apply."""
    folder: Literal["", "adapter"] = ""
    """Where the content goes below the address: with ``what: both`` the adapter lies beside the merged model."""
    beside: Literal["", "adapter"] = ""
    """Folder below the content's own place that another content of the same run has: it is left alone."""
    owner: str
    """UID of the run: what is not whole yet is its own."""
    secrets: Path
    """One file a key; no such folder where the destination names no Secret."""
    plain_http: bool = False
    """Whether a registry is reached without TLS."""
    claims: Path
    """Where the operator mounts claims to publish to, each by its name."""
    network: Network
    client: httpx.Client
    """Follows no redirect by itself."""
    environ: Mapping[str, str] = dataclasses.field(repr=False)
    repeatedly: Retrier
    """Tries one request again; DestinationUnavailable after the last try."""
    check_attempt: Callable[[], None]
    """Called before anything is made visible or deleted.

    Raises:
        StageError: Superseded; a later attempt does the work.
    """

    @property
    def secret_field(self) -> str:
        """The field that names its Secret, for messages."""
        return secret_field(self.field)

    @property
    def what(self) -> str:
        """Field and address, with which every message begins."""
        return f"{self.field}: {self.address}"


class Destination(Protocol):
    """One place, reached with its own credentials."""

    def publish(self, content: Content, on_bytes: Callable[[int], None]) -> Sent:
        """Make ``content`` visible as a whole, or leave what is visible as it was.

        Called again after whatever interruption it goes on with what was sent; called again after it has succeeded it
        changes nothing and sends nothing.

        Args:
            content: what is to stand there.
            on_bytes: told how many bytes have been dealt with so far, those that were there included.

        Raises:
            StageError: DestinationRefused (something else stands there, credentials, no such place),
                DestinationUnavailable (worth another attempt), both naming field, address and fix; ResultDamaged, if a
                file is not what it was when it was made. SourceRefused and SourceUnavailable, too, which what is shared
                with fetching raises: the stage gives them publishing's reasons (``refusals.told_of_destinations``).
        """
        ...
