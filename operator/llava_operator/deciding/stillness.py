"""Attempts that say nothing, or the same again and again, or come to nothing as they are. Pure.

Training judges itself, in its pods. From outside only reports that keep coming with the same step end an attempt; one
that says nothing may be at work behind a network that is not, since reporting never stops a run.
"""

from datetime import datetime, timedelta

from llava_api.failures import Reason
from llava_api.report import MAX_NEXT_REPORT_S
from llava_api.status import AttemptState, FailureStatus, Progress, StageStatus, Status, Time
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.attempts import half_placed_until
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.restarts import is_same_size, size_of
from llava_operator.deciding.verdict import failed_by_operator
from llava_operator.run import Run, attempt_of
from llava_operator.stages import STAGES

SILENT_S = 2 * MAX_NEXT_REPORT_S
"""Seconds without a report after which an attempt counts as silent; it may be asked to wait for half of that."""
STILL_S = 1800.0
"""Seconds for which the same step may be reported, at least: training ends itself long before."""
STILL_STEPS = 20
"""The same, in steps as long as those before."""


def date_report(status: Status, progress: Progress) -> Progress:
    """A report with the instants since when its step, and its checkpoint, are the same.

    A validation that goes on is as good as a step: it says so a bounded number of times.
    """
    before = status.progress
    is_same = before is not None and _place_of(before) == _place_of(progress)
    since = before.step_time or before.last_update_time if before is not None and is_same else None
    return progress.model_copy(update={"step_time": since, "checkpoint_time": _checkpoint_time(before, progress)})


def _place_of(progress: Progress) -> tuple[object, ...]:
    """How far the attempt that reports is."""
    return progress.stage, progress.attempt, progress.step, progress.unit, progress.validating_samples


def _checkpoint_time(before: Progress | None, progress: Progress) -> Time | None:
    """When the newest checkpoint was first reported, by whichever attempt of the stage."""
    if progress.checkpoint_step is None:
        return None
    is_same = before is not None and (before.stage, before.checkpoint_step) == (
        progress.stage, progress.checkpoint_step,
    )  # fmt: skip
    since = before.checkpoint_time if before is not None and is_same else None
    return since or progress.last_update_time


def newest_report(seen: Observation, status: Status, stage: StageStatus) -> Progress | None:
    """The newest report of the newest attempt of a stage, written or not."""
    for progress in (seen.progress, status.progress):
        if progress is not None and (progress.stage, progress.attempt) == (stage.name, stage.attempt):
            return progress
    return None


def find_standstill(seen: Observation, status: Status, stage: StageStatus) -> FailureStatus | None:
    """Why an attempt of which nothing has failed will come to nothing, or seems to; None if it goes on."""
    timeout_s = attempt_of(seen.run, stage).spec.scheduling.gang_timeout_seconds
    until = half_placed_until(seen.pods, timeout_s) if STAGES[stage.name].is_gang else None
    if until is not None and until <= seen.now:
        placed = sum(bool(pod.scheduled_at) for pod in seen.pods)
        message = (
            f"{placed} of {len(seen.pods)} pods of {stage.name} had a place for {timeout_s} s, and the others none "
            "(spec.scheduling.gangTimeoutSeconds): they give it back"
        )
        return failed_by_operator(stage, Reason.GANG_NOT_SCHEDULED, message)
    if _is_resized(seen.run, stage):
        return failed_by_operator(stage, Reason.SUSPENDED, "suspended for a moment, and to go on at another size")
    return _find_still(seen, status, stage)


def _is_resized(run: Run, stage: StageStatus) -> bool:
    """Whether the spec asks for another size than the attempt runs with: it was suspended, and nobody has seen it."""
    newest, traits = stage.newest, STAGES[stage.name]
    if newest is None or newest.settings.asked_batch is None or not traits.is_gang:
        return False
    return not is_same_size(newest.settings, size_of(run.spec, traits))


def _find_still(seen: Observation, status: Status, stage: StageStatus) -> FailureStatus | None:
    """Why an attempt that runs should be stopped for reporting the same step again and again; None if it should not."""
    attempt, progress = stage.newest, newest_report(seen, status, stage)
    if attempt is None or attempt.running_time is None or progress is None or not STAGES[stage.name].is_gang:
        return None
    # After its last step training saves and hashes what it made.
    if progress.unit != "steps" or not 0 < progress.step < progress.total_steps:
        return None
    progress = date_report(status, progress)
    since, last = from_time(progress.step_time or progress.last_update_time), from_time(progress.last_update_time)
    done = max(1, progress.step - (attempt.from_step or 0))
    step_s = max(0.0, (since - from_time(attempt.running_time)).total_seconds()) / done
    still_s = (last - since).total_seconds()
    if still_s < max(STILL_S, STILL_STEPS * step_s):
        return None
    message = (
        f"{stage.name} has reported step {progress.step} for {still_s:.0f} s, and steps took {step_s:.1f} s before"
    )
    return failed_by_operator(stage, Reason.REPORTS_STAND_STILL, message)


def note_silence(seen: Observation, status: Status, stage: StageStatus) -> tuple[Status, datetime | None]:
    """The status with the instant since when its attempt says nothing; and when it will count as silent."""
    attempt = stage.newest
    is_reporting = attempt is not None and attempt.state is AttemptState.RUNNING and STAGES[stage.name].is_gang
    if attempt is None or not is_reporting or attempt.running_time is None:
        return _with_silence(status, None), None
    progress = newest_report(seen, status, stage)
    heard = from_time(attempt.running_time)
    if progress is not None:
        heard = max(heard, from_time(progress.last_update_time))
    due = heard + timedelta(seconds=SILENT_S)
    if seen.now < due:
        return _with_silence(status, None), due
    return _with_silence(status, to_time(heard)), None


def _with_silence(status: Status, since: str | None) -> Status:
    return status if status.silent_since == since else status.model_copy(update={"silent_since": since})
