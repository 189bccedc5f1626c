"""DeepSpeed's engine for a module and its parameter groups, and what is known of its inside.

The state of the optimiser is taken from and put into private attributes of DeepSpeed 0.19.8, which is pinned for that
reason: DeepSpeed's own checkpoints are pickles, and reading one runs whatever somebody put into it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
from torch import nn

from llava_trainer.model.lora import ParameterGroup

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm, as in LLaVA (the default of transformers' Trainer)."""
_MAX_BUCKET_ELEMENTS = 50_000_000
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def build_engine(
    module: nn.Module,
    groups: Sequence[ParameterGroup],
    *,
    device: torch.device,
    dtype: torch.dtype,
    per_device_batch: int,
) -> Any:
    """Put ``module`` under ZeRO stage 2.

    Args:
        module: what the engine calls; its frozen parameters are left alone.
        groups: what is learned.
        device: this process's.
        dtype: number format of the module; with bf16 DeepSpeed keeps the originals and gradients in fp32.
        per_device_batch: samples of a micro-batch (DeepSpeed only counts with it).

    Returns:
        DeepSpeed's engine. ``backward`` may be called any number of times before ``step``.
    """
    # The client's own optimiser: one named in DeepSpeed's configuration is compiled at first use.
    optimizer = torch.optim.AdamW(
        [
            {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": group.weight_decay}
            for group in groups
        ],
        betas=_BETAS,
        eps=_EPSILON,
        fused=device.type == "cuda",
    )
    num_trained = sum(parameter.numel() for group in groups for parameter in group.parameters)
    settings = {
        "train_micro_batch_size_per_gpu": per_device_batch,
        "gradient_accumulation_steps": 1,
        # step() ends a global batch whenever it is called: the last one of an epoch has fewer micro-batches.
        "managed_gradient_accumulation": False,
        "gradient_clipping": MAX_GRAD_NORM,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": False,
            # DeepSpeed allocates a buffer of this size at once, by default 500 million elements.
            "reduce_bucket_size": min(num_trained, _MAX_BUCKET_ELEMENTS),
        },
        "steps_per_print": None,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    return engine


def set_learning_rates(engine: Any, groups: Sequence[ParameterGroup], factor: float) -> None:
    """Set every group's learning rate to its peak times ``factor``."""
    for live, group in zip(engine.optimizer.param_groups, groups, strict=True):
        live["lr"] = group.learning_rate * factor


def export_optimizer(engine: Any) -> dict[str, torch.Tensor]:
    """This process's part of the optimiser: for each group the fp32 originals, both moments and Adam's step."""
    tensors = {}
    for index, original in enumerate(engine.optimizer.single_partition_of_fp32_groups):
        tensors[f"group{index}.original"] = original.detach()
        for name, tensor in engine.optimizer.optimizer.state[original].items():
            tensors[f"group{index}.{name}"] = tensor
    return tensors


@torch.no_grad()
def import_optimizer(engine: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what ``export_optimizer`` took out, and make every process's model weights anew from it.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: a tensor has another shape: it was exported with other parameters or another number of
            processes.
    """
    for index, original in enumerate(engine.optimizer.single_partition_of_fp32_groups):
        prefix = f"group{index}."
        names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
        original.copy_(tensors[f"{prefix}original"])
        # AdamW keeps its step beside the weights only when it is fused.
        step_device = original.device if engine.optimizer.param_groups[index].get("fused") else torch.device("cpu")
        engine.optimizer.optimizer.state[original] = {
            name: tensors[prefix + name].to(step_device if name == "step" else original.device, copy=True)
            for name in names
            if name != "original"
        }
    engine.optimizer.update_lp_params()
