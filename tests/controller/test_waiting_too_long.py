"""When somebody is told that a run waits too long: whatever it waits for, once a wait."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.status import AttemptState, Status
from llava_operator.cache.views import PodView
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Wait
from llava_operator.deciding.observation import Obstacle, ObstacleKind
from llava_operator.deciding.occurrences import QUIET
from llava_operator.deciding.violations import Violation
from llava_operator.deciding.waiting import Trouble
from llava_operator.run import stage_of
from tests.controller.makers import NOW, begun, commit, failed, job_end, make_job, make_pod, see, walk
from tests.controller.test_notifications import run_through, told

SECOND = timedelta(seconds=1)
GANG = timedelta(seconds=900)
"""Default of spec.scheduling.gangTimeoutSeconds, which is less than that of waitingSeconds."""
NOT_ALLOWED = (Violation(field="f", value="v", rule="r", fix="x"),)


def in_part(now: datetime) -> tuple[PodView, PodView]:
    """Pods of a gang of which one has found a place."""
    placed = make_pod("pod-0", phase="Running", started=True, scheduled_at=to_time(now))
    return placed, make_pod("pod-1", waiting="Unschedulable: 0/3 nodes")


def give_back(status: Status, spec: dict[str, Any], now: datetime, because: Reason) -> Status:
    """The gang that had places in part is stopped, and the next attempt begins when it is due."""
    if because is Reason.QUEUE_EVICTED:
        seen = see(status, spec=spec, job=make_job(status, suspended=True), now=now)
    else:
        seen = see(status, spec=spec, job=make_job(status), pods=in_part(now - GANG), now=now)
    stopping = commit(seen)
    newest = stage_of(stopping, StageName.TRAIN).newest
    assert newest is not None
    assert (newest.state, newest.because) == (AttemptState.STOPPING, because)
    gone = commit(see(stopping, spec=spec, now=now))
    due = stage_of(gone, StageName.TRAIN).next_attempt_time
    assert due is not None
    return commit(see(gone, spec=spec, now=from_time(due)))


def begin_in_part(status: Status, spec: dict[str, Any]) -> Status:
    """A pod of the newest attempt of training runs, and the other has no place."""
    newest = stage_of(status, StageName.TRAIN).newest
    assert newest is not None
    assert newest.start_time is not None
    begun = from_time(newest.start_time)
    return commit(see(status, spec=spec, job=make_job(status), pods=in_part(begun), now=begun))


def test_waiting_too_long_is_told_when_its_time_has_come_and_once_an_attempt() -> None:
    spec = told(waitingSeconds=600)
    status = commit(see(spec=spec))
    pods = (make_pod(waiting="Unschedulable: 0/3 nodes"),)
    due = NOW + timedelta(seconds=600)
    early = see(status, spec=spec, job=make_job(status), pods=pods, now=due - SECOND)
    status = commit(early)
    assert status.notifications == ()
    until = decide(replace(early, run=replace(early.run, status=status)))
    assert until == Wait(until=due)
    status = commit(replace(early, run=replace(early.run, status=status), now=due))
    [one] = status.notifications
    assert (one.event, one.stage, one.attempt, one.reason) == ("WaitingTooLong", "prepare", 1, "Unschedulable")
    assert one.message.startswith("has waited for more than 600 s: ")
    assert decide(replace(early, run=replace(early.run, status=status), now=due + 9 * QUIET)) == Wait()


def test_waiting_for_what_keeps_the_job_from_being_made_counts() -> None:
    spec = told(waitingSeconds=60)
    status = commit(see(spec=spec))
    obstacle = Obstacle(
        kind=ObstacleKind.BLOCKED, reason=Reason.QUOTA_EXCEEDED, message="exceeded quota", retry_at=NOW + QUIET
    )
    status = commit(see(status, spec=spec, obstacle=obstacle))
    status = commit(see(status, spec=spec, obstacle=obstacle, now=NOW + timedelta(seconds=60)))
    assert [(one.event, one.reason) for one in status.notifications] == [("WaitingTooLong", "QuotaExceeded")]


def test_the_time_between_two_tries_is_no_waiting() -> None:
    spec = told("WaitingTooLong", waitingSeconds=60)
    status = run_through(spec, StageName.TRAIN)
    waiting = commit(see(status, spec=spec, job=make_job(status, failed=job_end()), pods=(failed(exit_code=71),)))
    due = stage_of(waiting, StageName.TRAIN).next_attempt_time
    later = decide(see(waiting, spec=spec, now=NOW + 2 * SECOND))
    assert due is not None
    assert later == Wait(until=from_time(due))


def test_a_gang_that_has_a_part_of_its_pods_waits() -> None:
    spec = told("WaitingTooLong", waitingSeconds=600)
    due = NOW + timedelta(seconds=600)
    status = begin_in_part(begun(StageName.TRAIN), spec)
    early = see(status, spec=spec, job=make_job(status), pods=in_part(NOW), now=due - SECOND)
    status = commit(early)
    assert decide(replace(early, run=replace(early.run, status=status))) == Wait(until=due)
    [one] = commit(replace(early, run=replace(early.run, status=status), now=due)).notifications
    assert (one.stage, one.attempt, one.reason) == ("train", 1, "Unschedulable")
    assert one.message.startswith("has waited for more than 600 s: 1 of 2 pods run; pod pod-1 waits")


def test_a_gang_that_runs_whole_waits_for_nothing() -> None:
    spec = told("WaitingTooLong", waitingSeconds=600)
    status = run_through(spec, StageName.TRAIN)
    pods = (make_pod(phase="Running", started=True), make_pod("pod-1", phase="Running", started=True))
    late = see(status, spec=spec, job=make_job(status), pods=pods, now=NOW + QUIET)
    assert commit(late).notifications == ()


def test_a_gang_of_which_a_pod_has_vanished_waits_for_nothing() -> None:
    """Its Job's end is yet to be seen."""
    spec = told("WaitingTooLong", waitingSeconds=600)
    status = run_through(spec, StageName.TRAIN)
    pods = (make_pod(phase="Running", started=True),)
    late = see(status, spec=spec, job=make_job(status), pods=pods, now=NOW + QUIET)
    assert commit(late).notifications == ()


