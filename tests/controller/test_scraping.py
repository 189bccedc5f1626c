"""Metrics over TLS: who gets them, what refusals cost, and which certificate is presented."""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from llava_operator.kube.errors import ForbiddenError, NotFoundError, RetryableError
from llava_operator.kube.kinds import SECRETS, SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS, Kind
from llava_operator.kube.objects import Object
from llava_operator.kube.reviews import MAX_REVIEWS, MAX_WAIT_S, BusyError
from llava_operator.scraping.access import (
    GRANTED_FOR_S,
    MAX_GRANTED,
    MAX_TOKEN,
    REFUSALS,
    REFUSALS_PER_S,
    STRANGERS,
    STRANGERS_PER_S,
    Access,
    Readers,
)
from llava_operator.scraping.upkeep import keep_metrics
from llava_operator.serving.connections import Closed
from llava_operator.settings import Settings
from llava_operator.tls.authority_secret import read_certificate
from llava_operator.tls.certificates import AUTHORITY_LIFE, LEAF_LIFE
from tests.controller.authorities import Foreign, Validities
from tests.controller.desk import Clock
from tests.controller.virtual import run_virtually
from tests.ports import free_port

READER, STRANGER, NOBODY = "may-read", "may-not", "forged"
USER = {"username": "system:serviceaccount:monitoring:prometheus", "uid": "u-1", "groups": ["system:authenticated"],
        "extra": {"a": ["b"]}}  # fmt: skip


