"""What of a LLaVA is trained: LoRA in the language model, and the projector whole. The vision tower stays as it is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlavaForConditionalGeneration

from llava_api.spec import Lora

LANGUAGE_MODEL_LAYERS = r"model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""Pattern for the whole module name. Endings such as ``q_proj`` would fit the vision tower's layers too."""
PROJECTOR = "multi_modal_projector"
_ADAPTER_NAME = "default"


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a peak learning rate and weight decay."""

    name: str
    parameters: tuple[torch.nn.Parameter, ...]
    learning_rate: float
    weight_decay: float


def add_adapter(model: LlavaForConditionalGeneration, lora: Lora) -> PeftModel:
    """Add a fresh adapter to ``model`` and make it and the projector the only things that learn.

    The projector goes through PEFT's ``modules_to_save``: it is in every adapter that PEFT saves, and plain
    ``PeftModel.from_pretrained`` brings it back. The adapter's weights are drawn from torch's global generator, in
    the number format of the model: DeepSpeed keeps the fp32 originals.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=LANGUAGE_MODEL_LAYERS,
        modules_to_save=[PROJECTOR],
    )
    tuned = get_peft_model(model, config, adapter_name=_ADAPTER_NAME, autocast_adapter_dtype=False)
    return tuned.to(model.dtype)


def group_parameters(
    module: torch.nn.Module, *, learning_rate: float, projector_learning_rate: float, weight_decay: float
) -> tuple[ParameterGroup, ...]:
    """Sort everything that learns into groups; biases do not decay, as in LLaVA's own trainer.

    Args:
        module: the model, or what holds it.
        learning_rate: peak learning rate of whatever is not the projector.
        projector_learning_rate: that of the projector.
        weight_decay: of weights.
    """
    chosen: dict[str, list[torch.nn.Parameter]] = {"adapter": [], "projector": [], "projector_bias": []}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if PROJECTOR not in name:
            chosen["adapter"].append(parameter)
        else:
            chosen["projector_bias" if name.endswith(".bias") else "projector"].append(parameter)
    settings = {
        "adapter": (learning_rate, weight_decay),
        "projector": (projector_learning_rate, weight_decay),
        "projector_bias": (projector_learning_rate, 0.0),
    }
    return tuple(
        ParameterGroup(name=name, parameters=tuple(chosen[name]), learning_rate=peak, weight_decay=decay)
        for name, (peak, decay) in settings.items()
        if chosen[name]
    )


def is_lora_b(name: str) -> bool:
    """Whether a tensor of this name is a LoRA B matrix: zero at first, and zero for good if it never learns."""
    return ".lora_B." in name


def projector_tensors(tuned: PeftModel) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every tensor of the projector as (trained, the base's own)."""
    wrapper = getattr(tuned.get_base_model().model, PROJECTOR)
    original = wrapper.original_module.state_dict()
    for name, trained in wrapper.modules_to_save[_ADAPTER_NAME].state_dict().items():
        yield trained, original[name]
