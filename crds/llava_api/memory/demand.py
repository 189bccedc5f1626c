"""From a spec, and what prepare found, to the workload of each phase and the number of its steps."""

import math
from dataclasses import dataclass

from llava_api.constants import StageName
from llava_api.memory.workload import Method, Workload
from llava_api.model_facts import ModelFacts
from llava_api.spec import Alignment, Batch, Spec

PACKED_ROW_LIMITS = 2
"""Longest packed row, in length limits: ``_ROW_LIMITS`` of llava_trainer.training.sharing."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What prepare has found that memory depends on."""

    tokens_a_row: int = 0
    """Tokens of the largest micro-batch, filled up, for each of ``perDevice`` rows; 0 if unknown, which then counts as
    ``training.maxLength``."""
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
    """Optimiser steps of a training stage; the last one of an epoch takes the samples that are left."""
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
    training = spec.training
    rows, length = _shape(spec, stage, prepared.tokens_a_row)
    pictures = min(batch_of(spec, stage).per_device, rows * length // model.tokens_per_image)
    return Workload(
        method=_method(spec, stage),
        rows=rows,
        length=length,
        pictures=pictures,
        supervised=rows * length - pictures * model.tokens_per_image,
        world_size=num_processes(spec),
        rank=training.lora.rank,
        dropout=training.lora.dropout,
        number_bytes=2 if _is_bf16(spec) else 4,
        double_quantization=training.quantization.double if training.quantization else True,
        gradient_checkpointing=training.gradient_checkpointing,
        masked=_attention(spec, has_flash=prepared.has_flash) != "flash_attention_2",
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


def _shape(spec: Spec, stage: StageName, tokens_a_row: int) -> tuple[int, int]:
    """Rows and length of the largest micro-batch."""
    rows, limit = batch_of(spec, stage).per_device, spec.training.max_length
    length = min(tokens_a_row or limit, limit)
    if not spec.training.packing:
        return rows, length
    return max(1, rows // PACKED_ROW_LIMITS), length * min(rows, PACKED_ROW_LIMITS)
