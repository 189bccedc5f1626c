"""Proves when the plan is made, and that a run which cannot be trained ends before anything of training exists."""

import json
from typing import Any

import pytest

from llava_api.constants import Condition, Phase, StageName
from llava_api.failures import Reason
from llava_api.model_facts import ModelFacts
from llava_api.report import MicroBatch
from llava_api.spec import Spec
from llava_api.status import Data, StageState, Status
from llava_operator.build.common import Platform
from llava_operator.build.config import build_run_config
from llava_operator.deciding import moves, next_attempt
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Wait
from llava_operator.deciding.gpus import KnownGpus, NodeGpus
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.planning import Planned, plan_training
from llava_operator.run import Run, _check_running, attempt_of, current_stage, parse_run, stage_of
from tests.api.test_memory import make_7b
from tests.controller.makers import FROM_SCRATCH, NOW, RESULTS, commit, make_attempt, make_job, make_run, succeeded

PLATFORM = Platform(trainer_image="registry/trainer:1", report_url="https://op-report.system.svc:8443/v1/progress")


def planned_run(status: Status | None = None, *, retry: int = 0, **observed: Any) -> Observation:
    observed.setdefault("now", NOW)
    run = make_run(status, training={"batch": {"perDevice": 16, "global": 128}}, workers={"gpus": 4}, retry=retry)
    return Observation(run=run, **observed)


def end_prepare(nodes: frozenset[NodeGpus]) -> Status:
    status = commit(planned_run())
    numbers = RESULTS[StageName.PREPARE].prepare.model_copy(update={"model": make_7b()})
    result = RESULTS[StageName.PREPARE].model_copy(update={"prepare": numbers})
    pod = succeeded(StageName.PREPARE, result.to_termination_message())
    return commit(planned_run(status, job=make_job(status, complete=True), pods=(pod,), nodes=nodes))


def test_the_plan_is_written_with_the_intent_to_train() -> None:
    status = end_prepare(frozenset())
    assert current_stage(status).name is StageName.TRAIN
    assert (status.plan.per_device_batch, status.plan.accumulation, status.plan.total_steps) == (16, 2, 1)
    assert status.model == make_7b()


def test_the_pass_that_ends_prepare_plans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Data] = []

    def plan(spec: Spec, found: Data, model: ModelFacts | None, gpus: KnownGpus) -> Planned:
        planned.append(found)
        return plan_training(spec, found, model, gpus)

    for module in (moves, next_attempt):
        monkeypatch.setattr(module, "plan_training", plan)
    status = end_prepare(frozenset())
    assert stage_of(status, StageName.TRAIN).attempt == 1
    assert planned == [status.data]


def test_a_plan_that_does_not_fit_ends_the_run_before_anything_of_training_exists() -> None:
    nodes = frozenset({NodeGpus(product="small", memory=2**30, capability=(9, 0))})
    status = end_prepare(nodes)
    assert status.phase is Phase.FAILED
    assert status.failure.reason == Reason.PLAN_DOES_NOT_FIT
    assert status.failure.stage is StageName.TRAIN
    assert status.plan.device_memory_available == "1.0Gi"
    train = next(stage for stage in status.stages if stage.name is StageName.TRAIN)
    assert (train.state, train.attempt, train.attempts) == (StageState.FAILED, 0, ())
    prepared = next(held for held in status.conditions if held.type is Condition.PREPARED)
    assert prepared.status == "True"
    assert decide(planned_run(status)) == Wait()


def test_a_card_that_cannot_do_what_is_asked_ends_the_run() -> None:
    status = end_prepare(frozenset({NodeGpus(product="Tesla-T4", memory=2**40, capability=(7, 5))}))
    assert status.failure.reason == Reason.UNSUPPORTED_DEVICE
    assert "labels of a node with Tesla-T4" in status.failure.message


def test_numbers_that_no_status_can_hold_end_the_run_instead_of_every_pass() -> None:
    status = commit(planned_run())
    numbers = RESULTS[StageName.PREPARE].prepare.model_copy(update={"model": make_7b(), "samples_train": 2**53})
    result = RESULTS[StageName.PREPARE].model_copy(update={"prepare": numbers})
    pod = succeeded(StageName.PREPARE, result.to_termination_message())
    run = make_run(status, training={"epochs": 1000, "batch": {"perDevice": 1, "global": 4}}, workers={"gpus": 4})
    ended = commit(Observation(run=run, job=make_job(status, complete=True), pods=(pod,), now=NOW))
    assert ended.failure.stage is StageName.PREPARE
    assert ended.stages[0].attempts[0].because == Reason.INTERNAL_ERROR


