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
VARLEN_HEAD_MULTIPLE, VARLEN_MAX_HEAD = 8, 256
"""Sizes of heads that flash attention in torch 2.15 has kernels for (aten/src/ATen/native/transformers/cuda)."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What prepare has found that memory depends on."""

    largest: MicroBatch | None = None
    """What a process holds at most; None if unknown, which then counts as all that the limits allow."""
    has_flash: bool = False
    """Whether flash-attn is in the trainer image."""
    omits_masks: bool = False
    """Whether the image attends without a mask where it can; older ones give a mask to all that is filled up."""


def num_processes(spec: Spec) -> int:
    """Training processes: one a GPU, or one a pod on a CPU."""
    return spec.workers.replicas * max(spec.workers.gpus, 1)


def batch_of(spec: Spec, stage: StageName) -> Batch:
    """Batch sizes of a training stage."""
    return _alignment(spec).batch if stage is StageName.ALIGN else spec.training.batch


def accumulation(spec: Spec, stage: StageName) -> int:
    """Micro-batches that a process runs for one step."""
    batch = batch_of(spec, stage)
    return math.ceil(batch.num_samples / (batch.per_device * num_processes(spec)))


def num_steps(spec: Spec, stage: StageName, samples: int) -> int:
    """Optimiser steps of a training stage; the last one of an epoch takes the samples that are left.

    ``maxSteps`` takes the place of epochs in phase 2, however many samples there are, as long as there is one.
    """
    if stage is StageName.TRAIN and spec.training.max_steps is not None:
        return spec.training.max_steps if samples else 0
    epochs = _alignment(spec).epochs if stage is StageName.ALIGN else spec.training.epochs
    return math.ceil(samples / batch_of(spec, stage).num_samples) * epochs


def workload_of(spec: Spec, stage: StageName, model: ModelFacts, prepared: Prepared) -> Workload:
    """What one process is asked to hold in a training stage, at worst.

    Args:
        spec: of the run.
        stage: align or train.
        model: the model's shape.
        prepared: what prepare has found.
    """
    training = spec.training
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
        masked=_is_masked(spec, model, prepared),
        eager=training.attention == "eager",
        on_gpu=spec.workers.gpus > 0,
        zero_stage=training.zero.stage,
        offload_optimizer=training.zero.offload.optimizer,
        offload_parameters=training.zero.offload.parameters,
        answer_tokens=_answer_tokens(spec, stage, length),
    )


def _answer_tokens(spec: Spec, stage: StageName, length: int) -> int:
    """Prompts that are answered are no longer than the length limit, nor than the longest row that may hold one."""
    validation = spec.training.validation
    if stage is StageName.ALIGN or validation is None or validation.answers is None:
        return 0
    return min(length, spec.training.max_length) + validation.answers.max_new_tokens


def _is_masked(spec: Spec, model: ModelFacts, prepared: Prepared) -> bool:
    """Whether attention is given a mask (``resolve_attention`` of llava_trainer.model.attention).

    The GPUs need not be asked: one that is too old for flash kernels computes no bf16 either, and the run ends before.
    """
    attention = spec.training.attention
    if attention == "eager":
        return True
    flashes = spec.workers.gpus > 0 and _is_bf16(spec)
    if attention == "flash_attention_2" or (attention == "auto" and prepared.has_flash and flashes):
        return False
    if not prepared.omits_masks:
        return True
    if not spec.training.packing:
        return False
    return not (attention == "auto" and flashes and _has_varlen_heads(model))


def _has_varlen_heads(model: ModelFacts) -> bool:
    """Whether torch's varlen_attn takes heads of this size."""
    size = model.language_model.hidden // model.language_model.heads
    return size % VARLEN_HEAD_MULTIPLE == 0 and size <= VARLEN_MAX_HEAD


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
