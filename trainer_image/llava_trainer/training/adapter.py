"""Writing the adapter and the trained projector in PEFT's layout, and making sure that they arrived."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.files import begin_folder, publish_folder
from llava_trainer.model.lora import is_lora_b, projector_tensors
from llava_trainer.training.tensors import save_tensors

WEIGHTS_FILE = "adapter_model.safetensors"


def save_adapter(tuned: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors (LoRA matrices and projector) into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(_live_weights(tuned), folder / WEIGHTS_FILE)
    tuned.active_peft_config.save_pretrained(str(folder))


def publish_adapter(tuned: PeftModel, folder: Path) -> None:
    """Write the final adapter aside, read it back, and give it its name only if it is what was trained.

    Raises:
        StageError: InternalError; what was written is not what is live, or nothing was learned.
    """
    aside = begin_folder(folder)
    save_adapter(tuned, aside)
    check_saved(tuned, aside)
    publish_folder(folder)


def check_saved(tuned: PeftModel, folder: Path) -> None:
    """Compare a written adapter with the live one.

    Raises:
        StageError: InternalError, naming the tensor.
    """
    stored = load_file(folder / WEIGHTS_FILE)
    live = _live_weights(tuned)
    wrong = sorted(
        name
        for name in live.keys() | stored.keys()
        if name not in live or name not in stored or not torch.equal(live[name].cpu(), stored[name])
    )
    if wrong:
        raise StageError(Reason.INTERNAL_ERROR, f"{folder}: {wrong[0]} is not what was trained ({len(wrong)} in all)")
    if not any(tensor.any() for name, tensor in stored.items() if is_lora_b(name)):
        raise StageError(Reason.INTERNAL_ERROR, f"{folder}: every LoRA B matrix is zero, so nothing was learned")
    if all(torch.equal(trained, original) for trained, original in projector_tensors(tuned)):
        raise StageError(Reason.INTERNAL_ERROR, f"{folder}: the projector is the base's own, so it was not trained")


def _live_weights(tuned: PeftModel) -> dict[str, torch.Tensor]:
    # save_embedding_layers would ask the hub for the base's configuration.
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    return weights
