"""The status of a LlavaFineTune: written by the operator only, read by people, ``kubectl wait`` and the metrics.

Instants are RFC 3339 strings in UTC with seconds, as Kubernetes writes them.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from llava_api.base import Lenient
from llava_api.constants import MAX_NOTIFICATION_NAME, Condition, Phase, StageName
from llava_api.model_facts import ModelFacts
from llava_api.report import LOSSES_KEPT, MicroBatch

FIRST_YEAR, LAST_YEAR = 1970, 9000


def _check_instant(text: str) -> str:
    # The API server's date-time lets through what is none: 30 February, the year 0, an instant without a zone.
    try:
        instant = datetime.fromisoformat(text)
        # Others are nobody's clock's, and calculating with them may go beyond what can be held.
        if instant.tzinfo is not None and FIRST_YEAR <= instant.astimezone(UTC).year <= LAST_YEAR:
            return text
    except (ValueError, OverflowError):
        pass
    raise ValueError("is no instant as Kubernetes writes it, like 2026-11-01T12:00:00Z")


Time = Annotated[
    str,
    AfterValidator(_check_instant),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]
Short = Annotated[str, Field(max_length=256)]
MAX_TEXT = 4096
"""Characters of the longest text in a status; the API server refuses a status with a longer one."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0, le=2**53, json_schema_extra={"format": "int64"})]


class ConditionStatus(Lenient):
    """One condition, in Kubernetes' form."""

    type: Annotated[Condition, Field(description="What the condition is about.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether it holds.")]
    reason: Annotated[Short, Field(description="Why, in one CamelCase word.")]
    message: Annotated[Text, Field(description="Why, for a person.")] = ""
    last_transition_time: Annotated[Time, Field(description="When status last changed.")]
    observed_generation: Annotated[Count | None, Field(description="Generation of the spec it was made from.")] = None


