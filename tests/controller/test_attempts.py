"""Attempts: each state at each sight, and what follows on the end of one."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from llava_api.constants import Condition, Phase, StageName
from llava_api.failures import Reason
from llava_api.report import StageFailure
from llava_api.status import ATTEMPTS_KEPT, AttemptSettings, AttemptState, Progress, StageState, Status
from llava_operator.cache.views import JobView, PodView
from llava_operator.clock import from_time
from llava_operator.deciding.attempts import TABLE, UNREACHABLE_S, Sight, read_sight
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit, Remove, Start, Stop, Wait
from llava_operator.deciding.restarts import LAST_DELAY_S, MAX_DISTURBED
from llava_operator.deciding.verdict import WORD_S
from llava_operator.run import attempt_of, current_stage, stage_of
from tests.controller.makers import (
    JOB_UID,
    NOW,
    NOW_TEXT,
    begun,
    commit,
    failed,
    job_end,
    make_job,
    make_pod,
    see,
    succeeded,
)

TRAIN = StageName.TRAIN
GRACE_S = 120
SUSPENDED = {"suspend": True}


def newest(status: Status, stage: StageName = TRAIN) -> Any:
    attempt = stage_of(status, stage).newest
    assert attempt is not None
    return attempt


def running(stage: StageName = TRAIN) -> Status:
    status = begun(stage)
    return commit(see(status, job=make_job(status), pods=pods()))


def pods(**changes: Any) -> tuple[PodView, ...]:
    return tuple(
        make_pod(f"pod-{index}", index=index, phase="Running", started=True, node=f"node-{index}", **changes)
        for index in range(2)
    )


def lose(status: Status, *, at: datetime = NOW, because: str = "preempted", node: str = "node-0") -> Status:
    """An attempt that is ended by others: a pod is disrupted, and then all are gone."""
    gone = make_pod(phase="Running", started=True, deleting=True, disruption=because, node=node)
    job = make_job(status)
    stopping = commit(see(status, job=job, pods=(gone,), now=at))
    return commit(see(stopping, now=at))


def fail(status: Status, *, at: datetime = NOW, step: int | None = None, spec: Any = None, **end: Any) -> Status:
    """An attempt that fails by itself, at a step that it has reported; and its Job with it."""
    if step is not None:
        stage = current_stage(status)
        assert stage is not None
        progress = Progress(stage=stage.name, attempt=stage.attempt, pod_uid="u", step=step, total_steps=100,
                            checkpoint_step=step, last_update_time=NOW_TEXT)  # fmt: skip
        status = status.model_copy(update={"progress": progress})
    end = {"exit_code": 71, **end}
    return commit(see(status, job=make_job(status, failed=job_end()), pods=(failed(**end),), now=at, spec=spec))


def go_on(status: Status, *, spec: Any = None) -> tuple[Status, datetime]:
    """The next attempt, begun when its time has come, with its Job."""
    stage = current_stage(status)
    assert stage is not None
    assert stage.next_attempt_time is not None
    due = from_time(stage.next_attempt_time)
    # Of a long list the oldest make room: their children are removed first.
    status = commit(see(status, now=due, spec=spec, removed=(stage.name, stage.attempt)))
    return commit(see(status, job=make_job(status), pods=pods(), now=due, spec=spec)), due


# --- the table


def test_every_state_knows_what_to_do_at_every_sight() -> None:
    assert set(TABLE) == set(AttemptState) - {AttemptState.GONE}
    for state, moves in TABLE.items():
        assert set(moves) == set(Sight), state


@pytest.mark.parametrize(
    ("changes", "seen_pods", "sight"),
    [
        ({}, (), Sight.WAITING),
        ({}, pods(), Sight.RUNNING),
        ({"suspended": True}, (), Sight.HELD),
        ({"suspended": True}, pods(deleting=True), Sight.HELD),
        ({}, pods(deleting=True), Sight.LOSING),
        ({}, pods(disruption="drained"), Sight.LOSING),
        ({}, (make_pod(phase="Succeeded", deleting=True),), Sight.WAITING),
        ({}, (failed(),), Sight.FAILING),
        ({"failing": job_end()}, pods(deleting=True), Sight.FAILING),
        ({"deleting_since": NOW_TEXT}, pods(deleting=True), Sight.DELETED),
        ({"failed": job_end()}, (), Sight.FAILED),
        ({"complete": True, "deleting_since": NOW_TEXT}, (), Sight.COMPLETE),
    ],
)
def test_sights(changes: dict[str, Any], seen_pods: tuple[PodView, ...], sight: Sight) -> None:
    status = begun(TRAIN)
    assert read_sight(newest(status), make_job(status, **changes), seen_pods) is sight


def test_a_job_that_was_never_seen_is_told_from_one_that_is_no_more() -> None:
    assert read_sight(newest(begun(TRAIN, with_job=False)), None, ()) is Sight.UNMADE
    assert read_sight(newest(begun(TRAIN)), None, ()) is Sight.ABSENT
    another = make_job(begun(TRAIN), uid="another")
    assert read_sight(newest(begun(TRAIN)), another, ()) is Sight.ABSENT


# --- a gang restarts as one


def test_a_failure_of_one_worker_ends_the_attempt_and_the_next_goes_on_from_its_checkpoint() -> None:
    status = fail(running(), step=40)
    stage = stage_of(status, TRAIN)
    assert (status.phase, stage.state, stage.restarts) == (Phase.RUNNING, StageState.RUNNING, 1)
    ended = newest(status)
    assert (ended.state, ended.because, ended.counts, ended.to_step) == (AttemptState.GONE, "WorkerKilled", True, 40)
    assert "attempt 2 begins at" in stage.message
    assert status.failure is not None, "what happened is to be seen until the next attempt"
    due = from_time(stage.next_attempt_time or "")
    assert decide(see(status)) == Wait(until=due)
    again = commit(see(status, now=due))
    assert (newest(again).number, newest(again).state, newest(again).from_step) == (2, AttemptState.STARTING, 40)
    assert again.failure is None
    assert decide(see(again, now=due)) == Start(stage=TRAIN, attempt=2)


def test_no_attempt_begins_before_the_pods_of_the_one_before_are_gone() -> None:
    status = running()
    failing = commit(see(status, job=make_job(status, failing=job_end()), pods=(failed(), *pods(deleting=True))))
    assert newest(failing).state is AttemptState.STOPPING
    job = make_job(failing, failing=job_end())
    late = NOW + timedelta(seconds=GRACE_S + UNREACHABLE_S)
    assert decide(see(failing, job=job, pods=pods(deleting=True))) == Wait(until=late)
    # A node that cannot be reached: such a Job never becomes Failed by itself.
    assert newest(commit(see(failing, job=job, pods=pods(deleting=True), now=late))).state is AttemptState.GONE


def test_what_a_pod_said_first_is_kept_when_better_is_known_later() -> None:
    status = running()
    noted = commit(see(status, job=make_job(status, failing=job_end()), pods=(failed("b", exit_code=72, index=1),)))
    assert newest(noted).because == Reason.RENDEZVOUS_FAILED
    said = StageFailure(reason=Reason.LOSS_NOT_FINITE, message="loss is nan")
    seen_pods = (failed("b", exit_code=72, index=1), failed("a", exit_code=67, failure=said, index=0))
    refined = commit(see(noted, job=make_job(noted, failing=job_end()), pods=seen_pods))
    assert newest(refined).because == Reason.LOSS_NOT_FINITE


@pytest.mark.parametrize("reason", [Reason.LOSS_NOT_FINITE, Reason.INVALID_DATA])
def test_what_another_attempt_cannot_mend_fails_at_once(reason: Reason) -> None:
    said = StageFailure(reason=reason, message="no")
    status = fail(running(), failure=said)
    assert (status.phase, status.failure and status.failure.reason) == (Phase.FAILED, reason)


def test_restarts_are_counted_and_come_to_an_end() -> None:
    status = running()
    for step in (10, 20, 30):
        status, _ = go_on(fail(status, step=step))
    status = fail(status, step=40)
    assert (stage_of(status, TRAIN).restarts, status.phase) == (4, Phase.FAILED)
    assert status.failure is not None
    assert status.failure.reason == Reason.WORKER_KILLED


def test_three_failures_at_no_later_step_are_no_progress() -> None:
    status = running()
    for _ in range(2):
        status, _ = go_on(fail(status, step=10))
    status = fail(status, step=10)
    assert status.failure is not None
    assert status.failure.reason == Reason.NO_PROGRESS
    assert "3 attempts of train ended at no later step than 10" in status.failure.message
    assert "WorkerKilled" in status.failure.message


def test_other_stages_are_tried_again_twice() -> None:
    status = begun(StageName.MERGE)
    for _ in range(2):
        status, _ = go_on(fail(status, exit_code=70, stage=StageName.MERGE))
    assert fail(status, exit_code=70, stage=StageName.MERGE).phase is Phase.FAILED


# --- by no fault of the run


def test_disruptions_do_not_count_and_wait_longer_each_time_without_a_step() -> None:
    status, at = running(), NOW
    waits = []
    for _ in range(MAX_DISTURBED + 2):
        status = lose(status, at=at)
        stage = stage_of(status, TRAIN)
        waits.append((from_time(stage.next_attempt_time or "") - at).total_seconds())
        status, at = go_on(status)
    assert stage_of(status, TRAIN).restarts == 0
    assert 5 <= waits[0] <= 8
    assert all(later > earlier for earlier, later in pairwise(waits[:6]))
    assert waits[MAX_DISTURBED] > LAST_DELAY_S * 1.5


def test_ten_disruptions_in_a_row_are_said() -> None:
    status, at = running(), NOW
    for _ in range(MAX_DISTURBED - 1):
        status, at = go_on(lose(status, at=at))
    before = next(c for c in status.conditions if c.type is Condition.DISTURBED)
    disturbed = lose(status, at=at)
    assert "again and again by no fault of the run" in stage_of(disturbed, TRAIN).message
    held = next(c for c in disturbed.conditions if c.type is Condition.DISTURBED)
    assert (before.status, held.status, held.reason) == ("False", "True", Reason.POD_DISRUPTED)
    # The next attempt alone changes nothing; a step does.
    again, _ = go_on(disturbed)
    assert next(c for c in again.conditions if c.type is Condition.DISTURBED).status == "True"
    counted = fail(again, step=3)
    assert next(c for c in counted.conditions if c.type is Condition.DISTURBED).status == "False"


@pytest.mark.parametrize("end", ["failing", "failed"])
def test_a_pod_that_was_disrupted_and_is_not_heard_of_yet_is_waited_for_a_moment(end: str) -> None:
    """Its Job says only that it was, and comes by another watch."""
    status = running()
    told = job_end(message="Pod team/pod-0 has condition DisruptionTarget matching FailJob rule at index 0")
    job = make_job(status, **{end: told})
    due = NOW + timedelta(seconds=WORD_S)
    others = pods(deleting=True)[1:]
    assert decide(see(status, job=job, pods=others)) == Wait(until=due)
    gone = make_pod(deleting=True, disruption="PreemptionByScheduler: preempting to accommodate a higher priority pod")
    heard = commit(see(status, job=job, pods=(gone, *others)))
    assert (newest(heard).because, newest(heard).pod) == (Reason.PREEMPTED, "pod-0")
    assert newest(commit(see(status, job=job, pods=others, now=due))).because == Reason.POD_DISRUPTED
    # Another clock than the operator's.
    for at in (NOW - timedelta(minutes=5), NOW + timedelta(minutes=5)):
        assert newest(commit(see(status, job=job, pods=others, now=at))).because == Reason.POD_DISRUPTED


def test_a_pod_that_is_taken_away_has_the_others_stopped() -> None:
    """Its node may be lost, and then nobody else would: they hold their GPUs for a gang that is none any more."""
    status = running()
    lost = (pods()[0], make_pod("pod-1", phase="Running", started=True, deleting=True, disruption="node is lost"))
    stopping = commit(see(status, job=make_job(status), pods=lost))
    assert (newest(stopping).state, newest(stopping).because) == (AttemptState.STOPPING, Reason.POD_DISRUPTED)
    assert decide(see(stopping, job=make_job(stopping), pods=lost)) == Stop(job="invoices-train-1", uid=JOB_UID)
    job = make_job(stopping, deleting_since=NOW_TEXT)
    assert isinstance(decide(see(stopping, job=job, pods=lost)), Wait)


def test_the_first_deletion_by_hand_costs_nothing_and_the_second_counts() -> None:
    status, _ = go_on(commit(see(running())))
    assert [(one.because, one.counts) for one in stage_of(status, TRAIN).attempts[:-1]] == [("JobDeleted", False)]
    stopping = commit(see(status, job=make_job(status), pods=pods(deleting=True)))
    after = commit(see(stopping))
    assert (newest(after).because, newest(after).counts, stage_of(after, TRAIN).restarts) == ("PodDeleted", True, 1)


def test_the_first_deletion_after_a_retry_costs_nothing_again() -> None:
    """Whether those before it are still told of or not."""
    status, at = go_on(commit(see(running())))
    for _ in range(ATTEMPTS_KEPT):
        status, at = go_on(lose(status, at=at))
    assert stage_of(status, TRAIN).dropped_attempts == {"JobDeleted": 1, "PodDisrupted": 1}
    second = commit(see(status, now=at))
    assert (newest(second).because, newest(second).counts) == ("JobDeleted", True)
    status, at = go_on(second)
    retry = {"retry": 1}
    lost = fail(status, at=at, failure=StageFailure(reason=Reason.LOSS_NOT_FINITE, message="loss is nan"))
    again = commit(see(lost, now=at, spec=retry, removed=(TRAIN, 99)))
    again = commit(see(again, job=make_job(again), pods=pods(), now=at, spec=retry))
    third = commit(see(again, now=at, spec=retry))
    assert (newest(third).because, newest(third).counts, stage_of(third, TRAIN).restarts) == ("JobDeleted", False, 0)
    status, at = go_on(third, spec=retry)
    fourth = commit(see(status, now=at, spec=retry))
    assert (newest(fourth).counts, stage_of(fourth, TRAIN).restarts) == (True, 1)


def test_a_node_that_failed_the_gang_twice_is_avoided() -> None:
    status = running()
    for _ in range(2):
        status, _ = go_on(fail(status, step=None, exit_code=71, node="bad"), spec=None)
        status = commit(see(status, job=make_job(status), pods=pods())) if newest(status).job_uid is None else status
    assert newest(status).settings.avoided_nodes == ("bad",)


# --- a GPU's memory


def out_of_memory(status: Status, step: int | None, spec: Any) -> Status:
    said = StageFailure(reason=Reason.OUT_OF_DEVICE_MEMORY, message="CUDA out of memory")
    return fail(status, step=step, failure=said, exit_code=69, spec=spec)


def test_what_does_not_fit_into_a_gpu_is_halved_and_the_global_batch_stays() -> None:
    spec = {"training": {"batch": {"perDevice": 4, "global": 16}}, "workers": {"replicas": 2, "gpus": 1}}
    status = begun(TRAIN)
    settings = AttemptSettings(replicas=2, gpus=1, per_device_batch=4, accumulation=2)
    status = with_settings(status, settings)
    status, _ = go_on(out_of_memory(status, 0, spec), spec=spec)
    assert (newest(status).settings.per_device_batch, newest(status).settings.accumulation) == (2, 4)
    assert stage_of(status, TRAIN).restarts == 0
    run = see(status, spec=spec).run
    frozen = attempt_of(run, stage_of(status, TRAIN)).spec.training.batch
    assert (frozen.per_device, frozen.global_) == (2, 16)
    # It stays so after a failure of another kind, and at 1 there is nothing left to halve.
    status, _ = go_on(fail(status, step=9, spec=spec), spec=spec)
    assert newest(status).settings.per_device_batch == 2
    status, _ = go_on(out_of_memory(status, 9, spec), spec=spec)
    assert newest(status).settings.per_device_batch == 1
    assert out_of_memory(status, 9, spec).phase is Phase.FAILED


def test_memory_that_runs_out_later_is_not_the_batch() -> None:
    spec = {"training": {"batch": {"perDevice": 4, "global": 16}}, "workers": {"replicas": 2, "gpus": 1}}
    status = with_settings(begun(TRAIN), AttemptSettings(replicas=2, gpus=1, per_device_batch=4, accumulation=2))
    assert out_of_memory(status, 50, spec).phase is Phase.FAILED


def with_settings(status: Status, settings: AttemptSettings) -> Status:
    stage = stage_of(status, TRAIN)
    attempt = newest(status).model_copy(update={"settings": settings})
    stages = tuple(
        stage.model_copy(update={"attempts": (attempt,)}) if one.name is TRAIN else one for one in status.stages
    )
    return status.model_copy(update={"stages": stages})


# --- suspend


def test_suspend_stops_the_attempt_and_false_goes_on_from_its_checkpoint() -> None:
    status = running()
    stopping = commit(see(status, job=make_job(status), pods=pods(), spec=SUSPENDED))
    assert (newest(stopping).state, newest(stopping).because) == (AttemptState.STOPPING, Reason.SUSPENDED)
    assert decide(see(stopping, job=make_job(stopping), pods=pods(), spec=SUSPENDED)) == Stop(
        job="invoices-train-1", uid=JOB_UID
    )
    held = commit(see(stopping, spec=SUSPENDED))
    assert held.phase is Phase.SUSPENDED
    assert next(c for c in held.conditions if c.type is Condition.SUSPENDED).status == "True"
    assert (newest(held).counts, stage_of(held, TRAIN).restarts, held.failure) == (False, 0, None)
    assert decide(see(held, spec=SUSPENDED)) == Wait()
    later = NOW + timedelta(hours=1)
    again = commit(see(held, now=later))
    assert (again.phase, newest(again).number) == (Phase.RUNNING, 2)
    assert again.accounting is not None
    assert again.accounting.suspended_seconds == 3600


def test_a_run_may_be_made_suspended() -> None:
    status = commit(see(spec=SUSPENDED))
    assert (status.phase, status.stages[0].attempts) == (Phase.SUSPENDED, ())
    assert decide(see(status, spec=SUSPENDED)) == Wait()
    assert commit(see(status)).phase is Phase.PENDING


def test_an_intent_that_was_not_acted_on_is_taken_back() -> None:
    held = commit(see(begun(TRAIN, with_job=False), spec=SUSPENDED))
    assert (held.phase, newest(held).state) == (Phase.SUSPENDED, AttemptState.GONE)


def test_suspended_between_two_attempts_none_begins() -> None:
    status = fail(running(), step=3)
    held = commit(see(status, spec=SUSPENDED))
    assert held.phase is Phase.SUSPENDED
    assert newest(commit(see(held))).number == 2, "at once, since somebody has asked for it"


def test_who_ends_well_before_being_stopped_has_ended_well() -> None:
    status = running()
    stopping = commit(see(status, job=make_job(status), pods=pods(), spec=SUSPENDED))
    job = make_job(stopping, complete=True)
    after = commit(see(stopping, job=job, pods=(succeeded(TRAIN),), spec=SUSPENDED))
    assert stage_of(after, TRAIN).state is StageState.SUCCEEDED
    assert (after.phase, stage_of(after, StageName.MERGE).attempts) == (Phase.SUSPENDED, ())


def test_size_may_change_while_suspended() -> None:
    status = running()
    held = commit(see(commit(see(status, job=make_job(status), pods=pods(), spec=SUSPENDED)), spec=SUSPENDED))
    resized = {"workers": {"replicas": 1, "gpus": 0}}
    again = commit(see(held, spec=resized))
    assert [one.settings.replicas for one in stage_of(again, TRAIN).attempts] == [2, 1]


def test_what_an_attempt_runs_with_stays_whatever_becomes_of_the_spec() -> None:
    status = running()
    frozen = attempt_of(see(status, spec={"workers": {"replicas": 7, "gpus": 3}}).run, stage_of(status, TRAIN))
    assert (frozen.num_pods, frozen.num_gpus) == (2, 0)


# --- deadline, retry


def test_a_deadline_stops_and_fails_the_run_without_counting_what_was_suspended() -> None:
    spec = {"activeDeadlineSeconds": 60}
    status = running()
    due = NOW + timedelta(seconds=60)
    assert decide(see(status, job=make_job(status), pods=pods(), spec=spec)) == Wait(until=due)
    stopping = commit(see(status, job=make_job(status), pods=pods(), spec=spec, now=due))
    assert newest(stopping).because == Reason.DEADLINE_EXCEEDED
    after = commit(see(stopping, spec=spec, now=due))
    assert (after.phase, after.failure and after.failure.reason) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
    suspended = commit(see(status, job=make_job(status), pods=pods(), spec={**spec, **SUSPENDED}))
    held = commit(see(suspended, spec={**spec, **SUSPENDED}))
    later = NOW + timedelta(hours=1)
    assert commit(see(held, spec=spec, now=later)).phase is Phase.RUNNING


def test_retry_reopens_a_failed_run_at_its_failed_stage_with_every_try_left() -> None:
    said = StageFailure(reason=Reason.LOSS_NOT_FINITE, message="loss is nan")
    status = fail(running(), failure=said, step=7)
    assert decide(see(status)) == Wait()
    again = commit(see(status, spec={"retry": 1}))
    stage = stage_of(again, TRAIN)
    assert (again.phase, again.retry, again.failure, again.completion_time) == (Phase.RUNNING, 1, None, None)
    assert (stage.state, stage.attempt, stage.restarts) == (StageState.RUNNING, 2, 0)
    assert stage_of(again, StageName.PREPARE).state is StageState.SUCCEEDED


def test_retry_of_a_run_that_has_not_failed_is_not_kept_for_later() -> None:
    status = running()
    noted = commit(see(status, job=make_job(status), pods=pods(), spec={"retry": 1}))
    assert (noted.retry, newest(noted).number) == (1, 1)
    said = StageFailure(reason=Reason.LOSS_NOT_FINITE, message="loss is nan")
    assert fail(noted, failure=said, spec={"retry": 1}).phase is Phase.FAILED


# --- a queue


QUEUED = {"scheduling": {"queueName": "gpus"}}


def test_a_queue_holds_an_attempt_back_and_lets_it_go() -> None:
    status = begun(TRAIN)
    queued = commit(see(status, job=make_job(status, suspended=True), spec=QUEUED))
    assert newest(queued).state is AttemptState.QUEUED
    assert "waits in the queue" in stage_of(queued, TRAIN).message
    admitted = commit(see(queued, job=make_job(queued), spec=QUEUED))
    assert (newest(admitted).state, newest(admitted).admitted_time) == (AttemptState.STARTING, NOW_TEXT)


def test_a_started_job_that_is_suspended_again_ends_the_attempt() -> None:
    status = running()
    evicted = commit(see(status, job=make_job(status, suspended=True), pods=pods(deleting=True)))
    assert (newest(evicted).state, newest(evicted).because) == (AttemptState.STOPPING, Reason.QUEUE_EVICTED)
    assert isinstance(decide(see(evicted, job=make_job(evicted, suspended=True))), Stop)
    after = commit(see(evicted))
    assert (newest(after).counts, stage_of(after, TRAIN).restarts) == (False, 0)


# --- the list is bounded


def test_the_list_of_attempts_is_bounded_and_what_was_dropped_is_counted() -> None:
    status, at = running(), NOW
    for _ in range(ATTEMPTS_KEPT + 3):
        status, at = go_on(lose(status, at=at))
    stage = stage_of(status, TRAIN)
    assert [one.number for one in stage.attempts] == list(range(5, 5 + ATTEMPTS_KEPT))
    assert stage.dropped_attempts == {"PodDisrupted": 4}
    assert status.accounting is not None
    assert status.accounting.restarts_by_reason == {"PodDisrupted": ATTEMPTS_KEPT + 3}


def test_children_of_what_is_dropped_are_removed_first() -> None:
    status, at = running(), NOW
    for _ in range(ATTEMPTS_KEPT - 1):
        status, at = go_on(lose(status, at=at))
    lost = lose(status, at=at)
    due = from_time(stage_of(lost, TRAIN).next_attempt_time or "")
    assert isinstance(decide(see(lost, now=due - timedelta(seconds=1))), Wait)
    for removed in (None, (StageName.PREPARE, 5), (TRAIN, 0)):
        assert decide(see(lost, now=due, removed=removed)) == Remove(stage=TRAIN, attempt=1)
    begun_next = commit(see(lost, now=due, removed=(TRAIN, 1)))
    assert [one.number for one in stage_of(begun_next, TRAIN).attempts] == list(range(2, ATTEMPTS_KEPT + 2))


@pytest.mark.parametrize("defaulted", [False, True])
def test_a_status_of_the_operator_before_is_read_and_its_job_goes_on(defaulted: bool) -> None:
    """It knew one attempt a stage, in the stage itself, and froze nothing; today's CRD adds that it has none."""
    status = running()
    old = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    for stage in old["stages"]:
        stage.pop("attempts", None)
        if defaulted:
            stage["attempts"] = []
        if stage["attempt"]:
            stage |= {"job": f"invoices-{stage['name']}-1", "jobUid": JOB_UID}
    read = Status.model_validate(old)
    assert (newest(read).state, newest(read).job_uid, newest(read).settings) == (
        AttemptState.STARTING, JOB_UID, AttemptSettings(),
    )  # fmt: skip
    assert newest(read, StageName.PREPARE).state is AttemptState.GONE
    assert isinstance(decide(see(read, job=make_job(read), pods=pods())), Commit)
    assert attempt_of(see(read).run, stage_of(read, TRAIN)).num_pods == 2


