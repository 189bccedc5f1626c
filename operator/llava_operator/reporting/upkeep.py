"""Keeps the reporting endpoint up, trusted and found. Runs go on without it, and it comes up when it can."""

import ssl
import time
from collections.abc import Callable
from functools import partial

from llava_operator.acting.report_authority import Authority
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.clock import now
from llava_operator.kube.client import Kube
from llava_operator.kube.objects import Key
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.reporting.acceptance import Refusal, ReportDesk
from llava_operator.reporting.endpoint_slice import ensure_endpoint
from llava_operator.reporting.tokens import TokenReviewer
from llava_operator.serving.connections import Closed
from llava_operator.settings import Settings
from llava_operator.tls.authority_secret import ServerCertificate, ensure_authority
from llava_operator.tls.upkeep import Endpoint, keep_up
from llava_operator.tls.validity import NoteWatched, Watched


async def keep_reporting(
    kube: Kube,
    settings: Settings,
    authority: Authority,
    *,
    runs: Runs,
    children: Children,
    progress: ProgressBook,
    queue: WorkQueue[Key],
    count_report: Callable[[int, Refusal | None], None],
    count_closed: Callable[[Closed], None],
    note_validity: NoteWatched,
) -> None:
    """Serve the endpoint and keep it reachable, for ever."""
    desk = ReportDesk(
        reviewer=TokenReviewer(kube, clock=time.monotonic),
        runs=runs, children=children, progress=progress, queue=queue, now=now, clock=time.monotonic,
        count=count_report,
    )  # fmt: skip
    hosts = [settings.report_host, f"{settings.report_host}.cluster.local"]
    note_authority = partial(note_validity, Watched.AUTHORITY)
    certificate = ServerCertificate(hosts, partial(note_validity, Watched.REPORT))
    roots = b""

    async def renew() -> ssl.SSLContext:
        nonlocal roots
        issuer = await ensure_authority(kube, settings, now(), note_authority)
        certificate.renew(issuer, now())
        roots = issuer.roots
        return certificate.context

    async def announce() -> None:
        authority.certificate = roots.decode()
        await ensure_endpoint(kube, settings)

    endpoint = Endpoint(
        build_app=desk.build_app, port=settings.report_port, count_closed=count_closed, every_s=settings.resync_seconds,
        purpose="progress cannot be reported", remedied="progress can be reported again",
    )  # fmt: skip
    await keep_up(endpoint, renew, announce)
