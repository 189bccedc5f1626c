"""What a status becomes by each move of the newest attempt of the stage that runs. Pure."""

from datetime import datetime

from pydantic import ValidationError

from llava_api.constants import Phase, StageName
from llava_api.failures import Reason
from llava_api.optimizer_steps import settle_spec
from llava_api.report import StageResult
from llava_api.status import (
    MAX_POD_FAILURES,
    MAX_TEXT,
    SUCCEEDED,
    AttemptState,
    AttemptStatus,
    FailureStatus,
    Progress,
    ShardStatus,
    StageState,
    StageStatus,
    Status,
    Trainer,
)
from llava_api.text import show
from llava_operator.cache.views import PodView
from llava_operator.clock import to_time
from llava_operator.deciding.accounting import account_for
from llava_operator.deciding.attempts import list_unreplaced
from llava_operator.deciding.gpus import find_gpus
from llava_operator.deciding.images import pin_image
from llava_operator.deciding.next_attempt import open_stage, refuse
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.planning import plan_training
from llava_operator.deciding.publication import Hindrance, UnusableResultError, find_hindrance
from llava_operator.deciding.references import list_references
from llava_operator.deciding.restarts import close_attempt, find_final_failure, is_disturbed, next_time
from llava_operator.deciding.results import describe_result, settle_data, take_result
from llava_operator.deciding.shards import is_index_exhausted, list_culprits
from llava_operator.deciding.status import next_stage, replace_stage
from llava_operator.deciding.stillness import newest_report
from llava_operator.deciding.verdict import (
    failed_by_operator,
    read_failure,
    read_joined_result,
    read_loss,
    read_result,
    unusable_result,
)
from llava_operator.deciding.waiting import describe_waiting, list_needs, told_from, waiting_since
from llava_operator.run import attempt_of, stage_of
from llava_operator.stages import STAGES

_WISHED = frozenset({Reason.SUSPENDED, Reason.DEADLINE_EXCEEDED})
"""Why an attempt stops that has not failed."""


def change_newest(status: Status, stage: StageStatus, **changes: object) -> Status:
    """The status with the newest attempt of a stage changed."""
    return replace_stage(status, _with_newest(stage, **changes))


def _with_newest(stage: StageStatus, **changes: object) -> StageStatus:
    newest = _newest(stage).model_copy(update=changes)
    return stage.model_copy(update={"attempts": (*stage.attempts[:-1], newest)})


def note_job(seen: Observation, stage: StageStatus) -> StageStatus:
    """The stage with the UID of its newest attempt's Job, once that has been seen."""
    if seen.job is None or _newest(stage).job_uid is not None:
        return stage
    return _with_newest(stage, job_uid=seen.job.uid)


def note_begin(stage: StageStatus, progress: Progress | None) -> StageStatus:
    """The stage with the step that its newest attempt went on from, as it says itself.

    Until then it is what was known of checkpoints, and one may have been made that nobody had been told of.
    """
    if progress is None or progress.resumed_step in (None, _newest(stage).from_step):
        return stage
    return _with_newest(stage, from_step=progress.resumed_step)


def note_shards(seen: Observation, stage: StageStatus) -> StageStatus:
    """The stage with how many shards of its newest attempt are done, and how many pods of it have failed."""
    if seen.job is None or not STAGES[stage.name].is_sharded:
        return stage
    done = min(seen.job.num_succeeded, _newest(stage).settings.replicas or 1)
    shards = ShardStatus(done=done, pods_failed=min(seen.job.num_failed, MAX_POD_FAILURES))
    return stage if _newest(stage).shards == shards else _with_newest(stage, shards=shards)


def wait(seen: Observation, status: Status, stage: StageStatus, **changes: object) -> Status:
    """Say what the attempt waits for, or that it runs."""
    attempt = attempt_of(seen.run, stage)
    needs = list_needs(attempt.spec, attempt.stage)
    waiting = describe_waiting(
        seen.job, seen.pods, attempt.num_pods, needs,
        trouble=seen.trouble, references=tuple(list_references(attempt.run)),
    )  # fmt: skip
    waited = change_newest(status, stage, **changes)
    since = waiting_since(stage_of(waited, stage.name), seen.job, seen.pods, attempt.num_pods)
    is_told = waiting.reason is not None and since is not None and seen.now >= told_from(since)
    reason = waiting.reason if is_told and waiting.reason else ""
    said = stage_of(waited, stage.name).model_copy(update={"message": waiting.message, "reason": reason})
    return replace_stage(waited, said)


