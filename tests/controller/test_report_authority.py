"""The authority of the reporting endpoint: which Secret is used, which is replaced, and what is served of it."""

import asyncio
import base64
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from llava_operator.acting.report_authority import Authority
from llava_operator.kube.errors import AlreadyExistsError, ConflictError, NotFoundError, RetryableError
from llava_operator.kube.kinds import SECRETS, SERVICES, Kind
from llava_operator.kube.objects import Object
from llava_operator.reporting.endpoint_slice import build_endpoint_slice, ensure_endpoint
from llava_operator.reporting.upkeep import keep_reporting
from llava_operator.serving.server import serve
from llava_operator.settings import Settings
from llava_operator.tls.authority_secret import AuthorityError, ServerCertificate, ensure_authority
from llava_operator.tls.certificates import (
    AUTHORITY_LIFE,
    AUTHORITY_RENEWAL,
    LEAF_LIFE,
    LEAF_RENEWAL,
    MAX_PEM,
    CertificateError,
    Issuer,
    make_leaf,
)
from tests.controller.authorities import Foreign, Validities, name_of
from tests.controller.desk import HOST, Client, Desk, make_issuer, make_report
from tests.controller.makers import NOW
from tests.ports import free_port

SETTINGS = Settings(namespace="system", pod_name="op-0", pod_ip="10.0.0.1", trainer_image="t", name="op")


# --- Secrets as others fill them


ROOT = Foreign()
MIDDLE = Foreign(name="issuing authority", parent=ROOT)
GOOD: dict[str, Callable[[], dict[str, str]]] = {
    "RSA 2048": lambda: Foreign(key=rsa.generate_private_key(65537, 2048)).data(),
    "RSA 3072": lambda: Foreign(key=rsa.generate_private_key(65537, 3072)).data(),
    "P-384": lambda: Foreign(key=ec.generate_private_key(ec.SECP384R1())).data(),
    "P-521": lambda: Foreign(key=ec.generate_private_key(ec.SECP521R1())).data(),
    "Ed25519": lambda: Foreign(key=ed25519.Ed25519PrivateKey.generate()).data(),
    "Ed448": lambda: Foreign(key=ed448.Ed448PrivateKey.generate()).data(),
    "identifier of its own": lambda: Foreign(ski=b"0123456789").data(),
    "no basics of ours": lambda: Foreign(ends=timedelta(days=1)).data(),
    "root beside": lambda: MIDDLE.data(roots=ROOT.pem),
    "chain and root beside": lambda: Foreign(name="leaf authority", parent=MIDDLE).data(MIDDLE, roots=ROOT.pem),
    "root in the chain": lambda: MIDDLE.data(ROOT),
    "itself beside": lambda: ROOT.data(roots=ROOT.pem),
}
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no object": (lambda: ["tls.crt"], "its data is no map"),
    "numbers": (lambda: {"tls.crt": 5, "tls.key": 6}, "tls.crt is not base64"),
    "no base64": (lambda: {"tls.crt": "!!", "tls.key": "!!"}, "tls.crt is not base64"),
    "letters beyond": (lambda: {"tls.crt": "é", "tls.key": ""}, "tls.crt is not base64"),
    "certificate alone": (lambda: {"tls.crt": ROOT.data()["tls.crt"]}, "tls.key holds no private key"),
    "key alone": (lambda: {"tls.key": ROOT.data()["tls.key"]}, "tls.crt holds no certificate"),
    "no PEM": (lambda: ROOT.data(**{"tls.crt": b"x"}), "tls.crt holds no certificate"),
    "damaged PEM": (lambda: ROOT.data(**{"tls.crt": ROOT.pem[:200] + ROOT.pem[300:]}), "tls.crt holds no certificate"),
    "huge": (lambda: ROOT.data(**{"tls.crt": ROOT.pem + b"x" * MAX_PEM}), "more than the 65536 that are read"),
    "huge key": (lambda: ROOT.data(**{"tls.key": b"x" * (MAX_PEM + 1)}), "more than the 65536 that are read"),
    "no PEM beside": (lambda: MIDDLE.data(roots=b"x"), "ca.crt holds no certificate"),
    "encrypted": (lambda: ROOT.data(**{"tls.key": ROOT.key_pem(b"secret")}), "tls.key is encrypted"),
    "certificate for a key": (lambda: ROOT.data(**{"tls.key": ROOT.pem}), "tls.key holds no private key"),
    "DSA": (lambda: Foreign(key=dsa.generate_private_key(2048)).data(), "use RSA, an elliptic curve, Ed25519 or Ed448"),
    "another's key": (lambda: ROOT.data(**{"tls.key": MIDDLE.key_pem()}), "not the key of the first certificate"),
    "no authority": (lambda: Foreign(is_ca=False, may_sign=False).data(), "is no authority"),
    "nothing said of it": (lambda: Foreign(is_ca=None).data(), "is no authority"),
    "may not sign": (lambda: Foreign(may_sign=False).data(), "is no authority"),
    "expired": (lambda: Foreign(starts=-timedelta(9), ends=-timedelta(1)).data(), "the authority counts from"),
    "not yet": (lambda: Foreign(starts=timedelta(days=1)).data(), "the authority counts from"),
    "no root": (lambda: MIDDLE.data(), "does not lead to a root that signs itself"),
    "another root": (lambda: MIDDLE.data(roots=Foreign(name="other").pem), "no trainer would trust"),
    "link missing": (
        lambda: Foreign(name="leaf authority", parent=MIDDLE).data(roots=ROOT.pem), "no trainer would trust"
    ),
    "short RSA": (lambda: Foreign(key=rsa.generate_private_key(65537, 1024)).data(), "no trainer would trust"),
    "for other names only": (
        lambda: Foreign(extensions=(x509.NameConstraints([x509.DNSName("company.example")], None),)).data(),
        "no trainer would trust",
    ),
    "for clients only": (
        lambda: Foreign(extensions=(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]),)).data(),
        "no trainer would trust",
    ),
}  # fmt: skip


