"""What there is to tell of a run, as its Events do.

It follows from the status: the same status always tells the same. The rest is what only the pass knows that meets with
it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llava_api.constants import GateOutcome, Phase, StageName
from llava_api.failures import Reason
from llava_api.status import (
    SUCCEEDED,
    AttemptSettings,
    AttemptStatus,
    Data,
    EvaluationStatus,
    NotificationState,
    Plan,
    Progress,
    StageState,
    StageStatus,
    Status,
    Time,
)
from llava_operator.acting.unreadable import UNREADABLE
from llava_operator.deciding.gates import combine_gates, describe_gates
from llava_operator.deciding.publication import describe_success
from llava_operator.kube.objects import Object
from llava_operator.run import Run
from llava_operator.stages import STAGES

UNDELETED = "NotDeleted"
"""Reason when a run outlives its ``ttlSecondsAfterFinished``."""
UNREPORTED = "ProgressUnreported"
"""Reason when a run's progress cannot be reported."""
SHARED_GROUPS = "GroupsOnBothSides"
"""Reason when training has samples of held-out groups."""
PLAN_WARNING = "PlanWarning"
"""Reason when the plan has something to warn of (``status.plan.warnings``)."""
NOT_PUBLISHED = "NotPublished"
"""Reason when a run has succeeded, and no gate lets it be published."""
UNDELIVERED = "NotificationUndelivered"
"""Reason when a receiver of notifications could not be told of something."""


@dataclass(frozen=True, kw_only=True)
class Transition:
    """Something that happened to a run."""

    time: Time
    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str
    about: str
    """What makes it different from other transitions of the run with the same reason."""


def list_transitions(status: Status) -> Iterator[Transition]:
    """Every transition that a status tells of, oldest first."""
    for stage in status.stages:
        yield from _stage_transitions(stage, status)
    if status.api_trouble is not None:
        yield Transition(
            time=status.api_trouble.time, type="Warning", reason=Reason.API_ERROR, action="Wait",
            note=status.api_trouble.message, about="run",
        )  # fmt: skip
    if status.silent_since is not None:
        yield Transition(
            time=status.silent_since, type="Warning", reason="Silent", action="Report", about="run",
            note=f"training has reported nothing since {status.silent_since}; it may be at work all the same",
        )  # fmt: skip
    for told in status.notifications:
        if told.state is NotificationState.UNDELIVERED and told.completion_time is not None:
            yield Transition(
                time=told.completion_time, type="Warning", reason=UNDELIVERED, action="Notify",
                note=f"{told.name} was not told of {told.event}: {told.outcome}", about=f"{told.name}-{told.id}",
            )  # fmt: skip
    if status.completion_time is None:
        return
    if status.phase is Phase.SUCCEEDED:
        score = status.summary.score if status.summary else ""
        note = describe_success(status) + (f"; score {score}" if score else "")
        yield _normal(status.completion_time, "Complete", "Complete", note, "run")
    elif status.failure is not None:
        failure = status.failure
        note = f"{failure.message} {failure.hint}"
        yield Transition(
            time=status.completion_time, type="Warning", reason=failure.reason, action="Fail", note=note, about="run"
        )


def _stage_transitions(stage: StageStatus, status: Status) -> Iterator[Transition]:
    for attempt in stage.attempts:
        yield from _attempt_transitions(stage, attempt)
    if stage.state is StageState.SKIPPED and stage.reason_time is not None:
        yield Transition(
            time=stage.reason_time, type="Warning", reason=NOT_PUBLISHED, action="Skip", note=stage.message,
            about=stage.name,
        )  # fmt: skip
        return
    yield from _waiting(stage)
    if stage.newest and stage.newest.start_time:
        yield from _skipped_checkpoints(stage.newest.start_time, status.progress, stage)
    if stage.completion_time and stage.state is StageState.SUCCEEDED:
        about = f"{stage.name}-{stage.attempt}"
        yield _normal(stage.completion_time, STAGES[stage.name].condition, "Finish", stage.message, about)
        if stage.name is StageName.EVALUATE:
            yield from _gate(stage.completion_time, status.evaluation, about)
        if stage.name is StageName.PREPARE:
            yield from _shared_groups(stage.completion_time, status.data, about)
            yield from _plan_warnings(stage.completion_time, status.plan, about)


def _gate(time: Time, evaluation: EvaluationStatus | None, about: str) -> Iterator[Transition]:
    """What the gates say that were asked for."""
    outcome = combine_gates(evaluation) if evaluation else None
    if evaluation is None or outcome is None:
        return
    yield Transition(
        time=time, type="Normal" if outcome is GateOutcome.PASSED else "Warning", reason=f"Gate{outcome}",
        action="Judge", note=describe_gates(evaluation), about=about,
    )  # fmt: skip


