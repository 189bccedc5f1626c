"""What a write of a status has ended: the one place where that is told from the statuses before and after it. Pure.

Each transition is in exactly one write, so whoever compares the two sides of every write that succeeded, and of no
other, has each once, whatever was restarted in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llava_api.constants import NotificationEvent, Phase, StageName
from llava_api.reasons import Reason
from llava_api.status import SUCCEEDED, Accounting, AttemptState, NotificationState, StageState, StageStatus, Status
from llava_operator.clock import from_time

OTHER = "Other"
"""Reason in place of one that this version does not know: an older or newer operator has written it."""
_REASONS = frozenset(Reason)
_EVENTS = frozenset(NotificationEvent)
_FINISHED = frozenset((Phase.SUCCEEDED, Phase.FAILED))
_OVER = frozenset((StageState.SUCCEEDED, StageState.FAILED))


@dataclass(frozen=True, kw_only=True)
class StageEnd:
    """A stage that has ended."""

    stage: StageName
    state: StageState
    seconds: float


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """An attempt that has ended without success."""

    stage: StageName
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The run's end."""

    phase: Phase
    reason: str
    """Empty where it succeeded."""


@dataclass(frozen=True, kw_only=True)
class NotificationEnd:
    """A notification that was delivered or given up."""

    event: str
    state: NotificationState


@dataclass(frozen=True, kw_only=True)
class Endings:
    """What one write has ended."""

    run: RunEnd | None = None
    stages: tuple[StageEnd, ...] = ()
    attempts: tuple[AttemptEnd, ...] = ()
    notifications: tuple[NotificationEnd, ...] = ()
    productive_gpu_seconds: int = 0
    lost_gpu_seconds: int = 0


def compare(before: Status, after: Status) -> Endings:
    """What has ended between two statuses of a run."""
    earlier = {stage.name: stage for stage in before.stages}
    pairs = [(earlier.get(stage.name), stage) for stage in after.stages]
    spent, known = after.accounting or Accounting(), before.accounting or Accounting()
    return Endings(
        run=_end_of_run(before, after),
        stages=tuple(end for pair in pairs if (end := _end_of_stage(*pair))),
        attempts=tuple(end for pair in pairs for end in _ends_of_attempts(*pair)),
        notifications=tuple(_ends_of_notifications(before, after)),
        productive_gpu_seconds=max(0, spent.productive_gpu_seconds - known.productive_gpu_seconds),
        lost_gpu_seconds=max(0, spent.lost_gpu_seconds - known.lost_gpu_seconds),
    )


def _end_of_run(before: Status, after: Status) -> RunEnd | None:
    is_same = before.phase in _FINISHED and before.completion_time == after.completion_time
    if after.phase not in _FINISHED or is_same:
        return None
    assert after.phase is not None, "no run is finished without a phase"
    has_failed = after.phase is Phase.FAILED
    return RunEnd(phase=after.phase, reason=_known(after.failure.reason if after.failure else "") if has_failed else "")


def _end_of_stage(before: StageStatus | None, after: StageStatus) -> StageEnd | None:
    if after.state not in _OVER or (before is not None and before.state in _OVER):
        return None
    if after.start_time is None or after.completion_time is None:
        # It was never begun: what it asks for is not allowed, say.
        return None
    seconds = (from_time(after.completion_time) - from_time(after.start_time)).total_seconds()
    return StageEnd(stage=after.name, state=after.state, seconds=max(0.0, seconds))


def _ends_of_attempts(before: StageStatus | None, after: StageStatus) -> list[AttemptEnd]:
    gone = {one.number for one in before.attempts if one.state is AttemptState.GONE} if before else set()
    return [
        AttemptEnd(stage=after.name, reason=_known(one.because))
        for one in after.attempts
        if one.state is AttemptState.GONE and one.number not in gone and one.because != SUCCEEDED
    ]


def _ends_of_notifications(before: Status, after: Status) -> Iterator[NotificationEnd]:
    known = {(one.name, one.id): one.state for one in after.notifications}
    for one in before.open_notifications:
        # One that is there no more was given up for want of space.
        state = known.get((one.name, one.id), NotificationState.UNDELIVERED)
        if state is not NotificationState.PENDING:
            yield NotificationEnd(event=one.event if one.event in _EVENTS else OTHER, state=state)


def _known(reason: str) -> str:
    return reason if reason in _REASONS else OTHER
