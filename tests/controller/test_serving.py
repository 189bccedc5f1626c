"""Connections of every bad kind against the reporting endpoint as it is served: they end, and reports get in."""

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from llava_operator.loop.health import Health
from llava_operator.probes import LIMITS, build_web_app
from llava_operator.serving.connections import Closed, Limits
from llava_operator.serving.server import serve
from llava_operator.telemetry.exposition import Exposition
from tests.controller.desk import GOOD, HOST, Client, Desk, make_issuer, make_report

MANY_COME: dict[str, Any] = {
    "new_per_s": 1e6, "new_at_once": 1000, "new_per_source_per_s": 1e6, "new_per_source_at_once": 1000,
    "requests_per_source_per_s": 1e6,
}  # fmt: skip
QUICK = Limits(
    handshake_s=0.3, head_s=0.4, request_s=0.5, idle_s=0.6, lingering_s=0.1, farewell_s=0.2, **MANY_COME,
    connections=64, connections_per_source=64,
)  # fmt: skip
HEAD = f"POST /v1/progress HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {GOOD}\r\n".encode()


async def no_handshake(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    await until_closed(reader, writer)


async def half_handshake(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    await until_closed(reader, writer)


async def nothing_said(client: Client) -> None:
    await until_closed(*await client.connect())


async def half_head(client: Client) -> None:
    reader, writer = await client.connect()
    writer.write(HEAD)
    await until_closed(reader, writer)


async def slow_head(client: Client) -> None:
    reader, writer = await client.connect()
    await trickle(reader, writer, HEAD)


async def half_body(client: Client) -> None:
    reader, writer = await client.connect()
    writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")
    await until_closed(reader, writer)


async def slow_body(client: Client) -> None:
    reader, writer = await client.connect()
    writer.write(HEAD + b"Content-Length: 1000\r\n\r\n")
    await trickle(reader, writer, b" " * 1000)


async def idle_after_a_report(client: Client) -> None:
    reader, writer = await client.connect()
    body = make_report()
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert (await reader.readline()).split()[1] in (b"200", b"429")
    await until_closed(reader, writer)


async def half_head_after_a_report(client: Client) -> None:
    reader, writer = await client.connect()
    body = make_report()
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    await reader.readuntil(b"\r\n\r\n")
    await trickle(reader, writer, HEAD)


ATTACKS = [
    no_handshake, half_handshake, nothing_said, half_head, slow_head, half_body, slow_body, idle_after_a_report,
    half_head_after_a_report,
]  # fmt: skip


async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> None:
    """Send a byte at a time, as long as somebody listens."""
    ended = asyncio.create_task(until_closed(reader, writer))
    for byte in text:
        if ended.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
    await ended


@pytest.mark.parametrize("attack", ATTACKS)
async def test_connection_ends_by_itself(attack: Callable[[Client], Awaitable[None]]) -> None:
    desk = Desk()
    async with desk.serve(QUICK) as client, asyncio.timeout(30):
        await asyncio.gather(*(attack(client) for _ in range(4)))
    assert set(desk.closed) <= {Closed.HANDSHAKE, Closed.SLOW, Closed.CROWDED}
    if "after_a_report" not in attack.__name__:
        # Those are idle for aiohttp, which ends them without anger.
        assert desk.closed.total() >= 4


@pytest.mark.parametrize("num_addresses", [1, 120])
async def test_who_has_reported_gets_in_whatever_a_flood_does(num_addresses: int, tmp_path: Path) -> None:
    """With the limits as they are, against a process that opens far more connections than may be, and ever new ones."""
    desk = Desk()
    async with desk.serve() as client:
        assert (await client.post(make_report(), source="127.0.0.2"))[0] == 200
        async with flood(client.port, client.roots, tmp_path, num_addresses):
            async with asyncio.timeout(60):
                while desk.closed[Closed.CROWDED] < 5 or desk.closed[Closed.RATE] < 20:
                    await desk.another_closed.acquire()
            for _ in range(6):
                desk.clock.now += 60
                assert (await client.post(make_report(), source="127.0.0.2"))[0] == 200


@contextlib.asynccontextmanager
async def flood(port: int, roots: str, folder: Path, num_addresses: int) -> AsyncIterator[None]:
    """All that another process can do with 120 connections at a time, from so many addresses."""
    (folder / "ca.crt").write_text(roots)
    arguments = (str(port), str(folder / "ca.crt"), HOST, "120", str(num_addresses))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.controller.flood", *arguments, stdin=asyncio.subprocess.PIPE
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()
        assert process.stdin is not None
        process.stdin.close()


async def test_no_more_connections_are_open_than_may_be() -> None:
    desk = Desk()
    limits = Limits(connections=12, connections_per_source=5, **MANY_COME)
    async with desk.serve(limits) as client:
        opened = [await client.connect() for _ in range(30)]
        closed = [asyncio.create_task(until_closed(*one)) for one in opened]
        done, still_open = await asyncio.wait(closed, timeout=1)
        assert len(still_open) == 5
        assert done == set(closed[:25]), "the oldest go"
        assert desk.closed == {Closed.CROWDED: 25}
        for task in still_open:
            task.cancel()


async def test_new_connections_of_one_address_are_bounded_in_number_a_second() -> None:
    desk = Desk()
    async with desk.serve(Limits(new_per_source_at_once=3, new_per_source_per_s=0.001)) as client:
        let_in = [await client.connect() for _ in range(3)]
        for _ in range(5):
            await until_closed(*await asyncio.open_connection("127.0.0.1", client.port))
        for _, writer in let_in:
            assert not writer.is_closing()
            writer.close()
    assert desk.closed[Closed.RATE] == 5


async def test_a_known_pod_is_crowded_out_by_nobody_and_has_one_connection() -> None:
    desk = Desk()
    limits = Limits(connections=4, connections_per_source=4, **MANY_COME)
    body = make_report()
    request = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)

    async def report(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        desk.clock.now += 10
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}")
        return head.split()[1]

    async with desk.serve(limits) as client:
        first = await client.connect()
        assert await report(*first) == b"200"
        strangers = [await client.connect() for _ in range(20)]
        assert await report(*first) == b"200"
        second = await client.connect()
        num_crowded = desk.closed[Closed.CROWDED]
        assert await report(*second) == b"200"
        assert desk.closed[Closed.CROWDED] == num_crowded + 1, "its other connection takes its place"
        assert await first[0].read() == b""
        assert await report(*second) == b"200"
        for _, writer in strangers:
            writer.close()


async def test_too_many_kept_connections_are_used_once() -> None:
    desk = Desk()
    async with desk.serve(Limits(kept=0)) as client:
        reader, writer = await client.connect()
        body = make_report()
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        writer.close()


async def test_one_tcp_connection_carries_many_reports() -> None:
    desk = Desk()
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        desk.serve(Limits(new_per_source_per_s=0.001, new_per_source_at_once=1)) as client,
        aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {GOOD}"}) as session,
    ):
        trusted = client.trusted
        for _ in range(20):
            desk.clock.now += 2
            post = session.post(client.url, data=make_report(), ssl=trusted, server_hostname=HOST)
            async with post as answer:
                assert answer.status == 200
    assert desk.closed == {}