def test_a_run_begun_by_the_version_before_goes_on() -> None:
    """Its status has no align, no model and no plan; its trainer reports no shape of a model."""
    stages = [
        {"name": "prepare", "state": "Running", "attempt": 1, "job": "tiny-prepare-1", "jobUid": "job-1"},
        *({"name": name, "state": "Pending", "attempt": 0} for name in ("train", "merge", "evaluate")),
    ]
    old = Status.model_validate({"observedGeneration": 1, "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                                 "stages": stages, "artifacts": {"volumeClaim": "tiny-run"}})  # fmt: skip
    message = (
        '{"version": 1, "stage": "prepare", "attempt": 1, "prepare": {"samples_train": 9, "samples_validation": 1, '
        '"pairs_train": 9, "pairs_validation": 1, "images": 10, "supervised_tokens": 99, '
        '"longest_sample_tokens": 600, "overlong_samples": 0}, "digests": {"train": "aa", "validation": "bb"}}'
    )
    pod = succeeded(StageName.PREPARE, message)
    job = make_job(old, complete=True, uid="job-1")
    status = commit(planned_run(old, job=job, pods=(pod,), nodes=frozenset({NodeGpus(memory=2**30)})))
    assert current_stage(status).name is StageName.TRAIN
    assert (status.model, status.plan) == (None, None)
    assert [stage.name for stage in status.stages] == ["prepare", "train", "merge", "evaluate"]


def test_a_run_that_was_refused_is_planned_again_when_it_is_retried() -> None:
    """It may have got other nodes; where it has not, it fails again, and is not lost."""
    small = frozenset({NodeGpus(product="small", memory=2**30, capability=(9, 0))})
    status = end_prepare(small)
    again = commit(planned_run(status, retry=1, nodes=small))
    assert (again.phase, again.failure and again.failure.reason) == (Phase.FAILED, Reason.PLAN_DOES_NOT_FIT)
    _check_running(make_run(again))
    large = frozenset({NodeGpus(product="large", memory=2**40, capability=(9, 0))})
    begun = commit(planned_run(again, retry=2, nodes=large))
    train = next(stage for stage in begun.stages if stage.name is StageName.TRAIN)
    assert (train.state, train.attempt, begun.phase) == (StageState.RUNNING, 1, Phase.RUNNING)
    _check_running(make_run(begun))


def test_alignment_is_not_left_out_where_training_was_refused() -> None:
    def look(status: Status | None = None, **observed: Any) -> Observation:
        training = {"method": "full", "batch": {"perDevice": 4, "global": 128}}
        run = make_run(
            status, **{**FROM_SCRATCH, "training": training, "workers": {"gpus": 4}, "retry": 1 if status else 0}
        )
        return Observation(run=run, now=NOW, **observed)

    status = commit(look())
    numbers = RESULTS[StageName.PREPARE].prepare.model_copy(update={"model": make_7b()})
    result = RESULTS[StageName.PREPARE].model_copy(update={"prepare": numbers})
    pod = succeeded(StageName.PREPARE, result.to_termination_message())
    refused = commit(look(status, job=make_job(status, complete=True), pods=(pod,)))
    assert refused.phase is Phase.FAILED, "a pod of 64Gi does not hold what full training takes"
    failed = next(stage for stage in refused.stages if stage.state is StageState.FAILED)
    assert failed.name is StageName.ALIGN


@pytest.mark.parametrize(
    "largest",
    [
        {"rows": 4, "tokens": 3, "pictures": 0, "supervised": 0},
        {"rows": 1, "tokens": 10**30, "pictures": 0, "supervised": 0},
        {"rows": 10**30, "tokens": 10**30, "pictures": 0, "supervised": 0},
    ],
)
def test_micro_batches_that_cannot_be_end_the_attempt_and_not_the_pass(largest: dict[str, int]) -> None:
    """An image of the tenant's own may report anything."""
    status = commit(planned_run())
    said = json.loads(RESULTS[StageName.PREPARE].to_termination_message())
    said["prepare"]["largest"] = largest
    pod = succeeded(StageName.PREPARE, json.dumps(said))
    after = commit(planned_run(status, job=make_job(status, complete=True), pods=(pod,)))
    assert after.stages[0].attempts[0].because == Reason.INTERNAL_ERROR


AUTO: dict[str, Any] = {"training": {"batch": {"perDevice": 16, "global": "auto"}}, "workers": {"gpus": 4}}


def end_prepare_by_the_data(chosen: int | None, spec: dict[str, Any] | None = None) -> Status:
    """Status of a run whose prepare has found 1,000 samples, and chosen a global batch."""

    def look(status: Status | None = None, **observed: Any) -> Observation:
        return Observation(run=make_run(status, **(spec or AUTO)), now=NOW, **observed)

    status = commit(look())
    found = {"model": make_7b(), "samples_train": 1000, "global_batch": chosen}
    numbers = RESULTS[StageName.PREPARE].prepare.model_copy(update=found)
    result = RESULTS[StageName.PREPARE].model_copy(update={"prepare": numbers})
    pod = succeeded(StageName.PREPARE, result.to_termination_message())
    return commit(look(status, job=make_job(status, complete=True), pods=(pod,)))


def read_again(status: Status, **changes: Any) -> Run:
    """The run as the next pass reads it from the API server."""
    spec = make_run(**{**AUTO, **changes}).spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    meta = {"namespace": "team", "name": "invoices", "uid": "run-uid", "resourceVersion": "8"}
    return parse_run({"metadata": meta, "spec": spec, "status": status.model_dump(mode="json", exclude_none=True)})


def test_a_global_batch_by_the_data_is_planned_with_and_its_reason_is_told() -> None:
    status = end_prepare_by_the_data(8)
    assert status.data.global_batch == 8
    plan = status.plan
    assert (plan.global_batch, plan.per_device_batch, plan.accumulation, plan.total_steps) == (8, 2, 1, 125)
    assert plan.global_batch_reason.startswith("1,000 samples in 1 epoch make 125 optimiser steps with it")
    assert plan.warnings == ()


def test_a_number_needs_no_reason_and_a_choice_that_nobody_asked_for_is_left_out() -> None:
    status = end_prepare_by_the_data(
        8, {"training": {"batch": {"perDevice": 16, "global": 128}}, "workers": {"gpus": 4}}
    )
    assert status.data.global_batch is None
    assert (status.plan.global_batch, status.plan.global_batch_reason) == (128, None)


def test_an_image_that_tells_no_choice_has_it_made_by_the_same_rule() -> None:
    assert end_prepare_by_the_data(None).data.global_batch == 8


def test_every_later_attempt_trains_with_what_was_chosen_whatever_size_it_has() -> None:
    status = end_prepare_by_the_data(8)
    run = read_again(status)
    assert (run.spec.training.batch.global_, run.spec.training.batch.per_device) == (8, 2)
    config = build_run_config(attempt_of(read_again(status), stage_of(status, StageName.TRAIN)), PLATFORM)
    assert config.training.batch.num_samples == 8
    # On another number of GPUs it may come out uneven, and is the same.
    for workers, per_device in (({"gpus": 3}, 3), ({"gpus": 1}, 8), ({"gpus": 16}, 1)):
        resized = read_again(status, workers=workers)
        assert (resized.spec.training.batch.global_, resized.spec.training.batch.per_device) == (8, per_device)
        assert decide(Observation(run=resized, now=NOW)) is not None


def test_prepare_is_told_auto() -> None:
    run = make_run(**AUTO)
    config = build_run_config(make_attempt(run, StageName.PREPARE), PLATFORM)
    assert json.loads(config.model_dump_json())["training"]["batch"] == {"perDevice": 16, "global": "auto"}


def test_a_remedy_is_found_where_the_chosen_batch_comes_out_uneven() -> None:
    """40 samples over three processes: no number of rows divides them, and any may be taken."""
    nodes = KnownGpus(memory=30 << 30, memory_from="spec.workers.gpuMemory")
    status = end_prepare_by_the_data(40)
    run = read_again(status, workers={"gpus": 3})
    assert run.spec.training.batch.per_device == 14
    largest = MicroBatch(rows=14, tokens=14 * 2048, pictures=14, supervised=14 * 1024)
    data = status.data.model_copy(update={"largest": largest, "flash_attention": False})
    refusal = plan_training(run.spec, data, status.model, nodes).refusal
    assert refusal is not None
    assert "spec.training.batch.perDevice" in refusal.message
