"""From rows to scores and the gate: the better base, format and content, questions alone, types, and what is judged."""

from collections.abc import Sequence
from typing import Any

import pytest

from llava_api.constants import GateOutcome
from llava_api.report import EvaluateNumbers, StageResult
from llava_api.spec import Evaluation
from llava_trainer.evaluation.gate import judge_gate, judge_retention
from llava_trainer.evaluation.metrics import select_metrics
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import SplitScore
from llava_trainer.evaluation.scoring import MAX_TYPES, score_rows

RIGHT, WRONG = "red", "blue"
ALL = ("exact_match", "vqa_accuracy", "anls", "token_f1", "rouge_l", "yes_no", "number")


def ask(
    number: int,
    *,
    base: bool | str,
    tuned: bool | str,
    instructed: bool | str | None = None,
    tuned_instructed: bool | str | None = None,
    alone: tuple[bool, bool] | None = None,
    bare: bool | None = None,
    **fields: Any,
) -> list[Row]:
    """Rows of a question: who answers it rightly, or with which text."""
    told: dict[str, Any] = {
        "question_id": f"{fields.get('set', 'validation')}/{number}/1", "set": "validation", "sample": str(number),
        "number": 1, "group": str(number), "question": "?", "references": (RIGHT,), **fields,
    }  # fmt: skip
    asked: list[tuple[str, str, bool | str | None]] = [
        ("base", "asked", base), ("tuned", "asked", tuned), ("base", "instructed", instructed), ("bare", "asked", bare),
        ("tuned", "instructed", tuned_instructed),
        *(zip(("base", "tuned"), ("alone", "alone"), alone, strict=True) if alone else ()),
    ]  # fmt: skip
    return [
        Row(model=model, variant=variant, answer=said if isinstance(said, str) else RIGHT if said else WRONG, **told)
        for model, variant, said in asked
        if said is not None
    ]


def retaining(maximum_loss: float) -> Evaluation:
    """An evaluation with a retention set."""
    dataset = {"source": "pvc://a/", "format": "llava", "file": "a.json"}
    return Evaluation.model_validate({"retention": {"dataset": dataset, "maximumLoss": maximum_loss}})


def score(rows: Sequence[list[Row]], *names: str, **fields: Any) -> tuple[SplitScore, ...]:
    metrics = select_metrics(names or ("exact_match",), number_tolerance=0.05)
    return score_rows([row for asked in rows for row in asked], metrics, **fields)


def test_base_and_tuned_are_compared_on_every_question_with_intervals_of_groups() -> None:
    [found] = score([ask(i, base=i < 2, tuned=i < 9) for i in range(10)], num_shared=3)
    assert (found.metric, found.split, found.samples, found.groups) == ("exact_match", "validation", 10, 10)
    assert (found.base.right, found.base.value, found.tuned.right, found.tuned.value) == (2, 0.2, 9, 0.9)
    assert found.gain == pytest.approx(0.7)
    assert found.gain_low is not None
    assert found.gain_high is not None
    assert 0.1 < found.gain_low < 0.7 < found.gain_high <= 1.0
    assert found.base.low < 0.2 < found.base.high < found.tuned.low + 0.3
    assert found.p_value == 2 / 2**7
    assert found.samples_shared == 3
    assert (found.base_variant, found.base_asked, found.format, found.content) == ("asked", None, None, None)
    assert (found.bare, found.alone, found.types) == (None, None, ())


def test_questions_of_one_group_are_one_observation() -> None:
    questions = [ask(i, base=False, tuned=True, group="one scan") for i in range(30)]
    [found] = score(questions)
    assert (found.samples, found.groups) == (30, 1)
    assert found.gain == 1.0
    assert found.gain_low is not None
    assert found.gain_low < 0


def test_the_base_is_asked_the_better_of_both_ways() -> None:
    """Of ten questions, six are asked with the instruction, which helps with five and spoils one."""
    questions = [ask(i, base=False, instructed=True, tuned=True) for i in range(5)]
    questions += [ask(5, base=True, instructed=False, tuned=True)]
    questions += [ask(i, base=i == 6, tuned=True) for i in range(6, 10)]
    [found] = score(questions)
    assert found.base_variant == "instructed"
    assert found.base_asked is not None
    assert found.base_instructed is not None
    assert (found.base_asked.value, found.base_instructed.value, found.base.value) == (0.2, 0.6, 0.6)
    assert found.format is not None
    assert found.content is not None
    assert found.format.value == pytest.approx(0.4)
    assert found.content.value == pytest.approx(0.4)
    assert found.format.value + found.content.value == pytest.approx(found.tuned.value - found.base_asked.value)
    assert found.gain == pytest.approx(0.4)


