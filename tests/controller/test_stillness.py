"""Attempts that say nothing, that say the same again and again, and gangs that hold half of what they need."""

from dataclasses import replace
from datetime import timedelta

import pytest

from llava_api.constants import Condition, StageName
from llava_api.failures import Reason
from llava_api.status import AttemptState, Progress, Status
from llava_operator.acting.transitions import list_transitions
from llava_operator.cache.views import PodView
from llava_operator.clock import to_time
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit, Stop, Wait
from llava_operator.deciding.stillness import SILENT_S, STILL_S, date_report
from llava_operator.run import stage_of
from tests.controller.makers import NOW, NOW_TEXT, begun, commit, make_job, make_pod, see

TRAIN = StageName.TRAIN
TIMEOUT_S = 900


def pods() -> tuple[PodView, ...]:
    return tuple(make_pod(f"pod-{n}", index=n, phase="Running", started=True, scheduled_at=NOW_TEXT) for n in range(2))


def running() -> Status:
    status = begun(TRAIN)
    return commit(see(status, job=make_job(status), pods=pods()))


def report(step: int, after_s: float, *, total: int = 100) -> Progress:
    time = to_time(NOW + timedelta(seconds=after_s))
    return Progress(stage=TRAIN, attempt=1, pod_uid="u", step=step, total_steps=total, last_update_time=time)


def hear(status: Status, progress: Progress, after_s: float) -> Status:
    now = NOW + timedelta(seconds=after_s)
    return commit(see(status, job=make_job(status), pods=pods(), progress=progress, now=now))


# --- the same step again and again


def test_the_same_step_again_and_again_ends_the_attempt() -> None:
    status = hear(running(), report(10, 100), 100)
    assert status.progress is not None
    assert status.progress.step_time is None
    status = hear(status, report(10, 1000), 1000)
    assert status.progress is not None
    assert status.progress.step_time == to_time(NOW + timedelta(seconds=100))
    status = hear(status, report(10, 100 + STILL_S), 100 + STILL_S)
    attempt = stage_of(status, TRAIN).attempts[0]
    assert (attempt.state, attempt.because) == (AttemptState.STOPPING, Reason.REPORTS_STAND_STILL)
    assert "has reported step 10 for 1800 s, and steps took 10.0 s before" in attempt.message
    assert isinstance(decide(see(status, job=make_job(status), pods=pods())), Stop)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (report(10, 100), report(11, 100 + STILL_S)),
        (report(100, 100), report(100, 100 + STILL_S)),
        (report(0, 100), report(0, 100 + STILL_S)),
        (report(1, 600), report(1, 600 + STILL_S)),
        (report(10, 100, total=0), report(10, 100 + STILL_S, total=0)),
    ],
    ids=["it goes on", "all steps are done", "before the first step", "steps take that long", "no total"],
)
def test_what_is_no_standstill(first: Progress, last: Progress) -> None:
    status = running()
    for progress, after_s in ((first, 600), (last, 600 + STILL_S)):
        status = hear(status, progress, after_s)
    assert stage_of(status, TRAIN).attempts[0].state is AttemptState.RUNNING


def test_a_validation_that_goes_on_is_no_standstill() -> None:
    """Each of its reports counts as a step would; that it has ended does, too. One that hangs makes none."""
    status = hear(running(), report(10, 100), 100)
    for number in range(1, 4):
        looking = report(10, 100 + number * STILL_S / 2).model_copy(update={"validating_samples": number * 8})
        status = hear(status, looking, 100 + number * STILL_S / 2)
        assert stage_of(status, TRAIN).attempts[0].state is AttemptState.RUNNING
    again = report(10, 100 + 9 * STILL_S).model_copy(update={"validating_samples": 24})
    status = hear(status, again, 100 + 9 * STILL_S)
    assert stage_of(status, TRAIN).attempts[0].because == Reason.REPORTS_STAND_STILL


# --- since when


