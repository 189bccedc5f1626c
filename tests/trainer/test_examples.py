"""Which questions a report shows."""

from collections.abc import Sequence

from llava_trainer.evaluation.examples import Judged, choose_examples, judge_questions
from llava_trainer.evaluation.pairs import QuestionAnswers, pair_rows
from llava_trainer.evaluation.rows import Model, Row


def make_row(number: int, model: Model, answer: str, references: tuple[str, ...] = ("x",)) -> Row:
    return Row(
        question_id=f"validation/{number}/1", set="validation", sample=str(number), number=1, group="", question="?",
        references=references, model=model, answer=answer,
    )  # fmt: skip


def make_questions(scores: Sequence[tuple[float, float]]) -> tuple[QuestionAnswers, ...]:
    rows = []
    for number, (base, tuned) in enumerate(scores):
        rows += [make_row(number, "base", str(base)), make_row(number, "tuned", str(tuned))]
    return pair_rows(rows)


def judge(row: Row) -> float | None:
    return float(row.answer) if row.references else None


def numbers(judged: Sequence[Judged]) -> list[int]:
    return [int(one.question.sample) for one in judged]


def test_the_worst_and_the_best_come_first_and_nothing_twice() -> None:
    scores = [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.5, 0.25), (0.5, 0.9), (0.0, 0.0), (1.0, 0.5)]
    found = choose_examples(judge_questions(make_questions(scores), judge), most_changed=2, most_drawn=9)
    assert numbers(found.regressions) == [1, 6]
    assert numbers(found.gains) == [2, 4]
    assert numbers(found.drawn) == [0, 3, 5]
    assert (found.num_worse, found.num_better, found.num_questions, found.num_shown) == (3, 2, 7, 7)


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    judged = judge_questions(make_questions([(0.0, 0.0)] * 200 + [(0.0, 1.0)] * 50), judge)
    first = choose_examples(judged, most_changed=5, most_drawn=10)
    assert first == choose_examples(judged, most_changed=5, most_drawn=10)
    other = choose_examples(judged, most_changed=5, most_drawn=10, seed=1)
    assert numbers(first.drawn) != numbers(other.drawn)
    assert numbers(first.gains) != numbers(other.gains), "of equal ones not always the file's first"
    assert numbers(first.drawn) == sorted(numbers(first.drawn))


def test_each_models_answer_is_that_to_the_way_that_is_scored() -> None:
    rows = [make_row(0, "base", "0"), make_row(0, "tuned", "0")]
    rows += [row.model_copy(update={"variant": "instructed", "answer": "1"}) for row in rows]
    (found,) = judge_questions(pair_rows(rows), judge, base_variant="instructed", tuned_variant="instructed")
    assert (found.base, found.tuned) == (1.0, 1.0)
    (found,) = judge_questions(pair_rows(rows), judge, base_variant="instructed")
    assert (found.base, found.tuned) == (1.0, 0.0)


def test_questions_without_a_score_are_left_out() -> None:
    rows = [make_row(0, "base", "1", ()), make_row(0, "tuned", "1", ())]
    assert judge_questions(pair_rows(rows), judge) == ()
    assert choose_examples((), most_changed=1, most_drawn=1).num_shown == 0
