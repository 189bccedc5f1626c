"""What a stage's Job and pods say about how it went: the result, or the failure that explains it best.

Pure. When one training pod fails the others fail with it; the one that failed for a reason of its own is the one to
show, and the first of those.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from llava_api.failures import BY_EXIT_CODE, BY_REASON, DISRUPTIONS, Reason
from llava_api.report import StageFailure, StageResult
from llava_api.status import MAX_TEXT, FailureStatus, StageStatus
from llava_api.text import cut, escape, show
from llava_operator.cache.views import JobEnd, JobView, PodView, Termination
from llava_operator.clock import from_time
from llava_operator.deciding.publication import UnusableResultError
from llava_operator.validation_errors import describe_faults

_KILLED_FOR_MEMORY = "OOMKilled"
"""How the kubelet says that a container went over its limit."""

CONSEQUENCES = frozenset({Reason.RENDEZVOUS_FAILED, Reason.INTERRUPTED})
"""Reasons with which a pod usually fails because another one has."""
_STOPPED = frozenset({Reason.POD_FAILED, Reason.POD_DELETED})
"""What a pod ends with that is stopped and says nothing itself."""
_EVICTED = "Evicted"
"""A pod's reason, with the condition DisruptionTarget where others were the cause, and without for its own limits."""
DISRUPTED = "DisruptionTarget"
"""Condition type that the Job's message names when its first pod-failure rule ended it."""
WORD_S = 2
"""Seconds after which the Job alone is gone by where a pod was disrupted, if the pod has said nothing."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    failure: FailureStatus
    is_consequence: bool
    finished_at: str
    is_hearsay: bool = False
    """It is about a process of another pod, which knows better."""

    @property
    def rank(self) -> tuple[bool, bool, bool, str, int]:
        """Causes before consequences, first-hand before hearsay, known instants before unknown ones, then in time."""
        return (
            self.is_consequence, self.is_hearsay, not self.finished_at, self.finished_at, self.failure.rank or 0,
        )  # fmt: skip


def read_result(stage: StageStatus, pods: Iterable[PodView]) -> StageResult | FailureStatus:
    """The result of a stage whose Job is complete, from its first pod's termination message.

    A stage that has succeeded without a readable result counts as failed: nobody could say what it made.
    """
    first = next((pod for pod in pods if pod.phase == "Succeeded" and not pod.index), None)
    if first is None or first.ended is None:
        message = f"{stage.name} ended well, but its first pod was gone before its result was read"
        return _failure(stage, None, Reason.RESULT_LOST, message)
    return _read_result_of(stage, first, first.ended)


def read_joined_result(stage: StageStatus, pods: Iterable[PodView], num_pods: int) -> StageResult | FailureStatus:
    """The result of a stage whose pods each do a part of it: from whichever of them has joined the parts.

    The others hand back no numbers. One that has joined them and was replaced before it could say so may have said so
    twice; the first says the same.
    """
    ended = {pod.index or 0: (pod, pod.ended) for pod in pods if pod.phase == "Succeeded" and pod.ended}
    results = [_read_result_of(stage, *ended[index]) for index in sorted(ended)]
    for result in results:
        if isinstance(result, StageResult) and result.evaluate is not None:
            return result
    if len(ended) < num_pods:
        message = f"{stage.name} ended well, but {num_pods - len(ended)} of {num_pods} pods were gone before their "
        return _failure(stage, None, Reason.RESULT_LOST, f"{message}results were read, and the others have no numbers")
    failed = next((result for result in results if isinstance(result, FailureStatus)), None)
    return failed or _unreadable(stage, None, f"none of its {num_pods} pods has handed back what was measured")


def _read_result_of(stage: StageStatus, pod: PodView, ended: Termination) -> StageResult | FailureStatus:
    try:
        result = StageResult.model_validate_json(ended.message)
    except ValidationError as error:
        return _unreadable(stage, pod, f"its termination message is no result ({describe_faults(error)})")
    if (result.stage, result.attempt) != (stage.name, stage.attempt):
        return _unreadable(stage, pod, f"its termination message is about {result.stage}-{result.attempt}")
    if result.failure is not None:
        return _failure(stage, pod, result.failure.reason, result.failure.message, said=result.failure)
    return result


def _unreadable(stage: StageStatus, pod: PodView | None, why: str) -> FailureStatus:
    return _failure(stage, pod, Reason.INTERNAL_ERROR, f"{stage.name} ended with exit code 0, but {why}")


def unusable_result(
    stage: StageStatus, error: ValidationError | ArithmeticError | UnusableResultError
) -> FailureStatus:
    """The failure of a stage whose result has values that make no sense."""
    faults = describe_faults(error) if isinstance(error, ValidationError) else type(error).__name__
    if isinstance(error, UnusableResultError):
        faults = str(error)
    return _unreadable(stage, None, f"its result makes no sense ({faults})")


def read_failure(
    stage: StageStatus, job: JobEnd | None, pods: Iterable[PodView], recorded: FailureStatus | None
) -> FailureStatus:
    """The failure of a stage whose Job fails or has failed.

    Args:
        stage: the stage as it is in the status.
        job: how its Job ends or has ended; None where only its pods tell of it yet.
        pods: what is left of the Job's pods.
        recorded: what an earlier pass made of it; pods that it saw may be gone by now.
    """
    pods = tuple(pods)
    candidates = sorted(filter(None, (_candidate(stage, pod, pods, job) for pod in pods)), key=lambda found: found.rank)
    best = candidates[0] if candidates else None
    if recorded is not None and (best is None or best.is_consequence or not _is_vague(recorded)):
        return recorded
    # Of a pod that was disrupted and is gone, the Job still tells; those that are left were only stopped with it.
    is_told_by_job = best is None or (best.is_consequence and _is_disrupted(job))
    return best.failure if best and not is_told_by_job else _failure_of_job(stage, job)


def _is_vague(failure: FailureStatus) -> bool:
    return failure.pod is None or failure.reason in CONSEQUENCES


def read_loss(stage: StageStatus, job: JobView | None, pods: Iterable[PodView]) -> FailureStatus:
    """The failure of a stage that is taken away while it runs: its Job, or a pod of it that has not failed."""
    for pod in pods:
        if pod.disruption:
            return _disrupted(stage, pod)
    if job is not None and not job.deleting_since:
        for pod in pods:
            if pod.deleting:
                message = f"pod {pod.key.name} was deleted while {stage.name} ran"
                return _failure(stage, pod, Reason.POD_DELETED, message)
    message = f"the Job of {stage.name}-{stage.attempt} was deleted while it ran"
    return _failure(stage, None, Reason.JOB_DELETED, message)


def _disrupted(stage: StageStatus, pod: PodView) -> FailureStatus:
    reason = DISRUPTIONS.get(pod.disruption.partition(":")[0], Reason.POD_DISRUPTED)
    return _failure(stage, pod, reason, f"pod {pod.key.name} was disrupted: {pod.disruption}")


def word_due(job: JobView | None, pods: Iterable[PodView], now: datetime) -> datetime | None:
    """Until when the word of a pod is waited for that was disrupted, as its Job says; None if it is not.

    Jobs and pods come by two watches. Of a pod that was gone at once the Job may be known to have failed before it is
    heard of, and only the pod says whether it was preempted, drained, or lost with its node.
    """
    end = job and (job.failing or job.failed)
    if not end or not end.time or not _is_disrupted(end) or any(pod.disruption for pod in pods):
        return None
    due = from_time(end.time) + timedelta(seconds=WORD_S)
    # The clock of who wrote it may be another.
    return due if timedelta() < due - now <= timedelta(seconds=2 * WORD_S) else None


def _is_disrupted(job: JobEnd | None) -> bool:
    return job is not None and job.reason == "PodFailurePolicy" and DISRUPTED in job.message


def _failure_of_job(stage: StageStatus, job: JobEnd | None) -> FailureStatus:
    if job is None:
        return _failure(stage, None, Reason.POD_FAILED, f"a pod of {stage.name} has failed")
    reason = Reason.POD_DISRUPTED if _is_disrupted(job) else Reason.POD_FAILED
    return _failure(stage, None, reason, f"the Job failed: {job.reason}: {job.message}")


def _candidate(stage: StageStatus, pod: PodView, pods: Iterable[PodView], job: JobEnd | None) -> _Candidate | None:
    ended = pod.ended
    if pod.disruption:
        return _Candidate(
            failure=_disrupted(stage, pod), is_consequence=False, finished_at=ended.finished_at if ended else ""
        )
    if pod.phase == "Failed" and pod.trouble.partition(":")[0] == _EVICTED:
        # Whatever its container made of being ended.
        failure = _failure(stage, pod, Reason.EVICTED, f"pod {pod.key.name} was evicted: {pod.trouble}")
        return _Candidate(failure=failure, is_consequence=False, finished_at=ended.finished_at if ended else "")
    if ended is not None and ended.exit_code != 0:
        return _ended_candidate(stage, pod, ended, pods, job)
    if pod.phase == "Failed":
        why = pod.trouble or "Kubernetes gives no reason"
        failure = _failure(stage, pod, Reason.POD_FAILED, f"pod {pod.key.name} failed: {why}")
        return _Candidate(failure=failure, is_consequence=pod.deleting, finished_at="")
    return None


def _ended_candidate(
    stage: StageStatus, pod: PodView, ended: Termination, pods: Iterable[PodView], job: JobEnd | None
) -> _Candidate:
    said = _read_said(ended.message)
    reason = _reason_of(ended, said)
    message = said.message if said else f"pod {pod.key.name} ended with exit code {ended.exit_code}"
    if ended.reason == _KILLED_FOR_MEMORY:
        message = f"pod {pod.key.name} went over its memory limit and was killed"
    if _was_deleted(pod, ended, reason, job):
        reason, message = Reason.POD_DELETED, f"pod {pod.key.name} was deleted while {stage.name} ran"
    failure = _failure(stage, pod, reason, message, said=said)
    is_consequence = reason in CONSEQUENCES or (pod.deleting and reason in _STOPPED)
    culprit = _index_of(stage, said)
    is_hearsay = culprit is not None and pod.index is not None and culprit != pod.index
    if is_hearsay:
        # Without a pod it gives way to what that one says itself; its node is known all the same.
        node = next((other.node for other in pods if other.index == culprit), "") or None
        failure = failure.model_copy(update={"pod": None, "node": node})
    return _Candidate(
        failure=failure, is_consequence=is_consequence, finished_at=ended.finished_at, is_hearsay=is_hearsay
    )


def _was_deleted(pod: PodView, ended: Termination, reason: Reason, job: JobEnd | None) -> bool:
    """Whether somebody deleted a pod that has ended by that before anybody looked.

    The Job controller deletes pods, too, once another one has failed: those end after the Job has begun to fail.
    """
    if not pod.deleting or reason not in (Reason.POD_FAILED, Reason.INTERRUPTED):
        return False
    return job is None or not job.time or ended.finished_at <= job.time


def _index_of(stage: StageStatus, said: StageFailure | None) -> int | None:
    """Index of the pod whose process a stage's failure is about; None where that is not known."""
    gpus = stage.newest.settings.gpus if stage.newest else None
    if said is None or said.rank is None or gpus is None:
        return None
    return said.rank // max(gpus, 1)


