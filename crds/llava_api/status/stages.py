"""How far each stage is, and each of its attempts."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, WithJsonSchema, model_validator

from llava_api.base import Lenient
from llava_api.constants import StageName
from llava_api.spec.publish import Publish
from llava_api.status.values import Count, Short, Text, Time


class StageState(StrEnum):
    """State of one stage. One that is Running has been begun and not ended: an attempt is under way, or is to come."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    """The run has succeeded without it: a gate that was asked for has not passed."""


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
    publish: Annotated[
        Publish | None,
        # The spec's schema holds for it; here its rules would be paid for again with each attempt.
        WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        Field(description="spec.publish as it was then, of the stage that publishes."),
    ] = None
    avoided_nodes: Annotated[
        tuple[Short, ...],
        Field(max_length=16, description="Nodes on which it should not run, if others will do."),
    ] = ()


MAX_POD_FAILURES = 1_000_000
"""Most that are told of."""


class ShardStatus(Lenient):
    """How far the pods of an attempt are that work for themselves."""

    done: Annotated[Count, Field(description="Pods that have done their part.")] = 0
    pods_failed: Annotated[
        Count,
        Field(
            description="Pods of it that failed, without those that the cluster took away; others took their places."
        ),
    ] = 0


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
    shards: Annotated[
        ShardStatus | None, Field(description="How far its pods are, in evaluation, where each works for itself.")
    ] = None
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
    forgiven: Annotated[
        Count, Field(description="Attempts of them that somebody else ended and that did not count.")
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
        Short,
        Field(
            description="Why it waits or is left out, or why its last attempt ended while the next is to come; else "
            "empty."
        ),
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
        # The API server puts the defaults of today's CRD into them: no attempts, in place of a field that is not there.
        if not isinstance(value, dict) or value.get("attempts") or not value.get("attempt"):
            return value
        state = {"Running": "Starting"}.get(value.get("state", ""), "Gone")
        attempt = {"number": value["attempt"], "state": state, "jobUid": value.get("jobUid")}
        times = {name: value[name] for name in ("startTime", "completionTime") if value.get(name)}
        return {**value, "attempts": [{**attempt, **times}]}
