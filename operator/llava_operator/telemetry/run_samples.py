"""What each family of the contract says of one run: pure functions of what is cached of it and the present instant.

Nothing is told that the status does not hold, and no value stands in a label.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from llava_api.constants import Phase
from llava_api.quantities import read_gib
from llava_api.status import (
    Accounting,
    AttemptState,
    AttemptStatus,
    GateStatus,
    Plan,
    Progress,
    StageState,
    StageStatus,
    Time,
)
from llava_operator.cache.runs import RunView
from llava_operator.clock import from_time
from llava_operator.deciding.accounting import account_until, num_gpus_of
from llava_operator.run import current_stage

Sample = tuple[tuple[str, ...], float]
"""Values of a family's own labels, those after namespace and name, and the value."""
Sampler = Callable[[RunView, datetime], Iterator[Sample]]
_NOTHING_TAKEN = Accounting()


def _info(run: RunView, _: datetime) -> Iterator[Sample]:
    yield (run.team, run.method), 1


def _phase(run: RunView, _: datetime) -> Iterator[Sample]:
    yield (run.status.phase or Phase.PENDING,), 1


def _created(run: RunView, _: datetime) -> Iterator[Sample]:
    if run.created_at is not None:
        yield (), run.created_at


def _completion(run: RunView, _: datetime) -> Iterator[Sample]:
    if run.ended_at is not None:
        yield (), run.ended_at


def _failure(run: RunView, _: datetime) -> Iterator[Sample]:
    failure = run.status.failure
    if run.is_finished and failure is not None:
        yield (failure.stage or "", failure.reason), 1


# --- stages and attempts


def _stage_state(run: RunView, _: datetime) -> Iterator[Sample]:
    for stage in run.status.stages:
        yield (stage.name, stage.state), 1


def _stage_duration(run: RunView, now: datetime) -> Iterator[Sample]:
    for stage in run.status.stages:
        if stage.start_time is not None:
            end = from_time(stage.completion_time) if stage.completion_time else now
            yield (stage.name,), max(0.0, (end - from_time(stage.start_time)).total_seconds())


def _waiting(run: RunView, _: datetime) -> Iterator[Sample]:
    for stage in run.status.stages:
        if stage.state is StageState.RUNNING and stage.reason and stage.reason_time is not None:
            yield (stage.name, stage.reason), _timestamp(stage.reason_time)


def _attempt(run: RunView, _: datetime) -> Iterator[Sample]:
    for stage, newest in _begun(run):
        yield (stage.name,), newest.number


def _attempt_start(run: RunView, _: datetime) -> Iterator[Sample]:
    for stage, newest in _begun(run):
        if newest.start_time is not None:
            yield (stage.name,), _timestamp(newest.start_time)


def _restarts(run: RunView, _: datetime) -> Iterator[Sample]:
    for stage, _newest in _begun(run):
        yield (stage.name,), stage.restarts


def _attempts_ended(run: RunView, _: datetime) -> Iterator[Sample]:
    for reason, count in _taken(run).restarts_by_reason.items():
        yield (reason,), count


# --- progress


def _step(run: RunView, _: datetime) -> Iterator[Sample]:
    progress = run.status.progress
    if progress is not None and progress.unit == "steps":
        yield (progress.stage,), progress.step


def _planned_steps(run: RunView, _: datetime) -> Iterator[Sample]:
    progress = run.status.progress
    if progress is not None and progress.unit == "steps" and progress.total_steps:
        yield (progress.stage,), progress.total_steps


def _progress_ratio(run: RunView, _: datetime) -> Iterator[Sample]:
    progress = run.status.progress
    if progress is not None and progress.total_steps:
        yield (progress.stage,), min(1.0, progress.step / progress.total_steps)


def _eta(run: RunView, _: datetime) -> Iterator[Sample]:
    progress = _live_progress(run)
    if progress is not None and progress.eta_seconds is not None:
        yield (progress.stage,), progress.eta_seconds