def _shared_groups(time: Time, data: Data | None, about: str) -> Iterator[Transition]:
    """That a score of held-out samples will flatter, told before anything is trained."""
    if data is None or not data.groups_shared:
        return
    yield Transition(
        time=time, type="Warning", reason=SHARED_GROUPS, action="Prepare", about=about,
        note=f"training has samples of {data.groups_shared} of {data.groups_validation} held-out groups, so that the "
        f"score of {data.pairs_shared} of {data.pairs_validation} held-out answers flatters: the dataset report names "
        "them; take them out of one of the two files, or set dataset.validation.fraction",
    )  # fmt: skip


def _plan_warnings(time: Time, plan: Plan | None, about: str) -> Iterator[Transition]:
    """What may cost something, told before any GPU is taken."""
    for number, warning in enumerate(plan.warnings if plan else (), start=1):
        yield Transition(
            time=time, type="Warning", reason=PLAN_WARNING, action="Plan", note=warning, about=f"{about}-plan-{number}"
        )


def _describe_size(settings: AttemptSettings) -> str:
    """How its batch differs from what the spec asks for; empty if it does not."""
    asked, batch = settings.asked_batch, settings.per_device_batch
    if asked is None or batch is None or batch >= asked:
        return ""
    return (
        f" with batch.perDevice {batch} instead of {asked} and accumulation {settings.accumulation}, since a GPU's "
        "memory did not suffice: the global batch is the same"
    )


def _attempt_transitions(stage: StageStatus, attempt: AttemptStatus) -> Iterator[Transition]:
    about = f"{stage.name}-{attempt.number}"
    if attempt.start_time:
        note = f"{stage.name} begins as attempt {attempt.number}{_describe_size(attempt.settings)}"
        yield _normal(attempt.start_time, STAGES[stage.name].gerund, "Start", note, about)
    ended = attempt.stop_time or attempt.completion_time
    if not ended or not attempt.because or attempt.because == SUCCEEDED:
        return
    if attempt.because == Reason.SUSPENDED:
        yield _normal(ended, attempt.because, "Stop", f"{about} is stopped: {attempt.message}", about)
    else:
        yield Transition(
            time=ended, type="Warning", reason=attempt.because, action="Stop",
            note=f"{about} is over: {attempt.message}", about=about,
        )  # fmt: skip


def _waiting(stage: StageStatus) -> Iterator[Transition]:
    """What the stage waits for. That an attempt has ended has an Event of its own."""
    ended = stage.newest.because if stage.newest else ""
    if stage.reason_time is None or not stage.reason or stage.reason in (ended, Reason.SUSPENDED):
        return
    yield Transition(
        time=stage.reason_time, type="Normal" if stage.reason == Reason.QUEUED else "Warning", reason=stage.reason,
        action="Wait", note=f"{stage.name}: {stage.message}", about=f"{stage.name}-{stage.attempt}",
    )  # fmt: skip


def _skipped_checkpoints(time: Time, progress: Progress | None, stage: StageStatus) -> Iterator[Transition]:
    if progress is None or (progress.stage, progress.attempt) != (stage.name, stage.attempt):
        return
    if progress.skipped_checkpoints:
        yield Transition(
            # Reports come again and again: the attempt began once.
            time=time,
            type="Warning",
            reason="CheckpointSkipped",
            action="Resume",
            note=f"damaged, so that {stage.name} went on from one before: {progress.skipped_checkpoints}",
            about=f"{stage.name}-{stage.attempt}",
        )


def _normal(time: Time, reason: str, action: str, note: str, about: str) -> Transition:
    return Transition(time=time, type="Normal", reason=reason, action=action, note=note, about=about)


def undeleted(run: Run, why: object) -> Transition:
    """That a run that has ended cannot be deleted."""
    ended = run.status.completion_time
    assert ended is not None, "its time is counted from there"
    return Transition(
        time=ended, type="Warning", reason=UNDELETED, action="Delete", about="run",
        note=f"spec.ttlSecondsAfterFinished is over, but the run cannot be deleted: {why}",
    )  # fmt: skip


def unreported(stage: StageStatus, why: object) -> Transition:
    """That a stage's pods cannot be told whom to report to."""
    started = stage.start_time
    assert started is not None, "a stage that runs has been begun"
    return Transition(
        time=started, type="Warning", reason=UNREPORTED, action="Report", about=f"{stage.name}-{stage.attempt}",
        note=f"{stage.name} runs, but its progress cannot be reported: {why}",
    )  # fmt: skip


def unreadable(raw: Object, why: str) -> Transition:
    """That a run is none that this version of the operator understands."""
    meta = raw["metadata"]
    return Transition(
        time=meta["creationTimestamp"], type="Warning", reason=UNREADABLE, action="Read", note=why,
        about=f"generation-{meta.get('generation', 1)}",
    )  # fmt: skip