# --- the certificate that is served


async def shake_hands(port: int, authority: Issuer, host: str = HOST) -> bytes:
    """The certificate that the server presents; raises SSLError if it cannot be trusted."""
    trusted = ssl.create_default_context(cadata=authority.roots.decode())
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted, server_hostname=host)
    seen: ssl.SSLObject = writer.get_extra_info("ssl_object")
    presented = seen.getpeercert(binary_form=True) or b""
    writer.close()
    await writer.wait_closed()
    return presented


async def test_renewed_certificate_is_presented_without_a_restart() -> None:
    now = datetime.now().astimezone() - timedelta(hours=26)
    authority, replaced = make_issuer(now), make_issuer(now)
    certificate = ServerCertificate([HOST])
    certificate.renew(authority, now)
    async with serve(Desk().desk.build_app(), 0, host="127.0.0.1", context=certificate.context, count=print) as port:
        first = await shake_hands(port, authority)
        certificate.renew(authority, now + timedelta(hours=23))
        assert await shake_hands(port, authority) == first
        certificate.renew(authority, now + timedelta(hours=25))
        assert await shake_hands(port, authority) != first
        for trusted, host in ((authority, "another.system.svc"), (replaced, HOST)):
            with pytest.raises(ssl.SSLCertVerificationError):
                await shake_hands(port, trusted, host)
        certificate.renew(replaced, now + timedelta(hours=25))
        assert await shake_hands(port, replaced)


def test_authority_may_sign_nothing_but_leaves() -> None:
    authority = make_issuer(NOW)
    certificate = authority.certificate
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    leaf = x509.load_pem_x509_certificate(make_leaf(authority, [HOST], NOW).certificate)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(certificate)


# --- the Secret and the EndpointSlice


