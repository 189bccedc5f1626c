"""What follows on an attempt that is gone: another one, when and with what, or the end of the run. Pure."""

import hashlib
from datetime import datetime, timedelta

from llava_api.failures import BY_REASON, Reason
from llava_api.memory import accumulation, batch_of
from llava_api.spec import Spec
from llava_api.status import (
    ATTEMPTS_KEPT,
    MAX_TEXT,
    SUCCEEDED,
    AttemptSettings,
    AttemptState,
    AttemptStatus,
    FailureStatus,
    StageStatus,
)
from llava_api.text import show
from llava_operator.clock import to_time
from llava_operator.stages import Stage

FIRST_DELAY_S = 5.0
LAST_DELAY_S = 300.0
"""Longest wait between two attempts."""
DISTURBED_DELAY_S = 600.0
"""The same, once so many in a row were ended by others that it is no chance any more."""
MAX_DISTURBED = 10
"""Attempts in a row, ended by no fault of the run before a step was done, from which on the longer wait holds."""
MAX_FRUITLESS = 3
"""Failures of the run's own that end at no later step, after which no further attempt is made."""
NODE_FAILURES = 2
"""Attempts that failed first on a node, from which on it is avoided."""
FIRST_STEPS = 3
"""Steps in which what does not fit into a GPU's memory shows."""


def counts(stage: StageStatus, failure: FailureStatus) -> bool:
    """Whether a failure counts as one of the run's own.

    A Job or pod that somebody takes away, and Kubernetes does not say who or why, is forgiven once a stage, and once
    more after each retry; who does it again and again means it.
    """
    row = BY_REASON[Reason(failure.reason)]
    return stage.forgiven > 0 if row.first_is_free else row.counts


def close_attempt(stage: StageStatus, failure: FailureStatus, now: datetime, to_step: int | None) -> StageStatus:
    """The stage with its newest attempt gone, and counted where it counts."""
    newest = stage.newest
    assert newest is not None
    is_own = counts(stage, failure) and not _can_be_halved(newest, failure, to_step)
    closed = newest.model_copy(
        update={
            "state": AttemptState.GONE, "because": failure.reason, "message": failure.message[:256],
            "completion_time": to_time(now), "stop_time": newest.stop_time or to_time(now), "counts": is_own,
            "to_step": to_step, "pod": failure.pod, "node": failure.node,
        }
    )  # fmt: skip
    update: dict[str, object] = {"attempts": (*stage.attempts[:-1], closed)}
    if is_own:
        update["restarts"] = stage.restarts + 1
    elif BY_REASON[Reason(failure.reason)].first_is_free:
        update["forgiven"] = stage.forgiven + 1
    if is_own and to_step is not None:
        # Of one that nothing is known of, nobody can say that it came no further.
        goes_further = stage.fruitless == 0 or to_step > stage.furthest_step
        update |= {
            "fruitless": 1 if goes_further else stage.fruitless + 1,
            "furthest_step": max(to_step, stage.furthest_step),
        }
    return stage.model_copy(update=update)


def find_final_failure(
    stage: StageStatus, failure: FailureStatus, traits: Stage, spec: Spec, *, is_exhausted: bool = False
) -> FailureStatus | None:
    """Why no further attempt is made of a stage whose newest one has been closed; None if one is.

    Args:
        stage: the stage.
        failure: why its newest attempt has ended.
        traits: what it is to the operator.
        spec: the run's.
        is_exhausted: whether the attempt itself has tried a part of it again, as often as is worth it.
    """
    newest = stage.newest
    assert newest is not None
    if _can_be_halved(newest, failure, newest.to_step):
        return None
    if not BY_REASON[Reason(failure.reason)].retryable:
        return failure
    if not newest.counts:
        return None
    if traits.is_gang and stage.fruitless >= MAX_FRUITLESS:
        message = (
            f"{stage.fruitless} attempts of {stage.name} ended at no later step than {stage.furthest_step}; "
            f"the last one: {failure.reason}: {failure.message}"
        )
        update = {"reason": Reason.NO_PROGRESS, "message": show(message, max_chars=MAX_TEXT)}
        return failure.model_copy(update={**update, "hint": BY_REASON[Reason.NO_PROGRESS].hint})
    if is_exhausted or stage.restarts > traits.retries(spec):
        return failure
    return None


def delay_s(stage: StageStatus, run_uid: str) -> float:
    """Seconds between the newest attempt, which is gone, and the next: twice as long each time without a step.

    They differ from run to run by up to half, so that two that stand in each other's way do not meet again.
    """
    idle = _count_idle(stage)
    longest = DISTURBED_DELAY_S if is_disturbed(stage) else LAST_DELAY_S
    seed = hashlib.sha256(f"{run_uid}/{stage.name}/{stage.attempt}".encode()).digest()[0] / 255
    return float(min(longest, FIRST_DELAY_S * 2.0 ** max(0, idle - 1)) * (1 + seed / 2))


