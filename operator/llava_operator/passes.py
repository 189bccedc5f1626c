"""Passes as the queue runs them: with a time limit, measured, and the relist that heals what events have missed."""

import asyncio
import logging
from collections.abc import Sequence

from llava_operator.children import Children
from llava_operator.health import HEARTBEAT, Health
from llava_operator.kube import Kube, KubeError, RetryableError
from llava_operator.metrics import OperatorMetrics
from llava_operator.reconcile import Reconciler
from llava_operator.runs import Runs
from llava_operator.views import Key
from llava_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)


class Passes:
    """What the queue's workers call."""

    def __init__(self, reconciler: Reconciler, *, health: Health, metrics: OperatorMetrics, timeout_s: float) -> None:
        self._reconciler = reconciler
        self._health = health
        self._metrics = metrics
        self._timeout_s = timeout_s

    async def process(self, key: Key) -> float | None:
        """Work on a key: a pass over a run, or the heartbeat.

        Raises:
            KubeError: the pass is to be repeated.
        """
        if key == HEARTBEAT:
            self._health.beat()
            return None
        try:
            with self._metrics.pass_seconds.time():
                async with asyncio.timeout(self._timeout_s):
                    return await self._reconciler.reconcile(key)
        except TimeoutError:
            self._metrics.pass_errors.labels("TimeoutError").inc()
            raise RetryableError(f"the pass took longer than {self._timeout_s:g} s") from None
        except Exception as error:
            self._metrics.pass_errors.labels(type(error).__name__).inc()
            raise


async def keep_relisting(
    kube: Kube, children: Children, runs: Runs, queue: WorkQueue[Key], *, namespaces: Sequence[str], every_s: float
) -> None:
    """Replace the caches from the API server and look at every unfinished run again, for ever."""
    scopes: list[str | None] = list(namespaces) or [None]
    while True:
        try:
            await children.relist(kube, scopes)
            for key in await runs.relist(kube, scopes):
                run = runs.get(key)
                if run is None or not run.is_finished:
                    queue.add(key)
        except KubeError as error:
            logger.warning("relist failed, again in %g s: %s", every_s, error)
        await asyncio.sleep(every_s)