def test_progress_tells_where_an_attempt_ended() -> None:
    status = running()
    progress = Progress(stage=TRAIN, attempt=1, pod_uid="u", step=33, total_steps=100, last_update_time=NOW_TEXT)
    job: JobView = make_job(status, failed=job_end())
    ended = commit(see(status, job=job, pods=(failed(exit_code=71),), progress=progress))
    assert newest(ended).to_step == 33


# --- what was found by reading it once more


def test_nothing_is_looked_at_again_for_a_deadline_that_has_passed() -> None:
    """A pass that sets its own alarm to an instant in the past would follow on itself without end."""
    spec = {"activeDeadlineSeconds": 60}
    status, late = running(), NOW + timedelta(seconds=100)
    stopping = commit(see(status, job=make_job(status), pods=pods(), spec=spec, now=late))
    job = make_job(stopping, deleting_since="2026-11-01T12:01:40Z")
    decision = decide(see(stopping, job=job, pods=pods(deleting=True), spec=spec, now=late))
    assert isinstance(decision, Wait)
    assert decision.until is not None
    assert decision.until > late
    asleep = {**spec, **SUSPENDED}
    stopping = commit(see(status, job=make_job(status), pods=pods(), spec=SUSPENDED, now=late))
    held = commit(see(stopping, spec=SUSPENDED, now=late))
    assert decide(see(held, spec=asleep, now=late + timedelta(days=1))) == Wait()


