"""A scrape takes its turns with everything else in the loop, and many of them take no more memory than one."""

import asyncio
import gc
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise

import aiohttp
import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    enable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llava_operator.loop.health import Health
from llava_operator.probes import LIMITS, build_web_app
from llava_operator.serving.server import serve
from llava_operator.telemetry.exposition import AT_ONCE, AT_ONCE_PER_SOURCE, BusyError, Exposition
from llava_operator.telemetry.run_metrics import RunMetrics
from llava_operator.telemetry.text_format import list_slices
from tests.controller.crowds import crowd
from tests.controller.makers import NOW

HOSTILE = 'a "quoted"\nline \\n é \ud800'
ENOUGH = "llava_test 1.0\n" * 5000
"""More than a chunk."""


async def read(exposition: Exposition) -> bytes:
    return b"".join([chunk async for chunk in exposition.chunks()])


def runs_of(num_training: int) -> Exposition:
    runs = crowd(num_training=num_training, num_ended=0, ended_at=NOW)
    return Exposition(RunMetrics(runs, lambda: NOW, finished_run_s=60).list_slices)


# --- what a registry has


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    counted = Counter("requests", "Requests\nby \\ code.", ["code", "a"], registry=registry)
    for number in range(300):
        counted.labels(f"{number}", HOSTILE.removesuffix("\ud800")).inc(number)
    histogram = Histogram("seconds", "Seconds.", ["verb"], buckets=(0.1, 1), registry=registry)
    histogram.labels("get").observe(0.5)
    Gauge("inf", "Infinite.", registry=registry).set(float("inf"))
    Info("it", "What it is.", registry=registry).info({"version": "1"})
    Gauge("none", "Of nobody.", ["who"], registry=registry)
    return registry


def test_a_registry_is_told_of_as_the_client_does_it(registry: CollectorRegistry) -> None:
    slices = list(list_slices(registry))
    assert max(text.count("\n") for text in slices) < 150
    mine = "".join(slices)
    disable_created_metrics()
    try:
        its = generate_latest(registry).decode()
    finally:
        enable_created_metrics()
    assert mine.splitlines() == its.splitlines()
    assert len(list(text_string_to_metric_families(mine))) == 5


def test_when_a_counter_was_made_is_no_series_of_its_own(registry: CollectorRegistry) -> None:
    assert "_created" in generate_latest(registry).decode()
    assert "_created" not in "".join(list_slices(registry))


async def test_what_cannot_be_written_does_not_take_the_rest_away() -> None:
    text = await read(Exposition(lambda: iter([f"{HOSTILE}\n"]), lambda: iter(["b 1.0\n"])))
    assert text.endswith(b"?\nb 1.0\n")


# --- turns


@pytest.mark.parametrize("num_scrapes", [1, 10])
async def test_scrapes_give_way_after_each_slice(num_scrapes: int) -> None:
    """Whoever asks ten times at once makes each of these scrapes slower, and nothing else."""
    turns, began_at = 0, list[int]()

    def slices() -> Iterator[str]:
        for _ in range(50):
            began_at.append(turns)
            yield "a 1.0\n"

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other, exposition = asyncio.create_task(count()), Exposition(slices)
    await asyncio.gather(*(read(exposition) for _ in range(num_scrapes)))
    other.cancel()
    assert len(began_at) == 50 * num_scrapes
    assert all(later > earlier for earlier, later in pairwise(began_at))


def test_a_slice_asks_few_runs_and_makes_few_lines() -> None:
    """Also of families that have nothing to say of 10,000 runs: to ask takes time as well."""
    runs = crowd(num_training=200, num_ended=0, ended_at=NOW)
    slices = list(RunMetrics(runs, lambda: NOW, finished_run_s=60).list_slices())
    assert max(text.count("\n") for text in slices) <= 32 * 5
    silent = RunMetrics(crowd(num_training=0, num_ended=200, ended_at=NOW), lambda: NOW, finished_run_s=60)
    assert len(list(silent.list_slices())) == len(slices)


