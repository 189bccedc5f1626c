"""A signature over everything that is published, as users of model-signing verify it (OpenSSF Model Signing 1.0).

``model_signing verify key --signature model.sig --public_key KEY FOLDER`` checks what a person has downloaded. The
format is small (an in-toto statement in a DSSE envelope in a Sigstore bundle), and written here: the package
model-signing reads all files once more to sign them, signs at random, so that a repeat would differ, and brings fifteen
packages into the image, most of them for asking servers. The tests verify by it.

Source: https://github.com/sigstore/model-transparency (the format), https://github.com/secure-systems-lab/dsse (PAE).
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from llava_api.constants import SIGNING_KEYS
from llava_trainer.errors import StageError
from llava_trainer.publishing.content import Item
from llava_trainer.publishing.refusals import refused

_FIELD = "spec.publish.signing"
_KEY = SIGNING_KEYS[0]
_MAX_KEY_BYTES = 16_384
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512(),
}  # fmt: skip
"""Curves that the format knows, each with the hash that goes with it."""
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_UNSIGNED = (".cache", ".git", ".gitattributes", ".github", ".gitignore", "adapter")
"""What may lie beside the files unsigned: what hub clients and git make, and an adapter, which is signed by itself."""


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """An elliptic-curve private key. Never printed."""

    private: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of its public key in PEM, by which a verifier tells whether it has the right one."""
        public = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(public).hexdigest()

    def sign(self, content: bytes) -> bytes:
        """Signature (ECDSA, DER) of ``content``: the same each time, by RFC 6979."""
        algorithm = _HASHES[self.private.curve.name]
        return self.private.sign(content, ec.ECDSA(algorithm, deterministic_signing=True))


def read_signing_key(folder: Path) -> SigningKey:
    """Read the mounted Secret of ``spec.publish.signing``.

    Raises:
        StageError: DestinationRefused; there is none, or it cannot sign. What it holds is not told.
    """
    try:
        with (folder / _KEY).open("rb") as stream:
            content = stream.read(_MAX_KEY_BYTES + 1)
    except FileNotFoundError:
        raise _refused("the Secret has no such key") from None
    except OSError as error:
        raise _refused(f"it cannot be read: {error.strerror}") from None
    if len(content) > _MAX_KEY_BYTES:
        raise _refused(f"it has more than {_MAX_KEY_BYTES:,} bytes")
    # "from None" throughout: libraries' errors may hold what they could not read.
    try:
        private = load_pem_private_key(content.removeprefix(b"\xef\xbb\xbf"), password=None)
    except TypeError:
        raise _refused(
            "it is encrypted: decrypt it first (openssl pkcs8 -in KEY -out PLAIN), nobody is asked here"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _refused("it is no private key in PEM") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise _refused("it is not of an elliptic curve")
    if private.curve.name not in _HASHES:
        raise _refused(f"its curve is {private.curve.name}, not one of P-256, P-384 and P-521")
    return SigningKey(private=private)


def build_signature(items: Sequence[Item], key: SigningKey, *, name: str, signature_file: str) -> str:
    """The signature of all ``items``, as JSON in one line.

    Args:
        items: what a verifier finds, but for the signature itself.
        key: signs.
        name: of the model; tells people and nothing else.
        signature_file: where it will lie among the items.
    """
    payload = json.dumps(_build_statement(items, name, signature_file), separators=(",", ":")).encode()
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": key.fingerprint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _encode(payload),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": _encode(key.sign(_encode_pae(payload))), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")) + "\n"


def _build_statement(items: Sequence[Item], name: str, signature_file: str) -> dict[str, object]:
    ordered = sorted(items, key=lambda item: item.name.split("/"))
    root = hashlib.sha256(b"".join(bytes.fromhex(item.sha256) for item in ordered)).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [signature_file, *_UNSIGNED],
            },
            "resources": [{"name": item.name, "algorithm": "sha256", "digest": item.sha256} for item in ordered],
        },
    }


def _encode_pae(payload: bytes) -> bytes:
    """What of a payload is signed: DSSE's pre-authentication encoding, which binds its type."""
    return f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _refused(what: str) -> StageError:
    return refused(
        f"{_FIELD}: key {_KEY} of the Secret cannot sign: {what}. It must be an elliptic-curve private key in PEM "
        "without a password (openssl ecparam -name prime256v1 -genkey -noout)"
    )
