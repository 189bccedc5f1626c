"""What to do about a run: a pure function of what was observed.

A pass either commits an intent to the status (``Commit``) or acts on one that is committed (``Start``, ``Stop``), never
both. So the operator may be killed between any two writes: the next pass finds either the intent, and acts on it, or
nothing, and decides again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from llava_api.failures import Reason
from llava_api.names import job_name
from llava_api.status import MAX_TEXT, AttemptState, AttemptStatus, FailureStatus, StageStatus, Status
from llava_api.text import show
from llava_operator.deciding import moves
from llava_operator.deciding.accounting import active_until
from llava_operator.deciding.attempts import (
    TABLE,
    Move,
    Sight,
    awaited_until,
    half_placed_until,
    list_unreplaced,
    lost_from,
    read_sight,
)
from llava_operator.deciding.decisions import Commit, Decision, Delete, KeepVolume, Remove, Start, Stop, Wait
from llava_operator.deciding.next_attempt import Hold, begin_next, begin_run, judge_violations, take_up_retry
from llava_operator.deciding.notifications import note_notifications, notifications_due
from llava_operator.deciding.observation import Observation, ObstacleKind
from llava_operator.deciding.restarts import list_outdated
from llava_operator.deciding.status import complete_status, replace_stage, without_texts
from llava_operator.deciding.stillness import date_report, find_standstill, note_silence
from llava_operator.deciding.verdict import failed_by_operator, word_due
from llava_operator.deciding.volume import (
    deletion_time,
    locate_volume,
    must_keep_volume,
    resume_with_volume,
    suspend_for_volume,
)
from llava_operator.deciding.waiting import told_from, waiting_since
from llava_operator.run import Run, attempt_of, current_stage, stage_of
from llava_operator.stages import STAGES


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The status as it is to be, and what is done once it is."""

    status: Status
    act: Decision


def decide(seen: Observation) -> Decision:
    """What to do about a run now."""
    run = seen.run
    if run.deleting:
        return Wait()
    plan = _plan(seen)
    if must_keep_volume(seen, plan.status):
        plan = _keep_volume(seen)
    wanted = plan.status
    if seen.progress is not None and (wanted != run.status or _is_progress_due(seen)):
        wanted = wanted.model_copy(update={"progress": date_report(run.status, seen.progress)})
    silent_at = None
    if (stage := current_stage(wanted)) is not None:
        wanted, silent_at = note_silence(seen, wanted, stage)
    wanted = wanted.model_copy(update={"api_trouble": seen.api_trouble if stage else None})
    wanted = complete_status(
        wanted, before=run.status, generation=run.generation, shown_metric=run.spec.evaluation.metrics[0], now=seen.now
    )
    wanted = note_notifications(seen, wanted)
    text_due = _text_due(seen)
    is_text = wanted != run.status and without_texts(wanted) == without_texts(run.status)
    if wanted != run.status and not (is_text and text_due):
        return Commit(status=wanted)
    if not isinstance(plan.act, Wait):
        return plan.act
    instants = [plan.act.until, notifications_due(seen), text_due if is_text else None]
    if current_stage(run.status) is not None:
        due = seen.progress_due_at if seen.progress else None
        instants += [due, _next_deadline(run, seen.now), _told_at(seen), silent_at]
    return Wait(until=_first(*instants))


def _keep_volume(seen: Observation) -> _Plan:
    """What comes before the run's success."""
    status, obstacle = seen.run.status, seen.volume_obstacle
    stage = current_stage(status)
    if obstacle is None or stage is None:
        return _Plan(status=status, act=KeepVolume())
    message = show(f"has succeeded, but the volume cannot be kept: {obstacle.message}", max_chars=MAX_TEXT)
    told = replace_stage(status, stage.model_copy(update={"message": message}))
    return _Plan(status=told, act=Wait(until=obstacle.retry_at) if seen.now < obstacle.retry_at else KeepVolume())


def _text_due(seen: Observation) -> datetime | None:
    """Until when a change of nothing but texts has to wait; None if it need not. A reason is none, and told at once."""
    is_held_up = bool(seen.volume_obstacle)
    return None if is_held_up or seen.text_due_at is None or seen.text_due_at <= seen.now else seen.text_due_at


def _told_at(seen: Observation) -> datetime | None:
    """When more is to be told of an attempt that waits; None if none does."""
    stage = current_stage(seen.run.status)
    if stage is None or stage.newest is None:
        return None
    since = waiting_since(stage, seen.job, seen.pods, attempt_of(seen.run, stage).num_pods)
    if since is None:
        return None
    return told_from(since) if told_from(since) > seen.now else seen.trouble_due_at


