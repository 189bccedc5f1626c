"""Between attempts: whether another one begins now, and with what. Pure."""

import math
from dataclasses import dataclass
from datetime import datetime

from llava_api.constants import Phase, StageName
from llava_api.failures import Reason
from llava_api.memory import batch_of
from llava_api.names import MAX_ATTEMPTS
from llava_api.optimizer_steps import settle_spec
from llava_api.report import MicroBatch
from llava_api.spec import Spec
from llava_api.stages import stages_of
from llava_api.status import (
    MAX_TEXT,
    AttemptSettings,
    AttemptState,
    Data,
    FailureStatus,
    Plan,
    StageState,
    StageStatus,
    Status,
    Trainer,
)
from llava_api.text import show
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.accounting import account_for_idling, begin_suspension, end_suspension
from llava_operator.deciding.gpus import find_gpus
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.planning import Refusal, plan_training
from llava_operator.deciding.publication import refuse_publishing
from llava_operator.deciding.restarts import begin_attempt, next_settings, size_of
from llava_operator.deciding.status import first_stages, replace_stage
from llava_operator.deciding.verdict import failed_by_operator
from llava_operator.deciding.violations import describe_violations
from llava_operator.deciding.volume import locate_volume
from llava_operator.deciding.waiting import JOB_IS_MADE
from llava_operator.run import Run
from llava_operator.stages import STAGES, Stage


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Why no attempt begins now."""

    status: Status
    until: datetime | None = None


def begin_run(seen: Observation) -> Status:
    """The status of a run that nothing has been done about yet."""
    spec = seen.run.spec
    image = spec.image.reference or seen.default_image
    status = Status(
        phase=Phase.PENDING,
        start_time=to_time(seen.now),
        retry=spec.retry,
        stages=first_stages(stages_of(spec)),
        trainer=Trainer(image=image),
    )
    return open_stage(locate_volume(status, seen.run), status.stages[0].name, seen.now)


def open_stage(status: Status, name: StageName, now: datetime) -> Status:
    """The status with a stage begun; its first attempt is yet to come."""
    stage = StageStatus(name=name, state=StageState.RUNNING, start_time=to_time(now), message=JOB_IS_MADE)
    return replace_stage(status, stage)


def take_up_retry(status: Status, run: Run, now: datetime) -> Status:
    """Reopen a failed run whose ``spec.retry`` has been raised, at the stage that failed and with every try left."""
    if run.spec.retry <= status.retry:
        return status
    status = status.model_copy(update={"retry": run.spec.retry})
    failed = next((stage for stage in status.stages if stage.state is not StageState.SUCCEEDED), None)
    if status.phase is not Phase.FAILED or failed is None:
        return status
    reopened = failed.model_copy(
        update={
            "state": StageState.RUNNING, "start_time": failed.start_time or to_time(now), "completion_time": None,
            "next_attempt_time": None, "restarts": 0, "forgiven": 0, "fruitless": 0, "furthest_step": 0, "reason": "",
            "message": f"tried again (spec.retry {run.spec.retry})",
        }
    )  # fmt: skip
    phase = Phase.RUNNING if failed.attempts or failed.name is not status.stages[0].name else Phase.PENDING
    update = {"phase": phase, "completion_time": None, "failure": None}
    return replace_stage(account_for_idling(status, now).model_copy(update=update), reopened)


def begin_next(seen: Observation, status: Status, stage: StageStatus) -> Status | Hold | FailureStatus:
    """Begin the next attempt of a stage, if nothing speaks against it.

    Returns:
        The status with the attempt; or why there is none now; or why there will be none.
    """
    run, traits = seen.run, STAGES[stage.name]
    if run.spec.suspend:
        return Hold(status=_suspend(status, stage, seen))
    status = _resume(status, seen)
    if stage.next_attempt_time is not None and seen.now < (due := from_time(stage.next_attempt_time)):
        return Hold(status=status, until=due)
    if stage.attempt >= MAX_ATTEMPTS:
        message = f"{stage.name} has been tried {stage.attempt} times, and names have no room for more"
        return failed_by_operator(stage, Reason.NO_PROGRESS, message)
    if seen.violations:
        return judge_violations(seen, status, stage)
    if not traits.fetches and (why := refuse_publishing(run.spec, status.data)) is not None:
        # Only prepare knows the image, and no GPU is taken before it is heard.
        return failed_by_operator(stage, Reason.INVALID_CONFIG, why)
    if traits.is_gang and (refusal := _plan_again(seen, status, stage)) is not None:
        return refusal if isinstance(refusal, FailureStatus) else Hold(status=refusal)
    settings = next_settings(stage, _wanted_settings(seen, status, traits), status.failure)
    begun = begin_attempt(stage, settings, seen.now, _kept_step(status, stage))
    begun = begun.model_copy(update={"message": JOB_IS_MADE, "reason": ""})
    return replace_stage(status.model_copy(update={"failure": None}), begun)


def judge_violations(seen: Observation, status: Status, stage: StageStatus) -> Hold | FailureStatus:
    """What becomes of a stage whose pods would be given what the installation does not allow."""
    message = describe_violations(seen.violations)
    if stage.name is status.stages[0].name and stage.attempt <= 1:
        return failed_by_operator(stage, Reason.NOT_ALLOWED, message)
    # The policy has changed since the run was begun. Its work so far is worth waiting for who can change it back.
    newest = stage.newest
    is_frozen = newest is not None and newest.state is not AttemptState.GONE and newest.settings.publish is not None
    # It is told first: the words of several violations may be cut off.
    remedy = "; once spec.publish is corrected, set spec.suspend to true and back to false" if is_frozen else ""
    message = show(f"waits{remedy}: {message}", max_chars=MAX_TEXT)
    held = stage.model_copy(update={"message": message, "reason": Reason.NOT_ALLOWED})
    return Hold(status=replace_stage(status, held))


def _suspend(status: Status, stage: StageStatus, seen: Observation) -> Status:
    message = "suspended (spec.suspend)"
    status = begin_suspension(status.model_copy(update={"phase": Phase.SUSPENDED, "failure": None}), seen.now)
    held = {"message": message, "reason": Reason.SUSPENDED, "next_attempt_time": None}
    return replace_stage(status, stage.model_copy(update=held))


def _resume(status: Status, seen: Observation) -> Status:
    if status.phase is not Phase.SUSPENDED:
        return status
    has_run = any(attempt.running_time for stage in status.stages for attempt in stage.attempts)
    phase = Phase.RUNNING if has_run else Phase.PENDING
    return end_suspension(status.model_copy(update={"phase": phase}), seen.now)


def _plan_again(seen: Observation, status: Status, stage: StageStatus) -> Status | FailureStatus | None:
    """Hold what training takes against what there is, for a size or a cluster that may have changed."""
    if status.data is None or seen.run.status.data is None:
        # There is nothing to plan by; or prepare has ended in this very pass, which has planned already.
        return None
    data = _scale(status.data, seen.run.spec, status.plan, stage)
    planned = plan_training(seen.run.spec, data, status.model, find_gpus(seen.run.spec, seen.nodes))
    if planned.refusal is None:
        return None
    if not stage.attempts:
        return refuse(stage, planned.refusal)
    message = show(
        f"waits: {planned.refusal.message}. Set spec.suspend to true to change the size of the run", max_chars=MAX_TEXT
    )
    held = stage.model_copy(update={"message": message, "reason": planned.refusal.reason})
    return replace_stage(status, held)


def _scale(data: Data, spec: Spec, plan: Plan | None, stage: StageStatus) -> Data:
    """What prepare found, for larger micro-batches than it has cut: so many times as much, at most."""
    cut = plan.per_device_batch if plan else 0
    times = math.ceil(batch_of(spec, stage.name).per_device / cut) if cut else 1
    if times <= 1 or stage.name is StageName.ALIGN or data.largest is None:
        return data
    numbers = {name: value * times for name, value in data.largest.model_dump(by_alias=False).items()}
    return data.model_copy(update={"largest": MicroBatch(**numbers)})


def refuse(stage: StageStatus, refusal: Refusal) -> FailureStatus:
    """The failure of a run that cannot be trained as it is, at the stage that would come next."""
    return failed_by_operator(stage, refusal.reason, refusal.message)


def _wanted_settings(seen: Observation, status: Status, stage: Stage) -> AttemptSettings:
    # In the pass that ends prepare, the run was read before anything was chosen.
    spec = settle_spec(seen.run.spec, status.data.global_batch if status.data else None)
    trainer = status.trainer or Trainer()
    update = {
        "image": trainer.image or spec.image.reference or seen.default_image,
        "config_version": trainer.config_version if status.data is not None else 1,
        "queue": spec.scheduling.queue_name,
        "publish": spec.publish if stage.publishes else None,
    }
    return size_of(spec, stage).model_copy(update=update)


def _kept_step(status: Status, stage: StageStatus) -> int | None:
    """The step that the next attempt goes on from, as far as is known."""
    newest, progress = stage.newest, status.progress
    if newest is None:
        return None
    is_about = progress is not None and (progress.stage, progress.attempt) == (stage.name, newest.number)
    return (progress.checkpoint_step if progress and is_about else None) or newest.from_step
