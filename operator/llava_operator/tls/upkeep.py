"""Keeps an endpoint up. Nothing that goes wrong with it ends anything but what it is for."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web

from llava_operator.kube.errors import KubeError
from llava_operator.serving.connections import Closed, Limits
from llava_operator.serving.server import serve
from llava_operator.tls.authority_secret import AuthorityError
from llava_operator.tls.certificates import CertificateError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What is served over TLS."""

    build_app: Callable[[], web.Application]
    """Called for each try to serve it: an application serves once."""
    port: int
    count_closed: Callable[[Closed], None]
    """Called when a connection is ended."""
    purpose: str
    """What cannot be done while it is not served, for the log: ``progress cannot be reported``."""
    remedied: str
    """The same when it can again."""
    every_s: float
    """Seconds between two looks at its certificate."""
    limits: Limits | None = None


async def keep_up(
    endpoint: Endpoint,
    renew: Callable[[], Awaitable[ssl.SSLContext]],
    announce: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve an endpoint for ever; it comes up when it can.

    Args:
        endpoint: what is served.
        renew: has the context present a certificate that counts, and returns it: always the same one.
        announce: has others find the endpoint, once it is served and with every look after that.
    """
    trouble, is_serving = "", False
    async with AsyncExitStack() as served:
        while True:
            before = trouble
            try:
                context = await renew()
                if not is_serving:
                    await served.enter_async_context(
                        serve(
                            endpoint.build_app(), endpoint.port,
                            count=endpoint.count_closed, context=context, limits=endpoint.limits,
                        )
                    )  # fmt: skip
                    is_serving = True
                if announce is not None:
                    await announce()
                trouble = ""
            except (KubeError, AuthorityError, CertificateError, OSError) as error:
                trouble = str(error)
                if trouble != before:
                    logger.error("%s for now: %s", endpoint.purpose, trouble)
            except Exception as error:
                # It is worth less than the runs that would be lost with the process.
                trouble = repr(error)
                if trouble != before:
                    logger.exception("%s for now, which is a fault of the operator", endpoint.purpose)
            if before and not trouble:
                logger.info("%s", endpoint.remedied)
            await asyncio.sleep(endpoint.every_s)
