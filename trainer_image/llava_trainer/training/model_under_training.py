"""What is trained: the model as the phase's method opens it, its loss, its parameter groups, under DeepSpeed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import Quantization
from llava_trainer.data.model_config import load_config
from llava_trainer.errors import StageError
from llava_trainer.gang.world import World
from llava_trainer.inputs import read_inputs
from llava_trainer.model.adapter_folder import WEIGHTS_FILE
from llava_trainer.model.attention import resolve_attention
from llava_trainer.model.learning import ParameterGroup, group_parameters, train_projector, train_whole
from llava_trainer.model.loading import load_model
from llava_trainer.model.lora import add_adapter, fill_adapter
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.model.partition import copy_whole, num_elements
from llava_trainer.model.projector import load_projector, projector_parameters, reset_projector
from llava_trainer.model.varlen import heads_of
from llava_trainer.training.adapter import name_base
from llava_trainer.training.device import check_device
from llava_trainer.training.engine import build_engine, models_sharded
from llava_trainer.training.phase import Phase

Tuned: TypeAlias = PeftModel | LlavaForConditionalGeneration


@dataclass(frozen=True, kw_only=True)
class ModelUnderTraining:
    """What is trained, and with what."""

    engine: Any
    """DeepSpeed's; calling it calls ``module``."""
    module: SupervisedLoss
    phase: Phase
    tuned: Tuned
    """The same model as PEFT sees it; without an adapter the model itself."""
    groups: Sequence[ParameterGroup]
    dtype: torch.dtype
    initial_weights: Mapping[str, torch.Tensor]
    """Some of what learns as it was before, by hub name: to tell at the end that it has learned."""
    given_adapter: Path | None = None
    """File of the adapter that training goes on from."""

    @property
    def llava(self) -> LlavaForConditionalGeneration:
        """The model, whatever is wrapped around it."""
        return unwrap(self.tuned)

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """What is learned, by its name in ``module``, in the module's order."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    @property
    def num_parameters(self) -> int:
        """Numbers that are learned."""
        return sum(num_elements(parameter) for group in self.groups for parameter in group.parameters)


def build_model(
    config: RunConfig, phase: Phase, world: World, *, overlap_communication: bool = False
) -> ModelUnderTraining:
    """Load the model, open it for what the phase trains, and put it under DeepSpeed (``build_engine``).

    Raises:
        StageError: InvalidModel; UnsupportedDevice where the GPU cannot do what the phase asks for.
    """
    check_device(phase, world.device)
    training = phase.training
    dtype = resolve_dtype(training.precision, world.device)
    quantization = (training.quantization or Quantization()) if phase.method == "qlora" else None
    packed = heads_of(load_config(config.model_dir)) if training.packing else None
    attention = resolve_attention(training.attention, world.device, dtype, packed=packed)
    with models_sharded(training.zero, dtype, world.device):
        llava = load_model(config.model_dir, dtype, world.device, attention, quantization)
    _init_projector(config, phase, llava)
    # Drawn from the same seed everywhere; each rank's dropout then goes its own way.
    torch.manual_seed(training.seed)
    tuned = _open(llava, phase)
    given = None if config.model.adapter is None else config.volume.given_adapter_dir / WEIGHTS_FILE
    if isinstance(tuned, PeftModel) and given is not None:
        fill_adapter(tuned, given)
    inputs = read_inputs(config)
    if isinstance(tuned, PeftModel) and inputs is not None and inputs.base_model is not None:
        name_base(tuned, inputs.base_model)
    torch.manual_seed(training.seed + 1 + world.rank)
    module = SupervisedLoss(llava, gradient_checkpointing=training.gradient_checkpointing)
    initial_weights = {name: copy_whole(parameter) for name, parameter in watched_parameters(llava, phase).items()}
    groups = group_parameters(
        module,
        learning_rate=training.peak_learning_rate,
        projector_learning_rate=training.projector_learning_rate,
        weight_decay=training.weight_decay,
        tower_learning_rate=training.vision_tower.learning_rate,
    )
    engine = build_engine(
        module,
        groups,
        zero=training.zero,
        device=world.device,
        dtype=dtype,
        per_device_batch=training.batch.per_device,
        constants=training.optimizer,
        overlap_communication=overlap_communication,
    )
    module.train()
    return ModelUnderTraining(
        engine=engine,
        module=module,
        phase=phase,
        tuned=tuned,
        groups=groups,
        dtype=dtype,
        initial_weights=initial_weights,
        given_adapter=given,
    )


def unwrap(tuned: Tuned) -> LlavaForConditionalGeneration:
    """The LLaVA inside."""
    llava: LlavaForConditionalGeneration = tuned.get_base_model() if isinstance(tuned, PeftModel) else tuned
    return llava


def watched_parameters(llava: LlavaForConditionalGeneration, phase: Phase) -> dict[str, nn.Parameter]:
    """Parameters, by hub name, that a training cannot leave as they are.

    Those of a projector that learns, one of a tower that does, and with ``full`` one of the language model's.
    """
    watched = projector_parameters(llava) if phase.learns_projector else {}
    if phase.method == "full":
        last = len(llava.model.language_model.layers) - 1
        projection = llava.model.language_model.layers[last].mlp.down_proj
        watched[f"language_model.model.layers.{last}.mlp.down_proj.weight"] = projection.weight
        if phase.learns_tower:
            patches = llava.model.vision_tower.embeddings.patch_embedding
            watched["vision_tower.vision_model.embeddings.patch_embedding.weight"] = patches.weight
    return watched


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Number format of training: ``auto`` is bf16 on GPUs and fp32 on a CPU."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _init_projector(config: RunConfig, phase: Phase, llava: LlavaForConditionalGeneration) -> None:
    """Give the model the projector that the phase starts from: a new one, or what phase 1 made in this run."""
    if config.alignment is None:
        return
    if phase.stage is StageName.ALIGN:
        if config.alignment.fresh_projector:
            reset_projector(llava, phase.training.seed)
        return
    folder = config.volume.projector_dir
    if not folder.is_dir():
        raise StageError(Reason.INTERNAL_ERROR, f"{folder} is missing: alignment has left no projector to start from")
    load_projector(llava, folder)


def _open(llava: LlavaForConditionalGeneration, phase: Phase) -> Tuned:
    """Make what the phase's method trains learn, and nothing else."""
    beside = {"learns_projector": phase.learns_projector, "learns_tower": phase.learns_tower}
    if phase.method in ("lora", "qlora"):
        return add_adapter(llava, phase.training.lora, **beside)
    if phase.method == "full":
        train_whole(llava, **beside)
    else:
        train_projector(llava)
    return llava
