"""What evaluation leaves on the volume as metrics.json, and answers as the report shows them."""

from collections.abc import Iterable
from typing import Literal

from llava_api.base import Lenient
from llava_api.report import PrepareNumbers, Score
from llava_api.run_config import RunIdentity
from llava_api.spec import Generation
from llava_trainer.evaluation.joining import AnswerCounts
from llava_trainer.evaluation.metrics import EXACT_MATCH, Proportion, is_exact_match
from llava_trainer.evaluation.pairs import QuestionAnswers
from llava_trainer.evaluation.rows import QuestionSet
from llava_trainer.evaluation.shard_file import Repeats


class Answer(Lenient):
    """One question with the models' answers."""

    split: QuestionSet
    sample: str
    number: int
    """Which question of the sample, from 1."""
    images: tuple[str, ...]
    question: str
    expected: str | None
    base: str
    """Of what the run began with: the base, with the adapter that it was given, if any."""
    tuned: str
    bare: str | None = None
    """Of the base without that adapter; None where none was given."""
    base_right: bool | None
    """By exact match; None where nothing is expected."""
    tuned_right: bool | None
    bare_right: bool | None = None

    @classmethod
    def of(cls, answers: QuestionAnswers) -> "Answer":
        """Judge the answers to a question, as it was asked, by the dataset's own."""
        expected = answers.references[0] if answers.references else None
        base, tuned = answers.base.answer, answers.tuned.answer
        bare = answers.bare.answer if answers.bare else None
        return cls(
            split=answers.set,
            sample=answers.sample,
            number=answers.number,
            images=answers.images,
            question=answers.question,
            expected=expected,
            base=base,
            tuned=tuned,
            bare=bare,
            base_right=None if expected is None else is_exact_match(base, expected),
            tuned_right=None if expected is None else is_exact_match(tuned, expected),
            bare_right=None if expected is None or bare is None else is_exact_match(bare, expected),
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
    """The models' scores on one split."""

    metric: str
    split: Literal["validation", "train"]
    samples: int
    """Questions scored."""
    samples_shared: int = 0
    """Those of them whose group training has samples of, too."""
    base: ModelScore
    tuned: ModelScore
    bare: ModelScore | None = None
    """None where the run was given no adapter."""
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
    workers: int = 1
    """Pods that have shared the questions."""
    scores: tuple[SplitScore, ...]
    answers: tuple[AnswerCounts, ...] = ()
    """How many answers were cut off, or may depend on the batch: by set, model and way of asking."""
    repeats: tuple[Repeats, ...] = ()
    """Of a few questions, how many answers came out otherwise when they were asked again one by one. None in fp32 on a
    CPU, where that changes nothing."""
    prompts: int
    """Prompts of the spec that were answered."""
    generation: Generation
    dataset: PrepareNumbers
    seconds: dict[str, float]
    """Time in which each model has answered, in all pods together."""
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
    judged = [answer.bare_right for answer in answers if answer.bare_right is not None]
    bare = _model_score(sum(judged), len(judged)) if judged else None
    return SplitScore(
        metric=EXACT_MATCH,
        split=split,
        samples=len(answers),
        samples_shared=num_shared if split == "validation" else 0,
        base=base,
        tuned=tuned,
        bare=bare,
        gain=tuned.value - base.value,
    )


def _model_score(right: int, total: int) -> ModelScore:
    proportion = Proportion(right=right, total=total)
    low, high = proportion.interval()
    return ModelScore(right=right, value=proportion.value, low=low, high=high)
