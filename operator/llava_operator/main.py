"""The operator's process: settings, signals, logs and exit codes."""

import asyncio
import logging
import os
import signal
import sys
from importlib import metadata
from typing import Any

from llava_operator.kube.client import connect
from llava_operator.kube.leader import LeadershipLostError
from llava_operator.loop.cluster import UnsupportedClusterError
from llava_operator.settings import Settings, SettingsError
from llava_operator.telemetry.logs import PlainFormatter
from llava_operator.wiring import Operator

logger = logging.getLogger(__name__)

EXIT_LEADERSHIP_LOST = 1
MAX_RECURSION = 50_000
"""Anybody may store an object that is nested 10,000 levels deep (Go's decoder ends there), in managedFields for
example. Python's own limit of 1,000 would have json raise RecursionError, in kopf as well, and end the process."""


def tell_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tell what the event loop could not hand to anybody.

    kopf's watches are asynchronous generators, and some are cut off by asyncio when the process ends. That they then
    fail to close harms nothing: it is told in a line. Everything else is told as asyncio does.
    """
    generator = context.get("asyncgen")
    if generator is None:
        loop.default_exception_handler(context)
        return
    name = getattr(generator, "__qualname__", "an asynchronous generator")
    logger.warning("%s was cut off when the process ended: %r", name, context.get("exception"))


async def run_operator(settings: Settings) -> None:
    """Run one operator until SIGTERM or SIGINT.

    Raises:
        LeadershipLostError: another process may lead; this one must be gone at once.
        UnsupportedClusterError: the cluster is too old.
    """
    main_task = asyncio.current_task()
    assert main_task is not None
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tell_loop_error)
    # While it leads kopf puts its own handlers in their place, and ends the same way.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main_task.cancel)
    api = await connect(user_agent=f"llava-finetune-operator/{metadata.version('llava-finetune-operator')}")
    try:
        await Operator(settings=settings, api=api).run()
    finally:
        await api.close()


def main() -> None:
    """Entry point of ``llava-operator``."""
    sys.setrecursionlimit(MAX_RECURSION)
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.exit(f"llava-operator: {error}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # It says of every event that a handler has succeeded.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    try:
        asyncio.run(run_operator(settings))
    except asyncio.CancelledError:
        logger.info("stopped before it was at work")
    except LeadershipLostError as error:
        logger.error("%s", error)
        sys.exit(EXIT_LEADERSHIP_LOST)
    except UnsupportedClusterError as error:
        sys.exit(f"llava-operator: {error}")


if __name__ == "__main__":
    main()
