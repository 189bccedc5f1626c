"""What evaluation leaves on the volume as metrics.json."""

from typing import Annotated, Any, Literal

from pydantic import Field

from llava_api.base import Lenient
from llava_api.report import Judgement, PrepareNumbers, Score
from llava_api.run_config import RunIdentity
from llava_api.spec import Generation
from llava_trainer.evaluation.draws import NUM_RESAMPLES
from llava_trainer.evaluation.joining import AnswerCounts
from llava_trainer.evaluation.rows import Variant
from llava_trainer.evaluation.shard_file import Repeats


class ModelScore(Lenient):
    """One model's score."""

    right: int
    """Questions whose answer is as good as can be by the metric."""
    value: float
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float


class Difference(Lenient):
    """One score less another one, of the same questions."""

    value: float
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float
    p_value: float
    """Of a two-sided sign-flip test over groups."""


class TypeScore(Lenient):
    """The models' scores on the questions of one type."""

    question_type: str
    samples: int
    groups: int
    base: ModelScore
    tuned: ModelScore
    gain: Difference


class AloneScore(Lenient):
    """The models' scores on questions with earlier turns, asked with them and alone (as a server is asked)."""

    samples: int
    base_after_turns: ModelScore
    tuned_after_turns: ModelScore
    base: ModelScore
    tuned: ModelScore


class SplitScore(Lenient):
    """The models' scores on one set of questions."""

    metric: str
    split: Literal["validation", "train", "retention"]
    samples: int
    """Questions scored."""
    samples_left_out: int = 0
    """Those that the metric has no say about: whose answer is no number, say."""
    samples_shared: int = 0
    """Of the questions scored, those whose group training has samples of, too."""
    groups: int = 0
    """Groups of the questions scored."""
    base: ModelScore
    """Asked the better of both ways."""
    base_variant: Variant = "asked"
    """Which way that is, by this metric on all of the set; instructed only for the questions that were asked so."""
    base_asked: ModelScore | None = None
    """Asked as the dataset asks; None where it was asked in no other way."""
    base_instructed: ModelScore | None = None
    """With LLaVA's instruction for short answers."""
    tuned: ModelScore
    """Asked as it was trained; of the retention set, which it was not trained on, the better of both ways."""
    tuned_variant: Variant = "asked"
    """Which way that is."""
    bare: ModelScore | None = None
    """None where the run was given no adapter."""
    gain: float
    """tuned - base."""
    gain_low: float | None = None
    """Lower end of its 95 % confidence interval."""
    gain_high: float | None = None
    p_value: float | None = None
    """Of a two-sided sign-flip test over groups, that the gain is chance."""
    format: Difference | None = None
    """What the instruction alone is worth: base with it - base without; None where it was not asked so."""
    content: Difference | None = None
    """What is left for training: tuned - base with the instruction."""
    alone: AloneScore | None = None
    """None without questions that have earlier turns."""
    types: tuple[TypeScore, ...] = ()
    """By question type, those with most questions first; empty where the data names none."""

    def to_score(self) -> Score:
        """As the operator is told."""
        return Score(
            metric=self.metric, split=self.split, base=_told(self.base.value), tuned=_told(self.tuned.value),
            samples=self.samples, samples_shared=self.samples_shared, groups=self.groups,
            base_low=_told(self.base.low), base_high=_told(self.base.high), tuned_low=_told(self.tuned.low),
            tuned_high=_told(self.tuned.high), gain_low=_told(self.gain_low), gain_high=_told(self.gain_high),
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
    """Held out first, and of each set by the metrics' order in the spec."""
    answers: tuple[AnswerCounts, ...] = ()
    """How many answers were cut off, or may depend on the batch: by set, model and way of asking."""
    repeats: tuple[Repeats, ...] = ()
    """Of a few questions, how many answers came out otherwise when they were asked again one by one. None in fp32 on a
    CPU, where that changes nothing."""
    unscored: tuple[str, ...] = ()
    """Metrics that have no say about any held-out question."""
    gate: Judgement | None = None
    """None where none is asked for."""
    retention: Judgement | None = None
    resamples: int = NUM_RESAMPLES
    """Of each interval."""
    prompts: int
    """Prompts of the spec that were answered."""
    generation: Generation
    dataset: PrepareNumbers
    seconds: dict[str, float]
    """Time in which each model has answered, in all pods together."""
    versions: dict[str, str]
    """Libraries' versions."""
    origins: Annotated[dict[str, str], Field(default_factory=dict)]
    """Where model and data came from by their role, with the commit of hub repositories."""
    digests: Annotated[dict[str, str], Field(default_factory=dict)]
    """sha256 of what the stages before have handed on, by attempt and name."""
    summary: str = ""
    """All of it in a sentence."""


def _told(value: float | None) -> Any:
    """Without digits that say nothing, since a termination message has little room."""
    return None if value is None else round(value, 6)
