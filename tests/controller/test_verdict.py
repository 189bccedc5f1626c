"""Which failure is shown of several, and what it says."""

from dataclasses import replace

import pytest

from llava_api.constants import StageName
from llava_api.failures import BY_REASON, FAILURES, Failure, Reason
from llava_api.report import StageFailure
from llava_api.status import AttemptSettings, AttemptStatus, FailureStatus, StageStatus
from llava_operator.cache.views import PodView
from llava_operator.deciding.verdict import read_failure
from tests.controller.makers import failed, job_end, make_pod

STAGE = StageStatus(name=StageName.TRAIN, attempt=1)


def judge(*pods: PodView, recorded: FailureStatus | None = None) -> FailureStatus:
    return read_failure(STAGE, job_end(), pods, recorded)


@pytest.mark.parametrize("row", [f for f in FAILURES if f.exit_code is not None], ids=lambda row: row.reason)
def test_every_exit_code_has_its_reason_and_hint(row: Failure) -> None:
    assert row.exit_code is not None
    found = judge(failed(exit_code=row.exit_code, message="last line"))
    assert (found.reason, found.hint, found.exit_code) == (row.reason, row.hint, row.exit_code)
    assert found.log_tail == "last line"


def test_unknown_exit_code_is_a_failed_pod() -> None:
    found = judge(failed(exit_code=137, message="tail"))
    assert (found.reason, found.message) == (Reason.POD_FAILED, "pod pod-0 ended with exit code 137")


def test_stage_result_explains_itself() -> None:
    said = StageFailure(reason=Reason.LOSS_NOT_FINITE, message="loss is nan at step 7", rank=3, log_tail="step 7")
    found = judge(failed("p", exit_code=67, failure=said, index=1))
    assert found.model_dump(by_alias=False, exclude={"hint"}) == {
        "reason": "LossNotFinite",
        "message": "loss is nan at step 7",
        "stage": StageName.TRAIN,
        "attempt": 1,
        "pod": "p",
        "node": None,
        "rank": 3,
        "exit_code": 67,
        "step": None,
        "attempt_steps": None,
        "log_tail": "step 7",
    }


def test_memory_limit_is_told_from_a_killed_worker() -> None:
    said = StageFailure(reason=Reason.WORKER_KILLED, message="rank 0 was killed", log_tail="tail")
    found = judge(failed(exit_code=71, failure=said, reason="OOMKilled"))
    assert (found.reason, found.log_tail) == (Reason.OUT_OF_MEMORY, "tail")


@pytest.mark.parametrize(
    ("disruption", "reason"),
    [
        ("PreemptionByScheduler: no room", Reason.PREEMPTED),
        ("DeletionByTaintManager: no room", Reason.NODE_LOST),
        ("DeletionByPodGC: no room", Reason.NODE_LOST),
        ("EvictionByEvictionAPI: no room", Reason.DRAINED),
        ("TerminationByKubelet: no room", Reason.POD_DISRUPTED),
        ("SomethingNew: no room", Reason.POD_DISRUPTED),
    ],
)
def test_disruption_wins_over_what_the_stage_makes_of_it(disruption: str, reason: Reason) -> None:
    said = StageFailure(reason=Reason.INTERRUPTED, message="SIGTERM")
    found = judge(failed(exit_code=75, failure=said, disruption=disruption))
    assert (found.reason, BY_REASON[reason].counts) == (reason, False)
    assert "no room" in found.message


def test_a_pod_evicted_for_its_own_limits_is_the_runs_own_failure() -> None:
    over = replace(failed(exit_code=137), phase="Failed", trouble="Evicted: ephemeral local storage usage exceeds 1Gi")
    found = judge(over)
    assert (found.reason, BY_REASON[Reason.EVICTED].counts) == (Reason.EVICTED, True)
    assert "exceeds 1Gi" in found.message
    # Not where the node was short of disk for others.
    assert judge(replace(over, disruption="TerminationByKubelet: low on disk")).reason == Reason.POD_DISRUPTED


def test_cause_is_shown_before_its_consequences() -> None:
    early = failed("early", exit_code=72, after_s=0, index=0)
    cause = failed("cause", exit_code=71, after_s=5, index=1)
    assert judge(early, cause).pod == "cause"


def test_first_of_two_causes_is_shown() -> None:
    late = failed("late", exit_code=71, after_s=5, index=0)
    first = failed("first", exit_code=71, after_s=1, index=1)
    assert judge(late, first).pod == "first"


def test_lower_rank_is_shown_of_two_at_the_same_second() -> None:
    assert judge(failed("b", exit_code=71, index=1), failed("a", exit_code=71, index=0)).pod == "a"