def test_a_message_that_is_too_long_for_a_status_is_cut() -> None:
    status = running()
    said = StageFailure(reason=Reason.WORKER_KILLED, message="x" * 4096, step=5)
    for _ in range(2):
        status, _ = go_on(fail(status, failure=said))
    status = fail(status, failure=said)
    assert status.failure is not None
    assert status.failure.reason == Reason.NO_PROGRESS
    Status.model_validate(status.model_dump(by_alias=True))


def test_steps_that_only_the_failure_tells_of_are_progress() -> None:
    """Reporting never stops a run: one whose reports nobody takes still says in the end how far it was."""
    status, spec = running(), {"training": {"batch": {"perDevice": 1, "global": 2}, "maxRestarts": 100}}
    for step in (1000, 2000, 3000, 4000):
        said = StageFailure(reason=Reason.WORKER_KILLED, message="killed", step=step, attempt_steps=1000)
        status, _ = go_on(fail(status, failure=said, spec=spec), spec=spec)
    assert [one.to_step for one in stage_of(status, TRAIN).attempts[:-1]] == [1000, 2000, 3000, 4000]
    assert stage_of(status, TRAIN).fruitless == 1


def test_of_an_attempt_that_nothing_is_known_of_nobody_says_that_it_came_no_further() -> None:
    status, spec = running(), {"training": {"batch": {"perDevice": 1, "global": 2}, "maxRestarts": 100}}
    for _ in range(4):
        status, _ = go_on(fail(status, spec=spec), spec=spec)
    assert (stage_of(status, TRAIN).fruitless, stage_of(status, TRAIN).restarts) == (0, 4)


