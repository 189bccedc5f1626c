"""Evaluation by several pods: what of theirs ends the attempt and what does not, its result, and its progress."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from llava_api.constants import Phase, StageName
from llava_api.failures import BY_EXIT_CODE, BY_REASON, FINAL_EXIT_CODES, Reason, exit_code_of
from llava_api.names import MAX_SHARDS
from llava_api.report import StageFailure, StageResult
from llava_api.status import (
    AttemptState,
    AttemptStatus,
    Progress,
    ShardProgress,
    ShardStatus,
    StageStatus,
    Status,
)
from llava_operator.cache.views import PodView
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.attempts import UNREACHABLE_S
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit, Wait
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.shards import list_culprits
from llava_operator.reporting.acceptance import Refusal
from llava_operator.reporting.shards import add_shard
from llava_operator.run import stage_of
from llava_operator.stages import RETRIES
from tests.controller.desk import Desk, make_report, make_token, pod_object, review_of
from tests.controller.makers import (
    NOW,
    NOW_TEXT,
    RESULTS,
    RUN_UID,
    failed,
    job_end,
    make_job,
    make_pod,
    make_run,
    succeeded,
    walk,
)

EVALUATE = StageName.EVALUATE
SPEC: dict[str, Any] = {"evaluation": {"workers": {"replicas": 3, "gpus": 1}}, "storage": {}}
OTHERS_RESULT = StageResult(stage=EVALUATE, attempt=1).to_termination_message()
EXHAUSTED = "MaxFailedIndexesExceeded"
USED = job_end(message="Container stage for pod team/e-1-b failed with exit code 85 matching FailJob rule at index 1")


def look(status: Status, **observed: Any) -> Observation:
    return Observation(run=make_run(status, **SPEC), **{"now": NOW, **observed})


def commit(status: Status, **observed: Any) -> Status:
    decision = decide(look(status, **observed))
    assert isinstance(decision, Commit), decision
    return decision.status


def running() -> Status:
    status = walk(SPEC, EVALUATE)
    return commit(status, job=make_job(status), pods=[runs(index) for index in range(3)])


def runs(index: int, name: str = "", **changes: Any) -> PodView:
    return make_pod(name or f"e-{index}-a", index=index, phase="Running", started=True, **changes)


def fails(index: int, name: str = "", **end: Any) -> PodView:
    return failed(name or f"e-{index}-a", stage=EVALUATE, index=index, **{"exit_code": 70, **end})


def ends(index: int, message: str = OTHERS_RESULT) -> PodView:
    return replace(succeeded(EVALUATE, message), index=index)


def stage(status: Status) -> StageStatus:
    return stage_of(status, EVALUATE)


def newest(status: Status) -> AttemptStatus:
    found = stage(status).newest
    assert found is not None
    return found


# --- while the Job controller replaces pods


@pytest.mark.parametrize(
    "lost",
    [
        fails(1),
        fails(1, exit_code=143, deleting=True, deletion_due=NOW_TEXT),
        fails(1, exit_code=75, disruption="EvictionByEvictionAPI: drained"),
        runs(1, deleting=True, deletion_due=NOW_TEXT),
        runs(1, deleting=True, deletion_due=NOW_TEXT, disruption="PreemptionByScheduler: no room"),
        runs(1, disruption="DeletionByTaintManager: called off"),
    ],
)
def test_a_pod_that_is_replaced_does_not_end_the_attempt(lost: PodView) -> None:
    status = running()
    job = make_job(status, num_failed=1)
    told = commit(status, job=job, pods=(runs(0), lost, runs(2)))
    assert (newest(told).state, told.failure, newest(told).shards) == (
        AttemptState.RUNNING, None, ShardStatus(done=0, pods_failed=1),
    )  # fmt: skip
    if not (lost.failed or lost.deleting):
        return
    replaced = commit(told, job=job, pods=(runs(0), lost, runs(2), make_pod("e-1-b", index=1, waiting="")))
    assert newest(replaced).state is AttemptState.RUNNING
    assert "2 of 3 pods run; pod e-1-b waits" in stage(replaced).message
    assert stage(replaced).restarts == 0


def test_shards_that_are_done_are_told() -> None:
    status = running()
    told = commit(status, job=make_job(status, num_succeeded=2, num_failed=1), pods=(ends(0), runs(1), ends(2)))
    assert newest(told).shards == ShardStatus(done=2, pods_failed=1)
    assert stage(told).message == "2 of 3 pods are done, 1 running"
    waiting = make_pod(
        "e-1-b", index=1, waiting="Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    )
    told = commit(
        status, job=make_job(status, num_succeeded=1), pods=(ends(0), waiting, runs(2)), now=NOW + timedelta(minutes=1)
    )
    assert stage(told).message.startswith("1 of 3 pods are done, 1 running; pod e-1-b waits")
    assert stage(told).reason == Reason.UNSCHEDULABLE


@pytest.mark.parametrize("numbers", [{"num_succeeded": 2**60, "num_failed": 2**60}])
def test_what_a_job_says_of_its_pods_is_bounded(numbers: dict[str, int]) -> None:
    status = running()
    told = commit(status, job=make_job(status, **numbers), pods=(runs(0),))
    assert newest(told).shards == ShardStatus(done=3, pods_failed=1_000_000)


def test_shards_without_a_place_hold_nobody_elses() -> None:
    """No gang: one GPU is enough, for one pod after the other."""
    status = running()
    pods = (runs(0, scheduled_at=NOW_TEXT), make_pod("e-1-a", index=1), make_pod("e-2-a", index=2))
    later = NOW + timedelta(days=1)
    told = commit(status, job=make_job(status), pods=pods, now=later)
    assert (newest(told).state, told.failure) == (AttemptState.RUNNING, None)


def test_a_pod_whose_node_cannot_be_reached_is_given_up_with_its_attempt() -> None:
    """The Job controller never replaces it: it has not ended, as far as anybody knows."""
    status = running()
    gone = runs(1, deleting=True, deletion_due=NOW_TEXT, disruption="DeletionByTaintManager: node lost", node="n")
    # One that was drained has long been replaced, and is not why.
    old = fails(2, "e-2-old", exit_code=75, disruption="EvictionByEvictionAPI: drained", node="other")
    job, pods = make_job(status), (runs(0), old, gone, runs(2, "e-2-new"))
    status = commit(status, job=job, pods=pods)
    due = NOW + timedelta(seconds=UNREACHABLE_S)
    decision = decide(look(status, job=job, pods=pods, now=due - timedelta(seconds=1)))
    assert isinstance(decision, Wait)
    assert decision.until == due
    stopping = commit(status, job=job, pods=pods, now=due)
    assert (newest(stopping).state, newest(stopping).because) == (AttemptState.STOPPING, Reason.NODE_LOST)
    assert newest(stopping).node == "n"


def test_a_job_that_somebody_deletes_is_told_so_whatever_was_drained_before() -> None:
    status = running()
    old = fails(2, "e-2-old", exit_code=75, disruption="EvictionByEvictionAPI: drained")
    job = make_job(status, deleting_since=NOW_TEXT)
    pods = (old, *(runs(index, f"e-{index}-b", deleting=True, deletion_due=NOW_TEXT) for index in range(3)))
    stopping = commit(status, job=job, pods=pods)
    assert newest(stopping).because == Reason.JOB_DELETED


# --- what ends the attempt


def test_an_index_that_has_failed_for_good_ends_the_run_with_its_failure() -> None:
    """It was tried again by itself, as often as a stage is: another attempt would be the fourth try."""
    status = running()
    said = StageFailure(reason=Reason.INTERNAL_ERROR, message="ValueError: third", log_tail="tail")
    pods = (
        fails(1, "e-1-a", after_s=1), fails(1, "e-1-b", after_s=2), fails(1, "e-1-c", after_s=3, failure=said),
        # Failed before, and waits to be tried again; and stopped with the others.
        fails(0, "e-0-a", exit_code=65, after_s=0), fails(2, "e-2-a", exit_code=75, deleting=True, after_s=9),
    )  # fmt: skip
    end = job_end(EXHAUSTED, "Job has exceeded the specified maximal number of failed indexes")
    stopping = commit(status, job=make_job(status, failing=end, failed_indexes=(1,)), pods=pods)
    assert (newest(stopping).state, newest(stopping).pod) == (AttemptState.STOPPING, "e-1-c")
    status = commit(stopping, job=make_job(stopping, failing=end, failed=end, failed_indexes=(1,)), pods=pods)
    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert (status.failure.reason, status.failure.message, status.failure.pod) == (
        Reason.INTERNAL_ERROR, "ValueError: third", "e-1-c",
    )  # fmt: skip
    assert (stage(status).restarts, newest(status).counts) == (1, True)


def test_an_exit_code_that_is_final_ends_the_run_whoever_failed_before() -> None:
    status = running()
    end = job_end(
        message="Container stage for pod team/e-2-a failed with exit code 65 matching FailJob rule at index 1"
    )
    pods = (fails(0, "e-0-a", exit_code=70, after_s=0), fails(2, "e-2-a", exit_code=65, after_s=5))
    status = commit(status, job=make_job(status, failing=end, failed=end), pods=pods)
    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert (status.failure.reason, status.failure.pod) == (Reason.INVALID_DATA, "e-2-a")


@pytest.mark.parametrize("reason", [Reason.ATTEMPT_USED, Reason.SUPERSEDED])
def test_what_only_another_attempt_helps_is_followed_by_one(reason: Reason) -> None:
    status = running()
    pods = (fails(0, exit_code=70), fails(1, "e-1-b", exit_code=exit_code_of(reason), after_s=10))
    status = commit(status, job=make_job(status, failing=USED, failed=USED), pods=pods)
    assert (status.phase, newest(status).because, newest(status).counts) == (Phase.RUNNING, reason, False)
    assert stage(status).next_attempt_time is not None


def test_an_older_image_whose_pod_is_replaced_is_judged_by_what_the_first_one_ended_by() -> None:
    """Its second pod finds the attempt's folder claimed, which counts nothing: the run would be tried for ever."""
    status, tries = running(), 0
    while status.phase is Phase.RUNNING:
        tries += 1
        pods = (fails(1, "e-1-a", exit_code=70), fails(1, "e-1-b", exit_code=85, after_s=10))
        status = commit(status, job=make_job(status, failing=USED, failed=USED), pods=pods)
        assert (newest(status).because, newest(status).pod) == (Reason.INTERNAL_ERROR, "e-1-a")
        if status.phase is Phase.RUNNING:
            due = stage(status).next_attempt_time
            assert due is not None
            status = commit(status, now=from_time(due))
            status = commit(status, job=make_job(status), pods=[runs(index) for index in range(3)])
    assert (status.phase, tries) == (Phase.FAILED, RETRIES + 1)


