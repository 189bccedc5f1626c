"""From a spec, and what prepare found, to the workload of each phase and the number of its steps."""

import math
from dataclasses import dataclass

from llava_api.constants import StageName
from llava_api.memory.workload import Method, Workload
from llava_api.model_facts import ModelFacts
from llava_api.report import MicroBatch
from llava_api.spec import Alignment, Batch, Spec

PACKED_ROW_LIMITS = 2
"""Longest packed row, in length limits: ``_ROW_LIMITS`` of llava_trainer.training.rank_batches."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What prepare has found that memory depends on."""

    largest: MicroBatch | None = None
    """What a process holds at most; None if unknown, which then counts as all that the limits allow."""
    has_flash: bool = False
    """Whether flash-attn is in the trainer image."""


def num_processes(spec: Spec) -> int:
    """Training processes: one a GPU, or one a pod on a CPU."""
    return spec.workers.replicas * max(spec.workers.gpus, 1)


def batch_of(spec: Spec, stage: StageName) -> Batch:
    """Batch sizes of a training stage."""
    return _alignment(spec).batch if stage is StageName.ALIGN else spec.training.batch


def accumulation(spec: Spec, stage: StageName) -> int:
    """Micro-batches that a process runs for one step."""
    batch = batch_of(spec, stage)
    return batch.global_ // (batch.per_device * num_processes(spec))


def num_steps(spec: Spec, stage: StageName, samples: int) -> int:
    """Optimiser steps of a training stage; the last one of an epoch takes the samples that are left.

    ``maxSteps`` takes the place of epochs in phase 2, however many samples there are, as long as there is one.
    """
    if stage is StageName.TRAIN and spec.training.max_steps is not None:
        return spec.training.max_steps if samples else 0
    epochs = _alignment(spec).epochs if stage is StageName.ALIGN else spec.training.epochs
    return math.ceil(samples / batch_of(spec, stage).global_) * epochs


def workload_of(spec: Spec, stage: StageName, model: ModelFacts, prepared: Prepared) -> Workload:
    """What one process is asked to hold in a training stage, at worst.

    Args:
        spec: of the run.
        stage: align or train.
        model: the model's shape.
        prepared: what prepare has found.
    """
    training, attention = spec.training, _attention(spec, has_flash=prepared.has_flash)
    rows, length = _shape(spec, stage, prepared.largest)
    # A smaller batch than was asked for holds no more than that one, and no more than goes into it.
    pictures, supervised = rows * length // model.tokens_per_image, rows * length
    if prepared.largest is not None:
        pictures = min(pictures, prepared.largest.pictures)
        supervised = min(supervised, prepared.largest.supervised)
    return Workload(
        method=_method(spec, stage),
        rows=rows,
        length=length,
        pictures=pictures,
        supervised=supervised,
        world_size=num_processes(spec),
        learns_projector=stage is StageName.ALIGN or training.projector == "train",
        learns_tower=stage is StageName.TRAIN and training.vision_tower.mode == "full",
        rank=training.lora.rank,
        dropout=training.lora.dropout,
        targets=training.lora.targets,
        number_bytes=2 if _is_bf16(spec) else 4,
        double_quantization=training.quantization.double if training.quantization else True,
        gradient_checkpointing=training.gradient_checkpointing,
        masked=attention != "flash_attention_2",
        eager=attention == "eager",
        on_gpu=spec.workers.gpus > 0,
        zero_stage=training.zero.stage,
        offload_optimizer=training.zero.offload.optimizer,
        offload_parameters=training.zero.offload.parameters,
    )


def _attention(spec: Spec, *, has_flash: bool) -> str:
    """What ``auto`` is (``resolve_attention`` of llava_trainer.model.loading).

    The GPUs need not be asked: one that is too old for flash-attn computes no bf16 either, and the run ends before.
    """
    attention = spec.training.attention
    if attention != "auto":
        return attention
    return "flash_attention_2" if has_flash and spec.workers.gpus > 0 and _is_bf16(spec) else "sdpa"


def _alignment(spec: Spec) -> Alignment:
    assert spec.alignment is not None, "a run without alignment has no such stage"
    return spec.alignment


def _method(spec: Spec, stage: StageName) -> Method:
    if stage is StageName.ALIGN:
        return "projector"
    assert spec.training.method != "none", "a run without a method has no such stage"
    return spec.training.method


def _is_bf16(spec: Spec) -> bool:
    precision = spec.training.precision
    return precision == "bf16" or (precision == "auto" and spec.workers.gpus > 0)


def _shape(spec: Spec, stage: StageName, largest: MicroBatch | None) -> tuple[int, int]:
    """Rows and length of the largest micro-batch.

    Packed rows may be longer than the length limit, but all of them together hold no more than ``perDevice`` of it.
    """
    per_device, limit = batch_of(spec, stage).per_device, spec.training.max_length
    if not spec.training.packing:
        return (min(largest.rows, per_device), largest.tokens // largest.rows) if largest else (per_device, limit)
    tokens = min(largest.tokens, per_device * limit) if largest else per_device * limit
    length = min(tokens, largest.tokens // largest.rows if largest else PACKED_ROW_LIMITS * limit)
    return math.ceil(tokens / length), length