def _progress_time(run: RunView, _: datetime) -> Iterator[Sample]:
    if run.status.progress is not None:
        yield (), _timestamp(run.status.progress.last_update_time)


def _checkpoint_time(run: RunView, _: datetime) -> Iterator[Sample]:
    if run.status.progress is not None and run.status.progress.checkpoint_time is not None:
        yield (), _timestamp(run.status.progress.checkpoint_time)


def _reported(field: str) -> Sampler:
    """A number of the last report."""

    def sample(run: RunView, _: datetime) -> Iterator[Sample]:
        if (value := getattr(run.status.progress, field, None)) is not None:
            yield (), value

    return sample


def _speed(field: str) -> Sampler:
    """A speed of the last report, as long as what it tells of goes on: a sum over runs is what happens now."""

    def sample(run: RunView, _: datetime) -> Iterator[Sample]:
        if (value := getattr(_live_progress(run), field, None)) is not None:
            yield (), value

    return sample


# --- what it takes


def _gpus(run: RunView, _: datetime) -> Iterator[Sample]:
    for stage, newest in _live(run):
        # Pods that work for themselves give theirs back one by one.
        done = newest.shards.done if newest.shards else 0
        held = num_gpus_of(newest) - done * (newest.settings.gpus or 0)
        yield (stage.name,), max(0, held) if newest.running_time is not None else 0


def _requested_gpus(run: RunView, _: datetime) -> Iterator[Sample]:
    for stage, newest in _live(run):
        is_waiting = newest.state in (AttemptState.QUEUED, AttemptState.STARTING)
        yield (stage.name,), num_gpus_of(newest) if is_waiting else 0


def _gpu_seconds(run: RunView, now: datetime) -> Iterator[Sample]:
    for stage, seconds in account_until(run.status, now).gpu_seconds.items():
        yield (stage,), seconds


def _queued_seconds(run: RunView, now: datetime) -> Iterator[Sample]:
    yield (), account_until(run.status, now).queued_seconds


def _suspended_seconds(run: RunView, now: datetime) -> Iterator[Sample]:
    yield (), account_until(run.status, now).suspended_seconds


def _accounted(field: str) -> Sampler:
    """A number of seconds of all attempts that are over."""

    def sample(run: RunView, _: datetime) -> Iterator[Sample]:
        yield (), getattr(_taken(run), field)

    return sample


def _planned(size_of: Callable[[Plan], str | None]) -> Sampler:
    """A size that the plan tells for a person."""

    def sample(run: RunView, _: datetime) -> Iterator[Sample]:
        if run.status.plan is not None and (size := read_gib(size_of(run.status.plan))) is not None:
            yield (), size

    return sample


def _score(run: RunView, _: datetime) -> Iterator[Sample]:
    for metric in run.status.evaluation.metrics if run.status.evaluation else ():
        yield (metric.name, metric.split, "base"), metric.base
        yield (metric.name, metric.split, "tuned"), metric.tuned


def _gates(run: RunView) -> Iterator[tuple[str, GateStatus]]:
    if run.status.evaluation is not None:
        yield from run.status.evaluation.gates.items()


def _gate_outcome(run: RunView, _: datetime) -> Iterator[Sample]:
    for name, gate in _gates(run):
        yield (name, gate.outcome), 1


def _gate_gain(run: RunView, _: datetime) -> Iterator[Sample]:
    for name, gate in _gates(run):
        for bound, gain in (("value", gate.gain), ("low", gate.low), ("high", gate.high)):
            yield (name, bound), gain


def _gate_limit(run: RunView, _: datetime) -> Iterator[Sample]:
    for name, gate in _gates(run):
        yield (name,), gate.limit


def _published(run: RunView, _: datetime) -> Iterator[Sample]:
    sizes: Counter[tuple[str, ...]] = Counter()
    for one in run.status.artifacts.published if run.status.artifacts else ():
        sizes[one.address.partition("://")[0], one.what] += one.size_bytes
    yield from sizes.items()


