"""What is owed to whom: it stands in the status from the write that the event itself is in. Pure.

So a message survives the operator: whoever comes next finds it owed, and finds its Job by its name. It is written once
more when it has been delivered or given up, and that rides along with progress.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta

from llava_api.constants import NotificationEvent
from llava_api.names import notification_job_name
from llava_api.spec import Notification
from llava_api.status import NOTIFICATIONS_KEPT, NotificationState, NotificationStatus, Status
from llava_api.text import show
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.observation import DeliverySight, Observation
from llava_operator.deciding.occurrences import Change, Occurrence, count_restarts, find_occurrence
from llava_operator.deciding.waiting import unstarted, waiting_since
from llava_operator.run import Run, attempt_of, current_stage

GIVEN_UP_AFTER = timedelta(hours=8)
"""After a message was first tried, or its Job made: a run that is to be deleted waits no longer. Not after its event:
the operator may have been away for as long, and whoever comes back tries at least once."""
_MAX_TEXT = 256


def note_notifications(seen: Observation, status: Status) -> Status:
    """The status with what has become of messages that were owed, and with those that are owed from now on.

    Args:
        seen: with the status as it was.
        status: as it is to be, complete.
    """
    told = tuple(_settle(one, seen) if one.is_open else one for one in status.notifications)
    status = status.model_copy(update={"notifications": told})
    owed = tuple(_list_owed(seen, status))
    return status.model_copy(update={"notifications": _keep(told + owed)}) if owed else status


def job_of(run: Run, notification: NotificationStatus) -> str:
    """Name of the Job that delivers a message."""
    return notification_job_name(run.key.name, notification.id, notification.name)


def find_wanted(run: Run, name: str) -> Notification | None:
    """The notification of this name, as the spec has it now."""
    return next((one for one in run.spec.notifications if one.name == name), None)


def notifications_due(seen: Observation) -> datetime | None:
    """When a run has to be looked at again for its notifications' sake, if nothing happens before."""
    status = seen.run.status
    instants = [_given_up_at(one, _sight_of(one, seen)) for one in status.open_notifications]
    instants += [happened.due for _, _, happened in _list_untold(seen, status)]
    return min((instant for instant in instants if instant is not None and instant > seen.now), default=None)


def _sight_of(told: NotificationStatus, seen: Observation) -> DeliverySight | None:
    return seen.deliveries.get(job_of(seen.run, told))


def _given_up_at(told: NotificationStatus, sight: DeliverySight | None) -> datetime | None:
    """When a message is given up that is still owed then; None while it has not been tried."""
    if sight is None:
        # By this process: what an earlier one has met may be long ago.
        return None
    begun = sight.made_at if sight.has_job else told.first_try_time
    return from_time(begun) + GIVEN_UP_AFTER if begun else None


def _settle(told: NotificationStatus, seen: Observation) -> NotificationStatus:
    """A message that was owed, with what has become of it."""
    sight = _sight_of(told, seen)
    state, outcome = (sight.state, sight.message) if sight else (NotificationState.PENDING, "")
    has_job = sight is not None and sight.has_job
    given_up_at = _given_up_at(told, sight)
    if state is NotificationState.PENDING and find_wanted(seen.run, told.name) is None and not has_job:
        state, outcome = NotificationState.UNDELIVERED, f"spec.notifications has no {told.name} any more"
    elif state is NotificationState.PENDING and given_up_at is not None and seen.now >= given_up_at:
        hours = GIVEN_UP_AFTER // timedelta(hours=1)
        state, outcome = (
            NotificationState.UNDELIVERED,
            f"given up after {hours} h: {outcome or 'its Job has not ended'}",
        )
    update: dict[str, object] = {"outcome": show(outcome, max_chars=_MAX_TEXT)}
    if state is not NotificationState.PENDING:
        return told.model_copy(update={**update, "state": state, "completion_time": to_time(seen.now)})
    if not outcome or (told.first_try_time and from_time(told.first_try_time) <= seen.now):
        # What stands in its way is told once: each change of the words would be a write.
        return told
    return told.model_copy(update={**update, "first_try_time": to_time(seen.now)})


def _list_owed(seen: Observation, status: Status) -> Iterator[NotificationStatus]:
    for wanted, event, happened in _list_untold(seen, status):
        if happened.due is None or happened.due <= seen.now:
            yield _owe(seen, status, wanted, event, happened)


def _list_untold(seen: Observation, status: Status) -> Iterator[tuple[Notification, NotificationEvent, Occurrence]]:
    """What has happened until ``status`` that somebody is to be told of, now or later."""
    known = {(one.name, one.id) for one in status.notifications}
    short_since = _short_since(seen, status)
    for wanted in seen.run.spec.notifications:
        for event in wanted.events:
            told = [one for one in status.notifications if (one.name, one.event) == (wanted.name, event)]
            change = Change(
                before=seen.run.status, after=status, now=seen.now, wanted=wanted, last=told[-1] if told else None,
                short_since=short_since,
            )  # fmt: skip
            happened = find_occurrence(event, change)
            # An event may be asked for twice, but the status is a map: the API server refuses one entry twice.
            if happened is not None and (one := (wanted.name, _id_of(seen.run, event, happened))) not in known:
                known.add(one)
                yield wanted, event, happened


def _short_since(seen: Observation, status: Status) -> datetime | None:
    stage = current_stage(status)
    if stage is None or stage.newest is None:
        return None
    since = waiting_since(stage, seen.job, seen.pods, attempt_of(seen.run, stage).num_pods)
    # One that has run whole and has just lost a pod, which is seen before its Job's end is, waits for nothing.
    return since if unstarted(seen.pods) or seen.trouble is not None else None


def _id_of(run: Run, event: NotificationEvent, happened: Occurrence) -> str:
    return hashlib.sha256(f"{run.uid}/{event}/{happened.key}".encode()).hexdigest()[:32]


def _owe(
    seen: Observation, status: Status, wanted: Notification, event: NotificationEvent, happened: Occurrence
) -> NotificationStatus:
    return NotificationStatus(
        name=wanted.name,
        id=_id_of(seen.run, event, happened),
        event=event,
        time=to_time(seen.now),
        stage=happened.stage,
        attempt=happened.attempt,
        reason=happened.reason,
        message=show(happened.message, max_chars=_MAX_TEXT),
        restarts=count_restarts(status),
    )


def _keep(told: tuple[NotificationStatus, ...]) -> tuple[NotificationStatus, ...]:
    """As many as there may be: the oldest go first, of those that are settled before those that are owed."""
    surplus = len(told) - NOTIFICATIONS_KEPT
    if surplus <= 0:
        return told
    leaving = sorted(range(len(told)), key=lambda index: (told[index].is_open, index))[:surplus]
    return tuple(one for index, one in enumerate(told) if index not in leaving)
