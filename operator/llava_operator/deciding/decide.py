"""What to do about a run: a pure function of what was observed.

A pass either commits an intent to the status (``Commit``) or acts on one that is committed (``Start``), never both.
So the operator may be killed between any two writes: the next pass finds either the intent, and acts on it, or
nothing, and decides again.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import ValidationError

from llava_api.constants import Phase, StageName
from llava_api.failures import Reason
from llava_api.names import job_name, volume_claim_name
from llava_api.report import StageResult
from llava_api.stages import stages_of
from llava_api.status import MAX_TEXT, Artifacts, FailureStatus, Progress, StageState, StageStatus, Status
from llava_api.text import show
from llava_operator.cache.views import JobView, PodView
from llava_operator.clock import to_time
from llava_operator.deciding.cards import NodeGpus, know_cards
from llava_operator.deciding.planning import Planned, Refusal, plan_training
from llava_operator.deciding.policy import Violation, describe_violations
from llava_operator.deciding.results import describe_result, take_result
from llava_operator.deciding.status import complete_status, first_stages, next_stage, replace_stage
from llava_operator.deciding.verdict import failed_by_operator, read_failure, read_result, unusable_result
from llava_operator.deciding.waiting import describe_waiting, list_needs
from llava_operator.run import Run, current_stage, num_pods, stage_of

FIRST_ATTEMPT = 1


class ObstacleKind(StrEnum):
    """What stood in the way of creating a child."""

    NAME_CONFLICT = "NameConflict"
    REJECTED = "Rejected"
    BLOCKED = "Blocked"
    """It may go away: a quota, a missing permission."""


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a child could not be created."""

    kind: ObstacleKind
    message: str
    retry_at: datetime


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything that a decision depends on."""

    run: Run
    job: JobView | None = None
    """Job of the stage that runs; None where a live read has found none."""
    pods: tuple[PodView, ...] = ()
    """Pods of that Job."""
    obstacle: Obstacle | None = None
    progress: Progress | None = None
    """Newest report of that stage that the status does not have yet."""
    progress_due_at: datetime | None = None
    """Instant from which that report alone is worth a write."""
    nodes: frozenset[NodeGpus] = frozenset()
    """GPUs of nodes that the run may get, where they are known and training is about to be planned."""
    violations: tuple[Violation, ...] = ()
    """What pods of the stage that runs would be given against the installation's policy."""
    now: datetime


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Write this status."""

    status: Status


@dataclass(frozen=True, kw_only=True)
class Start:
    """Create the children of a stage that the status says is running."""

    stage: StageName
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do before the next event, or before ``until``."""

    until: datetime | None = None


Decision = Commit | Start | Wait


def decide(seen: Observation) -> Decision:
    """What to do about a run now."""
    run = seen.run
    if run.deleting:
        return Wait()
    wanted = _plan_status(seen)
    if seen.progress is not None and (wanted != run.status or _is_progress_due(seen)):
        wanted = wanted.model_copy(update={"progress": seen.progress})
    wanted = complete_status(wanted, generation=run.generation, now=seen.now)
    if wanted != run.status:
        return Commit(status=wanted)
    stage = current_stage(run.status)
    if stage is None or seen.job is not None:
        return Wait(until=seen.progress_due_at if seen.progress else None)
    if seen.violations:
        # The policy changes with a restart, after which every run is looked at again.
        return Wait()
    if seen.obstacle is not None and seen.now < seen.obstacle.retry_at:
        return Wait(until=seen.obstacle.retry_at)
    return Start(stage=stage.name, attempt=stage.attempt)


def _is_progress_due(seen: Observation) -> bool:
    return seen.progress_due_at is None or seen.progress_due_at <= seen.now


def _plan_status(seen: Observation) -> Status:
    status = seen.run.status
    if status.phase is None:
        return _begin_run(seen)
    stage = current_stage(status)
    if stage is None:
        return status
    if seen.obstacle is not None and seen.obstacle.kind is not ObstacleKind.BLOCKED:
        failure = failed_by_operator(stage, Reason(seen.obstacle.kind), seen.obstacle.message)
        return _fail(status, stage, failure, seen.now)
    if seen.job is None or seen.job.uid != (stage.job_uid or seen.job.uid):
        return _plan_without_job(seen, stage)
    return _plan_with_job(seen, stage, seen.job)


def _begin_run(seen: Observation) -> Status:
    status = Status(
        phase=Phase.PENDING,
        start_time=to_time(seen.now),
        stages=first_stages(stages_of(seen.run.spec)),
        artifacts=Artifacts(volume_claim=volume_claim_name(seen.run.key.name)),
    )
    return _begin_stage(status, status.stages[0].name, seen)


