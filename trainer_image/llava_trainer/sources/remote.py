"""What there is to fetch, one value a file whatever the protocol; what it must be, and what has come in of it."""

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from llava_trainer.sources.refusals import refused

MAX_NAME = 1024
_MAX_PART_BYTES = 230
"""File systems hold 255, and while it is fetched a file has a longer name."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What a file must hash to. ``git`` is the hub's for small files: sha1 of ``blob SIZE``, a NUL and the content."""

    algorithm: Literal["sha256", "md5", "git"]
    hex: str


class Checksum:
    """Size and hashes of what has come in.

    Args:
        digest: what the whole must hash to, if that is known.
        size: of the whole in bytes, if that is known.
    """

    def __init__(self, digest: Digest | None, size: int | None) -> None:
        self.size = 0
        self._expected = digest
        self._expected_size = size
        self._sha256 = hashlib.sha256()
        self._hashes = {"sha256": self._sha256}
        if digest is not None and digest.algorithm == "git":
            self._hashes["git"] = hashlib.sha1(f"blob {size or 0}\0".encode(), usedforsecurity=False)
        elif digest is not None and digest.algorithm == "md5":
            self._hashes["md5"] = hashlib.md5(usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        """Take in the next piece."""
        self.size += len(chunk)
        for one in self._hashes.values():
            one.update(chunk)

    @property
    def sha256(self) -> str:
        """Hex, of what has come in so far."""
        return self._sha256.hexdigest()

    def find_mismatch(self) -> str | None:
        """What is wrong with the content; None if nothing is."""
        if self._expected_size is not None and self.size != self._expected_size:
            return f"{self.size:,} bytes instead of {self._expected_size:,}"
        if self._expected is None:
            return None
        found = self._hashes[self._expected.algorithm].hexdigest()
        if found == self._expected.hex:
            return None
        name = {"git": "git blob id"}.get(self._expected.algorithm, self._expected.algorithm)
        return f"its {name} is {found} instead of {self._expected.hex}"


def bare_etag(tag: str) -> str:
    """An ETag without quotes, strong or weak: a proxy that compresses calls the same content weakly the same."""
    return tag.removeprefix("W/").strip('"')


class Listed(NamedTuple):
    """One line of a listing, as small as it gets: there may be millions."""

    name: str
    """See ``check_name``."""
    size: int
    """Bytes."""
    tag: bytes
    """What the protocol knows of the content, in its own form."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a source."""

    name: str
    """Where it goes, relative to the source's folder; see ``check_name``."""
    address: str
    """For messages: without credentials and signatures."""
    url: Callable[[], str]
    """Asked anew for every try, because signatures expire."""
    credential: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers that only the scheme, host and port of ``url`` get."""
    role: str | None = None
    """As which the ``url`` asks by the pod's own identity, for messages; None where a Secret says as whom."""
    version: str = ""
    """Commit or ETag, where it is known before the file is asked for."""
    etag: str = ""
    """What the server must still call its content, without quotes, where a listing said so."""
    size: int | None = None
    """Bytes."""
    digest: Digest | None = None
    read: Callable[[int], Generator[bytes]] | None = None
    """The bytes from an offset on, of a file whose ``url`` is not asked because another client reads it (``xet``)."""


def check_name(name: str, field: str, address: str) -> str:
    """A name that stays below the folder it is put into.

    Raises:
        StageError: SourceRefused, if it does not, or no file system can hold it.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise refused(f"{field}: {address} holds {name!r:.100}, which is no text: rename it") from error
    parts = PurePosixPath(name).parts
    too_long = len(name) > MAX_NAME or any(len(part.encode()) > _MAX_PART_BYTES for part in parts)
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name or "\\" in name or too_long:
        raise refused(f"{field}: {address} holds {name!r:.100}, which is no name below a folder: rename it")
    return str(PurePosixPath(*parts))
