"""Rows put together by question: what each model has answered to it, asked in each way. Pure functions of rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llava_trainer.evaluation.rows import Model, QuestionSet, Row, Variant


@dataclass(frozen=True, kw_only=True)
class QuestionAnswers:
    """One question with everything that was answered to it.

    Base and tuned have answered it as it was asked; whoever else has, and in which other ways, ``find`` tells.
    """

    rows: Mapping[tuple[Model, Variant], Row]

    @property
    def base(self) -> Row:
        """Of what the run began with: the base, with the adapter that it was given, if any."""
        return self.rows["base", "asked"]

    @property
    def tuned(self) -> Row:
        """Of the tuned model."""
        return self.rows["tuned", "asked"]

    @property
    def bare(self) -> Row | None:
        """Of the base without the adapter that it was given; None where none was."""
        return self.find("bare")

    def find(self, model: Model, variant: Variant = "asked") -> Row | None:
        """The row of one model, asked in one way; None where it was not asked so."""
        return self.rows.get((model, variant))

    # What is the same in all rows.

    @property
    def question_id(self) -> str:
        """Of ``Row``, as all that follows."""
        return self.tuned.question_id

    @property
    def set(self) -> QuestionSet:
        """Which set it is of."""
        return self.tuned.set

    @property
    def sample(self) -> str:
        """The sample's id."""
        return self.tuned.sample

    @property
    def number(self) -> int:
        """Which question of the sample, from 1."""
        return self.tuned.number

    @property
    def group(self) -> str:
        """The sample's group key."""
        return self.tuned.group

    @property
    def question_type(self) -> str:
        """What kind of question it is; empty where the data does not say."""
        return self.tuned.question_type

    @property
    def images(self) -> tuple[str, ...]:
        """Images shown so far."""
        return self.tuned.images

    @property
    def question(self) -> str:
        """What is asked."""
        return self.tuned.question

    @property
    def references(self) -> tuple[str, ...]:
        """Right answers, the dataset's own first."""
        return self.tuned.references


def pair_rows(rows: Iterable[Row]) -> tuple[QuestionAnswers, ...]:
    """Put rows together by question, in the order in which questions come first.

    Raises:
        ValueError: two rows answer one question for the same model asked in the same way, or base or tuned have not
            answered one as it was asked; the question is named.
    """
    questions: dict[str, dict[tuple[Model, Variant], Row]] = {}
    for row in rows:
        answered = questions.setdefault(row.question_id, {})
        if (row.model, row.variant) in answered:
            raise ValueError(f"question {row.question_id} has two answers of {row.model}, {row.variant}")
        answered[row.model, row.variant] = row
    for question_id, answered in questions.items():
        for model in ("base", "tuned"):
            if (model, "asked") not in answered:
                raise ValueError(f"question {question_id} has no answer of {model}, asked")
    return tuple(QuestionAnswers(rows=answered) for answered in questions.values())
