"""What is owed to whom, and from which write on: every event, once, also where it comes again and again."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from llava_api.constants import NotificationEvent, Phase, StageName
from llava_api.failures import Reason
from llava_api.names import notification_job_name
from llava_api.status import NOTIFICATIONS_KEPT, NotificationState, NotificationStatus, Status
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Delete, Wait
from llava_operator.deciding.notifications import GIVEN_UP_AFTER
from llava_operator.deciding.observation import DeliverySight, Obstacle, ObstacleKind
from llava_operator.deciding.occurrences import OCCURRENCES, QUIET, count_restarts
from llava_operator.deciding.status import without_texts
from llava_operator.run import stage_of
from tests.controller.makers import KEY, NOW, ONCE, STAGES, begun, commit, failed, job_end, make_job, make_pod, see
from tests.controller.makers import succeeded as ended_well

EVERY = [str(event) for event in NotificationEvent]
SECOND = timedelta(seconds=1)


def told(*events: str, name: str = "team", **changes: Any) -> dict[str, Any]:
    """A spec with one receiver."""
    receiver = {"name": name, "events": list(events) or EVERY, "webhook": {"url": "https://h.example"}, **changes}
    return {"notifications": [receiver]}


def events_of(status: Status) -> list[tuple[str, str]]:
    return [(one.name, one.event) for one in status.notifications]


def run_through(spec: dict[str, Any], until: StageName | None = None) -> Status:
    """A run whose stages succeed, or until one of them runs."""
    status = commit(see(spec=spec))
    for name in STAGES:
        if name is until:
            job = make_job(status)
            return commit(see(status, spec=spec, job=job, pods=(make_pod(phase="Running", started=True),) * 2))
        status = commit(see(status, spec=spec, job=make_job(status, complete=True), pods=(ended_well(name),)))
    return status


def break_off(status: Status, spec: dict[str, Any], now: datetime, **failure: Any) -> Status:
    """The attempt of training fails, and the next one begins when it is due."""
    pods = (failed(exit_code=71, **failure),)
    waiting = commit(see(status, spec=spec, job=make_job(status, failed=job_end()), pods=pods, now=now))
    due = stage_of(waiting, StageName.TRAIN).next_attempt_time
    assert due is not None
    return commit(see(waiting, spec=spec, now=from_time(due)))


def test_every_event_has_a_row() -> None:
    assert set(OCCURRENCES) == set(NotificationEvent)


def test_success_is_owed_with_the_write_that_says_so() -> None:
    status = run_through(told())
    [one] = status.notifications
    assert status.phase is Phase.SUCCEEDED
    assert (one.event, one.state, one.reason) == ("Succeeded", NotificationState.PENDING, "Succeeded")
    assert one.message == "every stage has succeeded; score 0.02→0.97"
    assert len(one.id) == 32


def test_an_event_that_is_asked_for_twice_is_owed_once() -> None:
    """The status is a map: twice, the API server would refuse the write that says that the run has ended."""
    assert events_of(run_through(told("Succeeded", "Succeeded"))) == [("team", "Succeeded")]


def test_nothing_is_owed_to_nobody() -> None:
    assert run_through({}).notifications == ()
    assert run_through(told("Failed", "Suspended")).notifications == ()


def test_receivers_of_the_same_event_get_the_same_id_and_jobs_of_their_own() -> None:
    spec = {"notifications": [told(name="a")["notifications"][0], told(name="b")["notifications"][0]]}
    first, second = run_through(spec).notifications
    assert first.id == second.id
    assert (first.name, second.name) == ("a", "b")
    names = {notification_job_name("run", one.id, one.name) for one in (first, second)}
    assert len(names) == 2
    assert all(len(name) == len("run-notify-") + 10 for name in names)


def test_failure_is_owed_once_and_again_after_a_retry() -> None:
    spec = {**told(), **ONCE}
    status = run_through(spec, StageName.TRAIN)
    job = make_job(status, failed=job_end())
    lost = commit(see(status, spec=spec, job=job, pods=(failed(exit_code=67),)))
    [one] = lost.notifications
    assert (one.event, one.stage, one.attempt, one.reason) == ("Failed", "train", 1, "LossNotFinite")
    assert isinstance(decide(see(lost, spec=spec)), Wait)
    later = NOW + timedelta(minutes=1)
    again = commit(see(lost, spec={**spec, "retry": 1}, now=later))
    job = make_job(again, failed=job_end())
    lost = commit(see(again, spec={**spec, "retry": 1}, job=job, pods=(failed(exit_code=67),), now=later))
    assert [event for _, event in events_of(lost)] == ["Failed", "Restarted", "Failed"]
    assert len({one.id for one in lost.notifications}) == 3


def test_a_run_that_is_not_allowed_tells_so() -> None:
    obstacle = Obstacle(kind=ObstacleKind.REJECTED, reason=Reason.REJECTED, message="no", retry_at=NOW)
    spec = told()
    status = commit(see(commit(see(spec=spec)), spec=spec, obstacle=obstacle))
    assert (status.phase, events_of(status)) == (Phase.FAILED, [("team", "Failed")])


def fall_asleep(status: Status, spec: dict[str, Any], now: datetime = NOW) -> Status:
    """What runs is stopped, and the run suspended."""
    asked = {**spec, "suspend": True}
    stopping = commit(see(status, spec=asked, job=make_job(status), now=now))
    return commit(see(stopping, spec=asked, now=now))


def test_suspension_is_owed_once_it_is_reached_and_resuming_is_no_restart() -> None:
    spec = told()
    status = run_through(spec, StageName.TRAIN)
    asked = {**spec, "suspend": True}
    stopping = commit(see(status, spec=asked, job=make_job(status)))
    assert stopping.notifications == ()
    asleep = commit(see(stopping, spec=asked))
    assert (asleep.phase, events_of(asleep)) == (Phase.SUSPENDED, [("team", "Suspended")])
    awake = commit(see(asleep, spec=spec, now=NOW + timedelta(minutes=1)))
    assert stage_of(awake, StageName.TRAIN).attempt == 2
    assert events_of(awake) == [("team", "Suspended")]
    asleep = fall_asleep(awake, spec, NOW + QUIET)
    assert [event for _, event in events_of(asleep)] == ["Suspended", "Suspended"]
    assert len({one.id for one in asleep.notifications}) == 2


def test_one_who_suspends_and_resumes_again_and_again_is_told_of_once_an_hour() -> None:
    spec = told("Suspended")
    asleep = fall_asleep(run_through(spec, StageName.TRAIN), spec)
    for minutes in (10, 20, 30):
        now = NOW + timedelta(minutes=minutes)
        awake = commit(see(asleep, spec=spec, now=now))
        asleep = fall_asleep(awake, spec, now)
        assert events_of(asleep) == [("team", "Suspended")]
    asked, quiet_until = {**spec, "suspend": True}, NOW + QUIET
    # It is suspended still when that may be told again.
    assert decide(see(asleep, spec=asked, now=quiet_until - SECOND)) == Wait(until=quiet_until)
    asleep = commit(see(asleep, spec=asked, now=quiet_until))
    assert [one.time for one in asleep.notifications] == [to_time(NOW), to_time(quiet_until)]
    assert decide(see(asleep, spec=asked, now=quiet_until + 3 * QUIET)) == Wait()
    # One that is over by then is not told of.
    awake = commit(see(asleep, spec=spec, now=quiet_until + SECOND))
    awake = commit(see(fall_asleep(awake, spec, quiet_until + 2 * SECOND), spec=spec, now=quiet_until + 3 * SECOND))
    job, pods = make_job(awake), (make_pod(phase="Running", started=True),) * 2
    assert len(commit(see(awake, spec=spec, job=job, pods=pods, now=quiet_until + QUIET)).notifications) == 2


def test_a_suspended_run_tells_of_all_its_restarts() -> None:
    spec = told("Suspended")
    status = break_off(run_through(spec, StageName.TRAIN), spec, NOW)
    for number, now in ((1, NOW + QUIET), (2, NOW + 3 * QUIET)):
        asleep = fall_asleep(status, spec, now)
        assert [one.restarts for one in asleep.notifications] == [1] * number
        status = commit(see(asleep, spec=spec, now=now + QUIET))
        assert count_restarts(status) == 1
    status = break_off(status, spec, NOW + 5 * QUIET)
    assert count_restarts(status) == 2


@pytest.mark.parametrize("event", ["Suspended", "Restarted"])
def test_a_clock_that_is_set_back_mutes_nothing(event: str) -> None:
    spec = told(event)
    status = run_through(spec, StageName.TRAIN)
    # It was told a day ahead of today.
    ahead = owed(event=event, time=to_time(NOW + timedelta(days=1)), state="Delivered")
    status = status.model_copy(update={"notifications": (ahead,)})
    happened = fall_asleep(status, spec) if event == "Suspended" else break_off(status, spec, NOW)
    assert [one.event for one in happened.notifications] == [event, event]


def test_restarts_come_once_an_hour_and_the_next_tells_of_those_between() -> None:
    spec = told("Restarted", "Failed")
    status = run_through(spec, StageName.TRAIN)
    status = break_off(status, spec, NOW)
    [one] = status.notifications
    assert (one.event, one.stage, one.attempt, one.restarts) == ("Restarted", "train", 2, 1)
    assert one.reason == "WorkerKilled"
    assert one.message.startswith("train runs as attempt 2; restart 1 of the run: attempt 1 ended: ")
    status = break_off(status, spec, NOW + timedelta(minutes=5))
    assert (len(status.notifications), count_restarts(status)) == (1, 2)
    quiet_until = from_time(one.time) + QUIET
    running = see(status, spec=spec, job=make_job(status), now=quiet_until - SECOND, pods=(make_pod(started=True),) * 2)
    status = commit(running)
    assert decide(replace(running, run=replace(running.run, status=status))) == Wait(until=quiet_until)
    status = commit(replace(running, run=replace(running.run, status=status), now=quiet_until))
    assert [(one.attempt, one.restarts) for one in status.notifications] == [(2, 1), (3, 2)]
    assert isinstance(decide(replace(running, run=replace(running.run, status=status), now=quiet_until)), Wait)


def test_a_receiver_that_comes_later_is_not_told_of_what_was() -> None:
    status = break_off(run_through({}, StageName.TRAIN), {}, NOW)
    spec = told()
    job, pods = make_job(status), (make_pod(phase="Running", started=True),) * 2
    status = commit(see(status, spec=spec, job=job, pods=pods))
    assert status.notifications == ()
    asked = {**spec, "suspend": True}
    stopping = commit(see(status, spec=asked, job=job))
    asleep = commit(see(stopping, spec=asked))
    assert [event for _, event in events_of(commit(see(asleep, spec=spec)))] == ["Suspended"]


def owed(number: int = 0, **changes: Any) -> NotificationStatus:
    return NotificationStatus(
        **{"name": "team", "id": f"id-{number}", "event": "Restarted", "time": to_time(NOW), **changes}
    )


def finished(*notifications: NotificationStatus, **spec: Any) -> tuple[Status, dict[str, Any]]:
    given = {**told(), **spec}
    status = run_through(given)
    return status.model_copy(update={"notifications": notifications or status.notifications}), given


def sight(
    status: Status, state: NotificationState, message: str = "", *, has_job: bool = True, made_at: str = ""
) -> dict[str, Any]:
    [one] = status.notifications
    job = notification_job_name(KEY.name, one.id, one.name)
    return {job: DeliverySight(state=state, has_job=has_job, made_at=made_at, message=message)}


@pytest.mark.parametrize("state", [NotificationState.DELIVERED, NotificationState.UNDELIVERED])
def test_what_has_become_of_it_is_written_once(state: NotificationState) -> None:
    status, spec = finished()
    deliveries = sight(status, state, "it answers 404")
    settled = commit(see(status, spec=spec, deliveries=deliveries))
    [one] = settled.notifications
    assert (one.state, one.completion_time) == (state, to_time(NOW))
    assert isinstance(decide(see(settled, spec=spec, deliveries=deliveries)), Wait)
    # It is no reason for a write of its own while the run goes on.
    assert without_texts(settled) == without_texts(status)


def test_that_one_is_owed_is_no_text() -> None:
    status, _ = finished()
    assert without_texts(status) != without_texts(status.model_copy(update={"notifications": ()}))


def test_delivery_rides_along_with_progress() -> None:
    spec = told("Restarted")
    status = break_off(run_through(spec, StageName.TRAIN), spec, NOW)
    deliveries = sight(status, NotificationState.DELIVERED)
    later = NOW + timedelta(seconds=15)
    pods = (make_pod(phase="Running", started=True),) * 2
    status = commit(see(status, spec=spec, job=make_job(status), pods=pods))
    seen = see(status, spec=spec, job=make_job(status), pods=pods, deliveries=deliveries, text_due_at=later)
    assert decide(seen) == Wait(until=later)
    assert [one.state for one in commit(replace(seen, now=later)).notifications] == ["Delivered"]


def test_what_stands_in_its_way_is_told_once() -> None:
    status, spec = finished()
    first = commit(see(status, spec=spec, deliveries=sight(status, NotificationState.PENDING, "quota", has_job=False)))
    [one] = first.notifications
    assert (one.state, one.outcome) == ("Pending", "quota")
    other = sight(status, NotificationState.PENDING, "quota of another kind", has_job=False)
    assert isinstance(decide(see(first, spec=spec, deliveries=other)), Wait)


def test_it_is_given_up_some_day_after_its_first_try() -> None:
    status, spec = finished()
    back = NOW + timedelta(days=2)
    # Whoever comes back has not tried it.
    assert decide(see(status, spec=spec, now=back)) == Wait()
    deliveries = sight(status, NotificationState.PENDING, "exceeded quota", has_job=False)
    tried = commit(see(status, spec=spec, deliveries=deliveries, now=back))
    [one] = tried.notifications
    assert (one.first_try_time, one.outcome) == (to_time(back), "exceeded quota")
    due = back + GIVEN_UP_AFTER
    assert decide(see(tried, spec=spec, deliveries=deliveries, now=back + SECOND)) == Wait(until=due)
    # And whoever comes back after that tries it once as well.
    assert decide(see(tried, spec=spec, now=due + QUIET)) == Wait()
    [one] = commit(see(tried, spec=spec, deliveries=deliveries, now=due)).notifications
    assert (one.state, one.outcome) == ("Undelivered", "given up after 8 h: exceeded quota")


def test_a_job_that_never_ends_is_given_up_too() -> None:
    status, spec = finished()
    made_at = NOW + timedelta(days=2)
    deliveries = sight(status, NotificationState.PENDING, made_at=to_time(made_at))
    due = made_at + GIVEN_UP_AFTER
    assert decide(see(status, spec=spec, deliveries=deliveries, now=due - SECOND)) == Wait(until=due)
    [one] = commit(see(status, spec=spec, deliveries=deliveries, now=due)).notifications
    assert (one.state, one.outcome) == ("Undelivered", "given up after 8 h: its Job has not ended")


def test_a_first_try_before_the_clock_was_set_back_is_one_of_now() -> None:
    status, spec = finished()
    deliveries = sight(status, NotificationState.PENDING, "exceeded quota", has_job=False)
    ahead = commit(see(status, spec=spec, deliveries=deliveries, now=NOW + timedelta(days=1)))
    assert commit(see(ahead, spec=spec, deliveries=deliveries)).notifications[0].first_try_time == to_time(NOW)


def test_a_receiver_that_is_gone_from_the_spec_is_not_told() -> None:
    status, _ = finished()
    under_way = sight(status, NotificationState.PENDING)
    assert isinstance(decide(see(status, deliveries=under_way)), Wait)
    [one] = commit(see(status)).notifications
    assert (one.state, one.outcome) == ("Undelivered", "spec.notifications has no team any more")


def test_a_run_is_deleted_when_its_messages_are_settled() -> None:
    status, spec = finished(ttlSecondsAfterFinished=0, storage={"retain": "Always"})
    assert decide(see(status, spec=spec)) == Wait()
    settled = commit(see(status, spec=spec, deliveries=sight(status, NotificationState.DELIVERED)))
    assert decide(see(settled, spec=spec)) == Delete()


def test_a_deleted_run_owes_nothing() -> None:
    status, spec = finished()
    seen = see(status, spec=spec, now=NOW + 9 * QUIET)
    assert decide(replace(seen, run=replace(seen.run, deleting=True))) == Wait()


def test_the_list_has_an_end_and_what_is_owed_stays_longest() -> None:
    settled = [owed(n, state="Delivered") for n in range(NOTIFICATIONS_KEPT - 2)]
    full = (owed(100), *settled, owed(101))
    spec = {**told("Suspended"), "suspend": True}
    status = begun(with_job=False).model_copy(update={"notifications": full})
    # Its Job was never made, so that nothing has to be stopped first.
    asleep = commit(see(status, spec=spec))
    assert len(asleep.notifications) == NOTIFICATIONS_KEPT
    assert asleep.notifications[0].id == "id-100"
    assert "id-0" not in {one.id for one in asleep.notifications}
    assert asleep.notifications[-1].event == "Suspended"
    crowded = begun(with_job=False).model_copy(
        update={"notifications": tuple(owed(n) for n in range(NOTIFICATIONS_KEPT))}
    )
    asleep = commit(see(crowded, spec=spec))
    assert [one.id for one in asleep.notifications[:2]] == ["id-1", "id-2"]