def test_a_gang_whose_other_pods_cannot_be_made_waits() -> None:
    spec = told("WaitingTooLong", waitingSeconds=600)
    status = begin_in_part(begun(StageName.TRAIN), spec)
    trouble = Trouble("FailedCreate: exceeded quota: pods")
    pods = in_part(NOW)[:1]
    late = see(status, spec=spec, job=make_job(status), pods=pods, trouble=trouble, now=NOW + timedelta(seconds=600))
    [one] = commit(late).notifications
    assert one.message == "has waited for more than 600 s: 1 of 2 pods run"


@pytest.mark.parametrize("because", [Reason.GANG_NOT_SCHEDULED, Reason.QUEUE_EVICTED])
def test_a_gang_that_gives_its_places_back_again_and_again_waits_on(because: Reason) -> None:
    """Each attempt ends before it has waited for too long, and so would the next."""
    spec = told("WaitingTooLong")
    status = begin_in_part(begun(StageName.TRAIN), spec)
    status = give_back(status, spec, NOW + GANG, because)
    assert stage_of(status, StageName.TRAIN).attempt == 2
    due = NOW + timedelta(seconds=1800)
    waiting = see(status, spec=spec, job=make_job(status), now=due - SECOND)
    status = commit(waiting)
    assert decide(replace(waiting, run=replace(waiting.run, status=status))) == Wait(until=due)
    status = commit(replace(waiting, run=replace(waiting.run, status=status), now=due))
    [one] = status.notifications
    assert (one.stage, one.attempt) == ("train", 2)
    # It is the same wait for as long as it lasts.
    status = begin_in_part(status, spec)
    status = give_back(status, spec, due + 9 * QUIET, because)
    assert stage_of(status, StageName.TRAIN).attempt == 3
    assert commit(see(status, spec=spec, job=make_job(status), now=due + 10 * QUIET)).notifications == (one,)


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        ({"because": Reason.WORKER_KILLED}, timedelta(0)),
        ({"because": Reason.GANG_NOT_SCHEDULED}, timedelta(hours=3)),
        ({"because": Reason.QUEUE_EVICTED, "from_step": 4, "to_step": 5}, timedelta(0)),
    ],
)
def test_an_attempt_that_has_trained_or_was_followed_by_a_rest_is_no_wait(
    changes: dict[str, Any], after: timedelta
) -> None:
    spec = told("WaitingTooLong")
    status = begin_in_part(begun(StageName.TRAIN), spec)
    status = give_back(status, spec, NOW + GANG, Reason.GANG_NOT_SCHEDULED)
    stage = stage_of(status, StageName.TRAIN)
    first, second = stage.attempts
    assert second.start_time is not None
    start = from_time(second.start_time) + after
    attempts = (first.model_copy(update=changes), second.model_copy(update={"start_time": to_time(start)}))
    stages = tuple(
        one.model_copy(update={"attempts": attempts}) if one.name is stage.name else one for one in status.stages
    )
    status = status.model_copy(update={"stages": stages})
    seen = see(status, spec=spec, job=make_job(status), now=start + timedelta(seconds=1799))
    status = commit(seen)
    assert status.notifications == ()
    assert decide(replace(seen, run=replace(seen.run, status=status))) == Wait(until=start + timedelta(seconds=1800))


