"""What makes an endpoint trusted: the Secrets with authority and certificate, and the certificate that is presented."""

import base64
import binascii
import logging
import ssl
from datetime import datetime, timedelta

from llava_operator.kube.client import Kube
from llava_operator.kube.errors import ConflictError
from llava_operator.kube.kinds import SECRETS
from llava_operator.kube.objects import Object
from llava_operator.settings import Settings
from llava_operator.tls.certificates import (
    AUTHORITY_RENEWAL,
    LEAF_RENEWAL,
    CertificateError,
    Issuer,
    KeyPair,
    check_served,
    is_made_here,
    is_valid,
    load_into,
    make_authority,
    make_leaf,
    read_issuer,
    read_pair,
)
from llava_operator.tls.validity import NoteValidity, note_nothing, read_validity_of_issuer, read_validity_of_pair

logger = logging.getLogger(__name__)

_CERTIFICATE, _KEY, _ROOTS = "tls.crt", "tls.key", "ca.crt"
"""Names in the Secret, as cert-manager and Kubernetes use them."""


class AuthorityError(Exception):
    """What is in the Secret cannot be used, and is not the operator's to replace."""


async def ensure_authority(kube: Kube, settings: Settings, now: datetime, note: NoteValidity = note_nothing) -> Issuer:
    """The authority in the Secret. ``note`` gets to know until when it counts, also where it does no more.

    A new one is made where the Secret is empty, and where the one in it was made here and has become useless or is
    about to expire. What somebody else has put there (cert-manager, a person) is used as it is, until it expires, and
    never overwritten.

    Raises:
        NotFoundError: the installer has made no Secret.
        KubeError: it could not be read or written.
        AuthorityError: there is something else in it that cannot be used.
    """
    while True:
        secret = await kube.get(SECRETS, settings.namespace, settings.report_secret)
        issuer = _find_issuer(secret, settings, now, note)
        if issuer is not None:
            return issuer
        made = make_authority(settings.report_service, now)
        data = {_CERTIFICATE: _encode(made.certificate), _KEY: _encode(made.private_key)}
        version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
        try:
            await kube.patch(SECRETS, settings.namespace, settings.report_secret, {"metadata": version, "data": data})
        except ConflictError:
            # Another process has written one in between: use that.
            continue
        logger.info("a new authority is in Secret %s/%s", settings.namespace, settings.report_secret)
        issuer = read_issuer(made.certificate, made.private_key)
        note(*read_validity_of_issuer(issuer))
        return issuer


async def read_certificate(kube: Kube, settings: Settings, name: str, now: datetime) -> KeyPair:
    """The certificate that the installer has put into a Secret, as cert-manager does, and renews there.

    Raises:
        KubeError: the Secret could not be read.
        AuthorityError: what is in it cannot be presented.
    """
    secret = await kube.get(SECRETS, settings.namespace, name)
    try:
        return read_pair(_decode(secret, _CERTIFICATE), _decode(secret, _KEY), now)
    except CertificateError as error:
        raise AuthorityError(f"Secret {settings.namespace}/{name}: {error}; correct it") from None


def _find_issuer(secret: Object, settings: Settings, now: datetime, note: NoteValidity) -> Issuer | None:
    """What a Secret holds; None where a new authority belongs into it."""
    where = f"Secret {settings.namespace}/{settings.report_secret}"
    cure = f"correct it, or take {_CERTIFICATE} and {_KEY} out and one is made"
    try:
        certificate, key, roots = (_decode(secret, name) for name in (_CERTIFICATE, _KEY, _ROOTS))
    except CertificateError as error:
        raise AuthorityError(f"{where}: {error}; {cure}") from None
    if not certificate and not key:
        return None
    is_own = not roots and not _is_managed(secret) and is_made_here(certificate, settings.report_service)
    try:
        issuer = read_issuer(certificate, key, roots)
    except CertificateError as error:
        if is_own:
            return None
        raise AuthorityError(f"{where}: {error}; {cure}") from None
    note(*read_validity_of_issuer(issuer))
    if is_own:
        return issuer if is_valid(issuer.certificate, now, AUTHORITY_RENEWAL) else None
    if not is_valid(issuer.certificate, now):
        from_, until = issuer.certificate.not_valid_before_utc, issuer.certificate.not_valid_after_utc
        raise AuthorityError(f"{where}: the authority counts from {from_:%F %T} to {until:%F %T} UTC only; {cure}")
    return issuer


def _is_managed(secret: Object) -> bool:
    """Whether cert-manager fills a Secret; its self-signed issuer may give any name."""
    annotations = secret["metadata"].get("annotations") or {}
    return any(name.startswith("cert-manager.io/") for name in annotations)


def _decode(secret: Object, name: str) -> bytes:
    data = secret.get("data") or {}
    if not isinstance(data, dict):
        raise CertificateError("its data is no map")
    value = data.get(name)
    if value is None:
        return b""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise CertificateError(f"{name} is not base64") from None


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


class ServerCertificate:
    """The TLS context of an endpoint; its certificate is renewed without anyone noticing."""

    def __init__(self, hosts: list[str], note: NoteValidity = note_nothing) -> None:
        """Make one for ``hosts``; ``note`` gets to know until when what is presented counts."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._hosts = hosts
        self._note = note
        self._made: tuple[Issuer, datetime] | None = None
        self._presented: KeyPair | None = None

    def present(self, pair: KeyPair) -> None:
        """Present a certificate that somebody else has made."""
        if pair != self._presented:
            self._load(pair)
            self._presented = pair

    def renew(self, issuer: Issuer, now: datetime) -> None:
        """Present a certificate of ``issuer`` that is less than a day old, and that trainers will trust.

        Raises:
            CertificateError: they would not; what was presented before still is.
        """
        if self._made and self._made[0].certificate == issuer.certificate and self._made[0].roots == issuer.roots:
            made_at = self._made[1]
            if timedelta() <= now - made_at < LEAF_RENEWAL:
                return
        leaf = make_leaf(issuer, self._hosts, now)
        check_served(leaf, issuer.roots, self._hosts[0])
        self._load(leaf)
        self._made = (issuer, now)

    def _load(self, pair: KeyPair) -> None:
        load_into(self.context, pair)
        self._note(*read_validity_of_pair(pair))
