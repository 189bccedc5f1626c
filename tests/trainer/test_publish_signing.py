"""Signatures of what is published, verified by model-signing as whoever downloads a model does."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import verifying

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.publishing.content import Item
from llava_trainer.publishing.signing import SigningKey, build_signature, read_signing_key

FILES = {
    "config.json": "{}",
    "model.safetensors": "weights",
    "nested/a b.txt": "x",
    "nested-b.txt": "y",
    "README.md": "z",
}
SIGNATURE = "model.sig"


def dump(key: object, encryption: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())  # type: ignore[attr-defined]


def make_secret(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "privateKey").write_bytes(content)
    return folder


def make_key(folder: Path, curve: ec.EllipticCurve | None = None) -> tuple[SigningKey, Path]:
    """A key as it is mounted, and the file of its public one."""
    private = ec.generate_private_key(curve or ec.SECP256R1())
    public = folder / "public.pem"
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return read_signing_key(make_secret(folder / "secret", dump(private))), public


def make_items(folder: Path) -> tuple[Item, ...]:
    items = []
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        digest = hashlib.sha256(content.encode()).hexdigest()
        items.append(Item(name=name, path=path, size=len(content), sha256=digest))
    return tuple(items)


def verify(folder: Path, public: Path) -> str:
    """What model-signing says, "" if it is content."""
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / SIGNATURE)
    except (ValueError, InvalidSignature) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def sign(folder: Path, key: SigningKey) -> str:
    text = build_signature(make_items(folder), key, name="invoices", signature_file=SIGNATURE)
    (folder / SIGNATURE).write_text(text)
    return text


def test_who_downloads_can_verify_and_sees_each_change(tmp_path: Path) -> None:
    folder = tmp_path / "downloaded"
    key, public = make_key(tmp_path)
    sign(folder, key)
    # What the hub's client leaves, and an adapter that is signed by itself.
    for beside in (".cache/huggingface/x", ".gitattributes", "adapter/model.sig"):
        (folder / beside).parent.mkdir(parents=True, exist_ok=True)
        (folder / beside).write_text("beside")
    assert verify(folder, public) == ""
    command = [Path(sys.executable).with_name("model_signing"), "verify", "key", "--signature", folder / SIGNATURE]
    done = subprocess.run([*command, "--public_key", public, folder], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr
    (folder / "model.safetensors").write_text("weightz")
    assert "Hash mismatch for 'model.safetensors'" in verify(folder, public)
    (folder / "model.safetensors").write_text("weights")
    (folder / "more.py").write_text("import os")
    assert "Extra files" in verify(folder, public)
    (folder / "more.py").unlink()
    (folder / "README.md").unlink()
    assert "Missing files" in verify(folder, public)


def test_another_key_and_another_statement_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / "downloaded"
    key, _ = make_key(tmp_path)
    signed = json.loads(sign(folder, key))
    (tmp_path / "other").mkdir()
    other, other_public = make_key(tmp_path / "other")
    assert "Key mismatch" in verify(folder, other_public)
    # The right key's name over another key's signature.
    signed["verificationMaterial"]["publicKey"]["hint"] = other.fingerprint
    (folder / SIGNATURE).write_text(json.dumps(signed))
    assert "InvalidSignature" in verify(folder, other_public)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_larger_curves(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    key, public = make_key(tmp_path, curve)
    sign(tmp_path / "downloaded", key)
    assert verify(tmp_path / "downloaded", public) == ""


def test_signing_again_gives_the_same(tmp_path: Path) -> None:
    key, _ = make_key(tmp_path)
    assert sign(tmp_path / "a", key) == sign(tmp_path / "a", key)


def test_the_key_may_be_in_openssl_s_older_form(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    older = private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    found = read_signing_key(make_secret(tmp_path, b"\xef\xbb\xbf" + older))
    assert found.private.private_numbers() == private.private_numbers()


def _cut() -> bytes:
    lines = dump(ec.generate_private_key(ec.SECP256R1())).splitlines(keepends=True)
    return b"".join([lines[0], b"c2VjcmV0bWF0ZXJpYWw=\n", lines[-1]])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: b"", "no private key in PEM"),
        (lambda: b"secretmaterial", "no private key in PEM"),
        (_cut, "no private key in PEM"),
        (lambda: b"secretmaterial" * 2000, "more than 16,384 bytes"),
        (
            lambda: dump(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"secretmaterial")),
            "is encrypted",
        ),
        (lambda: dump(rsa.generate_private_key(65537, 2048)), "not of an elliptic curve"),
        (lambda: dump(ed25519.Ed25519PrivateKey.generate()), "not of an elliptic curve"),
        (lambda: dump(ec.generate_private_key(ec.SECP256K1())), "curve is secp256k1"),
        (
            lambda: (
                ec.generate_private_key(ec.SECP256R1())
                .public_key()
                .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            ),
            "no private key in PEM",
        ),
    ],
)
def test_what_cannot_sign_is_refused_and_not_told(content: Callable[[], bytes], told: str, tmp_path: Path) -> None:
    made = content()
    with pytest.raises(StageError, match=told) as error:
        read_signing_key(make_secret(tmp_path, made))
    assert error.value.reason is Reason.DESTINATION_REFUSED
    assert "spec.publish.signing: key privateKey" in error.value.message
    assert error.value.__cause__ is None
    # Nothing of a library's own error, which may hold what it could not read, is shown with it.
    assert error.value.__suppress_context__ or error.value.__context__ is None
    body = [line for line in made.decode().splitlines() if line and not line.startswith("-----")]
    assert not any(line in str(error.value) for line in body)
    assert "secretmaterial" not in str(error.value)


def test_a_secret_without_the_key_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the Secret has no such key"):
        read_signing_key(tmp_path)
    (tmp_path / "privateKey").mkdir()
    with pytest.raises(StageError, match="cannot be read: Is a directory"):
        read_signing_key(tmp_path)


def test_a_key_is_not_printed(tmp_path: Path) -> None:
    key, _ = make_key(tmp_path)
    assert repr(key) == "SigningKey()"