@dataclass
class ReviewServer:
    """Knows tokens that begin with READER or STRANGER; READER's may get /metrics."""

    asked: list[str] = field(default_factory=list)
    """Tokens that were reviewed."""
    accesses: list[Object] = field(default_factory=list)
    """Specs of the SubjectAccessReviews."""
    fault: Exception | None = None
    faulty: tuple[Kind, ...] = (TOKEN_REVIEWS, SUBJECT_ACCESS_REVIEWS)
    gate: asyncio.Event | None = None
    revoked: set[str] = field(default_factory=set)
    review: Object = field(default_factory=lambda: {"authenticated": True, "user": USER})
    data: dict[str, str] = field(default_factory=dict)
    reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def create(self, kind: Kind, namespace: None, body: Object) -> Object:
        if self.gate:
            await self.gate.wait()
        if self.fault and kind in self.faulty:
            raise self.fault
        if kind == TOKEN_REVIEWS:
            return {"status": self._review(body)}
        assert (kind, body["kind"]) == (SUBJECT_ACCESS_REVIEWS, "SubjectAccessReview")
        assert body["apiVersion"] == "authorization.k8s.io/v1"
        self.accesses.append(body["spec"])
        return {"status": {"allowed": self.asked[-1].startswith(READER) and self.asked[-1] not in self.revoked}}

    def _review(self, body: Object) -> Object:
        assert body["spec"].keys() == {"token"}, "without an audience the API server takes its own"
        token: str = body["spec"]["token"]
        self.asked.append(token)
        return self.review if token.startswith((READER, STRANGER)) else {"authenticated": False, "error": "no"}

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        assert kind == SECRETS
        self.reads.release()
        if name == "missing":
            raise NotFoundError(f"{name} not found")
        return {"metadata": {"name": name, "resourceVersion": "1"}, "data": dict(self.data)}

    async def patch(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        self.data |= body["data"]
        return {}


def make_readers(server: ReviewServer, clock: Clock | None = None) -> Readers:
    return Readers(server, clock=clock or Clock())  # type: ignore[arg-type]


# --- who may read


@pytest.mark.parametrize(
    ("token", "access"), [(READER, Access.GRANTED), (STRANGER, Access.FORBIDDEN), (NOBODY, Access.UNKNOWN)]
)
async def test_what_becomes_of_a_token(token: str, access: Access) -> None:
    assert await make_readers(ReviewServer()).judge(token, "10.0.0.1") is access


async def test_the_right_is_asked_for_as_the_user_has_it() -> None:
    server = ReviewServer()
    await make_readers(server).judge(READER, "10.0.0.1")
    assert server.accesses == [
        {"user": USER["username"], "uid": "u-1", "groups": USER["groups"], "extra": USER["extra"],
         "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "review",
    [
        {},
        {"authenticated": False, "user": USER},
        {"authenticated": "true", "user": USER},
        {"authenticated": True},
        {"authenticated": True, "user": {"username": ""}},
        {"authenticated": True, "user": "admin"},
    ],
)
async def test_a_review_that_does_not_say_who_it_is_lets_nobody_in(review: Object) -> None:
    server = ReviewServer(review=review)
    assert await make_readers(server).judge(READER, "10.0.0.1") is Access.UNKNOWN
    assert server.accesses == []


@pytest.mark.parametrize("token", ["x" * (MAX_TOKEN + 1), "tökén", "a\x00b"])
async def test_what_is_no_token_is_not_asked_about(token: str) -> None:
    server = ReviewServer()
    assert await make_readers(server).judge(token, "10.0.0.1") is Access.UNKNOWN
    assert server.asked == []


async def test_who_was_let_in_is_asked_about_once_a_minute_and_a_right_may_be_taken_away() -> None:
    server, clock = ReviewServer(), Clock()
    readers = make_readers(server, clock)
    for _ in range(3):
        assert await readers.judge(READER, "10.0.0.1") is Access.GRANTED
    assert server.asked == [READER]
    clock.now += GRANTED_FOR_S
    assert await readers.judge(READER, "10.0.0.1") is Access.GRANTED
    assert server.asked == [READER] * 2
    server.revoked.add(READER)
    clock.now += GRANTED_FOR_S
    assert await readers.judge(READER, "10.0.0.1") is Access.FORBIDDEN
    server.revoked.clear()
    assert await readers.judge(READER, "10.0.0.1") is Access.GRANTED


async def test_an_api_server_that_is_away_lets_in_whoever_was_let_in_a_minute_ago_and_nobody_else() -> None:
    server, clock = ReviewServer(), Clock()
    readers = make_readers(server, clock)
    await readers.judge(READER, "10.0.0.1")
    server.fault = RetryableError("down")
    assert await readers.judge(READER, "10.0.0.1") is Access.GRANTED
    for source, token in (("10.0.0.1", f"{READER}-2"), ("10.0.0.2", NOBODY)):
        with pytest.raises(RetryableError):
            await readers.judge(token, source)
    clock.now += GRANTED_FOR_S
    with pytest.raises(RetryableError):
        await readers.judge(READER, "10.0.0.1")
    server.fault = None
    assert await readers.judge(READER, "10.0.0.1") is Access.GRANTED


async def test_memory_of_readers_is_bounded() -> None:
    server, clock = ReviewServer(), Clock()
    readers = make_readers(server, clock)
    tokens = [f"{READER}-{number}" for number in range(MAX_GRANTED + 1)]
    for token in [*tokens, tokens[-1], tokens[0]]:
        await readers.judge(token, "10.0.0.1")
    assert server.asked == [*tokens, tokens[0]]


# --- what a flood costs


async def refused(readers: Readers, token: str, source: str) -> bool:
    """Whether a token was not even asked about."""
    try:
        await readers.judge(token, source)
    except BusyError:
        return True
    return False


@pytest.mark.parametrize("token", [NOBODY, STRANGER])
async def test_an_address_whose_tokens_are_refused_waits(token: str) -> None:
    server, clock = ReviewServer(), Clock()
    readers = make_readers(server, clock)
    for number in range(100):
        await refused(readers, f"{token}-{number}", "10.0.0.9")
    assert len(server.asked) == REFUSALS
    clock.now += 1 / REFUSALS_PER_S
    for number in range(100):
        await refused(readers, f"{token}-{number}", "10.0.0.9")
    assert len(server.asked) == REFUSALS + 1


async def test_a_flood_from_everywhere_costs_few_reviews_and_holds_up_no_reader() -> None:
    server, clock = ReviewServer(), Clock()
    readers = make_readers(server, clock)
    assert await readers.judge(READER, "10.0.0.1") is Access.GRANTED
    for number in range(5000):
        await refused(readers, f"{NOBODY}-{number}", f"10.1.{number // 256}.{number % 256}")
    # Which is one for the reader itself, and what strangers have together.
    assert len(server.asked) == STRANGERS
    clock.now += GRANTED_FOR_S + 1
    for number in range(5000):
        await refused(readers, f"{NOBODY}-{number}", f"10.1.{number // 256}.{number % 256}")
    assert len(server.asked) == 2 * STRANGERS
    assert STRANGERS_PER_S * GRANTED_FOR_S > STRANGERS, "the second flood met all that strangers have"
    assert await readers.judge(READER, "10.0.0.1") is Access.GRANTED, "its token is known"
    assert await readers.judge(f"{READER}-renewed", "10.0.0.1") is Access.GRANTED, "its address is known"


async def test_new_tokens_of_one_address_are_reviewed_one_at_a_time() -> None:
    server = ReviewServer(gate=asyncio.Event())
    readers = make_readers(server)
    first = asyncio.create_task(readers.judge(f"{NOBODY}-1", "10.0.0.9"))
    await asyncio.sleep(0)
    assert await refused(readers, f"{NOBODY}-2", "10.0.0.9")
    assert server.gate is not None
    server.gate.set()
    assert await first is Access.UNKNOWN


def test_reviews_that_find_no_place_are_put_off() -> None:
    async def scenario() -> tuple[int, float]:
        server = ReviewServer(gate=asyncio.Event())
        readers = make_readers(server)
        tasks = [
            asyncio.create_task(readers.judge(f"{READER}-{number}", f"10.0.0.{number}"))
            for number in range(MAX_REVIEWS + 2)
        ]
        done, hanging = await asyncio.wait(tasks, timeout=MAX_WAIT_S + 1)
        assert all(isinstance(task.exception(), BusyError) for task in done)
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)
        return len(done), asyncio.get_running_loop().time()

    assert run_virtually(scenario()) == (2, MAX_WAIT_S + 1)


# --- the endpoint


class Endpoint:
    """The endpoint as the operator keeps it."""

    def __init__(self, server: ReviewServer, **changes: Any) -> None:
        self.server = server
        self.settings = Settings.model_validate(
            {"namespace": "system", "pod_name": "op-0", "pod_ip": "10.0.0.1", "trainer_image": "t", "name": "op",
             "metrics_secure": True, "metrics_port": free_port(), "resync_seconds": 0.02, **changes}
        )  # fmt: skip
        self.closed: list[Closed] = []
        self.validities = Validities()
        self.asked = 0

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text="llava_operator_leader 1.0\n")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        server: Any = self.server
        counting: dict[str, Any] = {"count_closed": self.closed.append, "note_validity": self.validities.note}
        task = asyncio.create_task(keep_metrics(server, self.settings, self.answer, **counting))
        try:
            await self.rounds()
            yield
        finally:
            assert not task.done(), task
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def rounds(self, number: int = 3) -> None:
        """Wait until the Secret has been read so often again."""
        for _ in range(number):
            await self.server.reads.acquire()

    @property
    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=base64.b64decode(self.server.data["tls.crt"]).decode())

    async def get(
        self, authorization: str = "", path: str = "/metrics", trusted: ssl.SSLContext | None = None
    ) -> tuple[int, str, dict[str, str]]:
        url = f"https://127.0.0.1:{self.settings.metrics_port}{path}"
        headers = {"Authorization": authorization} if authorization else {}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(url, ssl=trusted or self.trusted, server_hostname="op-metrics.system.svc") as answer,
        ):
            return answer.status, await answer.text(), dict(answer.headers)


