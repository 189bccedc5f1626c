"""What a stage tells the operator: progress while it runs, one result when it ends."""

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from llava_api.base import Lenient
from llava_api.constants import TERMINATION_MESSAGE_MAX_BYTES, GateOutcome, StageName
from llava_api.failures import Reason
from llava_api.model_facts import ModelFacts
from llava_api.spec.publish import MAX_DESTINATIONS
from llava_api.spec.training import MAX_GLOBAL_BATCH
from llava_api.text import cut, show

REPORT_VERSION: Final = 1
LOSSES_KEPT = 60
MAX_NEXT_REPORT_S = 600
"""Longest that an answer may ask a stage to wait with its next report."""


def _fit(max_chars: int, *, multiline: bool = False) -> BeforeValidator:
    """What others wrote, fit to show on both sides; where escaping makes it longer than allowed, it is cut."""

    def fit(value: object) -> object:
        if not isinstance(value, str):
            return value
        shown = show(value, multiline=multiline)
        return value if shown == value else cut(shown, max_chars=max_chars)

    return BeforeValidator(fit)


MAX_SIZE = 2**53
"""Largest number that every reader of JSON takes as it is."""


def _leave_out_untellable(size: object) -> object:
    """None for more bytes than can be told: file systems without a limit (EFS) say that they have 8 EiB."""
    return None if isinstance(size, int) and size > MAX_SIZE else size


Size = Annotated[Annotated[int, Field(ge=0, le=MAX_SIZE)] | None, BeforeValidator(_leave_out_untellable)]


class ProgressReport(Lenient):
    """Body of the POST by which rank 0 reports progress, or in evaluation each pod that of its own part.

    Who is speaking is taken from the token, never from here; ``run_uid``, ``stage`` and ``attempt`` only make
    sure that a late message of an earlier attempt is not taken for news.
    """

    version: Literal[1] = REPORT_VERSION
    run_uid: Annotated[str, Field(max_length=64)]
    stage: StageName
    attempt: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=0, le=2**53)]
    total_steps: Annotated[int, Field(ge=0, le=2**53)]
    """0 while it is not known yet. Steps are optimiser steps in train, samples in prepare and evaluate, tensors
    in merge; bytes while prepare fetches model and data."""
    unit: Literal["steps", "bytes"] = "steps"
    eta_seconds: Annotated[float | None, Field(ge=0, le=1e9)] = None
    epoch: Annotated[float | None, Field(ge=0, le=1e6)] = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    """Real (not padding) tokens per second over all ranks."""
    data_wait_ratio: Annotated[float | None, Field(ge=0, le=1)] = None
    """Fraction of the last steps' time in which training waited for data."""
    mfu: Annotated[float | None, Field(ge=0)] = None
    """Model FLOPs utilisation of the last steps; None without GPUs whose peak is known."""
    checkpoint_step: Annotated[int | None, Field(ge=0, le=2**53)] = None
    resumed_step: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Step that this attempt went on from, in training; 0 where it began anew."""
    validation_step: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Step after which held-out samples were looked at last."""
    validation_loss: float | None = None
    """Held-out loss per supervised token then."""
    validation_exact: Annotated[float | None, Field(ge=0, le=1)] = None
    """Fraction of held-out answers that were exact then."""
    validating_samples: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Held-out samples that the validation under way has looked at; None while there is none."""
    lowest_validation_loss: float | None = None
    """Lowest held-out loss so far."""
    best_step: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Step that is the best so far by validation; None where nothing is selected."""
    peak_gpu_memory_bytes: Size = None
    """Most memory that torch has reserved on one GPU so far, of all ranks; None without GPUs."""
    volume_free_bytes: Size = None
    """Free on the run's volume when the report was sent; None where its file system does not tell."""
    volume_size_bytes: Size = None
    """Size of that volume."""
    losses: Annotated[tuple[float, ...], Field(max_length=LOSSES_KEPT)] = ()
    """Loss of the last logged steps, oldest first."""
    message: Annotated[str, _fit(256), Field(max_length=256)] = ""
    skipped_checkpoints: Annotated[str, _fit(256), Field(max_length=256)] = ""
    """Checkpoints that were damaged, so that training went on from one before."""


class ProgressAnswer(Lenient):
    """Body of the answer to a report that was taken (200).

    A stage that knows of no answer goes by the status alone, which is 2xx. An operator that knows of none answers 204
    without a body; the stage then goes by a pace of its own.
    """

    next_report_seconds: Annotated[float, Field(ge=0, le=MAX_NEXT_REPORT_S)]
    """When the next report is welcome: what comes earlier waits here for its turn to be written. The last report of a
    stage is sent when there is one."""


class StageFailure(Lenient):
    """Why a stage failed."""

    reason: Reason
    message: Annotated[str, _fit(4096, multiline=True), Field(max_length=4096)]
    rank: Annotated[int | None, Field(ge=0, le=2**31)] = None
    """Global rank of the first process that failed, in training."""
    step: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Optimiser steps that were done by then, those of earlier attempts included, in training; None if unknown."""
    attempt_steps: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Those of them that this attempt has done: a failure in its first steps has to do with its size."""
    log_tail: Annotated[str, _fit(65_536, multiline=True)] = ""