SAMPLERS: Mapping[str, Sampler] = {
    "info": _info,
    "phase": _phase,
    "created_timestamp_seconds": _created,
    "completion_timestamp_seconds": _completion,
    "stage_state": _stage_state,
    "stage_duration_seconds": _stage_duration,
    "failure": _failure,
    "waiting_timestamp_seconds": _waiting,
    "attempt": _attempt,
    "attempt_start_timestamp_seconds": _attempt_start,
    "attempts_ended": _attempts_ended,
    "restarts": _restarts,
    "step": _step,
    "planned_steps": _planned_steps,
    "progress_ratio": _progress_ratio,
    "epoch": _reported("epoch"),
    "eta_seconds": _eta,
    "progress_timestamp_seconds": _progress_time,
    "loss": _reported("loss"),
    "validation_loss": _reported("validation_loss"),
    "lowest_validation_loss": _reported("lowest_validation_loss"),
    "validation_exact_ratio": _reported("validation_exact"),
    "validation_step": _reported("validation_step"),
    "best_step": _reported("best_step"),
    "learning_rate": _reported("learning_rate"),
    "gradient_norm": _reported("grad_norm"),
    "tokens_per_second": _speed("tokens_per_second"),
    "samples_per_second": _speed("samples_per_second"),
    "data_wait_ratio": _speed("data_wait_ratio"),
    "mfu_ratio": _speed("mfu"),
    "checkpoint_step": _reported("checkpoint_step"),
    "checkpoint_timestamp_seconds": _checkpoint_time,
    "gpus": _gpus,
    "requested_gpus": _requested_gpus,
    "gpu_seconds": _gpu_seconds,
    "productive_gpu_seconds": _accounted("productive_gpu_seconds"),
    "lost_gpu_seconds": _accounted("lost_gpu_seconds"),
    "productive_seconds": _accounted("productive_seconds"),
    "lost_seconds": _accounted("lost_seconds"),
    "queued_seconds": _queued_seconds,
    "suspended_seconds": _suspended_seconds,
    "planned_gpu_memory_bytes": _planned(lambda plan: plan.device_memory),
    "peak_gpu_memory_bytes": _reported("peak_gpu_memory_bytes"),
    "available_gpu_memory_bytes": _planned(lambda plan: plan.device_memory_available),
    "planned_pod_memory_bytes": _planned(lambda plan: plan.pod_memory),
    "volume_free_bytes": _reported("volume_free_bytes"),
    "volume_size_bytes": _reported("volume_size_bytes"),
    "score": _score,
    "gate_outcome": _gate_outcome,
    "gate_gain": _gate_gain,
    "gate_limit": _gate_limit,
    "published_bytes": _published,
}
"""By the family's name without its prefix."""


def _begun(run: RunView) -> Iterator[tuple[StageStatus, AttemptStatus]]:
    """Stages that have had an attempt, with the newest."""
    for stage in run.status.stages:
        if stage.newest is not None:
            yield stage, stage.newest


def _live(run: RunView) -> Iterator[tuple[StageStatus, AttemptStatus]]:
    """The stage whose newest attempt is under way, with that; none between two attempts."""
    stage = current_stage(run.status)
    if stage is not None and stage.newest is not None and stage.newest.state is not AttemptState.GONE:
        yield stage, stage.newest


def _live_progress(run: RunView) -> Progress | None:
    """The last report, if the attempt that it is from is under way."""
    progress = run.status.progress
    for stage, newest in _live(run):
        if progress is not None and (progress.stage, progress.attempt) == (stage.name, newest.number):
            return progress
    return None


def _taken(run: RunView) -> Accounting:
    return run.status.accounting or _NOTHING_TAKEN


def _timestamp(time: Time) -> float:
    return from_time(time).timestamp()