async def test_readers_get_the_metrics_by_the_operators_own_authority() -> None:
    endpoint = Endpoint(ReviewServer())
    async with endpoint.served():
        status, text, _ = await endpoint.get(f"Bearer {READER}")
        assert (status, text) == (200, "llava_operator_leader 1.0\n")
        assert (await endpoint.get(f"Bearer {READER}"))[0] == 200
    assert (endpoint.asked, endpoint.server.asked) == (2, [READER])


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("", 401),
        ("Bearer", 401),
        ("Bearer  ", 401),
        (f"Basic {READER}", 401),
        (READER, 401),
        (f"Bearer {NOBODY}", 401),
        (f"Bearer {STRANGER}", 403),
    ],
)
async def test_others_get_nothing_and_are_told_nothing(authorization: str, code: int) -> None:
    endpoint = Endpoint(ReviewServer())
    async with endpoint.served():
        status, text, headers = await endpoint.get(authorization)
        assert (status, text) == (code, "")
        assert headers.get("WWW-Authenticate") == ("Bearer" if code == 401 else None)
        assert headers["Connection"] == "close"
    assert endpoint.asked == 0


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics/", "/metrics/x"])
async def test_there_is_nothing_else(path: str) -> None:
    endpoint = Endpoint(ReviewServer())
    async with endpoint.served():
        assert (await endpoint.get(f"Bearer {READER}", path))[0] == 404


