"""What evaluation's gates say, on its way to people: status, condition, Events, messages, metrics."""

from dataclasses import replace
from typing import Any

import pytest

from llava_api.constants import Condition, GateOutcome, NotificationEvent, Phase, StageName
from llava_api.failures import Reason
from llava_api.report import EvaluateNumbers, Judgement, Score, StageResult
from llava_api.status import ConditionStatus, Status
from llava_operator.acting.transitions import list_transitions
from llava_operator.build.event import build_event
from llava_operator.cache.runs import RunView
from llava_operator.clock import to_time
from llava_operator.deciding.gates import describe_gate
from llava_operator.deciding.results import describe_result, take_result
from tests.controller.exposed import expose
from tests.controller.makers import KEY, NOW, RUN_UID, begun, commit, make_job, make_run, see, succeeded

EVALUATE = StageName.EVALUATE
PASSED, FAILED, UNDECIDED = GateOutcome.PASSED, GateOutcome.FAILED, GateOutcome.UNDECIDED
TOLD = {"notifications": [{"name": "team", "events": list(NotificationEvent), "webhook": {"url": "https://h.example"}}]}


def judge(outcome: GateOutcome, **changes: Any) -> Judgement:
    known = {
        "outcome": outcome, "metric": "anls", "gain": 0.25, "low": 0.125, "high": 0.375, "limit": 0.05, "samples": 60,
        "groups": 20, "smallest_difference": 0.125,
    }  # fmt: skip
    return Judgement.model_validate({**known, **changes})


def result(gate: Judgement | None = None, retention: Judgement | None = None) -> StageResult:
    score = Score(
        metric="anls", split="validation", base=0.25, tuned=0.5, samples=60, groups=20, base_low=0.125, base_high=0.375,
        tuned_low=0.375, tuned_high=0.75, gain_low=0.125, gain_high=0.375,
    )  # fmt: skip
    numbers = EvaluateNumbers(scores=(score,), prompts=0, gate=gate, retention=retention)
    return StageResult(stage=EVALUATE, attempt=1, evaluate=numbers)


def finish(told: StageResult, status: Status | None = None, **spec: Any) -> Status:
    """A run whose evaluation ends with this."""
    status = status or begun(EVALUATE)
    pods = (succeeded(EVALUATE, told.to_termination_message()),)
    return commit(see(status, spec=spec, job=make_job(status, complete=True), pods=pods))


def write_again(status: Status, **spec: Any) -> Status:
    """The next write, for another generation's sake."""
    seen = see(status, spec=spec)
    return commit(replace(seen, run=replace(seen.run, generation=2)))


def gate_passed(status: Status) -> ConditionStatus | None:
    return next((one for one in status.conditions if one.type is Condition.GATE_PASSED), None)


def test_scores_stand_in_the_status_with_their_intervals() -> None:
    status = finish(result())
    assert status.evaluation is not None
    [metric] = status.evaluation.metrics
    assert metric.model_dump(by_alias=False) == {
        "name": "anls", "split": "validation", "base": 0.25, "tuned": 0.5, "gain": 0.25, "samples": 60,
        "samples_shared": 0, "groups": 20, "base_low": 0.125, "base_high": 0.375, "tuned_low": 0.375,
        "tuned_high": 0.75, "gain_low": 0.125, "gain_high": 0.375,
    }  # fmt: skip
    assert describe_result(result()) == "anls 0.25→0.50 (validation, 60, gain +0.12 to +0.38)"


def test_no_condition_where_no_gate_was_asked_for() -> None:
    assert gate_passed(begun(EVALUATE)) is None
    assert gate_passed(finish(result())) is None


@pytest.mark.parametrize(
    ("outcome", "holds"), [(PASSED, "True"), (FAILED, "False"), (UNDECIDED, "Unknown")]
)  # fmt: skip
def test_the_condition_has_the_outcome_and_its_numbers(outcome: GateOutcome, holds: str) -> None:
    status = finish(result(judge(outcome)))
    assert status.phase is Phase.SUCCEEDED, "a gate that fails is no failed run"
    condition = gate_passed(status)
    assert condition is not None
    assert (condition.status, condition.reason) == (holds, outcome)
    assert f"gate {outcome}: anls gained +0.250 (+0.125 to +0.375) and has to be above +0.050" in condition.message
    assert "by 60 questions of 20 groups" in condition.message
    assert {one.type: one.status for one in status.conditions}[Condition.READY] == "True"
    assert status.evaluation is not None
    assert status.evaluation.gate is not None
    assert status.evaluation.gate.outcome is outcome
    assert f"gate {outcome}: anls gained" in describe_result(result(judge(outcome)))


@pytest.mark.parametrize(
    ("gate", "retention", "holds"),
    [
        (PASSED, PASSED, "True"), (PASSED, FAILED, "False"), (FAILED, UNDECIDED, "False"), (UNDECIDED, FAILED, "False"),
        (PASSED, UNDECIDED, "Unknown"), (UNDECIDED, PASSED, "Unknown"),
    ],
)  # fmt: skip
def test_both_have_to_pass(gate: GateOutcome, retention: GateOutcome, holds: str) -> None:
    condition = gate_passed(finish(result(judge(gate), judge(retention))))
    assert condition is not None
    assert condition.status == holds
    assert f"gate {gate}" in condition.message
    assert f"; retention {retention}" in condition.message
    alone = gate_passed(finish(result(retention=judge(retention))))
    assert alone is not None
    assert alone.reason == retention