def _begin_stage(status: Status, name: StageName, seen: Observation) -> Status:
    stage = StageStatus(
        name=name,
        state=StageState.RUNNING,
        attempt=FIRST_ATTEMPT,
        job=job_name(seen.run.key.name, name, FIRST_ATTEMPT),
        start_time=to_time(seen.now),
        message=describe_waiting(None, (), 1),
    )
    return replace_stage(status, stage)


def _plan_without_job(seen: Observation, stage: StageStatus) -> Status:
    if stage.job_uid is not None:
        message = f"Job {stage.job} was deleted while {stage.name} ran"
        return _fail(seen.run.status, stage, failed_by_operator(stage, Reason.JOB_DELETED, message), seen.now)
    # Without an obstacle it stays what was said last: after a restart nothing has been tried yet.
    message = seen.obstacle.message if seen.obstacle else stage.message
    if seen.violations:
        message = describe_violations(seen.violations)
        if stage.name is seen.run.status.stages[0].name:
            return _fail(seen.run.status, stage, failed_by_operator(stage, Reason.NOT_ALLOWED, message), seen.now)
        # The policy has changed since the run was begun. Its work so far is worth waiting for who can change it back.
        message = show(f"waits: {message}", max_chars=MAX_TEXT)
    return replace_stage(seen.run.status, stage.model_copy(update={"message": message}))


def _plan_with_job(seen: Observation, stage: StageStatus, job: JobView) -> Status:
    status = seen.run.status
    stage = stage.model_copy(update={"job_uid": job.uid})
    if job.complete:
        result = read_result(stage, seen.pods)
        if isinstance(result, FailureStatus):
            return _fail(status, stage, result, seen.now)
        return _succeed(seen, stage, result)
    if end := job.failed or job.failing:
        # What the pods say is written down at once: some of them are gone by the time that the Job has ended.
        failure = read_failure(stage, end, seen.pods, status.failure)
        if job.failed:
            return _fail(status, stage, failure, seen.now)
        status = status.model_copy(update={"failure": failure})
        message = f"failed ({failure.reason}); its pods are being stopped"
    else:
        message = describe_waiting(
            job, seen.pods, num_pods(seen.run, stage.name), list_needs(seen.run.spec, stage.name)
        )
    has_started = any(pod.started for pod in seen.pods) or stage.name is not status.stages[0].name
    phase = Phase.RUNNING if has_started else status.phase
    return replace_stage(status.model_copy(update={"phase": phase}), stage.model_copy(update={"message": message}))


def _fail(status: Status, stage: StageStatus, failure: FailureStatus, now: datetime) -> Status:
    ended = stage.model_copy(
        update={"state": StageState.FAILED, "completion_time": to_time(now), "message": failure.message}
    )
    update = {"phase": Phase.FAILED, "failure": failure, "completion_time": to_time(now)}
    return replace_stage(status.model_copy(update=update), ended)


def _succeed(seen: Observation, stage: StageStatus, result: StageResult) -> Status:
    ended = stage.model_copy(
        update={
            "state": StageState.SUCCEEDED,
            "completion_time": to_time(seen.now),
            "message": show(describe_result(result), max_chars=MAX_TEXT),
        }
    )
    # A Job that ended well after all takes back what was noted while it seemed to fail.
    status = seen.run.status.model_copy(update={"phase": Phase.RUNNING, "failure": None})
    try:
        status = take_result(replace_stage(status, ended), result)
        planned = _plan(seen, result)
    except ValidationError as error:
        return _fail(seen.run.status, stage, unusable_result(stage, error), seen.now)
    if planned is not None:
        status = status.model_copy(update={"plan": planned.plan})
        if planned.refusal is not None:
            return _refuse(status, planned.refusal, seen.now)
    following = next_stage(status, stage.name)
    if following is not None:
        return _begin_stage(status, following, seen)
    return status.model_copy(update={"phase": Phase.SUCCEEDED, "completion_time": to_time(seen.now)})


def _plan(seen: Observation, result: StageResult) -> Planned | None:
    if result.prepare is None:
        return None
    return plan_training(seen.run.spec, result.prepare, know_cards(seen.run.spec, seen.nodes))


def _refuse(status: Status, refusal: Refusal, now: datetime) -> Status:
    """End a run that cannot be trained as it is: nothing of the stage has been created, and nothing will be."""
    stage = stage_of(status, refusal.stage)
    return _fail(status, stage, failed_by_operator(stage, refusal.reason, refusal.message), now)