def test_an_older_image_whose_pod_was_drained_is_tried_again_and_not_counted() -> None:
    status = running()
    drained = fails(1, "e-1-a", exit_code=75, disruption="EvictionByEvictionAPI: drained")
    pods = (drained, fails(1, "e-1-b", exit_code=85, after_s=10))
    status = commit(status, job=make_job(status, failing=USED, failed=USED), pods=pods)
    assert (status.phase, newest(status).because, newest(status).counts) == (Phase.RUNNING, Reason.DRAINED, False)


def test_pods_that_somebody_deletes_again_and_again_are_forgiven_once() -> None:
    status = running()
    end = job_end(EXHAUSTED, "Job has exceeded the specified maximal number of failed indexes")
    deleted = fails(1, "e-1-c", exit_code=143, deleting=True)
    job = make_job(status, failing=end, failed=end, failed_indexes=(1,))
    status = commit(status, job=job, pods=(deleted,))
    assert (status.phase, newest(status).because) == (Phase.RUNNING, Reason.POD_DELETED)
    assert (stage(status).forgiven, stage(status).restarts) == (1, 0)


def test_exit_codes_that_end_a_job_are_those_that_another_pod_cannot_mend() -> None:
    for code, row in BY_EXIT_CODE.items():
        assert (code in FINAL_EXIT_CODES) is (not row.retryable or not row.counts), row.reason
    mended = {Reason.INTERNAL_ERROR, Reason.OUT_OF_MEMORY, Reason.STORAGE_UNWRITABLE, Reason.INTERRUPTED}
    assert not {BY_REASON[reason].exit_code for reason in mended} & set(FINAL_EXIT_CODES)


