"""What is seen of kopf's own requests: the real kopf against a server that plays the API server's lists and watches."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kopf
import pytest
import yaml
from aiohttp import web

from llava_api.constants import GROUP, KIND, PLURAL, VERSION
from llava_operator.cache.children import Children
from llava_operator.cache.runs import Runs
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.kube.kinds import JOBS, PODS, RUNS, Kind
from llava_operator.kube.objects import Key
from llava_operator.kube.requests import Answered, read_request
from llava_operator.loop.backoffs import LAST_BACKOFF_S, LASTING_S
from llava_operator.loop.sessions import WatchSessions
from llava_operator.loop.watches import build_kopf_settings, build_registry
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.settings import Settings

Watch = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


def resource(plural: str, kind: str) -> dict[str, Any]:
    return {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["list", "watch"]}


DISCOVERED = {
    "/api": {"versions": ["v1"]},
    "/apis": {"groups": [
        {"name": group, "preferredVersion": {"version": version}, "versions": [{"version": version}]}
        for group, version in (("batch", "v1"), (GROUP, VERSION))
    ]},
    "/api/v1": {"resources": [resource("pods", "Pod"), resource("namespaces", "Namespace")]},
    "/apis/batch/v1": {"resources": [resource("jobs", "Job")]},
    f"/apis/{GROUP}/{VERSION}": {"resources": [resource(PLURAL, KIND)]},
}  # fmt: skip


async def hang(_: web.Request, response: web.StreamResponse) -> None:
    await asyncio.Event().wait()


async def end(_: web.Request, response: web.StreamResponse) -> None:
    """What the API server does when ``timeoutSeconds`` are over."""


async def send(response: web.StreamResponse, kind: str, body: dict[str, Any]) -> None:
    await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")


async def expire(_: web.Request, response: web.StreamResponse) -> None:
    await send(response, "ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await asyncio.Event().wait()


async def break_off(request: web.Request, response: web.StreamResponse) -> None:
    await response.write(b'{"type": "ADDED", "obj')
    assert request.transport is not None
    request.transport.abort()


async def refuse(_: web.Request, response: web.StreamResponse) -> None:
    raise web.HTTPInternalServerError


class PlayedApiServer:
    """Answers to discovery and lists; each resource's watches go as told, one after the other, and then hang."""

    def __init__(self, **watches: list[Watch]) -> None:
        self.watches = watches
        self.begun: Counter[str] = Counter()
        self.tokens: set[str] = set()
        self.knows_nobody = False
        self.changed = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.tokens.add(request.headers.get("Authorization", ""))
        if self.knows_nobody:
            raise web.HTTPUnauthorized
        if request.path in DISCOVERED:
            return web.json_response(DISCOVERED[request.path])
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        plural = request.path.rpartition("/")[2]
        self.begun[plural] += 1
        self.changed.set()
        told = self.watches.get(plural, [])
        watch = told.pop(0) if told else hang
        if watch is refuse:
            raise web.HTTPInternalServerError
        response = web.StreamResponse()
        await response.prepare(request)
        await watch(request, response)
        return response

    async def has_begun(self, **wanted: int) -> None:
        while any(self.begun[plural] < number for plural, number in wanted.items()):
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def watching(
    server: PlayedApiServer, folder: Path, sessions: WatchSessions, *, silence_s: float = 60
) -> AsyncIterator[None]:
    """kopf as the operator runs it; a watch that is silent for so long is begun anew."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    (folder / "config").write_text(yaml.safe_dump({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://{host}:{port}"}}],
        "users": [{"name": "u", "user": {"token": "the-token"}}],
    }))  # fmt: skip
    needed = {"namespace": "n", "pod_name": "p", "pod_ip": "1.2.3.4", "trainer_image": "i"}
    settings = build_kopf_settings(Settings.model_validate(needed))
    settings.watching.reconnect_backoff = 0.01
    settings.watching.inactivity_timeout = silence_s
    settings.networking.error_backoffs = [0.01] * 10
    runs = Runs()
    registry = build_registry(WorkQueue[Key](), runs, Children(runs, SkippedObjects()), sessions)
    stop = asyncio.Event()
    task = asyncio.create_task(kopf.operator(registry=registry, settings=settings, clusterwide=True, stop_flag=stop))
    try:
        yield
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await task
        await runner.cleanup()


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return tmp_path


@dataclass
class PlayedTime:
    """Sleep that takes no time but the clock's; after so many waits, ``changed`` is called."""

    after: int
    changed: Callable[[], None]
    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        if len(self.waits) == self.after:
            self.changed()