def queue(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """The attempt is held back by a queue."""
    message = f"waits in the queue {_newest(stage).settings.queue or 'that suspended its Job'}"
    update = {"message": message, "reason": Reason.QUEUED}
    return change_newest(status, stage.model_copy(update=update), state=AttemptState.QUEUED)


def admit(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """The queue lets the attempt go on."""
    return wait(seen, status, stage, state=AttemptState.STARTING, admitted_time=to_time(seen.now))


def run(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """A pod of the attempt runs."""
    changes: dict[str, object] = {"state": AttemptState.RUNNING, "running_time": to_time(seen.now)}
    if _newest(stage).state is AttemptState.QUEUED:
        changes["admitted_time"] = to_time(seen.now)
    trainer = status.trainer or Trainer()
    image = pin_image(trainer.image or attempt_of(seen.run, stage).spec.image.reference, seen.pods)
    update = {"phase": Phase.RUNNING, "trainer": trainer.model_copy(update={"image": image})}
    return wait(seen, status.model_copy(update=update), stage, **changes)


def fail(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """The attempt is over by what its Job and pods say; what they say is written down at once."""
    end = seen.job.failing if seen.job else None
    if end or (any(pod.failed for pod in seen.pods) and not STAGES[stage.name].is_sharded):
        failure = read_failure(stage, end, _suspects(seen, stage), status.failure)
    else:
        is_sharded = STAGES[stage.name].is_sharded
        failure = read_loss(stage, seen.job, list_unreplaced(seen.pods, seen.now) if is_sharded else seen.pods)
    return stop(seen, status, stage, failure)


def stop(seen: Observation, status: Status, stage: StageStatus, failure: FailureStatus) -> Status:
    """The attempt is over for this reason, and its pods have to end."""
    is_wished = failure.reason == Reason.SUSPENDED
    message = "its pods are being stopped"
    if not is_wished:
        status = status.model_copy(update={"failure": failure})
        message = f"failed ({failure.reason}); {message}"
    changes = {
        "state": AttemptState.STOPPING, "because": failure.reason, "message": failure.message[:256],
        "stop_time": _newest(stage).stop_time or to_time(seen.now), "pod": failure.pod, "node": failure.node,
    }  # fmt: skip
    return change_newest(status, stage.model_copy(update={"message": message, "reason": failure.reason}), **changes)


def refine(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """While its pods are being stopped, one of them may say better why."""
    if seen.job is None or seen.job.failing is None or _newest(stage).because in _WISHED:
        return status
    failure = read_failure(stage, seen.job.failing, _suspects(seen, stage), status.failure)
    return status if failure == status.failure else stop(seen, status, stage, failure)


def end(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """The attempt is gone: another one is to come, or the run has failed."""
    newest = _newest(stage)
    recorded = status.failure
    if newest.because == Reason.SUSPENDED:
        failure = failed_by_operator(stage, Reason.SUSPENDED, "suspended (spec.suspend)")
    elif newest.because == Reason.DEADLINE_EXCEEDED and recorded is not None:
        failure = recorded
    elif seen.job is not None and (job_end := seen.job.failed or seen.job.failing) is not None:
        failure = read_failure(stage, job_end, _suspects(seen, stage), recorded)
    else:
        failure = recorded or read_loss(stage, seen.job, seen.pods)
    return settle(seen, status, stage, failure)


def _suspects(seen: Observation, stage: StageStatus) -> tuple[PodView, ...]:
    """Pods that may be why the attempt has failed: of those that were replaced none is."""
    if seen.job is None or not STAGES[stage.name].is_sharded:
        return seen.pods
    return list_culprits(seen.job, seen.pods)


def lose(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """The attempt's Job has vanished."""
    return settle(seen, status, stage, read_loss(stage, None, ()))


def settle(seen: Observation, status: Status, stage: StageStatus, failure: FailureStatus) -> Status:
    """Count an attempt that is gone, and say what follows."""
    traits, spec = STAGES[stage.name], seen.run.spec
    progress = newest_report(seen, status, stage)
    stage = close_attempt(stage, failure, seen.now, _reached_step(stage, progress, failure))
    closed = _newest(stage)
    status = account_for(replace_stage(status, stage), stage.name, closed, progress)
    if failure.reason == Reason.SUSPENDED:
        return status.model_copy(update={"failure": None})
    final = failure if failure.reason == Reason.DEADLINE_EXCEEDED else None
    is_exhausted = traits.is_sharded and is_index_exhausted(seen.job)
    if final := final or find_final_failure(stage, failure, traits, spec, is_exhausted=is_exhausted):
        return fail_run(status, stage, final, seen.now)
    due = to_time(next_time(stage, seen.run.uid, seen.now))
    disturbed = ", again and again by no fault of the run" if is_disturbed(stage) else ""
    message = show(
        f"attempt {stage.attempt + 1} begins at {due}: attempt {closed.number} ended{disturbed}: {failure.reason}: "
        f"{failure.message}",
        max_chars=MAX_TEXT,
    )
    waiting = stage.model_copy(update={"next_attempt_time": due, "message": message, "reason": failure.reason})
    return replace_stage(status.model_copy(update={"failure": failure}), waiting)


def fail_run(status: Status, stage: StageStatus, failure: FailureStatus, now: datetime) -> Status:
    """The run has failed at this stage."""
    ended = stage.model_copy(
        update={
            "state": StageState.FAILED, "completion_time": to_time(now), "message": failure.message,
            "next_attempt_time": None, "reason": "",
        }
    )  # fmt: skip
    update = {"phase": Phase.FAILED, "failure": failure, "completion_time": to_time(now), "silent_since": None}
    return replace_stage(status.model_copy(update=update), ended)


def succeed(seen: Observation, status: Status, stage: StageStatus) -> Status:
    """The attempt's Job is complete: take its result, and open the next stage or end the run."""
    if STAGES[stage.name].is_sharded:
        result = read_joined_result(stage, seen.pods, attempt_of(seen.run, stage).num_pods)
    else:
        result = read_result(stage, seen.pods)
    if isinstance(result, FailureStatus):
        return settle(seen, status, stage, result)
    try:
        return _take(seen, status, stage, result)
    except (ValidationError, ArithmeticError, UnusableResultError) as error:
        return settle(seen, status, stage, unusable_result(stage, error))


def _take(seen: Observation, status: Status, stage: StageStatus, result: StageResult) -> Status:
    progress = newest_report(seen, status, stage)
    closed = _newest(stage).model_copy(
        update={
            "state": AttemptState.GONE, "because": SUCCEEDED, "completion_time": to_time(seen.now), "message": "",
            "to_step": progress.step if progress and progress.unit == "steps" else None, "counts": False,
        }
    )  # fmt: skip
    ended = stage.model_copy(
        update={
            "state": StageState.SUCCEEDED,
            "attempts": (*stage.attempts[:-1], closed),
            "completion_time": to_time(seen.now),
            "message": show(describe_result(result, closed.settings.publish), max_chars=MAX_TEXT),
            "reason": "",
        }
    )
    # One that ended well after all takes back what was noted while it seemed to fail.
    status = replace_stage(status.model_copy(update={"phase": Phase.RUNNING, "failure": None}), ended)
    status = account_for(take_result(status, result), stage.name, closed, progress)
    following = next_stage(status, stage.name)
    if result.prepare is not None and status.data is not None:
        status = status.model_copy(update={"data": settle_data(status.data, seen.run.spec)})
        assert status.data is not None
        spec = settle_spec(seen.run.spec, status.data.global_batch)
        planned = plan_training(spec, status.data, status.model, find_gpus(spec, seen.nodes))
        status = status.model_copy(update={"plan": planned.plan})
        if planned.refusal is not None and following is not None:
            # It is opened to be reopened by a retry, whichever of the stages to come does not fit.
            status = open_stage(status, following, seen.now)
            opened = stage_of(status, following)
            return fail_run(status, opened, refuse(opened, planned.refusal), seen.now)
    if following is not None and STAGES[following].publishes:
        hindrance = find_hindrance(seen.run.spec, status.evaluation)
        if hindrance is not None:
            status, following = _skip(status, following, hindrance), next_stage(status, following)
    if following is not None:
        return open_stage(status, following, seen.now)
    return status.model_copy(update={"phase": Phase.SUCCEEDED, "completion_time": to_time(seen.now)})


def _skip(status: Status, name: StageName, hindrance: Hindrance) -> Status:
    """The status with a stage left out."""
    update = {"state": StageState.SKIPPED, "reason": hindrance.reason, "message": hindrance.message}
    return replace_stage(status, stage_of(status, name).model_copy(update=update))


def _newest(stage: StageStatus) -> AttemptStatus:
    newest = stage.newest
    assert newest is not None, "moves are those of an attempt"
    return newest


def _reached_step(stage: StageStatus, progress: Progress | None, failure: FailureStatus) -> int | None:
    """Last step that the newest attempt is known to have done; None where nothing is known of it."""
    said = failure.step if failure.attempt == stage.attempt else None
    reported = progress.step if progress is not None and progress.unit == "steps" else None
    return max((step for step in (said, reported) if step is not None), default=_newest(stage).from_step)