@pytest.mark.parametrize("fault", [RetryableError("down"), ForbiddenError("cannot create subjectaccessreviews")])
@pytest.mark.parametrize("kind", [TOKEN_REVIEWS, SUBJECT_ACCESS_REVIEWS])
async def test_api_server_that_does_not_say_is_503(
    fault: Exception, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    endpoint = Endpoint(ReviewServer(fault=fault, faulty=(kind,)))
    async with endpoint.served():
        assert (await endpoint.get(f"Bearer {READER}"))[0:2] == (503, "")
    assert f"metrics refused to 127.0.0.1 with 503: the API server cannot be asked: {fault}" in caplog.messages


async def test_a_flood_of_bad_tokens_is_429() -> None:
    endpoint = Endpoint(ReviewServer())
    async with endpoint.served():
        codes = [(await endpoint.get(f"Bearer {NOBODY}-{number}"))[0] for number in range(REFUSALS + 2)]
    assert codes == [401] * REFUSALS + [429] * 2


async def test_plain_http_at_the_port_ends_cleanly() -> None:
    endpoint = Endpoint(ReviewServer())
    async with endpoint.served():
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.settings.metrics_port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionError):
            assert b"HTTP" not in await reader.read()
        writer.close()
        assert (await endpoint.get(f"Bearer {READER}"))[0] == 200
    assert endpoint.closed == [Closed.HANDSHAKE]


async def test_a_port_in_use_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        endpoint = Endpoint(ReviewServer(), metrics_port=taken.getsockname()[1])
        async with endpoint.served():
            assert "metrics are not served for now" in caplog.text
            taken.close()
            await endpoint.rounds()
            assert (await endpoint.get(f"Bearer {READER}"))[0] == 200


# --- a certificate of the installer's


def fill(server: ReviewServer, made: Foreign, **changes: bytes) -> ssl.SSLContext:
    """Put a server's certificate into the Secret; what trusts it."""
    server.data = made.data(**changes)
    signer = made.parent or made
    return ssl.create_default_context(cadata=signer.pem.decode())


def of_server(name: str = "a", **changes: Any) -> Foreign:
    root = Foreign(name=f"root of {name}")
    names = x509.SubjectAlternativeName([x509.DNSName("op-metrics.system.svc")])
    return Foreign(name=name, parent=root, is_ca=None, may_sign=False, extensions=(names,), **changes)


async def test_certificate_of_the_installer_is_presented_and_read_again_when_it_is_renewed() -> None:
    server = ReviewServer()
    trusted = fill(server, of_server("first"))
    endpoint = Endpoint(server, metrics_certificate_secret="ours")
    async with endpoint.served():
        assert (await endpoint.get(f"Bearer {READER}", trusted=trusted))[0] == 200
        renewed = fill(server, of_server("second"))
        await endpoint.rounds()
        assert (await endpoint.get(f"Bearer {READER}", trusted=renewed))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await endpoint.get(f"Bearer {READER}", trusted=trusted)


