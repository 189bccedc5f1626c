"""Rows put together by question."""

import pytest

from llava_trainer.evaluation.pairs import pair_rows
from llava_trainer.evaluation.rows import Row


def row(question_id="validation/0/1", model="base", variant="asked", **fields):
    return Row(
        question_id=question_id, set="validation", sample="receipt", number=1, group="shop", question="What colour?",
        references=("red",), model=model, variant=variant, answer=f"{model} {variant}", **fields,
    )  # fmt: skip


def test_rows_are_paired_by_question_in_the_order_of_questions():
    rows = [
        row("validation/7/1"), row("validation/2/1"), row("validation/2/1", "tuned"), row("validation/7/1", "tuned"),
        row("validation/2/1", variant="instructed"), row("validation/2/1", "bare"),
    ]  # fmt: skip
    seventh, second = pair_rows(rows)
    assert (seventh.question_id, second.question_id) == ("validation/7/1", "validation/2/1")
    assert (second.base.answer, second.tuned.answer) == ("base asked", "tuned asked")
    assert second.bare == rows[5]
    assert second.find("base", "instructed") == rows[4]
    assert second.find("tuned", "alone") is None
    assert seventh.bare is None
    told = (second.set, second.sample, second.number, second.group, second.question_type, second.images)
    assert told == ("validation", "receipt", 1, "shop", "", ())
    assert (second.question, second.references) == ("What colour?", ("red",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row(), row(model="tuned")], "question validation/0/1 has two answers of base, asked"),
        ([row()], "question validation/0/1 has no answer of tuned, asked"),
        ([row(model="tuned"), row(variant="alone")], "question validation/0/1 has no answer of base, asked"),
    ],
)
def test_questions_without_exactly_what_is_compared_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        pair_rows(rows)
