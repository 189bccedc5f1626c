"""Keeps the metrics served over TLS, by a certificate of the operator's own or of the installer's."""

import ssl
import time
from collections.abc import Callable
from functools import partial

from llava_operator.clock import now
from llava_operator.kube.client import Kube
from llava_operator.scraping.access import Readers
from llava_operator.scraping.app import Handler, build_secure_app
from llava_operator.serving.connections import Closed, Limits
from llava_operator.settings import Settings
from llava_operator.tls.authority_secret import ServerCertificate, ensure_authority, read_certificate
from llava_operator.tls.upkeep import Endpoint, keep_up
from llava_operator.tls.validity import NoteWatched, Watched

LIMITS = Limits(connections=16, connections_per_source=4, kept=0, request_s=30)
"""A few scrapers read thousands of lines each."""


async def keep_metrics(
    kube: Kube,
    settings: Settings,
    handler: Handler,
    *,
    count_closed: Callable[[Closed], None],
    note_validity: NoteWatched,
) -> None:
    """Serve what ``handler`` answers, for ever, whether this process leads or not."""
    readers = Readers(kube, clock=time.monotonic)
    hosts = [settings.metrics_host, f"{settings.metrics_host}.cluster.local"]
    note_authority = partial(note_validity, Watched.AUTHORITY)
    certificate = ServerCertificate(hosts, partial(note_validity, Watched.METRICS))

    async def renew() -> ssl.SSLContext:
        if settings.metrics_certificate_secret:
            certificate.present(await read_certificate(kube, settings, settings.metrics_certificate_secret, now()))
        else:
            certificate.renew(await ensure_authority(kube, settings, now(), note_authority), now())
        return certificate.context

    endpoint = Endpoint(
        build_app=partial(build_secure_app, readers, handler, clock=time.monotonic),
        port=settings.metrics_port, limits=LIMITS, count_closed=count_closed, every_s=settings.resync_seconds,
        purpose="metrics are not served", remedied="metrics are served again",
    )  # fmt: skip
    await keep_up(endpoint, renew)
