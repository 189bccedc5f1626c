"""Has messages sent that a status says are owed, and sees what becomes of them.

Like Events they are for people: whatever stands in the way of one, the run goes on, and a later pass tries again.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from llava_api.status import NotificationState, NotificationStatus
from llava_api.text import show
from llava_operator.acting.creation import ObstacleError, create_child
from llava_operator.build.common import Platform
from llava_operator.build.notification import build_notification_job
from llava_operator.cache.children import Children
from llava_operator.cache.views import JobView, Termination, parse_pod
from llava_operator.cache.wire import ForeignError
from llava_operator.deciding.notifications import find_wanted, job_of
from llava_operator.deciding.observation import DeliverySight, ObstacleKind
from llava_operator.deciding.violations import describe_violations, judge_sending
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import JOBS, PODS
from llava_operator.kube.objects import Key, Object
from llava_operator.run import Run

logger = logging.getLogger(__name__)

LAST_RETRY_S = 60.0
"""Longest wait before a Job that could not be made is tried again."""
MAX_WORDS = 256
MAX_PODS = 8
"""Pods of a failed Job that are asked why."""


@dataclass(kw_only=True)
class _Try:
    """What this process knows of the Job of one message. All of it can be lost."""

    num: int = 0
    tried_at: datetime | None = None
    delay_s: float = 0.0
    message: str = ""
    is_final: bool = False

    def next_at(self, now: datetime) -> datetime:
        """When it is tried next."""
        # One that lies ahead was before the clock was set back.
        if self.tried_at is None or self.tried_at > now:
            return now
        return self.tried_at + timedelta(seconds=self.delay_s)


@dataclass(kw_only=True)
class Notifier:
    """Messages of all runs."""

    kube: Kube
    children: Children
    platform: Platform
    now: Callable[[], datetime]
    _tries: dict[str, dict[str, _Try]] = field(default_factory=dict)
    """By the run's UID and the Job's name."""

    async def look(self, run: Run) -> Mapping[str, DeliverySight]:
        """What there is to see of the messages that a run owes."""
        found = {}
        self._forget_settled(run)
        for told in run.status.open_notifications:
            name = job_of(run, told)
            sight = await self._look_at(run, name)
            if sight is not None:
                found[name] = sight
        return found

    async def send(self, run: Run) -> datetime | None:
        """Make the Jobs of what is owed; returns when to try again what could not be made."""
        instants, now = [], self.now()
        for told in run.status.open_notifications:
            name = job_of(run, told)
            if self._find_job(run, name) is not None:
                continue
            known = self._tries.setdefault(run.uid, {}).setdefault(name, _Try())
            if known.is_final:
                continue
            if known.next_at(now) <= now:
                await self._try(run, told, known)
            # What has come to nothing for good is settled by the next pass.
            instants.append(now if known.is_final else known.next_at(now))
        return min(instants, default=None)

    def forget(self, run_uid: str) -> None:
        """Drop what is known of a run."""
        self._tries.pop(run_uid, None)

    def _forget_settled(self, run: Run) -> None:
        """A run may owe one message after the other for weeks: what is known of those before goes."""
        owed = {job_of(run, told) for told in run.status.open_notifications}
        known = {name: one for name, one in self._tries.pop(run.uid, {}).items() if name in owed}
        if known:
            self._tries[run.uid] = known

    def _find_job(self, run: Run, name: str) -> JobView | None:
        job = self.children.job(Key(run.key.namespace, name))
        return job if job is not None and job.owner_uid == run.uid else None

    async def _look_at(self, run: Run, name: str) -> DeliverySight | None:
        job = self._find_job(run, name)
        if job is None:
            known = self._tries.get(run.uid, {}).get(name)
            if known is None:
                return None
            state = NotificationState.UNDELIVERED if known.is_final else NotificationState.PENDING
            return DeliverySight(state=state, message=known.message or "its Job was deleted before it had ended")
        if job.complete:
            return DeliverySight(state=NotificationState.DELIVERED, has_job=True)
        if job.failed is not None:
            message = await self._read_last_words(job) or f"{job.failed.reason}: {job.failed.message}"
            return DeliverySight(state=NotificationState.UNDELIVERED, has_job=True, message=message)
        return DeliverySight(state=NotificationState.PENDING, has_job=True, made_at=job.made_at)

    async def _try(self, run: Run, told: NotificationStatus, known: _Try) -> None:
        known.num += 1
        known.tried_at = self.now()
        delay_s = min(LAST_RETRY_S, 2.0 ** min(known.num - 1, 16))
        try:
            job = await self._make_job(run, told)
        except _NotSentError as error:
            known.message, known.is_final = str(error), True
        except ObstacleError as error:
            known.message = str(error)
            known.is_final = error.kind is not ObstacleKind.BLOCKED
            delay_s = max(delay_s, error.retry_after_s)
        except KubeError as error:
            known.message = show(error, max_chars=MAX_WORDS)
            delay_s = max(delay_s, error.retry_after_s or 0.0)
        else:
            self.children.note_job(job)
            known.message = ""
        # One that is deleted by somebody as soon as it is made is not made at once again.
        known.delay_s = delay_s
        if known.message:
            logger.warning("%s: %s is not told of %s: %s", run.key, told.name, told.event, known.message)

    async def _make_job(self, run: Run, told: NotificationStatus) -> Object:
        wanted = find_wanted(run, told.name)
        if wanted is None:
            raise _NotSentError(f"spec.notifications has no {told.name} any more")
        if not self.platform.notifier_image:
            raise _NotSentError("this installation names no image that sends notifications (LLAVA_OPERATOR_IMAGE)")
        if violations := tuple(judge_sending(run.spec, wanted, self.platform.policy)):
            raise _NotSentError(f"not allowed: {describe_violations(violations)}")
        try:
            job = build_notification_job(run, wanted, told, self.platform)
        except ValueError:
            # Whoever may write statuses wrote it.
            raise _NotSentError("status.notifications holds what no operator has written") from None
        return await create_child(self.kube, run, JOBS, job)

    async def _read_last_words(self, job: JobView) -> str:
        """What the Job's pods said at their end; empty where that cannot be known any more."""
        ended: list[Termination] = []
        try:
            selector = f"batch.kubernetes.io/controller-uid={job.uid}"
            async for raw in self.kube.list(PODS, job.key.namespace, selector):
                ended += _read_end(raw, job)
                if len(ended) >= MAX_PODS:
                    break
        except KubeError as error:
            logger.info("%s: why its pods failed could not be read: %s", job.key, error)
        newest = max(ended, key=lambda one: one.finished_at, default=None)
        return show(newest.message, max_chars=MAX_WORDS) if newest else ""


class _NotSentError(Exception):
    """Nothing that is tried again would have the message sent."""


def _read_end(raw: Object, job: JobView) -> list[Termination]:
    """How a pod of this Job ended; nothing of what is none, or has not ended."""
    try:
        pod = parse_pod(raw)
    except ForeignError:
        return []
    return [pod.ended] if pod.job_uid == job.uid and pod.ended is not None else []
