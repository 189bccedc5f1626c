"""What a scrape costs at 10,000 runs: how late the event loop gets meanwhile, time, bytes, series.

500 runs train, and 9,500 have ended long ago; with ``--burst``, within metrics.finishedRunSeconds, the worst case.
The operator's way beside the client's own generate_latest in the loop. Another process scrapes, over TCP.
"""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from llava_operator.cache.runs import Runs
from llava_operator.loop.health import Health
from llava_operator.probes import LIMITS, build_web_app
from llava_operator.serving.server import serve
from llava_operator.telemetry.exposition import Exposition
from llava_operator.telemetry.run_metrics import RunMetrics
from tests.controller.crowds import crowd
from tests.controller.exposed import SHOWN_S, AllAtOnce
from tests.controller.makers import NOW

RUNS, TRAINING = 10_000, 500
SCRAPES = 3
SCRAPED_AT = NOW + timedelta(hours=2)
_SCRAPE = """
import sys, time, urllib.request
for _ in range(int(sys.argv[2])):
    began = time.monotonic()
    body = urllib.request.urlopen(sys.argv[1]).read()
    series = sum(line[:1] not in b"#" for line in body.splitlines())
    print(time.monotonic() - began, len(body), series)
"""
"""In a process of its own: it shares neither loop nor interpreter."""


class Lag(NamedTuple):
    """Of one turn of the loop, in ms."""

    late: float
    """By how much a timer fired too late; on a busy machine also since other processes had their turns."""
    computed: float
    """What of that this process has computed."""


@asynccontextmanager
async def watched(lags: list[Lag]) -> AsyncIterator[None]:
    """Note how late the loop gets as long as the context lasts."""

    async def watch() -> None:
        while True:
            before, computed = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.001)
            late_s, computed_s = time.monotonic() - before - 0.001, time.thread_time() - computed
            lags.append(Lag(1000 * late_s, 1000 * computed_s))

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


async def measure(name: str, app: web.Application) -> None:
    """Print one row."""
    gc.collect()
    # More than half a million series take longer than a scrape may.
    patient = replace(LIMITS, request_s=120)
    async with serve(app, 0, limits=patient, count=lambda why: None, host="127.0.0.1") as port:
        at_rest: list[Lag] = []
        async with watched(at_rest):
            await asyncio.sleep(1)
        scraped: list[Lag] = []
        async with watched(scraped):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _SCRAPE, f"http://127.0.0.1:{port}/metrics", str(SCRAPES),
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            output, _ = await process.communicate()
    rows = [tuple(map(float, line.split())) for line in output.decode().splitlines()]
    assert len(rows) == SCRAPES, output
    seconds = sorted(row[0] for row in rows)
    print(
        f"{name}: loop late by {max(lag.late for lag in scraped):.1f} ms at most (at rest "
        f"{max(lag.late for lag in at_rest):.1f}), {max(lag.computed for lag in scraped):.1f} ms of computing at most; "
        f"scrape {seconds[len(seconds) // 2]:.2f} s, {rows[-1][1] / 1e6:.2f} MB, {rows[-1][2]:,.0f} series"
    )


def sliced(runs: Runs) -> web.Application:
    """The operator's own application."""
    exposition = Exposition(RunMetrics(runs, lambda: SCRAPED_AT, finished_run_s=SHOWN_S).list_slices)
    return build_web_app(Health(heartbeat_s=10, longest_pass_s=60, clock=time.monotonic), exposition)


def at_once(runs: Runs) -> web.Application:
    """One that makes everything in one go, as the client does it."""
    registry = CollectorRegistry()
    shown = [run for run in runs if run.ended_at is None or run.ended_at > SCRAPED_AT.timestamp() - SHOWN_S]
    registry.register(AllAtOnce(shown, SCRAPED_AT))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry))

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    return app


async def main() -> None:
    """Both rows."""
    ended, ended_at = ("just now", SCRAPED_AT) if "--burst" in sys.argv else ("long ago", NOW)
    runs = crowd(num_training=TRAINING, num_ended=RUNS - TRAINING, ended_at=ended_at)
    for way, build in (("in slices", sliced), ("at once", at_once)):
        await measure(f"{RUNS:,} runs, {RUNS - TRAINING:,} of them ended {ended}, {way}", build(runs))


if __name__ == "__main__":
    asyncio.run(main())