@dataclass
class SecretServer:
    """Knows one Secret and one Service; ``rival`` writes the Secret just before us, once."""

    data: Any = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    rival: dict[str, str] | None = None
    is_installed: bool = True
    version: int = 1
    writes: int = 0
    slices: list[Object] = field(default_factory=list)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        if not self.is_installed:
            raise NotFoundError("not installed")
        names = {SECRETS: "op-report-ca", SERVICES: "op-report"}
        assert (namespace, name) == ("system", names[kind])
        meta = {"resourceVersion": str(self.version), "uid": "service-uid", "annotations": self.annotations}
        return {"metadata": meta, "data": self.data}

    async def patch(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        if kind != SECRETS:
            self.slices.append(body)
            return body
        if self.rival is not None:
            self.data, self.rival = self.rival, None
            self.version += 1
        if body["metadata"]["resourceVersion"] != str(self.version):
            raise ConflictError("changed")
        self.data = {**(self.data or {}), **body["data"]}
        self.writes += 1
        return body

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        if self.slices:
            raise AlreadyExistsError("there")
        self.slices.append(body)
        return body


async def ensure(server: SecretServer, now: datetime = NOW) -> Issuer:
    return await ensure_authority(server, SETTINGS, now)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [{}, None, {"tls.crt": "", "tls.key": ""}, {"other": "eA=="}])
async def test_empty_secret_is_filled_once(data: Any) -> None:
    server = SecretServer(data=data)
    made = await ensure(server)
    assert (await ensure(server)).roots == made.roots
    assert server.writes == 1
    assert base64.b64decode(server.data["tls.crt"]) == made.roots


@pytest.mark.parametrize("change", [
    {"tls.key": ""}, {"tls.key": "eA=="}, {"tls.key": ROOT.data()["tls.key"]},
])  # fmt: skip
async def test_own_authority_whose_key_is_lost_is_replaced(change: dict[str, str]) -> None:
    server = SecretServer()
    made = await ensure(server)
    server.data.update(change)
    assert (await ensure(server)).roots != made.roots


async def test_own_authority_about_to_expire_is_replaced() -> None:
    server = SecretServer()
    made = await ensure(server)
    end = NOW + AUTHORITY_LIFE - AUTHORITY_RENEWAL
    assert (await ensure(server, end - timedelta(seconds=1))).roots == made.roots
    assert (await ensure(server, end)).roots != made.roots


async def test_authority_of_cert_manager_is_not_replaced_whatever_its_name() -> None:
    server = SecretServer(data=Foreign(name="op-report").data())
    server.annotations = {"cert-manager.io/certificate-name": "op-report"}
    for _ in range(2):
        assert (await ensure(server, datetime.now(UTC) + timedelta(days=79))).certificate.subject == name_of(
            "op-report"
        )
    with pytest.raises(AuthorityError, match="counts from"):
        await ensure(server, datetime.now(UTC) + timedelta(days=81))
    assert server.writes == 0


async def test_rivals_authority_is_used() -> None:
    first = SecretServer()
    rivals = await ensure(first)
    assert (await ensure(SecretServer(rival=first.data))).roots == rivals.roots


async def test_missing_secret_is_an_error() -> None:
    with pytest.raises(NotFoundError):
        await ensure(SecretServer(is_installed=False))


async def use(server: SecretServer) -> ServerCertificate:
    now = datetime.now(UTC)
    certificate = ServerCertificate([HOST])
    certificate.renew(await ensure(server, now), now)
    return certificate


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
async def test_foreign_authority_is_served_to_who_trusts_its_root(make: Callable[[], dict[str, str]]) -> None:
    server = SecretServer(data=make())
    certificate = await use(server)
    issuer = await ensure(server, datetime.now(UTC))
    for part in issuer.roots.split(b"-----END CERTIFICATE-----\n")[:-1]:
        root = x509.load_pem_x509_certificate(part + b"-----END CERTIFICATE-----\n")
        assert root.subject == root.issuer
    async with serve(Desk().desk.build_app(), 0, host="127.0.0.1", context=certificate.context, count=print) as port:
        assert await shake_hands(port, issuer)
    assert server.writes == 0


