"""A certificate authority of the operator's own, and the server certificates that it signs; or one that is given.

The authority lives long, in a Secret; trainers get its certificate by ConfigMap. A server's key never leaves memory.
"""

import os
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
AUTHORITY_RENEWAL = timedelta(days=90)
"""An authority of the operator's own with less life than this left is replaced."""
LEAF_LIFE = timedelta(days=7)
LEAF_RENEWAL = timedelta(days=1)
"""Age at which the server's certificate is replaced."""
_SKEW = timedelta(hours=1)
"""Certificates are valid from a little earlier, for clocks that are behind."""
_ROUNDS = 10
"""Flights of a handshake, at most; TLS 1.2 takes four."""
MAX_PEM = 64 * 1024
"""Longest file that is read."""

_IssuerKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, both PEM; what leads to the root may follow the certificate."""

    certificate: bytes
    private_key: bytes


class CertificateError(Exception):
    """Certificates or a key that cannot be used, and why. The message repeats nothing secret."""


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """An authority that can sign, and whom it takes to trust it."""

    certificate: x509.Certificate
    key: _IssuerKey
    chain: bytes
    """PEM of the certificates between the server's and the root; the server presents them."""
    roots: bytes
    """PEM of what trainers trust."""


def make_authority(name: str, now: datetime) -> KeyPair:
    """A new self-signed authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name_of(name)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def read_issuer(certificates: bytes, private_key: bytes, trusted: bytes = b"") -> Issuer:
    """What signs the server's certificate.

    Args:
        certificates: PEM of the authority, followed by those that lead to its root, if it is none itself.
        private_key: PEM of the authority's key: RSA, elliptic curve or EdDSA, not encrypted.
        trusted: PEM with the root.

    Raises:
        CertificateError: the pair signs nothing that a trainer would trust, and why.
    """
    chain = _load_certificates(certificates, "tls.crt")
    key = _load_key(private_key)
    authority = chain[0]
    try:
        if authority.public_key() != key.public_key():
            raise CertificateError("tls.key is not the key of the first certificate in tls.crt")
        constraints, usage = _extension_of(authority, x509.BasicConstraints), _extension_of(authority, x509.KeyUsage)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"the first certificate in tls.crt cannot be used: {error}") from None
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise CertificateError("the first certificate in tls.crt is no authority: it may not sign others")
    others = chain[1:] + (_load_certificates(trusted, "ca.crt") if trusted.strip() else [])
    roots = [one for one in ([authority] if _is_root(authority) else others) if _is_root(one)]
    if not roots:
        raise CertificateError("tls.crt does not lead to a root that signs itself, and ca.crt holds none")
    return Issuer(
        certificate=authority,
        key=key,
        chain=b"".join(_to_pem(one) for one in chain if not _is_root(one)),
        roots=b"".join(dict.fromkeys(map(_to_pem, roots))),
    )


def read_pair(certificates: bytes, private_key: bytes, now: datetime) -> KeyPair:
    """A server's certificate that somebody else has made.

    Args:
        certificates: PEM of the certificate, followed by those that lead to its root.
        private_key: PEM of its key: RSA, elliptic curve or EdDSA, not encrypted.
        now: when it has to count.

    Raises:
        CertificateError: no server can present it, or no client would trust it now, and why.
    """
    certificate = _load_certificates(certificates, "tls.crt")[0]
    key = _load_key(private_key)
    try:
        if certificate.public_key() != key.public_key():
            raise CertificateError("tls.key is not the key of the first certificate in tls.crt")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"the first certificate in tls.crt cannot be used: {error}") from None
    if not is_valid(certificate, now):
        from_, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        raise CertificateError(f"the certificate counts from {from_:%F %T} to {until:%F %T} UTC only")
    pair = KeyPair(certificate=certificates, private_key=private_key)
    try:
        # Aside: a context that has taken half of a pair presents what nobody can verify.
        load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
    except ssl.SSLError as error:
        raise CertificateError(f"tls.crt and tls.key cannot be presented: {error}") from None
    return pair


def make_leaf(issuer: Issuer, hosts: list[str], now: datetime) -> KeyPair:
    """A server certificate for ``hosts`` and what leads to the root, signed by ``issuer``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    known = _extension_of(issuer.certificate, x509.SubjectKeyIdentifier)
    # Not every authority's identifier is the one that would be calculated from its key here.
    identifier = (
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)
        if known is not None
        else x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    )
    life = min(LEAF_LIFE, issuer.certificate.not_valid_after_utc - now)
    builder = (
        _builder(subject, issuer.certificate.subject, key.public_key(), now, life)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
    )
    # EdDSA has its digest built in.
    digest = None if isinstance(issuer.key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    leaf = _pair(builder.sign(issuer.key, digest), key)
    return KeyPair(certificate=leaf.certificate + issuer.chain, private_key=leaf.private_key)


def check_served(pair: KeyPair, roots: bytes, host: str) -> None:
    """Have a client that trusts ``roots`` shake hands with a server that presents ``pair``, in memory.

    OpenSSL knows better than any list of conditions what it accepts: validity, lengths of keys and chains, constraints.

    Raises:
        CertificateError: the client does not accept it, or the server does not present it.
    """
    try:
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_into(server_context, pair)
        client_context = ssl.create_default_context(cadata=roots.decode("ascii"))
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
        server = server_context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(_ROUNDS):
            if _step(client) & _step(server):
                return
    except (ssl.SSLError, ValueError) as error:
        raise CertificateError(f"no trainer would trust a certificate that it signs: {error}") from None
    raise CertificateError("no handshake comes about with a certificate that it signs")


def _step(side: ssl.SSLObject) -> bool:
    """One step of a handshake; whether it is over."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def is_valid(certificate: x509.Certificate, now: datetime, life: timedelta = timedelta()) -> bool:
    """Whether a certificate counts now, and will for more than ``life``."""
    return certificate.not_valid_before_utc <= now and certificate.not_valid_after_utc - now > life


def is_made_here(certificates: bytes, name: str) -> bool:
    """Whether a certificate is one of ``make_authority``'s for ``name``, whatever has become of its key."""
    try:
        certificate = x509.load_pem_x509_certificate(certificates)
        return certificate.subject == certificate.issuer == _name_of(name)
    except ValueError:
        return False


def load_into(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Have ``context`` present ``pair`` from the next connection on.

    The ssl module only reads files; an anonymous one in memory keeps the key off every disk.
    """
    descriptor = os.memfd_create("server-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pair.private_key + pair.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _load_certificates(pem: bytes, name: str) -> list[x509.Certificate]:
    if len(pem) > MAX_PEM:
        raise CertificateError(f"{name} has {len(pem)} bytes, more than the {MAX_PEM} that are read")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError(f"{name} holds no certificate in PEM form: {error}") from None


def _load_key(pem: bytes) -> _IssuerKey:
    if len(pem) > MAX_PEM:
        raise CertificateError(f"tls.key has {len(pem)} bytes, more than the {MAX_PEM} that are read")
    try:
        # Validating 8,192 bits takes seconds in which nothing else runs. What does not sign shows in the handshake.
        key = serialization.load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise CertificateError("tls.key is encrypted: store it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError("tls.key holds no private key in PEM form") from None
    if not isinstance(key, _IssuerKey):
        raise CertificateError(f"tls.key is a {type(key).__name__}: use RSA, an elliptic curve, Ed25519 or Ed448")
    return key


def _extension_of(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _is_root(certificate: x509.Certificate) -> bool:
    return certificate.issuer == certificate.subject


def _to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _name_of(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life)
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        private_key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