def test_an_undecided_one_says_what_could_be_shown() -> None:
    assert finish(result(judge(UNDECIDED))).evaluation is not None
    few = judge(UNDECIDED, groups=7, smallest_difference=None)
    for judged, said in ((judge(UNDECIDED), "show no difference below 0.125"), (few, "which takes 8 groups at least")):
        evaluation = take_result(begun(EVALUATE), result(judged)).evaluation
        assert evaluation is not None
        assert evaluation.gate is not None
        assert describe_gate(evaluation.gate).endswith(said)


def test_an_unknown_condition_keeps_its_time() -> None:
    status = finish(result(judge(UNDECIDED)))
    [unknown] = [one for one in status.conditions if one.type is Condition.GATE_PASSED]
    earlier = unknown.model_copy(update={"last_transition_time": "2026-01-01T00:00:00Z"})
    conditions = tuple(earlier if one is unknown else one for one in status.conditions)
    kept = gate_passed(write_again(status.model_copy(update={"conditions": conditions})))
    assert kept is not None
    assert (kept.status, kept.last_transition_time) == ("Unknown", "2026-01-01T00:00:00Z")


@pytest.mark.parametrize("field", ["gain", "low", "high", "limit"])
def test_numbers_that_are_none_are_no_result(field: str) -> None:
    text = result(judge(PASSED, **{field: 0.0625})).to_termination_message().replace("0.0625", "NaN")
    assert "NaN" in text
    status = begun(EVALUATE)
    after = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(EVALUATE, text),)))
    assert after.failure is not None
    assert after.failure.reason == Reason.INTERNAL_ERROR
    assert gate_passed(after) is None


@pytest.mark.parametrize(("outcome", "kind"), [(PASSED, "Normal"), (FAILED, "Warning"), (UNDECIDED, "Warning")])
def test_an_event_tells_of_it(outcome: GateOutcome, kind: str) -> None:
    told = [one for one in list_transitions(finish(result(judge(outcome)))) if one.action == "Judge"]
    assert [(one.type, one.reason, one.time) for one in told] == [(kind, f"Gate{outcome}", to_time(NOW))]
    assert told[0].note.startswith(f"gate {outcome}: anls gained +0.250")
    assert not [one for one in list_transitions(finish(result())) if one.action == "Judge"]


@pytest.mark.parametrize(
    ("outcome", "events"),
    [(PASSED, ["Succeeded"]), (FAILED, ["Succeeded", "GateFailed"]), (UNDECIDED, ["Succeeded", "GateUndecided"])],
)
def test_whoever_asks_is_told_of_it(outcome: GateOutcome, events: list[str]) -> None:
    status = finish(result(judge(outcome)), **TOLD)
    assert [one.event for one in status.notifications] == events
    assert all(f"gate {outcome}: anls gained" in one.message for one in status.notifications)
    last = status.notifications[-1]
    if outcome is not PASSED:
        assert (last.reason, last.stage, last.attempt) == (f"Gate{outcome}", EVALUATE, 1)
    # The next write tells of nothing again.
    assert [one.event for one in write_again(status, **TOLD).notifications] == events


def test_a_receiver_that_comes_later_is_not_told() -> None:
    assert write_again(finish(result(judge(FAILED))), **TOLD).notifications == ()


def test_the_body_of_a_message_has_the_numbers() -> None:
    status = finish(result(judge(FAILED), judge(PASSED)), **TOLD)
    [told] = [one for one in status.notifications if one.event == "GateFailed"]
    event = build_event(make_run(status, **TOLD), told)
    assert event.type == "dev.llava.finetune.run.gatefailed.v1"
    assert event.data.gate is not None
    assert event.data.retention is not None
    assert (event.data.gate.outcome, event.data.retention.outcome) == (FAILED, PASSED)


def test_metrics_tell_of_it() -> None:
    status = finish(result(judge(FAILED), judge(PASSED, limit=-0.02)))
    lines = expose(RunView(key=KEY, uid=RUN_UID, status=status)).splitlines()
    told = [line for line in lines if line.startswith("llava_run_gate_")]
    run = f'name="{KEY.name}",namespace="{KEY.namespace}"'
    assert told == [
        f'llava_run_gate_outcome{{gate="gate",{run},outcome="Failed"}} 1.0',
        f'llava_run_gate_outcome{{gate="retention",{run},outcome="Passed"}} 1.0',
        f'llava_run_gate_gain{{bound="value",gate="gate",{run}}} 0.25',
        f'llava_run_gate_gain{{bound="low",gate="gate",{run}}} 0.125',
        f'llava_run_gate_gain{{bound="high",gate="gate",{run}}} 0.375',
        f'llava_run_gate_gain{{bound="value",gate="retention",{run}}} 0.25',
        f'llava_run_gate_gain{{bound="low",gate="retention",{run}}} 0.125',
        f'llava_run_gate_gain{{bound="high",gate="retention",{run}}} 0.375',
        f'llava_run_gate_limit{{gate="gate",{run}}} 0.05',
        f'llava_run_gate_limit{{gate="retention",{run}}} -0.02',
    ]


def test_more_scores_than_the_status_holds_leave_the_last_out() -> None:
    many = tuple(Score(metric=f"m{i}", split="validation", base=0, tuned=1, samples=1) for i in range(20))
    told = StageResult(stage=EVALUATE, attempt=1, evaluate=EvaluateNumbers(scores=many, prompts=0))
    evaluation = take_result(begun(EVALUATE), told).evaluation
    assert evaluation is not None
    assert [metric.name for metric in evaluation.metrics] == [f"m{i}" for i in range(16)]
    assert len(describe_result(told).split(", gain")) == 1