def test_who_failed_is_told_where_the_job_does_not_say() -> None:
    job = make_job(running(), failed=job_end("", ""))
    pods = (fails(0, after_s=1), runs(0, "e-0-b"), fails(1, after_s=3), ends(2), fails(2, "e-2-old"))
    assert {pod.key.name for pod in list_culprits(job, pods)} == {"e-0-b", "e-1-a"}


@pytest.mark.parametrize("has_index", [True, False])
def test_the_job_of_an_operator_before_goes_on_as_it_was_made(has_index: bool) -> None:
    """It has one pod and no index, and is not retried: its Job says when it has failed, and another attempt follows."""
    status = walk(SPEC, EVALUATE)
    pod = fails(0) if has_index else replace(fails(0), index=None)
    end = job_end(
        message="Container stage for pod team/e-0-a failed with exit code 70 matching FailJob rule at index 1"
    )
    status = commit(status, job=make_job(status), pods=(replace(runs(0), index=None),))
    status = commit(status, job=make_job(status, failing=end, failed=end), pods=(pod,))
    assert (status.phase, newest(status).because, stage(status).restarts) == (Phase.RUNNING, "InternalError", 1)


# --- the result


def complete(status: Status, *pods: PodView) -> Status:
    return commit(status, job=make_job(status, complete=True, num_succeeded=3), pods=pods)


