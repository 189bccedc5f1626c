"""Size and hashes of a file that comes in, held against what it must be."""

import hashlib

import httpx

from llava_trainer.sources.remote import Digest


class Sums:
    """Size and hashes of what has come in."""

    def __init__(self, digest: Digest | None, size: int | None) -> None:
        """Begin with nothing.

        Args:
            digest: what the whole must hash to, if that is known.
            size: of the whole in bytes, if that is known.
        """
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._other = digest.begin(size or 0) if digest is not None and digest.algorithm != "sha256" else None

    def update(self, chunk: bytes) -> None:
        """Take in the next piece."""
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self._other is not None:
            self._other.update(chunk)

    @property
    def sha256(self) -> str:
        """Hex, of what has come in so far."""
        return self._sha256.hexdigest()

    def find_mismatch(self, digest: Digest | None, size: int | None, response: httpx.Response) -> str | None:
        """What is wrong with the content; None if nothing is."""
        if size is not None and self.size != size:
            return f"{self.size:,} bytes instead of {size:,}"
        if digest is None or (digest.algorithm == "md5" and _is_tag_opaque(response)):
            return None
        found = self.sha256 if self._other is None else self._other.hexdigest()
        if found != digest.hex:
            name = {"git": "git blob id"}.get(digest.algorithm, digest.algorithm)
            return f"its {name} is {found} instead of {digest.hex}"
        return None


def _is_tag_opaque(response: httpx.Response) -> bool:
    """Whether an S3 ETag is no MD5 although it looks like one: with keys of KMS or of the client."""
    headers = response.headers
    return (
        headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )
