"""Which questions a report shows: the worst regressions, the best gains, and some at random. Pure, and seeded."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llava_trainer.evaluation.pairs import QuestionAnswers
from llava_trainer.evaluation.rows import Row, Variant

Judge = Callable[[Row], float | None]
"""Score of one answer from 0 to 1; None where it has none."""
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A question with the scores of its answers."""

    question: QuestionAnswers
    base: float
    tuned: float

    @property
    def change(self) -> float:
        """Tuned - base."""
        return self.tuned - self.base


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Questions of one set, no question twice."""

    regressions: tuple[Judged, ...]
    """Where tuned is worse than base, the worst first."""
    gains: tuple[Judged, ...]
    """Where it is better, the best first."""
    drawn: tuple[Judged, ...]
    """Of all others, at random, in the questions' order."""
    num_worse: int
    num_better: int
    num_questions: int
    """Judged ones."""

    @property
    def num_shown(self) -> int:
        """Questions that are shown."""
        return len(self.regressions) + len(self.gains) + len(self.drawn)


def judge_questions(
    questions: Iterable[QuestionAnswers],
    judge: Judge,
    *,
    base_variant: Variant = "asked",
    tuned_variant: Variant = "asked",
) -> tuple[Judged, ...]:
    """The questions that ``judge`` can judge, each model's answer being that to the better way of asking it.

    Args:
        questions: of one set.
        judge: scores answers.
        base_variant: that way; questions that were not asked so count as they were asked.
        tuned_variant: the same of the tuned model.
    """
    return tuple(
        Judged(question=question, base=base, tuned=tuned)
        for question in questions
        if (base := judge(question.find("base", base_variant) or question.base)) is not None
        and (tuned := judge(question.find("tuned", tuned_variant) or question.tuned)) is not None
    )


def choose_examples(judged: Sequence[Judged], *, most_changed: int, most_drawn: int, seed: int = _SEED) -> Examples:
    """Choose of the questions of one set.

    Args:
        judged: all of them.
        most_changed: regressions, and as many gains, that are shown at most. Which of equal ones is drawn by ``seed``.
        most_drawn: others that are shown at most.
        seed: decides what is drawn.
    """
    order = list(range(len(judged)))
    random.Random(seed).shuffle(order)
    worse = sorted((index for index in order if judged[index].change < 0), key=lambda index: judged[index].change)
    better = sorted((index for index in order if judged[index].change > 0), key=lambda index: -judged[index].change)
    shown = {*worse[:most_changed], *better[:most_changed]}
    others = [index for index in order if index not in shown]
    return Examples(
        regressions=tuple(judged[index] for index in worse[:most_changed]),
        gains=tuple(judged[index] for index in better[:most_changed]),
        drawn=tuple(judged[index] for index in sorted(others[:most_drawn])),
        num_worse=len(worse),
        num_better=len(better),
        num_questions=len(judged),
    )