@pytest.mark.parametrize("joiner", range(3))
def test_the_result_is_that_of_the_pod_that_has_joined(joiner: int) -> None:
    joined = RESULTS[EVALUATE].to_termination_message()
    status = complete(
        running(), fails(joiner, "old"), *(ends(i, joined if i == joiner else OTHERS_RESULT) for i in range(3))
    )
    assert status.phase is Phase.SUCCEEDED
    assert status.evaluation is not None
    assert [metric.tuned for metric in status.evaluation.metrics] == [1.0, 0.97]
    assert newest(status).shards == ShardStatus(done=3, pods_failed=0)


def test_the_result_is_read_though_others_are_gone_or_say_nothing() -> None:
    status = complete(running(), ends(0, "no JSON"), ends(2, RESULTS[EVALUATE].to_termination_message()))
    assert status.phase is Phase.SUCCEEDED


def test_a_result_whose_pod_is_gone_is_looked_for_on_the_volume() -> None:
    status = complete(running(), ends(0), ends(2))
    assert (status.phase, newest(status).because, newest(status).counts) == (Phase.RUNNING, Reason.RESULT_LOST, False)
    assert "1 of 3 pods were gone" in newest(status).message


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (OTHERS_RESULT, "none of its 3 pods has handed back"),
        ("no JSON", "its termination message is no result"),
        (StageResult(stage=EVALUATE, attempt=2).to_termination_message(), "is about evaluate-2"),
    ],
)
def test_pods_that_all_hand_back_nothing_have_failed(message: str, why: str) -> None:
    status = complete(running(), ends(0), ends(1, message), ends(2))
    assert newest(status).because == Reason.INTERNAL_ERROR
    assert why in newest(status).message


# --- progress


def said(step: int, total: int, *, eta: int | None = None, attempt: int = 1) -> Progress:
    return Progress(stage=EVALUATE, attempt=attempt, pod_uid="u", step=step, total_steps=total, eta_seconds=eta,
                    last_update_time=NOW_TEXT)  # fmt: skip


def test_progress_is_that_of_all_shards_and_ends_with_the_last() -> None:
    progress = add_shard(None, said(3, 10, eta=70), 1, 3)
    assert (progress.step, progress.total_steps, progress.eta_seconds) == (3, 30, None)
    progress = add_shard(progress, said(5, 10, eta=50), 0, 3)
    progress = add_shard(progress, said(1, 8, eta=90), 2, 3)
    assert (progress.step, progress.total_steps, progress.eta_seconds) == (9, 28, 90)
    progress = add_shard(progress, said(8, 8), 2, 3)
    assert (progress.step, progress.total_steps, progress.eta_seconds) == (16, 28, 70)
    # Another pod of index 1, which begins with what the one before has left.
    progress = add_shard(progress, said(2, 10, eta=80), 1, 3)
    assert (progress.step, progress.eta_seconds) == (15, 80)
    assert [shard.index for shard in progress.shards] == [0, 1, 2]
    for index in (0, 1):
        progress = add_shard(progress, said(10, 10), index, 3)
    assert (progress.step, progress.total_steps, progress.eta_seconds) == (28, 28, 0)


def test_progress_of_one_pod_is_that_of_the_stage() -> None:
    assert add_shard(None, said(3, 10), 0, 1) == said(3, 10)


