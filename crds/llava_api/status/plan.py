"""What prepare found, and what training will take by that."""

from typing import Annotated

from pydantic import Field

from llava_api.base import Lenient
from llava_api.report import MicroBatch
from llava_api.spec.training import MAX_GLOBAL_BATCH
from llava_api.status.values import Count, Short, Text


class Data(Lenient):
    """What prepare found."""

    samples_train: Annotated[Count, Field(description="Samples to train on.")]
    samples_validation: Annotated[Count, Field(description="Samples held out.")]
    pairs_train: Annotated[Count, Field(description="Questions with an answer to train on.")]
    pairs_validation: Annotated[Count, Field(description="Questions with an answer held out.")]
    images: Annotated[Count, Field(description="Different pictures.")]
    supervised_tokens: Annotated[
        Count, Field(description="Tokens of spec.dataset that training learns from, over one epoch.")
    ]
    longest_sample_tokens: Annotated[Count, Field(description="Tokens of the longest sample, image tokens included.")]
    overlong_samples: Annotated[Count, Field(description="Samples cut off at spec.training.maxLength.")]
    unsupervised_samples: Annotated[
        Count, Field(description="Samples left out because nothing could be learned from them.")
    ] = 0
    samples_mixture: Annotated[
        Count, Field(description="Samples of spec.mixture that an epoch has beside samplesTrain.")
    ] = 0
    samples_withheld: Annotated[
        Count,
        Field(
            description="Samples left out of spec.mixture, because they show or belong to what is held out or retained."
        ),
    ] = 0
    samples_retention: Annotated[Count, Field(description="Samples of spec.evaluation.retention.")] = 0
    groups_retention: Annotated[Count, Field(description="Groups that these samples belong to; 0: not told.")] = 0
    retention_shared: Annotated[
        Count,
        Field(
            description="Samples of spec.evaluation.retention that show, ask or belong to what spec.dataset trains on: "
            "what was learned anew was not retained."
        ),
    ] = 0
    samples_alignment: Annotated[Count, Field(description="Samples of phase 1.")] = 0
    groups_validation: Annotated[Count, Field(description="Groups that held-out samples belong to.")] = 0
    samples_selection: Annotated[
        Count, Field(description="Further held-out samples, which select a step (training.keepBest, earlyStopping).")
    ] = 0
    groups_selection: Annotated[Count, Field(description="Groups that these belong to.")] = 0
    groups_shared: Annotated[
        Count, Field(description="Held-out groups that training has samples of, too: scores of them flatter.")
    ] = 0
    pairs_shared: Annotated[Count, Field(description="Held-out questions of these groups.")] = 0
    sufficient_fraction: Annotated[
        float | None,
        Field(
            gt=0,
            le=0.5,
            description="spec.dataset.validation.fraction that would hold out enough groups for scores to tell two "
            "models apart; left out where there are enough, or no fraction does.",
        ),
    ] = None
    image_scale: Annotated[
        float | None,
        Field(gt=0, le=1e6, description="By how much the median picture is scaled for the vision tower."),
    ] = None
    text_height_px: Annotated[
        float | None,
        Field(
            ge=0,
            le=1e6,
            description="Height of the median text at the vision tower's resolution, in pixels; left out where the "
            "data does not tell where texts are.",
        ),
    ] = None
    global_batch: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_GLOBAL_BATCH,
            description="What training.batch.global auto has come to, for the whole run; left out without auto.",
        ),
    ] = None
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
    omits_masks: Annotated[
        bool | None,
        Field(description="Whether training gives attention a mask only where it needs one; left out with an older "
                          "trainer image, which gives one wherever rows are filled up."),
    ] = None  # fmt: skip
    streams_merge: Annotated[
        bool | None,
        Field(description="Whether merging holds a layer at a time; left out with an older trainer image, which holds "
                          "a whole model in fp32."),
    ] = None  # fmt: skip
    publishes: Annotated[
        bool | None,
        Field(description="Whether the trainer image has the publish stage; left out with an older one without it."),
    ] = None

    @property
    def samples_epoch(self) -> int:
        """Samples that training learns from in an epoch."""
        return self.samples_train + self.samples_mixture


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
    global_batch: Annotated[
        Count | None, Field(description="Samples of one optimiser step over all processes, in training.")
    ] = None
    global_batch_reason: Annotated[
        Text | None, Field(description="Why so many, where spec.training.batch.global is auto.")
    ] = None
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
        Field(
            description="What all that lie there at a time take: checkpoint.keep, the best one where keepBest is "
            "set, and the one being written."
        ),
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
