"""Plain HTTP for probes and Prometheus."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from llava_operator.loop.health import Health
from llava_operator.serving.connections import Limits

LIMITS = Limits(connections=256, new_per_s=1000, new_at_once=64)
"""Without TLS a connection costs little, and the kubelet, which nobody can tell from others, ends a process whose
probes are turned away: more addresses are let in here than to reports."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_metrics_handler(registry: CollectorRegistry) -> Handler:
    """What answers with the metrics."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return metrics


def build_web_app(health: Health, metrics: Handler | None) -> web.Application:
    """The application with /healthz, /readyz and, unless they are served elsewhere, /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        text = f"last proof of work {health.silence_s:.1f} s ago\n"
        return web.Response(text=text, status=200 if health.is_alive else 503)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n" if health.is_ready else "starting\n", status=200 if health.is_ready else 503)

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    if metrics is not None:
        app.add_routes([web.get("/metrics", metrics)])
    return app