def test_progress_begins_anew_with_each_attempt_and_forgets_indexes_that_are_no_more() -> None:
    before = add_shard(None, said(3, 10), 7, 8)
    assert add_shard(before, said(1, 10, attempt=2), 0, 8).shards == (ShardProgress(index=0, step=1, total_steps=10),)
    assert [shard.index for shard in add_shard(before, said(1, 10), 0, 2).shards] == [0]


def test_progress_of_shards_can_always_be_written() -> None:
    progress = None
    for index in range(MAX_SHARDS):
        progress = add_shard(progress, said(2**53, 2**53 if index else 0, eta=2**53), index, MAX_SHARDS)
    assert progress is not None
    assert Progress.model_validate(progress.model_dump()) == progress
    assert (progress.step, progress.total_steps) == (2**53, 0)


def make_desk() -> Desk:
    desk = Desk(running())
    for index in (1, 2, 3):
        desk.children.note_pod(pod_object(f"pod-{index}", index=str(index)))
    return desk


async def take(desk: Desk, index: int, **changes: Any) -> tuple[int, str]:
    """A report of the pod of an index, with its own token."""
    names = {"pod-name": f"pod-{index}", "pod-uid": f"pod-{index}-uid"}
    extra = {f"authentication.kubernetes.io/{key}": [value] for key, value in names.items()}
    desk.server.answer = review_of(user={"username": "system:serviceaccount:team:default", "extra": extra})
    report = make_report(stage="evaluate", **{"step": 3, "totalSteps": 10, **changes})
    return await desk.take(report, token=f"Bearer {make_token(f'pod-{index}')}")


async def test_every_pod_of_evaluation_reports_its_own_part() -> None:
    desk = make_desk()
    for index in range(3):
        assert await take(desk, index, step=index + 1) == (200, "")
    taken = desk.progress.newest(RUN_UID, EVALUATE, 1)
    assert taken is not None
    assert (taken.step, taken.total_steps, len(taken.shards)) == (6, 30, 3)
    # Written, and not yet back from the API server: nothing of it is forgotten.
    desk.progress.note_written(RUN_UID, taken, desk.now)
    assert await take(desk, 0, step=5) == (200, "")
    taken = desk.progress.newest(RUN_UID, EVALUATE, 1)
    assert taken is not None
    assert (taken.step, len(taken.shards)) == (10, 3)


async def test_a_new_process_goes_on_from_what_the_status_says() -> None:
    before = add_shard(add_shard(None, said(7, 10), 1, 3), said(9, 10), 2, 3)
    desk = Desk(running().model_copy(update={"progress": before}))
    assert await take(desk, 0, step=1) == (200, "")
    taken = desk.progress.newest(RUN_UID, EVALUATE, 1)
    assert taken is not None
    assert (taken.step, len(taken.shards)) == (17, 3)


async def test_a_pod_of_an_index_that_there_is_not_has_no_say() -> None:
    """Whoever may change the labels of his pods makes no further entries of them."""
    desk = make_desk()
    assert (await take(desk, 3))[0] == 403
    assert desk.refused == [Refusal.NOT_FIRST_POD]


async def test_a_pod_that_was_given_up_has_no_say() -> None:
    """Of one whose node is gone nobody knows how its container ended, and perhaps it has not."""
    desk = make_desk()
    desk.children.note_pod(pod_object("pod-1", index="1", phase="Failed"))
    assert (await take(desk, 1))[0] == 403
    assert desk.refused == [Refusal.NOT_A_POD_OF_A_RUN]


def _later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_an_evaluation_that_is_suspended_is_stopped_and_goes_on_in_another_attempt() -> None:
    status = running()
    suspended = {**SPEC, "suspend": True}
    job = make_job(status, num_failed=1)
    stopping = decide(Observation(run=make_run(status, **suspended), job=job, pods=(runs(0), fails(1)), now=NOW))
    assert isinstance(stopping, Commit)
    assert newest(stopping.status).state is AttemptState.STOPPING
    gone = decide(Observation(run=make_run(stopping.status, **suspended), now=NOW))
    assert isinstance(gone, Commit)
    assert (gone.status.phase, newest(gone.status).counts) == (Phase.SUSPENDED, False)
    again = commit(gone.status, now=_later(1))
    assert (stage(again).attempt, newest(again).settings.replicas, newest(again).start_time) == (
        2, 3, to_time(_later(1)),
    )  # fmt: skip