def test_memory_that_runs_out_late_is_not_halved_though_nothing_was_reported() -> None:
    spec = {"training": {"batch": {"perDevice": 4, "global": 16}}, "workers": {"replicas": 2, "gpus": 1}}
    status = with_settings(begun(TRAIN), AttemptSettings(replicas=2, gpus=1, per_device_batch=4, accumulation=2))
    said = StageFailure(reason=Reason.OUT_OF_DEVICE_MEMORY, message="CUDA out of memory", step=5000, attempt_steps=5000)
    assert fail(status, failure=said, exit_code=69, spec=spec).phase is Phase.FAILED


def test_a_batch_that_is_asked_for_anew_is_what_runs() -> None:
    """Halving is remembered for what was asked for then, and for nothing else."""
    two, four = ({"training": {"batch": {"perDevice": size, "global": 16}}} for size in (2, 4))
    status = commit(see(fail(begun(TRAIN), step=5, spec=two), spec={**two, **SUSPENDED}))
    status = commit(see(status, spec=two))
    assert newest(status).settings.per_device_batch == 2
    held = commit(see(status, spec={**two, **SUSPENDED}))
    again = commit(see(held, spec=four))
    assert (newest(again).settings.per_device_batch, newest(again).settings.accumulation) == (4, 2)


