"""Held-out samples while it trains: when they are looked at, and what follows."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Strict


class ValidationAnswers(Strict):
    """A few held-out questions that the model answers at each validation, for people to read."""

    questions: Annotated[
        int,
        Field(ge=1, le=8, description="Questions that are answered each time, the same ones drawn by training.seed."),
    ] = 4
    max_new_tokens: Annotated[int, Field(ge=1, le=256, description="Most tokens of an answer.")] = 64


class TrainingValidation(Strict):
    """Held-out loss, and the share of held-out answers that greedy decoding would give exactly, while it trains."""

    every_steps: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Optimiser steps between two validations. There is one more at the end."),
    ]
    samples: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Held-out samples that are looked at each time, the same ones drawn by training.seed; all of "
            "them where there are fewer. Each costs a forward pass.",
        ),
    ] = 256
    answers: Annotated[
        ValidationAnswers | None,
        Field(
            description="Have the model answer a few held-out questions at each validation, greedily, for the report. "
            "Not with zero.stage 3. Left out: none."
        ),
    ] = None


class KeepBest(Strict):
    """Which weights become the result: the best that validation has seen, not the last."""

    by: Annotated[
        Literal["loss", "exact"],
        Field(
            description="What is best: the lowest held-out loss a token (`loss`), or the largest share of held-out "
            "answers that are exact (`exact`). Loss often has its lowest point before answers are at their best."
        ),
    ] = "loss"


class EarlyStopping(Strict):
    """When training ends before its last step, because it does not get better any more."""

    patience: Annotated[
        int, Field(ge=1, le=1000, description="Validations in a row without an improvement after which it ends.")
    ]
    minimum_delta: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="What counts as an improvement: at least so much better than the best so far, in the unit of "
            "keepBest.by (of loss where keepBest is left out).",
        ),
    ] = 0.0
