"""Memory of weights, gradients and optimiser on one device and beside it, as DeepSpeed 0.19.8 lays them out.

Read off ``llava_trainer.training.engine`` (bf16 with fp32 originals and fp32 gradients, buckets of at most 50 million
numbers, torch's AdamW) and deepspeed/runtime/{bf16_optimizer, zero/stage_1_and_2, zero/stage3}.py; compared with what
DeepSpeed really allocates on one and two processes by tests/trainer/test_memory_states.py.
"""

from dataclasses import dataclass

from llava_api.memory.parameters import ParameterCounts, count_lora, count_parameters, linear_widths, patches
from llava_api.memory.workload import FLOAT, Workload
from llava_api.model_facts import ModelFacts

MOMENTS = 2
"""Adam's, in fp32 both."""
BUCKET_ELEMENTS = 50_000_000
"""``_MAX_BUCKET_ELEMENTS`` of llava_trainer.training.engine."""
LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3 keeps so many gathered numbers at most (DeepSpeed's default stage3_max_live_parameters)."""
PREFETCH_ELEMENTS = 50_000_000
"""... and fetches so many ahead (stage3_prefetch_bucket_size)."""
ALLREDUCE_ELEMENTS = 500_000_000
"""Gradients that are added up over the processes at a time where each keeps all (MEMORY_OPT_ALLREDUCE_SIZE)."""
_NORM_BYTES = 8
"""Of a number whose square is summed up: DeepSpeed takes norms of each gradient in fp64 (get_norm_dtype)."""
NF4_BLOCK = 64
"""Weights that share a scale (bitsandbytes' blocksize for NF4)."""
SCALE_BLOCK = 256
"""Scales that share one of their own with double quantisation."""


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes that are there whatever is computed."""

    weights: int
    """As they are multiplied, what is frozen and what learns; this process's part."""
    gathered: int
    """Weights that ZeRO-3 has whole for the layers in work."""
    gradients: int
    """What gradients are added up in, and what they pass through on the way to the node's memory."""
    optimizer: int
    """fp32 originals and both of Adam's moments."""
    buffers: int
    """In which gradients travel during the backward pass."""
    stepping: int
    """Copies of gradients while the optimiser steps and nothing else is there."""
    offloaded: int
    """What is kept in the node's memory instead; the only part that is not on the device."""

    @property
    def steady(self) -> int:
        """Between two passes."""
        return self.weights + self.gradients + self.optimizer


def count_trained(model: ModelFacts, work: Workload) -> int:
    """Numbers that learn."""
    counts = count_parameters(model)
    if work.method == "projector":
        return counts.projector
    beside = (counts.projector if work.learns_projector else 0) + (counts.seen_tower if work.learns_tower else 0)
    if work.method == "full":
        return counts.language_model + beside
    return count_lora(model.language_model, work.rank, work.targets) + beside


def count_largest(model: ModelFacts, work: Workload) -> int:
    """Numbers of the largest tensor that learns."""
    counts, text = count_parameters(model), model.language_model
    beside = 0
    if work.learns_projector:
        beside = text.hidden * max(text.hidden, model.vision_tower.hidden * len(model.feature_layer))
    if work.learns_tower:
        tower = model.vision_tower
        beside = max(beside, tower.hidden * max(tower.intermediate, patches(model), 3 * model.patch_size_px**2))
    if work.method == "projector":
        return beside
    if work.method == "full":
        return max(counts.embedding, counts.largest_matrix, beside)
    widths = linear_widths(text)
    return max(work.rank * max(max(widths[target]) for target in work.targets), beside)


def plan_states(model: ModelFacts, work: Workload) -> States:
    """What DeepSpeed keeps on a device for a workload."""
    counts, trained = count_parameters(model), count_trained(model, work)
    stage = resolved_stage(work)
    share = trained * FLOAT // (work.world_size if stage >= 1 else 1)
    whole = _weights(model, counts, work)
    weights = whole
    if stage == 3:
        # Never whole, not even while the model is loaded (``models_sharded`` of llava_trainer.training.engine).
        weights = 0 if work.offload_parameters else whole // work.world_size
    # Without ZeRO in fp32 the weights are the originals.
    optimizer = 0 if work.offload_optimizer else share * (MOMENTS + (0 if stage == 0 else 1))
    return States(
        weights=weights,
        gathered=_gathered(whole, work) if stage == 3 else 0,
        gradients=_gradients(model, trained, share, stage, work),
        optimizer=optimizer,
        buffers=_buffers(counts, trained, stage, work),
        stepping=_stepping(model, trained, share, stage, work),
        offloaded=_offloaded(model, whole, share, stage, work),
    )


def resolved_stage(work: Workload) -> int:
    """In bf16 stage 1 takes the place of 0 (``resolve_stage`` of llava_trainer.training.engine)."""
    return 1 if work.zero_stage == 0 and work.number_bytes != FLOAT else work.zero_stage


def _weights(model: ModelFacts, counts: ParameterCounts, work: Workload) -> int:
    numbers = counts.model
    if work.has_adapter:
        # PEFT keeps the original of what learns whole beside it (modules_to_save).
        numbers += count_trained(model, work)
    if work.method != "qlora":
        return numbers * work.number_bytes
    quantized = model.language_model.layers * counts.layer
    return (numbers - quantized) * work.number_bytes + _nf4_bytes(quantized, double=work.double_quantization)


def _nf4_bytes(numbers: int, *, double: bool) -> int:
    """Half a byte each and a scale a block: fp32, or a byte and an fp32 scale for each block of scales (QLoRA, §3)."""
    scales = -(-numbers // NF4_BLOCK)
    scale_bytes = scales + -(-scales // SCALE_BLOCK) * FLOAT if double else scales * FLOAT
    return numbers // 2 + scale_bytes


def _gathered(whole: int, work: Workload) -> int:
    """Gathered weights are let go of late, so that the backward pass finds the last ones still there.

    Those that have just come are there twice: as the processes sent them, and put together (AllGatherCoalescedHandle).
    """
    if work.world_size == 1:
        return 0
    return min(whole, LIVE_ELEMENTS * work.number_bytes) + min(whole, PREFETCH_ELEMENTS * work.number_bytes)


def _sums_up_apart(work: Workload) -> bool:
    """Whether gradients are added up in another format than that of the weights, in which they are made."""
    return work.number_bytes != FLOAT


def _is_bf16_optimizer(stage: int, work: Workload) -> bool:
    """Stage 1 in bf16 is another class of DeepSpeed's, but not with an offloaded optimiser."""
    return stage == 1 and _sums_up_apart(work) and not work.offload_optimizer


def _gradients(model: ModelFacts, trained: int, share: int, stage: int, work: Workload) -> int:
    if stage == 3:
        # In the node's memory if the optimiser is there.
        return 0 if work.offload_optimizer else share
    # A buffer for the largest gradient (temp_grad_buffer_for_gpu_offload).
    passing = count_largest(model, work) * work.number_bytes if work.offload_optimizer else 0
    if stage == 2:
        if _sums_up_apart(work):
            # Summed up in fp32 beside the weights, wherever the optimiser is (_build_compact_grad_partition_buffer).
            return share + passing
        # The sums of all micro-batches, and those of the last one beside them (all_grad_tensors, grads_in_partition).
        return passing if work.offload_optimizer else 2 * share
    # All of them, and in the bf16 optimiser also as they come out of the backward pass.
    return trained * (FLOAT + (work.number_bytes if _is_bf16_optimizer(stage, work) else 0)) + passing


def _buffers(counts: ParameterCounts, trained: int, stage: int, work: Workload) -> int:
    """A bucket of gradients in fp32 and, beside it, what is being reduced: a bucket, or one that is larger alone.

    Stage 3 holds this process's part of that besides. Without partitioned gradients nothing is reduced before the step.
    Where communication overlaps, one more bucket's gradients are there as they come out of the backward pass: stage 2
    fills a second bucket (setup_buckets), and stage 3 frees what is copied only once its stream has done so.
    """
    if stage == 0 or _is_bf16_optimizer(stage, work):
        return 0
    bucket = min(trained, BUCKET_ELEMENTS)
    if stage == 1:
        return FLOAT * bucket
    reduced = max(bucket, counts.embedding if work.method == "full" else 0)
    overlapping = work.number_bytes * bucket if work.overlap_communication else 0
    return FLOAT * (bucket + reduced + (reduced // work.world_size if stage == 3 else 0)) + overlapping


def _stepping(model: ModelFacts, trained: int, share: int, stage: int, work: Workload) -> int:
    largest = count_largest(model, work)
    if stage == 0 or _is_bf16_optimizer(stage, work):
        # Laid end to end for the sum over the processes, until there are enough (allreduce_no_retain).
        return FLOAT * min(trained, ALLREDUCE_ELEMENTS + largest)
    if stage == 1:
        # This process's part, laid end to end.
        bucket = FLOAT * min(trained, BUCKET_ELEMENTS)
        return bucket if work.offload_optimizer and not _sums_up_apart(work) else share + bucket
    if stage == 2:
        return _NORM_BYTES * largest
    # Stage 3 keeps its bucket.
    return FLOAT * min(trained, BUCKET_ELEMENTS) + (0 if work.offload_optimizer else share)


def _offloaded(model: ModelFacts, whole: int, share: int, stage: int, work: Workload) -> int:
    """Originals, moments and the gradient that Adam is given, and what takes them from the device and back."""
    offloaded = whole // work.world_size if work.offload_parameters and stage == 3 else 0
    if not work.offload_optimizer:
        return offloaded
    offloaded += share * (1 + MOMENTS + 1)
    if stage == 3:
        # Gradients are added up there, too (grad_partitions_flat_buffer).
        return offloaded + share
    if stage == 2 and not _sums_up_apart(work):
        # As they are here (accumulated_grads_in_cpu).
        offloaded += share
    return offloaded + (share // FLOAT + count_largest(model, work)) * work.number_bytes
