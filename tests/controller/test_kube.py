"""Paths, and which refusal becomes which error; against a real HTTP server that plays the API server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from llava_operator.kube import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kind,
    Kube,
    KubeError,
    NotFoundError,
    RetryableError,
    error_of,
)
from llava_operator.resources import JOBS, PODS, RUNS

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
        (400, "BadRequest", InvalidError),
        (401, "Unauthorized", RetryableError),
        (403, "Forbidden", ForbiddenError),
        (404, "NotFound", NotFoundError),
        (409, "AlreadyExists", AlreadyExistsError),
        (409, "Conflict", ConflictError),
        (422, "Invalid", InvalidError),
        (429, "TooManyRequests", RetryableError),
        (500, "InternalError", RetryableError),
        (503, "", RetryableError),
    ],
)
def test_refusals_are_typed(status: int, reason: str, error: type[KubeError]) -> None:
    made = error_of(status, json.dumps({"reason": reason, "message": "because"}).encode(), None)
    assert type(made) is error
    assert (made.status, made.reason, str(made)) == (status, reason, "because")


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
        {"limit": "250", "labelSelector": "a=b"},
        {"limit": "250", "labelSelector": "a=b", "continue": "1"},
        {"limit": "250", "labelSelector": "a=b", "continue": "2"},
    ]


async def test_patches_are_merge_patches() -> None:
    async def echo(request: web.Request) -> web.Response:
        assert request.method == "PATCH"
        assert request.content_type == "application/merge-patch+json"
        return web.json_response({"path": request.path, "body": await request.json()})

    async with serve(echo) as kube:
        answer = await kube.patch(RUNS, "ns", "r", {"status": {"a": None}}, subresource="status")
    assert answer["path"].endswith("/r/status")
    assert answer["body"] == {"status": {"a": None}}