def test_an_instruction_that_does_not_help_is_told_and_not_taken() -> None:
    [found] = score([ask(i, base=i < 5, instructed=i < 2, tuned=True) for i in range(10)])
    assert (found.base_variant, found.base.value, found.gain) == ("asked", 0.5, 0.5)
    assert found.format is not None
    assert found.format.value == pytest.approx(-0.3)
    [level] = score([ask(i, base=i < 5, instructed=i >= 5, tuned=True) for i in range(10)])
    assert level.base_variant == "asked"


def test_the_better_way_is_chosen_by_each_metric() -> None:
    questions = [ask(i, base="a red house", instructed=RIGHT if i < 5 else WRONG, tuned=RIGHT) for i in range(10)]
    exact, f1 = score(questions, "exact_match", "token_f1")
    assert (exact.base_variant, exact.base.value) == ("instructed", 0.5)
    assert (f1.base_variant, f1.base.value) == ("asked", pytest.approx(2 / 3))


def test_questions_with_earlier_turns_are_scored_alone_as_well() -> None:
    questions = [ask(i, base=False, tuned=True, alone=(False, i < 3)) for i in range(4)]
    [found] = score([*questions, *(ask(i, base=False, tuned=False) for i in range(4, 10))])
    assert (found.samples, found.tuned.value) == (10, 0.4)
    assert found.alone is not None
    assert found.alone.samples == 4
    assert (found.alone.tuned_after_turns.value, found.alone.tuned.value) == (1.0, 0.75)
    assert (found.alone.base_after_turns.value, found.alone.base.value) == (0.0, 0.0)


def test_the_bare_base_is_scored_where_it_was_asked() -> None:
    [found] = score([ask(i, base=True, tuned=True, bare=i < 5) for i in range(10)])
    assert found.bare is not None
    assert (found.bare.right, found.bare.value, found.gain) == (5, 0.5, 0.0)


def test_sets_are_scored_apart_and_prompts_not_at_all() -> None:
    rows = [
        *(ask(i, base=False, tuned=True, set="train") for i in range(3)),
        *(ask(i, base=True, tuned=False, set="retention") for i in range(3)),
        *(ask(i, base=False, tuned=False) for i in range(3)),
        ask(0, base="hello", tuned="hi", set="prompt", references=()),
    ]
    found = score(rows, num_shared=2)
    assert [(one.split, one.gain) for one in found] == [("validation", 0.0), ("train", 1.0), ("retention", -1.0)]
    assert [one.samples_shared for one in found] == [2, 0, 0]
    assert score([rows[-1]]) == ()


def test_each_metric_says_how_many_questions_it_counted() -> None:
    questions = [
        *(ask(i, base=WRONG, tuned=RIGHT) for i in range(3)),
        *(ask(i, base="no", tuned="Yes.", references=("yes",)) for i in range(3, 5)),
        *(ask(i, base="5", tuned="$7", references=("7.00",)) for i in range(5, 9)),
        ask(9, base=WRONG, tuned=RIGHT, references=(RIGHT,) * 4),
    ]
    found = {one.metric: (one.samples, one.samples_left_out) for one in score(questions, *ALL)}
    assert found == {
        "exact_match": (10, 0), "vqa_accuracy": (1, 9), "anls": (10, 0), "token_f1": (10, 0), "rouge_l": (10, 0),
        "yes_no": (2, 8), "yes_no_precision": (2, 8), "yes_no_recall": (2, 8), "yes_no_f1": (2, 8), "number": (4, 6),
    }  # fmt: skip


def test_a_metric_that_judges_no_question_has_no_score() -> None:
    assert [one.metric for one in score([ask(0, base=False, tuned=True)], "vqa_accuracy", "anls")] == ["anls"]