def checkpoint_time(status: Status, step: int | None, after_s: float, *, attempt: int = 1) -> str | None:
    """When the checkpoint of a report was first reported, where it is the next one of a run."""
    progress = report(10, after_s).model_copy(update={"checkpoint_step": step, "attempt": attempt})
    return date_report(status, progress).checkpoint_time


def test_a_checkpoint_is_dated_by_its_first_report() -> None:
    known = Status(progress=report(10, 100).model_copy(update={"checkpoint_step": 8, "checkpoint_time": NOW_TEXT}))
    assert checkpoint_time(known, 8, 200) == NOW_TEXT
    # The next attempt goes on from it: the work since then would still be lost.
    assert checkpoint_time(known, 8, 200, attempt=2) == NOW_TEXT
    assert checkpoint_time(known, 10, 200) == to_time(NOW + timedelta(seconds=200))
    assert checkpoint_time(known, None, 200) is None
    assert checkpoint_time(Status(), 8, 200) == to_time(NOW + timedelta(seconds=200))
    # An operator before this one has written none.
    undated = Status(progress=report(10, 100).model_copy(update={"checkpoint_step": 8}))
    assert checkpoint_time(undated, 8, 200) == to_time(NOW + timedelta(seconds=200))
    of_another = known.progress.model_copy(update={"stage": StageName.ALIGN}) if known.progress else None
    assert checkpoint_time(Status(progress=of_another), 8, 200) == to_time(NOW + timedelta(seconds=200))


# --- silence


def test_silence_is_said_and_ends_nothing() -> None:
    status = hear(running(), report(10, 100), 100)
    job, quiet = make_job(status), NOW + timedelta(seconds=100 + SILENT_S)
    assert decide(see(status, job=job, pods=pods(), now=NOW)) == Wait(until=quiet)
    silent = commit(see(status, job=job, pods=pods(), now=quiet))
    held = next(c for c in silent.conditions if c.type is Condition.REPORTING)
    assert (held.status, held.reason) == ("False", "Silent")
    assert stage_of(silent, TRAIN).attempts[0].state is AttemptState.RUNNING
    assert [one.reason for one in list_transitions(silent) if one.type == "Warning"] == ["Silent"]
    # For days, if need be; and a report takes it back.
    assert isinstance(decide(see(silent, job=job, pods=pods(), now=quiet + timedelta(days=3))), Wait)
    heard = hear(silent, report(900, 9000, total=1000), 9000)
    assert next(c for c in heard.conditions if c.type is Condition.REPORTING).status == "True"


# --- half of a gang


def half() -> tuple[PodView, ...]:
    return pods()[0], make_pod("pod-1", index=1, waiting="Unschedulable: no node fits")


def test_half_a_gang_gives_its_places_back() -> None:
    status = begun(TRAIN)
    held = commit(see(status, job=make_job(status), pods=half()))
    due = NOW + timedelta(seconds=TIMEOUT_S)
    minute = NOW + timedelta(minutes=1)
    held = commit(see(held, job=make_job(held), pods=half(), now=minute))
    assert decide(see(held, job=make_job(held), pods=half(), now=minute)) == Wait(until=due)
    given_back = commit(see(held, job=make_job(held), pods=half(), now=due))
    attempt = stage_of(given_back, TRAIN).attempts[0]
    assert (attempt.state, attempt.because) == (AttemptState.STOPPING, Reason.GANG_NOT_SCHEDULED)
    assert "1 of 2 pods of train had a place for 900 s" in attempt.message
    after = commit(see(given_back, now=due))
    assert stage_of(after, TRAIN).restarts == 0
    assert stage_of(after, TRAIN).next_attempt_time is not None


def test_a_gang_that_has_no_place_at_all_holds_nothing_and_waits() -> None:
    nowhere = tuple(
        replace(pod, waiting="Unschedulable", scheduled_at="", started=False, phase="Pending") for pod in pods()
    )
    status = begun(TRAIN)
    late = NOW + timedelta(days=1)
    decision = decide(see(status, job=make_job(status), pods=nowhere, now=late))
    assert isinstance(decision, Commit)
    assert stage_of(decision.status, TRAIN).attempts[0].state is AttemptState.STARTING
