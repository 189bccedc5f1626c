"""What has happened to a run that somebody may want to be told of: one row an event. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from llava_api.constants import GateOutcome, NotificationEvent, Phase, StageName
from llava_api.failures import Reason
from llava_api.spec import Notification
from llava_api.status import AttemptState, AttemptStatus, NotificationStatus, StageState, StageStatus, Status
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.gates import combine_gates, describe_gates
from llava_operator.deciding.publication import describe_success
from llava_operator.deciding.restarts import DISTURBED_DELAY_S, has_done_a_step
from llava_operator.run import current_stage, stage_of
from llava_operator.stages import STAGES

QUIET = timedelta(hours=1)
"""Between two messages of an event that may come again and again: the later one tells of all that came between."""
_RECURRING = frozenset({NotificationEvent.SUSPENDED, NotificationEvent.RESTARTED, NotificationEvent.WAITING_TOO_LONG})
_OF_GATES = (NotificationEvent.GATE_FAILED, NotificationEvent.GATE_UNDECIDED)
_TAKEN_BACK = frozenset({Reason.GANG_NOT_SCHEDULED, Reason.QUEUE_EVICTED})
"""Why an attempt ended that had places in part, or for a moment: what it waited for, the next one waits for."""
_SOON = timedelta(seconds=2 * DISTURBED_DELAY_S)
"""Within which the next attempt follows, unless something else has come between: a suspension, say."""


@dataclass(frozen=True, kw_only=True)
class Occurrence:
    """Something that has happened."""

    key: str
    """What makes it different from other occurrences of the event in the same run."""
    stage: StageName | None = None
    attempt: int = 0
    reason: str = ""
    message: str = ""
    due: datetime | None = None
    """From when on it is told; None: at once."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A status as it was and as it is to be, with what one receiver was last told of the event."""

    before: Status
    after: Status
    now: datetime
    wanted: Notification
    last: NotificationStatus | None = None
    short_since: datetime | None = None
    """Since when pods of the newest attempt have not started; None if all have."""

    def becomes(self, phase: Phase) -> bool:
        """Whether the run is in this phase from now on."""
        # One that is tried again may fail again in the same write.
        is_same = self.before.phase is phase and self.before.completion_time == self.after.completion_time
        return self.after.phase is phase and not is_same

    @property
    def quiet_until(self) -> datetime | None:
        """Until when the receiver is not told of the event again; None if nothing speaks against it."""
        if self.last is None:
            return None
        told = from_time(self.last.time)
        # One that lies ahead was told before the clock was set back: it mutes nothing, however far ahead it lies.
        return told + QUIET if told <= self.now < told + QUIET else None


@dataclass(frozen=True, kw_only=True)
class Standby:
    """A time in which a stage waits for anything but its own next try."""

    since: datetime
    attempt: int
    """Number of the first attempt that has waited, or is waited for."""


def find_occurrence(event: NotificationEvent, change: Change) -> Occurrence | None:
    """What has happened of a kind, with when it is told; the receiver may have been told of it already."""
    happened = OCCURRENCES[event](change)
    if happened is None or event not in _RECURRING or change.quiet_until is None:
        return happened
    return replace(happened, due=max(happened.due or change.now, change.quiet_until))


def count_restarts(status: Status) -> int:
    """How often a stage was begun anew after an attempt that had not succeeded, those that were suspended left out."""
    suspended = (status.accounting.restarts_by_reason if status.accounting else {}).get(Reason.SUSPENDED, 0)
    # None has been begun yet after one that has just been suspended.
    resting = sum(
        stage.newest is not None
        and stage.newest.state is AttemptState.GONE
        and stage.newest.because == Reason.SUSPENDED
        for stage in status.stages
    )
    return max(0, sum(max(0, stage.attempt - 1) for stage in status.stages) - max(0, suspended - resting))


def find_standby(status: Status, *, short_since: datetime | None) -> Standby | None:
    """Since when the run waits, as far back as the status tells of attempts; None if it does not."""
    stage = current_stage(status)
    if stage is None or status.phase is Phase.SUSPENDED:
        return None
    newest = stage.newest
    if newest is None or newest.state is AttemptState.GONE:
        is_next_try = newest is not None and stage.reason == newest.because
        if is_next_try or not stage.reason or stage.reason_time is None:
            return None
        return Standby(since=from_time(stage.reason_time), attempt=stage.attempt + 1)
    waits = newest.state in (AttemptState.QUEUED, AttemptState.STARTING)
    if not waits and (newest.state is not AttemptState.RUNNING or short_since is None):
        return None
    if STAGES[stage.name].is_sharded and short_since is not None and not waits:
        # Its pods come and go one by one.
        return Standby(since=short_since, attempt=newest.number)
    first = newest
    for earlier in reversed(stage.attempts[:-1]):
        if not (STAGES[stage.name].is_gang and _is_continued(earlier, first)):
            break
        first = earlier
    return Standby(since=from_time(first.start_time), attempt=first.number) if first.start_time else None


