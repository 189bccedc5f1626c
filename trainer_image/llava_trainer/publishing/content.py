"""What is published: files, each with its digest."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from llava_trainer.files import sha256_listing
from llava_trainer.publishing.refusals import damaged

PUBLICATION = "publication.json"
"""Lists all other files but the signature with their digests, and says which run made them. It becomes visible last."""
SIGNATURE = "model.sig"
"""Signs all other files, PUBLICATION included."""
CONFIG = "config.json"
"""Without it nothing loads a model."""
CHUNK_BYTES = 1 << 20

What = Literal["merged", "adapter"]


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

    what: What
    items: Sequence[Item]
    """In the order in which they are sent: weights first, then CONFIG, PUBLICATION last."""

    @property
    def digest(self) -> str:
        """One digest of all of it (``files.sha256_listing``)."""
        return sha256_listing({item.name: f"sha256:{item.sha256}" for item in self.items})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)


def read_chunks(item: Item, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The whole file; whoever has got it to the end has got what was made.

    Raises:
        StageError: ResultDamaged, at the latest behind the last chunk.
    """
    digest, size = hashlib.sha256(), 0
    with open_item(item) as stream:
        while chunk := _read(stream, item, chunk_bytes):
            digest.update(chunk)
            size += len(chunk)
            if size > item.size:
                break
            yield chunk
    if size != item.size or digest.hexdigest() != item.sha256:
        told = f"{size:,} bytes" if size != item.size else f"sha256 {digest.hexdigest()}"
        made = f"{item.size:,}" if size != item.size else item.sha256
        raise damaged(f"{item.path} has {told} and was made with {made}: {_FIX}")


def read_span(item: Item, offset: int, size: int) -> Iterator[bytes]:
    """``size`` bytes of the file from ``offset`` on; whoever is sent them tells by a digest whether they have changed.

    Raises:
        StageError: ResultDamaged; they are not there any more.
    """
    with open_item(item) as stream:
        stream.seek(offset)
        while size and (chunk := _read(stream, item, min(size, CHUNK_BYTES))):
            size -= len(chunk)
            yield chunk
    if size:
        check_item(item)


def check_item(item: Item) -> None:
    """Read the whole file.

    Raises:
        StageError: ResultDamaged; it is not what it was when it was made.
    """
    for _ in read_chunks(item):
        pass


@contextmanager
def open_item(item: Item) -> Iterator[BinaryIO]:
    """Open the file, for reading parts of it whose digests are known (``read_chunks`` looks at the whole).

    Raises:
        StageError: ResultDamaged; it is gone, or no plain file.
    """
    try:
        # A pipe would be waited for without end.
        descriptor = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise damaged(f"{item.path} cannot be read ({error.strerror}): {_FIX}") from error
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise damaged(f"{item.path} is no plain file any more: {_FIX}")
        yield stream


def order_items(items: Sequence[Item]) -> list[Item]:
    """The order of ``Content.items``: the largest first, what makes a model of them last."""
    last = (CONFIG, "adapter_config.json", SIGNATURE, PUBLICATION)
    ranks = {name: rank for rank, name in enumerate(last, start=1)}
    return sorted(items, key=lambda item: (ranks.get(item.name, 0), -item.size, item.name))


_FIX = "look at the run's volume, and train or merge again in another run"


def _read(stream: BinaryIO, item: Item, most_bytes: int) -> bytes:
    try:
        return stream.read(most_bytes)
    except OSError as error:
        raise damaged(f"{item.path} cannot be read ({error.strerror}): {_FIX}") from error
