"""What evaluation leaves on the volume: the lines of answers.jsonl, and metrics.json."""

from collections.abc import Iterable
from typing import Literal

from llava_api.base import Lenient
from llava_api.report import PrepareNumbers, Score
from llava_api.run_config import RunIdentity
from llava_api.spec import Generation
from llava_trainer.data.questions import Question, Split
from llava_trainer.evaluation.metrics import EXACT_MATCH, Proportion, is_exact_match


class Answer(Lenient):
    """One question with both models' answers."""

    split: Split
    sample: str
    number: int
    """Which question of the sample, from 1."""
    images: tuple[str, ...]
    question: str
    expected: str | None
    base: str
    tuned: str
    base_right: bool | None
    """By exact match; None where nothing is expected."""
    tuned_right: bool | None

    @classmethod
    def of(cls, question: Question, base: str, tuned: str) -> "Answer":
        """Judge both answers to a question."""
        expected = question.expected
        return cls(
            split=question.split,
            sample=question.sample,
            number=question.number,
            images=question.images,
            question=question.text,
            expected=expected,
            base=base,
            tuned=tuned,
            base_right=None if expected is None else is_exact_match(base, expected),
            tuned_right=None if expected is None else is_exact_match(tuned, expected),
        )


class ModelScore(Lenient):
    """One model's score."""

    right: int
    value: float
    """Right answers by all."""
    low: float
    """Lower end of the 95 % confidence interval (Wilson)."""
    high: float


class SplitScore(Lenient):
    """Both models' scores on one split."""

    metric: str
    split: Literal["validation", "train"]
    samples: int
    """Questions scored."""
    samples_shared: int = 0
    """Those of them whose group training has samples of, too."""
    base: ModelScore
    tuned: ModelScore
    gain: float
    """tuned - base."""

    def to_score(self) -> Score:
        """As the operator is told."""
        return Score(
            metric=self.metric, split=self.split, base=self.base.value, tuned=self.tuned.value, samples=self.samples,
            samples_shared=self.samples_shared,
        )  # fmt: skip


class Metrics(Lenient):
    """metrics.json: scores, and what they were measured with."""

    version: Literal[1] = 1
    run: RunIdentity
    finished_at: str
    """RFC 3339, UTC."""
    device: str
    dtype: str
    scores: tuple[SplitScore, ...]
    prompts: int
    """Prompts of the spec that were answered."""
    generation: Generation
    dataset: PrepareNumbers
    seconds: dict[str, float]
    """Time of each phase."""
    versions: dict[str, str]
    """Libraries' versions."""


def score_answers(answers: Iterable[Answer], *, num_shared: int = 0) -> tuple[SplitScore, ...]:
    """Scores of each split that has questions, held-out ones first.

    Args:
        answers: of both models.
        num_shared: held-out questions whose group training has samples of, too.
    """
    rows = list(answers)
    return tuple(
        _score_split(split, [answer for answer in rows if answer.split == split], num_shared)
        for split in ("validation", "train")
        if any(answer.split == split for answer in rows)
    )


def _score_split(split: Literal["validation", "train"], answers: list[Answer], num_shared: int) -> SplitScore:
    base = _model_score(sum(answer.base_right is True for answer in answers), len(answers))
    tuned = _model_score(sum(answer.tuned_right is True for answer in answers), len(answers))
    return SplitScore(
        metric=EXACT_MATCH,
        split=split,
        samples=len(answers),
        samples_shared=num_shared if split == "validation" else 0,
        base=base,
        tuned=tuned,
        gain=tuned.value - base.value,
    )


def _model_score(right: int, total: int) -> ModelScore:
    proportion = Proportion(right=right, total=total)
    low, high = proportion.interval()
    return ModelScore(right=right, value=proportion.value, low=low, high=high)
