"""The reporting endpoint: certificates over real TLS, tokens, and every answer that a report may get."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509

from llava_api.constants import API_VERSION, KIND, LABEL_COMPLETION_INDEX, LABEL_RUN, StageName
from llava_api.report import ProgressReport
from llava_api.status import Status
from llava_operator.children import Children
from llava_operator.kube import AlreadyExistsError, ConflictError, Kind, NotFoundError, RetryableError
from llava_operator.progress import ProgressBook
from llava_operator.reporting.certificates import (
    AUTHORITY_LIFE,
    AUTHORITY_RENEWAL,
    KeyPair,
    is_usable,
    make_authority,
    make_leaf,
)
from llava_operator.reporting.endpoint import (
    ServerCertificate,
    build_endpoint_slice,
    ensure_authority,
    ensure_endpoint,
    read_authority,
)
from llava_operator.reporting.server import MAX_BODY, RefusedError, ReportDesk, parse_report
from llava_operator.reporting.tokens import ACCEPTED_FOR_S, MAX_CACHED, MAX_REVIEWS, BusyError, TokenReviewer
from llava_operator.resources import SECRETS, SERVICES, TOKEN_REVIEWS
from llava_operator.runs import Runs
from llava_operator.settings import Settings
from llava_operator.skipped import SkippedObjects
from llava_operator.status import dump_status
from llava_operator.views import Key
from llava_operator.wire import Object
from llava_operator.workqueue import WorkQueue
from tests.controller.makers import FROM_SCRATCH, JOB_UID, KEY, NOW, RUN_UID, begun, walk

HOST = "op-report.system.svc"
SETTINGS = Settings(namespace="system", pod_name="op-0", pod_ip="10.0.0.1", trainer_image="t", name="op")


# --- certificates


@asynccontextmanager
async def serve(app: web.Application, context: ssl.SSLContext) -> AsyncIterator[int]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def post(port: int, authority: KeyPair, token: str, body: bytes) -> tuple[int, str]:
    trusted = ssl.create_default_context(cadata=authority.certificate.decode())
    headers = {"Authorization": token} if token else {}
    url = f"https://127.0.0.1:{port}/v1/progress"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, data=body, ssl=trusted, server_hostname=HOST) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text)["error"] if text else ""


async def shake_hands(port: int, authority: KeyPair, host: str = HOST) -> bytes:
    """The certificate that the server presents; raises SSLError if it cannot be trusted."""
    trusted = ssl.create_default_context(cadata=authority.certificate.decode())
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted, server_hostname=host)
    seen: ssl.SSLObject = writer.get_extra_info("ssl_object")
    presented = seen.getpeercert(binary_form=True) or b""
    writer.close()
    await writer.wait_closed()
    return presented


async def test_renewed_certificate_is_presented_without_a_restart() -> None:
    now = datetime.now().astimezone() - timedelta(hours=26)
    authority, replaced = make_authority("op", now), make_authority("op", now)
    certificate = ServerCertificate([HOST])
    certificate.renew(authority, now)
    async with serve(Desk().app, certificate.context) as port:
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


def test_authority_is_usable_until_shortly_before_its_end() -> None:
    authority = make_authority("op", NOW)
    end = NOW + AUTHORITY_LIFE
    assert is_usable(authority, NOW)
    assert is_usable(authority, end - AUTHORITY_RENEWAL - timedelta(seconds=1))
    assert not is_usable(authority, end - AUTHORITY_RENEWAL)


@pytest.mark.parametrize("broken", [{"certificate": b"x"}, {"private_key": b"x"}])
def test_damaged_authority_is_not_usable(broken: dict[str, bytes]) -> None:
    assert not is_usable(replace(make_authority("op", NOW), **broken), NOW)


def test_authority_may_sign_nothing_but_leaves() -> None:
    authority = make_authority("op", NOW)
    certificate = x509.load_pem_x509_certificate(authority.certificate)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    leaf = x509.load_pem_x509_certificate(make_leaf(authority, [HOST], NOW).certificate)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(certificate)


# --- the Secret and the EndpointSlice


@dataclass
class SecretServer:
    """Knows one Secret and one Service; ``rival`` writes the Secret just before us, once."""

    data: dict[str, str] = field(default_factory=dict)
    rival: dict[str, str] | None = None
    is_installed: bool = True
    version: int = 1
    slices: list[Object] = field(default_factory=list)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        if not self.is_installed:
            raise NotFoundError("not installed")
        names = {SECRETS: "op-report-ca", SERVICES: "op-report"}
        assert (namespace, name) == ("system", names[kind])
        return {"metadata": {"resourceVersion": str(self.version), "uid": "service-uid"}, "data": dict(self.data)}

    async def patch(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        if kind != SECRETS:
            self.slices.append(body)
            return body
        if self.rival is not None:
            self.data, self.rival = self.rival, None
            self.version += 1
        if body["metadata"]["resourceVersion"] != str(self.version):
            raise ConflictError("changed")
        self.data = body["data"]
        return body

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        if self.slices:
            raise AlreadyExistsError("there")
        self.slices.append(body)
        return body


async def ensure(server: SecretServer, now: datetime = NOW) -> KeyPair:
    return await ensure_authority(server, SETTINGS, now)  # type: ignore[arg-type]


async def test_empty_secret_is_filled_once() -> None:
    server = SecretServer()
    made = await ensure(server)
    assert await ensure(server) == made == read_authority({"data": server.data})


async def test_authority_about_to_expire_or_damaged_is_replaced() -> None:
    server = SecretServer()
    made = await ensure(server)
    renewed = await ensure(server, NOW + AUTHORITY_LIFE)
    assert renewed != made
    server.data["tls.crt"] = "!!"
    assert await ensure(server) not in (made, renewed)


async def test_rivals_authority_is_used() -> None:
    first = SecretServer()
    rivals = await ensure(first)
    assert await ensure(SecretServer(rival=first.data)) == rivals


async def test_missing_secret_is_an_error() -> None:
    with pytest.raises(NotFoundError):
        await ensure(SecretServer(is_installed=False))


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


# --- tokens


def review_of(**changes: Any) -> Object:
    """What the API server says of a good token."""
    user = {
        "username": "system:serviceaccount:team:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["pod-0"],
            "authentication.kubernetes.io/pod-uid": ["pod-0-uid"],
        },
    }
    return {"status": {"authenticated": True, "audiences": ["llava-finetune-operator"], "user": user, **changes}}


@dataclass
class ReviewServer:
    """Answers TokenReviews for the token ``good``; ``gate`` holds answers back."""

    asked: list[str] = field(default_factory=list)
    answer: Object = field(default_factory=review_of)
    is_down: bool = False
    gate: asyncio.Event | None = None

    async def create(self, kind: Kind, namespace: None, body: Object) -> Object:
        assert kind == TOKEN_REVIEWS
        assert body["spec"]["audiences"] == ["llava-finetune-operator"]
        token = body["spec"]["token"]
        self.asked.append(token)
        if self.gate:
            await self.gate.wait()
        if self.is_down:
            raise RetryableError("down")
        return self.answer if token == "good" else {"status": {"authenticated": False}}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_reviewer(server: ReviewServer, clock: Clock | None = None) -> TokenReviewer:
    return TokenReviewer(server, clock=clock or Clock())  # type: ignore[arg-type]


async def test_accepted_token_is_not_asked_about_for_a_minute() -> None:
    server, clock = ReviewServer(), Clock()
    reviewer = make_reviewer(server, clock)
    for _ in range(3):
        speaker = await reviewer.review("good")
        assert speaker is not None
        assert (speaker.pod, speaker.pod_uid) == (Key("team", "pod-0"), "pod-0-uid")
    assert server.asked == ["good"]
    clock.now += ACCEPTED_FOR_S
    await reviewer.review("good")
    assert server.asked == ["good", "good"]


async def test_refusals_are_remembered_for_a_shorter_while() -> None:
    server, clock = ReviewServer(), Clock()
    reviewer = make_reviewer(server, clock)
    assert await reviewer.review("bad") is None
    assert await reviewer.review("bad") is None
    clock.now += 10
    await reviewer.review("bad")
    assert server.asked == ["bad", "bad"]


@pytest.mark.parametrize(
    "answer",
    [
        review_of(authenticated=False),
        review_of(audiences=["somebody-else"]),
        review_of(audiences=[]),
        review_of(user={"username": "admin", "extra": {}}),
        review_of(user={"username": "system:serviceaccount:team:default", "extra": {}}),
        {},
    ],
)
async def test_tokens_that_are_not_for_us_are_refused(answer: Object) -> None:
    assert await make_reviewer(ReviewServer(answer=answer)).review("good") is None


async def test_memory_of_tokens_is_bounded() -> None:
    server = ReviewServer()
    reviewer = make_reviewer(server)
    for number in range(MAX_CACHED + 1):
        await reviewer.review(f"bad-{number}")
    await reviewer.review(f"bad-{MAX_CACHED}")
    assert len(server.asked) == MAX_CACHED + 1
    await reviewer.review("bad-0")
    assert len(server.asked) == MAX_CACHED + 2


async def test_too_many_reviews_at_once_are_put_off() -> None:
    server = ReviewServer(gate=asyncio.Event())
    reviewer = make_reviewer(server)
    waiting = [asyncio.create_task(reviewer.review(f"bad-{n}")) for n in range(MAX_REVIEWS)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await reviewer.review("good")
    assert server.gate is not None
    server.gate.set()
    assert await asyncio.gather(*waiting) == [None] * MAX_REVIEWS


# --- reports


EARLIER_JOB_UID = "job-of-an-earlier-attempt"


def run_object(status: Status) -> Object:
    meta = {"namespace": KEY.namespace, "name": KEY.name, "uid": RUN_UID, "resourceVersion": "1"}
    return {"metadata": meta, "status": dump_status(status)}


def pod_object(name: str = "pod-0", *, index: str = "0", job: str = JOB_UID, **status: Any) -> Object:
    return {
        "metadata": {
            "namespace": KEY.namespace,
            "name": name,
            "uid": f"{name}-uid",
            "labels": {LABEL_RUN: KEY.name, LABEL_COMPLETION_INDEX: index},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "uid": job, "controller": True}],
        },
        "status": {"phase": "Running", **status},
    }


def job_object(uid: str) -> Object:
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": KEY.name, "uid": RUN_UID, "controller": True}
    meta = {"namespace": KEY.namespace, "name": uid, "uid": uid, "labels": {LABEL_RUN: KEY.name}}
    return {"metadata": {**meta, "ownerReferences": [owner]}}


class Desk:
    """A desk with everything around it: a run that trains, its first pod, an API server that knows its token."""

    def __init__(self, status: Status | None = None) -> None:
        self.server = ReviewServer()
        self.runs, self.children, self.queue = Runs(), Children(lambda *_: True, SkippedObjects()), WorkQueue[Key]()
        self.progress = ProgressBook(interval_s=15, writes_per_s=5)
        self.codes: list[int] = []
        self.now = NOW
        self.runs.note(run_object(status or begun(StageName.TRAIN)))
        for job in (JOB_UID, EARLIER_JOB_UID):
            self.children.note_job(job_object(job))
        self.children.note_pod(pod_object())
        desk = ReportDesk(
            reviewer=make_reviewer(self.server),
            runs=self.runs,
            children=self.children,
            progress=self.progress,
            queue=self.queue,
            now=lambda: self.now,
            count=self.codes.append,
        )
        self.app = desk.build_app()

    async def take(self, body: bytes, *, token: str = "Bearer good") -> tuple[int, str]:
        authority = make_authority("op", datetime.now().astimezone())
        certificate = ServerCertificate([HOST])
        certificate.renew(authority, datetime.now().astimezone())
        async with serve(self.app, certificate.context) as port:
            return await post(port, authority, token, body)


def make_report(**changes: Any) -> bytes:
    said = {"runUid": RUN_UID, "stage": "train", "attempt": 1, "step": 3, "totalSteps": 12, **changes}
    return json.dumps(said).encode()


async def test_good_report_is_taken_and_the_run_looked_at() -> None:
    desk = Desk()
    assert await desk.take(make_report(loss=1.5, etaSeconds=61.6)) == (204, "")
    taken = desk.progress.newest(RUN_UID, StageName.TRAIN, 1)
    assert taken is not None
    assert (taken.step, taken.loss, taken.eta_seconds, taken.pod_uid) == (3, 1.5, 62, "pod-0-uid")
    assert (taken.unit, taken.message) == ("steps", "")
    assert desk.queue.depth == 1
    assert desk.codes == [204]


async def test_alignment_reports_as_training_does() -> None:
    desk = Desk(walk(FROM_SCRATCH, StageName.ALIGN))
    assert await desk.take(make_report(stage="align", loss=2.5)) == (204, "")
    taken = desk.progress.newest(RUN_UID, StageName.ALIGN, 1)
    assert taken is not None
    assert (taken.stage, taken.loss) == (StageName.ALIGN, 2.5)
    assert (await desk.take(make_report(stage="train")))[0] == 409


async def test_what_is_being_fetched_is_taken_over() -> None:
    desk = Desk()
    assert await desk.take(make_report(unit="bytes", message="fetching hf://a/b")) == (204, "")
    taken = desk.progress.newest(RUN_UID, StageName.TRAIN, 1)
    assert taken is not None
    assert (taken.unit, taken.message) == ("bytes", "fetching hf://a/b")


@pytest.mark.parametrize("token", ["", "Bearer ", "Basic good", "Bearer bad"])
async def test_unknown_speakers_are_401(token: str) -> None:
    desk = Desk()
    assert (await desk.take(make_report(), token=token))[0] == 401
    assert desk.codes == [401]


async def test_api_server_that_is_down_is_503() -> None:
    desk = Desk()
    desk.server.is_down = True
    assert (await desk.take(make_report()))[0] == 503


@pytest.mark.parametrize(
    "pod",
    [
        None,
        pod_object("another"),
        pod_object(index="1"),
        pod_object(containerStatuses=[{"name": "stage", "state": {"terminated": {"exitCode": 0}}}]),
    ],
    ids=["unknown", "another uid", "second pod", "ended"],
)
async def test_pods_that_have_no_say_are_403(pod: Object | None) -> None:
    desk = Desk()
    desk.children.note_pod(pod_object(), deleted=True)
    if pod is not None:
        # The token is that of pod-0, whatever stands behind the name by now.
        pod["metadata"]["name"] = "pod-0"
        desk.children.note_pod(pod)
    assert (await desk.take(make_report()))[0] == 403


async def test_pods_of_another_job_are_409() -> None:
    desk = Desk()
    desk.children.note_pod(pod_object(job=EARLIER_JOB_UID))
    assert (await desk.take(make_report()))[0] == 409


async def test_pod_whose_run_is_gone_is_409() -> None:
    desk = Desk()
    desk.runs.forget(KEY)
    assert (await desk.take(make_report()))[0] == 409


@pytest.mark.parametrize("change", [{"runUid": "other"}, {"stage": "merge"}, {"attempt": 2}])
async def test_late_reports_are_409_and_change_nothing(change: dict[str, Any]) -> None:
    desk = Desk()
    status, error = await desk.take(make_report(**change))
    assert status == 409
    assert "works on train-1" in error
    assert desk.progress.newest(RUN_UID, StageName.TRAIN, 1) is None


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "no JSON"),
        (b"[1]", "Input should be a valid dictionary"),
        (b"{}", "runUid: Field required"),
        (make_report(step=-1), "step"),
        (make_report(losses=[0.1] * 61), "losses"),
        (b"[" * 30_000, "no JSON"),
    ],
)
async def test_bodies_that_are_no_report_are_400(body: bytes, fault: str) -> None:
    status, error = await Desk().take(body)
    assert status == 400
    assert fault in error


async def test_long_bodies_are_413() -> None:
    assert (await Desk().take(b"x" * (MAX_BODY + 1)))[0] == 413


async def test_hasty_reports_are_429() -> None:
    desk = Desk()
    assert (await desk.take(make_report()))[0] == 204
    assert (await desk.take(make_report()))[0] == 429
    desk.now += timedelta(seconds=1)
    assert (await desk.take(make_report()))[0] == 204


def test_numbers_that_are_not_finite_are_left_out() -> None:
    body = make_report()[:-1] + b',"loss":NaN,"gradNorm":1e999,"etaSeconds":-Infinity,"losses":[1.0,NaN,2.0,Infinity]}'
    report = parse_report(body)
    assert (report.loss, report.grad_norm, report.eta_seconds, report.losses) == (None, None, None, (1.0, 2.0))


def test_what_the_trainer_serialises_is_read() -> None:
    report = ProgressReport(run_uid="u", stage=StageName.TRAIN, attempt=1, step=1, total_steps=2, loss=float("nan"))
    assert parse_report(report.model_dump_json().encode()) == report.model_copy(update={"loss": None})


def test_report_of_another_version_is_refused() -> None:
    with pytest.raises(RefusedError, match="version"):
        parse_report(make_report(version=2))