class StageState(StrEnum):
    """State of one stage. One that is Running has been begun and not ended: an attempt is under way, or is to come."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class AttemptState(StrEnum):
    """State of one attempt of a stage."""

    QUEUED = "Queued"
    """Its Job is held back by a queue (Kueue)."""
    STARTING = "Starting"
    """Committed to: its Job exists or is about to, and no pod of it runs yet."""
    RUNNING = "Running"
    STOPPING = "Stopping"
    """It is over, for the reason that ``because`` names, and its pods are being stopped."""
    GONE = "Gone"
    """No pod of it runs any more, or those that might cannot be reached and are waited for no longer."""


ATTEMPTS_KEPT = 12
"""Attempts of a stage that its status tells of, the newest."""
SUCCEEDED = "Succeeded"
"""Why the attempt of a stage ended that made its result."""


class AttemptSettings(Lenient):
    """What an attempt runs with: decided when it is committed to, whatever becomes of the spec meanwhile.

    What is left out is as in the spec: of an attempt that an operator began which froze nothing.
    """

    replicas: Annotated[Count | None, Field(description="Pods of its Job.")] = None
    gpus: Annotated[Count | None, Field(description="GPUs of each pod.")] = None
    per_device_batch: Annotated[Count | None, Field(description="Samples that a process holds at a time.")] = None
    asked_batch: Annotated[
        Count | None, Field(description="What the spec asked for instead, where a GPU's memory did not suffice for it.")
    ] = None
    accumulation: Annotated[Count | None, Field(description="Micro-batches that a process runs for one step.")] = None
    image: Annotated[Text | None, Field(description="Trainer image.")] = None
    config_version: Annotated[Count, Field(description="Version of the run configuration that it is given.")] = 1
    queue: Annotated[Short | None, Field(description="Queue that lets it start.")] = None
    avoided_nodes: Annotated[
        tuple[Short, ...],
        Field(max_length=16, description="Nodes on which it should not run, if others will do."),
    ] = ()


class AttemptStatus(Lenient):
    """One attempt of a stage: one Job, which runs once."""

    number: Annotated[Count, Field(description="Which attempt, from 1.")]
    state: Annotated[AttemptState, Field(description="How far it is.")] = AttemptState.STARTING
    because: Annotated[Short, Field(description="Why it stops or has stopped; empty while it goes on.")] = ""
    message: Annotated[Short, Field(description="The same for a person.")] = ""
    counts: Annotated[
        bool | None, Field(description="Whether it counts as a restart (training.maxRestarts), once it is over.")
    ] = None
    job_uid: Annotated[Short | None, Field(description="UID of its Job, once it has been seen.")] = None
    settings: Annotated[AttemptSettings, Field(description="What it runs with.")] = AttemptSettings()
    start_time: Annotated[Time | None, Field(description="When it was committed to.")] = None
    admitted_time: Annotated[Time | None, Field(description="When its queue let it start.")] = None
    running_time: Annotated[Time | None, Field(description="When a pod of it was first seen to run.")] = None
    stop_time: Annotated[Time | None, Field(description="When it began to stop.")] = None
    completion_time: Annotated[Time | None, Field(description="When it was gone.")] = None
    from_step: Annotated[Count | None, Field(description="Step that it went on from.")] = None
    to_step: Annotated[Count | None, Field(description="Last step that it reported.")] = None
    pod: Annotated[Short | None, Field(description="Pod that failed first.")] = None
    node: Annotated[Short | None, Field(description="Node of that pod.")] = None


class StageStatus(Lenient):
    """One stage of the run."""

    name: Annotated[StageName, Field(description="Which stage.")]
    state: Annotated[StageState, Field(description="How far it is.")] = StageState.PENDING
    attempt: Annotated[Count, Field(description="Number of its newest attempt, from 1; 0 before the first.")] = 0
    attempts: Annotated[
        tuple[AttemptStatus, ...],
        Field(
            max_length=ATTEMPTS_KEPT,
            description="The newest attempts, oldest first.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
        ),
    ] = ()
    dropped_attempts: Annotated[
        dict[Annotated[str, Field(max_length=63)], Count],
        Field(max_length=64, description="How many older attempts ended for which reason."),
    ] = {}
    restarts: Annotated[
        Count, Field(description="Attempts that ended by a failure of the run's own, since the run was last retried.")
    ] = 0
    fruitless: Annotated[
        Count, Field(description="How many of the newest of them in a row ended at no later step than those before.")
    ] = 0
    furthest_step: Annotated[Count, Field(description="Latest step at which one of them ended.")] = 0
    next_attempt_time: Annotated[Time | None, Field(description="When the next attempt begins, at the earliest.")] = (
        None
    )
    start_time: Annotated[Time | None, Field(description="When it was begun.")] = None
    completion_time: Annotated[Time | None, Field(description="When it ended.")] = None
    message: Annotated[Text, Field(description="What it found or made, or what it waits for.")] = ""
    reason: Annotated[
        Short, Field(description="Why it waits, or why its last attempt ended while the next is to come; else empty.")
    ] = ""
    reason_time: Annotated[Time | None, Field(description="Since when that reason holds.")] = None

    @property
    def newest(self) -> AttemptStatus | None:
        """The newest attempt; None before the first."""
        return self.attempts[-1] if self.attempts else None

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, value: object) -> object:
        """Statuses of operators that knew one attempt a stage have it in the stage itself."""
        if not isinstance(value, dict) or "attempts" in value or not value.get("attempt"):
            return value
        state = {"Running": "Starting"}.get(value.get("state", ""), "Gone")
        attempt = {"number": value["attempt"], "state": state, "jobUid": value.get("jobUid")}
        times = {name: value[name] for name in ("startTime", "completionTime") if value.get(name)}
        return {**value, "attempts": [{**attempt, **times}]}


class Summary(Lenient):
    """What ``kubectl get lft`` shows, as strings."""

    stage: Annotated[Short, Field(description="The stage that runs, or ran last.")] = ""
    step: Annotated[Short, Field(description="Step and total of that stage, like 120/734.")] = ""
    percent: Annotated[Short, Field(description="How much of that stage is done, in percent.")] = ""
    eta: Annotated[Short, Field(description="Time to that stage's end, like 12m.")] = ""
    attempt: Annotated[Short, Field(description="Number of that stage's newest attempt.")] = ""
    restarts: Annotated[Short, Field(description="Restarts of the run that count, over all stages.")] = ""
    score: Annotated[Short, Field(description="Held-out score of base and tuned model, like 0.02→0.97.")] = ""


class Progress(Lenient):
    """The last progress report that was accepted."""

    stage: Annotated[StageName, Field(description="Stage that reported.")]
    attempt: Annotated[Count, Field(description="Its attempt.")]
    pod_uid: Annotated[Short, Field(description="UID of the pod that reported.")]
    step: Annotated[Count, Field(description="Steps done: optimiser steps in train, samples in prepare and evaluate, "
                                             "tensors in merge.")]  # fmt: skip
    total_steps: Annotated[Count, Field(description="Steps in all; 0 while unknown.")]
    unit: Annotated[
        Literal["steps", "bytes"], Field(description="What step and totalSteps count; bytes while sources are fetched.")
    ] = "steps"
    message: Annotated[Short, Field(description="What the stage is doing, where it says so.")] = ""
    eta_seconds: Annotated[Count | None, Field(description="Estimated seconds to the stage's end.")] = None
    epoch: Annotated[float | None, Field(description="Passes through the dataset so far.")] = None
    loss: Annotated[float | None, Field(description="Loss of the last step, per supervised token.")] = None
    learning_rate: Annotated[float | None, Field(description="Current learning rate of the adapter.")] = None
    grad_norm: Annotated[float | None, Field(description="Norm of the last step's gradient.")] = None
    samples_per_second: Annotated[float | None, Field(description="Samples per second over all processes.")] = None
    tokens_per_second: Annotated[float | None, Field(description="Real tokens per second over all processes.")] = None
    checkpoint_step: Annotated[Count | None, Field(description="Step of the newest complete checkpoint.")] = None
    resumed_step: Annotated[Count | None, Field(description="Step that the attempt went on from.")] = None
    skipped_checkpoints: Annotated[
        Short, Field(description="Checkpoints that were damaged, so that training went on from one before.")
    ] = ""
    losses: Annotated[
        tuple[float, ...], Field(max_length=LOSSES_KEPT, description="Losses of the last logged steps, oldest first.")
    ] = ()
    last_update_time: Annotated[Time, Field(description="When the report came.")]
    step_time: Annotated[
        Time | None, Field(description="When the first report of this step came, if there were several.")
    ] = None


class Data(Lenient):
    """What prepare found."""

    samples_train: Annotated[Count, Field(description="Samples to train on.")]
    samples_validation: Annotated[Count, Field(description="Samples held out.")]
    pairs_train: Annotated[Count, Field(description="Questions with an answer to train on.")]
    pairs_validation: Annotated[Count, Field(description="Questions with an answer held out.")]
    images: Annotated[Count, Field(description="Different pictures.")]
    supervised_tokens: Annotated[Count, Field(description="Tokens that training learns from, over one epoch.")]
    longest_sample_tokens: Annotated[Count, Field(description="Tokens of the longest sample, image tokens included.")]
    overlong_samples: Annotated[Count, Field(description="Samples cut off at spec.training.maxLength.")]
    unsupervised_samples: Annotated[
        Count, Field(description="Samples left out because nothing could be learned from them.")
    ] = 0
    samples_alignment: Annotated[Count, Field(description="Samples of phase 1.")] = 0
    largest: Annotated[
        MicroBatch | None, Field(description="The most that a training process holds at a time; unknown if left out.")
    ] = None
    largest_alignment: Annotated[MicroBatch | None, Field(description="The same, in phase 1.")] = None
    free_bytes: Annotated[Count | None, Field(description="Free on the volume after prepare; unknown if left out.")] = (
        None
    )
    flash_attention: Annotated[
        bool | None, Field(description="Whether flash-attn is in the trainer image; unknown if left out.")
    ] = None


class PlanTerm(Lenient):
    """One part of the memory that training takes."""

    name: Annotated[Short, Field(description="weights, gradients, optimizer, activations, head, ...")]
    gibibytes: Annotated[float, Field(description="Memory on one GPU, or of one pod, in GiB.")]


class Plan(Lenient):
    """What training will take, calculated before any GPU is taken."""

    device_memory: Annotated[Short, Field(description="Peak memory of one GPU, like 61.3Gi.")]
    device_memory_available: Annotated[
        Short | None,
        Field(description="Memory that the GPUs have, or the largest of different ones; unknown if left out."),
    ] = None
    terms: Annotated[tuple[PlanTerm, ...], Field(max_length=16, description="What the memory is taken by.")] = ()
    pod_memory: Annotated[
        Short | None, Field(description="Peak memory of one training pod, without /dev/shm and caches, like 24.3Gi.")
    ] = None
    pod_memory_available: Annotated[
        Short | None, Field(description="What spec.workers.resources gives a pod, without /dev/shm.")
    ] = None
    pod_terms: Annotated[
        tuple[PlanTerm, ...], Field(max_length=16, description="What the pod's memory is taken by.")
    ] = ()
    per_device_batch: Annotated[Count, Field(description="Samples that one process holds at a time.")]
    accumulation: Annotated[Count, Field(description="Micro-batches that a process runs for one step.")]
    total_steps: Annotated[Count, Field(description="Optimiser steps of training.")]
    alignment_steps: Annotated[Count | None, Field(description="Optimiser steps of alignment.")] = None
    checkpoint_size: Annotated[
        Short | None, Field(description="What one checkpoint takes on the volume, like 4.4Gi.")
    ] = None
    checkpoint_seconds: Annotated[
        Count | None,
        Field(description="Seconds in which a checkpoint is expected to be on the volume, at 125 MiB a second."),
    ] = None
    checkpoints_size: Annotated[
        Short | None,
        Field(description="What all that lie there at a time take: checkpoint.keep, and the one being written."),
    ] = None
    storage: Annotated[
        Short | None,
        Field(description="The most that checkpoints, results and merged model take on the volume at any time."),
    ] = None
    storage_available: Annotated[
        Short | None,
        Field(description="What was free on the volume after prepare; spec.storage.size where that is unknown."),
    ] = None
    warnings: Annotated[
        tuple[Text, ...],
        Field(max_length=8, description="What does not stand against training, but may cost something."),
    ] = ()


class Metric(Lenient):
    """One score, base against tuned."""

    name: Annotated[Short, Field(description="Metric, like exact_match.")]
    split: Annotated[Short, Field(description="validation (held out) or train (seen in training).")]
    base: Annotated[float, Field(description="Score of the base model.")]
    tuned: Annotated[float, Field(description="Score of the tuned model.")]
    gain: Annotated[float, Field(description="tuned - base.")]
    samples: Annotated[Count, Field(description="Questions scored.")]


class EvaluationStatus(Lenient):
    """What evaluation measured."""

    metrics: Annotated[tuple[Metric, ...], Field(max_length=16, description="Scores of both models.")] = ()


class Artifacts(Lenient):
    """Where things lie on the run's volume, and what they are."""

    volume_claim: Annotated[Short | None, Field(description="PersistentVolumeClaim that holds them.")] = None
    access_modes: Annotated[
        tuple[Short, ...], Field(max_length=4, description="Access modes that it was asked for with.")
    ] = ()
    dataset_report: Annotated[Text | None, Field(description="Path of the dataset report (HTML).")] = None
    projector: Annotated[Text | None, Field(description="Path of the projector that phase 1 made.")] = None
    adapter: Annotated[
        Text | None, Field(description="Path of the adapter and the trained projector, with methods lora and qlora.")
    ] = None
    weights: Annotated[
        Text | None, Field(description="Path of the trained language model and projector, with method full.")
    ] = None
    merged: Annotated[Text | None, Field(description="Path of the merged model, in hub layout.")] = None
    report: Annotated[Text | None, Field(description="Path of the evaluation report (HTML).")] = None
    digests: Annotated[
        dict[Annotated[str, Field(max_length=63)], Short],
        Field(max_length=16, description="sha256 of each, by name."),
    ] = {}