@pytest.mark.parametrize(("make", "told"), BAD.values(), ids=BAD.keys())
async def test_what_cannot_be_used_is_told_and_never_overwritten(make: Callable[[], Any], told: str) -> None:
    server = SecretServer(data=make())
    with pytest.raises((AuthorityError, CertificateError), match=told):
        await use(server)
    assert server.writes == 0


# --- the service


class Service:
    """The endpoint as the operator keeps it, with a Secret that changes under it."""

    def __init__(self, server: Any, port: int) -> None:
        self.desk, self.server, self.authority, self.validities = Desk(), server, Authority(), Validities()
        self.settings = SETTINGS.model_copy(update={"report_port": port, "resync_seconds": 0.02})
        self.task = asyncio.create_task(
            keep_reporting(
                server, self.settings, self.authority,
                runs=self.desk.runs, children=self.desk.children, progress=self.desk.progress, queue=self.desk.queue,
                count_report=self.desk._count_answer, count_closed=print, note_validity=self.validities.note,
            )
        )  # fmt: skip

    async def stop(self) -> None:
        assert not self.task.done(), self.task
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def rounds(self, number: int = 3) -> None:
        """Wait until the Secret has been read so often again."""
        for _ in range(number):
            await self.server.was_read.acquire()


@dataclass
class WatchedServer(SecretServer):
    fault: Exception | None = None
    was_read: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        if kind == SECRETS:
            self.was_read.release()
        if self.fault is not None:
            raise self.fault
        return await super().get(kind, namespace, name)


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_nothing_in_the_secret_ends_the_service_and_it_comes_up_when_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    server = WatchedServer()
    service = Service(server, free_port())
    for make, _ in BAD.values():
        server.data = make()
        await service.rounds()
    assert service.authority.certificate is None
    assert server.writes == 0
    assert len(errors_in(caplog)) <= len(BAD), "each is told once"
    for _, told in BAD.values():
        assert any(told in message for message in errors_in(caplog))
    server.data = MIDDLE.data(roots=ROOT.pem)
    await service.rounds()
    assert service.authority.certificate == ROOT.pem.decode()
    assert caplog.messages[-1] == "progress can be reported again"
    client = Client(service.settings.report_port, service.authority.certificate)
    assert (await client.post(make_report(), token=""))[0] == 401
    await service.stop()


async def test_an_endpoint_that_is_up_stays_up_when_the_secret_is_damaged(caplog: pytest.LogCaptureFixture) -> None:
    server = WatchedServer()
    service = Service(server, free_port())
    await service.rounds()
    trusted = service.authority.certificate
    assert trusted is not None
    server.data = {"tls.crt": "!!"}
    await service.rounds()
    assert service.authority.certificate == trusted
    assert (await Client(service.settings.report_port, trusted).post(make_report(), token=""))[0] == 401
    assert len(errors_in(caplog)) == 1
    await service.stop()