def test_a_second_wait_for_the_same_attempt_is_told_as_well() -> None:
    """What an attempt waits for before it begins is another wait than that for its pods."""
    spec = told("WaitingTooLong")
    status = begun(StageName.TRAIN)
    gone = commit(see(status, spec=spec, job=make_job(status, failed=job_end()), pods=(failed(exit_code=71),)))
    due = stage_of(gone, StageName.TRAIN).next_attempt_time
    assert due is not None
    begins = from_time(due)
    held = commit(see(gone, spec=spec, violations=NOT_ALLOWED, now=begins))
    told_at = begins + timedelta(seconds=1800)
    assert decide(see(held, spec=spec, violations=NOT_ALLOWED, now=begins + SECOND)) == Wait(until=told_at)
    held = commit(see(held, spec=spec, violations=NOT_ALLOWED, now=told_at))
    assert [(one.attempt, one.reason) for one in held.notifications] == [(2, "NotAllowed")]
    # The rule is changed back a day later, and there is no place now.
    later = told_at + timedelta(days=1)
    status = commit(see(held, spec=spec, now=later))
    pods = (make_pod(waiting="Unschedulable: 0/3 nodes"),)
    seen = see(status, spec=spec, job=make_job(status), pods=pods, now=later + timedelta(seconds=1800))
    status = commit(seen)
    assert [(one.attempt, one.reason) for one in status.notifications] == [(2, "NotAllowed"), (2, "Unschedulable")]
    assert len({one.id for one in status.notifications}) == 2
    settled = tuple(one.model_copy(update={"state": "Delivered"}) for one in status.notifications)
    again = replace(seen, run=replace(seen.run, status=status.model_copy(update={"notifications": settled})))
    assert decide(replace(again, now=later + 9 * QUIET)) == Wait()


def test_a_clock_that_is_set_back_mutes_no_wait() -> None:
    spec = told("WaitingTooLong", waitingSeconds=600)
    pods = (make_pod(waiting="Unschedulable: 0/3 nodes"),)
    status = begun(StageName.PREPARE)
    ahead = commit(see(status, spec=spec, job=make_job(status), pods=pods, now=NOW + timedelta(days=1)))
    assert [one.stage for one in ahead.notifications] == ["prepare"]
    status = begun(StageName.TRAIN).model_copy(update={"notifications": ahead.notifications})
    status = commit(see(status, spec=spec, job=make_job(status), pods=pods, now=NOW + timedelta(seconds=600)))
    assert [one.stage for one in status.notifications] == ["prepare", "train"]


def test_receivers_of_the_same_wait_get_the_same_id() -> None:
    patient = told("WaitingTooLong", name="patient", waitingSeconds=1800)["notifications"]
    spec = {"notifications": [*told("WaitingTooLong", waitingSeconds=600)["notifications"], *patient]}
    status = begin_in_part(begun(StageName.TRAIN), spec)
    seen = see(status, spec=spec, job=make_job(status), pods=in_part(NOW), now=NOW + timedelta(seconds=600))
    status = commit(seen)
    status = give_back(status, spec, NOW + GANG, Reason.GANG_NOT_SCHEDULED)
    status = commit(see(status, spec=spec, job=make_job(status), now=NOW + timedelta(seconds=1800)))
    first, second = status.notifications
    assert (first.name, second.name, first.id) == ("team", "patient", second.id)


SHARDED = {"evaluation": {"workers": {"replicas": 2, "gpus": 1}}, "storage": {}}


def test_a_pod_of_evaluation_that_takes_anothers_place_waits_since_it_is_there() -> None:
    """The attempt may have begun long ago, and a pod that is replaced need not wait at all."""
    spec = {**SHARDED, **told("WaitingTooLong", waitingSeconds=600)}
    status = walk(SHARDED, StageName.EVALUATE)
    runs = [make_pod(f"e-{index}-a", index=index, phase="Running", started=True) for index in range(2)]
    status = commit(see(status, spec=spec, job=make_job(status), pods=runs))
    later = NOW + timedelta(hours=3)
    lost = failed("e-1-a", stage=StageName.EVALUATE, index=1, exit_code=70, after_s=3 * 3600)
    # The Job controller takes its time, and may meet a quota then.
    trouble = Trouble("FailedCreate: exceeded quota: pods")
    seen = see(status, spec=spec, job=make_job(status), pods=(runs[0], lost), trouble=trouble, now=later + SECOND)
    assert commit(seen).notifications == ()
    waits = make_pod("e-1-b", index=1, waiting="Unschedulable: 0/3 nodes", made_at=to_time(later + 10 * SECOND))
    seen = see(status, spec=spec, job=make_job(status), pods=(runs[0], lost, waits), now=later + 11 * SECOND)
    status = commit(seen)
    assert status.notifications == ()
    assert stage_of(status, StageName.EVALUATE).reason == ""
    due = later + timedelta(seconds=610)
    [one] = commit(replace(seen, run=replace(seen.run, status=status), now=due)).notifications
    assert (one.stage, one.attempt, one.reason) == ("evaluate", 1, "Unschedulable")
    assert one.message.startswith("has waited for more than 600 s: 1 of 2 pods run; pod e-1-b waits")
