"""DeepSpeed's engine for a module and its parameter groups."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from llava_api.spec import Optimizer, Zero
from llava_trainer.model.learning import ParameterGroup
from llava_trainer.training.pinned import allocating_on_node

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm, as in LLaVA (the default of transformers' Trainer)."""
ADAMW = Optimizer()
"""PyTorch's own constants, with which LLaVA trains."""
_MAX_BUCKET_ELEMENTS = 50_000_000
_PERSISTENT_ELEMENTS = 10_000
"""ZeRO-3 keeps parameters of at most so many numbers whole everywhere: biases and norms, which cost more to fetch."""


def build_engine(
    module: nn.Module,
    groups: Sequence[ParameterGroup],
    *,
    zero: Zero,
    device: torch.device,
    dtype: torch.dtype,
    per_device_batch: int,
    constants: Optimizer = ADAMW,
    overlap_communication: bool = False,
) -> Any:
    """Put ``module`` under DeepSpeed.

    Args:
        module: what the engine calls; its frozen parameters are left alone, but ZeRO-3 shares them out, too.
        groups: what is learned.
        zero: what the processes share out among each other.
        device: this rank's.
        dtype: number format of the module; with bf16 DeepSpeed keeps the originals and gradients in fp32.
        per_device_batch: samples of a micro-batch (DeepSpeed only counts with it).
        constants: AdamW's.
        overlap_communication: let gradients travel while others are computed, from stage 2 on, for one more bucket of
            them. No field of a run asks for it: that it gains anything has not been seen on GPUs (docs/benchmarks.md).

    Returns:
        DeepSpeed's engine. ``backward`` may be called any number of times before ``step``.

    Raises:
        StageError: OutOfMemory; the node has no memory for what is offloaded.
    """
    # The client's own optimiser: one named in DeepSpeed's configuration is compiled at first use. Fused on CPUs, too:
    # offloaded states are stepped by it there, as fast as by DeepSpeed's cpu_adam (docs/benchmarks.md).
    optimizer = torch.optim.AdamW(
        [
            {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": group.weight_decay}
            for group in groups
        ],
        betas=(constants.beta1, constants.beta2),
        eps=constants.epsilon,
        fused=True,
    )
    stage = resolve_stage(zero, dtype)
    if stage == 0:
        optimizer.register_step_pre_hook(_clip)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": per_device_batch,
        **_zero_settings(zero, dtype, device),
        "gradient_accumulation_steps": 1,
        # step() ends a global batch whenever it is called: the last one of an epoch has fewer micro-batches.
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if stage == 0 else MAX_GRAD_NORM,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
        # Else the device is waited for in every forward pass and every step.
        "timers": {"throughput": {"enabled": False}},
    }
    # DeepSpeed asserts as much where we count micro-batches ourselves.
    settings["zero_optimization"]["overlap_comm"] = overlap_communication and stage >= 2
    # DeepSpeed allocates a buffer of this size at once, by default 500 million elements.
    num_trained = sum(_numel(parameter) for group in groups for parameter in group.parameters)
    settings["zero_optimization"]["reduce_bucket_size"] = min(num_trained, _MAX_BUCKET_ELEMENTS)
    # What it allocates on a GPU fails in another way (``pinned``); what is left is what is offloaded.
    with allocating_on_node("the offloaded states") if zero.offload.optimizer else nullcontext():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    return engine


def resolve_stage(zero: Zero, dtype: torch.dtype) -> int:
    """ZeRO stage to run.

    In bf16 DeepSpeed's stage 0 adds gradients up in bf16, and has let Adam count a step before the first: stage 1 takes
    its place, which computes the same as 2 and 3 do, and needs less memory than 0.
    """
    return 1 if zero.stage == 0 and dtype == torch.bfloat16 else zero.stage


@contextmanager
def models_sharded(zero: Zero, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """With ZeRO-3, share each parameter of a model that is loaded inside the context out as soon as it is there.

    Only the first rank reads a checkpoint then, and none ever holds more than its share and one layer.
    """
    if zero.stage < 3:
        yield
        return
    # transformers keeps no reference of its own to it, and forgets it with the last one.
    config = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, **_zero_settings(zero, dtype, device)})
    try:
        yield
    finally:
        del config
        unset_hf_deepspeed_config()


def _zero_settings(zero: Zero, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The part of DeepSpeed's configuration that loading a model needs as well."""
    in_memory = {"device": "cpu", "pin_memory": device.type == "cuda"}
    offloaded = {
        "offload_optimizer": in_memory if zero.offload.optimizer else None,
        "offload_param": in_memory if zero.offload.parameters else None,
    }
    return {
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {
            "stage": resolve_stage(zero, dtype),
            # DeepSpeed's own default is true with stage 3.
            "overlap_comm": False,
            "stage3_param_persistence_threshold": _PERSISTENT_ELEMENTS,
            **{name: setting for name, setting in offloaded.items() if setting},
        },
        # torch's AdamW on the offloaded part, too.
        "zero_force_ds_cpu_optimizer": False,
    }


def set_learning_rates(engine: Any, groups: Sequence[ParameterGroup], factor: float) -> None:
    """Set every group's learning rate to its peak times ``factor``."""
    for live, group in zip(engine.optimizer.param_groups, groups, strict=True):
        live["lr"] = group.learning_rate * factor


def _clip(optimizer: torch.optim.Optimizer, *arguments: object) -> None:
    """Clip without ZeRO, where DeepSpeed clips but does not tell the norm; it takes this attribute for its own."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer._global_grad_norm = nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)  # type: ignore[attr-defined]


def _numel(parameter: nn.Parameter) -> int:
    # A partitioned parameter looks empty.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