@pytest.mark.parametrize("fault", [RetryableError("down"), OSError("odd"), KeyError("data"), RuntimeError("a fault")])
async def test_no_error_ends_the_service(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    server = WatchedServer(fault=fault)
    service = Service(server, free_port())
    await service.rounds(4)
    assert len(errors_in(caplog)) == 1
    server.fault = None
    await service.rounds()
    assert service.authority.certificate is not None
    await service.stop()


async def test_a_port_in_use_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    server = WatchedServer()
    with socket.create_server(("0.0.0.0", 0)) as taken:
        service = Service(server, taken.getsockname()[1])
        await service.rounds()
        assert "Address already in use" in errors_in(caplog)[0]
        assert service.authority.certificate is None
        assert server.slices == []
    await service.rounds()
    assert service.authority.certificate is not None
    await service.stop()


# --- until when certificates count, which is watched


async def told_of(server: SecretServer, now: datetime = NOW) -> list[tuple[datetime, datetime]]:
    told: list[tuple[datetime, datetime]] = []
    with suppress(AuthorityError, RetryableError):
        await ensure_authority(server, SETTINGS, now, lambda *validity: told.append(validity))  # type: ignore[arg-type]
    return told


async def test_until_when_an_authority_of_its_own_counts_is_told_when_it_is_made_and_when_it_is_found() -> None:
    server = SecretServer()
    for _ in range(2):
        [(not_before, not_after)] = await told_of(server)
        assert not_before < NOW
        assert not_after == NOW + AUTHORITY_LIFE
    late = NOW + AUTHORITY_LIFE - AUTHORITY_RENEWAL
    assert [until for _, until in await told_of(server, late)] == [NOW + AUTHORITY_LIFE, late + AUTHORITY_LIFE]


async def test_an_authority_that_could_not_be_replaced_is_told_of_as_it_is() -> None:
    class ReadOnly(SecretServer):
        async def patch(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
            raise RetryableError("read-only")

    first = SecretServer()
    await ensure(first)
    late = NOW + AUTHORITY_LIFE - timedelta(days=20)
    assert [until for _, until in await told_of(ReadOnly(data=first.data), late)] == [NOW + AUTHORITY_LIFE]


@pytest.mark.parametrize(
    ("authority", "root", "days"),
    [
        (Foreign(ends=timedelta(days=30)), None, 30),
        (Foreign(name="issuing", parent=ROOT, ends=timedelta(days=30)), ROOT, 30),
        (Foreign(name="issuing", parent=ROOT, ends=timedelta(days=300)), ROOT, 80),
        (Foreign(starts=-timedelta(9), ends=-timedelta(1)), None, -1),
    ],
    ids=["itself its root", "before its root", "after its root", "over"],
)
async def test_until_when_others_authority_counts_is_told_of_whatever_ends_first(
    authority: Foreign, root: Foreign | None, days: int
) -> None:
    now = datetime.now(UTC)
    # A bundle, as while one root replaces another.
    roots = Foreign(name="the one before", ends=timedelta(days=5)).pem + root.pem if root else b""
    [(_, not_after)] = await told_of(SecretServer(data=authority.data(roots=roots)), now)
    assert round((not_after - now) / timedelta(days=1)) == days


async def test_renewal_is_told_and_a_certificate_that_is_kept_is_not() -> None:
    ends: list[datetime] = []
    certificate = ServerCertificate([HOST], lambda _, not_after: ends.append(not_after))
    now = datetime.now().astimezone() - timedelta(hours=26)
    issuer = make_issuer(now)
    for hours in (0, 1, 23, 25):
        certificate.renew(issuer, now + timedelta(hours=hours))
    assert [round((end - now) / timedelta(hours=1)) for end in ends] == [7 * 24, 7 * 24 + 25]
    assert timedelta(days=5) < LEAF_LIFE - LEAF_RENEWAL


async def test_the_endpoint_tells_of_its_authority_and_of_what_it_presents() -> None:
    service = Service(WatchedServer(), free_port())
    now = datetime.now(UTC)
    await service.rounds()
    assert service.validities.until("report", now) == LEAF_LIFE
    assert service.validities.until("authority", now) == AUTHORITY_LIFE
    assert service.validities.told.keys() == {"authority", "report"}
    await service.stop()


# --- the EndpointSlice


async def test_endpoint_leads_to_the_leader_also_after_another_one() -> None:
    server = SecretServer()
    for settings in (SETTINGS, SETTINGS.model_copy(update={"pod_ip": "fd00::2"})):
        await ensure_endpoint(server, settings)  # type: ignore[arg-type]
    assert [(made["addressType"], made["endpoints"][0]["addresses"]) for made in server.slices] == [
        ("IPv4", ["10.0.0.1"]),
        ("IPv6", ["fd00::2"]),
    ]


def test_endpoint_slice_whole() -> None:
    assert build_endpoint_slice(SETTINGS, "service-uid") == {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "op-report",
            "namespace": "system",
            "labels": {
                "kubernetes.io/service-name": "op-report",
                "endpointslice.kubernetes.io/managed-by": "op",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "op-report", "uid": "service-uid"}],
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
        "ports": [{"name": "report", "port": 8443, "protocol": "TCP"}],
    }