def test_a_resize_that_nobody_saw_the_suspension_of_is_carried_out() -> None:
    status = running()
    resized = {"workers": {"replicas": 1, "gpus": 0}}
    stopping = commit(see(status, job=make_job(status), pods=pods(), spec=resized))
    assert (newest(stopping).state, newest(stopping).because) == (AttemptState.STOPPING, Reason.SUSPENDED)
    again = commit(see(stopping, spec=resized))
    assert (newest(again).number, newest(again).settings.replicas) == (2, 1)


def test_pods_that_outlive_their_job_are_waited_for() -> None:
    """kubectl deletes in the background: the Job goes at once, and its pods have their grace period."""
    status = running()
    left = pods(deleting=True)
    stopping = commit(see(status, pods=left))
    assert (newest(stopping).state, newest(stopping).because) == (AttemptState.STOPPING, Reason.JOB_DELETED)
    late = NOW + timedelta(seconds=GRACE_S + UNREACHABLE_S)
    assert decide(see(stopping, pods=left)) == Wait(until=late)
    gone = commit(see(stopping))
    assert newest(gone).state is AttemptState.GONE
    assert newest(commit(see(stopping, pods=left, now=late))).state is AttemptState.GONE


def test_a_queue_that_evicts_is_not_taken_for_pods_that_fail() -> None:
    status = running()
    seen_pods = (failed("a", exit_code=75, index=0), failed("b", exit_code=75, index=1))
    evicted = commit(see(status, job=make_job(status, suspended=True), pods=seen_pods))
    assert newest(evicted).because == Reason.QUEUE_EVICTED