class FailureStatus(Lenient):
    """Why the run failed."""

    reason: Annotated[Short, Field(description="Why, in one CamelCase word.")]
    message: Annotated[Text, Field(description="What happened.")] = ""
    hint: Annotated[Text, Field(description="What can be done about it.")] = ""
    stage: Annotated[StageName | None, Field(description="Stage that failed.")] = None
    attempt: Annotated[Count, Field(description="Its attempt.")] = 0
    pod: Annotated[Short | None, Field(description="Pod that failed first.")] = None
    node: Annotated[Short | None, Field(description="Node of that pod.")] = None
    rank: Annotated[int | None, Field(description="Global rank of the process that failed first.")] = None
    exit_code: Annotated[int | None, Field(description="Exit code of its container.")] = None
    step: Annotated[Count | None, Field(description="Steps of training that were done by then.")] = None
    attempt_steps: Annotated[Count | None, Field(description="Those of them that the attempt has done.")] = None
    log_tail: Annotated[Text, Field(description="Last lines of its log.")] = ""


class Trainer(Lenient):
    """What every stage and attempt of a run runs: what it began with."""

    image: Annotated[Text | None, Field(description="Trainer image, by digest where its repository is known.")] = None
    config_version: Annotated[Count, Field(description="Newest version of the run configuration that it reads.")] = 1


