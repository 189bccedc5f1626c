"""What has happened to a run that somebody may want to be told of: one row an event. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from llava_api.constants import NotificationEvent, Phase, StageName
from llava_api.failures import Reason
from llava_api.spec import Notification
from llava_api.status import AttemptState, NotificationStatus, StageStatus, Status
from llava_operator.clock import from_time
from llava_operator.run import current_stage, stage_of

QUIET = timedelta(hours=1)
"""Between two messages of an event that may come again and again: the later one tells of all that came between."""


@dataclass(frozen=True, kw_only=True)
class Occurrence:
    """Something that has happened."""

    key: str
    """What makes it different from other occurrences of the event in the same run."""
    stage: StageName | None = None
    attempt: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A status as it was and as it is to be, with what one receiver was last told of the event."""

    before: Status
    after: Status
    now: datetime
    wanted: Notification
    last: NotificationStatus | None = None

    def becomes(self, phase: Phase) -> bool:
        """Whether the run is in this phase from now on."""
        # One that is tried again may fail again in the same write.
        is_same = self.before.phase is phase and self.before.completion_time == self.after.completion_time
        return self.after.phase is phase and not is_same

    @property
    def quiet_until(self) -> datetime | None:
        """Until when the receiver is not told of the event again; None if nothing speaks against it."""
        until = from_time(self.last.time) + QUIET if self.last else None
        return until if until is not None and until > self.now else None


def count_restarts(status: Status) -> int:
    """How often a stage was begun anew after an attempt that had not succeeded, those that were suspended left out."""
    suspended = (status.accounting.restarts_by_reason if status.accounting else {}).get(Reason.SUSPENDED, 0)
    return max(0, sum(max(0, stage.attempt - 1) for stage in status.stages) - suspended)


def waits_since(status: Status) -> datetime | None:
    """Since when the run waits for anything but its own next try; None if it does not."""
    stage = current_stage(status)
    if stage is None or status.phase is Phase.SUSPENDED:
        return None
    newest = stage.newest
    if newest is not None and newest.state in (AttemptState.QUEUED, AttemptState.STARTING):
        return from_time(newest.start_time) if newest.start_time else None
    is_between = newest is None or (newest.state is AttemptState.GONE and stage.reason != newest.because)
    return from_time(stage.reason_time) if is_between and stage.reason and stage.reason_time else None


def _succeeded(change: Change) -> Occurrence | None:
    if not change.becomes(Phase.SUCCEEDED):
        return None
    score = change.after.summary.score if change.after.summary else ""
    message = "every stage has succeeded" + (f"; score {score}" if score else "")
    return Occurrence(key=change.after.completion_time or "", reason="Succeeded", message=message)


def _failed(change: Change) -> Occurrence | None:
    failure = change.after.failure
    if not change.becomes(Phase.FAILED) or failure is None:
        return None
    return Occurrence(
        key=change.after.completion_time or "", stage=failure.stage, attempt=failure.attempt, reason=failure.reason,
        message=failure.message,
    )  # fmt: skip


def _suspended(change: Change) -> Occurrence | None:
    stage = current_stage(change.after)
    if not change.becomes(Phase.SUSPENDED) or stage is None:
        return None
    failure = change.after.failure
    reason = failure.reason if failure else Reason.SUSPENDED
    return Occurrence(
        key=change.after.suspended_time or "", stage=stage.name, attempt=stage.attempt, reason=reason,
        message=stage.message,
    )  # fmt: skip


def _restarted(change: Change) -> Occurrence | None:
    stage = current_stage(change.after)
    if stage is None or stage.newest is None or stage.newest.state is AttemptState.GONE or change.quiet_until:
        return None
    total = count_restarts(change.after)
    has_just_begun = stage_of(change.before, stage.name).attempt < stage.attempt
    ended = stage.attempts[-2] if len(stage.attempts) > 1 else None
    is_restart = has_just_begun and ended is not None and ended.because != Reason.SUSPENDED
    if not is_restart and (change.last is None or total <= change.last.restarts):
        return None
    message = f"{stage.name} runs as attempt {stage.attempt}; restart {total} of the run"
    if ended is not None:
        message += f": attempt {ended.number} ended: {ended.message}"
    return Occurrence(
        key=f"{stage.name}-{stage.attempt}", stage=stage.name, attempt=stage.attempt,
        reason=ended.because if ended else "", message=message,
    )  # fmt: skip


def _waiting_too_long(change: Change) -> Occurrence | None:
    due = waiting_due(change)
    stage = current_stage(change.after)
    if due is None or due > change.now or stage is None:
        return None
    attempt = _awaited_attempt(stage)
    return Occurrence(
        key=f"{stage.name}-{attempt}", stage=stage.name, attempt=attempt, reason=stage.reason,
        message=f"has waited for more than {change.wanted.waiting_seconds} s: {stage.message}",
    )  # fmt: skip


def waiting_due(change: Change) -> datetime | None:
    """When the receiver is to be told that the run waits too long; None if it does not wait, or that was told."""
    since, stage = waits_since(change.after), current_stage(change.after)
    if since is None or stage is None:
        return None
    told = change.last
    if told is not None and (told.stage, told.attempt) == (stage.name, _awaited_attempt(stage)):
        return None
    due = since + timedelta(seconds=change.wanted.waiting_seconds)
    return max(due, change.quiet_until) if change.quiet_until else due


def _awaited_attempt(stage: StageStatus) -> int:
    """Number of the attempt that waits, or is waited for."""
    is_between = stage.newest is None or stage.newest.state is AttemptState.GONE
    return stage.attempt + 1 if is_between else stage.attempt


OCCURRENCES: dict[NotificationEvent, Callable[[Change], Occurrence | None]] = {
    NotificationEvent.SUCCEEDED: _succeeded,
    NotificationEvent.FAILED: _failed,
    NotificationEvent.SUSPENDED: _suspended,
    NotificationEvent.RESTARTED: _restarted,
    NotificationEvent.WAITING_TOO_LONG: _waiting_too_long,
}
"""Whether an event has happened between two statuses, by event."""
