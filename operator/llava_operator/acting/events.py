"""Kubernetes Events of a run's transitions.

They follow from the status: the same status always gives the same Events with the same names, so that a pass that is
repeated, by whichever operator, adds none.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from llava_api.constants import API_VERSION, GROUP, KIND, Phase
from llava_api.failures import Reason
from llava_api.status import (
    SUCCEEDED,
    AttemptSettings,
    AttemptStatus,
    NotificationState,
    Progress,
    StageState,
    StageStatus,
    Status,
    Time,
)
from llava_api.text import show
from llava_operator.clock import from_time, to_micro_time
from llava_operator.kube.client import AlreadyExistsError, InvalidError, Kube, NotFoundError
from llava_operator.kube.kinds import EVENTS
from llava_operator.kube.objects import Key, Object
from llava_operator.stages import STAGES

logger = logging.getLogger(__name__)

CONTROLLER = f"{GROUP}/operator"
MAX_NOTE_BYTES = 1024
"""The API server refuses a longer note, counted in UTF-8."""
UNDELIVERED = "NotificationUndelivered"
"""Reason of the Event when a receiver of notifications could not be told of something."""
RECENT = timedelta(minutes=10)
"""Older transitions are history: their Events may have expired, and must not come back after a restart."""


@dataclass(frozen=True, kw_only=True)
class Transition:
    """Something that happened to a run."""

    time: Time
    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str
    about: str
    """What makes it different from other transitions of the run with the same reason."""


def list_transitions(status: Status) -> Iterator[Transition]:
    """Every transition that a status tells of, oldest first."""
    for stage in status.stages:
        yield from _stage_transitions(stage, status)
    if status.api_trouble is not None:
        yield Transition(
            time=status.api_trouble.time, type="Warning", reason=Reason.API_ERROR, action="Wait",
            note=status.api_trouble.message, about="run",
        )  # fmt: skip
    if status.silent_since is not None:
        yield Transition(
            time=status.silent_since, type="Warning", reason="Silent", action="Report", about="run",
            note=f"training has reported nothing since {status.silent_since}; it may be at work all the same",
        )  # fmt: skip
    for told in status.notifications:
        if told.state is NotificationState.UNDELIVERED and told.completion_time is not None:
            yield Transition(
                time=told.completion_time, type="Warning", reason=UNDELIVERED, action="Notify",
                note=f"{told.name} was not told of {told.event}: {told.outcome}", about=f"{told.name}-{told.id}",
            )  # fmt: skip
    if status.completion_time is None:
        return
    if status.phase is Phase.SUCCEEDED:
        score = status.summary.score if status.summary else ""
        note = "every stage has succeeded" + (f"; score {score}" if score else "")
        yield _normal(status.completion_time, "Complete", "Complete", note, "run")
    elif status.failure is not None:
        failure = status.failure
        note = f"{failure.message} {failure.hint}"
        yield Transition(
            time=status.completion_time, type="Warning", reason=failure.reason, action="Fail", note=note, about="run"
        )


def _stage_transitions(stage: StageStatus, status: Status) -> Iterator[Transition]:
    for attempt in stage.attempts:
        yield from _attempt_transitions(stage, attempt)
    yield from _waiting(stage)
    if stage.newest and stage.newest.start_time:
        yield from _skipped_checkpoints(stage.newest.start_time, status.progress, stage)
    if stage.completion_time and stage.state is StageState.SUCCEEDED:
        about = f"{stage.name}-{stage.attempt}"
        yield _normal(stage.completion_time, STAGES[stage.name].condition, "Finish", stage.message, about)


def _describe_size(settings: AttemptSettings) -> str:
    """How its batch differs from what the spec asks for; empty if it does not."""
    asked, batch = settings.asked_batch, settings.per_device_batch
    if asked is None or batch is None or batch >= asked:
        return ""
    return (
        f" with batch.perDevice {batch} instead of {asked} and accumulation {settings.accumulation}, since a GPU's "
        "memory did not suffice: the global batch is the same"
    )


def _attempt_transitions(stage: StageStatus, attempt: AttemptStatus) -> Iterator[Transition]:
    about = f"{stage.name}-{attempt.number}"
    if attempt.start_time:
        note = f"{stage.name} begins as attempt {attempt.number}{_describe_size(attempt.settings)}"
        yield _normal(attempt.start_time, STAGES[stage.name].gerund, "Start", note, about)
    ended = attempt.stop_time or attempt.completion_time
    if not ended or not attempt.because or attempt.because == SUCCEEDED:
        return
    if attempt.because == Reason.SUSPENDED:
        yield _normal(ended, attempt.because, "Stop", f"{about} is stopped: {attempt.message}", about)
    else:
        yield Transition(
            time=ended, type="Warning", reason=attempt.because, action="Stop",
            note=f"{about} is over: {attempt.message}", about=about,
        )  # fmt: skip


def _waiting(stage: StageStatus) -> Iterator[Transition]:
    """What the stage waits for. That an attempt has ended has an Event of its own."""
    ended = stage.newest.because if stage.newest else ""
    if stage.reason_time is None or not stage.reason or stage.reason in (ended, Reason.SUSPENDED):
        return
    yield Transition(
        time=stage.reason_time, type="Normal" if stage.reason == Reason.QUEUED else "Warning", reason=stage.reason,
        action="Wait", note=f"{stage.name}: {stage.message}", about=f"{stage.name}-{stage.attempt}",
    )  # fmt: skip


def _skipped_checkpoints(time: Time, progress: Progress | None, stage: StageStatus) -> Iterator[Transition]:
    if progress is None or (progress.stage, progress.attempt) != (stage.name, stage.attempt):
        return
    if progress.skipped_checkpoints:
        yield Transition(
            # Reports come again and again: the attempt began once.
            time=time,
            type="Warning",
            reason="CheckpointSkipped",
            action="Resume",
            note=f"damaged, so that {stage.name} went on from one before: {progress.skipped_checkpoints}",
            about=f"{stage.name}-{stage.attempt}",
        )


def _normal(time: Time, reason: str, action: str, note: str, about: str) -> Transition:
    return Transition(time=time, type="Normal", reason=reason, action=action, note=note, about=about)


def build_event(key: Key, uid: str, transition: Transition, instance: str) -> Object:
    """The Event of a transition."""
    digest = hashlib.sha256(f"{uid}/{transition.about}/{transition.reason}/{transition.time}".encode()).hexdigest()
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{key.name}.{digest[:16]}", "namespace": key.namespace},
        "eventTime": to_micro_time(from_time(transition.time)),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": transition.action,
        "reason": transition.reason,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": key.name,
            "namespace": key.namespace,
            "uid": uid,
        },
        "note": show(transition.note, max_bytes=MAX_NOTE_BYTES),
        "type": transition.type,
    }


class EventPublisher:
    """Creates the Events that a status tells of, each once.

    Those that this process has seen are remembered as long as their transitions count as recent, and no longer. Of what
    happened before its start it asks first, since an earlier process may have told of it: a restart writes nothing.
    """

    def __init__(self, kube: Kube, *, instance: str, now: Callable[[], datetime]) -> None:
        self._kube = kube
        self._instance = instance
        self._now = now
        self._started_at = now()
        self._published: OrderedDict[tuple[str, str], datetime] = OrderedDict()
        """When each was published, by namespace and name; oldest first."""

    async def publish_status(self, key: Key, uid: str, status: Status) -> None:
        """Create the Events of every recent transition.

        Raises:
            KubeError: one could not be created; the next pass tries again.
        """
        now = self._now()
        for transition in list_transitions(status):
            if now - from_time(transition.time) <= RECENT:
                await self.publish(key, uid, transition)

    async def publish(self, key: Key, uid: str, transition: Transition) -> None:
        """Create the Event of one transition, unless it is there.

        Raises:
            KubeError: it could not be created.
        """
        event = build_event(key, uid, transition, self._instance)
        name = (key.namespace, event["metadata"]["name"])
        if name in self._published:
            return
        is_ours = from_time(transition.time) >= self._started_at
        if is_ours or not await self._exists(*name):
            await self._create(key, event)
        self._remember(name)

    async def _exists(self, namespace: str, name: str) -> bool:
        try:
            await self._kube.get(EVENTS, namespace, name)
        except NotFoundError:
            return False
        return True

    async def _create(self, key: Key, event: Object) -> None:
        try:
            await self._kube.create(EVENTS, key.namespace, event)
        except AlreadyExistsError:
            pass
        except InvalidError as error:
            # It will be refused again: for this one Event it stays at that.
            logger.error("%s: the Event %s is refused: %s", key, event["reason"], error)

    def _remember(self, name: tuple[str, str]) -> None:
        now = self._now()
        self._published[name] = now
        while self._published and now - next(iter(self._published.values())) > RECENT:
            self._published.popitem(last=False)
