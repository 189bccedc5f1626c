"""Paths, and which refusal becomes which error; against a real HTTP server that plays the API server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from llava_operator.kube.client import CHUNK_BYTES, MAX_LIST_BYTES, Kube
from llava_operator.kube.errors import (
    LAST_RETRY_AFTER_S,
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
    RefusedError,
    RetryableError,
    TooLongError,
    error_of,
)
from llava_operator.kube.kinds import JOBS, PODS, RUNS, Kind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve(handler: Handler, *, timeout_s: float = 5) -> AsyncIterator[Kube]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with ApiClient(Configuration(host=f"http://{host}:{port}")) as api:
        yield Kube(api, timeout_s=timeout_s)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PODS.path("ns", "p"), "/api/v1/namespaces/ns/pods/p"),
        (JOBS.path(), "/apis/batch/v1/jobs"),
        (RUNS.path("ns", "r", "status"), "/apis/finetune.llava.dev/v1alpha1/namespaces/ns/llavafinetunes/r/status"),
        (Kind("api/v1", "nodes").path(None, "n"), "/api/v1/nodes/n"),
    ],
)
def test_paths(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        (400, "BadRequest", RefusedError),
        (401, "Unauthorized", RetryableError),
        (403, "Forbidden", ForbiddenError),
        (404, "NotFound", NotFoundError),
        (409, "AlreadyExists", AlreadyExistsError),
        (409, "Conflict", ConflictError),
        (413, "RequestEntityTooLarge", RefusedError),
        (422, "Invalid", RefusedError),
        (429, "TooManyRequests", RetryableError),
        (500, "InternalError", RetryableError),
        (503, "", RetryableError),
    ],
)
def test_refusals_are_typed(status: int, reason: str, error: type[KubeError]) -> None:
    made = error_of(status, json.dumps({"reason": reason, "message": "because"}).encode(), None)
    assert type(made) is error
    assert (made.status, made.reason, str(made)) == (status, reason, "because")


@pytest.mark.parametrize(
    ("causes", "error"),
    [
        ([{"field": "spec.a"}, {"field": "spec.b", "reason": "FieldValueInvalid"}], InvalidError),
        ([{"field": "spec.a"}, {"message": "a policy's word"}], RefusedError),
        ([{"field": ""}], RefusedError),
        ([], RefusedError),
        (None, RefusedError),
        ("spec.a", RefusedError),
    ],
)
def test_only_fields_that_are_named_are_refused_for_good(causes: object, error: type[KubeError]) -> None:
    body = {"reason": "Invalid", "message": "because", "details": {"causes": causes}}
    assert type(error_of(422, json.dumps(body).encode(), None)) is error


def test_webhook_is_never_final() -> None:
    """controller-runtime's answer with causes like those of the API server itself."""
    body = {
        "reason": "Invalid",
        "message": 'admission webhook "w" denied the request: spec.x',
        "details": {"causes": [{"field": "spec.x"}]},
    }
    assert type(error_of(422, json.dumps(body).encode(), None)) is RefusedError


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_path_needs_a_name(name: str) -> None:
    """An empty one would be the path of the whole collection."""
    with pytest.raises(ValueError, match="is no name"):
        RUNS.path("ns", name)
    with pytest.raises(ValueError, match="is no name"):
        RUNS.path(name, "r")


def test_name_leads_nowhere_else() -> None:
    path = PODS.path("ns", "../../other/pods/p?x=%2f#y")
    assert path == "/api/v1/namespaces/ns/pods/..%2F..%2Fother%2Fpods%2Fp%3Fx%3D%252f%23y"


@pytest.mark.parametrize("retry_after", ["\u00b2", "\u0663", "-1", "1e9", "soon"])
def test_retry_after_that_is_no_number_is_passed_over(retry_after: str) -> None:
    assert error_of(503, b"{}", retry_after).retry_after_s is None


def test_nobody_makes_the_operator_wait_for_ever() -> None:
    assert error_of(429, b"{}", "9" * 30).retry_after_s == LAST_RETRY_AFTER_S


def test_message_is_fit_to_show() -> None:
    body = json.dumps({"message": "\x1b[31m" + "x" * 9000}).encode()
    message = str(error_of(400, body, None))
    assert message.startswith("\\x1b[31m")
    assert len(message) == 4096


@pytest.mark.parametrize("body", [b"<html>502</html>", b"[]", b"\xff\xfe", b""])
def test_answers_of_proxies_are_understood_as_far_as_possible(body: bytes) -> None:
    made = error_of(502, body, "7")
    assert type(made) is RetryableError
    assert made.retry_after_s == 7
    assert str(made)