def _reason_of(ended: Termination, said: StageFailure | None) -> Reason:
    # The kernel kills one process of the container; the stage then sees only that a worker was killed.
    if ended.reason == _KILLED_FOR_MEMORY:
        return Reason.OUT_OF_MEMORY
    if said is not None:
        return said.reason
    known = BY_EXIT_CODE.get(ended.exit_code)
    return known.reason if known else Reason.POD_FAILED


def _read_said(message: str) -> StageFailure | None:
    try:
        return StageResult.model_validate_json(message).failure
    except ValidationError:
        # A process that was killed writes nothing; the message is then its log's last lines.
        return None


def _failure(
    stage: StageStatus, pod: PodView | None, reason: Reason, message: str, *, said: StageFailure | None = None
) -> FailureStatus:
    ended = pod.ended if pod else None
    log_tail = said.log_tail if said else (ended.message if ended and ended.exit_code != 0 else "")
    log_tail = cut(escape(log_tail, multiline=True), max_chars=MAX_TEXT, keep_end=True)
    return FailureStatus(
        reason=reason,
        message=show(message, max_chars=MAX_TEXT),
        hint=BY_REASON[reason].hint,
        stage=stage.name,
        attempt=stage.attempt,
        pod=pod.key.name if pod else None,
        node=(pod.node or None) if pod else None,
        rank=said.rank if said and said.rank is not None else (pod.index if pod else None),
        exit_code=ended.exit_code if ended else None,
        step=said.step if said else None,
        attempt_steps=said.attempt_steps if said else None,
        log_tail=log_tail,
    )


def failed_by_operator(stage: StageStatus, reason: Reason, message: str) -> FailureStatus:
    """A failure that no pod had a part in."""
    return _failure(stage, None, reason, message)