def test_scores_by_question_type_are_those_with_most_questions() -> None:
    questions = [ask(i, base=False, tuned=i % 2 == 0, question_type="colour") for i in range(6)]
    questions += [ask(i, base=True, tuned=True, question_type="count", group="g") for i in range(6, 9)]
    questions += [ask(9, base=True, tuned=False)]
    [found] = score(questions)
    assert [(one.question_type, one.samples, one.groups) for one in found.types] == [
        ("colour", 6, 6), ("count", 3, 1), ("", 1, 1),
    ]  # fmt: skip
    assert [one.gain.value for one in found.types] == [0.5, 0.0, -1.0]
    many = [ask(i, base=False, tuned=True, question_type=f"type {i:02}") for i in range(MAX_TYPES + 5)]
    [found] = score([*many, ask(99, base=False, tuned=True, question_type="type 24")])
    assert len(found.types) == MAX_TYPES
    assert found.types[0].question_type == "type 24"


def test_the_base_of_a_type_is_asked_as_that_of_the_set() -> None:
    questions = [ask(i, base=False, instructed=True, tuned=True, question_type="colour") for i in range(5)]
    questions += [ask(i, base=True, instructed=False, tuned=True, question_type="count") for i in range(5, 7)]
    [found] = score(questions)
    assert [(one.question_type, one.base.value) for one in found.types] == [("colour", 1.0), ("count", 0.0)]


def test_a_question_that_is_not_answered_once_by_each_is_refused() -> None:
    rows = ask(0, base=False, tuned=True)
    with pytest.raises(ValueError, match="question validation/0/1 has no answer of tuned, asked"):
        score([rows[:1]])
    with pytest.raises(ValueError, match="question validation/0/1 has two answers of base, asked"):
        score([rows, rows[:1]])


# --- the gate


def gate(questions: list[list[Row]], *, metrics: Sequence[str] = ("exact_match",), **settings: Any) -> Any:
    evaluation = Evaluation.model_validate({"metrics": metrics, "gate": settings})
    return judge_gate(score(questions, *metrics), evaluation)


def clear(number: int) -> list[list[Row]]:
    return [ask(i, base=i % 5 == 0, tuned=i % 5 != 1) for i in range(number)]


def test_a_gate_passes_where_the_whole_interval_is_above_its_limit() -> None:
    judged = gate(clear(50))
    assert judged.outcome is GateOutcome.PASSED
    assert (judged.metric, judged.limit, judged.samples, judged.groups) == ("exact_match", 0.0, 50, 50)
    assert judged.gain == pytest.approx(0.6)
    assert 0.3 < judged.low < 0.6 < judged.high
    assert judged.smallest_difference == pytest.approx((judged.high - judged.low) / 2, abs=1e-6)


def test_it_fails_where_the_whole_interval_is_below() -> None:
    assert gate(clear(50), minimumGain=0.9).outcome is GateOutcome.FAILED
    assert gate([ask(i, base=True, tuned=False) for i in range(50)]).outcome is GateOutcome.FAILED


def test_it_is_undecided_in_between_and_says_what_could_be_shown() -> None:
    judged = gate(clear(50), minimumGain=0.6)
    assert judged.outcome is GateOutcome.UNDECIDED
    assert 0.05 < judged.smallest_difference < 0.3
    assert gate([ask(i, base=True, tuned=True) for i in range(50)]).outcome is GateOutcome.UNDECIDED


def test_it_is_undecided_with_fewer_than_eight_groups_however_clear_they_are() -> None:
    seven = gate([ask(i, base=False, tuned=True, group=str(i % 7)) for i in range(70)])
    assert (seven.outcome, seven.groups, seven.smallest_difference) == (GateOutcome.UNDECIDED, 7, None)
    point = gate([ask(i, base=False, tuned=True, group=str(i % 7)) for i in range(70)], use="pointValue")
    assert point.outcome is GateOutcome.UNDECIDED
    assert gate([ask(i, base=False, tuned=True) for i in range(8)]).outcome is GateOutcome.PASSED


@pytest.mark.parametrize(("limit", "outcome"), [(0.59, "Passed"), (0.61, "Failed")])
def test_the_point_value_decides_where_it_is_told_to(limit: float, outcome: str) -> None:
    assert gate(clear(50), minimumGain=limit, use="pointValue").outcome == outcome


def test_a_point_value_that_is_just_the_limit_is_not_above_it() -> None:
    same = [ask(i, base=True, tuned=True) for i in range(20)]
    assert gate(same, use="pointValue").outcome is GateOutcome.FAILED