def test_time_between_a_failure_and_its_retry_is_no_active_time() -> None:
    said = StageFailure(reason=Reason.LOSS_NOT_FINITE, message="loss is nan")
    spec = {"activeDeadlineSeconds": 3600}
    status = fail(running(), failure=said, spec=spec)
    later = NOW + timedelta(days=3)
    again = commit(see(status, spec={**spec, "retry": 1}, now=later))
    assert (again.phase, newest(again).number) == (Phase.RUNNING, 2)
    assert again.accounting is not None
    assert again.accounting.idle_seconds == 3 * 86400


def test_who_moves_a_run_does_not_make_a_node_a_bad_one() -> None:
    status = running()
    for _ in range(3):
        status, _ = go_on(lose(status, because="EvictionByEvictionAPI: drained", node="busy"))
    assert newest(status).settings.avoided_nodes == ()


def test_an_attempt_says_itself_where_it_went_on_from() -> None:
    """A checkpoint may have been whole before anybody was told of it."""
    status, _ = go_on(fail(running(), step=5))
    assert newest(status).from_step == 5
    progress = Progress(stage=TRAIN, attempt=2, pod_uid="u", step=11, total_steps=100, resumed_step=10,
                        last_update_time=NOW_TEXT)  # fmt: skip
    told = commit(see(status, job=make_job(status), pods=pods(), progress=progress))
    assert (newest(told).from_step, newest(told).number) == (10, 2)
