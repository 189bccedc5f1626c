"""Writing the adapter, with the projector where it was trained, in PEFT's layout, and making sure that it arrived."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.files import begin_folder, make_folder, publish_folder
from llava_trainer.inputs import BaseModel
from llava_trainer.model.adapter_folder import WEIGHTS_FILE
from llava_trainer.model.layout import SPOKEN
from llava_trainer.model.lora import find_unmoved, is_lora_b
from llava_trainer.model.partition import whole
from llava_trainer.tensors.writing import save_tensors


def collect_adapter(tuned: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of the LoRA matrices, and a projector that learns, in the node's memory, under PEFT's names for them.

    Every rank calls it where ZeRO-3 shares parameters out: PEFT's own saving would write empty tensors there.
    """
    learning = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    with whole(learning.values()):
        # save_embedding_layers would ask the hub for the base's configuration.
        weights = get_peft_model_state_dict(tuned, state_dict=learning, save_embedding_layers=False)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}


def name_base(tuned: PeftModel, base: BaseModel) -> None:
    """Have the adapter name its model as others find it, instead of the path where this run has it."""
    config = tuned.active_peft_config
    config.base_model_name_or_path, config.revision = base.name, base.revision


def write_adapter(tuned: PeftModel, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors (what ``collect_adapter`` gave) into ``folder``."""
    make_folder(folder)
    save_tensors(weights, folder / WEIGHTS_FILE)
    # As PEFT's own saving does: AutoPeftModel finds the class of the base by it.
    base = type(tuned.get_base_model())
    mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
    tuned.active_peft_config.save_pretrained(str(folder), auto_mapping_dict=mapping)


def publish_adapter(
    tuned: PeftModel,
    folder: Path,
    *,
    is_first: bool = True,
    check: Callable[[], None] = lambda: None,
    given: Path | None = None,
) -> None:
    """Write the final adapter aside, read it back, and give it its name only if it is what was trained.

    Args:
        tuned: what was trained.
        folder: where it goes.
        is_first: whether this rank writes for all; every rank calls it.
        check: called before the result is completed; raises if this attempt does not count any more.
        given: file of the adapter that training went on from.

    Raises:
        StageError: InternalError; what was written is not what is live. AdapterUnchanged; nothing was learned.
    """
    weights = collect_adapter(tuned)
    check_learned(tuned, weights)
    if given is not None:
        check_moved(weights, given)
    if not is_first:
        return
    aside = begin_folder(folder)
    write_adapter(tuned, weights, aside)
    check_saved(weights, aside / WEIGHTS_FILE)
    check()
    publish_folder(folder)


def check_saved(live: Mapping[str, torch.Tensor], file: Path) -> None:
    """Compare a written file with what is live.

    Raises:
        StageError: InternalError, naming the tensor.
    """
    stored = load_file(file)
    wrong = sorted(
        name
        for name in live.keys() | stored.keys()
        if name not in live or name not in stored or not torch.equal(live[name], stored[name])
    )
    if wrong:
        raise StageError(Reason.INTERNAL_ERROR, f"{file}: {wrong[0]} is not what was trained ({len(wrong)} in all)")


def check_moved(weights: Mapping[str, torch.Tensor], given: Path) -> None:
    """Make sure that an adapter is not the one that training went on from, tensor by tensor.

    Raises:
        StageError: AdapterUnchanged.
    """
    with safe_open(given, framework="pt") as stored:
        names = weights.keys() & set(stored.keys())
        if all(torch.equal(weights[name], stored.get_tensor(name).to(weights[name].dtype)) for name in sorted(names)):
            raise StageError(
                Reason.ADAPTER_UNCHANGED, "the adapter is as it was given (spec.model.adapter), so nothing was learned"
            )


def check_learned(tuned: PeftModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Make sure that the adapter does something, and that what learns beside it has moved.

    Raises:
        StageError: AdapterUnchanged.
    """
    if not any(tensor.any() for name, tensor in weights.items() if is_lora_b(name)):
        raise StageError(Reason.ADAPTER_UNCHANGED, "every LoRA B matrix is zero at the end, so nothing was learned")
    unmoved = find_unmoved(tuned)
    if unmoved is not None:
        raise StageError(
            Reason.ADAPTER_UNCHANGED,
            f"the {SPOKEN[unmoved]} is as it was before training, so it did not learn: its learning rate is too low "
            "for the number format, or there were too few steps",
        )
