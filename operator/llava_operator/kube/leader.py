"""Leadership by a coordination Lease.

The official client's election does not serve here: it writes local time as UTC, and a request that hangs outlives its
renew deadline, so that two pods lead at once. It also needs the generated model classes (see ``kube``).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from llava_operator.clock import to_micro_time
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import AlreadyExistsError, ConflictError, KubeError, NotFoundError
from llava_operator.kube.kinds import LEASES
from llava_operator.kube.objects import Key, Object

logger = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """The Lease could not be renewed in time, or is someone else's."""


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """Seconds. A leader that cannot renew ends at ``renew_deadline_s``, before others may lead at ``duration_s``."""

    duration_s: float
    renew_deadline_s: float
    retry_s: float


class Lease:
    """One process's part in the election."""

    def __init__(self, kube: Kube, key: Key, *, identity: str, times: LeaseTimes, now: Callable[[], datetime]) -> None:
        self._kube = kube
        self._key = key
        self._identity = identity
        self._times = times
        self._now = now
        self._seen: Object = {}
        self._seen_at = 0.0

    async def acquire(self, *, on_try: Callable[[], None], on_answer: Callable[[], None]) -> None:
        """Wait until this process leads.

        Args:
            on_try: called at every try.
            on_answer: called at every try that the API server has answered.
        """
        while True:
            on_try()
            try:
                async with asyncio.timeout(self._times.renew_deadline_s):
                    leads = await self._try()
                on_answer()
                if leads:
                    logger.info("%s leads", self._identity)
                    return
            except (KubeError, TimeoutError) as error:
                logger.warning("Lease %s: %s", self._key, str(error) or "no answer in time")
            await asyncio.sleep(self._times.retry_s)

    async def hold(self) -> None:
        """Renew for ever.

        Raises:
            LeadershipLostError: this process must stop acting as the leader, at once.
        """
        while True:
            await asyncio.sleep(self._times.retry_s)
            try:
                # Counted from here: the renewal before this sleep is at most ``retry_s`` older.
                async with asyncio.timeout(self._times.renew_deadline_s - self._times.retry_s):
                    await self._renew()
            except TimeoutError:
                raise LeadershipLostError(
                    f"Lease {self._key} could not be renewed for {self._times.renew_deadline_s:g} s"
                ) from None

    async def _renew(self) -> None:
        while True:
            try:
                if not await self._try():
                    raise LeadershipLostError(f"Lease {self._key} is held by {self._holder(self._seen)}")
                return
            except KubeError as error:
                logger.warning("Lease %s was not renewed: %s", self._key, error)
            await asyncio.sleep(self._times.retry_s)

    async def release(self) -> None:
        """Let another process lead without waiting for the Lease to run out.

        Raises:
            KubeError: it could not be written; it will run out.
        """
        if self._holder(self._seen) == self._identity:
            await self._write(self._seen, holder="")

    async def _try(self) -> bool:
        """Take or renew the Lease; whether it is ours now."""
        try:
            found = await self._kube.get(LEASES, self._key.namespace, self._key.name)
        except NotFoundError:
            return await self._create()
        self._observe(found)
        holder = self._holder(found)
        if holder not in ("", self._identity) and not self._has_run_out():
            return False
        try:
            self._observe(await self._write(found, holder=self._identity))
        except ConflictError:
            # Another process was quicker, or our own write came through after its answer was lost: look again.
            return False if holder != self._identity else await self._try()
        return True

    async def _create(self) -> bool:
        body: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._key.name, "namespace": self._key.namespace},
            "spec": self._spec({}, self._identity),
        }
        try:
            self._observe(await self._kube.create(LEASES, self._key.namespace, body))
        except AlreadyExistsError:
            return False
        return True

    async def _write(self, found: Object, *, holder: str) -> Object:
        body = {**found, "spec": self._spec(found.get("spec") or {}, holder)}
        return await self._kube.replace(LEASES, self._key.namespace, self._key.name, body)

    def _spec(self, before: Object, holder: str) -> Object:
        now = to_micro_time(self._now())
        changes_hands = before.get("holderIdentity") != holder
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._times.duration_s)),
            "acquireTime": now if changes_hands else before.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + changes_hands,
        }

    def _observe(self, lease: Object) -> None:
        # Other machines' clocks may be wrong: what counts is how long the Lease has not changed before our eyes.
        if lease.get("spec") != self._seen.get("spec"):
            self._seen_at = asyncio.get_running_loop().time()
        self._seen = lease

    def _has_run_out(self) -> bool:
        return asyncio.get_running_loop().time() - self._seen_at > self._times.duration_s

    @staticmethod
    def _holder(lease: Object) -> str:
        return (lease.get("spec") or {}).get("holderIdentity") or ""