@pytest.mark.parametrize(("gpus", "rank"), [(0, 1), (1, 1), (4, 7)])
def test_pod_that_tells_of_another_ones_process_is_not_blamed(gpus: int, rank: int) -> None:
    """Both pods end with the same words within the same second, and often the wrong one is first."""
    stage = STAGE.model_copy(update={"attempts": (AttemptStatus(number=1, settings=AttemptSettings(gpus=gpus)),)})
    said = StageFailure(reason=Reason.WORKER_KILLED, message="was killed by SIGKILL", rank=rank)
    other = replace(failed("other", exit_code=71, failure=said, index=0, after_s=0), node="good")
    culprit = replace(failed("culprit", exit_code=71, failure=said, index=1, after_s=1), node="bad")
    found = read_failure(stage, job_end(), (other, culprit), None)
    assert (found.pod, found.node, found.rank) == ("culprit", "bad", rank)

    # The culprit has not ended yet: its node is known, and what it says itself counts as soon as it does.
    runs = replace(make_pod("culprit", phase="Running", index=1), node="bad")
    first = read_failure(stage, job_end(), (other, runs), None)
    assert (first.reason, first.pod, first.node) == (Reason.WORKER_KILLED, None, "bad")
    killed = replace(failed("culprit", exit_code=71, failure=said, index=1, reason="OOMKilled"), node="bad")
    found = read_failure(stage, job_end(), (other, killed), first)
    assert (found.reason, found.pod, found.node) == (Reason.OUT_OF_MEMORY, "culprit", "bad")


def test_pod_stopped_by_the_job_controller_is_no_cause() -> None:
    stopped = failed("stopped", exit_code=143, after_s=0, deleting=True)
    cause = failed("cause", exit_code=70, after_s=3)
    assert judge(stopped, cause).pod == "cause"


@pytest.mark.parametrize("exit_code", [143, 75])
def test_pod_that_was_deleted_and_has_ended_before_anybody_looked(exit_code: int) -> None:
    """Whether its process was killed or could still say that it was asked to stop."""
    stopped = failed("stopped", exit_code=exit_code, after_s=0, deleting=True)
    for end in (job_end(), None):
        found = read_failure(STAGE, end, (stopped,), None)
        assert (found.reason, found.message) == (Reason.POD_DELETED, "pod stopped was deleted while train ran")
    later = failed("stopped", exit_code=143, after_s=5, deleting=True)
    assert read_failure(STAGE, job_end(), (later,), None).reason == Reason.POD_FAILED, "the Job controller deleted it"
    assert judge(stopped, failed("cause", exit_code=70, after_s=0)).pod == "cause"


def test_pod_that_never_ran_gives_kubernetes_reason() -> None:
    refused = make_pod(phase="Failed", trouble="UnexpectedAdmissionError: no device")
    assert judge(refused).message == "pod pod-0 failed: UnexpectedAdmissionError: no device"
    silent = make_pod(phase="Failed")
    assert judge(silent).message == "pod pod-0 failed: Kubernetes gives no reason"


def test_job_speaks_where_no_pod_is_left() -> None:
    found = judge()
    assert (found.reason, found.pod) == (Reason.POD_FAILED, None)
    assert found.message == "the Job failed: PodFailurePolicy: a pod has failed"


def test_drained_pod_that_is_gone_is_still_a_disruption() -> None:
    end = job_end(message="Pod team/p has condition DisruptionTarget matching FailJob rule at index 0")
    assert read_failure(STAGE, end, (), None).reason == Reason.POD_DISRUPTED


def test_recorded_cause_stays_when_its_pod_is_gone() -> None:
    recorded = judge(failed("cause", exit_code=71))
    assert judge(failed("other", exit_code=70, after_s=9), recorded=recorded) == recorded
    assert judge(recorded=recorded) == recorded


def test_recorded_consequence_gives_way_to_a_cause() -> None:
    recorded = judge(failed("early", exit_code=72))
    assert judge(failed("cause", exit_code=71), recorded=recorded).pod == "cause"
    assert judge(failed("other", exit_code=75), recorded=recorded) == recorded


def test_recorded_word_of_the_job_gives_way_to_a_pod() -> None:
    assert judge(failed("pod", exit_code=70), recorded=judge()).pod == "pod"


def test_long_log_keeps_its_end() -> None:
    found = judge(failed(exit_code=1, message="x" * 5000 + "END"))
    assert len(found.log_tail) == 4096
    assert found.log_tail.endswith("END")


def test_pod_that_succeeded_or_runs_is_no_candidate() -> None:
    cause = failed("cause", exit_code=71)
    fine = replace(make_pod("fine"), phase="Running", started=True)
    assert judge(fine, cause).pod == "cause"


def test_a_disrupted_pod_that_is_gone_is_told_of_by_its_job() -> None:
    """Those that are left were stopped with it, and know no more than that."""
    end = job_end(message="Pod team/p-0 has condition DisruptionTarget matching FailJob rule at index 0")
    for exit_code in (143, 75):
        found = read_failure(STAGE, end, (failed("p-1", exit_code=exit_code, deleting=True),), None)
        assert found.reason == Reason.POD_DISRUPTED
    # One that failed for a reason of its own still is the one to show.
    found = read_failure(STAGE, end, (failed("p-1", exit_code=67),), None)
    assert found.reason == Reason.LOSS_NOT_FINITE
