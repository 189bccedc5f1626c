"""A file in parts, as a bucket takes it: what each hashes to, and what the whole is then known by."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from llava_trainer.publishing.content import Item, read_chunks
from llava_trainer.publishing.refusals import damaged

PART_BYTES = 16 << 20
"""How much is in memory at a time. An object's ETag follows from it: with another size, what was published before would
not be known again."""
_MAX_PARTS = 10_000
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a file."""

    number: int
    """From 1 on."""
    offset: int
    size: int
    md5: bytes
    """What S3 knows it by."""
    sha256: bytes


def digest_parts(item: Item, part_bytes: int = PART_BYTES) -> tuple[Part, ...]:
    """Read a file and tell its parts; an empty file is one empty part.

    Args:
        item: the file.
        part_bytes: of all parts but the last, unless the file would have too many: a multiple of ``CHUNK_BYTES``.

    Raises:
        StageError: ResultDamaged; it is not what it was when it was made.
    """
    size = max(part_bytes, -(-item.size // _MAX_PARTS // _MEBIBYTE) * _MEBIBYTE)
    parts: list[Part] = []
    for number, chunk in enumerate(read_chunks(item, size), start=1):
        digests = {"md5": hashlib.md5(chunk, usedforsecurity=False).digest(), "sha256": hashlib.sha256(chunk).digest()}
        parts.append(Part(number=number, offset=(number - 1) * size, size=len(chunk), **digests))
    empty = Part(
        number=1, offset=0, size=0, md5=hashlib.md5(b"", usedforsecurity=False).digest(),
        sha256=hashlib.sha256(b"").digest(),
    )  # fmt: skip
    return tuple(parts) or (empty,)


def read_part(stream: BinaryIO, item: Item, part: Part) -> bytes:
    """A part, read again from the open file to be sent.

    Raises:
        StageError: ResultDamaged; it has changed since.
    """
    try:
        stream.seek(part.offset)
        content = stream.read(part.size)
    except OSError as error:
        raise damaged(f"{item.path} cannot be read ({error.strerror}): look at the run's volume") from error
    if hashlib.sha256(content).digest() != part.sha256:
        raise damaged(f"{item.path} changes while it is published: find out who writes to the run's volume")
    return content


def etag_of(parts: Sequence[Part]) -> str:
    """The ETag of an object that was uploaded in these parts, unless it is encrypted with a key of KMS.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    joined = hashlib.md5(b"".join(part.md5 for part in parts), usedforsecurity=False).hexdigest()
    return f"{joined}-{len(parts)}"