class ApiTrouble(Lenient):
    """What keeps the operator from doing anything about a run."""

    message: Annotated[Text, Field(description="What the API server answers, again and again.")]
    time: Annotated[Time, Field(description="When that was first told.")]


NOTIFICATIONS_KEPT = 32
"""Notifications that a status tells of, the newest."""


class NotificationState(StrEnum):
    """How far a notification is."""

    PENDING = "Pending"
    """Owed: its Job is to be made, or under way."""
    DELIVERED = "Delivered"
    """The receiver has taken it."""
    UNDELIVERED = "Undelivered"
    """It was given up."""


class NotificationStatus(Lenient):
    """One event that one receiver is told of. It is written with what it tells of, and sent on the word of it."""

    name: Annotated[str, Field(max_length=MAX_NOTIFICATION_NAME, description="Which of spec.notifications.")]
    id: Annotated[Short, Field(description="Id of the event: the same for every receiver and over all tries.")]
    event: Annotated[Short, Field(description="What has happened.")]
    time: Annotated[Time, Field(description="When that was seen.")]
    stage: Annotated[StageName | None, Field(description="Stage that it is about.")] = None
    attempt: Annotated[Count, Field(description="Attempt of that stage; 0 before the first.")] = 0
    reason: Annotated[Short, Field(description="Why, in one CamelCase word.")] = ""
    message: Annotated[Short, Field(description="The same for a person.")] = ""
    restarts: Annotated[Count, Field(description="How often the run had been restarted by then.")] = 0
    state: Annotated[NotificationState, Field(description="How far it is.")] = NotificationState.PENDING
    outcome: Annotated[Short, Field(description="Why it is not delivered, or not yet.")] = ""
    completion_time: Annotated[Time | None, Field(description="When it was delivered, or given up.")] = None

    @property
    def is_open(self) -> bool:
        """Whether it is still to be delivered."""
        return self.state is NotificationState.PENDING


