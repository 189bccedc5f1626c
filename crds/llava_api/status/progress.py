"""The progress report as the status keeps it."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Lenient
from llava_api.constants import StageName
from llava_api.names import MAX_SHARDS
from llava_api.report import LOSSES_KEPT
from llava_api.status.values import Count, Short, Time


class ShardProgress(Lenient):
    """How far one pod is of those that share a stage's work."""

    index: Annotated[Count, Field(lt=MAX_SHARDS, description="Completion index of the pod.")]
    step: Annotated[Count, Field(description="Steps of its part that are done.")]
    total_steps: Annotated[Count, Field(description="Steps of its part; 0 while unknown.")]
    eta_seconds: Annotated[Count | None, Field(description="Estimated seconds to its end.")] = None


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
    data_wait_ratio: Annotated[
        float | None, Field(description="Share of the last steps' time in which training waited for data.")
    ] = None
    mfu: Annotated[
        float | None, Field(description="Model FLOPs utilisation of the last steps, on GPUs whose peak is known.")
    ] = None
    checkpoint_step: Annotated[Count | None, Field(description="Step of the newest complete checkpoint.")] = None
    checkpoint_time: Annotated[Time | None, Field(description="When that checkpoint was first reported.")] = None
    validation_step: Annotated[
        Count | None, Field(description="Step after which held-out samples were looked at last.")
    ] = None
    validation_loss: Annotated[float | None, Field(description="Held-out loss per supervised token then.")] = None
    validation_exact: Annotated[
        float | None, Field(description="Share of held-out answers that greedy decoding would have given exactly then.")
    ] = None
    validating_samples: Annotated[
        Count | None,
        Field(description="Held-out samples that the validation under way has seen."),
    ] = None
    lowest_validation_loss: Annotated[float | None, Field(description="Lowest held-out loss so far.")] = None
    best_step: Annotated[Count | None, Field(description="Best step so far by validation, where it selects.")] = None
    resumed_step: Annotated[Count | None, Field(description="Step that the attempt went on from.")] = None
    peak_gpu_memory_bytes: Annotated[
        Count | None, Field(description="Most memory that torch has reserved on one GPU so far, of all processes.")
    ] = None
    volume_free_bytes: Annotated[Count | None, Field(description="Free on the run's volume.")] = None
    volume_size_bytes: Annotated[Count | None, Field(description="Size of the run's volume.")] = None
    skipped_checkpoints: Annotated[
        Short, Field(description="Checkpoints that were damaged, so that training went on from one before.")
    ] = ""
    shards: Annotated[
        tuple[ShardProgress, ...],
        Field(
            max_length=MAX_SHARDS,
            description="How far each pod of evaluation is that has reported, where there are several; step, "
            "totalSteps and etaSeconds above are of all of them.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]},
        ),
    ] = ()
    losses: Annotated[
        tuple[float, ...], Field(max_length=LOSSES_KEPT, description="Losses of the last logged steps, oldest first.")
    ] = ()
    last_update_time: Annotated[Time, Field(description="When the report came.")]
    step_time: Annotated[
        Time | None, Field(description="When the first report of this step came, if there were several.")
    ] = None
