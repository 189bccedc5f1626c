"""What makes the endpoint reachable and trusted: its Secret, its certificate, its EndpointSlice."""

import base64
import binascii
import logging
import ssl
from datetime import datetime

from llava_operator.kube import AlreadyExistsError, ConflictError, Kube
from llava_operator.reporting.certificates import (
    LEAF_RENEWAL,
    KeyPair,
    is_usable,
    load_into,
    make_authority,
    make_leaf,
)
from llava_operator.resources import ENDPOINT_SLICES, SECRETS, SERVICES
from llava_operator.settings import Settings
from llava_operator.wire import Object

logger = logging.getLogger(__name__)

_CERTIFICATE, _KEY = "tls.crt", "tls.key"
PORT_NAME = "report"


async def ensure_authority(kube: Kube, settings: Settings, now: datetime) -> KeyPair:
    """The authority in the Secret; a new one where that is empty, damaged or about to expire.

    Raises:
        NotFoundError: the installer has made no Secret.
        KubeError: it could not be read or written.
    """
    while True:
        secret = await kube.get(SECRETS, settings.namespace, settings.report_secret)
        if (known := read_authority(secret)) and is_usable(known, now):
            return known
        made = make_authority(settings.report_service, now)
        data = {_CERTIFICATE: _encode(made.certificate), _KEY: _encode(made.private_key)}
        version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
        try:
            await kube.patch(SECRETS, settings.namespace, settings.report_secret, {"metadata": version, "data": data})
        except ConflictError:
            # Another process has written one in between: use that.
            continue
        logger.info("a new authority is in Secret %s/%s", settings.namespace, settings.report_secret)
        return made


def read_authority(secret: Object) -> KeyPair | None:
    """The key pair in a Secret; None if there is none."""
    data = secret.get("data") or {}
    try:
        certificate, key = (base64.b64decode(data.get(name) or "", validate=True) for name in (_CERTIFICATE, _KEY))
    except binascii.Error:
        return None
    return KeyPair(certificate=certificate, private_key=key) if certificate and key else None


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


class ServerCertificate:
    """The TLS context of the endpoint; its certificate is renewed without anyone noticing."""

    def __init__(self, hosts: list[str]) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._hosts = hosts
        self._made: tuple[KeyPair, datetime] | None = None

    def renew(self, authority: KeyPair, now: datetime) -> None:
        """Present a certificate of ``authority`` that is less than a day old.

        Raises:
            ValueError: the authority is damaged.
        """
        if self._made and self._made[0] == authority and now - self._made[1] < LEAF_RENEWAL:
            return
        load_into(self.context, make_leaf(authority, self._hosts, now))
        self._made = (authority, now)


async def ensure_endpoint(kube: Kube, settings: Settings) -> None:
    """Have the Service lead to this pod, and to no other.

    Raises:
        NotFoundError: the installer has made no Service.
        KubeError: it could not be read or written.
    """
    service = await kube.get(SERVICES, settings.namespace, settings.report_service)
    body = build_endpoint_slice(settings, service["metadata"]["uid"])
    try:
        await kube.create(ENDPOINT_SLICES, settings.namespace, body)
    except AlreadyExistsError:
        await kube.patch(ENDPOINT_SLICES, settings.namespace, settings.report_service, body)


def build_endpoint_slice(settings: Settings, service_uid: str) -> Object:
    """The EndpointSlice that names this pod. It goes when the Service goes."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": settings.report_service,
            "namespace": settings.namespace,
            "labels": {
                "kubernetes.io/service-name": settings.report_service,
                "endpointslice.kubernetes.io/managed-by": settings.name,
            },
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Service", "name": settings.report_service, "uid": service_uid}
            ],
        },
        "addressType": "IPv6" if ":" in settings.pod_ip else "IPv4",
        "endpoints": [{"addresses": [settings.pod_ip], "conditions": {"ready": True}}],
        "ports": [{"name": PORT_NAME, "port": settings.report_port, "protocol": "TCP"}],
    }