def _is_continued(attempt: AttemptStatus, following: AttemptStatus) -> bool:
    """Whether the next attempt only goes on with what this one has waited for."""
    if attempt.because not in _TAKEN_BACK or has_done_a_step(attempt):
        return False
    if attempt.start_time is None or attempt.completion_time is None or following.start_time is None:
        return False
    return from_time(following.start_time) - from_time(attempt.completion_time) <= _SOON


def _succeeded(change: Change) -> Occurrence | None:
    if not change.becomes(Phase.SUCCEEDED):
        return None
    score = change.after.summary.score if change.after.summary else ""
    message = describe_success(change.after) + (f"; score {score}" if score else "")
    if change.after.evaluation is not None and change.after.evaluation.gates:
        message += f"; {describe_gates(change.after.evaluation)}"
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
    # Whoever was told of an earlier one, and not of this because that was a moment ago, is told while it lasts.
    is_behind = change.last is not None and change.after.phase is Phase.SUSPENDED
    if stage is None or not (is_behind or change.becomes(Phase.SUSPENDED)):
        return None
    failure = change.after.failure
    reason = failure.reason if failure else Reason.SUSPENDED
    return Occurrence(
        key=change.after.suspended_time or "", stage=stage.name, attempt=stage.attempt, reason=reason,
        message=stage.message,
    )  # fmt: skip


def _restarted(change: Change) -> Occurrence | None:
    stage = current_stage(change.after)
    if stage is None or stage.newest is None or stage.newest.state is AttemptState.GONE:
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
    standby = find_standby(change.after, short_since=change.short_since)
    stage, told = current_stage(change.after), change.last
    if standby is None or stage is None:
        return None
    is_about_it = told is not None and told.stage is stage.name and told.attempt >= standby.attempt
    if told is not None and is_about_it and from_time(told.time) >= standby.since:
        return None
    is_between = stage.newest is None or stage.newest.state is AttemptState.GONE
    return Occurrence(
        key=f"{stage.name}-{standby.attempt}-{to_time(standby.since)}", stage=stage.name,
        attempt=stage.attempt + is_between, reason=stage.reason,
        message=f"has waited for more than {change.wanted.waiting_seconds} s: {stage.message}",
        due=standby.since + timedelta(seconds=change.wanted.waiting_seconds),
    )  # fmt: skip


def _judged(outcome: GateOutcome) -> Callable[[Change], Occurrence | None]:
    """That evaluation has ended with a gate that says so. It may be done again, and is told of again then."""

    def find(change: Change) -> Occurrence | None:
        evaluation = change.after.evaluation
        if evaluation is None or evaluation == change.before.evaluation or combine_gates(evaluation) is not outcome:
            return None
        stage = stage_of(change.after, StageName.EVALUATE)
        return Occurrence(
            key=f"{stage.name}-{stage.attempt}", stage=stage.name, attempt=stage.attempt, reason=f"Gate{outcome}",
            message=describe_gates(evaluation),
        )  # fmt: skip

    return find


def _published(change: Change) -> Occurrence | None:
    stage = _find_ended(change, StageState.SUCCEEDED)
    if stage is None:
        return None
    return Occurrence(
        key=f"{stage.name}-{stage.attempt}", stage=stage.name, attempt=stage.attempt, reason="Published",
        message=stage.message,
    )  # fmt: skip


def _not_published(change: Change) -> Occurrence | None:
    """That a gate has held the model back; one who is told of that gate hears nothing new here."""
    stage = _find_ended(change, StageState.SKIPPED)
    if stage is None or any(_is_told_of(change, event) for event in _OF_GATES):
        return None
    return Occurrence(key=f"{stage.name}-skipped", stage=stage.name, reason=stage.reason, message=stage.message)


def _is_told_of(change: Change, event: NotificationEvent) -> bool:
    return event in change.wanted.events and OCCURRENCES[event](change) is not None


def _find_ended(change: Change, state: StageState) -> StageStatus | None:
    """The stage that publishes, if it is in this state from now on."""
    before, after = (
        next((stage for stage in status.stages if STAGES[stage.name].publishes), None)
        for status in (change.before, change.after)
    )
    return after if after is not None and after.state is state and (before is None or before != after) else None


OCCURRENCES: dict[NotificationEvent, Callable[[Change], Occurrence | None]] = {
    NotificationEvent.SUCCEEDED: _succeeded,
    NotificationEvent.FAILED: _failed,
    NotificationEvent.SUSPENDED: _suspended,
    NotificationEvent.RESTARTED: _restarted,
    NotificationEvent.WAITING_TOO_LONG: _waiting_too_long,
    NotificationEvent.GATE_FAILED: _judged(GateOutcome.FAILED),
    NotificationEvent.GATE_UNDECIDED: _judged(GateOutcome.UNDECIDED),
    NotificationEvent.PUBLISHED: _published,
    NotificationEvent.NOT_PUBLISHED: _not_published,
}
"""What has happened between two statuses, by event; whether it is too soon to tell is not asked here."""
