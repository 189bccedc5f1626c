"""What is published: files, each with its digest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_trainer.files import sha256_listing

PUBLICATION = "publication.json"
"""Lists all other files with their digests, and says which run made them. It becomes visible last."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file to publish."""

    name: str
    """Path below the destination, with slashes."""
    path: Path
    """Where it lies on the run's volume."""
    size: int
    sha256: str
    """Hex digest of its content, as it was when it was made; what is read to be sent has to have it."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A model that is published by itself."""

    what: Literal["merged", "adapter"]
    items: Sequence[Item]
    """In the order in which they are sent: weights first, then config.json, PUBLICATION last."""

    @property
    def digest(self) -> str:
        """One digest of all of it (``files.sha256_listing``)."""
        return sha256_listing({item.name: f"sha256:{item.sha256}" for item in self.items})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)