class Noted:
    def __init__(self, time: PlayedTime | None = None) -> None:
        self.requests: list[Answered] = []
        self.broken: list[Answered] = []
        self.changed = asyncio.Event()
        played: dict[str, Any] = {"clock": lambda: time.now, "sleep": time.sleep} if time else {}
        self.sessions = WatchSessions(note_request=self._note, note_broken=self.broken.append, **played)

    def _note(self, answered: Answered) -> None:
        self.requests.append(answered)
        self.changed.set()

    async def has(self, kind: Kind, verb: str, number: int) -> None:
        """Wait for so many answers."""
        while sum(count for (asked, _), count in self.answers(kind).items() if asked == verb) < number:
            self.changed.clear()
            await self.changed.wait()

    def answers(self, kind: Kind) -> Counter[tuple[str, int]]:
        return Counter(
            (verb, one.code) for one in self.requests for verb, name in [read_request(one)] if name == kind.plural
        )


async def test_watches_that_break_are_told_apart_from_those_that_end(kubeconfig: Path) -> None:
    noted = Noted()
    server = PlayedApiServer(pods=[end, end, expire, break_off, refuse, end], jobs=[end])
    async with watching(server, kubeconfig, noted.sessions):
        await server.has_begun(pods=7, jobs=2, llavafinetunes=1)
        paths = Counter(one.path for one in noted.broken)
        assert paths == {PODS.path(): 3}, "one that expired, one that was broken off, one that was refused"
    assert server.tokens == {"Bearer the-token"}


async def test_watch_that_is_silent_for_too_long_has_failed(kubeconfig: Path) -> None:
    noted = Noted()
    server = PlayedApiServer()
    async with watching(server, kubeconfig, noted.sessions, silence_s=0.2):
        await server.has_begun(pods=3, jobs=2, llavafinetunes=2)
        counted = Counter(one.path for one in noted.broken)
    assert counted[PODS.path()] >= 2
    assert {PODS.path(), JOBS.path(), RUNS.path()} == counted.keys()


async def test_every_request_of_kopf_is_noted(kubeconfig: Path) -> None:
    noted = Noted()
    server = PlayedApiServer(pods=[end, refuse, expire])
    async with watching(server, kubeconfig, noted.sessions):
        for kind, number in ((PODS, 4), (JOBS, 1), (RUNS, 1)):
            await noted.has(kind, "watch", number)
    # After what has expired everything is listed anew. The last watches hang, but their heads came.
    assert noted.answers(PODS) == {("list", 200): 2, ("watch", 200): 3, ("watch", 500): 1}
    assert noted.answers(JOBS) == noted.answers(RUNS) == {("list", 200): 1, ("watch", 200): 1}
    assert {read_request(one) for one in noted.requests if one.path in DISCOVERED} == {("get", "other")}


async def test_api_server_that_is_not_there_is_noted(kubeconfig: Path) -> None:
    noted = Noted()
    (kubeconfig / "config").write_text(yaml.safe_dump({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}], "users": [{"name": "u", "user": {}}],
    }))  # fmt: skip
    found = await noted.sessions.login_with_kubeconfig(settings=kopf.OperatorSettings())
    assert found is not None
    async with found.aiohttp_session as session:
        for query in ({}, {"watch": "true"}):
            with pytest.raises(OSError, match="9"):
                await session.get(f"http://127.0.0.1:9{JOBS.path()}", params=query)
    assert noted.answers(JOBS) == {("list", 0): 1, ("watch", 0): 1}
    assert [one.path for one in noted.broken] == [JOBS.path()]


async def test_an_api_server_that_knows_the_operator_no_more_is_asked_less_and_less_often(kubeconfig: Path) -> None:
    """kopf alone would log in, be refused, and log in again without pause."""
    server = PlayedApiServer()
    server.knows_nobody = True

    def know_again() -> None:
        server.knows_nobody = False

    time = PlayedTime(after=24, changed=know_again)
    noted = Noted(time)
    async with asyncio.timeout(60), watching(server, kubeconfig, noted.sessions):
        await server.has_begun(pods=1, jobs=1, llavafinetunes=1)
    # Each login asks both: there is no service account here, which costs no wait.
    assert time.waits[::2] == [0] * 12
    assert time.waits[1::2] == [0, 1, 1, 2, 3, 5, 8, 13, 21, LAST_BACKOFF_S, LAST_BACKOFF_S, LAST_BACKOFF_S]


async def test_a_token_that_was_good_for_long_is_renewed_at_once(kubeconfig: Path) -> None:
    server = PlayedApiServer()
    time = PlayedTime(after=0, changed=lambda: None)
    noted = Noted(time)
    async with watching(server, kubeconfig, noted.sessions):
        await server.has_begun(pods=1, jobs=1, llavafinetunes=1)
    for lasted_s, wait_s in [(LASTING_S, 0), (LASTING_S - 1, 1), (0, 1), (0, 2), (LASTING_S, 0), (0, 1)]:
        time.now += lasted_s
        session = await noted.sessions.login_with_kubeconfig(settings=kopf.OperatorSettings())
        assert session is not None
        await session.aiohttp_session.close()
        assert time.waits[-1] == wait_s, (lasted_s, time.waits)


async def test_where_there_is_nothing_to_log_in_with_others_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    sessions = Noted().sessions
    assert await sessions.login_with_kubeconfig(settings=kopf.OperatorSettings()) is None
    assert await sessions.login_with_service_account(settings=kopf.OperatorSettings()) is None
