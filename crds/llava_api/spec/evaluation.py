"""The comparison of the tuned model with its base."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.names import MAX_SHARDS
from llava_api.rules import rule, rules
from llava_api.schema import DESCRIBED_AS
from llava_api.spec.dataset import Dataset
from llava_api.spec.values import RelativePath, Resources, make_resources

MetricName = Literal["exact_match", "vqa_accuracy", "anls", "token_f1", "rouge_l", "yes_no", "number"]
"""What ``evaluation.metrics`` chooses from."""
YesNoPart = Literal["yes_no_precision", "yes_no_recall", "yes_no_f1"]
"""Scores that come with yes_no, which is the accuracy."""
ScoreName = Literal[MetricName, YesNoPart]
MAX_METRICS = 7


class Prompt(Strict):
    """A question for both models whose answers appear in the report."""

    image: Annotated[RelativePath | None, Field(description="Picture to ask about, relative to dataset.images.")] = None
    text: Annotated[str, Field(min_length=1, max_length=4096, description="The question.")]


class Generation(Strict):
    """How answers to the prompts are generated. Scores always use greedy decoding, so that they repeat exactly."""

    temperature: Annotated[
        float, Field(ge=0, le=10, description="Sampling temperature of answers to prompts; 0 = greedy.")
    ] = 0.2
    top_p: Annotated[
        float | None, Field(gt=0, le=1, description="Nucleus sampling: smallest share of probability kept; null = off.")
    ] = None
    num_beams: Annotated[int, Field(ge=1, le=16, description="Beams of beam search; 1 = off.")] = 1
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of sampling.")] = 0
    max_new_tokens: Annotated[
        int, Field(ge=1, le=8192, description="Most tokens of one answer, for prompts and scores.")
    ] = 512
    load: Annotated[
        Literal["none", "8bit", "4bit"],
        Field(
            description="How the models are loaded to answer, base and tuned alike: none (the default, since that is "
            "the model that is handed on) leaves their weights as they are; 8bit (LLM.int8()) and 4bit (NF4) quantise "
            "the language model's linear layers with bitsandbytes, for a GPU that they do not fit into or to score "
            "what will be served. Answers may then depend on which questions are asked at a time; how many do is told."
        ),
    ] = "none"


class EvaluationWorkers(Strict):
    """The pods that evaluate. Each answers a part of the questions by itself, and is tried again by itself."""

    replicas: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_SHARDS,
            description="Pods that share the questions: twice as many take about half the time, and each loads both "
            "models. With more than one the volume must be ReadWriteMany.",
        ),
    ] = 1
    gpus: Annotated[
        int | None,
        Field(ge=0, le=1, description="GPUs of each pod; 0 evaluates on the CPU. Left out: 1."),
    ] = None


class Gate(Strict):
    """By how much the tuned model must be better than its base on held-out questions."""

    metric: Annotated[
        ScoreName | None,
        Field(
            description="Metric that decides, one of evaluation.metrics; with yes_no there also one of its parts. Left "
            "out: the first of them."
        ),
    ] = None
    minimum_gain: Annotated[
        float,
        Field(
            ge=-1,
            lt=1,
            description="What tuned - base has to be above, in units of the metric (0.05 = 5 points), the base being "
            "asked the better of both ways. 0 asks for any gain at all.",
        ),
    ] = 0.0
    use: Annotated[
        Literal["lowerBound", "pointValue"],
        Field(
            description="lowerBound: passed where the lower end of the gain's 95 % interval is above minimumGain, "
            "failed where the upper end is below it, undecided in between. pointValue: the measured gain decides, "
            "whatever chance may have made of it. Of fewer than 8 groups nothing is decided."
        ),
    ] = "lowerBound"


class Retention(Strict):
    """A second set, of what the model could do before, by which is told what it has forgotten."""

    dataset: Annotated[
        Dataset,
        Field(
            description="Where it is and how it is read, as spec.dataset: questions of general use, for instance. All "
            "of it is asked and nothing learned: validation is not read. What of spec.mixture shows its pictures, "
            "names its groups or asks its questions is left out there, and counted. What of it belongs to what "
            "spec.dataset trains on is counted (status.data.retentionShared): it was learned anew.",
            json_schema_extra={DESCRIBED_AS: "spec.dataset"},
        ),
    ]
    metric: Annotated[
        ScoreName | None,
        Field(description="Metric that is compared, one of evaluation.metrics. Left out: the first of them."),
    ] = None
    maximum_loss: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="How much of the base's score may be lost, in units of the metric (0.02 = 2 points). Passed "
            "where the whole 95 % interval of tuned - base is above -maximumLoss, failed where all of it is below, "
            "undecided in between and of fewer than 8 groups. Small sets cannot show small losses: 0.02 takes about "
            "140 groups even where nothing was lost.",
        ),
    ] = 0.02


class Evaluation(Strict):
    """The stage that compares the tuned model with its base."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.gate) || !has(self.gate.metric) || self.gate.metric in self.metrics || "
                "(self.gate.metric.startsWith('yes_no_') && 'yes_no' in self.metrics)",
                "evaluation.gate.metric must be one of evaluation.metrics (yes_no brings yes_no_precision, "
                "yes_no_recall and yes_no_f1): add it there, or choose another one",
                message_expression=(
                    "'evaluation.gate.metric is %s but must be one of evaluation.metrics, which is %s (yes_no brings "
                    "yes_no_precision, yes_no_recall and yes_no_f1): add it there, or choose another one'"
                    ".format([self.gate.metric, self.metrics.join(', ')])"
                ),
                field=".gate.metric",
            ),
            rule(
                "!has(self.retention) || !has(self.retention.metric) || self.retention.metric in self.metrics || "
                "(self.retention.metric.startsWith('yes_no_') && 'yes_no' in self.metrics)",
                "evaluation.retention.metric must be one of evaluation.metrics (yes_no brings yes_no_precision, "
                "yes_no_recall and yes_no_f1): add it there, or choose another one",
                field=".retention.metric",
            ),
            rule(
                "!has(self.gpus) || !has(self.workers.gpus) || self.gpus == self.workers.gpus",
                "gpus is the older name of workers.gpus, and must be the same where both are set: remove "
                "spec.evaluation.gpus",
                field=".gpus",
            ),
        )
    )

    metrics: Annotated[
        tuple[MetricName, ...],
        Field(
            min_length=1,
            max_length=MAX_METRICS,
            json_schema_extra={"x-kubernetes-list-type": "set"},
            description="How answers are scored; the first is the score that kubectl get shows. exact_match, "
            "vqa_accuracy (VQA v2; only of questions with 4 references or more), anls, token_f1, rouge_l, yes_no "
            "(accuracy; with precision, recall and F1 of yes; only of questions whose answer is yes or no), number "
            "(only of questions whose answer is a number). The best of several references counts.",
        ),
    ] = ("exact_match",)
    number_tolerance: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="By what part of the right number an answer may be off for the metric number. 0.05, ChartQA's "
            "relaxed accuracy; 0: not at all.",
        ),
    ] = 0.05
    gate: Annotated[
        Gate | None,
        Field(
            description="Judge whether the tuned model is better (status.evaluation.gate, condition GatePassed). A "
            "gate that fails is no failed run. Left out: nothing is judged."
        ),
    ] = None
    retention: Annotated[
        Retention | None,
        Field(
            description="Judge what was forgotten (status.evaluation.retention, condition GatePassed). Left out: "
            "nothing is judged."
        ),
    ] = None
    prompts: Annotated[
        tuple[Prompt, ...], Field(max_length=32, description="Questions for both models, shown in the report.")
    ] = ()
    generation: Annotated[Generation, Field(description="How answers are generated.")] = Generation()
    training_samples: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Training samples that are scored as well (shown apart from the held-out score), to tell "
            "learning by heart from learning; 0 = off. They are drawn by whole groups with training.seed, as held-out "
            "samples are.",
        ),
    ] = 0
    workers: Annotated[EvaluationWorkers, Field(description="The pods that evaluate.")] = EvaluationWorkers()
    gpus: Annotated[
        int | None,
        Field(ge=0, le=1, description="Older name of workers.gpus, which counts where that is left out."),
    ] = None
    resources: Annotated[Resources, Field(description="Resources of each of its pods besides its GPU.")] = (
        make_resources("4", "40Gi")
    )

    @property
    def num_gpus(self) -> int:
        """GPUs of each pod, by whichever name they are asked for."""
        return next((gpus for gpus in (self.workers.gpus, self.gpus) if gpus is not None), 1)
