"""What a run has taken: of attempts that are over, and with what is going on now."""

from datetime import timedelta

import pytest

from llava_api.constants import StageName
from llava_api.status import (
    SUCCEEDED,
    Accounting,
    AttemptSettings,
    AttemptState,
    AttemptStatus,
    Progress,
    StageState,
    StageStatus,
    Status,
)
from llava_operator.clock import to_time
from llava_operator.deciding.accounting import account_for, account_until
from tests.controller.makers import NOW, NOW_TEXT

TRAIN = StageName.TRAIN
ON_EIGHT = AttemptSettings(replicas=2, gpus=4)


def at(seconds: float) -> str:
    return to_time(NOW + timedelta(seconds=seconds))


def attempt(**changes: object) -> AttemptStatus:
    known = {"number": 1, "settings": ON_EIGHT, "start_time": NOW_TEXT, "running_time": at(100)}
    return AttemptStatus.model_validate({**known, **changes})


def gone(because: str, **changes: object) -> AttemptStatus:
    return attempt(state=AttemptState.GONE, because=because, completion_time=at(1100), **changes)


def report(checkpoint_step: int | None) -> Progress:
    return Progress(
        stage=TRAIN, attempt=1, pod_uid="u", step=40, total_steps=100, checkpoint_step=checkpoint_step,
        last_update_time=NOW_TEXT,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ended", "checkpoint_step", "productive_s"),
    [
        (gone(SUCCEEDED), None, 1000),
        (gone("WorkerKilled", to_step=40), 30, 750),
        (gone("WorkerKilled", to_step=40), None, 0),
        (gone("WorkerKilled", from_step=20, to_step=40), 30, 500),
        (gone("WorkerKilled"), None, 0),
    ],
    ids=["succeeded", "checkpoint", "no checkpoint", "went on from one", "no step"],
)
def test_seconds_and_gpu_seconds_are_productive_or_lost(
    ended: AttemptStatus, checkpoint_step: int | None, productive_s: int
) -> None:
    known = Accounting(gpu_seconds={TRAIN: 8, StageName.EVALUATE: 1}, productive_gpu_seconds=8, lost_gpu_seconds=1)
    accounting = account_for(Status(accounting=known), TRAIN, ended, report(checkpoint_step)).accounting
    assert accounting is not None
    assert (accounting.productive_seconds, accounting.lost_seconds) == (productive_s, 1000 - productive_s)
    assert accounting.gpu_seconds == {TRAIN: 8008, StageName.EVALUATE: 1}
    assert accounting.productive_gpu_seconds == 8 + 8 * productive_s
    assert accounting.lost_gpu_seconds == 1 + 8 * (1000 - productive_s)


@pytest.mark.parametrize(("to_step", "productive_s"), [(40, 1000), (0, 0), (None, 0)])
def test_what_an_evaluation_has_answered_is_kept(to_step: int | None, productive_s: int) -> None:
    accounting = account_for(Status(), StageName.EVALUATE, gone("NodeLost", to_step=to_step), None).accounting
    assert accounting is not None
    assert (accounting.productive_seconds, accounting.lost_seconds) == (productive_s, 1000 - productive_s)


def test_without_gpus_there_are_no_gpu_seconds() -> None:
    ended = gone(SUCCEEDED, settings=AttemptSettings(replicas=2, gpus=0))
    accounting = account_for(Status(), TRAIN, ended, None).accounting
    assert accounting is not None
    assert (accounting.productive_seconds, accounting.gpu_seconds, accounting.productive_gpu_seconds) == (1000, {}, 0)


def with_newest(newest: AttemptStatus, **changes: object) -> Status:
    stage = StageStatus(name=TRAIN, state=StageState.RUNNING, attempt=1, attempts=(newest,))
    return Status.model_validate({"stages": (StageStatus(name=StageName.PREPARE), stage), **changes})


def test_gpus_that_are_held_count_until_now() -> None:
    known = Accounting(gpu_seconds={TRAIN: 5}, lost_gpu_seconds=5)
    status = with_newest(attempt(state=AttemptState.RUNNING), accounting=known)
    assert account_until(status, NOW + timedelta(seconds=160)).gpu_seconds == {TRAIN: 5 + 8 * 60}
    # Productive or lost it is only once it is over.
    assert account_until(status, NOW + timedelta(seconds=160)).lost_gpu_seconds == 5
    assert account_until(with_newest(gone("WorkerKilled")), NOW + timedelta(seconds=5000)) == Accounting()
    assert account_until(Status(), NOW) == Accounting()


def test_waiting_in_a_queue_and_a_suspension_count_until_now() -> None:
    queued = attempt(running_time=None, state=AttemptState.QUEUED, settings=AttemptSettings(queue="gpus"))
    known = Accounting(queued_seconds=3, suspended_seconds=4)
    status = with_newest(queued, accounting=known, suspended_time=at(50))
    later = account_until(status, NOW + timedelta(seconds=60))
    assert (later.queued_seconds, later.suspended_seconds) == (63, 14)
    admitted = with_newest(queued.model_copy(update={"admitted_time": at(20)}), accounting=known)
    assert account_until(admitted, NOW + timedelta(seconds=60)).queued_seconds == 23


def test_who_runs_without_having_been_seen_in_the_queue_does_not_wait_in_it() -> None:
    """Kueue may let a Job in before anybody has looked at it: until the end, all its time would count as waiting."""
    running = attempt(running_time=at(5), state=AttemptState.RUNNING, settings=AttemptSettings(queue="gpus"))
    assert account_until(with_newest(running), NOW + timedelta(seconds=60)).queued_seconds == 5
    over = account_for(Status(), TRAIN, gone(SUCCEEDED, running_time=at(5), settings=running.settings), None)
    assert over.accounting is not None
    assert over.accounting.queued_seconds == 5