def test_it_goes_by_its_own_metric_or_the_first_and_by_the_better_base() -> None:
    questions = [ask(i, base="a red car", tuned=RIGHT) for i in range(20)]
    assert gate(questions, metrics=["token_f1", "exact_match"]).metric == "token_f1"
    assert gate(questions, metrics=["token_f1", "exact_match"], metric="exact_match").gain == 1.0
    asked = [ask(i, base=False, instructed=True, tuned=True) for i in range(20)]
    assert gate(asked).gain == 0.0
    yes = [ask(i, base="no", tuned="yes", references=("yes",)) for i in range(10)]
    assert gate(yes, metrics=["yes_no"], metric="yes_no_f1").outcome is GateOutcome.PASSED


def test_it_looks_at_held_out_questions_alone() -> None:
    seen = [ask(i, base=False, tuned=True, set="train") for i in range(50)]
    judged = gate(seen)
    assert (judged.outcome, judged.samples, judged.low, judged.high) == (GateOutcome.UNDECIDED, 0, -1.0, 1.0)


def test_nothing_is_judged_unasked() -> None:
    assert judge_gate(score(clear(20)), Evaluation()) is None


@pytest.mark.parametrize(
    ("num_lost", "maximum_loss", "outcome"),
    [(0, 0.1, "Passed"), (30, 0.1, "Failed"), (12, 0.1, "Undecided"), (30, 0.5, "Passed")],
)
def test_retention_is_judged_by_what_is_lost(num_lost: int, maximum_loss: float, outcome: str) -> None:
    questions = [ask(i, base=True, tuned=i >= num_lost, set="retention") for i in range(100)]
    judged = judge_retention(score(questions), retaining(maximum_loss))
    assert (judged.outcome, judged.limit, judged.groups) == (outcome, -maximum_loss, 100)
    assert judged.gain == pytest.approx(-num_lost / 100)


def test_a_model_that_has_not_changed_has_forgotten_nothing() -> None:
    """Of a set that never says how long its answers should be either is wrong, until it is told."""
    questions = [
        ask(i, base="It is red.", tuned="It is red.", instructed=i < 190, tuned_instructed=i < 190, set="retention")
        for i in range(200)
    ]
    [found] = score(questions)
    assert (found.base_variant, found.tuned_variant, found.base, found.gain) == (
        "instructed", "instructed", found.tuned, 0.0,
    )  # fmt: skip
    assert found.content is not None
    assert found.content.value == 0.0
    assert judge_retention(score(questions), retaining(0.05)).outcome is GateOutcome.PASSED


def test_what_was_forgotten_is_told_whichever_way_the_tuned_model_answers_better() -> None:
    questions = [
        ask(i, base=False, tuned=i < 20, instructed=True, tuned_instructed=False, set="retention") for i in range(100)
    ]
    [found] = score(questions)
    assert (found.base_variant, found.tuned_variant) == ("instructed", "asked")
    assert found.gain == pytest.approx(-0.8)
    assert judge_retention(score(questions), retaining(0.05)).outcome is GateOutcome.FAILED


def test_retention_of_few_groups_is_undecided() -> None:
    questions = [ask(i, base=True, tuned=True, set="retention") for i in range(7)]
    assert judge_retention(score(questions), retaining(0.5)).outcome is GateOutcome.UNDECIDED


def test_every_score_crosses_in_a_termination_message() -> None:
    questions = [
        ask(i, base="1234.5", tuned="yes", instructed="no", references=("yes",) * 4, set=name, group=f"{i % 9}")
        for name in ("validation", "train", "retention")
        for i in range(21)
    ]
    scores = score(questions, "exact_match", "vqa_accuracy", "anls", "token_f1", "rouge_l", "yes_no")
    assert len(scores) == 27
    evaluation = Evaluation.model_validate({"metrics": ["yes_no"], "gate": {"metric": "yes_no_recall"}})
    judged = judge_gate(scores, evaluation)
    numbers = EvaluateNumbers(scores=tuple(one.to_score() for one in scores), prompts=32, gate=judged, retention=judged)
    message = StageResult(
        stage="evaluate", attempt=12, evaluate=numbers, digests={"report": "a" * 64, "metrics": "b" * 64}
    ).to_termination_message()
    assert len(message.encode()) <= 4096
    told = StageResult.model_validate_json(message).evaluate
    assert told is not None
    assert told.scores == numbers.scores[: len(told.scores)]
    assert len(told.scores) >= 9
    assert (told.gate, told.retention) == (judged, judged)
