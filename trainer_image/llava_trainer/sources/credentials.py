"""Credentials of a source: files that the operator has mounted from a Secret. They go into headers and nowhere else."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

from llava_trainer.sources.refusals import refused

_KEYS = {
    "token": "token",
    "access_key_id": "accessKeyId",
    "secret_access_key": "secretAccessKey",
    "session_token": "sessionToken",
    "endpoint": "endpoint",
    "region": "region",
    "username": "username",
    "password": "password",
    "bearer": "bearer",
}
_MAX_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The keys of one Secret; None where it has no such key. Never printed."""

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
        StageError: SourceRefused, if a key is empty, no text or half of a pair.
    """
    values = {attribute: read_key(folder / key, secret_field, key) for attribute, key in _KEYS.items()}
    made = Credentials(**values)
    for one, other in (("access_key_id", "secret_access_key"), ("username", "password")):
        if (getattr(made, one) is None) != (getattr(made, other) is None):
            raise refused(f"{secret_field}: the Secret must hold both {_KEYS[one]} and {_KEYS[other]}, or neither")
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
    """One key of a mounted Secret; None if it has no such key.

    Raises:
        StageError: SourceRefused, if it is empty or no text.
    """
    try:
        with file.open("rb") as stream:
            value = stream.read(_MAX_BYTES).decode("utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise refused(f"{secret_field}: key {key} cannot be read: {error}") from error
    if not value or any(character.isspace() for character in value if key != "password"):
        raise refused(f"{secret_field}: key {key} of the Secret is empty or has white space inside")
    return value