ENCRYPTED = of_server()
BAD: dict[str, tuple[dict[str, str], str]] = {
    "empty": ({}, "tls.crt holds no certificate in PEM form"),
    "no base64": ({"tls.crt": "!!", "tls.key": "!!"}, "tls.crt is not base64"),
    "no key": (of_server().data(**{"tls.key": b""}), "tls.key holds no private key in PEM form"),
    "another's key": (of_server().data(**{"tls.key": Foreign().key_pem()}), "tls.key is not the key of the first"),
    "encrypted key": (ENCRYPTED.data(**{"tls.key": ENCRYPTED.key_pem(b"pw")}), "tls.key is encrypted"),
    "over": (of_server(starts=timedelta(days=-9), ends=timedelta(days=-1)).data(), "the certificate counts from"),
    "to come": (of_server(starts=timedelta(days=1)).data(), "the certificate counts from"),
    "too short": (of_server(key=rsa.generate_private_key(65537, 1024)).data(), "cannot be presented"),
    "too long": ({"tls.crt": "QUFB" * 40_000, "tls.key": ""}, "more than the 65536 that are read"),
}


@pytest.mark.parametrize("name", BAD)
async def test_certificate_that_cannot_be_presented_is_told_and_the_one_before_stays(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = ReviewServer()
    trusted = fill(server, of_server())
    endpoint = Endpoint(server, metrics_certificate_secret="ours")
    async with endpoint.served():
        server.data, told = BAD[name]
        await endpoint.rounds()
        assert "metrics are not served for now: Secret system/ours: " in caplog.text
        assert told in caplog.text
        assert (await endpoint.get(f"Bearer {READER}", trusted=trusted))[0] == 200


async def test_until_when_the_installers_certificate_counts_is_told_and_of_the_one_that_is_presented() -> None:
    server = ReviewServer()
    fill(server, of_server("first", ends=timedelta(days=30)))
    endpoint = Endpoint(server, metrics_certificate_secret="ours")
    now = datetime.now(UTC)
    async with endpoint.served():
        assert endpoint.validities.until("metrics", now) == timedelta(days=30)
        assert endpoint.validities.told.keys() == {"metrics"}, "no authority signs it"
        fill(server, of_server("over", starts=timedelta(days=-9), ends=timedelta(days=-1)))
        await endpoint.rounds()
        assert endpoint.validities.until("metrics", now) == timedelta(days=30), "the one before is presented"
        fill(server, of_server("second", ends=timedelta(days=90)))
        await endpoint.rounds()
        assert endpoint.validities.until("metrics", now) == timedelta(days=90)


async def test_until_when_the_operators_own_certificates_count_is_told() -> None:
    endpoint = Endpoint(ReviewServer())
    now = datetime.now(UTC)
    async with endpoint.served():
        assert endpoint.validities.until("metrics", now) == LEAF_LIFE
        assert endpoint.validities.until("authority", now) == AUTHORITY_LIFE
    assert endpoint.validities.told.keys() == {"authority", "metrics"}


async def test_secret_that_is_not_there_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint(ReviewServer(), metrics_certificate_secret="missing")
    async with endpoint.served():
        assert "metrics are not served for now: missing not found" in caplog.text
        with pytest.raises(aiohttp.ClientConnectorError):
            await endpoint.get(f"Bearer {READER}", trusted=ssl.create_default_context())


async def test_certificate_is_read_as_it_is() -> None:
    server, made = ReviewServer(), of_server()
    fill(server, made)
    settings = Endpoint(server).settings
    pair = await read_certificate(server, settings, "ours", datetime.now(UTC))  # type: ignore[arg-type]
    assert (pair.certificate, pair.private_key) == (made.pem, made.key_pem())
