"""The comparison of the tuned model with its base."""

from typing import Annotated

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.names import MAX_SHARDS
from llava_api.rules import rule, rules
from llava_api.spec.values import RelativePath, Resources, make_resources


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


class Evaluation(Strict):
    """The stage that compares the tuned model with its base."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.gpus) || !has(self.workers.gpus) || self.gpus == self.workers.gpus",
                "gpus is the older name of workers.gpus, and must be the same where both are set: remove "
                "spec.evaluation.gpus",
                field=".gpus",
            )
        )
    )

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
            "learning by heart from learning; 0 = off.",
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
