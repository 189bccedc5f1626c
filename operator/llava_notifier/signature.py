"""Signs requests as Standard Webhooks has it (standardwebhooks.com, version 1.0.0): receivers have libraries for it.

Signed are id, time and body, so that neither an old request nor a changed one passes. Pure.
"""

import base64
import binascii
from datetime import UTC, datetime

from standardwebhooks import Webhook

MIN_KEY_BYTES = 16
_PREFIX = b"whsec_"


class SigningKeyError(ValueError):
    """A signing key is none; the message says why and never what it is."""


def read_key(text: bytes) -> bytes:
    """The key in a Secret: base64 after ``whsec_``, or else the bytes as they are, without white space around them.

    Raises:
        SigningKeyError: it is too short, or no base64.
    """
    key = text.strip()
    if key.startswith(_PREFIX):
        try:
            key = base64.b64decode(key.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise SigningKeyError("is no base64 behind whsec_") from None
    if len(key) < MIN_KEY_BYTES:
        raise SigningKeyError(f"has {len(key)} bytes, but needs {MIN_KEY_BYTES} or more")
    return key


def sign(key: bytes, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Headers that prove who has sent a body (UTF-8), and when (seconds since 1970)."""
    instant = datetime.fromtimestamp(timestamp, UTC)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": Webhook(key).sign(event_id, instant, body.decode()),
    }