def why_stop(run: Run, now: datetime) -> tuple[Reason, str] | None:
    """Why nothing of a run should be under way, whatever it does."""
    if run.spec.suspend:
        return Reason.SUSPENDED, "suspended (spec.suspend)"
    due = _deadline(run, now)
    if due is not None and due <= now:
        limit = run.spec.active_deadline_seconds
        return Reason.DEADLINE_EXCEEDED, f"the run was active for longer than spec.activeDeadlineSeconds ({limit})"
    return None


def _deadline(run: Run, now: datetime) -> datetime | None:
    return active_until(run.status, run.spec.active_deadline_seconds, now)


def _next_deadline(run: Run, now: datetime) -> datetime | None:
    """When the deadline ends what is under way; None if there is none, nothing is, or it is being stopped anyway."""
    stage, due = current_stage(run.status), _deadline(run, now)
    is_stopping = stage is not None and stage.newest is not None and stage.newest.state is AttemptState.STOPPING
    return None if due is None or due <= now or run.spec.suspend or is_stopping else due


def _is_progress_due(seen: Observation) -> bool:
    return seen.progress_due_at is None or seen.progress_due_at <= seen.now


def _first(*instants: datetime | None) -> datetime | None:
    return min((instant for instant in instants if instant is not None), default=None)


def _plan(seen: Observation) -> _Plan:
    status = seen.run.status
    status = begin_run(seen) if status.phase is None else take_up_retry(status, seen.run, seen.now)
    seen = replace(seen, run=replace(seen.run, status=status))
    stage = current_stage(status)
    if stage is None:
        due = deletion_time(seen.run)
        if due is None or due > seen.now:
            return _Plan(status=status, act=Wait(until=due))
        # Its messages would go with it; each is given up some day.
        return _Plan(status=status, act=Wait() if status.open_notifications else Delete())
    plan = _Plan(status=status, act=Wait())
    if _is_live(stage):
        plan = _follow(seen, status, stage)
    following = current_stage(plan.status)
    if following is None or _is_live(following):
        return plan
    return _between_attempts(seen, plan.status, following)


def _is_live(stage: StageStatus) -> bool:
    return stage.newest is not None and stage.newest.state is not AttemptState.GONE


def _between_attempts(seen: Observation, status: Status, stage: StageStatus) -> _Plan:
    why = why_stop(seen.run, seen.now)
    if why is not None and why[0] is Reason.DEADLINE_EXCEEDED:
        return _Plan(status=moves.fail_run(status, stage, failed_by_operator(stage, *why), seen.now), act=Wait())
    match begin_next(seen, status, stage):
        case Status() as begun:
            for outdated in list_outdated(stage):
                if seen.removed is None or seen.removed[0] is not stage.name or seen.removed[1] < outdated.number:
                    return _Plan(status=status, act=Remove(stage=stage.name, attempt=outdated.number))
            return _Plan(status=begun, act=Wait())
        case FailureStatus() as failure:
            return _Plan(status=moves.fail_run(status, stage, failure, seen.now), act=Wait())
        case Hold(status=held, until=until):
            return _Plan(status=held, act=Wait(until=until))


def _follow(seen: Observation, status: Status, stage: StageStatus) -> _Plan:
    """What becomes of the attempt that is under way."""
    status = resume_with_volume(seen, status)
    stage = moves.note_shards(seen, moves.note_begin(moves.note_job(seen, stage), seen.progress))
    newest = stage.newest
    assert newest is not None
    is_replacing = STAGES[stage.name].is_sharded and seen.job is not None
    pods = list_unreplaced(seen.pods, seen.now) if is_replacing else seen.pods
    sight = read_sight(newest, seen.job, pods)
    move = TABLE[newest.state][sight]
    if newest.state is not AttemptState.STOPPING and move not in _LAST_WORDS:
        if (why := why_stop(seen.run, seen.now)) is not None:
            return _Plan(status=_stop(seen, status, stage, sight, failed_by_operator(stage, *why)), act=Wait())
        if (failure := find_standstill(seen, status, stage)) is not None:
            return _Plan(status=moves.stop(seen, status, stage, failure), act=Wait())
    if move in (Move.FAIL, Move.END) and (due := word_due(seen.job, seen.pods, seen.now)) is not None:
        return _Plan(status=replace_stage(status, stage), act=Wait(until=due))
    match move:
        case Move.START:
            return _start(seen, status, stage, newest)
        case Move.EVICT:
            failure = failed_by_operator(stage, Reason.QUEUE_EVICTED, f"Job {_job(seen, newest, stage)} was suspended")
            return _Plan(status=moves.stop(seen, status, stage, failure), act=Wait())
        case Move.STOP:
            return _Plan(status=replace_stage(status, stage), act=_stop_job(seen))
        case Move.AWAIT:
            return _await(seen, status, stage, newest)
    until = lost_from(seen.pods, seen.now) if is_replacing else None
    if STAGES[stage.name].is_gang:
        until = half_placed_until(seen.pods, attempt_of(seen.run, stage).spec.scheduling.gang_timeout_seconds)
    return _Plan(status=_MOVES[move](seen, status, stage), act=Wait(until=until))


