"""LoRA in the language model, and the projector trained whole beside it, or frozen. The vision tower stays as it is."""

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.spec import Lora, LoraTarget
from llava_trainer.errors import StageError
from llava_trainer.model.layout import PROJECTOR
from llava_trainer.model.partition import whole

_PARTS = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}
"""Linear layers of a layer, by the module that holds them."""
_ADAPTER_NAME = "default"


def target_modules(targets: Collection[LoraTarget]) -> str:
    """Pattern for the whole name of a module that gets an adapter.

    Endings such as ``q_proj`` would fit the vision tower's layers too.
    """
    parts = []
    for part, names in _PARTS.items():
        chosen = "|".join(name for name in names if f"{name}_proj" in targets)
        if chosen:
            parts.append(rf"{part}\.({chosen})_proj")
    found = parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
    return rf"model\.language_model\.layers\.\d+\.{found}"


def add_adapter(model: LlavaForConditionalGeneration, lora: Lora, *, learns_projector: bool = True) -> PeftModel:
    """Add a fresh adapter to ``model`` and make it, and the projector unless it is frozen, the only things that learn.

    A projector that learns goes through PEFT's ``modules_to_save``: it is in every adapter that PEFT saves, and plain
    ``PeftModel.from_pretrained`` brings it back. The adapter's weights are drawn from torch's global generator, in
    the number format of the model: DeepSpeed keeps the fp32 originals. PEFT's ``prepare_model_for_kbit_training`` is
    not for a quantised LLaVA: it would turn the frozen tower into fp32, and make it build a graph.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        use_rslora=lora.rs_lora,
        target_modules=target_modules(lora.targets),
        modules_to_save=[PROJECTOR] if learns_projector else None,
    )
    tuned = get_peft_model(model, config, adapter_name=_ADAPTER_NAME, autocast_adapter_dtype=False)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)
    return tuned


def fill_adapter(tuned: PeftModel, file: Path) -> None:
    """Have the adapter, and a projector that learns, begin with the tensors in ``file``, in the model's number format.

    Every rank calls it where ZeRO-3 shares parameters out: PEFT's own loading would copy into empty tensors there. A
    projector that is not in the file stays the base's own.

    Args:
        tuned: with an adapter of the same shape.
        file: tensors under the names by which PEFT saves them.

    Raises:
        StageError: InternalError; the file has tensors of another adapter.
    """
    parameters = {_saved_name(name): one for name, one in tuned.named_parameters() if one.requires_grad}
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
        missing = {name for name in parameters if PROJECTOR not in name} - names
        if stray := (names - parameters.keys()) | missing:
            raise StageError(Reason.INTERNAL_ERROR, f"{file}: {min(stray)} has no counterpart in the model")
        for name in sorted(names):
            with whole([parameters[name]], changed=True), torch.no_grad():
                parameters[name].copy_(stored.get_tensor(name))


def _saved_name(name: str) -> str:
    """What PEFT calls a parameter of this name in a file."""
    return name.replace(f".modules_to_save.{_ADAPTER_NAME}.", ".").replace(f".{_ADAPTER_NAME}.", ".")


def is_lora_b(name: str) -> bool:
    """Whether a tensor of this name is a LoRA B matrix: zero at first, and zero for good if it never learns."""
    return ".lora_B." in name


def projector_tensors(tuned: PeftModel) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every tensor of the projector as (trained, the base's own); nothing where it is frozen."""
    wrapper = getattr(tuned.get_base_model().model, PROJECTOR)
    if not hasattr(wrapper, "modules_to_save"):
        return
    original = wrapper.original_module.state_dict()
    for name, trained in wrapper.modules_to_save[_ADAPTER_NAME].state_dict().items():
        yield trained, original[name]