# --- plain HTTP


@pytest.fixture
def app() -> web.Application:
    async def long(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 30_000_000)

    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError("a fault of ours")

    made = web.Application()
    made.add_routes([web.get("/long", long), web.get("/fail", fail)])
    return made


async def test_plain_http_has_the_same_limits(app: web.Application) -> None:
    slow = asyncio.Semaphore(0)
    async with (
        serve(
            app, 0, host="127.0.0.1", limits=QUICK, count=lambda why: slow.release() if why is Closed.SLOW else None
        ) as port,
        asyncio.timeout(30),
    ):
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        connections[1][1].write(b"GET /healthz HTTP/1.1\r\nHost")
        connections[2][1].write(b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n")
        # The third one takes its answer, but never reads it.
        for _ in connections:
            await slow.acquire()
        for _, writer in connections:
            writer.close()


async def test_probes_are_answered_whatever_a_flood_from_many_addresses_does(tmp_path: Path) -> None:
    """The kubelet ends a process that does not answer three times."""
    closed = asyncio.Semaphore(0)
    app = build_web_app(Health(heartbeat_s=10, longest_pass_s=60, clock=time.monotonic), Exposition())
    async with (
        serve(app, 0, host="127.0.0.1", limits=LIMITS, count=lambda _: closed.release()) as port,
        flood(port, make_issuer().roots.decode(), tmp_path, 120),
    ):
        async with asyncio.timeout(60):
            for _ in range(200):
                await closed.acquire()
        for number in range(1, 7):
            local = (f"127.0.1.{number}", 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=local)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()


async def test_a_fault_of_ours_is_logged_and_a_strangers_is_not(
    app: web.Application, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app, 0, host="127.0.0.1", count=lambda _: None) as port:
        for request in (
            b"GET /fail HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GARBAGE\r\n\r\n",
            b"GET / HTTP/1.1\r\nx y\r\n\r\n",
            b"\xff\xfe" * 3000,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            await until_closed(reader, writer)
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["a fault of ours" in (record.exc_text or "") for record in logged] == [True]


async def test_many_requests_of_one_address_are_429(app: web.Application) -> None:
    async with serve(
        app, 0, host="127.0.0.1", limits=Limits(requests_per_source_per_s=1), count=lambda _: None
    ) as port:
        codes = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            codes.append((await reader.read()).split()[1])
            writer.close()
    assert codes == [b"404", b"404", b"429", b"429"]


async def test_a_port_in_use_is_told(app: web.Application) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} cannot be listened at: Address already in use"):
            async with serve(app, port, host="127.0.0.1", count=lambda _: None):
                pass


async def test_all_addresses_are_listened_at(app: web.Application) -> None:
    async with serve(app, 0, count=lambda _: None) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()


async def test_connections_that_are_crowded_out_before_they_are_served_leave_no_socket(app: web.Application) -> None:
    """An unclosed socket is a warning, and warnings are errors."""
    closed: list[Closed] = []
    limits = Limits(connections_per_source=1, **MANY_COME)
    async with serve(app, 0, host="127.0.0.1", limits=limits, count=closed.append) as port:
        # All of them are in the kernel's queue before the loop gets to accept one.
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        await asyncio.sleep(0.1)
    for client in clients:
        client.close()
    gc.collect()
    assert closed == [Closed.CROWDED] * 9


async def test_open_connections_do_not_outlive_the_server(app: web.Application) -> None:
    async with serve(app, 0, host="127.0.0.1", count=lambda _: None) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
    await until_closed(reader, writer)
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if "Door" in repr(task)]


def test_what_the_documentation_says_of_limits_is_true() -> None:
    text = " ".join(Path("docs/reporting.md").read_text().split())
    limits = Limits()
    for said in (
        f"at most {limits.connections} connections of unknown clients, {limits.connections_per_source} of them",
        f"{limits.new_per_s} new ones a second are let in, {limits.new_per_source_per_s} from one address",
        f"a handshake may take {limits.handshake_s} s, a request's head {limits.head_s} s, body and answer "
        f"{limits.request_s} s, and an idle connection ends after {limits.idle_s} s",
        f"{limits.kept} pods that have reported keep one connection each",
        f"an address {limits.requests_per_source_per_s} requests a second",
    ):
        assert said in text
