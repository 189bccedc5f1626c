"""What a file must be, and what has come in of it: size and hashes."""

import hashlib
from dataclasses import dataclass
from typing import Literal


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
