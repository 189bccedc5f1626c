"""What an export says where an image belongs: a path, a data: URL, bytes, or the Hub's struct of bytes and path."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

from llava_trainer.data.dialogue import EntryError, tell

MAX_IMAGE_BYTES = 64 * 2**20
"""Largest image within a file: a camera's has 20 MB at most."""

Keep = Callable[[bytes], str]
"""Keeps an image that the data holds; returns what samples call it."""

_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
_MAX_HEAD = 256
"""Characters of a data: URL before its data."""
_LINK = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?/[!-~]+", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def take_image(value: Any, keep: Keep, field: str) -> str:
    """What a sample calls the image that ``value`` names or holds.

    Args:
        value: a path below dataset.images, an http address, a data: URL, bytes, or a struct of bytes and path of which
            one may be null.
        keep: keeps the content of those that have no path.
        field: where it stands, for messages.

    Raises:
        EntryError: it is none of them, or larger than allowed.
    """
    if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
        value = value.get("path") if value.get("bytes") is None else value.get("bytes")
        if value is None:
            raise EntryError(f"{field} has neither bytes nor path: write one of them")
    if isinstance(value, str) and value[:5].lower() == "data:":
        value = _decode_url(value, field)
    if isinstance(value, bytes):
        if not value:
            raise EntryError(f"{field} holds a picture of 0 bytes")
        if len(value) > MAX_IMAGE_BYTES:
            raise EntryError(f"{field} holds a picture of {len(value):,} bytes, more than {MAX_IMAGE_BYTES:,}: make it "
                             "smaller")  # fmt: skip
        return keep(value)
    if not isinstance(value, str) or not value:
        raise EntryError(f"{field} must be a path, a data: URL or bytes (is {tell(value)})")
    if _SCHEME.match(value) and not _LINK.fullmatch(value):
        raise EntryError(
            f"{field} is {tell(value)}: pictures are not fetched by such an address; put them into the dataset and "
            "name their paths, or write them as data: URLs"
        )
    return value


def _decode_url(url: str, field: str) -> bytes:
    # What says of what kind it is is short; looked for in all of it, 30 million semicolons take gigabytes.
    head = _DATA_URL.match(url, 0, _MAX_HEAD)
    if head is None or not head[1].lower().startswith("image/") or not head[2].lower().endswith(";base64"):
        raise EntryError(f"{field} is {tell(url)}: a data: URL must begin with data:image/TYPE;base64,")
    text = url[head.end() :]
    if len(text) // 4 * 3 > MAX_IMAGE_BYTES + 2:
        raise EntryError(f"{field} holds a picture of more than {MAX_IMAGE_BYTES:,} bytes: make it smaller")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EntryError(f"{field} is a data: URL whose content is not base64: {error}") from error
