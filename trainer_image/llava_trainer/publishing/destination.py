"""What every kind of destination can do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llava_trainer.publishing.content import Content


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How a content came to stand at a destination."""

    revision: str = ""
    """The hub's commit, or the digest of a registry's manifest; empty where there is no such thing."""
    sent_bytes: int
    """What had to be sent for it; 0 where everything was there."""


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
                file is not what it was when it was made.
        """
        ...