def is_disturbed(stage: StageStatus) -> bool:
    """Whether so many attempts in a row were ended by others, before a step, that a person should look."""
    over = [attempt for attempt in stage.attempts if attempt.state is AttemptState.GONE][-MAX_DISTURBED:]
    return len(over) == MAX_DISTURBED and not any(one.counts or has_done_a_step(one) for one in over)


def _count_idle(stage: StageStatus) -> int:
    """Attempts in a row, up to the newest, that have done no step."""
    idle = 0
    for attempt in reversed(stage.attempts):
        if has_done_a_step(attempt):
            break
        idle += 1
    return idle


def has_done_a_step(attempt: AttemptStatus) -> bool:
    """Whether it came further, or was ended by who knew what he did."""
    return (attempt.to_step or 0) > (attempt.from_step or 0) or attempt.because in (SUCCEEDED, Reason.SUSPENDED)


def begin_attempt(stage: StageStatus, settings: AttemptSettings, now: datetime, from_step: int | None) -> StageStatus:
    """The stage with another attempt, committed to; the oldest is dropped where there are too many."""
    number = stage.attempt + 1
    attempt = AttemptStatus(number=number, settings=settings, start_time=to_time(now), from_step=from_step)
    outdated, dropped = list_outdated(stage), dict(stage.dropped_attempts)
    for because in (one.because for one in outdated):
        if because in dropped or len(dropped) < len(Reason):
            dropped[because] = dropped.get(because, 0) + 1
    kept = stage.attempts[len(outdated) :]
    update = {
        "attempt": number, "attempts": (*kept, attempt), "dropped_attempts": dropped, "next_attempt_time": None,
    }  # fmt: skip
    return stage.model_copy(update=update)


def list_outdated(stage: StageStatus) -> tuple[AttemptStatus, ...]:
    """The oldest attempts, which the status has no place for once another one begins."""
    return stage.attempts[: max(0, len(stage.attempts) - ATTEMPTS_KEPT + 1)]


def next_settings(stage: StageStatus, wanted: AttemptSettings, failure: FailureStatus | None) -> AttemptSettings:
    """What the next attempt runs with: what is wanted, less what the attempts so far have shown not to work."""
    newest = stage.newest
    update: dict[str, object] = {
        "avoided_nodes": list_avoided_nodes(stage), "asked_batch": wanted.per_device_batch,
    }  # fmt: skip
    if newest is not None and is_same_size(newest.settings, wanted):
        # What an earlier attempt had to be made smaller for still holds.
        update |= {
            "per_device_batch": newest.settings.per_device_batch, "accumulation": newest.settings.accumulation,
        }  # fmt: skip
        if failure is not None and _can_be_halved(newest, failure, newest.to_step):
            per_device, accumulation = newest.settings.per_device_batch, newest.settings.accumulation
            assert per_device is not None
            assert accumulation is not None
            update |= {"per_device_batch": per_device // 2, "accumulation": accumulation * 2}
    return wanted.model_copy(update=update)


def size_of(spec: Spec, traits: Stage) -> AttemptSettings:
    """The size that a spec asks for: pods, GPUs, and in training the batch."""
    size = AttemptSettings(replicas=traits.num_pods(spec), gpus=traits.gpus(spec))
    if not traits.is_gang:
        return size
    update = {
        "per_device_batch": batch_of(spec, traits.name).per_device, "accumulation": accumulation(spec, traits.name),
    }  # fmt: skip
    return size.model_copy(update=update)


def is_same_size(before: AttemptSettings, wanted: AttemptSettings) -> bool:
    """Whether the spec still asks for what it asked for when the earlier attempt was begun."""
    asked = before.per_device_batch if before.asked_batch is None else before.asked_batch
    return (before.replicas, before.gpus, asked) == (wanted.replicas, wanted.gpus, wanted.per_device_batch)


def _can_be_halved(attempt: AttemptStatus, failure: FailureStatus, to_step: int | None) -> bool:
    """Whether the batch may have been too large for the GPU, and can be smaller."""
    if failure.reason != Reason.OUT_OF_DEVICE_MEMORY or attempt.settings.accumulation is None:
        return False
    done = failure.attempt_steps
    if done is None:
        done = (to_step or 0) - (attempt.from_step or 0)
    return (attempt.settings.per_device_batch or 1) % 2 == 0 and done <= FIRST_STEPS


def list_avoided_nodes(stage: StageStatus) -> tuple[str, ...]:
    """Nodes on which attempts have failed first, more than once; those that did so most come first."""
    failed = [
        attempt.node
        for attempt in stage.attempts
        if attempt.node and (attempt.counts or attempt.because == Reason.NODE_LOST)
    ]
    often = {node: failed.count(node) for node in failed if failed.count(node) >= NODE_FAILURES}
    return tuple(sorted(often, key=lambda node: (-often[node], node)))[:16]


def next_time(stage: StageStatus, run_uid: str, now: datetime) -> datetime:
    """When the next attempt of a stage begins."""
    return now + timedelta(seconds=delay_s(stage, run_uid))
