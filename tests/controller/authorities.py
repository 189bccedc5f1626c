"""Certificate authorities as companies and cert-manager make them, good and bad ones."""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import NameOID


@dataclass
class Foreign:
    """An authority that the operator has not made."""

    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    name: str = "company root"
    parent: "Foreign | None" = None
    is_ca: bool | None = True
    may_sign: bool = True
    starts: timedelta = timedelta(hours=-1)
    ends: timedelta = timedelta(days=80)
    ski: bytes | None = None
    extensions: tuple[x509.ExtensionType, ...] = ()

    def __post_init__(self) -> None:
        signer, now = self.parent or self, datetime.now(UTC)
        builder = (
            x509.CertificateBuilder().subject_name(name_of(self.name)).issuer_name(name_of(signer.name))
            .public_key(self.key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now + self.starts).not_valid_after(now + self.ends)
        )  # fmt: skip
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=self.may_sign, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        known = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        basics = [x509.BasicConstraints(ca=self.is_ca, path_length=None)] if self.is_ca is not None else []
        for extension in (*basics, usage, x509.SubjectKeyIdentifier(self.ski or known.digest), *self.extensions):
            builder = builder.add_extension(extension, critical=not isinstance(extension, x509.SubjectKeyIdentifier))
        is_edwards = isinstance(signer.key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
        self.certificate = builder.sign(signer.key, None if is_edwards else hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)

    def data(self, *chain: "Foreign", roots: bytes = b"", **changes: bytes) -> dict[str, str]:
        """As cert-manager fills a Secret."""
        files = {"tls.crt": self.pem + b"".join(one.pem for one in chain), "tls.key": self.key_pem()}
        if roots:
            files["ca.crt"] = roots
        return {name: base64.b64encode(value).decode() for name, value in {**files, **changes}.items()}


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Validities:
    """What is told of certificates: the last of each."""

    told: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)

    def note(self, which: str, not_before: datetime, not_after: datetime) -> None:
        """As the operator's metrics."""
        self.told[which] = (not_before, not_after)

    def until(self, which: str, now: datetime) -> timedelta:
        """How long it counts, to the hour."""
        return timedelta(hours=round((self.told[which][1] - now) / timedelta(hours=1)))
