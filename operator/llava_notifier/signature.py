"""Signs requests as Standard Webhooks has it (standardwebhooks.com, version 1.0.0): receivers have libraries for it.

Signed are id, time and body, so that neither an old request nor a changed one passes. Pure.
"""

import base64
import binascii
import hashlib
import hmac

MIN_KEY_BYTES = 16
_PREFIX = b"whsec_"


class SigningKeyError(ValueError):
    """A signing key is none; the message says why and never what it is."""


def read_key(text: bytes) -> bytes:
    """The key in a Secret: base64 after ``whsec_``, or else the bytes as they are, without white space around them.

    Raises:
        SigningKeyError: it is too short, or no base64.
    """
    text = text.strip()
    key = text
    if text.startswith(_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise SigningKeyError("is no base64 behind whsec_") from None
    if len(key) < MIN_KEY_BYTES:
        raise SigningKeyError(f"has {len(key)} bytes, but needs {MIN_KEY_BYTES} or more")
    return key


def sign(key: bytes, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Headers that prove who has sent a body, and when (seconds since 1970)."""
    signed = b".".join([event_id.encode(), str(timestamp).encode(), body])
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
