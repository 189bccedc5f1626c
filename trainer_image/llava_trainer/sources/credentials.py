"""Credentials of a source: files that the operator has mounted from a Secret. They go into headers and nowhere else."""

import base64
import re
import unicodedata
from dataclasses import dataclass, field, fields
from pathlib import Path

from pydantic.alias_generators import to_camel

from llava_trainer.sources.refusals import refused

_MAX_BYTES = 65_536
_VISIBLE = re.compile(r"[!-~]+")
"""What a header can hold: ASCII without white space and controls."""
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_TEXT_KEYS = frozenset({"username", "password"})
"""They travel encoded, so that any text will do."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The keys of one Secret, there in camelCase; None where it has no such key. Never printed."""

    token: str | None = field(default=None, repr=False)
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    region: str | None = None
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    bearer: str | None = field(default=None, repr=False)


def read_credentials(folder: Path, secret_field: str) -> Credentials:
    """Read a mounted Secret; no folder is a source without one.

    Args:
        folder: one file a key.
        secret_field: the field that names the Secret, for messages.

    Raises:
        StageError: SourceRefused, if a key is empty, cannot be sent, or is half of a pair.
    """
    keys = {one.name: to_camel(one.name) for one in fields(Credentials)}
    made = Credentials(**{name: read_key(folder / key, secret_field, key) for name, key in keys.items()})
    for one, other in (("access_key_id", "secret_access_key"), ("username", "password")):
        if (getattr(made, one) is None) != (getattr(made, other) is None):
            raise refused(f"{secret_field}: the Secret must hold both {keys[one]} and {keys[other]}, or neither")
    if made.username is not None and ":" in made.username:
        raise refused(f"{secret_field}: key username of the Secret holds a colon, which ends it where it is sent")
    if made.region is not None and not _REGION.fullmatch(made.region):
        raise refused(f"{secret_field}: key region of the Secret must be a region like eu-central-1")
    return made


def web_headers(credentials: Credentials) -> dict[str, str]:
    """The header by which an https:// source is asked for."""
    if credentials.bearer is not None:
        return {"Authorization": f"Bearer {credentials.bearer}"}
    if credentials.username is not None:
        pair = f"{credentials.username}:{credentials.password}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}


def read_key(file: Path, secret_field: str, key: str) -> str | None:
    """One key of a mounted Secret; None if it has no such key. A byte order mark and white space around it are no part.

    Raises:
        StageError: SourceRefused, if it is empty or cannot be sent; what it holds is not told.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(f"{secret_field}: key {key} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise refused(f"{secret_field}: key {key} of the Secret has more than {_MAX_BYTES:,} bytes")
    try:
        value = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        # Not "from error": that one holds the content.
        raise refused(f"{secret_field}: key {key} of the Secret is no text in UTF-8: write it anew") from None
    if not value or (key not in _TEXT_KEYS and any(character.isspace() for character in value)):
        raise refused(f"{secret_field}: key {key} of the Secret is empty or has white space inside")
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise refused(f"{secret_field}: key {key} of the Secret holds control characters (a NUL, a line break)")
    if key not in _TEXT_KEYS and not _VISIBLE.fullmatch(value):
        raise refused(
            f"{secret_field}: key {key} of the Secret holds characters that no such key has: only letters, digits and "
            "signs of ASCII are sent"
        )
    return value