async def test_a_scrape_tells_of_one_instant() -> None:
    """Runs come and go while it is read."""
    runs = crowd(num_training=100, num_ended=0, ended_at=NOW)
    chunks = Exposition(RunMetrics(runs, lambda: NOW, finished_run_s=60).list_slices).chunks()
    text = await anext(chunks)
    for view in runs:
        runs.forget(view.key)
    text += b"".join([chunk async for chunk in chunks])
    counted = {family.name: len(family.samples) for family in text_string_to_metric_families(text.decode())}
    assert counted["llava_run_info"] == counted["llava_run_volume_size_bytes"] == 100


# --- memory


async def test_many_scrapes_at_once_take_no_more_memory_than_a_few_chunks() -> None:
    exposition = Exposition(lambda: (ENOUGH for _ in range(100)))
    size = len(await read(exposition))
    assert size > 5_000_000
    gc.collect()
    tracemalloc.start()
    begun = [exposition.chunks() for _ in range(AT_ONCE)]
    # All are under way, and each has made as much as its reader has taken.
    for _ in range(10):
        await asyncio.gather(*(anext(chunks) for chunks in begun))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for chunks in begun:
        await chunks.aclose()
    assert peak < size


def test_scrapes_are_served_to_so_many_at_a_time() -> None:
    exposition = Exposition()
    with exposition.admit("a"), exposition.admit("a"):
        with pytest.raises(BusyError, match="2 scrapes of one address and 16 of all"), exposition.admit("a"):
            pass
        with exposition.admit("b"):
            pass
    with exposition.admit("a"):
        pass
    assert not exposition._scrapes
    served = [exposition.admit(f"{number // AT_ONCE_PER_SOURCE}") for number in range(AT_ONCE)]
    for one in served:
        one.__enter__()
    with pytest.raises(BusyError), exposition.admit("another"):
        pass
    for one in served:
        one.__exit__(None, None, None)
    with exposition.admit("another"):
        pass


# --- over HTTP


@asynccontextmanager
async def serving(exposition: Exposition) -> AsyncIterator[str]:
    app = build_web_app(Health(heartbeat_s=10, longest_pass_s=60, clock=time.monotonic), exposition)
    async with serve(app, 0, host="127.0.0.1", limits=LIMITS, count=lambda _: None) as port:
        yield f"http://127.0.0.1:{port}/metrics"


async def test_a_scrape_is_answered_bit_by_bit() -> None:
    exposition = runs_of(100)
    async with serving(exposition) as url, aiohttp.ClientSession() as client:
        async with client.get(url) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == CONTENT_TYPE_PLAIN_0_0_4
            assert answer.headers["Transfer-Encoding"] == "chunked"
            assert await answer.read() == await read(exposition)
        async with client.head(url) as answer:
            assert (answer.status, await answer.read()) == (200, b"")


async def test_who_scrapes_too_often_at_once_is_told_so() -> None:
    exposition = Exposition(lambda: iter([ENOUGH]))
    async with serving(exposition) as url, aiohttp.ClientSession() as client:
        with exposition.admit("127.0.0.1"), exposition.admit("127.0.0.1"):
            async with client.get(url) as answer:
                assert answer.status == 503
                assert "2 scrapes of one address" in await answer.text()
        async with client.get(url) as answer:
            assert (answer.status, await answer.text()) == (200, ENOUGH)


async def test_who_goes_away_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()

    def slices() -> Iterator[str]:
        while not gone.is_set():
            yield ENOUGH
        yield ENOUGH * 10
        yield ENOUGH * 10
        yield ENOUGH * 10

    async def until_over() -> None:
        while exposition._scrapes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    exposition = Exposition(slices)
    async with serving(exposition) as url:
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) as connection:
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await loop.sock_recv(connection, 100)).startswith(b"HTTP/1.1 200")
            assert exposition._scrapes.total() == 1
        gone.set()
        await asyncio.wait_for(until_over(), 20)
    assert not caplog.records


async def test_a_fault_of_ours_ends_the_answer_before_its_end() -> None:
    """Half a text shall not be taken for a whole one."""

    def slices() -> Iterator[str]:
        yield ENOUGH
        raise ArithmeticError("a fault of ours")

    async with serving(Exposition(slices)) as url, aiohttp.ClientSession() as client, client.get(url) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
