"""The state machine of an attempt: what is done in which state, at what sight of its Job and pods. Pure.

Whatever makes an attempt stop (a failure, a drain, suspend, a deadline, a retry, somebody's kubectl) is a reason that
it carries, and none is a way of its own.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from llava_api.status import AttemptState, AttemptStatus
from llava_operator.cache.views import JobView, PodView
from llava_operator.clock import from_time

UNREACHABLE_S = 60
"""Seconds beyond its grace period for which a pod is waited for that does not end: its node cannot be reached. The Job
of such a pod never becomes Failed by itself, from Kubernetes 1.31 on."""


class Sight(StrEnum):
    """What there is to see of an attempt."""

    UNMADE = "Unmade"
    """There is no Job, and none has been seen."""
    ABSENT = "Absent"
    """The Job is no more."""
    ORPHANED = "Orphaned"
    """The Job is no more, and pods of it still run: somebody has deleted it without waiting for them."""
    HELD = "Held"
    """The Job is suspended: a queue holds it back."""
    WAITING = "Waiting"
    """No pod has started."""
    RUNNING = "Running"
    LOSING = "Losing"
    """A pod is taken away, by Kubernetes or by somebody."""
    FAILING = "Failing"
    """A pod has failed, and the Job controller stops the others."""
    DELETED = "Deleted"
    """The Job is being deleted, and its pods with it."""
    FAILED = "Failed"
    """The Job has failed, and no pod of it runs any more."""
    COMPLETE = "Complete"


class Move(StrEnum):
    """What is done about an attempt."""

    START = "Start"
    """Make its Job."""
    WAIT = "Wait"
    QUEUE = "Queue"
    ADMIT = "Admit"
    """The queue lets it go on."""
    RUN = "Run"
    SUCCEED = "Succeed"
    """Take its result."""
    EVICT = "Evict"
    """A queue has taken back what it had admitted."""
    FAIL = "Fail"
    """It is over; its pods are being stopped, or have to be."""
    LOSE = "Lose"
    """Its Job has vanished, and it with it."""
    STOP = "Stop"
    """Delete its Job; its pods follow."""
    AWAIT = "Await"
    """Wait for its pods to end, but not for ever."""
    END = "End"
    """It is gone."""


_OVER = {
    Sight.LOSING: Move.FAIL,
    Sight.FAILING: Move.FAIL,
    Sight.DELETED: Move.FAIL,
    Sight.ORPHANED: Move.FAIL,
    Sight.FAILED: Move.END,
    Sight.COMPLETE: Move.SUCCEED,
    Sight.ABSENT: Move.LOSE,
}
TABLE: dict[AttemptState, dict[Sight, Move]] = {
    AttemptState.QUEUED: {
        Sight.UNMADE: Move.START, Sight.HELD: Move.QUEUE, Sight.WAITING: Move.ADMIT, Sight.RUNNING: Move.RUN, **_OVER,
    },
    AttemptState.STARTING: {
        Sight.UNMADE: Move.START, Sight.HELD: Move.QUEUE, Sight.WAITING: Move.WAIT, Sight.RUNNING: Move.RUN, **_OVER,
    },
    AttemptState.RUNNING: {
        Sight.UNMADE: Move.LOSE, Sight.HELD: Move.EVICT, Sight.WAITING: Move.WAIT, Sight.RUNNING: Move.WAIT, **_OVER,
    },
    AttemptState.STOPPING: {
        **dict.fromkeys((Sight.HELD, Sight.WAITING, Sight.RUNNING, Sight.LOSING), Move.STOP),
        **dict.fromkeys((Sight.FAILING, Sight.DELETED, Sight.ORPHANED), Move.AWAIT),
        **dict.fromkeys((Sight.UNMADE, Sight.ABSENT, Sight.FAILED), Move.END),
        # It was done before it was asked to stop.
        Sight.COMPLETE: Move.SUCCEED,
    },
}  # fmt: skip
"""Of the states in which something of an attempt may run."""


def read_sight(attempt: AttemptStatus, job: JobView | None, pods: Sequence[PodView]) -> Sight:
    """What there is to see of an attempt, from its Job and its pods."""
    if job is None or job.uid != (attempt.job_uid or job.uid):
        if attempt.job_uid is None:
            return Sight.UNMADE
        return Sight.ORPHANED if any(pod.phase in ("Pending", "Running") for pod in pods) else Sight.ABSENT
    for holds, sight in (
        (job.complete, Sight.COMPLETE),
        (job.failed, Sight.FAILED),
        (job.failing, Sight.FAILING),
        (job.deleting_since, Sight.DELETED),
        # Its pods may be on their way out still, and end in whatever way.
        (job.suspended, Sight.HELD),
        (any(pod.failed for pod in pods), Sight.FAILING),
        (any(_is_taken_away(pod) for pod in pods), Sight.LOSING),
        (any(pod.started for pod in pods), Sight.RUNNING),
    ):
        if holds:
            return sight
    return Sight.WAITING


def _is_taken_away(pod: PodView) -> bool:
    return pod.phase != "Succeeded" and bool(pod.deleting or pod.disruption)


def list_unreplaced(pods: Sequence[PodView], now: datetime) -> list[PodView]:
    """Pods of a Job whose indexes are retried by themselves, without those whose place another takes or has taken.

    One that is taken away is replaced when it has ended; one whose node cannot be reached never does.
    """
    return [pod for pod in pods if not pod.failed and not (_is_taken_away(pod) and now < _lost_from(pod, now))]


def lost_from(pods: Sequence[PodView], now: datetime) -> datetime | None:
    """From when on the first of those that are being taken away counts as lost; None if none is."""
    due = (_lost_from(pod, now) for pod in pods if not pod.failed and pod.deleting and pod.phase != "Succeeded")
    return min((instant for instant in due if instant > now), default=None)


def _lost_from(pod: PodView, now: datetime) -> datetime:
    # A disruption alone is announced, or has been called off.
    due = from_time(pod.deletion_due) if pod.deletion_due else now
    return due + timedelta(seconds=UNREACHABLE_S)


def half_placed_until(pods: Sequence[PodView], timeout_s: int) -> datetime | None:
    """Until when a gang waits whose pods have places in part; None if all have one, or none has."""
    placed = [pod.scheduled_at for pod in pods if pod.scheduled_at]
    waiting = [pod for pod in pods if not pod.scheduled_at and pod.phase == "Pending" and not pod.deleting]
    if not placed or not waiting:
        return None
    return min(map(from_time, placed)) + timedelta(seconds=timeout_s)


def awaited_until(attempt: AttemptStatus, job: JobView | None, grace_s: int) -> datetime:
    """Until when the pods of a stopping attempt are waited for: those that can be reached have ended long before."""
    since = [
        text
        for text in (attempt.stop_time, job and job.deleting_since, job and job.failing and job.failing.time)
        if text
    ]
    return max(map(from_time, since)) + timedelta(seconds=grace_s + UNREACHABLE_S)
