"""Runs with alignment: whole ones, decision by decision, and what goes wrong in phase 1."""

from dataclasses import replace
from typing import Any

import pytest

from llava_api.constants import Condition, Phase, StageName
from llava_api.failures import Reason
from llava_api.report import PrepareNumbers, StageFailure, StageResult
from llava_api.status import Progress, StageState, Status
from llava_operator.acting.transitions import list_transitions
from llava_operator.deciding.observation import Observation
from llava_operator.run import stage_of
from tests.controller.makers import (
    FROM_SCRATCH,
    NOW,
    NOW_TEXT,
    RESULTS,
    commit,
    failed,
    job_end,
    make_job,
    make_run,
    succeeded,
    walk,
)

ALONE = FROM_SCRATCH | {"training": {"method": "none", "batch": {"perDevice": 1, "global": 2}}}


def see(status: Status | None, spec: dict[str, Any], **observed: Any) -> Observation:
    return Observation(run=make_run(status, **spec), now=NOW, **observed)


@pytest.mark.parametrize(
    ("spec", "stages"),
    [
        (FROM_SCRATCH, ["prepare", "align", "train", "merge", "evaluate"]),
        (ALONE, ["prepare", "align", "merge", "evaluate"]),
    ],
    ids=["both phases", "method none"],
)
def test_a_whole_run(spec: dict[str, Any], stages: list[str]) -> None:
    status = walk(spec)
    assert status.phase is Phase.SUCCEEDED
    assert [stage.name for stage in status.stages] == stages
    conditions = {condition.type: condition.status for condition in status.conditions}
    # Nobody has asked for a gate, or to have it published.
    left_out = {Condition.GATE_PASSED, Condition.PUBLISHED} | (set() if "train" in stages else {Condition.TRAINED})
    bad = {Condition.FAILED, Condition.DISTURBED, Condition.SUSPENDED, Condition.STALLED, Condition.RECONCILING}
    assert conditions == {kind: "False" if kind in bad else "True" for kind in set(Condition) - left_out}
    assert stage_of(status, StageName.ALIGN).message == "4 steps over 2 processes, final loss 2.5"
    assert status.artifacts is not None
    assert status.artifacts.projector == "projector"
    assert status.artifacts.adapter == ("adapter" if "train" in stages else None)
    assert status.artifacts.digests["projector"] == "p"
    reasons = [transition.reason for transition in list_transitions(status)]
    assert reasons.index("Prepared") < reasons.index("Aligning") < reasons.index("Aligned") < reasons.index("Merging")
    assert ("Training" in reasons) is ("train" in stages)


def test_progress_of_alignment_is_its_own() -> None:
    status = walk(FROM_SCRATCH, StageName.ALIGN)
    progress = Progress(stage=StageName.ALIGN, attempt=1, pod_uid="u", step=3, total_steps=4, eta_seconds=9,
                        last_update_time=NOW_TEXT)  # fmt: skip
    status = commit(see(status, FROM_SCRATCH, job=make_job(status), progress=progress))
    assert status.summary is not None
    assert (status.summary.stage, status.summary.step, status.summary.percent) == ("align", "3/4", "75")
    after = commit(see(status, FROM_SCRATCH, job=make_job(status, complete=True), pods=(succeeded(StageName.ALIGN),)))
    assert after.summary is not None
    assert (after.summary.stage, after.summary.step) == ("train", "")


def test_the_first_rank_that_failed_in_alignment_is_the_one_to_show() -> None:
    status = walk(FROM_SCRATCH, StageName.ALIGN)
    lost = StageFailure(reason=Reason.RENDEZVOUS_FAILED, message="lost the others")
    cause = StageFailure(reason=Reason.LOSS_NOT_FINITE, message="in step 2 the loss is nan", rank=1)
    pods = (
        replace(failed("pod-0", exit_code=72, failure=lost, stage=StageName.ALIGN), index=0),
        replace(failed("pod-1", exit_code=67, failure=cause, stage=StageName.ALIGN, after_s=1), index=1),
    )
    after = commit(see(status, FROM_SCRATCH, job=make_job(status, failed=job_end()), pods=pods))
    assert after.phase is Phase.FAILED
    assert after.failure is not None
    assert (after.failure.reason, after.failure.stage, after.failure.rank) == ("LossNotFinite", StageName.ALIGN, 1)
    assert stage_of(after, StageName.ALIGN).state is StageState.FAILED
    assert stage_of(after, StageName.TRAIN).state is StageState.PENDING
    aligned = next(condition for condition in after.conditions if condition.type is Condition.ALIGNED)
    assert (aligned.status, aligned.reason) == ("False", "LossNotFinite")


def test_a_run_that_only_merges_an_adapter_goes_from_preparing_to_merging() -> None:
    model = {"source": "pvc://models/llava", "adapter": "pvc://earlier/adapter"}
    status = walk({"model": model, "training": ALONE["training"]})
    assert [stage.name for stage in status.stages] == ["prepare", "merge", "evaluate"]
    assert (status.phase, status.plan) == (Phase.SUCCEEDED, None)


def test_with_method_full_there_are_weights_and_no_adapter() -> None:
    spec = {"training": {"method": "full", "batch": {"perDevice": 1, "global": 2}}}
    status = walk(spec, StageName.TRAIN)
    told = RESULTS[StageName.TRAIN].model_copy(update={"digests": {"weights": "w"}}).to_termination_message()
    after = commit(see(status, spec, job=make_job(status, complete=True), pods=(succeeded(StageName.TRAIN, told),)))
    assert after.artifacts is not None
    assert (after.artifacts.adapter, after.artifacts.weights) == (None, "weights")


def test_what_there_is_to_align_on_is_told() -> None:
    status = commit(see(None, FROM_SCRATCH))
    numbers = RESULTS[StageName.PREPARE].prepare
    assert isinstance(numbers, PrepareNumbers)
    told = StageResult(
        stage=StageName.PREPARE, attempt=1, prepare=numbers.model_copy(update={"samples_alignment": 5})
    ).to_termination_message()
    after = commit(
        see(status, FROM_SCRATCH, job=make_job(status, complete=True), pods=(succeeded(StageName.PREPARE, told),))
    )
    assert "10 pictures, 5 to align on" in stage_of(after, StageName.PREPARE).message
