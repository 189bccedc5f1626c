"""What a run has taken, and how long it may go on. Pure.

Seconds that an attempt worked for nothing are told apart by its steps: what came after the newest checkpoint is done
again.
"""

from datetime import datetime, timedelta

from llava_api.constants import StageName
from llava_api.status import SUCCEEDED, Accounting, AttemptStatus, Progress, Status
from llava_operator.clock import from_time, to_time
from llava_operator.stages import STAGES


def account_for(status: Status, stage: StageName, attempt: AttemptStatus, progress: Progress | None) -> Status:
    """The status with an attempt that is gone counted in."""
    known = status.accounting or Accounting()
    held_s, num_gpus = _held_s(attempt, _end(attempt)), num_gpus_of(attempt)
    productive_s = round(held_s * _kept_share(stage, attempt, progress))
    lost_s = held_s - productive_s
    update: dict[str, object] = {
        "productive_seconds": known.productive_seconds + productive_s,
        "lost_seconds": known.lost_seconds + lost_s,
        "productive_gpu_seconds": known.productive_gpu_seconds + num_gpus * productive_s,
        "lost_gpu_seconds": known.lost_gpu_seconds + num_gpus * lost_s,
        "queued_seconds": known.queued_seconds + _queued_s(attempt, _end(attempt)),
    }
    if num_gpus * held_s:
        update["gpu_seconds"] = _add(known.gpu_seconds, stage, num_gpus * held_s)
    if attempt.because != SUCCEEDED:
        reasons = known.restarts_by_reason
        update["restarts_by_reason"] = {**reasons, attempt.because: reasons.get(attempt.because, 0) + 1}
    return status.model_copy(update={"accounting": known.model_copy(update=update)})


def account_for_idling(status: Status, now: datetime) -> Status:
    """The status of a failed run that is tried again, with the time in between counted in."""
    if status.completion_time is None:
        return status
    known = status.accounting or Accounting()
    seconds = known.idle_seconds + _seconds(from_time(status.completion_time), now)
    return status.model_copy(update={"accounting": known.model_copy(update={"idle_seconds": seconds})})


def begin_suspension(status: Status, now: datetime) -> Status:
    """The status of a run that is suspended from now on."""
    return status if status.suspended_time else status.model_copy(update={"suspended_time": to_time(now)})


def end_suspension(status: Status, now: datetime) -> Status:
    """The status of a run that is suspended no longer."""
    if status.suspended_time is None:
        return status
    known = status.accounting or Accounting()
    seconds = known.suspended_seconds + _seconds(from_time(status.suspended_time), now)
    accounting = known.model_copy(update={"suspended_seconds": seconds})
    return status.model_copy(update={"suspended_time": None, "accounting": accounting})


def active_until(status: Status, limit_s: int | None, now: datetime) -> datetime | None:
    """When a run reaches its deadline if it is neither suspended nor queued until then; None without one."""
    if limit_s is None or status.start_time is None:
        return None
    until_now = account_until(status, now)
    idle_s = until_now.suspended_seconds + until_now.queued_seconds + until_now.idle_seconds
    return from_time(status.start_time) + timedelta(seconds=limit_s + idle_s)


def account_until(status: Status, now: datetime) -> Accounting:
    """What a run has taken with what is going on now: GPUs that are held, a suspension, waiting in a queue."""
    known = status.accounting or Accounting()
    update: dict[str, object] = {}
    if status.suspended_time is not None:
        update["suspended_seconds"] = known.suspended_seconds + _seconds(from_time(status.suspended_time), now)
    stage = next((stage for stage in reversed(status.stages) if stage.newest), None)
    newest = stage.newest if stage else None
    if stage is not None and newest is not None and newest.completion_time is None:
        update["queued_seconds"] = known.queued_seconds + _queued_s(newest, now)
        if gpu_seconds := num_gpus_of(newest) * _held_s(newest, now):
            update["gpu_seconds"] = _add(known.gpu_seconds, stage.name, gpu_seconds)
    return known.model_copy(update=update) if update else known


def num_gpus_of(attempt: AttemptStatus) -> int:
    """GPUs of all pods of an attempt."""
    return (attempt.settings.replicas or 0) * (attempt.settings.gpus or 0)


def _add(known: dict[StageName, int], stage: StageName, seconds: int) -> dict[StageName, int]:
    return {**known, stage: known.get(stage, 0) + seconds}


def _held_s(attempt: AttemptStatus, end: datetime) -> int:
    """Seconds that it held what it asked for: from its first pod on."""
    return _seconds(from_time(attempt.running_time), end) if attempt.running_time else 0


def _queued_s(attempt: AttemptStatus, end: datetime) -> int:
    if attempt.settings.queue is None or attempt.start_time is None:
        return 0
    # One that was let in before it was ever seen to wait has no admittedTime, but it has run.
    until = attempt.admitted_time or attempt.running_time
    return _seconds(from_time(attempt.start_time), from_time(until) if until else end)


def _kept_share(stage: StageName, attempt: AttemptStatus, progress: Progress | None) -> float:
    """How much of an attempt's work is kept."""
    begun, reached = attempt.from_step or 0, attempt.to_step or 0
    # What an evaluation has answered until it is ended is on the volume, and the next attempt goes on from there.
    if attempt.because == SUCCEEDED or (STAGES[stage].is_sharded and reached > begun):
        return 1.0
    kept = (progress.checkpoint_step if progress else None) or begun
    return min(1.0, max(0.0, (kept - begun) / (reached - begun))) if reached > begun else 0.0


def _end(attempt: AttemptStatus) -> datetime:
    assert attempt.completion_time is not None, "it is gone"
    return from_time(attempt.completion_time)


def _seconds(start: datetime, end: datetime) -> int:
    return max(0, round((end - start).total_seconds()))
