"""Passes as the queue runs them: with a time limit, measured, and the relist that heals what events have missed."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from llava_operator.acting.reconcile import Reconciler
from llava_operator.cache.children import Children
from llava_operator.cache.runs import Runs
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    RefusedError,
    RetryableError,
)
from llava_operator.kube.objects import Key
from llava_operator.loop.health import HEARTBEAT, Health
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.telemetry.operator_metrics import OperatorMetrics

logger = logging.getLogger(__name__)


_EXPECTED_ERRORS = (TimeoutError, RetryableError, ConflictError, ForbiddenError, RefusedError, InvalidError)
"""What a pass may end with in an ordinary life; their counters begin at 0, so that the first one is seen."""


class Relisted(StrEnum):
    """What has come of a relist; the label of a metric."""

    OK = "ok"
    FAILED = "failed"


class Passes:
    """What the queue's workers call."""

    def __init__(self, reconciler: Reconciler, *, health: Health, metrics: OperatorMetrics, timeout_s: float) -> None:
        self._reconciler = reconciler
        self._health = health
        self._metrics = metrics
        self._timeout_s = timeout_s
        for expected in _EXPECTED_ERRORS:
            metrics.expect("pass_errors_total", expected.__name__)

    async def process(self, key: Key) -> float | None:
        """Work on a key: a pass over a run, or the heartbeat.

        Raises:
            KubeError: the pass is to be repeated.
        """
        if key == HEARTBEAT:
            self._health.beat()
            return None
        try:
            with self._metrics.time_pass():
                async with asyncio.timeout(self._timeout_s):
                    delay_s = await self._reconciler.reconcile(key)
        except TimeoutError:
            self._metrics.note_pass_error(TimeoutError)
            late = RetryableError(f"the pass took longer than {self._timeout_s:g} s")
            await self._tell(key, late)
            raise late from None
        except Exception as error:
            self._metrics.note_pass_error(type(error))
            if isinstance(error, KubeError):
                await self._tell(key, error)
            raise
        return 0.0 if self._reconciler.forget_errors(key) else delay_s

    async def _tell(self, key: Key, error: KubeError) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await self._reconciler.tell_error(key, error)


@dataclass(frozen=True, kw_only=True)
class Resync:
    """Makes the caches anew from the API server, and has every unfinished run looked at."""

    kube: Kube
    children: Children
    runs: Runs
    queue: WorkQueue[Key]
    namespaces: Sequence[str]
    """Those that are served; empty = all."""
    every_s: float
    note: Callable[[Relisted], None] = lambda outcome: None
    """Called after each relist of a namespace, or of all of them."""

    async def fill(self, *, retry_s: float) -> None:
        """Fill the caches for the first time. Until then no pass may run: what is not cached would seem to be gone.

        A namespace that may not be read (its role went with it, when it was deleted) does not hold up the others.
        """
        for scope in self._scopes:
            is_filled = await self._relist(scope, retry_s)
            while not is_filled:
                await asyncio.sleep(retry_s)
                is_filled = await self._relist(scope, retry_s)

    async def keep(self) -> None:
        """Heal what events have missed, for ever."""
        while True:
            await asyncio.sleep(self.every_s)
            for scope in self._scopes:
                await self._relist(scope, self.every_s)

    @property
    def _scopes(self) -> list[str | None]:
        return list(self.namespaces) or [None]

    async def _relist(self, scope: str | None, retry_s: float) -> bool:
        """Make the caches of a namespace, or of all of them, anew; False if that is worth another try."""
        where = "" if scope is None else f" of namespace {scope}"
        try:
            # In this order: what a run does not own is nobody's, and so on down to the pods.
            keys = await self.runs.relist(self.kube, scope)
            await self.children.relist(self.kube, scope)
        except ForbiddenError as error:
            logger.warning("relist%s was refused: %s", where, error)
            self.note(Relisted.FAILED)
            return True
        except KubeError as error:
            logger.warning("relist%s failed, again in %g s: %s", where, retry_s, error)
            self.note(Relisted.FAILED)
            return False
        except Exception:
            # Whatever it was that could not be read: the runs go on by their events.
            logger.exception("relist%s failed, again in %g s", where, retry_s)
            self.note(Relisted.FAILED)
            return False
        self.note(Relisted.OK)
        for key in keys:
            self.queue.add(key)
        return True
