"""Keeps the reporting endpoint up. Nothing that goes wrong with it ends anything but reporting."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from llava_operator.acting.report_authority import Authority
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.clock import now
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.objects import Key
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.reporting.acceptance import ReportDesk
from llava_operator.reporting.authority_secret import AuthorityError, ServerCertificate, ensure_authority
from llava_operator.reporting.certificates import CertificateError
from llava_operator.reporting.endpoint_slice import ensure_endpoint
from llava_operator.reporting.tokens import TokenReviewer
from llava_operator.serving.connections import Closed
from llava_operator.serving.server import serve
from llava_operator.settings import Settings

logger = logging.getLogger(__name__)


async def keep_reporting(
    kube: Kube,
    settings: Settings,
    authority: Authority,
    *,
    runs: Runs,
    children: Children,
    progress: ProgressBook,
    queue: WorkQueue[Key],
    count_report: Callable[[int], None],
    count_closed: Callable[[Closed], None],
) -> None:
    """Serve the endpoint and keep it reachable, for ever. Runs go on without it, and it comes up when it can."""
    desk = ReportDesk(
        reviewer=TokenReviewer(kube, clock=time.monotonic),
        runs=runs, children=children, progress=progress, queue=queue, now=now, clock=time.monotonic,
        count=count_report,
    )  # fmt: skip
    certificate = ServerCertificate([settings.report_host, f"{settings.report_host}.cluster.local"])
    trouble, is_serving = "", False
    async with AsyncExitStack() as served:
        while True:
            before = trouble
            try:
                issuer = await ensure_authority(kube, settings, now())
                certificate.renew(issuer, now())
                if not is_serving:
                    await served.enter_async_context(
                        serve(
                            desk.build_app(), settings.report_port,
                            count=count_closed, context=certificate.context,
                        )
                    )  # fmt: skip
                    is_serving = True
                authority.certificate = issuer.roots.decode()
                await ensure_endpoint(kube, settings)
                trouble = ""
            except (KubeError, AuthorityError, CertificateError, OSError) as error:
                trouble = str(error)
                if trouble != before:
                    logger.error("progress cannot be reported for now: %s", trouble)
            except Exception as error:
                # Reporting is worth less than the runs that would be lost with the process.
                trouble = repr(error)
                if trouble != before:
                    logger.exception("progress cannot be reported for now, which is a fault of the operator")
            if before and not trouble:
                logger.info("progress can be reported again")
            await asyncio.sleep(settings.resync_seconds)