class MicroBatch(Lenient):
    """The most that a training process holds at a time in one phase, over all micro-batches that were looked at."""

    rows: Annotated[int, Field(ge=1, le=2**31, description="Rows of the longest one.")]
    tokens: Annotated[int, Field(ge=1, le=2**53, description="Tokens of the longest one: rows x longest row.")]
    pictures: Annotated[int, Field(ge=0, le=2**53, description="Pictures of the one that shows most.")]
    supervised: Annotated[int, Field(ge=0, le=2**53, description="Tokens that are learned, of the one with most.")]

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.tokens < self.rows:
            raise ValueError(f"tokens is {self.tokens}, but each of {self.rows} rows has one at least")
        return self


class PrepareNumbers(Lenient):
    """What prepare found."""

    samples_train: int
    samples_validation: int
    pairs_train: int
    """Questions with an answer; a sample has at least one."""
    pairs_validation: int
    samples_selection: int = 0
    """Held-out samples that select a step; none of them is one of ``samples_validation``."""
    groups_selection: int = 0
    images: int
    supervised_tokens: int
    longest_sample_tokens: int
    overlong_samples: int
    """Samples cut off at spec.training.maxLength."""
    unsupervised_samples: int = 0
    """Samples left out because nothing could be learned from them."""
    samples_mixture: Annotated[int, Field(ge=0)] = 0
    """Samples of the mixture in an epoch, beside ``samples_train``."""
    samples_withheld: Annotated[int, Field(ge=0)] = 0
    """Samples left out of the mixture, because they show or belong to what is held out."""
    samples_retention: Annotated[int, Field(ge=0)] = 0
    """Samples of the retention set."""
    groups_retention: Annotated[int, Field(ge=0)] = 0
    """Groups that these belong to; 0 from an image that does not tell."""
    retention_shared: Annotated[int, Field(ge=0)] = 0
    """Those of the samples that show, ask or belong to what training learns from."""
    samples_alignment: int = 0
    """Samples of phase 1."""
    groups_validation: Annotated[int, Field(ge=0)] = 0
    """Groups that held-out samples belong to."""
    groups_shared: Annotated[int, Field(ge=0)] = 0
    """Those of them that training has samples of, too."""
    pairs_shared: Annotated[int, Field(ge=0)] = 0
    """Held-out questions of these: their score flatters."""
    sufficient_fraction: Annotated[float | None, Field(gt=0, le=0.5)] = None
    """dataset.validation.fraction that would hold out enough groups to tell two models apart; None where there are
    enough, or no fraction does."""
    image_scale: Annotated[float | None, Field(gt=0, le=1e6)] = None
    """By how much the median picture is scaled for the vision tower; None if unknown."""
    text_height_px: Annotated[float | None, Field(ge=0, le=1e6)] = None
    """Height of the median text at the tower's resolution; None where the data does not tell."""
    global_batch: Annotated[int | None, Field(ge=1, le=MAX_GLOBAL_BATCH)] = None
    """What training.batch.global auto has come to; None where it was not asked for."""
    largest: MicroBatch | None = None
    """Of training: what the memory plan counts with; None if unknown."""
    largest_alignment: MicroBatch | None = None
    """Of phase 1."""
    free_bytes: Size = None
    """Free on the run's volume, with all that prepare has put there; None if unknown."""
    flash_attention: bool | None = None
    """Whether flash-attn is in the trainer image, which all stages share; None if unknown."""
    omits_masks: bool | None = None
    """Whether training gives attention a mask only where it needs one; None with an older image, which gives one
    wherever rows are filled up."""
    streams_merge: bool | None = None
    """Whether merging holds a layer at a time; None with an older image, which holds a whole model in fp32."""
    publishes: bool | None = None
    """Whether the image has the publish stage; None from an older one, which has not."""
    model: ModelFacts | None = None
    config_version: Annotated[int, Field(ge=1, le=2**31)] = 1
    """Newest version of the run configuration that the image understands; 1 if it does not tell (an older image)."""


class TrainNumbers(Lenient):
    """What training reached."""

    steps: int
    final_loss: float
    trainable_parameters: int
    tokens: int
    world_size: int
    attention: str = ""
    """What ``attention: auto`` came to, or what was asked for."""
    validation_loss: float | None = None
    """Held-out loss per supervised token of what was taken; None without validation."""
    validation_exact: float | None = None
    """Fraction of held-out answers that it gives exactly."""
    best_step: int | None = None
    """Step whose weights were taken, where validation has selected; None for the last."""
    stopped_early: bool = False
    """Whether training ended before its last step."""
    frozen_projector: bool = False
    """Whether the projector is as it was before."""
    learned_tower: bool = False
    """Whether the vision tower has learned."""


