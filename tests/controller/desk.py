"""A reporting endpoint with everything around it, served as the operator serves it, and clients of every kind."""

import asyncio
import base64
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import aiohttp

from llava_api.constants import API_VERSION, KIND, LABEL_COMPLETION_INDEX, LABEL_RUN, TOKEN_AUDIENCE, StageName
from llava_api.status import Status
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.deciding.status import dump_status
from llava_operator.kube.errors import RetryableError
from llava_operator.kube.kinds import TOKEN_REVIEWS, Kind
from llava_operator.kube.objects import Key, Object
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.reporting.acceptance import ReportDesk
from llava_operator.reporting.authority_secret import ServerCertificate
from llava_operator.reporting.certificates import Issuer, make_authority, read_issuer
from llava_operator.reporting.tokens import TokenReviewer
from llava_operator.serving.connections import Closed, Limits
from llava_operator.serving.server import serve
from tests.controller.makers import JOB_UID, KEY, NOW, RUN_UID, begun

HOST = "op-report.system.svc"
EARLIER_JOB_UID = "job-of-an-earlier-attempt"


def make_issuer(now: datetime | None = None) -> Issuer:
    pair = make_authority("op", now or datetime.now().astimezone())
    return read_issuer(pair.certificate, pair.private_key)


def make_token(pod: str = "pod-0", *, salt: str = "good", **claims: Any) -> str:
    """A token as Kubernetes writes it, but for the signature, which says what ``ReviewServer`` thinks of it."""
    bound = {"namespace": KEY.namespace, "pod": {"name": pod, "uid": f"{pod}-uid"}, "serviceaccount": {"name": "x"}}
    said = {"aud": [TOKEN_AUDIENCE], "kubernetes.io": bound, "exp": 1, "iss": "https://kubernetes", **claims}
    return ".".join(encode_part(part) for part in (b'{"alg":"RS256"}', json.dumps(said).encode(), salt.encode()))


def encode_part(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


GOOD = make_token()


def review_of(**changes: Any) -> Object:
    """What the API server says of a good token."""
    user = {
        "username": f"system:serviceaccount:{KEY.namespace}:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["pod-0"],
            "authentication.kubernetes.io/pod-uid": ["pod-0-uid"],
        },
    }
    return {"status": {"authenticated": True, "audiences": ["llava-finetune-operator"], "user": user, **changes}}


@dataclass
class ReviewServer:
    """Answers TokenReviews: tokens whose signature is ``good`` are; ``gate`` holds answers back."""

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
        is_good = token.endswith(f".{encode_part(b'good')}")
        return self.answer if is_good else {"status": {"authenticated": False}}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


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


def make_report(**changes: Any) -> bytes:
    said = {"runUid": RUN_UID, "stage": "train", "attempt": 1, "step": 3, "totalSteps": 12, **changes}
    return json.dumps(said).encode()


class Desk:
    """A desk with everything around it: a run that trains, its first pod, an API server that knows its token."""

    def __init__(self, status: Status | None = None, *, interval_s: float = 15) -> None:
        self.server, self.clock = ReviewServer(), Clock()
        self.runs, self.queue = Runs(), WorkQueue[Key]()
        self.children = Children(self.runs, SkippedObjects())
        self.progress = ProgressBook(interval_s=interval_s, writes_per_s=5)
        self.codes: list[int] = []
        self.answered = asyncio.Event()
        self.closed: Counter[Closed] = Counter()
        self.another_closed = asyncio.Semaphore(0)
        self.now = NOW
        self.runs.note(run_object(status or begun(StageName.TRAIN)))
        for job in (JOB_UID, EARLIER_JOB_UID):
            self.children.note_job(job_object(job))
        self.children.note_pod(pod_object())
        self.desk = ReportDesk(
            reviewer=TokenReviewer(self.server, clock=self.clock),  # type: ignore[arg-type]
            runs=self.runs,
            children=self.children,
            progress=self.progress,
            queue=self.queue,
            now=lambda: self.now,
            clock=self.clock,
            count=self._count_answer,
        )

    @asynccontextmanager
    async def serve(self, limits: Limits | None = None) -> AsyncIterator["Client"]:
        issuer = make_issuer()
        certificate = ServerCertificate([HOST, "localhost"])
        certificate.renew(issuer, datetime.now().astimezone())
        app, context = self.desk.build_app(), certificate.context
        async with serve(app, 0, host="127.0.0.1", context=context, limits=limits, count=self._count) as port:
            yield Client(port, issuer.roots.decode())

    def _count_answer(self, code: int) -> None:
        self.codes.append(code)
        self.answered.set()

    def _count(self, why: Closed) -> None:
        self.closed[why] += 1
        self.another_closed.release()

    async def take(self, body: bytes, *, token: str = f"Bearer {GOOD}") -> tuple[int, str]:
        """Status, and what the answer says is wrong."""
        async with self.serve() as client:
            return await client.post(body, token=token)


@dataclass
class Client:
    """Talks to an endpoint."""

    port: int
    roots: str

    @property
    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.roots)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/v1/progress"

    async def post(self, body: bytes, *, token: str = f"Bearer {GOOD}", source: str = "127.0.0.1") -> tuple[int, str]:
        """Status, and what the answer says is wrong; over a connection of its own."""
        headers = {"Authorization": token} if token else {}
        connector = aiohttp.TCPConnector(local_addr=(source, 0))
        async with (
            aiohttp.ClientSession(headers=headers, connector=connector) as session,
            session.post(self.url, data=body, ssl=self.trusted, server_hostname=HOST) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text).get("error", "")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection over TLS that has said nothing yet."""
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trusted, server_hostname=HOST)
