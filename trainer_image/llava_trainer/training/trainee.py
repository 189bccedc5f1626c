"""What is trained: the model with a fresh adapter, its loss, its parameter groups, under DeepSpeed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava_api.run_config import RunConfig
from llava_trainer.model.loading import load_model
from llava_trainer.model.lora import ParameterGroup, add_adapter, group_parameters
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.training.engine import build_engine
from llava_trainer.training.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """What is trained, and with what."""

    engine: Any
    """DeepSpeed's; calling it calls ``module``."""
    module: SupervisedLoss
    groups: Sequence[ParameterGroup]
    dtype: torch.dtype

    @property
    def num_parameters(self) -> int:
        """Numbers that are learned."""
        return sum(parameter.numel() for group in self.groups for parameter in group.parameters)


def build_trainee(config: RunConfig, processes: Processes) -> Trainee:
    """Load the model, add a fresh adapter, and put it under DeepSpeed.

    Raises:
        StageError: InvalidModel.
    """
    training = config.training
    dtype = resolve_dtype(training.precision, processes.device)
    model = load_model(config.model_dir, dtype, processes.device, training.attention)
    # Drawn from the same seed everywhere; each process's dropout then goes its own way.
    torch.manual_seed(training.seed)
    tuned = add_adapter(model, training.lora)
    torch.manual_seed(training.seed + 1 + processes.rank)
    module = SupervisedLoss(tuned, gradient_checkpointing=training.gradient_checkpointing)
    groups = group_parameters(tuned, training)
    engine = build_engine(
        module, groups, device=processes.device, dtype=dtype, per_device_batch=training.batch.per_device
    )
    module.train()
    return Trainee(engine=engine, module=module, groups=groups, dtype=dtype)


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Number format of training: ``auto`` is bf16 on GPUs and fp32 on a CPU."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
