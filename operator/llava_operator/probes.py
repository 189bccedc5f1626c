"""Plain HTTP for probes and Prometheus."""

from contextlib import aclosing
from functools import partial

from aiohttp import web

from llava_operator.loop.health import Health
from llava_operator.serving.connections import Limits
from llava_operator.telemetry.exposition import BusyError, Exposition
from llava_operator.telemetry.text_format import CONTENT_TYPE

LIMITS = Limits(connections=256, new_per_s=1000, new_at_once=64)
"""Without TLS a connection costs little, and the kubelet, which nobody can tell from others, ends a process whose
probes are turned away: more addresses are let in here than to reports."""


def build_web_app(health: Health, exposition: Exposition | None) -> web.Application:
    """The application with /healthz, /readyz and, unless that is served elsewhere (None), /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        text = f"last proof of work {health.silence_s:.1f} s ago\n"
        return web.Response(text=text, status=200 if health.is_alive else 503)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n" if health.is_ready else "starting\n", status=200 if health.is_ready else 503)

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    if exposition is not None:
        app.add_routes([web.get("/metrics", partial(expose, exposition=exposition))])
    return app


async def expose(request: web.Request, exposition: Exposition) -> web.StreamResponse:
    """Answer a scrape, bit by bit, as fast as it is read."""
    answer = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
    try:
        with exposition.admit(request.remote or ""):
            await answer.prepare(request)
            if request.method != "HEAD":
                async with aclosing(exposition.chunks()) as chunks:
                    async for chunk in chunks:
                        await answer.write(chunk)
            await answer.write_eof()
    except BusyError as error:
        raise web.HTTPServiceUnavailable(text=f"{error}\n") from None
    except ConnectionResetError:
        # Whoever asked has gone, or was ended for being slow: that is counted there, and no error of ours.
        pass
    return answer