class Accounting(Lenient):
    """What a run has taken, over all attempts that are over."""

    gpu_seconds: Annotated[
        dict[StageName, Count], Field(max_length=8, description="GPUs times seconds that they were held, by stage.")
    ] = {}
    productive_seconds: Annotated[
        Count, Field(description="Seconds of attempts whose work was kept: up to the step that was gone on from.")
    ] = 0
    idle_seconds: Annotated[Count, Field(description="Seconds between a failure and the retry after it.")] = 0
    lost_seconds: Annotated[
        Count, Field(description="Seconds of attempts whose work was done again, or for nothing.")
    ] = 0
    queued_seconds: Annotated[Count, Field(description="Seconds that attempts waited in a queue.")] = 0
    suspended_seconds: Annotated[Count, Field(description="Seconds that the run was suspended.")] = 0
    restarts_by_reason: Annotated[
        dict[Annotated[str, Field(max_length=63)], Count],
        Field(max_length=64, description="How many attempts ended for which reason, but for those that succeeded."),
    ] = {}


UNOBSERVED = -1
"""``observedGeneration`` of a run that no operator has seen: without one, kstatus takes it for finished."""


class Status(Lenient):
    """What the operator has seen and done."""

    observed_generation: Annotated[
        int | None,
        Field(
            ge=UNOBSERVED,
            le=2**53,
            description="Generation of the spec that this is about; -1 before anything was done about it.",
            json_schema_extra={"format": "int64"},
        ),
    ] = None
    phase: Annotated[Phase | None, Field(description="The run at a glance.")] = None
    start_time: Annotated[Time | None, Field(description="When the run was begun.")] = None
    completion_time: Annotated[Time | None, Field(description="When it ended, well or not.")] = None
    conditions: Annotated[
        tuple[ConditionStatus, ...],
        Field(
            max_length=16,
            description="Ready, Prepared, Aligned, Trained, Merged, Evaluated, Complete, Failed, Suspended, Reporting, "
            "Disturbed, Reconciling, Stalled.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    summary: Annotated[Summary | None, Field(description="What kubectl get shows.")] = None
    stages: Annotated[
        tuple[StageStatus, ...],
        Field(
            max_length=8,
            description="Every stage, in order.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    suspended_time: Annotated[Time | None, Field(description="Since when it is suspended.")] = None
    silent_since: Annotated[
        Time | None, Field(description="Since when training has reported nothing, where that is long.")
    ] = None
    retry: Annotated[Count, Field(description="The spec.retry that was last taken up.")] = 0
    trainer: Annotated[Trainer | None, Field(description="What every stage runs.")] = None
    accounting: Annotated[Accounting | None, Field(description="What the run has taken so far.")] = None
    data: Annotated[Data | None, Field(description="What prepare found.")] = None
    model: Annotated[ModelFacts | None, Field(description="The model that the run starts from.")] = None
    plan: Annotated[Plan | None, Field(description="What training will take.")] = None
    progress: Annotated[Progress | None, Field(description="The last progress report.")] = None
    evaluation: Annotated[EvaluationStatus | None, Field(description="What evaluation measured.")] = None
    artifacts: Annotated[Artifacts | None, Field(description="Where the results are.")] = None
    failure: Annotated[FailureStatus | None, Field(description="Why the run failed.")] = None
    api_trouble: Annotated[ApiTrouble | None, Field(description="Errors that the API server keeps answering.")] = None
    notifications: Annotated[
        tuple[NotificationStatus, ...],
        Field(
            max_length=NOTIFICATIONS_KEPT,
            description="Whom of spec.notifications the newest events were told, oldest first.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "id"]},
        ),
    ] = ()

    @property
    def open_notifications(self) -> tuple[NotificationStatus, ...]:
        """Those that are still to be delivered."""
        return tuple(notification for notification in self.notifications if notification.is_open)