def test_retry_after_as_a_date_is_passed_over() -> None:
    assert error_of(503, b"{}", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s is None


async def test_server_that_is_not_there_is_retryable() -> None:
    async with ApiClient(Configuration(host="http://127.0.0.1:9")) as api:
        with pytest.raises(RetryableError, match="GET /api/v1/namespaces/ns/pods/p"):
            await Kube(api, timeout_s=5).get(PODS, "ns", "p")


async def test_server_that_hangs_is_given_up() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        await asyncio.Event().wait()
        return response

    async with serve(hang, timeout_s=0.2) as kube:
        with pytest.raises(RetryableError, match="no answer in time"):
            await kube.get(PODS, "ns", "p")


async def test_list_goes_through_every_chunk() -> None:
    asked: list[dict[str, str]] = []

    async def chunks(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        page = int(request.query.get("continue", "0"))
        token = {"continue": str(page + 1)} if page < 2 else {}
        return web.json_response({"metadata": token, "items": [{"n": page}]})

    async with serve(chunks) as kube:
        assert [item["n"] async for item in kube.list(PODS, None, "a=b")] == [0, 1, 2]
    assert asked == [
        {"limit": "10", "labelSelector": "a=b"},
        {"limit": "250", "labelSelector": "a=b", "continue": "1"},
        {"limit": "250", "labelSelector": "a=b", "continue": "2"},
    ]


@pytest.mark.parametrize("body", ["<html>please log in</html>", "[]", ""])
async def test_answer_that_is_no_object_is_tried_again(body: str) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text=body)

    async with serve(page) as kube:
        with pytest.raises(RetryableError, match="is no JSON object"):
            await kube.get(PODS, "ns", "p")


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ({"major": "1", "minor": "34"}, (1, 34)),
        ({"major": "1", "minor": "31+"}, (1, 31)),
        ({"major": "", "minor": ""}, None),
        ({"minor": ["x"]}, None),
    ],
)
async def test_version(answer: object, version: tuple[int, int] | None) -> None:
    async def say(request: web.Request) -> web.Response:
        assert request.path == "/version"
        return web.json_response(answer)

    async with serve(say) as kube:
        assert await kube.version() == version


async def test_large_objects_are_listed_a_few_at_a_time() -> None:
    """Anybody may store objects of 1.5 MB, and behind many small ones."""
    small, large = {"x": "s" * 2000}, {"x": "l" * 1_400_000}
    stored = [small] * 500 + [large] * 60
    sizes: list[int] = []

    async def serve_list(request: web.Request) -> web.Response:
        start, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        stop = min(start + limit, len(stored))
        meta = {"continue": str(stop)} if stop < len(stored) else {}
        text = json.dumps({"metadata": meta, "items": stored[start:stop]})
        sizes.append(len(text))
        return web.Response(text=text, content_type="application/json")

    async with serve(serve_list, timeout_s=20) as kube:
        found = [item async for item in kube.list(PODS, None)]
    assert [len(item["x"]) for item in found] == [len(item["x"]) for item in stored]
    # Two answers were cut off where the large ones began; all the others were small.
    assert sum(size > MAX_LIST_BYTES for size in sizes) <= 2
    assert sorted(sizes)[-4] < 8 * CHUNK_BYTES


async def test_answer_that_is_too_long_in_the_smallest_piece_is_an_error() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 2**20)
        return response

    async with serve(endless, timeout_s=20) as kube:
        with pytest.raises(TooLongError, match="more than"):
            async for _ in kube.list(PODS, None):
                pass


async def test_deeply_nested_answer_is_no_exception_of_another_kind() -> None:
    async def nested(request: web.Request) -> web.Response:
        return web.Response(text='{"a":' * 100_000, content_type="application/json")

    async with serve(nested) as kube:
        with pytest.raises(RetryableError, match="no JSON object"):
            await kube.get(PODS, "ns", "p")


@pytest.mark.parametrize("answer", [{}, {"items": {}}, {"items": [], "metadata": None}])
async def test_list_that_is_none_is_tried_again(answer: object) -> None:
    async def say(request: web.Request) -> web.Response:
        return web.json_response(answer)

    async with serve(say) as kube:
        with pytest.raises(RetryableError, match="is no list"):
            async for _ in kube.list(PODS, None):
                pass


async def test_patches_are_merge_patches() -> None:
    async def echo(request: web.Request) -> web.Response:
        assert request.method == "PATCH"
        assert request.content_type == "application/merge-patch+json"
        return web.json_response({"path": request.path, "body": await request.json()})

    async with serve(echo) as kube:
        answer = await kube.patch(RUNS, "ns", "r", {"status": {"a": None}}, subresource="status")
    assert answer["path"].endswith("/r/status")
    assert answer["body"] == {"status": {"a": None}}
