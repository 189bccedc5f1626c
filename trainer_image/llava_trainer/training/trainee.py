"""What is trained: the model with a fresh adapter, its loss, its parameter groups, under DeepSpeed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from llava_api.run_config import RunConfig
from llava_trainer.model.loading import load_model
from llava_trainer.model.lora import ParameterGroup, add_adapter, group_parameters
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.training.engine import build_engine
from llava_trainer.training.phase import Phase
from llava_trainer.training.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """What is trained, and with what."""

    engine: Any
    """DeepSpeed's; calling it calls ``module``."""
    module: SupervisedLoss
    tuned: PeftModel
    """The same model as PEFT sees it."""
    groups: Sequence[ParameterGroup]
    dtype: torch.dtype

    def named_trainable(self) -> dict[str, torch.nn.Parameter]:
        """What is learned, by its name in ``module``, in the module's order."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    @property
    def num_parameters(self) -> int:
        """Numbers that are learned."""
        return sum(parameter.numel() for group in self.groups for parameter in group.parameters)


def build_trainee(config: RunConfig, phase: Phase, processes: Processes) -> Trainee:
    """Load the model, add a fresh adapter, and put it under DeepSpeed.

    Raises:
        StageError: InvalidModel.
    """
    dtype = resolve_dtype(phase.precision, processes.device)
    model = load_model(config.model_dir, dtype, processes.device, phase.attention)
    # Drawn from the same seed everywhere; each process's dropout then goes its own way.
    torch.manual_seed(phase.seed)
    tuned = add_adapter(model, phase.lora)
    torch.manual_seed(phase.seed + 1 + processes.rank)
    module = SupervisedLoss(tuned.get_base_model(), gradient_checkpointing=phase.gradient_checkpointing)
    groups = group_parameters(
        module,
        learning_rate=phase.learning_rate,
        projector_learning_rate=phase.projector_learning_rate,
        weight_decay=phase.weight_decay,
    )
    engine = build_engine(module, groups, device=processes.device, dtype=dtype, per_device_batch=phase.batch.per_device)
    module.train()
    return Trainee(engine=engine, module=module, tuned=tuned, groups=groups, dtype=dtype)


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Number format of training: ``auto`` is bf16 on GPUs and fp32 on a CPU."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
