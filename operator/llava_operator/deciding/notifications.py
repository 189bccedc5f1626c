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
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.occurrences import OCCURRENCES, Change, Occurrence, count_restarts, waiting_due
from llava_operator.run import Run, current_stage

GIVEN_UP_AFTER = timedelta(hours=8)
"""After its event, whatever has become of a message until then: a run that is to be deleted waits no longer."""
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


def notifications_due(run: Run, now: datetime) -> datetime | None:
    """When a run has to be looked at again for its notifications' sake, if nothing happens before."""
    status = run.status
    instants = [from_time(one.time) + GIVEN_UP_AFTER for one in status.open_notifications]
    for wanted in run.spec.notifications:
        for event in wanted.events:
            change = _change(wanted, event, status, status, now)
            if event is NotificationEvent.WAITING_TOO_LONG:
                instants += [due] if (due := waiting_due(change)) else []
            elif event is NotificationEvent.RESTARTED and change.last and change.quiet_until:
                # Whoever was told of the first of several is told of the others later.
                is_behind = current_stage(status) is not None and count_restarts(status) > change.last.restarts
                instants += [change.quiet_until] if is_behind else []
    return min((instant for instant in instants if instant > now), default=None)


def _settle(told: NotificationStatus, seen: Observation) -> NotificationStatus:
    """A message that was owed, with what has become of it."""
    sight = seen.deliveries.get(job_of(seen.run, told))
    state, outcome = (sight.state, sight.message) if sight else (NotificationState.PENDING, "")
    if (
        state is NotificationState.PENDING
        and find_wanted(seen.run, told.name) is None
        and not (sight and sight.has_job)
    ):
        state, outcome = NotificationState.UNDELIVERED, f"spec.notifications has no {told.name} any more"
    elif state is NotificationState.PENDING and seen.now >= from_time(told.time) + GIVEN_UP_AFTER:
        hours = GIVEN_UP_AFTER // timedelta(hours=1)
        state, outcome = (
            NotificationState.UNDELIVERED,
            f"given up after {hours} h: {outcome or 'its Job has not ended'}",
        )
    if state is NotificationState.PENDING:
        # What stands in its way is told once: each change of the words would be a write.
        return told if told.outcome else told.model_copy(update={"outcome": show(outcome, max_chars=_MAX_TEXT)})
    update = {"state": state, "outcome": show(outcome, max_chars=_MAX_TEXT), "completion_time": to_time(seen.now)}
    return told.model_copy(update=update)


def _list_owed(seen: Observation, status: Status) -> Iterator[NotificationStatus]:
    known = {(one.name, one.id) for one in status.notifications}
    for wanted in seen.run.spec.notifications:
        for event in wanted.events:
            happened = OCCURRENCES[event](_change(wanted, event, seen.run.status, status, seen.now))
            if happened is None:
                continue
            made = _owe(seen, status, wanted, event, happened)
            # An event may be asked for twice, but the status is a map: the API server refuses one entry twice.
            if (made.name, made.id) not in known:
                known.add((made.name, made.id))
                yield made


def _change(wanted: Notification, event: str, before: Status, after: Status, now: datetime) -> Change:
    told = [one for one in after.notifications if (one.name, one.event) == (wanted.name, event)]
    return Change(before=before, after=after, now=now, wanted=wanted, last=told[-1] if told else None)


def _owe(
    seen: Observation, status: Status, wanted: Notification, event: NotificationEvent, happened: Occurrence
) -> NotificationStatus:
    return NotificationStatus(
        name=wanted.name,
        id=hashlib.sha256(f"{seen.run.uid}/{event}/{happened.key}".encode()).hexdigest()[:32],
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