class MergeNumbers(Lenient):
    """What merging proved."""

    tensors_merged: int
    max_logit_difference: float
    """Largest absolute difference in fp32 between base + adapter and merged."""
    max_rounding_difference: float
    """Largest difference of logits that rounding the weights to the merged number format makes."""
    mean_kl_divergence: float | None = None
    """KL(exact || rounded) of the next token that this rounding makes, in nats, mean over the positions compared. None
    from an image that does not report it."""
    peak_memory_bytes: int
    """Of the stage, proof included, above what was in memory before."""


class Score(Lenient):
    """One metric on one set of questions, base against tuned. Bounds are those of 95 % intervals."""

    metric: str
    split: str
    """``validation`` (held out), ``train`` (seen in training) or ``retention`` (what should not be forgotten)."""
    base: float
    """Of the base, asked the better of both ways."""
    tuned: float
    samples: int
    samples_shared: Annotated[int, Field(ge=0)] = 0
    """Those of them whose group training has samples of, too."""
    groups: Annotated[int, Field(ge=0)] = 0
    """Groups of these samples; 0 from an image that does not tell, which knows no bounds either."""
    base_low: float | None = None
    base_high: float | None = None
    tuned_low: float | None = None
    tuned_high: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


class Judgement(Lenient):
    """What a gate says of the tuned model, with the numbers that it goes by. Bounds are those of a 95 % interval."""

    outcome: GateOutcome
    metric: str
    gain: float
    """tuned - base, the base asked the better of both ways."""
    low: float
    high: float
    limit: float
    """What the gain has to be above."""
    samples: Annotated[int, Field(ge=0)]
    groups: Annotated[int, Field(ge=0)]
    smallest_difference: float | None = None
    """Half the interval's width: smaller ones this set cannot show. None where its groups are too few for any."""


class EvaluateNumbers(Lenient):
    """What evaluation measured."""

    scores: tuple[Score, ...]
    """The most important first."""
    prompts: int
    gate: Judgement | None = None
    """None where none is asked for."""
    retention: Judgement | None = None


class Published(Lenient):
    """What now stands at one destination."""

    destination: Annotated[int, Field(ge=0, lt=MAX_DESTINATIONS)]
    """Index in ``publish.destinations``."""
    what: Literal["merged", "adapter"]
    revision: Annotated[str, _fit(100), Field(max_length=100)] = ""
    """The hub's commit, or the digest of a registry's manifest; empty where there is no such thing."""
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """One digest of all files, whichever destination they are at (``files.sha256_listing`` of the trainer)."""
    size_bytes: Annotated[int, Field(ge=0, le=MAX_SIZE)]
    sent_bytes: Annotated[int, Field(ge=0, le=MAX_SIZE)]
    """What this attempt had to send; 0 where everything was there, of an attempt that broke off, say."""


class PublishNumbers(Lenient):
    """What was published."""

    published: Annotated[tuple[Published, ...], Field(max_length=2 * MAX_DESTINATIONS)]


class StageResult(Lenient):
    """The termination message of a stage's first pod: outcome and numbers; everything else is on the volume.

    In evaluation it is that of the pod that has joined what all of them have answered; those of the others have no
    numbers.
    """

    version: Literal[1] = REPORT_VERSION
    stage: StageName
    attempt: int
    failure: StageFailure | None = None
    """None when the stage succeeded."""
    prepare: PrepareNumbers | None = None
    align: TrainNumbers | None = None
    train: TrainNumbers | None = None
    merge: MergeNumbers | None = None
    evaluate: EvaluateNumbers | None = None
    publish: PublishNumbers | None = None
    digests: dict[str, str] = {}
    """sha256 of what the stage made, by artifact name (train, validation, alignment, projector, adapter or weights,
    merged, report, metrics)."""

    def to_termination_message(self) -> str:
        """Serialise into at most 4096 bytes, shortening the log's tail first and the message second.

        Of scores that are too many the last are left out: metrics.json has them all.
        """
        result = self
        while len(text := result.model_dump_json(exclude_none=True).encode()) > TERMINATION_MESSAGE_MAX_BYTES:
            # A character takes up to six bytes in JSON, so a sixth of the excess never cuts off too much.
            excess = max(1, (len(text) - TERMINATION_MESSAGE_MAX_BYTES) // 6)
            if result.failure is None and result.evaluate is not None and len(result.evaluate.scores) > 1:
                scores = result.evaluate.scores[:-1]
                result = result.model_copy(update={"evaluate": result.evaluate.model_copy(update={"scores": scores})})
                continue
            if result.failure is None:
                raise ValueError(f"the result of {self.stage} is {len(text)} bytes long and has nothing to shorten")
            failure = result.failure
            if failure.log_tail:
                # The newest lines are the ones worth keeping.
                failure = failure.model_copy(update={"log_tail": _shorten(failure.log_tail, excess, keep_end=True)})
            else:
                failure = failure.model_copy(update={"message": _shorten(failure.message, excess)})
            result = result.model_copy(update={"failure": failure})
        return text.decode()


def _shorten(text: str, num_chars: int, *, keep_end: bool = False) -> str:
    """Take away so many characters at least."""
    return cut(text, max_chars=len(text) - num_chars, keep_end=keep_end) if len(text) > num_chars else ""
