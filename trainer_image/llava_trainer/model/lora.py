"""LoRA in the language model, and beside it projector and vision tower, each trained whole or frozen."""

from collections.abc import Collection
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.spec import Lora, LoraTarget
from llava_trainer.errors import StageError
from llava_trainer.model.layout import PROJECTOR, VISION_TOWER
from llava_trainer.model.partition import whole
from llava_trainer.model.tower import learning_parts

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


def add_adapter(
    model: LlavaForConditionalGeneration, lora: Lora, *, learns_projector: bool = True, learns_tower: bool = False
) -> PeftModel:
    """Add a fresh adapter to ``model`` and make it, and what is to learn beside it, the only things that learn.

    Projector and tower go through PEFT's ``modules_to_save``: they are in every adapter that PEFT saves, and plain
    ``PeftModel.from_pretrained`` brings them back. Of the tower these are its parts one by one, up to the features:
    what lies behind is in no adapter. The adapter's weights are drawn from torch's global generator, in
    the number format of the model: DeepSpeed keeps the fp32 originals. PEFT's ``prepare_model_for_kbit_training`` is
    not for a quantised LLaVA: it would turn the frozen tower into fp32, and make it build a graph.
    """
    tower = [f"{VISION_TOWER}.{part}" for part in learning_parts(model.config)] if learns_tower else []
    whole_modules = ([PROJECTOR] if learns_projector else []) + tower
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        use_rslora=lora.rs_lora,
        target_modules=target_modules(lora.targets),
        modules_to_save=whole_modules or None,
    )
    tuned = get_peft_model(model, config, adapter_name=_ADAPTER_NAME, autocast_adapter_dtype=False)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)
    return tuned


def fill_adapter(tuned: PeftModel, file: Path) -> None:
    """Have the adapter, and what learns beside it, begin with the tensors in ``file``, in the model's number format.

    Every rank calls it where ZeRO-3 shares parameters out: PEFT's own loading would copy into empty tensors there. What
    learns beside it and is not in the file (the projector, say) begins as the base's own.

    Args:
        tuned: with an adapter of the same shape.
        file: tensors under the names by which PEFT saves them.

    Raises:
        StageError: InternalError; the file has tensors of another adapter.
    """
    parameters = {saved_name(name): one for name, one in tuned.named_parameters() if one.requires_grad}
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
        missing = {name for name in parameters if ".lora_" in name} - names
        if stray := (names - parameters.keys()) | missing:
            raise StageError(Reason.INTERNAL_ERROR, f"{file}: {min(stray)} has no counterpart in the model")
        for name in sorted(names):
            with whole([parameters[name]], changed=True), torch.no_grad():
                parameters[name].copy_(stored.get_tensor(name))


def saved_name(name: str) -> str:
    """What PEFT calls a parameter of this name in a file."""
    return name.replace(f".modules_to_save.{_ADAPTER_NAME}.", ".").replace(f".{_ADAPTER_NAME}.", ".")


def is_lora_b(name: str) -> bool:
    """Whether a tensor of this name is a LoRA B matrix: zero at first, and zero for good if it never learns."""
    return ".lora_B." in name


def find_unmoved(tuned: PeftModel) -> str | None:
    """Which of projector and vision tower is as it was in the base though it has learned; None if neither is.

    Every rank calls it where ZeRO-3 shares parameters out.
    """
    for part in (PROJECTOR, VISION_TOWER):
        wrappers = [
            module
            for name, module in tuned.get_base_model().named_modules()
            if isinstance(module, ModulesToSaveWrapper) and part in name
        ]
        if wrappers and not any(_has_moved(wrapper) for wrapper in wrappers):
            return part
    return None


def _has_moved(wrapper: ModulesToSaveWrapper) -> bool:
    trained = wrapper.modules_to_save[_ADAPTER_NAME]
    with whole(wrapper.parameters()):
        original = wrapper.original_module.state_dict()
        return any(not torch.equal(tensor, original[name]) for name, tensor in trained.state_dict().items())
