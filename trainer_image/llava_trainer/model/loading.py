"""Loading a LLaVA checkpoint, and a tuned model on top of it. Nothing is ever unpickled, no code is ever fetched."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import LlavaForConditionalGeneration
from transformers.integrations import is_deepspeed_zero3_enabled

from llava_api.failures import Reason
from llava_api.spec import Quantization
from llava_trainer.device_faults import explain_device_fault
from llava_trainer.errors import LOST_CONNECTION_SIGN, StageError
from llava_trainer.model.attention import register_attention
from llava_trainer.model.layout import is_derived
from llava_trainer.model.lora import is_lora_b
from llava_trainer.model.quantization import train_in_nf4

AS_DATA: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
"""How every model is loaded: from its folder, by transformers' own classes, without unpickling anything."""
PLAIN_ATTENTION = "sdpa"
"""What transformers takes unless the configuration chooses; some choices would be fetched from the hub and run."""

_NAMED_KEYS = 5


def load_model(
    model_dir: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str = PLAIN_ATTENTION,
    quantization: Quantization | None = None,
) -> LlavaForConditionalGeneration:
    """Load a checkpoint from safetensors files, under any of the three ways in which tensors have been named.

    Args:
        model_dir: folder with config.json and weights.
        dtype: number format of every weight.
        device: where the weights go; they are read straight to it.
        attention: implementation, as transformers or ``llava_trainer.model.attention`` calls it.
        quantization: how to quantise the language model's linear layers to NF4; None leaves them alone.

    Returns:
        The model in evaluation mode.

    Raises:
        StageError: InvalidModel, naming the file, or the tensors that are missing, unexpected or of another shape.
    """
    device = torch.device(device)
    register_attention()
    try:
        model, found = LlavaForConditionalGeneration.from_pretrained(
            model_dir,
            dtype=dtype,
            # With ZeRO-3 every parameter goes to the process that it belongs to.
            device_map=None if is_deepspeed_zero3_enabled() else {"": device},
            attn_implementation=attention,
            quantization_config=None if quantization is None else train_in_nf4(quantization, dtype),
            **AS_DATA,
            # Collected below with all other problems, instead of one error that names no tensor.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if _lies_elsewhere(error):
            raise
        raise StageError(Reason.INVALID_MODEL, f"{model_dir} cannot be loaded: {error}") from error
    problems = [
        _describe(what, names)
        for what, names in (
            ("lacks", found["missing_keys"]),
            ("has unexpected", (name for name in found["unexpected_keys"] if not is_derived(name))),
            ("has another shape than config.json says of", (str(entry[0]) for entry in found["mismatched_keys"])),
        )
    ]
    if any(problems):
        raise StageError(Reason.INVALID_MODEL, f"{model_dir} " + "; it ".join(filter(None, problems)))
    return model.eval()


def _lies_elsewhere(error: Exception) -> bool:
    """Whether it is not the checkpoint's fault: the GPU's, or, where ZeRO-3 shares weights out, another process's."""
    return (
        isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError | dist.DistError)
        or LOST_CONNECTION_SIGN in str(error)
        or explain_device_fault(error) is not None
    )


def load_tuned(
    model_dir: Path,
    adapter_dir: Path,
    dtype: torch.dtype,
    device: torch.device | str,
) -> PeftModel:
    """Load a checkpoint with an adapter, and its projector where that was trained, on top.

    Args:
        model_dir: as in ``load_model``.
        adapter_dir: folder of the adapter.
        dtype: as in ``load_model``.
        device: as in ``load_model``.

    Returns:
        The model in evaluation mode, nothing merged.

    Raises:
        StageError: InvalidModel for the base; InternalError for an adapter that is not whole or changes nothing.
    """
    base = load_model(model_dir, dtype, device)
    try:
        tuned = PeftModel.from_pretrained(base, str(adapter_dir), autocast_adapter_dtype=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if _lies_elsewhere(error):
            raise
        raise StageError(Reason.INTERNAL_ERROR, f"the adapter in {adapter_dir} cannot be loaded: {error}") from error
    tuned.to(dtype)
    check_adapter_loaded(tuned, adapter_dir)
    return tuned.eval()


def check_adapter_names(tuned: PeftModel, adapter_dir: Path) -> None:
    """Make sure that every tensor of the adapter's file has its place in the model, and every place its tensor.

    PEFT passes over names that it does not find, and a renamed layer then makes an adapter without effect.

    Args:
        tuned: the model; its tensors need hold no values.
        adapter_dir: folder of the adapter.

    Raises:
        StageError: InternalError, naming what is missing or has no place.
    """
    expected = get_peft_model_state_dict(tuned, save_embedding_layers=False).keys()
    with safe_open(adapter_dir / "adapter_model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    problems = [
        _describe("lacks", expected - stored),
        _describe("holds tensors that the model has no place for:", stored - expected),
    ]
    if any(problems):
        raise StageError(Reason.INTERNAL_ERROR, f"the adapter in {adapter_dir} " + "; it ".join(filter(None, problems)))


def check_adapter_loaded(tuned: PeftModel, adapter_dir: Path) -> None:
    """Make sure that an adapter is in the model as a whole, and does something.

    What stands beside its matrices may be as in the base: who made the adapter may have had no need to train it.

    Raises:
        StageError: InternalError, naming what is missing, has no place, or has no effect.
    """
    check_adapter_names(tuned, adapter_dir)
    tensors = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    if not any(tensor.any() for name, tensor in tensors.items() if is_lora_b(name)):
        raise StageError(
            Reason.INTERNAL_ERROR, f"the adapter in {adapter_dir} has no effect: every LoRA B matrix is zero"
        )


def _describe(what: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    rest = f" and {len(listed) - _NAMED_KEYS} more" if len(listed) > _NAMED_KEYS else ""
    return f"{what} {', '.join(listed[:_NAMED_KEYS])}{rest}"
