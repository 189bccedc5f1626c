"""The whole table of decisions: what is observed against what is done about it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from llava_api.constants import Condition, Phase, StageName
from llava_api.failures import BY_REASON, Reason
from llava_api.report import EvaluateNumbers, PrepareNumbers, Score, StageResult, TrainNumbers
from llava_api.status import SUCCEEDED, AttemptState, Progress, StageState, Status
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit, Start, Wait
from llava_operator.deciding.observation import Obstacle, ObstacleKind
from llava_operator.deciding.results import describe_result, take_result
from llava_operator.deciding.violations import Violation
from llava_operator.deciding.waiting import told_from
from llava_operator.run import stage_of
from tests.controller.makers import (
    JOB_UID,
    NOW,
    NOW_TEXT,
    ONCE,
    RESULTS,
    STAGES,
    begun,
    commit,
    failed,
    job_end,
    make_job,
    make_pod,
    make_run,
    see,
    succeeded,
)

LATER = NOW + timedelta(minutes=5)
LATER_TEXT = "2026-11-01T12:05:00Z"


def condition(status: Status, kind: Condition) -> tuple[str, str]:
    found = next(c for c in status.conditions if c.type is kind)
    return found.status, found.reason


def progress(stage: StageName = StageName.TRAIN, step: int = 3) -> Progress:
    return Progress(stage=stage, attempt=1, pod_uid="pod-0-uid", step=step, total_steps=12, eta_seconds=720,
                    last_update_time=NOW_TEXT)  # fmt: skip


# --- a run begins


def test_new_run_commits_to_its_first_stage_before_anything_is_made() -> None:
    status = commit(see())
    assert status.phase is Phase.PENDING
    assert status.start_time == NOW_TEXT
    assert [stage.state for stage in status.stages] == [StageState.RUNNING, *[StageState.PENDING] * 3]
    prepare = stage_of(status, StageName.PREPARE)
    assert [(one.number, one.state, one.job_uid) for one in prepare.attempts] == [(1, AttemptState.STARTING, None)]
    assert status.artifacts is not None
    assert status.artifacts.volume_claim == "invoices-run"


def test_new_run_has_every_condition() -> None:
    conditions = {c.type: c.status for c in commit(see()).conditions}
    without = dict.fromkeys(set(Condition) - {Condition.ALIGNED, Condition.PUBLISHED, Condition.GATE_PASSED}, "False")
    expected = without | {Condition.REPORTING: "True", Condition.RECONCILING: "True"}
    assert conditions == expected, "a run without alignment that is not to be published, before it is judged"


def test_deleted_run_is_left_alone_in_every_state() -> None:
    for status in (Status(), begun(), begun(StageName.TRAIN, with_job=False)):
        run = make_run(status, deleting=True)
        assert decide(replace(see(status), run=run)) == Wait()


# --- an intent is committed: act on it


@pytest.mark.parametrize("stage", STAGES)
def test_committed_stage_without_job_is_started(stage: StageName) -> None:
    assert decide(see(begun(stage, with_job=False))) == Start(stage=stage, attempt=1)


def test_job_that_is_there_is_recorded_and_not_made_again() -> None:
    status = begun(with_job=False)
    recorded = commit(see(status, job=make_job(status)))
    assert stage_of(recorded, StageName.PREPARE).attempts[0].job_uid == JOB_UID
    assert decide(see(recorded, job=make_job(recorded))) == Wait(until=told_from(NOW))


def test_decisions_settle() -> None:
    """What a decision writes leads to no second write when nothing else has changed."""
    for stage in STAGES:
        status = begun(stage)
        assert decide(see(status, job=make_job(status), now=LATER)) == Wait()


# --- obstacles


@pytest.mark.parametrize("kind", [ObstacleKind.NAME_CONFLICT, ObstacleKind.REJECTED])
def test_lasting_obstacle_fails_the_run(kind: ObstacleKind) -> None:
    obstacle = Obstacle(
        kind=kind, reason=Reason(kind), message="configmaps invoices-prepare-1 is in the way", retry_at=NOW
    )
    status = commit(see(begun(with_job=False), obstacle=obstacle))
    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert (status.failure.reason, status.failure.stage) == (kind, StageName.PREPARE)
    assert status.failure.message == obstacle.message
    assert status.failure.hint == BY_REASON[Reason(kind)].hint


def test_passing_obstacle_is_said_then_waited_for_then_tried_again() -> None:
    obstacle = Obstacle(
        kind=ObstacleKind.BLOCKED, reason=Reason.QUOTA_EXCEEDED, message="exceeded quota", retry_at=LATER
    )
    status = commit(see(begun(with_job=False), obstacle=obstacle))
    assert status.phase is Phase.PENDING
    assert stage_of(status, StageName.PREPARE).message == "exceeded quota"
    assert decide(see(status, obstacle=obstacle)) == Wait(until=LATER)
    assert decide(see(status, obstacle=obstacle, now=LATER)) == Start(stage=StageName.PREPARE, attempt=1)


# --- a stage runs


def test_waiting_pods_are_explained() -> None:
    status = begun(StageName.TRAIN)
    pods = (make_pod("a", phase="Running", started=True), make_pod("b", waiting="Unschedulable: no node fits"))
    said = stage_of(commit(see(status, job=make_job(status), pods=pods)), StageName.TRAIN).message
    assert said == "1 of 2 pods run; pod b waits: Unschedulable: no node fits"


def test_run_is_pending_until_a_pod_has_started() -> None:
    status = begun()
    waiting = commit(see(status, job=make_job(status), pods=(make_pod(),)))
    assert waiting.phase is Phase.PENDING
    running = commit(see(status, job=make_job(status), pods=(make_pod(phase="Running", started=True),)))
    assert running.phase is Phase.RUNNING
    # ... and not again when that pod is out of sight.
    assert commit(see(running, job=make_job(running), pods=())).phase is Phase.RUNNING


def test_due_progress_is_written() -> None:
    status = begun(StageName.TRAIN)
    written = commit(see(status, job=make_job(status), progress=progress(), progress_due_at=NOW))
    assert written.progress == progress()
    assert written.summary is not None
    assert (written.summary.step, written.summary.percent, written.summary.eta) == ("3/12", "25", "12m")


def test_early_progress_waits_but_rides_along_with_another_write() -> None:
    status = begun(StageName.TRAIN)
    early = see(status, job=make_job(status), progress=progress(), progress_due_at=LATER)
    assert decide(early) == Wait(until=told_from(NOW))
    assert decide(replace(early, now=told_from(NOW))) == Wait(until=LATER)
    pods = (make_pod(phase="Running", started=True),)
    assert commit(replace(early, pods=pods)).progress == progress()


# --- a stage succeeds


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_success_begins_the_next_stage_in_the_same_write(stage: StageName) -> None:
    status = begun(stage)
    after = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(stage),), now=LATER))
    following = STAGES[STAGES.index(stage) + 1]
    assert stage_of(after, stage).state is StageState.SUCCEEDED
    assert stage_of(after, stage).completion_time == LATER_TEXT
    assert stage_of(after, following).state is StageState.RUNNING
    assert [one.number for one in stage_of(after, following).attempts] == [1]
    assert [one.because for one in stage_of(after, stage).attempts] == [SUCCEEDED]
    assert after.phase is Phase.RUNNING


def test_last_success_completes_the_run() -> None:
    status = begun(StageName.EVALUATE)
    job = make_job(status, complete=True)
    after = commit(see(status, job=job, pods=(succeeded(StageName.EVALUATE),), now=LATER))
    assert after.phase is Phase.SUCCEEDED
    assert after.completion_time == LATER_TEXT
    assert condition(after, Condition.READY) == ("True", "Succeeded")
    assert condition(after, Condition.COMPLETE) == ("True", "Succeeded")
    assert condition(after, Condition.FAILED) == ("False", "Succeeded")
    assert after.summary is not None
    assert after.summary.model_dump(by_alias=False) == {
        "stage": "evaluate", "step": "", "percent": "100", "eta": "", "score": "0.02→0.97", "attempt": "1",
        "restarts": "0",
    }  # fmt: skip
    assert after.artifacts is not None
    assert after.artifacts.model_dump(by_alias=False) == {
        "volume_claim": "invoices-run",
        "access_modes": ("ReadWriteMany",),
        "volume_folder": None,
        "dataset_report": "data/report.html",
        "projector": None,
        "adapter": "adapter",
        "weights": None,
        "merged": "merged",
        "report": "evaluation/report.html",
        "published": (),
        "digests": {"adapter": "a", "merged": "b", "report": "c"},
    }
    assert after.data is not None
    assert after.data.overlong_samples == 3
    assert after.evaluation is not None
    assert after.evaluation.metrics[1].gain == pytest.approx(0.95)
    assert decide(see(after, now=LATER)) == Wait()


def test_transition_times_change_only_with_the_condition() -> None:
    status = begun(StageName.EVALUATE)
    job = make_job(status, complete=True)
    after = commit(see(status, job=job, pods=(succeeded(StageName.EVALUATE),), now=LATER))
    times = {c.type: c.last_transition_time for c in after.conditions}
    changed = {Condition.READY, Condition.EVALUATED, Condition.COMPLETE, Condition.RECONCILING}
    assert {kind for kind, time in times.items() if time == LATER_TEXT} == changed


def test_success_takes_back_a_failure_that_was_only_noted() -> None:
    status = begun(StageName.TRAIN)
    noted = commit(see(status, job=make_job(status, failing=job_end()), pods=(failed(exit_code=71),)))
    assert noted.failure is not None
    after = commit(see(noted, job=make_job(noted, complete=True), pods=(succeeded(StageName.TRAIN),)))
    assert after.failure is None


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "no result"),
        ("Traceback (most recent call last)", "no result"),
        (RESULTS[StageName.MERGE].to_termination_message(), "is about merge-1"),
        (
            StageResult(
                stage=StageName.PREPARE, attempt=1,
                prepare=PrepareNumbers(samples_train=-1, samples_validation=0, pairs_train=0, pairs_validation=0,
                                       images=0, supervised_tokens=0,
                                       longest_sample_tokens=0, overlong_samples=0),
            ).to_termination_message(),
            "makes no sense",
        ),
    ],
)  # fmt: skip
def test_success_without_a_readable_result_is_a_failure(message: str, why: str) -> None:
    status = begun()
    job = make_job(status, complete=True)
    after = commit(see(status, job=job, pods=(succeeded(StageName.PREPARE, message),)))
    prepare = stage_of(after, StageName.PREPARE)
    assert (prepare.attempts[0].state, prepare.attempts[0].counts, prepare.restarts) == (AttemptState.GONE, True, 1)
    assert after.failure is not None
    assert after.failure.reason == Reason.INTERNAL_ERROR
    assert why in after.failure.message


def test_scores_that_are_not_finite_are_a_failure() -> None:
    result = RESULTS[StageName.EVALUATE].model_dump()
    result["evaluate"]["scores"] = [Score(metric="m", split="s", base=0, tuned=0, samples=1).model_dump()]
    text = StageResult.model_validate(result).to_termination_message().replace('"tuned":0.0', '"tuned":NaN')
    assert "NaN" in text
    status = begun(StageName.EVALUATE)
    after = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(StageName.EVALUATE, text),)))
    assert after.failure is not None
    assert after.failure.reason == Reason.INTERNAL_ERROR


def test_success_whose_pod_is_gone_is_looked_for_on_the_volume() -> None:
    """By the next attempt, which ends at once where it finds the result; the run has done nothing wrong."""
    status = begun()
    after = commit(see(status, job=make_job(status, complete=True)))
    prepare = stage_of(after, StageName.PREPARE)
    assert (prepare.attempts[0].because, prepare.restarts) == (Reason.RESULT_LOST, 0)
    assert prepare.next_attempt_time is not None


def test_result_comes_from_the_first_training_pod() -> None:
    status = begun(StageName.TRAIN)
    first = replace(succeeded(StageName.TRAIN), index=0)
    second = replace(succeeded(StageName.TRAIN, ""), index=1)
    after = commit(see(status, job=make_job(status, complete=True), pods=(second, first)))
    assert stage_of(after, StageName.TRAIN).message == "12 steps over 2 processes, final loss 0.25"


def test_what_attention_came_to_is_told() -> None:
    numbers = TrainNumbers(steps=3, final_loss=0.5, trainable_parameters=1, tokens=1, world_size=1, attention="sdpa")
    result = StageResult(stage=StageName.TRAIN, attempt=1, train=numbers)
    assert describe_result(result) == "3 steps over 1 processes, final loss 0.5, attention sdpa"
    seen = result.model_copy(update={"train": numbers.model_copy(update={"learned_tower": True})})
    assert describe_result(seen) == "3 steps over 1 processes, final loss 0.5, vision tower trained, attention sdpa"
    frozen = result.model_copy(update={"train": numbers.model_copy(update={"frozen_projector": True})})
    assert describe_result(frozen) == "3 steps over 1 processes, final loss 0.5, projector frozen, attention sdpa"


def test_what_validation_has_shown_is_told() -> None:
    def tell(**changes: object) -> str:
        numbers = TrainNumbers(
            steps=30,
            final_loss=0.5,
            trainable_parameters=1,
            tokens=1,
            world_size=1,
            **{"validation_loss": 0.75, **changes},
        )
        return describe_result(StageResult(stage=StageName.TRAIN, attempt=1, train=numbers))

    assert tell() == "30 steps over 1 processes, final loss 0.5, held-out loss 0.75"
    told = tell(validation_exact=0.4, best_step=20, stopped_early=True)
    assert told.endswith(", stopped early, held-out loss 0.75 of step 20, the best, 40% of the answers exact")


def test_groups_that_training_has_too_are_told_beside_the_score() -> None:
    score = Score(metric="exact_match", split="validation", base=0.25, tuned=0.75, samples=8, samples_shared=3)
    result = StageResult(stage=StageName.EVALUATE, attempt=1, evaluate=EvaluateNumbers(scores=(score,), prompts=0))
    told = "exact_match 0.25→0.75 (validation, 8, 3 of groups that training has, too)"
    assert describe_result(result) == told
    evaluation = take_result(begun(StageName.EVALUATE), result).evaluation
    assert evaluation is not None
    assert evaluation.metrics[0].samples_shared == 3
    found = PrepareNumbers(
        samples_train=8, samples_validation=2, pairs_train=9, pairs_validation=3, images=10, supervised_tokens=99,
        longest_sample_tokens=50, overlong_samples=0, groups_validation=2, groups_shared=1, pairs_shared=3,
    )  # fmt: skip
    prepared = StageResult(stage=StageName.PREPARE, attempt=1, prepare=found)
    assert describe_result(prepared).endswith("; 1 of 2 held-out groups are in training, too, with 3 answers")
    data = take_result(begun(StageName.PREPARE), prepared).data
    assert data is not None
    assert (data.groups_validation, data.groups_shared, data.pairs_shared) == (2, 1, 3)


# --- a stage fails


def test_failing_job_is_noted_at_once_and_fails_when_its_pods_are_gone() -> None:
    status = begun(StageName.TRAIN)
    pods = (failed("a", exit_code=71, index=1),)
    noted = commit(see(status, job=make_job(status, failing=job_end()), pods=pods))
    assert noted.phase is Phase.RUNNING
    assert stage_of(noted, StageName.TRAIN).state is StageState.RUNNING
    assert noted.failure is not None
    assert noted.failure.reason == Reason.WORKER_KILLED
    # By the end of the Job no pod is left to ask.
    after = commit(see(noted, job=make_job(noted, failed=job_end()), now=LATER, spec=ONCE))
    assert after.phase is Phase.FAILED
    assert after.completion_time == LATER_TEXT
    assert after.failure == noted.failure
    assert stage_of(after, StageName.TRAIN).state is StageState.FAILED
    assert stage_of(after, StageName.MERGE).state is StageState.PENDING
    assert condition(after, Condition.FAILED) == ("True", Reason.WORKER_KILLED)
    assert condition(after, Condition.TRAINED) == ("False", Reason.WORKER_KILLED)
    assert condition(after, Condition.READY) == ("False", Reason.WORKER_KILLED)
    assert decide(see(after, spec=ONCE)) == Wait()


def test_vanished_job_is_somebodys_doing() -> None:
    after = commit(see(begun(StageName.MERGE)))
    assert after.failure is not None
    assert (after.failure.reason, after.failure.message) == (
        Reason.JOB_DELETED,
        "the Job of merge-1 was deleted while it ran",
    )


def test_job_of_the_same_name_with_another_uid_counts_as_vanished() -> None:
    status = begun(StageName.MERGE)
    after = commit(see(status, job=make_job(status, uid="another", complete=True)))
    assert after.failure is not None
    assert after.failure.reason == Reason.JOB_DELETED


# --- what is written fits the schema


def test_every_status_survives_the_wire() -> None:
    status = begun(StageName.EVALUATE)
    job = make_job(status, complete=True)
    for written in (commit(see()), commit(see(status, job=job, pods=(succeeded(StageName.EVALUATE),)))):
        assert Status.model_validate_json(written.model_dump_json()) == written


def test_new_generation_is_noted() -> None:
    status = begun()
    seen = see(status, job=make_job(status))
    decision = decide(replace(seen, run=replace(seen.run, generation=2)))
    assert isinstance(decision, Commit)
    assert decision.status.observed_generation == 2


def refused() -> tuple[Violation, ...]:
    return (Violation(field="spec.image.reference", value="evil", rule="allows others (policy.x)", fix="use another"),)


def test_what_the_installation_does_not_allow_fails_before_anything_is_made() -> None:
    seen = see(begun(with_job=False), violations=refused())
    status = commit(seen)
    assert status.failure is not None
    assert (status.phase, status.failure.reason, status.failure.stage) == (
        Phase.FAILED, Reason.NOT_ALLOWED, StageName.PREPARE
    )  # fmt: skip
    assert status.failure.message == (
        "spec.image.reference is evil, but this installation allows others (policy.x): use another"
    )
    assert decide(see(status)) == Wait()


def test_a_rule_that_came_later_holds_up_the_next_stage_and_lets_it_go_on() -> None:
    """What is on the volume by then is worth more than a clear end."""
    before = begun(StageName.MERGE, with_job=False)
    status = commit(see(before, violations=refused()))
    merge = stage_of(status, StageName.MERGE)
    assert (status.phase, merge.state) == (Phase.RUNNING, StageState.RUNNING)
    assert merge.message.startswith("waits: spec.image.reference is evil, but")
    assert decide(see(status, violations=refused())) == Wait()
    assert decide(see(status)) == Start(stage=StageName.MERGE, attempt=1)


def test_a_rule_that_came_later_leaves_pods_alone_that_run() -> None:
    status = begun(StageName.TRAIN)
    assert decide(see(status, job=make_job(status), violations=refused())) == Wait(until=told_from(NOW))
