"""The run's volume: which claim it is, when it is waited for, when it is to outlive the run, and the run it. Pure."""

from datetime import datetime, timedelta

from llava_api.constants import Phase
from llava_api.failures import Reason
from llava_api.status import MAX_TEXT, Artifacts, StageStatus, Status
from llava_api.text import show
from llava_api.volume import run_folder
from llava_operator.clock import from_time
from llava_operator.deciding.accounting import begin_suspension, end_suspension
from llava_operator.deciding.observation import Observation, Obstacle, ObstacleKind
from llava_operator.deciding.status import replace_stage
from llava_operator.deciding.verdict import failed_by_operator
from llava_operator.run import Run, current_stage


def locate_volume(status: Status, run: Run) -> Status:
    """The status with the claim that the run uses, and its folder there, until there is anything on it.

    A claim that was there before may have what other runs have left: attempts of the same numbers, other samples.
    """
    storage, known = run.spec.storage, status.artifacts or Artifacts()
    modes = storage.modes_for(run.spec.most_writers) if storage.existing_claim is None else ()
    claim = storage.claim_for(run.key.name)
    if known.volume_claim == claim and not _is_named_now(status, run):
        return status
    folder = None if storage.existing_claim is None else run_folder(run.uid)
    update = {"volume_claim": claim, "volume_folder": folder, "access_modes": modes}
    artifacts = known.model_copy(update=update)
    return status.model_copy(update={"artifacts": artifacts})


def _is_named_now(status: Status, run: Run) -> bool:
    """Whether the claim that the run would have made is named as one that was there before, and nothing has begun."""
    known = status.artifacts or Artifacts()
    has_begun = any(attempt.job_uid for stage in status.stages for attempt in stage.attempts)
    # Without access modes it was one that was there before all along.
    return run.spec.storage.existing_claim is not None and bool(known.access_modes) and not has_begun


def suspend_for_volume(seen: Observation, status: Status, stage: StageStatus, obstacle: Obstacle) -> Status:
    """The claim holds what another run has made: nothing goes on until somebody says what becomes of it."""
    failure = failed_by_operator(stage, Reason.VOLUME_OF_EARLIER_RUN, obstacle.message)
    status = begin_suspension(status.model_copy(update={"phase": Phase.SUSPENDED, "failure": failure}), seen.now)
    message = show(f"{obstacle.message}. {failure.hint}", max_chars=MAX_TEXT)
    return replace_stage(status, stage.model_copy(update={"message": message, "reason": failure.reason}))


def resume_with_volume(seen: Observation, status: Status) -> Status:
    """The same run once its claim could be made after all, or another has been named."""
    is_suspended = status.failure is not None and status.failure.reason == Reason.VOLUME_OF_EARLIER_RUN
    has_got_further = seen.job is not None or (
        seen.obstacle is not None and seen.obstacle.kind is not ObstacleKind.VOLUME_OF_EARLIER_RUN
    )
    if not (status.phase is Phase.SUSPENDED and is_suspended and has_got_further):
        return status
    if (stage := current_stage(status)) is not None:
        status = replace_stage(status, stage.model_copy(update={"reason": ""}))
    return end_suspension(status.model_copy(update={"phase": Phase.PENDING, "failure": None}), seen.now)


def is_kept(run: Run) -> bool:
    """Whether the volume of a run that has ended outlives it."""
    storage = run.spec.storage
    has_succeeded = run.status.phase is Phase.SUCCEEDED
    return (
        storage.existing_claim is not None
        or storage.retain == "Always"
        or (storage.retain == "OnSuccess" and has_succeeded)
    )


def deletion_time(run: Run) -> datetime | None:
    """When a run that has ended is to be deleted; None if no timer may: a person decides over the only copy."""
    status, ttl_s = run.status, run.spec.ttl_seconds_after_finished
    if ttl_s is None or status.completion_time is None or not is_kept(run):
        return None
    return from_time(status.completion_time) + timedelta(seconds=ttl_s)


def must_keep_volume(seen: Observation, wanted: Status) -> bool:
    """Whether the claim has to lose its owner before the run may be called succeeded."""
    storage, before = seen.run.spec.storage, seen.run.status
    is_own = storage.existing_claim is None and storage.retain == "OnSuccess"
    has_just_succeeded = wanted.phase is Phase.SUCCEEDED and before.phase is not Phase.SUCCEEDED
    return is_own and has_just_succeeded and not seen.is_volume_kept