_LAST_WORDS = frozenset({Move.SUCCEED, Move.END, Move.LOSE})
"""Moves of an attempt that has ended before it could be stopped."""
_MOVES: dict[Move, Callable[[Observation, Status, StageStatus], Status]] = {
    Move.WAIT: moves.wait,
    Move.QUEUE: moves.queue,
    Move.ADMIT: moves.admit,
    Move.RUN: moves.run,
    Move.FAIL: moves.fail,
    Move.LOSE: moves.lose,
    Move.END: moves.end,
    Move.SUCCEED: moves.succeed,
}


def _stop(seen: Observation, status: Status, stage: StageStatus, sight: Sight, failure: FailureStatus) -> Status:
    if sight is Sight.UNMADE:
        return moves.settle(seen, status, stage, failure)
    return moves.stop(seen, status, stage, failure)


def _job(seen: Observation, attempt: AttemptStatus, stage: StageStatus) -> str:
    return job_name(seen.run.key.name, stage.name, attempt.number)


def _stop_job(seen: Observation) -> Decision:
    assert seen.job is not None, "there is one to see"
    return Stop(job=seen.job.key.name, uid=seen.job.uid)


def _start(seen: Observation, status: Status, stage: StageStatus, newest: AttemptStatus) -> _Plan:
    """Have the attempt's Job made, unless something stands in the way."""
    obstacle, status = seen.obstacle, locate_volume(status, seen.run)
    is_waited_for = obstacle is None or obstacle.kind in (ObstacleKind.BLOCKED, ObstacleKind.VOLUME_OF_EARLIER_RUN)
    if obstacle is not None and not is_waited_for:
        failure = failed_by_operator(stage, Reason(obstacle.kind), obstacle.message)
        return _Plan(status=moves.settle(seen, status, stage, failure), act=Wait())
    if seen.violations:
        match judge_violations(seen, status, stage):
            case FailureStatus() as failure:
                return _Plan(status=moves.settle(seen, status, stage, failure), act=Wait())
            case Hold(status=held):
                # The policy changes with a restart, after which every run is looked at again.
                return _Plan(status=held, act=Wait())
    if obstacle is not None and obstacle.kind is ObstacleKind.VOLUME_OF_EARLIER_RUN:
        status = suspend_for_volume(seen, status, stage, obstacle)
        stage = stage_of(status, stage.name)
    elif obstacle is not None:
        # Without one it stays what was said last: after a restart nothing has been tried yet.
        stage = stage.model_copy(update={"message": obstacle.message, "reason": obstacle.reason})
    start = Start(stage=stage.name, attempt=newest.number)
    act = Wait(until=obstacle.retry_at) if obstacle and seen.now < obstacle.retry_at else start
    return _Plan(status=replace_stage(status, stage), act=act)


def _await(seen: Observation, status: Status, stage: StageStatus, newest: AttemptStatus) -> _Plan:
    """Wait for the pods of a stopping attempt, but not for one whose node cannot be reached."""
    until = awaited_until(newest, seen.job, attempt_of(seen.run, stage).grace_period_s)
    if seen.now < until:
        return _Plan(status=moves.refine(seen, replace_stage(status, stage), stage), act=Wait(until=until))
    if seen.job is not None and seen.job.failing is None and not seen.job.deleting_since:
        # A pod has failed, and no Job controller has taken notice.
        return _Plan(status=replace_stage(status, stage), act=_stop_job(seen))
    return _Plan(status=moves.end(seen, status, stage), act=Wait())
